"""How often the ruler errs, and what it can show: reports simulated where the truth is known.

    python -m benches.calibration                    # results/calibration.json and the table in docs/measuring.md; some forty minutes of one core
    python -m benches.calibration --reports 100      # a rough one

A simulated report is what the suite ``evidence-cpu`` would declare: one rule, two models, two scenarios with all data at
once and two streams, so four groups of two comparisons, each with five budgets, full training, and for streams two ways
of training less. It goes through the very functions that judge a real one, from single runs to verdicts.

Accuracies, the scatter of runs from seed to seed, what of it the runs of a seed share, the costs of the rule and how
they vary, and the noise of times are those of the committed records (``LINES``; ``tests/benches/test_calibration.py``
holds them against ``results/evidence-pilot.jsonl``). The true frontier is a straight line over the logarithm of the cost, or
one that bends as the recorded one does. A rule's run has the accuracy of the true frontier at its cost plus the lead.

Told for every case: the rate of "ahead" per declared group (where the lead is 0 it is false, and may be 2.5 % at most),
of at least one false one in a report, per single line behind its gate, the mean error of the estimated lead in points,
and how often the 95 % interval of the speed-up at equal FLOPs holds the true one.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benches.tables import refreshed
from ldbench.reporting.curve import Floats
from ldbench.reporting.equal_accuracy import SpeedUp, speed_up
from ldbench.reporting.frontier import FULL, RATIOS, Leads, Run, leads, pooled, way_of
from ldbench.reporting.verdicts import AXES, Evidence, group_of, judge_groups, judge_lines, priors_of

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "calibration.json"
TABLE = ROOT / "docs" / "measuring.md"
BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.75, FULL)
SEED = 20261130
WORDS = {
    "FLOPs": "by FLOPs alone",
    "FLOPs in one group": "by FLOPs alone in one group of four",
    "one group": "in one group of four",
}


class Line(NamedTuple):
    """A comparison as the committed records have it, in points of accuracy.

    Attributes:
        ways: of each way of training less, at the budgets ``RECORDED``, the mean accuracy and its standard deviation
            over the seeds.
        rules: of each of ``RULES``, the mean cost as a share of full's FLOPs, the standard deviation of its logarithm,
            and that of the accuracy less full's, what follows the cost taken off.
        time_noise: standard deviation of the logarithm of a control's seconds beside its seed's.
    """

    model: str
    stream: bool
    ways: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    rules: tuple[tuple[float, float, float], ...]
    time_noise: float


RECORDED = (0.125, 0.25, 0.5, 0.75, 1.0)
RULES = ("learn-and-drop", "autofreeze+store")
# fmt: off
LINES = (
    Line("vgg11_bn", False, (((85.92, 91.02, 93.69, 94.74, 95.38), (2.68, 1.15, 0.59, 0.66, 0.21)),), ((0.44, 0.04, 0.47), (0.37, 0.27, 0.41)), 0.095),
    Line("vgg11_bn", False, (((86.06, 92.39, 94.84, 95.78, 96.22), (3.47, 1.57, 0.35, 0.32, 0.17)),), ((0.54, 0.22, 0.62), (0.39, 0.34, 0.42)), 0.048),
    Line("vgg11_bn", True, (((71.5, 82.37, 90.95, 93.31, 94.05), (1.93, 1.83, 1.02, 0.49, 0.34)), ((82.27, 90.59, 93.06, 93.63, 94.05), (6.05, 1.62, 0.45, 0.46, 0.34))), ((0.45, 0.03, 0.19), (0.44, 0.54, 0.37)), 0.068),
    Line("vgg11_bn", True, (((72.94, 84.98, 91.15, 93.8, 94.66), (4.0, 1.74, 1.89, 0.92, 0.46)), ((84.01, 91.4, 93.89, 94.41, 94.66), (3.58, 1.18, 0.48, 0.31, 0.46))), ((0.49, 0.13, 0.14), (0.38, 0.32, 0.13)), 0.078),
    Line("resnet18", False, (((74.74, 91.38, 94.68, 95.36, 95.61), (7.48, 0.74, 0.56, 0.39, 0.32)),), ((0.55, 0.05, 0.3), (0.55, 0.46, 0.92)), 0.087),
    Line("resnet18", False, (((90.6, 93.86, 95.46, 95.86, 96.28), (1.04, 0.36, 0.2, 0.3, 0.11)),), ((0.55, 0.04, 0.13), (0.32, 0.42, 0.45)), 0.065),
    Line("resnet18", True, (((63.96, 78.75, 88.41, 92.39, 93.52), (3.49, 1.64, 2.44, 0.83, 0.29)), ((83.91, 82.74, 92.7, 93.31, 93.52), (4.36, 5.73, 0.24, 0.16, 0.29))), ((0.5, 0.0, 0.12), (0.65, 0.08, 0.15)), 0.050),
    Line("resnet18", True, (((83.95, 90.13, 93.26, 94.12, 94.55), (1.79, 0.82, 0.32, 0.21, 0.2)), ((86.26, 91.49, 93.84, 94.27, 94.55), (5.49, 0.67, 0.4, 0.35, 0.2))), ((0.5, 0.0, 0.12), (0.36, 0.29, 0.23)), 0.062),
)
# fmt: on


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        truth: "linear" or "concave".
        lead: of the rule, in points at its own cost.
        seeds: per comparison.
        rule: whose costs and scatter the simulated one has: learn-and-drop ends at much the same cost with every seed,
            autofreeze+store at very different ones.
        only: "" for a lead in every group at both axes; "one group": in the first group alone; "FLOPs": by FLOPs alone,
            with none by time; "FLOPs in one group": that in the first group, whose scatter is the largest, and a lead
            at both axes in the others.
        quiet: times scatter by a quarter of what was recorded on two cores of a shared machine.
    """

    truth: str
    lead: float
    seeds: int
    rule: str = RULES[0]
    only: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Rates:
    """What came of a case; rates in [0, 1], None where the case has none."""

    reports: int
    groups_false: float | None
    any_false: float | None
    groups_true: float | None
    lines_false: float | None
    lines_true: float | None
    bias_flops: float
    bias_time: float
    coverage: float


