"""Random stacks of layers for Hypothesis: whatever tar can say, over few names, so that layers meet."""

from __future__ import annotations

import tarfile

from hypothesis import strategies as st

from tests.unit.layer.archives import archive, entry

Layer = list[tuple[tarfile.TarInfo, bytes]]

NAMES = ("a", "b", "c", "d", "\udcff")
LINKS = ("a", "b", "../a", "/a/b", "a/b", ".", "..", "/c", "nowhere")
path = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
mtime = st.sampled_from([0, 7, 1_500_000_000, 1_500_000_000.25, -3])
metadata = st.fixed_dictionaries(
    {"mode": st.sampled_from([0o644, 0o4755, 0o700, 0]), "uid": st.sampled_from([0, 1000, 3_000_000]), "mtime": mtime}
)
xattrs = st.dictionaries(st.sampled_from(["user.a", "trusted.b"]), st.binary(min_size=1, max_size=9), max_size=2)


def _whiteout(where: str) -> tuple[tarfile.TarInfo, bytes]:
    head, _, name = where.rpartition("/")
    return entry(f"{head}/.wh.{name}" if head else f".wh.{name}")


member = st.one_of(
    st.builds(lambda n, c, m, x: entry(n, "file", c, xattrs=x, **m), path, st.binary(max_size=700), metadata, xattrs),
    st.builds(lambda n, m, x: entry(f"{n}/", "dir", xattrs=x, **m), path, metadata, xattrs),
    st.builds(lambda n, m: entry(f"{n}/", "dir", **m), path, metadata),
    st.builds(lambda n, to, m: entry(n, "link", link=to, **m), path, st.sampled_from(LINKS), metadata),
    st.builds(lambda n, to, m: entry(n, "hardlink", link=to, **m), path, path, metadata),
    st.builds(lambda n, m: entry(n, "fifo", **m), path, metadata),
    st.builds(lambda n, minor: entry(n, "char", device=(1, minor)), path, st.integers(0, 3)),
    st.builds(_whiteout, path),
    st.builds(lambda n: entry(f"{n}/.wh..wh..opq"), path),
    st.just(entry(".wh..wh..opq")),
    st.builds(lambda m, x: entry("./", "dir", xattrs=x, **m), metadata, xattrs),
)
layer = st.lists(member, max_size=8)
stacks = st.lists(layer, min_size=1, max_size=4)


def tars(stack: list[Layer]) -> list[bytes]:
    return [archive(*members) for members in stack]
