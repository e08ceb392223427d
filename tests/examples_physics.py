#!/usr/bin/env python3
"""examples_physics.py TANDEM [PLAN...]: no prediction beats physics.

Predicts every example plan (or those given) and compares the answer with what follows from the plan's text alone, read and
computed here without any of tandem's code: parameters, FLOPs, memory, and the shortest time that the datasheet peaks allow.
"""
import glob
import json
import math
import os
import subprocess
import sys

import yaml

# Dense FLOP/s of the datasheets.
PEAK = {
    "bf16": {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 SXM5": 989.5e12, "NVIDIA H200": 989.5e12, "NVIDIA B200": 2250e12},
    "fp32": {"NVIDIA A100-SXM4-80GB": 19.5e12, "NVIDIA H100 SXM5": 67e12, "NVIDIA H200": 67e12, "NVIDIA B200": 80e12},
}
# Bytes of a parameter: its weight, and what the optimizer keeps (two moments; beside bf16 a main copy in fp32).
WEIGHT, KEPT = {"bf16": 2, "fp32": 4}, {"bf16": 12, "fp32": 8}


class Module:
    """A module of a plan: sizes with their defaults, and what each of its ranks holds and computes."""

    def __init__(self, name, text, language_hidden):
        self.name, self.language = name, text["type"] == "language"
        self.layers, self.hidden, self.seq, self.ffn = text["layers"], text["hidden"], text["seq"], text["ffn"]
        self.head_dim = text.get("head_dim", self.hidden // text["heads"])
        self.q = text["heads"] * self.head_dim
        self.kv = text.get("kv_heads", text["heads"]) * self.head_dim
        self.gated = text.get("mlp", "swiglu" if self.language else "gelu") == "swiglu"
        self.vocab, self.input_dim, self.out = text.get("vocab", 0), text.get("input_dim", 0), language_hidden
        frozen = text.get("frozen", False)
        self.layers_train, self.ends_train = frozen is False, frozen is not True
        parallel = text["parallel"]
        self.tp, self.pp, self.dp = parallel.get("tp", 1), parallel.get("pp", 1), parallel["dp"]
        self.offset = parallel.get("offset", 0)
        self.ranks = self.tp * self.pp * self.dp
        self.stage_layers = text.get("stage_layers") or parallel.get("stage_layers") or [self.layers // self.pp] * self.pp

    def stage_flops(self, stage, input_grad):
        """FLOPs of one sample in one stage over all its tp ranks: (forward, backward)."""
        tokens, h = self.seq, self.hidden
        mlp = (3 if self.gated else 2) * h * self.ffn
        linear = 2.0 * tokens * (h * (self.q + 2 * self.kv) + self.q * h + mlp)
        attention = 4.0 * tokens * tokens * self.q * (0.5 if self.language else 1.0)
        n = self.stage_layers[stage]
        forward, backward = n * (linear + attention), 0.0
        reaches_layers = self.layers_train or input_grad
        if reaches_layers:
            backward += n * (linear * (2 if self.layers_train else 1) + 2 * attention)
        if self.language and stage == self.pp - 1:
            head = 2.0 * tokens * h * self.vocab
            forward += head
            backward += head * ((1 if reaches_layers else 0) + (1 if self.ends_train else 0))
        if not self.language and stage == 0:
            embed = 2.0 * tokens * self.input_dim * h
            forward += embed
            backward += embed if self.layers_train else 0.0  # the input is data and needs no gradient
        if not self.language and stage == self.pp - 1:
            fc1, fc2 = 2.0 * tokens * h * self.out, 2.0 * tokens * self.out * self.out
            forward += fc1 + fc2
            if self.ends_train:
                backward += fc1 + 2 * fc2 + (fc1 if reaches_layers else 0.0)
        return forward, backward

    def rank_parameters(self, stage):
        """(all, trainable) parameter elements of one rank of a stage."""
        tp, h, out = self.tp, self.hidden, self.out
        gate = 2 if self.gated else 1
        kv = max(self.kv // tp, self.head_dim)
        matrices = h * (self.q // tp + 2 * kv) + self.q // tp * h + (gate + 1) * h * (self.ffn // tp)
        if self.language:
            layer, ends = matrices + 2 * h, 0
            ends += self.vocab // tp * h if stage == 0 else 0
            ends += self.vocab // tp * h + h if stage == self.pp - 1 else 0
            total = layer * self.stage_layers[stage] + ends
            return total, total if self.layers_train else 0
        biases = self.q // tp + 2 * kv + h + gate * (self.ffn // tp) + h
        backbone = (matrices + biases + 4 * h) * self.stage_layers[stage]
        backbone += self.input_dim * h + h + self.seq * h if stage == 0 else 0
        backbone += 2 * h if stage == self.pp - 1 else 0
        projector = out // tp * h + out // tp + out * (out // tp) + out if stage == self.pp - 1 else 0
        trainable = (backbone if self.layers_train else 0) + (projector if self.ends_train else 0)
        return backbone + projector, trainable


class Plan:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            text = yaml.safe_load(file)
        cluster = text["cluster"]
        if isinstance(cluster, str):
            with open(os.path.join(os.path.dirname(path), cluster), encoding="utf-8") as file:
                cluster = yaml.safe_load(file)
        self.gpus = [
            (node, group["node"])
            for node, group in enumerate(g for g in cluster["groups"] for _ in range(g["count"]))
            for _ in range(group["node"]["gpus"])
        ]
        hidden = text["modules"]["language"]["hidden"]
        self.modules = [Module(name, m, hidden) for name, m in text["modules"].items()]
        self.language = next(m for m in self.modules if m.language)
        self.encoders = [m for m in self.modules if not m.language]
        step = text.get("step", {})
        self.microbatches, self.micro_batch = step.get("microbatches", 1), step.get("micro_batch", 1)
        self.precision = text.get("precision", "bf16")
        self.order = [axis for axis in text.get("rank_order", ["tp", "cp", "dp", "pp"]) if axis != "cp"]
        self.world = max(m.offset + m.ranks for m in self.modules)

    def lane_samples(self, m):
        return self.micro_batch * self.language.dp // m.dp

    def input_grad(self, m):
        return m.language and any(e.ends_train for e in self.encoders)

    def coordinate(self, m, rank):
        rest, at = rank - m.offset, {}
        for axis in self.order:
            extent = getattr(m, axis)
            at[axis], rest = rest % extent, rest // extent
        return at

    def flops_per_step(self):
        return sum(
            sum(m.stage_flops(s, self.input_grad(m))) * self.lane_samples(m) * m.dp * self.microbatches
            for m in self.modules
            for s in range(m.pp)
        )

    def peak(self, m):
        """Of the fastest GPU a module has: the bounds below hold for any of its ranks."""
        return max(PEAK[self.precision][self.gpus[r][1]["gpu"]["name"]] for r in range(m.offset, m.offset + m.ranks))

    def stage_seconds(self, m, stage):
        """(forward, backward) of one microbatch at peak speed."""
        scale = self.lane_samples(m) / m.tp / self.peak(m)
        return tuple(scale * f for f in m.stage_flops(stage, self.input_grad(m)))

    def compute_bound(self):
        """Every stage does all microbatches; before its first the stages below do one forward, after its last one backward."""
        bound = 0.0
        deepest = max((sum(sum(self.stage_seconds(e, s)) for s in range(e.pp)) for e in self.encoders), default=0.0)
        for m in self.modules:
            below = deepest if m.language else 0.0
            for stage in range(m.pp):
                own = sum(self.stage_seconds(m, stage))
                bound = max(bound, below + self.microbatches * own)
                below += own
        return bound

    def data_parallel_bound(self):
        """Seconds to reduce-scatter fp32 gradients and to gather parameters: (reduce, gather), of the slowest group."""
        reduce, gather = 0.0, 0.0
        for m in self.modules:
            stride = math.prod(getattr(m, axis) for axis in self.order[: self.order.index("dp")])
            group = [m.offset + lane * stride for lane in range(m.dp)]
            node = self.gpus[group[0]][1]
            rate = node["nvlink_gb_s"] * 1e9
            if len({self.gpus[r][0] for r in group}) == m.dp > 1:  # one lane per node: all of it leaves through NICs
                rate = node["nic_gb_s"] * 1e9
            share = (m.dp - 1) / m.dp / rate
            most = max(m.rank_parameters(s)[1] for s in range(m.pp))
            reduce, gather = max(reduce, 4 * most * share), max(gather, WEIGHT[self.precision] * most * share)
        return reduce, gather


class Checks:
    def __init__(self):
        self.failures = 0

    def that(self, holds, plan, text):
        if not holds:
            self.failures += 1
            print(f"FAILED {plan}: {text}")

    def close(self, got, expected, tolerance, plan, what):
        error = abs(got - expected) / max(abs(expected), 1e-300)
        self.that(error <= tolerance, plan, f"{what} is {got!r}, expected {expected!r} within {tolerance}")


def ask(tandem, command, path):
    done = subprocess.run([tandem, command, path, "--json"], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise SystemExit(f"FAILED {path}: tandem {command} exits with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def check_plan(tandem, path, checks):
    plan, name = Plan(path), os.path.basename(path)
    answer = ask(tandem, "predict", path)
    step = answer["step_s"]

    flops = plan.flops_per_step()
    peaks = sum(PEAK[plan.precision][node["gpu"]["name"]] for _, node in plan.gpus[: plan.world])
    checks.close(answer["flops_per_step"], flops, 1e-9, name, "flops_per_step")
    checks.close(answer["mfu"], flops / step / peaks, 1e-3, name, "mfu")
    checks.that(0 < answer["mfu"] < 1, name, f"mfu is {answer['mfu']}")
    tokens = plan.microbatches * plan.micro_batch * plan.language.dp * plan.language.seq
    checks.close(answer["tokens_per_s"], tokens / step, 1e-6, name, "tokens_per_s")

    compute = plan.compute_bound()
    reduce, gather = plan.data_parallel_bound()
    bound = max(compute, reduce) + gather
    checks.that(step >= bound, name, f"step_s {step} beats the physical bound {bound}")
    checks.that(len(answer["ranks"]) == plan.world, name, f"{len(answer['ranks'])} ranks, expected {plan.world}")
    memory = {entry["rank"]: entry["memory_bytes"] for entry in ask(tandem, "check", path)["ranks"]}
    for m in plan.modules:
        for rank in range(m.offset, m.offset + m.ranks):
            stage = plan.coordinate(m, rank)["pp"]
            busy = answer["ranks"][rank]["busy_s"]
            least = plan.microbatches * sum(plan.stage_seconds(m, stage))
            checks.that(busy >= least, name, f"rank {rank} is busy {busy} s, its products alone need {least} s at peak")
            total, trainable = m.rank_parameters(stage)
            held, where = memory[rank], f"rank {rank} memory_bytes"
            checks.close(held["weights"], WEIGHT[plan.precision] * total, 1e-3, name, f"{where}.weights")
            checks.close(held["gradients"], 4 * trainable, 1e-2, name, f"{where}.gradients")
            checks.close(held["optimizer"], KEPT[plan.precision] * trainable / m.dp, 2e-2, name, f"{where}.optimizer")
            parts = sum(held[part] for part in ("weights", "gradients", "optimizer", "activations", "buffers"))
            checks.close(held["total"], parts, 1e-9, name, f"{where}.total")
            capacity = plan.gpus[rank][1]["gpu"]["memory_gib"] * 2**30
            checks.close(held["capacity"], capacity, 1e-9, name, f"{where}.capacity")
            checks.that(held["total"] <= capacity, name, f"{where}.total {held['total']} exceeds {capacity}")
    print(f"{name}: step {step:.6f} s, {step / bound:.2f} x the bound, mfu {answer['mfu']:.3f}")


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    plans = sys.argv[2:] or sorted(glob.glob(os.path.join(root, "examples", "plans", "*.yaml")))
    checks = Checks()
    for path in plans:
        check_plan(sys.argv[1], path, checks)
    if not plans or checks.failures:
        raise SystemExit(f"{checks.failures} checks failed over {len(plans)} plans")


main()
