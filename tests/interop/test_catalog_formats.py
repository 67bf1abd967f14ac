"""Catalogs of what registries hold beside plain OCI images: artifacts, Docker's formats, other systems."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.referrers import attach
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST, Descriptor, Layout
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import entry, index, manifest, ref, two_platforms
from tests.unit.relayer.images import run as transformed
from tests.unit.relayer.test_other_systems import two_systems

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
HELM = "application/vnd.cncf.helm.config.v1+json"
WASM = "application/vnd.wasm.config.v0+json"
TRANSFORMS = [
    "{transform: recompress, compress: zstd}",
    "{transform: squash}",
    "{transform: strip, paths: [/app]}",
    "{transform: rechunk}",
]


def write(directory: Path, host: str, policy: str, destination: str = "", source: str = "") -> Path:
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{source or f'{{registry: docker://{host}/team, repositories: [app]}}'}]\n"
        f"policies: [{{match: '*', do: {policy}}}]\n"
        f"destination: {destination or f'{{registry: docker://{host}/new}}'}\naccess: {{tls-verify: false}}\n"
    )
    return path


def run(layerfarm: Layerfarm, path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The rows of a run by name, and its stderr."""
    code, out, err = layerfarm("catalog", "run", path, "--json", "--progress", "plain")
    assert code == 0, err + out
    return {row["name"]: row for row in json.loads(out)["images"]}, err


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


# --- artifacts -----------------------------------------------------------------------------------


def helm_chart(registry: Registry, name: str, kind: str = HELM) -> bytes:
    """A chart as Helm pushes it: the type of the config says what it is."""
    repository = name.partition(":")[0]
    config, chart = b'{"name":"chart","version":"1.0.0"}', gzip.compress(b"chart", mtime=0)
    for blob in (config, chart):
        registry.put_blob(repository, blob)
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": kind, "digest": digest(config), "size": len(config)},
        "layers": [
            {
                "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                "digest": digest(chart),
                "size": len(chart),
            }
        ],
    }
    raw = json.dumps(document, indent=1).encode()
    registry.put_manifest(name, raw, MEDIA_TYPE_MANIFEST)
    return raw


def artifacts(registry: Registry, origin: Layout) -> dict[str, bytes]:
    """Beside the image ``1.0``: a chart, a WASM module, an index of artifacts. Returns their manifests by tag."""
    image(origin, [tar(("app", b"app" * 1000))], tag="1.0")
    registry.put(origin.path, "1.0", "team/app:1.0")
    found = {
        "chart-1.0": helm_chart(registry, "team/app:chart-1.0"),
        "module-1.0": helm_chart(registry, "team/app:module-1.0", WASM),
    }
    index(origin, [manifest(origin, "application/vnd.example.model", b"model")], "models")
    registry.put(origin.path, "models", "team/app:models")
    return found | {"models": registry.manifest("team/app:models")}


