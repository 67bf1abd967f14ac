"""The scripts of ``lua/``, for one Redis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis

from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import JobView
from layerfarm.worker.settings import Settings

_TEXTS: Final = {path.stem: path.read_text() for path in Path(__file__).with_name("lua").glob("*.lua")}
"""Read at import: in its sandbox, perhaps as another user, a process cannot read the files."""
_KEYS: Final = ("prefix", "queued", "turns", "waiting", "kept", "nonce", "jobs", "works", "work", "seen")
"""Keys that scripts know by these names, in capitals."""
_VIEW: Final = "local VIEW = {'" + "', '".join(JobView.model_fields) + "'}\n"
"""The fields of a job that ``claim.lua`` returns."""


def away(lease: float, look_every: float) -> float:
    """Return the seconds without a worker that looks for lost jobs after which Redis was away, or all workers were."""
    return max(lease / 2, 3 * look_every)


class Scripts:
    """Each is registered when it is first run."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        keys = Keys(settings.queue)
        constants = _VIEW + "".join(f"local {name.upper()} = '{getattr(keys, name)}'\n" for name in _KEYS)
        constants += f"local AWAY = {away(settings.lease, settings.look_every) * 1000:.0f}\n"

        @cache
        def registered(name: str, claims: bool) -> Any:
            body = _TEXTS[name]
            if claims:
                body = _function("operate", name) + _function("claim", "claim") + _TEXTS["and_claim"]
            prelude = "work" if name.startswith("work_") else "job"
            return client.register_script(constants + _TEXTS["claims"] + _TEXTS[prelude] + body)

        self._registered = registered

    def run(self, name: str, keys: Sequence[str] = (), args: Sequence[Any] = (), claim: Sequence[Any] = ()) -> Any:
        """Run ``lua/<name>.lua`` and return its answer.

        With arguments of ``lua/claim.lua``, run that after it in the same request, and return both answers.
        """
        if claim:
            args = (len(args), *args, *claim)
        # redis-py takes five times as long to encode an argument.
        encoded = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        return self._registered(name, bool(claim))(keys=[key.encode() for key in keys], args=encoded)


def _function(name: str, script: str) -> str:
    return f"local function {name}(ARGV)\n{_TEXTS[script]}\nend\n"
