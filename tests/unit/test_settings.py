"""Settings: what is read, in which order, and how a wrong value is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from seckill.settings import SettingsError, listening, load_settings
from seckill.wiring.worker import reader_limits


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECKILL_CONFIG", raising=False)


def test_without_a_file_the_embedded_profile_is_used() -> None:
    """A newcomer needs no file."""
    assert load_settings().profile == "embedded"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SECKILL__SECTION__KEY` is laid over the file, the file over the defaults."""
    file = tmp_path / "s.toml"
    file.write_text("[worker]\nbatch_max = 7\ninflight_max = 9\n")
    monkeypatch.setenv("SECKILL__WORKER__BATCH_MAX", "3")
    settings = load_settings(file)
    assert (settings.worker.batch_max, settings.worker.inflight_max) == (3, 9)
    assert settings.profile == "real"


@pytest.mark.parametrize("topic", ["seckill-topic", "seckill-topic-retry-0", "seckill-topic-retry-2"])
def test_letters_have_a_topic_of_their_own(monkeypatch: pytest.MonkeyPatch, topic: str) -> None:
    """In the topic or a retry topic they would be carried, and buried again."""
    monkeypatch.setenv("SECKILL__KAFKA__DEAD_LETTER_TOPIC", topic)
    with pytest.raises(SettingsError, match=r"kafka\.dead_letter_topic \(.+\) must not be kafka\.topic or one of"):
        load_settings()


def test_few_orders_are_carried_together_from_the_retry_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may hang: what is behind a group waits for all of it. Of the main topic's groups the setting decides."""
    monkeypatch.setenv("SECKILL__WORKER__BATCH_MAX", "500")
    settings = load_settings()
    main, retry = (reader_limits(settings, of_retry_topics=retry) for retry in (False, True))
    assert (main.batch_max, retry.batch_max, retry.groups_per_sale_max) == (500, 50, 1)
    assert (main.inflight_max, retry.inflight_max) == (settings.worker.inflight_max, settings.retry.inflight_max)
    monkeypatch.setenv("SECKILL__WORKER__BATCH_MAX", "7")
    assert reader_limits(load_settings(), of_retry_topics=True).batch_max == 7


