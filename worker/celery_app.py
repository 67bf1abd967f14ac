"""The app of the farm that the settings name, for Celery's tools, ``celery -A layerfarm.worker.celery_app flower``."""

from __future__ import annotations

import sys
from typing import Any

from celery import signals

from layerfarm.worker.broker.app import make_app
from layerfarm.worker.settings import load_settings

app = make_app(load_settings())


def _refuse(**_: Any) -> None:
    """A worker that Celery makes of this app knows no task of ours, and would throw every message away."""
    sys.exit("layerfarm: workers are started by `layerfarm worker`, see docs/farm.md")


signals.celeryd_init.connect(_refuse)
