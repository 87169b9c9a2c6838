"""When the pieces of a group that are left are spared the wait that the ones before them had."""

from __future__ import annotations

from consumers.carried import HANGING_S, PIECES_HANGING_MAX, Hanging
from seckill.domain.errors import ProductUnavailable

SLOW = ProductUnavailable("127.0.0.1:9101", "DEADLINE_EXCEEDED")


def after(*ends: tuple[Exception | None, float], start_s: float = 0.0) -> tuple[Hanging, float]:
    """Pieces that were tried one after the other, each with what all of it failed for and how long it took."""
    hanging, now_s = Hanging(), start_s
    for cause, took_s in ends:
        hanging.note(cause, began_s=now_s)
        now_s += took_s
    return hanging, now_s


def test_piece_after_piece_hangs() -> None:
    """So many in a row, for so long: the rest would fail for the same."""
    hanging, now_s = after(*[(SLOW, HANGING_S)] * PIECES_HANGING_MAX)
    assert hanging.blamed_for_all(now_s=now_s) is SLOW


def test_fewer_pieces_in_a_row_prove_nothing() -> None:
    """It may be their own orders that make them hang."""
    hanging, now_s = after(*[(SLOW, HANGING_S)] * (PIECES_HANGING_MAX - 1))
    assert hanging.blamed_for_all(now_s=now_s) is None


def test_quick_failures_spare_nobody_however_long_the_group_took_before() -> None:
    """The wait that counts is the one of the row, not that of pieces before it, which went well."""
    hanging, now_s = after((None, 10 * HANGING_S), *[(SLOW, 0.1)] * PIECES_HANGING_MAX)
    assert hanging.blamed_for_all(now_s=now_s) is None


def test_a_piece_that_goes_well_ends_the_row() -> None:
    """Then a service answers."""
    hanging, now_s = after(*[(SLOW, HANGING_S)] * PIECES_HANGING_MAX, (None, 0.1), (SLOW, HANGING_S))
    assert hanging.blamed_for_all(now_s=now_s) is None
