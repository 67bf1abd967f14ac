"""The wheel and the sdist, and the man pages in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from layerfarm.worker.cli.main import COMMANDS
from tests import man
from tests.locks import CORE, pins

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as git has it, so that what a build leaves behind is left there."""
    copy = tmp_path_factory.mktemp("source") / "layerfarm"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, copy], check=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source]
    subprocess.run(command, check=True)
    (made,) = target.iterdir()
    return made


def test_the_wheel_holds_the_packages_and_the_man_pages_and_no_test(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names}
    name = f"layerfarm-{version('layerfarm')}"
    assert packages == {"layerfarm", f"{name}.dist-info", f"{name}.data"}
    assert {f"{name}.data/data/share/man/man1/{page.name}" for page in man.PAGES.iterdir()} <= set(names)
    assert f"{name}.dist-info/licenses/LICENSE" in names
    # Templates and scripts of Redis too: nothing imports them, so nothing else misses them before they are used.
    tracked = subprocess.run(
        ["git", "ls-files", "jobs", "worker"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = {f"layerfarm/{line}" for line in tracked.stdout.splitlines()}
    assert {Path(name).suffix for name in files} == {".css", ".html", ".lua", ".py"}
    assert sorted(files - set(names)) == []


def test_the_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "unpacked"], check=True)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*command, unpacked], check=True)
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_installed_in_a_clean_environment_it_works(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/pip", "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", CORE], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "check"], check=True)
    assert (tmp_path / "venv/share/man/man1/layerfarm.1").is_file()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LAYERFARM_", "PYTHON"))}

    def layerfarm(*args: str | Path) -> str:
        command = [tmp_path / "venv/bin/layerfarm", *args]
        return subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout

    assert layerfarm("--version").startswith(f"layerfarm version {version('layerfarm')}\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("content")
    layerfarm("init", "--layout", "store")
    assert "manifest: sha256:" in layerfarm("build", "--rootfs", "tree", "--image", "store:a")
    layerfarm("unpack", "--rootless", "--image", "store:a", "bundle")
    assert (tmp_path / "bundle/rootfs/file").read_text() == "content"
    # The error names the extra, and the help works without it.
    layerfarm("catalog", "plan", "--help")
    (tmp_path / "web.yaml").write_text("store: work\n")
    image = ["--image", "store:a", "--old-base", "store:a", "--new-base", "store:a"]
    for arguments, extra in ((["catalog", "plan", "web.yaml"], "catalog"), (["rebase", *image], "rebase")):
        command = [tmp_path / "venv/bin/layerfarm", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.endswith(f"(pip install 'layerfarm[{extra}]', in a checkout: make environment)\n")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A project whose modules have the names of layerfarm's directories and of its dependencies."""
    for name in ("jobs", "worker", "click", "redis", "celery", "pydantic"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "__init__.py").write_text(f"raise ImportError('{name} of another project')")
    return tmp_path / "others"


def test_modules_of_another_project_do_not_replace_those_of_layerfarm(others: Path, tmp_path: Path) -> None:
    layerfarm = Path(sys.executable).with_name("layerfarm")
    setting = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(others)}
    for command in ([layerfarm, "init", "--layout=store"], [layerfarm, "up", "--help"]):
        done = subprocess.run(command, cwd=others, env=setting, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    # A worker that a command starts finds its packages too: what it complains of is that it has no farm.
    worker = [sys.executable, "-P", "-m", "layerfarm.worker"]
    done = subprocess.run(worker, cwd=others, env=setting, capture_output=True, text=True)
    assert "no farm" in done.stderr and "Traceback" not in done.stderr


def test_a_flow_of_ones_own_is_found_by_the_python_path(others: Path, tmp_path: Path) -> None:
    (others / "our_flow.py").write_text("raise SystemExit('our flow is imported')")
    setting = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(others)}
    code = "from layerfarm.worker.import_path import ours_first; ours_first(); import redis, celery, our_flow"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=setting, capture_output=True, text=True)
    assert done.stderr.strip() == "our flow is imported"


def newest_python() -> str:
    """The newest Python of this machine that runs, this one at least: PATH's, or one that pyenv has built."""
    for minor in range(30, sys.version_info.minor, -1):
        name = f"python3.{minor}"
        built = Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")
        for found in [*filter(None, [shutil.which(name)]), *map(str, sorted(built))]:
            if subprocess.run([found, "-c", "import ssl, venv"], capture_output=True).returncode == 0:
                return found
    return sys.executable


def test_pipx_installs_the_wheel_for_the_newest_python(wheel: Path, tmp_path: Path) -> None:
    # Constraints of the versions that are tested; a constraint cannot have a hash.
    (tmp_path / "pins").write_text("\n".join(pins(CORE.read_text())))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LAYERFARM_", "PYTHON"))},
        "PIPX_HOME": str(tmp_path / "home"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
        "PIP_CONSTRAINT": str(tmp_path / "pins"),
    }
    pipx = [sys.executable, "-m", "pipx", "install", "--quiet", "--python", newest_python(), wheel]
    done = subprocess.run(pipx, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([tmp_path / "bin/layerfarm", "--version"], env=environment, capture_output=True, text=True)
    assert said.stdout.startswith(f"layerfarm version {version('layerfarm')}\n")
    assert (tmp_path / "man/man1/layerfarm.1").is_file()


def test_man_pages_are_those_of_the_commands(tmp_path: Path) -> None:
    # A process of its own: click-man's contexts are not the program's, and a command keeps its first help option.
    subprocess.run([sys.executable, "-m", "tests.man", tmp_path], check=True)
    made = {page.name: page.read_text() for page in tmp_path.iterdir()}
    assert made == {page.name: page.read_text() for page in man.PAGES.iterdir()}, "run `make man`"


def test_man_pages_have_the_whole_summary_and_the_usual_sections() -> None:
    for page in man.PAGES.iterdir():
        text = page.read_text()
        name = text.partition(".SH NAME\n")[2].partition("\n")[0]
        assert name.startswith("layerfarm") and "..." not in name, page
        assert "1970" not in text.partition("\n")[0], page
        sections = re.findall(r"^\.SH (.*)$", text, re.MULTILINE)
        assert [each for each in sections if each in ("EXIT STATUS", "ENVIRONMENT", "FILES")] == sections[-3:], page


# As man(1) does, by way of preconv(1).
def test_groff_has_nothing_to_say_of_the_man_pages(program: Callable[[str], str]) -> None:
    pages = sorted(man.PAGES.iterdir())
    done = subprocess.run([program("groff"), "-k", "-man", "-ww", "-z", *pages], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_every_command_shows_an_example(name: str) -> None:
    assert "Example" in (man.PAGES / f"layerfarm-{name}.1").read_text()
