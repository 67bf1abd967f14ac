"""rebase: the image's own layers on another base, and evidence from the files whether it fits."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfarm.jobs.errors import TagNotFound, TransformError, UnsafeRebase
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import RebaseCheckRequest, RebaseRequest, RebaseVerdict
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.elf_dependencies import Needs, needs_of, provided_versions
from layerfarm.jobs.relayer.proof import proofs_of, verify_image
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.unit.image.images import image
from tests.unit.layer.archives import archive
from tests.unit.layer.archives import entry as member
from tests.unit.relayer.images import attestation, entry, index, ref, run, tree_of

HISTORY = [{"created_by": "base"}, {"created_by": "base env", "empty_layer": True}]


def status(**packages: str) -> bytes:
    return b"\n".join(
        f"Package: {name}\nStatus: install ok installed\n{rest}\n".encode() for name, rest in packages.items()
    )


def base(layout: Layout, tag: str, *more: object, version: str = "1", **config: object) -> Resolved:
    """A small system: a shell, a library, a package database."""
    members = {
        "etc/os": member("etc/os", content=f"release {version}".encode()),
        "etc/same": member("etc/same", content=b"the same in all"),
        "bin/sh": member("bin/sh", content=b"shell " + version.encode(), mode=0o755),
        "usr/bin/env": member("usr/bin/env", content=b"env", mode=0o755),
        "dpkg": member("var/lib/dpkg/status", content=status(libc=f"Version: {version}", tool="Version: 5")),
    }
    made = archive(*members.values(), *more)  # type: ignore[arg-type]
    return image(layout, [made], tag=tag, history=HISTORY, config={"Env": ["PATH=/bin"], **config})


def app(layout: Layout, on: Resolved, *members: object, tag: str = "app", **top: object) -> Resolved:
    """An image with one layer of its own on a base."""
    low = layout.read(on.manifest.layers[0])
    config = {"Env": ["PATH=/bin", "APP=1"], "Cmd": ["/opt/app"]}
    own = archive(member("opt/app", content=b"#!/bin/sh\n", mode=0o755), *members)  # type: ignore[arg-type]
    fields = {"history": [*HISTORY, {"created_by": "app"}], "config": config} | top
    return image(layout, [gzip.decompress(low), own], tag=tag, **fields)  # type: ignore[arg-type]


def check(layout: Layout, tag: str = "app") -> RebaseVerdict:
    request = RebaseCheckRequest(image=ref(layout, tag), old_base=ref(layout, "old"), new_base=ref(layout, "new"))
    (found,) = local.run(request, Policy(shards=1, threads=1), 1).images  # type: ignore[attr-defined]
    return found  # type: ignore[no-any-return]


def rebase(layout: Layout, accept: str = "safe", **fields: object) -> RebaseRequest:
    bases = {"old_base": ref(layout, "old"), "new_base": ref(layout, "new")}
    return RebaseRequest.model_validate(
        {"image": ref(layout, "app"), "target": ref(layout, "r"), "accept": accept, **bases, **fields}
    )


# --- what comes out ------------------------------------------------------------------------------


def test_the_own_layers_lie_on_the_new_base(layout: Layout, tmp_path: Path) -> None:
    old, new = base(layout, "old"), base(layout, "new", version="2")
    before = app(layout, old, member("etc/mine", content=b"mine"))
    other = Layout.create(tmp_path / "other")
    result = run(rebase(layout, target=ref(other, "r")))
    made = resolve(other, "r")
    assert made.manifest.layers == [*new.manifest.layers, before.manifest.layers[1]]
    tree = tree_of(other, "r")
    assert (tree[b"etc/os"].content, tree[b"etc/mine"].content) == (b"release 2", b"mine")
    assert [entry.created_by for entry in made.config.history or []] == ["base", "base env", "app"]
    assert (made.manifest.annotations or {})["org.opencontainers.image.base.digest"] == new.descriptor.digest
    (proof,) = proofs_of(other, result.new)
    assert proof.swapped is not None and proof.swapped.new == new.descriptor.digest and not proof.same_tree
    assert result.verdict == "safe" and result.verdicts[0].packages == ["libc 1 -> 2"]  # type: ignore[attr-defined]
    report = verify_image(other, "r")
    assert [finding.code for finding in report.findings] == ["old-image"]
    run(rebase(layout))
    assert verify_image(layout, "r").findings == []


def test_settings_of_the_base_become_those_of_the_new_one(layout: Layout) -> None:
    old = base(layout, "old", Labels={"os": "1", "both": "1"}, User="root", WorkingDir="/")
    base(
        layout,
        "new",
        Env=["PATH=/usr/bin:/bin", "NEW=1"],
        Labels={"os": "2", "both": "2", "more": "3"},
        User="nobody",
        WorkingDir="/home",
    )
    config = {
        "Env": ["PATH=/bin", "APP=1"],
        "Labels": {"os": "1", "both": "app", "app": "1"},
        "User": "root",
        "WorkingDir": "/srv",
        "Odd": {"kept": True},
    }
    app(layout, old, config=config)
    result = run(rebase(layout))
    section = resolve(layout, "r").config.config
    assert section is not None
    assert section.env == ["PATH=/usr/bin:/bin", "APP=1", "NEW=1"]
    assert section.labels == {"os": "2", "both": "app", "app": "1", "more": "3"}
    assert (section.user, section.working_dir) == ("nobody", "/srv")
    assert section.model_extra == {"Odd": {"kept": True}}
    assert [text.rpartition(": ")[2] for text in result.warnings] == ["Labels both", "WorkingDir"]


@pytest.mark.parametrize(
    ("history", "own"), [(["one", "app"], ["app"]), (["one"], []), (["base", "app", "more"], ["app", "more"])]
)
def test_steps_of_another_history_than_the_bases_are_counted_by_layers(
    layout: Layout, history: list[str], own: list[str]
) -> None:
    """As of an image that another tool has squashed or rebased."""
    app(layout, base(layout, "old"), history=[{"created_by": step} for step in history])
    base(layout, "new", version="2")
    run(rebase(layout))
    steps = [entry.created_by for entry in resolve(layout, "r").config.history or []]
    assert steps == ["base", "base env", *own]


def test_each_platform_gets_the_base_of_its_own(layout: Layout) -> None:
    made = {}
    for kind in ("old", "new"):
        entries = []
        for architecture in ("amd64", "arm64"):
            low = archive(member("etc/os", content=f"{kind} {architecture}".encode()), member("same", content=b"s"))
            made[kind, architecture] = image(layout, [low], tag="x", architecture=architecture)
            entries.append(entry(made[kind, architecture]))
        index(layout, entries, kind)
    own = archive(member("opt/app", content=b"app"))
    apps = [
        image(
            layout,
            [archive(member("etc/os", content=f"old {a}".encode()), member("same", content=b"s")), own],
            tag="x",
            architecture=a,
        )
        for a in ("amd64", "arm64")
    ]
    said = attestation(layout, apps[0])
    index(layout, [*map(entry, apps), said], "app")
    result = run(rebase(layout))
    for a in ("amd64", "arm64"):
        assert tree_of(layout, "r", f"linux/{a}")[b"etc/os"].content == f"new {a}".encode()
    assert any(said.digest in text for text in result.warnings)
    index(layout, [entry(made["new", "amd64"])], "new")
    with pytest.raises(TagNotFound, match="linux/arm64"):
        run(rebase(layout))


def test_the_same_base_again_is_no_work(layout: Layout) -> None:
    app(layout, base(layout, "old"))
    layout.copy_tag("old", "new")
    assert run(rebase(layout)).unchanged


def test_an_image_that_is_not_on_the_base_is_refused(layout: Layout) -> None:
    app(layout, base(layout, "old"))
    base(layout, "new", version="2")
    base(layout, "old", version="3")
    with pytest.raises(TransformError, match="not on this base"):
        run(rebase(layout))


# --- what speaks against it ------------------------------------------------------------------------


def libc() -> Path:
    """The C library of this machine: a real ELF file with symbol versions."""
    with open("/proc/self/maps") as maps:
        return Path(next(line.split()[-1] for line in maps if "/libc.so" in line or "/libc-2" in line))


def program() -> bytes:
    """A real program that needs it."""
    return Path("/bin/true").read_bytes()


LOADER = member("lib64/ld-linux-x86-64.so.2", content=b"loader", mode=0o755)

Case = tuple[list[object], list[object], list[object], str, str]
CASES: dict[str, Callable[[], Case]] = {
    "hidden": lambda: (
        [member("etc/conf", content=b"old")],
        [member("etc/conf", content=b"new")],
        [member("etc/conf", content=b"mine")],
        "review",
        "etc/conf: changed by the image and by the new base",
    ),
    "new in the base": lambda: (
        [],
        [member("etc/conf", content=b"new")],
        [member("etc/conf", content=b"mine")],
        "review",
        "etc/conf: the new base has its own file here",
    ),
    "deleted": lambda: (
        [member("etc/conf", content=b"old")],
        [member("etc/conf", content=b"new")],
        [member("etc/.wh.conf")],
        "review",
        "etc/conf: the image deletes it",
    ),
    "directory": lambda: (
        [member("srv/", "dir", mode=0o755)],
        [member("srv/", "dir", mode=0o700)],
        [member("srv/", "dir", mode=0o755)],
        "review",
        "srv: mode or owner",
    ),
    "elsewhere": lambda: (
        [member("data/", "dir")],
        [member("data", "link", link="/var/data")],
        [member("data/file", content=b"x")],
        "refuse",
        "data/file: would be written elsewhere",
    ),
    "library gone": lambda: (
        [LOADER, member("lib/libc.so.6", content=libc().read_bytes())],
        [LOADER],
        [member("opt/tool", content=program(), mode=0o755)],
        "refuse",
        "opt/tool: needs libc.so.6, which the new base lacks",
    ),
    "symbol versions gone": lambda: (
        [LOADER, member("lib/libc.so.6", content=libc().read_bytes())],
        [LOADER, member("lib/libc.so.6", content=b"\x7fELF of no version at all")],
        [member("opt/tool", content=program(), mode=0o755)],
        "refuse",
        "of libc.so.6, which the new base's lacks",
    ),
    "loader gone": lambda: (
        [LOADER, member("lib/libc.so.6", content=libc().read_bytes())],
        [member("lib/libc.so.6", content=libc().read_bytes())],
        [member("opt/tool", content=program(), mode=0o755)],
        "refuse",
        "is run by /lib64/ld-linux-x86-64.so.2, which the new base lacks",
    ),
    "interpreter gone": lambda: (
        [member("usr/bin/perl", content=b"perl")],
        [],
        [member("opt/script", content=b"#! /usr/bin/perl -w\n", mode=0o755)],
        "refuse",
        "opt/script: is run by /usr/bin/perl",
    ),
    "command gone": lambda: (
        [member("usr/bin/lua", content=b"lua")],
        [],
        [member("opt/script", content=b"#!/usr/bin/env -S A=1 lua x\n", mode=0o755)],
        "refuse",
        "opt/script: is run by lua",
    ),
    "interpreter of another version": lambda: (
        [member("usr/bin/python3.11", content=b"1"), member("usr/bin/python3", "link", link="python3.11")],
        [member("usr/bin/python3.12", content=b"2"), member("usr/bin/python3", "link", link="python3.12")],
        [member("opt/script", content=b"#!/usr/bin/python3\n", mode=0o755)],
        "review",
        "would be run by python3.12 instead of python3.11",
    ),
    "hard link": lambda: (
        [member("bin/tool", content=b"tool")],
        [],
        [member("bin/other", "hardlink", link="bin/tool")],
        "refuse",
        "cannot be applied to the new base",
    ),
    "package wants a version": lambda: (
        [],
        [],
        [
            member(
                "var/lib/dpkg/status",
                content=status(
                    libc="Version: 1", tool="Version: 5", extra="Version: 1\nDepends: libc (= 1), tool (>= 2), x | y"
                ),
            )
        ],
        "review",
        "extra needs libc 1, the new base has 2",
    ),
    "packages of the old base": lambda: (
        [],
        [],
        [member("var/lib/dpkg/status", content=status(libc="Version: 1", tool="Version: 5", extra="Version: 1"))],
        "review",
        "1 differ in the new one: libc 1 -> 2",
    ),
    "broken database": lambda: (
        [],
        [],
        [member("var/lib/dpkg/status", content=b"no such thing\n")],
        "review",
        "package database is broken",
    ),
    "apk database": lambda: (
        [member("lib/apk/db/installed", content=b"1")],
        [member("lib/apk/db/installed", content=b"2")],
        [member("lib/apk/db/installed", content=b"3")],
        "review",
        "hides that of the new base",
    ),
}


@pytest.mark.large
@pytest.mark.parametrize("what", CASES)
def test_incompatibilities_are_found(layout: Layout, what: str) -> None:
    before, after, own, verdict, said = CASES[what]()
    old = base(layout, "old", *before)
    base(layout, "new", *after, version="2")
    app(layout, old, *own)
    found = check(layout)
    assert found.verdict == verdict, found.concerns
    assert any(said in concern for concern in found.concerns), found.concerns
    worse = {"review": "safe", "refuse": "review"}[verdict]
    with pytest.raises(UnsafeRebase, match="rebase is rated"):
        run(rebase(layout, worse))
    assert "r" not in layout.tags()
    if what != "hard link":
        assert any(said in text for text in run(rebase(layout, verdict)).warnings)


def test_a_new_release_of_libraries_that_are_still_good_is_safe(layout: Layout) -> None:
    content = libc().read_bytes()
    old = base(
        layout,
        "old",
        LOADER,
        member("lib/libc-1.so", content=content),
        member("lib/libc.so.6", "link", link="libc-1.so"),
    )
    # Rebuilt: other bytes, the same symbols.
    base(
        layout,
        "new",
        LOADER,
        member("lib/libc-2.so", content=content + b"\0"),
        member("lib/libc.so.6", "link", link="libc-2.so"),
        version="2",
    )
    app(layout, old, member("opt/tool", content=program(), mode=0o755), member("var/log/x", content=b"log"))
    assert check(layout) == RebaseVerdict(
        platform="linux/amd64", verdict="safe", packages=["libc 1 -> 2"], packages_total=1
    )


def test_a_base_that_shares_nothing_is_refused(layout: Layout) -> None:
    app(layout, base(layout, "old"))
    image(layout, [archive(member("else", content=b"x"), member("bin/sh", content=b"another"))], tag="new")
    found = check(layout)
    assert found.verdict == "refuse" and "shares no file" in found.concerns[0]


def test_an_entrypoint_that_the_base_had_must_be_in_the_new_one(layout: Layout) -> None:
    old = base(layout, "old", member("usr/bin/server", content=b"server", mode=0o755))
    base(layout, "new", version="2")
    app(layout, old, config={"Entrypoint": ["server"]})
    assert any("entrypoint" in concern for concern in check(layout).concerns)


@pytest.mark.large
def test_needs_of_real_programs_and_of_damaged_ones() -> None:
    needs = needs_of(program())
    assert "libc.so.6" in needs.libraries and needs.libraries["libc.so.6"] <= provided_versions(libc().read_bytes())
    assert needs.interpreter is not None
    raw = program()
    for at in range(0, 4096, 23):
        for damaged in (raw[:at], raw[:at] + b"\xff" * 64 + raw[at + 64 :]):
            assert isinstance(needs_of(damaged), Needs) and isinstance(provided_versions(damaged), frozenset)
    assert needs_of(b"text") == Needs() == needs_of(b"#!relative\n")
    assert needs_of(b"#!/usr/bin/env\n").command is None
