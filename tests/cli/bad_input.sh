#!/usr/bin/env bash
# Whatever a plan file holds, the answer is a message with its place and exit 1 (readable, but no) or 3 (not readable as a
# plan): never a crash, and never more than seconds and a bounded amount of memory.
source "$(dirname "$0")/lib.bash"

cat >"$tmp/base.yaml" <<END
name: base
cluster: $PWD/examples/clusters/dgx-h200.yaml
modules:
  images:
    type: vision
    layers: 2
    hidden: 256
    heads: 8
    ffn: 1024
    seq: 32
    input_dim: 48
    parallel: {tp: 2, pp: 2, dp: 1, offset: 0}
  language:
    type: language
    layers: 4
    hidden: 512
    heads: 16
    ffn: 2048
    vocab: 1000
    seq: 64
    parallel: {tp: 2, pp: 2, dp: 1, offset: 4}
edges: [[images, language]]
step:
  schedule: 1f1b
  microbatches: 4
  micro_batch: 2
optimizer: {type: adamw, lr: 1.0e-4}
seed: 12345
END

# judged NAME RC PATTERN: all commands on $tmp/NAME.yaml. RC of `check`: 1 or 3, or 0 for what is fine. The message names
# file, line and column unless the file is unreadable as a whole. PATTERN: extended regex over all that was said.
judged() {
    local file=$tmp/$1.yaml command
    run check "$file"
    # shellcheck disable=SC2086 # a list of exit codes
    exits $2
    cat "$tmp/out" "$tmp/err" >"$tmp/both"
    grep -qE -- "$3" "$tmp/both" || fail "$1: /$3/ is not in: $(head -n 3 "$tmp/both")"
    [ "$2" != 1 ] || grep -qE "$1.yaml:[0-9]+:[0-9]+: " "$tmp/both" || fail "$1: no place in: $(head -n 3 "$tmp/both")"
    run check "$file" --json
    # shellcheck disable=SC2086
    exits $2
    [ ! -s "$tmp/out" ] || python3 -m json.tool <"$tmp/out" >/dev/null || fail "$1: --json is no JSON"
    [ "$rc" = 3 ] || [ -s "$tmp/out" ] || fail "$1: --json without an object, yet the file is a readable mapping"
    for command in show predict; do
        run $command "$file"
        # shellcheck disable=SC2086
        exits $2
        [ "$rc" = 0 ] || silent out
    done
}

# edited NAME RC PATTERN SED...: the base plan with an edit.
edited() {
    sed -E "${@:4}" "$tmp/base.yaml" >"$tmp/$1.yaml"
    cmp -s "$tmp/base.yaml" "$tmp/$1.yaml" && fail "$1: the edit changes nothing"
    judged "$1" "$2" "$3"
}

# given NAME RC PATTERN: the plan is on stdin.
given() {
    cat >"$tmp/$1.yaml"
    judged "$@"
}

judged base 0 ''

