"""What tools/regress leaves behind: tables on the terminal, CSV, JSON, and the accuracy report as a page of Markdown."""

import csv
import json

import regress_stats as stats

MIB = 1 << 20
COLUMNS = (
    "plan digest predicted_s measured_s rel_error noise bubble_predicted bubble_measured bubble_error kinds_error "
    "memory_predicted_bytes memory_measured_bytes arena_exact memory_total_ok memory_off_bytes steps loss profile trust problem "
    "stratum mad_s low_s high_s cv steady launches_apart launches_s flags"
).split()
OF_ACCURACY = ["group", "flops_s", "baseline_error"]


def percent(x, sign="+"):
    return "-" if x is None else f"{100 * x:{sign}.1f} %"


def points(x):
    return "-" if x is None else f"{100 * x:.1f}"


def milliseconds(x):
    return "-" if x is None else f"{1e3 * x:.1f} ms"


def yes(x):
    return {True: "yes", False: "NO", None: "-"}[x]


# ---- files ----


def cell(x):
    return "; ".join(map(str, x)) if isinstance(x, list) else x


def write_csv(rows, path, more=()):
    kinds = sorted({k for r in rows.values() for k in r.get("kinds", {})})
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *more, *(f"rel_error_{k}" for k in kinds)])
        for name, r in rows.items():
            cells = [name, *(cell(r.get(c)) for c in (*COLUMNS[1:], *more))]
            table.writerow(cells + [r.get("kinds", {}).get(k, {}).get("rel_error") for k in kinds])


def write_json(whole, path):
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def write(rows, here, out, on):
    write_csv(rows, out / f"regress-{on}.csv")
    write_json({"on": on, "machine": here, "noise_floor": floor(rows), "plans": rows}, out / f"regress-{on}.json")


def floor(rows):
    return stats.noise_floor([r for r in rows.values() if not r.get("problem")])


# ---- terminal ----


def show(rows, baseline):
    wide = max([len(n) for n in rows] + [4])
    print(f"{'plan':{wide}}  {'predicted':>10}  {'measured':>10}  {'error':>8}  {'was':>8}  {'noise':>6}  {'bubble p | m':>15}  {'kinds':>7}")
    for name, r in rows.items():
        if r.get("problem"):
            print(f"{name:{wide}}  {r['problem']}")
            continue
        was = (baseline or {"plans": {}})["plans"].get(name, {}).get("rel_error")
        bubbles = f"{percent(r['bubble_predicted'], '')} | {percent(r['bubble_measured'], '')}"
        print(
            f"{name:{wide}}  {milliseconds(r['predicted_s']):>10}  {milliseconds(r['measured_s']):>10}  {percent(r['rel_error']):>8}  "
            f"{percent(was):>8}  {percent(r['noise'], ''):>6}  {bubbles:>15}  {percent(r['kinds_error'], ''):>7}"
        )
    errors = [abs(r["rel_error"]) for r in rows.values() if r.get("rel_error") is not None]
    if errors:
        print(f"mean |error| of the step {percent(sum(errors) / len(errors), '')}, worst {percent(max(errors), '')}")


def doubts(rows):
    """Sentences for what was flagged, and for how far launches of one plan lie apart."""
    found = [f"{name}: {flag}" for name, r in rows.items() for flag in r.get("flags", [])]
    for name, r in rows.items():
        for v in r.get("versions", []):
            found.append(f"{name}: the profile was measured with {v['what']} {v['profile']}, this run with {v['measured']}")
    noise = floor(rows)
    if noise is not None:
        found.append(f"launches of one plan lie up to {100 * noise:.2f} % apart: the noise floor")
    return found


# ---- the accuracy report ----

PLAN_TITLES = ["plan", "stratum", "predicted", "measured (95 %)", "error", "bubble p / m", "arena exact", "memory total", "FLOPs only"]
STRATUM_TITLES = ["stratum", "plans", "mean error", "worst", "bubble, mean points", "worst", "arena exact", "memory total within"]


def plan_cells(name, r):
    if r.get("problem"):
        return [name, "-", r["problem"], *["-"] * (len(PLAN_TITLES) - 3)]
    total = yes(r["memory_total_ok"])
    if r["memory_off_bytes"] is not None:
        total += f" ({r['memory_off_bytes'] / MIB:+.0f} MiB)"
    return [
        name + (" *" if r["flags"] else ""),
        r["stratum"],
        milliseconds(r["predicted_s"]),
        f"{milliseconds(r['measured_s'])} ({1e3 * r['low_s']:.1f} to {1e3 * r['high_s']:.1f})",
        percent(r["rel_error"]),
        f"{percent(r['bubble_predicted'], '')} / {percent(r['bubble_measured'], '')}",
        yes(r["arena_exact"]),
        total,
        percent(r["baseline_error"]),
    ]


