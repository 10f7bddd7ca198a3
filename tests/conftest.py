"""Test-wide settings: Triton's interpreter without a GPU, small thread pools, hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Triton reads this when a kernel is decorated, so it must stand before any import of ldbench.kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings
from support.cifar import cifar_files  # noqa: F401 - a fixture

settings.register_profile(
    "default", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread per operation: small networks are faster so, and feel the machine's other work less."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
