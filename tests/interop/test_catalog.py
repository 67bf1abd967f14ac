"""``layerfarm catalog`` on this machine, with registries on both ends: what is done, skipped, reported, and fails."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Index, Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.offers import look
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar

Program = Callable[[str], str]
Layerfarm = Callable[..., tuple[int, str, str]]
BASE = tar(("base", b"base\n" * 50_000))
CREATED = "2024-01-0{}T00:00:00Z"


@pytest.fixture(scope="module")
def program_paths(program: Program) -> str:
    program("skopeo")
    return program("docker-registry")


@pytest.fixture
def registry(program_paths: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry with team/app:1.0, 1.1 and 1.2 and team/other:1.0, all on one base."""
    layout = Layout.create(tmp_path / "origin")
    with Registry(tmp_path / "registry", program_paths) as running:
        for number in range(3):
            image(
                layout,
                [BASE, tar(("app", os.urandom(1000 + number)))],
                tag="t",
                created=CREATED.format(number + 1),
                history=[{"created_by": "base"}, {"created_by": "app"}],
            )
            running.put(layout.path, "t", f"team/app:1.{number}")
        image(layout, [BASE, tar(("other", os.urandom(500)))], tag="t", created=CREATED.format(1))
        running.put(layout.path, "t", "team/other:1.0")
        yield running


def write(directory: Path, host: str, *, destination: str = "", policy: str = "", more: str = "") -> Path:
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources:\n  - registry: docker://{host}/team\n    repositories: [app, other]\n"
        f"policies:\n  - match: '*'\n    do: {policy or '{transform: recompress, compress: zstd}'}\n"
        f"{destination}access: {{tls-verify: false, attempts: 2}}\n{more}"
    )
    return path


def test_a_run_fetches_transforms_proves_and_pushes_and_a_second_one_does_nothing(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, destination=f"destination: {{registry: 'docker://{registry.host}/new'}}\n")
    code, out, err = layerfarm("catalog", "run", path, "--json")
    report = json.loads(out)
    assert (code, {row["error"] for row in report["images"]}) == (0, {None}), err
    assert [row["name"] for row in report["images"]] == [
        "team/app:1.0",
        "team/app:1.1",
        "team/app:1.2",
        "team/other:1.0",
    ]
    assert {row["state"] for row in report["images"]} == {"done"}
    assert all(row["proof"].startswith("sha256:") for row in report["images"])
    store = Layout.open(tmp_path / "store")
    for name in ("team/app:1.0", "team/other:1.0"):
        old, new = resolve(store, name), resolve(store, f"new/{name}")
        assert new.config.rootfs.diff_ids == old.config.rootfs.diff_ids
        assert {layer.media_type.partition("+")[2] for layer in new.manifest.layers} == {"zstd"}
        there = look(Skopeo(Access.model_validate({"tls-verify": False})), f"docker://{registry.host}/new/{name}")
        assert there.digest == new.descriptor.digest
        repository = f"docker://{registry.host}/new/{name.partition(':')[0]}"
        client = Skopeo(Access.model_validate({"tls-verify": False}))
        referrers = json.loads(client.raw_manifest(f"{repository}:{new.descriptor.digest.replace(':', '-')}"))
        (entry,) = referrers["manifests"]
        proof = json.loads(client.raw_manifest(f"{repository}@{entry['digest']}"))
        assert proof["artifactType"] == "application/vnd.layerfarm.proof.v1+json"
        assert proof["subject"]["digest"] == new.descriptor.digest

    with Gate(registry, lambda method, path: None) as gate:
        write(tmp_path, gate.host, destination=f"destination: {{registry: 'docker://{registry.host}/new'}}\n")
        code, out, err = layerfarm("catalog", "run", path, "--progress", "plain")
        assert code == 0, err
        assert "transform: 0 images" in err
        assert "push: 0 images" in err
        assert gate.requests
        assert not [where for _, where in gate.requests if "/blobs/" in where]
        code, out, err = layerfarm("catalog", "run", path, "--dry-run")
        assert (code, {line.rpartition(": ")[2] for line in out.splitlines()}) == (0, {"nothing"}), out


