"""The app of the farm that the settings name, for Celery's tools, ``celery -A layerfarm.worker.celery_app flower``."""

from __future__ import annotations

import sys
from typing import Any

from celery import signals

from layerfarm.worker.broker.app import make_app
from layerfarm.worker.settings import load_settings

app = make_app(load_settings())


def _refuse(**_: Any) -> None:
    """Refuse to run a worker that Celery made from this app: it has no tasks and would discard every message."""
    sys.exit("layerfarm: start workers with `layerfarm worker`, see docs/farm.md")


signals.celeryd_init.connect(_refuse)
