"""A data set's splits where training reads them, the order in which they come, and the network that fits them."""

from __future__ import annotations

from dataclasses import dataclass

from ldbench.data.datasets import Dataset
from ldbench.data.loader import ResidentSplit
from ldbench.data.stream import Stream, chunked
from ldbench.errors import UserError
from ldbench.experiment.config import Cell
from ldbench.experiment.scenarios import STREAMS
from ldbench.models.fit import ModelSpec


@dataclass(frozen=True)
class Resident:
    """A data set's splits on the device, normalised there; shared by all cells of the data set."""

    dataset: Dataset
    train: ResidentSplit
    val: ResidentSplit | None
    test: ResidentSplit
    seconds: float


def stream_of(cell: Cell, dataset: Dataset) -> Stream:
    """Which training samples the cell can draw when. Raises ``UserError`` where a chunk would not fill a minibatch."""
    samples = len(dataset.train)
    if cell.chunks is None:
        return Stream.whole(samples)
    size = samples // cell.chunks
    if size < cell.batch_size:
        raise UserError(
            f"{cell.dataset}: {cell.chunks} chunks of {samples} training images hold {size} each and fill no minibatch "
            f"of {cell.batch_size}: take fewer --chunks, a smaller --batch-size or more images"
        )
    memory = size if cell.memory is None else cell.memory
    labels, order = dataset.train.labels, cell.stream or STREAMS[0]
    return chunked(labels, cell.seed, chunks=cell.chunks, memory=memory, stream=order)


def model_spec(cell: Cell, dataset: Dataset) -> ModelSpec:
    """The architecture of a cell, fitted to its data."""
    return ModelSpec(cell.model, dataset.channels, dataset.image_size, dataset.classes, cell.width, cell.dropout)
