#!/usr/bin/env bash
# `tandem run` from outside: what it answers, what it refuses and by what name, and that ranks started by another launcher
# agree with those it starts itself.
source "$(dirname "$0")/lib.bash"
source "$(dirname "$0")/run_lib.bash"

# ---- the answer ----
run run "$tmp/four.yaml" --steps 3 --warmup 2 --json
exits 0
cp "$tmp/out" "$tmp/four.json"
[ "$(wc -l <"$tmp/out")" = 1 ] || fail "$ran: the answer is not one line"
holds "$tmp/four.json" 'r["world_size"] == 4 and r["backend"] == "host"'
holds "$tmp/four.json" 'len(r["steps"]) == 3 and len(r["ranks"]) == 4'
holds "$tmp/four.json" 'all(set(s) >= {"loss", "grad_norm", "module_norms", "clip_coefficient", "success", "step_s"} for s in r["steps"])'
holds "$tmp/four.json" 'all(set(s["module_norms"]) == {"images", "language"} for s in r["steps"])'
holds "$tmp/four.json" 'all(s["success"] is True and s["step_s"] > 0 and 3 < s["loss"] < 5 for s in r["steps"])'
holds "$tmp/four.json" 'all(abs(s["grad_norm"] ** 2 - sum(n * n for n in s["module_norms"].values())) < 1e-9 * s["grad_norm"] ** 2 for s in r["steps"])'
holds "$tmp/four.json" 'all(abs(s["clip_coefficient"] - min(1, 1 / (s["grad_norm"] + 1e-6))) < 1e-9 for s in r["steps"])'
holds "$tmp/four.json" 'sorted(s["step_s"] for s in r["steps"])[1] == r["step_s_median"]'
holds "$tmp/four.json" '[q["rank"] for q in r["ranks"]] == [0, 1, 2, 3] and all(q["peak_memory_bytes"] > 0 for q in r["ranks"])'
holds "$tmp/four.json" '"tensors" not in r'
holds "$tmp/four.json" 'r["warmup"]["steps"] == 2 and r["warmup"]["seconds"] > 0 and r["warmup"]["steady"] is None'
holds "$tmp/four.json" 'r["step_s"]["median"] == r["step_s_median"] and r["step_s"]["n"] == 3 and r["step_s"]["mad"] >= 0 and r["step_s"]["cv"] > 0'
says err '^step 0 \(warm-up\): loss'
says err '^step 4: loss'
nothing_left
"$tandem" show "$tmp/four.yaml" --json >"$tmp/show.json"
holds "$tmp/four.json" "r['digest'] == json.load(open('$tmp/show.json'))['digest']"

# Warm-up steps are real steps, and a run is repeated bit for bit.
run run "$tmp/four.yaml" --steps 5 --warmup 0 --json --checksums --quiet
exits 0
silent err
losses='[s["loss"] for s in r["steps"]]'
[ "$(field "$tmp/out" "$losses[2:]")" = "$(field "$tmp/four.json" "$losses")" ] || fail "$ran: other losses after other warm-up"
holds "$tmp/out" 'r["tensors"]["language.head.weight"]["l2"] > 0 and "images.projector.fc1.bias" in r["tensors"]'
cp "$tmp/out" "$tmp/first.json"
run run "$tmp/four.yaml" --steps 5 --warmup 0 --json --checksums --quiet
[ "$(field "$tmp/out" "r['tensors'], $losses")" = "$(field "$tmp/first.json" "r['tensors'], $losses")" ] ||
    fail "$ran: not the same numbers as before"

run run "$tmp/four.yaml" --steps 2 --quiet
exits 0
says out '^four on 4 ranks'
run run "$tmp/four.yaml" --steps 0 --warmup 0 --json --quiet
exits 0
holds "$tmp/out" 'r["steps"] == [] and len(r["ranks"]) == 4'
plan_of_four 'frozen: true,' >"$tmp/frozen.yaml"
run run "$tmp/frozen.yaml" --steps 2 --json --quiet
exits 0
holds "$tmp/out" 'all(s["module_norms"]["images"] == 0 and s["module_norms"]["language"] > 0 for s in r["steps"])'

