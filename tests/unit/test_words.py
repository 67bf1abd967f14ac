"""Words that docs/contributing/style.md rules out: translated idioms, personification, relative clauses for titles."""

from __future__ import annotations

import ast
import io
import re
import tokenize
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
    """Texts of product and documentation, and the prose of the tests; the style page quotes what it rules out."""
    paths = [path for folder in ("jobs", "worker", "deploy", "docs") for path in (ROOT / folder).rglob("*")]
    names = {str(path.relative_to(ROOT)) for path in (*paths, *ROOT.glob("*.md")) if path.name.endswith(TEXTS)}
    left_out = ("CHANGELOG.md", "docs/contributing/style.md", "deploy/import/")
    found = {name: (ROOT / name).read_text() for name in sorted(names) if not name.startswith(left_out)}
    # Both quote the list of idioms.
    lists = (Path(__file__), ROOT / "tests/docs/test_style.py")
    tests = (path for path in (ROOT / "tests").rglob("*.py") if path not in lists)
    return found | {str(path.relative_to(ROOT)): prose(path.read_text()) for path in sorted(tests)}


def prose(source: str) -> str:
    """Return docstrings, comments and the names of tests in their lines, everything else blank.

    Other texts of tests are input, such as a user called nobody.
    """
    lines = source.splitlines()
    kept = [""] * (len(lines) + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kept[token.start[0] - 1] = token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                kept[number] = lines[number]
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            kept[node.lineno - 1] = node.name.replace("_", " ")
    return "\n".join(kept)


@pytest.mark.large
def test_no_text_has_an_idiom_that_the_style_page_rules_out() -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, write: {instead}"
        for name, text in texts().items()
        for pattern, instead in RULED_OUT.items()
        for match in re.finditer(pattern, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.large
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
def test_ruled_out_idioms_are_found(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in RULED_OUT)


def test_prose_of_a_test_is_its_docstrings_comments_and_name() -> None:
    source = 'def test_a_b() -> None:\n    """Doc."""\n    x = "nobody"  # why\n'
    assert prose(source).split("\n") == ["test a b", '    """Doc."""', "# why", ""]
