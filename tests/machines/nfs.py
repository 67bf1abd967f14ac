"""``make nfs``: a store on an NFSv4 server, with clients and a server that vanish. Prints a table, and each fault."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.machines import trial as trials
from tests.machines.machine import Command, Machine
from tests.machines.share import EXPORT, LEASE, MOUNT, Share, layerfarm, tag, workload
from tests.machines.trial import Body, Trial

BEYOND: Final = 3 * LEASE
"""Seconds after which the server has forgotten a client that is silent."""
CLIENTS: Final = 3


def write(trial: Trial, *clients: Machine, layout: str = "") -> list[Command]:
    """Start writers on the clients."""
    layout = layout or trial.layout
    place = layout.split("/")[1]
    count = (trial.options.writers, trial.options.tags)
    return [workload(client, "tags", layout, f"{client.name}-{place}", *count) for client in clients]


def write_one(trial: Trial, client: Machine, name: str) -> None:
    """Set one tag on a client."""
    trial.take(workload(client, "tags", trial.layout, name, 1, 1))


def crowd(trial: Trial) -> None:
    """Writers on three clients, while `gc`, skopeo and another reader work."""
    first, second, third = trial.share.clients
    reader = workload(third, "read", trial.layout)
    gc = f"layerfarm gc --layout {trial.layout} --grace=0s >/dev/null || exit 1"
    collecting = first.start(f"while ! [ -e /tmp/stop ]; do {gc}; done")
    skopeo = f"skopeo inspect --raw oci:{trial.layout}:base >/dev/null || exit 1"
    looking = second.start(f"while ! [ -e /tmp/stop ]; do {skopeo}; done")
    for command in write(trial, first, second, third):
        trial.take(command)
    for client, command in ((third, reader), (first, collecting), (second, looking)):
        client.check("touch /tmp/stop; pkill -f '[w]orkload read'; true")
        ended = command.end()
        client.check("rm /tmp/stop")
        lines = [line for line in ended.text.splitlines() if line != "reading"]
        trial.expect(not lines and ended.code in (0, -15), f"{client.name}: {ended.code}: {lines[-1:]}")


def replaced_often(trial: Trial) -> None:
    """A client replaces the index without pause, and another opens and reads the layout 500 times."""
    first, second, _ = trial.share.clients
    place = f"cd {trial.layout} && rm -f /tmp/stop"
    replacing = first.start(f"{place}; while ! [ -e /tmp/stop ]; do cp index.json next && mv next index.json; done")
    trial.take(workload(second, "read", trial.layout, 500))
    first.check("touch /tmp/stop")
    ended = replacing.end()
    trial.expect(ended.code == 0, f"{first.name}: {ended.text[-300:]}")


def held_open(trial: Trial) -> None:
    """A client holds the index open that another replaces; a third client, which had read the old one, sets a tag."""
    first, second, third = trial.share.clients
    writer = _held(trial, second, "hold", "held", "begin")
    reader = third.start(f"exec 3<{trial.layout}/index.json; echo open; sleep 300")
    trial.expect(next(reader.lines(), "") == "open", "the index was not opened")
    write_one(trial, first, "first")
    second.check("touch /tmp/go")
    trial.take(writer)
    third.check("pkill -x sleep")


def trashed(trial: Trial) -> None:
    """A client sets a tag that needs a blob which it stored, and which `gc` of another has moved to the trash."""
    first, second, _ = trial.share.clients
    writer = _held(trial, second, "late", "late")
    time.sleep(3)
    first.check(f"layerfarm gc --layout {trial.layout} --grace=1s")
    first.check(f"find {trial.layout}/.layerfarm/trash -type f | grep .")
    second.check("touch /tmp/go")
    trial.take(writer)
    trial.expect(len(trial.acknowledged) == 1, "the tag's blob is missing")


def server_back_soon(trial: Trial) -> None:
    """Power of the server is cut while two clients write; it boots at once."""
    _server_away(trial, 0)


def server_back_late(trial: Trial) -> None:
    """The same; it boots 30 s later, when its leases have ended."""
    _server_away(trial, BEYOND)


def _server_away(trial: Trial, seconds: float) -> None:
    commands = write(trial, *trial.share.clients[:2])
    trial.begun(commands[0])
    trial.share.server.cut()
    time.sleep(seconds)
    trial.share.reboot()
    for command in commands:
        trial.take(command)


def client_cut(trial: Trial) -> None:
    """Power of a client is cut while it holds the lock of `index.json`."""
    first, second, _ = trial.share.clients
    _held(trial, first, "hold", "held", "change")
    first.cut()
    write_one(trial, second, "after")


def _held(trial: Trial, client: Machine, mode: str, *arguments: str) -> Command:
    """Start a writer that pauses, and wait until it does."""
    client.check("rm -f /tmp/go")
    holder = workload(client, mode, trial.layout, *arguments)
    trial.expect(next(holder.lines(), "") == "held", "the writer did not come to its pause")
    return holder


def lock_lost_at_change(trial: Trial) -> None:
    """Client is parted for 30 s before it writes the next index; another client sets a tag."""
    _lock_lost(trial, "change")


def lock_lost_at_rename(trial: Trial) -> None:
    """Client is parted for 30 s before it renames the next index; another client sets a tag."""
    _lock_lost(trial, "rename")


def _lock_lost(trial: Trial, step: str) -> None:
    first, second, _ = trial.share.clients
    network = trial.share.network
    holder = _held(trial, first, "hold", "held", step)
    network.part(first.number, trial.share.server.number)
    time.sleep(BEYOND)
    write_one(trial, second, "meanwhile")
    network.heal()
    first.check("touch /tmp/go")
    trial.take(holder)


def parted_briefly(trial: Trial) -> None:
    """One of two clients that write is parted from the server for 3 s."""
    _parted(trial, 3)


def parted_beyond(trial: Trial) -> None:
    """The same for 30 s, longer than the server's leases."""
    _parted(trial, BEYOND)


