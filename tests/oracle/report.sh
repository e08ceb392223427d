#!/usr/bin/env bash
# report.sh BUILD: repeats the result lines of the oracle tests at the end of a ctest run, which hides the output of tests
# that pass. ctest runs this as CTEST_CUSTOM_POST_TEST and hides its output too, hence the detour to ctest's own stdout.
set -u
log=$1/Testing/Temporary/LastTest.log
[ -e "$log.tmp" ] && log=$log.tmp
lines=$(grep -hE '^[a-z]+: cases [0-9]+, matched [0-9]+, skipped [0-9]+' "$log" 2>/dev/null) || exit 0
printf '\n%s\n' "$lines" 2>/dev/null >>"/proc/$PPID/fd/1" || exit 0
