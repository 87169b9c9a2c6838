"""What Redis must be: a master of its own that forgets nothing it was told, and says who it is."""

from __future__ import annotations

from collections.abc import Mapping

from seckill.doctor.facts import RedisFacts
from seckill.doctor.findings import Finding, ok, problem, warning

MAJOR_WANTED = 7


def judge_redis(facts: RedisFacts, *, run_id_check: bool, embedded: bool) -> list[Finding]:
    if not facts.info:
        if embedded and not run_id_check:
            return [ok("version", "the stand-in, which tells nothing of itself")]
        remedy = "allow +info to this user (redis.url), or use Redis or Valkey 7 or newer"
        return [problem("version", "INFO is not answered: a restart of Redis could not be seen", remedy)]
    return [
        _version(facts.info),
        _role(facts.info),
        _mode(facts.info),
        _run_id(facts.info, run_id_check=run_id_check),
        _persistence(facts.info, facts.appendfsync),
        _eviction(facts.info),
    ]


def _version(info: Mapping[str, str]) -> Finding:
    name, version = (
        ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info.get("redis_version", "0"))
    )
    if int(version.partition(".")[0]) < MAJOR_WANTED:
        return problem("version", f"{name} {version}", f"use Redis or Valkey {MAJOR_WANTED} or newer")
    return ok("version", f"{name} {version}")


def _role(info: Mapping[str, str]) -> Finding:
    role = info.get("role", "unknown")
    if role != "master":
        return problem("role", f"{role}: it takes no writes", "name the master with SECKILL__REDIS__URL (redis.url)")
    return ok("role", role)


def _mode(info: Mapping[str, str]) -> Finding:
    mode = info.get("redis_mode", info.get("server_mode", "unknown"))
    if mode != "standalone":
        remedy = "name a server that is not part of a cluster with SECKILL__REDIS__URL (redis.url)"
        return problem("mode", f"{mode}: we do not follow its redirections", remedy)
    return ok("mode", mode)


def _run_id(info: Mapping[str, str], *, run_id_check: bool) -> Finding:
    if not run_id_check:
        found = "not compared: admission trusts a Redis that restarted with writes missing"
        return warning("run_id", found, "remove SECKILL__REDIS__RUN_ID_CHECK (redis.run_id_check = true)")
    if not info.get("run_id"):
        remedy = "allow +info to this user (redis.url): admission compares the server's run_id"
        return problem("run_id", "the server does not tell it", remedy)
    return ok("run_id", "readable")


def _persistence(info: Mapping[str, str], appendfsync: str | None) -> Finding:
    if info.get("aof_enabled") != "1":
        remedy = "set appendonly yes in its configuration"
        return problem("persistence", "appendonly no: a restart forgets every accepted order", remedy)
    if appendfsync is None:
        remedy = "allow +config|get to this user, or see for yourself that appendfsync is everysec or always"
        return warning("persistence", "appendonly yes; appendfsync is not told", remedy)
    if appendfsync == "no":
        found = "appendonly yes, appendfsync no: a power cut loses half a minute"
        return warning("persistence", found, "set appendfsync everysec")
    return ok("persistence", f"appendonly yes, appendfsync {appendfsync}")


def _eviction(info: Mapping[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        found = f"maxmemory-policy {policy}: a full Redis drops stock, buyers or orders"
        return problem("eviction", found, "set maxmemory-policy noeviction")
    return ok("eviction", policy)
