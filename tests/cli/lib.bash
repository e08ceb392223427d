# What the black-box tests share. Each test is called with the path of the program, runs from the root of the sources and
# says every failure, so that one run shows them all; sourcing this gives $tandem, $tmp and the helpers below.
set -uo pipefail
tandem=${1:?usage: $0 PATH_OF_TANDEM}
# shellcheck disable=SC2034 # for those who source this
plan=examples/plans/full_pp_8gpu-7b.yaml
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
# A sanitizer's finding is a crash, not exit 1, which means "no".
export ASAN_OPTIONS=exitcode=199 LSAN_OPTIONS=exitcode=199 UBSAN_OPTIONS=exitcode=199

fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
}

# run ARGUMENTS...: runs tandem; $rc, $tmp/out, $tmp/err tell what it did. Nothing here may take 30 s or 1 GiB.
# (The limit is on resident memory: sanitizers reserve terabytes of address space.)
run() {
    ran="tandem $*"
    timeout 30 python3 tests/cli/limited.py "$tandem" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    rc=$?
    case $rc in
    124) fail "$ran: still running after 30 s" ;;
    99) fail "$ran: took more than 1 GiB" ;;
    12[5-9] | 1[3-9]? | 2??) fail "$ran: crashed with $rc: $(tail -n 5 "$tmp/err")" ;;
    esac
}

# exits RC...: the last run exited with one of these.
exits() {
    [[ " $* " == *" $rc "* ]] || fail "$ran: exit $rc, expected $*: $(head -n 3 "$tmp/err")"
}

# says FILE PATTERN: stdout or stderr of the last run holds the extended regular expression.
says() {
    grep -qE -- "$2" "$tmp/$1" || fail "$ran: std$1 does not match /$2/: $(head -n 4 "$tmp/$1")"
}

# silent FILE: the last run wrote nothing there.
silent() {
    [ ! -s "$tmp/$1" ] || fail "$ran: unexpected std$1: $(head -n 4 "$tmp/$1")"
}

finish() {
    [ "$failures" = 0 ] || exit 1
}
