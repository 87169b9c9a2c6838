"""A role that a test can tell to die, to hang, to lose its connections or to fail at a crash point.

`python crashing_role.py ROLE MAILBOX` runs `seckill ROLE`, which is as it always is until a test writes `MAILBOX.arms`
(JSON: a list of `Arm` values) and sends SIGUSR1: the file is gone when the arms have been taken, and each deed is
told by a line in `MAILBOX.deeds` just before it is done. New arms replace the old ones.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy.exc import OperationalError

from seckill.cli import main
from seckill.crashpoints import CrashPoint, arm
from seckill.dtm.tcc_branch import InvalidRequest


class Deed(StrEnum):
    KILL = "kill"  # SIGKILL
    HANG = "hang"  # SIGSTOP, until somebody wakes it up
    CUT = "cut"  # every TCP connection is shut down, and it goes on
    BUSY = "busy"  # the step fails as one does whose database cannot do it now
    REFUSE = "refuse"  # the step fails as in a service that cannot read what it is asked: trying again is of no use


DISASTERS = (Deed.KILL, Deed.HANG, Deed.CUT)
"""What happens to a whole process, and not to the step alone that reached the point."""

FAULT = "a fault that a test has put here"
"""The words by which errors of BUSY and REFUSE are known in a log."""


@dataclass(slots=True)
class Arm:
    """Do the deed when the point is reached for the `after`th time, and `times` times in all."""

    point: str
    deed: str
    after: int = 1
    times: int = 1


class Mailbox:
    def __init__(self, name: str) -> None:
        self._arms_file = Path(f"{name}.arms")
        self._deeds_file = Path(f"{name}.deeds")
        self._arms: list[Arm] = []

    def read(self, *_: object) -> None:
        """The handler of SIGUSR1."""
        self._arms = [Arm(**each) for each in json.loads(self._arms_file.read_text())]
        self._arms_file.unlink()

    def reached(self, point: CrashPoint) -> None:
        for each in [each for each in self._arms if each.point == point]:
            each.after -= 1
            if each.after > 0:
                continue
            each.times -= 1
            if each.times == 0:
                self._arms.remove(each)
            self._do(each)

    def _do(self, due: Arm) -> None:
        line = f"{due.point} {due.deed} {time.time():.3f}\n"
        with self._deeds_file.open("a") as deeds:
            deeds.write(line)
        DEEDS[Deed(due.deed)]()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def cut() -> None:
    """Those that it has opened and those that it has accepted; what listens goes on listening."""
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the list itself, a socket that is not connected
            if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                _shut_down(int(entry))


def be_busy() -> None:
    raise OperationalError(FAULT, None, RuntimeError(FAULT))


def refuse() -> None:
    raise InvalidRequest("items", FAULT)


def _shut_down(descriptor: int) -> None:
    """Raises OSError when it is not connected."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.getpeername()  # shutdown() would end what listens as well
            connection.shutdown(socket.SHUT_RDWR)


DEEDS: dict[Deed, Callable[[], None]] = {
    Deed.KILL: kill,
    Deed.HANG: hang,
    Deed.CUT: cut,
    Deed.BUSY: be_busy,
    Deed.REFUSE: refuse,
}


if __name__ == "__main__":
    mailbox = Mailbox(sys.argv[2])
    arm(mailbox.reached)
    signal.signal(signal.SIGUSR1, mailbox.read)
    sys.argv = ["seckill", sys.argv[1]]
    main()
