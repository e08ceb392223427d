#!/usr/bin/env python3
"""layouts.py TANDEM [NAME...]: `host` with any layout gives the numbers of the layout with every parallel size 1.

Losses, norms, clip coefficients and the checksums of every parameter, after several steps; for some layouts also that a
second run is equal to the last bit. A layout is `module:tp.pp.dp` words (language as `language`), options of the step or
the optimizer, `idle:N` leading idle ranks, `twice` for the second run, `buffered` for a step that needs buffered sends.
Sizes not named are 1.
"""
import sys

import step

VISION = dict(type="vision", layers=3, hidden=32, heads=4, ffn=48, seq=8, input_dim=12)
AUDIO = dict(type="audio", layers=2, hidden=24, heads=4, ffn=32, seq=4, input_dim=6)
LANGUAGE = dict(type="language", layers=4, hidden=32, heads=8, ffn=64, vocab=64, seq=20)

# name: modules, samples of a step, optimizer
MODELS = {
    "language": (dict(language=LANGUAGE), 8, {}),
    "grouped": (dict(language=dict(LANGUAGE, kv_heads=2, head_dim=8)), 8, {}),
    "vlm": (dict(images=VISION, language=LANGUAGE), 8, {}),
    "crossed_mlp": (dict(images=dict(VISION, mlp="swiglu", head_dim=12, kv_heads=2),
                         language=dict(LANGUAGE, mlp="gelu", head_dim=6)), 8, dict(clip_grad=0)),
    "one_kv_head": (dict(images=dict(VISION, kv_heads=1), language=dict(LANGUAGE, kv_heads=1)), 8, {}),
    "three": (dict(images=VISION, sounds=AUDIO, language=LANGUAGE), 8, {}),
    "first_frozen": (dict(images=dict(VISION, frozen=True), sounds=AUDIO, language=LANGUAGE), 8, {}),
    "backbones_frozen": (dict(images=dict(VISION, frozen="backbone"), sounds=dict(AUDIO, frozen="backbone"),
                              language=dict(LANGUAGE, frozen=True)), 8, {}),
    "language_frozen": (dict(images=VISION, language=dict(LANGUAGE, frozen=True)), 8, {}),
    "encoders_frozen": (dict(images=dict(VISION, frozen=True), language=LANGUAGE), 8, {}),
    "large_vocabulary": (dict(language=dict(LANGUAGE, layers=2, vocab=49152)), 2, {}),
}

LAYOUTS = [
    ("language", "language:2.1.1 twice"),
    ("language", "language:4.1.1 sequence_parallel:true recompute:full"),
    ("language", "language:2.2.2 stage_layers:3,1 sequence_parallel:true twice"),
    ("language", "language:1.4.1 microbatches:8 shape_exchange:false"),
    ("language", "language:1.3.1 stage_layers:2,1,1 microbatches:1"),
    ("language", "language:1.1.4 sharded:false grad_overlap:false idle:2"),
    ("language", "language:1.2.4 bucket_elements:1 bucket_policy:reference microbatches:2 order:pp"),
    ("language", "language:2.2.2 order:pp recompute:selective sharded:false"),
    ("grouped", "language:4.1.1"),
    ("grouped", "language:4.2.1 sequence_parallel:true recompute:selective"),
    ("one_kv_head", "images:4.1.1 language:4.1.1"),
    ("one_kv_head", "images:2.3.1 language:2.1.1 sequence_parallel:true sharded:false"),
    ("vlm", "images:1.1.1 language:1.1.4"),
    ("vlm", "images:1.1.4 language:1.1.1 micro_batch:4"),
    ("vlm", "images:2.1.2 language:2.2.1 micro_batch:2 sequence_parallel:true twice"),
    ("vlm", "images:1.3.1 language:2.1.2 recompute:full"),
    ("vlm", "images:2.1.1 language:1.2.2 stage_layers:1,3 order:pp grad_overlap:false"),
    ("vlm", "images:4.1.1 language:1.1.1 sequence_parallel:true microbatches:1 idle:1"),
    ("vlm", "language:2.1.1 images:1.2.1 stage_layers:images=1,2"),
    ("crossed_mlp", "images:2.1.1 language:4.1.1 sequence_parallel:true recompute:full"),
    ("crossed_mlp", "images:1.3.1 language:2.2.1 recompute:selective"),
    ("three", "images:2.1.1 sounds:1.2.1 language:1.2.1"),
    ("three", "images:1.1.2 sounds:1.1.4 language:1.1.2 micro_batch:2"),
    ("three", "images:1.1.1 sounds:2.1.2 language:2.1.2 sequence_parallel:true"),
    ("first_frozen", "images:2.1.1 sounds:2.2.1 language:2.1.1 sequence_parallel:true"),
    ("first_frozen", "images:1.3.1 sounds:1.1.2 language:1.1.2 sharded:false buffered"),
    ("backbones_frozen", "images:2.3.1 sounds:1.1.1 language:1.1.1 buffered"),
    ("backbones_frozen", "images:1.1.2 sounds:2.2.1 language:2.2.1 sequence_parallel:true recompute:full"),
    ("language_frozen", "images:1.3.1 language:2.2.1 sequence_parallel:true"),
    ("language_frozen", "images:1.1.2 language:1.2.2 recompute:selective"),
    ("encoders_frozen", "images:2.2.1 language:1.2.2 order:pp stage_layers:images=1,2"),
    ("large_vocabulary", "language:1.2.2 bucket_elements:1 microbatches:1"),
    ("large_vocabulary", "language:1.1.1 bucket_elements:1 twice"),
]

