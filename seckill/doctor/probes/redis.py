"""Redis: INFO, one setting and its time. No key is read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from redis.exceptions import AuthenticationError, InvalidResponse, NoPermissionError, ResponseError

from seckill.admission.link import Command, RedisLink
from seckill.doctor.facts import Clock, RedisFacts
from seckill.doctor.probes import Silent, Stranger
from seckill.doctor.probes.wire import REDIS, raise_stranger
from seckill.domain.errors import AdmissionUnavailable
from seckill.settings import RedisSettings


async def ask_redis(settings: RedisSettings) -> RedisFacts:
    """Raises Silent, and Stranger for what is no Redis or refuses the user."""
    link = RedisLink(settings)
    try:
        await _ask(link, ("PING",))
        info = await _ask(link, ("INFO",))
        fsync = await _ask(link, ("CONFIG", "GET", "appendfsync"))
        clock = await _time(link)
    finally:
        await link.close()
    fields = {str(key): str(value) for key, value in info.items()} if isinstance(info, Mapping) else {}
    return RedisFacts(fields, _setting(fsync), clock)


async def _time(link: RedisLink) -> Clock | None:
    before_s = time.time()
    told = await _ask(link, ("TIME",))
    after_s = time.time()
    match told:
        case (int() | str() as seconds, int() | str() as microseconds):
            told_s = int(seconds) + int(microseconds) / 1_000_000
        case _:
            return None
    return Clock((told_s - (before_s + after_s) / 2) * 1000, (after_s - before_s) * 500)


async def _ask(link: RedisLink, command: Command) -> Any:
    """The reply; None when the server does not know the command or does not allow it to this user."""
    try:
        return await link.one(command)
    except AdmissionUnavailable as error:
        match error.__cause__:
            case AuthenticationError():
                remedy = "correct redis.username and redis.password, or those in redis.url"
                raise Stranger(f"it refuses the login: {error.detail}", remedy=remedy) from error
            case InvalidResponse():
                raise Stranger("something that is no Redis answers") from error
            case NoPermissionError() | ResponseError() if command != ("PING",):
                return None
        if not link.address.startswith("/"):
            await raise_stranger(link.address, expected=REDIS)
        raise Silent(error.detail) from error


def _setting(reply: object) -> str | None:
    """`CONFIG GET name` answers a list of name and value, or a mapping."""
    match reply:
        case [_, value]:
            return str(value)
        case {"appendfsync": value}:
            return str(value)
        case _:
            return None
