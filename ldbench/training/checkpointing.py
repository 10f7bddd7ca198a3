"""When a cell's checkpoint is written, whether one fits to go on from, and an honest account of what was lost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldbench.io.atomic import sweep
from ldbench.io.checksums import Damaged, set_aside, write_sealed
from ldbench.io.tensors import read_checkpoint, write_checkpoint
from ldbench.records.cell_files import read_json
from ldbench.records.environment import environment
from ldbench.store.store_file import code_version, discard_stores
from ldbench.training.interrupts import StopRequest

CHECKPOINT, HEARTBEAT = "checkpoint.safetensors", "heartbeat.json"
# Five minutes are 1 % of a night's run; at that interval a checkpoint may take 3 s, which is what 1 % of training
# allows.
DEFAULT_MINUTES = 5.0
MOST_SHARE = 0.01
HEARTBEAT_SECONDS = 2.0
# What the bits of a run depend on beside its configuration.
BITS_DEPEND_ON = (
    "device",
    "cpu",
    "threads",
    "gpu",
    "driver",
    "cuda",
    "cudnn",
    "python",
    "torch",
    "torchvision",
    "numpy",
)


class Checkpointer:
    """Keeps one cell's checkpoint.

    Args:
        folder: the cell's; nobody else may be working in it. None: nothing is kept.
        stop: asks for the end of the run.
        minutes: between checkpoints, 0 for one after every step. None: ``DEFAULT_MINUTES``, stretched where writing
            would take more than ``MOST_SHARE`` of the time.
        note: told what a person should know.

    Attributes:
        incidents: what went wrong without ending the run.
        lost_seconds, lost_flops: work done and lost in interruptions, up to the last heartbeat before each (every
            ``HEARTBEAT_SECONDS``, at the end of a step), and the time it took to get back to where the checkpoint was.
        checkpoint_seconds: spent on writing checkpoints; no part of training.
        resumes: how often the cell was gone on with.
    """

    def __init__(
        self,
        folder: Path | None,
        stop: StopRequest | None = None,
        minutes: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.stop, self.note = folder, stop or StopRequest(), note
        self._stretch = minutes is None
        self._interval = 60 * (DEFAULT_MINUTES if minutes is None else minutes)
        self.incidents: list[dict[str, Any]] = []
        self.lost_seconds = self.checkpoint_seconds = 0.0
        self.lost_flops = self.resumes = 0
        self._step = self._flops = 0  # at the last checkpoint
        self._flops_now: Callable[[], int] = lambda: 0
        self._saved = self._beaten = self._loading = time.perf_counter()

    # --- going on ----------------------------------------------------------------------------------------------------

    def load(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The state to go on from; None where there is none or it doesn't fit, which is then set aside and named."""
        if self.folder is None:
            return None
        self._loading = time.perf_counter()
        sweep(self.folder)
        path, saved = self.folder / CHECKPOINT, None
        if path.exists():
            try:
                saved = read_checkpoint(path)
                self._check_identity(saved, identity)
            except Damaged as reason:
                saved = None
                self.refuse(reason)
        self._count_losses(saved)
        if saved is None:
            return None
        self._compare(saved["environment"])
        state: dict[str, Any] = saved["run"]
        return state

    def _check_identity(self, saved: dict[str, Any], identity: dict[str, Any]) -> None:
        if "step" not in saved:
            raise Damaged("was written by an earlier version of ldbench")
        told = saved["run"]["identity"]
        if told["data_fingerprint"] != identity["data_fingerprint"]:
            raise Damaged("the data set has changed since it was written")
        if told != json.loads(json.dumps(identity)):
            raise Damaged("belongs to another configuration")

    def refuse(self, reason: BaseException) -> None:
        """Set the checkpoint aside: the cell starts anew."""
        assert self.folder is not None
        aside = set_aside(self.folder / CHECKPOINT)
        self.tell(0, f"{CHECKPOINT}: {reason}; set aside as {aside.name}, the cell starts anew")

    def _count_losses(self, saved: dict[str, Any] | None) -> None:
        assert self.folder is not None
        account = saved["account"] if saved is not None else {}
        self._step = saved["step"] if saved is not None else 0
        beat = read_json(self.folder / HEARTBEAT)
        self.checkpoint_seconds = account.get("checkpoint_seconds", 0.0)
        self.incidents += account.get("incidents", [])
        if beat is None:
            self.lost_seconds, self.lost_flops = account.get("lost_seconds", 0.0), account.get("lost_flops", 0)
            self.resumes = account.get("resumes", 0) + (saved is not None)
            return
        since = beat["checkpoint_step"] == self._step  # else: killed between a checkpoint and its first heartbeat
        self.lost_seconds = beat["lost_seconds"] + (beat["seconds"] if since else 0.0)
        self.lost_flops = beat["lost_flops"] + (beat["flops"] if since else 0)
        self.resumes = beat["resumes"] + 1

    def _compare(self, before: dict[str, Any]) -> None:
        now = self._environment()
        differing = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        self.note(f"goes on from the checkpoint at step {self._step}")
        if differing:
            what = "gone on with elsewhere, so the same bits aren't promised: " + ", ".join(differing)
            self.tell(self._step, what)

    def _environment(self) -> dict[str, Any]:
        import torch

        assert self.folder is not None
        found = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return {key: found[key] for key in BITS_DEPEND_ON} | {"code": code_version()[:12]}

    def begin(self, flops: Callable[[], int]) -> None:
        """Training starts now: the time since ``load`` was lost where a checkpoint was loaded.

        ``flops``: tells how many were executed so far.
        """
        self._saved = now = time.perf_counter()
        self._flops_now, self._flops = flops, flops()
        if self.resumes:
            self.lost_seconds += now - self._loading
        self.beat()

    # --- keeping -----------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether it is time for a checkpoint; asked after every step."""
        if self.folder is None:
            return False
        now = time.perf_counter()
        if now - self._beaten >= HEARTBEAT_SECONDS:
            self.beat()
        return now - self._saved >= self._interval

    def beat(self) -> None:
        """Note how much would be lost now. Not flushed to disk: after a power cut the time lost may read too small."""
        self._beaten = time.perf_counter()
        if self.folder is None:
            return
        told = {
            "checkpoint_step": self._step,
            "seconds": self._beaten - self._saved,
            "flops": self._flops_now() - self._flops,
            "lost_seconds": self.lost_seconds,
            "lost_flops": self.lost_flops,
            "resumes": self.resumes,
        }
        with contextlib.suppress(OSError):  # the account is not worth the run
            write_sealed(self.folder / HEARTBEAT, told, flushed=False)

    def save(self, state: Callable[[], dict[str, Any]], step: int, lost_seconds: float = 0.0) -> None:
        """Write a checkpoint between two steps. Where that fails, the one before stays and training goes on.

        Args:
            state: gives the run's state; what that takes counts as time of the checkpoint.
            step: optimizer steps made.
            lost_seconds: work that was cut short since the last checkpoint and has to be done again.
        """
        if self.folder is None:
            return
        began = time.perf_counter()
        self.lost_seconds += lost_seconds
        try:
            whole = {"step": step, "run": state(), "environment": self._environment(), "account": self._account()}
            write_checkpoint(self.folder / CHECKPOINT, whole)
        except OSError as error:
            self.tell(step, f"checkpoint not written ({error.strerror}): the one of step {self._step} is kept")
        else:
            self._step, self._flops = step, self._flops_now()
        self._saved = time.perf_counter()
        cost = self._saved - began
        self.checkpoint_seconds += cost
        if self._stretch:
            self._interval = max(60 * DEFAULT_MINUTES, cost / MOST_SHARE)
        self.beat()

    def tell(self, step: int, what: str) -> None:
        """Note an incident, for the record and for the person at the screen."""
        self.incidents.append({"step": step, "what": what})
        self.note(what)

    def account(self) -> dict[str, Any]:
        """The record's fields about interruptions."""
        return {key: value for key, value in self._account().items() if key != "incidents"}

    def _account(self) -> dict[str, Any]:
        names = ("lost_seconds", "lost_flops", "resumes", "checkpoint_seconds", "incidents")
        return {name: getattr(self, name) for name in names}

    def clear(self) -> None:
        """The cell is over: its result stands for it."""
        if self.folder is not None:
            discard_stores(self.folder)
            for name in (CHECKPOINT, HEARTBEAT):  # the heartbeat last: where it is, there may be more to delete
                (self.folder / name).unlink(missing_ok=True)
