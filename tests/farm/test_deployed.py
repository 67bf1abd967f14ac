"""Two hosts set up by the files of deploy/, word for word: one by its systemd unit, one by its Compose files.

Redis is on a third, with deploy/redis' configuration, over TLS; who submits is on a fourth. Each has a network, a name
and mounts of its own; /srv is the disk that all of them share. While a catalog runs there, what ``layerfarm top``,
Flower and the metrics say is held against what is so.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from certificates import certificates
from dockerfile_parse import DockerfileParser
from ground import stop, until
from hosts import Cable, Host
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from layerfarm.jobs.store import Layout
from layerfarm.worker.security.kernel import die_with_parent
from tests.unit.image.images import image, tar

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PASSWORD = "s3cret-w0rd"
LOGIN = "admin:f1ower"
"""User and password of Flower."""
IMAGES = 6
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """A host whose /etc, /opt, /srv and /var/lib it may write to without anybody else seeing it."""

    def __init__(self, name: str, directory: Path, stack: ExitStack) -> None:
        self.name = name
        self.host = Host(stack, name)
        self.directory = directory / name
        self.directory.mkdir()
        self._stack = stack
        self.sh(f"mount -t tmpfs tmpfs {self.directory}")
        for place in ("etc", "opt", "srv", "var/lib"):
            own = f"{self.directory}/{place}"
            options = f"lowerdir=/{place},upperdir={own}/upper,workdir={own}/work"
            self.sh(f"mkdir -p {own}/upper {own}/work; mount -t overlay -o {options} overlay /{place}")
        # Links, no mount: the checkout itself may lie there.
        self.sh(f"mkdir -p /opt/layerfarm; ln -s {Path(sys.executable).parents[1]}/* /opt/layerfarm/")

    def sh(self, script: str) -> None:
        self.host.run("sh", "-ec", script)

    def bind(self, source: Path, target: str) -> None:
        """Mount ``source``, which all hosts have, at ``target`` here."""
        make = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}); : >{target}"
        self.sh(f"{make}; mount --bind {source} {target}")

    def install(self, target: str, content: str, mode: int = 0o600) -> None:
        """A file of this host alone."""
        subprocess.run(
            [*self.host.enter, "sh", "-ec", f"mkdir -p $(dirname {target}); cat >{target}; chmod {mode:o} {target}"],
            input=content,
            text=True,
            check=True,
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        process = subprocess.Popen(
            [*self.host.enter, *command],
            env={"PATH": SYSTEM, "HOME": "/root"} | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
        self._stack.callback(stop, process)
        return process

    def ask(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Return the output of a command."""
        done = subprocess.run(
            [*self.host.enter, *command],
            env={"PATH": SYSTEM, "HOME": "/root"} | dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, url: str, login: str = "") -> str:
        """The answer of an address; empty if it refuses, or nothing listens."""
        command = ["curl", "--silent", "--fail", "--max-time", "10", *(["--user", login] if login else []), url]
        return subprocess.run([*self.host.enter, *command], capture_output=True, text=True).stdout


class Deployed:
    """The four machines."""

    def __init__(self, directory: Path, stack: ExitStack, program: Callable[[str], str]) -> None:
        self.directory = directory
        self._program = program
        self.shared = directory / "disk"
        (self.shared / "rootfs").mkdir(parents=True)
        (self.shared / "oci").mkdir()
        certificates(directory, "redis", "queue.internal", "DNS:queue.internal")
        self.queue, self.one, self.two, self.client = (
            Machine(name, directory, stack) for name in ("queue", "one", "two", "client")
        )
        self.queue.sh("echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._addresses = []
        for number, machine in enumerate((self.one, self.two, self.client), 1):
            cable = Cable(self.queue.host, machine.host, number)
            self._addresses.append(cable.address)
            machine.sh(f"ip route add default via {cable.address}; echo {cable.address} queue.internal >>/etc/hosts")
        self.environment = self._settings()
        self._start_redis()

    def _settings(self) -> dict[str, str]:
        """Address of the farm for clients: that of the example, with its password."""
        example = (DEPLOY / "systemd/worker.env.example").read_text().replace("CHANGE-ME", PASSWORD)
        self._worker_env = example
        return {"LAYERFARM_FARM": _variables(example)["LAYERFARM_FARM"]}

    def _start_redis(self) -> None:
        """As the drop-in for Debian's unit says, with the lines of redis.conf that a network takes."""
        lines = []
        for line in (DEPLOY / "redis/redis.conf").read_text().splitlines():
            if line.startswith("bind "):
                line = "bind " + " ".join(self._addresses)
            # Settings stand behind a # alone, remarks behind one and a blank.
            lines.append(line[1:] if line.startswith("#") and not line.startswith("# ") else line)
        self.queue.install("/etc/redis/layerfarm.conf", "\n".join(lines))
        acl = (DEPLOY / "redis/users.acl").read_text().replace("CHANGE-ME", PASSWORD)
        self.queue.install("/etc/redis/users.acl", acl)
        for name in ("redis.crt", "redis.key", "ca.crt"):
            self.queue.install(f"/etc/redis/tls/{name}", (self.directory / name).read_text())
        self.queue.sh("rm -rf /var/lib/redis; mkdir /var/lib/redis")
        self._program("redis-server")
        command = _of_unit(DEPLOY / "systemd/redis-server.service.d/layerfarm.conf", "ExecStart")[-1]
        log = self.directory / "redis.log"
        self.queue.start(shlex.split(command), {}, log)
        until(lambda: "Ready to accept connections" in log.read_text())

    def start_by_systemd(self) -> None:
        """The worker on ``one``: installed as docs/operating.md says, started as the unit says."""
        unit = DEPLOY / "systemd/layerfarm-worker@.service"
        self.one.install("/etc/layerfarm/ca.crt", (self.directory / "ca.crt").read_text())
        self.one.install("/etc/layerfarm/worker.env", self._worker_env)
        self.one.install("/etc/layerfarm/worker-1.env", "LAYERFARM_METRICS=:9464\nLAYERFARM_EVENTS=1\n")
        self.one.bind(self.shared / "rootfs", "/srv/rootfs")
        self.one.bind(self.shared / "oci", "/srv/oci")
        environment: dict[str, str] = {}
        for file in _of_unit(unit, "EnvironmentFile"):
            environment |= _variables(self.one.ask(["cat", file.lstrip("-").replace("%i", "1")], {}))
        (capabilities,) = _of_unit(unit, "CapabilityBoundingSet")
        (command,) = _of_unit(unit, "ExecStart")
        held = self._held(name.removeprefix("CAP_") for name in capabilities.split())
        self.one.start([*held, *shlex.split(command)], environment, self.directory / "one.log")

    def start_by_compose(self) -> None:
        """The worker and Flower on ``two``, as Compose would start their containers."""
        given = {
            "PATH": SYSTEM,
            "REDIS_PASSWORD": PASSWORD,
            "LAYERFARM_FARM": self.environment["LAYERFARM_FARM"],
            "LAYERFARM_ROOTS": str(self.shared / "rootfs"),
            "LAYERFARM_STORES": str(self.shared / "oci"),
            "REDIS_CA": str(self.directory / "ca.crt"),
            "FLOWER_BASIC_AUTH": LOGIN,
        }
        files = [f"--file={DEPLOY / name}" for name in ("compose.yaml", "compose.workers.yaml")]
        read = subprocess.run(
            [self._program("docker-compose"), *files, "--profile", "flower", "config"],
            env=given,
            capture_output=True,
            text=True,
            check=True,
        )
        services = YAML(typ="safe").load(read.stdout)["services"]
        worker, flower = services["worker"], services["flower"]
        for volume in worker["volumes"]:
            # docker-compose up to 2.32 keeps the short form, later ones spell it out.
            long = (
                volume if isinstance(volume, dict) else dict(zip(("source", "target"), volume.split(":"), strict=False))
            )
            self.two.bind(Path(long["source"]), long["target"])
        dockerfile = DockerfileParser(path=str(DEPLOY / "Dockerfile"), cache_content=True)
        own = {step["instruction"]: json.loads(step["value"]) for step in dockerfile.structure if _is_list(step)}
        image = {"PATH": f"/opt/layerfarm/bin:{SYSTEM}", "LAYERFARM_METRICS": dockerfile.envs["LAYERFARM_METRICS"]}
        assert worker["user"] == "0:0" and worker["cap_drop"] == ["ALL"]
        self._program(own["ENTRYPOINT"][0])
        self.two.start(
            [*self._held(worker["cap_add"]), *own["ENTRYPOINT"], *own["CMD"]],
            image | worker["environment"],
            self.directory / "two.log",
        )
        self.two.start(
            [*flower["entrypoint"], *flower["command"]], image | flower["environment"], self.directory / "flower.log"
        )

    def _held(self, capabilities: Any) -> list[str]:
        wanted = ",".join(f"+{name.lower()}" for name in capabilities)
        return [
            self._program("setpriv"),
            f"--bounding-set=-all,{wanted}",
            f"--inh-caps=-all,{wanted}",
            "--no-new-privs",
        ]


@pytest.fixture
def deployed(tmp_path: Path, program: Callable[[str], str]) -> Iterator[Deployed]:
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces of networks and mounts")
    with ExitStack() as stack:
        yield Deployed(tmp_path, stack, program)


def test_two_hosts_run_a_catalog_and_top_flower_and_the_metrics_tell_the_truth(deployed: Deployed) -> None:
    client, environment = deployed.client, deployed.environment
    layerfarm = "/opt/layerfarm/bin/layerfarm"
    client.install("/etc/layerfarm/ca.crt", (deployed.directory / "ca.crt").read_text())
    client.bind(deployed.shared / "oci", "/srv/oci")
    _images(deployed.shared / "oci")
    deployed.start_by_systemd()
    deployed.start_by_compose()
    metrics = [f"http://10.77.{number}.2:9464/metrics" for number in (1, 2)]
    flower = "http://10.77.2.2:5555/api"
    until(lambda: all(_samples(client.get(url)).get("layerfarm_farm_workers") == 2 for url in metrics))
    until(lambda: len(json.loads(client.get(f"{flower}/workers?refresh=1", LOGIN) or "{}")) == 2)
    assert client.get(f"{flower}/workers") == ""

    log = deployed.directory / "catalog.log"
    command = [layerfarm, "catalog", "run", "/srv/oci/team.yaml", "--progress=none", "--json"]
    run = client.start(command, environment, log)
    top_saw, hosts_seen, metrics_saw, flower_saw = set(), set(), [], set()
    while run.poll() is None:
        shown = json.loads(client.ask([layerfarm, "top", "--json"], environment))
        top_saw |= {job["id"] for job in shown["newest"] if job["state"] == "running"}
        hosts_seen |= {worker["host"] for worker in shown["workers"]}
        metrics_saw += [_samples(client.get(url)).get("layerfarm_farm_jobs", 0) for url in metrics]
        flower_saw |= _jobs_of(client.get(f"{flower}/tasks", LOGIN))
    assert run.returncode == 0, log.read_text()

    jobs = [json.loads(line) for line in client.ask([layerfarm, "jobs", "ls", "--json"], environment).splitlines()]
    assert [job["state"] for job in jobs] == ["succeeded"] * IMAGES
    ids = {job["id"] for job in jobs}
    assert top_saw and top_saw <= ids
    assert hosts_seen == {"one", "two"}
    assert max(metrics_saw) > 0
    assert flower_saw and flower_saw <= ids
    until(lambda: _jobs_of(client.get(f"{flower}/tasks", LOGIN)) == ids)
    ended = [_samples(client.get(url)) for url in metrics]
    assert sum(samples.get("layerfarm_job_seconds_count", 0) for samples in ended) == IMAGES
    assert all(samples["layerfarm_unit_seconds_count"] > 0 for samples in ended), "one of them did nothing"
    assert [samples["layerfarm_farm_jobs"] for samples in ended] == [0, 0]
    assert json.loads(client.ask([layerfarm, "top", "--json"], environment))["jobs"] == []
    assert len(Layout.open(deployed.shared / "oci/made").tags()) == IMAGES
    everything = "".join(path.read_text() for path in deployed.directory.glob("*.log"))
    assert PASSWORD not in everything


def _images(oci: Path) -> None:
    """Images that share nothing, and take a second or two each; and the catalog of them."""
    rng = random.Random(1)
    words = [rng.randbytes(40) for _ in range(5000)]
    layout = Layout.create(oci / "images")
    for number in range(IMAGES):
        image(layout, [tar(("data", b"".join(rng.choices(words, k=100_000))))], tag=f"v{number}")
    (oci / "team.yaml").write_text(
        "store: work\nsources: [{layout: /srv/oci/images, tags: ['*']}]\n"
        "policies: [{match: '*', do: {transform: recompress, compress: zstd, level: 19}}]\n"
        "destination: {layout: made}\n"
    )


def _jobs_of(tasks: str) -> set[str]:
    """The jobs whose tasks Flower knows."""
    found = (re.search(r"'job': '(\w+)'", task["kwargs"] or "") for task in json.loads(tasks or "{}").values())
    return {job[1] for job in found if job}


def _samples(metrics: str) -> dict[str, float]:
    """The sum of each metric over its labels."""
    found: dict[str, float] = {"layerfarm_farm_jobs": 0.0} if metrics else {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _of_unit(path: Path, key: str) -> list[str]:
    """The values of a key of a unit file, in order; an empty one clears the list, as in systemd."""
    values: list[str] = []
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and name == key:
            values = [*values, value] if value else []
    return values


def _variables(text: str) -> dict[str, str]:
    """The variables of an environment file, as systemd reads it."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def _is_list(step: Mapping[str, str]) -> bool:
    return step["instruction"] in ("ENTRYPOINT", "CMD")
