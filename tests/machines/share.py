"""An NFSv4 server and its clients, each a machine of its own."""

from __future__ import annotations

from typing import Final

from tests.machines.machine import Command, Ended, Machine, Machines

SIZE: Final = 512 << 20
LEASE: Final = 10
"""Seconds of the server's leases, and of the grace period after its start; Linux has 90."""
EXPORT: Final = "rw,sync,no_subtree_check,no_root_squash"
MOUNT: Final = "vers=4.2,hard,lookupcache=positive"
_SERVE: Final = f"""
mountpoint -q /srv || mount -o data=ordered /dev/vda /srv
mkdir -p /srv/export /srv/state/v4recovery /srv/state/nfsdcld /run/rpc_pipefs
mountpoint -q /var/lib/nfs || mount --bind /srv/state /var/lib/nfs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
modprobe -a nfsd sunrpc
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mountpoint -q /run/rpc_pipefs || mount -t rpc_pipefs sunrpc /run/rpc_pipefs
pidof nfsdcld >/dev/null || nfsdcld
exportfs -ra
pidof rpc.mountd >/dev/null || rpc.mountd -N 3
[ "$(cat /proc/fs/nfsd/threads)" -gt 0 ] || rpc.nfsd -N 3 -L {LEASE} -G {LEASE} 8
"""


class Share:
    """An export of a disk with ext4, mounted at ``/mnt`` of each client."""

    def __init__(self, machines: Machines, clients: int) -> None:
        self.network = machines.network
        self.server = machines.machine("nfs", [machines.disk("nfs", SIZE)])
        self.server.check("mkfs.ext4 -q /dev/vda")
        self.export(EXPORT)
        self.clients = [machines.machine(f"client-{number}", boot=False) for number in range(clients)]
        for client in self.clients:
            client.boot()
            self.mount(client)

    def export(self, options: str) -> None:
        """Serve the disk with these options of exports(5)."""
        self.server.check(f"echo '/srv/export 10.77.0.0/24({options},fsid=0)' >/etc/exports")
        self.serve()

    def serve(self) -> None:
        """Start the server's programs, after it was exported or has booted."""
        self.server.check(_SERVE)

    def mount(self, client: Machine, options: str = MOUNT, place: str = "/mnt") -> None:
        """Mount the export on a client."""
        command = f"modprobe -a nfs nfsv4; mkdir -p {place}; mount -t nfs -o {options} {self.server.address}:/ {place}"
        client.check(command)

    def reboot(self) -> None:
        """Boot the server again, after a cut."""
        self.server.boot()
        self.serve()

    def restore(self) -> None:
        """Heal the network, and boot each machine that is off."""
        self.network.heal()
        if not self.server.on:
            self.reboot()
        for client in self.clients:
            if not client.on:
                client.boot()
                self.mount(client)


def workload(client: Machine, mode: str, *arguments: object, stdin: str = "") -> Command:
    """Start a mode of the workload on a client."""
    words = " ".join(str(argument) for argument in arguments)
    return client.start(f"cd /opt/layerfarm && exec python3 -m workload {mode} {words}", stdin)


def layerfarm(client: Machine, *words: str) -> Ended:
    """Run the command line on a client."""
    return client.run(" ".join(("layerfarm", *words)))


def tag(client: Machine, layout: str, name: str) -> Ended:
    """Set a tag of the image ``base`` from the command line."""
    return layerfarm(client, "tag", "--image", f"{layout}:base", name)
