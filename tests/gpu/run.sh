#!/usr/bin/env bash
# tests/gpu/run.sh BUNDLE OUT [PHASE...]
# Tests tandem on this machine's GPUs from the folder that tests/gpu/bundle.sh made; all phases, or those named. OUT gets
# summary.txt, kernels.txt, kernels.csv, channels.csv, plans.tar and logs.tar.gz.
# Exit: 0 nothing failed, 1 something did, 77 no GPU.
# shellcheck disable=SC2317,SC2154 # phases are called by name; lib.bash sets what they share
set -uo pipefail

# phase, seconds it may take, what it shows
phases='
kernels    480 every kernel against the processor, and its speed
collectives 240 collectives over mapped memory against the processor, and their speed beside that of NCCL
numerics   400 whole steps against an independent program in float64
layouts    300 the integration layouts that fit, at their published size, against the processor
nodes      560 the same between two machines that are both this one
checkpoint 180 saved on GPUs, continued there and on the processor
failures   240 no GPU, too few, a rank that is killed
tiny       240 1000 steps of the tiny LLaVA: the loss falls, memory does not grow
channels   150 how many multiprocessors NCCL should have: collectives alone and beside products
plans      600 the 7B plans that fit: times and traces
sanitizer  500 memcheck and racecheck of a small plan and of the kernels on small shapes
'
names() { awk 'NF { print $1 }' <<<"$phases"; }
limit_of() { awk -v name="$1" '$1 == name { print $2 }' <<<"$phases"; }

usage() {
    sed -n '2,5s/^# //p' "$0"
    echo 'phases:'
    sed '/^$/d; s/^/  /' <<<"$phases"
    echo 'example: tests/gpu/run.sh build/gpu-bundle /tmp/gpu-results kernels numerics'
}

# ---- the phases: each runs in a shell of its own, with lib.bash ----

phase_kernels() {
    local name
    # A process for each kernel: one that breaks the device does not hide the others.
    # shellcheck disable=SC2016 # the inner shell's words
    "$bundle/bin/test-cuda-kernels" --list | xargs -P 6 -I{} sh -c \
        '"$1/bin/test-cuda-kernels" --cache "$XDG_CACHE_HOME/tandem-products" "$2" >"$3/$2" 2>&1 || echo "exit $?" >>"$3/$2"' \
        sh "$bundle" {} "$work"
    for name in $("$bundle/bin/test-cuda-kernels" --list); do
        grep -vE '^(kernels: |seed |NVIDIA )' "$work/$name"
        ! grep -q '^exit ' "$work/$name" || fail "$name, $(grep '^seed' "$work/$name")"
    done | tee "$out/kernels.txt"
    [ "$(grep -c '^FAILED: ' "$out/kernels.txt")" = 0 ] || failures=1
    "$bundle/bin/test-cuda-kernels" --time --precision bf16 --cache "$XDG_CACHE_HOME/tandem-products" \
        --csv "$out/kernels.csv" | tee -a "$out/kernels.txt" || fail 'test-cuda-kernels --time'
    cp "$XDG_CACHE_HOME/tandem-products" "$logs/products.txt" 2>/dev/null
    echo "$(grep -c '^FAILED: ' "$out/kernels.txt") kernels failed"
}

phase_collectives() {
    local ranks
    [ "$(n_gpus)" -ge 2 ] || skip "needs 2 GPUs, $(n_gpus) are there"
    # gang SECONDS ARGUMENTS...: the program on $ranks GPUs
    gang() {
        timeout -k 5 "$1" mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none \
            -np "$ranks" "$bundle/bin/test-cuda-collectives" "${@:2}" || fail "test-cuda-collectives on $ranks GPUs: exit $?"
    }
    for ranks in 2 4 8; do
        [ "$ranks" -le "$(n_gpus)" ] || continue
        gang 90
        gang 60 --time --sweep --csv "$logs/collectives-$ranks.csv"
    done
    echo "collectives on up to $(n_gpus) GPUs"
}

phase_numerics() {
    python3 "$bundle/tests/gpu/numerics.py" "$tandem" "$(n_gpus)"
    local status=$?
    [ "$status" != 77 ] || exit 77
    [ "$status" = 0 ] || failures=1
}

