#!/usr/bin/env bash
# tests/tools/regress_accuracy.sh TANDEM: `tools/regress --on accuracy` from launches to the report, on this machine's cores; what it
# keeps gives the same report without running anything; and the kept measurements of GPUs go the same way.
set -euo pipefail
export TANDEM=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

says() { # what, file, words
    if grep -qE -- "$3" "$2"; then echo "ok: $1"; else
        echo "FAILED: $1: no /$3/ in"
        sed 's/^/    /' "$2" | head -n 40
        failed=1
    fi
}
holds() { # what, expression over `a`, the report, and `b`, the one from what was kept
    if python3 - "$2" "$scratch"/{out,again}/accuracy.json <<'PYTHON'; then echo "ok: $1"; else echo "FAILED: $1: not so: $2" && failed=1; fi
import json, sys
a, b = (json.load(open(path)) for path in sys.argv[2:])
sys.exit(not eval(sys.argv[1]))
PYTHON
}

# ---- two tiny plans, launched twice and one of them once more ----
cat >"$scratch/list.json" <<'JSON'
{"plans": [
  {"name": "first", "plan": "tests/regress/plans/two-modules-2rank.yaml", "group": "tiny"},
  {"name": "second", "plan": "tests/regress/plans/pipeline-3rank.yaml", "group": "tiny"},
  {"name": "broken", "plan": "tests/regress/plans/no-such-plan.yaml"}]}
JSON
echo "{\"accuracy\": {\"on\": \"host\", \"list\": \"$scratch/list.json\", \"steps\": 3, \"warmup\": 1, \"launches\": 2, \"repeat\": [\"second\"], \"cv_flag\": 0}}" \
    >"$scratch/suite.json"
regress() { tools/regress --suite "$scratch/suite.json" --on accuracy --profile h200 "$@"; }
code=0
regress --out "$scratch/out" --keep "$scratch/kept" >"$scratch/said" 2>"$scratch/err" || code=$?
[ $code = 1 ] || { echo "FAILED: a plan that is not there: exit $code, expected 1" && cat "$scratch/err" && failed=1; }
says 'a plan without a result is told' "$scratch/said" 'broken: tandem run: .*no-such-plan'
says 'and the others are examined all the same' "$scratch/said" '^second .* ms .* yes '
says 'variation is flagged in words' "$scratch/said" '^note: first: steps vary by .* \(CV\)'
says 'the noise floor is said' "$scratch/said" 'launches of one plan lie up to .* % apart'
says 'a FLOPs-only planner is beside it' "$scratch/said" '^FLOPs only'
says 'the page has the verdict of compare' "$scratch/out/accuracy.md" '^measured .* predicted .*measured spends'
says 'and a row for each stratum' "$scratch/out/accuracy.md" '^\| all \| 2 \|'
[ "$(wc -l <"$scratch/out/accuracy.csv")" = 4 ] || { echo 'FAILED: rows of the table' && failed=1; }

# ---- from what was kept ----
code=0
regress --out "$scratch/again" --from "$scratch/kept" >"$scratch/said" 2>"$scratch/err" || code=$?
[ $code = 0 ] || { echo "FAILED: from what was kept: exit $code" && cat "$scratch/err" && failed=1; }
holds 'the same measurements give the same numbers' 'all(a["plans"][n] == b["plans"][n] for n in ("first", "second"))'
holds 'and the same summary' 'all(a[k] == b[k] for k in ("strata", "ranking", "baseline", "noise_floor", "machine"))'
holds 'launches' '[len(a["plans"][n]["launches_s"]) for n in ("first", "second")] == [2, 3] and a["plans"]["second"]["steps"] == 9'
holds 'pairs of the group' 'a["ranking"]["pairs"] + a["ranking"]["close"] == 1'
holds 'arenas are exact' 'all(b["plans"][n]["arena_exact"] for n in b["plans"])'
holds 'a counted warm-up is neither steady nor not' 'all(b["plans"][n]["steady"] is None for n in b["plans"])'
grep -lq '"clocks"' "$scratch"/kept/*.run.json && echo 'FAILED: arrays of ranks were kept' && failed=1

# ---- traces of GPUs alone, without answers ----
sed "s,$scratch/list.json,$scratch/gpus.json,; s,\"cv_flag\": 0,\"cv_flag\": 0.005," "$scratch/suite.json" >"$scratch/suite-of-gpus.json"
python3 - >"$scratch/gpus.json" <<'PYTHON'
import json
names = ("baseline_2gpu-7b", "enc_dp2_llm_dp2_4gpu-7b", "fan_out_dp4_8gpu-7b")  # the last was not measured
print(json.dumps({"plans": [{"name": n, "plan": f"examples/plans/{n}.yaml", "group": "7b"} for n in names]}))
PYTHON
tools/regress --suite "$scratch/suite-of-gpus.json" --on accuracy --from examples/measured/h200-runs --out "$scratch/again" >"$scratch/said"
holds 'kept traces are enough' 'sorted(b["plans"]) == ["baseline_2gpu-7b", "enc_dp2_llm_dp2_4gpu-7b"] and b["machine"] == "kept H200 measurements"'
holds 'with 30 steps each' 'all(p["steps"] == 30 and p["low_s"] <= p["measured_s"] <= p["high_s"] for p in b["plans"].values())'
holds 'and the memory that the traces tell' 'all(p["arena_exact"] and p["memory_total_ok"] for p in b["plans"].values())'
holds 'their noise is not known' 'b["noise_floor"] is None'
exit $failed
