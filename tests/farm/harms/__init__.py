"""Faults that a farm suffers while its jobs run, one function each."""

from __future__ import annotations

import errno

from layerfarm.jobs.flows.base import FORMAT
from layerfarm.worker.engine.failpoints import STEPS

from . import broker, disks, processes, surroundings
from .fault import Fault, Function

__all__ = ["FAULTS", "Fault", "Function"]

FAULTS: dict[str, Fault] = {
    **{f"SIGKILL at {step}": Fault(processes.kill_at(step)) for step in STEPS},
    "worker SIGKILLed": Fault(processes.kill_worker),
    "workers SIGKILLed again and again": Fault(processes.storm),
    "worker SIGTERMed": Fault(processes.stop_worker),
    "worker paused past its lease": Fault(processes.pause_worker),
    "poison unit": Fault(processes.poison),
    "jobs cancelled": Fault(processes.cancel),
    "jobs retried by many at once": Fault(processes.retry_at_once),
    "delivered twice": Fault(broker.deliver_twice),
    "visibility too short": Fault(broker.short_visibility),
    "messages lost": Fault(broker.lose_messages),
    "connections dropped": Fault(broker.drop_connections),
    "record of a job edited": Fault(broker.edit_record),
    "redis paused": Fault(broker.pause_redis(1, 5)),
    "redis paused for 60 s": Fault(broker.pause_redis(60, 60)),
    "redis restarted": Fault(broker.restart_redis),
    "redis restarted without its last second": Fault(broker.lose_a_second),
    "redis restarted empty": Fault(broker.forget_redis, durable=False),
    "redis and workers SIGKILLed": Fault(processes.end_everything),
    "redis out of memory": Fault(broker.fill_redis),
    "redis's disk full": Fault(broker.fill_redis_disk),
    "redis out of connections": Fault(broker.refuse_connections),
    "redis failed over": Fault(broker.fail_over, networked=True),
    "host cut off": Fault(surroundings.cut_off, networked=True),
    "store full": Fault(disks.store_full),
    "store out of inodes": Fault(disks.store_out_of_inodes),
    "store read-only": Fault(disks.store_read_only),
    "store over quota": Fault(disks.break_disk("wn", errno.EDQUOT)),
    "store unmounted": Fault(disks.store_unmounted),
    "store corrupt": Fault(disks.store_corrupt),
    "bundle's disk full": Fault(disks.bundle_full),
    "disk fails to write": Fault(disks.break_disk("w", errno.EIO)),
    "disk fails to read": Fault(disks.break_disk("r", errno.EIO)),
    "disk fails to sync": Fault(disks.break_disk("s", errno.EIO)),
    "disk fails to name": Fault(disks.break_disk("n", errno.EIO)),
    "disk slow": Fault(disks.slow_disk),
    "gc all along": Fault(surroundings.collect_all_along),
    "gc SIGKILLed again and again": Fault(surroundings.kill_collectors),
    "gc when the farm has forgotten a job": Fault(surroundings.collect_past_the_lease),
    "two farms on one store": Fault(surroundings.two_farms),
    "clocks off by 5 min": Fault(surroundings.wrong_clocks),
    "clock jumps by 1 h": Fault(surroundings.clock_jumps),
    "new version": Fault(surroundings.deploy(surroundings.understands_more, None)),
    "new format": Fault(
        surroundings.deploy(
            surroundings.reads_another_format, f"has format {FORMAT}, this worker reads {FORMAT + 1} and {FORMAT + 2}"
        )
    ),
}
"""By name, as the table shows it."""
