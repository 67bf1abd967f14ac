"""deploy/compose.yaml: what a Compose client makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from layerfarm.worker.cli.flags import DurationType
from layerfarm.worker.settings import Settings
from tests.docs.commands import refusal


@pytest.fixture
def services(deploy: Path, program: Callable[[str], str]) -> dict[str, Any]:
    """The services after the client has read the file, with everything merged and filled in."""
    done = subprocess.run(
        [
            program("docker-compose"),
            "--profile",
            "flower",
            "--profile",
            "catalog",
            "-f",
            deploy / "compose.yaml",
            "config",
        ],
        env={"PATH": "/usr/bin:/bin", "REDIS_PASSWORD": "pw", "FLOWER_BASIC_AUTH": "a:b"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = YAML(typ="safe").load(done.stdout)
    return found["services"]


def test_a_client_reads_it_and_every_service_is_bounded_and_watched(services: dict[str, Any], deploy: Path) -> None:
    assert set(services) == {"redis", "worker", "flower", "catalog"}
    for name, service in services.items():
        assert service["mem_limit"] and service["restart"] == "unless-stopped", name
    assert all("healthcheck" in services[name] for name in ("redis", "flower", "catalog"))
    # The worker's is the image's own.
    assert "HEALTHCHECK" in (deploy / "Dockerfile").read_text()


def test_no_password_means_no_farm(deploy: Path, program: Callable[[str], str]) -> None:
    done = subprocess.run(
        [program("docker-compose"), "-f", deploy / "compose.yaml", "config", "-q"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "REDIS_PASSWORD" in done.stderr


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    for service in services.values():
        for port in service.get("ports", []):
            # docker-compose up to 2.32 keeps the short form, later ones spell it out.
            assert (port["host_ip"] if isinstance(port, dict) else port.partition(":")[0]) == "127.0.0.1"


def test_the_worker_drains_before_it_is_killed_and_has_the_rights_of_the_unit(
    services: dict[str, Any], deploy: Path
) -> None:
    worker = services["worker"]
    grace = DurationType().convert(worker["stop_grace_period"], None, None)
    assert grace >= float(worker["environment"]["LAYERFARM_DRAIN"]) + 10
    unit = (deploy / "systemd/layerfarm-worker@.service").read_text()
    bounding = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    assert {f"CAP_{name}" for name in worker["cap_add"]} == set(bounding.partition("=")[2].split())


def test_the_server_of_a_catalog_has_no_privilege_and_time_for_an_image(services: dict[str, Any]) -> None:
    catalog = services["catalog"]
    assert catalog["cap_drop"] == ["ALL"] and "cap_add" not in catalog
    assert DurationType().convert(catalog["stop_grace_period"], None, None) >= 300
    assert refusal(catalog["command"]) == ""


def test_variables_are_settings(services: dict[str, Any]) -> None:
    keys = {"class" if name == "traffic" else name for name in Settings.model_fields}
    for name, service in services.items():
        given = {v.removeprefix("LAYERFARM_").lower() for v in service["environment"] if v.startswith("LAYERFARM_")}
        assert given <= keys or name == "redis"
