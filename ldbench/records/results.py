"""Reads the result folders of an experiment back: one row per cell, whatever cannot be trusted named and left out."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ldbench.errors import UserError
from ldbench.experiment.config import Cell, at_default
from ldbench.io.checksums import Damaged, check, check_schema, parse, parse_sealed
from ldbench.records.declared import read_declared
from ldbench.records.stored import Place, Stored, stored
from ldbench.records.tuning import Choices, read_tuning

TEXT = ("model", "dataset", "method", "status")
OPTIONAL_TEXT = (
    "finished_at", "error", "peak_memory_kind", "store_tier", "energy_unavailable_reason", "energy_method",
    "augmentation", "augmentation_after_drop", "precision", "stem", "head", "data_fingerprint", "init_origin",
    "init_sha256", "pretrain_dataset", "claims_sha256",
)  # fmt: skip
NUMBERS = (
    "budget", "test_accuracy", "test_loss", "val_accuracy", "test_images", "chance_accuracy", "steps", "epochs",
    "batch_size", "train_size", "train_seconds", "cache_build_seconds", "scoring_seconds", "eval_seconds",
    "data_seconds", "cost_table_seconds", "compile_seconds", "forward_flops", "backward_flops", "cache_build_flops",
    "scoring_flops", "forward_flops_full", "backward_flops_full", "predicted_saved_seconds", "peak_memory_bytes",
    "store_bytes", "energy_joules", "energy_bound_joules", "energy_net_joules", "energy_tick_seconds",
    "energy_lag_seconds", "dropped_stages", "width", "image_size", "init_tensors_taken", "pretrain_seconds",
    "pretrain_epochs", "pretrain_images", "pretrain_accuracy", "average_accuracy", "average_val_accuracy",
    "memory_size", "chunk_size", "typical_train_seconds",
)  # fmt: skip
FLAGS = ("at_chance", "synthetic")
COLUMNS = (
    "cell", *TEXT, "scenario", "seed", *OPTIONAL_TEXT, *NUMBERS, *FLAGS, "setting", "policy", "refreshes", "tuned",
    "tuned_edge", "stage_count", "test_correct", "drops", "declined", "chunks",
)  # fmt: skip
LARGEST = 1e30  # no count of FLOPs comes near
STATUSES = ("finished", "diverged", "failed")
# What a method may differ in from its controls; every other field of a cell's configuration must agree.
OF_THE_METHOD = (
    "method", "budget", "seed", "policy", "model", "dataset", "scenario", "refresh_statistics", "decide_by",
    "cache_views", "refresh_views", "change_features",
)  # fmt: skip
SETTING = tuple(entry.name for entry in dataclasses.fields(Cell) if entry.name not in OF_THE_METHOD)


def load_results(directory: Place, *, stages: bool = False) -> pd.DataFrame:
    """Every readable cell of a results folder, or of a file that ``ldbench pack`` made of one, as one row.

    They are sorted by model, data set, scenario, method, budget and seed.
    Columns are the keys of ``result.json`` (units in the names, missing numbers NaN), ``environment_<key>`` for each
    entry of the environment, ``setting`` and ``policy`` (canonical JSON out of ``config.json``), ``cell`` (folder
    name), ``stage_count``, ``test_correct`` (packed bits; see ``unpack_correct``), and the lists ``drops``,
    ``declined`` and ``chunks``. What was tuned (``tuning.json``) may differ between the methods of a comparison: it
    stands in ``tuned`` (canonical JSON) and not in ``setting``; ``tuned_edge`` names those of its keys, joined by "; ",
    whose value lies at the edge of what was tried.
    ``stages=True`` adds the per-stage list, which dominates the memory of a large experiment.

    ``attrs["declared"]`` is what ``read_declared`` makes of the experiment.
    ``attrs["left_out"]`` lists (path, reason) of everything damaged, unfinished or written by a newer schema, and of
    cells with other values than tuning chose.
    Raises ``UserError`` when ``directory`` holds no experiment.
    """
    place = stored(directory)
    place.check()
    rows: list[dict[str, Any]] = []
    left_out = place.gaps()
    try:
        cells = [name for name in place.cells() if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"{place.path / 'cells'} cannot be read: {error.strerror}") from error
    choices = Choices(read_tuning(place))
    for cell in cells:
        try:
            rows.append(_row(place, cell, stages, choices))
        except Damaged as error:
            left_out.append((f"cells/{cell}/result.json", str(error)))
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(COLUMNS))
    frame = frame.sort_values(["model", "dataset", "scenario", "method", "budget", "seed", "cell"], ignore_index=True)
    frame.attrs["left_out"] = left_out
    frame.attrs["declared"] = read_declared(place)
    return frame


def unpack_correct(packed: bytes | None, images: float) -> NDArray[np.bool_] | None:
    """Bool ``[images]``: which test images were classified right, or ``None`` where the record has no such bits."""
    if not packed or not math.isfinite(images) or len(packed) != math.ceil(images / 8):
        return None
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=int(images)).astype(bool)


def read_lines(place: Place, name: str) -> list[dict[str, Any]]:
    """The JSON objects of a ``.jsonl`` file of the results; empty without one. Torn or foreign lines and the seal are left
    out.
    """
    found = (_parse(line) for line in _text_lines(stored(place), name))
    return [value for value in found if isinstance(value, dict) and "sha256" not in value]


def read_object(place: Place, name: str) -> dict[str, Any]:
    """The JSON object in a file of the results, checksum not looked at. Raises ``Damaged`` with the reason when there
    is none.
    """
    return parse(_content(stored(place), name))


def _content(place: Stored, name: str) -> bytes:
    if not place.present(name):
        raise Damaged(f"no {name.rpartition('/')[2]}: still running, or interrupted")
    return place.read(name)


def _row(place: Stored, cell: str, stages: bool, choices: Choices) -> dict[str, Any]:
    data = _content(place, f"cells/{cell}/result.json")
    record = parse(data)
    check_schema(record.get("schema_version"))
    seed = record.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise Damaged(f"seed is {seed!r}"[:200])
    row: dict[str, Any] = {"cell": cell, "seed": seed}
    row |= {key: _text(record, key) for key in TEXT}
    if row["status"] not in STATUSES:
        raise Damaged(f"status is {row['status']!r}"[:200])
    row["scenario"] = _text(record, "scenario") if record.get("scenario") is not None else "scratch"
    row |= {key: record[key] if isinstance(record.get(key), str) else None for key in OPTIONAL_TEXT}
    row |= {key: _number(record, key) for key in NUMBERS}
    row |= {key: record.get(key) is True for key in FLAGS}
    if row["status"] == "finished" and not row["synthetic"] and not 0 <= row["test_accuracy"] <= 1:
        raise Damaged(f"finished with test_accuracy {record.get('test_accuracy')!r}"[:200])
    row["test_correct"] = _bits(record, row["test_images"], row["test_accuracy"])
    row |= {
        key: [entry for entry in _list(record, key) if isinstance(entry, dict)]
        for key in ("drops", "declined", "chunks")
    }
    listed = [entry for entry in _list(record, "stages") if isinstance(entry, dict)]
    row["stage_count"] = len(listed)
    if stages:
        row["stages"] = listed
    environment = record.get("environment")
    if isinstance(environment, dict):
        row |= {f"environment_{key}": _plain(value) for key, value in environment.items()}
    check(data)  # last: what is wrong with a field says more than that something is
    return row | _configuration(place, cell, choices)


def _configuration(place: Stored, cell: str, choices: Choices) -> dict[str, str]:
    """``setting``: what all methods of a comparison share; ``policy``: the method's own options, ``refresh_statistics``
    and what a store holds among them where they are on; ``tuned``: the values chosen for it. "{}" if unrecorded. Raises ``Damaged`` where others
    were chosen.
    """
    config: dict[str, Any] = {}
    name = f"cells/{cell}/config.json"
    try:
        if place.present(name):
            config = parse_sealed(place.read(name))
    except Damaged as error:
        raise Damaged(f"its config.json {error}") from error
    group, superseded = choices.of(config)
    if superseded is not None:
        raise Damaged(superseded)
    chosen: dict[str, Any] = group["chosen"] if group is not None else {}
    setting = {
        key: config[key]
        for key in SETTING
        if key not in chosen and config.get(key) is not None and not at_default(key, config[key])
    }
    policy = config.get("policy")
    options = policy if isinstance(policy, dict) else {}
    if config.get("refresh_statistics") is True:
        options = options | {"refresh_statistics": True}
    for name in ("cache_views", "refresh_views", "change_features"):
        if config.get(name) and not at_default(name, config[name]):
            options = options | {name: config[name]}
    return {
        "setting": canonical(setting),
        "policy": canonical(options),
        "refreshes": "" if config.get("refresh_statistics") is None else str(config["refresh_statistics"] is True),
        "tuned": canonical(chosen),
        "tuned_edge": "; ".join(map(str, group.get("edge", []))) if group is not None else "",
    }


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise Damaged(f"{key} is {value!r}, not text"[:200])
    return value


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if value is None:
        return math.nan
    if type(value) is float and -LARGEST < value < LARGEST:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Damaged(f"{key} is {value!r}, not a number"[:200])
    if math.isfinite(number := bounded(value)) or value != value:
        return number
    raise Damaged(f"{key} is beyond any number that was measured")


def bounded(value: Any) -> float:
    """A measured number as it was written; NaN for what is none, and for what is too large to be drawn or added up."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if known else math.nan


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _bits(record: Mapping[str, Any], images: float, accuracy: float) -> bytes | None:
    text = record.get("test_correct_base64")
    if not isinstance(text, str):
        return None
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Damaged("test_correct_base64 is not base64") from error
    if not images >= 1 or len(packed) != math.ceil(images / 8):
        raise Damaged(f"test_correct_base64 does not hold {images:g} images")
    if math.isfinite(accuracy) and abs(int.from_bytes(packed).bit_count() / images - accuracy) > 1e-6:
        raise Damaged("test_correct_base64 disagrees with test_accuracy")
    return packed


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else canonical(value)


def _text_lines(place: Stored, name: str) -> list[str]:
    try:
        return place.read(name).decode("utf-8", "replace").split("\n")
    except Damaged:
        return []


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
