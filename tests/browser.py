"""Pages in a headless Chromium, as wide as a phone or a desk, in light or dark: what it lays out, and pictures."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final, Literal

Scheme = Literal["light", "dark"]
_FRAME: Final = """\
<!doctype html><title>frame</title><body style="margin:0">
<iframe id=f style="border:0;display:block;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<pre id=out></pre>
"""
_SCRIPT: Final = """\
<script>
const lightness = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const rgba = text => text.match(/[\\d.]+/g).map(Number);
document.getElementById('f').onload = function () {
  const window = this.contentWindow, page = window.document, root = page.documentElement;
  const style = e => window.getComputedStyle(e), box = e => e.getBoundingClientRect();
  const open = [...page.querySelectorAll('details')];
  open.forEach(e => e.open = true);
  const all = [...page.body.querySelectorAll('*')], shown = all.filter(e => e.getClientRects().length);
  const hidden = e => e.closest('thead') && style(e.closest('thead')).position === 'absolute' || e.matches('.skip');
  const ground = e => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a = 1] = rgba(style(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const contrast = (one, other) => {
    const [light, dark] = [lightness(one), lightness(other)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  const written = shown.filter(e => !hidden(e) && e.tagName !== 'title'
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const texts = written.map(e => ({
    text: e.textContent.trim().slice(0, 40), size: parseFloat(style(e).fontSize),
    contrast: contrast(rgba(e.ownerSVGElement ? style(e).fill : style(e).color), ground(e)),
  }));
  const drawn = shown.filter(e => e.matches('.mark, .fill, .line, .stack rect, .parts b')).map(e => {
    const colour = e.matches('.line') ? style(e).stroke : e.matches('b') ? style(e).backgroundColor : style(e).fill;
    return contrast(rgba(colour), rgba(style(page.body).backgroundColor));
  });
  const keys = all.filter(e => e.matches('a[href], summary, button, input, select, textarea, [tabindex="0"]'));
  const stops = keys.map(e => {
    e.focus();
    const at = box(e);
    return {tag: e.tagName, text: e.textContent.trim().slice(0, 40), focused: page.activeElement === e,
      outline: parseFloat(style(e).outlineWidth), top: at.top + window.scrollY, left: at.left,
      inside: at.left >= 0 && at.right <= window.innerWidth, index: e.tabIndex};
  });
  const cell = page.querySelector('td');
  document.getElementById('out').textContent = JSON.stringify({
    dark: window.matchMedia('(prefers-color-scheme: dark)').matches,
    ground: ground(page.body),
    viewport: window.innerWidth,
    scroll: root.scrollWidth,
    over: shown.filter(e => !hidden(e) && box(e).right > window.innerWidth + 0.5).map(e => e.outerHTML.slice(0, 90)),
    texts, drawn, stops,
    tiles: new Set([...page.querySelectorAll('.tile')].map(e => Math.round(box(e).top))).size,
    stacked: style(cell).display !== 'table-cell',
    headed: box(page.querySelector('thead')).height > 5,
    bars: [...page.querySelectorAll('.track rect')].map(e => box(e).width),
    height: root.scrollHeight,
    text: page.body.innerText,
  });
};
</script>
"""


_FRAMES: Final = """\
<!doctype html><title>frames</title><body>
{frames}
<pre id=out></pre>
<script>
window.onload = () => {{
  const found = [...document.querySelectorAll('iframe')].map(frame => {{
    const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
    const clipped = e => {{
      for (e = e.parentElement; e; e = e.parentElement)
        if (frame.contentWindow.getComputedStyle(e).overflowX !== 'visible') return true;
      return false;
    }};
    const over = [...page.querySelectorAll('article *')]
      .filter(e => e.getBoundingClientRect().right > width + 0.5 && !clipped(e));
    return [frame.getAttribute('src'), page.querySelector('article').innerText.length,
      page.documentElement.scrollWidth - width, over.map(e => e.outerHTML.slice(0, 90))];
  }});
  document.getElementById('out').textContent = JSON.stringify(found);
}};
</script>
"""


class Browser:
    """Chromium at ``program``, with its files in ``directory``."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory

    def look(self, page: str, width: int, scheme: Scheme) -> dict[str, Any]:
        """Lay out a page with all its details open, and measure it."""
        frame = self._frame(page, width, 900, scheme, _SCRIPT)
        result: dict[str, Any] = _written(self._run(frame, scheme, "--dump-dom"))
        return result

    def widths(self, site: Path, pages: list[str], width: int) -> dict[str, tuple[int, int, list[str]]]:
        """Lay out pages of a site in a directory, all in one run.

        For each page: characters of its article, pixels by which it is wider than ``width``, and elements of the
        article that reach beyond ``width`` and are not in an element that scrolls or clips them.
        """
        frames = site / "frames.html"
        frames.write_text(
            _FRAMES.format(
                frames="\n".join(f'<iframe width={width} height=900 src="{page}"></iframe>' for page in pages)
            )
        )
        done = self._run(frames, "light", "--allow-file-access-from-files", "--dump-dom")
        return {page: (characters, over, elements) for page, characters, over, elements in _written(done)}

    def picture(self, page: str, width: int, height: int, scheme: Scheme, path: Path) -> None:
        """Write a PNG of the top of a page."""
        frame = self._frame(page, width, height, scheme)
        self._run(frame, scheme, f"--screenshot={path}", f"--window-size={width},{height}")

    def _frame(self, page: str, width: int, height: int, scheme: Scheme, script: str = "") -> Path:
        frame = self._directory / f"{width}-{scheme}.html"
        frame.write_text(_FRAME.format(width=width, height=height, page=html.escape(page, quote=True)) + script)
        return frame

    def _run(self, file: Path, scheme: Scheme, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            self._program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}",
            f"--user-data-dir={self._directory}/profile",
            "--window-size=1400,1000",
            *flags,
            file.as_uri(),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, stdin=subprocess.DEVNULL
        )


def _written(done: subprocess.CompletedProcess[str]) -> Any:
    """Value that a script of a page left in the element ``out``."""
    found = re.search(r'<pre id="?out"?>(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stdout[-500:] + done.stderr[-500:]
    return json.loads(html.unescape(found[1]))
