"""Which GPU a CUDA device is: NVML counts in PCI order, CUDA in its own, so devices are matched by UUID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ldbench.meters.energy import Unavailable


def visible_uuids(uuids: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """UUIDs by CUDA device number, from the environment alone.

    Args:
        uuids: all GPUs in PCI order.
        environ: its CUDA_VISIBLE_DEVICES holds numbers, or UUIDs cut short at will. Like CUDA, everything from the
            first entry that names no device on is left out.

    Raises:
        Unavailable: there are several GPUs, numbered in CUDA's own order, which the environment does not tell.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    by_number = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(uuids) == 1
    unknown = Unavailable(
        "with several GPUs, CUDA's own numbering does not tell which is which: set CUDA_DEVICE_ORDER=PCI_BUS_ID, "
        "or name GPUs by UUID in CUDA_VISIBLE_DEVICES"
    )
    if chosen is None:
        if not by_number:
            raise unknown
        return list(uuids)
    found: list[str] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdigit():
            if not by_number:
                raise unknown
            matches = list(uuids[int(entry) : int(entry) + 1])
        else:
            matches = [uuid for uuid in uuids if entry and uuid.lower().startswith(entry.lower())]
            if entry.startswith("MIG-"):
                matches = [entry]
        if len(matches) != 1 or matches[0] in found:
            break
        found += matches
    return found


def device_uuid(device: torch.device, nvml: Any, environ: Mapping[str, str]) -> str:
    """UUID of a CUDA device as NVML writes it ("GPU-..."). Raises ``Unavailable`` where it cannot be told."""
    from ldbench.meters.nvml import reasons

    if "MIG-" in environ.get("CUDA_VISIBLE_DEVICES", ""):
        raise Unavailable("the device is a MIG slice: the GPU's power is metered as a whole, not by slice")
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    if (uuid := getattr(properties, "uuid", None)) is not None:
        text = str(uuid)
        return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
    with reasons(nvml):
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    visible = visible_uuids(uuids, environ)
    if index >= len(visible):
        raise Unavailable(f"CUDA device {index} is not among the GPUs that NVML shows")
    return visible[index]
