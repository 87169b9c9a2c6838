"""What the coordinator says of itself. That it speaks DTM's protocol was seen when its facts were asked for."""

from __future__ import annotations

from seckill.doctor.facts import CoordinatorFacts
from seckill.doctor.findings import Finding, ok, warning

TESTED = "1.19"


def judge_coordinator(facts: CoordinatorFacts, *, embedded: bool) -> list[Finding]:
    return [_version(facts), ok("store", f"{facts.store}, of the embedded profile") if embedded else _store(facts)]


def _version(facts: CoordinatorFacts) -> Finding:
    if facts.own:
        return ok("version", f"our own coordinator {facts.version}")
    if not facts.version:
        return ok("version", "DTM, built without a version")
    if not facts.version.removeprefix("v").startswith(TESTED):
        return warning("version", f"DTM {facts.version}", f"use DTM {TESTED}, with which this release was tested")
    return ok("version", f"DTM {facts.version}")


def _store(facts: CoordinatorFacts) -> Finding:
    match facts.store:
        case "sql" | "mysql" | "mariadb":
            return ok("store", "SQL")
        case "redis":
            found = "Redis: it forgets finished transactions, and may lose acknowledged ones"
            return warning("store", found, "use DTM's SQL store, or a Redis of its own with appendfsync always")
        case "boltdb":
            found = "boltdb: one process, one disk, no second coordinator can take over"
            return warning("store", found, "use DTM's SQL store")
        case "sqlite":
            found = "SQLite: one process, one disk, no second coordinator can take over"
            return warning("store", found, "set SECKILL__COORDINATOR__DATABASE_URL to a MariaDB")
        case _:
            return warning("store", "it does not let itself be told", "see DTM's own conf.yml: Store.Driver: mysql")