@pytest.mark.parametrize("policy", TRANSFORMS)
def test_artifacts_are_skipped_with_a_notice_and_are_no_failure(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    found = artifacts(registry, origin)
    path = write(tmp_path, registry.host, policy)
    for _ in range(2):
        rows, err = run(layerfarm, path)
        assert rows.pop("team/app:1.0")["state"] == "done"
        assert {name: row["state"] for name, row in rows.items()} == {f"team/app:{tag}": "skipped" for tag in found}
        for tag, kind in (("chart-1.0", HELM), ("module-1.0", WASM), ("models", "application/vnd.example.model")):
            (warning,) = rows[f"team/app:{tag}"]["warnings"]
            assert "left out" in warning and kind in warning
            assert f"team/app:{tag}: {warning}" in err
    code, out, _ = layerfarm("catalog", "run", path, "--dry-run")
    assert code == 0
    skipped = "nothing, it is not an image but application/vnd.example.model; the policy keep would copy it"
    assert f"team/app:models: {skipped}" in out.splitlines()
    code, out, _ = layerfarm("catalog", "report", path)
    assert code == 0 and "failed" not in out and HELM in out


@pytest.mark.parametrize("destination", ["", "{layout: out}"])
def test_artifacts_are_copied_byte_for_byte_where_the_policy_keeps_them(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, destination: str
) -> None:
    found = artifacts(registry, origin)
    path = write(tmp_path, registry.host, "{transform: keep}", destination)
    rows, _ = run(layerfarm, path)
    assert {row["state"] for row in rows.values()} == {"done"}
    for tag, raw in found.items():
        assert rows[f"team/app:{tag}"]["new"] == digest(raw)
        if destination:
            out = Layout.open(tmp_path / "out")
            assert out.read(out.find(f"team/app:{tag}")[0]) == raw
        else:
            assert registry.manifest(f"new/team/app:{tag}") == raw
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err
    assert layerfarm("catalog", "verify", path, "--deep")[0] == 0


def test_an_artifact_that_becomes_an_image_is_no_longer_skipped(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    helm_chart(registry, "team/app:1.0")
    path = write(tmp_path, registry.host, TRANSFORMS[0])
    assert run(layerfarm, path)[0]["team/app:1.0"]["state"] == "skipped"
    image(origin, [tar(("app", b"app" * 1000))], tag="1.0")
    registry.put(origin.path, "1.0", "team/app:1.0")
    row = run(layerfarm, path)[0]["team/app:1.0"]
    assert (row["state"], row["warnings"]) == ("done", [])


# --- Docker's formats ----------------------------------------------------------------------------


def docker_image(registry: Registry, repository: str, content: bytes, architecture: str = "amd64") -> bytes:
    """An image as Docker pushes it: formats of its own, a config with fields and an order that OCI's has not.

    Returns its manifest, which is in the registry by its digest.
    """
    layer = tar(("app", content))
    packed = gzip.compress(layer, mtime=0)
    config = json.dumps(
        {
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
            "os": "linux",
            "docker_version": "20.10.7",
            "container": "0" * 64,
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/app"], "Image": "", "OnBuild": None, "Healthcheck": {"Test": ["NONE"]}},
            "architecture": architecture,
        },
        indent=1,
    ).encode()
    for blob in (packed, config):
        registry.put_blob(repository, blob)
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": digest(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": len(packed),
                "digest": digest(packed),
            }
        ],
    }
    raw = json.dumps(document, indent=3).encode()
    registry.put_manifest(f"{repository}@{digest(raw)}", raw, DOCKER)
    return raw


def docker_formats(registry: Registry) -> dict[str, bytes]:
    """The tags ``one`` and ``many`` of team/app: an image and a list of two. Returns what they name."""
    one = docker_image(registry, "team/app", b"one" * 1000)
    both = [(docker_image(registry, "team/app", name.encode() * 999, name), name) for name in ("amd64", "arm64")]
    entries = [
        {
            "mediaType": DOCKER,
            "size": len(raw),
            "digest": digest(raw),
            "platform": {"architecture": name, "os": "linux"},
        }
        for raw, name in both
    ]
    many = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries}, indent=3).encode()
    registry.put_manifest("team/app:one", one, DOCKER)
    registry.put_manifest("team/app:many", many, DOCKER_LIST)
    return {"one": one, "many": many}


@pytest.mark.parametrize("destination", ["", "{layout: out}"])
def test_keep_copies_dockers_formats_byte_for_byte(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, destination: str
) -> None:
    found = docker_formats(registry)
    path = write(tmp_path, registry.host, "{transform: keep}", destination)
    rows, _ = run(layerfarm, path)
    for tag, raw in found.items():
        row = rows[f"team/app:{tag}"]
        assert (row["state"], row["new"], row["warnings"]) == ("done", digest(raw), [])
        assert (row["layers_before"], row["layers_after"]) == (1, 1)
        if not destination:
            assert registry.manifest(f"new/team/app:{tag}") == raw
            continue
        out = Layout.open(tmp_path / "out")
        (top,) = out.find(f"team/app:{tag}")
        assert out.read(top) == raw
        # Copied on from there, by a catalog of that layout.
        (tmp_path / tag).mkdir()
        onward = write(
            tmp_path / tag, registry.host, "{transform: keep}", source=f"{{layout: ../out, tags: ['team/app:{tag}']}}"
        )
        run(layerfarm, onward)
        assert registry.manifest(f"new/team/app:{tag}") == raw
    assert layerfarm("catalog", "verify", path, "--deep")[0] == 0
    with Gate(registry, lambda method, where: None) as gate:
        write(tmp_path, gate.host, "{transform: keep}", destination or f"{{registry: docker://{registry.host}/new}}")
        _, err = run(layerfarm, path)
        assert "transform: 0 images" in err
        assert not [where for _, where in gate.requests if "/blobs/" in where]


