#!/usr/bin/env bash
# tests/tools/regress.sh TANDEM: the gate of tools/regress passes on its own baseline, fails on a doctored one and says why.
set -euo pipefail
export TANDEM=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

python3 - >"$scratch/suite.json" <<'PYTHON' # one folder of kept measurements is enough here
import json
suite = json.load(open("tests/regress/suite.json"))
suite["kept"]["measured"] = suite["kept"]["measured"][:1]
print(json.dumps(suite))
PYTHON
regress() { tools/regress --suite "$scratch/suite.json" --out "$scratch/out" --baseline "$1" "${@:2}" >"$scratch/said" 2>&1; }
doctor() { # python statements on `b`, the baseline, and `name`, `row` of one of its plans
    python3 - "$scratch/true.json" "$scratch/doctored.json" "$1" <<'PYTHON'
import json, sys
b = json.load(open(sys.argv[1]))
name, row = next(iter(b["plans"].items()))
exec(sys.argv[3])
json.dump(b, open(sys.argv[2], "w"))
PYTHON
}
expect() { # what, exit code, words that must be said: of the last doctored baseline
    local code=0
    regress "$scratch/doctored.json" || code=$?
    if [ "$code" != "$2" ] || ! grep -q -- "$3" "$scratch/said"; then
        echo "FAILED: $1: exit $code, expected $2 and the words: $3"
        sed 's/^/    /' "$scratch/said"
        failed=1
    else
        echo "ok: $1"
    fi
}

regress "$scratch/true.json" --update || { cat "$scratch/said" && exit 1; }
doctor ''
expect 'its own baseline passes' 0 'nothing got worse'
doctor 'row["rel_error"] = row["kinds_error"] = 0.0'
expect 'a prediction less accurate than it was' 1 'points worse, 0.5 allowed'
doctor 'row["kinds_error"] = 0.0'
expect 'the kinds of op alone less accurate' 1 'the kinds of op are predicted'
doctor 'row["measured_s"] *= 0.8'
expect 'a slower step' 1 '25.0 % more than the baseline'
doctor 'row["measured_s"] *= 1.25'
expect 'a faster step, which wants a new baseline too' 1 '20.0 % less than the baseline'
doctor 'row["measured_s"] *= 0.8; b["machine"] = "another"'
expect 'another machine: speed and accuracy are not compared' 0 'only losses and completeness'
doctor 'b["plans"]["gone"] = row'
expect 'a plan that is no longer measured' 1 'gone: is in the baseline, but was not examined'
doctor 'del b["plans"][name]'
expect 'a new plan is told and does not fail' 0 'was not judged'
doctor 'b = []'
expect 'a file that is no baseline' 3 'not a baseline'
rm "$scratch/doctored.json"
expect 'no baseline' 3 'there is no baseline yet'
columns=$(head -n 1 "$scratch/out/regress-kept.csv")
case $columns in
plan,digest,predicted_s,measured_s,rel_error,*,rel_error_forward*) echo 'ok: the table' ;;
*) echo "FAILED: columns of the table: $columns" && failed=1 ;;
esac
exit $failed
