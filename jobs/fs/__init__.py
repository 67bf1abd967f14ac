"""Access to root filesystems and private directories: relative to a descriptor, no link followed out of it."""

from layerfarm.jobs.fs.access import DirectoryCache, Rootfs, read_regular, stat_regular, umask, unreadable
from layerfarm.jobs.fs.beneath import Beneath, open_file, own_directory
from layerfarm.jobs.fs.resolve import open_beneath, open_in_root
from layerfarm.jobs.fs.unprivileged import Widened
from layerfarm.jobs.fs.xattrs import (
    HOST_XATTRS,
    clear_xattrs,
    get_xattr,
    get_xattrs,
    portable_xattrs,
    proc_path,
    set_xattr,
)

__all__ = [
    "HOST_XATTRS",
    "Beneath",
    "DirectoryCache",
    "Rootfs",
    "Widened",
    "clear_xattrs",
    "get_xattr",
    "get_xattrs",
    "open_beneath",
    "open_file",
    "open_in_root",
    "own_directory",
    "portable_xattrs",
    "proc_path",
    "read_regular",
    "set_xattr",
    "stat_regular",
    "umask",
    "unreadable",
]
