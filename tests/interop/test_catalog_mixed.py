"""A catalog of all that registries hold: each number of its report is counted in the registry, each tree unpacked.

``MIXED_BYTES`` is the size of the largest file, 32 MiB if it is not set; ``make mixed`` takes 1.5 GB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.catalog import counts
from tests.catalog.counts import Registered, Tag
from tests.catalog.mixed import fill
from tests.catalog.registry import Gate, Registry
from tests.interop.conftest import Layerfarm

Program = Callable[[str], str]
LARGE = int(os.environ.get("MIXED_BYTES") or 32 << 20)
REPOSITORIES = ("app", "formats", "tools", "deep", "wide", "line", "charts", "systems", "signed", "large")
POLICIES = {
    "changed": """\
  - {match: 'team/app:*', do: {transform: recompress, compress: zstd}}
  - {match: 'team/formats:*', do: {transform: squash, compress: gzip}}
  - {match: ['team/tools:*', 'team/wide:*', 'team/systems:*'], do: {transform: squash}}
  - {match: ['team/deep:*', 'team/line:*'], do: {transform: rechunk, only-if-saves: 'off'}}
  - {match: 'team/charts:*', do: {transform: keep}}
  - {match: 'team/signed:*', do: {transform: recompress, compress: gzip, level: 9, referrers: carry}}
  - {match: 'team/large:*', do: {transform: recompress, compress: zstd}}
