#!/usr/bin/env bash
# Laws that must hold from outside: engines agree where no link is shared, folding changes nothing, more work takes longer.
source "$(dirname "$0")/lib.bash"

step() { # NAME ARGUMENTS...: predicts, step_s goes to $tmp/NAME
    run predict "${@:2}" --json
    exits 0
    python3 -c 'import json, sys; print(repr(json.load(sys.stdin)["step_s"]))' <"$tmp/out" >"$tmp/$1"
}
holds() { # PYTHON NAMES...: the expression over the step times holds
    python3 - "$tmp" "$@" <<'END' || fail "$law: $1"
import sys
tmp, expression, *names = sys.argv[1:]
values = {name: float(open(f"{tmp}/{name}", encoding="utf-8").read()) for name in names}
if not eval(expression, values):
    sys.exit(f"{expression}: { {name: values[name] for name in names} }")
END
}

simgrid=''
"$tandem" list backends | grep -qE '^ *simgrid' && simgrid=yes

for path in examples/plans/{full_pp_8gpu,fan_in_dp4_8gpu,fan_out_dp4_8gpu,enc_dp2_llm_pp3_dp2_8gpu-7b}.yaml; do
    law=$path
    step ideal "$path" --on ideal --no-overlap
    step unfolded "$path" --on ideal --no-overlap --no-fold
    holds 'ideal == unfolded' ideal unfolded
    step overlap "$path" --on ideal
    holds 'overlap >= ideal' overlap ideal
    if [ -n "$simgrid" ]; then
        step simgrid "$path" --on simgrid --no-overlap
        step simgrid_unfolded "$path" --on simgrid --no-overlap --no-fold
        step flows "$path" --on simgrid --no-overlap --flows all
        holds 'simgrid >= ideal - 1e-9' simgrid ideal
        holds 'abs(simgrid - simgrid_unfolded) <= 1e-9' simgrid simgrid_unfolded
        holds 'abs(simgrid - flows) <= 1e-6 * simgrid + 1e-9' simgrid flows
    fi
done

law='more microbatches'
sed -e 's/^  microbatches: .*/  microbatches: 32/' -e "s,\.\./clusters,$PWD/examples/clusters," "$plan" >"$tmp/more.yaml"
step few "$plan" --on ideal
step more "$tmp/more.yaml" --on ideal
holds 'few < more < 2 * few' few more

law='strict'
run predict examples/plans/llava-mixed-16gpu.yaml --strict --json
if [ "$rc" != 0 ]; then # whatever was extrapolated is named
    exits 1
    says err '[a-z]+.*[0-9]'
fi
finish
