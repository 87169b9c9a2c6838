"""How a command ends when it cannot do its work: an exit code and one line that names the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seckill.client import FrontUnavailable, Problem
    from seckill.dtm.errors import Unavailable

OK = 0
FAILED = 1  # or only partly done
USAGE = 2  # wrong options or wrong settings
UNREACHABLE = 3  # something that the command needs does not answer
INTERRUPTED = 130
TERMINATED = 143


class CliError(Exception):
    """Ends the command with `exit_code`; the message is what the user reads."""

    exit_code = FAILED


class WrongUsage(CliError):
    exit_code = USAGE


class Unreachable(CliError):
    """Something that the command needs cannot be had; the message names setting, address and remedy."""

    exit_code = UNREACHABLE


def explained(error: Exception) -> tuple[int, str] | None:  # noqa: PLR0911 - one line a kind of error
    """Exit code and line of an error that the layers below raise; None for one that nobody foresaw.

    Imports late: the types are needed only once something has failed.
    """
    from seckill.client import FrontUnavailable, Problem
    from seckill.domain.errors import (
        AdmissionUnavailable,
        ConsumerEnded,
        ProductUnavailable,
        PublishUnknown,
        SeckillError,
    )
    from seckill.dtm.errors import DtmError, Unavailable
    from seckill.ops import PortInUse
    from seckill.settings import SettingsError

    match error:
        case CliError():
            return error.exit_code, str(error)
        case SettingsError():
            return USAGE, str(error)
        case PortInUse():
            return UNREACHABLE, str(error)
        case FrontUnavailable():
            return UNREACHABLE, front_silent(error)
        case Problem():
            return FAILED, f"{error.code}: {error.detail}{_remedy(error)}"
        case Unavailable():
            return UNREACHABLE, coordinator_silent(error)
        case AdmissionUnavailable() | PublishUnknown() | ProductUnavailable():
            return UNREACHABLE, _silent(error.address, error.detail, *_NAMES[type(error).__name__])
        case ConsumerEnded():
            return UNREACHABLE, f"{error}; start the worker again"
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
    "AdmissionUnavailable": ("Redis", "redis.url"),
    "PublishUnknown": ("Kafka", "kafka.bootstrap"),
    "ProductUnavailable": ("the product service", "product.grpc"),
}
"""By the error's name: what did not answer, and the setting that says where it is."""


def _silent(address: str, detail: str, what: str, setting: str) -> str:
    remedy = f"start it, or name another with {_variable(setting)}"
    return f"{what} does not answer at {address} ({setting}): {detail.rstrip('.')}; {remedy}"


def _variable(setting: str) -> str:
    return f"SECKILL__{setting.replace('.', '__').upper()}"


def front_silent(error: FrontUnavailable) -> str:
    """A line for a front that did not answer."""
    remedy = "start one with `seckill up`, or name another with --config or SECKILL__FRONT__HTTP"
    if error.maybe_done:
        remedy = "the request may have been carried out: look before repeating it"
    return f"the front does not answer at {error.url} (front.http): {error.detail}; {remedy}"


def coordinator_silent(error: Unavailable) -> str:
    """A line for a coordinator that gave no usable answer."""
    from seckill.client import reason_of

    detail = reason_of(error.__cause__) if isinstance(error.__cause__, OSError | TimeoutError) else error.detail
    return f"the coordinator does not answer at {error.target} (dtm.http): {detail}; is it started?"


def _remedy(error: Problem) -> str:
    if error.code == "UNAUTHORIZED":
        return "; set SECKILL__FRONT__OPERATOR_TOKEN (front.operator_token) to the front's own token"
    if error.code == "CLOSED":
        return "; start the front with front.operator_token set to allow changes of sales"
    problems = error.facts.get("errors")
    told = [f"{one.get('field')}: {one.get('problem')}" for one in problems or () if isinstance(one, dict)]
    return "".join(f"; {one}" for one in told if one not in error.detail)
