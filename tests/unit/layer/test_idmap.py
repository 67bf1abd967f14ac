"""Id maps (umoci.md B3.14)."""

from __future__ import annotations

import pytest

from layerfarm.jobs.errors import RequestError, UnmappedId
from layerfarm.jobs.layer import IdMap


def test_an_empty_map_is_identity() -> None:
    assert (IdMap().to_host(70000), IdMap().to_container(70000)) == (70000, 70000)


def test_the_first_range_that_holds_an_id_counts() -> None:
    ids = IdMap.of((0, 1000, 10), (5, 50, 100), (200, 1005, 5))
    assert [ids.to_host(n) for n in (0, 9, 10, 104, 200)] == [1000, 1009, 55, 149, 1005]
    assert [ids.to_container(n) for n in (1000, 1009, 50, 149)] == [0, 9, 5, 104]


@pytest.mark.parametrize("number", [10, 99, 111])
def test_an_id_between_or_beyond_the_ranges_is_an_error(number: int) -> None:
    ids = IdMap.of((0, 1000, 10), (100, 5000, 11))
    with pytest.raises(UnmappedId, match=f"container id {number} cannot be mapped"):
        ids.to_host(number)
    with pytest.raises(UnmappedId, match=f"host id {number} cannot be mapped"):
        ids.to_container(number)


@pytest.mark.parametrize(
    "row", [(-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 2**32), (0, 0xFFFFFFFF, 1), (0xFFFFFFFE, 0, 2)]
)
def test_a_range_that_leaves_the_ids_is_an_error(row: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError):
        IdMap.of(row)
