"""The operations that layer dropping adds to training; readable alone, nothing from ldbench in it."""

from __future__ import annotations

from .reference import DeltaNormPlan, delta_norms, gather_rows, quantize_rows, row_stride

__all__ = ["DeltaNormPlan", "delta_norms", "gather_rows", "quantize_rows", "row_stride"]