def test_a_policy_that_changes_takes_dockers_formats_as_they_are_or_converted(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    found = docker_formats(registry)
    path = write(tmp_path, registry.host, TRANSFORMS[1])
    rows, _ = run(layerfarm, path)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert json.loads(registry.manifest("new/team/app:many"))["mediaType"] == MEDIA_TYPE_INDEX
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err
    write(tmp_path, registry.host, "{transform: keep}")
    run(layerfarm, path)
    assert {tag: registry.manifest(f"new/team/app:{tag}") for tag in found} == found
    write(tmp_path, registry.host, TRANSFORMS[1])
    rows, _ = run(layerfarm, path)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert json.loads(registry.manifest("new/team/app:many"))["mediaType"] == MEDIA_TYPE_INDEX


@pytest.mark.parametrize("policy", ["{transform: keep}", "{transform: squash}"])
def test_of_dockers_list_only_the_chosen_platform_is_fetched_and_published(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    found = docker_formats(registry)
    amd, arm = json.loads(found["many"])["manifests"]
    source = f"{{registry: docker://{registry.host}/team, repositories: [app], platforms: [linux/arm64/v8]}}"
    path = write(tmp_path, registry.host, policy, source=source)
    for step in ("transform: 1 image", "transform: 0 images"):
        rows, err = run(layerfarm, path)
        assert step in err
        assert (rows["team/app:many"]["state"], rows["team/app:one"]["state"]) == ("done", "skipped")
    assert "not for linux/arm64/v8" in rows["team/app:one"]["warnings"][0]
    (entry_,) = json.loads(registry.manifest("new/team/app:many"))["manifests"]
    assert entry_["platform"]["architecture"] == "arm64"
    assert (entry_["digest"] == arm["digest"]) == ("keep" in policy)
    assert not (tmp_path / "store/blobs/sha256" / amd["digest"].partition(":")[2]).exists()
    assert layerfarm("catalog", "verify", path, "--deep")[0] == 0
    # From a layout, whose list has both again.
    run(layerfarm, write(tmp_path, registry.host, "{transform: keep}", "{layout: out}"))
    (tmp_path / "next").mkdir()
    source = "{layout: ../out, tags: ['*:many'], platforms: [linux/arm64]}"
    (row,) = run(layerfarm, write(tmp_path / "next", registry.host, policy, source=source))[0].values()
    assert (row["state"], row["new"]) == ("done", digest(registry.manifest("new/team/app:many")))


def test_dockers_formats_in_a_layout_are_converted_for_a_transform(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    docker_formats(registry)
    run(layerfarm, write(tmp_path, registry.host, "{transform: keep}", "{layout: out}"))
    out = Layout.open(tmp_path / "out")
    (one,) = out.find("team/app:one")
    attach(out, manifest(out, "application/spdx+json", b"{}", one), one.digest)
    (tmp_path / "next").mkdir()
    path = write(tmp_path / "next", registry.host, TRANSFORMS[0], "{layout: new}", "{layout: ../out}")
    for step in ("transform: 2 images", "transform: 0 images"):
        rows, err = run(layerfarm, path)
        assert {row["state"] for row in rows.values()} == {"done"}
        assert step in err
    assert rows["team/app:many"]["warnings"] == []
    (warning,) = rows["team/app:one"]["warnings"]
    assert "converted from Docker's format to OCI's" in warning
    new = Layout.open(tmp_path / "next" / "new")
    for name, platform in (("one", "linux/amd64"), ("many", "linux/amd64"), ("many", "linux/arm64")):
        (layer,) = resolve(new, f"team/app:{name}", platform).manifest.layers
        assert layer.media_type == "application/vnd.oci.image.layer.v1.tar+zstd"


def test_an_image_with_plain_layers_is_not_compressed_on_its_way(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    made = plain(origin, "1.0")
    registry.put(origin.path, "1.0", "team/app:1.0")
    rows, _ = run(layerfarm, write(tmp_path, registry.host, "{transform: keep}"))
    assert rows["team/app:1.0"]["new"] == made
    assert registry.manifest("new/team/app:1.0") == registry.manifest("team/app:1.0")


def plain(layout: Layout, tag: str) -> str:
    """An image whose layer is not compressed; its digest."""
    made = image(layout, [tar(("app", b"app" * 1000))], tag="compressed")
    raw = tar(("app", b"app" * 1000))
    layer = layout.put(raw, MEDIA_TYPE_LAYER)
    document = made.manifest.model_copy(update={"layers": [layer]})
    top = layout.put_document(document, MEDIA_TYPE_MANIFEST)
    layout.tag(tag, top)
    return top.digest


# --- Windows, and layers to be fetched from elsewhere -----------------------------------------------


def push_two_systems(registry: Registry, origin: Layout) -> tuple[Resolved, Resolved]:
    """An index of Linux and Windows as team/app:1.0, an image of Windows alone as team/app:win."""
    linux, windows, _ = two_systems(origin)
    registry.put(origin.path, "t", "team/app:1.0")
    origin.tag("win", windows.descriptor)
    registry.put(origin.path, "win", "team/app:win")
    return linux, windows


@pytest.mark.parametrize("policy", TRANSFORMS)
def test_an_index_of_two_systems_is_transformed_for_linux(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    linux, windows = push_two_systems(registry, origin)
    path = write(tmp_path, registry.host, policy)
    rows, err = run(layerfarm, path)
    assert {row["state"] for row in rows.values()} == {"done"}
    entries = json.loads(registry.manifest("new/team/app:1.0"))["manifests"]
    by_system = {each["platform"]["os"]: each["digest"] for each in entries}
    assert by_system["linux"] != linux.descriptor.digest
    if "recompress" not in policy:
        assert by_system["windows"] == windows.descriptor.digest
        assert digest(registry.manifest("new/team/app:win")) == windows.descriptor.digest
        for row in rows.values():
            assert any("can only be recompressed" in text and "windows/amd64" in text for text in row["warnings"])
        assert "team/app:win: copied unchanged" in err
    alone = json.loads(registry.manifest("new/team/app:win"))
    assert alone["layers"][0]["urls"] == ["https://example.org/base"]
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err and "push: 0 images" in err
    assert layerfarm("catalog", "verify", path)[0] == 0
    code, out, err = layerfarm("catalog", "plan", path, "--json")
    assert code == 0, err
    assert {row["layers_before"] for row in json.loads(out)["images"]} == {2}


@pytest.mark.parametrize("destination", ["", "{layout: out}"])
def test_keep_copies_an_index_with_foreign_layers(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, destination: str
) -> None:
    _, windows = push_two_systems(registry, origin)
    rows, _ = run(layerfarm, write(tmp_path, registry.host, "{transform: keep}", destination))
    for tag in ("1.0", "win"):
        assert rows[f"team/app:{tag}"]["new"] == digest(registry.manifest(f"team/app:{tag}"))
        if not destination:
            assert registry.manifest(f"new/team/app:{tag}") == registry.manifest(f"team/app:{tag}")
    assert layerfarm("catalog", "verify", tmp_path / "team.yaml", "--deep")[0] == 0
    if destination:
        out = Layout.open(tmp_path / "out")
        assert resolve(out, "team/app:1.0", "windows/amd64").descriptor.digest == windows.descriptor.digest
        assert out.lacks(windows.manifest.layers[0]) and out.has(windows.manifest.layers[1])


def test_two_systems_of_a_layout(origin: Layout, tmp_path: Path, layerfarm: Layerfarm) -> None:
    _, windows, top = two_systems(origin)
    for name, policy in (("kept", "{transform: keep}"), ("squashed", "{transform: squash}")):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, "", policy, "{layout: out}", "{layout: ../origin}")
        run(layerfarm, path)
        out = Layout.open(tmp_path / name / "out")
        assert resolve(out, "t", "windows/amd64").descriptor.digest == windows.descriptor.digest
        assert (out.find("t")[0].digest == top.digest) == (name == "kept")


def test_dockers_list_of_two_systems_with_foreign_layers(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    linux = docker_image(registry, "team/app", b"linux" * 500)
    windows = json.loads(docker_image(registry, "team/app", b"windows" * 500))
    config = json.dumps(
        {"os": "windows", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "b" * 64] * 2}}
    ).encode()
    registry.put_blob("team/app", config)
    windows["config"] |= {"digest": digest(config), "size": len(config)}
    base = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "size": 1_700_000_000,
        "digest": "sha256:" + "a" * 64,
        "urls": ["https://example.org/base"],
    }
    windows["layers"].insert(0, base)
    raw = json.dumps(windows).encode()
    registry.put_manifest(f"team/app@{digest(raw)}", raw, DOCKER)
    entries = [
        {
            "mediaType": DOCKER,
            "size": len(each),
            "digest": digest(each),
            "platform": {"architecture": "amd64", "os": os},
        }
        for each, os in ((linux, "linux"), (raw, "windows"))
    ]
    many = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries}).encode()
    registry.put_manifest("team/app:1.0", many, DOCKER_LIST)
    path = write(tmp_path, registry.host, "{transform: keep}")
    run(layerfarm, path)
    assert registry.manifest("new/team/app:1.0") == many
    assert registry.manifest(f"new/team/app@{digest(raw)}") == raw
    write(tmp_path, registry.host, TRANSFORMS[1])
    rows, _ = run(layerfarm, path)
    assert any("windows/amd64 is kept unchanged" in text for text in rows["team/app:1.0"]["warnings"])
    new = json.loads(registry.manifest("new/team/app:1.0"))
    assert {each["platform"]["os"] for each in new["manifests"]} == {"linux", "windows"}


