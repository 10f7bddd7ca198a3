"""Some classes of a data set: which images they are, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldbench.data.datasets import check_dataset_name, load_dataset
from ldbench.errors import UserError

CHOSEN = {"[5-9]": [5, 6, 7, 8, 9], "[0,2,7-9]": [0, 2, 7, 8, 9], "[ 8 , 1 - 2 ]": [1, 2, 8], "[0-9]": list(range(10))}


@pytest.mark.parametrize(("brackets", "classes"), CHOSEN.items())
def test_a_selection_holds_every_image_of_its_classes_and_renumbers_them(brackets: str, classes: list[int]) -> None:
    whole, some = load_dataset("digits", root=None), load_dataset(f"digits{brackets}", root=None)
    assert some.name == f"digits{brackets}"
    assert some.class_names == tuple(whole.class_names[number] for number in classes)
    assert some.classes == len(classes)
    for part in ("train", "test"):
        of_whole, of_some = getattr(whole, part), getattr(some, part)
        for new, old in enumerate(classes):
            images = of_whole.images[of_whole.labels == old]
            assert len(images)
            assert torch.equal(of_some.images[of_some.labels == new], images)
    assert (some.fingerprint == whole.fingerprint) == (brackets == "[0-9]")


def test_sizes_apply_to_what_was_chosen_and_stay_balanced() -> None:
    some = load_dataset("digits[3,7]", root=None, train_size=60, test_size=20, val_size=10)
    assert [len(part) for part in (some.train, some.val, some.test)] == [50, 10, 20]
    assert torch.bincount(some.train.labels).tolist() == [25, 25]
    pixels = some.train.images.double() / 255
    assert some.mean[0] == pytest.approx(float(pixels.mean()))


def test_folders_and_synthetic_sets_have_classes_to_choose_too(tmp_path: Path) -> None:
    folder = tmp_path / "pets[0-1]"
    for number, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for shade in range(4):
            Image.new("L", (8, 8), 10 * number + shade).save(folder / name / f"{shade}.png")
    assert load_dataset(f"folder:{folder}/", root=None).class_names == ("ant", "bee", "cat")
    assert load_dataset(f"folder:{folder}/[0,2]", root=None).class_names == ("ant", "cat")
    assert load_dataset("synthetic:1x8x8:4:40[1,3]", root=None).classes == 2


REFUSED = {
    "digits[0-9,3]": "twice", "digits[4,4]": "twice", "digits[5]": "at least 2 classes",
    "digits[]": "chooses no classes: write [5-9]", "digits[9-5]": "chooses no classes",
    "digits[1,,2]": "chooses no classes", "digits[0-99999999999]": "chooses no classes",
    "digits[-1]": "chooses no classes", "digts[0-3]": "did you mean digits", "digits[a]": "unknown data set",
    "[0-1]": "unknown data set", "digits[0-3][0-1]": "unknown data set",
}  # fmt: skip


@pytest.mark.parametrize(("name", "said"), REFUSED.items())
def test_a_selection_that_cannot_be_meant_is_refused_before_anything_is_read(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_dataset_name(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="no class 10: its classes are 0 to 9"):
        load_dataset("digits[3,8-10]", root=None)
    with pytest.raises(UserError, match="train size 721 cannot be had: choose 2 to"):
        load_dataset("digits[0-1]", root=None, train_size=721)
