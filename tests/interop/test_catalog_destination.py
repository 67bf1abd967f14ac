"""The destination is compared with what was published there: a run repairs it, verify reports it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.referrers import fallback_tag
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Index, Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
CLIENT = Skopeo(Access.model_validate({"tls-verify": False}))
TAGS = ("1.0", "1.1", "1.2")


@pytest.fixture
def registry(program: Program, tmp_path: Path) -> Iterator[Registry]:
    """A registry with team/app:1.0, 1.1 and 1.2, on one base."""
    program("skopeo")
    layout = Layout.create(tmp_path / "origin")
    base = tar(("base", b"base\n" * 50_000))
    with Registry(tmp_path / "registry", program("docker-registry")) as running:
        for tag in TAGS:
            image(layout, [base, tar(("app", os.urandom(1000)))], tag=tag)
            running.put(layout.path, tag, f"team/app:{tag}")
        yield running


def write(directory: Path, host: str, destination: str = "") -> Path:
    path = directory / "team.yaml"
    destination = destination or f"{{registry: docker://{host}/new}}"
    path.write_text(
        f"store: store\nsources: [{{registry: docker://{host}/team, repositories: [app]}}]\n"
        f"policies: [{{match: '*', do: {{transform: recompress, compress: zstd}}}}]\n"
        f"destination: {destination}\naccess: {{tls-verify: false, attempts: 4}}\n"
    )
    return path


def new(directory: Path, tag: str) -> Resolved:
    return resolve(Layout.open(directory / "store"), f"new/team/app:{tag}")


def published(registry: Registry) -> dict[str, str]:
    return {tag: CLIENT.digest(f"docker://{registry.host}/new/team/app:{tag}") for tag in TAGS}


def destined(directory: Path, source: str, old: str, host: str) -> None:
    """Make ``host``, another way to the same registry, the destination as if it had been that from the beginning."""
    write(directory, source, f"{{registry: docker://{host}/new}}")
    for state in (directory / "store/.layerfarm/catalog/team/images").iterdir():
        state.write_text(state.read_text().replace(f"{old}/new", f"{host}/new"))


def steps(layerfarm: Layerfarm, path: Path) -> dict[str, str]:
    """Return the steps of a dry run, by tag."""
    lines = layerfarm("catalog", "run", path, "--dry-run")[1].splitlines()
    return {line.split(":")[1]: line.rpartition(": ")[2] for line in lines}


def test_tags_that_were_deleted_or_overwritten_are_pushed_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    assert layerfarm("catalog", "run", path)[0] == 0
    right = {tag: new(tmp_path, tag).descriptor.digest for tag in TAGS}
    assert published(registry) == right
    registry.delete("new/team/app:1.1")
    registry.put(tmp_path / "origin", "1.0", "new/team/app:1.2")
    assert steps(layerfarm, path) == {"1.0": "nothing", "1.1": "push", "1.2": "push"}
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0, err
    assert "transform: 0 images" in err and "push: 2 images" in err
    assert f"no longer there: docker://{registry.host}/new/team/app:1.1; pushing it again" in err
    assert "tag was overwritten with " in err
    assert published(registry) == right
    _, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert "push: 0 images" in err


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_deleted_repository_is_filled_again_also_where_the_registry_hides_it(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, status: int
) -> None:
    """GitLab, GHCR and others deny access to what is not there."""
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    right = published(registry)
    shutil.rmtree(registry.directory / "data/docker/registry/v2/repositories/new")

    def verdict(method: str, where: str) -> int | None:
        return status if method in ("GET", "HEAD") and where.startswith("/v2/new/team/app/manifests") else None

    with Gate(registry, verdict) as gate:
        destined(tmp_path, registry.host, registry.host, gate.host)
        assert steps(layerfarm, path) == dict.fromkeys(TAGS, "push")
    destined(tmp_path, registry.host, gate.host, registry.host)
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert (code, "push: 3 images" in err) == (0, True), err
    assert published(registry) == right


def test_a_list_of_referrers_that_is_gone_is_pushed_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    tag = fallback_tag(new(tmp_path, "1.1").descriptor.digest)
    before = CLIENT.raw_manifest(f"docker://{registry.host}/new/team/app:{tag}")
    registry.delete(f"new/team/app:{tag}")
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, "referrers are no longer there" in out) == (1, True), out
    assert steps(layerfarm, path) == {"1.0": "nothing", "1.1": "push", "1.2": "nothing"}
    assert layerfarm("catalog", "run", path)[0] == 0
    assert CLIENT.raw_manifest(f"docker://{registry.host}/new/team/app:{tag}") == before
    assert layerfarm("catalog", "verify", path)[0] == 0


def test_verify_reads_the_registry(registry: Registry, tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    with Gate(registry, lambda method, where: None) as gate:
        destined(tmp_path, registry.host, registry.host, gate.host)
        whole = "3 images, 0 faults, 3 checked in the registry\n"
        assert layerfarm("catalog", "verify", path)[:2] == (0, whole)
        manifests = {where.rpartition("/")[2] for method, where in gate.requests if method == "GET"}
        assert {new(tmp_path, tag).descriptor.digest for tag in TAGS} <= manifests
        assert not [where for _, where in gate.requests if "/blobs/" in where]
        gate.requests.clear()
        assert layerfarm("catalog", "verify", path, "--deep")[:2] == (0, whole)
        blobs = [where.rpartition("/")[2] for method, where in gate.requests if method == "GET" and "/blobs/" in where]
        images = [new(tmp_path, tag) for tag in TAGS]
        expected = {blob.digest for one in images for blob in one.blobs if blob.digest != one.descriptor.digest}
        assert expected <= set(blobs)
    registry.delete("new/team/app:1.0")
    registry.put(tmp_path / "origin", "1.0", "new/team/app:1.1")
    destined(tmp_path, registry.host, gate.host, registry.host)
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, out.splitlines()[-1]) == (1, "3 images, 2 faults, 3 checked in the registry")
    assert f"team/app:1.0: no longer there: docker://{registry.host}/new/team/app:1.0" in out
    assert "team/app:1.1: tag was overwritten with " in out


def test_a_broken_manifest_is_found_and_a_broken_blob_by_deep(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    layer = registry.blob(new(tmp_path, "1.1").manifest.layers[1].digest)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)
    assert layerfarm("catalog", "verify", path)[0] == 0
    code, out, _ = layerfarm("catalog", "verify", path, "--deep")
    assert (code, out.splitlines()[-1]) == (1, "3 images, 1 fault, 3 checked in the registry"), out
    assert out.startswith("team/app:1.1: ")
    manifest = registry.blob(new(tmp_path, "1.2").descriptor.digest)
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, "registry returned other bytes for this digest" in out) == (1, True), out


def test_a_platform_that_is_gone_is_pushed_again_after_verify_found_it(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    """Clean-up jobs delete untagged manifests, those of indexes too."""
    layout = Layout.open(tmp_path / "origin")
    both = [image(layout, [tar(("a", one.encode()))], architecture=one).descriptor for one in ("amd64", "arm64")]
    platforms = [{"os": "linux", "architecture": one} for one in ("amd64", "arm64")]
    manifests = [one.model_copy(update={"platform": each}) for one, each in zip(both, platforms, strict=True)]
    layout.tag("many", layout.put_document(Index(mediaType=MEDIA_TYPE_INDEX, manifests=manifests), MEDIA_TYPE_INDEX))
    registry.put(layout.path, "many", "team/app:2.0")
    path = write(tmp_path, registry.host)
    assert layerfarm("catalog", "run", path)[0] == 0
    gone = resolve(Layout.open(tmp_path / "store"), "new/team/app:2.0", "linux/arm64").descriptor.digest
    registry.delete(f"new/team/app@{gone}")
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, out.splitlines()[-1]) == (1, "4 images, 1 fault, 4 checked in the registry")
    assert gone in out
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, out.splitlines()[-1]) == (1, "4 images, 1 fault, 3 checked in the registry")
    assert f"the next run pushes it again: docker://{registry.host}/new/team/app:2.0" in out
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert (code, "push: 1 image" in err) == (0, True), err
    assert layerfarm("catalog", "verify", path)[:2] == (0, "4 images, 0 faults, 4 checked in the registry\n")


def test_a_tag_that_is_gone_from_a_layout_is_a_fault_and_is_made_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, "{layout: out}")
    layerfarm("catalog", "run", path)
    out_layout = Layout.open(tmp_path / "out")
    out_layout.untag("team/app:1.1")
    code, out, _ = layerfarm("catalog", "verify", path)
    assert (code, out.splitlines()[-1]) == (1, "2 images, 1 fault")
    assert out.startswith("team/app:1.1: no longer there: ")
    assert layerfarm("catalog", "run", path)[0] == 0
    assert "team/app:1.1" in out_layout.tags()
    assert layerfarm("catalog", "verify", path)[:2] == (0, "3 images, 0 faults\n")


def test_a_destination_that_does_not_answer_is_a_failure_of_its_images(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    with Registry(tmp_path / "other", "docker-registry") as other:
        write(tmp_path, registry.host, f"{{registry: docker://{other.host}/new}}")
        other.kill()
        assert layerfarm("catalog", "run", path)[0] == 1
        other.start()
        assert steps(layerfarm, path) == dict.fromkeys(TAGS, "push")
        assert layerfarm("catalog", "run", path)[0] == 0
        other.kill()
        code, out, err = layerfarm("catalog", "run", path, "--json")
        assert code == 1
        assert {row["state"] for row in json.loads(out)["images"]} == {"failed"}
        assert "Traceback" not in err
        other.start()
        assert layerfarm("catalog", "run", path)[0] == 0