losses() { field "$1" '*(s["loss"] for s in r["steps"])'; }
# same WHAT TOLERANCE "LOSSES": the last run had these losses
same() {
    local off
    off=$(
        python3 - "$2" "$(losses "$work/out")" "$3" <<'END'
import sys
a, b = (list(map(float, text.split())) for text in sys.argv[2:])
off = max((abs(x - y) / abs(y) for x, y in zip(a, b)), default=1)
print(f"losses within {off:.1e}")
sys.exit(not (len(a) == len(b) and off <= float(sys.argv[1])))
END
    ) || fail "$1: $off: $(losses "$work/out"), expected $3 to $2"
    echo "$1: $off"
}

# layout PLAN: its name, its ranks and the same in fp32 in $work/$name.yaml
layout() {
    name=$(basename "$1" .yaml)
    sed -e "s#\.\./clusters#$bundle/examples/clusters#" -e 's/^precision: .*/precision: fp32/' "$1" >"$work/$name.yaml"
    "$tandem" check "$work/$name.yaml" --json >"$work/check.json" 2>/dev/null
    needs=$(field "$work/check.json" 'r["world_size"]')
}
# on_host: the losses of the layout on the processor are $whole
on_host() {
    run 60 run "$work/$name.yaml" --on host --steps 3 --warmup 0 --json --quiet
    exits 0
    [ "$rc" = 0 ] && whole=$(losses "$work/out")
}
# on_gpus PLAN SECONDS WHERE: on GPUs it has the same
on_gpus() {
    local plan precision tolerance
    while read -r plan precision tolerance; do
        run "$2" run "$plan" --on cuda --steps 3 --warmup 0 --json --quiet
        exits 0
        [ "$rc" = 0 ] || continue
        same "$name on $3 in $precision" "$tolerance" "$whole"
        [ ${#faces[@]} = 0 ] ||
            holds "$work/out" 'any(k["transfers"].get("why_nccl") == "between machines" for k in r["ranks"])'
    done <<<"$work/$name.yaml fp32 1e-4
$1 bf16 2e-3"
}

phase_layouts() {
    local plan name needs whole
    for plan in "$bundle"/examples/plans/*_[248]gpu.yaml; do
        layout "$plan"
        if [ "$needs" -gt "$(n_gpus)" ]; then
            echo "$name: not run: needs $needs GPUs, $(n_gpus) are there"
        elif on_host; then
            on_gpus "$plan" 60 "$needs GPUs"
        fi
    done
}

phase_nodes() {
    local plan name needs whole n why
    n=$(n_gpus)
    why=$(can_have_two_faces) || skip "$why"
    for plan in "$bundle"/examples/plans/*_[248]gpu.yaml; do
        layout "$plan"
        if [ "$needs" -gt "$n" ]; then
            echo "$name: not run: needs $needs GPUs, $n are there"
        elif on_host; then
            two_faces "$needs"
            on_gpus "$plan" 120 "two machines of $((needs / 2)) of $n GPUs"
            one_face
        fi
    done
    nothing_left
}

# train NAME PLAN: a plan's times and trace
train() {
    run 300 run "$2" --on cuda --warmup 3 --steps 30 --json -o "$work/$1.trace.json.gz"
    exits 0
    [ "$rc" = 0 ] || return
    mv "$work/out" "$work/$1.json"
    cp "$work/err" "$logs/plans-$1.txt"
    holds "$work/$1.json" 'all(s["success"] and math.isfinite(s["loss"]) for s in r["steps"])'
    echo "$1: median step $(field "$work/$1.json" '"%.2f ms" % (1e3 * r["step_s_median"])'), fastest $(
        field "$work/$1.json" '"%.2f ms" % (1e3 * min(s["step_s"] for s in r["steps"]))'), loss $(
        field "$work/$1.json" '"%.3f to %.3f" % (r["steps"][0]["loss"], r["steps"][-1]["loss"])')"
    run 300 run "$2" --on cuda --warmup 3 --steps 5 --quiet --trace fine -o "$work/$1.fine.json.gz"
    exits 0
    [ "$rc" != 0 ] ||
        python3 "$bundle/tests/gpu/shares.py" "$work/$1.trace.json.gz" "$work/$1.fine.json.gz" | tee "$work/$1.shares.txt"
    rm -f "$work/$1.fine.json.gz" # large, and said in the shares
    "$tandem" predict "$2" --on ideal --json >"$work/$1.predicted.json" 2>/dev/null &&
        echo "$1: predicted $(field "$work/$1.predicted.json" '"%.2f ms" % (1e3 * r["step_s"])')"
}

phase_channels() {
    local ranks
    ranks=$(n_gpus)
    [ "$ranks" -ge 2 ] || skip "needs 2 GPUs, $ranks are there"
    [ "$ranks" -ge 4 ] && ranks=4 || ranks=2
    mpirun --allow-run-as-root --oversubscribe --bind-to none -np "$ranks" "$bundle/bin/test-cuda-channels" \
        "$out/channels.csv" "$XDG_CACHE_HOME/tandem-products" 2>&1 </dev/null || fail "test-cuda-channels on $ranks GPUs"
}

phase_plans() {
    local plan name needs n=0
    for plan in "$bundle"/examples/plans/*-7b.yaml; do
        name=$(basename "$plan" .yaml)
        "$tandem" check "$plan" --json >"$work/check.json" 2>/dev/null
        needs=$(field "$work/check.json" 'r["world_size"]')
        if [ "$needs" -gt "$(n_gpus)" ]; then
            echo "$name: skipped: needs $needs GPUs, $(n_gpus) are there"
            continue
        fi
        train "$name" "$plan"
        n=$((n + 1))
    done
    if [ "$n" = 0 ]; then # the language half of the smallest of them
        sed -e "s#\.\./clusters#$bundle/examples/clusters#" -e '/^  images:/,/parallel: {dp: 1, offset: 0}/d' \
            -e 's/offset: 1/offset: 0/' -e 's/^name: .*/name: language_1gpu-7b/' \
            "$bundle/examples/plans/baseline_2gpu-7b.yaml" >"$work/language_1gpu-7b.yaml"
        train language_1gpu-7b "$work/language_1gpu-7b.yaml"
    fi
    rm -f "$work/check.json" "$work/out" "$work/err"
    tar -C "$work" -cf "$out/plans.tar" .
}

phase_checkpoint() {
    local plan=$work/small.yaml saved=$work/saved whole all=(--warmup 0 --json --quiet)
    small "$(small_ranks)" fp32 >"$plan"
    run 60 run "$plan" --on cuda --steps 6 "${all[@]}"
    exits 0
    whole=$(losses "$work/out")
    run 60 run "$plan" --on cuda --steps 3 --save "$saved" "${all[@]}"
    exits 0
    whole=$(cut -d' ' -f4- <<<"$whole")
    for on in cuda host; do
        run 60 run "$plan" --on "$on" --steps 3 --load "$saved" "${all[@]}"
        exits 0
        same "continued on $on" "$([ "$on" = cuda ] && echo 1e-6 || echo 1e-4)" "$whole"
    done
    run 60 run "$plan" --on host --steps 3 --save "$work/on_host" "${all[@]}"
    exits 0
    run 60 run "$plan" --on cuda --steps 3 --load "$work/on_host" "${all[@]}"
    exits 0
    same 'begun on host, continued on cuda' 1e-4 "$whole"
    nothing_left
    rm -rf "$saved" "$work/on_host"
}

# sanitized TOOL NAME COMMAND...: what compute-sanitizer says of a command
sanitized() {
    local tool=$1 text=$logs/sanitizer-$1-$2.txt
    ran="$tool of $2"
    shift 2
    timeout -k 10 120 mpirun --allow-run-as-root --oversubscribe --bind-to none -np "$ranks" "$sanitizer" --tool "$tool" \
        --error-exitcode 99 --print-limit 20 "$@" >"$text" 2>&1 </dev/null
    rc=$?
    if grep -q 'Device not supported' "$text"; then
        refused=yes
    elif [ "$rc" = 0 ] || [ "$rc" = 77 ]; then
        echo "$ran: $(grep -m 1 -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$text")"
    else
        fail "$ran: exit $rc: $(grep -m 3 -E '=========|FAILED' "$text" | tr '\n' ' ')"
    fi
}

phase_sanitizer() {
    local sanitizer ranks refused='' tool own
    sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | head -n 1)
    [ -n "$sanitizer" ] || skip 'compute-sanitizer is not on this machine'
    # Those of libraries are theirs to check.
    own=$("$bundle/bin/test-cuda-kernels" --list | grep -vE '^linear|_cudnn$')
    for tool in memcheck racecheck; do
        ranks=1
        # shellcheck disable=SC2086 # a list of words
        sanitized "$tool" kernels "$bundle/bin/test-cuda-kernels" --small $own
        # NCCL's kernels communicate in ways that racecheck takes for races, and it finds some in cuDNN's attention: with
        # one rank and in fp32 there are only ours and cuBLASLt's.
        [ "$tool" = racecheck ] || ranks=$(small_ranks)
        small "$ranks" "$([ "$tool" = racecheck ] && echo fp32 || echo bf16)" >"$work/small.yaml"
        sanitized "$tool" plan "$bundle/bin/tandem-cuda" "$work/small.yaml" --steps 1 --warmup 0 --json --quiet
        [ -z "$refused" ] || break
    done
    [ -z "$refused" ] || [ "$failures" != 0 ] || skip 'compute-sanitizer does not support this device'
}

