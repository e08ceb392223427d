"""fields.py check|show|predict|invalid PLAN <ANSWER: has a --json answer the documented fields, and do they agree?"""
import json
import re
import sys

import yaml

NUMBER = (int, float)
RULESETS = ("phase2", "april", "current", "core_layout", "communicator")
MEMORY = ("weights", "gradients", "optimizer", "activations", "buffers")
GROUPS = ("tp", "cp", "pp", "dp", "dp_cp", "tp_cp", "tp_dp_cp", "mp_tp_pp", "intra_dist_opt", "embd", "pos_embd")


def need(holds, text):
    if not holds:
        sys.exit(f"fields.py: {text}")


def field(where, name, kinds):
    need(name in where, f"`{name}` is missing among {sorted(where)}")
    value = where[name]
    need(isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)), f"`{name}` is {value!r}")
    return value


def message(entry):
    for name in ("path", "rule", "message"):
        field(entry, name, str)
    need(entry["message"] and re.fullmatch(r"[a-z0-9_]+", entry["rule"]), f"message {entry}")
    need(field(entry, "line", int) >= 0 and field(entry, "column", int) >= 0, f"place of {entry}")


def check(answer, valid):
    need(field(answer, "ok", bool) is valid, f"ok is {answer['ok']}")
    errors, warnings = field(answer, "errors", list), field(answer, "warnings", list)
    need(bool(errors) is not valid, f"errors are {errors}")
    for entry in errors + warnings:
        message(entry)
    modes = ("colocated", "non_colocated") if valid else ("colocated", "non_colocated", None)
    need(field(answer, "mode", (str, type(None))) in modes, f"mode {answer['mode']}")
    field(answer, "world_size", int if valid else (int, type(None)))
    rulesets = field(answer, "rulesets", dict)
    need(sorted(rulesets) == sorted(RULESETS), f"rulesets {sorted(rulesets)}")
    for name, verdict in rulesets.items():
        statuses = ("accepted", "accepted_with_warning", "rejected", "not_applicable")
        need(field(verdict, "status", str) in statuses, f"{name} says {verdict}")
        need(verdict["status"] != "rejected" or field(verdict, "rule", str), f"{name} rejects without a rule")
        field(verdict, "warnings", list)
    if not valid:
        need(all(entry["line"] > 0 for entry in errors), f"errors without a line: {errors}")
        return
    need(0 <= field(answer, "bubble_estimate", NUMBER) < 1, f"bubble_estimate {answer['bubble_estimate']}")
    ranks = field(answer, "ranks", list)
    need(len(ranks) == answer["world_size"], f"{len(ranks)} ranks in a world of {answer['world_size']}")
    for entry in ranks:
        memory = field(entry, "memory_bytes", dict)
        parts = [field(memory, name, int) for name in MEMORY]
        need(min(parts) >= 0 and sum(parts) == field(memory, "total", int), f"memory {memory}")
        need(memory["total"] <= field(memory, "capacity", int), f"memory {memory}")


def show(answer, plan):
    modules = field(answer, "modules", dict)
    need(list(modules) == list(plan["modules"]), f"modules {list(modules)}")
    for name, module in modules.items():
        sizes = {axis: field(module, axis, int) for axis in ("tp", "cp", "ep", "pp", "dp", "offset")}
        for axis in ("tp", "pp", "dp"):
            need(sizes[axis] == plan["modules"][name]["parallel"].get(axis, 1), f"{name}.{axis} is {sizes[axis]}")
        count = sizes["tp"] * sizes["cp"] * sizes["pp"] * sizes["dp"]
        members = list(range(sizes["offset"], sizes["offset"] + count))
        ranks = field(module, "ranks", (list, int))
        need(ranks in (members, count), f"{name}.ranks is {ranks}")
        groups = field(module, "groups", dict)
        for group in GROUPS:
            lists = field(groups, group, list)
            flat = [rank for ranks in lists for rank in ranks]
            need(len(flat) == len(set(flat)) and set(flat) <= set(members), f"{name}.groups.{group} is {lists}")
            need(group in ("embd", "pos_embd") or sorted(flat) == members, f"{name}.groups.{group} is {lists}")
    stages = field(answer, "total_stages", int)
    microbatches = plan["step"]["microbatches"]
    for index, entry in enumerate(field(answer, "ranks", list)):
        need(field(entry, "rank", int) == index, f"rank {entry['rank']} at {index}")
        stage, warmup = field(entry, "stage", int), field(entry, "warmup", int)
        need(warmup == min(stages - stage - 1, microbatches), f"rank {index}: warmup {warmup}")
        field(entry, "modules", list)
        field(entry, "is_first", bool)
        field(entry, "is_last", bool)
        events = field(entry, "events", list)
        for kind in ("forward", "backward"):
            done = [event["mb"] for event in events if event["e"] == kind]
            need(done in ([], list(range(microbatches))), f"rank {index}: {kind} {done}")
        need(events[-1]["e"] == "finalize_grads", f"rank {index} ends with {events[-1]}")
    need(re.fullmatch("[0-9a-f]{64}", field(answer, "digest", str)), f"digest {answer['digest']}")


