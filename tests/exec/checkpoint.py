"""checkpoint.py TANDEM [KILLS]: save, load and continue is to continue, and no kill leaves a damaged checkpoint.

Same layout: bit for bit, moments included (the files of two checkpoints have the same checksums). Other layouts: to the
tolerance that any two layouts agree to. Then KILLS runs (6) that save after every step are killed, all ranks at once or
one, at random moments; what is there must load and go on exactly as a run that nobody disturbed.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

GPU = {"name": "NVIDIA H200", "memory_gib": 140}
NODE = {"gpus": 8, "gpu": GPU, "cores": 8, "nvlink_gb_s": 450, "nvlink_latency_us": 2}
NODE |= {"nics": 8, "nic_gb_s": 50, "nic_latency_us": 2}
VISION = {"type": "vision", "layers": 4, "hidden": 48, "heads": 4, "ffn": 96, "seq": 16, "input_dim": 24}
LANGUAGE = {"type": "language", "layers": 4, "hidden": 64, "heads": 8, "kv_heads": 2, "ffn": 176, "vocab": 256, "seq": 48}
BATCH, MICROBATCHES = 16, 4

# images, language, what else differs
LAYOUTS = {
    "one rank each": ({}, {}, {}),
    "tensor": ({"tp": 2}, {"tp": 4}, {}),
    "pipeline": ({"pp": 2}, {"pp": 2, "stage_layers": [3, 1]}, {}),
    "data, sharded": ({"dp": 2}, {"dp": 2}, {}),
    "data, whole": ({"dp": 2}, {"dp": 2}, {"sharded": False}),
    "all of them": ({"tp": 2}, {"tp": 2, "dp": 2}, {"sequence_parallel": True}),
}


class Failure(Exception):
    """What a law found."""


def plan_of(images, language, more, **model):
    def ranks(where):
        return where.get("tp", 1) * where.get("pp", 1) * where.get("dp", 1)

    def module(what, where, offset):
        keys = {key: value for key, value in where.items() if key != "stage_layers"}
        stages = {"stage_layers": where["stage_layers"]} if "stage_layers" in where else {}
        return what | stages | {"parallel": {"dp": 1} | keys | {"offset": offset}}

    step = {"microbatches": MICROBATCHES, "micro_batch": BATCH // MICROBATCHES // language.get("dp", 1)}
    step["sequence_parallel"] = more.get("sequence_parallel", False)
    return {
        "name": "checkpoint",
        "cluster": {"groups": [{"count": 1, "node": NODE}], "fabric": {"kind": "single"}},
        "modules": {
            "images": module(VISION, images, 0),
            "language": module(LANGUAGE | model, language, ranks(images)),
        },
        "step": step,
        "optimizer": {"lr": 1e-3, "sharded": more.get("sharded", True)},
        "precision": "fp32",
        "seed": 1234,
    }


class Runs:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def command(self, plan, steps, *more):
        with open(self.path("plan.json"), "w", encoding="utf-8") as file:
            json.dump(plan, file)
        return [self.program, "run", self.path("plan.json"), "--steps", str(steps), "--warmup", "0", *more]

    def __call__(self, plan, steps, *more, code=0):
        command = self.command(plan, steps, "--json", "--quiet", "--checksums", *more)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != code:
            raise Failure(f"{' '.join(more)}: exit {done.returncode}, expected {code}: {done.stderr}")
        return json.loads(done.stdout) if code == 0 else done.stderr


def numbers(step):
    return {"loss": step["loss"], "grad_norm": step["grad_norm"], "norms": step["module_norms"]}


def files(folder):
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    return {name: one["sha256"] for name, one in manifest["files"].items()}, manifest["step"], manifest["updates"]


def near(one, other, relative):
    return abs(one - other) <= relative * abs(other)


def close(where, got, expected):
    """DESIGN's tolerances of two layouts."""
    for step, (one, other) in enumerate(zip(got["steps"], expected["steps"], strict=True)):
        if not near(one["loss"], other["loss"], 1e-5) or not near(one["grad_norm"], other["grad_norm"], 1e-4):
            raise Failure(f"{where}, step {step}: {numbers(one)}, expected {numbers(other)}")
    if got["tensors"].keys() != expected["tensors"].keys():
        raise Failure(f"{where}: other tensors")
    for name, other in expected["tensors"].items():
        one = got["tensors"][name]
        off = abs(one["signed_sum"] - other["signed_sum"])
        if not near(one["l2"], other["l2"], 1e-4) or off > 1e-3 * other["l2"]:
            raise Failure(f"{where}: {name}: {one}, expected {other}")