# watch_memory PID FILE: `STEP GPU_MIB RSS_KIB` a line, as long as the process is there
watch_memory() {
    local step gpu rss
    while [ -d "/proc/$1" ]; do
        step=$(tail -n 1 "$work/err" 2>/dev/null | sed -n 's/^step \([0-9]*\).*/\1/p')
        gpu=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum }')
        rss=$(running | while read -r pid name; do
            [ "$name" != tandem-cuda ] || awk '/^VmRSS/ { print $2 }' "/proc/$pid/status" 2>/dev/null
        done | awk '{ sum += $1 } END { print sum + 0 }')
        echo "${step:-0} $gpu $rss"
        sleep 0.2
    done >"$2"
}

phase_tiny() {
    local plan=$work/tiny.yaml child relayout='' gpus
    gpus=$(n_gpus)
    [ "$gpus" -ge 2 ] || skip "needs 2 GPUs, $gpus are there"
    [ "$gpus" -ge 4 ] || relayout='s/dp: 2, offset: 0/dp: 1, offset: 0/; s/pp: 2, dp: 1, offset: 2/dp: 1, offset: 1/'
    sed -e "s#\.\./#$bundle/examples/#g" -e "$relayout" "$bundle/examples/plans/tiny-llava-4rank.yaml" >"$plan"
    ran='tandem run tiny.yaml'
    timeout -k 10 200 "$tandem" run "$plan" --on cuda --steps 1000 --warmup 0 --json >"$work/out" 2>"$work/err" </dev/null &
    child=$!
    watch_memory "$child" "$work/memory"
    wait "$child"
    rc=$?
    exits 0
    cp "$work/memory" "$logs/tiny-memory.txt"
    cp "$work/err" "$logs/tiny-steps.txt"
    if [ "$rc" = 0 ]; then
        cp "$work/out" "$logs/tiny.json"
        holds "$work/out" 'len(r["steps"]) == 1000 and all(s["success"] for s in r["steps"])'
        # ln(96) / 31 = 0.147 is what a model gets that does not look at the images.
        holds "$work/out" '4 < r["steps"][0]["loss"] < 6'
        holds "$work/out" 'statistics.mean(s["loss"] for s in r["steps"][-50:]) < 0.12'
        holds "$work/out" 'statistics.mean(s["loss"] for s in r["steps"][-50:]) < statistics.mean(s["loss"] for s in r["steps"][100:150])'
        python3 - "$work/memory" <<'END' || fail "$ran: memory grows: $logs/tiny-memory.txt"
import sys
rows = [tuple(map(int, line.split())) for line in open(sys.argv[1]) if len(line.split()) == 3]
rows = [r for r in rows if r[0] >= 100 and r[2] > 0]  # ended ranks aside
if len(rows) < 3:
    print(f"only {len(rows)} looks at memory: nothing to say about its growth")
    sys.exit(0)
gpu, rss = rows[-1][1] - rows[0][1], (rows[-1][2] - rows[0][2]) / 1024
print(f"memory from step {rows[0][0]} to {rows[-1][0]}: GPUs {gpu:+d} MiB of {rows[0][1]}, ranks {rss:+.1f} MiB of {rows[0][2] // 1024}")
sys.exit(gpu > 8 or rss > 16)
END
        echo "loss $(field "$work/out" '"%.3f to %.4f" % (r["steps"][0]["loss"], statistics.mean(s["loss"] for s in r["steps"][-50:]))'), median step $(
            field "$work/out" '"%.2f ms" % (1e3 * r["step_s_median"])')"
    fi
    nothing_left
}

