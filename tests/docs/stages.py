"""Surroundings that the pages assume (a farm, images, a registry), and the scripts that run their blocks.

The blocks of a page that are run on one stage are one script of a shell, in the order of the page, so that variables,
jobs and directories stay; each command's output goes to a file of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ruamel.yaml import YAML

from layerfarm.worker.embedded import EmbeddedFarm
from tests.catalog.registry import Registry
from tests.docs.blocks import ROOT, Block, Step, steps
from tests.started import for_later_tests

_BIN = Path(sys.executable).parent
_EXPRESSION = re.compile(r"\$\{\{ (.*?) \}\}")

IMAGES = """
mkdir -p deb1/etc deb1/usr/share/doc deb1/usr/share/man deb1/bin app/srv/app/__pycache__ app/root/.ssh
echo 12.1 >deb1/etc/debian_version; echo libc >deb1/bin/libc; echo doc >deb1/usr/share/doc/libc
echo page >deb1/usr/share/man/libc.1
cp -a deb1 deb2; echo 12.2 >deb2/etc/debian_version
cp -a deb1/. app/.; echo 'print("app")' >app/srv/app/app.py; echo code >app/srv/app/__pycache__/app.pyc
echo key >app/root/.ssh/id
layerfarm init --layout store
layerfarm build --rootfs deb1 --image store:deb1
layerfarm build --rootfs deb2 --image store:deb2
layerfarm tag --image store:deb1 debian-12.1
layerfarm tag --image store:deb2 debian-12.2
layerfarm tag --image store:deb1 debian
layerfarm build --rootfs app --base store:debian --image store:app
for number in 1 2 3; do echo $number >file; layerfarm insert --image store:app file /srv/app/file$number; done
layerfarm tag --image store:app v1
layerfarm config --image store:app --tag app-arm64 --architecture arm64
"""
"""A Debian of two versions, and on the older one an application of several layers; in the layout ``store``."""

TREES = """
mkdir -p rootfs/app/etc; echo app >rootfs/app/etc/app
cp -a rootfs/app rootfs/debian; cp -a rootfs/app rootfs/alpine
layerfarm init --layout oci
layerfarm build --rootfs rootfs/debian --image oci:debian
"""
"""Disk of a farm: root filesystems, a store with a base."""


class Stages:
    """Makes what pages need, when the first of them needs it; ends it with ``stack``."""

    def __init__(self, directory: Path, stack: ExitStack, program: Callable[[str], str]) -> None:
        self._directory = directory
        self._stack = stack
        self._program = program
        self._url = ""
        self._registry: Registry | None = None
        self._made: dict[str, Path] = {}

    def run(self, page: str, stage: str, blocks: Sequence[Block]) -> None:
        """Run blocks of a page; an assertion fails with the block whose command failed or printed something else."""
        directory = self._directory / f"{page}-{stage or 'plain'}"
        directory.mkdir()
        stands_for = {name: f"{directory}{name}" for name in ("/srv", "/etc/layerfarm")}
        environment = {"PATH": f"{_BIN}:{os.environ['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
        before = f"cp -a {self._disk()} {directory}/srv"
        if stage in ("farm", "go", "gitlab", "github"):
            environment["LAYERFARM_FARM"] = self._farm()
        if stage == "go":
            self._program("go")
            environment["GOCACHE"] = str(ROOT / ".cache/go/build")
        if stage == "redis":
            stands_for |= dict.fromkeys(("redis://queue/0", "redis://:SECRET@queue/0"), self._farm())
        if stage == "catalog":
            stands_for["registry.example"] = self._host()
            (directory / ".config/containers").mkdir(parents=True)
            configuration = f'[[registry]]\nlocation = "{self._host()}"\ninsecure = true\n'
            (directory / ".config/containers/registries.conf").write_text(configuration)
            before += f"\nmkdir -p {directory}/srv/oci/images; cp -a {self._store()}/. {directory}/srv/oci/images\n"
            before += f"layerfarm tag --image {directory}/srv/oci/images:deb1 base/debian\n"
        script = _Script(directory, lambda text: _replaced(text, stands_for))
        script.quietly(before)
        if stage in ("images", "alternatives"):
            script.images = f"rm -rf work; mkdir work; cd work; cp -a {self._store()} store"
        for block in blocks:
            script.add(block, stage)
        script.run(environment)

    def _farm(self) -> str:
        if not self._url:
            with for_later_tests():
                farm = self._stack.enter_context(EmbeddedFarm(roots=[self._directory], stores=[self._directory]))
            self._url = farm.url
        return self._url

    def _store(self) -> Path:
        return self._once("images", IMAGES) / "store"

    def _disk(self) -> Path:
        return self._once("disk", TREES)

    def _once(self, name: str, script: str) -> Path:
        """The directory in which ``script`` has made something."""
        if name not in self._made:
            self._made[name] = self._directory / name
            self._made[name].mkdir()
            shell(script, self._made[name])
        return self._made[name]

    def _host(self) -> str:
        if self._registry is None:
            registry = Registry(self._directory / "registry", self._program("docker-registry"))
            self._registry = self._stack.enter_context(registry)
            for name in ("team/web:1.0", "team/web:1.1", "team/api:1.0", "team/legacy:1.0"):
                registry.put(self._store(), "app", name)
        return self._registry.host


class _Script:
    """The script that a page's blocks become."""

    def __init__(self, directory: Path, replaced: Callable[[str], str]) -> None:
        self._directory = directory
        self._replaced = replaced
        self._lines = [f"cd {directory}"]
        self._steps: list[tuple[Block, Step]] = []
        self.images = ""
        """The commands that put images into the directory, again for each block, or for each command."""

    def quietly(self, commands: str) -> None:
        """Add commands that the page assumes to have run."""
        self._lines += ["set -e", f"{{ {commands}\n}} >/dev/null", "set +e"]

    def add(self, block: Block, stage: str) -> None:
        if self.images:
            self.quietly(f"cd {self._directory}; {self.images}")
        if block.mark == "file":
            name = block.about.partition(", ")[0]
            (self._directory / name).write_text(self._replaced(block.text))
        elif stage in ("gitlab", "github"):
            self._step(block, Step((_gitlab if stage == "gitlab" else _github)(block.text), ""))
        elif block.language == "python":
            (self._directory / f"{block.line}.py").write_text(self._replaced(block.text))
            self._step(block, Step(f"{sys.executable} {self._directory}/{block.line}.py", ""))
        else:
            for step in steps(block):
                if stage == "alternatives":
                    self.quietly(f"cd {self._directory}; {self.images}")
                self._step(block, step)

    def _step(self, block: Block, step: Step) -> None:
        number = len(self._steps)
        self._steps.append((block, step))
        command = self._replaced(step.command) + (" &" if step.stays else "")
        files = f">{self._directory}/{number}.out 2>{self._directory}/{number}.err"
        self._lines.append(f"{{ {command}\n}} {files}; [ $? = {step.code} ] || exit 1")
        self._lines.append(f": >{self._directory}/{number}.done")

    def run(self, environment: Mapping[str, str]) -> None:
        shell("\n".join(self._lines), self._directory, environment, check=False)
        for number, (block, step) in enumerate(self._steps):
            out, err = ((self._directory / f"{number}.{end}") for end in ("out", "err"))
            assert out.exists(), f"{block}: what the page takes for granted failed"
            assert (self._directory / f"{number}.done").exists(), (
                f"{block}: {step.command}\n{out.read_text()}{err.read_text()}"
            )
            shown = self._replaced(step.shown)
            assert not shown or as_shown(shown, out.read_text()), f"{block}: {step.command} printed\n{out.read_text()}"


