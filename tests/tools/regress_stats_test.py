"""The numbers of tools/regress, on synthetic measurements with known answers."""

import random
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import regress_measure as measure
import regress_report as report
import regress_stats as stats


def row(**of):
    """A row of one plan; what a test does not name is good."""
    base = {
        "group": "g", "measured_s": 1.0, "predicted_s": 1.0, "flops_s": 0.5, "rel_error": 0.0, "bubble_error": 0.0, "launches_apart": 0.0,
        "stratum": "known", "arena_exact": True, "memory_total_ok": True,
    }  # fmt: skip
    return base | of


class OnePlan(unittest.TestCase):
    def test_launches_are_pooled_and_kept_apart(self):
        s = stats.of_launches([[1.0, 1.0, 1.0], [1.1, 1.1, 1.1]])
        self.assertEqual(s["launches_s"], [1.0, 1.1])
        self.assertAlmostEqual(s["launches_apart"], 0.1)
        self.assertAlmostEqual(s["measured_s"], 1.05)
        self.assertAlmostEqual(s["mad_s"], 0.05)
        self.assertEqual(s["cv"], 0)  # inside a launch there is no variation
        self.assertEqual((s["low_s"], s["high_s"]), (1.0, 1.1))

    def test_one_launch_of_one_step_says_nothing_about_noise(self):
        s = stats.of_launches([[2.0]])
        self.assertEqual((s["measured_s"], s["mad_s"], s["low_s"], s["high_s"]), (2.0, 0.0, 2.0, 2.0))
        self.assertIsNone(s["cv"])
        self.assertIsNone(s["launches_apart"])

    def test_mad_and_cv(self):
        self.assertEqual(stats.mad([5, 1, 2, 4, 3, 100]), 1.5)
        self.assertAlmostEqual(stats.cv([1, 3]), 0.5**0.5)

    def test_bootstrap_is_the_same_every_time_and_covers_the_median(self):
        rng = random.Random(1)
        covered = 0
        for _ in range(100):
            x = [rng.gauss(1, 0.01) for _ in range(30)]
            low, high = stats.bootstrap(x, draws=400)
            self.assertEqual((low, high), stats.bootstrap(x, draws=400))
            covered += low <= 1 <= high
        self.assertTrue(88 <= covered <= 100, covered)  # 95 of 100 expected

    def test_stratum_is_that_of_the_least_known_shape(self):
        for known, inside, outside, name in ((3, 0, 0, "known"), (3, 1, 0, "inside"), (3, 1, 1, "extrapolated"), (0, 0, 1, "extrapolated")):
            self.assertEqual(stats.stratum({"known": known, "inside": inside, "outside": outside}), name)

    def test_flags_name_what_is_doubtful(self):
        self.assertEqual(stats.flags({"cv": 0.004, "steady": True}, 0.005), [])
        self.assertEqual(stats.flags({"cv": None, "steady": None}, 0.005), [])
        self.assertEqual(len(stats.flags({"cv": 0.006, "steady": False}, 0.005)), 2)
        self.assertEqual(stats.flags({"cv": 1.0, "steady": None}, None), [])

    def test_flops_step_is_the_busiest_rank_and_the_bubble_of_1f1b(self):
        p, m = 4, 8
        bubble = (p - 1) / (m + p - 1)
        self.assertAlmostEqual(stats.flops_step([1e12, 4e12], 1e12, bubble), 4 * (m + p - 1) / m)

    def test_memory_is_exact_or_not_and_the_total_within_the_larger_of_two(self):
        beside = lambda all_bytes: {"context_bytes": 100 << 20, "nccl_bytes": 0, "all_bytes": all_bytes}
        mib = 1 << 20
        m = stats.memory([5 * mib, None], [5 * mib, 7], [beside(105 * mib + 64 * mib), None])
        self.assertEqual(m, {"arena_exact": True, "memory_off_bytes": -64 * mib, "memory_total_ok": True})
        m = stats.memory([5 * mib], [5 * mib + 1], [beside(105 * mib + 65 * mib)])
        self.assertEqual((m["arena_exact"], m["memory_total_ok"]), (False, False))
        big = 100 << 30  # 0.5 % of it is 512 MiB
        self.assertTrue(stats.memory([big - 400 * mib - (100 << 20)], [None], [beside(big)])["memory_total_ok"])
        self.assertEqual(set(stats.memory([], [], []).values()), {None})


