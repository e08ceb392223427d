"""What the notebooks share: asking the command, reading traces, profiles and raw tables, and one style for all figures.

Everything is read from files that tandem writes and from the JSON that it prints. TANDEM names the command
(build/release/tandem); with TANDEM_FIGURES=DIR every figure is also written to DIR/NAME.svg, with TANDEM_FIGURES_PNG=DIR
to DIR/NAME.png.
"""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
TANDEM = os.environ.get("TANDEM", str(ROOT / "build/release/tandem"))
HELDOUT = ROOT / "examples/measured/h200-heldout"
HELDOUT_PLANS = ROOT / "tests/regress/heldout"
PROBES = ROOT / "examples/measured/h200-calibration"
RAW = ROOT / "examples/measured/h200-raw"
_scratch = tempfile.TemporaryDirectory(prefix="tandem-notebook-")
SCRATCH = Path(_scratch.name)

# Okabe and Ito's colours, which all kinds of colour vision tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
GREY, LIGHT = "#767676", "#E4E4E4"
PREDICTED, MEASURED = BLUE, RED

COMPUTE = {  # kinds of op on the compute lane: colour, what the legend says
    "forward": (SKY, "forward"),
    "backward": (BLUE, "backward"),
    "adam": (GREEN, "optimizer"),
    "cast": (GREEN, "optimizer"),
    "grad_stats": (GREEN, "optimizer"),
    "zero_grads": (GREEN, "optimizer"),
}
CAUSES = {  # why a compute lane stands still (`tandem compare`), in the order of the bars
    "fill": ("pipeline fill", SKY),
    "drain": ("pipeline drain", BLUE),
    "bridge": ("bridges between modules", ORANGE),
    "imbalance": ("waiting for another stage", RED),
    "transfer": ("transfers between stages", YELLOW),
    "data_parallel": ("gradients and parameters", PINK),
    "optimizer": ("optimizer collectives", GREEN),
    "straggler": ("waiting for the slowest rank", GREY),
    "issue": ("launch and host work", BLACK),
}

matplotlib.rcParams.update(
    {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LIGHT,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text: small, and it can be searched
        "svg.hashsalt": "tandem",  # the same figure is the same file
    }
)


# ---- the command ----


class Refused(Exception):
    """The command's answer is no, in its words."""


