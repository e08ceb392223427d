#!/usr/bin/env bash
# Answers go to stdout, progress and warnings to stderr, colours only to a terminal, and the same question has the same answer.
source "$(dirname "$0")/lib.bash"

for question in "check $plan" "show $plan" "predict $plan" "show $plan --rank 3" "predict $plan --on ideal"; do
    # shellcheck disable=SC2086 # the words of the question
    run $question
    exits 0
    [ -s "$tmp/out" ] || fail "$ran: no answer"
    grep -q $'\033' "$tmp/out" "$tmp/err" && fail "$ran: colours in a pipe"
done

run predict "$plan"
says out 'calibrated' # what the number rests on
says out 'critical path'
says out '[0-9]+(\.[0-9]+)? ?%'

# What a line of a list or of a warning cannot hold is in the JSON.
run list profiles
says out '^h200 +calibrated +NVIDIA H200; [^;]*$'
says out '^h100 +datasheet +NVIDIA H100 SXM5; datasheet peaks, all else carried over from measurements of an H200'
run predict examples/plans/llava-mixed-16gpu.yaml
[ "$(grep -c 'warning: extrapolated' "$tmp/err")" = 3 ] || fail "$ran: expected three warnings of shapes: $(cat "$tmp/err")"
says err 'warning: \.\.\. and [0-9]+ more; --json lists them all'

# A dumb terminal is a terminal without colours.
if command -v script >/dev/null; then
    colours() { script -qec "env -u NO_COLOR TERM=$1 '$tandem' show '$plan'" /dev/null </dev/null | grep -c $'\033'; }
    [ "$(colours xterm)" -gt 0 ] || fail "TERM=xterm: no colours"
    [ "$(colours dumb)" = 0 ] || fail "TERM=dumb: colours"
fi

run show "$plan"
rows=$(grep -cE '^ *(rank +)?[0-7] .*[0-9F]' "$tmp/out")
[ "$rows" -ge 8 ] || fail "$ran: the time chart has $rows rows, expected one for each of 8 ranks"

# A full disk is a failure, not a short answer.
if [ -e /dev/full ]; then
    "$tandem" check "$plan" --json >/dev/full 2>/dev/null && fail "check --json >/dev/full: exit 0"
fi
finish
