"""The state of a catalog between two runs: one for each catalog file, found again where it moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.state import ImageState, States
from tests.unit.catalog.works import ran
from tests.unit.image.images import image, tar


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def catalog(directory: Path, name: str = "web.yaml") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("a catalog")
    return path


def names(states: States) -> list[str]:
    return [state.name for state in states.all()]


def test_files_of_one_name_have_states_of_their_own(store: Layout, tmp_path: Path) -> None:
    files = [catalog(tmp_path / "a"), catalog(tmp_path / "b"), catalog(tmp_path / "b", "web.yml")]
    for number, file in enumerate(files):
        States(store, file).put(ImageState(name=f"image:{number}"))
        States(store, file).write("plan.json", b"%d" % number)
    for number, file in enumerate(files):
        states = States(store, file)
        assert names(states) == [f"image:{number}"]
        assert (states.directory / "plan.json").read_bytes() == b"%d" % number


def test_a_file_is_the_same_by_any_path(store: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = catalog(tmp_path / "a")
    States(store, file).put(ImageState(name="image:1"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    for path in (Path("web.yaml"), tmp_path / "link/web.yaml", tmp_path / "a/../a/web.yaml"):
        assert names(States(store, path)) == ["image:1"]


def test_a_file_that_moved_finds_its_state(store: Layout, tmp_path: Path) -> None:
    """As the checkouts of a CI, which have another directory each time."""
    file = catalog(tmp_path / "a")
    States(store, file).put(ImageState(name="image:1"))
    (tmp_path / "b").mkdir()
    file = file.rename(tmp_path / "b/web.yaml")
    assert names(States(store, file)) == ["image:1"]
    other = catalog(tmp_path / "a")
    assert names(States(store, other)) == []
    assert names(States(store, file)) == ["image:1"]
    file.unlink()
    States(store, other).put(ImageState(name="image:2"))
    assert names(States(store, other)) == ["image:2"]


def test_a_state_of_an_earlier_version_is_taken_over(store: Layout, tmp_path: Path) -> None:
    states = States(store, catalog(tmp_path / "a"))
    states.put(ImageState(name="image:1"))
    (states.directory / "file").unlink()
    assert names(States(store, catalog(tmp_path / "b"))) == ["image:1"]


def test_records_dropped_by_one_run_are_kept_by_another_catalog(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "images")
    for tag in ("a:1", "b:1"):
        image(layout, [tar(("file", tag.encode()))], tag=tag)
    files = []
    for name in ("a", "b"):
        file = catalog(tmp_path / name)
        file.write_text(
            f"store: ../store\nsources: [{{layout: ../images, tags: ['{name}:*']}}]\n"
            "policies: [{match: '*', do: {transform: rechunk}}]\n"
        )
        files.append(file)
    for file in (*files, *files):
        assert [row.state for row in ran(file).images] == ["done"]
    assert [names(States(Layout.open(tmp_path / "store"), file)) for file in files] == [["a:1"], ["b:1"]]
