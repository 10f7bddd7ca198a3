"""``ldbench doctor``: what this machine can do, each thing tried, with a cure for each gap.

A check imports what it needs and never assumes that another one passed: on a broken installation the rest still speaks.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

OK, GAP, FAIL, UNTRIED = "ok", "gap", "fail", "not tried"
MATCHING_WHEELS = (
    "reinstall both from one source: pip install --force-reinstall torch torchvision, "
    "with --index-url https://download.pytorch.org/whl/cpu for CPU-only builds"
)


@dataclass(frozen=True)
class Check:
    """One line of the screen.

    Attributes:
        name: what was looked at.
        status: "ok"; "gap", something is missing that training can do without; "fail"; "not tried".
        found: what was seen.
        cure: what to do about a gap or a failure, else "".
    """

    name: str
    status: str
    found: str
    cure: str = ""


def doctor(screen: Console, *, as_json: bool = False) -> int:
    """Run all checks and print them. Exit code 0 when a training step ran, else 1."""
    checks = list(_run_all())
    works = any(check.name == "training" and check.status == OK for check in checks)
    if as_json:
        print(json.dumps({"training_works": works, "checks": [asdict(check) for check in checks]}, indent=1))
        return 0 if works else 1
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    colours = {OK: "green", GAP: "yellow", FAIL: "red", UNTRIED: "dim"}
    for check in checks:
        text = check.found + (f"\n  -> {check.cure}" if check.cure else "")
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", _escape(text))
    screen.print(table)
    screen.print("Training works here." if works else "Training does not work here.")
    return 0 if works else 1


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _run_all() -> Iterator[Check]:
    checks: tuple[tuple[str, Callable[[], Check | list[Check]]], ...] = (
        ("Python", check_python), ("torch", check_torch), ("torchvision", check_torchvision),
        ("versions", check_versions), ("CUDA", check_cuda), ("triton", check_triton), ("GPU", check_gpus),
        ("energy", check_energy), ("powercap", check_powercap), ("data sets", check_datasets), ("memory", check_memory),
        ("disk", check_disk), ("training", check_training),
    )  # fmt: skip
    for name, check in checks:
        try:
            made = check()
        except Exception as error:  # whatever is broken here, the other checks still run
            made = Check(name, FAIL, _one_line(error), "see the message; ldbench run --debug shows where it comes from")
        yield from made if isinstance(made, list) else [made]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_python() -> Check:
    """The interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):
        return Check("Python", GAP, found, "install Python 3.11 or later")
    return Check("Python", OK, found)