# reap SECONDS: the background run $child ends within that time; $rc is how
reap() {
    local begin=${EPOCHREALTIME/./}
    while kill -0 "$child" 2>/dev/null && [ $((${EPOCHREALTIME/./} - begin)) -lt $(($1 * 1000000)) ]; do sleep 0.02; done
    if kill -0 "$child" 2>/dev/null; then
        fail "$ran: still there after $1 s"
        kill -KILL "$child"
    fi
    wait "$child"
    rc=$?
    took_ms=$(((${EPOCHREALTIME/./} - begin) / 1000))
}
# ends RANK: the background run, which has lost this rank just now, exits with 5 within 10 s and says who it was
ends() {
    reap 10
    exits 5
    grep -qE "^tandem: rank $1 was killed by signal 9 in step" "$work/err" ||
        fail "$ran: does not say who was killed: $(grep -v '^step' "$work/err" | head -n 3)"
    echo "$ran: over $took_ms ms after rank $1 died: $(grep -v '^step' "$work/err" | tail -n 1)"
    nothing_left
}
# start ARGUMENTS...: a run in the background; until STEP: goes on when that step has been reported
start() {
    ran="tandem run $*"
    : >"$work/err"
    "${faces[@]}" "$tandem" run "$@" >"$work/out" 2>"$work/err" </dev/null &
    child=$!
}
until_step() {
    for _ in $(seq 600); do
        ! grep -q "^step $1[ :]" "$work/err" || return 0
        kill -0 "$child" 2>/dev/null || break
        sleep 0.1
    done
    ! grep -q "^step $1[ :]" "$work/err" || return 0
    fail "$ran: does not come to step $1 within 60 s: $(tail -n 2 "$work/err")"
    return 1
}

