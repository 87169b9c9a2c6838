"""The tables of the log. Times are milliseconds since 1970."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table, Text, UniqueConstraint

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, long_bytes, row_number

ID_LENGTH_MAX = 128
URL_LENGTH_MAX = 1_024
REASON_LENGTH_MAX = 1_024
CUSTOM_DATA_LENGTH_MAX = 8_192

metadata = MetaData()

transactions = Table(
    "coordinator_transaction",
    metadata,
    Column("number", row_number(), primary_key=True, autoincrement=True),
    Column("gid", ascii_text(ID_LENGTH_MAX), nullable=False),
    Column("trans_type", ascii_text(45), nullable=False),
    Column("status", ascii_text(12), nullable=False),
    Column("options", Text(), nullable=False),
    Column("created_ms", BigInteger(), nullable=False),
    Column("updated_ms", BigInteger(), nullable=False),
    Column("finished_ms", BigInteger()),
    Column("next_cron_ms", BigInteger(), nullable=False),
    Column("next_cron_interval_s", BigInteger(), nullable=False),
    Column("owner", ascii_text(ID_LENGTH_MAX), nullable=False),
    Column("rollback_reason", String(REASON_LENGTH_MAX), nullable=False),
    Column("query_prepared", String(URL_LENGTH_MAX), nullable=False, server_default=""),
    Column("custom_data", String(CUSTOM_DATA_LENGTH_MAX), nullable=False, server_default=""),
    UniqueConstraint("gid", name="coordinator_transaction_gid"),
    Index("coordinator_transaction_due", "status", "next_cron_ms"),
    **TABLE_OPTIONS,
)

branches = Table(
    "coordinator_branch",
    metadata,
    Column("number", row_number(), primary_key=True, autoincrement=True),  # the order of registration
    Column("gid", ascii_text(ID_LENGTH_MAX), nullable=False),
    Column("branch_id", ascii_text(ID_LENGTH_MAX), nullable=False),
    Column("op", ascii_text(45), nullable=False),
    Column("url", String(URL_LENGTH_MAX), nullable=False),
    Column("payload", long_bytes(), nullable=False),
    Column("status", ascii_text(12), nullable=False),
    Column("created_ms", BigInteger(), nullable=False),
    Column("finished_ms", BigInteger()),
    UniqueConstraint("gid", "branch_id", "op", name="coordinator_branch_op"),
    **TABLE_OPTIONS,
)
