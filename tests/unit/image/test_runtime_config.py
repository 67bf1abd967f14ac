from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import ImageConfigError
from layerfarm.jobs.image.bundle import BundleIdMapping, MapOptions
from layerfarm.jobs.image.documents import ImageConfig
from layerfarm.jobs.image.runtime_config import Volumes, encode_runtime_config, make_rootless, runtime_config
from layerfarm.jobs.image.users import User

ROW = [BundleIdMapping(containerID=0, hostID=1000, size=10)]


ROOT = User()
PLAIN = MapOptions()


def spec(
    section: dict[str, Any] | None = None,
    user: User = ROOT,
    maps: MapOptions = PLAIN,
    volumes: Volumes = "tmpfs",
    **top: Any,
) -> dict[str, Any]:
    document = {"architecture": "amd64", "os": "linux", "config": section, "rootfs": {"type": "layers", "diff_ids": []}}
    return runtime_config(ImageConfig.model_validate(document | top), user, maps, volumes)


def test_C_image_for_another_system_is_refused() -> None:
    for system in ("windows", None):
        with pytest.raises(ImageConfigError, match="linux"):
            spec(os=system)


def test_C_user_becomes_the_process_user() -> None:
    assert spec(user=User(5, 6, (7, 8)))["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    assert spec(user=User(5, 6))["process"]["user"] == {"uid": 5, "gid": 6}


@pytest.mark.parametrize(
    ("section", "args"),
    [
        (None, ["sh"]),
        ({"Entrypoint": [], "Cmd": []}, ["sh"]),
        ({"Entrypoint": ["a", "b"]}, ["a", "b"]),
        ({"Cmd": ["c"]}, ["c"]),
        ({"Entrypoint": ["a"], "Cmd": ["c", ""]}, ["a", "c", ""]),
    ],
)
def test_C_args_are_entrypoint_and_cmd(section: dict[str, Any] | None, args: list[str]) -> None:
    assert spec(section)["process"]["args"] == args


def test_C_env_overrides_in_place_and_the_later_of_two_wins() -> None:
    env = spec({"Env": ["A=1", "PATH=/x", "B=", "A=2", "C=x=y"]})["process"]["env"]
    assert env == ["PATH=/x", "TERM=xterm", "A=2", "B=", "C=x=y"]


@pytest.mark.parametrize("entry", ["NOVALUE", "=x", "", "A=\0", "A\0=x"])
def test_C_env_that_is_no_variable_is_an_error(entry: str) -> None:
    with pytest.raises(ImageConfigError):
        spec({"Env": [entry]})


def test_C_home_of_the_image_wins_over_that_of_passwd() -> None:
    """umoci 0.4.7 overwrites it (#652)."""
    assert "HOME=/set" in spec({"Env": ["HOME=/set"]}, User(home="/home/bob"))["process"]["env"]
    assert "HOME=/home/bob" in spec(user=User(home="/home/bob"))["process"]["env"]
    assert not any(entry.startswith("HOME=") for entry in spec()["process"]["env"])


def test_C_working_directory() -> None:
    assert spec({"WorkingDir": "/srv//x"})["process"]["cwd"] == "/srv//x"
    assert spec({"WorkingDir": ""})["process"]["cwd"] == "/"
    with pytest.raises(ImageConfigError):
        spec({"WorkingDir": "srv"})


def test_C_annotations_come_from_the_image_and_labels_win() -> None:
    section = {
        "Labels": {"org.opencontainers.image.author": "label", "mine": "x"},
        "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "StopSignal": "SIGUSR1",
    }
    found = spec(section, author="field", created="2020-01-01T00:00:00Z", variant="v8", architecture="arm64")
    assert found["annotations"] == {
        "mine": "x",
        "org.opencontainers.image.architecture": "arm64",
        "org.opencontainers.image.author": "label",
        "org.opencontainers.image.created": "2020-01-01T00:00:00Z",
        "org.opencontainers.image.exposedPorts": "443/tcp,80/tcp",
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.stopSignal": "SIGUSR1",
        "org.opencontainers.image.variant": "v8",
    }


def test_C_values_missing_from_the_image_are_no_annotations() -> None:
    assert spec()["annotations"] == {
        "org.opencontainers.image.architecture": "amd64",
        "org.opencontainers.image.os": "linux",
    }


def test_C_mounts_are_those_of_umoci() -> None:
    places = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
    assert [mount["destination"] for mount in spec()["mounts"]] == places


def test_C_volumes_are_tmpfs_in_sorted_order_or_nothing() -> None:
    section = {"Volumes": {"/z": {}, "/a": {}}}
    mounts = spec(section)["mounts"][7:]
    assert [mount["destination"] for mount in mounts] == ["/a", "/z"]
    assert mounts[0] == {
        "destination": "/a",
        "type": "tmpfs",
        "source": "none",
        "options": ["rw", "nosuid", "nodev", "noexec", "relatime"],
    }
    assert spec(section, volumes="none")["mounts"] == spec()["mounts"]


def test_C_id_maps_add_a_user_namespace() -> None:
    linux = spec(maps=MapOptions(uid_mappings=ROW, gid_mappings=ROW))["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 10}]
    assert linux["namespaces"][-1] == {"type": "user"}
    assert not any(namespace["type"] == "user" for namespace in spec()["linux"]["namespaces"])


@pytest.mark.parametrize("has_resolv_conf", [True, False])
def test_C_rootless_conversion(tmp_path: Path, has_resolv_conf: bool) -> None:
    """umoci converts the mounts only on a host that has /etc/resolv.conf."""
    resolv_conf = tmp_path / "resolv.conf"
    if has_resolv_conf:
        resolv_conf.touch()
    found = spec(user=User(0, 0, (10,)), maps=MapOptions(uid_mappings=ROW, gid_mappings=ROW))
    make_rootless(found, resolv_conf)
    assert found["process"]["user"] == {"uid": 0, "gid": 0}
    assert "resources" not in found["linux"]
    assert [n["type"] for n in found["linux"]["namespaces"]] == ["cgroup", "pid", "ipc", "uts", "mount", "user"]
    places = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"]
    assert [mount["destination"] for mount in found["mounts"]] == places + ["/etc/resolv.conf"] * has_resolv_conf
    assert found["mounts"][5] == {
        "destination": "/sys",
        "type": "bind",
        "source": "/sys",
        "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
    }
    assert not any(o.startswith(("uid=", "gid=")) for mount in found["mounts"] for o in mount.get("options", []))
    if has_resolv_conf:
        assert found["mounts"][6]["options"][:2] == ["rbind", "ro"]


def test_C_rootless_keeps_mounts_whose_path_only_begins_like_sys() -> None:
    found = spec({"Volumes": {"/sys/x": {}, "/sysadmin": {}, "/x/../sys/y": {}}}, maps=MapOptions(rootless=True))
    places = [mount["destination"] for mount in found["mounts"]]
    assert "/sysadmin" in places
    assert "/sys/x" not in places
    assert "/x/../sys/y" not in places


def test_one_spec_does_not_change_the_next() -> None:
    before = json.dumps(spec())
    make_rootless(spec())
    spec({"Volumes": {"/a": {}}})["mounts"][0]["options"] = ["changed"]
    assert json.dumps(spec()) == before


def test_encoded_is_indented_by_tabs_and_is_valid_utf_8_whatever_the_names() -> None:
    raw = encode_runtime_config(spec({"Env": ["A=ä"]}, User(home="/b\udcff")))
    assert raw.startswith(b'{\n\t"ociVersion"')
    assert raw.endswith(b"}\n")
    assert "A=ä" in json.loads(raw.decode())["process"]["env"]
