"""Mutations of mtree manifests: lines, words, and bytes."""

from __future__ import annotations

from random import Random

from tests.fuzz import bytes_mutations

_LINES = (
    b"..", b"/set type=dir", b"/set type=file nlink=1 mode=0664 uid=0 gid=0", b"/unset all", b"/nonsense", b"#",
    b"# a\nb", b"    x type=file size=1", b"../../canary type=file", b"/canary/file type=file",
    b"./a/../../b type=dir", b".. type=dir", b"a/b type=link link=../../canary", b". type=dir", b"x\\",
    b"d type=char device=1:3", b"#mtree", b"    \\056\\056 type=dir", b"    a\\057b type=file",
    b"    n\\000 type=file", b"e type=socket",
)  # fmt: skip
_WORDS = (
    b"type=dir", b"type=link", b"type=block", b"type=nothing", b"type=", b"link=\\", b"link=/canary", b"uid=-1",
    b"uid=" + b"9" * 5000, b"gid=x", b"mode=99", b"mode=-1", b"size=-5", b"nlink=0", b"tar_time=1", b"tar_time=-1.5",
    b"time=1.9999999999", b"time=x.y", b"sha256digest=zz", b"sha256digest=" + b"0" * 64, b"xattr.user.a=!!",
    b"xattr.=AA==", b"xattr.user.b=", b"device=1:2:3", b"device=native,1", b"device=" + b"1" * 40, b"optional", b"=",
    b"\\", b"\\777", b"\\M-", b"..", b".", b"/",
)  # fmt: skip


def mutate(rng: Random, data: bytes, other: bytes) -> bytes:
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind == 0:
            lines.insert(at, rng.choice(_LINES))
        elif kind == 1:
            del lines[at]
            lines = lines or [b""]
        elif kind == 2:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif kind == 3:
            lines.insert(at, rng.choice(other.split(b"\n")))
        elif kind == 4:
            there = rng.randrange(len(lines))
            lines[at], lines[there] = lines[there], lines[at]
        else:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words)) : rng.randrange(len(words)) + 1] = [rng.choice(_WORDS)]
            lines[at] = b" ".join(words)
    out = b"\n".join(lines)
    return bytes_mutations.mutate(rng, out, other) if rng.randrange(6) == 0 else out