def cases() -> list[Case]:
    """Every case of the table."""
    many = [
        Case(truth, lead, seeds)
        for truth in ("linear", "concave")
        for lead in (0.0, 0.25, 0.5, 1.0)
        for seeds in (3, 5, 10, 20)
    ]
    varying = [Case("concave", lead, seeds, RULES[1]) for lead in (0.0, 0.5, 1.0) for seeds in (3, 5, 10, 20)]
    edges = [
        Case("concave", lead, seeds, only=only)
        for only, lead in (("FLOPs", 0.5), ("FLOPs in one group", 1.0), ("one group", 1.0))
        for seeds in (3, 5, 10, 20)
    ]
    quiet = [Case("concave", lead, seeds, quiet=True) for lead in (0.0, 0.5) for seeds in (3, 5, 10, 20)]
    return many + varying + quiet + edges


def truth(line: Line, kind: str, way: int, cost: Floats) -> Floats:
    """True accuracy of training less, in points: least squares through the recorded means, straight or saturating."""
    at = np.log(cost)
    level, slope, bend = _fitted(line.ways[way][0], kind)
    return level + slope * (np.exp(-bend * at) if bend else at)


@functools.cache
def _fitted(means: tuple[float, ...], kind: str) -> tuple[float, float, float]:
    """Level, slope and bend of a straight line over the logarithm of the cost (bend 0), or of a - b exp(-bend x)."""
    x, y = np.log(RECORDED), np.array(means)
    if kind == "linear":
        slope, level = np.polyfit(x, y, 1)
        return float(level), float(slope), 0.0
    tried = []
    for bend in np.arange(0.3, 3.01, 0.05):
        columns = np.stack([np.ones_like(x), np.exp(-bend * x)], axis=1)
        (level, slope), *_ = np.linalg.lstsq(columns, y, rcond=None)
        error = float(((columns @ (level, slope) - y) ** 2).sum())
        tried.append((error, float(level), float(slope), float(bend)))
    return min(tried)[1:]


def best_truth(line: Line, kind: str, cost: Floats) -> Floats:
    """That of the way of training less which is best at each cost."""
    return np.max([truth(line, kind, way, cost) for way in range(len(line.ways))], axis=0)


