"""The reader of layers beside Go's archive/tar: a short run, what is tolerated, and that differences are found."""

from __future__ import annotations

import dataclasses
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from layerfarm.jobs.compress.toc.entries import TocEntry
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.tar.writer import TRAILER
from tests.fuzz import __main__ as command
from tests.fuzz import seeds
from tests.fuzz.archive_tar import TOLERANCES, Entry, Oracle, Reading, compare, read_ours
from tests.fuzz.engine import fuzz
from tests.fuzz.targets import LIMITS, TARGETS
from tests.trees import directory, fifo, file, hardlink, symlink, tree
from tests.unit.tar.headers import block, extended, records

CORPUS = Path(__file__).parent / "corpus"
SHORT = 20_000
DESCRIBED = "entries described alike"
READ, REFUSED = "archives read to the end by both", "archives refused at one place by both"


@pytest.fixture(scope="module")
def oracle(program: Callable[[str], str]) -> Iterator[Oracle]:
    program("go")
    made = Oracle()
    made.build()
    made.start()
    yield made
    made.stop()


def test_a_short_run_finds_no_difference(program: Callable[[str], str]) -> None:
    program("go")
    report = fuzz(600, seed=20261129, targets=[TARGETS["gotar"]], mutations=SHORT)
    assert {finding.name: finding.what for finding in report.findings.values()} == {}
    figures = {key.removeprefix("gotar "): count for key, count in report.figures.items()}
    assert figures.pop("entries alike") > SHORT
    assert figures.pop(DESCRIBED) > SHORT / 2
    assert figures[READ] > SHORT / 4
    assert figures[REFUSED] > SHORT / 4
    assert figures.keys() == {READ, REFUSED, *(f"tolerated: {name}" for name in TOLERANCES)}
    assert sum(figures.values()) == report.inputs["gotar"] == SHORT


def test_no_difference_that_was_ever_found_is_there_again(oracle: Oracle) -> None:
    for path in sorted(CORPUS.glob("gotar-*")):
        figures = _compared(path.read_bytes(), oracle)
        assert figures.total() > 0, path


@pytest.mark.parametrize("layer", [*seeds.layers(), seeds.base(), seeds.LAYER])
def test_seeds_of_the_mutations_are_read_by_both(oracle: Oracle, layer: bytes) -> None:
    figures = _compared(layer, oracle)
    assert figures[READ] == 1 and figures["entries alike"] >= 1


@pytest.mark.parametrize(
    "command_line",
    [
        *(["tar", f"--format={name}"] for name in ("v7", "ustar", "oldgnu", "gnu", "pax")),
        *(["tar", "--sparse", f"--format={name}"] for name in ("oldgnu", "gnu")),
        *(["tar", "--sparse", "--format=pax", f"--sparse-version={name}"] for name in ("0.0", "0.1", "1.0")),
        *(["bsdtar", f"--format={name}"] for name in ("v7", "ustar", "gnutar", "pax")),
    ],
    ids=" ".join,
)
def test_archives_of_other_programs_are_read_by_both(tmp_path: Path, oracle: Oracle, command_line: list[str]) -> None:
    spec = {"d": directory(), "d/f": file(b"x" * 700), "l": symlink("d/f"), "h": hardlink("d/f")}
    more = {"fifo": fifo(), "n" * 90 + "/" + "m" * 60: file(b"long")}
    source = tree(tmp_path / "source", spec if "v7" in command_line[-1] else spec | more)
    with (source / "sparse").open("wb") as out:
        for at in range(30):
            out.seek(at * 20_000)
            out.write(b"data %d" % at)
        out.truncate(700_000)
    done = subprocess.run([*command_line, "-C", source, "-cf", "-", "."], capture_output=True, check=True)
    figures = _compared(done.stdout, oracle)
    assert figures[READ] == 1 and figures["entries alike"] >= 6
    # A table of contents has no sparse files.
    assert figures[DESCRIBED] >= figures["entries alike"] - 1


