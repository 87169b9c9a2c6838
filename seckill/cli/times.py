"""Times and prices as people write them on a command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal

_RELATIVE = re.compile(r"([+-])(\d{1,6})(s|m|h|d)", re.ASCII)
_AGE = re.compile(r"(\d{1,5})(s|m|h|d)", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_moment(text: str, *, now: datetime) -> int:
    """Milliseconds since 1970 of `now`, `+10m`, `-30s`, `+2h`, `+1d`, or ISO 8601 (without offset: `now`'s zone).

    Raises ValueError naming what is allowed.
    """
    if text == "now":
        return int(now.timestamp() * 1000)
    try:
        if match := _RELATIVE.fullmatch(text):
            span = timedelta(**{_UNITS[match[3]]: int(match[2])})
            return int((now + span if match[1] == "+" else now - span).timestamp() * 1000)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write now, +10m, -30s, +2h, +1d, or ISO 8601 such as 2026-11-11T20:00:00+08:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)).timestamp() * 1000)


def parse_past(text: str, *, now: datetime) -> int:
    """As `parse_moment`; a length of time alone, such as `15m`, is so long ago."""
    if _AGE.fullmatch(text):
        return int(now.timestamp() * 1000) - parse_age(text)
    try:
        return parse_moment(text, now=now)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write 15m, 2h or 1d (ago), or ISO 8601 such as 2026-11-11T20:00:00+08:00"
        ) from None


def parse_age(text: str) -> int:
    """Milliseconds of `30d`, `12h`, `90m` or `60s`. Raises ValueError naming what is allowed."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no length of time: write for example 30d, 12h or 90m")
    return int(timedelta(**{_UNITS[match[2]]: int(match[1])}).total_seconds() * 1000)


def parse_price(text: str) -> int:
    """Cents of a price such as `19.90`. Raises ValueError."""
    try:
        cents = Decimal(text) * 100
    except ArithmeticError:
        raise ValueError(f"{text!r} is no price: write for example 19.90") from None
    if not cents.is_finite() or cents < 0 or cents != cents.to_integral_value():
        raise ValueError(f"{text!r} is no price: not below 0, at most two decimals")
    return int(cents)
