"""oracle_through_the_command.py TANDEM: the vectors observed by running the reference, asked of the command itself.

Every case that can be written as a plan becomes one. `show --json` must then give the process groups of grids.json and the
events of schedule.json, `check --json` the verdicts of validation.json and the deadlock verdict of schedule.json. Prints a
line per file, and why cases are skipped. TANDEM_ORACLE names another folder of the same schema.
"""
import collections
import json
import math
import os
import subprocess
import sys
import tempfile

AXES = ("tp", "cp", "pp", "dp", "ep", "etp")
ORDERS = {"pp_outer": ["tp", "cp", "dp", "pp"], "dp_outer": ["tp", "cp", "pp", "dp"]}
GPU = {"name": "NVIDIA H200", "memory_gib": 140}
NODE = {"gpus": 8, "gpu": GPU, "cores": 8, "nvlink_gb_s": 450, "nvlink_latency_us": 2}
NODE |= {"nics": 8, "nic_gb_s": 50, "nic_latency_us": 2}


class Skip(Exception):
    """Why a case cannot be written as a plan."""


def ranks_of(sizes):
    return math.prod(sizes.get(axis, 1) for axis in ("tp", "cp", "pp", "dp"))


def module(name, sizes):
    """A module small enough for any layout: every width divides by every parallel size."""
    parallel = {axis: sizes[axis] for axis in AXES if axis in sizes} | {"offset": sizes.get("rank_offset", 0)}
    tp, pp, cp = (max(abs(sizes.get(axis, 1)), 1) for axis in ("tp", "pp", "cp"))
    text = {"layers": pp, "hidden": 8 * tp, "heads": tp, "ffn": 16 * tp, "seq": 4 * cp, "parallel": parallel}
    if name == "language":
        return {"type": "language", **text, "seq": 240 * cp, "vocab": 32 * tp}
    return {"type": "audio" if name == "audio" else "vision", **text, "input_dim": 8}