def _parted(trial: Trial, seconds: float) -> None:
    first, second, _ = trial.share.clients
    commands = write(trial, first, second)
    trial.begun(commands[0])
    network = trial.share.network
    network.part(first.number, trial.share.server.number)
    time.sleep(seconds)
    network.heal()
    for command in commands:
        trial.take(command)


def clock_behind(trial: Trial) -> None:
    """Clock of one of two clients that write is 5 min behind."""
    _clock_off(trial, timedelta(minutes=-5))


def clock_ahead(trial: Trial) -> None:
    """Clock of one of two clients that write is 5 min ahead."""
    _clock_off(trial, timedelta(minutes=5))


def _clock_off(trial: Trial, offset: timedelta) -> None:
    first, _, third = trial.share.clients
    third.cut()
    third.boot(clock=(datetime.now(UTC) + offset).strftime("%Y-%m-%dT%H:%M:%S"))
    trial.share.mount(third)
    commands = write(trial, first, third)
    trial.begun(commands[0])
    # Blobs without a tag, younger than the grace period by the server's clock: they stay.
    digests = [workload(client, "put", trial.layout).end().text for client in (first, third)]
    collected = layerfarm(third, "gc", "--layout", trial.layout, "--grace=4m")
    trial.expect(collected.code == 0, f"gc: {collected.text[-300:]}")
    for digest in digests:
        first.check(f"test -e {trial.layout}/blobs/sha256/{digest.removeprefix('sha256:')}")
    for command in commands:
        trial.take(command)
    said = layerfarm(third, "doctor", "--store", trial.layout).text
    trial.expect(re.search("warn .* its clock", said) is not None, f"doctor does not name the clock: {said[-300:]}")
    third.cut()


@contextmanager
def mounted_too(trial: Trial, options: str, place: str = "/other") -> Iterator[tuple[Machine, str]]:
    """Mount the export at another place of a client inside the block, with caches of its own.

    Yield the client, and the layout's path there.
    """
    client = trial.share.clients[0]
    trial.share.mount(client, f"{options},nosharecache", place)
    yield client, trial.layout.replace("/mnt", place)
    client.check(f"umount -l {place}")


def twice(trial: Trial) -> None:
    """Mounted twice on one client, which writes at both paths."""
    with mounted_too(trial, MOUNT) as (client, other):
        for command in [*write(trial, client), *write(trial, client, layout=other)]:
            trial.take(command)


def by_turns(trial: Trial) -> None:
    """The same; tags are set at both paths by turns, each after the index was read at both."""
    with mounted_too(trial, MOUNT) as (client, other):
        for number, layout in itertools.product(range(4), (trial.layout, other)):
            # The second time the client has delegations for the file, and believes its name.
            read = f"cat {trial.layout}/index.json {other}/index.json >/dev/null; sleep 0.2"
            client.check(f"{read}; {read}")
            trial.take(workload(client, "tags", layout, f"{layout.split('/')[1]}-{number}", 1, 1))


