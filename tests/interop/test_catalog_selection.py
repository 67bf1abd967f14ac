"""Selection of a catalog's sources from a real registry."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from layerfarm.jobs.store import Layout
from tests.catalog.registry import Gate, Registry
from tests.farm.certificates import certificates
from tests.unit.image.images import image, tar

Layerfarm = Callable[..., tuple[int, str, str]]


def write(directory: Path, host: str, source: str, more: str = "") -> Path:
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{{registry: docker://{host}/team, {source}}}]\n"
        f"policies: [{{match: '*', do: {{transform: keep}}}}]\n"
        f"destination: {{layout: out}}\naccess: {{tls-verify: false}}\n{more}"
    )
    return path


def selected(layerfarm: Layerfarm, path: Path) -> list[str]:
    """The names of the images of a run, which are all done."""
    code, out, err = layerfarm("catalog", "run", path, "--json")
    assert code == 0, err + out
    rows = json.loads(out)["images"]
    assert {row["state"] for row in rows} == {"done"}
    return sorted(row["name"] for row in rows)


def test_patterns_of_repositories_follow_the_registry(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    image(origin, [tar(("app", b"app" * 1000))], tag="1.0")
    for name in ("team/app/one", "team/app/two", "team/other", "app/three"):
        registry.put(origin.path, "1.0", f"{name}:1.0")
    path = write(tmp_path, registry.host, "repositories: ['app/*']")
    assert selected(layerfarm, path) == ["team/app/one:1.0", "team/app/two:1.0"]
    registry.put(origin.path, "1.0", "team/app/new/x:1.0")
    assert selected(layerfarm, path) == ["team/app/new/x:1.0", "team/app/one:1.0", "team/app/two:1.0"]
    # Access to the list is withdrawn: nothing leaves the catalog.
    with Gate(registry, lambda method, where: 401 if "_catalog" in where else None) as gate:
        path = write(tmp_path, gate.host, "repositories: ['app/*']")
        code, out, err = layerfarm("catalog", "run", path, "--json")
        assert code == 1
        assert "give their names instead of patterns" in err
        assert len(json.loads(out)["images"]) == 3


def test_old_images_are_not_fetched_and_a_second_run_asks_only_for_heads(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    now = datetime.now(UTC)
    ages = {"1.0": 400, "1.1": 20, "1.2": 10, "2.0": 1}
    made = {}
    for tag, days in ages.items():
        created = (now - timedelta(days=days)).isoformat(timespec="seconds")
        made[tag] = image(origin, [tar((tag, b"app" * 1000))], tag=tag, created=created)
        registry.put(origin.path, tag, f"team/app:{tag}")
    with Gate(registry) as gate:
        path = write(tmp_path, gate.host, "repositories: [app], semver: '>=1 <2', newer-than: 30d")
        assert selected(layerfarm, path) == ["team/app:1.1", "team/app:1.2"]
        old = made["1.0"].manifest.layers[0].digest
        assert not any(old in where or "2.0" in where for _, where in gate.requests)
        gate.requests.clear()
        assert selected(layerfarm, path) == ["team/app:1.1", "team/app:1.2"]
        asked = [method for method, where in gate.requests if "/manifests/" in where or "/blobs/" in where]
        assert asked == ["HEAD"] * 3


def test_images_are_renamed_at_a_registry_and_repaired_and_verified_there(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    image(origin, [tar(("app", b"app" * 1000)), tar(("b", b"b" * 1000))], tag="1.0")
    registry.put(origin.path, "1.0", "team/app:1.0")
    path = write(tmp_path, registry.host, "repositories: [app]")
    names = "strip-prefix: team/, name: 'mirror/{basename}:v{tag}', tag-suffix: -slim"
    text = path.read_text().replace("{layout: out}", f"{{registry: docker://{registry.host}/new, {names}}}")
    path.write_text(text.replace("transform: keep", "transform: squash"))
    selected(layerfarm, path)
    made = registry.manifest("new/mirror/app:v1.0-slim")
    assert layerfarm("catalog", "verify", path, "--deep")[:2] == (
        0,
        "1 image, 0 faults, 1 checked in the registry\n",
    )
    registry.delete("new/mirror/app:v1.0-slim")
    code, out, _ = layerfarm("catalog", "run", path, "--dry-run")
    assert (code, out) == (0, "team/app:1.0: push\n")
    selected(layerfarm, path)
    assert registry.manifest("new/mirror/app:v1.0-slim") == made


def test_source_and_destination_have_their_own_certificates_and_passwords(
    registry: Registry, origin: Layout, tmp_path: Path, layerfarm: Layerfarm
) -> None:
    image(origin, [tar(("app", b"app" * 1000))], tag="1.0")
    registry.put(origin.path, "1.0", "team/app:1.0")
    contexts, logins = {}, {}
    for name in ("reader", "writer"):
        place = tmp_path / name
        place.mkdir()
        certificates(place, "client", "127.0.0.1", "IP:127.0.0.1")
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(place / "client.crt", place / "client.key")
        contexts[name].load_verify_locations(place / "ca.crt")
        contexts[name].verify_mode = ssl.CERT_REQUIRED
        (place / "client.crt").rename(place / "client.cert")
        (place / "ca.key").unlink()
        logins[name] = base64.b64encode(f"{name}:secret".encode()).decode()
    with (
        Gate(registry, authorization=f"Basic {logins['reader']}", tls=contexts["reader"]) as source,
        Gate(registry, authorization=f"Basic {logins['writer']}", tls=contexts["writer"]) as destination,
    ):
        for name, gate in (("reader", source), ("writer", destination)):
            auth = {"auths": {gate.host: {"auth": logins[name]}}}
            (tmp_path / f"{name}.json").write_text(json.dumps(auth))
        access = "access: {auth-file: NAME.json, cert-dir: NAME}"
        path = tmp_path / "team.yaml"
        text = (
            f"store: store\nsources: [{{registry: docker://{source.host}/team, repositories: ['a*'],"
            f" {access.replace('NAME', 'reader')}}}]\npolicies: [{{match: '*', do: {{transform: keep}}}}]\n"
            f"destination: {{registry: docker://{destination.host}/new, {access.replace('NAME', 'writer')}}}\n"
        )
        path.write_text(text)
        assert selected(layerfarm, path) == ["team/app:1.0"]
        assert registry.manifest("new/team/app:1.0") == registry.manifest("team/app:1.0")
        assert {method for method, _ in source.requests} == {"GET", "HEAD"}
        assert layerfarm("catalog", "verify", path, "--deep")[0] == 0
        path.write_text(text.replace("writer", "reader") + "access: {attempts: 1}\n")
        registry.delete("new/team/app:1.0")
        assert layerfarm("catalog", "run", path)[0] == 1
