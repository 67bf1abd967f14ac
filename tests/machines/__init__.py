"""Real machines under QEMU's emulation: a kernel of their own, disks that forget, a network that parts.

:mod:`image` makes the system disk, :mod:`disk` serves disks that lose their volatile cache when power is cut,
:mod:`machine` boots machines and runs commands on them, :mod:`network` connects them. A test needs ten lines::

    with Machines(cache) as machines:
        host = machines.machine("w1", [machines.disk("store", 256 << 20)])
        host.check("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
        host.check("layerfarm init --layout /mnt/layout && sync")
        host.cut()
        host.boot()
        host.check("mount /dev/vda /mnt && layerfarm validate --layout /mnt/layout")
"""
