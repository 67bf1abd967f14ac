"""The report's page in a real browser: as wide as a phone and a desk, in light and dark, with a keyboard."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from layerfarm.worker.catalog.page import page
from layerfarm.worker.catalog.report import ImageRow, Report
from tests.browser import Browser, Scheme
from tests.catalog.sample import TAGS, sample
from tests.unit.catalog.works import ran

Seen = Callable[[int, Scheme], dict[str, Any]]
SIZES: list[tuple[int, Scheme]] = [(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A catalog with images that were made, kept, skipped and failed, and one of the longest names."""
    found = ran(sample(tmp_path_factory.mktemp("sample")))
    row = ImageRow(
        name="data/" + "a-very-long-name-" * 6 + ":" + "1.2.3-" * 15 + "<b>",
        state="failed",
        outcome="failed",
        error="image is for windows/amd64, " + "x" * 300,
        todo="y" * 200,
        layers_before=2,
        bytes_before=40_345_678,
        warnings=("z" * 300,),
    )
    return found.model_copy(update={"images": (*found.images, row)})


@pytest.fixture(scope="module")
def seen(report: Report, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The page as a browser lays it out at a width in pixels."""
    browser = Browser(program("chromium"), tmp_path_factory.mktemp("page"))
    known: dict[tuple[int, Scheme], dict[str, Any]] = {}

    def look(width: int, scheme: Scheme) -> dict[str, Any]:
        if (width, scheme) not in known:
            known[width, scheme] = browser.look(page(report), width, scheme)
        return known[width, scheme]

    return look


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_nothing_is_wider_than_the_screen(seen: Seen, width: int, scheme: Scheme) -> None:
    found = seen(width, scheme)
    assert found["viewport"] == width
    assert found["over"] == []
    assert found["scroll"] == width


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_texts_are_large_enough_and_differ_from_their_background(seen: Seen, width: int, scheme: Scheme) -> None:
    found = seen(width, scheme)
    assert found["dark"] == (scheme == "dark")
    assert (sum(found["ground"]) < 150) == (scheme == "dark")
    assert len(found["texts"]) > 200
    assert [each for each in found["texts"] if each["contrast"] < 4.5] == []  # WCAG 1.4.3
    assert [each for each in found["texts"] if each["size"] < 12] == []
    assert len(found["drawn"]) > 50
    assert min(found["drawn"]) >= 3  # WCAG 1.4.11


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_a_keyboard_reaches_everything_in_the_order_of_the_page(seen: Seen, width: int, scheme: Scheme) -> None:
    stops = seen(width, scheme)["stops"]
    assert stops[0]["text"] == "Skip to the report"
    assert {stop["tag"] for stop in stops} == {"A", "SUMMARY"}
    assert {"From tag to tag", "Layers", "Failed", "Catalog file"} <= {stop["text"] for stop in stops}
    for stop in stops:
        assert (stop["focused"], stop["inside"], stop["index"]) == (True, True, 0), stop
        assert stop["outline"] >= 2, stop
    for one, other in pairwise(stops[1:]):
        assert (other["top"], other["left"]) > (one["top"] - 5, -1), (one, other)


def test_a_phone_gets_cards_and_a_desk_gets_tables(seen: Seen) -> None:
    phone, desk = seen(375, "light"), seen(1280, "light")
    assert (phone["stacked"], phone["headed"], phone["tiles"]) == (True, False, 4)
    assert (desk["stacked"], desk["headed"], desk["tiles"]) == (False, True, 1)


def test_both_have_the_same_texts(seen: Seen, report: Report) -> None:
    assert report.run is not None
    assert report.run.outcomes == {"made": 2 * TAGS, "kept": 1, "skipped": 1, "failed": 1}
    for width in (375, 1280):
        text = seen(width, "light")["text"]
        for row in report.images:
            for part in (row.new, row.proof, row.verify, row.error, row.todo, *row.warnings):
                assert part is None or part in text


def test_bars_are_as_long_as_what_they_stand_for(seen: Seen, report: Report) -> None:
    bars = seen(1280, "light")["bars"]
    before, now = report.before, report.after
    assert now is not None
    assert bars[2] / bars[0] == pytest.approx(now.stored / before.stored, abs=0.02)
