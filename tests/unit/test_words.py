"""Words that docs/contributing/style.md rules out: translated idioms, personification, relative clauses for titles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    ".py",
    ".lua",
    ".html",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".conf",
    ".service",
    ".acl",
    ".example",
    ".1",
    "Dockerfile",
)
RULED_OUT = {
    r"\banew\b": "again, or restart",
    r"\b(made|makes?|making) (\w+ )?over\b": "transformed, transform",
    r"\bwho(m)?ever\b": "anyone who, or name the actor",
    r"\b(bears? with|is borne)\b": "tolerates",
    r"\bof no matter\b": "is ignored",
    r"\bspeaks? of\b": "refers to, describes",
    r"\ban account of\b": "a record of",
    r"\bis told\b": "is reported to, receives",
    r"\blets? go of\b": "releases",
    r"\b(gives?|given|gave|giving) back\b": "returns, releases",
    r"\bha[sd] (it|them|the \w+) not\b": "does not have",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\b(is|are) said\b": "is printed, is reported",
    r"\b(comes?|came) to (be|lie|rest|harm)\b": "becomes",
    r"\b(lies?|lying|lay) (in|at|below|beneath|beside|behind|under|outside)\b": "is in",
    r"\bmust not be held up\b": "must not wait",
    r"\b(he|she|him|her|his|hers|himself|herself)\b": "it, or the user, they",
    r"\b(some|no)body\b": "another user, no one, or name the actor",
    r"\bof ours?\b": "of layerfarm",
    r"\bbut for\b": "except",
    r"\b(goes|go|going) on (with|to|as)\b": "continues",
    r"\b(Kept|Read|Given|Needed|Meant) (is|are)\b": "the subject first",
    r"\byet to\b": "still to, not yet",
    r"\b(brings?|bring) (in|along)\b": "install, copy",
}
OPENINGS = re.compile(r'^\s*(?:r?"""|#) ?(What|Who|Whom|Whose|Whether|Of|How|Where|That which)\b', re.MULTILINE)
"""Openings of docstrings and comments with a relative clause instead of the subject or the verb."""


def texts() -> dict[str, str]:
    """The texts of the product and its documentation; the style page quotes what it rules out."""
    paths = [path for folder in ("jobs", "worker", "deploy", "docs") for path in (ROOT / folder).rglob("*")]
    names = {str(path.relative_to(ROOT)) for path in (*paths, *ROOT.glob("*.md")) if path.name.endswith(TEXTS)}
    left_out = ("CHANGELOG.md", "docs/contributing/style.md", "deploy/import/")
    return {name: (ROOT / name).read_text() for name in sorted(names) if not name.startswith(left_out)}


def test_no_text_has_an_idiom_that_the_style_page_rules_out() -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, write: {instead}"
        for name, text in texts().items()
        for pattern, instead in RULED_OUT.items()
        for match in re.finditer(pattern, text)
    ]
    assert not found, "\n".join(found)


def test_no_docstring_or_comment_opens_with_a_relative_clause() -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start(1)) + 1}: {match[0].strip()}"
        for name, text in texts().items()
        if name.endswith(".py")
        for match in OPENINGS.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["images made over", "it has them not", "somebody", "which lies in the store", "his name"]
)
def test_what_is_ruled_out_is_found(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in RULED_OUT)