def test_unchanged_images_cost_no_pull_and_every_request_is_counted(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    layout = Layout.open(tmp_path / "origin")
    both = [image(layout, [BASE], architecture=one, created=CREATED.format(1)) for one in ("amd64", "arm64")]
    manifests = [
        one.descriptor.model_copy(update={"platform": {"os": "linux", "architecture": one.config.architecture}})
        for one in both
    ]
    for number in range(3):
        top = Index(mediaType=MEDIA_TYPE_INDEX, manifests=manifests, annotations={"number": str(number)})
        layout.tag("many", layout.put_document(top, MEDIA_TYPE_INDEX))
        registry.put(layout.path, "many", f"team/app:2.{number}")
    with Gate(registry, lambda method, path: None) as gate:
        path = write(tmp_path, gate.host)
        for first in (True, False):
            gate.requests.clear()
            code, out, err = layerfarm("catalog", "run", path, "--json")
            assert code == 0, err
            manifest_gets = [where for method, where in gate.requests if method == "GET" and "/manifests/" in where]
            heads = [where for method, where in gate.requests if method == "HEAD"]
            assert json.loads(out)["requests"] == dict(sorted(Counter(method for method, _ in gate.requests).items()))
            assert bool(manifest_gets) == first
            if not first:
                assert sorted(heads) == sorted(
                    f"/v2/team/{name}"
                    for name in [f"app/manifests/{a}.{b}" for a in (1, 2) for b in range(3)] + ["other/manifests/1.0"]
                )
        text = layerfarm("catalog", "report", path)[1]
        assert f"requests to registries: {len(gate.requests)} (" in text
        layerfarm("catalog", "report", path, "--html", tmp_path / "report.html")
        assert f"Requests to registries: {len(gate.requests)} (" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("answer", ["405", "no digest", "404"])
def test_a_registry_that_does_not_answer_head_requests_is_asked_otherwise(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, answer: str
) -> None:
    def verdict(method: str, path: str) -> int | None:
        refused = method == "HEAD" and "/manifests/" in path
        return {"405": 405, "no digest": 200, "404": 404}[answer] if refused else None

    with Gate(registry, verdict) as gate:
        path = write(tmp_path, gate.host)
        assert layerfarm("catalog", "run", path)[0] == 0
        code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert (code, "transform: 0 images" in err) == (0, True), err


def test_an_image_that_fails_does_not_stop_the_others_and_is_tried_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    refuse = True
    with Gate(registry, lambda method, where: 403 if refuse and "/app/manifests/1.1" in where else None) as gate:
        write(tmp_path, gate.host)
        code, out, err = layerfarm("catalog", "run", path, "--json")
        assert code == 1
        rows = {row["name"]: row for row in json.loads(out)["images"]}
        assert {name: row["state"] for name, row in rows.items()} == {
            "team/app:1.0": "done",
            "team/app:1.1": "failed",
            "team/app:1.2": "done",
            "team/other:1.0": "done",
        }
        assert "denied" in rows["team/app:1.1"]["error"] or "403" in rows["team/app:1.1"]["error"]
        refuse = False
        code, out, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0, err
    assert "transform: 1 image" in err


def test_odd_names_and_an_absent_repository_do_not_stop_the_rest(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    odd = ["my__app:v1_", "my---app:main__2024", "app:1.0-", "app:_edge"]
    for name in odd:
        registry.put(tmp_path / "origin", "t", f"team/{name}")
    path = write(tmp_path, registry.host, destination=f"destination: {{registry: 'docker://{registry.host}/new'}}\n")
    path.write_text(path.read_text().replace("[app, other]", "[app, gone, my__app, my---app]"))
    code, out, err = layerfarm("catalog", "run", path, "--json")
    report = json.loads(out)
    assert code == 1, err
    states = {row["name"]: row["state"] for row in report["images"]}
    assert states == dict.fromkeys([f"team/app:1.{n}" for n in range(3)] + [f"team/{name}" for name in odd], "done")
    (missed,) = report["missed"]
    assert missed["where"] == f"docker://{registry.host}/team/gone"
    client = Skopeo(Access.model_validate({"tls-verify": False}))
    for name in odd:
        assert look(client, f"docker://{registry.host}/new/team/{name}").digest
    assert _undated(layerfarm("catalog", "report", path, "--json")[1]) == _undated(out)
    code, out, err = layerfarm("catalog", "run", path, "--dry-run")
    assert (code, {line.rpartition(": ")[2] for line in out.splitlines()}) == (1, {"nothing"})
    assert "team/gone" in err


@pytest.mark.parametrize("status", [403, 404])
def test_sources_that_cannot_be_listed_are_not_forgotten(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, status: int
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    with Gate(registry, lambda method, where: status if "/tags/list" in where else None) as gate:
        places = {f"docker://{gate.host}/team/{name}" for name in ("app", "other")}
        code, out, err = layerfarm("catalog", "run", write(tmp_path, gate.host), "--json")
        report = json.loads(out)
        assert (code, {one["where"] for one in report["missed"]}) == (1, places), err
        assert [row["state"] for row in report["images"]] == ["done"] * 4
    code, _, err = layerfarm("catalog", "run", write(tmp_path, registry.host), "--progress", "plain")
    assert code == 0, err
    assert "transform: 0 images" in err


def test_a_pattern_that_matches_nothing_any_more_forgets_nothing(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    path.write_text(path.read_text().replace("repositories", "tags: [nothing]\n    repositories"))
    code, out, _ = layerfarm("catalog", "run", path, "--json")
    report = json.loads(out)
    assert (code, [row["state"] for row in report["images"]]) == (1, ["done"] * 4)
    assert all("no images" in one["error"] for one in report["missed"])
    code, out, err = layerfarm("catalog", "run", path)
    assert (code, out.count("no images")) == (1, 2)
    code, _, err = layerfarm("catalog", "run", write(tmp_path, registry.host), "--progress", "plain")
    assert (code, "transform: 0 images" in err) == (0, True), err


def test_a_broken_image_is_reported_and_the_rest_is_done(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    layout = Layout.open(tmp_path / "origin")
    image(layout, [b"this is no tar" * 100], tag="t")
    registry.put(layout.path, "t", "team/app:0.1")
    image(layout, [BASE], diff_ids=lambda ids: ["sha256:" + "0" * 64], tag="t")
    registry.put(layout.path, "t", "team/app:0.2")
    code, out, _ = layerfarm("catalog", "run", write(tmp_path, registry.host), "--json")
    rows = {row["name"]: row for row in json.loads(out)["images"]}
    assert code == 1
    assert rows["team/app:0.2"]["state"] == "failed"
    assert rows["team/app:1.0"]["state"] == rows["team/other:1.0"]["state"] == "done"
    tags = Layout.open(tmp_path / "store").tags()
    assert "new/team/app:0.2" not in tags


def test_a_policy_that_changes_makes_the_images_over_again(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    first = resolve(Layout.open(tmp_path / "store"), "new/team/app:1.0").descriptor.digest
    write(tmp_path, registry.host, policy="{transform: recompress, compress: none}")
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0
    assert "transform: 4 images" in err
    assert resolve(Layout.open(tmp_path / "store"), "new/team/app:1.0").descriptor.digest != first


def test_only_a_tag_that_moved_is_fetched_and_transformed(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    layout = Layout.open(tmp_path / "origin")
    image(layout, [BASE, tar(("app", b"moved"))], tag="t")
    registry.put(layout.path, "t", "team/app:1.1")
    code, out, err = layerfarm("catalog", "run", path, "--dry-run")
    assert (code, out.splitlines()[1]) == (0, "team/app:1.1: fetch, recompress")
    code, _, err = layerfarm("catalog", "run", path, "--progress", "plain")
    assert code == 0
    assert "transform: 1 image" in err


def test_kept_images_go_to_the_destination_as_they_are(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, policy="{transform: keep}", destination="destination: {layout: out}\n")
    code, _, err = layerfarm("catalog", "run", path)
    assert code == 0, err
    store, out = Layout.open(tmp_path / "store"), Layout.open(tmp_path / "out")
    assert (
        sorted(out.tags()) == sorted(store.tags()) == ["team/app:1.0", "team/app:1.1", "team/app:1.2", "team/other:1.0"]
    )
    for name in out.tags():
        assert resolve(out, name).descriptor.digest == resolve(store, name).descriptor.digest


def test_plan_makes_nothing_and_predicts_pulls(registry: Registry, tmp_path: Path, layerfarm: Layerfarm) -> None:
    code, out, err = layerfarm("catalog", "plan", write(tmp_path, registry.host), "--html", tmp_path / "plan.html")
    assert code == 0, err
    assert "catalog: team, 4 images" in out
    assert "<title>team: " in (tmp_path / "plan.html").read_text()
    assert not [tag for tag in Layout.open(tmp_path / "store").tags() if tag.startswith("new/")]


def _undated(report: str) -> dict[str, Any]:
    """A report without its own date."""
    return {name: value for name, value in json.loads(report).items() if name != "created"}


def test_the_report_needs_no_registry(registry: Registry, tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path, registry.host)
    _, ran, _ = layerfarm("catalog", "run", path, "--json")
    registry.kill()
    code, out, err = layerfarm("catalog", "report", path, "--json")
    assert (code, _undated(out)) == (0, _undated(ran)), err


def test_two_runs_of_one_catalog_do_not_mix(registry: Registry, tmp_path: Path, layerfarm: Layerfarm) -> None:
    from layerfarm.worker.catalog.state import States

    path = write(tmp_path, registry.host)
    layerfarm("catalog", "run", path)
    pid = os.fork()
    if pid == 0:  # a lock of another process
        import signal

        with States(Layout.open(tmp_path / "store"), path).locked():
            (tmp_path / "locked").touch()
            signal.pause()
        os._exit(0)
    try:
        while not (tmp_path / "locked").exists():
            pass
        code, _, err = layerfarm("catalog", "run", path)
        assert code == 1
        assert "another run of this catalog" in err
        assert layerfarm("catalog", "report", path)[0] == 0
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_mistake_in_the_file_is_one_line_with_its_place(tmp_path: Path, layerfarm: Layerfarm) -> None:
    path = write(tmp_path, "127.0.0.1:1", policy="{transform: recompress, compress: lzma}")
    code, out, err = layerfarm("catalog", "run", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"layerfarm: {path}:7:33: policies.0.do.compress: "), err


def test_a_registry_that_is_not_there_is_one_line(tmp_path: Path, layerfarm: Layerfarm) -> None:
    code, out, err = layerfarm("catalog", "run", write(tmp_path, "127.0.0.1:1"))
    assert (code, out) == (1, "")
    assert "connection refused" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("policy", "layers"),
    [
        ("{transform: squash}", 1),
        ("{transform: squash, keep: 1, compress: zstd}", 2),
        ("{transform: strip, paths: [/base]}", 2),
        ("{transform: recompress, compress: none, keep: 1}", 2),
    ],
)
def test_every_transform_is_a_policy(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm, policy: str, layers: int
) -> None:
    code, out, err = layerfarm("catalog", "run", write(tmp_path, registry.host, policy=policy), "--json")
    assert code == 0, err
    assert {(row["state"], row["layers_after"]) for row in json.loads(out)["images"]} == {("done", layers)}


def test_verify_reads_everything_again_and_finds_changes(
    registry: Registry, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    path = write(tmp_path, registry.host, policy="{transform: squash}")
    layerfarm("catalog", "run", path)
    assert layerfarm("catalog", "verify", path)[:2] == (0, "4 images, 0 faults\n")
    store = Layout.open(tmp_path / "store")
    layer = store.blob_path(resolve(store, "new/team/app:1.1").manifest.layers[0].digest)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)
    store.update_index(lambda index: index.model_copy(update={"manifests": [m for m in index.manifests if _tag(m)]}))
    code, out, _ = layerfarm("catalog", "verify", path)
    assert code == 1
    assert "team/app:1.1: " in out
    assert out.count("no longer has a proof") == 4


def _tag(descriptor: Descriptor) -> str | None:
    return (descriptor.annotations or {}).get("org.opencontainers.image.ref.name")
