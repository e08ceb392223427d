#!/usr/bin/env python3
"""shares.py TRACE FINE [--json]: where the step's time goes, from a trace of parents and one of parts of the same plan.

For every rank the share of the median step that each class of work takes, and what stands still. Parts are measured
with a stamp between them (`--trace fine`), so a class is its share of the fine pass times the pass as it ran without stamps.
"""
import collections
import gzip
import json
import statistics
import sys


def load(path):
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def steps_of(trace):
    """{step: {rank: [event]}}, ops before their parts."""
    steps = collections.defaultdict(lambda: collections.defaultdict(list))
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and "op" in event["args"]:
            steps[event["args"]["step"]][event["pid"]].append(event)
    return steps


def is_part(event):
    return event["args"].get("part", -1) is not None and event["args"].get("part", -1) >= 0


def part_shares(fine):
    """(rank, kind of pass) -> {class: share of the pass}."""
    sums = collections.defaultdict(collections.Counter)
    for ranks in steps_of(fine).values():
        for rank, events in ranks.items():
            parents = {e["args"]["op"]: e["args"]["kind"] for e in events if not is_part(e)}
            for e in events:
                if is_part(e):
                    key = e["args"]["kind"]
                    if key == "gemm":
                        key += " " + e["name"].split()[-1]
                    sums[rank, parents[e["args"]["op"]]][key] += e["dur"]
    return {key: {c: t / sum(counts.values()) for c, t in counts.items()} for key, counts in sums.items()}


def main():
    plain, fine = load(sys.argv[1]), load(sys.argv[2])
    shares = part_shares(fine)
    steps = steps_of(plain)
    ends = {s: max(e["ts"] + e["dur"] for events in ranks.values() for e in events) for s, ranks in steps.items()}
    lengths = {s: ends[s] - ends[s - 1] for s in ends if s - 1 in ends}
    middle = statistics.median_low(lengths.values())
    step = next(s for s, length in lengths.items() if length == middle)
    answer = {"plan": plain["metadata"]["plan"], "step_s": middle * 1e-6, "ranks": {}}
    for rank, events in sorted(steps[step].items()):
        classes = collections.Counter()
        busy = 0
        for e in events:
            if is_part(e) or e["tid"] != 0:
                continue
            busy += e["dur"]
            for name, share in shares.get((rank, e["args"]["kind"]), {e["args"]["kind"]: 1}).items():
                classes[name] += e["dur"] * share
        classes["compute lane stands still"] = middle - busy
        answer["ranks"][rank] = {name: t / middle for name, t in classes.most_common()}
    if "--json" in sys.argv:
        json.dump(answer, sys.stdout)
        return
    ranks = list(answer["ranks"])
    print(f"{answer['plan']}: {answer['step_s']:.4f} s; percent of the step on each rank")
    names = collections.Counter()
    for r in ranks:
        names.update(answer["ranks"][r])
    print(f"{'':28}" + "".join(f"{'rank ' + str(r):>9}" for r in ranks))
    for name, _ in names.most_common():
        print(f"{name:28}" + "".join(f"{100 * answer['ranks'][r].get(name, 0):9.1f}" for r in ranks))


if __name__ == "__main__":
    main()
