"""The fuzzer: a short run of it, what it found before, and that it finds what there is to find."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import pytest

from layerfarm.jobs.errors import MalformedLayer
from tests.fuzz import __main__ as command
from tests.fuzz import engine, seeds, tar_mutations
from tests.fuzz.engine import Finding, fuzz, on_alarm, try_once
from tests.fuzz.sandbox import Place, enter
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
SHORT = 20_000
"""Mutations: a count, not a time, so that one tree gives one result. ``make fuzz`` looks further."""


ALONE = [target for name, target in TARGETS.items() if name != "gotar"]
"""Targets that need no other program; test_archive_tar.py runs the one that does."""


def test_a_short_run_finds_nothing(as_root: None) -> None:
    report = fuzz(600, seed=20260101, targets=ALONE, mutations=SHORT)
    assert {finding.name: finding.what for finding in report.findings.values()} == {}
    assert report.inputs.keys() == {target.name for target in ALONE}
    # Mutations that all fail at once would test the first check only.
    assert report.outcomes["tar ok"] > report.inputs["tar"] / 10
    assert report.private == (os.geteuid() == 0)


def _replay(top: Path, out: Connection) -> None:
    signal.signal(signal.SIGALRM, on_alarm)
    engine.import_all()
    cases = [(path.name.rpartition("-")[0], path.read_bytes()) for path in sorted(CORPUS.iterdir())]
    cases = [case for case in cases if TARGETS[case[0]] in ALONE]
    place = enter(top)
    findings = []
    for name, data in cases:
        target = TARGETS[name]
        for variant in range(target.variants):
            clean = place.look()
            outcome, finding = try_once(place, target, data, variant)
            if place.look() != clean:
                finding = Finding(name, data, "escape")
            if finding is not None:
                findings.append((finding.name, finding.what, outcome))
    out.send((len(cases), findings))


def test_nothing_that_was_ever_found_goes_wrong_again(as_root: None, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_replay, args=(tmp_path, there))
    process.start()
    there.close()
    cases, findings = here.recv()
    process.join()
    assert findings == []
    assert cases == len([path for path in CORPUS.iterdir() if not path.name.startswith("gotar-")]) > 0


# --- the fuzzer itself -----------------------------------------------------------------------------


def _only(run: object, seconds: float = 1.0) -> engine.Report:
    return fuzz(seconds, 1, 1, [Target("broken", 1, lambda rng: rng.randbytes(8), run)])  # type: ignore[arg-type]


def _the_finding(report: engine.Report) -> str:
    (finding,) = report.findings.values()
    assert finding.target == "broken" and finding.data
    return finding.what


def test_a_counted_run_does_exactly_so_many_and_the_same_ones_each_time() -> None:
    seen = [fuzz(600, seed=4, processes=2, targets=ALONE, mutations=301) for _ in range(2)]
    assert [sum(report.inputs.values()) for report in seen] == [301, 301]
    assert seen[0].outcomes == seen[1].outcomes
    assert 0 < seen[0].slowest < seen[0].seconds < 600


def test_make_fuzz_fails_when_time_is_up_before_all_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MUTATIONS": "1000000", "SECONDS": "0.3", "SEED": "9", "TARGETS": "tar gzip"}.items():
        monkeypatch.setenv(name, value)
    assert command.main() == 1
    said = capsys.readouterr().out
    assert "fuzzing tar gzip for 1000000 mutations, at most 0.3 s, in 2 processes, SEED=9" in said
    assert "\n0 findings (SEED=9)\ntime is up: " in said
    monkeypatch.setenv("SECONDS", "600")
    monkeypatch.setenv("MUTATIONS", "64")
    assert command.main() == 0
    assert "\n64 mutations in " in capsys.readouterr().out


def test_an_escape_is_found() -> None:
    def run(place: Place, data: bytes, variant: int) -> None:
        if data[0] == 7:
            (place.work / "../canary/file").write_bytes(b"dead")

    assert "escape: [" in _the_finding(_only(run)) and "canary/file" in _the_finding(_only(run))


def test_an_unexpected_exception_is_found_with_its_place() -> None:
    def run(place: Place, data: bytes, variant: int) -> None:
        raise ZeroDivisionError("oh")

    assert _the_finding(_only(run)).startswith("ZeroDivisionError: 'oh' at test_fuzz.py:")


def test_a_message_that_would_move_the_cursor_is_found() -> None:
    class Raw(MalformedLayer):
        def __str__(self) -> str:
            return "bad \x1b[2J"

    def run(place: Place, data: bytes, variant: int) -> None:
        raise Raw("bad")

    assert "not one printable line" in _the_finding(_only(run))


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HANG", 0.2)

    def run(place: Place, data: bytes, variant: int) -> None:
        while True:
            time.sleep(0.01)

    assert _the_finding(_only(run)).startswith("Hang: ")


def test_a_process_that_dies_leaves_its_input() -> None:
    def run(place: Place, data: bytes, variant: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert _the_finding(_only(run)) == "process died with -9"


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_seed_gives_the_same_mutations(name: str) -> None:
    target = TARGETS[name]
    one, two = Random(5), Random(5)
    assert [target.mutate(one) for _ in range(50)] == [target.mutate(two) for _ in range(50)]


@pytest.mark.parametrize("layer", seeds.layers())
def test_seeds_are_valid_and_survive_being_split(layer: bytes) -> None:
    parts = [part for member in tar_mutations.split(layer) for part in member]
    assert layer.startswith(b"".join(parts)) and not layer.removeprefix(b"".join(parts)).strip(b"\0")


def _seeds(top: Path, out: Connection) -> None:
    engine.import_all()
    place = enter(top)
    layers = [("tar", layer) for layer in (*seeds.layers(), seeds.base())]
    documents = [("index", seeds.INDEX), ("manifest", seeds.MANIFEST), ("config", seeds.CONFIG), ("umoci", seeds.UMOCI)]
    cases = [*layers, *((name, seeds.encoded(document)) for name, document in documents)]
    cases.append(("gzip", gzip.compress(seeds.LAYER)))
    signal.signal(signal.SIGALRM, on_alarm)
    out.send([(name, *try_once(place, TARGETS[name], data, 0)) for name, data in cases])


def test_seeds_of_the_mutations_are_accepted(as_root: None, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_seeds, args=(tmp_path, there))
    process.start()
    there.close()
    results = here.recv()
    process.join()
    assert [(name, outcome) for name, outcome, _ in results if outcome != "ok"] == []
