"""A request as one JSON document with its kind, for clients in other languages."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Model, Request
from layerfarm.jobs.store.validation import first_error


class Submission(Model):
    """The document: a job's kind and request, as its record has them."""

    kind: str
    request: dict[str, Any]


def parse_submission(document: bytes) -> Request:
    """Return the request of a :class:`Submission` in JSON.

    Raises:
        RequestError: the document is not JSON, its kind is unknown, or a field of the request is wrong or missing.
    """
    try:
        submission = Submission.model_validate_json(document)
    except ValidationError as error:
        hint = 'write {"kind": "build", "request": {…}}, see docs/requests.md'
        raise RequestError(first_error(error, "request"), hint=hint) from None
    flow = FLOWS.get(submission.kind)
    if flow is None:
        hint = f"write one of {', '.join(sorted(FLOWS))}"
        raise RequestError(f"no kind of job is called {submission.kind!r}", hint=hint)
    try:
        request: Request = flow.request.model_validate_json(to_json(submission.request))
    except ValidationError as error:
        raise RequestError(f"not a valid {submission.kind} request: {first_error(error, 'request')}") from None
    return request
