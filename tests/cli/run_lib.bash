# What the tests of `tandem run` share: small plans, and what is left of a run. Sourced after lib.bash; every process that
# `run` starts from here on carries a marker.
marker=TANDEM_TEST_MARKER=$$-$RANDOM
export "${marker?}"
# MPI and its libraries leak at their end, by the thousand.
export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0
# Every run notes its process, after which mpirun's folder is named.
printf '#!/bin/sh\necho $$ >>"%s/pids"\nexec "%s" "$@"\n' "$tmp" "$(realpath "$tandem")" >"$tmp/tandem"
chmod +x "$tmp/tandem"
tandem=$tmp/tandem

# cluster GPUS: an inline cluster
cluster() {
    echo "cluster: {groups: [{count: 1, node: {gpus: $1, gpu: {name: h200, memory_gib: 141}, cores: 2, nvlink_gb_s: 400, nvlink_latency_us: 2, nics: 1, nic_gb_s: 50, nic_latency_us: 5}}], fabric: {kind: single, oversubscription: 1, latency_us: 1}}"
}
# vision NAME OFFSET PARALLEL [MORE]
vision() {
    echo "  $1: {type: vision, layers: 2, hidden: 32, heads: 4, ffn: 64, seq: 8, input_dim: 12, ${4-} parallel: {$3, offset: $2}}"
}
# language OFFSET PARALLEL
language() {
    echo "  language: {type: language, layers: 2, hidden: 32, heads: 4, ffn: 64, vocab: 64, seq: 32, parallel: {$2, offset: $1}}"
}
# Two data lanes of an encoder, two stages of a language model: four ranks with different roles.
plan_of_four() { # [MORE_OF_VISION [LAST_LINE]]
    echo 'name: four'
    cluster 4
    echo 'modules:'
    vision images 0 'dp: 2' "${1-}"
    language 2 'pp: 2, dp: 1'
    echo 'step: {microbatches: 4, micro_batch: 2}'
    echo 'precision: fp32'
    [ -z "${2-}" ] || echo "$2"
}
plan_of_four >"$tmp/four.yaml"

# field FILE EXPRESSION: a Python expression over the object `r` in a JSON file
field() {
    python3 -c "import json, sys; r = json.load(open(sys.argv[1])); print($2)" "$1"
}
# holds FILE EXPRESSION: it is true of the last run's answer
holds() {
    [ "$(field "$1" "$2" 2>&1)" = True ] || fail "$ran: not so: $2: $(field "$1" "$2" 2>&1 | tail -n 1): $(head -c 600 "$1")"
}
# Processes of runs, this script and its helpers aside: `PID NAME` a line.
running() {
    grep -lsF "$marker" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do
        name=$(cat "/proc/$pid/comm" 2>/dev/null)
        case $name in tandem* | mpirun | orted) echo "$pid $name" ;; esac
    done
}
# Folders of mpirun's files whose run is over.
folders_left() {
    sort -u "$tmp/pids" | while read -r pid; do
        [ -d "/proc/$pid" ] || compgen -G "/dev/shm/tandem-$pid-*"
    done
}
nothing_left() {
    [ -z "$(running)" ] || fail "$ran: left behind: $(running | tr '\n' ' ')"
    [ -z "$(folders_left)" ] || fail "$ran: left files: $(folders_left | head -n 3)"
}
# The process of a rank, or nothing.
process_of() {
    running | while read -r pid name; do
        [[ $name != tandem-* ]] || ! grep -qsxzF "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ" || echo "$pid"
    done
}
