"""Products, sales, reservations, and what a branch needs.

Frozen: a revision that was released never changes, whatever the code says by now.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, MetaData, String, Table

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, fixed_bytes, row_number
from seckill.schema.first import add_branch_tables, create

revision = "product_0001"
down_revision = None

TABLES = MetaData()
add_branch_tables(TABLES)

Table(
    "product",
    TABLES,
    Column("product_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False, server_default=""),
    Column("description", String(2_000), nullable=False, server_default=""),
    Column("image_url", String(500), nullable=False, server_default=""),
    Column("cateid", BigInteger, nullable=False, server_default="0"),
    Column("price_cents", BigInteger, nullable=False, server_default="0"),
    Column("status", Integer, nullable=False, server_default="1"),
    Column("stock", BigInteger, nullable=False, server_default="0"),  # units that are on no sale
    Column("created_at_ms", BigInteger, nullable=False),
    CheckConstraint("stock >= 0", name="product_stock_not_negative"),
    **TABLE_OPTIONS,
)

Table(
    "sale",
    TABLES,
    Column("sale_id", row_number(), primary_key=True, autoincrement=True),
    Column("product_id", BigInteger, nullable=False),
    # The product's id until the sale is closed, then NULL: a product has one open sale at most.
    Column("open_product_id", BigInteger, nullable=True, unique=True),
    Column("name", String(200), nullable=False),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("per_user_limit", BigInteger, nullable=False),  # units
    Column("price_cents", BigInteger, nullable=False),
    Column("state", ascii_text(16), nullable=False),  # open | paused | closed
    Column("initial", BigInteger, nullable=False),
    Column("stock", BigInteger, nullable=False),
    Column("frozen", BigInteger, nullable=False),
    Column("sold", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    CheckConstraint("stock >= 0 AND frozen >= 0 AND sold >= 0", name="sale_counters_not_negative"),
    CheckConstraint("stock + frozen + sold = initial", name="sale_counters_add_up"),
    Index("idx_sale_product", "product_id"),
    **TABLE_OPTIONS,
)

Table(
    "sale_change",
    TABLES,
    Column("change_id", ascii_text(128), primary_key=True),
    Column("sale_id", BigInteger, nullable=False),
    Column("contents", fixed_bytes(32), nullable=False),  # SHA-256 of what was asked for
    Column("created_at_ms", BigInteger, nullable=False),
    **TABLE_OPTIONS,
)

Table(
    "stock_reservation",
    TABLES,
    Column("order_id", fixed_bytes(16), primary_key=True),
    Column("product_id", BigInteger, nullable=False),
    Column("sale_id", BigInteger, nullable=False),  # 0: the product's own stock
    Column("user_id", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),  # decide.State
    Column("reason", ascii_text(32), nullable=False),  # of a rejection
    Column("gid", ascii_text(128), nullable=False),  # that holds or ended it
    Column("branch_id", ascii_text(128), nullable=False),
    Column("admitted_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Index("idx_reservation_gid", "gid", "branch_id"),
    Index("idx_reservation_buyer", "sale_id", "user_id"),
    sqlite_with_rowid=False,
    **TABLE_OPTIONS,
)


def upgrade() -> None:
    create(TABLES)