def continuing(run):
    """Every layout against itself, and against every other through one of them."""
    straight = {}
    for name, layout in LAYOUTS.items():
        plan, whole, parts = plan_of(*layout), run.path("whole"), run.path(name)
        straight[name] = run(plan, 5, "--save", whole)
        first = run(plan, 3, "--save", parts)
        kept = shutil.copytree(parts, run.path(f"{name}, 3 steps"))
        second = run(plan, 2, "--load", kept, "--save", parts)
        again = [numbers(s) for s in first["steps"] + second["steps"]]
        if again != [numbers(s) for s in straight[name]["steps"]]:
            raise Failure(f"{name}: continuing gave {again}")
        if second["tensors"] != straight[name]["tensors"] or files(parts) != files(whole):
            raise Failure(f"{name}: continuing gave other parameters or moments")
        if sorted(os.listdir(parts)) != ["manifest.json", "step-5"]:
            raise Failure(f"{name}: left {os.listdir(parts)}")
    pairs = [(a, b) for a in LAYOUTS for b in LAYOUTS if a != b and (a in list(LAYOUTS)[-2:] or b == "all of them")]
    for source, target in pairs:
        got = run(plan_of(*LAYOUTS[target]), 2, "--load", run.path(f"{source}, 3 steps"))
        expected = {"steps": straight[source]["steps"][3:], "tensors": straight[source]["tensors"]}
        close(f"{source} to {target}", got, expected)
    print(f"{len(LAYOUTS)} layouts continue bit for bit, {len(pairs)} pairs to tolerance")


def resharding(run):
    """No step at all: what goes through another layout comes back bit for bit."""
    source, there, back = (run.path(name) for name in ("data, sharded, 3 steps", "there", "back"))
    run(plan_of(*LAYOUTS["all of them"]), 0, "--load", source, "--save", there)
    run(plan_of(*LAYOUTS["data, sharded"]), 0, "--load", there, "--save", back)
    if files(back) != files(source):
        raise Failure("through another layout and back, the checkpoint is another")
    print("through another layout and back: the same checksums")


def refusals(run):
    """One clear line, exit 3, the name of what is wrong in it."""
    plan = plan_of(*LAYOUTS["tensor"])

    def refused(says, folder, other=plan):
        text = run(other, 1, "--load", folder, code=3)
        if says not in text or len(text.splitlines()) != 1:
            raise Failure(f"expected one line that says `{says}`, got: {text}")

    def damage(name, change):
        folder = shutil.copytree(run.path("tensor, 3 steps"), run.path("damaged"), dirs_exist_ok=True)
        change(os.path.join(folder, name))
        return folder

    def flip(path):
        with open(path, "r+b") as file:
            file.seek(1000)
            byte = file.read(1)[0]
            file.seek(1000)
            file.write(bytes([byte ^ 4]))

    file = "step-3/rank-3.f32"
    refused("there is no checkpoint", run.path("nowhere"))
    refused(f"{file}: damaged: its checksum", damage(file, flip))
    refused(f"{file}: damaged: has 100 bytes", damage(file, lambda path: os.truncate(path, 100)))
    refused(f"{file}: missing", damage(file, os.remove))
    refused("damaged", damage("manifest.json", flip))
    refused("manifest.json:1: damaged", damage("manifest.json", lambda path: os.truncate(path, 500)))
    kept = run.path("tensor, 3 steps")
    refused("modules.language.heads is 8", kept, plan_of(*LAYOUTS["one rank each"], heads=16))
    refused("tensor `language.embed.weight` is [256, 64]", kept, plan_of(*LAYOUTS["one rank each"], vocab=512))
    refused("`language.layers.4.", kept, plan_of(*LAYOUTS["one rank each"], layers=5))
    with open(run.path("file"), "w", encoding="utf-8") as other:
        other.write("not a folder")
    text = run(plan, 1, "--save", run.path("file"), code=3)
    if "is not a folder" not in text:
        raise Failure(f"saving into a file: {text}")
    print("what is missing, damaged or of another model is refused by name")


