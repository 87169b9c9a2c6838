"""What a database must be: strict, READ COMMITTED, byte-wise ids, and on disk when it says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from seckill.doctor.facts import DatabaseFacts, SessionFacts
from seckill.doctor.findings import Finding, ok, problem, warning

STRICT = frozenset({"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"})
ISOLATION = "READ-COMMITTED"
PACKET_BYTES_MIN = 4 * 1024 * 1024
"""A group of 500 orders, or a dead letter of 1 MB, doubled by quoting, with room to spare."""

LOCK_WAIT_MAX_S = 3
OLDEST_MARIADB = (10, 11)
OLDEST_MYSQL = (8, 0)
SPARE_CONNECTIONS = 5


@dataclass(frozen=True, slots=True)
class DatabaseWants:
    """`ids` are the columns that must be compared byte by byte."""

    pool_size: int
    ids: Mapping[tuple[str, str], str] = field(default_factory=dict)


def judge_session(session: SessionFacts) -> list[Finding]:
    """What a role must know before it starts: a server, proxy or init script may overrule what a connection asks."""
    return [_strictness(session), _isolation(session), _packet(session), _lock_wait(session)]


def judge_database(facts: DatabaseFacts, wants: DatabaseWants) -> list[Finding]:
    return [
        _version(facts.version),
        *judge_session(facts.session),
        _charset(facts),
        *_ids(facts.collations, wants.ids),
        *_engines(facts.engines),
        _durability(facts.flush_log_at_commit),
        _connections(facts.max_connections, wants.pool_size),
    ]


def _strictness(session: SessionFacts) -> Finding:
    if not session.sql_mode & STRICT:
        modes = ",".join(sorted(session.sql_mode)) or "empty"
        found = f"sql_mode is {modes} although STRICT was asked for: too long ids would be cut silently"
        remedy = "let nothing between us and the server (proxy, init_connect) change sql_mode"
        return problem("sql_mode", found, remedy)
    return ok("sql_mode", "strict")


def _isolation(session: SessionFacts) -> Finding:
    if session.isolation != ISOLATION:
        found = f"{session.isolation} although READ COMMITTED was asked for: a repeated branch would not see its row"
        remedy = "let nothing between us and the server (proxy, init_connect) change the isolation level"
        return problem("isolation", found, remedy)
    return ok("isolation", session.isolation)


def _packet(session: SessionFacts) -> Finding:
    found = f"{session.max_allowed_packet} bytes"
    if session.max_allowed_packet < PACKET_BYTES_MIN:
        remedy = f"set max_allowed_packet={PACKET_BYTES_MIN // 1024 // 1024}M or more on the server"
        return problem("max_allowed_packet", f"{found}: a large group of orders could not be written", remedy)
    return ok("max_allowed_packet", found)


def _lock_wait(session: SessionFacts) -> Finding:
    found = f"{session.lock_wait_s} s"
    if session.lock_wait_s > LOCK_WAIT_MAX_S:
        remedy = "let nothing between us and the server (proxy, init_connect) change innodb_lock_wait_timeout"
        return problem("lock wait", f"{found}: longer than the deadline of a Try", remedy)
    return ok("lock wait", found)


def _version(text: str) -> Finding:
    maria = "mariadb" in text.lower()
    oldest = OLDEST_MARIADB if maria else OLDEST_MYSQL
    name = "MariaDB" if maria else "MySQL"
    if _release(text) < oldest:
        return problem("version", f"{name} {text}", f"use MariaDB {'.'.join(map(str, OLDEST_MARIADB))} or MySQL 8")
    return ok("version", f"{name} {text}")


def _release(text: str) -> tuple[int, ...]:
    """`10.11.6-MariaDB-0+deb12u1` → (10, 11). Some proxies put `5.5.5-` in front of MariaDB's own."""
    digits = text.removeprefix("5.5.5-").partition("-")[0].split(".")
    return tuple(int(part) for part in digits[:2] if part.isdecimal())


def _charset(facts: DatabaseFacts) -> Finding:
    if facts.charset != "utf8mb4":
        remedy = "ALTER DATABASE … CHARACTER SET utf8mb4"
        return warning("charset", f"{facts.charset}: new tables take no emoji in names", remedy)
    return ok("charset", f"{facts.charset}, {facts.collation}")


def _ids(found: Mapping[tuple[str, str], str], wanted: Mapping[tuple[str, str], str]) -> list[Finding]:
    if not found:
        return []  # no tables yet: the schema's own finding says so
    wrong = [
        f"{'.'.join(column)} is {found[column]}"
        for column, wants in wanted.items()
        if found.get(column, wants) != wants
    ]
    if wrong:
        remedy = "ALTER TABLE … MODIFY the column with CHARACTER SET ascii COLLATE ascii_bin"
        return [problem("id columns", f"{', '.join(wrong)}: ids that differ would be taken for equal", remedy)]
    return [ok("id columns", f"{len(wanted)} compared byte by byte")]


def _engines(engines: Mapping[str, str]) -> list[Finding]:
    wrong = [f"{table} is {engine}" for table, engine in engines.items() if engine.lower() != "innodb"]
    return [problem("engine", f"{', '.join(wrong)}: no transactions", "ALTER TABLE … ENGINE=InnoDB")] if wrong else []


def _durability(flush_log_at_commit: int) -> Finding:
    found = f"innodb_flush_log_at_trx_commit={flush_log_at_commit}"
    remedy = "set innodb_flush_log_at_trx_commit=1 on the server"
    match flush_log_at_commit:
        case 1 | 3:
            return ok("durability", found)
        case 2:
            return warning("durability", f"{found}: a power cut loses answered commits", remedy)
        case _:
            return problem("durability", f"{found}: a crash loses answered commits", remedy)


def _connections(max_connections: int, pool_size: int) -> Finding:
    found = f"max_connections={max_connections}, one process of ours takes up to {pool_size}"
    if max_connections < pool_size + SPARE_CONNECTIONS:
        return problem("connections", found, "raise max_connections, or lower pool_size in this section")
    return ok("connections", found)
