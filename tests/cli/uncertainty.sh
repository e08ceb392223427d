#!/usr/bin/env bash
# The interval of a prediction: always the same, as many samples as asked for, none if none are wanted.
source "$(dirname "$0")/lib.bash"

of() { # EXPRESSION: of the object `a` that the last command printed
    python3 -c 'import json, sys; a = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1" <"$tmp/out"
}

run predict "$plan" --json
exits 0
first=$(of '[a["interval"], a["sensitivity"]]')
run predict "$plan" --json
[ "$(of '[a["interval"], a["sensitivity"]]')" = "$first" ] || fail "$ran: another answer than before"

run predict "$plan" --samples 64 --json
[ "$(of '(a["interval"]["samples"], a["interval"]["method"])')" = "(64, 're-simulated')" ] || fail "$ran: $(of 'a["interval"]')"
run predict "$plan" --samples 0 --json
[ "$(of '(a["interval"], len(a["sensitivity"]) > 3)')" = '(None, True)' ] || fail "$ran: $(of 'a["interval"]')"

run predict "$plan"
says out 'step time .*90 %: [0-9.]+ m?s to [0-9.]+ m?s'
says out 'interval: .*(residuals|assumed)'
says out 'gemm wgrad +[0-9.]+ %'

for wrong in -1 15 many 1e3 99999999; do
    run predict "$plan" --samples "$wrong"
    exits 2
    says err 'samples .*expected 0'
done
finish