# --- indexes that skopeo does not copy ---------------------------------------------------------------


def push_indexes(registry: Registry, origin: Layout) -> None:
    """The tags ``nested``, an index in an index, and ``zstd``, an index of images with zstd layers, of team/app."""
    two_platforms(origin, [tar(("base", b"base")), tar(("app", b"app"))], "flat")
    index(origin, [origin.find("flat")[0].model_copy(update={"annotations": None})], "nested")
    request = RecompressRequest(image=ref(origin, "flat"), target=ref(origin, "zstd"), compress="zstd")
    transformed(request)
    for tag in ("flat", "zstd"):
        top = origin.find(tag)[0]
        document = json.loads(origin.read(top))
        for each in document["manifests"]:
            made = json.loads(origin.read(Descriptor.model_validate(each)))
            for blob in (made["config"], *made["layers"]):
                registry.put_blob("team/app", origin.read(Descriptor.model_validate(blob)))
            name = f"team/app@{each['digest']}"
            registry.put_manifest(name, origin.read(Descriptor.model_validate(each)), MEDIA_TYPE_MANIFEST)
        registry.put_manifest(f"team/app@{top.digest}", origin.read(top), MEDIA_TYPE_INDEX)
    for tag in ("nested", "zstd"):
        registry.put_manifest(f"team/app:{tag}", origin.read(origin.find(tag)[0]), MEDIA_TYPE_INDEX)


