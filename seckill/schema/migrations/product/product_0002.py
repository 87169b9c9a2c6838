"""Since when the reservations of a sale may have been pruned, and when a product's stock last changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "product_0002"
down_revision = "product_0001"


def upgrade() -> None:
    op.add_column("sale", sa.Column("pruned_at_ms", sa.BigInteger, nullable=True))
    op.add_column("product", sa.Column("updated_at_ms", sa.BigInteger, nullable=False, server_default="0"))
