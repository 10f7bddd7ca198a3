"""A network's weights in a sealed safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_model as save
from torch import nn

from ldbench.files import replacing
from ldbench.sealed import SCHEMA_VERSION, ZEROS, seal_file


def save_model(model: nn.Module, path: Path) -> None:
    """The whole network, atomically; tensors that share memory are stored once under the first name. Raises ``OSError``."""
    from safetensors import SafetensorError

    metadata = {"schema_version": str(SCHEMA_VERSION), "sha256": ZEROS}
    with replacing(path) as temporary:
        try:
            save(model, str(temporary), metadata)
        except SafetensorError as error:
            raise OSError(None, str(error)) from error
        seal_file(temporary)
