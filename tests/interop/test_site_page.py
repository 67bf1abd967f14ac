"""The pages of the documentation in a real browser, as wide as a phone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.browser import Browser

REPOSITORY = Path(__file__).parents[2]
WIDTH = 375


def test_no_page_of_the_site_is_wider_than_a_phone(program: Callable[[str], str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--no-directory-urls", "--site-dir", site],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    sources = {path.relative_to(REPOSITORY / "docs") for path in (REPOSITORY / "docs").rglob("*.md")}
    pages = [str(path.with_suffix(".html")) for path in sorted(sources)]
    assert len(pages) > 25
    seen = Browser(program("chromium"), tmp_path).widths(site, pages, WIDTH)
    assert list(seen) == pages
    assert {page: found for page, found in seen.items() if found[0] < 100 or found[1] > 0 or found[2]} == {}
