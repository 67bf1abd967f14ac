"""The Celery app of a farm."""

from __future__ import annotations

from celery import Celery

from layerfarm.worker.broker.connection import CONNECT_TIMEOUT, SOCKET_TIMEOUT, sentinel_options
from layerfarm.worker.broker.priorities import WeightedRoundRobin
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.settings import Settings

_SWEEP = 3
"""Tens of seconds between two checks of kombu for messages whose worker vanished."""


def make_app(settings: Settings) -> Celery:
    """Return the app of one farm, the same for clients and workers.

    Raises:
        RequestError: no farm is configured.
    """
    address = settings.address
    app = Celery("layerfarm", broker=address.for_celery, set_as_current=False)
    app.conf.update(
        {
            # Messages are typed and small; the state of jobs is in the job store, not in Celery's results.
            "accept_content": ["json"],
            "task_serializer": "json",
            "task_ignore_result": True,
            "result_backend": None,
            "task_store_errors_even_if_ignored": False,
            # A message is removed only when its work is done; a killed process returns it.
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "task_acks_on_failure_or_timeout": True,
            "worker_prefetch_multiplier": 1,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "task_soft_time_limit": settings.unit_time_limit,
            "task_time_limit": settings.unit_time_limit + 60,
            "task_queues": {
                name: {"exchange": name, "exchange_type": "direct", "routing_key": name} for name in settings.queues
            },
            "task_default_queue": settings.queues.control,
            "task_create_missing_queues": False,
            "broker_connection_timeout": CONNECT_TIMEOUT,
            "broker_connection_retry_on_startup": True,
            # However long Redis is away: a worker that ended would have to be started again.
            "broker_connection_max_retries": None,
            "broker_transport_options": {
                "visibility_timeout": settings.visibility_timeout,
                "unacked_restore_throttle": _SWEEP,
                "queue_order_strategy": f"{WeightedRoundRobin.__module__}:{WeightedRoundRobin.__name__}",
                "global_keyprefix": Keys(settings.queue).broker,
                "socket_connect_timeout": CONNECT_TIMEOUT,
                "socket_timeout": SOCKET_TIMEOUT,
                "socket_keepalive": True,
            },
            "task_publish_retry": False,
            "worker_hijack_root_logger": False,
            "worker_redirect_stdouts": False,
            "worker_enable_remote_control": True,
            "worker_send_task_events": settings.events,
            "task_send_sent_event": settings.events,
        }
    )
    if address.is_sentinel:
        sentinels = {"master_name": address.service, "sentinel_kwargs": sentinel_options(address)}
        app.conf.broker_transport_options |= sentinels
        app.conf.broker_use_ssl = address.tls
    return app
