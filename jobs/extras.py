"""Packages that serve some commands only, installed with an extra of layerfarm: ``pip install 'layerfarm[catalog]'``.

A module that imports such a package is itself imported only after :func:`require`, so that everything else works
without it.
"""

from __future__ import annotations

import importlib.util
from typing import Final, Literal

from layerfarm.jobs.errors import MissingExtra

Extra = Literal["catalog", "rebase", "serve", "traces"]

_PACKAGES: Final[dict[Extra, tuple[str, ...]]] = {
    "catalog": ("jinja2", "packaging", "rpm_rs", "ruamel.yaml", "urllib3"),
    "rebase": ("elftools",),
    "serve": ("starlette", "uvicorn"),
    "traces": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}


def require(extra: Extra, purpose: str) -> None:
    """Check that the packages of ``extra`` are installed; ``purpose`` names their use.

    Raises:
        MissingExtra: one of them is not; the hint is the command that installs it.
    """
    for name in _PACKAGES[extra]:
        if not _is_installed(name):
            what = f"{purpose} needs the package {name.partition('.')[0]}"
            raise MissingExtra(what, hint=f"pip install 'layerfarm[{extra}]', in a checkout: make environment")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