def stratum_cells(name, s):
    return [
        name,
        str(s["n"]),
        percent(s["mean_error"], ""),
        percent(s["worst_error"], ""),
        points(s["mean_bubble_error"]),
        points(s["worst_bubble_error"]),
        f"{s['arena_exact']} of {s['arena_exact'] + s['arena_wrong']}",
        f"{s['memory_total_ok']} of {s['memory_total_ok'] + s['memory_total_wrong']}",
    ]


def columns(titles, table):
    """Lines of a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [titles, *table]) for i in range(len(titles))]
    for row in [titles, *table]:
        yield "  ".join(f"{c:{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths))).rstrip()


def markdown(titles, table):
    escape = lambda c: c.replace("|", "\\|")
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in table:
        yield "| " + " | ".join(map(escape, row)) + " |"


def ranked(r):
    text = f"{r['right']} of {r['pairs']} pairs in the right order"
    return text + (f" (wrong: {', '.join(' / '.join(pair) for pair in r['wrong'])})" if r["wrong"] else "")


def sentences(report):
    """What the numbers say, beside the tables."""
    noise, base = report["noise_floor"], report["baseline"]
    yield "Noise floor: " + (
        "not known, every plan was launched once." if noise is None else f"launches of one plan lie up to {100 * noise:.2f} % apart."
    )
    close = report["ranking"]["close"]
    yield f"Ranking within groups of equal model and batch: tandem has {ranked(report['ranking'])}; {close} pairs are closer than the noise."
    if base["scale"] is not None:
        yield (
            f"FLOPs only (busiest rank at its peak, pipeline bubble on top, all times {base['scale']:.3f}, which fits these plans best): "
            f"mean error {percent(base['mean_error'], '')}, worst {percent(base['worst_error'], '')}; {ranked(base['ranking'])}."
        )
    if report["problems"]:
        yield f"{report['problems']} plans have no result; their problems stand in the table."


def cause_lines(r):
    yield f"{r['verdict']}."
    still = ", ".join(f"{1e3 * c['seconds']:+.2f} ms {c['what']}" for c in r["causes"]["still"])
    if still:
        yield f"Why compute stands still, measured against predicted, mean over ranks: {still}."
    launches = ", ".join(milliseconds(s) for s in r["launches_s"])
    more = [f"medians of the launches {launches}", f"MAD {1e3 * r['mad_s']:.2f} ms"]
    more += [] if r["cv"] is None else [f"CV {100 * r['cv']:.2f} %"]
    more.append("shapes " + ", ".join(f"{n} {kind}" for kind, n in r["shapes"].items()))
    yield "; ".join(more) + "." + "".join(f" **{flag}.**" for flag in r["flags"])


def page(rows, report, here):
    profiles = sorted({f"{r['profile']} ({r['trust']})" for r in rows.values() if not r.get("problem")})
    yield "# Accuracy of predictions"
    yield ""
    yield f"Measured on {here}; profile {', '.join(profiles) or '-'}. An error is (predicted - measured) / measured."
    yield "Strata: `known`: every product, attention and collective of the plan is one that the profile measured; `inside`: some lie"
    yield "between measured ones; `extrapolated`: some lie outside. `*`: see the plan's remarks."
    yield ""
    yield from markdown(STRATUM_TITLES, [stratum_cells(n, s) for n, s in report["strata"].items()])
    yield ""
    for sentence in sentences(report):
        yield sentence
        yield ""
    yield from markdown(PLAN_TITLES, [plan_cells(n, r) for n, r in rows.items()])
    yield ""
    yield (
        f"Memory total: arena predicted, context and NCCL as told, within max({100 * stats.MEMORY_SHARE:g} %, "
        f"{stats.MEMORY_BYTES // MIB} MiB) of what the GPU says is in use."
    )
    for name, r in rows.items():
        yield f"\n## {name}\n"
        if r.get("problem"):
            yield r["problem"]
        else:
            yield "\n\n".join(cause_lines(r))


def show_accuracy(rows, report):
    table = lambda titles, cells: print("\n".join(columns(titles, cells)) + "\n")
    table(PLAN_TITLES, [plan_cells(n, r) for n, r in rows.items()])
    table(STRATUM_TITLES, [stratum_cells(n, s) for n, s in report["strata"].items()])
    print("\n".join(sentences(report)))


def write_accuracy(rows, report, here, out):
    write_csv(rows, out / "accuracy.csv", OF_ACCURACY)
    write_json({"machine": here, **report, "plans": rows}, out / "accuracy.json")
    (out / "accuracy.md").write_text("\n".join(page(rows, report, here)) + "\n")
