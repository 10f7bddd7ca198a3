"""Work for a GPU whose meter is being calibrated."""

from __future__ import annotations

import time

import torch

SIDE = 4096  # large enough that launching takes little of a CPU core; 64 MiB in all
PIECE_SECONDS = 0.005
PIECES_AHEAD = 2


class MatrixProducts:
    """Products of bfloat16 matrices, queued about 10 ms ahead of the device. Of no use but to draw power."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._queued: list[torch.cuda.Event] = []
        self._matrices: tuple[torch.Tensor, torch.Tensor] | None = None
        self._count = 1  # products a piece

    def prepare(self) -> float:
        """Make the matrices and time a product; seconds it took. Raises ``RuntimeError``, as for too little memory."""
        generator = torch.Generator(self.device).manual_seed(0)  # the caller's random numbers stay as they are
        x = torch.randn(SIDE, SIDE, device=self.device, dtype=torch.bfloat16, generator=generator)
        self._matrices = x, torch.empty_like(x)
        self._multiply(1)  # loads the library
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        self._multiply(2)
        torch.cuda.synchronize(self.device)
        each = (time.perf_counter() - began) / 2
        self._count = max(1, round(PIECE_SECONDS / each))
        return 3 * each

    def feed(self) -> None:
        """Queue one more piece where fewer than two are waiting."""
        self._queued = [p for p in self._queued if not p.query()]  # type: ignore[no-untyped-call]
        if len(self._queued) < PIECES_AHEAD:
            self._multiply(self._count)
            piece = torch.cuda.Event()  # type: ignore[no-untyped-call]
            piece.record(torch.cuda.current_stream(self.device))
            self._queued.append(piece)

    def finish(self) -> None:
        """Wait for the device and forget the matrices."""
        self._queued.clear()
        self._matrices = None
        torch.cuda.synchronize(self.device)

    def _multiply(self, count: int) -> None:
        assert self._matrices is not None
        x, out = self._matrices
        with torch.no_grad():
            for _ in range(count):
                torch.mm(x, x, out=out)
