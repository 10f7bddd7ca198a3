"""Devices of CUDA are matched to those of NVML by UUID."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.fake_nvml import ONE, TWO, Clock, FakeNvml, Gpu

from ldbench.meters import Unavailable
from ldbench.meters.gpu_uuid import device_uuid, visible_uuids


@pytest.mark.parametrize(
    ("visible", "order", "expected"),
    [
        (None, "PCI_BUS_ID", [ONE, TWO]),
        ("1,0", "PCI_BUS_ID", [TWO, ONE]),
        ("1", "PCI_BUS_ID", [TWO]),
        (f"{TWO},{ONE}", None, [TWO, ONE]),
        ("GPU-22", None, [TWO]),
        ("gpu-2,GPU-1", None, [TWO, ONE]),
        ("0,-1,1", "PCI_BUS_ID", [ONE]),
        ("", "PCI_BUS_ID", []),
        ("GPU-", None, []),
        ("0,0", "PCI_BUS_ID", [ONE]),
        ("7", "PCI_BUS_ID", []),
        ("MIG-5", None, ["MIG-5"]),
    ],
)
def test_visible_devices_are_matched_by_uuid(visible: str | None, order: str | None, expected: list[str]) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    assert visible_uuids([ONE, TWO], {k: v for k, v in environ.items() if v is not None}) == expected


def test_numbers_in_cudas_own_order_are_not_guessed_at() -> None:
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "1,0"}):
        with pytest.raises(Unavailable, match="CUDA_DEVICE_ORDER"):
            visible_uuids([ONE, TWO], environ)
        assert visible_uuids([ONE], {}) == [ONE]


def test_the_uuid_that_torch_tells_decides_even_where_cuda_and_pci_order_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    nvml = FakeNvml(Gpu(clock, ONE), Gpu(clock, TWO))
    cuda_order = [TWO, ONE]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=cuda_order[i].removeprefix("GPU-"))
    )
    assert device_uuid(torch.device("cuda:0"), nvml, {}) == TWO
    assert device_uuid(torch.device("cuda:1"), nvml, {}) == ONE
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace())
    assert device_uuid(torch.device("cuda:0"), nvml, {"CUDA_VISIBLE_DEVICES": "GPU-22"}) == TWO
    with pytest.raises(Unavailable, match="not among"):
        device_uuid(torch.device("cuda:1"), nvml, {"CUDA_VISIBLE_DEVICES": "GPU-22"})
