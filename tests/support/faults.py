"""A seeded schedule of faults, and its execution against the roles' processes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.support.role_processes import ROLES, RoleProcess

ROUND_S = 9
"""In each round of about this length every role is killed once."""


FREEZE_S_MAX = {"coordinator": 5.0, "product": 5.0, "order": 5.0, "front": 5.0, "worker": 9.0}
"""A worker may sleep longer than its session lasts."""


class Kind(StrEnum):
    KILL = "kill"  # SIGKILL, and a new process after a while
    FREEZE = "freeze"  # SIGSTOP, and SIGCONT after a while
    DRAIN = "drain"  # SIGTERM, and a new process a while after its end


@dataclass(frozen=True, slots=True)
class Fault:
    """`lasts_s`: how long the role stays dead or frozen, without the time of its new start."""

    at_s: float
    role: str
    kind: Kind
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.2f} s  {self.kind:<6}  {self.role:<11}  for {self.lasts_s:.2f} s"


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Every role is killed in every round; one role is frozen in even rounds, and one is drained in odd ones."""
    chance = random.Random(seed)
    rounds = max(2, round(seconds / ROUND_S))
    span = (seconds - 1) / rounds
    faults = []
    for number in range(rounds):
        begins = 0.5 + number * span
        for role in ROLES:
            at_s = begins + span * chance.uniform(*_part_of_round(role, number))
            faults.append(Fault(at_s, role, Kind.KILL, chance.uniform(0, 1.5)))
        at_s, role = begins + span * chance.uniform(0, 0.9), chance.choice(ROLES)
        if number % 2:
            faults.append(Fault(at_s, role, Kind.DRAIN, chance.uniform(0, 1)))
        else:
            faults.append(Fault(at_s, role, Kind.FREEZE, chance.uniform(2, FREEZE_S_MAX[role])))
    return sorted(faults, key=lambda fault: fault.at_s)


def _part_of_round(role: str, number: int) -> tuple[float, float]:
    """A worker's successor waits until the dead one's session is over. So workers die early in even rounds and late in
    odd ones: in between they carry orders while the others die.
    """
    if role != "worker":
        return 0, 0.9
    return (0.75, 0.9) if number % 2 else (0, 0.15)


async def inflict(faults: Sequence[Fault], roles: Mapping[str, RoleProcess]) -> None:
    """Carries the schedule out; returns when every role has been started for the last time."""
    began = time.monotonic()

    async def on(role: str) -> None:
        process = roles[role]
        for fault in faults:
            if fault.role != role:
                continue
            await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            match fault.kind:
                case Kind.KILL:
                    await process.kill(fault.lasts_s)
                case Kind.FREEZE:
                    await process.freeze(fault.lasts_s)
                case Kind.DRAIN:
                    await process.drain(fault.lasts_s)

    async with asyncio.TaskGroup() as group:
        for role in roles:
            group.create_task(on(role))