def test_every_wrong_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, the value and what is allowed, one line each; misspelt names too."""
    file = tmp_path / "s.toml"
    file.write_text('[front]\nhttp = "nowhere"\nhtpp = 1\n[worker]\nbatch_max = 501\n')
    monkeypatch.setenv("SECKILL__WORKER__BATCHMAX", "3")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    text = str(caught.value)
    assert "front.http = 'nowhere': must be host:port" in text
    assert "front.htpp: no such setting" in text
    assert "worker.batch_max = 501: Input should be less than or equal to 500" in text
    assert "SECKILL__WORKER__BATCHMAX: no such setting" in text


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("RETRY__TOPIC_DELAYS_MS", "5000,3000", "must be a JSON list, for example [1000, 5000]"),
        ("RETRY__TOPIC_DELAYS_MS", "[1000, -2]", "topic_delays_ms.1 = -2: Input should be greater than 0"),
        ("ALERTS__TARGETS", "slack://secret", 'must be a JSON list, for example ["first", "second"]'),
        ("ALERTS__METRICS_FROM", "slack", 'must be a JSON list, for example ["first", "second"]'),
        ("FRONT", "abc", "SECKILL__FRONT: no such setting"),
    ],
)
def test_a_list_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, key: str, value: str, problem: str) -> None:
    """A variable of a setting with several values is JSON; one that is not is named, and its value, maybe a secret,
    is not shown.
    """
    monkeypatch.setenv(f"SECKILL__{key}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert problem in str(caught.value)
    assert "slack" not in str(caught.value)


@pytest.mark.parametrize("variable", ["FRONT__PUBLISH_TIMEOUT_MS", "KAFKA__REQUEST_TIMEOUT_MS"])
def test_a_rebuild_waits_longer_than_a_publish(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """An order that is on its way to Kafka when admission closes has to be there when the topic is read."""
    monkeypatch.setenv(f"SECKILL__{variable}", "9000")
    monkeypatch.setenv("SECKILL__RECONCILE__REBUILD_WAIT_MS", "9000")
    with pytest.raises(SettingsError, match=r"  reconcile\.rebuild_wait_ms must be above"):
        load_settings()


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    """An error about a secret names the key only."""
    file = tmp_path / "s.toml"
    file.write_text("[front]\noperator_token = 12345678\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert "front.operator_token" in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("[front", "is not valid TOML"), (None, "cannot read")])
def test_an_unreadable_file_is_said_plainly(tmp_path: Path, text: str | None, expected: str) -> None:
    """A missing file and a broken one are told apart."""
    file = tmp_path / "s.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        load_settings(file)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("SECKILL__REDIS__URL", "geheim@redis:6379"),
        ("SECKILL__REDIS__URL", "redis://:geheim@redis:99999/0"),
        ("SECKILL__PRODUCT__DATABASE_URL", "mysql://u:geheim@h/db"),
        ("SECKILL__ORDER__DATABASE_URL", "geheim.db"),
        ("SECKILL__COORDINATOR__DATABASE_URL", "postgresql+asyncpg://u:geheim@h/db"),
    ],
)
def test_a_url_that_no_driver_takes_is_named_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    """A wrong URL is refused at start with what is allowed; what stands in it is not repeated."""
    monkeypatch.setenv(variable, url)
    with pytest.raises(SettingsError, match=r"_?url: must be (redis|sqlite\+aiosqlite)://") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql+asyncmy://u:geheim@host:abc/x", "its port is no number"),
        ("mysql+asyncmy://u:geheim@host:/x", "its port is no number"),
        ("mysql+asyncmy://u:geheim@host:0/x", "its port is not from 1 to 65535"),
        ("mysql+asyncmy://u:geheim@host:65536/x", "its port is not from 1 to 65535"),
        ("mysql+asyncmy://u:geheim@/x", "it names no host"),
        ("mysql+asyncmy:///x", "it names no host"),
        ("mysql+asyncmy://u:pass@geheim@host/x", "it names no host, or none that is possible"),
        ("mysql+asyncmy://u:geheim@host:3306", "it names no database"),
        ("mariadb+asyncmy://u:geheim@host:3306/", "it names no database"),
        ("mysql+asyncmy://u:geheim@host/x?foo=bar", "it takes no option"),
        ("mysql+asyncmy://u:geheim@host/x?charset=geheim", "it takes no option"),
        ("mysql+asyncmy://u:geheim@host/x?charset=utf8mb4&foo=bar", "it takes no option"),
        ("sqlite+aiosqlite://", "it names no file"),
        ("sqlite+aiosqlite:///", "it names no file"),
        ("sqlite+aiosqlite:///:memory:", "it names no file"),
        ("sqlite+aiosqlite://geheim.db", "it names no file"),
        ("sqlite+aiosqlite:///x.db?key=geheim", "it takes no options"),
    ],
)
def test_a_database_url_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, problem: str) -> None:
    """Host, port, database name or file, and options are looked at before anybody connects; one line, no secret."""
    monkeypatch.setenv("SECKILL__PRODUCT__DATABASE_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    _, line = str(caught.value).splitlines()
    assert line.startswith("  product.database_url: must be sqlite+aiosqlite:///PATH or mysql+asyncmy://USER:PASSWORD@")
    assert problem in line
    assert "geheim" not in line


@pytest.mark.parametrize(
    "url",
    [
        "mysql+asyncmy://host/x",
        "mysql+asyncmy://u:p%40ss@db-1.example.org:3306/x",
        "mariadb+asyncmy://u:p/w@[::1]:3306/x?charset=utf8mb4",
        "sqlite+aiosqlite:///product.db",
        "sqlite+aiosqlite:////var/lib/a@b/product.db",
    ],
)
def test_a_database_url_that_leads_somewhere_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What the drivers take is taken as it stands."""
    monkeypatch.setenv("SECKILL__PRODUCT__DATABASE_URL", url)
    assert load_settings().product.database_url.get_secret_value() == url


@pytest.mark.parametrize("variable", ["SECKILL__FRONT__HTPP", "SECKILL__FRONT__HTPP__PORT", "SECKILL__FRONNT__HTTP"])
def test_an_unknown_variable_is_told_once(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """By the name that the user has written."""
    monkeypatch.setenv(variable, "x")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).splitlines()[1:] == [f"  {variable}: no such setting"]


def test_a_role_listens_where_it_is_told_and_is_dialled_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`listen` changes the host of a role's own addresses, for the role itself; everybody else dials what they say."""
    monkeypatch.setenv("SECKILL__PRODUCT__GRPC", "product:9101")
    monkeypatch.setenv("SECKILL__PRODUCT__OPS", "product:9111")
    monkeypatch.setenv("SECKILL__PRODUCT__LISTEN", "0.0.0.0")
    settings = load_settings()
    product = listening(settings, "product").product
    assert (product.grpc, product.ops, product.branch_grpc) == ("0.0.0.0:9101", "0.0.0.0:9111", None)
    assert listening(settings, "worker").product.grpc == "product:9101"
