#!/usr/bin/env bash
# A predicted trace is a file that an independent reader accepts, is the same on every run, and appears whole or not at all.
source "$(dirname "$0")/lib.bash"

for small in examples/plans/baseline_2gpu.yaml examples/plans/fan_in_dp4_8gpu.yaml "$plan"; do
    for name in a.json b.json a.json.gz b.json.gz; do
        run predict "$small" -o "$tmp/$name"
        exits 0
    done
    cmp "$tmp/a.json" "$tmp/b.json" || fail "$small: two runs, two traces"
    cmp "$tmp/a.json.gz" "$tmp/b.json.gz" || fail "$small: two runs, two compressed traces"
    gzip -dc "$tmp/a.json.gz" | cmp - "$tmp/a.json" || fail "$small: the compressed trace is another one"
    for name in a.json a.json.gz; do
        python3 tests/traces/read_trace.py "$tmp/$name" >"$tmp/read" 2>&1 || fail "$small: read_trace.py: $(tail -n 3 "$tmp/read")"
    done
    run show "$small" --json
    python3 - "$tmp/a.json" "$tmp/out" <<'END' || fail "$small: trace and program disagree"
import json, sys
trace, show = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:3])
assert trace["metadata"]["program_digest"] == show["digest"], "digests differ"
ranks = {event["pid"] for event in trace["traceEvents"] if event["ph"] == "X"}
assert ranks == {entry["rank"] for entry in show["ranks"]}, f"the trace has the ranks {sorted(ranks)}"
END
done

run predict "$plan" -o "$tmp/fine.json" --trace fine
exits 0
python3 tests/traces/read_trace.py "$tmp/fine.json" >"$tmp/read" 2>&1 || fail "fine: read_trace.py: $(tail -n 3 "$tmp/read")"
[ "$(wc -c <"$tmp/fine.json")" -gt "$(wc -c <"$tmp/a.json")" ] || fail "--trace fine adds nothing"

run predict "$plan" -o "$tmp/missing/trace.json"
exits 3
says err 'missing'
mkdir "$tmp/empty"
run predict "$plan" -o "$tmp/empty"
exits 3
[ -z "$(ls -A "$tmp/empty")" ] || fail "a failed trace leaves files behind"
finish
