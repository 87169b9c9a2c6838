"""What docker-compose.yml promises, whoever reads it: nothing is open to others, nothing is lost, nothing hangs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seckill.settings import load_settings
from tests.compose.loader import FILE, ROOT, Json, Refused, compose_file
from tests.compose.stack import seconds
from tests.servers import compose as tests_compose

ONE_SHOT = {"schema", "topics", "cli", "demo"}
SERVERS = {"kafka", "redis", "mariadb", "dtm"}
NO_GRACE_S = 10  # Docker's own, where the file says nothing


@pytest.fixture(scope="module")
def services() -> Json:
    found: Json = compose_file()["services"]
    return found


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    """The loader knows the specification: a misspelt key, a missing dependency and a wrong duration do not pass."""
    text = FILE.read_text(encoding="utf-8")
    for right, wrong in (
        ("mem_limit: 1g", "memlimit: 1g"),
        ("      topics:\n", "      topic:\n"),
        ("stop_grace_period: 30s", "stop_grace_period: soon"),
        ("condition: service_healthy", "condition: healthy"),
    ):
        assert right in text or right.replace("      ", "  ") in text
        path = tmp_path / "docker-compose.yml"
        path.write_text(text.replace(right, wrong).replace(right.replace("      ", "  "), wrong), encoding="utf-8")
        with pytest.raises(Refused):
            compose_file(path)


def test_ports_are_for_this_host_only(services: Json) -> None:
    """Everything published is published on loopback, and no two on the same port."""
    published = [port for spec in services.values() for port in spec.get("ports", ())]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    numbers = [port["published"] for port in published]
    assert len(numbers) == len(set(numbers))


def test_kafka_names_the_port_that_is_published() -> None:
    """A client on the host is sent on to a port of the host, also when it is another one."""
    kafka = compose_file(variables={"KAFKA_PORT": "29999"})["services"]["kafka"]
    assert [port["published"] for port in kafka["ports"]] == ["29999"]
    assert "HOST://127.0.0.1:29999" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_every_service_gives_up_its_rights(services: Json) -> None:
    """No capability, no new privileges, a memory limit; our own containers and DTM cannot write to their image."""
    for name, spec in services.items():
        assert spec["cap_drop"] == ["ALL"], name
        assert spec["security_opt"] == ["no-new-privileges:true"], name
        assert int(spec["mem_limit"]) <= 2**30, name
        assert "privileged" not in spec, name
        assert spec.get("read_only") or name in {"kafka", "mariadb"}, name


def test_what_runs_comes_back_and_what_ends_does_not(services: Json) -> None:
    """Servers and roles are restarted, and have a health check; work that ends is tried again a few times at most."""
    for name, spec in services.items():
        if name in ONE_SHOT:
            assert spec["restart"] in {"no", "on-failure:3"}, name
            assert "healthcheck" not in spec, name
        else:
            assert spec["restart"] == "unless-stopped", name
            assert spec["healthcheck"]["retries"] > 1, name


def test_images_are_pinned(services: Json) -> None:
    """Every image of others has a version; one image of ours serves every role."""
    for name, spec in services.items():
        assert re.fullmatch(r"[a-z/]+:(\d+\.\d+(\.\d+)?|dev)", spec["image"]), name
        assert ("build" in spec) == (name not in SERVERS), name
    assert len({spec["image"] for spec in services.values() if "build" in spec}) == 1


def test_every_role_has_time_to_drain(services: Json) -> None:
    """Docker's patience is longer than the role's own."""
    settings = load_settings(ROOT / "config" / "compose.toml")
    for role in ("product", "order", "coordinator", "worker", "reconcile", "dead-letters", "alerts", "front"):
        section = getattr(settings, role.replace("-", "_"))
        drain_s = (section.drain_timeout_ms + getattr(section, "drain_delay_ms", 0)) / 1000
        assert seconds(services[role]["stop_grace_period"]) >= drain_s + 5, role
    for name in SERVERS:
        assert seconds(services[name]["stop_grace_period"]) >= NO_GRACE_S, name


def test_nothing_starts_before_what_it_needs(services: Json) -> None:
    """Whatever a role dials at start is healthy by then; tables and topics are made by then."""
    needs = {name: set(spec.get("depends_on", {})) for name, spec in services.items()}
    assert needs["dtm"] == {"mariadb"}
    assert needs["product"] == needs["order"] == needs["coordinator"] == {"schema", "mariadb"}
    assert needs["worker"] >= {"topics", "kafka", "redis", "dtm", "product", "order"}
    assert needs["dead-letters"] == needs["worker"] | {"schema", "mariadb"}
    assert needs["front"] == (needs["worker"] | {"worker"}) - {"coordinator"}
    assert needs["alerts"] == {"schema", "mariadb"}  # none of those that it watches
    assert needs["cli"] == needs["demo"] == {"front"}
    for name, spec in services.items():
        for other, depends in spec.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert depends["condition"] == expected, (name, other)


def test_every_password_can_be_changed() -> None:
    """With all variables set, no development password is left anywhere in the file."""
    text = FILE.read_text(encoding="utf-8")
    variables = dict.fromkeys(re.findall(r"\$\{(\w+):-dev-", text), "mine")
    assert len(variables) == 10
    assert "dev-" in str(compose_file()["services"])
    assert not re.search(r"dev-\w", str(compose_file(variables=variables)["services"]))
    assert not re.search(r"(?i)password\s*[:=]\s*[^\s$]", (ROOT / "config" / "compose.toml").read_text())


def test_a_plain_up_starts_what_an_order_needs() -> None:
    """Without a profile: servers, preparations and roles; our own coordinator and the commands are asked for."""
    started = set(compose_file(profiles=())["services"])
    roles = {"product", "order", "worker", "reconcile", "dead-letters", "front", "alerts"}
    assert started == SERVERS | {"schema", "topics"} | roles
    with_ours = compose_file(profiles=("coordinator",))["services"]
    assert set(with_ours) == started | {"coordinator"}


def test_the_tests_own_override_fits() -> None:
    """Laid over the file, it puts DTM on the host's network, where MariaDB's published port is."""
    variables = tests_compose.own_variables()
    services = compose_file(FILE, tests_compose.OVERRIDE, variables=variables)["services"]
    dtm = services["dtm"]
    assert dtm["network_mode"] == "host"
    assert not dtm.get("ports")
    assert not dtm.get("networks")
    assert dtm["environment"]["STORE_PORT"] == services["mariadb"]["ports"][0]["published"] == variables["MARIADB_PORT"]
    assert dtm["environment"]["STORE_PASSWORD"] == variables["DTM_DB_PASSWORD"]
    for name in ("kafka", "redis"):
        assert [port["published"] for port in services[name]["ports"]] == [variables[f"{name.upper()}_PORT"]]
