"""Equal work of different jobs, done once across the farm: the first one does it, the others subscribe.

Work has a name that says all that its result depends on (``layerfarm.jobs.flows.base.Equal``). Under that name Redis
holds a claim, with lease and fencing number as a unit's, then the result, and who waits for it. Whoever
finds a living claim gives its own unit back and subscribes: no process waits for another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import redis

from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.jobstore.owner import Owner, this_process
from layerfarm.worker.settings import Settings

_PRELUDE: Final = """
local name = ARGV[1]
local work, waiting = PREFIX .. name, PREFIX .. name .. ':waiting'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function holder_of(key)
  local value = redis.call('HGET', key, 'claim')
  if not value then return nil, nil, false end
  local token, expires, lease, owner = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  expires = tonumber(expires)
  -- One that is valid for longer than its lease was dated by a clock that has been set back since: it is none.
  return tonumber(token), owner, expires > now and expires <= now + tonumber(lease)
end
local function hold(key, token, lease, owner)
  redis.call('HSET', key, 'claim', string.format('%d %d %d %s', token, now + lease, lease, owner))
end
-- Who waits. They are named again when the script is run again because its reply was lost.
local function wake(key, woken)
  if redis.call('EXISTS', key .. ':waiting') == 1 then
    redis.call('RENAME', key .. ':waiting', woken)
    redis.call('EXPIRE', woken, 60)
  end
  return redis.call('SMEMBERS', woken)
end
"""

_TAKE: Final = """
-- name, owner, lease ms, owner known to be dead, lifetime -> done + result, busy + holder, ok + token
local result = redis.call('HGET', work, 'result')
if result then return {'done', result} end
local token, holder, lives = holder_of(work)
if lives and holder ~= ARGV[4] and holder ~= ARGV[2] then return {'busy', holder} end
if not (lives and holder == ARGV[2]) then token = redis.call('HINCRBY', work, 'executions', 1) end
hold(work, token, tonumber(ARGV[3]), ARGV[2])
redis.call('EXPIRE', work, ARGV[5])
redis.call('SADD', WORKS, name)
return {'ok', token}
"""

_BEAT: Final = """
-- name, token, lease ms -> 1: still held
local token, holder = holder_of(work)
if token ~= tonumber(ARGV[2]) then return 0 end
hold(work, token, tonumber(ARGV[3]), holder)
return 1
"""

_END: Final = """
-- name, token, result or '', lifetime -> who waits
local woken = work .. ':woken:' .. ARGV[2]
if holder_of(work) ~= tonumber(ARGV[2]) then return redis.call('SMEMBERS', woken) end
redis.call('HDEL', work, 'claim')
redis.call('SREM', WORKS, name)
if ARGV[3] ~= '' then
  redis.call('HSET', work, 'result', ARGV[3])
  redis.call('EXPIRE', work, ARGV[4])
end
return wake(work, woken)
"""

_SUBSCRIBE: Final = """
-- name, subscriber, lifetime -> 0: there is nothing to wait for any more
local _, _, lives = holder_of(work)
if redis.call('HEXISTS', work, 'result') == 1 or not lives then return 0 end
redis.call('SADD', waiting, ARGV[2])
redis.call('EXPIRE', waiting, ARGV[3])
return 1
"""

_FORGET: Final = """
-- name, result that does not hold any more
if redis.call('HGET', work, 'result') == ARGV[2] then redis.call('HDEL', work, 'result') end
"""

_ABANDONED: Final = """
-- '' -> who waits for work whose claim ran out
local out = {}
for _, each in ipairs(redis.call('SMEMBERS', WORKS)) do
  local _, _, lives = holder_of(PREFIX .. each)
  if not lives then
    redis.call('SREM', WORKS, each)
    for _, subscriber in ipairs(wake(PREFIX .. each, PREFIX .. each .. ':woken:')) do out[#out + 1] = subscriber end
  end
end
return out
"""


@dataclass(frozen=True)
class Work:
    """The right to do a piece of work for the whole farm, until the lease ends without a beat."""

    name: str
    token: int
    """Fencing number; also how often the work was begun."""


@dataclass(frozen=True)
class Known:
    """Work that was done before, for this job or another."""

    name: str
    text: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass(frozen=True)
class Subscriber:
    """A unit that waits for the result of equal work."""

    item: Item

    @classmethod
    def parse(cls, text: str) -> Subscriber:
        job_id, attempt, stage, index = text.split(":")
        return cls(Item(job_id, int(attempt), "unit", int(stage), int(index)))

    def __str__(self) -> str:
        return f"{self.item.job_id}:{self.item.attempt}:{self.item.stage}:{self.item.index}"


class Works:
    """The equal work of all jobs, for one process.

    Parameters:
        lease: seconds after which work whose holder says nothing more is taken over.
        lifetime: seconds for which a result is remembered.
    """

    def __init__(
        self,
        client: redis.Redis,
        lease: float,
        lifetime: float,
        owner: Owner | None = None,
        keys: Keys | None = None,
    ) -> None:
        keys = keys or Keys()
        begin = f"local PREFIX, WORKS = '{keys.work}', '{keys.works}'" + _PRELUDE
        self._lease = int(lease * 1000)
        self._lifetime = max(1, int(lifetime))
        self._owner = owner
        self._take = client.register_script(begin + _TAKE)
        self._beat = client.register_script(begin + _BEAT)
        self._end = client.register_script(begin + _END)
        self._subscribe = client.register_script(begin + _SUBSCRIBE)
        self._forget = client.register_script(begin + _FORGET)
        self._abandoned = client.register_script(begin + _ABANDONED)

    @classmethod
    def of(cls, client: redis.Redis, settings: Settings) -> Works:
        """Those of the farm behind ``client``."""
        return cls(client, settings.lease, settings.result_expires, keys=Keys(settings.queue))

    @cached_property
    def _me(self) -> str:
        return str(self._owner or this_process())

    def take(self, name: str) -> Work | Known | None:
        """Take the work, also from an owner that this process can see is dead. None: somebody is at it."""
        what, value = self._ask(name, "")
        if what == "busy" and Owner.parse(value).is_known_dead:
            what, value = self._ask(name, value)
        if what == "busy":
            return None
        return Work(name, int(value)) if what == "ok" else Known(name, value)

    def beat(self, work: Work) -> bool:
        """Keep it. False: it was taken over, which does no harm: equal work gives the equal blob."""
        return bool(self._beat(args=(work.name, work.token, self._lease)))

    def done(self, work: Work, result: dict[str, Any]) -> list[Subscriber]:
        """Remember the result; returns who waits for it."""
        return self._finish(work, json.dumps(result))

    def give_up(self, work: Work) -> list[Subscriber]:
        """Let somebody else do it; returns who waits for that."""
        return self._finish(work, "")

    def subscribe(self, name: str, subscriber: Subscriber) -> bool:
        """Be told when the work is done. False: it is, or nobody is at it any more."""
        return bool(self._subscribe(args=(name, str(subscriber), self._lifetime)))

    def forget(self, known: Known) -> None:
        """The result can be used no more."""
        self._forget(args=(known.name, known.text))

    def abandoned(self) -> list[Subscriber]:
        """Who waits for work whose holder is gone."""
        return [Subscriber.parse(text) for text in self._abandoned(args=("",))]

    def _ask(self, name: str, dead: str) -> tuple[str, str]:
        what, value = self._take(args=(name, self._me, self._lease, dead, self._lifetime))
        return what, str(value)

    def _finish(self, work: Work, result: str) -> list[Subscriber]:
        return [Subscriber.parse(text) for text in self._end(args=(work.name, work.token, result, self._lifetime))]
