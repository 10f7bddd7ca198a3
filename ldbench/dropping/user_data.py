"""What a user gives as data, made fit to be trained on, and tried before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ldbench.data.batch_source import BatchSource, TensorSource, as_batch_source, describe_batch
from ldbench.data.dataset_source import DatasetSource, from_data_loader
from ldbench.data.items import Reading
from ldbench.data.sample_check import check_samples, gives_random_views
from ldbench.errors import UserError, one_line
from ldbench.stages.undisturbed import undisturbed
from ldbench.store.fill import Autocast
from ldbench.store.views import Views

_TRIED = 2  # samples


@dataclass(frozen=True)
class Several:
    """What is asked of the views that a store holds.

    Attributes:
        count: of each sample.
        renewed: share of all that is made anew in every epoch.
        augment: draws augmentation for a ``BatchSource`` that applies it; None: none.
    """

    count: int = 1
    renewed: float = 0.0
    augment: Any = None


@dataclass(frozen=True)
class UserData:
    """Where minibatches come from.

    Attributes:
        images: what training reads.
        stored: what is stored of each sample, where that is not what training reads.
        views: how many of each are stored, and what draws them.
        batch_size: of the data loader that was given, if one was.
        notes: for people.
    """

    images: BatchSource
    stored: BatchSource | None = None
    views: Views = field(default_factory=Views)
    batch_size: int | None = None
    notes: list[str] = field(default_factory=list)


def open_user_data(
    data: Any,
    store_data: Any,
    device: torch.device,
    seed: int,
    *,
    views: Several | None,
    reading: Mapping[str, Any],
) -> UserData:
    """Sources of minibatches, looked at: some samples are read.

    Args:
        store_data: the view of the same samples that is stored; None: the one that training reads.
        views: what is to be stored of each sample, so that it matters whether it looks the same each time; None: no
            store is wanted.
        reading: fields of ``Reading``, over what a ``DataLoader`` brings; None: as that or by default.

    Raises:
        UserError: one line says what is expected instead.
    """
    options = {name: value for name, value in reading.items() if value is not None}
    images, size, notes = _open(data, device, seed, options)
    stored = None
    if store_data is not None:
        stored, _, _ = _open(store_data, device, seed, options)
        if len(stored) != len(images):
            raise UserError(
                f"store_data has {len(stored)} samples and data {len(images)}: they are views of the same ones"
            )
    if views is None:
        return UserData(images, stored, Views(), size, notes)
    source = images if stored is None else stored
    random = gives_random_views(source)
    if views.count == 1 and not views.renewed and random:
        notes.append(
            "the data set gives another view of a sample each time it is read: once stages are dropped, training reads "
            "one stored view of each; views= stores more, and store_data= says which, as a data set without random "
            "transforms"
        )
    return UserData(images, stored, _views(source, random, views, seed), size, notes)


def _views(source: BatchSource, random: bool, asked: Several, seed: int) -> Views:
    """The views of a source's samples. Raises ``UserError`` where they would all be the same one."""
    drawn = asked.augment
    if drawn is None and (random or not isinstance(source, DatasetSource)):
        drawn = source
    plain = asked.augment is not None  # what is augmented here is stored as it is where one view is asked for
    by = repr(drawn) if plain else f"{type(drawn).__name__}, seed {seed}"
    made = Views(asked.count, getattr(drawn, "of_view", None), by, seed, asked.renewed, plain)
    if made.draw is None and (asked.count > 1 or asked.renewed):
        where = "random transforms of the data set"
        if not isinstance(source, (TensorSource, DatasetSource)):
            where = "of_view(samples, view) of augment=, or of the source of data itself"
        raise UserError(f"views={asked.count}: every view of a sample would be the same one; they come from {where}")
    return made


def _open(
    data: Any, device: torch.device, seed: int, options: dict[str, Any]
) -> tuple[BatchSource, int | None, list[str]]:
    size, notes, reading = None, list[str](), Reading()
    if isinstance(data, DataLoader):
        data, size, reading, notes = from_data_loader(data)
    source = as_batch_source(data, device, dataclasses.replace(reading, **options), seed=seed)
    check_samples(source)
    return source, size, notes


def try_network(stages: nn.Sequential, data: UserData, device: torch.device, autocast: Autocast) -> None:
    """Send some samples of a user's data through the network. Raises ``UserError`` where it does not read them."""
    for source in filter(None, (data.images, data.stored)):
        if not isinstance(source, (TensorSource, DatasetSource)):
            continue  # its maker knows
        x, y = source.batch(torch.arange(min(_TRIED, len(source))))
        with undisturbed(stages, device), torch.no_grad(), autocast():
            try:
                stages.eval()(x)
            except Exception as error:
                wanted = str(next(stages.parameters()).dtype).removeprefix("torch.")
                raise UserError(
                    f"the network does not read {describe_batch(x, y)}: {one_line(error)}; it wants images [N, C, H, W] of "
                    f"its own channels and size, as floats ({wanted}, or what autocast= makes of them)"
                ) from error
