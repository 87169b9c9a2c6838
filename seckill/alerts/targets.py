"""Where messages go: Apprise's services, one object for each URL of the settings.

A URL is a secret, most of them hold a token: it is shown nowhere. A target is known by its kind and its place in the
settings (`slack #2`), and whatever Apprise says of a failure is shown only without any part of a URL.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from seckill.alerts.engine import Kind, Message
from seckill.alerts.findings import Rule
from seckill.alerts.words import body, title

if TYPE_CHECKING:
    from apprise import NotifyBase

SECRET_PIECE_MIN = 3
"""Characters from which on a part of a URL is never shown."""

IDENT_LENGTH = 12


class UnknownTarget(Exception):
    """A URL that Apprise does not know; `number` is its place in the settings, from 1 on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"alerts.targets, number {number}: not a URL of a service that Apprise knows")
        self.number = number


class Target(Protocol):
    """`name` holds no secret; `ident` is the same as long as the URL is."""

    @property
    def name(self) -> str: ...

    @property
    def ident(self) -> str: ...

    def send(self, message: Message) -> str:
        """Blocks, in a thread of its own. Empty when the message was taken, else why not. Raises nothing."""


@dataclass(frozen=True, slots=True)
class AppriseTarget:
    name: str
    ident: str
    _service: NotifyBase = field(repr=False)
    _secrets: frozenset[str] = field(repr=False)

    def send(self, message: Message) -> str:
        with _HEARD.listening() as heard:
            try:
                taken = self._service.notify(
                    title=title(message), body=body(message), notify_type=_notify_type(message), body_format="text"
                )
            except Exception as error:  # noqa: BLE001 - a stranger's code, and whatever it raises: it was not taken
                return without(self._secrets, f"{type(error).__name__}: {error}")
        return "" if taken else without(self._secrets, "; ".join(heard)) or "refused, or no answer"


def open_targets(urls: Sequence[str]) -> list[AppriseTarget]:
    """Connects on first use. Raises UnknownTarget."""
    if not urls:
        return []
    from apprise import Apprise, AppriseAsset  # noqa: PLC0415 - loads 183 services: 300 ms that others need not pay

    _quiet()
    asset = AppriseAsset(app_id="seckill", app_desc="seckill", app_url="")
    targets = []
    for number, url in enumerate(urls, start=1):
        service = Apprise.instantiate(url, asset=asset)
        if service is None:
            raise UnknownTarget(number)
        kind = re.match(r"[a-z0-9]*", url.lower())
        assert kind is not None
        ident = hashlib.sha256(url.encode()).hexdigest()[:IDENT_LENGTH]
        targets.append(AppriseTarget(f"{kind[0]} #{number}", ident, service, secrets_of(url)))
    return targets


def secrets_of(url: str) -> frozenset[str]:
    """Every part of a URL after its scheme that could be a name, a token or a password."""
    rest = url.partition("://")[2]
    return frozenset(
        piece
        for text in (rest, unquote(rest))
        for piece in re.split(r"[^A-Za-z0-9_.~+-]+", text)
        if len(piece) >= SECRET_PIECE_MIN
    )


def without(secrets: frozenset[str], text: str) -> str:
    """The text with every secret blotted out, the longest ones first, whatever their case."""
    pieces = sorted(secrets, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, pieces)), "***", text, flags=re.IGNORECASE) if pieces else text


def _notify_type(message: Message) -> str:
    """How a target colours it."""
    if message.finding.rule is Rule.TEST:
        return "info"
    return {Kind.RAISED: "failure", Kind.REPEATED: "warning", Kind.RESOLVED: "success"}[message.kind]


# --- what Apprise says -----------------------------------------------------------------------------------------------


class _Heard(logging.Handler):
    """Keeps Apprise's warnings for the thread that they are said in."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._local = threading.local()

    def listening(self) -> _Listening:
        return _Listening(self._local)

    def emit(self, record: logging.LogRecord) -> None:
        heard: list[str] | None = getattr(self._local, "heard", None)
        if heard is not None:
            heard.append(record.getMessage())


class _Listening:
    def __init__(self, local: threading.local) -> None:
        self._local = local

    def __enter__(self) -> list[str]:
        self._local.heard = heard = list[str]()
        return heard

    def __exit__(self, *_: object) -> None:
        self._local.heard = None


_HEARD = _Heard()


def _quiet() -> None:
    """Apprise's log, which may name a URL, goes nowhere but to us; the HTTP client's below it nowhere at all."""
    apprise_log = logging.getLogger("apprise")
    apprise_log.handlers = [_HEARD]
    apprise_log.propagate = False
    apprise_log.setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
