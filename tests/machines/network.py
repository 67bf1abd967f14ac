"""The network among machines: a switch that forwards frames between QEMU's datagram sockets, and can be parted."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from pathlib import Path


class Network:
    """A switch in a thread. Machine N has the address ``10.77.0.N`` and reaches all others unless they are parted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: dict[int, socket.socket] = {}
        self._parted: set[frozenset[int]] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        threading.Thread(target=self._forward, daemon=True).start()

    def plug(self, number: int) -> list[str]:
        """QEMU's options for the card of machine ``number``."""
        ours, theirs = self._path("switch", number), self._path("card", number)
        if number not in self._ports:
            port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            port.setblocking(False)
            port.bind(str(ours))
            self._ports[number] = port
            self._selector.register(port, selectors.EVENT_READ, number)
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

    def _forward(self) -> None:
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
