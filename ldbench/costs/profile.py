"""Where a training step's time and FLOPs go, stage by stage, and what each cut would save, cost and pay back.

The trainer's own break-even rule reads the same cost table through the same functions.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldbench.costs.break_even import StorePlan, build_seconds
from ldbench.costs.stage_energy import StageEnergy
from ldbench.costs.table import CostTable
from ldbench.store.budget import store_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_ASKED = StageEnergy(None, None, None, "not asked for: --energy meters every stage and every cut for some seconds")


@dataclass(frozen=True)
class StageRow:
    """One stage; seconds and joules per minibatch, FLOPs and bytes per sample."""

    stage: str
    forward_seconds: float
    backward_seconds: float
    forward_flops: int
    backward_flops: int
    parameters: int
    activation_bytes: int
    joules: float | None = None


@dataclass(frozen=True)
class CutRow:
    """What dropping the first ``cut`` stages does, per epoch of full length.

    Attributes:
        saved_seconds: time saved per epoch against the full network.
        saved_share: the same as a share of a full epoch.
        saved_flops: forward and backward FLOPs saved per epoch.
        saved_joules: energy saved per epoch, the reading of images or store left out; None where it was not metered.
        store_bytes: size of the activation store.
        store_tier: where it would lie; None where it fits nowhere.
        build_seconds: time to build it from the images; None where it fits nowhere.
        break_even_epochs: epochs after which the building is paid for; None where it never is.
        legal: False where a parameter is shared across the cut.
    """

    cut: int
    after: str
    saved_seconds: float | None
    saved_share: float | None
    saved_flops: int
    store_bytes: int
    store_tier: str | None
    build_seconds: float | None
    break_even_epochs: float | None
    legal: bool
    saved_joules: float | None = None


def stage_rows(table: CostTable, parameters: list[int], energy: StageEnergy = NOT_ASKED) -> list[StageRow]:
    """The stages of a cost table, with their parameter counts and their energy."""
    rows = []
    for s, name in enumerate(table.stages):
        flops = table.flops[s]
        size = store_bytes(1, flops.output_shape, "fp32")
        joules = energy.stages[s] if energy.stages is not None else None
        seconds = table.forward[s], table.backward[s]
        rows.append(StageRow(name, *seconds, flops.forward, flops.backward, parameters[s], size, joules))
    return rows


def cut_rows(table: CostTable, plan: StorePlan, legal: list[bool], energy: StageEnergy = NOT_ASKED) -> list[CutRow]:
    """Every possible cut, each against the full network reading images."""
    steps = plan.samples // table.batch_size
    epoch = steps * table.step_seconds(0)
    rows = []
    for cut in range(1, len(table.stages)):
        size = plan.store_bytes(table, cut)
        tier = plan.budget.tier_for(size)
        gone = table.flops[:cut]
        flops = sum(f.forward + f.backward for f in gone) - gone[0].backward + gone[0].backward_first
        flops += table.flops[cut].backward - table.flops[cut].backward_first
        saved = build = None
        if tier is not None:
            saved = steps * (table.step_seconds(0) - table.step_seconds(cut, plan.source_seconds(table, cut, tier)))
            build = build_seconds(table, plan, 0, cut, tier)
        pays = build / saved if saved is not None and build is not None and saved > 0 else None
        share = saved / epoch if saved is not None else None
        total = flops * steps * table.batch_size
        joules = steps * (energy.steps[0] - energy.steps[cut]) if energy.steps is not None else None
        name, allowed = table.stages[cut - 1], legal[cut]
        rows.append(CutRow(cut, name, saved, share, total, size, tier, build, pays, allowed, joules))
    return rows


def as_dict(
    table: CostTable, stages: list[StageRow], cuts: list[CutRow], samples: int, energy: StageEnergy = NOT_ASKED
) -> dict[str, Any]:
    """JSON-ready, with what the seconds are true for."""
    return {
        "batch_size": table.batch_size,
        "train_size": samples,
        "epoch_seconds": samples // table.batch_size * table.step_seconds(0),
        "input_seconds": table.input_seconds,
        "step_seconds": table.steps,
        "tiers": {name: dataclasses.asdict(cost) for name, cost in table.tiers.items()},
        "stages": [dataclasses.asdict(row) for row in stages],
        "cuts": [dataclasses.asdict(row) for row in cuts],
        "energy_unavailable_reason": energy.unavailable_reason,
        "energy_method": energy.method,
        "stage_joules_bounds": energy.bounds,
        "environment": table.machine,
    }


def plot(stages: list[StageRow], cuts: list[CutRow], title: str) -> str:
    """Seconds per stage, and the share of an epoch that each cut saves, as one SVG document."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(9, 0.8 + 0.32 * len(stages)), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    names = [row.stage for row in stages]
    forward = [1e3 * row.forward_seconds for row in stages]
    left.barh(names, forward, color="#0072B2", label="forward")
    left.barh(names, [1e3 * row.backward_seconds for row in stages], left=forward, color="#E69F00", label="backward")
    left.set_xlabel("ms per minibatch")
    left.invert_yaxis()
    left.legend(frameon=False)
    shares = [100 * (row.saved_share or 0.0) for row in cuts]
    right.barh([f"{row.cut}: {row.after}" for row in cuts], shares, color="#009E73")
    right.set_xlabel("% of an epoch saved by dropping up to here")
    right.invert_yaxis()
    figure.suptitle(title)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
