"""What a message and a saga bring along: whom to ask about it, and its custom data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "coordinator_0002"
down_revision = "coordinator_0001"


def upgrade() -> None:
    for column in (
        sa.Column("query_prepared", sa.String(1_024), nullable=False, server_default=""),
        sa.Column("custom_data", sa.String(8_192), nullable=False, server_default=""),
    ):
        op.add_column("coordinator_transaction", column)
