"""What tools/regress asks of the command: launches of plans, measurements that were kept, and a plan's row of both."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import regress_stats as stats

ROOT = Path(__file__).resolve().parent.parent
TANDEM = os.environ.get("TANDEM", str(ROOT / "build/release/tandem"))
CAUSES = 4  # that a row names


class Problem(Exception):
    """A plan cannot be examined; the text says why."""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def ask(*arguments, answers=(0,)):
    """What the command prints as JSON. compare exits with 1 if the error is beyond its tolerance: an answer all the same."""
    done = subprocess.run([TANDEM, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in answers:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        raise Problem(f"tandem {arguments[0]}: {lines[-1].removeprefix('tandem: ')}")
    return json.loads(done.stdout) if done.stdout.strip() else None


# ---- launches ----


def run(plan, on, suite, trace):
    """One launch: the measured trace and the numbers of the run; Problem unless every step was done and trained."""
    r = ask("run", plan, "--on", on, "--steps", suite["steps"], "--warmup", suite["warmup"], "-o", trace, "--quiet", "--json")
    steps = r["steps"]
    if len(steps) != suite["steps"]:
        raise Problem(f"{len(steps)} of {suite['steps']} steps were reported")
    if not all(s["success"] and math.isfinite(s["loss"]) and math.isfinite(s["grad_norm"]) for s in steps):
        raise Problem("a step was skipped, or its loss or gradient norm is not finite")
    return r


def order(items, suite):
    """Which plan is launched when: all once, all again, and last those that fix the noise floor once more."""
    rounds = [item for _ in range(suite.get("launches", 1)) for item in items]
    return rounds + [item for item in items if item["name"] in suite.get("repeat", [])]


def launch_all(items, on, suite, out, keep, machine):
    """
    Launches every plan as often as the suite says, in rounds, so that a drift of the machine shows between launches. Each
    item gets `trace` (of its first launch) and `runs`, or `problem`. What is kept is written after each launch.
    """
    for item in items:
        item.update(trace=out / f"{item['name']}.{on}.json.gz", runs=[])
    for item in order(items, suite):
        if item.get("problem"):
            continue
        again = bool(item["runs"])
        say(f"running {item['name']}" + (f", launch {len(item['runs']) + 1}" if again else ""))
        trace = out / f"{item['name']}.{on}.again.json.gz" if again else item["trace"]
        try:
            item["runs"].append(run(item["plan"], on, suite, trace))
        except Problem as problem:
            item["problem"] = str(problem)
        else:
            if keep:
                keep_item(item, keep, machine)
        if again:
            trace.unlink(missing_ok=True)


# ---- what is kept ----


def without_arrays(answer):
    """A run's answer without what grows with its length on every rank: clocks, twenty samples a second."""
    return answer | {"ranks": [{k: v for k, v in rank.items() if not isinstance(v, list)} for rank in answer["ranks"]]}


def keep_item(item, keep, machine):
    """NAME.json.gz, the trace of the first launch, and NAME.run.json, the answers of all."""
    if len(item["runs"]) == 1:
        shutil.copyfile(item["trace"], keep / f"{item['name']}.json.gz")
    whole = {"plan": item["name"], "machine": machine, "launches": [without_arrays(r) for r in item["runs"]]}
    (keep / f"{item['name']}.run.json").write_text(json.dumps(whole, indent=1) + "\n")


def read_kept(items, source):
    """From one folder, or each item's own: gives each its kept trace and answers (none: the trace's steps are all there is). Machines that the answers name."""
    machines = set()
    for item in items:
        folder = source or item["kept"]
        answers = folder / f"{item['name']}.run.json"
        item.update(trace=folder / f"{item['name']}.json.gz", runs=[])
        if answers.exists():
            whole = json.loads(answers.read_text())
            item["runs"] = whole["launches"]
            machines.add(whole["machine"])
    return machines


def metadata(trace):
    """Of a trace of this project, whose events begin on a line of their own."""
    head = []
    with (gzip.open if trace.suffix == ".gz" else open)(trace, "rt") as file:
        for line in file:
            if line.startswith('"traceEvents"'):
                break
            head.append(line)
    return json.loads("".join(head).rstrip().rstrip(",") + "}")["metadata"]