# A connection of NCCL's breaks between two machines: both ranks are there, and say it themselves.
broken_link() {
    local why said
    if ! why=$(can_have_two_faces); then
        echo "no connection is broken: $why"
        return
    fi
    two_faces 2
    start "$work/two.yaml" --on cuda --steps 1000000
    if until_step 5; then
        python3 "$bundle/tests/gpu/break_link.py" "$(process_of 0)" "$(process_of 1)" || fail "$ran: its connections are whole"
        reap 10
        exits 5
        said=$(grep -v '^step' "$work/err" | grep -v '^\[') # MPI may say that a connection was reset
        if [ "$(grep -cE '^tandem: rank [01] failed in step .* communicator of ranks .*: remote process exited or there was a network error' <<<"$said")" != 1 ] ||
            [ "$(wc -l <<<"$said")" != 1 ]; then
            fail "$ran: does not say in one line what broke off: $(head -n 3 <<<"$said")"
        fi
        echo "$ran: over $took_ms ms after a connection broke: $said"
        nothing_left
    else
        reap 0
    fi
    one_face
}

phase_failures() {
    local ranks rank
    ranks=$(small_ranks)
    small "$ranks" bf16 >"$work/small.yaml"
    small 2 bf16 >"$work/two.yaml"
    CUDA_VISIBLE_DEVICES='' run 60 run "$work/small.yaml" --on cuda --steps 1 --quiet
    exits 4
    says_one_line
    nothing_left
    CUDA_VISIBLE_DEVICES=0 run 60 run "$work/two.yaml" --on cuda --steps 1 --quiet
    exits 5
    says_one_line
    nothing_left
    for rank in $(seq 0 $((ranks - 1))); do
        start "$work/small.yaml" --on cuda --steps 1000000 # killed from outside
        if until_step 5; then
            kill -KILL "$(process_of "$rank")"
            ends "$rank"
        fi
        start "$work/small.yaml" --on cuda --steps 20 --inject "kill:$rank:9" # and by itself
        if until_step 7; then ends "$rank"; fi
        start "$work/small.yaml" --on cuda --steps 20 --inject "nan:$rank:9" --json --quiet
        reap 60
        exits 0
        holds "$work/out" '[i for i, s in enumerate(r["steps"]) if not s["success"]] == [8]' # one step of warm-up
        holds "$work/out" 'all(math.isfinite(s["loss"]) for s in r["steps"])'
    done
    start "$work/small.yaml" --on cuda --steps 1000000 --timeout 3
    if until_step 5; then
        kill -STOP "$(process_of 0)"
        reap 20
        exits 5
        echo "stopped: $(grep -v '^step' "$work/err" | tail -n 1)"
        nothing_left
    fi
    broken_link
}

