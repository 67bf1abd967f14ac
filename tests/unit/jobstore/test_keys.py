"""Names of keys: two farms in one Redis share none."""

from __future__ import annotations

import pytest

from layerfarm.worker.jobstore.keys import Keys


def names(farm: str) -> set[str]:
    keys = Keys(farm)
    return {*vars(keys).values(), keys.worker("name"), *keys.job("job")}


@pytest.mark.parametrize("other", ["farm2", "far", "another"])
def test_farms_share_no_key_and_no_beginning_of_one(other: str) -> None:
    ours, theirs = names("farm"), names(other)
    assert len(ours) > 20
    assert not [(one, two) for one in ours for two in theirs if one.startswith(two) or two.startswith(one)]


def test_one_farm_uses_each_name_once() -> None:
    keys = Keys("farm")
    every = [*vars(keys).values(), keys.worker("name"), *keys.job("job")[:4]]
    assert len(set(every)) == len(every)
    assert all(name.startswith(keys.prefix) for name in every)
