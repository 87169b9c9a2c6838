"""The kinds of transactions that are served."""

from __future__ import annotations

from collections.abc import Mapping

from seckill.coordinator import refusals
from seckill.coordinator.message import Message
from seckill.coordinator.pattern import Pattern, PlannedPattern, RegisteringPattern
from seckill.coordinator.saga import Saga
from seckill.coordinator.tcc import Tcc
from seckill.coordinator.xa import Xa

REGISTERING: Mapping[str, RegisteringPattern] = {pattern.trans_type: pattern for pattern in (Tcc(), Xa())}
PLANNED: Mapping[str, PlannedPattern] = {pattern.trans_type: pattern for pattern in (Saga(), Message())}
PATTERNS: Mapping[str, Pattern] = {**REGISTERING, **PLANNED}


def require_served(trans_type: str) -> None:
    """Raises Refusal for a type that is not served."""
    if trans_type not in PATTERNS:
        raise refusals.unsupported(trans_type)


def registering(trans_type: str) -> RegisteringPattern:
    """Raises Refusal. Only TCC, XA and workflow register branches: DTM answers differently for any other type."""
    if trans_type == "workflow":
        raise refusals.unsupported(trans_type)
    if trans_type not in REGISTERING:
        raise refusals.unknown_branch_type(trans_type)
    return REGISTERING[trans_type]
