#!/usr/bin/env bash
# layers.sh [ROOT]      who may include what: every violation in the sources under ROOT (default: this tree), exit 1 if any
# layers.sh --self-test proves on planted violations that it can fail, and on a clean tree that it need not
set -euo pipefail

# Folder, the folders of ours that it may include.
layers='
model   model
traces  traces model
sim     sim model traces
exec    exec model traces
cli     cli model traces sim exec
tests   tests model traces sim exec cli
'
# Foreign header (extended regex), the files that alone may include it (shell patterns, | between them).
foreign='
^simgrid/               sim/net_simgrid.c
^libfyaml               model/*.c
^gsl/                   traces/*|sim/*|tests/*
^jansson                traces/*|exec/*|cli/*|tests/*
^zlib                   traces/*|tests/*
^criterion/             tests/*
^mpi                    exec/launch.c|exec/host*.c|tests/gpu/*
^(cblas|openblas)       exec/host*.c
^(cuda|nccl|cublas|cudnn|nvtx)  exec/cuda*|exec/kernels*.cu|tests/gpu/*
^(time|sys/time)\.h     traces/*|sim/*|exec/*|cli/*|tests/*
'

words() { awk -v key="$1" '$1 == key { $1 = ""; print }' <<<"$layers"; }

check() {
    local root=$1 bad=0 file layer line text header seen_system patterns
    say() { echo "$file:$line: $1" && bad=1; }
    while IFS= read -r file; do
        layer=${file%%/*} seen_system=''
        while IFS=: read -r line text; do
            if [[ $text =~ ^[[:space:]]*#[[:space:]]*include[[:space:]]*\"([^\"]*)\" ]]; then
                header=${BASH_REMATCH[1]}
                [[ $header != *..* ]] || say "\`$header\` climbs; includes start at the root"
                [[ " $(words "$layer") " == *" ${header%%/*} "* && $header == */* ]] ||
                    say "$layer/ may not include \`$header\`, only headers under:$(words "$layer")"
                [[ -e $root/$header ]] || say "\`$header\` does not exist at the root"
                [[ -z $seen_system ]] || say "\`$header\` stands after <$seen_system>; ours come first"
            elif [[ $text =~ ^[[:space:]]*#[[:space:]]*include[[:space:]]*\<([^\>]*)\> ]]; then
                header=${BASH_REMATCH[1]} seen_system=${BASH_REMATCH[1]}
                while read -r pattern patterns; do
                    [[ -n $pattern && $header =~ $pattern ]] || continue
                    # shellcheck disable=SC2254 # the right side is a list of patterns
                    [[ $file == @($patterns) ]] || say "only $patterns may include <$header>"
                done <<<"$foreign"
            elif [[ $layer != cli ]]; then
                say 'only cli/ may ask for TD_HAVE_: an optional dependency adds files, not branches'
            fi
        done < <(grep -nE '^[[:space:]]*#[[:space:]]*(include|(el)?if[a-z]*[[:space:]].*TD_HAVE_)' "$root/$file" || true)
    done < <(cd "$root" && awk 'NF { print $1 }' <<<"$layers" | while read -r folder; do
        [ ! -d "$folder" ] || find "$folder" -name '*.[ch]' -o -name '*.cu'
    done | sort)
    return $bad
}

self_test() {
    local tree failed=0 clean
    tree=$(mktemp -d)
    # shellcheck disable=SC2064 # the path of now
    trap "rm -rf '$tree'" EXIT
    # file, text: what a clean tree holds
    mkdir -p "$tree"/{model,traces,sim,exec,cli,tests/model}
    clean=$(printf '%s\n' 'model/a.h ' 'traces/t.h #include "model/a.h"' 'model/a.c #include <libfyaml.h>' \
        'sim/net_simgrid.c #include <simgrid/engine.h>' 'cli/main.c #ifdef TD_HAVE_SIMGRID' 'sim/s.h #include "traces/t.h"' \
        'exec/host_blas.c #include <cblas.h>' 'tests/model/t.c #include "sim/s.h"')
    while read -r file text; do echo "$text" >"$tree/$file"; done <<<"$clean"
    check "$tree" || { echo "FAILED: a clean tree is refused" && failed=1; }
    # one violation at a time
    while IFS='|' read -r file text; do
        printf '%b\n' "$text" >"$tree/$file"
        if check "$tree" >/dev/null; then
            echo "FAILED: not found: $file: $text"
            failed=1
        fi
        rm "$tree/$file"
    done <<'END'
model/bad.c|#include "traces/t.h"
model/bad.h|#include "sim/s.h"
model/bad.c|#include "../model/a.h"
model/bad.c|#include "a.h"
model/bad.c|#include "model/missing.h"
model/bad.c|#include <jansson.h>
model/bad.c|#include <time.h>
model/bad.c|#include <stdio.h>\n#include "model/a.h"
traces/bad.c|#include "sim/s.h"
traces/bad.c|#include "exec/e.h"
sim/bad.c|#include "exec/e.h"
sim/bad.c|  #  include  <simgrid/engine.h>
sim/bad.c|#include "cli/c.h"
sim/bad.c|#ifdef TD_HAVE_SIMGRID
sim/bad.c|#if defined(TD_HAVE_SIMGRID)
exec/bad.c|#include "sim/s.h"
exec/bad.c|#include <mpi.h>
exec/host.c|#include <nccl.h>
tests/model/bad.c|#include "t.h"
tests/model/bad.c|#ifndef TD_HAVE_CUDA
END
    [ $failed = 0 ] && echo "finds every planted violation"
    return $failed
}

case ${1-} in
--self-test) self_test ;;
*) check "${1:-$(cd "$(dirname "$0")/.." && pwd)}" ;;
esac