def predict(answer, plan):
    step = field(answer, "step_s", NUMBER)
    for name in ("tokens_per_s", "flops_per_step", "mfu", "wall_s"):
        need(field(answer, name, NUMBER) > 0, f"{name} is {answer[name]}")
    need(step > 0 and answer["mfu"] < 1, f"step_s {step}, mfu {answer['mfu']}")
    need(0 <= field(answer, "bubble_fraction", NUMBER) < 1, f"bubble_fraction {answer['bubble_fraction']}")
    path = field(answer, "critical_path", dict)
    parts = [field(path, name, NUMBER) for name in ("compute_s", "transfer_s", "collective_s", "wait_s")]
    need(min(parts) >= 0 and abs(sum(parts) - step) <= 1e-6 * step, f"critical_path {path} in a step of {step}")
    interval = field(answer, "interval", dict)
    low, high = field(interval, "low", NUMBER), field(interval, "high", NUMBER)
    need(0 < low <= step <= high < 2 * step and interval["level"] == 0.9, f"interval {interval} of {step}")
    need(field(interval, "samples", int) >= 16 and field(interval, "basis", str), f"interval {interval}")
    need(field(interval, "method", str) in ("re-simulated", "linearised"), f"interval {interval}")
    shares = [field(entry, "share", NUMBER) for entry in field(answer, "sensitivity", list) if field(entry, "what", str)]
    need(abs(sum(shares) + path["wait_s"] / step - 1) <= 1e-5, f"sensitivities {answer['sensitivity']}")
    need(field(answer, "ops", int) > 0 and field(answer, "promoted_flows", int) >= 0, "ops or promoted_flows")
    shapes = field(answer, "shapes", dict)
    need(min(field(shapes, kind, int) for kind in ("known", "inside", "outside")) >= 0, f"shapes {shapes}")
    flops = sum(field(entry, "flops", NUMBER) for entry in field(answer, "ranks", list))
    need(1 - 1e-9 <= flops / answer["flops_per_step"] <= 1.001, f"ranks do {flops} of {answer['flops_per_step']} FLOPs")
    need(field(field(answer, "profile", dict), "peak_flops_per_s", NUMBER) > 1e12, f"profile {answer['profile']}")
    world = max(
        p.get("offset", 0) + p.get("tp", 1) * p.get("pp", 1) * p["dp"]
        for p in (module["parallel"] for module in plan["modules"].values())
    )
    ranks = field(answer, "ranks", list)
    need([entry["rank"] for entry in ranks] == list(range(world)), "ranks are not 0, 1, ...")
    for entry in ranks:
        for name in ("busy_s", "transfer_s", "collective_s", "bubble_s"):
            need(0 <= field(entry, name, NUMBER) <= step * (1 + 1e-9), f"rank {entry['rank']}: {name} {entry[name]}")
        total = sum(entry[name] for name in ("busy_s", "transfer_s", "collective_s", "bubble_s"))
        need(abs(total - step) <= 1e-6 * step, f"rank {entry['rank']}: {entry} in a step of {step}")
        need(field(entry, "peak_memory_bytes", int) > 0, f"rank {entry['rank']}: peak_memory_bytes")


def main():
    command, plan_file = sys.argv[1:]
    answer = json.load(sys.stdin)
    need(isinstance(answer, dict), "the answer is no object")
    with open(plan_file, encoding="utf-8") as file:
        plan = yaml.safe_load(file)
    if command in ("check", "invalid"):
        check(answer, command == "check")
    else:
        {"show": show, "predict": predict}[command](answer, plan)


main()
