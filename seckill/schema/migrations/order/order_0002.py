"""What a caller of the second article's form asks for besides: postage and the address to send to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "order_0002"
down_revision = "order_0001"


def upgrade() -> None:
    op.add_column("orders", sa.Column("postage", sa.BigInteger, nullable=True))
    op.add_column("orders", sa.Column("receive_address_id", sa.BigInteger, nullable=True))
