"""Certificate files, and what is said of each that cannot be used; TLS settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from seckill.plaintext import plaintext_connections
from seckill.security import (
    CertificateProblem,
    PemFiles,
    channel_credentials,
    check_files,
    client_context,
    kafka_context,
    server_credentials,
)
from seckill.settings import KafkaSettings, RedisSettings, Settings, SettingsError, TlsSettings, load_settings
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def problem_of(files: PemFiles) -> str:
    with pytest.raises(CertificateProblem) as caught:
        files.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_files_make_a_context(authority: Authority) -> None:
    """An authority, a certificate of its own and the key to it are accepted."""
    own = authority.issue("client")
    assert client_context(PemFiles("redis.tls_", authority.ca, own.certificate, own.key)).check_hostname


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Setting, path and the system's word for it."""
    path = str(tmp_path / "nowhere.pem")
    assert problem_of(PemFiles("redis.tls_", path, None, None)) == f"redis.tls_ca = {path}: No such file or directory"


def test_a_file_that_is_no_pem_is_named(tmp_path: Path, authority: Authority) -> None:
    """For the authority, the certificate and the key alike."""
    path = tmp_path / "noise"
    path.write_bytes(b"\x00\x01 no PEM")
    own = authority.issue("pem")
    noise = str(path)
    assert problem_of(PemFiles("tls.", noise, None, None)).startswith(f"tls.ca = {noise}: it holds no certificate")
    assert "tls.certificate" in problem_of(PemFiles("tls.", authority.ca, noise, own.key))
    assert "tls.key" in problem_of(PemFiles("tls.", authority.ca, own.certificate, noise))
    # The two were swapped.
    assert "tls.certificate" in problem_of(PemFiles("tls.", authority.ca, own.key, own.certificate))


def test_the_key_of_another_certificate_is_named(authority: Authority) -> None:
    """Two files that are fine alone, and do not belong together."""
    one, other = authority.issue("one"), authority.issue("other")
    told = problem_of(PemFiles("kafka.tls_", authority.ca, one.certificate, other.key))
    assert told.startswith(f"kafka.tls_key = {other.key}: it is not the key of kafka.tls_certificate")


def test_an_expired_certificate_is_named(authority: Authority) -> None:
    """With the moment at which it expired."""
    old = authority.issue("old", expired=True)
    assert "front.tls_certificate" in problem_of(PemFiles("front.tls_", None, old.certificate, old.key))
    assert ": it expired at 20" in problem_of(PemFiles("front.tls_", None, old.certificate, old.key))


def test_every_file_of_the_settings_is_checked(tmp_path: Path, authority: Authority) -> None:
    """`seckill config check` names the wrong files of all sections at once, one line each."""
    file = tmp_path / "s.toml"
    file.write_text(
        f'[tls]\nca = "{authority.ca}"\n'
        '[redis]\nurl = "rediss://h:1/0"\ntls_ca = "/no/redis.pem"\n'
        '[order]\ndatabase_tls = "verify-ca"\ndatabase_tls_ca = "/no/order.pem"\n'
    )
    with pytest.raises(SettingsError) as caught:
        check_files(load_settings(file))
    [_, *lines] = str(caught.value).splitlines()
    assert lines == [
        "  redis.tls_ca = /no/redis.pem: No such file or directory",
        "  order.database_tls_ca = /no/order.pem: No such file or directory",
    ]


def test_a_role_that_serves_needs_a_certificate(authority: Authority) -> None:
    """One that only dials can do without; one that serves gRPC says which setting is missing."""
    tls = TlsSettings(ca=authority.ca)
    assert channel_credentials(tls) is not None
    with pytest.raises(CertificateProblem, match=r"tls\.certificate: a role that serves gRPC"):
        server_credentials(tls)


