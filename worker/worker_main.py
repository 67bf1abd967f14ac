"""A worker in the foreground."""

from __future__ import annotations

import importlib
import mmap
import os
import warnings
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import redis
import structlog
from celery import signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.extras import require
from layerfarm.jobs.flows import FLOWS
from layerfarm.worker.background.registry import Registration, WorkerInfo, ticking
from layerfarm.worker.background.shutdown import BEGUN, HANDING_BACK, Drain
from layerfarm.worker.broker import transport
from layerfarm.worker.broker.app import make_app
from layerfarm.worker.broker.connection import client_of, connect
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.doctor.views import Views
from layerfarm.worker.engine.recovery import Recovery
from layerfarm.worker.engine.tasks import Process, work_as
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.monitoring.census import census
from layerfarm.worker.monitoring.logs import configure_logs
from layerfarm.worker.security.kernel import die_with_parent
from layerfarm.worker.security.sandbox import Sandbox, sandbox
from layerfarm.worker.security.signing import Keyring
from layerfarm.worker.settings import Settings

_LENIENCE = 60_000
"""Milliseconds by which a signature may be valid for longer than the worker's setting: an equal setting must work."""

_log = structlog.get_logger()


def run_worker(settings: Settings) -> int:
    """Work for the farm until SIGTERM or Ctrl-C; return the exit code.

    Running units may end within ``settings.drain`` seconds; the others are handed back to the farm.

    Raises:
        RequestError: the settings allow no store or no root, or name a module that cannot be imported.
        FarmUnreachable: Redis does not answer.
    """
    check(settings)
    connect(settings.address).close()
    # Owners in a rootfs need root; messages hold no code, all of them are typed JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Tasks continue after a lost connection: their claims do not depend on it.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    configure_logs(settings.log_level)
    _import_flows(settings)
    client = client_of(settings.address)
    transport.use_in_this_process(settings.queues, lambda why: _count_refused(client, Keys(settings.queue), why))
    with ExitStack() as stack:
        if settings.metrics:
            from layerfarm.worker.monitoring.metrics import served

            look = partial(census, client, Keys(settings.queue), settings.queues)
            stack.enter_context(served(settings.metrics, look))
        if settings.traces:
            require("traces", "LAYERFARM_TRACES")
            from layerfarm.worker.monitoring.traces import Traces

            stack.callback(Traces().flush)
        return _work(settings, client, stack.enter_context(sandbox(settings)))


def _work(settings: Settings, client: redis.Redis, place: Sandbox) -> int:
    app = make_app(settings)
    shared = mmap.mmap(-1, 1)  # before the fork
    work_as(
        Process(
            app,
            settings,
            stopping=lambda: shared[0] == HANDING_BACK,
            leaving=lambda: shared[0] >= BEGUN,
            keyring=_keyring(settings),
            is_outdated=place.is_outdated,
        )
    )
    store = RedisJobStore(client, settings)
    sender = Sender(app, settings)
    registration = _registration(client, Recovery.of(client, store, sender, settings), settings, place)
    app.steps["consumer"].add(ticking(registration))
    main = os.getpid()

    # Strong references: Celery's signals hold weak ones.
    def in_child(**_: Any) -> None:
        try:
            place.enter()
        except Exception:
            # Celery would log that, and let the process work unconfined.
            _log.exception("the sandbox could not be entered")
            os._exit(1)
        # Without its main process a child would not learn that its work was given to another. After the sandbox,
        # because becoming another user resets this.
        die_with_parent(main)
        configure_logs(settings.log_level)

    def keep_logs(**_: Any) -> None:
        """Do nothing: being connected keeps Celery from configuring the logs itself."""

    signals.worker_process_init.connect(in_child)
    signals.setup_logging.connect(keep_logs)
    worker = app.Worker(
        hostname=f"layerfarm@{registration.info.name}",
        pool="prefork",
        concurrency=settings.concurrency,
        queues=list(settings.queues),
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    drain = Drain(settings.drain, shared, store, sender, lambda: worker.pool.info["processes"])
    signals.worker_shutting_down.connect(drain.begin)
    _log.info("worker starts", farm=settings.address.masked, concurrency=settings.concurrency, kinds=sorted(FLOWS))
    if missing := [str(path) for path in (*settings.roots, *settings.stores) if not path.is_dir()]:
        # No error: the disk may be mounted later. Until then jobs fail here that succeed on other workers.
        _log.warning("roots or stores do not exist here", missing=missing)
    try:
        worker.start()
    finally:
        registration.stop()
    return int(worker.exitcode or 0)


def _count_refused(client: redis.Redis, keys: Keys, why: str) -> None:
    _log.warning("message refused", error=why)
    with suppress(redis.RedisError):
        client.incr(keys.refused)


def _keyring(settings: Settings) -> Keyring | None:
    """Read the keys once, before the fork: the processes of the pool need no right to the files."""
    if settings.keys is None:
        return None
    keyring = Keyring.load(settings.keys, int(settings.signature_valid * 1000) + _LENIENCE)
    _log.info("requests must be signed", keys=str(settings.keys))
    return keyring


def check(settings: Settings) -> None:
    """Refuse a worker that could do no work, before it takes a job.

    Raises:
        RequestError: no store or no root is allowed.
    """
    _ = settings.address
    if not settings.stores:
        raise RequestError("no store is allowed", hint="name one with --store or LAYERFARM_STORES")
    if not settings.roots:
        raise RequestError("no root is allowed", hint="name one with --root or LAYERFARM_ROOTS")


def _import_flows(settings: Settings) -> None:
    FLOWS.import_all()
    for name in settings.flows:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RequestError(f"module with flows cannot be imported: {error}", where=name) from error


def _registration(client: redis.Redis, recovery: Recovery, settings: Settings, place: Sandbox) -> Registration:
    info = WorkerInfo.of_this_process(
        concurrency=settings.concurrency,
        roots=settings.roots,
        stores=settings.stores,
        kinds=tuple(sorted(FLOWS)),
        confined=place.confined,
    )
    keys = Keys(settings.queue)
    views = Views(client, keys, info.name, settings.policy)
    return Registration(client, keys, info, recovery.look_at_all, settings.look_every, views.answer)
