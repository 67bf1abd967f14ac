"""Sources that may only be read: analyses and work go elsewhere, and nothing is written into the source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.analysis import AnalysisOptions, kept_analysis
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.leases import holding
from layerfarm.jobs.store.result_cache import cache_path, may_write, user_cache
from layerfarm.worker.cli.main import main
from tests.unit.image.images import image, tar

_RUN = """
import sys
from pathlib import Path
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.transforms import AnalyzeRequest, RechunkRequest
from layerfarm.worker.engine import local
kind, stores, fields = sys.argv[1:]
request = {"analyze": AnalyzeRequest, "rechunk": RechunkRequest}[kind].model_validate_json(fields)
policy = Policy(stores=(Path(stores),) if stores else None, shards=1, threads=1)
try:
    print(local.run(request, policy, 1).model_dump_json())
except LayerfarmError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

_COMMANDS = """
import json, sys
from layerfarm.worker.cli.main import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(f"{arguments} ended with {code}")
"""


class Reader:
    """A user who may read the layout ``source`` and not write into it; ``home`` is the user's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.source = Layout.create(home / "source")
        self.image = image(self.source, [tar(("srv/app", b"app" * 9000))], tag="t")
        self.digest = self.image.descriptor.digest

    def do(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python without root's right to write everywhere; the source is untouched after that."""
        before = _seen(self.source.path)
        _let_write(self.source.path, False)
        try:
            # Unless root's right to do so is taken away, it writes whatever the modes say.
            within = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
            return subprocess.run(
                [*within, sys.executable, *map(str, arguments)],
                env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            assert _seen(self.source.path) == before
            _let_write(self.source.path, True)

    def layerfarm(self, *commands: list[str]) -> None:
        """Run command lines, one after the other in one process."""
        done = self.do("-c", _COMMANDS, json.dumps(commands))
        assert done.returncode == 0, done.stderr

    def run(self, kind: str, stores: Path | str = "", **fields: object) -> subprocess.CompletedProcess[str]:
        request = {"image": {"store": str(self.source.path), "tag": "t"}} | fields
        return self.do("-c", _RUN, kind, stores, json.dumps(request))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def _let_write(path: Path, may: bool) -> None:
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o755 if may else 0o555)


def _seen(path: Path) -> dict[str, int]:
    return {str(each): each.lstat().st_mtime_ns for each in path.rglob("*")}


@pytest.mark.large
def test_an_analysis_of_a_read_only_layout_is_kept_in_the_users_cache(reader: Reader) -> None:
    done = reader.run("analyze")
    assert done.returncode == 0, done.stderr
    cache = Layout.open(reader.home / ".cache/layerfarm")
    assert json.loads(done.stdout)["kept_in"] == str(cache.path)
    assert kept_analysis(cache, reader.digest, AnalysisOptions()) is not None
    assert os.listdir(cache.path / ".layerfarm/work") == []
    reader.source.blob_path(reader.image.manifest.layers[0].digest).unlink()
    assert reader.run("analyze").stdout == done.stdout  # the layer is not read again


def test_a_worker_of_a_farm_says_that_it_has_no_place_for_it(reader: Reader) -> None:
    done = reader.run("analyze", stores=reader.home)
    assert done.stderr.startswith("StoreError: store is read-only"), done.stderr
    assert not (reader.home / ".cache").exists()


def test_rechunk_keeps_it_beside_the_new_image(reader: Reader) -> None:
    target = Layout.create(reader.home / "target")
    done = reader.run("rechunk", target={"store": str(target.path), "tag": "new"})
    assert done.returncode == 0, done.stderr
    assert kept_analysis(target, reader.digest, AnalysisOptions()) is not None
    assert json.loads(done.stdout)["new"] == resolve(target, "new").descriptor.digest


def test_every_other_transform_reads_from_there(reader: Reader) -> None:
    target = Layout.create(reader.home / "target")
    commands = (["recompress", "--compress=zstd"], ["squash"], ["strip", "srv/none"])
    made = [
        [*command, f"--image={reader.source.path}:t", f"--target={target.path}:{number}"]
        for number, command in enumerate(commands)
    ]
    flat = ["flatten", f"--image={reader.source.path}:t", "--tar", str(reader.home / "out.tar")]
    reader.layerfarm(*made, flat)
    assert target.tags() == ["0", "1", "2"]
    assert (reader.home / "out.tar").exists()


