#!/usr/bin/env bash
# Every --json answer is one object with the documented fields.
source "$(dirname "$0")/lib.bash"

for path in examples/plans/{full_pp_8gpu-7b,fan_in_dp4_8gpu,llava-av-8gpu,llava-frozen-backbone,qwen2.5-vl-17gpu-like}.yaml; do
    for command in check show predict; do
        run "$command" "$path" --json
        exits 0
        python3 tests/cli/fields.py "$command" "$path" <"$tmp/out" || fail "$ran: fields"
    done
done

# Not valid, yet readable: the object says what is wrong.
sed -e 's,tp: 2, tp: 3,' -e "s,\.\./clusters,$PWD/examples/clusters," "$plan" >"$tmp/invalid.yaml"
run check "$tmp/invalid.yaml" --json
exits 1
python3 tests/cli/fields.py invalid "$tmp/invalid.yaml" <"$tmp/out" || fail "$ran: fields"
finish