# keys
edited unknown_key 1 'layrs.*layers' -e '6s/layers/layrs/'
edited unknown_top_key 1 'stepp.*step' -e 's/^step:/stepp:/'
edited unknown_parallel_key 1 'tpp.*tp' -e '12s/tp:/tpp:/'
edited twice_the_key 1\ 3 'hidden' -e '7s/.*/&\n&/'
edited missing_dp 1 'dp' -e '12s/dp: 1, //'
edited missing_vocab 1 'vocab' -e '/vocab/d'
edited missing_modules 1 'modules' -e '3,21d'
edited missing_cluster_key 1 'cluster' -e '/^cluster/d'
edited missing_language 1 'language' -e 's/^  language:/  text:/' -e 's/type: language/type: vision/' -e '/vocab/d' -e '/^edges/d'
edited language_is_no_language 1 'language' -e 's/type: language/type: vision/' -e '/vocab/d'
# kinds and ranges of values
edited text_for_number 1 'hidden' -e '7s/256/wide/'
edited list_for_number 1 'hidden' -e '7s/256/[256]/'
edited fraction 1 'layers' -e '6s/2/2.5/'
edited text_for_bool 1 'shape_exchange' -e 's/^step:/&\n  shape_exchange: 7/'
edited list_for_modules 1 'modules' -e '3,21d' -e 's/^cluster.*/&\nmodules: [1, 2]/'
edited text_for_parallel 1 'parallel' -e '12s/\{.*/wide/'
edited huge_layers 1 'layers' -e '15s/4/1000000000000/'
edited huger_layers 1 'layers' -e '15s/4/99999999999999999999999999/'
edited negative_tp 1 'tp' -e '12s/tp: 2/tp: -2/'
edited zero_dp 1 'dp' -e '12s/dp: 1/dp: 0/'
edited huge_tp 1 'tp' -e '12s/tp: 2/tp: 2147483647/'
edited product_overflows 1 '' -e '12s/tp: 2, pp: 2, dp: 1/tp: 1000000, pp: 1000000, dp: 1000000/'
edited negative_offset 1 'offset' -e '12s/offset: 0/offset: -1/'
edited huge_width 1 'hidden' -e '16s/512/2147483648/'
edited no_heads 1 'heads' -e '17s/16/0/'
edited endless_microbatches 1 'microbatches' -e 's/microbatches: 4/microbatches: 1048577/'
edited no_samples 1 'micro_batch' -e 's/micro_batch: 2/micro_batch: 0/'
edited huge_seed 1 'seed' -e 's/^seed: .*/seed: 4294967296/'
edited lr_is_not_a_number 1 'lr' -e 's/1.0e-4/.nan/'
edited lr_is_endless 1 'lr' -e 's/1.0e-4/.inf/'
edited beta_of_two 1 'beta1' -e 's/1.0e-4/1.0e-4, beta1: 2/'
edited unknown_schedule 1 '1f2b.*1f1b' -e 's/1f1b/1f2b/'
edited unknown_type 1 'smell.*vision' -e '5s/vision/smell/'
edited unknown_precision 1 'bf16' -e 's/^seed.*/precision: fp7/'
edited axis_twice 1 'rank_order' -e 's/^seed.*/rank_order: [tp, tp, dp, pp]/'
# what does not fit together
edited overlap 1 '' -e '21s/offset: 4/offset: 3/'
edited hole 1 '' -e '21s/offset: 4/offset: 5/'
edited too_many_gpus 1 '8' -e '21s/dp: 1/dp: 2/'
edited heads_by_tp 1 'heads' -e '17s/16/15/'
edited ffn_by_tp 1 'ffn' -e '18s/2048/2047/'
edited layers_by_pp 1 'layers' -e '15s/4/5/'
edited sequence_too_short 1 'seq' -e '20s/64/16/'
edited frozen_language_backbone 1 'backbone' -e '21s/.*/&\n    frozen: backbone/'
edited cycle 1 'cycl|loop' -e 's/^edges.*/edges: [[images, language], [language, images]]/'
edited self_edge 1 '' -e 's/^edges.*/edges: [[images, images], [images, language]]/'
edited unknown_edge 1 'sounds' -e 's/^edges.*/edges: [[sounds, language]]/'
edited short_edge 1 'edges' -e 's/^edges.*/edges: [[images]]/'
# other files
edited missing_cluster 1\ 3 'nowhere.yaml' -e "s,^cluster.*,cluster: nowhere.yaml,"
edited cluster_is_a_folder 1\ 3 'cluster' -e "s,^cluster.*,cluster: /,"
edited cluster_is_the_plan 1\ 3 'cluster|groups' -e "s,^cluster.*,cluster: cluster_is_the_plan.yaml,"
edited cluster_without_nodes 1 'groups' -e "s/^cluster.*/cluster: {groups: [], fabric: {kind: single}}/"
# parser
edited open_brace 3 '' -e '12s/\}//'
edited tab 3 '' -e '6s/^    /\t/'
edited nul_byte 3 '' -e '6s/2/\x00/'
edited windows_lines 0 '' -e 's/$/\r/'
given empty 3 '' </dev/null
given only_a_comment 3 '' <<<'# nothing'
given a_word 3 'mapping' <<<'hello'
given a_list 3 'mapping' <<<'[1, 2, 3]'
given unknown_directive 3 'directive' <<<$'%Y\xff a\x92\n---\nmodules: 1' # libfyaml 0.7.12 never returns from this
given not_utf8 3 '' <<<$'name: \xc3\x28'
given two_documents 1\ 3 '' <<<$'a: 1\n---\nb: 2'
given unknown_alias 1\ 3 '' <<<'modules: *nobody'
given alias_of_itself 1\ 3 '' <<<'modules: &a {language: *a}'
given deep 1\ 3 '' < <(printf 'modules: ' && head -c 200000 /dev/zero | tr '\0' '[')
given deeper 1\ 3 '' < <(printf 'modules: ' && printf '{a: %.0s' {1..20000})
given bomb 1\ 3 '' < <(
    echo 'a0: &a0 [x, x, x, x, x, x, x, x, x, x]'
    for i in {1..30}; do
        echo "a$i: &a$i [$(for _ in {1..10}; do printf '*a%d, ' $((i - 1)); done)]"
    done
    echo 'modules: *a30'
)
given mapping_bomb 1\ 3 '' < <(
    echo 'a0: &a0 {x: 1}'
    for i in {1..30}; do echo "a$i: &a$i {p: *a$((i - 1)), q: *a$((i - 1)), r: *a$((i - 1)), s: *a$((i - 1))}"; done
    echo 'modules: {language: *a30}'
)
given binary 3 '' <"$tandem"
given zeros 3 '' < <(head -c 100000 /dev/zero)
given long_line 1\ 3 '' < <(printf 'name: ' && head -c 20000000 /dev/zero | tr '\0' 'x')
given many_keys 1\ 3 '' < <(seq -f 'key%.0f: 1' 100000)
for bytes in 1 40 100 300 500; do
    head -c $bytes "$tmp/base.yaml" >"$tmp/truncated_$bytes.yaml"
    judged truncated_$bytes '1 3' ''
