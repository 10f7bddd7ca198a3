"""Whether the profile's prediction holds: the time an epoch saves with a prefix dropped, measured against predicted.

    python -m benches.profile_accuracy [--model resnet18] [--blocks 7] [--out FILE.json]

One engine per cut and two for the whole network, the second as the noise floor; they take turns, a quarter of an epoch
each, in a new order every round. A block is a cost table, measured by the code that ``ldbench profile`` and the trainer
use, and some rounds right after it: on a shared machine two windows minutes apart differ by more than the prediction
errs. Random images: contents do not change the time of a step.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from torch import nn

from ldbench.costs.break_even import StorePlan
from ldbench.costs.profile import cut_rows
from ldbench.devices import synchronize
from ldbench.dropping.engine import LayerDropper
from ldbench.records.environment import environment
from ldbench.stages.split import legal_cuts
from ldbench.store.budget import resolve_budget

from .suite import common
from .suite.common import quartiles

STEPS = 8  # a turn: long against the clock, short against a slow spell of the machine
ROUNDS = 5  # after each cost table


def turn(dropper: LayerDropper) -> float:
    """Seconds of one step, mean over a turn."""
    synchronize(dropper.device)
    began = time.perf_counter()
    for step, (x, y, _) in enumerate(dropper.loader(0), start=1):
        dropper.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(dropper(x), y).backward()
        dropper.optimizer.step()
        if step == STEPS:
            break
    synchronize(dropper.device)
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, count = common.device(threads=2), STEPS * options.batch_size
    folder = Path(tempfile.gettempdir())

    def engine() -> LayerDropper:
        return common.dropper(options.model, options.width, count, options.batch_size)

    whole = engine()
    last = len(whole.stages) - 1
    cuts = sorted({max(1, round(last * share)) for share in (0.25, 0.5, 0.75, 1.0)})
    engines = {"full": whole, "full again": engine()}
    for cut in cuts:
        engines[f"cut {cut}"] = engine()
        engines[f"cut {cut}"]._drop(cut, "benchmark", 0.0, "device")
    plan = StorePlan(count, "fp32", resolve_budget(None, device, folder))
    names, shuffle = list(engines), random.Random(0)
    ratios: dict[str, list[float]] = {name: [] for name in ("epoch", "full again", *(f"cut {cut}" for cut in cuts))}
    shares: dict[int, list[tuple[float, float]]] = {cut: [] for cut in cuts}
    for block in range(-1, options.blocks):
        table = whole.costs.measure()
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(ROUNDS):
            shuffle.shuffle(names)
            for name in names:
                seconds[name].append(turn(engines[name]))
        if block < 0:
            continue  # warms up
        step = {name: statistics.median(times) for name, times in seconds.items()}
        predicted = {row.cut: row for row in cut_rows(table, plan, legal_cuts(whole.stages))}
        ratios["epoch"].append(table.step_seconds(0) / step["full"])
        ratios["full again"].append(step["full again"] / step["full"])
        for cut in cuts:
            row, saved = predicted[cut], STEPS * (step["full"] - step[f"cut {cut}"])
            ratios[f"cut {cut}"].append((row.saved_seconds or 0.0) / saved)
            shares[cut].append((row.saved_share or 0.0, saved / STEPS / step["full"]))
        print({name: round(values[-1], 3) for name, values in ratios.items()}, flush=True)
    result: dict[str, object] = {
        **{name: getattr(options, name) for name in ("model", "width", "blocks")},
        "environment": environment(device),
        "noise floor: full again / full": quartiles(ratios["full again"]),
        "predicted / measured seconds of an epoch": quartiles(ratios["epoch"]),
    }
    for cut in cuts:
        result[f"predicted / measured saving, cut {cut} of {last}"] = quartiles(ratios[f"cut {cut}"]) | {
            "predicted_share": statistics.median(p for p, _ in shares[cut]),
            "measured_share": statistics.median(m for _, m in shares[cut]),
        }
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
