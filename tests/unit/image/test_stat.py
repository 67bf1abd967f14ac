from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.image.resolve import read_artifact
from layerfarm.jobs.image.stat import artifact_json, artifact_text, human_size, stat_json, stat_text
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout, Platform
from tests.unit.image.images import image, tar

HISTORY = [
    {"created": "2020-01-01T00:00:00Z", "created_by": "one", "author": "me", "comment": "first\tone"},
    {"created_by": "config", "empty_layer": True},
    {"created": "2020-01-02T00:00:00Z", "created_by": "two"},
]


def full(layout: Layout) -> Resolved:
    return image(layout, [tar(("a", b"x")), tar(("b", b"y"))], history=HISTORY, x_unknown={"kept": True})


def test_json_has_the_shape_and_names_of_umoci(layout: Layout) -> None:
    made = full(layout)
    found = stat_json(layout, made)
    assert list(found) == ["manifest", "config", "history"]
    assert found["manifest"]["descriptor"]["digest"] == made.descriptor.digest
    assert found["manifest"]["blob"] == json.loads(layout.read(made.descriptor))
    assert found["config"]["descriptor"]["digest"] == made.manifest.config.digest
    assert found["config"]["blob"]["x_unknown"] == {"kept": True}
    first, empty, second = found["history"]
    assert first == {
        "layer": {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": made.manifest.layers[0].digest,
            "size": made.manifest.layers[0].size,
        },
        "diff_id": made.config.rootfs.diff_ids[0],
        **HISTORY[0],
    }
    assert empty == {"layer": None, "diff_id": "", "created_by": "config", "empty_layer": True}
    assert second["layer"]["digest"] == made.manifest.layers[1].digest


@pytest.mark.parametrize(("config", "blob"), [(b'{"a": 1}', {"blob": {"a": 1}}), (b"\x00 no json", {})])
def test_an_artifact_shows_as_umoci_shows_it(layout: Layout, config: bytes, blob: dict[str, Any]) -> None:
    """Without a history, and with the blob of the config only where that is JSON."""
    of = layout.put(config, "application/x-config")
    plain = {"mediaType": of.media_type, "digest": of.digest, "size": of.size}
    manifest = {"schemaVersion": 2, "artifactType": "a/b", "config": plain, "layers": [], "unknown": 5}
    made = layout.put(json.dumps(manifest).encode(), MEDIA_TYPE_MANIFEST)
    found = read_artifact(layout, made)
    assert found is not None
    assert artifact_json(layout, made, found) == {
        "manifest": {
            "descriptor": {"mediaType": MEDIA_TYPE_MANIFEST, "digest": made.digest, "size": made.size},
            "blob": manifest,
        },
        "config": {"descriptor": plain} | blob,
    }
    text = artifact_text(made, found)
    assert text.startswith('== MANIFEST ==\nSchema Version: 2\nMedia Type: ""\nArtifact Type: a/b\nConfig:\n')
    shown = f"Descriptor:\n\tMedia Type: application/x-config\n\tDigest: {of.digest}\n\tSize: {of.size}B\n"
    assert text.endswith(f"\n\n== CONFIG ==\n{shown}")


