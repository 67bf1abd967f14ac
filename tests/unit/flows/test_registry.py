"""The registry of flows for both runners: by the kind of job, and by the type of request."""

from __future__ import annotations

import pytest

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows import FLOWS, Flows, flow_of
from layerfarm.jobs.flows.base import Request
from layerfarm.jobs.flows.manifest import MANIFEST, ManifestRequest


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_a_flow_has_the_name_that_it_is_found_by_and_serves_its_requests(name: str) -> None:
    flow = FLOWS[name]
    assert flow.name == name
    assert flow_of(flow.request.model_construct()) is flow


def test_a_request_that_no_flow_serves_is_refused() -> None:
    class Unheard(Request):
        kind = "unheard"

    class Pretender(ManifestRequest):
        """A request of another flow's kind."""

    for request in (Unheard(), Pretender.model_construct()):
        with pytest.raises(RequestError, match="no flow serves"):
            flow_of(request)


def test_flows_are_added_and_removed_and_imported_when_asked_for() -> None:
    flows = Flows()
    names = set(flows)
    assert len(flows) == len(names) > 10
    del flows["manifest"]
    assert "manifest" not in flows
    flows["other"] = MANIFEST
    assert flows["other"] is MANIFEST
    flows.import_all()
    assert set(flows) == names - {"manifest"} | {"other"}
