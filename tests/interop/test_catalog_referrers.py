"""Referrers of the images of a registry: fetched with them, published with the new ones, or named as left behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.image import Resolved
from layerfarm.jobs.relayer.referrers import fallback_tag
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import enter, index, manifest

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
SPDX, NOTARY = "application/spdx+json", "application/vnd.cncf.notary.signature"
PROOF = "application/vnd.layerfarm.proof.v1+json"
CLIENT = Skopeo(Access.model_validate({"tls-verify": False}))


class Origin:
    """A registry with team/app:1.0, its SBOM, a signature on either, and cosign's signature."""

    def __init__(self, registry: Registry, layout: Layout) -> None:
        self.registry = registry
        self.layout = layout
        self.image: Resolved = image(layout, [tar(("app", os.urandom(1000)))], tag="1.0")
        self.sbom = manifest(layout, SPDX, b"{}", self.image.descriptor)
        self.on_sbom = manifest(layout, NOTARY, b"on the sbom", self.sbom)
        self.on_image = manifest(layout, NOTARY, b"on the image", self.image.descriptor)
        self.cosign = manifest(layout, "application/vnd.dev.cosign.simplesigning.v1+json", b"cosign")
        self.tag = fallback_tag(self.image.descriptor.digest)
        index(layout, [self.sbom, self.on_image], self.tag)
        index(layout, [self.on_sbom], fallback_tag(self.sbom.digest))
        layout.tag(f"{self.tag}.sig", self.cosign)
        for tag in layout.tags():
            registry.put(layout.path, tag, f"team/app:{tag}")

    @property
    def everything(self) -> set[str]:
        return {one.digest for one in (self.sbom, self.on_sbom, self.on_image, self.cosign)}


@pytest.fixture
def origin(program: Program, tmp_path: Path) -> Iterator[Origin]:
    program("skopeo")
    with Registry(tmp_path / "registry", program("docker-registry")) as running:
        yield Origin(running, Layout.create(tmp_path / "origin"))


def write(directory: Path, host: str, policy: str, source: str = "", destination: str = "") -> Path:
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{source or f'{{registry: docker://{host}/team, repositories: [app]}}'}]\n"
        f"policies: [{{match: '*', do: {{{policy}}}}}]\n"
        f"destination: {destination or f'{{registry: docker://{host}/new}}'}\naccess: {{tls-verify: false}}\n"
    )
    return path


RECOMPRESS = "transform: recompress, compress: zstd"


def run(layerfarm: Layerfarm, path: Path) -> dict[str, Any]:
    """The row of the one image."""
    code, out, err = layerfarm("catalog", "run", path, "--json")
    assert code == 0, err + out
    (row,) = json.loads(out)["images"]
    return dict(row)


def listed(registry: Registry, digest: str, repository: str = "new/team/app") -> dict[str, dict[str, Any]]:
    """The referrers that the registry has of a manifest, by kind; each refers to it, and is whole."""
    where = f"docker://{registry.host}/{repository}"
    found = {}
    for entry in json.loads(CLIENT.raw_manifest(f"{where}:{fallback_tag(digest)}"))["manifests"]:
        document = json.loads(CLIENT.raw_manifest(f"{where}@{entry['digest']}"))
        assert document["subject"]["digest"] == digest
        found[document["artifactType"]] = entry
    return found


def test_by_default_they_stay_with_the_old_image_and_the_report_names_each(
    origin: Origin, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, origin.registry.host, RECOMPRESS)
    row = run(layerfarm, path)
    assert set(listed(origin.registry, row["new"])) == {PROOF}
    assert len(row["warnings"]) == 3
    for left in (origin.sbom, origin.on_image, origin.cosign):
        assert any(left.digest in text and "not copied" in text for text in row["warnings"])
    assert CLIENT.tags(f"docker://{origin.registry.host}/new/team/app") == sorted(["1.0", fallback_tag(row["new"])])
    code, out, _ = layerfarm("catalog", "report", path, "--html", tmp_path / "report.html")
    assert code == 0
    assert "warnings: 3" in out
    assert origin.cosign.digest in out
    assert origin.cosign.digest in (tmp_path / "report.html").read_text()


def test_a_policy_may_carry_referrers_that_stay_true(origin: Origin, tmp_path: Path, layerfarm: Layerfarm) -> None:
    row = run(layerfarm, write(tmp_path, origin.registry.host, f"{RECOMPRESS}, referrers: carry"))
    assert set(listed(origin.registry, row["new"])) == {PROOF, SPDX}
    assert sum("a signature" in text for text in row["warnings"]) == 2
    assert len(row["warnings"]) == 3


