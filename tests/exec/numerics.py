#!/usr/bin/env python3
"""numerics.py TANDEM: whole training steps of small models against an independent single-process program (float64 autograd).

TANDEM_ORACLE names another folder with a numerics.json of the same schema.
"""
import json
import os
import sys

import step


def main():
    tandem = sys.argv[1]
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracle")
    with open(os.path.join(os.environ.get("TANDEM_ORACLE") or default, "numerics.json"), encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    matched = 0
    for case in cases:
        plan = dict(case["plan"])
        steps = plan.pop("steps")
        try:
            found = step.differences(step.run(tandem, plan, steps), case["expected"], case["tensors"])
        except step.Failed as failure:
            found = [str(failure)]
        matched += not found
        for sentence in found[:8]:
            print(f"numerics: {case['id']}: {sentence}")
        if len(found) > 8:
            print(f"numerics: {case['id']}: {len(found) - 8} more")
    print(f"numerics: cases {len(cases)}, matched {matched}, skipped 0")
    return 0 if cases and matched == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