done
mkdir "$tmp/folder.yaml"
judged folder 3 'folder'
judged nowhere 3 'nowhere'
ln -s loop.yaml "$tmp/loop.yaml"
judged loop 3 'loop'
if [ "$(id -u)" != 0 ]; then
    cp "$tmp/base.yaml" "$tmp/locked.yaml" && chmod 0 "$tmp/locked.yaml"
    judged locked 3 'locked'
fi

# profiles, which only a prediction needs
inline='{groups: [{count: 1, node: {gpus: 8, gpu: {name: NVIDIA H200, memory_gib: 140, PROFILE}, nvlink_gb_s: 450, nvlink_latency_us: 2, nics: 8, nic_gb_s: 50, nic_latency_us: 2}}], fabric: {kind: single}}'
for profile in 'profile: nowhere' 'profile: nowhere.json' 'profile: base.yaml' 'profile: /' 'name: x' 'profile: zeros.yaml'; do
    sed -e "s|^cluster.*|cluster: ${inline/PROFILE/$profile}|" "$tmp/base.yaml" >"$tmp/profile.yaml"
    run predict "$tmp/profile.yaml"
    exits 1 3
    silent out
done
run predict "$tmp/base.yaml" --profile nowhere
exits 3
says err 'h200' # what there is
run predict "$tmp/base.yaml" --profile "$tmp/base.yaml"
exits 3

# anchors are welcome, JSON is YAML, and the limits themselves are within the limits
edited anchors 0 '' -e '7s/256/\&wide 256/' -e '16s/512/*wide/' -e '17s/16/8/'
python3 -c 'import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)' <"$tmp/base.yaml" >"$tmp/json.yaml"
judged json 0 ''
edited most_layers '0 1' '' -e '15s/4/65536/'
finish
