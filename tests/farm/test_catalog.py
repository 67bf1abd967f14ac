"""A catalog on a farm whose workers, registry and client die meanwhile: it ends, and what it made is the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ground import Ground, until

from layerfarm.jobs.store import Layout
from tests.catalog.registry import Registry
from tests.unit.image.images import image, tar

IMAGES = 8


@pytest.fixture(scope="module")
def registry(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Eight images of three layers, on two bases."""
    program("skopeo")
    rng = random.Random(1)
    bases = [tar((f"base{number}", rng.randbytes(200_000) * 10)) for number in range(2)]
    directory = tmp_path_factory.mktemp("registry")
    layout = Layout.create(directory / "origin")
    with Registry(directory / "registry", program("docker-registry")) as running:
        for number in range(IMAGES):
            layers = [bases[number % 2], tar(("app", rng.randbytes(100_000) * 5)), tar((f"v{number}", b"x"))]
            image(layout, layers, tag="t", created=f"2024-01-0{number + 1}T00:00:00Z")
            running.put(layout.path, "t", f"team/app:{number}")
        yield running


RECOMPRESS = "{transform: recompress, compress: zstd}"
RECHUNK = "{transform: rechunk, budget: 20}"


def write(directory: Path, host: str, policy: str = RECOMPRESS) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{{registry: 'docker://{host}', repositories: [team/app]}}]\n"
        f"policies: [{{match: '*', do: {policy}}}]\n"
        f"destination: {{registry: 'docker://{host}/new'}}\n"
        "access: {tls-verify: false, attempts: 8, parallel: 2}\n"
    )
    return path


COMMAND = (sys.executable, "-m", "layerfarm.worker.cli")


def start(path: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
    return subprocess.Popen(
        [*COMMAND, "catalog", "run", str(path), "--json", "--progress=plain", *options],
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> dict[str, str]:
    """The new images' digests by name."""
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    rows = json.loads(out)["images"]
    assert {row["state"] for row in rows} == {"done"}, rows
    return {row["name"]: row["new"] for row in rows}


def undisturbed(registry: Registry, directory: Path, policy: str = RECOMPRESS) -> dict[str, str]:
    """Result of the catalog on this machine, without a farm."""
    return ended(start(write(directory, registry.host, policy)))


@pytest.mark.parametrize("policy", [RECOMPRESS, RECHUNK])
def test_workers_and_the_registry_are_killed_at_random_and_the_run_ends_the_same(
    ground: Ground, registry: Registry, tmp_path: Path, policy: str
) -> None:
    expected = undisturbed(registry, tmp_path / "local", policy)
    rng = random.Random(int(os.environ.get("SEED", "7")))
    worker = ground.start_worker(lease=2, look_every=0.5)
    run = start(write(ground.allowed, registry.host, policy), f"--farm={ground.url}")
    for _ in range(4):
        time.sleep(rng.uniform(0.3, 1.2))
        if run.poll() is not None:
            break
        if rng.random() < 0.5:
            worker.kill()
            worker.wait()
            worker = ground.start_worker(lease=2, look_every=0.5)
        registry.kill()
        time.sleep(rng.uniform(0.1, 0.5))
        registry.start()
    assert ended(run) == expected
    assert len(expected) == IMAGES


def test_a_run_that_was_killed_goes_on_where_it_was(ground: Ground, registry: Registry, tmp_path: Path) -> None:
    expected = undisturbed(registry, tmp_path / "local")
    ground.start_worker()
    path = write(ground.allowed, registry.host)
    states = ground.allowed / "store/.layerfarm/catalog/team/images"
    run = start(path, f"--farm={ground.url}", "--at-once=2")
    until(lambda: states.is_dir() and any('"work":"' in state.read_text() for state in states.glob("*.json")))
    run.kill()
    run.communicate()
    done = sum('"work":"' in state.read_text() for state in states.glob("*.json"))
    again = start(path, f"--farm={ground.url}")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert {row["name"]: row["new"] for row in json.loads(out)["images"]} == expected
    (line,) = [line for line in err.splitlines() if "transform:" in line]
    assert int(line.split()[-2]) <= IMAGES - done


def test_the_jobs_of_a_catalog_are_bulk_and_at_most_so_many(ground: Ground, registry: Registry) -> None:
    path = write(ground.allowed, registry.host)
    run = start(path, f"--farm={ground.url}", "--at-once=3")
    farm = ground.farm()
    until(lambda: len(farm.jobs()) == 3)  # no worker yet
    time.sleep(0.5)
    assert [job.traffic for job in farm.jobs()] == ["bulk"] * 3
    ground.start_worker()
    ended(run)
    assert len(farm.jobs()) == IMAGES


@pytest.mark.parametrize("room", [10_000, 2], ids=["quiet", "full"])
def test_interrupted_it_cancels_its_jobs(ground: Ground, registry: Registry, room: int) -> None:
    run = start(write(ground.allowed, registry.host), f"--farm={ground.url}", LAYERFARM_MOST_QUEUED=str(room))
    farm = ground.farm()
    until(lambda: len(farm.jobs()) == min(room, IMAGES))
    time.sleep(1)  # into the wait for an end, or for room
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    ground.start_worker()
    until(lambda: not farm.store.active())
    assert {str(job.state) for job in farm.jobs()} == {"cancelled"}
    shutil.rmtree(ground.allowed / "store")
