"""What the doctor makes of facts: each rule as a plain function, from what is fine to what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from seckill.doctor.facts import Clock, CoordinatorFacts, DatabaseFacts, KafkaFacts, RedisFacts, RoleFacts, SessionFacts
from seckill.doctor.findings import Finding, Level
from seckill.doctor.judgements.clock import judge_clock
from seckill.doctor.judgements.coordinator import judge_coordinator
from seckill.doctor.judgements.kafka import KafkaWants, judge_kafka
from seckill.doctor.judgements.plain import judge_encryption
from seckill.doctor.judgements.redis import judge_redis
from seckill.doctor.judgements.services import judge_operator_token, judge_role
from seckill.doctor.judgements.sql import PACKET_BYTES_MIN, DatabaseWants, judge_database, judge_session
from seckill.doctor.probes.sql import told
from seckill.doctor.probes.wire import GRPC, HTTP, NOTHING, REDIS, SQL, recognised
from seckill.messaging.retry_topics import retry_tiers
from seckill.messaging.topics import LETTER_BYTES_MAX, TopicState, planned
from seckill.plaintext import Plaintext
from seckill.settings import KafkaSettings, RetrySettings

HOUR_MS = 3_600_000


def worse(findings: list[Finding]) -> dict[str, Level]:
    """The checks that are not fine."""
    return {finding.check: finding.level for finding in findings if finding.level is not Level.OK}


# --- Kafka -----------------------------------------------------------------------------------------------------------

SETTINGS = KafkaSettings(topic="orders", dead_letter_topic="letters")
TIERS = retry_tiers(SETTINGS, RetrySettings(topic_delays_ms=(5_000, 30_000)))
WANTS = KafkaWants(
    "orders", "letters", SETTINGS.record_bytes_max, longest_wait_ms=24 * HOUR_MS,
    retry_topics=("orders-retry-0", "orders-retry-1"),
)  # fmt: skip
APIS = {0: (0, 13), 1: (4, 18), 22: (0, 5), 32: (1, 4)}


def as_planned(**settings: str) -> dict[str, TopicState]:
    """The topics as `seckill topics create` makes them on three brokers; `settings` are over the main one's."""
    main, *others = planned(SETTINGS, TIERS, partitions=12, replicas=3, retention_ms=168 * HOUR_MS)
    return {
        "orders": TopicState(12, 3, 3, 0, {**main.settings, **settings}),
        **{each.name: TopicState(12, 3, 3, 0, each.settings) for each in others},
    }


def kafka(topics: dict[str, TopicState], *, auto_create: bool | None = False) -> KafkaFacts:
    return KafkaFacts(3, APIS, topics, auto_create)


def test_what_topics_create_makes_is_what_the_doctor_wants() -> None:
    """Topics as the command makes them on three brokers leave nothing to say."""
    assert worse(judge_kafka(kafka(as_planned()), WANTS)) == {}


def test_a_missing_topic_is_a_problem_unless_the_broker_makes_it() -> None:
    """Auto-creation turns a missing topic into a warning, and is a warning itself."""
    missing = ["topic orders", "topic orders-retry-0", "topic orders-retry-1", "topic letters"]
    assert worse(judge_kafka(kafka({}), WANTS)) == dict.fromkeys(missing, Level.PROBLEM)
    found = worse(judge_kafka(kafka({}, auto_create=True), WANTS))
    assert found == dict.fromkeys([*missing, "auto-creation"], Level.WARNING)


@pytest.mark.parametrize(
    ("settings", "check", "level"),
    [
        ({"retention.ms": str(23 * HOUR_MS)}, "retention of orders", Level.PROBLEM),
        ({"retention.ms": str(24 * HOUR_MS)}, None, None),
        ({"retention.ms": "-1"}, None, None),
        ({"retention.bytes": "1000000"}, "retention of orders", Level.WARNING),
        ({"cleanup.policy": "compact"}, "cleanup of orders", Level.PROBLEM),
        ({"cleanup.policy": "compact,delete"}, "cleanup of orders", Level.PROBLEM),
        ({"min.insync.replicas": "1"}, "replication of orders", Level.WARNING),
        ({"min.insync.replicas": "4"}, "replication of orders", Level.PROBLEM),
        ({"max.message.bytes": str(2_000_000)}, "max.message.bytes", Level.PROBLEM),
    ],
)
def test_a_setting_of_the_main_topic(settings: dict[str, str], check: str | None, level: Level | None) -> None:
    """Each setting of the main topic that would lose or refuse records is found, alone."""
    found = worse(judge_kafka(kafka(as_planned(**settings)), WANTS))
    assert found == ({check: level} if check else {})


def with_setting(topics: dict[str, TopicState], name: str, key: str, value: object) -> dict[str, TopicState]:
    settings = {**(topics[name].settings or {}), key: str(value)}
    return topics | {name: replace(topics[name], settings=settings)}


