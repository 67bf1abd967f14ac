"""What a catalog's sources select from a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from layerfarm.jobs.store import Layout
from tests.catalog.registry import Gate, Registry
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
