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
says out 'provisional' # what the number rests on
says out 'critical path'
says out '[0-9]+(\.[0-9]+)? ?%'

run show "$plan"
rows=$(grep -cE '^ *(rank +)?[0-7] .*[0-9F]' "$tmp/out")
[ "$rows" -ge 8 ] || fail "$ran: the time chart has $rows rows, expected one for each of 8 ranks"

# A full disk is a failure, not a short answer.
if [ -e /dev/full ]; then
    "$tandem" check "$plan" --json >/dev/full 2>/dev/null && fail "check --json >/dev/full: exit 0"
fi
finish
