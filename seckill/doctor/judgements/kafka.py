"""What Kafka must be: topics that keep what is not yet consumed, and what was put off or set aside for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seckill.doctor.facts import KafkaFacts
from seckill.doctor.findings import Finding, ok, problem, warning
from seckill.messaging.topics import BATCH_OVERHEAD_BYTES, FOR_EVER, LETTER_BYTES_MAX, TopicState

PRODUCE, FETCH, INIT_PRODUCER_ID = 0, 1, 22
HEADERS_SINCE = 3
"""The version of Produce that carries headers."""

OLDEST_FETCH_OF_4 = 4
"""Kafka 4.0 takes no Fetch below it (KIP-896); older brokers do."""

REPLICAS_WANTED = 3
IN_SYNC_WANTED = 2

CREATE = "run `seckill topics create`"


@dataclass(frozen=True, slots=True)
class KafkaWants:
    topic: str
    dead_letter_topic: str
    record_bytes_max: int
    longest_wait_ms: int  # how long a record may wait before everything that retries it has given up
    embedded: bool = False
    retry_topics: tuple[str, ...] = ()


def judge_kafka(facts: KafkaFacts, wants: KafkaWants) -> list[Finding]:
    findings = [_protocol(facts)]
    if wants.embedded:
        return [*findings, ok("topics", "made by the stand-in on first use, and gone with it")]
    for name in (wants.topic, *wants.retry_topics, wants.dead_letter_topic):
        topic = facts.topics.get(name)
        findings += [_missing(name, facts.auto_create)] if topic is None else _topic(name, topic)
    findings += _retention(facts, wants) + _sizes(facts, wants) + _left_behind(facts)
    return [*findings, _auto_creation(facts.auto_create)]


def _protocol(facts: KafkaFacts) -> Finding:
    """A broker does not tell its version, but which versions of each request it takes."""
    _, produce = facts.apis.get(PRODUCE, (0, -1))
    fetch, _ = facts.apis.get(FETCH, (0, -1))
    found = f"{facts.brokers} broker(s), Kafka {'4.0 or newer' if fetch >= OLDEST_FETCH_OF_4 else 'before 4.0'}"
    if produce < HEADERS_SINCE or INIT_PRODUCER_ID not in facts.apis:
        return problem("version", f"{found}: no record headers or no idempotent writing", "use Kafka 4.0 or newer")
    return ok("version", found)


def _missing(name: str, auto_create: bool | None) -> Finding:
    if auto_create:
        return warning(f"topic {name}", "missing; the broker would make it with settings of its own", CREATE)
    return problem(f"topic {name}", "missing, and the broker makes none by itself", CREATE)


def _topic(name: str, topic: TopicState) -> list[Finding]:
    check = f"topic {name}"
    if topic.leaderless:
        brokers = "start the brokers that hold its replicas"
        return [problem(check, f"{topic.leaderless} of {topic.partitions} partitions have no leader", brokers)]
    findings = [ok(check, f"{topic.partitions} partition(s)"), _replication(name, topic)]
    if topic.settings is None:
        allow = "allow DescribeConfigs on the topic to this user"
        return [*findings, warning(f"settings of {name}", "the broker does not tell them", allow)]
    policy = topic.settings.get("cleanup.policy", "delete")
    if policy != "delete":
        findings.append(
            problem(f"cleanup of {name}", f"cleanup.policy={policy}: records may be compacted away", CREATE)
        )
    return findings


def _replication(name: str, topic: TopicState) -> Finding:
    check = f"replication of {name}"
    minimum = _number(topic.settings or {}, "min.insync.replicas", 1)
    found = f"{topic.replicas} replica(s), {topic.in_sync} in sync, min.insync.replicas={minimum}"
    if topic.in_sync < minimum:
        return problem(check, f"{found}: no record can be written", "start the brokers that hold the other replicas")
    if topic.replicas < REPLICAS_WANTED:
        remedy = f"make it anew with `seckill topics create --replication {REPLICAS_WANTED}` on as many brokers"
        return warning(check, f"{found}: the loss of a broker loses orders", remedy)
    if topic.settings is not None and minimum < IN_SYNC_WANTED:
        return warning(check, f"{found}: an acknowledged record may be on one broker only", CREATE)
    if topic.in_sync < topic.replicas:
        return warning(check, found, "see why the other replicas are behind")
    return ok(check, found)


def _retention(facts: KafkaFacts, wants: KafkaWants) -> list[Finding]:
    findings = []
    if (settings := _settings(facts, wants.topic)) is not None:
        findings.append(_main_retention(wants, settings))
    lost = dict.fromkeys(wants.retry_topics, "orders are deleted while they wait")
    lost[wants.dead_letter_topic] = "letters are deleted before anyone replays them"
    for name, what in lost.items():
        if (settings := _settings(facts, name)) is not None:
            findings.append(_kept_for_ever(name, settings, what))
    return findings


def _main_retention(wants: KafkaWants, settings: Mapping[str, str]) -> Finding:
    check, kept_ms = f"retention of {wants.topic}", _number(settings, "retention.ms", FOR_EVER)
    kept = "for ever" if kept_ms < 0 else f"{kept_ms / 3_600_000:.1f} h"
    if 0 <= kept_ms < wants.longest_wait_ms:
        wait = f"{wants.longest_wait_ms / 3_600_000:.1f} h"
        return problem(check, f"{kept}: shorter than an order may wait ({wait})", CREATE)
    if (kept_bytes := _number(settings, "retention.bytes", FOR_EVER)) >= 0:
        remedy = "set retention.bytes=-1 on the topic"
        return warning(check, f"{kept}, but at most {kept_bytes} bytes a partition, consumed or not", remedy)
    return ok(check, kept)


def _kept_for_ever(name: str, settings: Mapping[str, str], lost: str) -> Finding:
    limits = {key: _number(settings, key, FOR_EVER) for key in ("retention.ms", "retention.bytes")}
    ends = ", ".join(f"{key}={value}" for key, value in limits.items() if value != FOR_EVER)
    if ends:
        return problem(f"retention of {name}", f"{ends}: {lost}", CREATE)
    return ok(f"retention of {name}", "for ever")


def _sizes(facts: KafkaFacts, wants: KafkaWants) -> list[Finding]:
    """A letter is its record and the story of its failure: its topic must take more than the record's own does. So must
    the retry topics.
    """
    main = _settings(facts, wants.topic)
    others = [_settings(facts, name) for name in (*wants.retry_topics, wants.dead_letter_topic)]
    told = [settings for settings in others if settings is not None]
    if main is None or not told:
        return []
    default = wants.record_bytes_max + BATCH_OVERHEAD_BYTES
    main_bytes = _number(main, "max.message.bytes", default)
    letter_bytes = min(_number(settings, "max.message.bytes", default) for settings in told)
    found = f"{main_bytes} bytes a record, {letter_bytes} one that is put off or set aside"
    if letter_bytes < main_bytes + LETTER_BYTES_MAX:
        return [problem("max.message.bytes", f"{found}: a large record could be neither", CREATE)]
    if main_bytes > default:
        remedy = f"set SECKILL__KAFKA__RECORD_BYTES_MAX={main_bytes - BATCH_OVERHEAD_BYTES} (kafka.record_bytes_max)"
        return [problem("max.message.bytes", f"{found}, but we set aside at most {default} bytes", remedy)]
    return [ok("max.message.bytes", found)]


def _left_behind(facts: KafkaFacts) -> list[Finding]:
    """Retry topics of delays that were taken out of the settings while orders waited there."""
    return [
        warning(
            f"topic {name}",
            f"{records} record(s) that nobody will carry: retry.topic_delays_ms has no delay for it any more",
            "set the delay again until the topic is empty",
        )
        for name, records in facts.left_behind.items()
        if records
    ]


def _auto_creation(auto_create: bool | None) -> Finding:
    match auto_create:
        case None:
            return warning(
                "auto-creation", "the broker does not tell", "allow DescribeConfigs on the cluster to this user"
            )
        case True:
            found = "on: a mistyped topic is made silently, with settings of the broker's own"
            return warning("auto-creation", found, "set auto.create.topics.enable=false on the brokers")
        case False:
            return ok("auto-creation", "off")


def _settings(facts: KafkaFacts, topic: str) -> Mapping[str, str] | None:
    found = facts.topics.get(topic)
    return None if found is None else found.settings


def _number(settings: Mapping[str, str], key: str, default: int) -> int:
    return int(settings.get(key, default))
