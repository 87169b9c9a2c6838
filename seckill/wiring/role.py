"""What a role is once it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from seckill.draining import Drain
from seckill.settings import Settings


@dataclass(frozen=True, slots=True)
class Role:
    """A running role: where it can be reached, how it ends, and the task whose end means that it failed."""

    name: str
    addresses: Mapping[str, str]
    drain: Drain
    task: asyncio.Task[None] | None = None


class OpenRole(Protocol):
    """Builds a role from settings. It ends within `drain`; without one, within `drain_timeout_ms` of its section."""

    def __call__(self, settings: Settings, drain: Drain | None = None) -> AbstractAsyncContextManager[Role]: ...
