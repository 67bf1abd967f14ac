"""The network among machines: a switch that forwards frames between QEMU's datagram sockets, and can be parted."""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import threading
from pathlib import Path
from typing import Final

_MOST: Final = 16
"""Machines."""
_FRAMES: Final = "512"
"""Frames that wait in a socket. Linux' default is 10, with which a card of QEMU 7.2 stuck after 10 minutes of load."""
_NEW_NETWORK: Final = 0x40000000
"""CLONE_NEWNET of sched.h; Python has it since 3.12."""


class Network:
    """A switch in a thread. Machine N has the address ``10.77.0.N`` and reaches all others unless they are parted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: dict[int, socket.socket] = {}
        self._parted: set[frozenset[int]] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._bound = threading.Event()
        threading.Thread(target=self._forward, daemon=True).start()
        assert self._bound.wait(60)

    def plug(self, number: int) -> list[str]:
        """QEMU's options for the card of machine ``number``."""
        ours, theirs = self._path("switch", number), self._path("card", number)
        theirs.unlink(missing_ok=True)
        ends = f"local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
        card = f"virtio-net-pci,netdev=net,mac=52:54:00:77:00:{number:02x}"
        return ["-netdev", f"dgram,id=net,{ends}", "-device", card]

    def part(self, one: int, other: int) -> None:
        """No frame goes between the two any more, in either direction."""
        self._parted.add(frozenset((one, other)))

    def heal(self) -> None:
        """All hear all again."""
        self._parted.clear()

    def close(self) -> None:
        """End the switch."""
        os.write(self._woken, b"x")

    def _path(self, end: str, number: int) -> Path:
        return self._directory / f"{end}-{number}"

    def _bind(self) -> None:
        """Bind the ports; this thread is in a network namespace of its own, where the limit of frames is its own."""
        assert ctypes.CDLL(None).unshare(_NEW_NETWORK) == 0
        Path("/proc/sys/net/unix/max_dgram_qlen").write_text(_FRAMES)
        for number in range(1, _MOST + 1):
            port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            port.setblocking(False)
            port.bind(str(self._path("switch", number)))
            self._ports[number] = port
            self._selector.register(port, selectors.EVENT_READ, number)
        self._bound.set()

    def _forward(self) -> None:
        self._bind()
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._wake:
                    return
                for _ in range(64):
                    try:
                        frame = self._ports[key.data].recv(1 << 16)
                    except BlockingIOError:
                        break
                    self._send(key.data, frame)

    def _send(self, sender: int, frame: bytes) -> None:
        for number, port in list(self._ports.items()):
            if number != sender and frozenset((number, sender)) not in self._parted:
                try:
                    port.sendto(frame, str(self._path("card", number)))
                except OSError:
                    continue  # Off, or its queue is full: a frame that is lost, as on any wire.