def test_text_has_a_table_of_the_history(layout: Layout) -> None:
    made = full(layout)
    text = stat_text(made)
    manifest, config, history = text.split("\n\n")
    assert manifest.startswith(
        "== MANIFEST ==\nSchema Version: 2\nMedia Type: application/vnd.oci.image.manifest.v1+json\n"
    )
    assert config.startswith('== CONFIG ==\nAuthor: ""\nPlatform:\n\tOS: linux\n\tArchitecture: amd64\nImage Config:\n')
    rows = history.splitlines()
    assert rows[0] == "== HISTORY =="
    assert rows[1].split() == ["LAYER", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    size = human_size(made.manifest.layers[0].size)
    start = f"{made.manifest.layers[0].digest} 2020-01-01T00:00:00Z one        {size}"
    assert rows[2].startswith(start)
    assert rows[2].endswith('"first\\tone"')
    assert rows[3].startswith("<none>")
    assert len({row.index(word) for row, word in zip(rows[1:3], ("CREATED BY", "one"), strict=True)}) == 1


def test_text_of_an_image_without_layers_and_history(layout: Layout) -> None:
    assert stat_text(image(layout)).endswith("== HISTORY ==\nLAYER CREATED CREATED BY SIZE COMMENT\n")


def test_history_of_more_layers_than_there_are(layout: Layout) -> None:
    made = image(layout, [tar(("a", b"x"))], history=[{}, {}])
    for call in (lambda: stat_json(layout, made), lambda: stat_text(made)):
        with pytest.raises(MalformedDocument, match="more layers than the image, which has 1"):
            call()


def test_every_field_of_the_config_shows(layout: Layout) -> None:
    section: dict[str, Any] = {
        "User": "bob",
        "Entrypoint": ["/bin/x", "a b"],
        "Cmd": [""],
        "WorkingDir": "/w",
        "Env": ["A=1"],
        "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}, "1,2": {}},
        "Volumes": {"/v": {}},
        "Labels": {"k": "v", "a": ""},
        "ArgsEscaped": True,
    }
    top = {"created": "2020-01-01T00:00:00Z", "author": "A B", "variant": "v8", "os.version": "1", "os.features": ["f"]}
    made = image(layout, config=section, **top)
    shown = stat_text(made).split("\n\n")[1].split("Descriptor:")[0]
    assert shown.splitlines()[1:] == [
        "Created: 2020-01-01T00:00:00Z",
        'Author: "A B"',
        "Platform:",
        "\tOS: linux",
        "\tOS Version: 1",
        "\tOS Features: f",
        "\tArchitecture: amd64 (v8)",
        "Image Config:",
        "\tUser: bob",
        "\tEntrypoint (escaped):",
        "\t\t/bin/x",
        '\t\t"a b"',
        "\tCommand (escaped):",
        '\t\t""',
        "\tWorking Directory: /w",
        "\tEnvironment:",
        "\t\tA=1",
        "\tStop Signal: SIGTERM",
        '\tExposed Ports: "1,2", 80/tcp',
        "\tVolumes: /v",
        "\tLabels:",
        '\t\ta: ""',
        "\t\tk: v",
    ]


def test_a_config_of_an_artifact_that_is_too_large_is_not_read(layout: Layout) -> None:
    config = {"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1 << 40}
    made = layout.put(json.dumps({"schemaVersion": 2, "config": config, "layers": []}).encode(), MEDIA_TYPE_MANIFEST)
    found = read_artifact(layout, made)
    assert found is not None
    assert artifact_json(layout, made, found)["config"] == {"descriptor": config}


def test_only_a_manifest_can_be_an_artifact_to_show(layout: Layout) -> None:
    assert read_artifact(layout, layout.put(b"{}", MEDIA_TYPE_INDEX)) is None
    assert read_artifact(layout, image(layout).descriptor) is None


def test_every_field_of_a_descriptor_shows(layout: Layout) -> None:
    made = image(layout)
    rich = Descriptor(
        mediaType=made.descriptor.media_type,
        digest=made.descriptor.digest,
        size=12_345_678,
        urls=["http://x"],
        annotations={"k": "v"},
        data=base64.b64encode(bytes(range(32, 64)) * 9).decode(),
        artifactType="a/t",
        platform=Platform(os="linux", architecture="arm"),
    )
    manifest = made.manifest.model_copy(update={"artifact_type": "x/y", "subject": rich, "annotations": {"m": "1"}})
    lines = stat_text(Resolved((made.descriptor,), manifest, made.config)).splitlines()
    at = lines.index("Subject:")
    assert lines[at + 1 : at + 15] == [
        "\tDescriptor:",
        f"\t\tMedia Type: {made.descriptor.media_type}",
        "\t\tArtifact Type: a/t",
        f"\t\tDigest: {made.descriptor.digest}",
        "\t\tSize: 12.35MB",
        "\t\tPlatform:",
        "\t\t\tOS: linux",
        "\t\t\tArchitecture: arm",
        "\t\tURLs:",
        "\t\t\thttp://x",
        "\t\tAnnotations:",
        "\t\t\tk: v",
        "\t\tData: (288 bytes)",
        "\t\t\t0000: 2021 2223 2425 2627 2829 2a2b 2c2d 2e2f   !\"#$%&'()*+,-./",
    ]
    assert "\t\t\t....  (extra 32 bytes omitted)" in lines
    short = manifest.model_copy(update={"subject": rich.model_copy(update={"data": base64.b64encode(b"abc").decode()})})
    text = stat_text(Resolved((made.descriptor,), short, made.config))
    assert "\t\t\t0000: 6162 63" in text and "omitted" not in text
    assert "Artifact Type: x/y" in lines
    assert lines[lines.index("Annotations:") + 1] == "\tm: 1"


def test_texts_of_the_image_cannot_move_the_cursor(layout: Layout) -> None:
    evil = '\x1b[2J\r\n\u202e"\\'
    made = image(layout, config={"User": evil, "Env": [evil]}, history=[{"empty_layer": True, "created_by": evil}])
    text = stat_text(made)
    assert not any(character in text for character in "\x1b\r\u202e")
    assert '\\x1b[2J\\r\\n\\u202e\\"\\\\' in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (143, "143B"),
        (999, "999B"),
        (1000, "1kB"),
        (49_250_000, "49.25MB"),
        (10**15, "1PB"),
        (10**19, "1e+04PB"),
    ],
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text
