#!/usr/bin/env bash
# The command answers as the reference did: groups, events and verdicts of every vector that can be written as a plan.
source "$(dirname "$0")/lib.bash"

python3 tests/cli/oracle_through_the_command.py "$tandem" || fail "the command and the vectors disagree"
finish
