"""What does the machine offer? GPUs, energy readings, data sets, memory and disk, each as found by trying."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ldbench.doctor.software import GAP, OK, UNTRIED, Check

OPEN_POWERCAP = "sudo chmod a+r /sys/class/powercap/*/energy_uj"


def check_gpus() -> list[Check]:
    """Every GPU that torch sees: memory, driver, MIG, other processes."""
    import torch

    from ldbench.meters import Unavailable
    from ldbench.meters.gpu_uuid import device_uuid
    from ldbench.meters.nvml import NvmlDevice, driver_version, load

    if not torch.cuda.is_available():
        return [Check("GPU", UNTRIED, "none to look at")]
    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found = f"cuda:{index} {torch.cuda.get_device_name(index)}, {_gib(free)} of {_gib(total)} free"
        try:
            nvml = load()
            device = NvmlDevice(device_uuid(torch.device("cuda", index), nvml, os.environ))
            others = device.co_tenants(computing=True)  # asked for free memory above: there is a context
            found += f", driver {driver_version(nvml)}, no MIG"
        except Unavailable as reason:
            checks.append(Check("GPU", GAP, f"{found}; {reason}", "training works; energy needs a whole GPU and NVML"))
            continue
        if others:
            told = f"{found}, {others} other processes compute on it"
            checks.append(
                Check("GPU", GAP, told, "time and energy are only true of a GPU used alone: end them or wait")
            )
        else:
            told = "other processes are not shown" if others is None else "no other process computes on it"
            checks.append(Check("GPU", OK, f"{found}, {told}"))
    return checks


def check_energy() -> Check:
    """The meter that training would use here, with its tick and lag."""
    import torch

    from ldbench.meters import NullEnergyMeter, energy_meter

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = energy_meter(device)
    if isinstance(meter, NullEnergyMeter):
        cure = OPEN_POWERCAP if "root only" in meter.reason else ""
        return Check(
            "energy",
            GAP,
            f"unavailable: {meter.reason}",
            cure or "figures of time and FLOPs need none; use a GPU for joules",
        )
    said = meter.total()
    told = f"measured tick {1000 * (said.tick_seconds or 0):.0f} ms"
    if said.lag_seconds:  # a CPU's is taken for 0 unmeasured
        told += f", lag up to {1000 * said.lag_seconds:.0f} ms"
    return Check("energy", OK, f"{said.method} of {device.type}, {told}")


def check_powercap() -> Check:
    """CPU package energy."""
    from ldbench.meters import Unavailable
    from ldbench.meters.powercap import package_counters

    try:
        counters = package_counters()
    except Unavailable as reason:
        cure = OPEN_POWERCAP if "root only" in str(reason) else ""
        return Check("powercap", GAP if cure else UNTRIED, str(reason), cure)
    return Check("powercap", OK, f"{len(counters)} CPU packages can be read")


def check_datasets() -> list[Check]:
    """Open every data set by name; nothing is downloaded."""
    from ldbench.data.datasets import data_root, load_dataset
    from ldbench.data.names import DATASET_NAMES
    from ldbench.errors import UserError

    root, checks = data_root(None).resolve(), []
    for name in DATASET_NAMES:
        try:
            data = load_dataset(name, root=None, train_size=20, test_size=20)
        except UserError as error:
            cure = f"ldbench run --dataset {name} --download, or set LDBENCH_DATA to the folder that holds it"
            checks.append(Check(name, GAP, str(error).partition("\n")[0], cure))
            continue
        where = "embedded in scikit-learn" if name == "digits" else f"read, data folder {root}"
        checks.append(
            Check(name, OK, f"{where}: {data.classes} classes, {data.channels} x {data.image_size} x {data.image_size}")
        )
    return checks


def check_memory() -> Check:
    """Main memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = sizes["MemAvailable"]
    found = f"{_gib(free)} of {_gib(sizes['MemTotal'])} available"
    if free < 2 * 2**30:
        return Check("memory", GAP, found, "close other programs, or take --train-size and a narrow --width")
    return Check("memory", OK, found)


def check_disk() -> Check:
    """Whether results can be written where the command runs."""
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"0" * 2**20)
    except OSError as error:
        return Check(
            "disk", GAP, f"{here} cannot be written to: {error.strerror}", "give ldbench run an --out elsewhere"
        )
    free = shutil.disk_usage(here).free
    found = f"{_gib(free)} free in {here}, a file was written"
    return (
        Check("disk", GAP, found, "activation stores on disk need room") if free < 2**30 else Check("disk", OK, found)
    )


def _gib(size: int | float) -> str:
    return f"{size / 2**30:.1f} GiB"
