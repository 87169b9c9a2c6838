"""Which letters a `seckill dlq` command is about: ids, or filters that all of them understand alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.errors import WrongUsage
from seckill.cli.times import parse_past
from seckill.domain.reasons import DeadLetterReason

if TYPE_CHECKING:
    from seckill.dlq.model import Filter


class State(StrEnum):
    """The states of a letter, for a command line that has not loaded the rest yet."""

    NEW = "new"
    REPLAYING = "replaying"
    RESOLVED = "resolved"
    DISCARDED = "discarded"


SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Failed since then: 15m (ago), 2h, 1d, or ISO 8601.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Failed before then.")]
ReasonOption = Annotated[
    list[DeadLetterReason] | None,
    typer.Option(
        "--reason",
        case_sensitive=False,
        metavar="REASON",
        help=f"Set aside for this reason: {', '.join(DeadLetterReason)}; repeatable.",
    ),
]
ProductOption = Annotated[int | None, typer.Option("--product", min=1, metavar="ID", help="Orders of this product.")]
UserOption = Annotated[int | None, typer.Option("--user", min=1, metavar="ID", help="Orders of this buyer.")]
OrderOption = Annotated[str | None, typer.Option("--order", metavar="ORDER", help="The letter of this order.")]
StateOption = Annotated[
    list[State] | None,
    typer.Option(
        "--state", case_sensitive=False, metavar="STATE", help=f"In this state: {', '.join(State)}; repeatable."
    ),
]


@dataclass(frozen=True, slots=True)
class Choice:
    """The filters as they were typed."""

    since: str | None = None
    until: str | None = None
    reasons: Sequence[DeadLetterReason] | None = None
    product: int | None = None
    user: int | None = None
    order: str | None = None
    states: Sequence[State] | None = None

    @property
    def given(self) -> bool:
        """Whether anything was asked for at all."""
        return any((self.since, self.until, self.reasons, self.product, self.user, self.order, self.states))

    def wanted(self, *, limit: int, states: Sequence[State] = ()) -> Filter:
        """The filter; `states` are those of a command that was told none. Raises WrongUsage naming the option."""
        from seckill.dlq.model import Filter, LetterState

        since_ms, until_ms = _moment("--since", self.since), _moment("--until", self.until)
        if since_ms is not None and until_ms is not None and until_ms <= since_ms:
            raise WrongUsage(f"--until ({self.until}) is not after --since ({self.since})")
        return Filter(
            since_ms=since_ms,
            until_ms=until_ms,
            reasons=frozenset(self.reasons or ()),
            product_id=self.product,
            user_id=self.user,
            order_id=_order_id(self.order),
            states=frozenset(LetterState(each.value) for each in self.states or states),
            limit=limit,
        )


def _moment(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_past(text, now=datetime.now().astimezone())
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from error


def _order_id(text: str | None) -> str | None:
    from seckill.domain.order import parse_order_id

    if text is not None:
        try:
            parse_order_id(text)
        except ValueError as error:
            raise WrongUsage(f"--order: {error}") from error
    return text
