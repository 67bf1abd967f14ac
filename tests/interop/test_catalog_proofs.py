"""Places for a catalog's proofs, and registries that refuse them."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.relayer.referrers import fallback_tag, referrers
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import index, manifest, ref
from tests.unit.relayer.images import run as transformed

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
SPDX = "application/spdx+json"
PROOF = "application/vnd.layerfarm.proof.v1+json"
CLIENT = Skopeo(Access.model_validate({"tls-verify": False}))


@pytest.fixture
def registry(program: Program, tmp_path: Path) -> Iterator[Registry]:
    """A registry with team/app:1.0 and its SBOM."""
    program("skopeo")
    layout = Layout.create(tmp_path / "origin")
    with Registry(tmp_path / "registry", program("docker-registry")) as running:
        made = image(layout, [tar(("app", b"app" * 1000))], tag="1.0")
        index(layout, [manifest(layout, SPDX, b"{}", made.descriptor)], fallback_tag(made.descriptor.digest))
        for tag in layout.tags():
            running.put(layout.path, tag, f"team/app:{tag}")
        yield running


def write(directory: Path, host: str, more: str = "", *, source: str = "", policy: str = "") -> Path:
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{{registry: docker://{source or host}/team, repositories: [app]}}]\n"
        f"policies: [{{match: '*', do: {policy or '{transform: recompress, compress: zstd}'}}}]\n"
        f"destination: {{registry: docker://{host}/new}}\naccess: {{tls-verify: false, attempts: 2}}\n{more}\n"
    )
    return path


def run(layerfarm: Layerfarm, path: Path) -> tuple[dict[str, Any], str]:
    """The row of the one image, and stderr."""
    code, out, err = layerfarm("catalog", "run", path, "--json", "--progress", "plain")
    assert code == 0, err + out
    (row,) = json.loads(out)["images"]
    assert row["state"] == "done"
    return row, err


def kinds(registry: Registry, digest: str) -> set[str] | None:
    """The types of the published referrers; None: there is no tag of them."""
    try:
        listed = json.loads(registry.manifest(f"new/team/app:{fallback_tag(digest)}"))
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return None
    # From each manifest: older skopeos drop the types of the index.
    found = [json.loads(registry.manifest(f"new/team/app@{entry['digest']}")) for entry in listed["manifests"]]
    assert all(document["subject"]["digest"] == digest for document in found)
    return {document["artifactType"] for document in found}


def kept(directory: Path, digest: str) -> set[str | None]:
    """The types of the referrers in the store."""
    return {each.artifact_type for each in referrers(Layout.open(directory / "store"), digest)}


def is_of_image(document: dict[str, Any]) -> bool:
    """The verdict of a registry that takes images only."""
    entries = document.get("manifests", [])
    config = document.get("config", {"mediaType": "application/vnd.oci.image.config.v1+json"})
    return config["mediaType"].startswith("application/vnd.oci.image.") and not any(
        "artifactType" in entry for entry in entries
    )


@pytest.mark.parametrize("policy", ["", "{transform: keep}"])
def test_a_registry_that_refuses_artifacts_has_the_image_and_the_report_says_what_it_refused(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    with Gate(registry, takes=is_of_image) as gate:
        path = write(tmp_path, gate.host, source=registry.host, policy=policy)
        row, err = run(layerfarm, path)
        (warning,) = [text for text in row["warnings"] if "not published" in text]
        assert row["new"] in warning and "manifest invalid" in warning
        assert f"team/app:1.0: {warning}" in err
        assert kinds(registry, row["new"]) is None
        assert json.loads(registry.manifest("new/team/app:1.0"))["config"]
        _, err = run(layerfarm, path)
        assert "transform: 0 images" in err and "push: 0 images" in err
    code, out, _ = layerfarm("catalog", "report", path)
    assert code == 0 and "not published" in out


def test_a_registry_that_is_busy_with_artifacts_is_tried_again_by_the_next_run(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    busy = True
    with Gate(
        registry, lambda method, where: 503 if busy and "/new/team/app/manifests/sha256" in where else None
    ) as gate:
        path = write(tmp_path, gate.host, source=registry.host)
        code, out, _ = layerfarm("catalog", "run", path, "--json")
        (row,) = json.loads(out)["images"]
        assert (code, row["state"]) == (1, "failed")
        busy = False
        row, _ = run(layerfarm, path)
    assert kinds(registry, row["new"]) == {PROOF}


def test_proofs_stay_in_the_store_or_are_published_as_the_file_says(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, "proofs: store")
    row, _ = run(layerfarm, path)
    assert (kinds(registry, row["new"]), kept(tmp_path, row["new"])) == (None, {PROOF})
    assert row["proof"].startswith("sha256:")
    assert CLIENT.tags(f"docker://{registry.host}/new/team/app") == ["1.0"]
    assert layerfarm("catalog", "verify", path)[:2] == (0, "1 image, 0 faults, 1 checked in the registry\n")
    _, err = run(layerfarm, path)
    assert "push: 0 images" in err
    write(tmp_path, registry.host)
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err and "push: 1 image" in err
    assert kinds(registry, row["new"]) == {PROOF}
    write(tmp_path, registry.host, "proofs: store")
    run(layerfarm, path)
    assert kinds(registry, row["new"]) == {PROOF}  # what is published stays


def test_other_referrers_are_published_without_the_proofs(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    policy = "{transform: recompress, compress: zstd, referrers: carry}"
    row, _ = run(layerfarm, write(tmp_path, registry.host, "proofs: store", policy=policy))
    assert (kinds(registry, row["new"]), kept(tmp_path, row["new"])) == ({SPDX}, {SPDX, PROOF})


def test_no_proof_is_kept_where_they_are_off_and_one_is_made_when_they_are_on_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, "proofs: off")
    row, _ = run(layerfarm, path)
    assert (row["proof"], kinds(registry, row["new"]), kept(tmp_path, row["new"])) == (None, None, set())
    assert layerfarm("catalog", "verify", path)[:2] == (
        0,
        "0 images, 0 faults, 1 without a proof and not read, 1 checked in the registry\n",
    )
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err and "push: 0 images" in err
    write(tmp_path, registry.host)
    again, err = run(layerfarm, path)
    assert "transform: 1 image" in err
    assert (again["new"], kinds(registry, row["new"]), kept(tmp_path, row["new"])) == (row["new"], {PROOF}, {PROOF})


def test_a_wrong_word_for_the_proofs_is_an_error_with_its_place(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    code, _, err = layerfarm("catalog", "run", write(tmp_path, registry.host, "proofs: on"))
    assert code == 1
    assert f"{tmp_path / 'team.yaml'}:6:1: proofs: " in err


def test_a_transform_without_a_stored_proof_tags_the_same_image(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    image(layout, [tar(("app", b"app"))])
    results = [
        transformed(RecompressRequest(image=ref(layout, "t"), target=ref(layout, tag), compress="zstd", proof=proof))
        for tag, proof in (("without", False), ("with", True))
    ]
    assert results[0].new == results[1].new
    assert results[0].images[0].proof is None
    assert [each.digest for each in referrers(layout, results[0].new)] == [results[1].images[0].proof]
