"""Machines: boot, run commands, cut the power, boot again."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.machines.image import Image, program, system
from tests.machines.network import Network

QEMU: Final = "qemu-system-x86_64"
BLOCK: Final = 4096
"""Bytes of a disk's sector."""
_COMMAND: Final = 900.0
"""Seconds for a command; it takes a few where the machine is not busy."""
_BOOT: Final = 600.0
"""Seconds until the agent has to answer, on a machine that is busy."""


class Disk:
    """A disk whose unflushed writes are lost with its machine's power, if it is ``volatile``."""

    def __init__(self, directory: Path, name: str, size: int, seed: int, *, volatile: bool) -> None:
        self.socket = directory / f"{name}.nbd"
        mode = "volatile" if volatile else "kept"
        command = [
            sys.executable,
            "-m",
            "tests.machines.disk",
            self.socket,
            directory / f"{name}.raw",
            size,
            seed,
            mode,
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen([str(word) for word in command], text=True, **pipes)
        self._expect("ready")

    def image(self, path: Path) -> None:
        """Write to ``path`` what a power cut at this moment would leave; the machine goes on."""
        assert self._server.stdin
        print(path, file=self._server.stdin, flush=True)
        self._expect("kept")

    def _expect(self, answer: str) -> None:
        assert self._server.stdout
        said = self._server.stdout.readline()
        assert said == f"{answer}\n", f"{self.socket.name}: {said}"

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()


class Ended(NamedTuple):
    """Exit code and output of a command. None: power was cut first."""

    code: int | None
    text: str


class Command:
    """A command that runs on a machine."""

    def __init__(self) -> None:
        self.answers: queue.Queue[dict[str, object]] = queue.Queue()

    def lines(self, timeout: float = _COMMAND) -> Iterator[str]:
        """Yield its output, as it comes, until it ends or power is cut."""
        while True:
            answer = self.answers.get(timeout=timeout)
            if "line" not in answer:
                self._code = answer.get("code")
                return
            yield str(answer["line"])

    @property
    def over(self) -> bool:
        """It has ended, or power was cut; :meth:`lines` may still have output."""
        return any("line" not in answer for answer in list(self.answers.queue))

    def lines_so_far(self) -> Iterator[str]:
        """Yield what has come and was not yielded, without waiting; not beyond its end."""
        while not self.answers.empty() and "line" in self.answers.queue[0]:
            yield str(self.answers.get()["line"])

    def end(self, timeout: float = _COMMAND) -> Ended:
        """Wait for it."""
        text = "\n".join(self.lines(timeout))
        assert self._code is None or isinstance(self._code, int)
        return Ended(self._code, text)


class Machine:
    """One machine; off until :meth:`boot`."""

    def __init__(self, directory: Path, name: str, number: int, image: Image, code: Path, network: Network) -> None:
        self.name, self.number = name, number
        self.address = f"10.77.0.{number}"
        self.disks: list[Disk] = []
        self.images: list[Path] = []
        """Files that the next boot brings as further disks, after ``disks``."""
        self.memory = 512
        self._directory, self._image, self._code, self._network = directory, image, code, network
        self._overlay = directory / f"{name}.qcow2"
        self._console = directory / f"{name}.log"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._commands: dict[int, Command] = {}
        self._count = 0
        base = ["-b", str(image.disk), "-F", "raw", str(self._overlay)]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base], check=True)

    @property
    def on(self) -> bool:
        return self._qemu is not None

    def boot(self, *, clock: str = "") -> None:
        """Power on, and wait for the agent.

        Parameters:
            clock: what the machine's clock says, for one that is wrong; default: the host's time.
        """
        path = self._directory / f"{self.name}.sock"
        path.unlink(missing_ok=True)
        drives = [("system", f"qcow2,file.driver=file,file.filename={self._overlay},file.locking=off")]
        drives += [("code", f"raw,read-only=on,file.driver=file,file.filename={self._code},file.locking=off")]
        drives += [
            (f"disk{place}", f"raw,file.driver=nbd,file.server.type=unix,file.server.path={disk.socket}")
            for place, disk in enumerate(self.disks)
        ]
        drives += [
            (f"disk{place}", f"raw,file.driver=file,file.filename={file},file.locking=off")
            for place, file in enumerate(self.images, len(self.disks))
        ]
        command = [QEMU, "-accel", "tcg", "-cpu", "max", "-m", str(self.memory), "-nodefaults", "-display", "none"]
        command += ["-no-reboot", "-kernel", str(self._image.kernel), "-append", self._command_line()]
        command += ["-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"]
        command += ["-chardev", f"socket,id=agent,path={path},server=on,wait=off", "-device", "virtio-serial-pci"]
        command += ["-device", "virtserialport,chardev=agent,name=agent"]
        for name, options in drives:
            command += ["-blockdev", f"driver={options},node-name={name}"]
        command += ["-device", "nvme,drive=system,serial=system"]
        for place in range(len(self.disks) + len(self.images)):
            # Not NVMe: on QEMU's 7.2, ext4 on a volatile disk lost what fsync had acknowledged, with FUA writes.
            sectors = f"logical_block_size={BLOCK},physical_block_size={BLOCK}"
            command += ["-device", f"virtio-blk-pci,drive=disk{place},serial=disk{place},{sectors}"]
        command += ["-device", "virtio-blk-pci,drive=code"]  # the last one: Linux names the others from vda
        command += self._network.plug(self.number)
        command += ["-rtc", f"base={clock}"] if clock else []
        self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._connect(path)

    def start(self, command: str, stdin: str = "") -> Command:
        """Run a shell command on the machine."""
        assert self._port is not None, f"{self.name} is off"
        self._count += 1
        running = self._commands[self._count] = Command()
        self._port.sendall((json.dumps({"id": self._count, "command": command, "stdin": stdin}) + "\n").encode())
        return running

    def run(self, command: str, stdin: str = "", timeout: float = _COMMAND) -> Ended:
        """The same, to its end."""
        return self.start(command, stdin).end(timeout)

    def check(self, command: str, stdin: str = "", timeout: float = _COMMAND) -> str:
        """The same; it has to succeed. What it printed."""
        ended = self.run(command, stdin, timeout)
        assert ended.code == 0, f"{self.name}: {command}: {ended.code}: {ended.text[-3000:]}"
        return ended.text

    def cut(self) -> None:
        """Cut the power: nothing is written any more; commands that ran end without a code."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._port is not None:
            self._port.close()
            self._port = None

    def pause(self) -> None:
        """Stop all processors, as a host that is overcommitted does."""
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGCONT)

    def console(self) -> str:
        """Console output since the last boot."""
        return self._console.read_text(errors="replace")

    def _command_line(self) -> str:
        names = f"machine.name={self.name} machine.number={self.number}"
        # On a busy host the emulated disk is late, and the kernel must not give it up.
        patient = "nvme_core.io_timeout=3600 nvme_core.admin_timeout=3600 no_timer_check"
        return f"console=ttyS0 root=/dev/nvme0n1 rw quiet panic=-1 net.ifnames=0 mitigations=off {patient} {names}"

    def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + _BOOT
        port = socket.socket(socket.AF_UNIX)
        while True:
            try:
                port.connect(str(path))
                break
            except OSError:
                assert self._qemu and self._qemu.poll() is None, f"{self.name}: qemu ended"
                assert time.monotonic() < deadline
                time.sleep(0.02)
        ready = self._commands[0] = Command()
        self._port = port
        threading.Thread(target=self._listen, args=(port,), daemon=True).start()
        try:
            up = ready.end(_BOOT).code == 0
        except queue.Empty:
            up = False
        assert up, f"{self.name} did not come up: {self.console()[-3000:]}"

    def _listen(self, port: socket.socket) -> None:
        try:
            with port.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    self._commands[answer["id"]].answers.put(answer)
        except (OSError, ValueError):
            pass  # A line that was cut off says nothing.
        for command in list(self._commands.values()):
            command.answers.put({"code": None})


class Machines:
    """A context manager: all that was started in it has ended when it is left."""

    def __init__(self, cache: Path, seed: int = 0) -> None:
        self._cache = cache
        self._seed = seed
        self._machines: dict[str, Machine] = {}
        self._disks: list[Disk] = []

    def __enter__(self) -> Machines:
        self._image = system(self._cache)
        self._scratch = tempfile.TemporaryDirectory(prefix="machines-")
        self.directory = Path(self._scratch.name)
        self._code = program(self.directory / "code.ext4")
        self.network = Network(self.directory)
        return self

    def __exit__(self, *exc: object) -> None:
        for machine in self._machines.values():
            machine.cut()
        for disk in self._disks:
            disk.close()
        self.network.close()
        self._scratch.cleanup()

    def disk(self, name: str, size: int, *, volatile: bool = True) -> Disk:
        """A new disk of ``size`` bytes."""
        self._disks.append(Disk(self.directory, name, size, self._seed + len(self._disks), volatile=volatile))
        return self._disks[-1]

    def machine(self, name: str, disks: Sequence[Disk] = (), *, boot: bool = True) -> Machine:
        """A new machine; its disks are ``/dev/vda`` and so on."""
        number = len(self._machines) + 1
        machine = Machine(self.directory, name, number, self._image, self._code, self.network)
        machine.disks = list(disks)
        self._machines[name] = machine
        if boot:
            machine.boot()
        return machine
