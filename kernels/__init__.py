"""The operations that layer dropping adds to training; readable alone, nothing from ldbench in it.

Triton kernels serve CUDA tensors, plain PyTorch the rest; ``LDBENCH_KERNELS=reference`` or ``triton`` forces one.
"""

from __future__ import annotations

from .dispatch import delta_norms, gather_rows
from .plan import DeltaNormPlan
from .reference import quantize_rows, row_stride, scale_count

__all__ = ["DeltaNormPlan", "delta_norms", "gather_rows", "quantize_rows", "row_stride", "scale_count"]
