"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from layerfarm.worker.plural import counted


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (1, ("process", "processes"), "1 process"),
        (7, ("process", "processes"), "7 processes"),
    ],
)
def test_one_takes_the_singular(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(number, *nouns) == text
