"""The one way into a root filesystem: relative to a directory descriptor, never followed out of it."""

from layerfarm.jobs.fs.access import DirectoryCache, Rootfs, open_regular, read_regular, stat_regular, unreadable
from layerfarm.jobs.fs.beneath import Beneath, open_file, own_directory
from layerfarm.jobs.fs.portable_xattrs import HOST_XATTRS, portable_xattrs
from layerfarm.jobs.fs.resolve import open_beneath, open_in_root
from layerfarm.jobs.fs.unprivileged import Widened
from layerfarm.jobs.fs.xattrs import clear_xattrs, get_xattrs, proc_path, set_xattr

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
