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


class CliError(Exception):
    """Ends the command with `exit_code`; the message is what the user reads."""

    exit_code = FAILED


class WrongUsage(CliError):
    exit_code = USAGE


class Unreachable(CliError):
    """Something that the command needs cannot be had; the message names setting, address and remedy."""

    exit_code = UNREACHABLE


def explained(error: Exception) -> tuple[int, str] | None:
    """Exit code and line of an error that the layers below raise; None for one that nobody foresaw.

    Imports late: the types are needed only once something has failed.
    """
    from seckill.client import FrontUnavailable, Problem
    from seckill.domain.errors import SeckillError
    from seckill.dtm.errors import DtmError, Unavailable
    from seckill.ops import PortInUse
    from seckill.settings import SettingsError

    match error:
        case CliError():
            return error.exit_code, str(error)
        case SettingsError() | PortInUse():
            return (USAGE if isinstance(error, SettingsError) else UNREACHABLE), str(error)
        case FrontUnavailable():
            return UNREACHABLE, front_silent(error)
        case Problem():
            return FAILED, f"{error.code}: {error.detail}{_remedy(error)}"
        case Unavailable():
            return UNREACHABLE, coordinator_silent(error)
        case SeckillError() | DtmError() if error.retryable:
            return UNREACHABLE, f"{error}; check the address in the settings (seckill config check)"
        case SeckillError() | DtmError():
            return FAILED, str(error)
    return None


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
    if isinstance(problems, list):
        return "".join(f"; {one.get('field')}: {one.get('problem')}" for one in problems if isinstance(one, dict))
    return ""
