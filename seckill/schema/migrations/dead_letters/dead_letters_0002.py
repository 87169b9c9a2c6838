"""What handling letters needs: whose order it is, what was begun and is not finished, how the order ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from seckill.dtm.database import ascii_text, long_bytes

revision = "dead_letters_0002"
down_revision = "dead_letters_0001"


def upgrade() -> None:
    for column in (
        sa.Column("user_id", sa.BigInteger, nullable=True),
        sa.Column("quantity", sa.BigInteger, nullable=True),
        sa.Column("admitted_at_ms", sa.BigInteger, nullable=True),
        sa.Column("claims", ascii_text(60), nullable=True),
        sa.Column("exception", sa.String(200), nullable=False, server_default=""),
        sa.Column("outcome", ascii_text(50), nullable=False, server_default=""),
        sa.Column("open_intent", ascii_text(8), nullable=False, server_default=""),
        sa.Column("intent_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("replayed_ms", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("letter", column)
    op.create_index("letter_by_intent", "letter", ["open_intent", "intent_ms"])
    op.create_index("letter_by_product", "letter", ["product_id"])
    op.create_index("letter_by_user", "letter", ["user_id"])
    op.create_index("letter_by_claim", "letter", ["claims"])
    op.add_column("letter_action", sa.Column("payload", long_bytes(), nullable=True))
