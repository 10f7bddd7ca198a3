"""The cost table of a cell: given, from the results folder, or measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ldbench.costs.table import CostTable
from ldbench.errors import UserError
from ldbench.io.checksums import plain
from ldbench.records.cell_files import read_json


def given_table(path: Path, what: dict[str, Any]) -> CostTable:
    """The table for ``what`` in a file or folder of an earlier run."""
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    except OSError as error:
        raise UserError(f"cost table: {path} cannot be read: {error.strerror}") from error
    for file in files:
        saved = read_json(file)
        if saved is not None and saved.get("what") == what:
            try:
                return CostTable.from_dict(saved["table"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"cost table: {file} holds no cost table: measure one anew, without --cost-table"
                ) from error
    raise UserError(f"cost table: {path} holds none for {what['model']} on {what['dataset']} with these settings")


def table_name(what: dict[str, Any], machine: dict[str, Any]) -> str:
    text = json.dumps(plain([what, machine]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
