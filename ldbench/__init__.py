"""Trains CNNs with and without layer dropping and proves what it saves.

Public names are loaded on first use, so that ``import ldbench`` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldbench.costs.table import CostTable as CostTable
    from ldbench.data.stream import Stream as Stream
    from ldbench.dropping.drop import Drop as Drop
    from ldbench.dropping.engine import LayerDropper as LayerDropper
    from ldbench.dropping.hooks import Hooks as Hooks
    from ldbench.errors import UserError as UserError
    from ldbench.meters import measure as measure
    from ldbench.models.fit import ModelSpec as ModelSpec
    from ldbench.models.zoo import build_model as build_model
    from ldbench.policies.base import Observation as Observation
    from ldbench.policies.baselines import AutoFreeze as AutoFreeze
    from ldbench.policies.baselines import FreezeOut as FreezeOut
    from ldbench.policies.infobatch import InfoBatch as InfoBatch
    from ldbench.policies.registry import Method as Method
    from ldbench.policies.registry import register_method as register_method
    from ldbench.policies.rules import FixedSchedule as FixedSchedule
    from ldbench.policies.rules import LearnAndDrop as LearnAndDrop
    from ldbench.policies.rules import Paced as Paced
    from ldbench.records.results import load_results as load_results
    from ldbench.reporting.report import write_report as write_report
    from ldbench.stages.split import split_stages as split_stages
    from ldbench.store.budget import StoreOptions as StoreOptions

__version__ = "0.1.0"

_HOME = {
    "AutoFreeze": "policies.baselines",
    "CostTable": "costs.table",
    "Drop": "dropping.drop",
    "FixedSchedule": "policies.rules",
    "FreezeOut": "policies.baselines",
    "Hooks": "dropping.hooks",
    "InfoBatch": "policies.infobatch",
    "LayerDropper": "dropping.engine",
    "LearnAndDrop": "policies.rules",
    "Method": "policies.registry",
    "ModelSpec": "models.fit",
    "Observation": "policies.base",
    "Paced": "policies.rules",
    "StoreOptions": "store.budget",
    "Stream": "data.stream",
    "UserError": "errors",
    "build_model": "models.zoo",
    "load_results": "records.results",
    "measure": "meters",
    "register_method": "policies.registry",
    "split_stages": "stages.split",
    "write_report": "reporting.report",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ldbench' has no attribute {name!r}")
    return getattr(import_module(f"ldbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