# ---- more ranks than cores ----
{
    echo 'name: eight'
    cluster 8
    echo 'modules:'
    vision images 0 'dp: 2'
    vision video 2 'tp: 2, dp: 1'
    language 4 'tp: 2, pp: 2, dp: 1'
    echo 'step: {microbatches: 4, micro_batch: 2}'
    echo 'precision: fp32'
} >"$tmp/eight.yaml"
run run "$tmp/eight.yaml" --steps 2 --json
exits 0
holds "$tmp/out" 'r["world_size"] == 8 and all(s["success"] for s in r["steps"])'
[ "$(getconf _NPROCESSORS_ONLN)" -ge 8 ] || says err '^8 ranks share [0-9]+ cores'
nothing_left

# ---- ranks that another launcher started ----
launched() { # RANKS ARGUMENTS...
    ran="mpirun -np $1 tandem run ${*:2}"
    timeout 30 mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np "$1" "$tandem" run "${@:2}" \
        >"$tmp/out" 2>"$tmp/err" </dev/null
    rc=$?
}
launched 4 "$tmp/four.yaml" --steps 3 --warmup 2 --json --quiet
exits 0
[ "$(field "$tmp/out" "$losses")" = "$(field "$tmp/four.json" "$losses")" ] || fail "$ran: not the numbers of tandem run"
launched 3 "$tmp/four.yaml" --steps 3 --json
exits 5
silent out
says err '^tandem.*four.yaml needs 4 ranks, but 3 were started'
[ "$(grep -c 'needs 4 ranks' "$tmp/err")" = 1 ] || fail "$ran: says it more than once"
launched 2 "$tmp/four.yaml" --inject kill:7:1
exits 2
nothing_left

# ---- what is refused, by name, before anything starts ----
refused() { # CODE PATTERN ARGUMENTS...
    run run "${@:3}"
    exits "$1"
    silent out
    says err "$2"
    ! grep -q 'share' "$tmp/err" || fail "$ran: refused after it had begun"
}
change() { # NAME SED_EXPRESSION
    sed "$2" "$tmp/four.yaml" >"$tmp/$1.yaml"
}
change cp 's/pp: 2, dp: 1/cp: 2, dp: 1/'
refused 1 'cp' "$tmp/cp.yaml"
change ep 's/parallel: {dp: 2, /parallel: {dp: 2, ep: 2, /'
refused 1 'ep' "$tmp/ep.yaml"
change bf16 's/precision: fp32/precision: bf16/'
refused 1 'precision: is bf16, but host' "$tmp/bf16.yaml"
sed 's/^step:/edges: [[images, video], [video, language]]\n&/; s/dp: 2, offset: 0/tp: 2, dp: 1, offset: 0/' "$tmp/eight.yaml" >"$tmp/chain.yaml"
refused 1 'images feeds video' "$tmp/chain.yaml"
change invalid 's/heads: 4/heads: 5/'
refused 1 'heads' "$tmp/invalid.yaml"
printf 'modules: [\n' >"$tmp/broken.yaml"
refused 3 'broken.yaml' "$tmp/broken.yaml"
refused 3 'no-such-plan' "$tmp/no-such-plan.yaml"
refused 4 'quantum.*host' "$tmp/four.yaml" --on quantum
refused 2 'steps' "$tmp/four.yaml" --steps few
refused 2 'warmup.*or steady' "$tmp/four.yaml" --warmup stready
refused 2 'timeout' "$tmp/four.yaml" --timeout -1
refused 2 '\-\-steps.*--inject' "$tmp/four.yaml" --fast
refused 2 'PLAN' --json

# ---- help ----
run run --help
exits 0
silent err
for option in --on --steps --warmup -o --json --checksums --timeout --inject slow:RANK:FACTOR nan:RANK:STEP kill:RANK:STEP '128 \+'; do
    says out "$option"
done
says out '^example: tandem run '
finish
