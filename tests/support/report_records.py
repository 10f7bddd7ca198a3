"""Writes result folders in the trainer's layout, with known effects, for the tests of the report."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldbench.io.checksums import write_sealed

STAGES = 8
ENVIRONMENT = {"device": "cpu", "cpu": "Test CPU", "cpu_count": 2, "threads": 2, "gpu": None, "driver": None}
ENVIRONMENT |= {"python": "3.11.9", "torch": "2.15.0", "platform": "Linux", "ldbench": "0.1.0", "git_commit": "abc"}
# method: (share of full's FLOPs, share of its time, points above the frontier at that time)
EFFECTS = {"learn-and-drop": (0.6, 0.65, 1.0), "freeze": (0.8, 0.85, -0.5), "freezeout": (0.8, 0.9, -2.0)}


def frontier(share: float, base: float = 0.9) -> float:
    """Accuracy of training with a share of the cost."""
    return base + 0.02 * math.log2(share)


def make_record(method: str, seed: int, *, budget: float | None = None, **changes: Any) -> dict[str, Any]:
    """One plausible ``result.json``; ``changes`` overwrite its fields."""
    images = changes.get("test_images", 2000)
    random = np.random.default_rng([seed, len(method), int(100 * (budget or 1))])
    flops, time, lead = EFFECTS.get(method, (budget or 1.0, budget or 1.0, 0.0))
    shared = 0.004 * np.random.default_rng(seed).standard_normal()
    accuracy = frontier(time) + lead / 100 + shared + 0.001 * random.standard_normal()
    difficulty = np.random.default_rng(7).permutation(images) / images + 0.02 * random.standard_normal(images)
    correct = difficulty <= np.sort(difficulty)[int(accuracy * images) - 1]
    seconds = 100 * time * (1 + 0.01 * random.standard_normal())
    drops = [] if method not in EFFECTS else [make_drop(step, cut) for step, cut in ((300, 2), (600 + 10 * seed, 5))]
    record: dict[str, Any] = {
        "schema_version": 1, "cell_id": f"{method}-{seed}", "model": "vgg11_bn", "dataset": "fashion-mnist",
        "method": method, "budget": budget, "seed": seed, "status": "finished", "error": None,
        "test_accuracy": float(correct.mean()), "test_loss": 0.3, "val_accuracy": None, "test_images": images,
        "test_correct_base64": base64.b64encode(np.packbits(correct).tobytes()).decode(), "chance_accuracy": 0.1,
        "at_chance": False, "steps": int(1200 * (budget or 1)), "epochs": 12, "batch_size": 128, "train_size": 12800,
        "train_seconds": seconds, "eval_seconds": 4.0, "data_seconds": 1.0, "cost_table_seconds": 3.0,
        "compile_seconds": 0.0, "cache_build_seconds": 2.0 if drops else 0.0, "scoring_seconds": 0.5 if drops else 0.0,
        "forward_flops": int(1e13 * flops), "backward_flops": int(2e13 * flops), "cache_build_flops": 0,
        "forward_flops_full": int(1e13), "backward_flops_full": int(2e13),
        "predicted_saved_seconds": 100 * (1 - time) / 0.95, "peak_memory_bytes": 900 * 2**20,
        "peak_memory_kind": "resident bytes",
        "energy_joules": None, "store_bytes": 2**28 if drops else 0, "store_tier": "device" if drops else None,
        "energy_bound_joules": None, "energy_unavailable_reason": "training ran on the CPU",
        "dropped_stages": 5 if drops else 0,
        "stages": [{"name": f"features.{4 * s}", "parameters": 10, "why": ""} for s in range(STAGES)], "drops": drops,
        "declined": [{"step": 900, "cut": 6, "reason": "cut 6 does not pay"}] if drops else [], "augmentation": "none",
        "augmentation_after_drop": "not applicable", "precision": "fp32", "width": 0.5, "image_size": 32,
        "synthetic": False, "claims_sha256": None, "scenario": "scratch", "chunks": [], "average_accuracy": None,
        "environment": dict(ENVIRONMENT),
    }  # fmt: skip
    for stage in record["stages"][record["dropped_stages"] :]:
        stage["why"] = f"why {stage['name']} of seed {seed} stayed"
    return record | changes


def costs(share: float) -> dict[str, float]:
    """Fields of a record that took a share of full training, FLOPs and time alike."""
    return {"forward_flops": int(1e13 * share), "backward_flops": int(2e13 * share), "train_seconds": 100 * share}


def make_drop(step: int, cut: int) -> dict[str, Any]:
    """One entry of ``drops``."""
    return {
        "step": step, "epoch": (step - 1) // 100, "cut": cut, "reason": "saves about 12 s over 600 steps",
        "store_tier": "device", "store_bytes": 2**28, "store_dtype": "fp32", "build_seconds": 1.0,
        "predicted_saving_seconds": 12.0,
    }  # fmt: skip


def write_cell(root: Path, record: dict[str, Any], *, lines: bool = True, **config: Any) -> Path:
    """Put a record into its folder, with epochs and scores that fit its drops."""
    name = "-".join(str(record[key]) for key in ("model", "dataset", "method", "budget", "seed"))
    folder = (
        root
        / "cells"
        / "".join(c if c.isalnum() or c in "-._" else "_" for c in f"{name}-{zlib.crc32(str(config).encode())}")
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / "result.json", record)
    policy = config.pop("policy", {})
    write_sealed(
        folder / "config.json", {"epochs": 12, "lr": 0.1, "policy": policy, "refresh_statistics": False} | config
    )
    if lines:
        write_lines(folder, record)
    return folder


def write_lines(folder: Path, record: dict[str, Any]) -> None:
    """``epochs.jsonl`` and ``scores.jsonl`` of a record."""
    epochs: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    listed = [drop for drop in record["drops"] if isinstance(drop, dict)]
    drops = [(drop["step"], drop["cut"]) for drop in listed if isinstance(drop.get("cut"), int)]
    for epoch in range(max(1, record["steps"] // 100)):
        cut = max([0, *(cut for step, cut in drops if step <= 100 * (epoch + 1))])
        epochs.append({"epoch": epoch, "step": 100 * (epoch + 1), "live_stages": STAGES - cut, "dropped_stages": cut})
        for check in range(4):
            step = 100 * epoch + 25 * (check + 1)
            ahead = [None if s < cut else max(0.0, 1 - step / (150 * (s + 1))) for s in range(STAGES)]
            change = [None if s < cut else 0.1 * math.exp(-step / (200 * (s + 1))) for s in range(STAGES)]
            row = {"step": step, "epoch": epoch, "dropped": cut, "change": change, "continuation": ahead}
            scores.append(row if len(scores) >= 3 else row | {"continuation": [None] * STAGES})
    (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    if record["method"] in ("learn-and-drop",):
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))


DIGEST = "feedc0defeedc0de"


def write_grid(
    root: Path,
    seeds: Sequence[int] = range(5),
    methods: Sequence[str] = (*EFFECTS,),
    declared: str | None = None,
    **changes: Any,
) -> Path:
    """A whole comparison: full, short at three budgets, and ``methods``; ``declared``: which of them is claimed to be
    ahead, as every record says.
    """
    if declared is not None:
        changes |= {"claims_sha256": DIGEST}
    for seed in seeds:
        write_cell(root, make_record("full", seed, **changes))
        for budget in (0.25, 0.5, 0.75):
            write_cell(root, make_record("short", seed, budget=budget, **changes))
        for method in methods:
            write_cell(root, make_record(method, seed, **changes))
    if declared is not None:
        declare(root, declared, seeds)
    else:
        (root / "experiment.json").write_text(json.dumps({"model": ["vgg11_bn"], "epochs": 12}))
    return root


def declare(
    root: Path,
    method: str,
    seeds: Sequence[int],
    groups: Sequence[tuple[str, str]] = (("vgg11_bn", "single set"),),
    scenarios: Sequence[str] = ("scratch",),
) -> None:
    """``experiment.json`` with claims."""
    claims = {"method": method, "axes": ["flops", "time"], "groups": [list(pair) for pair in groups]}
    grid = {"model": ["vgg11_bn"], "dataset": ["fashion-mnist"], "scenario": list(scenarios), "seeds": list(seeds)}
    write_sealed(root / "experiment.json", grid | {"claims": claims, "claims_sha256": DIGEST})
