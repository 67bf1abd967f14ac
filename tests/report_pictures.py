"""``make pictures [TO=DIRECTORY]``: the report of a sample catalog in Chromium, for docs/ and for looking at.

docs/screenshots gets the picture that docs/catalogs.md shows. A directory gets the whole page, as wide as a phone and a
desk, in light and dark.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from layerfarm.worker.catalog.page import page
from tests.browser import Browser
from tests.catalog.sample import sample
from tests.unit.catalog.works import ran

SCREENSHOTS: Final = Path(__file__).resolve().parents[1] / "docs/screenshots"
WIDTHS: Final = (375, 1280)


def main(to: str = "") -> int:
    program = shutil.which("chromium")
    if program is None:
        print("chromium is not installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="layerfarm-screenshots-") as name:
        directory = Path(name)
        text = page(ran(sample(directory))).replace(f"{directory}/", "/srv/catalog/")
        browser = Browser(program, directory)
        if not to:
            browser.picture(text, 1280, 1560, "light", SCREENSHOTS / "report.png")
            return 0
        place = Path(to)
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.html").write_text(text)
        for width in WIDTHS:
            height = browser.look(text, width, "light")["height"]
            browser.picture(text, width, height, "light", place / f"{width}-light.png")
            browser.picture(text, width, height, "dark", place / f"{width}-dark.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
