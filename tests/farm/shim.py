"""A worker whose disk fails or whose clock is wrong: the environment that ``shim.c`` brings that about in."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "shim.c"


class Shim:
    """The shim, compiled into ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "shim.so"
        self.during = directory / "trouble"
        """The disk fails as long as this file is there."""
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", self._library, SOURCE, "-ldl"]
        subprocess.run(command, check=True)

    def failing(self, below: Path, calls: str, error: int) -> dict[str, str]:
        """``calls`` on files below a directory fail: letters of r(ead), w(rite), s(ync), n(ame)."""
        return self._disk(below, calls) | {"SHIM_ERRNO": str(error)}

    def slow(self, below: Path, calls: str, microseconds: int) -> dict[str, str]:
        return self._disk(below, calls) | {"SHIM_SLOW": str(microseconds)}

    def clock(self, seconds: int) -> dict[str, str]:
        """The time of day is wrong by so much."""
        return {"LD_PRELOAD": str(self._library), "SHIM_CLOCK": str(seconds)}

    def jumping(self, seconds: int) -> dict[str, str]:
        """It is wrong by so much as long as ``during`` is there."""
        return self.clock(seconds) | {"SHIM_WHILE": str(self.during)}

    def _disk(self, below: Path, calls: str) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._library),
            "SHIM_BELOW": str(below),
            "SHIM_WHILE": str(self.during),
            "SHIM_CALLS": calls,
        }
