"""What has been told to people, so that an alert is not told again by who was started anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from seckill.dtm.database import TABLE_OPTIONS, ascii_text

revision = "dead_letters_0003"
down_revision = "dead_letters_0002"


def upgrade() -> None:
    op.create_table(
        "alert",
        sa.Column("alert_key", ascii_text(300), primary_key=True),
        sa.Column("rule", ascii_text(32), nullable=False),
        sa.Column("detail", sa.String(300), nullable=False, server_default=""),
        sa.Column("what", sa.String(1_000), nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("example", sa.String(300), nullable=False, server_default=""),
        sa.Column("command", sa.String(500), nullable=False, server_default=""),
        sa.Column("lasts", sa.Integer, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("told", sa.Integer, nullable=False),
        sa.Column("told_ms", sa.BigInteger, nullable=False),
        sa.Column("resolved_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("returns", sa.Integer, nullable=False, server_default="0"),
        sa.Column("pending", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("undelivered", ascii_text(1_000), nullable=False, server_default=""),
        **TABLE_OPTIONS,
    )
