"""Everything works without the packages of the extras, except what needs one, and its error names the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.errors import MissingExtra
from layerfarm.jobs.extras import _PACKAGES, Extra, require

ROOT = Path(__file__).parents[2]

WITHOUT = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jinja2", "rpm_rs", "ruamel", "elftools", "opentelemetry", "tornado", "flower",
            "starlette", "uvicorn"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
import click
from layerfarm.jobs.flows import FLOWS
from layerfarm.worker.cli.main import COMMANDS, cli
FLOWS.import_all()
for name in COMMANDS:
    assert cli.get_command(click.Context(cli), name) is not None
import layerfarm.worker.client, layerfarm.worker.embedded, layerfarm.worker.worker_main
from layerfarm.jobs.errors import MissingExtra
from layerfarm.jobs.extras import require
for extra in sys.argv[1:]:
    try:
        require(extra, "this")
    except MissingExtra as error:
        print(error)
"""


def test_all_flows_and_commands_are_imported_without_any_extra() -> None:
    command = [sys.executable, "-c", WITHOUT, *_PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "this needs the package jinja2 (pip install 'layerfarm[catalog]', in a checkout: make environment)",
        "this needs the package elftools (pip install 'layerfarm[rebase]', in a checkout: make environment)",
        "this needs the package starlette (pip install 'layerfarm[serve]', in a checkout: make environment)",
        "this needs the package opentelemetry (pip install 'layerfarm[traces]', in a checkout: make environment)",
    ]


@pytest.mark.parametrize("extra", _PACKAGES)
def test_an_extra_that_is_installed_is_no_hindrance(extra: Extra) -> None:
    require(extra, "this")


@pytest.mark.parametrize("extra", _PACKAGES)
def test_one_package_that_is_missing_is_enough(extra: Extra, monkeypatch: pytest.MonkeyPatch) -> None:
    last = _PACKAGES[extra][-1]
    found = {name: object() for name in _PACKAGES[extra] if name != last}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    with pytest.raises(MissingExtra, match=rf"needs the package {last.partition('.')[0]} \(pip install"):
        require(extra, "this")