def plan_of(case, modules, order, micro_batch=1, microbatches=1):
    world = max(m.get("rank_offset", 0) + max(ranks_of(m), 1) for m in modules.values())
    edges = [[src, dest] for src, all_dest in case.get("topology", {}).items() for dest in all_dest]
    plan = {
        "name": case["id"],
        "cluster": {"groups": [{"count": (max(world, 1) + 7) // 8, "node": NODE}], "fabric": {"kind": "rail"}},
        "rank_order": order,
        "modules": {name: module(name, sizes) for name, sizes in modules.items()},
        "step": {"microbatches": microbatches, "micro_batch": micro_batch},
    }
    return plan | ({"edges": edges} if edges else {})


class Command:
    def __init__(self, program, folder):
        self.program, self.path = program, os.path.join(folder, "plan.json")

    def __call__(self, command, plan, *codes):
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(plan, file)
        done = subprocess.run(
            [self.program, command, self.path, "--json"], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode not in codes:
            raise RuntimeError(f"tandem {command}: exit {done.returncode}: {done.stderr}{done.stdout[:300]}")
        return json.loads(done.stdout)


def differences(where, expected, got):
    """The places at which two JSON values differ."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            yield from differences(f"{where}.{key}", expected.get(key), got.get(key))
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for i, (one, other) in enumerate(zip(expected, got)):
            yield from differences(f"{where}[{i}]", one, other)
    elif expected != got:
        yield f"{where}: expected {json.dumps(expected)[:200]}, got {json.dumps(got)[:200]}"


def grids(case, command):
    if case["layout"] not in ORDERS:
        raise Skip(f"layout {case['layout']}")
    if case["result"] != "ok":
        raise Skip("grids that a plan cannot give")
    base = dict(zip(case["base"]["dim_names"], case["base"]["shape"]))
    expert = dict(zip(case["expert"]["dim_names"], case["expert"]["shape"]))
    sizes = base | {"ep": expert["ep"], "etp": expert["expt_tp"], "rank_offset": case["rank_offset"]}
    got = command("show", plan_of(case, {"language": sizes}, ORDERS[case["layout"]]), 0)["modules"]["language"]
    yield from differences("groups", case["groups"], {name: got["groups"].get(name) for name in case["groups"]})
    yield from differences("ranks", case["size"], got["ranks"])
    yield from differences("members", case["members"], sorted(sum(got["groups"]["tp"], [])))


def comparable(events):
    """Without the window of recomputed microbatches, which no plan asks for, and the count of the reference's toy tokens."""
    return [{key: value for key, value in event.items() if key not in ("recompute", "num_tokens")} for event in events]


def buffering(case, command, plan):
    """`check` warns of a deadlock, with its cycle, exactly where the reference met one."""
    warnings = {w["rule"]: w["message"] for w in command("check", plan, 0)["warnings"]}
    needs = [rule for rule, verdict in case["progress"].items() if verdict == "completes"][:1]
    if ("needs_buffering" in warnings) != (needs != ["synchronous_sends"]):
        yield f"progress: expected {case['progress']}, got {warnings}"
    elif needs != ["synchronous_sends"] and needs[0] not in warnings["needs_buffering"]:
        yield f"progress: expected {needs[0]} in {warnings['needs_buffering']!r}"


def schedule(case, command):
    if case["result"] != "ok":
        raise Skip("graphs that a plan cannot have")
    if case["forward_only"]:
        raise Skip("forward only")
    if case["explicit_grad_sync"]:
        raise Skip("a callback that launches the reduction")
    if case["layout"] not in ORDERS:
        raise Skip(f"layout {case['layout']}")
    modules = {name: case["modules"][name] for name in case["module_order"]}
    spans = sorted((m["rank_offset"], m["rank_offset"] + ranks_of(m)) for m in modules.values())
    if any(second[0] < first[1] for first, second in zip(spans, spans[1:])):
        raise Skip("modules that share ranks")
    samples = case["global_microbatch"]
    if any(samples % m["dp"] for m in modules.values()):
        raise Skip("lanes without a whole sample")
    micro_batch = samples // modules["language"]["dp"]
    plan = plan_of(case, modules, ORDERS[case["layout"]], micro_batch, case["num_microbatches"])
    got = command("show", plan, 0)
    yield from differences("total_stages", case["total_stages"], got["total_stages"])
    for expected, rank in zip(case["ranks"], got["ranks"]):
        for key in ("rank", "modules", "stage", "warmup", "is_first", "is_last"):
            yield from differences(f"rank {expected['rank']} {key}", expected[key], rank[key])
        where = f"rank {expected['rank']} events"
        yield from differences(where, comparable(expected["events"]), comparable(rank["events"]))
    yield from buffering(case, command, plan)


def validation(case, command):
    if case["kind"] != "parallelism":
        raise Skip(case["kind"])
    got = command("check", plan_of(case, case["modules"], ORDERS["pp_outer"]), 0, 1)["rulesets"]
    for name, expected in case["rulesets"].items():
        ends = [
            m.get("rank_offset", 0) + ranks_of(m) * (m.get("etp", 1) if name == "phase2" else 1)
            for m in case["modules"].values()
        ]
        judged_alone = any(m.get("dp", 0) <= 0 or m.get("tp", 1) <= 0 for m in case["modules"].values())
        if case["world_size"] != max(ends) and not judged_alone:
            continue  # a plan is judged in a world of its own size
        wanted = {"status": expected["status"], "rule": expected.get("rule"), "warnings": expected.get("warnings", [])}
        yield from differences(name, wanted, got[name])


def main():
    folder = os.environ.get("TANDEM_ORACLE") or os.path.join(os.path.dirname(__file__), "..", "oracle")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        command = Command(sys.argv[1], scratch)
        for run in (grids, schedule, validation):
            with open(os.path.join(folder, f"{run.__name__}.json"), encoding="utf-8") as file:
                cases = json.load(file)["cases"]
            matched, skipped = 0, collections.Counter()
            for case in cases:
                try:
                    found = list(run(case, command))
                except Skip as why:
                    skipped[str(why)] += 1
                    continue
                except RuntimeError as error:
                    found = [str(error)]
                matched += not found
                for text in found[:5]:
                    print(f"{case['id']}: {text}")
            reasons = ", ".join(f"{why}: {count}" for why, count in skipped.items())
            print(f"{run.__name__}: cases {len(cases)}, matched {matched}, skipped {skipped.total()} ({reasons})")
            failed = failed or matched == 0 or matched + skipped.total() != len(cases)
    sys.exit(failed)


main()