def root_squash(trial: Trial) -> None:
    """Exported with `root_squash`; root sets a tag in root's layout."""
    trial.share.export(EXPORT.replace("no_root_squash", "root_squash"))
    try:
        trial.refused(tag(trial.share.clients[0], trial.layout, "refused"))
    finally:
        trial.share.export(EXPORT)


def root_squash_owner(trial: Trial) -> None:
    """The same; the layout belongs to the user that the server takes root for."""
    client = trial.share.clients[0]
    client.check(f"chown -R 65534:65534 {trial.layout}")
    trial.share.export(EXPORT.replace("no_root_squash", "root_squash"))
    try:
        for command in write(trial, client):
            trial.take(command)
    finally:
        trial.share.export(EXPORT)


def read_only(trial: Trial) -> None:
    """Mounted read-only."""
    with mounted_too(trial, f"ro,{MOUNT}", "/ro") as (client, layout):
        trial.refused(tag(client, layout, "refused"))


def server_read_only(trial: Trial) -> None:
    """Filesystem of the server becomes read-only while a client writes, as after an error of its disk."""
    client, server = trial.share.clients[0], trial.share.server
    (command,) = write(trial, client)
    trial.begun(command)
    server.check("echo u >/proc/sysrq-trigger; while grep -q ' /srv ext4 rw' /proc/mounts; do sleep 0.1; done")
    trial.take(command, whole=False)
    trial.refused(tag(client, trial.layout, "refused"))
    server.cut()


def soft(trial: Trial) -> None:
    """Mounted with `soft,timeo=20,retrans=1`; power of the server is cut for 20 s while the client writes."""
    options = "vers=4.2,soft,timeo=20,retrans=1,lookupcache=positive"
    with mounted_too(trial, options, "/soft") as (client, layout):
        said = layerfarm(client, "doctor", "--store", layout).text
        trial.expect("with soft" in said, f"doctor does not name soft: {said[-300:]}")
        (command,) = write(trial, client, layout=layout)
        trial.begun(command)
        trial.share.server.cut()
        time.sleep(20)
        trial.share.reboot()
        trial.take(command, whole=False)


def traffic(trial: Trial) -> None:
    """Requests of a client for each operation."""
    ended = workload(trial.share.clients[0], "traffic", trial.layout).end()
    trial.expect(ended.code == 0, ended.text[-300:])
    trial.seen += ended.text.splitlines()


def replaced(trial: Trial) -> None:
    """Exported filesystem is replaced by another, as after a failover: file handles are stale."""
    first, second, _ = trial.share.clients
    trial.replaced = True
    reader = workload(second, "read", trial.layout)
    trial.expect(next(reader.lines(), "") == "reading", "the reader did not begin")
    trial.share.server.check(
        "rpc.nfsd 0; exportfs -ua; exportfs -f; pkill -x nfsdcld; pkill -x rpc.mountd; sleep 1; "
        "umount /var/lib/nfs && umount /srv && mkfs.ext4 -q -F /dev/vda"
    )
    trial.share.export(EXPORT)
    trial.refused(tag(first, trial.layout, "refused"))
    ended = reader.end()
    trial.expect(ended.code not in (0, None), "the reader saw nothing")
    trial.seen += ended.text.splitlines()[-1:]
    for client in trial.share.clients:
        client.check("umount -l /mnt")
        trial.share.mount(client)


BODIES: Final[tuple[Body, ...]] = (
    crowd,
    replaced_often,
    held_open,
    trashed,
    server_back_soon,
    server_back_late,
    client_cut,
    lock_lost_at_change,
    lock_lost_at_rename,
    parted_briefly,
    parted_beyond,
    clock_behind,
    clock_ahead,
    twice,
    by_turns,
    root_squash,
    root_squash_owner,
    read_only,
    server_read_only,
    soft,
    traffic,
    replaced,
)


def add_writers(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`write`."""
    parser.add_argument("--writers", type=int, default=8, help="processes on each client")
    parser.add_argument("--tags", type=int, default=25, help="tags of each process")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make nfs", description=__doc__)
    add_writers(parser)
    return trials.main(parser, BODIES, lambda machines, _: Share(machines, CLIENTS))


if __name__ == "__main__":
    sys.exit(main())
