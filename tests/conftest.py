"""Test-wide settings: Triton's interpreter without a GPU, small thread pools, hypothesis profiles."""

from __future__ import annotations

import os

import torch

# Triton reads this when a kernel is decorated, so it must stand before any import of ldbench.kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")
