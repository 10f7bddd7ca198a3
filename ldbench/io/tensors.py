"""A checkpoint: nested state in one sealed safetensors file, tensors as tensors, the rest as JSON in the header.

Nothing is pickled, so reading one from somebody else runs no code. One file is one atomic unit: the last good
checkpoint stays until the next is whole and on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from safetensors.torch import save_model as save
from torch import Tensor, nn

from ldbench.errors import one_line
from ldbench.io.atomic import replacing
from ldbench.io.checksums import SCHEMA_VERSION, ZEROS, Damaged, check_file, check_schema, seal_file

_TENSOR = "$tensor"


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` with every tensor moved to ``tensors`` and a reference in its place."""
    if isinstance(value, Tensor):
        tensors[name] = _own(value)
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): _take_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, dense, in memory it shares with no other tensor (safetensors refuses sharing)."""
    held = tensor.detach().to("cpu").contiguous()
    return held.clone() if held.untyped_storage().nbytes() != held.nbytes else held


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Args:
        state: nested dictionaries (text keys), lists, tensors of any dtype and device, and what JSON holds; numbers
            that are not finite are kept.

    Raises:
        OSError: the disk is full, the folder read-only; the checkpoint before is still there.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_take_tensors(state, "", tensors))
    metadata = {"schema_version": str(SCHEMA_VERSION), "sha256": ZEROS, "state": text}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(None, str(error)) from error
        seal_file(temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in ``path``: tensors on the CPU in their dtype, tuples as lists. Raises ``Damaged``."""
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_schema(_whole_number(metadata.get("schema_version")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = _put_tensors(json.loads(metadata["state"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise Damaged(f"cannot be read: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise Damaged("holds no state")
    return state


def _whole_number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.isdigit() else text


def copy_into(target: Tensor, saved: Tensor) -> None:
    """Overwrite ``target`` in its own dtype, device and memory format. Raises ``Damaged`` where the shapes differ."""
    if target.shape != saved.shape or target.dtype != saved.dtype:
        raise Damaged(f"holds {saved.dtype} {list(saved.shape)} where {target.dtype} {list(target.shape)} belongs")
    with torch.no_grad():
        target.copy_(saved)


def save_model(model: nn.Module, path: Path) -> None:
    """The whole network, atomically; tensors that share memory stand once, under the first name. Raises ``OSError``."""
    from safetensors import SafetensorError

    metadata = {"schema_version": str(SCHEMA_VERSION), "sha256": ZEROS}
    with replacing(path) as temporary:
        try:
            save(model, str(temporary), metadata)
        except SafetensorError as error:
            raise OSError(None, str(error)) from error
        seal_file(temporary)
