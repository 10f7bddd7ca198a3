"""A data set's splits where training reads them, and the network that fits them."""

from __future__ import annotations

from dataclasses import dataclass

from ldbench.config import Cell
from ldbench.data import Dataset, ResidentSplit
from ldbench.models import ModelSpec


@dataclass(frozen=True)
class Resident:
    """A data set's splits on the device, normalised there; shared by all cells of the data set."""

    dataset: Dataset
    train: ResidentSplit
    val: ResidentSplit | None
    test: ResidentSplit
    seconds: float


def model_spec(cell: Cell, dataset: Dataset) -> ModelSpec:
    """The architecture of a cell, fitted to its data."""
    return ModelSpec(cell.model, dataset.channels, dataset.image_size, dataset.classes, cell.width, cell.dropout)
