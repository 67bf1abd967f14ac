"""``make smb``, ``make glusterfs``: the trials of ``make nfs`` that need no NFS, on a store on another file server.

Both lose tags, and `layerfarm doctor` says so of them. Run them again when they have new versions.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from tests.machines import nfs
from tests.machines import trial as trials
from tests.machines.machine import Machine
from tests.machines.share import Share, layerfarm
from tests.machines.trial import Body, Trial

_DISK: Final = """
mountpoint -q /srv || mount -o data=ordered /dev/vda /srv
mkdir -p /srv/export /srv/state
"""
_SMB: Final = f"""
{_DISK}
mkdir -p /srv/state/samba /run/samba
[ -e /srv/state/samba/private ] || cp -a /var/lib/samba/. /srv/state/samba/
mountpoint -q /var/lib/samba || mount --bind /srv/state/samba /var/lib/samba
cat >/etc/samba/smb.conf <<END
[global]
server role = standalone server
disable netbios = yes
smb ports = 445
load printers = no
socket options = TCP_NODELAY SO_KEEPALIVE TCP_KEEPIDLE=4 TCP_KEEPINTVL=2 TCP_KEEPCNT=3
[share]
path = /srv/export
read only = no
END
printf 'word\\nword\\n' | smbpasswd -s -a root >/dev/null
pidof smbd >/dev/null || smbd -D
until smbstatus >/dev/null 2>&1; do sleep 0.2; done
"""
_GLUSTER: Final = f"""
{_DISK}
mkdir -p /srv/state/glusterd
mountpoint -q /var/lib/glusterd || mount --bind /srv/state/glusterd /var/lib/glusterd
pidof glusterd >/dev/null || glusterd
until gluster volume list >/dev/null 2>&1; do sleep 0.2; done
"""
_VOLUME: Final = """
gluster --mode=script volume create store {address}:/srv/export force
gluster volume set store network.ping-timeout 10
gluster volume set store server.tcp-user-timeout 10
gluster volume start store
"""
_BRICK: Final = "until gluster volume status store 2>/dev/null | grep -q 'Brick.* Y '; do sleep 0.2; done"


class Smb(Share):
    """A share of Samba, which ends the sessions of silent clients after 10 s."""

    def export(self, options: str) -> None:
        self.serve()

    def serve(self) -> None:
        self.server.check(_SMB)

    def mount(self, client: Machine, options: str = "vers=3.1.1,hard,actimeo=0", place: str = "/mnt") -> None:
        login = "username=root,password=word"
        client.check(f"modprobe cifs; mount -t cifs -o {login},{options} //{self.server.address}/share {place}")


class GlusterFs(Share):
    """A volume of GlusterFS with one brick."""

    def export(self, options: str) -> None:
        self.server.check(_GLUSTER + _VOLUME.format(address=self.server.address) + _BRICK)

    def serve(self) -> None:
        self.server.check(_GLUSTER + _BRICK)

    def mount(self, client: Machine, options: str = "log-level=ERROR", place: str = "/mnt") -> None:
        client.check(f"modprobe fuse; mount -t glusterfs -o {options} {self.server.address}:/store {place}")


def doctor(trial: Trial) -> None:
    """`layerfarm doctor` judges the share."""
    said = layerfarm(trial.share.clients[0], "doctor", "--store", trial.layout).text
    trial.seen += [line for line in said.splitlines() if line.startswith(("warn", "fail"))]
    trial.expect("fcntl locks work" in said, said[-1000:])


SHARES: Final[dict[str, type[Share]]] = {"smb": Smb, "glusterfs": GlusterFs}
BODIES: Final[tuple[Body, ...]] = (
    doctor,
    nfs.crowd,
    nfs.server_back_soon,
    nfs.server_back_late,
    nfs.client_cut,
    nfs.lock_lost_at_change,
    nfs.lock_lost_at_rename,
    nfs.parted_briefly,
    nfs.parted_beyond,
    nfs.clock_behind,
    nfs.clock_ahead,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("share", choices=SHARES)
    nfs.add_writers(parser)
    return trials.main(parser, BODIES, lambda machines, options: SHARES[options.share](machines, nfs.CLIENTS))


if __name__ == "__main__":
    sys.exit(main())
