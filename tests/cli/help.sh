#!/usr/bin/env bash
# Whoever asks gets an answer: every --help ends in an example that works, every wrong name lists the right ones.
source "$(dirname "$0")/lib.bash"

run --help
exits 0
silent err
for command in check show predict list; do
    grep -q "$command" "$tmp/out" || fail "tandem --help does not name $command"
done
for command in check show predict list; do
    run "$command" --help
    exits 0
    silent err
    example=$(sed '/^[[:space:]]*$/d' "$tmp/out" | tail -n 1 | grep -oE "tandem $command .*") ||
        fail "tandem $command --help does not end in an example"
    # shellcheck disable=SC2086 # the words of the example
    (cd "$tmp" && ln -sfn "$OLDPWD/examples" examples && "$tandem" ${example#tandem } >/dev/null 2>"$tmp/err") ||
        fail "the example \`$example\` fails: $(head -n 3 "$tmp/err")"
done
run --version
exits 0
says out '[0-9]+\.[0-9]+\.[0-9]+'

run
exits 2
run predcit "$plan"
exits 2
silent out
says err 'predcit'
for command in check show predict list; do says err "$command"; done
run predict
exits 2
run predict --ideal "$plan"
exits 2
says err '\-\-ideal'
run predict "$plan" --on quantum
exits 2
says err 'ideal'
run predict "$plan" "$plan"
exits 2
run show "$plan" --rank 8
exits 1 2
says err '8'
run show "$plan" --rank two
exits 2

run list colours
exits 2
for what in backends schedules modules collectives profiles; do
    says err "$what"
done
run list backends && exits 0 && says out '^ *ideal'
run list schedules && exits 0 && says out '^ *1f1b'
run list modules && exits 0 && for name in vision audio language; do says out "^ *$name"; done
run list collectives && exits 0 && for name in all_reduce all_gather reduce_scatter broadcast sendrecv all_to_all; do
    says out "^ *$name"
done
run list profiles && exits 0 && for name in h200 h100 a100 b200; do says out "^ *$name"; done
says out 'provisional'
says out 'datasheet'
finish
