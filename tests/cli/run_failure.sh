#!/usr/bin/env bash
# A run ends as a whole: whichever rank is killed, stopped or in error, and whenever, the run is over within seconds, says
# who and in which op, prints no part of an answer and leaves nothing behind. Faults can be made on purpose.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"

# start ARGUMENTS...: a long run in the background as $child; goes on when it trains
start() {
    ran="tandem run $*"
    : >"$tmp/err"
    env --default-signal=INT "$tandem" run "$tmp/four.yaml" --steps 1000000 "$@" >"$tmp/out" 2>"$tmp/err" </dev/null &
    child=$!
}
until_it_trains() {
    for _ in $(seq 200); do
        ! grep -q '^step 1:' "$tmp/err" || return
        sleep 0.05
    done
    fail "$ran: does not train after 10 s: $(cat "$tmp/err")"
}
# ends CODE: the background run ends so within 10 s, and cleanly
ends() {
    local begin=${EPOCHREALTIME/./}
    timeout 10 tail --pid="$child" -s 0.02 -f /dev/null || fail "$ran: still there after 10 s"
    wait "$child"
    rc=$?
    slowest=$((slowest > ${EPOCHREALTIME/./} - begin ? slowest : ${EPOCHREALTIME/./} - begin))
    exits "$1"
    silent out
    nothing_left
}
slowest=0

# ---- killed from outside: each rank, as soon as it exists and in the middle of training ----
for rank in 0 1 2 3; do
    start
    until [ -n "$(process_of "$rank")" ]; do sleep 0.01; done
    kill -KILL "$(process_of "$rank")"
    ends 5
    says err "^tandem: (rank $rank (was killed by signal 9|died) before|mpirun ended with exit code 137)" # this early, mpirun may lose track
    for pause in 0.013 0.17; do
        start
        until_it_trains
        sleep "$pause"
        kill -KILL "$(process_of "$rank")"
        ends 5
        says err "^tandem: rank $rank was killed by signal 9 in step [0-9]+, op [0-9]+ \([A-Za-z]+[0-9.]*\)$"
        [ "$(grep -vc '^step\|share' "$tmp/err")" = 1 ] || fail "$ran: more than one line: $(grep -v '^step' "$tmp/err")"
    done
done
# Over sockets, where the others see it as errors of their own.
OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo start
until_it_trains
kill -KILL "$(process_of 1)"
ends 5
says err '^tandem: rank 1 was killed by signal 9 in step'
start
until_it_trains
kill -USR1 "$(process_of 2)" # no library catches it
ends 5
says err '^tandem: rank 2 was killed by signal 10 in step'

# ---- killed by itself: the op is the one that was asked for ----
for rank in 0 1 2 3; do
    for op in 0 5 14; do
        run run "$tmp/four.yaml" --steps 3 --json --inject "kill:$rank:2:$op"
        exits 5
        silent out
        says err "^tandem: rank $rank was killed by signal 9 in step 2, op $op \("
        nothing_left
    done
done
run run "$tmp/four.yaml" --steps 3 --inject kill:0:2
says err '^tandem: rank 0 was killed by signal 9 in step 2, op [1-9]'

# ---- interrupted, stopped, orphaned ----
for signal in INT:130 TERM:143 HUP:129; do
    start --quiet
    sleep 0.7
    kill "-${signal%:*}" "$child"
    ends "${signal#*:}"
    says err '^tandem: interrupted by signal [0-9]+'
done
start --timeout 1
until_it_trains
kill -STOP "$(process_of 2)"
ends 5
says err '^tandem: no rank got on for 1 s; rank 2 was stopped in step [0-9]+, op [0-9]+ \('
start
until_it_trains
kill -KILL "$(running | awk '$2 == "mpirun" { print $1 }')"
ends 5
says err '^tandem: mpirun was killed by signal 9'
start
until_it_trains
kill -KILL "$child"
wait "$child" 2>/dev/null
for _ in $(seq 100); do
    [ -n "$(running)" ] || break
    sleep 0.1
done
[ -z "$(running)" ] || fail "tandem itself was killed: left behind: $(running)"
# Who would have tidied up is gone: the next run does it, but leaves those alone that are in use.
for folder in $(folders_left); do touch -d '2 minutes ago' "$folder"; done
start --quiet
sleep 0.7
touch -d '2 minutes ago' /dev/shm/tandem-"$child"-*
run run "$tmp/four.yaml" --steps 1 --quiet
exits 0
[ -z "$(folders_left)" ] || fail "$ran: does not sweep away what a killed run left: $(folders_left)"
compgen -G "/dev/shm/tandem-$child-*" >/dev/null || fail "$ran: takes the files of a run that goes on"
: >"$tmp/out"
kill -TERM "$child"
ends 143