STEPS = 3


def value(text):
    return {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)


def plan_of(model, layout):
    """A plan without a cluster. Modules take their ranks in the order the layout names them."""
    modules, samples, optimizer = MODELS[model]
    plan = dict(name=model, modules={name: dict(sizes, parallel=dict(dp=1)) for name, sizes in modules.items()},
                step={}, optimizer=dict(lr=1e-3, **optimizer), precision="fp32", seed=7)
    parallel = {name: dict(tp=1, pp=1, dp=1) for name in modules}
    offset = 0
    order = []
    for word in layout.split():
        key, _, text = word.partition(":")
        if key in modules:
            parallel[key] = dict(zip(("tp", "pp", "dp"), map(int, text.split("."))))
            order.append(key)
        elif key == "stage_layers":
            name, _, layers = text.rpartition("=")
            plan["modules"][name or "language"]["parallel"]["stage_layers"] = [int(n) for n in layers.split(",")]
        elif key == "idle":
            offset = int(text)
        elif key == "order":
            plan["rank_order"] = ["tp", "cp", "pp", "dp"]
        elif key == "sharded":
            plan["optimizer"][key] = value(text)
        elif key not in ("twice", "buffered"):
            plan["step"][key] = value(text)
    for name in order + [m for m in modules if m not in order]:
        plan["modules"][name]["parallel"].update(parallel[name], offset=offset)
        offset += parallel[name]["tp"] * parallel[name]["pp"] * parallel[name]["dp"]
    lanes = parallel["language"]["dp"]
    if "microbatches" in plan["step"]:
        plan["step"]["micro_batch"] = samples // lanes // plan["step"]["microbatches"]
    else:
        plan["step"].setdefault("micro_batch", max(1, max(p["dp"] for p in parallel.values()) // lanes))
        plan["step"]["microbatches"] = samples // lanes // plan["step"]["micro_batch"]
    return plan


def same_bits(a, b):
    for one in a["steps"] + b["steps"]:
        del one["step_s"]
    return (a["steps"], a["tensors"]) == (b["steps"], b["tensors"])


def compare(tandem, model, layout, base):
    plan = plan_of(model, layout)
    words = ["--assume-buffered"] if "buffered" in layout else []
    try:
        got = step.run(tandem, plan, STEPS, *words)
        found = step.differences(got, base["steps"], base["tensors"])
        if "twice" in layout and not same_bits(got, step.run(tandem, plan, STEPS, *words)):
            found.append("a second run is not equal to the last bit")
    except step.Failed as failure:
        found = [str(failure)]
    return found


def frozen_parts(tandem):
    """A part that is frozen keeps its first values to the last bit; what trains does not notice in the first step."""
    first = step.run(tandem, plan_of("three", ""), 0)["tensors"]
    free = step.run(tandem, plan_of("three", ""), 1)["steps"][0]["module_norms"]
    found = []
    for model in ("first_frozen", "backbones_frozen", "language_frozen", "encoders_frozen"):
        modules = MODELS[model][0]
        got = step.run(tandem, plan_of(model, "language:1.2.1"), 1)
        for name, sums in got["tensors"].items():
            frozen = modules[name.split(".")[0]].get("frozen", False)
            frozen = frozen is True or (frozen == "backbone" and ".projector." not in name)
            if (sums == first[name]) != frozen:
                found.append(f"frozen: {model}: {name} {'trained' if frozen else 'did not train'}")
        for name, norm in got["steps"][0]["module_norms"].items():
            frozen = modules[name].get("frozen", False)
            if (norm == 0) != (frozen is True):
                found.append(f"frozen: {model}: the norm of {name} is {norm}")
            if not frozen and modules.keys() == MODELS["three"][0].keys():
                found += step.far(f"frozen: {model}: norm of {name}", norm, free[name], step.NORM)
    return found


def main():
    tandem, only = sys.argv[1], sys.argv[2:]
    bases, matched, chosen = {}, 0, [c for c in LAYOUTS if not only or c[0] in only]
    for model, layout in chosen:
        if model not in bases:
            bases[model] = step.run(tandem, plan_of(model, ""), STEPS)
        found = compare(tandem, model, layout, bases[model])
        matched += not found
        for sentence in found[:6]:
            print(f"layouts: {model}, {layout}: {sentence}")
        if len(found) > 6:
            print(f"layouts: {model}, {layout}: {len(found) - 6} more")
    frozen = [] if only else frozen_parts(tandem)
    for sentence in frozen:
        print(f"layouts: {sentence}")
    print(f"layouts: cases {len(chosen)}, matched {matched}, skipped 0")
    return 0 if chosen and matched == len(chosen) and not frozen else 1


if __name__ == "__main__":
    sys.exit(main())
