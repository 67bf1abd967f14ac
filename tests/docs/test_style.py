"""The pages keep to docs/contributing/style.md, as far as a machine can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

_TEXTS = [
    *(path for path in PAGES if path.name != "style.md"),
    ROOT / "tests/README.md",
    *(path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".md", ".yaml", ".yml", ".conf", ".example")),
]
_IDIOMS = re.compile(
    r"\b(anew|made over|making over|bears? with|of no matter|has it not|whoever|lets? go of|gives? back|hands? back|"
    r"handed back|speaks? of|(is|are) told|tak(es?|en|ing) for|yet to|as it lets|he|she|his|him|her)\b",
    re.IGNORECASE,
)
_OPENINGS = re.compile(r"^(#+|[-|]) *(What|Who|Whose|Whether|Of)\b.*", re.MULTILINE)
"""Headings, list items and rows that begin with a relative clause."""


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_has_no_idiom_and_no_relative_clause_as_a_title(path: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
    assert [found[0] for found in (*_IDIOMS.finditer(prose), *_OPENINGS.finditer(prose))] == []
