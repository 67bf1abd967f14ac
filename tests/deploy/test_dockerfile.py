"""deploy/Dockerfile: a linter has nothing to say, its steps can be carried out, and what they make works."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.deploy.image_steps import build


def test_the_linter_has_nothing_to_say(deploy: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, deploy / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_steps_give_a_small_image_that_builds_images_as_an_ordinary_user(
    as_root: None, deploy: Path, debian: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        stages = build(deploy / "Dockerfile", deploy.parent, debian, tmp_path, stack)
        image = stages["last"]
        assert image.user == "10001:10001"
        assert image.run(["id", "-u"]).strip() == "10001"
        # Before that tini complains that it is not PID 1 here.
        assert "\nlayerfarm version " in image.run([*image.entrypoint, "--version"])
        assert image.run(["skopeo", "--version"]).startswith("skopeo version")
        assert "--this-host" in image.run([*image.health, "--help"])
        assert "--store" in image.run([*image.entrypoint, *image.command, "--help"])
        image.env["LAYERFARM_FARM"] = "redis://127.0.0.1:1/0"
        assert "Web based tool" in image.run(["celery", "--app", "layerfarm.worker.celery_app", "flower", "--help"])
        del image.env["LAYERFARM_FARM"]
        store = "/var/lib/layerfarm/store"
        image.run(["layerfarm", "init", "--layout", store])
        image.run(["layerfarm", "build", "--rootfs", "/etc/apt", "--image", f"{store}:a"])
        image.run(["layerfarm", "unpack", "--rootless", "--image", f"{store}:a", "/var/lib/layerfarm/bundle"])
        # As compose.yaml runs it, with an embedded Redis.
        image.user = "0:0"
        assert "trees agree" in image.run(["layerfarm", "demo", "--rootfs", "/etc/apt", "--store", store])
        # Paths that the steps add, except the archives that Docker's Debian does not keep.
        added = subprocess.check_output(["du", "-scb", *(tmp_path / "last/upper" / each for each in ("usr", "opt"))])
        assert int(added.split()[-2]) < 250_000_000