def simulated(line: Line, case: Case, lead: float, by_time: float, random: np.random.Generator) -> Evidence:
    """One comparison: its runs drawn, and held against their frontiers.

    ``by_time``: how many times longer the rule's runs take than their FLOPs say.
    """
    n, budgets = case.seeds, np.array(BUDGETS)
    mean, spread, own = line.rules[RULES.index(case.rule)]
    of_full = line.ways[0][1][-1]
    shared = random.normal(size=n) * of_full / math.sqrt(2)  # runs of a seed correlate by about a half
    alone = [_alone(np.interp(np.log(budgets), np.log(RECORDED), scatter), of_full) for _, scatter in line.ways]
    cost = np.clip(mean * np.exp(spread * random.normal(size=n) - spread**2 / 2), 0.14, 0.95)
    beside = math.sqrt(max(own**2 - of_full**2 / 2, 0.01))
    reached = best_truth(line, case.truth, cost) + lead + shared + beside * random.normal(size=n)
    noise = random.normal(size=(n, 1 + len(line.ways) * len(budgets))) * line.time_noise
    noise *= 0.25 if case.quiet else 1.0
    runs: dict[str, dict[int, Run]] = {"flops": {}, "time": {}}
    ways: dict[str, list[dict[int, list[Run]]]] = {axis: [{} for _ in line.ways] for axis in AXES}
    true = [truth(line, case.truth, way, budgets) for way in range(len(line.ways))]
    full = random.normal(size=n) * alone[0][-1]
    for seed in range(n):
        runs["flops"][seed] = Run(float(cost[seed]), float(reached[seed]) / 100)
        seconds = float(cost[seed] * by_time * np.exp(noise[seed, 0]))
        runs["time"][seed] = Run(seconds, float(reached[seed]) / 100)
        for way, accuracies in enumerate(true):
            drawn = accuracies + shared[seed] + alone[way] * random.normal(size=len(budgets))
            drawn[-1] = true[0][-1] + shared[seed] + full[seed]  # full training is one run
            first = 1 + way * len(budgets)
            times = budgets * np.exp(noise[seed, first : first + len(budgets)])
            times[-1] = np.exp(noise[seed, len(budgets)])
            for axis, costs in (("flops", budgets), ("time", times)):
                points = zip(costs.tolist(), drawn.tolist(), BUDGETS, strict=True)
                ways[axis][way][seed] = [Run(c, a / 100, None, budget) for c, a, budget in points]
    found: dict[str, Leads] = {}
    for axis in AXES:
        curves = {f"way {number}": way_of(some) for number, some in enumerate(ways[axis])}
        found[axis] = leads(runs[axis], curves, ratios=axis == "flops")
    return Evidence(found, n, 0, False)


def _alone(scatter: Floats, of_full: float) -> Floats:
    """What a run scatters by itself, beside what the runs of its seed share."""
    return np.sqrt(np.maximum(scatter**2 - of_full**2 / 2, 0.01))


def _by_flops_alone(case: Case, number: int) -> bool:
    return case.only == "FLOPs" or (case.only == "FLOPs in one group" and number == 0)


def true_leads(line: Line, case: Case, number: int) -> tuple[float, float]:
    """The lead of a line at its own cost in points, and by what its time exceeds its FLOPs."""
    lead = 0.0 if case.only == "one group" and number else case.lead
    if not _by_flops_alone(case, number):
        return lead, 1.0
    mean, grid = line.rules[RULES.index(case.rule)][0], np.geomspace(0.05, FULL, 2000)
    reached, own = best_truth(line, case.truth, grid), float(best_truth(line, case.truth, np.array([mean]))[0])
    wanted = min(own + lead, float(reached.max()) - 0.1)  # what the control reaches in the rule's time
    return wanted - own, float(grid[int(np.argmax(reached >= wanted))] / mean)


def groups_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines by model and kind."""
    keys = dict.fromkeys((line.model, line.stream) for line in lines)
    return [[line for line in lines if (line.model, line.stream) == key] for key in keys]


def report(case: Case, random: np.random.Generator) -> tuple[list[list[Evidence]], list[bool]]:
    """Evidence of every group of a report, and whether its rule is truly ahead."""
    made, real = [], []
    for number, lines in enumerate(groups_of(LINES)):
        leads_of = [true_leads(line, case, number) for line in lines]
        made.append(
            [
                simulated(line, case, lead, by_time, random)
                for line, (lead, by_time) in zip(lines, leads_of, strict=True)
            ]
        )
        real.append(any(lead > 0 for lead, _ in leads_of) and not _by_flops_alone(case, number))
    return made, real


def true_ratio(case: Case, number: int) -> SpeedUp:
    """The speed-up by FLOPs of a group, were nothing left to chance: at the rule's mean costs, without scatter."""
    found = []
    for line in groups_of(LINES)[number]:
        mean, lead = line.rules[RULES.index(case.rule)][0], true_leads(line, case, number)[0]
        reached = float(best_truth(line, case.truth, np.array([mean]))[0]) + lead
        against = best_truth(line, case.truth, np.clip(RATIOS * mean, BUDGETS[0], FULL))
        over = np.stack([(reached - against) / 100] * 2)
        found.append(Leads((0, 1), over[:, 0], None, over, BUDGETS[0] / mean, FULL / mean))
    return speed_up(pooled(found))