@pytest.mark.parametrize("name", ["letters", "orders-retry-0", "orders-retry-1"])
@pytest.mark.parametrize("key", ["retention.ms", "retention.bytes"])
def test_what_was_put_off_or_set_aside_is_kept_for_ever(key: str, name: str) -> None:
    """Any end of its retention is a problem, because nobody carries or replays what was deleted."""
    topics = with_setting(as_planned(), name, key, 604_800_000)
    assert worse(judge_kafka(kafka(topics), WANTS)) == {f"retention of {name}": Level.PROBLEM}


@pytest.mark.parametrize("name", ["letters", "orders-retry-1"])
def test_a_copy_may_be_larger_than_its_record(name: str) -> None:
    """Those topics take 16 KB more than the main one, or a large record could be neither put off nor set aside."""
    topics = as_planned()
    main_bytes = int((topics["orders"].settings or {})["max.message.bytes"])
    for copy_bytes, level in ((main_bytes + LETTER_BYTES_MAX, None), (main_bytes + LETTER_BYTES_MAX - 1, "problem")):
        found = worse(judge_kafka(kafka(with_setting(topics, name, "max.message.bytes", copy_bytes)), WANTS))
        assert found == ({"max.message.bytes": level} if level else {})


def test_records_of_a_delay_that_was_taken_away() -> None:
    """A retry topic that no setting asks for is warned of while it holds records that nobody has carried."""
    facts = replace(kafka(as_planned()), left_behind={"orders-retry-2": 7, "orders-retry-3": 0})
    (told,) = [each for each in judge_kafka(facts, WANTS) if each.level is not Level.OK]
    assert (told.check, told.level) == ("topic orders-retry-2", Level.WARNING)
    assert told.found.startswith("7 record(s) that nobody will carry")


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"replicas": 1, "in_sync": 1}, Level.PROBLEM),  # fewer than min.insync.replicas
        ({"in_sync": 2}, Level.WARNING),
        ({"replicas": 2, "in_sync": 2}, Level.WARNING),
    ],
)
def test_replicas(change: dict[str, int], level: Level) -> None:
    """Too few replicas are a warning, and a problem when nothing can be written any more."""
    topics = as_planned()
    topics["orders"] = replace(topics["orders"], **change)  # type: ignore[arg-type]
    assert worse(judge_kafka(kafka(topics), WANTS)) == {"replication of orders": level}


def test_partitions_without_a_leader() -> None:
    """A partition that nobody leads is the one thing said about its topic's partitions."""
    topics = as_planned()
    topics["orders"] = replace(topics["orders"], leaderless=3)
    assert worse(judge_kafka(kafka(topics), WANTS)) == {"topic orders": Level.PROBLEM}


def test_a_broker_that_does_not_tell() -> None:
    """Without the right to see settings the doctor warns, and judges nothing that it has not seen."""
    topics = {name: replace(topic, settings=None) for name, topic in as_planned().items()}
    found = worse(judge_kafka(kafka(topics, auto_create=None), WANTS))
    untold = [f"settings of {name}" for name in topics]
    assert found == dict.fromkeys([*untold, "auto-creation"], Level.WARNING)


def test_an_old_broker() -> None:
    """A broker that knows no headers or no idempotent producer cannot carry orders."""
    for apis in ({0: (0, 2), 22: (0, 1)}, {0: (0, 7)}):
        assert worse(judge_kafka(KafkaFacts(1, apis, as_planned(), False), WANTS)) == {"version": Level.PROBLEM}


def test_the_embedded_kafka_is_not_measured_by_production() -> None:
    """The stand-in makes its topics by itself and tells nothing: that is fine in the embedded profile."""
    facts = KafkaFacts(1, {0: (0, 10), 1: (0, 16), 22: (0, 4)}, {}, None)
    assert worse(judge_kafka(facts, replace(WANTS, embedded=True))) == {}


# --- Redis -----------------------------------------------------------------------------------------------------------

INFO = {
    "redis_version": "7.4.1", "role": "master", "redis_mode": "standalone", "run_id": "0" * 40, "aof_enabled": "1",
    "maxmemory_policy": "noeviction",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fsync", "check", "level"),
    [
        ({}, "everysec", None, None),
        ({}, "always", None, None),
        ({}, "no", "persistence", Level.WARNING),
        ({}, None, "persistence", Level.WARNING),
        ({"aof_enabled": "0"}, "everysec", "persistence", Level.PROBLEM),
        ({"redis_version": "6.2.14"}, "everysec", "version", Level.PROBLEM),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "everysec", None, None),
        ({"role": "slave"}, "everysec", "role", Level.PROBLEM),
        ({"redis_mode": "cluster"}, "everysec", "mode", Level.PROBLEM),
        ({"run_id": ""}, "everysec", "run_id", Level.PROBLEM),
        ({"maxmemory_policy": "allkeys-lru"}, "everysec", "eviction", Level.PROBLEM),
    ],
)
def test_redis(change: dict[str, str], fsync: str | None, check: str | None, level: Level | None) -> None:
    """Each thing that would make Redis forget, refuse or hide a restart is found, alone."""
    facts = RedisFacts({**INFO, **change}, fsync)
    assert worse(judge_redis(facts, run_id_check=True, embedded=False)) == ({check: level} if check else {})


