"""The page that shows a report, and its texts."""

from __future__ import annotations

from layerfarm.worker.catalog.costs import totals
from layerfarm.worker.catalog.report import ImageRow, Report, page, size_text


def test_sizes_are_told_in_powers_of_thousand() -> None:
    assert [size_text(n) for n in (None, 0, 999, 1000, 1_500_000, 2_000_000_000)] == [
        "-",
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.0 GB",
    ]


def test_the_page_escapes_what_registries_say_and_needs_nothing_from_outside() -> None:
    row = ImageRow(
        name="<script>x</script>:1", state="failed", error='"><img src=http://a>', layers_before=1, bytes_before=1
    )
    text = page(Report(catalog="<b>", before=totals({}, []), images=(row,)))
    assert "<script>" not in text
    assert "<img" not in text
    assert "<b>&lt;" in text  # the name of the repository, in our own <b>
    assert "&lt;script&gt;" in text