def tandem(*arguments, answers=(0,)):
    """The object that `tandem ARGUMENTS --json` prints; Refused with the last line of stderr at another exit code."""
    done = subprocess.run([TANDEM, *map(str, arguments), "--json"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in answers:
        raise Refused((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout)


_no_interval = None


def predict(plan, *more):
    """`tandem predict` of a file or of a plan as a dictionary, without the interval, which takes many simulations."""
    global _no_interval
    if _no_interval is None:
        said = subprocess.run([TANDEM, "predict", "--help"], capture_output=True, text=True).stdout
        _no_interval = ["--samples", "0"] if "--samples" in said else []
    return tandem("predict", as_file(plan), *more, *_no_interval)


def as_file(plan):
    """A plan given as a dictionary, written where the command can read it: JSON is YAML."""
    if not isinstance(plan, dict):
        return plan
    path = SCRATCH / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def cluster(name):
    return str(ROOT / f"examples/clusters/{name}.yaml")


def plan_file(name):
    return ROOT / f"examples/plans/{name}.yaml"


# ---- files ----


def load_json(path):
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def table(name):
    with open(RAW / name, newline="") as file:
        return list(csv.DictReader(file))


def rank_names(trace):
    return {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == "process_name"}


def ops(trace, parts=False):
    """The events of a trace that are ops (or, asked for, the parts inside them)."""
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and "op" in e["args"] and ("part" in e["args"]) == parts]


def step_of(trace):
    """The ops of the step that takes the median time, their start shifted to the end of the step before, and its seconds."""
    by_step = {}
    for e in ops(trace):
        by_step.setdefault(e["args"]["step"], []).append(e)
    ends = {s: max(e["ts"] + e["dur"] for e in events) for s, events in by_step.items()}
    starts = {s: ends.get(s - 1, min(e["ts"] for e in events)) for s, events in by_step.items()}
    order = sorted(by_step, key=lambda s: ends[s] - starts[s])
    step = order[(len(order) - 1) // 2]
    return [{**e, "ts": e["ts"] - starts[step]} for e in by_step[step]], (ends[step] - starts[step]) * 1e-6


def accuracy(kept=HELDOUT):
    """The report of `tools/regress --on accuracy` about the measurements kept in a folder."""
    out = SCRATCH / "accuracy"
    command = [sys.executable, "tools/regress", "--on", "accuracy", "--from", str(kept), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"TANDEM": TANDEM})
    if not (out / "accuracy.json").exists():
        raise SystemExit(f"tools/regress failed: {done.stderr.strip()[-500:]}")
    return load_json(out / "accuracy.json")


def kept_runs(kept=HELDOUT, plans=HELDOUT_PLANS):
    """[(name, prediction, comparison, files)] of every kept H200 trace in a folder whose program is still the plan's."""
    runs = []
    for measured in sorted(kept.glob("*.json.gz")):
        name = measured.name.removesuffix(".json.gz")
        predicted = SCRATCH / f"{name}.predicted.json.gz"
        try:
            p = predict(plans / f"{name}.yaml", "-o", predicted)
            c = tandem("compare", predicted, measured, answers=(0, 1))
        except Refused as why:
            print(f"left out: {name}: {why}")
            continue
        runs.append((name, p, c, (predicted, measured)))
    if not runs:
        raise SystemExit(f"no kept measurement in {kept} can be compared")
    return runs


# ---- figures ----


def save(fig, name):
    """Writes the figure where the environment says; in a notebook it is shown as well, by its cell."""
    folder = os.environ.get("TANDEM_FIGURES")
    if folder:
        path = Path(folder) / f"{name}.svg"
        fig.savefig(path, metadata={"Date": None})
        coordinates = re.compile(r' (d|x|y|width|height|points)="[^"]*"')  # a tenth of a point is enough
        text = coordinates.sub(lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), path.read_text())
        path.write_text(re.sub(r"[ \t]+\n", "\n", text))
    if os.environ.get("TANDEM_FIGURES_PNG"):
        fig.savefig(Path(os.environ["TANDEM_FIGURES_PNG"]) / f"{name}.png", dpi=90)


def percent_axis(axis, digits=0, sign=False):
    form = f"{{x:{'+' if sign else ''}.{digits}f}} %"
    axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter(form))


def time_chart(ax, events, seconds, names, numbers=True):
    """The compute lane of every rank; what is white stands still."""
    ranks = sorted(names)
    row = {r: i for i, r in enumerate(ranks)}
    shown = {}
    width_of_digit = 0.008 * seconds * 1e3  # of the axis, in ms
    for colour in dict.fromkeys(c for c, _ in COMPUTE.values()):
        for r in ranks:
            bars = [(e["ts"] * 1e-3, e["dur"] * 1e-3) for e in events if e["pid"] == r and COMPUTE.get(e["args"]["kind"], [0])[0] == colour]
            if bars:
                words = next(w for c, w in COMPUTE.values() if c == colour)
                shown[words] = ax.broken_barh(bars, (row[r] - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.4)
    for e in events if numbers else []:
        kind, mb = e["args"]["kind"], e["args"]["mb"]
        if kind in ("forward", "backward") and e["dur"] * 1e-3 > width_of_digit * len(str(mb)):
            ink = "white" if kind == "backward" else "black"
            ax.text((e["ts"] + e["dur"] / 2) * 1e-3, row[e["pid"]], str(mb), ha="center", va="center", fontsize=6.5, color=ink)
    ax.set_yticks(range(len(ranks)), [names[r] for r in ranks])
    ax.set_ylim(len(ranks) - 0.4, -0.6)
    ax.set_xlim(0, seconds * 1e3)
    ax.grid(axis="y", visible=False)
    return {w: shown[w] for w in ("forward", "backward", "optimizer") if w in shown}
