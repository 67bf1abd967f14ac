"""tests/README.md and the tests agree: every item of the checklist has a test, every pattern there finds one."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parents[1]
NAMES = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
TEXT = (TESTS / "README.md").read_text()
ITEMS = {"B1": 20, "B2": 9, "B3": 15, "B4": 7}
"""The parts of the checklist whose items are numbered, and how many each has."""


def test_every_item_of_the_checklist_has_a_row() -> None:
    rows = re.findall(r"^\| ([BCD][^|]*?) \|", TEXT, re.MULTILINE)
    expected = [f"{part}.{number}" for part, count in ITEMS.items() for number in range(1, count + 1)]
    assert [row for row in rows if re.fullmatch(r"B[1-4]\.\d+", row)] == expected
    assert {"B5", "B6", "B7", "C", "D format", "D keywords", "D compare"} <= set(rows)
    limits = [number for row in rows if row.startswith("D limit") for number in re.findall(r"\d+", row)]
    assert sorted(map(int, limits)) == list(range(1, 13))


def test_every_pattern_finds_a_test_and_every_path_is_there() -> None:
    quoted = re.findall(r"`([^`]+)`", TEXT.partition("## Writing layers")[2])
    patterns = [text for text in quoted if text.startswith("test_")]
    assert [text for text in patterns if not any(fnmatch(name, text) for name in NAMES)] == []
    paths = [text for text in quoted if text.endswith(("/", ".py")) and not text.startswith("test_")]
    assert [text for text in paths if not (TESTS / text).exists() and text != "/"] == []


def test_every_test_that_the_list_of_differences_from_umoci_names_is_there() -> None:
    text = (TESTS.parent / "docs/umoci-differences.md").read_text()
    patterns = re.findall(r"`(test_[^`]+)`", text)
    assert len(patterns) > 20
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in NAMES)] == []


def test_every_test_that_is_named_after_an_item_is_in_the_table() -> None:
    patterns = re.findall(r"`(test_[^`]+)`", TEXT)
    named = {name for name in NAMES if re.match(r"test_(B[1-7]_|C_|D_)", name)}
    assert sorted(name for name in named if not any(fnmatch(name, pattern) for pattern in patterns)) == []