def check_torch() -> Check:
    """Whether torch can be imported."""
    try:
        import torch
    except Exception as error:
        return Check("torch", FAIL, _one_line(error), "pip install torch torchvision")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPU only"
    return Check(
        "torch", OK, f"{torch.__version__} {built}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )


def check_torchvision() -> Check:
    """Whether torchvision can be imported, and works with this torch."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:
        return Check("torchvision", FAIL, _one_line(error), MATCHING_WHEELS)
    return Check("torchvision", OK, str(torchvision.__version__))


def _version(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version(package).split("+")[0].split(".")[:2] if part.isdigit())
    except metadata.PackageNotFoundError:
        return ()


def check_versions() -> Check:
    """Pairs of versions known not to work together."""
    triton, numpy = _version("triton"), _version("numpy")
    told = {
        name: ".".join(map(str, v)) for name in ("torch", "torchvision", "triton", "numpy") if (v := _version(name))
    }
    found = ", ".join(f"{name} {version}" for name, version in told.items())
    if triton and triton <= (3, 6) and numpy >= (2, 5):
        wrong = f"{found}: the interpreter of triton 3.6 does not work with numpy 2.5"
        return Check("versions", GAP, wrong, 'pip install "numpy<2.5" (matters without a GPU only)')
    return Check("versions", OK, f"{found}: no pair known not to work together")


def check_cuda() -> Check:
    """Whether torch sees a GPU and can compute on it."""
    import torch

    if not torch.cuda.is_available():
        if not torch.version.cuda:
            cure = "install a CUDA build of torch" if Path("/proc/driver/nvidia").exists() else ""
            return Check(
                "CUDA", GAP if cure else UNTRIED, "torch is built without CUDA: training runs on the CPU", cure
            )
        if not Path("/proc/driver/nvidia").exists():
            return Check("CUDA", UNTRIED, "no NVIDIA driver here: training runs on the CPU")
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else "the driver may be too old"
        cure = (
            "unset CUDA_VISIBLE_DEVICES"
            if hidden is not None
            else f"driver for CUDA {torch.version.cuda}, or an older torch"
        )
        return Check("CUDA", GAP, f"there is a driver but torch sees no GPU: {why}", cure)
    x = torch.randn(64, 64, device="cuda")
    torch.testing.assert_close((x @ x).cpu(), x.cpu() @ x.cpu(), rtol=1e-2, atol=1e-2)
    return Check("CUDA", OK, f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}: a matrix product is right")


def check_triton() -> Check:
    """Compile and run a kernel, in a process of its own; in Triton's interpreter where there is no GPU."""
    import torch

    if not _version("triton"):
        return Check(
            "triton", GAP, "not installed: kernels fall back to plain PyTorch", "pip install triton (Linux only)"
        )
    gpu = torch.cuda.is_available()
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | (
        {} if gpu else {"TRITON_INTERPRET": "1"}
    )
    command = [sys.executable, "-m", "ldbench.probe"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    version = metadata.version("triton")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        if not gpu:
            return Check(
                "triton", GAP, f"{version}: its interpreter fails: {said}", 'tests need it: pip install "numpy<2.5"'
            )
        return Check("triton", GAP, f"{version}: a kernel does not run: {said}", "install gcc and the Python headers")
    if gpu:
        return Check("triton", OK, f"{version}: a kernel compiled and ran on the GPU")
    return Check("triton", UNTRIED, f"{version}: no GPU to compile for; a kernel ran in the interpreter")


def check_gpus() -> list[Check]:
    """Every GPU that torch sees: memory, driver, MIG, other processes."""
    import torch

    from ldbench.meters import Unavailable
    from ldbench.meters.devices import device_uuid
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
            others = device.co_tenants(computing=torch.cuda.is_initialized())
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
    """The meter that training would use here, its tick as measured."""
    import torch

    from ldbench.meters import NullEnergyMeter, energy_meter

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = energy_meter(device)
    if isinstance(meter, NullEnergyMeter):
        cure = "sudo chmod a+r /sys/class/powercap/*/energy_uj" if "root only" in meter.reason else ""
        return Check(
            "energy",
            GAP,
            f"unavailable: {meter.reason}",
            cure or "figures of time and FLOPs need none; use a GPU for joules",
        )
    said = meter.total()
    return Check(
        "energy", OK, f"{said.method} of {device.type}, measured tick {1000 * (said.tick_seconds or 0):.0f} ms"
    )


def check_powercap() -> Check:
    """CPU package energy."""
    from ldbench.meters import Unavailable
    from ldbench.meters.powercap import package_counters

    try:
        counters = package_counters()
    except Unavailable as reason:
        cure = "sudo chmod a+r /sys/class/powercap/*/energy_uj" if "root only" in str(reason) else ""
        return Check("powercap", GAP if cure else UNTRIED, str(reason), cure)
    return Check("powercap", OK, f"{len(counters)} CPU packages can be read")


def check_datasets() -> list[Check]:
    """Open every data set by name; nothing is downloaded."""
    from ldbench.errors import UserError
    from ldbench.sources import DATASET_NAMES, data_root, load_dataset

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


def check_training() -> Check:
    """One step of a narrow ResNet-18, cut into stages, on real images."""
    import torch

    from ldbench.data import ResidentSplit
    from ldbench.models import ModelSpec, build_model
    from ldbench.sources import load_dataset
    from ldbench.stages import split_stages

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_dataset("digits", root=None, image_size=32)
    spec = ModelSpec("resnet18", data.channels, data.image_size, data.classes, 0.125)
    stages = split_stages(build_model(spec)).to(device).train()
    optimizer = torch.optim.SGD(stages.parameters(), 0.1)
    before = [p.detach().clone() for p in stages.parameters()]
    x, y = ResidentSplit(data.train, data.mean, data.std, device).batch(torch.arange(16))
    loss = torch.nn.functional.cross_entropy(stages(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(before, stages.parameters(), strict=True))
    if not bool(torch.isfinite(loss)) or not moved:
        return Check(
            "training",
            FAIL,
            f"one step on {device.type}: loss {float(loss)}, {moved} parameters moved",
            MATCHING_WHEELS,
        )
    return Check(
        "training", OK, f"one step of resnet18 in {len(stages)} stages ran on {device.type}, loss {float(loss):.2f}"
    )


def _gib(size: int | float) -> str:
    return f"{size / 2**30:.1f} GiB"
