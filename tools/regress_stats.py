"""Numbers of tools/regress: pure functions from measured and predicted steps to what is said about them."""

import itertools
import random
import statistics

SEED = 20261121  # of the bootstrap: the same numbers give the same interval
DRAWS = 2000
STRATA = ("known", "inside", "extrapolated")  # from what was measured to what was not
MEMORY_SHARE, MEMORY_BYTES = 0.005, 64 << 20  # a rank's total memory may be off by the larger of the two


# ---- one plan ----


def mad(x):
    """Median distance from the median."""
    middle = statistics.median(x)
    return statistics.median(abs(v - middle) for v in x)


def cv(x):
    """Sample standard deviation over mean; None of fewer than two."""
    return statistics.stdev(x) / statistics.mean(x) if len(x) > 1 else None


def bootstrap(x, level=0.95, draws=DRAWS, seed=SEED):
    """Interval of the median: quantiles of the medians of samples drawn with replacement (Efron, Ann. Statist. 7, 1979)."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(x, k=len(x))) for _ in range(draws))
    tail = (1 - level) / 2
    return medians[round(tail * (draws - 1))], medians[round((1 - tail) * (draws - 1))]


def apart(medians):
    """Largest relative difference between the medians of a plan's launches; None of one launch."""
    return max(medians) / min(medians) - 1 if len(medians) > 1 else None


def of_launches(launches):
    """What the step times of all launches of one plan say. The variation is that inside a launch, of the worst."""
    steps = [s for launch in launches for s in launch]
    medians = [statistics.median(launch) for launch in launches]
    low, high = bootstrap(steps)
    return {
        "measured_s": statistics.median(steps),
        "launches_s": medians,
        "launches_apart": apart(medians),
        "mad_s": mad(steps),
        "low_s": low,
        "high_s": high,
        "cv": max((c for c in map(cv, launches) if c is not None), default=None),
    }


def stratum(shapes):
    """How far the profile carries a prediction: `shapes` counts distinct prices as `tandem predict` does."""
    return "extrapolated" if shapes["outside"] else "inside" if shapes["inside"] else "known"


def flags(row, cv_flag):
    """Words for what makes a measurement doubtful. Nothing is dropped for it."""
    found = []
    if cv_flag is not None and row["cv"] is not None and row["cv"] > cv_flag:
        found.append(f"steps vary by {100 * row['cv']:.2f} % (CV), {100 * cv_flag:g} % expected")
    if row["steady"] is False:
        found.append("the warm-up ended without steady steps")
    return found


def flops_step(flops, peak, bubble):
    """The step of a planner without costs: the busiest rank at its peak, and the pipeline's bubble (p-1)/(m+p-1) on top."""
    return max(flops) / peak / (1 - bubble)


def memory(predicted, measured, beside):
    """
    Bytes of ranks, None where a side tells none, and what each holds beside its arena: is the arena exact, and does the
    total (arena predicted, CUDA's context and NCCL as told) come near what the device says is in use?
    """
    both = [(p, m) for p, m in zip(predicted, measured) if p is not None and m is not None]
    total = [
        (p + b["context_bytes"] + b["nccl_bytes"] - b["all_bytes"], b["all_bytes"])
        for p, b in zip(predicted, beside)
        if p is not None and b is not None
    ]
    return {
        "arena_exact": all(p == m for p, m in both) if both else None,
        "memory_off_bytes": max((d for d, _ in total), key=abs, default=None),
        "memory_total_ok": all(abs(d) <= max(MEMORY_SHARE * all_, MEMORY_BYTES) for d, all_ in total) if total else None,
    }


# ---- all plans ----


def noise_floor(rows):
    """The largest difference between launches of one plan: below it an order of two plans is not known. None of one launch each."""
    return max((r["launches_apart"] for r in rows if r["launches_apart"] is not None), default=None)


def scale_of(guesses, truths):
    """The constant c that makes c * guess fit best: least squares of the relative errors c * g / t - 1."""
    ratios = [g / t for g, t in zip(guesses, truths)]
    return sum(ratios) / sum(r * r for r in ratios)


def ranking(rows, guess, noise):
    """
    Pairs of one group whose measured steps are further apart than the noise floor: are they guessed in the right order?
    `rows`: name -> row with `group`, `measured_s` and the key `guess`. Equal guesses are no order.
    """
    right, wrong, close = 0, [], 0
    for (a, x), (b, y) in itertools.combinations(rows.items(), 2):
        if x["group"] is None or x["group"] != y["group"]:
            continue
        if apart([x["measured_s"], y["measured_s"]]) <= (noise or 0):
            close += 1
        elif (x[guess] - y[guess]) * (x["measured_s"] - y["measured_s"]) > 0:
            right += 1
        else:
            wrong.append([a, b])
    return {"pairs": right + len(wrong), "right": right, "close": close, "wrong": wrong}


def mean(x):
    return statistics.mean(x) if x else None


def summary(rows):
    """Of one stratum, or all: errors of the step (relative) and of the bubble fraction (a share), memory."""
    errors = [abs(r["rel_error"]) for r in rows]
    bubbles = [abs(r["bubble_error"]) for r in rows]
    count = lambda key, value: sum(r[key] is value for r in rows)
    return {
        "n": len(rows),
        "mean_error": mean(errors),
        "worst_error": max(errors, default=None),
        "mean_bubble_error": mean(bubbles),
        "worst_bubble_error": max(bubbles, default=None),
        "arena_exact": count("arena_exact", True),
        "arena_wrong": count("arena_exact", False),
        "memory_total_ok": count("memory_total_ok", True),
        "memory_total_wrong": count("memory_total_ok", False),
    }


def accuracy(rows):
    """The report's numbers. `rows`: name -> row; those with a problem are counted and told, not averaged."""
    done = {n: r for n, r in rows.items() if not r.get("problem")}
    noise = noise_floor(done.values())
    scale = scale_of([r["flops_s"] for r in done.values()], [r["measured_s"] for r in done.values()]) if done else None
    for r in done.values():
        r["baseline_error"] = scale * r["flops_s"] / r["measured_s"] - 1
    off = [abs(r["baseline_error"]) for r in done.values()]
    strata = {s: summary([r for r in done.values() if r["stratum"] == s]) for s in STRATA}
    return {
        "noise_floor": noise,
        "problems": len(rows) - len(done),
        "strata": {**{s: v for s, v in strata.items() if v["n"]}, "all": summary(list(done.values()))},
        "ranking": ranking(done, "predicted_s", noise),
        "baseline": {
            "scale": scale,
            "mean_error": mean(off),
            "worst_error": max(off, default=None),
            "ranking": ranking(done, "flops_s", noise),
        },
    }
