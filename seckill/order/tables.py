"""The order database. Definitions only."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, MetaData, Table

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, fixed_bytes
from seckill.dtm.tcc_branch import branch_tables

metadata = MetaData()
branch_tables(metadata)

orders = Table(
    "orders",
    metadata,
    Column("order_id", fixed_bytes(16), primary_key=True),
    Column("product_id", BigInteger, nullable=False),
    Column("sale_id", BigInteger, nullable=False),  # 0: on no sale
    Column("user_id", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("price_cents", BigInteger, nullable=False),  # of one unit
    Column("status", Integer, nullable=False),  # branches.OrderState
    Column("gid", ascii_text(128), nullable=False),  # that confirmed it
    Column("branch_id", ascii_text(128), nullable=False),
    Column("admitted_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    # What a caller on no sale asked for besides; the pipeline's own orders have none.
    Column("postage", BigInteger, nullable=True),
    Column("receive_address_id", BigInteger, nullable=True),
    CheckConstraint("quantity > 0", name="orders_quantity_positive"),
    Index("idx_orders_gid", "gid", "branch_id"),
    Index("idx_orders_buyer", "user_id", "created_at_ms"),
    sqlite_with_rowid=False,
    **TABLE_OPTIONS,
)
