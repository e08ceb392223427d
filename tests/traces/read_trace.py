"""Reads a trace file as a trace viewer would, with nothing of tandem's: python3 read_trace.py FILE

Exit 0 and a summary if the file is sound, else 1 and the first thing that is wrong with it.
"""

import gzip
import json
import sys
from collections import defaultdict
from decimal import Decimal

LANES = ["compute", "tp", "fwd", "bwd", "dp", "ctrl"]
METADATA = {
    "program_digest": str,
    "backend": (str, type(None)),
    "plan": (str, type(None)),
    "profile": (str, type(None)),
    "trust": (str, type(None)),
    "version": (str, type(None)),
    "clock_error_s": (int, Decimal),
    "world_size": int,
    "n_steps": int,
}
ARGS = {
    "step": int,
    "op": int,
    "kind": str,
    "module": (str, type(None)),
    "stage": (int, type(None)),
    "mb": (int, type(None)),
    "bytes": int,
}


class Unsound(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Unsound(message)


def without_duplicates(pairs):
    keys = [key for key, _ in pairs]
    expect(len(keys) == len(set(keys)), f"a key twice in one object: {keys}")
    return dict(pairs)


def load(path):
    with open(path, "rb") as file:
        data = file.read()
    expect(data[:2] == b"\x1f\x8b" if path.endswith(".gz") else data[:1] == b"{", "the name does not tell what is in the file")
    if path.endswith(".gz"):
        expect(data[4:8] == bytes(4), "the gzip header holds a time, so equal traces are not equal bytes")
        data = gzip.decompress(data)
    # decimals, because a double cannot tell whether the nanoseconds are whole
    return json.loads(data.decode("utf-8"), parse_float=Decimal, object_pairs_hook=without_duplicates)


def nanoseconds(event, key):
    value = event.get(key)
    expect(isinstance(value, (int, Decimal)) and not isinstance(value, bool), f"{key} is no number: {event}")
    ns = value * 1000
    expect(ns == int(ns), f"{key} is not a whole number of ns: {event}")
    expect(ns >= 0, f"{key} is negative: {event}")
    return int(ns)


def has_types(what, table, where):
    for key, kind in table.items():
        expect(key in what, f"{where} has no {key}")
        value = what[key]
        expect(isinstance(value, kind) and not isinstance(value, bool), f"{where}: {key} is {value!r}")


def check_names(names, rows):
    """Every process and thread that draws something has a name and a place."""
    for pid, tid in rows:
        for key in [("process_name", pid, None), ("process_sort_index", pid, None), ("thread_name", pid, tid), ("thread_sort_index", pid, tid)]:
            expect(key in names, f"pid {pid}, tid {tid}: no {key[0]}")
        expect(names["process_sort_index", pid, None] == pid, f"pid {pid} is not in the place of its rank")
        name, place = names["thread_name", pid, tid], names["thread_sort_index", pid, tid]
        expect(name in LANES, f"pid {pid}, tid {tid}: lane {name!r}, expected one of {LANES}")
        expect(place == LANES.index(name), f"pid {pid}: lane {name} is in place {place}")


def check_row(where, bars):
    """The ops of a row are apart; its bars, parts included, are apart or one within the other."""
    last_end = 0
    for start, end in sorted((start, end) for start, end, part in bars if part is None):
        expect(start >= last_end, f"{where}: an op starts at {start} ns, the one before ends at {last_end} ns")
        last_end = end
    open_ends = []
    for start, end in sorted(((start, end) for start, end, _ in bars), key=lambda bar: (bar[0], -bar[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        expect(not open_ends or end <= open_ends[-1], f"{where}: bars cross at {start} ns")
        open_ends.append(end)


def check(trace):
    expect(isinstance(trace, dict), "the file is not an object")
    expect(trace.get("displayTimeUnit") == "ns", "displayTimeUnit is not ns")
    meta, events = trace.get("metadata"), trace.get("traceEvents")
    expect(isinstance(meta, dict), "no metadata")
    expect(isinstance(events, list), "no traceEvents")
    has_types(meta, METADATA, "metadata")
    names, rows, seen = {}, defaultdict(list), set()
    for event in events:
        expect(event.get("ph") in ("X", "M"), f"neither a complete nor a metadata event: {event}")
        expect(isinstance(event.get("name"), str) and event["name"], f"no name: {event}")
        has_types(event, {"pid": int, "tid": int, "args": dict}, str(event))
        pid, tid, args = event["pid"], event["tid"], event["args"]
        if event["ph"] == "M":
            key = (event["name"], pid, tid if event["name"].startswith("thread") else None)
            expect(key not in names, f"named twice: {event}")
            names[key] = args["name"] if "name" in args else args["sort_index"]
            continue
        has_types(args, ARGS, str(event))
        expect(event.get("cat") == args["kind"], f"the category is not the kind: {event}")
        expect(0 <= pid < meta["world_size"], f"no such rank: {event}")
        expect(0 <= args["step"] < meta["n_steps"], f"no such step: {event}")
        expect(0 <= args["bytes"] < 2**64, f"bytes out of range: {event}")
        key = (pid, args["step"], args["op"], args.get("part"))
        expect(key not in seen, f"occurs twice: {event}")
        seen.add(key)
        start = nanoseconds(event, "ts")
        rows[pid, tid].append((start, start + nanoseconds(event, "dur"), args.get("part")))
    check_names(names, rows)
    for (pid, tid), bars in rows.items():
        check_row(f"rank {pid}, lane {names['thread_name', pid, tid]}", bars)
    return len(seen), len(rows)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        n_events, n_rows = check(load(sys.argv[1]))
    except (Unsound, ValueError, OSError, EOFError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{n_events} events in {n_rows} rows")


if __name__ == "__main__":
    main()
