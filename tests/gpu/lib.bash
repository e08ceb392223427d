# What the phases of run.sh share. Sourced with $bundle, $out and $phase set; every process that a phase starts carries a
# marker in its environment, so that what is left behind can be told from what others run.
# shellcheck shell=bash disable=SC2154 # set by run.sh
set -uo pipefail
tandem=$bundle/bin/tandem
work=$out/phases/$phase
logs=$out/phases/logs
mkdir -p "$work" "$logs" "$out/phases/cache"
export XDG_CACHE_HOME=$out/phases/cache # algorithms of products are measured once for all phases
export TANDEM_GPU_PHASE=$phase-$$
failures=0

fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
}
# The last line of a phase is its note in the summary.
finish() {
    [ "$failures" = 0 ] || exit 1
    exit 0
}
skip() {
    echo "skipped: $*"
    exit 77
}

# GPUs that a program started now would see.
n_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU '
    fi
}

# What runs start with: nothing, or what makes two machines of this one.
faces=()
# two_faces RANKS: runs have their RANKS ranks on two machines from now on; one_face: no more
two_faces() { faces=("$bundle/tests/gpu/two_faces.sh" "$1"); }
one_face() { faces=(); }
# Can there be two? Says why not.
can_have_two_faces() { "$bundle/tests/gpu/two_faces.sh" 2 true 2>&1; }

# run SECONDS ARGUMENTS...: runs tandem, bounded; $rc, $work/out, $work/err tell what it did.
run() {
    local limit=$1
    shift
    ran="tandem $*"
    timeout -k 10 "$limit" "${faces[@]}" "$tandem" "$@" >"$work/out" 2>"$work/err" </dev/null
    rc=$?
    [ "$rc" != 124 ] || fail "$ran: still running after $limit s: $(tail -n 2 "$work/err")"
}
# exits RC: so did the last run
exits() {
    [ "$rc" = "$1" ] || fail "$ran: exit $rc, expected $1: $(tail -n 3 "$work/err")"
}
# says_one_line: the last run failed with one sentence
says_one_line() {
    [ "$(wc -l <"$work/err")" = 1 ] || fail "$ran: not one line: $(head -n 5 "$work/err")"
    echo "says: $(head -n 1 "$work/err")"
}
# field FILE EXPRESSION: a Python expression over the object `r` in a JSON file
field() {
    python3 -c "import json, math, statistics, sys; r = json.load(open(sys.argv[1])); print($2)" "$1"
}
# holds FILE EXPRESSION: it is true
holds() {
    [ "$(field "$1" "$2" 2>&1)" = True ] || fail "$ran: not so: $2: $(field "$1" "$2" 2>&1 | tail -n 1)"
}

# Processes of this phase's runs: `PID NAME` a line.
running() {
    grep -lsaF "TANDEM_GPU_PHASE=$TANDEM_GPU_PHASE" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do
        name=$(cat "/proc/$pid/comm" 2>/dev/null)
        case $name in tandem* | mpirun | orted) echo "$pid $name" ;; esac
    done
}
# The process of a rank, or nothing.
process_of() {
    running | while read -r pid name; do
        [[ $name != tandem-cuda ]] || ! grep -qsxzF "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ" || echo "$pid"
    done
}
# Nothing of a run that has ended is left, on the processor or on a GPU.
nothing_left() {
    local apps
    [ -z "$(running)" ] || fail "$ran: left behind: $(running | tr '\n' ' ')"
    for _ in 1 2 3 4 5 6 7 8 9 10; do # the driver's list may lag
        apps=$(nvidia-smi --query-compute-apps=name --format=csv,noheader 2>/dev/null | grep -c tandem)
        [ "$apps" != 0 ] || return 0
        sleep 0.3
    done
    fail "$ran: nvidia-smi still lists $apps processes of tandem"
}

# ---- plans ----

cluster='cluster: {groups: [{count: 1, node: {gpus: 8, gpu: {name: NVIDIA H200, profile: h200, memory_gib: 140}, cores: 8, nvlink_gb_s: 450, nvlink_latency_us: 2, nics: 8, nic_gb_s: 50, nic_latency_us: 3}}], fabric: {kind: single}}'

# small RANKS PRECISION: a plan of 1 rank (language) or of 2 (an encoder before it), on stdout
small() {
    echo "name: small_$1_$2"
    echo "$cluster"
    echo 'modules:'
    [ "$1" = 1 ] || echo '  images: {type: vision, layers: 2, hidden: 48, heads: 4, ffn: 96, seq: 16, input_dim: 24, parallel: {dp: 1, offset: 0}}'
    echo "  language: {type: language, layers: 4, hidden: 64, heads: 8, kv_heads: 2, ffn: 176, vocab: 256, seq: 48, parallel: {dp: 1, offset: $(($1 - 1))}}"
    echo 'step: {microbatches: 4, micro_batch: 2}'
    echo 'optimizer: {lr: 1.0e-3}'
    echo "precision: $2"
}
# As many ranks of `small` as there are GPUs for.
small_ranks() {
    if [ "$(n_gpus)" -ge 2 ]; then echo 2; else echo 1; fi
}
