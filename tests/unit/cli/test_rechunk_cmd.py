"""``layerfarm rechunk``: what is printed, and what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.planner.plan import Group, Plan
from layerfarm.jobs.store import Layout
from tests.unit.cli.conftest import Run
from tests.unit.image.images import image, tar


@pytest.fixture
def layout(store: Path) -> Layout:
    layout = Layout.open(store)
    image(layout, [tar(("etc/f", b"f" * 9000)), tar(("srv/app/x", b"x" * 9000))])
    return layout


def names(layout: Layout, tag: str) -> list[str | None]:
    return [entry.comment for entry in resolve(layout, tag).config.history or []]


def test_the_plan_of_a_file_is_followed(layerfarm: Run, layout: Layout, tmp_path: Path) -> None:
    groups = (Group(name="one", components=("tree:etc",)), Group(name="two", components=("rule:app",)))
    (tmp_path / "plan.json").write_bytes(Plan(groups=groups).encode())
    done = layerfarm(
        "rechunk", "--image", "store:t", "--target", "store:u", "--plan", "plan.json", "--component", "app=/srv/*"
    )
    assert (done.code, done.err) == (0, "")
    assert "layers: 2 -> 3" in done.out and "proof: sha256:" in done.out
    assert names(layout, "u") == ["one", "two", "directories"]
    assert layerfarm("verify", "--image", "store:u").code == 0


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--budget", "121"], 2, "121"),
        (["--budget", "1"], 2, "1"),
        (["--component", "app"], 2, "is not NAME=PATTERN"),
        (["--component", "=x"], 2, "is not NAME=PATTERN"),
        (["--plan", "missing.json"], 2, "cannot be read"),
        (["--plan", "store/oci-layout"], 1, "oci-layout"),
        (["--keep", "3"], 1, "image has 2 layers, not 3"),
        (["--keep-base", "store:nothing"], 1, "not found"),
        (["--keep", "1", "--budget", "2"], 1, "leave no room in a budget of 2"),
    ],
)
def test_contradicting_options_are_refused(
    layerfarm: Run, layout: Layout, flags: list[str], code: int, said: str
) -> None:
    done = layerfarm("rechunk", "--image", "store:t", "--target", "store:u", *flags)
    assert (done.code, said in done.err, done.out) == (code, True, ""), done.err
    assert "Traceback" not in done.err
    assert layout.tags() == ["t"]
