#!/usr/bin/env python3
"""numerics.py TANDEM N_GPUS [ON]: whole training steps on GPUs against an independent single-process program in float64.

Every case of tests/oracle/numerics.json in fp32 and in bf16: in its own layout and, since the numbers do not depend on the
layout, with one rank a module. What needs more GPUs than there are is skipped by name. ON: another backend than cuda.
"""
import copy
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "exec"))

import step  # noqa: E402  (found through the line above)

# Relative; norms of steps 0 and 1, and of those after them. bf16 rounds every activation.
LOSS = {"fp32": 1e-3, "bf16": 2e-3}
NORM = {"fp32": (1e-3, 1e-3), "bf16": (2e-2, 1e-1)}
L2 = 1e-3  # of parameters after the last step, fp32 only: as is their signed sum, relative to l2


def world(plan):
    def size(where):
        return where.get("offset", 0) + where.get("tp", 1) * where.get("pp", 1) * where.get("dp", 1)
    return max(size(m["parallel"]) for m in plan["modules"].values())


def one_rank_a_module(plan):
    """The same samples in the same microbatches, the language lanes' side by side."""
    plan = copy.deepcopy(plan)
    plan["step"]["micro_batch"] *= plan["modules"]["language"]["parallel"].get("dp", 1)
    for offset, module in enumerate(plan["modules"].values()):
        module["parallel"] = {"dp": 1, "offset": offset}
        module.pop("stage_layers", None)
    return plan


def differences(got, expected, tensors, precision):
    """Sentences, one for every number that is too far off, and the largest errors of loss and norms."""
    found, worst = [], {"loss": 0.0, "norm": 0.0}

    def near(what, kind, a, b, tolerance):
        off = abs(a - b) / abs(b) if isinstance(a, float) else float("inf")  # not finite: a text
        worst[kind] = max(worst[kind], off)
        if not off <= tolerance:
            found.append(f"{what}: {a!r}, expected {b!r} to {tolerance:g}")

    if len(got["steps"]) != len(expected):
        return [f"{len(got['steps'])} steps, expected {len(expected)}"], worst
    for i, (a, b) in enumerate(zip(got["steps"], expected)):
        tolerance = NORM[precision][i > 1]
        near(f"step {i} loss", "loss", a["loss"], b["loss"], LOSS[precision])
        near(f"step {i} grad_norm", "norm", a["grad_norm"], b["grad_norm"], tolerance)
        near(f"step {i} clip_coefficient", "norm", a["clip_coefficient"], b["clip_coefficient"], tolerance)
        for name, norm in b["module_norms"].items():
            near(f"step {i} norm of {name}", "norm", a["module_norms"][name], norm, tolerance)
    if precision == "fp32":
        if tensors.keys() != got["tensors"].keys():
            found.append(f"other tensors: {sorted(tensors.keys() ^ got['tensors'].keys())[:4]}")
        for name in sorted(tensors.keys() & got["tensors"].keys()):
            a, b = got["tensors"][name], tensors[name]
            for sum_of in ("l2", "signed_sum"):
                found += step.far(f"{name} {sum_of}", a[sum_of], b[sum_of], L2, b["l2"])
    return found, worst


def main():
    tandem, n_gpus = sys.argv[1], int(sys.argv[2])
    on = sys.argv[3] if len(sys.argv) > 3 else "cuda"
    with open(os.path.join(HERE, "..", "oracle", "numerics.json"), encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    n, matched, skipped = 0, 0, 0
    for case in cases:
        plan = dict(case["plan"])
        steps = plan.pop("steps")
        for layout, laid_out in (("its own layout", plan), ("one rank a module", one_rank_a_module(plan))):
            if layout == "one rank a module" and world(laid_out) == world(plan):
                continue
            if world(laid_out) > n_gpus:
                skipped += 1
                print(f"numerics: {case['id']}, {layout}: skipped: needs {world(laid_out)} GPUs, {n_gpus} are there")
                continue
            # The vectors' own layout where it fits: rounding to bf16 is another one in every layout, and after four steps
            # without clipping a norm that doubles within a step differs by a tenth (seen: 0.12).
            own_fits = world(plan) <= n_gpus
            both = on == "cuda" and (layout == "its own layout" or not own_fits)
            for precision in ("fp32", "bf16") if both else ("fp32",):
                n += 1
                try:
                    got = step.run(tandem, dict(laid_out, precision=precision), steps, "--on", on, "--timeout", "60")
                    found, worst = differences(got, case["expected"], case["tensors"], precision)
                except (step.Failed, subprocess.TimeoutExpired) as failure:
                    found, worst = [str(failure)], {"loss": float("nan"), "norm": float("nan")}
                matched += not found
                print(f"numerics: {case['id']}, {layout}, {precision}: {'FAILED' if found else 'matched'}: "
                      f"loss within {worst['loss']:.1e}, norms within {worst['norm']:.1e}", flush=True)
                for sentence in found[:8]:
                    print(f"numerics: {case['id']}, {layout}, {precision}: {sentence}")
                if len(found) > 8:
                    print(f"numerics: {case['id']}, {layout}, {precision}: {len(found) - 8} more")
    print(f"numerics: runs {n}, matched {matched}, skipped {skipped}")
    return 77 if n == 0 else 0 if matched == n else 1


if __name__ == "__main__":
    sys.exit(main())
