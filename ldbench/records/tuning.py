"""What was chosen for each method, out of what, and with which accuracy on validation images: ``tuning.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ldbench.experiment.config import Cell, at_default
from ldbench.experiment.tuning import values_text
from ldbench.io.checksums import Damaged, parse_sealed, plain
from ldbench.records.stored import Place, stored

TUNING, RUNS = "tuning.json", "tuning"  # the file, and the folder beside it whose "cells" are the runs that tried
RESOLVED = ("channels", "classes", "image_size")  # what only the data set knows
_FIELDS = sorted({*(entry.name for entry in dataclasses.fields(Cell)), *RESOLVED})


def read_tuning(place: Place) -> list[dict[str, Any]]:
    """Every group of ``tuning.json``; none where the file is absent or damaged.

    A group says of ``model``, ``dataset``, ``scenario``, ``method``, ``budget`` and ``policy``: the ``keys`` that were
    tuned, the values ``chosen``, the keys whose value lies at the ``edge`` of what was tried, and all that was
    ``tried``: ``values``, ``val_accuracy`` per seed of ``seeds`` (null where the run failed or diverged), their
    ``mean`` (such a run got nothing right; null where all did) and the ``cells``. ``as`` names the method whose values
    a method takes because it repeats that one's drops. ``key`` is the ``group_key`` of the group's cells.
    """
    try:
        groups = parse_sealed(stored(place).read(TUNING)).get("groups")
    except Damaged:
        return []
    return [group for group in groups if _sound(group)] if isinstance(groups, list) else []


def _sound(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("key"), str):
        return False
    keys, chosen = group.get("keys"), group.get("chosen")
    if not isinstance(keys, list) or not isinstance(chosen, dict) or not isinstance(group.get("edge"), list):
        return False
    return all(isinstance(key, str) for key in keys) and sorted(keys) == sorted(chosen)


def group_key(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    """What cells share that are tuned together, as 16 hex digits.

    Args:
        config: the content of a cell's ``config.json``; every field counts but its seed and what is tuned.
        keys: the fields that are tuned.
    """
    tuned = sorted(keys)
    values = {name: config[name] for name in _FIELDS if name in config and name != "seed" and name not in tuned}
    shared = {name: value for name, value in values.items() if value is not None and not at_default(name, value)}
    text = json.dumps(plain({"tuned": tuned, "shared": shared}), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _place(values: Mapping[str, Any]) -> str:
    """A group's name to look it up by, before anything is hashed."""
    return repr([values.get(name) for name in ("model", "dataset", "scenario", "method", "budget")])


class Choices:
    """Looks up what was chosen for a cell; of several groups that it belongs to, the last whose values it has counts.

    Args:
        groups: as ``read_tuning`` gives them.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for group in groups:
            self._groups[_place(group)].append(group)
        self._keys: dict[str, str] = {}  # seeds share a key, and hashing takes longer than reading

    def of(self, config: dict[str, Any]) -> tuple[Mapping[str, Any] | None, str | None]:
        """The group that a cell belongs to, by its configuration, and what about it is not what was chosen there."""
        found, reason = None, None
        for group in self._groups.get(_place(config), ()):
            if self._key(config, group["keys"]) != group["key"]:
                continue
            chosen = group["chosen"]
            other = {key: config.get(key) for key in group["keys"] if config.get(key) != chosen[key]}
            if not other:
                found, reason = group, None
            elif found is None:
                best = values_text({key: chosen[key] for key in other})
                verb, taken = "are", best
                if len(other) == 1:
                    verb, taken = "is", best.partition("=")[2]
                reason = f"{values_text(other)} {verb} not what tuning chose ({taken})"[:200]
        return found, reason

    def _key(self, config: dict[str, Any], keys: Sequence[str]) -> str:
        own = dict.fromkeys((*keys, "seed"))
        told = repr([keys, *map((config | own).get, _FIELDS)])
        if told not in self._keys:
            self._keys[told] = group_key(config, keys)
        return self._keys[told]
