"""The connection to Redis: pipelines of scripts and commands, bounded in number and time.

Every pipeline runs in a task of its own behind a shield: a caller that is cancelled stops waiting, but its commands are
sent and their replies read to the end, so that no connection is ever left with a reply that belongs to someone else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from seckill.domain.errors import AdmissionUnavailable
from seckill.security import redis_files
from seckill.settings import RedisSettings

log = structlog.get_logger(__name__)

Argument = str | int
Command = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script that ships beside this module; Redis knows it by the SHA-1 of its text."""

    name: str
    text: str
    sha: str

    def call(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


@cache
def load_script(name: str) -> Script:
    text = (resources.files("seckill.admission") / f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisLink:
    """One bounded pool of connections. Opens nothing before the first `run`. Raises CertificateProblem when made."""

    def __init__(self, settings: RedisSettings) -> None:
        timeout_s = settings.command_timeout_ms / 1_000
        self._pool = BlockingConnectionPool.from_url(
            settings.url.get_secret_value(),
            **_identity(settings),
            max_connections=settings.connections_max,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            decode_responses=True,
            protocol=2,  # the shapes of replies that this package reads
        )
        self._redis = Redis(connection_pool=self._pool)
        self._running: set[asyncio.Task[list[Any]]] = set()
        self._loaded: set[str] = set()  # scripts that were sent ahead once
        where = self._pool.connection_kwargs
        self.address = str(where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}")
        self.run_id_check = settings.run_id_check

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip; the replies in the order of the commands.

        Raises AdmissionUnavailable when any of them failed or nothing was heard: whether they ran is then unknown.
        A lost connection is tried once more, because every command that is sent here may be repeated: orders carry ids
        that were fixed before the call, changes of units carry change ids, the rest sets what it says. After a time-out
        there is no second try: the caller has waited long enough; nor after a refused login.
        """
        task = asyncio.create_task(self._run(commands), name="redis-pipeline")
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def one(self, command: Command) -> Any:
        return (await self.run([command]))[0]

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._redis.aclose()
        await self._pool.aclose()

    def _finished(self, task: asyncio.Task[list[Any]]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # read here, because a cancelled caller will not

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        try:
            replies = await self._send(commands, load=_shas(commands) - self._loaded)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                replies = await self._send_again(commands, replies)
        except RedisError as error:
            raise AdmissionUnavailable(self.address, str(error) or type(error).__name__) from error
        for reply in replies:
            if isinstance(reply, RedisError):
                raise AdmissionUnavailable(self.address, str(reply)) from reply
        return replies

    async def _send_again(self, commands: Sequence[Command], replies: list[Any]) -> list[Any]:
        """The calls whose scripts the server has forgotten (it was restarted, or flushed), with the scripts."""
        missed = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        again = [commands[at] for at in missed]
        answered = dict(zip(missed, await self._send(again, load=_shas(again)), strict=True))
        return [answered.get(at, reply) for at, reply in enumerate(replies)]

    async def _send(self, commands: Sequence[Command], *, load: set[str]) -> list[Any]:
        """The replies to the commands; the scripts `load` travel ahead of them in the same pipeline."""
        texts: list[Command] = [("SCRIPT", "LOAD", script.text) for script in _scripts() if script.sha in load]
        try:
            replies = await self._pipeline([*texts, *commands])
        except (RedisTimeoutError, AuthenticationError):
            raise
        except RedisConnectionError as error:
            log.info("redis_connection_lost", address=self.address, error=str(error))
            replies = await self._pipeline([*texts, *commands])
        self._loaded |= load
        return replies[len(texts) :]

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies


def _identity(settings: RedisSettings) -> dict[str, Any]:
    """Who we are, and whom we trust: what the URL does not say. The URL's own user and password win."""
    arguments: dict[str, Any] = {}
    if settings.password is not None:
        arguments |= {"username": settings.username, "password": settings.password.get_secret_value()}
    if settings.tls:
        redis_files(settings).check()
        arguments |= {
            "ssl_ca_certs": settings.tls_ca,
            "ssl_certfile": settings.tls_certificate,
            "ssl_keyfile": settings.tls_key,
            "ssl_check_hostname": settings.tls_check_hostname,
        }
    return arguments


SCRIPT_NAMES = (
    "admit", "settle", "postpone", "put_off", "park", "unpark", "due", "claim", "warm", "set_state", "change_units",
    "close_for_rebuild", "hold_rebuild", "install_rebuild", "doubt", "vouched",
)  # fmt: skip


@cache
def _scripts() -> tuple[Script, ...]:
    return tuple(load_script(name) for name in SCRIPT_NAMES)


def _shas(commands: Sequence[Command]) -> set[str]:
    return {str(command[1]) for command in commands if command[0] == "EVALSHA"}
