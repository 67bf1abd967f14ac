"""Set-up for one tree: scratch space, and everything that both tools need before the clock starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.measure import Run, Series, alternate, drop_caches, run, run_and_sync

TOUCHED = 1000
Command = Sequence[str | Path]


class Place:
    """Scratch space for one tree. Images and bundles of it are made once, when first asked for."""

    def __init__(self, tree: str, root: Path, scratch: Path, times: int, *, on: str = "", cold: bool = False) -> None:
        """Prepare scratch space.

        Parameters:
            on: the file system of ``scratch``. On ext4 a run ends when its writes are on the disk; none begins before.
            cold: the kernel forgets before each run what it has cached of the disk.
        """
        self.tree = tree
        self.root = root
        self.scratch = scratch
        self.times = times
        self.on = on
        self._synced = on == "ext4"
        self._before = drop_caches if cold else os.sync if self._synced else None
        self._made: dict[str, Path] = {}

    def measure(self, subjects: dict[str, Callable[[], Run]]) -> dict[str, Series]:
        """Every subject as often as this place asks for, in turns."""
        return alternate(subjects, self.times, self._before)

    def run(self, command: Command) -> Run:
        """Run a command of a subject."""
        return run_and_sync(command, self.scratch) if self._synced else run(command)

    def fresh(self, name: str) -> Path:
        """A path in the scratch space where nothing is."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        return path

    def repeat(self, name: str, command: Callable[[Path], Command]) -> Callable[[], Run]:
        """A subject that makes something new at a path of its own each time; what it made is removed."""

        def subject() -> Run:
            path = self.fresh(f"out-{name}")
            try:
                return self.run(command(path))
            finally:
                self.fresh(f"out-{name}")

        return subject

    def layout(self) -> Path:
        """A layout with an image of the tree by each tool: ``umoci``, ``gzip``, ``zstd`` and ``none``."""

        def make(path: Path) -> None:
            quiet("umoci", "init", "--layout", path)
            quiet("umoci", "new", "--image", f"{path}:empty")
            quiet("umoci", "insert", "--image", f"{path}:empty", "--tag", "umoci", self.root, "/")
            for codec in ("gzip", "zstd", "none"):
                quiet("layerfarm", "build", "--rootfs", self.root, "--image", f"{path}:{codec}", "--compress", codec)

        return self._once("layout", make)

    def bundle(self, tool: str, tag: str) -> Path:
        """That tool's bundle of an image of :meth:`layout`; not to be changed."""
        layout = self.layout()
        return self._once(
            f"bundle-{tool}-{tag}", lambda path: quiet(tool, "unpack", "--image", f"{layout}:{tag}", path)
        )

    def touched_bundle(self, tool: str) -> Path:
        """The same with a line added to 1,000 files."""
        layout = self.layout()

        def make(path: Path) -> None:
            quiet(tool, "unpack", "--image", f"{layout}:gzip", path)
            for file in self._some_files(path / "rootfs", TOUCHED):
                with file.open("ab") as out:
                    out.write(b"touched\n")

        return self._once(f"touched-{tool}", make)

    def full_bundle(self, tool: str) -> Path:
        """A bundle of an empty image with the whole tree put into it."""
        layout = self.layout()

        def make(path: Path) -> None:
            quiet(tool, "unpack", "--image", f"{layout}:empty", path)
            shutil.rmtree(path / "rootfs")
            quiet("cp", "-a", self.root, path / "rootfs")

        return self._once(f"full-{tool}", make)

    def drop(self, *prefixes: str) -> None:
        """Remove bundles that are not needed any more, to have room."""
        for name in [name for name in self._made if name.startswith(prefixes)]:
            shutil.rmtree(self._made.pop(name))

    def layer_path(self, tag: str) -> Path:
        """The blob of the newest layer of an image of :meth:`layout`."""
        command = ["skopeo", "inspect", "--raw", f"oci:{self.layout()}:{tag}"]
        manifest = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        digest: str = manifest["layers"][-1]["digest"]
        return self.layout() / "blobs" / digest.replace(":", "/")

    def layer_size(self, tag: str) -> int:
        """Bytes of that blob."""
        return self.layer_path(tag).stat().st_size

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        if name not in self._made:
            path = self.fresh(name)
            make(path)
            self._made[name] = path
        return self._made[name]

    @staticmethod
    def _some_files(root: Path, count: int) -> list[Path]:
        files = []
        for directory, directories, names in os.walk(root):
            directories.sort()
            files += [Path(directory, name) for name in sorted(names)]
        files = [file for file in files if file.is_file() and not file.is_symlink()]
        return files[:: max(1, len(files) // count)][:count]


def quiet(*command: str | Path) -> None:
    """Run a command that is not measured."""
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
