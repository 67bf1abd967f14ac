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
    kinds: list[Callable[[Path, random.Random], str | None]] = [
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
    while len(done) < COUNT:
        kind = kinds[len(done) % len(kinds)]
        said = kind(root, rng)
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


def _every(root: Path, rng: random.Random, wanted: Callable[[int], bool]) -> Path:
    """Some entry below ``root`` whose mode is wanted; the same one for the same tree and state of ``rng``."""
    found = []
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = Path(directory, name)
            if wanted(path.lstat().st_mode):
                found.append(path)
    return rng.choice(found)


def _file(root: Path, rng: random.Random) -> Path:
    return _every(root, rng, stat.S_ISREG)


def _directory(root: Path, rng: random.Random) -> Path:
    return _every(root, rng, stat.S_ISDIR)


def _small_directory(root: Path, rng: random.Random) -> Path | None:
    directory = _directory(root, rng)
    return directory if sum(len(f) + len(d) for _, d, f in os.walk(directory)) <= 40 else None


def _fresh(directory: Path, rng: random.Random) -> Path:
    return directory / f"new-{rng.randrange(10**9)}"


def _add_file(root: Path, rng: random.Random) -> str:
    path = _fresh(_directory(root, rng), rng)
    path.write_bytes(rng.randbytes(rng.choice([0, 1, 511, 512, 513, 70_000])))
    path.chmod(rng.choice([0o644, 0o4755, 0o000, 0o2750]))
    return str(path)


def _add_tree(root: Path, rng: random.Random) -> str:
    path = _fresh(_directory(root, rng), rng)
    (path / "a/b").mkdir(parents=True)
    (path / "a/b/c").write_text("deep")
    (path / "a/link").symlink_to("b/c")
    return str(path)


def _delete_file(root: Path, rng: random.Random) -> str:
    path = _file(root, rng)
    path.unlink()
    return str(path)


def _delete_directory(root: Path, rng: random.Random) -> str | None:
    path = _small_directory(root, rng)
    if path is None:
        return None
    shutil.rmtree(path)
    return str(path)


def _rewrite(root: Path, rng: random.Random) -> str:
    path = _file(root, rng)
    path.write_bytes(rng.randbytes(path.stat().st_size))
    return str(path)


def _append(root: Path, rng: random.Random) -> str:
    path = _file(root, rng)
    with path.open("ab") as out:
        out.write(b"more")
    return str(path)


def _directory_to_file(root: Path, rng: random.Random) -> str | None:
    path = _small_directory(root, rng)
    if path is None:
        return None
    shutil.rmtree(path)
    path.write_text("was a directory")
    return str(path)


def _directory_to_symlink(root: Path, rng: random.Random) -> str | None:
    """The usr-merge case: what the link points to must not lose the names the directory had."""
    path = _small_directory(root, rng)
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


def _file_to_directory(root: Path, rng: random.Random) -> str:
    path = _file(root, rng)
    path.unlink()
    path.mkdir(mode=0o750)
    (path / "inside").write_text("was a file")
    return str(path)


def _symlink_elsewhere(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, stat.S_ISLNK)
    path.unlink()
    path.symlink_to(rng.choice(["/etc/passwd", "../../../../../..", "nowhere", "x" * 200]))
    return str(path)


def _chmod(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, lambda mode: not stat.S_ISLNK(mode))
    path.chmod(rng.choice([0o600, 0o755, 0o1777, 0o6711]))
    return str(path)


def _chown(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, lambda mode: True)
    os.chown(path, rng.randrange(3_000_000), rng.randrange(70_000), follow_symlinks=False)
    return str(path)


def _xattr(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    os.setxattr(path, f"user.test{rng.randrange(3)}", rng.randbytes(rng.randrange(1, 900)))
    return str(path)


def _remove_xattr(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    names = os.listxattr(path)
    if names:
        os.removexattr(path, names[0])
    else:
        os.setxattr(path, "trusted.test", b"t")
    return str(path)


def _touch(root: Path, rng: random.Random) -> str:
    path = _every(root, rng, lambda mode: True)
    os.utime(path, (0, rng.choice([0, 1, 2**31 + 5, 1_500_000_000])), follow_symlinks=False)
    return str(path)


def _hardlink(root: Path, rng: random.Random) -> str:
    path = _fresh(_directory(root, rng), rng)
    os.link(_file(root, rng), path)
    return str(path)


def _break_hardlink(root: Path, rng: random.Random) -> str:
    path = _file(root, rng)
    copy = path.parent / f".copy-{rng.randrange(10**9)}"
    shutil.copy2(path, copy)
    copy.rename(path)
    return str(path)


def _fifo(root: Path, rng: random.Random) -> str:
    path = _fresh(_directory(root, rng), rng)
    os.mkfifo(path, 0o622)
    return str(path)


def _device(root: Path, rng: random.Random) -> str:
    path = _fresh(_directory(root, rng), rng)
    kind = rng.choice([stat.S_IFCHR, stat.S_IFBLK])
    os.mknod(path, kind | 0o660, os.makedev(rng.randrange(1, 250), rng.randrange(200)))
    return str(path)


def _odd_name(root: Path, rng: random.Random) -> str:
    names = [b"line\nbreak", b"non-utf8-\xff\xfe", b"glob[*?]#\\", b" lead", b"\xc3\xa9t\xc3\xa9", b"long" * 60]
    name = rng.choice(names) + b"-%d" % rng.randrange(1000)
    path = os.fsencode(_directory(root, rng)) + b"/" + name[-250:]
    with open(path, "wb") as out:
        out.write(b"odd")
    return repr(path)
