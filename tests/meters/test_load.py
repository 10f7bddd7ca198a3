"""The work that a lag is measured by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ldbench.meters import load


def test_the_load_keeps_two_pieces_queued_and_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: torch's parts for CUDA are played."""
    recorded: list[SimpleNamespace] = []

    def event() -> SimpleNamespace:
        piece = SimpleNamespace(done=False, record=lambda stream: recorded.append(piece), query=lambda: piece.done)
        return piece

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(load, "SIDE", 64)
    before = torch.get_rng_state()
    work = load.MatrixProducts(torch.device("cpu"))
    assert work.prepare() > 0
    for _ in range(5):
        work.feed()
    assert len(recorded) == 2
    recorded[0].done = True
    work.feed()
    assert len(recorded) == 3
    work.finish()
    assert torch.equal(torch.get_rng_state(), before)
