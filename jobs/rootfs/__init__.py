"""The one way into a root filesystem: relative to a directory descriptor, never followed out of it."""

from layerfarm.jobs.rootfs.access import DirectoryCache, Rootfs, open_regular, read_regular, stat_regular, unreadable
from layerfarm.jobs.rootfs.beneath import Beneath, open_file, own_directory
from layerfarm.jobs.rootfs.portable_xattrs import HOST_XATTRS, portable_xattrs
from layerfarm.jobs.rootfs.resolve import open_beneath, open_in_root
from layerfarm.jobs.rootfs.unprivileged import Widened
from layerfarm.jobs.rootfs.xattrs import clear_xattrs, get_xattrs, proc_path, set_xattr

__all__ = [
    "HOST_XATTRS",
    "Beneath",
    "DirectoryCache",
    "Rootfs",
    "Widened",
    "clear_xattrs",
    "get_xattrs",
    "open_beneath",
    "open_file",
    "open_in_root",
    "open_regular",
    "own_directory",
    "portable_xattrs",
    "proc_path",
    "read_regular",
    "set_xattr",
    "stat_regular",
    "unreadable",
]
