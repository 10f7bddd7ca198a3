"""``ldbench profile``: measure, save and show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ldbench.cli.commands import console
from ldbench.errors import UserError
from ldbench.experiment.config import Experiment


def profile_command(experiment: Experiment, out: Path | None, *, as_json: bool, metered: bool = False) -> int:
    """Measure a cost table and show it by stage and by cut."""

    import torch

    from ldbench.costs.break_even import StorePlan
    from ldbench.costs.profile import NOT_ASKED, as_dict, cut_rows, plot, stage_rows
    from ldbench.costs.stage_energy import measure_stage_energy
    from ldbench.devices import keep_freed_memory, resolve_device
    from ldbench.io.atomic import write_text
    from ldbench.io.checksums import plain
    from ldbench.io.places import scratch_folder
    from ldbench.models.zoo import build_model
    from ldbench.records.cell_files import check_place, write_json
    from ldbench.runner.plan import plan
    from ldbench.runner.preparation import Preparation
    from ldbench.stages.split import legal_cuts, split_stages, stage_parameters
    from ldbench.store.budget import resolve_budget
    from ldbench.training.optim import autocast_for, build_optimizer
    from ldbench.training.setup import model_spec

    keep_freed_memory()
    cell = plan(experiment)[0]
    device = resolve_device(experiment.device)
    if out is not None:
        check_place(out, "the profile")  # before minutes of measuring
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    with scratch_folder() as folder:
        preparation = Preparation(experiment, folder, device)
        data = preparation.data(cell)
        table = preparation.costs(cell)
        budget = resolve_budget(cell.cache_budget, device, folder)
    model = build_model(model_spec(cell, data.dataset)).to(device)
    stages = split_stages(model)
    energy = NOT_ASKED
    if metered:
        images = torch.arange(min(cell.batch_size, len(data.train)))
        optimizer = build_optimizer(cell, [list(model.parameters())])
        loss = torch.nn.CrossEntropyLoss(label_smoothing=cell.label_smoothing)
        autocast = autocast_for(cell.precision, device)
        energy = measure_stage_energy(
            stages, lambda: data.train.batch(images), optimizer, loss, device=device, autocast=autocast
        )
    sizes = [sum(p.numel() for p in parameters) for parameters in stage_parameters(stages)]
    by_stage = stage_rows(table, sizes, energy)
    stored = StorePlan(len(data.train), cell.cache_dtype, budget, views=experiment.cache_views)
    by_cut = cut_rows(table, stored, legal_cuts(stages), energy)
    found = plain(as_dict(table, by_stage, by_cut, len(data.train), energy) | {"views": stored.views})
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "profile.json", found)
            write_text(out / "profile.svg", plot(by_stage, by_cut, f"{cell.model} on {cell.dataset}"))
        except OSError as error:
            raise UserError(
                f"the profile cannot be written to {out}: {error.strerror}; choose another --out"
            ) from error
    if as_json:
        print(json.dumps(found))
        return 0
    views = f", {stored.views} stored views of each image" if stored.views > 1 else ""
    _print_profile(found, f"{cell.model} on {cell.dataset}, {device}{views}")
    return 0


def _print_profile(found: dict[str, Any], title: str) -> None:
    screen = console()
    screen.print(f"{escape(title)}: {found['epoch_seconds']:.3g} s per epoch of {found['train_size']} images")
    table = Table("stage", "forward ms", "backward ms", "J", "forward MFLOPs", "parameters", "output kB", box=None)
    for row in found["stages"]:
        times = (f"{1e3 * row[f'{way}_seconds']:.2f}" for way in ("forward", "backward"))
        flops, bytes_out = f"{row['forward_flops'] / 1e6:.2f}", f"{row['activation_bytes'] / 1e3:.1f}"
        table.add_row(escape(row["stage"]), *times, _three(row["joules"]), flops, f"{row['parameters']:,}", bytes_out)
    screen.print(table)
    saves = ("saves s/epoch", "of an epoch", "GFLOPs/epoch", "J/epoch")
    cuts = Table("drop up to", *saves, "store MB", "in", "build s", "pays after epochs", box=None)
    for row in found["cuts"]:
        share, pays = row["saved_share"], row["break_even_epochs"]
        cuts.add_row(
            f"{row['cut']}: {escape(row['after'])}" + ("" if row["legal"] else " (shares a parameter: not possible)"),
            _three(row["saved_seconds"]),
            "-" if share is None else f"{100 * share:.0f} %",
            f"{row['saved_flops'] / 1e9:.1f}",
            _three(row["saved_joules"]),
            f"{row['store_bytes'] / 1e6:.1f}",
            row["store_tier"] or "fits nowhere",
            _three(row["build_seconds"]),
            "never" if pays is None else f"{pays:.2f}",
        )
    screen.print(cuts)
    if found["energy_unavailable_reason"]:
        screen.print(f"Energy unavailable: {found['energy_unavailable_reason']}", markup=False, soft_wrap=True)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
