#!/usr/bin/env bash
# tests/gpu/bundle.sh [OUT_DIR]
# Builds tandem for GPUs in build/gpu and makes one folder (default: build/gpu-bundle) to carry to a machine that has GPUs,
# CUDA 13, NCCL, cuDNN, Open MPI 4.1, OpenBLAS and jansson, but nothing else that tandem needs. There:
#   tests/gpu/run.sh BUNDLE OUT
set -euo pipefail
cd "$(dirname "$0")/../.."

case ${1-} in
-h | --help) sed -n '2,5s/^# //p' "$0" && echo "example: tests/gpu/bundle.sh /tmp/bundle" && exit 0 ;;
-*) echo "tests/gpu/bundle.sh: unknown option $1, expected a folder" >&2 && exit 2 ;;
esac
out=${1:-build/gpu-bundle}
limit_mib=60
programs='tandem tandem-host tandem-cuda test-cuda-kernels test-cuda-collectives test-cuda-channels'
# What the machine has (or what belongs to its driver): never carried. Shell patterns, by soname.
theirs='linux-vdso* ld-linux* libc.so* libm.so* libdl.so* libpthread.so* librt.so* libgcc_s.so* libstdc++.so*
    libcuda.so* libcudart.so* libcublas* libnccl.so* libcudnn* libnvidia* libmpi.so* libopen-rte.so* libopen-pal.so*
    libopenblas.so* libjansson.so* libz.so*'

say() { echo "tests/gpu/bundle.sh: $*" >&2; }

# ---- build ----

generator=()
if [ ! -e build/gpu/CMakeCache.txt ] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
# The build that users run; its kernels know their lines, which compute-sanitizer tells.
cmake -S . -B build/gpu "${generator[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DTANDEM_CUDA=ON -DTANDEM_SIMGRID=OFF \
    -DTANDEM_TESTS=ON >/dev/null
# shellcheck disable=SC2086 # a list of words
cmake --build build/gpu --parallel "$(nproc)" --target $programs

# ---- programs and the libraries that are not there ----

# Only what was made here before is replaced.
if [ -e "$out" ] && [ ! -e "$out/env.sh" ] && [ -n "$(ls -A "$out")" ]; then
    say "$out is there and is no bundle; expected a new folder"
    exit 1
fi
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/share/tandem"
for program in $programs; do
    path=build/gpu/$program
    [ -e "$path" ] || path=build/gpu/tests/$program
    cp "$path" "$out/bin/"
    strip "$out/bin/$program"
done

is_theirs() { # SONAME
    local pattern
    set -f
    for pattern in $theirs; do
        # shellcheck disable=SC2053 # a pattern
        if [[ $1 == $pattern ]]; then set +f && return 0; fi
    done
    set +f
    return 1
}
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
# carry FILE: into lib/ what it needs, and what that needs, except what is theirs.
carry() {
    local name found
    for name in $(needed "$1"); do
        if is_theirs "$name" || [ -e "$out/lib/$name" ]; then continue; fi
        found=$(ldd "$1" | awk -v name="$name" '$1 == name && $2 == "=>" { print $3 }')
        if [ ! -e "$found" ]; then say "$name, which $1 needs, is not on this machine" && exit 1; fi
        cp -L "$found" "$out/lib/$name"
        strip --strip-unneeded "$out/lib/$name"
        carry "$found"
    done
}
for program in $programs; do carry "$out/bin/$program"; done

# ---- plans, data, tests ----

if [ ! -e examples/data/tiny-llava.f32 ] || [ ! -e examples/data/tiny-llava.u16 ]; then tools/make-tiny-llava-data; fi
mkdir -p "$out/examples/data" "$out/tests/oracle" "$out/tests/exec" "$out/tests/gpu"
cp -r examples/plans examples/clusters "$out/examples/"
cp examples/data/tiny-llava.f32 examples/data/tiny-llava.u16 "$out/examples/data/"
cp -r examples/profiles "$out/share/tandem/profiles"
cp -r examples/profiles "$out/examples/profiles"
cp tests/oracle/numerics.json "$out/tests/oracle/"
cp tests/exec/*.py "$out/tests/exec/"
cp tests/gpu/*.sh tests/gpu/*.bash tests/gpu/*.py tests/gpu/*.hosts tests/gpu/README.md "$out/tests/gpu/"
{
    git describe --always --dirty 2>/dev/null || echo 'no version'
    "$out/bin/tandem" --version 2>/dev/null || true
} >"$out/VERSION"

cat >"$out/env.sh" <<'END'
# Sourced: puts the bundle's programs and libraries in front, and the folders of those CUDA libraries that the loader does
# not find by itself.
# shellcheck shell=bash
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH=$bundle/bin:$PATH
export LD_LIBRARY_PATH=$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
bundle_missing() { ldd "$bundle/bin/tandem-cuda" "$bundle/bin/tandem-host" | awk '/not found/ { print $1 }' | sort -u; }
bundle_folders() { # where CUDA's libraries are wont to be
    ls -d /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib /usr/lib/x86_64-linux-gnu/openblas-* 2>/dev/null
    python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null | while read -r packages; do
        ls -d "$packages"/nvidia/*/lib 2>/dev/null
    done
}
for bundle_name in $(bundle_missing); do
    for bundle_folder in $(bundle_folders); do
        if [ -e "$bundle_folder/$bundle_name" ]; then
            LD_LIBRARY_PATH+=:$bundle_folder
            break
        fi
    done
done
if [ -n "$(bundle_missing)" ]; then
    # shellcheck disable=SC2046 # a list of words
    echo "env.sh: the loader does not find" $(bundle_missing) >&2
fi
END

size_mib=$(du -sm "$out" | cut -f1)
say "$out: $size_mib MiB; libraries carried: $(cd "$out/lib" && echo *)"
if [ "$size_mib" -ge "$limit_mib" ]; then
    say "that is more than $limit_mib MiB; the largest files are"
    du -a "$out" | sort -rn | sed -n '2,8p' >&2
    exit 1
fi
