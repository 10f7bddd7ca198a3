"""Every method has a card, whose options are the code's and whose links lead somewhere."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldbench.policies.registry import get_method, method_names

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
INDEX = FOLDER / "README.md"
CARDS = {path: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md")) if path != INDEX}
VERDICT = re.compile(r"<!-- verdict: ([a-z-]+) -->\n(.*?)\n<!-- end -->", re.DOTALL)
OPTION = re.compile(r"^\| ([a-z-]+) \| `(\w+)` \| `(.+?)` \| \S", re.MULTILINE)


def own_methods() -> list[str]:
    """The methods of this project; tests register others."""
    names = [name for name in method_names() if "+" not in name]
    rules = {name: get_method(name).policy for name in names}
    return [name for name, rule in rules.items() if getattr(rule, "func", rule).__module__.startswith("ldbench.")]


METHODS = own_methods()


def verdicts() -> Iterator[tuple[str, Path, str]]:
    for path, text in CARDS.items():
        for name, verdict in VERDICT.findall(text):
            yield name, path, verdict


def test_every_method_has_one_verdict_on_one_card_and_a_line_in_the_index() -> None:
    assert sorted(name for name, _, _ in verdicts()) == sorted(METHODS)
    lines = re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \| (.*?) \|", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {(FOLDER / card, name) for card, names in lines for name in re.findall(r"`([a-z-]+)`", names)}
    assert listed == {(path, name) for name, path, _ in verdicts()}


@pytest.mark.parametrize("method", METHODS)
def test_the_options_of_a_card_are_those_of_the_code(method: str) -> None:
    told = {
        option: json.loads(value)
        for path in CARDS
        for name, option, value in OPTION.findall(CARDS[path])
        if name == method
    }
    of = get_method(method)
    known = dict(inspect.signature(of.policy).parameters)
    known |= inspect.signature(of.prunes).parameters if of.prunes is not None else {}
    expected = {name: json.loads(json.dumps(each.default)) for name, each in known.items() if name != "events"}
    assert told == expected
    assert {name: type(value) for name, value in told.items()} == {
        name: type(value) for name, value in expected.items()
    }


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_says_source_options_and_what_was_measured(path: Path) -> None:
    assert all(part in CARDS[path] for part in ("\n**Source.** ", "\n**Options.**", "\n## Measured\n"))
    assert CARDS[path].startswith(f"# {path.stem}") or path.stem == "controls"


PAGES = [*CARDS, INDEX, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def headings(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", path.read_text(encoding="utf-8"))
    assert [link for link, _ in links if not (path.parent / link).exists()] == []
    named = [(path.parent / link if link else path, heading) for link, heading in links if heading]
    assert [(page.name, heading) for page, heading in named if heading not in headings(page)] == []