def test_a_redis_without_info() -> None:
    """Only the embedded stand-in may have no INFO; elsewhere a restart could not be seen."""
    silent = RedisFacts({}, None)
    assert worse(judge_redis(silent, run_id_check=False, embedded=True)) == {}
    assert worse(judge_redis(silent, run_id_check=True, embedded=False)) == {"version": Level.PROBLEM}
    assert worse(judge_redis(RedisFacts(INFO, "always"), run_id_check=False, embedded=False)) == {
        "run_id": Level.WARNING
    }


# --- SQL -------------------------------------------------------------------------------------------------------------

STRICT = frozenset({"STRICT_TRANS_TABLES", "NO_ZERO_DATE"})
SESSION = SessionFacts(STRICT, "READ-COMMITTED", PACKET_BYTES_MIN, 3)
DATABASE = DatabaseFacts(
    version="10.11.6-MariaDB-0+deb12u1",
    session=SESSION,
    charset="utf8mb4",
    collation="utf8mb4_general_ci",
    flush_log_at_commit=1,
    max_connections=150,
    engines={"barrier": "InnoDB"},
    collations={("barrier", "gid"): "ascii_bin", ("sale", "name"): "utf8mb4_general_ci"},
)
DATABASE_WANTS = DatabaseWants(pool_size=8, ids={("barrier", "gid"): "ascii_bin"})


def test_a_database_as_it_should_be() -> None:
    """MariaDB with its defaults and our session leaves nothing to say; nor does MySQL 8."""
    assert worse(judge_database(DATABASE, DATABASE_WANTS)) == {}
    assert worse(judge_database(replace(DATABASE, version="8.4.3"), DATABASE_WANTS)) == {}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"sql_mode": frozenset({"ONLY_FULL_GROUP_BY"})}, "sql_mode"),
        ({"sql_mode": frozenset()}, "sql_mode"),
        ({"isolation": "REPEATABLE-READ"}, "isolation"),
        ({"isolation": "SERIALIZABLE"}, "isolation"),
        ({"max_allowed_packet": PACKET_BYTES_MIN - 1}, "max_allowed_packet"),
        ({"lock_wait_s": 50}, "lock wait"),
    ],
)
def test_a_session_that_did_not_get_what_it_asked_for(change: dict[str, Any], check: str) -> None:
    """What a connection really has is judged, whatever it asked for: a role does not start on less."""
    assert worse(judge_session(SESSION)) == {}
    assert worse(judge_session(replace(SESSION, **change))) == {check: Level.PROBLEM}


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"version": "10.6.18-MariaDB"}, "version", Level.PROBLEM),
        ({"version": "5.5.5-10.6.18-MariaDB"}, "version", Level.PROBLEM),
        ({"version": "5.5.5-11.4.2-MariaDB-log"}, None, None),
        ({"version": "5.7.44-log"}, "version", Level.PROBLEM),
        ({"charset": "latin1"}, "charset", Level.WARNING),
        ({"flush_log_at_commit": 2}, "durability", Level.WARNING),
        ({"flush_log_at_commit": 0}, "durability", Level.PROBLEM),
        ({"max_connections": 10}, "connections", Level.PROBLEM),
        ({"engines": {"barrier": "MyISAM"}}, "engine", Level.PROBLEM),
        ({"collations": {("barrier", "gid"): "utf8mb4_general_ci"}}, "id columns", Level.PROBLEM),
        ({"collations": {}}, None, None),  # no tables yet: the schema's own finding says so
    ],
)
def test_a_database(change: dict[str, Any], check: str | None, level: Level | None) -> None:
    """Each thing that would take ids for equal, lose commits or run out of connections is found, alone."""
    found = worse(judge_database(replace(DATABASE, **change), DATABASE_WANTS))
    assert found == ({check: level} if check else {})


# --- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_ms", "uncertain_ms", "level"),
    [(0, 500, None), (1_400, 500, None), (1_600, 500, "warning"), (-1_000, 0, "warning"), (-5_500, 500, "problem")],
)
def test_clock_skew(ahead_ms: float, uncertain_ms: float, level: str | None) -> None:
    """Only the part of a difference that is certain counts, in either direction."""
    assert worse(judge_clock(Clock(ahead_ms, uncertain_ms))) == ({"clock": level} if level else {})


