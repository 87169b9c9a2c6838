"""How a command ends when it cannot do its work: an exit code and one line that names the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seckill.client import FrontUnavailable, Problem
    from seckill.domain.errors import AdmissionUnavailable, PublishUnknown
    from seckill.dtm.errors import Unavailable

OK = 0
FAILED = 1  # or only partly done
USAGE = 2  # wrong options or wrong settings
UNREACHABLE = 3  # something that the command needs does not answer
INTERRUPTED = 130
TERMINATED = 143

DETAIL_MAX = 160
"""Characters of a stranger's answer that are shown."""


class CliError(Exception):
    """Ends the command with `exit_code`; the message is what the user reads."""

    exit_code = FAILED


class WrongUsage(CliError):
    exit_code = USAGE


class Unreachable(CliError):
    """Something that the command needs cannot be had; the message names setting, address and remedy."""

    exit_code = UNREACHABLE


def explained(error: Exception) -> tuple[int, str] | None:  # noqa: PLR0911, PLR0912 - one line a kind of error
    """Exit code and line of an error that the layers below raise; None for one that nobody foresaw.

    Imports late: the types are needed only once something has failed.
    """
    from seckill.client import FrontUnavailable, Problem
    from seckill.doctor.start import DatabaseUnavailable
    from seckill.domain.errors import (
        AdmissionUnavailable,
        ConsumerEnded,
        CoordinatorUnavailable,
        ProductUnavailable,
        PublishUnknown,
        SeckillError,
        Unfit,
    )
    from seckill.draining import DrainIncomplete
    from seckill.dtm.errors import DtmError, Unavailable
    from seckill.ops import PortInUse
    from seckill.schema import SchemaLocked, SchemaOutdated
    from seckill.settings import SettingsError

    match error:
        case CliError():
            return error.exit_code, str(error)
        case SettingsError():
            return USAGE, str(error)
        case DrainIncomplete():
            return FAILED, str(error)
        case PortInUse() | SchemaOutdated() | Unfit():
            return UNREACHABLE, str(error)
        case FrontUnavailable():
            return UNREACHABLE, _kept_out(error, error.url) or front_silent(error)
        case Problem():
            return FAILED, f"{error.code}: {error.detail}{_remedy(error)}"
        case Unavailable():
            return UNREACHABLE, coordinator_silent(error)
        case AdmissionUnavailable():
            told = _redis_refusal(error) or _kept_out(error, error.address)
            return UNREACHABLE, told or _silent(error.address, error.detail, "Redis", "redis.url")
        case PublishUnknown() if told := _kept_out(error, error.address):
            return UNREACHABLE, told
        case PublishUnknown() | ProductUnavailable():
            return UNREACHABLE, _silent(error.address, error.detail, *_NAMES[type(error).__name__])
        case SchemaLocked():
            return UNREACHABLE, f"{error}; wait for it, and repeat the command"
        case ConsumerEnded():
            return UNREACHABLE, f"{error}; start the worker again"
        case DatabaseUnavailable():
            return UNREACHABLE, f"{error}; {error.remedy}"
        case CoordinatorUnavailable(__cause__=Unavailable() as cause):
            return UNREACHABLE, coordinator_silent(cause)
        case SeckillError() | DtmError() if error.retryable:
            setting = getattr(error, "setting", "")
            remedy = (
                f"set another with {_variable(setting)}" if setting else "see `seckill config check` for the address"
            )
            return UNREACHABLE, f"{error}; {remedy}"
        case SeckillError() | DtmError():
            return FAILED, str(error)
    return None


_NAMES = {
    "PublishUnknown": ("Kafka", "kafka.bootstrap"),
    "ProductUnavailable": ("the product service", "product.grpc"),
}
"""By the error's name: what did not answer, and the setting that says where it is."""


def _silent(address: str, detail: str, what: str, setting: str) -> str:
    remedy = f"start it, or name another with {_variable(setting)}"
    return f"{what} does not answer at {address} ({setting}): {detail.rstrip('.')}; {remedy}"


def _kept_out(error: FrontUnavailable | AdmissionUnavailable | PublishUnknown, address: str) -> str:
    """A line for a server that answers and does not let us in; empty for one that does not answer."""
    from seckill.doctor.access import FRONT, KAFKA, REDIS, refusal

    door = {"AdmissionUnavailable": REDIS, "PublishUnknown": KAFKA, "FrontUnavailable": FRONT}[type(error).__name__]
    found = refusal(error, door)
    return f"{door.what} at {address} ({door.setting}): {found.problem}; {found.remedy}" if found else ""


def _redis_refusal(error: AdmissionUnavailable) -> str:
    """A line for who answers in Redis' place, or for a Redis that does not let us in; empty when it is silent."""
    from redis.exceptions import AuthenticationError, InvalidResponse, NoPermissionError

    match error.__cause__:
        case AuthenticationError() | NoPermissionError():
            remedy = "correct user and password there (or redis.username, redis.password), or what the user may do"
            return f"Redis at {error.address} (redis.url) refuses us: {error.detail.rstrip('.')}; {remedy}"
        case InvalidResponse():
            remedy = f"correct {_variable('redis.url')}"
            return f"something that is no Redis answers at {error.address} (redis.url); {remedy}"
    return ""


def _variable(setting: str) -> str:
    from seckill.settings import variable

    return variable(setting)


def front_silent(error: FrontUnavailable) -> str:
    """A line for a front that did not answer."""
    remedy = "start one with `seckill up`, or name another with --config or SECKILL__FRONT__HTTP"
    if error.maybe_done:
        remedy = "the request may have been carried out: look before repeating it"
    return f"the front does not answer at {error.url} (front.http): {error.detail}; {remedy}"


def coordinator_silent(error: Unavailable) -> str:
    """A line for a coordinator that gave no usable answer, or for something else that answers in its place."""
    from http import HTTPStatus

    import aiohttp
    from grpc import StatusCode

    from seckill.client import reason_of

    correct = f"correct {_variable('dtm.http')} if that is no coordinator"
    if error.code is StatusCode.UNKNOWN:  # an answer of HTTP, and not DTM's
        detail = " ".join(error.detail.split())[:DETAIL_MAX]
        return f"no answer of a coordinator at {error.target} (dtm.http): {detail}; {correct}"
    match error.__cause__:
        case aiohttp.ClientResponseError(status=HTTPStatus.BAD_REQUEST) | aiohttp.ServerDisconnectedError():
            return f"what answers at {error.target} (dtm.http) does not speak HTTP; {correct}"
        case OSError() | TimeoutError() | aiohttp.ClientError() as cause:
            detail = reason_of(cause)
        case _:
            detail = error.detail
    remedy = f"start it, or name another with {_variable('dtm.http')}"
    return f"the coordinator does not answer at {error.target} (dtm.http): {detail}; {remedy}"


def _remedy(error: Problem) -> str:
    if error.code == "UNAUTHORIZED":
        return "; set SECKILL__FRONT__OPERATOR_TOKEN (front.operator_token) to the front's own token"
    if error.code == "CLOSED":
        return "; start the front with front.operator_token set to allow changes of sales"
    problems = error.facts.get("errors")
    told = [f"{one.get('field')}: {one.get('problem')}" for one in problems or () if isinstance(one, dict)]
    return "".join(f"; {one}" for one in told if one not in error.detail)
