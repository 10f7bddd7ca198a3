"""Keeps the file of a memory-mapped store over an interruption, and takes it back only when all of it fits."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldbench.io.atomic import flush
from ldbench.io.checksums import Damaged, read_sealed, write_sealed
from ldbench.store.activation_store import ActivationStore


@lru_cache(maxsize=1)
def code_version() -> str:
    """SHA-256 over ldbench's source files, kernels included, hexadecimal: a commit says nothing about edits."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in (package, package / "kernels"):  # which is a link in a checkout, and not followed from the package
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def prefix_fingerprint(stages: Iterable[nn.Module], facts: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a store's rows: state of the dropped stages, code, and ``facts`` (JSON)."""
    facts = {"code": code_version(), "torch": torch.__version__, **facts}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for stage in stages:
        for name, tensor in sorted(stage.state_dict(keep_vars=False).items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _card(file: Path) -> Path:
    return file.with_suffix(".json")


def keep_store(store: ActivationStore, fingerprint: str) -> None:
    """Bring a memory-mapped store to disk and write beside it what it is. Does nothing for other tiers, or twice.

    Raises ``OSError`` when there is no room for the card.
    """
    if store.file is None or _card(store.file).exists():
        return
    flush(store.file)
    card = {
        "fingerprint": fingerprint,
        "content_sha256": _content(store.file),
        "samples": store.samples,
        "shape": store.shape,
        "dtype": store.dtype,
        "out_dtype": str(store.out_dtype).removeprefix("torch."),
        "channels_last": store.channels_last,
    }
    write_sealed(_card(store.file), card)


def unkeep_store(store: ActivationStore) -> None:
    """The store is about to change: what ``keep_store`` wrote beside it holds no longer."""
    if store.file is not None:
        _card(store.file).unlink(missing_ok=True)


def find_store(folder: Path, fingerprint: str, device: torch.device) -> ActivationStore | None:
    """The kept store with this fingerprint whose every byte checks, mapped again; None when there is none."""
    for card_file in sorted(folder.glob("store-*.json")):
        file = card_file.with_suffix(".bin")
        with contextlib.suppress(Damaged, OSError, KeyError, AttributeError):
            card = read_sealed(card_file)
            if card["fingerprint"] != fingerprint or _content(file) != card["content_sha256"]:
                continue
            store = ActivationStore(
                card["samples"],
                card["shape"],
                card["dtype"],
                "disk",
                device,
                channels_last=card["channels_last"],
                reopen=file,
            )
            store.out_dtype = getattr(torch, card["out_dtype"])
            return store
    return None


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def discard_stores(folder: Path, keep: Path | None = None) -> None:
    """Delete store files, which can always be made again, but for ``keep``. Nobody else may be using ``folder``."""
    for path in folder.glob("store-*"):
        if keep is None or path.stem != keep.stem:
            path.unlink(missing_ok=True)
