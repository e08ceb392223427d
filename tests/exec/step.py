"""Runs a plan through the command and compares what two runs of one model gave, as the numerics contract says."""
import json
import os
import subprocess
import tempfile

# A cluster that everything fits on: what `host` runs does not depend on it.
CLUSTER = {
    "groups": [{"count": 8, "node": {
        "gpus": 8, "cores": 8, "gpu": {"name": "NVIDIA H200", "profile": "h200", "memory_gib": 140},
        "nvlink_gb_s": 450, "nvlink_latency_us": 2, "nics": 8, "nic_gb_s": 50, "nic_latency_us": 3}}],
    "fabric": {"kind": "rail", "oversubscription": 1, "latency_us": 2}}

# Agreement of an fp32 run: relative, and for signed_sum relative to l2.
LOSS, NORM, L2, SIGNED_SUM = 1e-5, 1e-4, 1e-4, 1e-3


class Failed(Exception):
    """The command did not do what it was asked for."""


def command(tandem, plan, *words):
    """What the command says to a plan without a cluster: (exit code, stdout, stderr).

    Open MPI sends small messages without waiting for the receiver; here they wait as large ones do.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dict(plan, cluster=CLUSTER), file)
        file.flush()
        done = subprocess.run([tandem, words[0], file.name, *words[1:]], capture_output=True, text=True, timeout=300,
                              env=dict(os.environ, OMPI_MCA_btl_vader_eager_limit="64"))
    return done.returncode, done.stdout, done.stderr


def run(tandem, plan, steps, *words):
    """The object that `run` prints."""
    code, out, err = command(tandem, plan, "run", "--steps", str(steps), "--warmup", "0", "--checksums", "--json",
                             "--quiet", *words)
    if code != 0:
        raise Failed(f"exit {code}: {err.strip()[-1000:]}")
    return json.loads(out)


def far(what, got, expected, tolerance, scale=None):
    """No sentence, or the one that says how far off `got` is."""
    off = abs(got - expected)
    scale = abs(expected) if scale is None else scale
    return [] if off <= tolerance * scale else [f"{what}: {got!r}, expected {expected!r} to {tolerance:g}"]


def differences(got, expected_steps, expected_tensors):
    """Sentences, one for every number that is not what it should be."""
    found = []
    if len(got["steps"]) != len(expected_steps):
        return [f"{len(got['steps'])} steps, expected {len(expected_steps)}"]
    for i, (a, b) in enumerate(zip(got["steps"], expected_steps)):
        found += far(f"step {i} loss", a["loss"], b["loss"], LOSS)
        found += far(f"step {i} grad_norm", a["grad_norm"], b["grad_norm"], NORM)
        found += far(f"step {i} clip_coefficient", a["clip_coefficient"], b["clip_coefficient"], NORM)
        if a["module_norms"].keys() != b["module_norms"].keys():
            found.append(f"step {i} norms of {sorted(a['module_norms'])}, expected of {sorted(b['module_norms'])}")
            continue
        for name, norm in b["module_norms"].items():
            found += far(f"step {i} norm of {name}", a["module_norms"][name], norm, NORM)
    for name in sorted(expected_tensors.keys() ^ got["tensors"].keys()):
        found.append(f"{name} is {'missing' if name in expected_tensors else 'not expected'}")
    for name in sorted(expected_tensors.keys() & got["tensors"].keys()):
        a, b = got["tensors"][name], expected_tensors[name]
        found += far(f"{name} l2", a["l2"], b["l2"], L2)
        found += far(f"{name} signed_sum", a["signed_sum"], b["signed_sum"], SIGNED_SUM, b["l2"])
    return found
