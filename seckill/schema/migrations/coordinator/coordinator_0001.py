"""The coordinator's log.

Frozen: a revision that was released never changes, whatever the code says by now.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table, Text, UniqueConstraint

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, long_bytes, row_number
from seckill.schema.first import create

revision = "coordinator_0001"
down_revision = None

TABLES = MetaData()

Table(
    "coordinator_transaction",
    TABLES,
    Column("number", row_number(), primary_key=True, autoincrement=True),
    Column("gid", ascii_text(128), nullable=False),
    Column("trans_type", ascii_text(45), nullable=False),
    Column("status", ascii_text(12), nullable=False),
    Column("options", Text(), nullable=False),
    Column("created_ms", BigInteger(), nullable=False),
    Column("updated_ms", BigInteger(), nullable=False),
    Column("finished_ms", BigInteger()),
    Column("next_cron_ms", BigInteger(), nullable=False),
    Column("next_cron_interval_s", BigInteger(), nullable=False),
    Column("owner", ascii_text(128), nullable=False),
    Column("rollback_reason", String(1_024), nullable=False),
    UniqueConstraint("gid", name="coordinator_transaction_gid"),
    Index("coordinator_transaction_due", "status", "next_cron_ms"),
    **TABLE_OPTIONS,
)

Table(
    "coordinator_branch",
    TABLES,
    Column("number", row_number(), primary_key=True, autoincrement=True),  # the order of registration
    Column("gid", ascii_text(128), nullable=False),
    Column("branch_id", ascii_text(128), nullable=False),
    Column("op", ascii_text(45), nullable=False),
    Column("url", String(1_024), nullable=False),
    Column("payload", long_bytes(), nullable=False),
    Column("status", ascii_text(12), nullable=False),
    Column("created_ms", BigInteger(), nullable=False),
    Column("finished_ms", BigInteger()),
    UniqueConstraint("gid", "branch_id", "op", name="coordinator_branch_op"),
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create(TABLES)
