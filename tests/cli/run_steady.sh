#!/usr/bin/env bash
# `tandem run --warmup steady`: the ranks agree on when the warm-up is over, and the answer says how it went. Takes 10 s at least, and
# 60 s where other programs disturb this one.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"

# A fault may lie in any step, since nobody knows how many there will be; far away it never comes.
ran="tandem run --warmup steady"
timeout 120 "$tandem" run "$tmp/four.yaml" --warmup steady --steps 3 --inject nan:3:1000000000 --json -o "$tmp/m.json" \
    >"$tmp/out" 2>"$tmp/err" </dev/null
rc=$?
exits 0
w='r["warmup"]'
holds "$tmp/out" "$w['steady'] in (True, False) and $w['steps'] > 2 and 10 <= $w['seconds'] < 75"
holds "$tmp/out" "len(r['steps']) == 3 and r['step_s']['n'] == 3"
steps=$(field "$tmp/out" "$w['steps']")
says err "^step $((steps - 1)) \(warm-up\): loss"
says err "^step $steps: loss"
says err "^step $((steps + 2)): loss"
[ "$(field "$tmp/out" "$w['steady']")" = True ] || says err '^not steady after 6[0-9] s of warming up'
[ "$(field "$tmp/m.json" "json.loads(r['metadata']['warmup'])")" = "$(field "$tmp/out" "$w")" ] || fail "$ran: the trace says otherwise"
nothing_left

# A fault that comes during the warm-up, and a checkpoint in it.
run run "$tmp/four.yaml" --warmup steady --steps 1 --save "$tmp/saved" --save-every 2 --inject kill:1:5 --quiet
exits 5
says err 'rank 1 was killed by signal 9'
run run "$tmp/four.yaml" --warmup 0 --steps 1 --load "$tmp/saved" --json
exits 0
says err '^step 4: loss'
nothing_left
finish
