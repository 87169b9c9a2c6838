"""The schemas of the four databases: which revision each must have, and the way there.

`upgrade` brings a database to the newest revision; `require` is what a role asks before it serves, and costs one read.
Alembic, and the revisions in `migrations/`, are loaded only when something has to be migrated.
"""

from seckill.schema.revisions import DATABASES, NEWEST, SchemaOutdated, found_revision, require, setting_of
from seckill.schema.upgrading import NoSchemaLock, NotOurSchema, SchemaLocked, Upgraded, ddl, upgrade

__all__ = [
    "DATABASES",
    "NEWEST",
    "NoSchemaLock",
    "NotOurSchema",
    "SchemaLocked",
    "SchemaOutdated",
    "Upgraded",
    "ddl",
    "found_revision",
    "require",
    "setting_of",
    "upgrade",
]