def beside_arena(item, world):
    """What each rank's device holds beside its arena: of the first launch, or of the trace; None where it is not told."""
    if item["runs"]:
        return [r.get("beside_arena") for r in item["runs"][0]["ranks"]]
    told = metadata(item["trace"])
    return [json.loads(told[f"beside_arena.{r}"]) if f"beside_arena.{r}" in told else None for r in range(world)]


# ---- one plan ----


def predict(plan, trace, profile):
    extra = ["--profile", profile] if profile else []
    return ask("predict", plan, *extra, "-o", trace, "--json")


def peak(rows, key):
    known = [r[key] for r in rows or [] if r.get(key)]
    return max(known) if known else None


def steady(runs):
    """Did every warm-up without a count end steady? None if all were counted, or nothing is known of them."""
    said = [s for s in ((r.get("warmup") or {}).get("steady") for r in runs) if s is not None]
    return all(said) if said else None


def memory(item, p, c):
    if not c["memory"]:
        return stats.memory([], [], [])
    predicted, measured = ([r[side] for r in c["memory"]] for side in ("predicted", "measured"))
    return stats.memory(predicted, measured, beside_arena(item, len(p["ranks"])))


def causes(c):
    """What compare names: the largest differences on the critical path, and of why compute stands still."""
    path = [{"what": a["what"], "seconds": a["difference_s"]} for a in c["attribution"] if a["difference_s"]]
    still = [
        {"what": cause, "seconds": c["bubbles"]["measured"][cause] - c["bubbles"]["predicted"][cause]}
        for cause in c["bubbles"]["measured"]
    ]
    still = sorted((s for s in still if s["seconds"]), key=lambda s: -abs(s["seconds"]))
    return {"path": path[:CAUSES], "still": still[:CAUSES]}


def examine(item, predicted, profile, suite):
    """The row of one plan that was measured: `item` has its trace and the answers of its launches."""
    p = predict(item["plan"], predicted, profile)
    c = ask("compare", predicted, item["trace"], "--json", answers=(0, 1))  # also proves that every op of every step is there
    runs, kinds, bubble = item["runs"], c["by_kind"], c["bubble_fraction"]
    launches = [[s["step_s"] for s in r["steps"]] for r in runs] or [c["step_s"]["measured_each"]]
    row = stats.of_launches(launches)
    row |= {
        "digest": c["digest"],
        "predicted_s": c["step_s"]["predicted"],
        "rel_error": c["step_s"]["predicted"] / row["measured_s"] - 1,
        "noise": c["step_s"]["noise"],
        "bubble_predicted": bubble["predicted"],
        "bubble_measured": bubble["measured"],
        "bubble_error": bubble["predicted"] - bubble["measured"],
        "kinds_error": sum(abs(k["predicted_s"] - k["measured_s"]) for k in kinds) / sum(k["measured_s"] for k in kinds),
        "memory_predicted_bytes": peak(p["ranks"], "peak_memory_bytes"),
        "memory_measured_bytes": peak(c["memory"], "measured") or peak(runs[0]["ranks"] if runs else None, "peak_memory_bytes"),
        "steps": sum(map(len, launches)),
        "loss": runs[0]["steps"][-1]["loss"] if runs else None,
        "profile": p["profile"]["name"],
        "trust": p["profile"]["trust"],
        "steady": steady(runs),
        "warmup_s": [(r.get("warmup") or {}).get("seconds") for r in runs],
        "shapes": p["shapes"],
        "stratum": stats.stratum(p["shapes"]),
        "flops_s": stats.flops_step(
            [r["flops"] for r in p["ranks"]],
            p["profile"]["peak_flops_per_s"],
            ask("check", item["plan"], "--json", answers=(0, 1))["bubble_estimate"],
        ),
        "group": item.get("group"),
        "verdict": c["summary"],
        "causes": causes(c),
        "versions": c["versions"],
        "kinds": {k["kind"]: {x: k[x] for x in ("predicted_s", "measured_s", "rel_error", "count")} for k in kinds},
    }
    row |= memory(item, p, c)
    return row | {"flags": stats.flags(row, suite.get("cv_flag"))}
