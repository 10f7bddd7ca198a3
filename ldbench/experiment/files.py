"""Reads an experiment's raw table: a TOML or JSON file, or a suite that comes with the package."""

from __future__ import annotations

import codecs
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from ldbench.errors import UserError, one_line

MOST_BYTES = 16 * 2**20  # a list of a million seeds; anything larger is no experiment


def suite_names() -> list[str]:
    """Names of the experiments shipped with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("ldbench.suites").iterdir() if p.name.endswith(".toml")
    )


def read_experiment(path: str) -> dict[str, Any]:
    """The raw table of a TOML or JSON file, of a packed results file, or of a shipped suite by name (``fashion``,
    ``suites/fashion.toml``).

    Raises ``UserError`` naming the file.
    """
    file = Path(path)
    name = file.name.removesuffix(".toml")
    try:
        if file.is_file():
            text = _text(file)
        elif name in suite_names() and path in (name, f"{name}.toml", f"suites/{name}.toml"):
            text = (resources.files("ldbench.suites") / f"{name}.toml").read_text(encoding="utf-8")
        else:
            suites = ", ".join(suite_names())
            raise UserError(f"experiment file {path} was not found, and it is no shipped suite ({suites})")
        table = tomllib.loads(text) if file.suffix not in (".json", ".jsonl") else json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a valid experiment file: nested too deeply") from error
    except ValueError as error:  # both parsers' own errors, bytes that are no UTF-8, numbers of thousands of digits
        raise UserError(f"{path}: not a valid experiment file: {one_line(error)}") from error
    if file.suffix == ".jsonl" and isinstance(table, dict):
        files = table.get("files")
        table = files.get("experiment.json") if isinstance(files, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"{path}: an experiment file holds a table of options")
    return {
        key: value for key, value in table.items() if key not in ("schema_version", "sha256", "claims_sha256")
    }  # a stored experiment.json


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        # Of packed results the first line is the experiment's.
        data = opened.readline(MOST_BYTES + 1) if file.suffix == ".jsonl" else opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{file}: larger than {MOST_BYTES // 2**20} MiB: this is no experiment file")
    # Some editors begin a file with a byte order mark; what PowerShell's > writes is UTF-16 with one.
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
