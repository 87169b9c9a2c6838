"""Asking: each probe reads facts from one server, within a time-out, changing nothing there.

Silence raises Silent; an answer of something else raises Stranger. Both say what was heard.
"""

from __future__ import annotations


class Silent(Exception):
    """Nobody answers at the address, or not in time."""


class Stranger(Exception):
    """Something answers, and is not what was looked for; the message says what it is, as far as it shows."""

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy
