"""Every role in one process: on the embedded stand-ins, or on the servers that the settings name."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from seckill.doctor.start import (
    opening_database,
)
from seckill.draining import Drain
from seckill.embedded import embedded_kafka, embedded_redis
from seckill.schema import DATABASES, upgrade
from seckill.settings import (
    Settings,
    SettingsError,
    listening,
    variable,
    with_values,
)
from seckill.wiring.process import ROLES, until_stopped
from seckill.wiring.role import Role


@dataclass(frozen=True, slots=True)
class Embedded:
    """The whole pipeline in this process. `settings` name where everything really listens."""

    settings: Settings
    drain: Drain  # of all roles together
    roles: tuple[Role, ...] = field(default_factory=tuple)

    async def until_stopped(self) -> None:
        """As `until_stopped`; then they are unready, and what hangs beyond the deadline ends with the process."""
        await until_stopped(*self.roles)
        await self.drain.begin_process(delay_ms=self.settings.front.drain_delay_ms)

    @property
    def addresses(self) -> dict[str, str]:
        found = {name: address for role in self.roles for name, address in role.addresses.items()}
        return found | {
            "kafka.bootstrap": self.settings.kafka.bootstrap,
            "redis.url": self.settings.redis.url.get_secret_value(),
        }


@asynccontextmanager
async def open_embedded(settings: Settings) -> AsyncIterator[Embedded]:
    """Stand-ins for Kafka, Redis and SQL, then every role on them. State dies with the process.

    Raises SettingsError for a pattern that they cannot do.
    """
    if settings.transaction.pattern == "xa":
        raise SettingsError(
            "transaction.pattern is xa, and of the embedded pipeline product.database_url and order.database_url are "
            f"SQLite, which has no XA: choose another pattern with {variable('transaction.pattern')}, or real servers"
        )
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-")))
        standing_in: dict[str, dict[str, Any]] = {
            "redis": {"url": SecretStr(stack.enter_context(embedded_redis())), "run_id_check": False},
            "kafka": {"bootstrap": stack.enter_context(embedded_kafka())},
            "product": {"database_url": _sqlite(folder / "product.db")},
            "order": {"database_url": _sqlite(folder / "order.db")},
            "coordinator": {"database_url": _sqlite(folder / "coordinator.db")},
            "dead_letters": {"database_url": _sqlite(folder / "dead_letters.db")},
            "front": {"operator_token": settings.front.operator_token or SecretStr(secrets.token_urlsafe(24))},
        }
        settings = with_values(settings, standing_in)
        await _upgrade_databases(settings)
        yield await _open_roles(stack, settings, ROLES)


@asynccontextmanager
async def open_on_servers(settings: Settings) -> AsyncIterator[Embedded]:
    """Every role but the coordinator, on the servers that the settings name; `dtm.grpc` is who coordinates.

    Topics and schema have to be there. Raises what a role raises that does not start.
    """
    token = settings.front.operator_token or SecretStr(secrets.token_urlsafe(24))
    settings = with_values(settings, {"front": {"operator_token": token}})
    async with AsyncExitStack() as stack:
        yield await _open_roles(stack, settings, [name for name in ROLES if name != "coordinator"])


async def _open_roles(stack: AsyncExitStack, settings: Settings, names: Collection[str]) -> Embedded:
    """Starts them one after the other; the addresses of each are settings of those that follow."""
    roles = []
    drain = Drain(max(getattr(settings, name).drain_timeout_ms for name in names))
    for name in names:
        role = await stack.enter_async_context(ROLES[name](listening(settings, name), drain))
        settings = with_values(settings, _as_sections(role.addresses))
        roles.append(role)
    return Embedded(settings, drain, tuple(roles))


async def _upgrade_databases(settings: Settings) -> None:
    """The embedded profile owns its databases, so it makes their tables by itself; elsewhere an operator does."""
    for name in DATABASES:
        url = getattr(settings, name).database_url.get_secret_value()
        async with opening_database(f"{name}.database_url", url):
            await upgrade(name, url)


def _as_sections(addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """`{"product.grpc": …}` as sections; the coordinator's addresses are also where its clients find it."""
    sections: dict[str, dict[str, str]] = {}
    for name, address in addresses.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = address
    if "coordinator" in sections:
        sections["dtm"] = dict(sections["coordinator"])
    return sections


def _sqlite(path: Path) -> SecretStr:
    return SecretStr(f"sqlite+aiosqlite:///{path}")
