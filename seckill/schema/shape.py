"""Whether a database has the tables that a definition asks for: columns, keys, indexes, checks, engine.

More than Alembic compares: types with their lengths and collations, and checks. Spelling that the databases change by
themselves (quotes, brackets, display widths) is no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import CheckConstraint, Column, Connection, Dialect, Index, MetaData, Table, UniqueConstraint, inspect
from sqlalchemy.engine import Inspector
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import DefaultClause
from sqlalchemy.types import TypeEngine

from seckill.dtm.database import MYSQL
from seckill.schema.revisions import VERSION_TABLE

_WIDTH = re.compile(r"\b(tinyint|smallint|integer|int|bigint)\s*\(\d+\)")
_SPELLING = re.compile(r"[\s`\"()]+")
_COMMA = re.compile(r"\s*,\s*")
_NOW = re.compile(r"current_timestamp(\(\))?|now\(\)")


def differences(connection: Connection, wanted: MetaData) -> list[str]:
    """What is there and should not be, and the other way round; empty when the database is as defined."""
    should = defined(wanted, connection.dialect)
    is_there = _present(connection)
    told = [f"table {name} is missing" for name in sorted(should.keys() - is_there.keys())]
    told += [f"table {name} is unknown" for name in sorted(is_there.keys() - should.keys())]
    for name in sorted(should.keys() & is_there.keys()):
        told += [f"{name}: no {line}" for line in sorted(should[name] - is_there[name])]
        told += [f"{name}: unexpected {line}" for line in sorted(is_there[name] - should[name])]
    return told


def defined(metadata: MetaData, dialect: Dialect) -> dict[str, set[str]]:
    """A definition as lines by table, as this dialect has it."""
    return {table.name: set(_lines_of(table, dialect)) for table in metadata.sorted_tables}


def _lines_of(table: Table, dialect: Dialect) -> Iterable[str]:
    for column in table.columns:
        yield _column(column.name, column.type, bool(column.nullable), _default_of(column), dialect)
        if column.unique:
            yield f"unique ({column.name})"
    yield f"primary key ({_names(table.primary_key.columns)})"
    for constraint in table.constraints:
        match constraint:
            case UniqueConstraint():
                yield f"unique ({_names(constraint.columns)})"
            case CheckConstraint():
                yield f"check {constraint.name}: {_spelled(str(constraint.sqltext))}"
    for key in table.foreign_key_constraints:
        yield f"foreign key ({_names(key.columns)}) to {key.referred_table.name}"
    for index in table.indexes:
        yield _index(index)
    if dialect.name in MYSQL:
        yield f"engine {table.dialect_options['mysql']['engine']}".lower()
        yield f"characters {table.dialect_options['mysql']['charset']}".lower()


def _index(index: Index) -> str:
    names = _names(index.columns)
    return f"unique ({names})" if index.unique else f"index {index.name} ({names})"


def _names(columns: Iterable[Column[object]]) -> str:
    return ", ".join(column.name for column in columns)


def _present(connection: Connection) -> dict[str, set[str]]:
    inspector = inspect(connection)
    names = [name for name in inspector.get_table_names() if name != VERSION_TABLE]
    return {name: set(_lines_found(inspector, name)) for name in names}


def _lines_found(inspector: Inspector, name: str) -> Iterable[str]:
    dialect = inspector.dialect
    for column in inspector.get_columns(name):
        yield _column(column["name"], column["type"], column["nullable"], _default_found(column), dialect)
    yield f"primary key ({_listed(inspector.get_pk_constraint(name)['constrained_columns'])})"
    for unique in inspector.get_unique_constraints(name):
        yield f"unique ({_listed(unique['column_names'])})"
    for check in inspector.get_check_constraints(name):
        yield f"check {check['name']}: {_spelled(check['sqltext'])}"
    keys = inspector.get_foreign_keys(name)
    for key in keys:
        yield f"foreign key ({_listed(key['constrained_columns'])}) to {key['referred_table']}"
    for index in inspector.get_indexes(name):
        columns = _listed(index["column_names"])
        yield f"unique ({columns})" if index["unique"] else f"index {index['name']} ({columns})"
    if dialect.name in MYSQL:
        options = inspector.get_table_options(name)
        yield f"engine {options[f'{dialect.name}_engine']}".lower()
        yield f"characters {options[f'{dialect.name}_default charset']}".lower()


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(str(name) for name in names)


def _column(name: str, kind: TypeEngine[object], nullable: bool, default: str | None, dialect: Dialect) -> str:
    written = kind.compile(dialect=dialect).lower()
    written = _WIDTH.sub(r"\1", written).replace(" character set utf8mb4", "")
    told = f"column {name} {written}" + ("" if nullable else " not null")
    return told if default is None else f"{told} default {default}"


def _default_of(column: Column[object]) -> str | None:
    if not isinstance(column.server_default, DefaultClause):
        return None
    return _spelled_default(str(getattr(column.server_default.arg, "text", column.server_default.arg)))


def _default_found(column: ReflectedColumn) -> str | None:
    found = column.get("default")
    return None if found is None or found.upper() == "NULL" else _spelled_default(found)


def _spelled_default(text: str) -> str:
    return _NOW.sub("now", text.lower()).strip("'() ") or "''"


def _spelled(text: str) -> str:
    """A condition without what each database adds to it or takes from it."""
    return _COMMA.sub(",", _SPELLING.sub(" ", text.lower()).strip())