@pytest.mark.parametrize("policy", ["{transform: keep}", TRANSFORMS[1]])
def test_an_index_in_an_index_and_one_of_zstd_layers_are_copied_and_transformed(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm, policy: str
) -> None:
    push_indexes(registry, origin)
    path = write(tmp_path, registry.host, policy)
    rows, _ = run(layerfarm, path)
    assert {name: row["state"] for name, row in rows.items()} == {"team/app:nested": "done", "team/app:zstd": "done"}
    for tag in ("nested", "zstd"):
        there = registry.manifest(f"new/team/app:{tag}")
        assert rows[f"team/app:{tag}"]["new"] == digest(there)
        assert (there == registry.manifest(f"team/app:{tag}")) == ("keep" in policy)
    (inner,) = json.loads(registry.manifest("new/team/app:nested"))["manifests"]
    entries = json.loads(registry.manifest(f"new/team/app@{inner['digest']}"))["manifests"]
    assert [each["platform"]["architecture"] for each in entries] == ["amd64", "arm64"]
    assert layerfarm("catalog", "verify", path, "--deep")[0] == 0
    _, err = run(layerfarm, path)
    assert "transform: 0 images" in err and "push: 0 images" in err


def test_of_an_index_the_images_that_the_store_holds_are_not_fetched_again(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    first, second = two_platforms(origin, [tar(("base", b"base")), tar(("app", b"app"))], "1.0")
    other = image(origin, [tar(("other", b"other"))], tag="other", architecture="arm64")
    index(origin, [entry(first), entry(other)], "1.1")
    registry.put(origin.path, "1.0", "team/app:1.0")
    path = write(tmp_path, registry.host, "{transform: keep}", "{layout: out}")
    run(layerfarm, path)
    registry.put(origin.path, "1.1", "team/app:1.1")
    with Gate(registry) as gate:
        write(tmp_path, gate.host, "{transform: keep}", "{layout: out}")
        run(layerfarm, path)
        blobs = {where.rpartition("/")[2] for method, where in gate.requests if method == "GET" and "/blobs/" in where}
    assert blobs == {blob.digest for blob in (*other.manifest.layers, other.manifest.config)}
    assert second.descriptor.digest not in json.dumps(gate.requests)