""",
    "kept": "  - {match: '*', do: {transform: keep}}\n",
}


class World(NamedTuple):
    """A registry with all images, read once."""

    registry: Registry
    originals: dict[str, Tag]


@pytest.fixture(scope="module")
def world(as_root: None, program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    program("skopeo")
    with Registry(tmp_path_factory.mktemp("mixed") / "registry", program("docker-registry")) as running:
        fill(running, program, LARGE)
        yield World(running, read(running, "team"))


def read(registry: Registry, where: str) -> dict[str, Tag]:
    """All images and artifacts below a path of the registry, by their names in the catalog."""
    registered = Registered(registry)
    return {
        f"team/{repository}:{tag}": registered.read(f"{where}/{repository}", tag)
        for repository in REPOSITORIES
        for tag in registered.tags(f"{where}/{repository}")
    }


def write(path: Path, host: str, policies: str) -> Path:
    path.write_text(
        f"store: store\nsources: [{{registry: docker://{host}/team, repositories: [{', '.join(REPOSITORIES)}]}}]\n"
        f"policies:\n{policies}destination: {{registry: docker://{host}/{path.stem}}}\naccess: {{tls-verify: false}}\n"
    )
    return path


def checked(
    report: dict[str, Any], originals: dict[str, Tag], new: dict[str, Tag], outcomes: dict[str, int], gate: Gate
) -> None:
    """Compare each number of a report with a count in the registry."""
    rows = {row["name"]: row for row in report["images"]}
    skipped = {name for name, row in rows.items() if row["state"] == "skipped"}
    before = {name: tag for name, tag in originals.items() if name not in skipped}
    assert rows.keys() == originals.keys() and new.keys() == before.keys()
    order = counts.series(before)
    pulls = [counts.pulls(tags, order) for tags in (before, new)]
    for name in before:
        wanted = {
            "state": "done",
            "old": before[name].digest,
            "new": new[name].digest,
            "layers_before": before[name].layers,
            "layers_after": new[name].layers,
            "bytes_before": before[name].bytes,
            "bytes_after": new[name].bytes,
            "pull_before": pulls[0][name],
            "pull_after": pulls[1][name],
            "error": None,
        }
        assert {key: rows[name][key] for key in wanted} == wanted, name
    for name in skipped:
        assert (rows[name]["layers_before"], rows[name]["bytes_before"], rows[name]["new"]) == (0, 0, None)
    assert report["before"] == counts.totals(before, order)
    assert report["after"] == counts.totals(new, order)
    for field, tags in (("shared_before", before), ("shared_after", new)):
        found = {tuple(row["images"]): (row["layers"], row["bytes"]) for row in report[field]}
        assert found == counts.shared(tags)
    assert report["layers_of"] == "after"
    assert {row["digest"]: (row["bytes"], row["images"]) for row in report["layers"]} == counts.layers(new)
    assert report["run"]["outcomes"] == outcomes
    assert report["run"]["fetched"] == 0  # the plan fetched all
    assert report["requests"] == dict(sorted(Counter(method for method, _ in gate.requests).items()))
    summary = report["summary"]
    states = {"done": len(before), **({"skipped": len(skipped)} if skipped else {})}
    assert (summary["exit_code"], summary["states"], summary["failures"]) == (0, states, [])
    for field in ("stored", "pulled"):
        assert summary[f"{field}_before"] == report["before"][field]
        assert summary[f"{field}_after"] == report["after"][field]


@pytest.mark.parametrize("kind", sorted(POLICIES))
def test_every_number_of_the_report_is_what_the_registry_has(
    world: World, tmp_path: Path, layerfarm: Layerfarm, program: Program, kind: str
) -> None:
    registry, originals = world
    with Gate(registry) as gate:
        path = write(tmp_path / f"{kind}.yaml", gate.host, POLICIES[kind])

        def run(*arguments: str | Path) -> tuple[dict[str, Any], str]:
            gate.requests.clear()
            code, out, err = layerfarm("catalog", *arguments, path, "--json", "--progress", "plain")
            assert code == 0, err + out
            return json.loads(out), err

        planned, _ = run("plan")
        fetched = [row for row in planned["images"] if row["state"] != "skipped"]
        assert planned["run"]["fetched"] == len(fetched) and planned["after"] is None
        assert not read(registry, f"{kind}/team")
        first, err = run("run")
        new = read(registry, f"{kind}/team")
        skipped = [row["name"] for row in first["images"] if row["state"] == "skipped"]
        assert skipped == ([] if kind == "kept" else ["team/formats:chart-1.0"])
        same = {name for name, tag in new.items() if tag.digest == originals[name].digest}
        alike = ("team/charts:", "team/tools:4-scratch") if kind == "changed" else "team/"
        assert same == {name for name in new if name.startswith(alike)}
        # One layer stays as it is when it is squashed; its format may change.
        unchanged = same | {name for name in new if name.startswith(("team/systems:", "team/tools:1-crane"))}
        done = {"made": len(new) - len(unchanged), "kept": len(unchanged), "skipped": len(skipped)}
        outcomes = {outcome: count for outcome, count in done.items() if count}
        checked(first, originals, new, outcomes, gate)
        plans = {row["name"]: row["layers_planned"] for row in planned["images"] if row["layers_planned"] is not None}
        for name, layers in plans.items():
            assert layers == new[name].layers, name
        proved(registry, originals, new, kind, tmp_path, program("umoci"))

        # Nothing to do: no blob is asked for.
        second, err = run("run")
        assert "transform: 0 images" in err and "push: 0 images" in err
        assert not [where for _, where in gate.requests if "/blobs/" in where]
        later = {"unchanged": len(new), "skipped": len(skipped)}
        checked(second, originals, new, {each: count for each, count in later.items() if count}, gate)

        code, out, err = layerfarm("catalog", "verify", path, "--deep")
        assert code == 0, out + err
        numbers = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", out)}
        assert numbers["images"] == len(new) - len(unchanged) and numbers["faults"] == 0
        assert numbers.get("kept", 0) == len(unchanged) and numbers["checked"] == len(new)

        # A deleted tag is pushed again, and no other.
        registry.delete(f"{kind}/team/line:1.2")
        third, err = run("run")
        assert "transform: 0 images" in err and "push: 1 image" in err
        later |= {"unchanged": len(new) - 1, "repaired": 1}
        checked(third, originals, new, {each: count for each, count in later.items() if count}, gate)
        assert read(registry, f"{kind}/team") == new

        code, out, _ = layerfarm("catalog", "report", path, "--json")
        report = json.loads(out)
        assert {name: third[name] for name in third if name != "created"} == {
            name: report[name] for name in report if name != "created"
        }


def proved(
    registry: Registry, originals: dict[str, Tag], new: dict[str, Tag], kind: str, place: Path, umoci: str
) -> None:
    """Compare the trees that umoci unpacks of each image for Linux, before and after; others stay as they are.

    Nothing is unpacked of an image whose manifest is the same: its blobs are compared with their digests.
    """
    registered = Registered(registry)
    for name, tag in new.items():
        repository = name.rpartition(":")[0]
        both = zip(originals[name].platforms, tag.platforms, strict=True)
        for old, changed in both:
            assert old.name == changed.name
            if not old.name.startswith("linux/"):
                # A manifest in Docker's formats is converted unless it is to be kept; its layers are not.
                assert (changed.layers, changed.config.get("rootfs")) == (old.layers, old.config.get("rootfs")), name
                assert kind == "changed" or changed.digest == old.digest, name
                continue
            if changed.digest == old.digest:
                for layer in changed.layers:
                    registered.blob(f"{kind}/{repository}", layer)
                continue
            trees = [
                registered.tree(where, image, place / when, umoci)
                for where, image, when in ((repository, old, "old"), (f"{kind}/{repository}", changed, "new"))
            ]
            assert trees[0] == trees[1], name
            for when in ("old", "new"):
                shutil.rmtree(place / when)