def test_without_settings_nothing_is_encrypted() -> None:
    """No credentials, no context: plaintext is what unset settings mean."""
    assert channel_credentials(TlsSettings()) is None
    assert server_credentials(TlsSettings()) is None
    assert kafka_context(KafkaSettings()) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n', "tls: certificate is set without ca"),
        ('[tls]\nca = "a.pem"\ncertificate = "c.pem"\n', "tls: certificate is set without key"),
        ('[front]\ntls_key = "k.pem"\n', "front: tls_key is set without tls_certificate"),
        ('[redis]\nurl = "redis://h:1/0"\ntls_ca = "a.pem"\n', "redis: tls_… is set, but url does not begin"),
        ('[redis]\nurl = "rediss://u:geheim@h:1/0"\npassword = "geheim"\n', "redis: password is set, and url holds"),
        ('[redis]\nusername = "u"\n', "redis: username is set without password"),
        ('[kafka]\ntls_ca = "a.pem"\n', "kafka: tls_… is set, but security_protocol is neither SSL nor SASL_SSL"),
        (
            '[kafka]\nsecurity_protocol = "SASL_SSL"\n',
            "kafka: sasl_username and sasl_password are needed with SASL_SSL",
        ),
        ('[kafka]\nsasl_password = "geheim"\n', "kafka: sasl_… is set, but security_protocol is neither"),
        ('[product]\ndatabase_tls_ca = "a.pem"\n', "product: database_tls_ca or database_tls_certificate is set, but"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, text: str, problem: str) -> None:
    """What is set and would have no effect, and what lacks its other half, is refused at start, without secrets."""
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert f"  {problem}" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_plaintext_is_found_by_role() -> None:
    """Each role names the settings of what it dials and serves in plaintext; SQLite is a file and not spoken of."""
    plain = Settings(profile="real")
    named = {role: {each.setting for each in plaintext_connections(role, plain)} for role in ("front", "worker")}
    assert named["front"] == {"front.http", "front.grpc", "redis.url", "kafka.bootstrap", "product.grpc"}
    assert named["worker"] == {"redis.url", "kafka.bootstrap", "product.grpc", "order.grpc", "dtm.grpc"}
    assert [each.setting for each in plaintext_connections("order", plain)] == ["order.grpc"]
    letters = {each.setting for each in plaintext_connections("dead_letters", plain)}
    assert letters == {"redis.url", "kafka.bootstrap", "product.grpc"}  # its HTTP is closed without a token


def test_what_is_encrypted_is_not_warned_of() -> None:
    """With everything encrypted nothing is left to name; towards a DTM server its two plaintext ways are."""
    values = {
        "tls": {"ca": "a", "certificate": "c", "key": "k"},
        "redis": {"url": "rediss://h:1/0"},
        "kafka": {"security_protocol": "SSL"},
        "front": {"tls_certificate": "c", "tls_key": "k"},
        "product": {"database_url": "mysql+asyncmy://u:p@h/db", "database_tls": "verify-identity"},
    }
    secure = Settings.model_validate(values)
    for role in ("front", "worker", "product", "coordinator", "dead_letters"):
        assert plaintext_connections(role, secure) == [], role
    with_dtm = Settings.model_validate(
        values | {"dtm": {"tls": False}, "product": {**values["product"], "branch_grpc": "h:2", "database_tls": "off"}}
    )
    assert [each.setting for each in plaintext_connections("worker", with_dtm)] == ["dtm.grpc"]
    told = plaintext_connections("product", with_dtm)
    assert [(each.setting, each.address) for each in told] == [
        ("product.branch_grpc", "h:2"),
        ("product.database_url", "h:3306"),
    ]
    opened = Settings.model_validate(values | {"dead_letters": {"operator_token": "t"}})
    assert [each.setting for each in plaintext_connections("dead_letters", opened)] == ["dead_letters.http"]


def test_a_password_does_not_show() -> None:
    """Secrets of the settings are not in their representation, nor in an error about them."""
    settings = RedisSettings(username="u", password=SecretStr("geheim"))
    assert "geheim" not in repr(settings)
    with pytest.raises(ValidationError) as caught:
        KafkaSettings(sasl_password=SecretStr("geheim"))
    assert "geheim" not in str(caught.value)