def run_case(case: Case, reports: int, seed: int = SEED) -> Rates:
    """Simulate ``reports`` reports of a case."""
    words = [seed, *(ord(letter) for letter in repr(case))]
    random = np.random.default_rng(words)
    false = true = lines_false = lines_true = any_false = held = 0
    of_false = of_true = 0
    errors: dict[str, list[float]] = {axis: [] for axis in AXES}
    ratios = [true_ratio(case, number) for number in range(len(groups_of(LINES)))]
    for _ in range(reports):
        made, real = report(case, random)
        groups = [group_of(lines, tuple(AXES)) for lines in made]
        verdicts, priors = judge_groups(groups), priors_of([group.leads for group in groups])
        wrong = [v.kind == "ahead" and not ahead for v, ahead in zip(verdicts, real, strict=True)]
        false, any_false = false + sum(wrong), any_false + any(wrong)
        true += sum(v.kind == "ahead" and ahead for v, ahead in zip(verdicts, real, strict=True))
        of_false, of_true = of_false + real.count(False), of_true + real.count(True)
        for number, (group, ahead, judged) in enumerate(zip(groups, real, judge_lines(groups, verdicts), strict=True)):
            shown = sum(verdict.kind == "ahead" for verdict in judged)
            lines_true, lines_false = lines_true + shown * ahead, lines_false + shown * (not ahead)
            found = speed_up(group.leads["flops"], priors["flops"])
            true_one = ratios[number]
            held += math.isinf(found.high) if true_one.bound else found.low <= true_one.ratio <= found.high
            lead = np.mean([true_leads(line, case, number)[0] for line in groups_of(LINES)[number]])
            for axis in AXES:
                if not len(group.leads[axis].differences):
                    continue
                wanted = 0.0 if axis == "time" and _by_flops_alone(case, number) else lead
                errors[axis].append(100 * float(group.leads[axis].differences.mean()) - wanted)
    two = 2  # lines of a group
    return Rates(
        reports,
        false / of_false if of_false else None,
        any_false / reports if of_false else None,
        true / of_true if of_true else None,
        lines_false / (two * of_false) if of_false else None,
        lines_true / (two * of_true) if of_true else None,
        float(np.mean(errors["flops"])),
        float(np.mean(errors["time"])),
        held / (reports * len(ratios)),
    )


def committed() -> list[tuple[Case, Rates]]:
    """What ``results/calibration.json`` holds."""
    told = json.loads(RESULT.read_text())["results"]
    return [(Case(**entry["case"]), Rates(**entry["rates"])) for entry in told]


def _can_be_false(case: Case) -> bool:
    return case.lead == 0 or bool(case.only)


def table(results: Sequence[tuple[Case, Rates]]) -> str:
    """Markdown: a line per case."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    head = (
        "true frontier", "true lead, points", "seeds", "reports", 'false "ahead" per group', "per report", "power per group",
        'false "ahead" per line', "power per line", "bias, equal FLOPs", "bias, equal time", "speed-up's interval holds",
    )  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for case, rates in results:
        what = f"{case.lead:g}"
        what += f", {WORDS[case.only]}" if case.only else ""
        what += ", costs that vary" if case.rule == RULES[1] else ""
        what += ", a quiet clock" if case.quiet else ""
        shown = (rates.groups_false, rates.any_false, rates.groups_true, rates.lines_false, rates.lines_true)
        biases = (f"{rates.bias_flops:+.2f}", f"{rates.bias_time:+.2f}")
        rows.append(
            (
                case.truth,
                what,
                str(case.seeds),
                str(rates.reports),
                *map(percent, shown),
                *biases,
                percent(rates.coverage),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    """Simulate what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reports", type=int, default=2000, help="simulated reports per case; a quarter where nothing can be false"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="JSON file of the rates; another one gets its table beside it"
    )
    options = parser.parse_args()
    wanted = cases()
    sizes = [options.reports if _can_be_false(case) else max(1, options.reports // 4) for case in wanted]
    with ProcessPoolExecutor(options.jobs) as pool:
        rates = []
        for case, found in zip(wanted, pool.map(run_case, wanted, sizes), strict=True):
            print(case, found, flush=True)
            rates.append(found)
    told = [{"case": asdict(case), "rates": asdict(found)} for case, found in zip(wanted, rates, strict=True)]
    options.out.write_text(json.dumps({"seed": SEED, "results": told}, indent=1) + "\n")
    made = table(list(zip(wanted, rates, strict=True)))
    if options.out == RESULT:
        TABLE.write_text(refreshed(TABLE.read_text(), {"calibration": made}))
    else:
        options.out.with_suffix(".md").write_text(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
