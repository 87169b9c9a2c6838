"""How a first revision makes its tables: as statements of the frozen definitions that it carries."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, Index, MetaData, Table, UniqueConstraint, func
from sqlalchemy.schema import CreateIndex, CreateTable

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, long_bytes, row_number


def create(tables: MetaData) -> None:
    """Every table and index; also where there is no connection, for a person to read."""
    for table in tables.sorted_tables:
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))


def add_branch_tables(tables: MetaData) -> None:
    """What the first revisions of product and order share: DTM's barrier, the decisions, the replies. Frozen."""
    Table(
        "barrier",
        tables,
        Column("id", row_number(), primary_key=True, autoincrement=True),
        Column("trans_type", ascii_text(45), nullable=False, server_default=""),
        Column("gid", ascii_text(128), nullable=False, server_default=""),
        Column("branch_id", ascii_text(128), nullable=False, server_default=""),
        Column("op", ascii_text(45), nullable=False, server_default=""),
        Column("barrier_id", ascii_text(45), nullable=False, server_default=""),
        Column("reason", ascii_text(45), nullable=False, server_default=""),
        Column("create_time", DateTime, server_default=func.now()),
        Column("update_time", DateTime, server_default=func.now()),
        UniqueConstraint("gid", "branch_id", "op", "barrier_id", name="uniq_barrier"),
        Index("idx_barrier_create_time", "create_time"),
        Index("idx_barrier_update_time", "update_time"),
        **TABLE_OPTIONS,
    )
    Table(
        "decision",
        tables,
        Column("gid", ascii_text(128), primary_key=True),
        Column("branch_id", ascii_text(128), primary_key=True),
        Column("op", ascii_text(45), nullable=False),
        Column("created_at_ms", BigInteger, nullable=False),
        **TABLE_OPTIONS,
    )
    Table(
        "branch_reply",
        tables,
        Column("gid", ascii_text(128), primary_key=True),
        Column("branch_id", ascii_text(128), primary_key=True),
        Column("reply", long_bytes(), nullable=False),
        Column("created_at_ms", BigInteger, nullable=False),
        **TABLE_OPTIONS,
    )
