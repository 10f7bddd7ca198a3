"""No kernel reads or writes beyond its buffers: a mask that is missing changes no value, only what is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parents[1] / "support"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=FOLDER, env=environment, capture_output=True, text=True, check=False
    )


def test_kernels_stay_inside_buffers_between_pages_that_may_not_be_touched() -> None:
    done = run("guarded_pages.py")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 150


@pytest.mark.parametrize("place", ["-1", "5"])
def test_one_element_beyond_a_guarded_buffer_ends_the_process(place: str) -> None:
    """Shows that the test above can fail."""
    read = f"""
import guarded_pages, torch
x = guarded_pages.guarded(torch.ones(5), at_end={place} > 0)
print(torch.as_strided(x, (5,), (1,)).sum().item())
import ctypes
ctypes.c_float.from_address(x.data_ptr() + 4 * {place}).value
"""
    done = run("-c", read)
    assert done.stdout == "5.0\n"
    assert done.returncode == -signal.SIGSEGV