def as_shown(shown: str, printed: str) -> bool:
    """Return True if a page shows what is printed; ``…`` stands for anything, lines too."""
    pattern = ".*".join(re.escape(piece) for piece in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


def shell(script: str, directory: Path, environment: Mapping[str, str] | None = None, *, check: bool = True) -> None:
    """Run a script of bash, and end what it left running."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=kept | {"PATH": f"{_BIN}:{os.environ['PATH']}"} | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=(directory / "script.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        process.wait(240)
    finally:
        os.killpg(process.pid, signal.SIGTERM) if _group_lives(process.pid) else None
        process.wait(30)
    assert not check or process.returncode == 0, (directory / "script.log").read_text()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _replaced(text: str, stands_for: Mapping[str, str]) -> str:
    for name, value in stands_for.items():
        text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w])", value, text)
    return text


_STEP_OF_BUILD = (
    """printf '#!/bin/sh\\nmkdir -p "$1" && echo app >"$1/app"\\n' >build-rootfs.sh; chmod +x build-rootfs.sh"""
)
"""Files in the repository of the page's reader."""


def _gitlab(text: str) -> str:
    """The jobs of a ``.gitlab-ci.yml`` as a script, with the variables that GitLab sets."""
    (job,) = YAML(typ="safe").load(text).values()
    given = {
        "CI_PROJECT_PATH_SLUG": "team-app",
        "CI_PIPELINE_ID": "1",
        "CI_COMMIT_SHORT_SHA": "abc",
        "GITLAB_USER_EMAIL": "a@b",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    lines += [f'export {name}="{value}"' for name, value in job["variables"].items()]
    return "\n".join(["set -eo pipefail", _STEP_OF_BUILD, *lines, *job["script"], *job["after_script"]])


def _github(text: str) -> str:
    """The steps of a workflow of one job as a script, with what GitHub gives to them."""
    (job,) = YAML(typ="safe").load(text)["jobs"].values()
    known: dict[str, str] = {"github.repository": "team/app", "secrets.LAYERFARM_FARM": "$LAYERFARM_FARM"}

    def expression(found: re.Match[str]) -> str:
        if found[1] in known:
            return known[found[1]]
        _, step, _, output = found[1].split(".")
        return f"$(sed -n 's/^{output}=//p' {step}.output | grep .)"

    lines = ["set -eo pipefail", _STEP_OF_BUILD, "export GITHUB_RUN_ID=1 GITHUB_SHA=abc"]
    lines += [f'export {name}="{_EXPRESSION.sub(expression, value)}"' for name, value in job["env"].items()]
    for step in job["steps"]:
        if "run" in step:
            run = _EXPRESSION.sub(expression, step["run"])
            lines += [f"export GITHUB_OUTPUT=$PWD/{step.get('id', 'step')}.output", run]
    return "\n".join(lines)
