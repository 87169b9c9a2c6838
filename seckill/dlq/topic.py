"""Dead letters by their places in the topic. What was read is kept for a while, since a record never changes."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from seckill.dlq.model import Letter, Place
from seckill.dlq.reading import left_behind
from seckill.messaging.envelope import Record

KEPT_BYTES_MAX = 32 * 1024 * 1024
"""Of records that are kept, so that who looks at many letters and then replays them reads the topic once."""

ReadAt = Callable[[str, Collection[tuple[int, int]]], Awaitable[Mapping[tuple[int, int], Record]]]
"""The records of a topic at these places (partition, offset); one that is not there any more is absent."""


class LetterTopic:
    """Methods raise PublishUnknown."""

    def __init__(self, read_at: ReadAt, *, main_topic: str) -> None:
        self._read_at = read_at
        self._of_orders = re.compile(f"{re.escape(main_topic)}(-retry-[0-9]+)?")
        self._kept: OrderedDict[Place, Record] = OrderedDict()
        self._kept_bytes = 0

    async def read(self, letters: Sequence[Letter]) -> dict[int, Record]:
        """The letters' records as they lie in the topic, by letter number; absent: it does not hold it any more."""
        found = await self._at([letter.letter for letter in letters])
        return {letter.letter_id: found[letter.letter] for letter in letters if letter.letter in found}

    async def originals(self, letters: Sequence[Letter]) -> dict[int, Record]:
        """The same, but where a value was too large for the letter, the record that failed, with its value.

        That lies in the main topic or a retry topic: what somebody else's letter says of another one is not followed.
        """
        records = await self.read(letters)
        places = {ident: place for ident, record in records.items() if (place := left_behind(record)) is not None}
        found = await self._at([place for place in places.values() if self._of_orders.fullmatch(place.topic)])
        kept = {ident: record for ident, record in records.items() if ident not in places}
        return kept | {ident: found[place] for ident, place in places.items() if place in found}

    async def _at(self, places: Sequence[Place]) -> dict[Place, Record]:
        found = {place: self._kept[place] for place in places if place in self._kept}
        missing: dict[str, set[tuple[int, int]]] = {}
        for place in places:
            if place not in found:
                missing.setdefault(place.topic, set()).add((place.partition, place.offset))
        for topic, wanted in missing.items():
            for (partition, offset), record in (await self._read_at(topic, wanted)).items():
                found[Place(topic, partition, offset)] = record
                self._keep(Place(topic, partition, offset), record)
        return found

    def _keep(self, place: Place, record: Record) -> None:
        if place in self._kept:  # somebody else has read it at the same time
            return
        self._kept[place] = record
        self._kept_bytes += _bytes_of(record)
        while self._kept_bytes > KEPT_BYTES_MAX:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= _bytes_of(gone)


def _bytes_of(record: Record) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
