"""Imports run one way, as docs/architecture.md says; and the fast commands import no heavy library."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.large
ROOT = Path(__file__).parents[2]

BOTTOM = {"jobs.errors", "jobs.limits", "jobs.paths", "jobs.helpers"}
LAYERS = BOTTOM | {"jobs.fs", "jobs.tar", "jobs.compress", "jobs.mtree", "jobs.layer"}
IMAGES = LAYERS | {"jobs.store", "jobs.image"}
MAY_IMPORT: dict[str, set[str]] = {
    "jobs.errors": set(),
    "jobs.limits": {"jobs.errors"},
    "jobs.extras": {"jobs.errors"},
    "jobs.paths": set(),
    "jobs.helpers": set(),
    "jobs.fs": {"jobs.errors"},
    "jobs.tar": BOTTOM,
    "jobs.compress": BOTTOM | {"jobs.tar"},
    "jobs.mtree": BOTTOM | {"jobs.fs"},
    "jobs.layer": LAYERS,
    "jobs.store": BOTTOM | {"jobs.fs", "jobs.mtree"},
    "jobs.image": IMAGES,
    "jobs.relayer": IMAGES | {"jobs.extras"},
    "jobs.flows": IMAGES | {"jobs.relayer", "jobs.extras"},
}
"""Imports that each room may have, besides itself."""

UNDER_ALL = {
    "worker.settings",
    "worker.configuration",
    "worker.listening",
    "worker.model",
    "worker.plural",
    "worker.signals",
    "worker.jobstore",
    "worker.broker",
    "worker.security",
}
WORKER_MAY_IMPORT: dict[str, set[str]] = {
    "worker.jobstore": UNDER_ALL,
    "worker.broker": UNDER_ALL,
    "worker.security": UNDER_ALL,
    "worker.engine": UNDER_ALL,
    "worker.background": UNDER_ALL | {"worker.engine"},
    "worker.monitoring": UNDER_ALL | {"worker.engine", "worker.background"},
    "worker.doctor": UNDER_ALL | {"worker.background", "worker.client"},
    "worker.catalog": {"worker.client", "worker.model", "worker.broker", "worker.engine", "worker.durations"},
}
"""Imports of each room of the worker, besides itself; modules beside the rooms, and commands, may import all."""

ONLY_IN_WORKER = {"celery", "kombu", "billiard", "redis", "click", "rich", "worker"}
DOCUMENTS_ONLY = {"pydantic", "pydantic_settings"}
WITHOUT_DOCUMENTS = LAYERS | {"jobs.extras"}


def modules() -> list[Path]:
    return sorted((ROOT / "jobs").rglob("*.py"))


def room_of(dotted: str) -> str:
    return ".".join(dotted.split(".")[:2])


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, also inside functions, as ``jobs.room`` or as a top-level name.

    What is imported as ``layerfarm.jobs`` is named so, too; by itself, ``jobs`` would be another project's.
    """
    package = dotted_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            yield from (_of_ours(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(["layerfarm", *package[: len(package) - node.level + 1], ""]) if node.level else ""
            origin = (base + (node.module or "")).rstrip(".")
            # `from layerfarm.jobs import layer` imports the room, not the package alone.
            inner = origin in ("layerfarm", "layerfarm.jobs")
            yield from (_of_ours(f"{origin}.{alias.name}") for alias in node.names) if inner else [_of_ours(origin)]


def _of_ours(name: str) -> str:
    assert name.partition(".")[0] not in ("jobs", "worker"), f"{name} is imported without layerfarm"
    return name.removeprefix("layerfarm.")


def imports_at_run_time(path: Path) -> Iterator[str]:
    """Every module of the worker that the file imports, except for annotations only."""
    tree = ast.parse(path.read_bytes(), path)
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layerfarm.worker"):
            for alias in node.names:
                outer = _of_ours(str(node.module))
                inner = f"{outer}.{alias.name}"
                yield inner if Path(ROOT, inner.replace(".", "/") + ".py").exists() else outer


@pytest.mark.parametrize("path", modules(), ids=dotted_name)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = room_of(dotted_name(path))
    if room == "jobs.__init__":
        allowed: set[str] = set()
    else:
        allowed = MAY_IMPORT[room] | {room}
    used = {room_of(name) for name in imports(path) if name.split(".")[0] == "jobs"}
    assert used <= allowed


@pytest.mark.parametrize("room", WORKER_MAY_IMPORT)
def test_a_room_of_the_worker_imports_only_those_below_it(room: str) -> None:
    place = ROOT / room.replace(".", "/")
    used = {room_of(name) for path in place.rglob("*.py") for name in imports(path) if name.startswith("worker.")}
    assert used <= WORKER_MAY_IMPORT[room] | {room}


def test_no_two_modules_of_the_worker_import_each_other() -> None:
    paths = {dotted_name(path).removesuffix(".__init__"): path for path in (ROOT / "worker").rglob("*.py")}
    order = graphlib.TopologicalSorter(
        {name: {other for other in imports_at_run_time(path) if other != name} for name, path in paths.items()}
    )
    assert set(paths) <= set(order.static_order())


@pytest.mark.parametrize("path", modules(), ids=dotted_name)
def test_jobs_know_nothing_of_queue_and_command_line(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    assert not used & ONLY_IN_WORKER
    if room_of(dotted_name(path)) in WITHOUT_DOCUMENTS:
        assert not used & DOCUMENTS_ONLY


@pytest.mark.parametrize("place", ["jobs", "worker", "tests", "docs", "deploy"])
def test_nothing_is_imported_by_a_name_that_another_project_may_have(place: str) -> None:
    bare = re.compile(r"^\s*(?:from|import) (?:jobs|worker)\b", re.MULTILINE)
    files = [path for kind in ("*.py", "*.md") for path in (ROOT / place).rglob(kind)]
    assert files and not [path for path in files if bare.search(path.read_text())]


def test_the_rule_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "jobs" / "layer" / "probe.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import layerfarm.jobs.store.layout\nfrom layerfarm.jobs import image\n"
        "from ..flows import base\nfrom . import pax\n"
        "def late():\n    from layerfarm.worker.broker.app import make_app\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert set(imports(source)) == {
        "jobs.store.layout",
        "jobs.image",
        "jobs.flows",
        "jobs.layer",
        "worker.broker.app",
    }


HEAVY = (
    "celery",
    "redis",
    "rich",
    "structlog",
    "pydantic_settings",
    "zstandard",
    "isal",
    "deflate",
    "layerfarm.jobs.flows",
)


@pytest.mark.parametrize(
    "args",
    [
        ["init", "--layout=other"],
        ["new", "--image=store:new"],
        ["stat", "--image=store:tag"],
        ["stat", "--image=store:tag", "--json"],
        ["tag", "--image=store:tag", "other"],
        ["list", "--layout=store"],
        ["remove", "--image=store:tag"],
    ],
    ids=" ".join,
)
def test_the_small_commands_import_no_heavy_library(args: list[str], tmp_path: Path) -> None:
    _run("main(['init', '--layout=store'])\nmain(['new', '--image=store:tag'])", tmp_path)
    assert _imported(HEAVY, args, tmp_path) == "[]"


def test_a_build_imports_its_own_flow_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    _run("main(['init', '--layout=store'])", tmp_path)
    command = ["build", "--rootfs=rootfs", "--image=store:tag"]
    flow = "layerfarm.jobs.flows.build"
    assert _imported(("celery", "redis", "layerfarm.jobs.relayer", flow), command, tmp_path) == f"['{flow}']"


def _imported(names: tuple[str, ...], command: list[str], place: Path) -> str:
    """Which of ``names`` a command imports, as Python writes a list."""
    out = _run(f"assert main({command!r}) == 0\nprint([name for name in {names!r} if name in sys.modules])", place)
    return out.splitlines()[-1]


def _run(code: str, place: Path) -> str:
    setting = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", f"import sys\nfrom layerfarm.worker.cli.main import main\n{code}"]
    done = subprocess.run(command, cwd=place, env=setting, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout
