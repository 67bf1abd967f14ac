"""Hosts with a network of their own, on one machine: network namespaces, each with a cable to the one of Redis.

A host may have a name and mounts of its own, too.

A namespace lives as long as the process that holds it open, so nothing is left of one whatever happens to the tests.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from ground import until

from layerfarm.worker.security.kernel import die_with_parent


class Host:
    """One network namespace; with a ``name`` also one of names and one of mounts."""

    def __init__(self, stack: ExitStack, name: str = "") -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root: network namespaces")
        self._kinds = ["--net", "--uts", "--mount"] if name else ["--net"]
        parent = os.getpid()
        self._holder = subprocess.Popen(
            ["unshare", *self._kinds, "sleep", "infinity"], preexec_fn=lambda: die_with_parent(parent)
        )
        stack.callback(self._end)
        # Only then is what is mounted there its own affair.
        until(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n")
        self.run("ip", "link", "set", "lo", "up")
        if name:
            self.run("hostname", name)

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """Prefix of a command that runs on this host."""
        return ["nsenter", "--target", str(self.pid), *self._kinds]

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], check=True)

    def _end(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Cable:
    """The connection of a host to the one of Redis, which is ``hub``."""

    def __init__(self, hub: Host, host: Host, number: int) -> None:
        self._hub = hub
        self._name = f"port{number}"
        self.address = f"10.77.{number}.1"
        """The address of the hub as the host sees it."""
        ends = ("name", self._name, "netns", str(hub.pid)), ("name", "eth0", "netns", str(host.pid))
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        for end, name, address in ((hub, self._name, self.address), (host, "eth0", f"10.77.{number}.2")):
            end.run("ip", "address", "add", f"{address}/24", "dev", name)
            end.run("ip", "link", "set", name, "up")

    def cut(self) -> None:
        """Packets are dropped without an error."""
        self._hub.run("ip", "link", "set", self._name, "down")

    def repair(self) -> None:
        self._hub.run("ip", "link", "set", self._name, "up")
