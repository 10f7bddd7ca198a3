"""Locks on a cell's folder, so that several processes can share the cells of one results folder.

They are advisory ``flock`` locks: the kernel takes them back when their owner ends, however it ends, so no lock is ever
stale on a local disk. On NFS (Linux 2.6.12 and later) they hold between machines while the server's lock service works,
and a machine that dies keeps its locks until the server's lease runs out (about 90 s by default); a mount with
``nolock`` or ``local_lock`` holds them in one machine alone. Where a file system has no locks, ``acquire`` says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK_NAME = ".lock"
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class NoLocks(Exception):
    """The file system has no locks; the message says what follows."""


class FolderLock:
    """An exclusive lock on a folder, held until ``release`` or the end of the process.

    The lock file stays: deleting it would let two processes lock two files of one name.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._handle: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; False when somebody else has it. ``wait`` blocks until it's free.

        Raises:
            NoLocks: the file system cannot lock.
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(handle)
            if error.errno in _BUSY:
                return False
            raise NoLocks(
                f"{self.path.parent} lies on a file system without locks ({error.strerror}): "
                "let one process at a time use this --out"
            ) from error
        self._handle = handle
        self._sign(handle)
        return True

    def _sign(self, handle: int) -> None:
        """Owner's machine and process, for messages alone; a full disk is no reason to fail."""
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        except OSError:
            pass

    def owner(self) -> str:
        """Who holds, or last held, the lock, for people."""
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {int(told['pid'])} on {told['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Give the lock back; more than once does no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextlib.contextmanager
def folder_lock(folder: Path, note: Callable[[str], None], waiting: str = "") -> Iterator[None]:
    """Hold the lock on ``folder`` (made if need be) in this block, waiting for it; without locks, tell ``note``.

    ``waiting`` says what is waited for, where that can take long.
    """
    lock = FolderLock(folder)
    try:
        if not lock.acquire():
            if waiting:
                note(f"{waiting}: {lock.owner()} is at it, waiting")
            lock.acquire(wait=True)
    except NoLocks as problem:
        note(str(problem))
    try:
        yield
    finally:
        lock.release()
