"""umoci and layerfarm as programs that take the same arguments, and what of their images is to be the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

LAYERFARM = str(Path(sys.executable).with_name("layerfarm"))


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Tool:
    """umoci or layerfarm, working in a directory; ``epoch`` is $SOURCE_DATE_EPOCH, which umoci 0.4.7 does not know."""

    def __init__(self, program: str, directory: Path, epoch: str = "1600000000") -> None:
        self.program = program
        self.directory = directory
        self.epoch = epoch
        directory.mkdir(exist_ok=True)

    def __call__(self, *args: str) -> Ran:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
        done = subprocess.run(
            [self.program, *args],
            cwd=self.directory,
            env=environment | {"SOURCE_DATE_EPOCH": self.epoch},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)


def image(tool: Tool, tag: str) -> dict[str, Any]:
    """Image that the store of ``tool`` has under ``tag``, from layerfarm's stat."""
    done = Tool(LAYERFARM, tool.directory)("stat", "--json", f"--image=s:{tag}")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the tools mean to do differently: the clock, compression, and who did it.

    layerfarm never reads the clock; umoci 0.4.7 knows no SOURCE_DATE_EPOCH.
    """
    config = found["config"]["blob"]
    config.pop("created", None)
    return {
        "config": config["config"],
        "rest": {name: config[name] for name in config if name not in ("config", "rootfs", "history")},
        "diff_ids": len(config["rootfs"]["diff_ids"]),
        "history": [
            {
                name: value.replace("layerfarm", "umoci") if name == "created_by" else value
                for name, value in entry.items()
                if name in ("created_by", "comment", "author", "empty_layer")
            }
            for entry in found["history"]
        ],
    }
