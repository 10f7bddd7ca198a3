"""Is the software sound? Each check tries what it tells of, and imports what it needs when it needs it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ldbench.errors import one_line

OK, GAP, FAIL, UNTRIED = "ok", "gap", "fail", "not tried"
LEAST_PYTHON = (3, 11)
MATCHING_WHEELS = (
    "reinstall both from one source: pip install --force-reinstall torch torchvision, "
    "from the index that https://pytorch.org/get-started/locally names for this machine"
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


def check_python() -> Check:
    """The interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        return Check("Python", GAP, found, "install Python 3.11 or later")
    return Check("Python", OK, found)


def check_torch() -> Check:
    """Whether torch can be imported."""
    try:
        import torch
    except Exception as error:
        return Check("torch", FAIL, one_line(error, kind=True), "pip install torch torchvision")
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
        return Check("torchvision", FAIL, one_line(error, kind=True), MATCHING_WHEELS)
    return Check("torchvision", OK, str(torchvision.__version__))


def _version(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version(package).split("+")[0].split(".")[:2] if part.isdigit())
    except PackageNotFoundError:
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
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return Check("CUDA", OK, f"{torch.version.cuda}, cuDNN {cudnn}: a matrix product is right")


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
    command = [sys.executable, "-m", "ldbench.doctor.triton_probe"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    found = version("triton")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        if not gpu:
            return Check(
                "triton", GAP, f"{found}: its interpreter fails: {said}", 'tests need it: pip install "numpy<2.5"'
            )
        return Check("triton", GAP, f"{found}: a kernel does not run: {said}", "install gcc and the Python headers")
    if gpu:
        return Check("triton", OK, f"{found}: a kernel compiled and ran on the GPU")
    return Check("triton", UNTRIED, f"{found}: no GPU to compile for; a kernel ran in the interpreter")


def check_training() -> Check:
    """One step of a narrow ResNet-18, cut into stages, on real images."""
    import torch

    from ldbench.data.datasets import load_dataset
    from ldbench.data.loader import ResidentSplit
    from ldbench.models.fit import ModelSpec
    from ldbench.models.zoo import build_model
    from ldbench.stages.split import split_stages

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
            f"one step on {device.type}: loss {loss.item()}, {moved} parameters moved",
            MATCHING_WHEELS,
        )
    return Check(
        "training", OK, f"one step of resnet18 in {len(stages)} stages ran on {device.type}, loss {loss.item():.2f}"
    )