@pytest.mark.parametrize("destination", ["registry", "layout"])
def test_an_image_that_is_kept_keeps_all_of_them_from_a_registry_and_from_a_layout(
    origin: Origin, tmp_path: Path, layerfarm: Layerfarm, destination: str
) -> None:
    enter(origin.layout, manifest(origin.layout, "application/vnd.own", b"untagged", origin.image.descriptor))
    out = "{layout: out}" if destination == "layout" else ""
    for number, source in enumerate(("", "{layout: ../origin, prefix: 'team/app:'}")):
        directory = tmp_path / str(number)
        directory.mkdir()
        row = run(layerfarm, write(directory, origin.registry.host, "transform: keep", source, out))
        assert (row["name"], row["new"], row["warnings"]) == ("team/app:1.0", origin.image.descriptor.digest, [])
        kinds = {SPDX, NOTARY} | ({"application/vnd.own"} if source else set())
        if destination == "layout":
            layout = Layout.open(directory / "out")
            assert origin.everything <= {one.digest for one in layout.index().manifests}
            assert all(layout.has(one) for one in (origin.sbom, origin.on_sbom, origin.on_image, origin.cosign))
        else:
            assert set(listed(origin.registry, row["new"])) == kinds
            assert set(listed(origin.registry, origin.sbom.digest)) == {NOTARY}
            cosign = CLIENT.raw_manifest(f"docker://{origin.registry.host}/new/team/app:{origin.tag}.sig")
            assert cosign == origin.layout.read(origin.cosign)


def test_referrers_of_others_stay_beside_a_new_image(origin: Origin, tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path, origin.registry.host, RECOMPRESS)
    digest = run(layerfarm, path)["new"]
    theirs = Layout.create(tmp_path / "theirs")
    (new,) = Layout.open(tmp_path / "store").find("new/team/app:1.0")
    scan = manifest(theirs, "application/vnd.scanner", b"clean", new)
    index(theirs, [scan], "them")
    origin.registry.put(theirs.path, "them", f"new/team/app:{fallback_tag(digest)}")
    assert set(listed(origin.registry, digest)) == {"application/vnd.scanner"}
    write(tmp_path, origin.registry.host, f"{RECOMPRESS}, referrers: carry")
    assert run(layerfarm, path)["new"] == digest
    assert set(listed(origin.registry, digest)) == {"application/vnd.scanner", PROOF, SPDX}


def test_a_new_referrer_makes_the_image_over_again_and_without_one_nothing_is_done(
    origin: Origin, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, origin.registry.host, RECOMPRESS)
    first = run(layerfarm, path)
    with Gate(origin.registry, lambda method, where: None) as gate:
        write(tmp_path, gate.host, RECOMPRESS, destination=f"{{registry: docker://{origin.registry.host}/new}}")
        _, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
        assert "transform: 0 images" in err and "push: 0 images" in err
        assert gate.requests and not [where for _, where in gate.requests if "/blobs/" in where]
    late = manifest(origin.layout, "application/vnd.late", b"late", origin.image.descriptor)
    index(origin.layout, [origin.sbom, origin.on_image, late], origin.tag)
    origin.registry.put(origin.layout.path, origin.tag, f"team/app:{origin.tag}")
    write(tmp_path, origin.registry.host, RECOMPRESS)
    second = run(layerfarm, path)
    assert second["new"] == first["new"]
    assert any(late.digest in text for text in second["warnings"])


def test_referrers_of_an_image_in_dockers_format_are_named(
    origin: Origin, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    command = ["skopeo", "copy", "--format", "v2s2", "--dest-tls-verify=false", f"oci:{origin.layout.path}:1.0"]
    subprocess.run([*command, f"docker://{origin.registry.host}/team/app:1.0"], check=True, capture_output=True)
    raw = CLIENT.raw_manifest(f"docker://{origin.registry.host}/team/app:1.0")
    docker = origin.layout.put(raw, "application/vnd.docker.distribution.manifest.v2+json")
    sbom = manifest(origin.layout, SPDX, b"docker", docker)
    index(origin.layout, [sbom], fallback_tag(docker.digest))
    origin.registry.put(origin.layout.path, fallback_tag(docker.digest), f"team/app:{fallback_tag(docker.digest)}")
    row = run(layerfarm, write(tmp_path, origin.registry.host, f"{RECOMPRESS}, referrers: carry"))
    (warning,) = row["warnings"]
    assert sbom.digest in warning and "Docker" in warning


@pytest.mark.parametrize("what", ["of another subject", "missing"])
def test_one_that_is_broken_is_named_and_keeps_no_image_from_being_done(
    origin: Origin, tmp_path: Path, layerfarm: Layerfarm, what: str
) -> None:
    other = origin.image.descriptor.model_copy(update={"digest": "sha256:" + "0" * 64})
    stray = manifest(origin.layout, SPDX, b"stray", other)
    index(origin.layout, [origin.sbom, stray], origin.tag)
    origin.registry.put(origin.layout.path, origin.tag, f"team/app:{origin.tag}")
    if what == "missing":
        _forget(origin.registry, stray)
    row = run(layerfarm, write(tmp_path, origin.registry.host, f"{RECOMPRESS}, referrers: carry"))
    assert any(stray.digest in text and "not copied" in text for text in row["warnings"]), row["warnings"]
    assert SPDX in listed(origin.registry, row["new"])


def _forget(registry: Registry, descriptor: Descriptor) -> None:
    hexadecimal = descriptor.digest.partition(":")[2]
    (found,) = (registry.directory / "data").rglob(f"team/app/_manifests/revisions/sha256/{hexadecimal}/link")
    found.unlink()