class AllPlans(unittest.TestCase):
    def test_the_noise_floor_is_the_worst_plan_that_was_launched_twice(self):
        self.assertEqual(stats.noise_floor([row(launches_apart=a) for a in (0.001, None, 0.004)]), 0.004)
        self.assertIsNone(stats.noise_floor([row(launches_apart=None)]))

    def test_ranking_counts_pairs_of_one_group_that_noise_does_not_hide(self):
        rows = {
            "a": row(measured_s=1.00, predicted_s=1.3),
            "b": row(measured_s=1.10, predicted_s=1.2),  # wrong against a
            "c": row(measured_s=2.00, predicted_s=1.9),
            "d": row(measured_s=2.01, predicted_s=1.8),  # closer to c than the noise
            "e": row(measured_s=9.00, predicted_s=0.1, group="other"),
            "f": row(measured_s=9.00, predicted_s=0.1, group=None),
        }
        r = stats.ranking(rows, "predicted_s", 0.01)
        self.assertEqual(r, {"pairs": 5, "right": 4, "close": 1, "wrong": [["a", "b"]]})
        exact = {n: v | {"predicted_s": v["measured_s"]} for n, v in rows.items()}
        self.assertEqual(stats.ranking(exact, "predicted_s", 0)["wrong"], [])
        equal = {n: v | {"predicted_s": 1.0} for n, v in rows.items()}
        self.assertEqual(stats.ranking(equal, "predicted_s", 0)["right"], 0)

    def test_the_scale_is_the_least_squares_of_relative_errors(self):
        self.assertAlmostEqual(stats.scale_of([1, 2, 3], [3, 6, 9]), 3)
        g, t = [1.0, 2.0, 5.0], [2.0, 3.0, 11.0]
        off = lambda c: sum((c * a / b - 1) ** 2 for a, b in zip(g, t))
        best = stats.scale_of(g, t)
        self.assertTrue(off(best) < min(off(best * 1.001), off(best * 0.999)))

    def test_accuracy_of_a_baseline_that_is_right_up_to_a_constant(self):
        rows = {f"p{i}": row(measured_s=i, predicted_s=1.02 * i, rel_error=0.02, flops_s=i / 2, launches_apart=0.003) for i in (1, 2, 3)}
        rows["p3"]["stratum"] = "inside"
        rows["gone"] = {"problem": "did not run", "group": "g"}
        a = stats.accuracy(rows)
        self.assertAlmostEqual(a["baseline"]["scale"], 2)
        self.assertAlmostEqual(a["baseline"]["worst_error"], 0)
        self.assertEqual((a["noise_floor"], a["problems"]), (0.003, 1))
        self.assertEqual(a["ranking"], {"pairs": 3, "right": 3, "close": 0, "wrong": []})
        self.assertEqual(list(a["strata"]), ["known", "inside", "all"])
        self.assertEqual((a["strata"]["known"]["n"], a["strata"]["all"]["n"]), (2, 3))
        self.assertAlmostEqual(a["strata"]["all"]["worst_error"], 0.02)
        self.assertEqual((a["strata"]["all"]["arena_exact"], a["strata"]["all"]["arena_wrong"]), (3, 0))

    def test_nothing_measured_is_no_error(self):
        a = stats.accuracy({"gone": {"problem": "did not run", "group": None}})
        self.assertEqual((a["strata"]["all"]["n"], a["baseline"]["scale"], a["noise_floor"]), (0, None, None))


class Order(unittest.TestCase):
    def test_launches_go_in_rounds_and_the_repeated_ones_last(self):
        items = [{"name": n} for n in "abc"]
        names = lambda suite: "".join(i["name"] for i in measure.order(items, suite))
        self.assertEqual(names({"launches": 2, "repeat": ["c", "a", "not here"]}), "abcabcac")
        self.assertEqual(names({}), "abc")


class Answers(unittest.TestCase):
    def test_only_arrays_of_ranks_are_left_out(self):
        answer = {"steps": [1, 2], "ranks": [{"rank": 0, "gpu": "x", "clocks": [[1, 2]], "versions": {"cuda": 1}}]}
        self.assertEqual(measure.without_arrays(answer)["ranks"], [{"rank": 0, "gpu": "x", "versions": {"cuda": 1}}])
        self.assertEqual(measure.without_arrays(answer)["steps"], [1, 2])

    def test_steady_is_known_only_of_warm_ups_without_a_count(self):
        said = lambda *each: measure.steady([{"warmup": {"steady": s}} for s in each])
        self.assertEqual((said(True, True), said(True, False), said(None, None), measure.steady([{}])), (True, False, None, None))


class Tables(unittest.TestCase):
    def test_markdown_escapes_what_would_end_a_cell(self):
        self.assertEqual(list(report.markdown(["a", "b"], [["x|y", "z"]])), ["| a | b |", "|---|---|", "| x\\|y | z |"])


if __name__ == "__main__":
    unittest.main()
