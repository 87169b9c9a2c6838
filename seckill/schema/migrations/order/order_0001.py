"""Orders, and what a branch needs.

Frozen: a revision that was released never changes, whatever the code says by now.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, MetaData, Table

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, fixed_bytes
from seckill.schema.first import add_branch_tables, create

revision = "order_0001"
down_revision = None

TABLES = MetaData()
add_branch_tables(TABLES)

Table(
    "orders",
    TABLES,
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
    CheckConstraint("quantity > 0", name="orders_quantity_positive"),
    Index("idx_orders_gid", "gid", "branch_id"),
    Index("idx_orders_buyer", "user_id", "created_at_ms"),
    sqlite_with_rowid=False,
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create(TABLES)
