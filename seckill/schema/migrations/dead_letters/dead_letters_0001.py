"""The index of the dead-letter topic, and what operators did with its letters.

Frozen: a revision that was released never changes, whatever the code says by now.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, MetaData, String, Table

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, row_number
from seckill.schema.first import create

revision = "dead_letters_0001"
down_revision = None

TABLES = MetaData()

Table(
    "letter",
    TABLES,
    Column("letter_id", row_number(), primary_key=True, autoincrement=True),
    # The order's id; of a record that holds no order `topic/partition/offset`.
    Column("subject", ascii_text(300), nullable=False),
    Column("order_id", ascii_text(60)),
    Column("product_id", BigInteger),
    Column("sale_id", BigInteger),
    Column("state", ascii_text(12), nullable=False, server_default="new"),
    Column("reason", ascii_text(32), nullable=False),  # domain.reasons.DeadLetterReason
    Column("error", String(1_000), nullable=False, server_default=""),
    Column("record_topic", ascii_text(249), nullable=False),  # where the record came from
    Column("record_partition", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("letter_partition", Integer, nullable=False),  # where it lies in the dead-letter topic
    Column("letter_offset", BigInteger, nullable=False),
    Column("first_failed_ms", BigInteger, nullable=False),
    Column("last_failed_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("replays", Integer, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    CheckConstraint("state IN ('new', 'replaying', 'resolved', 'discarded')", name="letter_state_known"),
    Index("letter_subject", "subject", unique=True),
    Index("letter_order", "order_id", unique=True),
    Index("letter_by_state", "state", "last_failed_ms"),
    **TABLE_OPTIONS,
)

Table(
    "letter_action",
    TABLES,
    Column("action_id", row_number(), primary_key=True, autoincrement=True),
    Column("letter_id", row_number(), ForeignKey("letter.letter_id", name="letter_action_letter"), nullable=False),
    Column("operator", String(100), nullable=False),
    Column("action", ascii_text(16), nullable=False),
    Column("note", String(1_000), nullable=False, server_default=""),
    Column("at_ms", BigInteger, nullable=False),
    Index("letter_action_of_letter", "letter_id"),
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create(TABLES)
