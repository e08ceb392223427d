#!/usr/bin/env bash
# A profile holds for what it was measured with: whoever predicts for other versions, or compares with them, is told by name.
source "$(dirname "$0")/lib.bash"

name=baseline_2gpu-7b
python3 - >"$tmp/profile.json" <<'PYTHON'
import json
p = json.load(open("examples/profiles/h200-tables.json")) | {"gpu": "NVIDIA H200"}
p["environment"] = {"driver": "580.159.04", "cuda": "13000", "nccl": "22703", "cudnn": "9.14.0"}
print(json.dumps(p))
PYTHON
plan_on() { # WHAT THE GPU SAYS MORE
    sed "s/memory_gib: 140.4/&$1/" examples/clusters/dgx-h200.yaml >"$tmp/cluster.yaml"
    sed 's,^cluster: .*,cluster: cluster.yaml,' "examples/plans/$name.yaml" >"$tmp/plan.yaml"
}

plan_on ', driver: 580.159.04, cuda: "13.0", cudnn: 9.14.0'
run predict "$tmp/plan.yaml" --profile "$tmp/profile.json" --samples 0
exits 0
silent err

plan_on ', driver: 570.124.06, cuda: "12.8", nccl: 2.27.3, cudnn: 9.19.0'
run predict "$tmp/plan.yaml" --profile "$tmp/profile.json" --samples 0 -o "$tmp/p.json.gz"
exits 0
says err 'warning: .*cluster.yaml: its driver is `570.124.06`, but profile h200-tables was measured with `580.159.04`'
says err 'its cuda is `12.8`, but profile h200-tables was measured with `13.0`'
says err 'its cudnn is `9.19.0`, but profile h200-tables was measured with `9.14.0`'
! grep -q 'its nccl' "$tmp/err" || fail "$ran: NCCL is the same"
sed 's/"environment": {[^}]*}/"environment": {}/' "$tmp/profile.json" >"$tmp/silent.json"
run predict "$tmp/plan.yaml" --profile "$tmp/silent.json" --samples 0 # a profile that does not tell
exits 0
silent err

plan_on ', dirver: 570.124.06'
run predict "$tmp/plan.yaml"
exits 1 3
says err 'dirver.*driver'
plan_on ', cuda: 12.8'
run predict "$tmp/plan.yaml"
exits 1 3
says err 'cluster.yaml:[0-9]+:[0-9]+: .*cuda: is 12.8; expected a version, in quotes'

# The measurement ran with NCCL 2.28.3, all else is as in the profile.
run compare "$tmp/p.json.gz" "examples/measured/h200-runs/$name.json.gz"
says out '^The prediction.s profile was measured with nccl 2.27.3, this run with 2.28.3'
! grep -qE 'measured with (driver|cuda|cudnn|gpu)' "$tmp/out" || fail "$ran: $(grep 'measured with' "$tmp/out")"
run compare "$tmp/p.json.gz" "examples/measured/h200-runs/$name.json.gz" --json
python3 - "$tmp/out" <<'PYTHON' || fail "$ran: versions"
import json, sys
c = json.load(open(sys.argv[1]))
assert c["versions"] == [{"what": "nccl", "profile": "2.27.3", "measured": "2.28.3"}], c["versions"]
assert len(c["step_s"]["measured_each"]) == 30
PYTHON
finish
