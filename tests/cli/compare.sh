#!/usr/bin/env bash
# A comparison answers yes, no, or why it cannot; as text, as JSON, and as a page that a browser shows.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"

p=$tmp/p.json.gz m=$tmp/m.json
run predict "$tmp/four.yaml" --profile h200 -o "$p"
exits 0
run run "$tmp/four.yaml" --steps 3 --quiet -o "$m"
exits 0
run run "$tmp/four.yaml" --steps 2 --quiet -o "$tmp/fine.json" --trace fine
exits 0

# a trace and itself: zero everywhere
for trace in "$p" "$m" "$tmp/fine.json"; do
    run compare "$trace" "$trace" --json --tolerance 0
    exits 0
    silent err
    holds "$tmp/out" 'r["verdict"] == "ok" and r["step_s"]["rel_error"] == 0 and r["worst_ops"] == []'
    holds "$tmp/out" 'all(k["rel_error"] == k["p50"] == k["p95"] == 0 for k in r["by_kind"])'
    holds "$tmp/out" 'all(k[s]["rel_error"] == 0 for k in r["ranks"] for s in ("busy_s", "transfer_s", "collective_s", "bubble_s"))'
    holds "$tmp/out" 'r["bubbles"]["predicted"] == r["bubbles"]["measured"]'
    holds "$tmp/out" 'r["critical_path"]["parting"] is None and all(i["difference_s"] == 0 for i in r["attribution"])'
done
holds "$tmp/out" 'len(r["by_part"]) > 4 and all(k["rel_error"] == 0 for k in r["by_part"])'

# what it says is what the other commands say
run predict "$tmp/four.yaml" --profile h200 --json
cp "$tmp/out" "$tmp/predicted"
run compare "$p" "$m" --json
exits 1
for field in 'step_s' 'bubble_fraction'; do
    said=$(field "$tmp/predicted" "r['$field']")
    holds "$tmp/out" "abs(r['$field']['predicted'] / $said - 1) < 1e-4"
done
holds "$tmp/out" 'r["verdict"] == "no" and r["tolerance"] == 0.05 and abs(r["step_s"]["rel_error"]) > 0.05'
holds "$tmp/out" 'r["step_s"]["rel_error"] == (r["step_s"]["predicted"] - r["step_s"]["measured"]) / r["step_s"]["measured"]'
holds "$tmp/out" 'len(r["worst_ops"]) == 20 and len(r["ranks"]) == 4 and len(r["microbatches"]) == 4 and len(r["memory"]) == 4'
holds "$tmp/out" 'all(set(k) >= {"kind", "predicted_s", "measured_s", "rel_error", "p50", "p95", "count"} for k in r["by_kind"])'
holds "$tmp/out" '[abs(o["difference_s"]) for o in r["worst_ops"]] == sorted((abs(o["difference_s"]) for o in r["worst_ops"]), reverse=True)'
# every second of a rank is busy or has a cause
holds "$tmp/out" 'all(abs(sum(k["bubbles"][s].values()) - sum(k[x][s] for x in ("transfer_s", "collective_s", "bubble_s"))) < 1e-8 for k in r["ranks"] for s in ("predicted", "measured"))'
run compare "$p" "$m" --tolerance 1000
exits 0
says out '^measured .* predicted .*: measured spends '
says out 'the compute lane stands still'

# cannot be compared
run predict examples/plans/fan_in_dp4_8gpu.yaml -o "$tmp/other.json"
run compare "$tmp/other.json" "$m"
exits 3
silent out
says err 'fan_in_dp4_8gpu.*program [0-9a-f]{64}.*`four`.*program [0-9a-f]{64}'
head -c 20000 "$m" >"$tmp/cut.json"
head -c 900 "$p" >"$tmp/cut.json.gz"
sed -E '/"step":1,"op":3,/d' "$m" >"$tmp/lacks.json"
sed -E 's/"dur":[0-9.]+(.*"step":1,"op":3,)/"dur":-1\1/' "$m" >"$tmp/backwards.json"
sed -E 's/"ts":[0-9.]+(.*"step":1,"op":3,)/"ts":1\1/' "$m" >"$tmp/early.json"
echo '{"a": 1}' >"$tmp/object.json"
mkfifo "$tmp/pipe.json"
for name in cut.json cut.json.gz lacks.json backwards.json early.json object.json pipe.json nowhere.json ''; do
    for pair in "$tmp/$name $m" "$m $tmp/$name"; do
        # shellcheck disable=SC2086 # two words
        run compare $pair --html "$tmp/never.html"
        exits 3
        silent out
        says err "$tmp/$name"
    done
done
[ ! -e "$tmp/never.html" ] || fail 'a page of what cannot be compared'

# usage
run compare "$p"
exits 2
run compare "$p" "$m" --tolerance 5%
exits 2
says err '5%'
run compare "$p" "$m" --tolerance -1
exits 2
run compare "$p" "$m" --html "$tmp/missing/page.html"
exits 3
silent out
says err 'missing/page.html'
run compare --help
exits 0
says out 'tandem compare predicted.json measured.json'

# the page: whole, without anything from elsewhere, and drawn by a browser if there is one
run compare "$p" "$m" --html "$tmp/page.html"
exits 1
says err 'page.html'
tail -n 1 "$tmp/page.html" | grep -q '</html>' || fail 'the page is not whole'
! grep -nE "https?://|src=|@import|url\(" "$tmp/page.html" || fail 'the page needs something from elsewhere'
ls "$tmp"/page.html.*.tmp 2>/dev/null && fail 'a temporary file is left'
for browser in chromium chromium-headless-shell google-chrome none; do
    command -v $browser >/dev/null && break
done
if [ $browser = none ]; then
    echo 'no browser: the page was not looked at'
else
    HOME=$tmp timeout 60 $browser --headless --no-sandbox --disable-gpu --user-data-dir="$tmp/profile" --enable-logging=stderr \
        --virtual-time-budget=2000 --dump-dom "file://$tmp/page.html" >"$tmp/dom" 2>"$tmp/said" || fail "$browser: $(tail -n 3 "$tmp/said")"
    ! grep -E 'CONSOLE.*(Error|Uncaught)' "$tmp/said" || fail 'the page complains'
    [ "$(grep -o '<tr' "$tmp/dom" | wc -l)" -gt 40 ] || fail 'the tables are empty'
    grep -q '4 of 4 ranks' "$tmp/dom" || fail 'the page does not say what it shows'
fi
nothing_left
finish
