"""The tables of the dead-letter database: an index of the dead-letter topic, and what operators did with its letters.

Definitions only, small on purpose. The records themselves stay in the topic; a row says where. Nothing here writes
them: that is the business of the consumer of the dead-letter topic and of the commands that replay and discard.
`letter_action` is only ever added to. `alert` is beside them: what has been told to people, and still stands.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, MetaData, String, Table

from seckill.dtm.database import TABLE_OPTIONS, ascii_text, long_bytes, row_number

STATES = ("new", "replaying", "resolved", "discarded")
"""`replaying`: published again and not ended yet. A new letter of a replayed order reopens its row as `new`."""

UNRESOLVED = ("new", "replaying")

metadata = MetaData()

letter = Table(
    "letter",
    metadata,
    Column("letter_id", row_number(), primary_key=True, autoincrement=True),
    # The order's id; of a record that holds no order, or an impostor of one, where it first arrived:
    # `topic/partition/offset`.
    Column("subject", ascii_text(300), nullable=False),
    Column("order_id", ascii_text(60)),
    Column("product_id", BigInteger),
    Column("sale_id", BigInteger),
    Column("state", ascii_text(12), nullable=False, server_default="new"),
    Column("reason", ascii_text(32), nullable=False),  # domain.reasons.DeadLetterReason
    Column("error", String(1_000), nullable=False, server_default=""),
    Column("record_topic", ascii_text(249), nullable=False),  # where the record came from
    Column("record_partition", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("letter_partition", Integer, nullable=False),  # where it lies in the dead-letter topic
    Column("letter_offset", BigInteger, nullable=False),
    Column("first_failed_ms", BigInteger, nullable=False),
    Column("last_failed_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("replays", Integer, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("user_id", BigInteger),
    Column("quantity", BigInteger),
    Column("admitted_at_ms", BigInteger),
    Column("claims", ascii_text(60)),  # the order id that an impostor names; `order_id` is empty then
    Column("exception", String(200), nullable=False, server_default=""),
    Column("outcome", ascii_text(50), nullable=False, server_default=""),  # confirmed, rejected:CODE
    Column("open_intent", ascii_text(8), nullable=False, server_default=""),  # replay, discard: begun, not finished
    Column("intent_ms", BigInteger, nullable=False, server_default="0"),  # when it was begun, or looked at last
    Column("replayed_ms", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("state IN ('new', 'replaying', 'resolved', 'discarded')", name="letter_state_known"),
    Index("letter_subject", "subject", unique=True),
    Index("letter_order", "order_id", unique=True),
    Index("letter_by_state", "state", "last_failed_ms"),
    Index("letter_by_intent", "open_intent", "intent_ms"),
    Index("letter_by_product", "product_id"),
    Index("letter_by_user", "user_id"),
    Index("letter_by_claim", "claims"),
    **TABLE_OPTIONS,
)

letter_action = Table(
    "letter_action",
    metadata,
    Column("action_id", row_number(), primary_key=True, autoincrement=True),
    Column("letter_id", row_number(), ForeignKey("letter.letter_id", name="letter_action_letter"), nullable=False),
    Column("operator", String(100), nullable=False),
    Column("action", ascii_text(16), nullable=False),
    Column("note", String(1_000), nullable=False, server_default=""),
    Column("at_ms", BigInteger, nullable=False),
    Column("payload", long_bytes()),  # what an edited replay published
    Index("letter_action_of_letter", "letter_id"),
    **TABLE_OPTIONS,
)

alert = Table(
    "alert",
    metadata,
    Column("alert_key", ascii_text(300), primary_key=True),
    Column("rule", ascii_text(32), nullable=False),  # alerts.findings.Rule
    Column("detail", String(300), nullable=False, server_default=""),
    Column("what", String(1_000), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("example", String(300), nullable=False, server_default=""),
    Column("command", String(500), nullable=False, server_default=""),
    Column("lasts", Integer, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("told", Integer, nullable=False),  # messages since it came
    Column("told_ms", BigInteger, nullable=False),
    Column("resolved_ms", BigInteger, nullable=False, server_default="0"),
    Column("returns", Integer, nullable=False, server_default="0"),
    Column("pending", BigInteger, nullable=False, server_default="0"),
    # Who has not taken the newest message yet: prints of their addresses, separated by spaces.
    Column("undelivered", ascii_text(1_000), nullable=False, server_default=""),
    **TABLE_OPTIONS,
)
