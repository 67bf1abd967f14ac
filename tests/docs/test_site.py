"""The documentation builds without a warning, and a browser that shows it loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from tests.docs.test_api import shown

REPOSITORY = Path(__file__).parents[2]


class _Loaded(HTMLParser):
    """Addresses that a page makes a browser load, and whether it has a picture to be drawn by mermaid."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.drawn = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = {"script": "src", "img": "src", "iframe": "src", "link": "href"}.get(tag)
        if name and given.get(name) and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(str(given[name]))
        self.drawn = self.drawn or "mermaid" in (given.get("class") or "").split()


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = list(site.rglob("*.html"))
    assert {page.parent.name for page in pages} >= {"concepts", "farm", "ci", "operating", "security", "formats", "api"}
    described = set(re.findall(r'id="(layerfarm\.[\w.]+)"', (site / "api/index.html").read_text()))
    public = {f"{module}.{name}" for module, names in shown().items() for name in names}
    assert public - described == set()
    of_public = {
        name for name in described if name in shown() or any(f"{name}.".startswith(f"{each}.") for each in public)
    }
    assert described - of_public == set()
    for page in pages:
        # A fence that MkDocs did not take for one: there are other words after its language.
        assert re.search(r"<p><code>(console|sh|python|yaml|toml|text)[ \n]|```", page.read_text()) is None, page
        loaded = _Loaded()
        loaded.feed(page.read_text())
        # A report is one file; every page of the theme loads something.
        assert bool(loaded.addresses) == (page.parent.name != "figures"), page
        assert [address for address in loaded.addresses if re.match(r"(https?:)?//", address)] == [], page
        # The theme would fetch mermaid from a public host.
        assert not loaded.drawn, page
