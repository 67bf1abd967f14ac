"""init, new, list, tag, remove, stat, config, insert, raw add-layer: the store changes, stdout stays as umoci's."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.image.documents import AnyManifest
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Layout
from tests.unit.cli.conftest import Ran, Run
from tests.unit.image.images import tar

NOTHING = Ran(0, "", "")


@pytest.fixture
def image(layerfarm: Run, store: Path) -> str:
    """An image without layers, ``store:v1``."""
    assert layerfarm("new", "--image", "store:v1") == NOTHING
    return "store:v1"


def stat(layerfarm: Run, image: str) -> dict[str, Any]:
    done = layerfarm("stat", "--json", "--image", image)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    found: dict[str, Any] = json.loads(done.out)
    return found


def layer_names(store: Path, found: dict[str, Any], number: int = -1) -> list[str]:
    digest = found["manifest"]["blob"]["layers"][number]["digest"].partition(":")[2]
    with tarfile.open(store / "blobs" / "sha256" / digest) as layer:
        return layer.getnames()


def test_init_makes_an_empty_layout(layerfarm: Run, store: Path) -> None:
    assert json.loads((store / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert layerfarm("ls", "--layout", "store") == NOTHING


def test_init_refuses_what_is_there(layerfarm: Run, store: Path) -> None:
    done = layerfarm("init", "--layout", "store")
    assert (done.code, done.out) == (1, "")
    assert done.err == "layerfarm: path exists and is not an empty directory: store\n"


@pytest.mark.parametrize(
    ("args", "made"),
    [
        (["ls", "--layout=store"], []),
        (["stat", "--image=store:v1"], []),
        (["tag", "--image=store:v1", "new"], ["index.lock", "next-index"]),
        (["rm", "--image=store:v1"], ["index.lock", "next-index"]),
    ],
    ids=lambda value: value[0] if value else "none",
)
def test_commands_on_tags_make_only_the_lock_in_the_private_directory(
    layerfarm: Run, image: str, args: list[str], made: list[str]
) -> None:
    """docs/umoci-differences.md; the directory ``next-index`` is empty."""
    layout, private = Path("store"), Path("store/.layerfarm")
    shutil.rmtree(private)
    before = set(layout.rglob("*"))
    assert layerfarm(*args).code == 0
    new = set(layout.rglob("*")) - before
    assert sorted(str(path.relative_to(private)) for path in new - {private}) == made
    assert [path.name for path in new if path.is_file()] == made[:1]


def test_tags_are_given_moved_and_removed(layerfarm: Run, image: str) -> None:
    assert layerfarm("tag", "--image", image, "b") == NOTHING
    assert layerfarm("tag", "a/x", "--image", image) == NOTHING
    assert layerfarm("tag", "--image", image, "b") == NOTHING
    assert layerfarm("ls", "--layout", "store") == layerfarm("list", "--layout", "store") == Ran(0, "a/x\nb\nv1\n", "")
    assert layerfarm("rm", "--image", "store:b") == NOTHING
    assert layerfarm("remove", "--image", "store:never-was") == NOTHING
    assert layerfarm("ls", "--layout", "store").out == "a/x\nv1\n"


def test_stat_shows_artifacts(layerfarm: Run, store: Path) -> None:
    layout = Layout.open(store)
    config = layout.put(b"{}", "application/vnd.oci.empty.v1+json")
    made = layout.put_document(AnyManifest(config=config, artifactType="a/b"), MEDIA_TYPE_MANIFEST)
    layout.tag("sbom", made)
    found = stat(layerfarm, "store:sbom")
    assert list(found) == ["manifest", "config"]
    assert (found["manifest"]["blob"]["artifactType"], found["config"]["blob"]) == ("a/b", {})
    assert "Artifact Type: a/b\n" in layerfarm("stat", "--image", "store:sbom").out
    assert layerfarm("stat", "--image", "store:sbom", "--platform", "linux/amd64").code == 1


def test_verbose_says_what_was_done_on_stderr(layerfarm: Run, image: str) -> None:
    assert layerfarm("--verbose", "tag", "--image", image, "b") == Ran(
        0, "", 'layerfarm: created new tag: "b" -> "v1"\n'
    )
    assert layerfarm("--log=info", "rm", "--image", "store:c").err == "layerfarm: no such tag: c\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tag", "--image", "store:v1", "b d"], "b d"),
        (["new", "--image", "store:-x"], "-x"),
        (["rm", "--image", "store:b d"], "b d"),
        (["tag", "--image", "store:gone", "b"], "tag not found: store:gone"),
        (["stat", "--image", "store:gone"], "gone"),
        (["stat", "--image", "store"], "latest"),
        (["config", "--image", "store:v1", "--tag", "b d"], "b d"),
        (["config", "--image", "store:v1", "--manifest.annotation", "x"], "--manifest.annotation is not NAME=VALUE"),
        (["config", "--image", "store:v1", "--config.env", "x"], "--config.env is not NAME=VALUE"),
        (["ls", "--layout", "nowhere"], "no OCI image layout here: nowhere"),
        (["insert", "--image", "store:v1", "no-such-file", "/x"], "no-such-file"),
        (["raw", "add-layer", "--image", "store:v1", "no-such-file"], "No such file or directory: no-such-file"),
        (["unpack", "--image", "store:v1", "store/index.json/b"], "path exists and is not a directory"),
        (["raw", "unpack", "--image", "store:v1", "no/such/r"], "No such file or directory: no/such/r"),
        (["raw", "runtime-config", "--rootfs=nope", "--image", "store:v1", "x.json"], "nope"),
        (["raw", "runtime-config", "--image", "store:v1", "no/such/dir"], "No such file or directory: no/such/dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_impossible_command_is_one_line_and_changes_nothing(
    layerfarm: Run, store: Path, image: str, args: list[str], message: str
) -> None:
    before = (store / "index.json").read_bytes()
    done = layerfarm(*args)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("layerfarm: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert (store / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no tar at all" * 100, id="text"),
        pytest.param(gzip.compress(tar(("f", b"x"))), id="compressed"),
        pytest.param(tar(("f", b"x" * 2000))[:1000], id="cut"),
        pytest.param(tar((".wh.", b"")), id="invalid whiteout"),
    ],
)
def test_raw_add_layer_tags_no_layer_that_cannot_be_unpacked(
    layerfarm: Run, store: Path, image: str, content: bytes
) -> None:
    before = (store / "index.json").read_bytes()
    Path("layer.tar").write_bytes(content)
    done = layerfarm("raw", "add-layer", "--image", image, "layer.tar")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert (store / "index.json").read_bytes() == before


@pytest.mark.parametrize("text", ["99999999999999", "-99999999999999", "now"])
def test_an_epoch_that_is_no_time_is_refused(
    layerfarm: Run, image: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    Path("tree").mkdir()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    for args in (["build", "--rootfs", "tree", "--image", "store:b"], ["insert", "--image", image, "tree", "/t"]):
        done = layerfarm(*args)
        assert (done.code, done.out) == (2, "") and "SOURCE_DATE_EPOCH" in done.err


def test_an_empty_history_flag_leaves_its_field_out_as_umoci(layerfarm: Run, image: str) -> None:
    layerfarm("config", "--image", image, "--author=Ann", "--history.comment=", "--history.created_by=")
    layerfarm("config", "--image", image, "--history.author=")
    assert [
        {name: entry[name] for name in ("created_by", "author", "comment") if name in entry}
        for entry in stat(layerfarm, image)["config"]["blob"]["history"]
    ] == [{"author": "Ann"}, {"created_by": "layerfarm config"}]


def test_new_is_the_same_image_every_time(layerfarm: Run, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stat(layerfarm, image)
    layerfarm("new", "--image", "store:again")
    assert stat(layerfarm, "store:again")["config"] == first["config"]
    assert "created" not in first["config"]["blob"]
    assert first["history"] == []
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    layerfarm("new", "--image", "store:dated")
    assert stat(layerfarm, "store:dated")["config"]["blob"]["created"] == "1970-01-02T00:00:00Z"


def test_stat_for_people_has_umocis_three_parts(layerfarm: Run, image: str) -> None:
    done = layerfarm("stat", "--image", image)
    assert [line for line in done.out.splitlines() if line.startswith("==")] == [
        "== MANIFEST ==",
        "== CONFIG ==",
        "== HISTORY ==",
    ]


def test_config_sets_every_field(layerfarm: Run, image: str) -> None:
    done = layerfarm(
        "config",
        *("--image", image, "--tag=new", "--config.user", "me:us", "--config.exposedports=80/tcp"),
        *("--config.env", "A=1,2", "--config.env=B==", "--config.entrypoint=/e", "--config.entrypoint", "x y"),
        *("--config.cmd", "-c", "--config.volume=/v", "--config.label", "k=v", "--config.workingdir=/w"),
        *("--config.stopsignal", "SIGINT", "--created=2020-01-02T03:04:05Z", "--author=Ann"),
        *("--platform.os=linux", "--architecture=arm", "--platform.variant=v7", "--manifest.annotation", "a.b=c"),
        *("--history.created_by=test", "--history.comment", "why", "--history.created=2021-01-01T00:00:00+01:00"),
    )
    assert done == NOTHING
    found = stat(layerfarm, "store:new")
    blob = found["config"]["blob"]
    assert blob["config"] == {
        "User": "me:us",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["A=1,2", "B=="],
        "Entrypoint": ["/e", "x y"],
        "Cmd": ["-c"],
        "Volumes": {"/v": {}},
        "Labels": {"k": "v"},
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
    }
    assert [blob[name] for name in ("created", "author", "os", "architecture", "variant")] == [
        *("2020-01-02T03:04:05Z", "Ann", "linux", "arm", "v7")
    ]
    assert found["manifest"]["blob"]["annotations"] == {"a.b": "c"}
    (entry,) = found["history"]
    assert {name: entry[name] for name in ("created", "created_by", "author", "comment", "empty_layer", "layer")} == {
        "created": "2021-01-01T00:00:00+01:00",
        "created_by": "test",
        "author": "Ann",
        "comment": "why",
        "empty_layer": True,
        "layer": None,
    }
    assert stat(layerfarm, image)["history"] == []


def test_config_without_tag_replaces_and_clear_comes_first(layerfarm: Run, image: str) -> None:
    layerfarm("config", "--image", image, "--config.env", "A=1", "--config.label", "l=1", "--no-history")
    layerfarm("config", "--image", image, "--clear", "config.env", "--config.env=B=2", "--no-history")
    found = stat(layerfarm, image)
    assert found["config"]["blob"]["config"] == {"Env": ["B=2"], "Labels": {"l": "1"}}
    assert found["history"] == []


def test_the_epoch_dates_config_and_history_unless_flags_do(
    layerfarm: Run, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    layerfarm("config", "--image", image, "--author=A")
    found = stat(layerfarm, image)
    assert found["config"]["blob"]["created"] == found["history"][0]["created"] == "1970-01-02T00:00:00Z"
    layerfarm("config", "--image", image, "--created=2020-01-01T00:00:00Z", "--history.created=2021-01-01T00:00:00Z")
    found = stat(layerfarm, image)
    assert found["config"]["blob"]["created"] == "2020-01-01T00:00:00Z"
    assert found["history"][1]["created"] == "2021-01-01T00:00:00Z"


def test_insert_adds_a_layer(layerfarm: Run, store: Path, image: str, tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "file").write_text("x")
    assert layerfarm("insert", "--image", image, "--tag", "t", "src", "/opt/app") == NOTHING
    found = stat(layerfarm, "store:t")
    assert layer_names(store, found) == ["opt/app", "opt/app/sub", "opt/app/sub/file"]
    assert [entry["created_by"] for entry in found["history"]] == ["layerfarm insert"]
    assert stat(layerfarm, image)["manifest"]["blob"]["layers"] == []


def test_insert_opaque_and_whiteout(layerfarm: Run, store: Path, image: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert layerfarm("insert", "--opaque", "--image", image, "src", "etc") == NOTHING
    assert "etc/.wh..wh..opq" in layer_names(store, stat(layerfarm, image))
    assert layerfarm("insert", "--image", image, "--whiteout", "/etc/passwd", "--no-history") == NOTHING
    found = stat(layerfarm, image)
    assert layer_names(store, found) == ["etc/.wh.passwd"]
    assert len(found["history"]) == 1


@pytest.mark.parametrize(
    "args",
    [["src"], ["a", "b", "c"], ["--whiteout", "a", "b"], ["--whiteout", "--opaque", "a"], ["", "b"]],
    ids=" ".join,
)
def test_insert_with_the_wrong_paths_is_a_usage_error(layerfarm: Run, image: str, args: list[str]) -> None:
    done = layerfarm("insert", "--image", image, *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("compress", "media_type"), [("none", "tar"), ("gzip", "tar+gzip"), ("zstd", "tar+zstd"), ("auto", "tar+gzip")]
)
def test_raw_add_layer_takes_the_archive_as_it_is(
    layerfarm: Run, store: Path, image: str, tmp_path: Path, compress: str, media_type: str
) -> None:
    import hashlib

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("odd/../name"))
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    assert layerfarm("raw", "add-layer", "--image", image, f"--compress={compress}", "x.tar") == NOTHING
    found = stat(layerfarm, image)
    assert found["manifest"]["blob"]["layers"][0]["mediaType"] == f"application/vnd.oci.image.layer.v1.{media_type}"
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    assert found["config"]["blob"]["rootfs"]["diff_ids"] == [f"sha256:{digest}"]


def test_a_layer_that_no_table_of_contents_describes_is_added_with_a_warning(
    layerfarm: Run, image: str, tmp_path: Path
) -> None:
    (tmp_path / "src").write_text("hello")
    assert layerfarm("insert", "--image", image, "--compress=zstd:chunked", "src", "/a") == NOTHING
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a", "./a"):
            archive.addfile(tarfile.TarInfo(name))
    done = layerfarm("raw", "add-layer", "--image", image, "x.tar")
    low, high = stat(layerfarm, image)["manifest"]["blob"]["layers"]
    reason = "no table of contents, clients pull it whole: several entries of one name: a"
    assert done == Ran(0, "", f"layerfarm: warning: layer {high['digest']}: {reason}\n")
    checksum = "io.github.containers.zstd-chunked.manifest-checksum"
    assert [checksum in layer["annotations"] for layer in (low, high)] == [True, False]


def test_files_that_a_workload_reads_first_are_first_in_a_layer(
    layerfarm: Run, image: str, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "src" / name).write_text(name)
    (tmp_path / "first").write_text("/x/c\n\n/c\n/b\n/x/b\n")
    estargz = ("--compress=estargz", "--prefetch", "first")
    assert layerfarm("insert", "--image", image, *estargz, "src", "/x") == NOTHING
    end = [".prefetch.landmark", "stargz.index.json"]
    names = layer_names(store, stat(layerfarm, image))
    assert (names[:4], names[4:]) == (["x", "x/c", "x/b", end[0]], ["x/a", end[1]])
    assert layerfarm("build", "--rootfs", "src", "--image", "store:v2", *estargz).code == 0
    names = layer_names(store, stat(layerfarm, "store:v2"))
    assert names.index("c") < names.index("b") < names.index(end[0]) < names.index("a")


def test_files_to_prefetch_that_make_no_sense_are_an_error(layerfarm: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("hello")
    (tmp_path / "bad").write_bytes(b"\xff\n")
    for options, message in {
        ("--prefetch", "none"): "No such file",
        ("--prefetch", "bad"): "not UTF-8",
        ("--prefetch", "src", "--compress=zstd"): "only eStargz layers",
    }.items():
        done = layerfarm("insert", "--image", image, *options, "src", "/a")
        assert (done.code != 0, done.out) == (True, "")
        assert message in done.err
    assert stat(layerfarm, image)["manifest"]["blob"]["layers"] == []


def test_raw_runtime_config_without_a_rootfs_takes_root_with_a_warning(
    layerfarm: Run, image: str, tmp_path: Path
) -> None:
    layerfarm("config", "--image", image, "--config.user=bob")
    done = layerfarm("raw", "config", "--image", image, "config.json")
    assert done == Ran(0, "", "layerfarm: warning: user 'bob' cannot be looked up without --rootfs, using root\n")
    assert json.loads((tmp_path / "config.json").read_bytes())["process"]["user"] == {"uid": 0, "gid": 0}
    (tmp_path / "rootfs" / "etc").mkdir(parents=True)
    (tmp_path / "rootfs" / "etc" / "passwd").write_text("bob:x:7:8::/:\n")
    assert layerfarm("raw", "config", "--rootfs=rootfs", "--image", image, "config.json") == NOTHING
    assert json.loads((tmp_path / "config.json").read_bytes())["process"]["user"] == {"uid": 7, "gid": 8}


@pytest.mark.parametrize(
    ("flags", "root"),
    [
        ([], "."),
        (["--rootfs=tree"], "tree"),
        (["--rootfs", "sub/tree/"], "tree"),
        (["--rootfs=."], "."),
        (["--rootfs=/"], "/"),
    ],
    ids=str,
)
def test_C_root_path_of_raw_runtime_config_is_the_last_part_of_the_rootfs_as_umocis(
    layerfarm: Run, image: str, tmp_path: Path, flags: list[str], root: str
) -> None:
    for name in ("tree", "sub/tree"):
        (tmp_path / name).mkdir(parents=True)
    assert layerfarm("raw", "runtime-config", "--image", image, *flags, "config.json") == NOTHING
    assert json.loads((tmp_path / "config.json").read_bytes())["root"] == {"path": root}


@pytest.mark.usefixtures("as_root")
def test_raw_unpack_gives_the_tree_alone(layerfarm: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("hello")
    layerfarm("insert", "--image", image, "src", "/a/b")
    assert layerfarm("raw", "unpack", "--image", image, "rootfs") == NOTHING
    assert (tmp_path / "rootfs" / "a" / "b").read_text() == "hello"
    assert {path.name for path in tmp_path.iterdir()} == {"src", "store", "rootfs"}
    assert layerfarm("raw", "unpack", "--image", image, "rootfs") == NOTHING


def test_raw_mtree_validate_tells_what_differs(layerfarm: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "same").write_text("1")
    (tree / "changed").write_text("1")
    (tree / "gone").write_text("1")
    from layerfarm.jobs.mtree import Output, snapshot, write_tree

    with (tmp_path / "m").open("wb") as out:
        write_tree(snapshot(tree), Output(out))
    assert layerfarm("raw", "mtree-validate", "-f", "m", "-p", "tree") == NOTHING
    (tree / "gone").unlink()
    (tree / "a new one").write_text("")
    (tree / "changed").chmod(0o711)
    done = layerfarm("raw", "mtree-validate", "-f", "m", "-p", "tree", "--umoci-keywords", "-K=device")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[-3:] == [
        r"a\040new\040one: extra",
        "changed: mode differs: 0644 was recorded, it is 0711",
        "gone: missing",
    ]
    done = layerfarm("raw", "mtree-validate", "-f", "m", "-p", "tree", "-k=type,sha256")
    assert done.out.splitlines() == [r"a\040new\040one: extra", "gone: missing"]
    assert layerfarm("raw", "mtree-validate", "-f", "m", "-p", "tree", "-k", "colour").code == 2
