"""The report's page in a real browser, as wide as a phone and as a desk."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable

import pytest

from layerfarm.worker.catalog.costs import Holding, Pullable, pulls, shared, totals
from layerfarm.worker.catalog.report import DuplicateRow, ImageRow, Report, page

_HARNESS = """\
<!doctype html><title>harness</title>
<iframe id=f style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><pre id=out></pre>
<script>
document.getElementById('f').onload = function () {{
  const inner = this.contentDocument, root = inner.documentElement, all = [...inner.body.querySelectorAll('*')];
  const shown = all.filter(e => e.getClientRects().length);
  const box = e => e.getBoundingClientRect();
  const cell = inner.querySelector('td'), head = inner.querySelector('thead');
  document.getElementById('out').textContent = JSON.stringify({{
    viewport: this.contentWindow.innerWidth,
    scroll: root.scrollWidth,
    over: shown.filter(e => box(e).right > this.contentWindow.innerWidth + 0.5 && !e.closest('thead'))
      .map(e => e.tagName + ' ' + e.textContent.slice(0, 30)),
    smallest: Math.min(...shown.map(e => parseFloat(getComputedStyle(e).fontSize))),
    tiles: new Set([...inner.querySelectorAll('.tile')].map(e => Math.round(box(e).top))).size,
    stacked: getComputedStyle(cell).display !== 'table-cell',
    headed: box(head).height > 5,
    bars: [...inner.querySelectorAll('.track i')].map(e => Math.round(box(e).width)),
    rows: inner.querySelectorAll('tbody tr').length,
    text: inner.body.innerText.slice(0, 300),
    outside: [...inner.querySelectorAll('script, img, link, iframe')].length,
  }});
}};
</script>
"""


def holding(layers: dict[str, int], config: str, size: int) -> Holding:
    return {"linux/amd64": Pullable(tuple(layers), layers | {config: size})}


def report() -> Report:
    """A catalog of long names, of many tags, of images that failed."""
    repositories = ["web/front", "data/" + "a-very-long-name-" * 6, "ci/<b>bold</b>"]
    series = [[f"{name}:{tag}.0" for tag in range(6)] for name in repositories]
    before = {
        name: holding({f"base {name[-3:]}": 28_000_000, name: 12_345_678}, f"c{name}", 3000)
        for s in series
        for name in s
    }
    after = {
        name: holding({f"group {at}": 1_000_000 for at in range(20)} | {name: 90_000}, f"d{name}", 9000)
        for name in before
    }
    costs, now = pulls(before, series), pulls(after, series)
    rows = [
        ImageRow(
            name=name,
            state="failed" if name.endswith("3.0") else "done",
            error="image is for windows/amd64, " + "x" * 300 if name.endswith("3.0") else None,
            layers_before=2,
            layers_after=21,
            bytes_before=40_345_678,
            pull_before=costs[name],
            pull_planned=now[name],
            pull_after=now[name],
        )
        for s in series
        for name in s
    ]
    return Report(
        catalog="web",
        before=totals(before, series),
        planned=totals(after, series),
        after=totals(after, series),
        images=tuple(rows),
        shared_before=shared(before),
        shared_after=shared(after),
        duplicates=(
            DuplicateRow(what="dpkg:libc6 2.36-9 usr/lib/" + "x86_64-" * 30, bytes=12_000_000, before=18, after=1),
        ),
    )


@pytest.fixture(scope="module")
def seen(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, object]]:
    """Rendering of the page in a browser, at a width in pixels."""
    chromium = program("chromium")
    directory = tmp_path_factory.mktemp("page")
    text = html.escape(page(report()), quote=True)

    def look(width: int) -> dict[str, object]:
        harness = directory / f"{width}.html"
        harness.write_text(_HARNESS.format(width=width, page=text))
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        command += [f"--user-data-dir={directory}/profile", "--window-size=1400,1000", "--dump-dom", harness.as_uri()]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, stdin=subprocess.DEVNULL
        )
        found = re.search(r"<pre id=.?out.?>(.*?)</pre>", done.stdout, re.DOTALL)
        assert found, done.stdout[-500:] + done.stderr[-500:]
        result: dict[str, object] = json.loads(html.unescape(found[1]))
        return result

    return look


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_all_of_it_can_be_read(
    seen: Callable[[int], dict[str, object]], width: int
) -> None:
    found = seen(width)
    assert found["viewport"] == width
    assert found["over"] == []
    assert found["scroll"] == width
    assert isinstance(found["smallest"], float | int)
    assert found["smallest"] >= 12
    assert found["rows"] == len(report().images) + 3 + len(report().shared_after) + len(report().shared_before) + 1
    assert found["outside"] == 0
    assert "18 images in 3 repositories, 3 failed" in str(found["text"])


def test_a_phone_gets_cards_and_a_desk_gets_tables(seen: Callable[[int], dict[str, object]]) -> None:
    phone, desk = seen(390), seen(1280)
    assert (phone["stacked"], phone["headed"], phone["tiles"]) == (True, False, 3)
    assert (desk["stacked"], desk["headed"], desk["tiles"]) == (False, True, 1)


def test_bars_are_as_long_as_what_they_stand_for(seen: Callable[[int], dict[str, object]]) -> None:
    bars = seen(1280)["bars"]
    assert isinstance(bars, list)
    stored, whole = report().after, report().before
    assert stored is not None
    assert bars[2] / bars[0] == pytest.approx(stored.stored / whole.stored, abs=0.02)
