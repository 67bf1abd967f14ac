"""Tags that are not what they look like: digests that name images, one tag of several images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.referrers import fallback_tag
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Layout
from tests.catalog.registry import Gate, Registry
from tests.interop.test_catalog_formats import digest, docker_formats, helm_chart, run, write
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import enter, index, manifest, two_platforms

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
SQUASH, KEEP = "{transform: squash}", "{transform: keep}"
SPDX = "application/spdx+json"


def layers(name: str) -> list[bytes]:
    return [tar(("base", b"base" * 1000)), tar((name, name.encode() * 100))]


def by_digest(registry: Registry, raw: bytes, media_type: str) -> str:
    """Tag a manifest with its own digest, as oc-mirror does."""
    tag = fallback_tag(digest(raw))
    registry.put_manifest(f"team/app:{tag}", raw, media_type)
    return tag


def mirrored(registry: Registry, origin: Layout) -> dict[str, bytes]:
    """Images whose only tag is their digest; beside them ``1.0``, with an SBOM behind its fallback tag."""
    single = image(origin, layers("single"), tag="single")
    two_platforms(origin, layers("many"), "many")
    for tag in ("single", "many"):
        registry.put(origin.path, tag, f"team/app:temporary-{tag}")
    found = {
        by_digest(registry, origin.read(single.descriptor), single.descriptor.media_type): origin.read(
            single.descriptor
        ),
        by_digest(registry, origin.read(origin.find("many")[0]), MEDIA_TYPE_INDEX): origin.read(origin.find("many")[0]),
    }
    one = image(origin, layers("one"), tag="1.0")
    index(origin, [manifest(origin, SPDX, b"{}", one.descriptor)], fallback_tag(one.descriptor.digest))
    for tag in ("1.0", fallback_tag(one.descriptor.digest)):
        registry.put(origin.path, tag, f"team/app:{tag}")
    return found


def of_app(registry: Registry) -> str:
    """A source without the temporary tags."""
    return f"{{registry: docker://{registry.host}/team, repositories: [app], exclude: ['temporary-*']}}"


@pytest.mark.parametrize("policy", [SQUASH, KEEP])
def test_images_that_are_tagged_with_their_digest_are_images(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    found = mirrored(registry, origin)
    path = write(tmp_path, registry.host, policy, source=of_app(registry))
    rows, _ = run(layerfarm, path)
    assert set(rows) == {f"team/app:{tag}" for tag in ("1.0", *found)}
    assert {row["state"] for row in rows.values()} == {"done"}
    assert not [text for tag in found for text in rows[f"team/app:{tag}"]["warnings"]]
    for tag, raw in found.items():
        there = registry.manifest(f"new/team/app:{tag}")
        assert (there == raw) == (policy == KEEP)
        assert digest(there) == rows[f"team/app:{tag}"]["new"]


def test_the_indexes_of_referrers_are_asked_for_once(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    mirrored(registry, origin)
    stale = fallback_tag("sha256:" + "5" * 64)
    one = origin.find("1.0")[0]
    index(origin, [manifest(origin, SPDX, b"stale", one)], stale)
    registry.put(origin.path, stale, f"team/app:{stale}")
    with Gate(registry, lambda method, where: None) as gate:
        source = of_app(registry).replace(registry.host, gate.host)
        path = write(tmp_path, registry.host, SQUASH, source=source)
        for _ in range(2):
            rows, _ = run(layerfarm, path)
            assert f"team/app:{stale}" not in rows
            assert sum(where.endswith(f"/manifests/{stale}") for _, where in gate.requests) == 1


def test_dockers_lists_and_artifacts_under_a_digest_are_not_passed_over(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    found = docker_formats(registry)
    many = by_digest(registry, found["many"], json.loads(found["many"])["mediaType"])
    chart = fallback_tag("sha256:" + "7" * 64)
    helm_chart(registry, f"team/app:{chart}")
    rows, _ = run(layerfarm, write(tmp_path, registry.host, SQUASH))
    assert (rows[f"team/app:{many}"]["state"], rows[f"team/app:{chart}"]["state"]) == ("done", "skipped")


def test_the_tag_of_a_kept_image_is_not_given_to_its_referrers(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    one = image(origin, layers("one"), tag="1.0")
    enter(origin, manifest(origin, SPDX, b"{}", one.descriptor))
    tag = fallback_tag(one.descriptor.digest)
    origin.tag(tag, one.descriptor)
    path = write(tmp_path, registry.host, KEEP, source="{layout: origin, prefix: 'team/app:'}")
    for _ in range(2):
        rows, err = run(layerfarm, path)
        assert set(rows) == {"team/app:1.0", f"team/app:{tag}"}
        assert registry.manifest(f"new/team/app:{tag}") == origin.read(one.descriptor)
        assert one.descriptor.digest in err or "push: 0 images" in err


# --- one tag of several images ---------------------------------------------------------------------


def saved(layout: Layout, **names: str | None) -> dict[str, Resolved]:
    """Images that all have the tag ``latest``, with these names beside it, as ``docker save`` writes them."""
    made = {name: image(layout, layers(name), tag=name) for name in names}
    for name, full in names.items():
        layout.untag(name)
        annotations = {"org.opencontainers.image.ref.name": "latest"}
        if full is not None:
            annotations["io.containerd.image.name"] = full
        enter(layout, made[name].descriptor.model_copy(update={"annotations": annotations}))
    return made


def test_images_with_one_tag_and_names_beside_it_are_all_taken(
    origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    made = saved(origin, web="docker.io/library/web:latest", api="registry.example:5000/team/api:latest")
    image(origin, layers("other"), tag="other")
    path = write(tmp_path, "", KEEP, "{layout: out}", "{layout: origin}")
    rows, _ = run(layerfarm, path)
    assert set(rows) == {"library/web:latest", "team/api:latest", "other"}
    out = Layout.open(tmp_path / "out")
    assert resolve(out, "library/web:latest").descriptor.digest == made["web"].descriptor.digest
    assert resolve(out, "team/api:latest").descriptor.digest == made["api"].descriptor.digest
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err


@pytest.mark.parametrize(
    "names",
    [
        {"web": None, "api": None},
        {"web": "docker.io/library/web:latest", "api": None},
        {"web": "docker.io/library/web:latest", "api": "docker.io/library/web:latest"},
        {"web": "docker.io/library/web:latest", "api": "docker.io/other:1"},
    ],
)
def test_images_with_one_tag_that_nothing_tells_apart_fail_and_both_are_named(
    origin: Layout, tmp_path: Path, layerfarm: Layerfarm, names: dict[str, str | None]
) -> None:
    made = saved(origin, **names)
    image(origin, layers("other"), tag="other:1")
    code, out, _ = layerfarm("catalog", "run", write(tmp_path, "", KEEP, "{layout: out}", "{layout: origin}"), "--json")
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(out)["images"]}
    assert code == 1
    assert {name: row["state"] for name, row in rows.items()} == {"latest": "failed", "other:1": "done"}
    assert all(each.descriptor.digest in rows["latest"]["error"] for each in made.values())
    code, out, err = layerfarm("catalog", "run", tmp_path / "team.yaml", "--dry-run")
    assert (code, out) == (1, "other:1: nothing\n")
    assert "latest: tag 'latest' names 2 images" in err


def test_one_image_that_is_entered_twice_is_one_image(origin: Layout, tmp_path: Path, layerfarm: Layerfarm) -> None:
    made = image(origin, layers("web"), tag="latest")
    again = Descriptor.model_validate(
        made.descriptor.model_dump(by_alias=True) | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    )
    enter(origin, again)
    assert len(origin.find("latest")) == 2
    rows, _ = run(layerfarm, write(tmp_path, "", KEEP, "{layout: out}", "{layout: origin}"))
    assert rows["latest"]["new"] == made.descriptor.digest
