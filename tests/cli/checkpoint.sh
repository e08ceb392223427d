#!/usr/bin/env bash
# A run that is saved and continued is the run that goes on, and no kill leaves a damaged checkpoint.
source "$(dirname "$0")/lib.bash"
export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 # MPI leaks at the end of every rank

python3 tests/exec/checkpoint.py "$tandem" || fail "a checkpoint did not give back what was saved"
finish
