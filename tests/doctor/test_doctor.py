"""The doctor tells what it tried, and its exit code is whether a training step ran."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch
from rich.console import Console
from support.fake_nvml import Clock, FakeNvml, Gpu

from ldbench.cli import app as cli
from ldbench.doctor import checks as doctor
from ldbench.doctor import machine
from ldbench.doctor import software as checks
from ldbench.doctor.software import FAIL, GAP, OK, UNTRIED
from ldbench.meters import nvml as meters_nvml
from ldbench.meters.energy import Unavailable


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_command_prints_json_and_ends_with_0_where_training_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDBENCH_DATA", raising=False)
    assert cli.app(["doctor", "--json"], standalone_mode=False) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["training_works"] is True
    by_name = {check["name"]: check for check in found["checks"]}
    assert set(by_name) >= {"Python", "torch", "torchvision", "triton", "energy", "digits", "imagenette", "training"}
    assert by_name["digits"]["status"] == by_name["training"]["status"] == OK
    assert by_name["imagenette"]["status"] == GAP
    assert all(check["cure"] for check in found["checks"] if check["status"] in (GAP, FAIL))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_installation_is_told_check_by_check_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> checks.Check:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(
        doctor, "CHECKS", (("torch", checks.check_torch), ("training", broken), ("Python", checks.check_python))
    )
    assert doctor.doctor(Console(width=200), as_json=False) == 1
    printed = capsys.readouterr().out
    assert "operator torchvision::nms does not exist" in printed
    assert "Training does not work here." in printed
    assert "Python" in printed


def test_a_package_that_cannot_be_imported_is_a_failure_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, check in (("torchvision", checks.check_torchvision), ("torch", checks.check_torch)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            told = check()
        assert told.status == FAIL
        assert "pip install" in told.cure


@pytest.mark.parametrize(
    ("triton", "numpy", "status"), [("3.6.0", "2.5.1", GAP), ("3.6.0", "2.4.6", OK), ("3.9.0", "2.5.0", OK)]
)
def test_versions_known_not_to_work_together_are_named(
    monkeypatch: pytest.MonkeyPatch, triton: str, numpy: str, status: str
) -> None:
    installed = {"triton": triton, "numpy": numpy, "torch": "2.11.0+cpu"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(checks, "version", version)
    told = checks.check_versions()
    assert told.status == status
    assert "torch 2.11" in told.found


@pytest.mark.usefixtures("no_gpu")
def test_triton_without_a_gpu_is_not_claimed_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = SimpleNamespace(returncode=0, stderr="", stdout="")
    monkeypatch.setattr(checks.subprocess, "run", lambda *a, **k: ends)
    assert checks.check_triton().status == UNTRIED
    ends.returncode, ends.stderr = 1, "Traceback\nTypeError: only 0-dimensional arrays can be converted"
    told = checks.check_triton()
    assert told.status == GAP
    assert "only 0-dimensional" in told.found


@pytest.mark.usefixtures("no_gpu")
def test_nothing_is_said_of_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in machine.check_gpus()] == [UNTRIED]
    assert checks.check_cuda().status in (UNTRIED, GAP)


def test_gpus_are_told_with_driver_mig_and_co_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(Clock())
    fake = FakeNvml(gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Paper GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=gpu.uuid))
    monkeypatch.setattr(meters_nvml, "load", lambda: fake)
    (told,) = machine.check_gpus()
    assert (told.status, told.cure) == (OK, "")
    assert "driver 999.1" in told.found
    gpu.pids = [1, 2, 3]
    (told,) = machine.check_gpus()
    assert told.status == GAP
    assert "2 other processes" in told.found
    gpu.mig = 1
    (told,) = machine.check_gpus()
    assert told.status == GAP
    assert "MIG" in told.found
    fake.errors["nvmlDeviceGetHandleByUUID"] = pynvml.NVML_ERROR_NO_PERMISSION
    (told,) = machine.check_gpus()
    assert "no permission" in told.found


@pytest.mark.usefixtures("no_gpu")
def test_unreadable_cpu_energy_comes_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.meters import powercap, select

    def closed(*arguments: object) -> None:
        raise Unavailable("energy_uj is not readable by this user (root only on most systems)")

    monkeypatch.setattr(select, "package_counters", closed)
    monkeypatch.setattr(powercap, "package_counters", closed)
    for told in (machine.check_energy(), machine.check_powercap()):
        assert told.status == GAP
        assert "chmod" in told.cure


def test_a_folder_that_cannot_be_written_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
    told = machine.check_disk()
    assert told.status == GAP
    assert "No space left" in told.found