_SPARSE = ((b"GNU.sparse.size", b"0"), (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.numblocks", b"1"))
_TOLERATED = {
    "limit exceeded": records((b"comment", b"x" * (LIMITS.pax_bytes + 1))) + block(),
    "negative number": block((108, b"\xff" * 8)),
    "entry without a name": block((0, b"\0")),
    "xattr without a name": records((b"SCHILY.xattr.", b"v")) + block(),
    "NUL in a sparse name": records(*_SPARSE, (b"GNU.sparse.name", b"a\0b")) + block(),
    "cut after an extended header": records((b"path", b"p")),
    "PAX records padded with NULs": extended(b"x", b"9 path=p\n\0\0\0") + block(),
    "PAX time with an exponent": records((b"mtime", b"1e-05")) + block(),
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_intended_differences_are_counted_by_name(oracle: Oracle, name: str) -> None:
    figures = _compared(block() + _TOLERATED[name] + TRAILER, oracle)
    assert figures == {"entries alike": 1, DESCRIBED: 1, f"tolerated: {name}": 1}


class _Other(Oracle):
    """One that reads something else."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self._reading = reading

    def read(self, archive: bytes) -> Reading:
        return self._reading


_CHANGED = Entry("g", "l", "5", 0o600, 1, 2, 4, 6, 7, (1, 2), {"user.x": "v"}, "0" * 64)


@pytest.mark.parametrize("field", Entry._fields)
def test_a_difference_of_each_field_is_found(field: str) -> None:
    archive = block() + TRAILER
    (entry,), _ = read_ours(archive, LIMITS)
    other = _Other(Reading([entry._replace(**{field: getattr(_CHANGED, field)})], ""))
    with pytest.raises(AssertionError, match=f"^{field} is not what archive/tar reads"):
        compare(archive, other, LIMITS, Counter())


def test_a_difference_of_each_field_of_a_table_of_contents_is_found(oracle: Oracle) -> None:
    archive = records((b"atime", b"1.5"), (b"ctime", b"2"), (b"SCHILY.xattr.user.a", b"b")) + block() + TRAILER
    found = oracle.read(archive)
    (toc,) = found.described
    assert len(toc) == len(dataclasses.fields(TocEntry)) - 9  # what it does not tell: type, content and its place
    assert all(toc[name] for name in ("atime", "ctime", "xattrs"))
    for name, value in toc.items():
        other = {"x": "y"} if isinstance(value, dict) else value + type(value)(1)
        with pytest.raises(AssertionError, match=f"^{name} in a table of contents is not what archive/tar reads"):
            compare(archive, _Other(found._replace(described=[toc | {name: other}])), LIMITS, Counter())


@pytest.mark.parametrize(
    ("archive", "reading"),
    [
        (block() + TRAILER, Reading([], "invalid tar header")),
        (block() + TRAILER, Reading([], "")),
        (TRAILER, Reading([_CHANGED], "")),
        (TRAILER, Reading([], "unexpected EOF")),
        (block((100, b"no mode")), Reading([_CHANGED], "")),
        (block((100, b"no mode")), Reading([], "")),
    ],
)
def test_an_end_at_another_place_is_found(archive: bytes, reading: Reading) -> None:
    with pytest.raises(AssertionError, match=r"the reader finds .*, archive/tar '"):
        compare(archive, _Other(reading), LIMITS, Counter())


def test_without_go_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    target = replace(TARGETS["gotar"], build=Oracle().build)
    monkeypatch.setitem(TARGETS, "gotar", target)
    monkeypatch.setenv("TARGETS", "gzip gotar")
    assert command.main() == 1
    assert "needs Go (Debian: golang-go); without it: TARGETS='gzip'\n" in capsys.readouterr().out


def _compared(archive: bytes, oracle: Oracle) -> Counter[str]:
    figures: Counter[str] = Counter()
    with suppress(LayerfarmError):
        compare(archive, oracle, LIMITS, figures)
    return figures
