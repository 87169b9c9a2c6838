"""Run by Alembic, never imported: on the connection, or for the dialect, that `seckill.schema.upgrading` hands over."""

from __future__ import annotations

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name=context.config.attributes["dialect_name"], literal_binds=True)
else:
    context.configure(connection=context.config.attributes["connection"])

with context.begin_transaction():
    context.run_migrations()
