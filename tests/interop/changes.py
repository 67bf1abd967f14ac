"""Two hundred changes of every kind to a tree, the same ones for the same seed."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

COUNT = 200


def change(root: Path, seed: int) -> list[str]:
    """Make ``COUNT`` changes below ``root``; returns what was done, a line each."""
    rng = random.Random(seed)
    done: list[str] = []
    kinds: list[Callable[[list[str], random.Random], str | None]] = [
        _add_file,
        _add_tree,
        _delete_file,
        _delete_directory,
        _rewrite,
        _append,
        _directory_to_file,
        _directory_to_symlink,
        _file_to_directory,
        _symlink_elsewhere,
        _chmod,
        _chown,
        _xattr,
        _remove_xattr,
        _touch,
        _hardlink,
        _break_hardlink,
        _fifo,
        _device,
        _odd_name,
    ]
    tree: list[str] = []
    while len(done) < COUNT:
        kind = kinds[len(done) % len(kinds)]
        if kind is kinds[0]:
            tree = _entries(root)
        said = kind(tree, rng)
        if said is not None:
            done.append(f"{kind.__name__[1:]}: {said}")
    _whole_seconds(root)
    return done


def _whole_seconds(root: Path) -> None:
    """A layer keeps whole seconds; umoci 0.4.7 rounds where everybody else cuts off (umoci.md B1.3)."""
    for directory, directories, files in os.walk(root, topdown=False):
        for name in [*directories, *files, "."]:
            path = os.path.join(directory, name)
            seconds = os.lstat(path).st_mtime_ns // 10**9 * 10**9
            os.utime(path, ns=(seconds, seconds), follow_symlinks=False)


def _entries(root: Path) -> list[str]:
    found = []
    for directory, directories, files in os.walk(root):
        directories.sort()
        found += [os.path.join(directory, name) for name in sorted(directories + files)]
    return found


def _every(tree: list[str], rng: random.Random, wanted: Callable[[int], bool]) -> Path:
    """Some entry whose mode is wanted; the same one for the same tree and state of ``rng``."""
    while True:
        path = Path(rng.choice(tree))
        # Gone since the tree was listed, or behind what is a link by now, to anywhere.
        if os.path.lexists(path) and path.parent.resolve() == path.parent and wanted(path.lstat().st_mode):
            return path


def _file(tree: list[str], rng: random.Random) -> Path:
    return _every(tree, rng, stat.S_ISREG)


def _directory(tree: list[str], rng: random.Random) -> Path:
    return _every(tree, rng, stat.S_ISDIR)


def _small_directory(tree: list[str], rng: random.Random) -> Path | None:
    directory = _directory(tree, rng)
    return directory if sum(len(f) + len(d) for _, d, f in os.walk(directory)) <= 40 else None


def _fresh(directory: Path, rng: random.Random) -> Path:
    return directory / f"new-{rng.randrange(10**9)}"


def _add_file(tree: list[str], rng: random.Random) -> str:
    path = _fresh(_directory(tree, rng), rng)
    path.write_bytes(rng.randbytes(rng.choice([0, 1, 511, 512, 513, 70_000])))
    path.chmod(rng.choice([0o644, 0o4755, 0o000, 0o2750]))
    return str(path)


def _add_tree(tree: list[str], rng: random.Random) -> str:
    path = _fresh(_directory(tree, rng), rng)
    (path / "a/b").mkdir(parents=True)
    (path / "a/b/c").write_text("deep")
    (path / "a/link").symlink_to("b/c")
    return str(path)


def _delete_file(tree: list[str], rng: random.Random) -> str:
    path = _file(tree, rng)
    path.unlink()
    return str(path)


def _delete_directory(tree: list[str], rng: random.Random) -> str | None:
    path = _small_directory(tree, rng)
    if path is None:
        return None
    shutil.rmtree(path)
    return str(path)


def _rewrite(tree: list[str], rng: random.Random) -> str:
    path = _file(tree, rng)
    path.write_bytes(rng.randbytes(path.stat().st_size))
    return str(path)


def _append(tree: list[str], rng: random.Random) -> str:
    path = _file(tree, rng)
    with path.open("ab") as out:
        out.write(b"more")
    return str(path)


def _directory_to_file(tree: list[str], rng: random.Random) -> str | None:
    path = _small_directory(tree, rng)
    if path is None:
        return None
    shutil.rmtree(path)
    path.write_text("was a directory")
    return str(path)


def _directory_to_symlink(tree: list[str], rng: random.Random) -> str | None:
    """The usr-merge case: what the link points to must not lose the names the directory had."""
    path = _small_directory(tree, rng)
    if path is None:
        return None
    names = os.listdir(path)
    shutil.rmtree(path)
    target = _fresh(path.parent, rng)
    target.mkdir()
    for name in names[:3]:
        (target / name).write_text("same name, elsewhere")
    path.symlink_to(target.name)
    return str(path)


def _file_to_directory(tree: list[str], rng: random.Random) -> str:
    path = _file(tree, rng)
    path.unlink()
    path.mkdir(mode=0o750)
    (path / "inside").write_text("was a file")
    return str(path)


def _symlink_elsewhere(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, stat.S_ISLNK)
    path.unlink()
    path.symlink_to(rng.choice(["/etc/passwd", "../../../../../..", "nowhere", "x" * 200]))
    return str(path)


def _chmod(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, lambda mode: not stat.S_ISLNK(mode))
    path.chmod(rng.choice([0o600, 0o755, 0o1777, 0o6711]))
    return str(path)


def _chown(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, lambda mode: True)
    os.chown(path, rng.randrange(3_000_000), rng.randrange(70_000), follow_symlinks=False)
    return str(path)


def _xattr(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    os.setxattr(path, f"user.test{rng.randrange(3)}", rng.randbytes(rng.randrange(1, 900)))
    return str(path)


def _remove_xattr(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    names = os.listxattr(path)
    if names:
        os.removexattr(path, names[0])
    else:
        os.setxattr(path, "trusted.test", b"t")
    return str(path)


def _touch(tree: list[str], rng: random.Random) -> str:
    path = _every(tree, rng, lambda mode: True)
    os.utime(path, (0, rng.choice([0, 1, 2**31 + 5, 1_500_000_000])), follow_symlinks=False)
    return str(path)


def _hardlink(tree: list[str], rng: random.Random) -> str:
    path = _fresh(_directory(tree, rng), rng)
    os.link(_file(tree, rng), path)
    return str(path)


def _break_hardlink(tree: list[str], rng: random.Random) -> str:
    path = _file(tree, rng)
    copy = path.parent / f".copy-{rng.randrange(10**9)}"
    shutil.copy2(path, copy)
    copy.rename(path)
    return str(path)


def _fifo(tree: list[str], rng: random.Random) -> str:
    path = _fresh(_directory(tree, rng), rng)
    os.mkfifo(path, 0o622)
    return str(path)


def _device(tree: list[str], rng: random.Random) -> str:
    path = _fresh(_directory(tree, rng), rng)
    kind = rng.choice([stat.S_IFCHR, stat.S_IFBLK])
    os.mknod(path, kind | 0o660, os.makedev(rng.randrange(1, 250), rng.randrange(200)))
    return str(path)


def _odd_name(tree: list[str], rng: random.Random) -> str:
    names = [b"line\nbreak", b"non-utf8-\xff\xfe", b"glob[*?]#\\", b" lead", b"\xc3\xa9t\xc3\xa9", b"long" * 60]
    name = rng.choice(names) + b"-%d" % rng.randrange(1000)
    path = os.fsencode(_directory(tree, rng)) + b"/" + name[-250:]
    with open(path, "wb") as out:
        out.write(b"odd")
    return repr(path)
