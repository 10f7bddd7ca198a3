"""A small CIFAR-10 in the files of 2009, pickled as Python 2 and NumPy 1 did."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torchvision.datasets as tv

Bytes = npt.NDArray[np.uint8]


def random_bytes(*shape: int) -> Bytes:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def pickled(value: object) -> bytes:
    """The opcodes Python 2 and NumPy 1 wrote for a value, as in CIFAR-10's batches of 2009."""
    if isinstance(value, str):
        text = value.encode("latin1")
        return b"U" + bytes([len(text)]) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(key) + pickled(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(pickled, value.shape)) + b"t"
    raw = b"T" + struct.pack("<i", value.nbytes) + value.tobytes()
    return empty + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"


@pytest.fixture
def cifar_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A CIFAR-10 of five batches of four images and a test batch, with torchvision's checksums set to it."""
    files = {}
    for number, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(4 * number + i) % 10 for i in range(4)]
        batch = {"data": random_bytes(4, 3072 + number)[:, number:], "labels": labels, "batch_label": file}
        files[file] = b"\x80\x02" + pickled(batch) + b"."
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files["batches.meta"] = b"\x80\x02" + pickled({"num_cases_per_batch": 4, "label_names": names}) + b"."
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[file, md5[file]] for file in files if file.startswith("data")])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": md5["batches.meta"]})
    return files


def write_cifar(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder
