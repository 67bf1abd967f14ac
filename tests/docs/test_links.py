"""Links in the command's output and in the files of deploy/ lead to pages and headings that exist."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify, unique
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from tests.docs.blocks import PAGES, ROOT

_LINK = re.compile(r"\b((?:docs/[\w-]+|SECURITY|README|CHANGELOG)\.md)(?:#([\w-]+))?")
_SOURCES = [
    path
    for place in ("jobs", "worker", "deploy")
    for path in sorted((ROOT / place).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as MkDocs makes them."""
    used: set[str] = set()
    for text in _titles(page):
        unique(slugify(text, "-"), used)
    return used


def headings_on_github(page: Path) -> set[str]:
    """The anchors of a page where its file is shown: by github-slugger's rule."""
    slugs = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in _titles(page)]
    return {f"{slug}-{before}" if (before := slugs[:at].count(slug)) else slug for at, slug in enumerate(slugs)}


def _titles(page: Path) -> list[str]:
    tokens = MarkdownIt().parse(page.read_text())
    return [
        "".join(child.content for child in inline.children or ())
        for opening, inline in itertools.pairwise(tokens)
        if opening.type == "heading_open"
    ]


def links_of(page: Path) -> set[str]:
    """The links of a page to headings, of itself or of other pages of the repository."""
    children = (child for token in MarkdownIt().parse(page.read_text()) for child in token.children or ())
    links = {str(child.attrs["href"]) for child in children if child.type == "link_open"}
    # One with a dot is the name of an object of the Python API, which only the site describes.
    return {link for link in links if re.search(r"^[^:]*#[\w-]+$", link)}


def links() -> set[tuple[str, str, str]]:
    return {
        (str(path.relative_to(ROOT)), page, anchor)
        for path in _SOURCES
        for page, anchor in _LINK.findall(path.read_text(errors="replace"))
    }


@pytest.mark.parametrize(("source", "page", "anchor"), sorted(links()))
def test_a_page_that_is_named_is_there(source: str, page: str, anchor: str) -> None:
    assert (ROOT / page).is_file()
    assert not anchor or anchor in headings(ROOT / page), f"{page} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_heading_leads_there_on_github_too(page: Path) -> None:
    """MkDocs, which is strict, finds those that do not on the site."""
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert anchor in headings_on_github(target), f"{target} has no heading for {link}"


def test_errors_do_lead_to_pages() -> None:
    named = {page for source, page, _ in links() if source.startswith(("jobs", "worker"))}
    pages = {f"docs/{name}.md" for name in ("limits", "operating", "catalogs", "transforms", "security")}
    assert named >= pages


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    rules = YAML(typ="safe").load((ROOT / "deploy/monitoring/rules.yml").read_text())
    alerts = {rule["alert"].lower() for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts and alerts <= headings(ROOT / "docs/operating.md")


def test_every_file_of_a_store_is_documented() -> None:
    sources = [path.read_text() for path in _SOURCES if path.suffix == ".py"]
    made = {name for text in sources for name in re.findall(r'PRIVATE_DIRECTORY(?: /|,) "([\w.-]+)"', text)}
    page = (ROOT / "docs/store.md").read_text()
    assert len(made) >= 10 and {name for name in made if f"`.layerfarm/{name}" not in page} == set()


def test_files_that_the_architecture_page_names_are_there() -> None:
    files = [path.relative_to(ROOT) for place in ("jobs", "worker", "tests") for path in (ROOT / place).rglob("*")]
    named = set(re.findall(r"`([\w/]+(?:\.py|\.lua|/))`", (ROOT / "docs/architecture.md").read_text()))
    assert len(named) > 80
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not any(map(name_of(name), files))] == []


def name_of(name: str) -> Callable[[Path], bool]:
    """True for paths that end in ``name``."""
    parts = Path(name).parts
    return lambda path: path.parts[-len(parts) :] == parts
