"""How many dead letters there are in each state, for who wants to know no more than that. Reads only."""

from __future__ import annotations

from sqlalchemy import func, select

from seckill.doctor.start import opening_database
from seckill.dtm.database import create_engine
from seckill.messaging.letters import letter
from seckill.schema.revisions import is_absent
from seckill.security import database_context
from seckill.settings import DeadLetterSettings

SECTION = "dead_letters"


async def letters_by_state(settings: DeadLetterSettings) -> dict[str, int]:
    """Asks the index once, on a connection of its own. Raises DatabaseUnavailable."""
    url = settings.database_url.get_secret_value()
    tls = database_context(SECTION, settings)
    engine = create_engine(url, pool_size=1, lock_wait_s=settings.lock_wait_s, tls=tls)
    if is_absent(engine):  # asking SQLite would make the file
        return {}
    counted = select(letter.c.state, func.count().label("letters")).group_by(letter.c.state).order_by(letter.c.state)
    try:
        async with opening_database(f"{SECTION}.database_url", url), engine.connect() as connection:
            return {row.state: int(row.letters) for row in await connection.execute(counted)}
    finally:
        await engine.dispose()