# ---- an error of a rank ----
run run "$tmp/four.yaml" --steps 1 --json -o "$tmp/no/such/folder/t.json"
exits 3 5
silent out
says err '^tandem: .*no/such/folder'
nothing_left

# ---- faults that do not end the run ----
# A gradient that is no number: all skip, weights are as before, the next step trains.
run run "$tmp/four.yaml" --steps 1 --json --checksums --quiet
exits 0
silent err
cp "$tmp/out" "$tmp/before.json"
run run "$tmp/four.yaml" --steps 3 --json --quiet
cp "$tmp/out" "$tmp/undisturbed.json"
for rank in 0 1 2 3; do
    run run "$tmp/four.yaml" --steps 2 --json --checksums --quiet --inject "nan:$rank:2"
    exits 0
    holds "$tmp/out" '[s["success"] for s in r["steps"]] == [True, False]'
    holds "$tmp/out" "r['tensors'] == json.load(open('$tmp/before.json'))['tensors']"
    run run "$tmp/four.yaml" --steps 3 --json --quiet --inject "nan:$rank:2"
    holds "$tmp/out" '[s["success"] for s in r["steps"]] == [True, False, True]'
    holds "$tmp/out" "r['steps'][1]['loss'] == json.load(open('$tmp/undisturbed.json'))['steps'][1]['loss']"
    holds "$tmp/out" 'all(isinstance(n, float) and n > 0 for n in r["steps"][2]["module_norms"].values())'
done
plan_of_four '' 'optimizer: {type: adamw, nonfinite: propagate}' >"$tmp/propagate.yaml"
run run "$tmp/propagate.yaml" --steps 2 --json --quiet --inject nan:1:1
exits 0
holds "$tmp/out" 'r["steps"][0]["success"] and r["steps"][0]["module_norms"]["images"] == "nan"'
holds "$tmp/out" 'r["steps"][1]["loss"] == "nan"'
# A slow rank: its compute ops take longer, the numbers are the same.
compute() { # TRACE RANK: median seconds of a forward
    python3 - "$1" "$2" <<'PY'
import json, statistics, sys
with open(sys.argv[1], encoding="utf-8") as file:
    events = json.load(file)["traceEvents"]
print(statistics.median(e["dur"] for e in events
                        if e["ph"] == "X" and e["pid"] == int(sys.argv[2]) and e["args"]["kind"] == "forward"))
PY
}
run run "$tmp/four.yaml" --steps 3 --json --quiet -o "$tmp/as-is.json"
run run "$tmp/four.yaml" --steps 3 --json --quiet -o "$tmp/slow.json" --inject slow:3:40,slow:0:1
exits 0
holds "$tmp/out" "[s['loss'] for s in r['steps']] == [s['loss'] for s in json.load(open('$tmp/undisturbed.json'))['steps']]"
python3 -c "import sys; sys.exit(not float(sys.argv[1]) > 8 * float(sys.argv[2]))" \
    "$(compute "$tmp/slow.json" 3)" "$(compute "$tmp/as-is.json" 3)" ||
    fail "$ran: forwards of rank 3 take $(compute "$tmp/slow.json" 3) us, $(compute "$tmp/as-is.json" 3) us without"

# ---- faults that cannot be ----
for fault in kill kill:1 kill:1:2:3:4 nan:1 nan:1:1:1 slow:1 slow:1:x slow:1:-2 explode:1:2 '' kill:1:1, :1:1; do
    run run "$tmp/four.yaml" --inject "$fault"
    exits 2
    silent out
    says err 'slow:RANK:FACTOR, nan:RANK:STEP, kill:RANK:STEP'
done
for fault in kill:4:1 nan:4:1 slow:4:2 kill:1.5:1 kill:0:6 nan:0:99 slow:0:0.5 kill:0:1:100000; do
    run run "$tmp/four.yaml" --inject "$fault"
    exits 2
    silent out
    says err '^tandem: --inject'
done
plan_of_four 'frozen: true,' >"$tmp/frozen.yaml"
run run "$tmp/frozen.yaml" --inject nan:0:1
exits 2
says err 'rank 0 trains nothing'
nothing_left
echo "slowest end of a run: $((slowest / 1000)) ms"
finish
