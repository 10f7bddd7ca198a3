"""Where the asv suites find the names of ldbench: asv runs them against old commits too, whose modules lay flat.

A name is looked for when it is imported from here, so that a suite loads no more than it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Its module in this checkout and in the commits up to 5993b76.
PLACES = {
    "LayerDropper": ("dropping.engine", "dropping"),
    "ModelSpec": ("models.fit", "fitting"),
    "NeverDrop": ("policies.base", "policy"),
    "build_model": ("models.zoo", "models"),
    "cells": ("experiment.grid", "config"),
    "count_stage_flops": ("stages.flops", "flops"),
    "default_recipe": ("models.recipes", "recipes"),
    "experiment_from_dict": ("experiment.validation", "config"),
    "keep_freed_memory": ("devices", "allocator"),
    "split_stages": ("stages.split", "stages"),
    "synchronize": ("devices", "costs"),
    "write_report": ("reporting.report", "report"),
    "write_sealed": ("io.checksums", "sealed"),
}


def __getattr__(name: str) -> Any:
    for place in (f"ldbench.{place}" for place in PLACES.get(name, ())):
        try:
            return getattr(import_module(place), name)
        except ModuleNotFoundError as error:
            if not place.startswith(str(error.name)):
                raise  # the place is there, and something that it needs is not
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def building_seconds(engine: Any) -> float:
    """Seconds that an engine has spent on building stores."""
    return float(engine.account.building_seconds if hasattr(engine, "account") else engine.cache_build_seconds)
