"""The app of the farm that the settings name, for Celery's own tools: ``celery --app worker.celery_app flower``."""

from __future__ import annotations

from worker.app import make_app
from worker.settings import load_settings

app = make_app(load_settings())
