from __future__ import annotations

from typing import Any

import pytest

from layerfarm.jobs.compress import Codec, Compression
from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.image import HistoryEntry, Resolved, append_layer, pack_layer
from layerfarm.jobs.image.documents import ConfigSection
from layerfarm.jobs.image.mutate import ConfigChanges, configure
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image, tar

CREATED = "2020-01-02T03:04:05Z"
FULL = {
    "User": "u",
    "ExposedPorts": {"1/tcp": {}},
    "Env": ["A=1", "B=2"],
    "Entrypoint": ["e"],
    "Cmd": ["c"],
    "Volumes": {"/v": {}},
    "WorkingDir": "/w",
    "Labels": {"l": "1"},
    "StopSignal": "SIGTERM",
    "Shell": ["unknown to us"],
}


def changed(layout: Layout, history: HistoryEntry | None = None, **changes: Any) -> Resolved:
    return configure(layout, image(layout, config=FULL, variant="v7", author="old"), ConfigChanges(**changes), history)


def section(layout: Layout, **changes: Any) -> dict[str, Any]:
    found = changed(layout, **changes).config.config
    assert found is not None
    return found.model_dump(by_alias=True, exclude_none=True)


def test_no_change_gives_the_same_image(layout: Layout) -> None:
    made = image(layout, config=FULL)
    assert configure(layout, made, ConfigChanges(), None).descriptor == made.descriptor


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"user": "x:y"}, "User", "x:y"),
        ({"exposed_ports": ["2/udp", "1/tcp"]}, "ExposedPorts", {"1/tcp": {}, "2/udp": {}}),
        ({"env": ["A=3", "C=4", "C=5"]}, "Env", ["A=3", "B=2", "C=5"]),
        ({"env": ["A=x=y", "E="]}, "Env", ["A=x=y", "B=2", "E="]),
        ({"entrypoint": ["-c", ""]}, "Entrypoint", ["-c", ""]),
        ({"cmd": ["x", "y"]}, "Cmd", ["x", "y"]),
        ({"volumes": ["/a"]}, "Volumes", {"/v": {}, "/a": {}}),
        ({"labels": ["m=2", "l=3"]}, "Labels", {"l": "3", "m": "2"}),
        ({"working_dir": "/x"}, "WorkingDir", "/x"),
        ({"stop_signal": "9"}, "StopSignal", "9"),
        ({"clear": ["config.env"], "env": ["N=1"]}, "Env", ["N=1"]),
    ],
)
def test_each_flag_changes_its_field_and_no_other(
    layout: Layout, changes: dict[str, Any], key: str, value: object
) -> None:
    assert section(layout, **changes) == FULL | {key: value}


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("config.labels", "Labels"),
        ("config.exposedports", "ExposedPorts"),
        ("config.env", "Env"),
        ("config.entrypoint", "Entrypoint"),
        ("config.cmd", "Cmd"),
        ("config.volume", "Volumes"),
    ],
)
def test_clear_empties_its_field_and_no_other(layout: Layout, key: str, field: str) -> None:
    assert section(layout, clear=[key]) == {name: value for name, value in FULL.items() if name != field}


def test_empty_values_unset(layout: Layout) -> None:
    kept = section(layout, user="", working_dir="", stop_signal="", entrypoint=[], cmd=[])
    assert set(FULL) - set(kept) == {"User", "WorkingDir", "StopSignal", "Entrypoint", "Cmd"}


def test_B7_platform_variant_stays_unless_it_is_changed(layout: Layout) -> None:
    assert changed(layout, user="x").config.variant == "v7"
    config = changed(layout, os="plan9", architecture="mips", variant="").config
    assert (config.os, config.architecture, config.variant) == ("plan9", "mips", None)
    config = changed(layout, os="", architecture="").config
    assert (config.os, config.architecture) == ("", "")


def test_author_and_created(layout: Layout) -> None:
    config = changed(layout, author="new", created="2020-01-01T00:00:00+01:00").config
    assert (config.author, config.created) == ("new", "2020-01-01T00:00:00+01:00")
    with pytest.raises(RequestError):
        changed(layout, created="now")


def test_manifest_annotations(layout: Layout) -> None:
    made = changed(layout, annotations=["a=1", "b=x=y"])
    assert made.manifest.annotations == {"a": "1", "b": "x=y"}
    more = configure(layout, made, ConfigChanges(annotations=["a=2"]), None)
    assert more.manifest.annotations == {"a": "2", "b": "x=y"}
    fresh = configure(layout, made, ConfigChanges(annotations=["c=3"], clear=["manifest.annotations"]), None)
    assert fresh.manifest.annotations == {"c": "3"}
    assert configure(layout, made, ConfigChanges(clear=["manifest.annotations"]), None).manifest.annotations is None


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": ["x"]},
        {"annotations": ["=x"]},
        {"labels": ["x"]},
        {"labels": ["=x"]},
        {"env": ["x"]},
        {"env": ["=x"]},
        {"volumes": [""]},
        {"exposed_ports": [""]},
        {"clear": ["rootfs.diffids"]},
        {"clear": ["config.user"]},
    ],
)
def test_B7_contradicting_options_are_a_clear_error(layout: Layout, changes: dict[str, Any]) -> None:
    """umoci indexes out of range on an annotation without '='."""
    with pytest.raises(RequestError):
        changed(layout, **changes)


def test_history_is_appended_as_an_empty_layer_with_the_image_author(layout: Layout) -> None:
    assert changed(layout).config.history is None
    made = changed(layout, HistoryEntry(created_by="config"), author="new", created=CREATED)
    assert made.config.history == [HistoryEntry(created=CREATED, created_by="config", author="new", empty_layer=True)]
    made = changed(layout, HistoryEntry(author="said", created=CREATED))
    assert made.config.history == [HistoryEntry(created=CREATED, author="said", empty_layer=True)]


def test_no_history_is_begun_above_layers_without_one(layout: Layout) -> None:
    base = image(layout, [tar(("f", b"")), tar(("g", b""))])
    assert base.config.history is None
    made = configure(layout, base, ConfigChanges(user="x"), HistoryEntry(created=CREATED))
    assert made.config.history is None
    layer = pack_layer(layout, [tar(("h", b""))], Codec(Compression.GZIP))
    assert append_layer(layout, made, layer, HistoryEntry(created=CREATED)).config.history is None
    assert append_layer(layout, made, None, HistoryEntry(created=CREATED)).config.history is None


def test_image_without_a_config_section(layout: Layout) -> None:
    base = image(layout)
    bare = type(base)(base.path, base.manifest, base.config.model_copy(update={"config": None}))
    assert configure(layout, bare, ConfigChanges(user="x"), None).config.config == ConfigSection(User="x")
