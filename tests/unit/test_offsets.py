"""Which offsets may be committed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.messaging.offsets import PartitionProgress


@given(st.data())
def test_only_an_unbroken_run_is_committed(data: st.DataObject) -> None:
    """However records finish, the position never passes one that has not been routed, and ends past the last."""
    offsets = sorted(data.draw(st.sets(st.integers(0, 200), min_size=1, max_size=40)))
    progress = PartitionProgress()
    for offset in offsets:
        progress.take(offset)
    unrouted = set(offsets)
    for offset in data.draw(st.permutations(offsets)):
        progress.finish(offset)
        unrouted.discard(offset)
        assert progress.position is None or all(left >= progress.position for left in unrouted)
        assert progress.inflight >= len(unrouted)
    assert progress.position == offsets[-1] + 1
    assert progress.inflight == 0


def test_nothing_to_commit_after_a_commit() -> None:
    """A committed position is not committed again until it moves."""
    progress = PartitionProgress()
    progress.take(5)
    assert progress.uncommitted is None
    progress.finish(5)
    assert progress.uncommitted == 6
    progress.committed = 6
    assert progress.uncommitted is None


def test_an_offset_that_goes_back_is_refused() -> None:
    """A partition's records come in order; anything else is an error of the caller."""
    progress = PartitionProgress()
    progress.take(5)
    with pytest.raises(ValueError, match="offset 5"):
        progress.take(5)
