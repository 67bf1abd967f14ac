"""The label of Cloud Native Buildpacks stays true of a rebased image, or a warning says that it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerfarm.jobs.flows.transforms import RebaseRequest, RechunkRequest, SquashRequest, TransformResult
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.configs import BUILDPACKS
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image
from tests.unit.layer.archives import archive
from tests.unit.layer.archives import entry as member
from tests.unit.relayer.images import ref, run

LOW = archive(member("etc/os", content=b"os"))


def base(layout: Layout, tag: str, version: str) -> Resolved:
    return image(layout, [LOW, archive(member("etc/release", content=version.encode()))], tag=tag)


def app(layout: Layout, old: Resolved, label: str) -> Resolved:
    layers = [LOW, archive(member("etc/release", content=b"1")), archive(member("workspace/app", content=b"app"))]
    made = image(layout, layers, tag="app", config={"Labels": {BUILDPACKS: label, "other": "1"}})
    assert made.config.rootfs.diff_ids[:2] == old.config.rootfs.diff_ids
    return made


def metadata(top: str, reference: str) -> dict[str, Any]:
    """The label as the lifecycle writes it, with an own field and an escaped character."""
    return {
        "app": [{"sha": "sha256:" + "a" * 64}],
        "buildpacks": [{"key": "böse/<pack>", "layers": {"jre": {"data": {"n": 1}, "sha": "sha256:" + "b" * 64}}}],
        "runImage": {"topLayer": top, "reference": reference, "image": "run:base"},
        "stack": {"runImage": {"image": "run:base", "mirrors": ["mirror/run:base"]}},
        "own": None,
    }


def rebased(layout: Layout) -> tuple[TransformResult, str]:
    bases = {"old_base": ref(layout, "old"), "new_base": ref(layout, "new")}
    result = run(RebaseRequest(image=ref(layout, "app"), target=ref(layout, "r"), accept="refuse", **bases))
    section = resolve(layout, "r").config.config
    assert section is not None and section.labels is not None
    assert section.labels["other"] == "1"
    return result, section.labels[BUILDPACKS]


def test_a_rebase_names_the_top_layer_and_the_digest_of_the_new_run_image(layout: Layout) -> None:
    old, new = base(layout, "old", "1"), base(layout, "new", "2")
    for before, after in ((old.descriptor, new.descriptor), (old.manifest.config, new.manifest.config)):
        known = metadata(old.config.rootfs.diff_ids[-1], f"registry/run@{before.digest}")
        app(layout, old, json.dumps(known))
        _, label = rebased(layout)
        known["runImage"] |= {
            "topLayer": new.config.rootfs.diff_ids[-1],
            "reference": f"registry/run@{after.digest}",
        }
        assert json.loads(label) == known
        assert list(json.loads(label)) == list(known)


def test_a_run_image_above_the_base_stays(layout: Layout) -> None:
    old = base(layout, "old", "1")
    base(layout, "new", "2")
    label = json.dumps(metadata(app(layout, old, "").config.rootfs.diff_ids[-1], "run"))
    app(layout, old, label)
    result, after = rebased(layout)
    assert (after, [text for text in result.warnings if BUILDPACKS in text]) == (label, [])


def test_a_run_image_that_is_a_part_of_the_base_is_reported(layout: Layout) -> None:
    old = base(layout, "old", "1")
    base(layout, "new", "2")
    label = json.dumps(metadata(old.config.rootfs.diff_ids[0], "run"))
    app(layout, old, label)
    result, after = rebased(layout)
    assert after == label
    assert any("the run image is not the base" in text for text in result.warnings)


@pytest.mark.parametrize(
    "label",
    [
        *("", "no JSON", "[]", "{}", "null", '{"runImage": []}', '{"runImage": {"topLayer": {}}}', "[" * 100_000),
        '{"runImage": {"topLayer": "TOP"}, "n": 1e999}',
        '{"runImage": {"topLayer": "TOP"}, "n": "\\ud800"}',
    ],
)
def test_a_label_that_buildpacks_do_not_write_stays_and_is_reported(layout: Layout, label: str) -> None:
    old = base(layout, "old", "1")
    base(layout, "new", "2")
    label = label.replace("TOP", old.config.rootfs.diff_ids[-1])
    app(layout, old, label)
    result, after = rebased(layout)
    assert after == label
    assert any(f"{BUILDPACKS} is not in the form of buildpacks" in text for text in result.warnings)


def test_transforms_that_make_the_label_untrue_say_so(layout: Layout) -> None:
    old = base(layout, "old", "1")
    label = json.dumps(metadata(old.config.rootfs.diff_ids[-1], "run"))
    app(layout, old, label)
    into: dict[str, Any] = {"image": ref(layout, "app"), "target": ref(layout, "r")}

    def told(request: SquashRequest | RechunkRequest) -> bool:
        return any("names layers that the new image does not have" in text for text in run(request).warnings)

    assert told(SquashRequest(**into))
    assert told(RechunkRequest(**into))
    assert not told(SquashRequest(keep=2, **into))
    assert not told(RechunkRequest(keep=2, **into))
