"""Requests refuse what no worker could do, before anything is queued."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from layerfarm.jobs.flows.requests import HistoryOptions
from tests.unit.image.images import LAX, NOT_RFC3339, RFC3339


def test_the_time_of_a_history_entry_is_rfc_3339() -> None:
    for text in RFC3339:
        assert HistoryOptions(created=text).created == text
    for text in (*NOT_RFC3339, *LAX):
        with pytest.raises(ValidationError, match="RFC 3339"):
            HistoryOptions(created=text)
