"""The arithmetic of stored and pulled bytes, and the page that shows it."""

from __future__ import annotations

from layerfarm.worker.catalog.report import Holding, ImageRow, Report, missing, page, pulls, shared, size_text, totals

IMAGES = {
    "a:1": Holding({"base": 100, "x": 10}, {"config 1": 1}),
    "a:2": Holding({"base": 100, "y": 20}, {"config 2": 2}),
    "b:1": Holding({"base": 100, "z": 5}, {"config 1": 1}),
}
SERIES = [["a:1", "a:2"], ["b:1"]]


def test_a_blob_is_stored_once_whoever_has_it() -> None:
    found = totals(IMAGES, SERIES)
    assert (found.stored, found.layers, found.images) == (138, 4, 3)


def test_a_pull_costs_what_the_tag_before_does_not_have() -> None:
    assert pulls(IMAGES, SERIES) == {"a:1": None, "a:2": 22, "b:1": None}
    assert (totals(IMAGES, SERIES).pulled, totals(IMAGES, SERIES).pulls) == (22, 1)
    assert missing({"a": 1, "b": 2}, {"b": 2}) == 1


def test_a_tag_that_is_not_known_is_stepped_over() -> None:
    assert pulls(IMAGES, [["a:1", "gone", "a:2"]]) == {"a:1": None, "a:2": 22}


def test_what_is_shared_is_told_by_the_exact_set_of_images() -> None:
    assert [(row.images, row.bytes) for row in shared(IMAGES)] == [
        (("a:1", "a:2", "b:1"), 100),
        (("a:2",), 20),
        (("a:1",), 10),
        (("b:1",), 5),
    ]


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
