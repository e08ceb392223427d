#!/usr/bin/env bash
# `tandem run` and memory: what cannot fit is refused in one line before anything is allocated, and what a rank holds is what
# the memory model says.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"

# plan_of WIDTH LAYERS [STEP]: two tensor ranks in each of two stages
plan_of() {
    echo 'name: wide'
    cluster 4 | sed 's/memory_gib: 141/memory_gib: 100000/'
    echo 'modules:'
    echo "  language: {type: language, layers: $2, hidden: $1, heads: 8, ffn: $((3 * $1)), vocab: 2048, seq: 128, parallel: {tp: 2, pp: 2, dp: 1}}"
    echo "step: {microbatches: 4, micro_batch: 2, ${3-}}"
    echo 'precision: fp32'
}

plan_of 32768 200 >"$tmp/wide.yaml"
run run "$tmp/wide.yaml" --steps 1 --quiet
exits 5
says err '4 ranks on one machine need [0-9.]+ GiB, most of all rank [0-9] with [0-9.]+ GiB, but [0-9.]+ GiB are available'
[ "$(wc -l <"$tmp/err")" = 1 ] || fail "$ran: more than one line: $(cat "$tmp/err")"
nothing_left

for step in '' 'sequence_parallel: true,' 'recompute: selective,' 'recompute: full,'; do
    plan_of 256 4 "$step" >"$tmp/small.yaml"
    run check "$tmp/small.yaml" --json
    exits 0
    cp "$tmp/out" "$tmp/check.json"
    run run "$tmp/small.yaml" --steps 1 --warmup 0 --json --quiet
    exits 0
    holds "$tmp/out" "all(abs(a['peak_memory_bytes'] / b['memory_bytes']['total'] - 1) < 0.12 for a, b in zip(r['ranks'], json.load(open('$tmp/check.json'))['ranks']))"
done
finish
