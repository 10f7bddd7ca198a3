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
from ldbench.data.sample_check import check_samples, gives_random_views, repeats_views
from ldbench.errors import UserError, one_line
from ldbench.seeds import preserved_streams
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
    made = _views(source, views, seed)
    if made.draw is not None and not made.plain:
        notes += _told(source, made)
    return UserData(images, stored, made, size, notes)


def _views(source: BatchSource, asked: Several, seed: int) -> Views:
    """The views of a source's samples. Raises ``UserError`` where they would all be the same one."""
    augment = None if isinstance(source, (TensorSource, DatasetSource)) else asked.augment
    drawn: Any = source if augment is None else augment
    by = f"{type(drawn).__module__}.{type(drawn).__qualname__}, seed {seed}" if augment is None else _named(augment)
    plain = augment is not None  # what is augmented here is stored as it is where one view is asked for
    made = Views(asked.count, getattr(drawn, "of_view", None), by, seed, asked.renewed, plain)
    if made.draw is None and (asked.count > 1 or asked.renewed):
        where = "random transforms of a data set"
        if not isinstance(source, TensorSource):
            where = "of_view(samples, view) of augment=, or of the source of data itself"
        raise UserError(f"views={asked.count}: every view of a sample would be the same one; they come from {where}")
    return made


def _named(augment: Any) -> str:
    """What draws, in words that another process has, too."""
    told = repr(augment)
    return f"{type(augment).__module__}.{type(augment).__qualname__}" if " object at 0x" in told else told


def _told(source: BatchSource, views: Views) -> list[str]:
    """What is to be known of a source that draws its views itself."""
    if not gives_random_views(source):
        if views.count == 1 and not views.renewed:
            return []
        return [
            "several views of each sample are stored, and those that were looked at are all the same: has the data set random transforms?"
        ]
    notes = []
    if views.count == 1 and not views.renewed:
        notes.append(
            "the data set gives another view of a sample each time it is read: once stages are dropped, training reads "
            "one stored view of each; views= stores more, and store_data= says which, as a data set without random "
            "transforms"
        )
    if not repeats_views(source):
        notes.append(
            "random transforms of the data set draw from a generator of their own: a store that has to be made again "
            "holds other views"
        )
    return notes


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
        with preserved_streams():
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
