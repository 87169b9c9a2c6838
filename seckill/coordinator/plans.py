"""Branches that come with Prepare or Submit: their steps, payloads and custom data, read and checked."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from seckill.coordinator import refusals
from seckill.coordinator.pattern import Contents

STEPS_MAX = 200

T = TypeVar("T")


class PlannedStep(msgspec.Struct, frozen=True):
    """The addresses of one step; an empty one needs no call."""

    action: str = ""
    compensate: str = ""


def steps_of(contents: Contents) -> list[tuple[str, PlannedStep, bytes]]:
    """Each step with its branch id and its payload. Raises Refusal."""
    written = "[]" if contents.steps in {"", "null"} else contents.steps  # DTM's client sends null when it has none
    steps = decoded(written, list[PlannedStep], "steps")
    if len(steps) > STEPS_MAX:
        raise refusals.invalid(f"{len(steps)} steps: {STEPS_MAX} at most")
    if len(steps) != len(contents.payloads):
        raise refusals.invalid(f"{len(steps)} steps, and {len(contents.payloads)} payloads")
    pairs = enumerate(zip(steps, contents.payloads, strict=True), start=1)
    return [(f"{number:02d}", step, payload) for number, (step, payload) in pairs]


def decoded(text: str, kind: type[T], name: str) -> T:
    """JSON as a value of this type; empty text is an empty object. Raises Refusal naming what it was."""
    try:
        return msgspec.json.decode(text or "{}", type=kind)
    except msgspec.MsgspecError as error:
        raise refusals.invalid(f"{name}: {error}") from error