def reading(source: Path, home: Path) -> list[list[str]]:
    """Commands that only read the layout, and make ``out`` and ``raw`` in the home directory."""
    image, bundle = f"{source}:t", home / "out"
    return [
        ["unpack", "--rootless", f"--image={image}", str(bundle)],
        ["raw", "unpack", "--rootless", f"--image={image}", str(home / "raw")],
        ["diff", image, str(bundle)],
        ["revert", f"--layout={source}", str(bundle)],
        ["stat", f"--image={image}"],
        ["ls", f"--layout={source}"],
        ["validate", f"--image={image}"],
        ["validate", f"--layout={source}"],
    ]


def test_commands_that_only_read_need_no_right_to_write(reader: Reader) -> None:
    reader.layerfarm(*reading(reader.source.path, reader.home))
    assert (reader.home / "out/rootfs/srv/app").read_bytes() == b"app" * 9000
    # The user's own cache keeps the tree of the image that was compared.
    assert sorted(os.listdir(reader.home)) == [".cache", "out", "raw", "source"]


def test_nor_do_they_write_where_they_could(reader: Reader) -> None:
    shutil.rmtree(reader.source.path / ".layerfarm")
    before = _seen(reader.source.path)
    for arguments in reading(reader.source.path, reader.home):
        assert main(arguments) == 0, arguments
    assert _seen(reader.source.path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_a_read_only_mount_is_read_by_all(reader: Reader) -> None:
    shutil.rmtree(reader.source.path / ".layerfarm")
    source, target = reader.source.path, Layout.create(reader.home / "target").path
    image = f"--image={source}:t"
    made = [
        ["squash", image, f"--target={target}:squashed"],
        ["flatten", image, "--tar", str(reader.home / "flat.tar")],
        ["build", f"--base={source}:t", f"--image={target}:built", f"--rootfs={reader.home / 'out/rootfs'}"],
    ]
    if subprocess.run(["mount", "--bind", source, source], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", source], check=True)
        for arguments in (*reading(source, reader.home), *made):
            assert main(arguments) == 0, arguments
    finally:
        subprocess.run(["umount", source], check=True)
    assert Layout.open(target).tags() == ["squashed", "built"]


def test_a_bundle_of_umoci_is_reverted_from_a_read_only_layout(reader: Reader) -> None:
    """Entries that its manifest omits come from the layers, which are read and not unpacked."""
    bundle = reader.home / "bundle"
    reader.layerfarm(["unpack", f"--image={reader.source.path}:t", str(bundle)])
    for name in os.listdir(bundle):
        if name.endswith((".layerfarm", ".stat")):
            (bundle / name).unlink()
    (bundle / "rootfs/srv/app").write_bytes(b"changed")
    (bundle / "rootfs/srv/new").touch()
    reader.layerfarm(
        ["revert", f"--layout={reader.source.path}", str(bundle)], ["diff", f"{reader.source.path}:t", str(bundle)]
    )
    assert os.listdir(bundle / "rootfs/srv") == ["app"]


@pytest.mark.large
def test_a_catalog_of_a_read_only_layout_is_planned_and_run(reader: Reader) -> None:
    path = reader.home / "ours.yaml"
    path.write_text("store: store\nsources: [{layout: source}]\npolicies: [{match: '*', do: {transform: rechunk}}]\n")
    reader.layerfarm(*(["catalog", command, str(path), "--processes=1"] for command in ("plan", "run", "verify")))
    assert "new/t" in Layout.open(reader.home / "store").tags()


def test_a_lease_that_a_full_disk_refuses_is_an_error_all_the_same(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = image(layout, [tar(("a", b"a"))], tag="t").manifest.layers[0]

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("layerfarm.jobs.store.leases.make_directory", full)
    with holding("job", 60.0), pytest.raises(StoreError, match="No space left"):
        layout.pin(layer)


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert user_cache().path == user_cache().path == tmp_path / "here/layerfarm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_path() == Path("/home/x/.cache/layerfarm")
    assert may_write(layout)


def test_leftovers_of_a_killed_job_in_the_cache_go_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work = user_cache().path / ".layerfarm/work/local-1"
    work.mkdir(parents=True)
    assert user_cache() and work.exists()
    os.utime(work, (1, 1))
    assert user_cache() and not work.exists()


def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError) as error:
        user_cache()
    assert "XDG_CACHE_HOME" in (error.value.hint or "")