# ---- one phase, or all ----

if [ "${1-}" = --phase ]; then
    phase=$2 bundle=$3 out=$4
    # shellcheck source=tests/gpu/lib.bash
    source "$bundle/tests/gpu/lib.bash"
    # shellcheck source=/dev/null # made by bundle.sh
    source "$bundle/env.sh"
    "phase_$phase"
    finish
fi

case ${1-} in
-h | --help) usage && exit 0 ;;
esac
if [ $# -lt 2 ] || [ ! -e "$1/env.sh" ]; then
    echo "tests/gpu/run.sh: ${1:-no folder}: is no bundle; expected what tests/gpu/bundle.sh made, and a folder for the results" >&2
    usage >&2
    exit 2
fi
mkdir -p "$2"
bundle=$(cd "$1" && pwd) out=$(cd "$2" && pwd)
shift 2
for phase in "$@"; do
    if [ -z "$(limit_of "$phase")" ]; then
        echo "tests/gpu/run.sh: there is no phase $phase; there are $(names | xargs)" >&2
        exit 2
    fi
done
[ $# -gt 0 ] || mapfile -t all < <(names)
[ $# = 0 ] || all=("$@")
if [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')" = 0 ]; then
    echo 'no GPU: skipped' | tee "$out/summary.txt"
    exit 77
fi

mkdir -p "$out/phases/logs"
{
    echo "tandem $(xargs <"$bundle/VERSION")"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    uname -sr
    nproc
} >"$out/phases/logs/machine.txt" 2>&1
{
    head -n 1 "$out/phases/logs/machine.txt"
    nvidia-smi -L | sed 's/ (UUID.*//'
    printf '\n%-11s %-8s %8s  %s\n' phase result seconds note
} >"$out/summary.txt"
any_failed=0
for phase in "${all[@]}"; do
    log=$out/phases/logs/$phase.txt
    printf '\n==== %s\n' "$phase"
    begin=${EPOCHREALTIME/./}
    timeout -k 15 "$(limit_of "$phase")" bash "$0" --phase "$phase" "$bundle" "$out" 2>&1 </dev/null | tee "$log"
    status=${PIPESTATUS[0]}
    case $status in
    0) result=passed ;;
    77) result=skipped ;;
    124 | 137) result='timed out' any_failed=1 ;;
    *) result=FAILED any_failed=1 ;;
    esac
    note=$(grep '^FAILED' "$log" | head -n 1)
    printf '%-11s %-9s %7.1f  %.140s\n' "$phase" "$result" "$(((${EPOCHREALTIME/./} - begin) / 1000))e-3" \
        "${note:-$(tail -n 1 "$log")}" >>"$out/summary.txt"
    # After every phase: what is there counts even if the next one is cut off.
    tar -C "$out/phases" -czf "$out/logs.tar.gz" logs
done
rm -rf "$out/phases"
printf '\n'
cat "$out/summary.txt"
exit $any_failed
