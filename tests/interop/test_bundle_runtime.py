"""config.json against umoci's, field by field, and in front of the runtimes themselves."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.compress import Codec, Compression
from layerfarm.jobs.image import UnpackOptions, append_layer, pack_layer, resolve, unpack_manifest, write_image
from layerfarm.jobs.image.mutate import ConfigChanges, configure, new_image
from layerfarm.jobs.layer import IdMap, generate_layer
from layerfarm.jobs.mtree import compare, snapshot
from layerfarm.jobs.store import Layout
from tests import crun
from tests.interop.conftest import Run
from tests.unit.image.images import tar

CREATED = "2020-01-02T03:04:05Z"
PASSWD = b"root:x:0:0::/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/sh\n"
GROUP = b"root:x:0:\nwheel:x:10:bob\nusers:x:100:\nextra:x:2000:bob\n"

# Intended differences from umoci 0.4.7, each with its reason.
INTENDED: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    # The spec whose fields are used; umoci names the one that it was linked with.
    "ociVersion": lambda ours, theirs: (ours["ociVersion"], theirs["ociVersion"]) == ("1.0.2", "1.0.0"),
    "hostname": lambda ours, theirs: (ours["hostname"], theirs["hostname"]) == ("layerfarm", "umoci-default"),
}


def make(tmp_path: Path, changes: ConfigChanges) -> Layout:
    layout = Layout.create(tmp_path / "store")
    layer = pack_layer(
        layout, [tar(("etc", None), ("etc/passwd", PASSWD), ("etc/group", GROUP))], Codec(Compression.GZIP)
    )
    base = append_layer(layout, new_image(layout, CREATED), layer, None)
    layout.tag("t", configure(layout, base, changes, None).path[0])
    return layout


def both(
    layout: Layout, tmp_path: Path, run: Run, *flags: str, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    run("umoci", "unpack", *flags, "--image", f"{layout.path}:t", "theirs")
    unpack_manifest(layout, tmp_path / "ours", resolve(layout, "t"), UnpackOptions(**options))
    raw = [(tmp_path / name / "config.json").read_text() for name in ("ours", "theirs")]
    assert all(text.startswith('{\n\t"ociVersion": "') for text in raw)
    mine, theirs = map(json.loads, raw)
    assert list(mine) == list(theirs), "fields in another order"
    return mine, theirs


def without_intended(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    for name, holds in INTENDED.items():
        assert holds(ours, theirs), name
        del ours[name], theirs[name]
    # umoci has a cgroup namespace since 0.5.0.
    assert ours["linux"]["namespaces"].pop(0) == {"type": "cgroup"}
    assert {"type": "cgroup"} not in theirs["linux"]["namespaces"]
    # umoci 0.4.7 also says what the image does not: author, ports and signal of "" are annotations there.
    theirs["annotations"] = {name: value for name, value in theirs["annotations"].items() if value}
    # umoci 0.4.7 orders volumes at random, and so the mounts.
    for spec in (ours, theirs):
        spec["mounts"][7:] = sorted(spec["mounts"][7:], key=lambda mount: str(mount["destination"]))
    return ours, theirs


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(ConfigChanges(author="a"), id="plain"),
        pytest.param(
            ConfigChanges(
                author="a",
                env=["A=1", "PATH=/x", "B="],
                entrypoint=["/e"],
                cmd=["c", "d e"],
                volumes=["/v2", "/v1"],
                exposed_ports=["80/tcp", "443/tcp"],
                labels=["b=2", "a=<&>"],
                working_dir="/srv",
                stop_signal="SIGUSR1",
            ),
            id="full",
        ),
        *(
            pytest.param(ConfigChanges(author="a", user=user), id=f"user {user}")
            for user in ("0", "bob", "bob:", "1000", "bob:wheel", "1000:10", "55", "55:66", ":wheel", "bob:users:x")
        ),
    ],
)
def test_config_json_is_that_of_umoci_except_the_intended_differences(
    tmp_path: Path, run: Run, changes: ConfigChanges
) -> None:
    ours, theirs = without_intended(*both(make(tmp_path, changes), tmp_path, run))
    assert ours == theirs


@pytest.mark.usefixtures("as_root")
def test_config_json_with_id_maps_is_that_of_umoci(tmp_path: Path, run: Run) -> None:
    ours, theirs = without_intended(
        *both(
            make(tmp_path, ConfigChanges(author="a")),
            tmp_path,
            run,
            "--uid-map=0:1000:100",
            "--gid-map=0:2000:100",
            uid_map=IdMap.of((0, 1000, 100)),
            gid_map=IdMap.of((0, 2000, 100)),
        )
    )
    assert ours["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 100}]
    assert ours == theirs
    mine, yours = (json.loads((tmp_path / side / "umoci.json").read_bytes()) for side in ("ours", "theirs"))
    assert mine == {key: value for key, value in yours.items() if key != "whiteout_mode"}


@pytest.mark.usefixtures("as_root")
def test_home_of_the_image_wins_where_umoci_0_4_7_overwrites_it(tmp_path: Path, run: Run) -> None:
    changes = ConfigChanges(author="a", user="bob", env=["HOME=/set"])
    ours, theirs = both(make(tmp_path, changes), tmp_path, run)
    assert "HOME=/set" in ours["process"]["env"]
    assert "HOME=/home/bob" in theirs["process"]["env"]


@pytest.mark.usefixtures("as_root")
def test_labels_win_and_unset_fields_are_left_out_where_umoci_0_4_7_does_neither(tmp_path: Path, run: Run) -> None:
    label = "org.opencontainers.image.author"
    layout = make(tmp_path, ConfigChanges(labels=[f"{label}=label"]))
    image = resolve(layout, "t")
    bare = image.config.model_copy(update={"created": None})
    layout.tag("t", write_image(layout, image.path, image.manifest, bare).path[0])
    ours, theirs = both(layout, tmp_path, run)
    assert ours["annotations"][label] == "label"
    assert theirs["annotations"][label] == ""
    created = "org.opencontainers.image.created"
    assert created not in ours["annotations"]
    assert theirs["annotations"][created] == "0001-01-01T00:00:00Z"


# --- the runtimes --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def debian_layout(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout.create(tmp_path_factory.mktemp("runtime") / "store")
    layer = pack_layer(
        layout, generate_layer(debian, compare([], snapshot(debian))), Codec(Compression.GZIP, threads=2)
    )
    layout.tag("base", append_layer(layout, new_image(layout, CREATED), layer, None).path[0])
    return layout


def start(runtime: str, bundle: Path, name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the container of a bundle to its end."""
    is_crun = Path(runtime).name == "crun"
    flags = crun.FLAGS if is_crun else ()
    command = [runtime, *flags, "--root", str(tmp_path / "state"), "run", "--bundle", str(bundle), name]
    if is_crun:
        command = crun.with_cgroups(command)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def prepare(layout: Layout, bundle: Path, changes: ConfigChanges) -> Path:
    image = configure(layout, resolve(layout, "base"), changes, None)
    unpack_manifest(layout, bundle, image)
    # The only change: tests have no terminal to give to the container.
    config = bundle / "config.json"
    text = config.read_text()
    assert text.count('"terminal": true') == 1
    config.write_text(text.replace('"terminal": true', '"terminal": false'))
    return bundle


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_runtime_runs_true_in_our_bundle(
    program: Callable[[str], str], debian_layout: Layout, tmp_path: Path, runtime: str
) -> None:
    bundle = prepare(debian_layout, tmp_path / "bundle", ConfigChanges(cmd=["/bin/true"]))
    done = start(program(runtime), bundle, f"layerfarm-true-{os.getpid()}", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_container_sees_what_the_image_config_says(
    program: Callable[[str], str], debian_layout: Layout, tmp_path: Path, runtime: str
) -> None:
    changes = ConfigChanges(
        user="games:nogroup",
        env=["GREETING=hello"],
        entrypoint=["/bin/sh", "-c"],
        cmd=['id -u; id -g; pwd; hostname; echo "$GREETING $HOME"; ls -A /scratch; exit 7'],
        working_dir="/usr/lib",
        volumes=["/scratch"],
    )
    bundle = prepare(debian_layout, tmp_path / "bundle", changes)
    done = start(program(runtime), bundle, f"layerfarm-config-{os.getpid()}", tmp_path)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == ["5", "65534", "/usr/lib", "layerfarm", "hello /usr/games"]
