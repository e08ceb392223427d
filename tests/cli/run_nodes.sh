#!/usr/bin/env bash
# `tandem run` between two machines that are both this one: the numbers and the failures of one machine.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"
if ! why=$(tests/gpu/two_faces.sh 2 true 2>&1); then
    echo "skipped: $why"
    exit 0
fi
all=("$tmp/four.yaml" --on host --steps 3 --warmup 0)
losses='[s["loss"] for s in r["steps"]]'
# same: the last run has the losses of the first one
same() {
    holds "$tmp/out" "all(abs(a / b - 1) < 1e-6 for a, b in zip($losses, $(field "$tmp/one.json" "$losses"), strict=True))"
}

run run "${all[@]}" --quiet --json
exits 0
cp "$tmp/out" "$tmp/one.json"
one=$tandem
printf '#!/bin/sh\nexec tests/gpu/two_faces.sh 4 "%s" "$@"\n' "$one" >"$tmp/two"
chmod +x "$tmp/two"
tandem=$tmp/two

# ---- the same numbers ----
tests/gpu/two_faces.sh 4 mpirun --allow-run-as-root --oversubscribe --bind-to none -np 4 hostname >"$tmp/out" 2>/dev/null
[ "$(sort "$tmp/out" | uniq -c | xargs)" = '2 127.0.0.2 2 127.0.0.3' ] || fail "hosts of four ranks: $(xargs <"$tmp/out")"
run run "${all[@]}" --quiet --json
exits 0
silent err
same
nothing_left

# ---- ranks that another launcher started there ----
ran='mpirun -np 4 tandem run'
tests/gpu/two_faces.sh 4 mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np 4 \
    "$one" run "${all[@]}" --quiet --json >"$tmp/out" 2>"$tmp/err" </dev/null
rc=$? # for exits
exits 0
same
nothing_left

# ---- a rank of each machine dies; whoever supervises them dies ----
for rank in 0 3; do
    run run "${all[@]}" --inject "kill:$rank:2" --quiet
    exits 5
    says err "^tandem: rank $rank was killed by signal 9 in step 2"
    # MPI itself may say on the other machine that a connection was reset.
    [ "$(grep -vc '^\[' "$tmp/err")" = 1 ] || fail "$ran: more than a line: $(head -n 3 "$tmp/err")"
    nothing_left
done
"$tandem" run "$tmp/four.yaml" --on host --steps 1000000 >"$tmp/out" 2>"$tmp/err" </dev/null &
child=$!
for _ in $(seq 300); do
    ! grep -q '^step 2:' "$tmp/err" || break
    sleep 0.1
done
kill -KILL "$child"
wait "$child" 2>/dev/null
for _ in $(seq 100); do
    [ -n "$(running)" ] || break
    sleep 0.1
done
ran='tandem run, killed'
[ -z "$(running)" ] || fail "$ran: left behind: $(running | tr '\n' ' ')"
rm -rf "/dev/shm/tandem-$child-"* # the next run would, a minute later

finish
