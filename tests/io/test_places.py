"""Machines without a home folder, and with a temporary folder that takes nothing: one line each."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.hostile import ldbench, refused

from ldbench.errors import UserError
from ldbench.io.places import expanded, scratch_folder, temporary_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_a_tilde_is_refused_and_everything_else_goes_on(tmp_path: Path) -> None:
    assert expanded("/data") == Path("/data")
    with pytest.raises(UserError, match="~/data: no home folder is known"):
        expanded("~/data")
    for arguments in (["--dataset", "folder:~/x"], ["--dataset", "mnist", "--data-root", "~/x"]):
        ended = ldbench("run", *arguments, "--out", tmp_path / "out")
        assert refused(ended)
        assert "no home folder" in ended.err
    ended = ldbench("run", "--dry-run", "--out", tmp_path / "out")
    assert ended.code == 0


def test_a_temporary_folder_is_removed_after_use() -> None:
    with scratch_folder() as folder:
        (folder / "x").write_bytes(b"y")
    assert not folder.exists()


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"No space left on device.*TMPDIR"), scratch_folder() as folder:
        raise full
    assert not folder.exists()
    with pytest.raises(PermissionError), scratch_folder():
        raise PermissionError

    def no_room(self: Path, content: bytes) -> int:
        raise full

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(UserError, match=rf"{tempfile.gettempdir()}.*takes no files"):
        temporary_folder()


CODE = """
import sys, torch, ldbench
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
try:
    ldbench.LayerDropper(model, torch.optim.SGD(model.parameters(), 0.1), (torch.rand(8, 4), torch.arange(8) % 2),
                         batch_size=4, epochs=1)
except ldbench.UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limited", [False, True])
def test_a_dropper_says_where_it_could_not_write(tmp_path: Path, limited: bool) -> None:
    """For real: a file may not grow at all, or there is no folder."""

    def no_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    place = tmp_path if limited else tmp_path / "gone"
    environment = os.environ | {"TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment,
        preexec_fn=no_files if limited else None,
        capture_output=True,
        text=True,
        check=True,
    )
    if limited:
        assert str(tmp_path) in ended.stdout
        assert "takes no files" in ended.stdout
        assert ended.stdout.count("\n") == 1
    else:  # Python looks for another one by itself
        assert ended.stdout == ""
