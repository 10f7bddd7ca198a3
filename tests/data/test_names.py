"""A folder of images with a name of its own: no record tells where on which machine it lay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import write_set

from ldbench.data.datasets import check_dataset_name, load_dataset
from ldbench.data.names import own_name, without_path
from ldbench.errors import UserError
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.grid import cells
from ldbench.experiment.validation import experiment_from_dict
from ldbench.models.recipes import default_recipe


def test_a_named_folder_has_its_own_name_and_the_folders_images(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "pets[0-1]")
    named, plain = (
        load_dataset(f"pets=folder:{folder}/[0,2]", root=None),
        load_dataset(f"folder:{folder}/[0,2]", root=None),
    )
    assert (named.name, named.class_names) == ("pets[0,2]", ("class0", "class2"))
    assert named.fingerprint == plain.fingerprint
    assert np.array_equal(named.train.images, plain.train.images)


def test_a_relative_folder_is_looked_for_here_then_in_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    write_set(root / "pets", classes=3)
    here.mkdir()
    monkeypatch.chdir(here)
    assert load_dataset("pets=folder:pets", root=root).classes == 3
    monkeypatch.setenv("LDBENCH_DATA", str(root))
    assert load_dataset("folder:pets", root=None).classes == 3
    write_set(here / "pets", classes=2)
    assert load_dataset("pets=folder:pets", root=root).classes == 2
    with pytest.raises(UserError, match=r"folder dogs not found .*data root"):
        load_dataset("pets=folder:dogs", root=root)


@pytest.mark.parametrize(
    ("text", "name", "anywhere"),
    [
        ("a-1.x_y=folder:/data/[5-9]", "a-1.x_y[5-9]", "a-1.x_y=folder:a-1.x_y[5-9]"),
        ("a=folder:b=folder:c", "a", "a=folder:a"),
        ("folder:/x=folder:/y", "folder:/x=folder:/y", "folder:/x=folder:/y"),
        ("mnist[5-9]", "mnist[5-9]", "mnist[5-9]"),
        ("synthetic:1x8x8:4:40", "synthetic:1x8x8:4:40", "synthetic:1x8x8:4:40"),
    ],
)
def test_names_are_told_without_paths(text: str, name: str, anywhere: str) -> None:
    assert (own_name(text), without_path(text)) == (name, anywhere)
    check_dataset_name(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mnist=folder:x", "mnist is the name of another data set"),
        ("MNIST=folder:x", "is the name of another data set"),
        ("folder=folder:x", "is the name of another data set"),
        ("a b=folder:x", "'a b' is no simple name"),
        ("../a=folder:x", "is no simple name"),
        ("..=folder:x", "is no simple name"),
        ("=folder:x", "is no simple name"),
        ("a=folder:", "names no folder"),
        ("a=folder:[0-1]", "names no folder"),
        ("a=folder:x[0-3][0-1]", "chooses classes twice"),
        ("a=folder:x[5]", "at least 2 classes"),
        ("a=digits", "unknown data set"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_dataset_name(text)
    assert "\n" not in str(caught.value)


def test_one_name_for_two_folders_is_refused() -> None:
    fine = {"dataset": ["a=folder:x[0-3]"], "pretrain_dataset": "a=folder:x[4-9]", "scenario": "fine-tune"}
    experiment_from_dict(fine)
    for changes in ({"pretrain_dataset": "a=folder:y"}, {"dataset": ["a=folder:x", "a=folder:y[0-1]"]}):
        with pytest.raises(UserError, match=r"^experiment: data set a is to be two folders, 'x' and 'y'"):
            experiment_from_dict(fine | changes)


def test_cells_and_claims_are_the_same_wherever_the_folder_lies() -> None:
    def made(path: str) -> tuple[list[str], str | None]:
        table = {
            "dataset": f"a=folder:{path}[0-3]", "pretrain_dataset": f"a=folder:{path}[4-9]", "scenario": "fine-tune",
            "claims": {"method": "paced"},
        }  # fmt: skip
        experiment = experiment_from_dict(table)
        found = list(cells(experiment, default_recipe))
        assert {(cell.dataset, cell.pretrain_dataset) for cell in found} == {("a[0-3]", "a[4-9]")}
        return [cell.cell_id for cell in found], claims_digest(experiment)

    assert made("/x/y") == made("z")


def test_a_photo_in_a_named_folder_may_be_a_jpeg(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    Image.new("RGB", (8, 8), (9, 8, 7)).save(folder / "class0" / "more.jpeg")
    assert load_dataset(f"a=folder:{folder}", root=None).channels == 3
