"""Weights that training begins with: read, held against the network, and put into it, each tensor accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldbench.errors import UserError, one_line, shown
from ldbench.io.checksums import Damaged, check_file, check_regular
from ldbench.models.fit import ModelSpec, family
from ldbench.models.zoo import build_model

_MOST_NAMED = 3
# The record's fields of a run that begins with random weights.
_ORIGIN = ("init_origin", "init_sha256", "init_tensors_taken", "init_tensors_drawn")
_PRETRAINING = ("pretrain_seconds", "pretrain_dataset", "pretrain_epochs", "pretrain_images", "pretrain_accuracy")
RANDOM: dict[str, Any] = dict.fromkeys((*_ORIGIN, *_PRETRAINING))


@dataclass(frozen=True)
class InitialWeights:
    """Tensors by name, and where they come from.

    Attributes:
        origin: for people: a file's name, "torchvision IMAGENET1K_V1", "pre-trained on mnist".
        tensors: parameters and buffers on the CPU.
        new_head: the head is drawn anew though it may fit: its classes were others.
        partial: what does not fit is drawn anew, whatever it is; else only the head may be.
        facts: more fields for the record.
    """

    origin: str
    tensors: Mapping[str, Tensor]
    new_head: bool = False
    partial: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def put_into(self, model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
        """Overwrite the freshly drawn weights of ``model`` (built from ``spec``); what is not taken stays as drawn.

        Returns:
            the record's fields: ``init_origin``; ``init_sha256`` over every parameter and buffer that training begins
            with; ``init_tensors_taken``, a count; ``init_tensors_drawn``, names; ``facts``; all of ``RANDOM``'s keys.

        Raises:
            UserError: a tensor other than the head's does not fit, is missing, or is not known to the network.
        """
        places, head = _places(model), head_names(spec)
        taken, drawn, wrong = set(), [], []
        with torch.no_grad():
            for names, tensor in places:
                name = next((name for name in names if name in self.tensors), None)
                saved = None if name is None else self.tensors[name]
                in_head = not head.isdisjoint(names)
                fits = saved is not None and saved.shape == tensor.shape
                if fits and saved is not None and not (in_head and self.new_head):
                    tensor.copy_(saved)
                    taken.update(names)
                elif self.partial or in_head:
                    drawn.append(names[0])
                else:
                    wrong.append(_complaint(names[0], tensor, saved))
        known = {name for names, _ in places for name in names}
        if not self.partial:
            wrong += [f"{name} is unknown to the network" for name in self.tensors if name not in known]
        if not taken and not wrong:
            wrong.append("no tensor of it fits")
        if wrong:
            more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
            raise UserError(
                f"weights to begin with ({self.origin}) do not fit {spec.name} at width {spec.width:g} with "
                f"{spec.channels} channels: {'; '.join(wrong[:_MOST_NAMED])}{more}"
            )
        count = sum(names[0] in taken for names, _ in places)
        origin = {"init_origin": self.origin, "init_sha256": digest(model)}
        return RANDOM | origin | {"init_tensors_taken": count, "init_tensors_drawn": drawn, **self.facts}


def _complaint(name: str, tensor: Tensor, saved: Tensor | None) -> str:
    if saved is None:
        return f"{name} is missing"
    return f"{name} is {list(saved.shape)} where the network has {list(tensor.shape)}"


def _places(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every saved tensor of ``model`` once, with all names it goes by."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def digest(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of everything ``model`` would save, hexadecimal."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        held = tensor.detach().cpu().contiguous()
        total.update(f"{name} {held.dtype} {list(held.shape)}\0".encode())
        total.update(held.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def head_names(spec: ModelSpec) -> frozenset[str]:
    """Names of the tensors whose shape follows the number of classes: other in the network for one class more."""

    def shapes(classes: int) -> dict[str, torch.Size]:
        sized = dataclasses.replace(spec, classes=classes)
        with torch.random.fork_rng(devices=[]):
            model = build_model(sized) if family(spec.name) == "user" else _shapes_alone(sized)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    own, other = shapes(spec.classes), shapes(spec.classes + 1)
    return frozenset(name for name, shape in own.items() if other.get(name) != shape)


def _shapes_alone(spec: ModelSpec) -> nn.Module:
    from ldbench.models.fit import blueprint

    return blueprint(spec)


def weights_from_file(path: Path, origin: str) -> InitialWeights:
    """The tensors of a safetensors file, such as ``--save-model final`` writes; a seal in it is checked.

    Raises ``UserError`` naming the file: unreadable, damaged, no safetensors.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            if "sha256" in (file.metadata() or {}):
                check_file(path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (Damaged, SafetensorError, OSError, ValueError) as error:
        told = f"weights to begin with, {shown(str(path))}: {one_line(error)}"
        raise UserError(f"{told}; give a .safetensors file") from error
    return InitialWeights(origin, tensors)


def torchvision_weights(name: str, download: bool) -> InitialWeights:
    """The weights that torchvision publishes for an architecture, from torch's own cache or the network.

    They were made for three channels, 1,000 classes and the published width: what fits is taken.

    Raises:
        UserError: there are none, they are not here and may not be fetched, or they cannot be read.
    """
    import torchvision

    if family(name) in ("user", "timm"):
        raise UserError(f"--init torchvision: {name} is no architecture of torchvision: give a .safetensors file")
    published = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined, unused-ignore]
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if not place.exists() and not download:
        raise UserError(f"--init torchvision: {place} is missing: add --download to fetch {published.url}")
    try:
        tensors = torch.hub.load_state_dict_from_url(
            published.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise ValueError("it holds other things than tensors")
    except Exception as error:  # whatever a download or a damaged file ends in
        raise UserError(f"--init torchvision: {published.url} to {place}: {one_line(error)}") from error
    return InitialWeights(f"torchvision {published.name}", tensors, partial=True)
