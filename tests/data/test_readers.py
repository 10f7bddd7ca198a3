"""Arrays on disk: small files in the real formats, what damage to them says, and downloads from a local server."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from support.cifar import Bytes, random_bytes, write_cifar

from ldbench.data import readers
from ldbench.data.datasets import load_dataset
from ldbench.errors import UserError

PARTS = {"train": 30, "t10k": 20}


def complaint(name: str, root: Path, **options: bool) -> str:
    """The one line a failing load says."""
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=root, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx_file(array: Bytes) -> bytes:
    """An array in the IDX format: magic with type and rank, big-endian sizes, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def idx_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A Fashion-MNIST of 30 and 20 images, unpacked, with the reader's checksums set to it."""
    files = {}
    for part, count in PARTS.items():
        files[f"{part}-images-idx3-ubyte"] = idx_file(random_bytes(count, 28, 28))
        files[f"{part}-labels-idx1-ubyte"] = idx_file(np.arange(count, dtype=np.uint8) % 10)
    checksums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(readers.IDX_MD5, "fashion-mnist", checksums)
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", Path("/nonexistent/debian"))
    return files


def write_idx(folder: Path, files: dict[str, bytes], packed: bool) -> None:
    folder.mkdir(parents=True)
    for file, content in files.items():
        if packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_load_packed_and_unpacked(tmp_path: Path, idx_files: dict[str, bytes], packed: bool) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", idx_files, packed)
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset("fashion-mnist", root=tmp_path)
    assert torch.equal(data.train.images[:, 0, 2:30, 2:30], torch.from_numpy(random_bytes(30, 28, 28)))
    assert data.train.labels.tolist() == [i % 10 for i in range(30)]
    assert len(data.test) == 20
    assert data.class_names[9] == "Ankle boot"
    assert sorted(tmp_path.rglob("*")) == before, "loading must write nothing into the data root"


