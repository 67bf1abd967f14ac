"""Carries out a Dockerfile's steps without a container engine: each stage in an overlay of a debootstrapped Debian.

Of Dockerfiles it knows what deploy/Dockerfile uses; anything else is an error, not a step left out.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser

from tests.newcomer import copy_host, host_variables


class Stage:
    """The root filesystem of one stage, while the block runs."""

    def __init__(self, base: Path, directory: Path, stack: ExitStack) -> None:
        self.root = directory / "root"
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.workdir = "/"
        self.user = "0:0"
        self.shell = ["/bin/sh", "-c"]
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []
        for name in ("root", "upper", "work"):
            (directory / name).mkdir(parents=True)
        options = f"lowerdir={base},upperdir={directory}/upper,workdir={directory}/work"
        self._mount(stack, "-t", "overlay", "-o", options, "stage")
        self._mount(stack, "-t", "proc", "proc", at="proc")
        for name in ("null", "zero", "urandom", "random"):
            self._bind(stack, Path("/dev") / name)
        (self.root / "dev/shm").mkdir(exist_ok=True)
        self._mount(stack, "-t", "tmpfs", "shm", at="dev/shm")
        copy_host(self.root)

    def run(self, command: list[str], *, as_user: bool = True) -> str:
        """Run a command inside and return its output; fail with its output."""
        uid, _, gid = self.user.partition(":")
        within = ["chroot", f"--userspec={uid}:{gid or uid}", str(self.root)] if as_user else ["chroot", str(self.root)]
        inner = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(command)}"
        done = subprocess.run(
            [*within, "/bin/sh", "-c", inner],
            env=host_variables() | self.env | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
        return done.stdout

    def _bind(self, stack: ExitStack, path: Path) -> None:
        at = self.root / path.relative_to("/")
        at.touch()
        self._mount(stack, "--bind", str(path), at=str(path.relative_to("/")))

    def _mount(self, stack: ExitStack, *options: str, at: str = "") -> None:
        target = self.root / at
        subprocess.run(["mount", *options, target], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", target], check=True)


def build(dockerfile: Path, context: Path, base: Path, directory: Path, stack: ExitStack) -> dict[str, Stage]:
    """Carry out the Dockerfile; its stages by name, ``last`` the one without. Every FROM is taken to be ``base``."""
    ignored = dockerfile.with_name(dockerfile.name + ".dockerignore").read_text().split()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    parser = DockerfileParser(path=str(dockerfile), cache_content=True)
    for step in parser.structure:
        what, value = step["instruction"], step["value"]
        if what in ("COMMENT", "ARG", "EXPOSE", "STOPSIGNAL"):
            continue
        if what == "FROM":
            name = value.partition(" AS ")[2] or "last"
            stage = stages[name] = Stage(base, directory / name, stack)
            continue
        assert stage is not None
        if what == "RUN":
            stage.run([*stage.shell, value])
        elif what == "SHELL":
            stage.shell = json.loads(value)
        elif what == "WORKDIR":
            stage.workdir = value
            (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif what == "USER":
            stage.user = value
            stage.env["HOME"] = stage.run(["getent", "passwd", value.partition(":")[0]]).split(":")[5]
        elif what == "ENV":
            for name, text in (pair.split("=", 1) for pair in shlex.split(value)):
                stage.env[name] = Template(text).substitute(stage.env)
        elif what == "COPY":
            _copy(value.split(), stage, stages, context, allowed)
        elif what == "ENTRYPOINT":
            stage.entrypoint = json.loads(value)
        elif what == "CMD":
            stage.command = json.loads(value)
        elif what == "HEALTHCHECK":
            stage.health = json.loads(value.partition(" CMD ")[2])
        else:
            raise AssertionError(f"not a step that this can carry out: {what}")
    return stages


def _copy(words: list[str], stage: Stage, stages: dict[str, Stage], context: Path, allowed: set[str]) -> None:
    source = context
    if words[0].startswith("--from="):
        source = stages[words.pop(0).partition("=")[2]].root
    *names, target = words
    for name in names:
        assert source is not context or name in allowed, f"{name} is kept out by .dockerignore"
        at = stage.root / (target if target.startswith("/") else f"{stage.workdir}/{target}").lstrip("/")
        path = source / name.lstrip("/")
        if target.endswith("/"):
            at = at / path.name
        if path.is_dir():
            shutil.copytree(path, at, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            with suppress(FileExistsError):
                at.parent.mkdir(parents=True)
            shutil.copy2(path, at)
