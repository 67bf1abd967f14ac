"""Answers of registries, as skopeo prints them and as they are."""

from __future__ import annotations

import pytest

from layerfarm.jobs.errors import RegistryBusy
from layerfarm.worker.catalog.answers import Answer, Kind, answer_in, error_of
from tests.catalog.answers import PRINTED, RECORDED, Recorded

NAMES = ("team/app:1.0", "error-500/pages:404", "defaultbackend-404:denied", "manifest/unknown:unknown")


@pytest.mark.parametrize(("text", "kind"), PRINTED)
def test_a_message_is_judged_by_its_code_or_status_and_not_by_the_names_in_it(text: str, kind: Kind) -> None:
    assert answer_in(text).kind is kind


@pytest.mark.parametrize("recorded", RECORDED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_at_hand_is_judged_the_same(recorded: Recorded, name: str) -> None:
    repository, _, tag = name.partition(":")
    message = recorded.message.format(repository=repository, tag=tag)
    assert Answer(message, recorded.status, recorded.code or None).kind is recorded.kind


def test_a_long_answer_is_judged_as_a_whole_and_printed_in_part() -> None:
    text = f"Uploading manifest failed, attempted: {'x' * 5000}(uploading manifest 1 to h/a: toomanyrequests: no)"
    error = error_of(answer_in(text), "docker://h/a:1")
    assert isinstance(error, RegistryBusy)
    assert len(str(error)) < 1200


def test_a_registry_without_tls_is_an_error_that_names_the_setting() -> None:
    text = 'pinging container registry h: Get "https://h/v2/": http: server gave HTTP response to HTTPS client'
    assert "tls-verify: false" in str(error_of(answer_in(text), "docker://h/a"))
    assert "tls-verify" not in str(error_of(answer_in("pinging container registry h: unsupported"), "docker://h/a"))
