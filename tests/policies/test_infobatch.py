"""InfoBatch by name: which methods leave samples out, whose options are whose, what is refused, when epochs are whole."""

from __future__ import annotations

import pytest

from ldbench.errors import UserError
from ldbench.policies.infobatch import InfoBatch
from ldbench.policies.registry import build_policy, build_pruning, get_method, method_names


def test_every_rule_that_drops_has_the_suffix_with_either_execution_and_the_list_stays_short() -> None:
    for name in ("learn-and-drop", "schedule+freeze", "autofreeze", "autofreeze+store", "freezeout-linear+store"):
        plain, pruned = get_method(name), get_method(f"{name}+infobatch")
        assert pruned.prunes is InfoBatch
        assert plain.prunes is None
        assert (pruned.policy, pruned.execution, pruned.stops) == (plain.policy, plain.execution, True)
    assert get_method("infobatch").prunes is InfoBatch
    assert not get_method("infobatch").stops
    assert [name for name in method_names() if "infobatch" in name] == ["infobatch"]
    for name in ("full+infobatch", "short+infobatch", "freeze+infobatch", "infobatch+infobatch", "infobatch+store",
                 "stochastic-depth+infobatch", "autofreeze+infobatch+infobatch", "autofreeze+infobatch+store",
                 "+infobatch"):  # fmt: skip
        with pytest.raises(UserError, match="unknown method"):
            get_method(name)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    for wrong, right in (("infobach", "infobatch"), ("autofreze+store+infobatch", r"autofreeze\+store\+infobatch"),
                         ("autofreeze+infobach", r"autofreeze\+infobatch")):  # fmt: skip
        with pytest.raises(UserError, match=f"did you mean.*{right}"):
            get_method(wrong)


def test_options_reach_the_rule_or_the_pruning() -> None:
    options = {"patience": 3, "ratio": 0.25, "until": 0.5}
    rule = build_policy("learn-and-drop+infobatch", options)
    assert rule.patience == 3  # type: ignore[attr-defined]
    assert build_pruning("learn-and-drop+infobatch", options) == InfoBatch(0.25, 0.5)
    assert build_pruning("infobatch", {}) == InfoBatch(0.5, 0.875)
    assert build_pruning("learn-and-drop", {"patience": 3}) is None


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("infobatch", {"ratio": 1}, "ratio lies below 1"),
        ("infobatch", {"ratio": -0.1}, r"ratio is a number in \[0, 1\]"),
        ("infobatch", {"until": "x"}, r"until is a number in \[0, 1\]"),
        ("infobatch", {"patience": 3}, "no option 'patience'"),
        ("autofreeze+store+infobatch", {"ration": 0.1}, "did you mean ratio"),
        ("autofreeze+store+infobatch", {"ratio": True}, "ratio is a number"),
        ("learn-and-drop", {"ratio": 0.5}, "no option 'ratio'"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_policy(name, options)


def thin_epochs(epochs: int, **options: float) -> list[bool]:
    [(begin, end)] = InfoBatch(**options).thin_parts([9], epochs)
    return [begin <= epoch / epochs < end - 1e-9 for epoch in range(epochs)]


def test_the_last_eighth_of_the_epochs_is_whole_and_never_none() -> None:
    assert thin_epochs(200) == [True] * 175 + [False] * 25
    assert thin_epochs(8) == [True] * 7 + [False]
    assert thin_epochs(12) == [True] * 11 + [False]
    assert thin_epochs(3) == [True] * 2 + [False]
    assert thin_epochs(1) == [False]
    assert thin_epochs(10, until=0.7) == [True] * 7 + [False] * 3
    assert thin_epochs(3, until=1) == [True] * 3
    assert thin_epochs(3, until=0) == [False] * 3


def test_each_chunk_has_whole_epochs_at_its_own_end() -> None:
    parts = InfoBatch(until=0.75).thin_parts([2, 6], 4)
    assert parts == [(0.0, 0.75 * 0.25), (0.25, 0.25 + 0.75 * 0.75)]