def test_debians_package_is_found_without_a_data_root(
    tmp_path: Path, idx_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_idx(tmp_path / "debian", idx_files, packed=True)
    assert len(load_dataset("fashion-mnist", root=tmp_path / "nothing").train) == 30


def test_missing_idx_files_say_where_they_were_looked_for_and_how_to_get_them(
    tmp_path: Path, idx_files: dict[str, bytes]
) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", idx_files, packed=True)
    (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    text = complaint("fashion-mnist", tmp_path)
    for part in (str(tmp_path / "FashionMNIST" / "raw"), "/nonexistent/debian", "--download", "dataset-fashion-mnist"):
        assert part in text
    assert str(tmp_path / "MNIST" / "raw") in complaint("mnist", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("harm", ["truncated", "altered", "empty"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, idx_files: dict[str, bytes], packed: bool, harm: str) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder, idx_files, packed)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes({"truncated": path.read_bytes()[:-500], "altered": bytes(content), "empty": b""}[harm])
    text = complaint("fashion-mnist", tmp_path)
    assert str(path) in text
    assert "damaged" in text
    assert "--download" in text


def test_packed_files_that_are_no_gzip_are_damaged(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder, idx_files, packed=True)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    assert "t10k-labels-idx1-ubyte.gz is damaged" in complaint("fashion-mnist", tmp_path)


def test_a_data_root_that_may_not_be_entered_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert "mnist cannot be read" in complaint("mnist", tmp_path)


def test_cifar10_batches_in_the_format_of_2009_load_without_a_warning(
    tmp_path: Path, cifar_files: dict[str, bytes]
) -> None:
    write_cifar(tmp_path, cifar_files)
    data = load_dataset("cifar10", root=tmp_path)
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.train.labels.tolist() == [i % 10 for i in range(20)]
    second = torch.from_numpy(random_bytes(4, 3073)[:, 1:].copy()).view(4, 3, 32, 32)
    assert torch.equal(data.train.images[4:8], second)
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.class_names[0] == "airplane"
    assert (data.channels, data.image_size, data.classes, data.padded_from) == (3, 32, 10, None)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_cifar10_file_is_named_and_never_unpickled(
    tmp_path: Path, cifar_files: dict[str, bytes], file: str
) -> None:
    folder = write_cifar(tmp_path, cifar_files)
    (folder / file).write_bytes(cifar_files[file][:-3])
    text = complaint("cifar10", tmp_path)
    assert str(folder / file) in text
    assert "damaged" in text


def test_missing_cifar10_says_where_it_was_looked_for(tmp_path: Path) -> None:
    text = complaint("cifar10", tmp_path)
    assert str(tmp_path / "cifar-10-batches-py") in text
    assert "--download" in text


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def test_fashion_mnist_downloads(
    tmp_path: Path, idx_files: dict[str, bytes], server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    resources = []
    for file, content in idx_files.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        resources.append((f"{file}.gz", hashlib.md5((folder / f"{file}.gz").read_bytes()).hexdigest()))
    monkeypatch.setattr(tv.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(tv.FashionMNIST, "resources", resources)
    assert len(load_dataset("fashion-mnist", root=tmp_path / "root", download=True).train) == 30


def test_cifar10_downloads_and_a_wrong_archive_is_one_line(
    tmp_path: Path, cifar_files: dict[str, bytes], server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for file, content in cifar_files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(tv.CIFAR10, "url", address + "cifar.tar.gz")
    text = complaint("cifar10", tmp_path / "root", download=True)
    assert "cifar10 could not be downloaded" in text
    assert str(tmp_path / "root") in text
    md5 = hashlib.md5((folder / "cifar.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5)
    assert len(load_dataset("cifar10", root=tmp_path / "root", download=True).train) == 20


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "imagenette"])
def test_a_download_without_a_network_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", Path("/nonexistent/debian"))
    text = complaint(name, tmp_path, download=True)
    assert f"{name} could not be downloaded to {tmp_path}" in text
    assert "Name or service not known" in text


def test_a_download_into_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cifar10 could not be downloaded" in complaint("cifar10", tmp_path / "file" / "root", download=True)


def test_digits_are_the_real_ones_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    original = torch.from_numpy(digits.images)
    data = load_dataset("digits", root=None, image_size=8)
    assert (len(data.train), len(data.val), len(data.test)) == (1437, 0, 360)
    both = torch.cat([data.train.images, data.test.images])[:, 0].double() * 16 / 255
    assert torch.equal(both.round().flatten(1).sort(0).values, original.flatten(1).sort(0).values)
    fifth = torch.from_numpy(np.bincount(digits.target)) * 360 / 1797
    assert (torch.bincount(data.test.labels) - fifth).abs().max() < 1.5


def test_synthetic_images_are_random_non_zero_and_marked() -> None:
    data = load_dataset("synthetic:3x16x16:7:700", root=None)
    assert data.synthetic
    assert data.train.images.shape == (700, 3, 16, 16)
    assert (data.classes, len(data.test)) == (7, 140)
    assert int(data.train.images.min()) == 1
    assert int(data.train.images.max()) == 255
    assert torch.bincount(data.train.labels).tolist() == [100] * 7
    assert not torch.equal(data.train.images[:140], data.test.images)
    assert data.fingerprint == load_dataset("synthetic:3x16x16:7:700", root=None).fingerprint


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("", "synthetic:CxHxW:CLASSES:N"),
        ("3x32:10:100", "synthetic:CxHxW:CLASSES:N"),
        ("3x32x32:10:0", "synthetic:CxHxW:CLASSES:N"),
        ("3x32x32:10:many", "synthetic:CxHxW:CLASSES:N"),
        ("3x32x16:10:100", "square"),
        ("3x32x32:1:100", "2 classes"),
        ("3x32x32:10:9", "an image for each"),
    ],
)
def test_a_wrong_synthetic_name_says_the_right_form(argument: str, said: str, tmp_path: Path) -> None:
    assert said in complaint(f"synthetic:{argument}", tmp_path)