def test_no_clock_is_no_finding() -> None:
    """A server that tells no time is not judged by it."""
    assert judge_clock(None) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (CoordinatorFacts("1.19.0", False, "sql"), {}),
        (CoordinatorFacts("v1.19.0", False, "sql"), {}),
        (CoordinatorFacts("", False, "sql"), {}),
        (CoordinatorFacts("1.17.4", False, "sql"), {"version": "warning"}),
        (CoordinatorFacts("1.19.0", False, "redis"), {"store": "warning"}),
        (CoordinatorFacts("1.19.0", False, "boltdb"), {"store": "warning"}),
        (CoordinatorFacts("1.19.0", False, None), {"store": "warning"}),
        (CoordinatorFacts("seckill 0.1.0", True, "mysql"), {}),
        (CoordinatorFacts("seckill 0.1.0", True, "sqlite"), {"store": "warning"}),
    ],
)
def test_coordinator(facts: CoordinatorFacts, expected: dict[str, str]) -> None:
    """A coordinator that is not the tested one, or keeps its log where it can be lost, is warned of."""
    assert worse(judge_coordinator(facts, embedded=False)) == expected
    assert "store" not in worse(judge_coordinator(facts, embedded=True))


def test_a_role_says_who_it_is() -> None:
    """Another role at the address is a problem; so is the right one that is not ready, with its own reasons."""
    assert worse(judge_role(RoleFacts("product", True), "product", "product.ops")) == {}
    assert worse(judge_role(RoleFacts("order", True), "product", "product.ops")) == {"role": Level.PROBLEM}
    unready = RoleFacts("worker", False, {"redis": "ok", "kafka": "no broker answers"})
    [finding] = judge_role(unready, "worker", "worker.ops")
    assert (finding.level, finding.found) == (Level.PROBLEM, "no: kafka: no broker answers")


def test_settings_that_leave_something_open() -> None:
    """No operator token and plaintext are warnings: the pipeline runs."""
    assert judge_operator_token(token_set=False).level is Level.WARNING
    assert judge_operator_token(token_set=True).level is Level.OK
    assert judge_encryption(Plaintext("redis.url", "", "use rediss://")).level is Level.WARNING
    assert judge_encryption(None).level is Level.OK


def test_whatever_is_not_fine_has_one_remedy() -> None:
    """A finding that is not ok names a remedy, on one line; one that is ok has none."""
    bad = DatabaseFacts("5.5", SessionFacts(frozenset(), "SERIALIZABLE", 1, 50), "latin1", "x", 0, 1,
                        {"t": "Aria"}, {("barrier", "gid"): "latin1_swedish_ci"})  # fmt: skip
    findings = [
        *judge_database(bad, DATABASE_WANTS), *judge_database(DATABASE, DATABASE_WANTS),
        *judge_redis(RedisFacts({"redis_version": "5.0", "role": "slave"}, None), run_id_check=True, embedded=False),
        *judge_kafka(kafka({}, auto_create=True), WANTS), *judge_kafka(kafka(as_planned()), WANTS),
        *judge_coordinator(CoordinatorFacts("0.9", False, None), embedded=False), *judge_clock(Clock(90_000, 0)),
    ]  # fmt: skip
    for finding in findings:
        assert (finding.remedy == "") == (finding.level is Level.OK), finding
        assert "\n" not in finding.found + finding.remedy


@pytest.mark.parametrize(
    ("heard", "kind"),
    [
        (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00", GRPC),
        (b"\x5c\x00\x00\x00\x0a5.5.5-10.11.6-MariaDB\x00", SQL),
        (b"\x45\x00\x00\x00\xff\x6a\x04Host '10.0.0.1' is not allowed to connect", SQL),
        (b"HTTP/1.1 400 Bad Request\r\n", HTTP),
        (b"-ERR unknown command 'PRI', with args beginning with: '*'", REDIS),
        (b"\x15\x03\x01\x00\x02\x02\x16", "a TLS port"),
        (b"", NOTHING),
        (b"SSH-2.0-OpenSSH_9.2", NOTHING),
    ],
)
def test_who_answers_is_told_from_the_first_bytes(heard: bytes, kind: str) -> None:
    """What a server says to the beginning of an HTTP/2 connection tells what it is, or nothing at all."""
    assert recognised(heard) == kind


def test_a_drivers_error_is_told_without_its_tuple() -> None:
    """The number and the words of a server's error come apart; an error without a number has words only."""

    class Wrapped(Exception):
        def __init__(self, *arguments: object) -> None:
            self.orig = Exception(*arguments)

    assert told(Wrapped(1045, "Access denied")) == (1045, "Access denied")  # type: ignore[arg-type]
    assert told(Wrapped("unable to open database file")) == (None, "unable to open database file")  # type: ignore[arg-type]
