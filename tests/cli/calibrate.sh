#!/usr/bin/env bash
# `tandem calibrate` from outside: what it finds in predicted traces is what they were predicted with, what it measures here is
# a profile that predicts, and wrong words are refused by name.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"
export TMPDIR=$tmp

# ---- traces of predictions with known costs ----
{
    echo 'name: dense'
    echo 'cluster: {groups: [{count: 1, node: {gpus: 4, gpu: {name: NVIDIA H200, memory_gib: 140}, nvlink_gb_s: 450, nvlink_latency_us: 1}}]}'
    echo 'modules:'
    echo '  language: {type: language, layers: 4, hidden: 2048, heads: 16, ffn: 5632, vocab: 32000, seq: 2048, parallel: {tp: 2, dp: 2}}'
    echo 'step: {microbatches: 4}'
} >"$tmp/dense.yaml"
sed 's/tp: 2, dp: 2/pp: 2, dp: 2/; s/name: dense/name: piped/' "$tmp/dense.yaml" >"$tmp/piped.yaml"
for name in dense piped; do
    run predict "$tmp/$name.yaml" --no-overlap -o "$tmp/$name.json" --trace fine --json
    exits 0
    cp "$tmp/out" "$tmp/$name.known"
done
run calibrate --from "$tmp/dense.json=$tmp/dense.yaml" "$tmp/piped.json=$tmp/piped.yaml" -o "$tmp/found.json" --json
exits 0
silent err
holds "$tmp/out" 'r["trust"] == "calibrated" and r["gpu"] == "NVIDIA H200" and len(r["traces"]) == 2'
holds "$tmp/out" 'r["classes"]["gemm"]["shapes"] > 20 and r["classes"]["gemm"]["residuals"][0] > 20'
holds "$tmp/out" 'r["classes"]["broadcast"]["residuals"][0] == 0'
for name in dense piped; do
    run predict "$tmp/$name.yaml" --no-overlap --profile "$tmp/found.json" --json
    exits 0
    silent err
    cp "$tmp/out" "$tmp/$name.again"
    holds "$tmp/$name.again" "abs(r['step_s'] / json.load(open('$tmp/$name.known'))['step_s'] - 1) < 0.03"
    holds "$tmp/$name.again" 'r["profile"]["trust"] == "calibrated" and r["extrapolated"] == []'
done
run calibrate --from "$tmp/dense.json=$tmp/dense.yaml" --refresh "$tmp/found.json" --json
exits 0
holds "$tmp/out" 'abs(r["classes"]["gemm"]["drift"][3]) < 0.05 and "file" not in r'
# The same traces give the same profile.
run calibrate --from "$tmp/dense.json=$tmp/dense.yaml" "$tmp/piped.json=$tmp/piped.yaml" -o "$tmp/again.json" --name found
exits 0
cmp -s "$tmp/found.json" "$tmp/again.json" || fail "$ran: another profile from the same traces"
says out '^gemm .*%'

# A profile of another GPU is used as asked, and that is said.
run predict "$tmp/dense.yaml" --profile a100 --json
exits 0
says err 'NVIDIA H200.*NVIDIA A100'

# ---- this machine ----
plan_of_four >"$tmp/four.yaml"
run calibrate --on host --for "$tmp/four.yaml" -o "$tmp/host.json" --json
exits 0
says err '^probe 1 of [1-9]'
holds "$tmp/out" 'r["classes"]["gemm"]["samples"] > 100 and r["classes"]["sendrecv"]["shapes"] > 0'
nothing_left
[ -z "$(compgen -G "$tmp/tandem-calibrate-*")" ] || fail "$ran: left $(compgen -G "$tmp/tandem-calibrate-*")"
run predict "$tmp/four.yaml" --profile "$tmp/host.json" --json
exits 0
holds "$tmp/out" 'r["step_s"] > 0 and r["profile"]["name"] == "host"'
holds "$tmp/out" 'not any("gemm" in e["what"] for e in r["extrapolated"])'

run calibrate --on host --for "$tmp/four.yaml" --keep "$tmp/kept" --refresh "$tmp/host.json" --quiet
exits 0
silent err
says out '^gemm .*drift|^gemm +[0-9]+ .*%'
kept=("$tmp/kept"/plan0*.yaml) # the whole plan, or a part of it where there are fewer cores than ranks
kept=${kept[0]%.yaml}
[ -s "$kept.yaml" ] && [ -s "$kept.json.gz" ] || fail "$ran: kept nothing"
run calibrate --from "$kept.json.gz=$kept.yaml" -o "$tmp/kept.json" --json
exits 0
holds "$tmp/out" 'r["classes"]["gemm"]["samples"] > 100'

# ---- what is refused ----
run calibrate --on host
exits 2
says err '-o PROFILE'
run calibrate --on abacus -o "$tmp/x.json"
exits 4
says err 'abacus.*cuda.*host'
run calibrate --from -o "$tmp/x.json"
exits 2
says err 'TRACE=PLAN'
run calibrate --from "$tmp/dense.json" -o "$tmp/x.json"
exits 2
says err 'TRACE=PLAN'
run calibrate --from "$tmp/dense.json=$tmp/piped.yaml" -o "$tmp/x.json"
exits 3
says err 'another program'
run calibrate --from "$tmp/dense.json=$tmp/dense.yaml" -o "$tmp/none/x.json"
exits 3
says err 'none/x.json'
run calibrate --from "$tmp/nothing.json=$tmp/dense.yaml" -o "$tmp/x.json"
exits 3
run calibrate --refresh nowhere --on host
exits 3
says err 'nowhere'
[ ! -e "$tmp/x.json" ] || fail 'a refused calibration wrote a profile'

finish