def family(root):
    """Every process that descends from `root`."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        parents[int(pid)] = int(text[text.rindex(")") + 2 :].split()[1]), text[text.index("(") + 1 : text.rindex(")")]
    found = {root}
    while True:
        more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
        if not more:
            return {pid: parents[pid][1] for pid in found if pid in parents}
        found |= more


def saving(folder):
    """Is there a folder beside the checkpoint's own?"""
    return sum(name.startswith("step-") for name in os.listdir(folder)) > 1


def killed_run(run, plan, folder, whole, amid):
    """Starts a run that saves after every step; kills it a while after its first checkpoint stands, or amid a save."""
    load = ["--load", folder] if os.path.exists(os.path.join(folder, "manifest.json")) else []
    before = files(folder)[1] if load else -1
    command = run.command(plan, 100000, "--quiet", "--save", folder, "--save-every", "1", *load)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        end = time.monotonic() + 60
        while time.monotonic() < end and started.poll() is None:
            if os.path.exists(os.path.join(folder, "manifest.json")) and files(folder)[1] > before:
                break
            time.sleep(0.02)
        while amid and time.monotonic() < end and started.poll() is None and not saving(folder):
            pass
        time.sleep(random.uniform(0, 0.02 if amid else 0.5))
        everyone = family(started.pid)
        ranks = [pid for pid, name in everyone.items() if name == "tandem-host"]
        if started.poll() is not None or not ranks:
            raise Failure(f"the run ended by itself: {started.poll()}")
        for pid in everyone if whole else [random.choice(ranks)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            started.wait(timeout=20)
        except subprocess.TimeoutExpired as late:
            for pid in everyone:
                os.kill(pid, signal.SIGKILL)
            raise Failure("a rank was killed and the run hangs") from late


def kills(run, n):
    """What is there after a kill loads, and the next step is that of an undisturbed run."""
    name = "data, sharded"
    plan, folder = plan_of(*LAYOUTS[name]), run.path("killed")
    undisturbed, cut_off, seen = run(plan, 40)["steps"], 0, []
    for i in range(n):
        killed_run(run, plan, folder, whole=i % 3 != 2, amid=i % 4 != 3)
        step = files(folder)[1]
        cut_off += saving(folder) or any(".tmp" in f for _, _, names in os.walk(folder) for f in names)
        seen.append(step)
        if step >= len(undisturbed):
            shutil.rmtree(folder)
            continue
        got = run(plan, 1, "--load", folder)["steps"][0]
        if numbers(got) != numbers(undisturbed[step]):
            raise Failure(f"after kill {i} at step {step}: {numbers(got)}, expected {numbers(undisturbed[step])}")
    print(f"{n} kills, {cut_off} of them amid a save, at steps {seen}: every checkpoint loads and goes on exactly")


def main():
    random.seed(int(os.environ.get("TANDEM_SEED", "1")))
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 6
    with tempfile.TemporaryDirectory() as scratch:
        run = Runs(os.path.abspath(sys.argv[1]), scratch)
        try:
            continuing(run)
            resharding(run)
            refusals(run)
            kills(run, n)
        except Failure as failure:
            print(f"FAILED: {failure}")
            sys.exit(1)


main()
