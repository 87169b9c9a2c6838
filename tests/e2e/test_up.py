"""`seckill up` in one terminal and the other commands in a second one, as the README shows them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Seckill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def up(new_seckill: Callable[[], Seckill]) -> Iterator[Seckill]:
    """A home in which `seckill up` runs, on free ports."""
    seckill = new_seckill()
    running = seckill.start("up", "--base-port", "0", "--json")
    assert json.loads(running.line())["addresses"]
    yield seckill
    assert running.stop(signal.SIGTERM) == 0
    assert "drained and ended" in running.stderr
    assert not list(Path(seckill.environment["XDG_RUNTIME_DIR"]).rglob("up-*.toml"))


def test_a_sale_from_creation_to_close(up: Seckill) -> None:
    """Create, list, show, update, pause, resume, close: each shows the sale as it then is."""
    sale = up.json(
        "sale", "create", "--product", "1", "--stock", "10", "--ends", "+1h", "--price", "19.90", "--limit", "2"
    )
    sale_id = str(sale["sale_id"])
    assert (sale["stock"], sale["price_cents"], sale["per_user_limit"], sale["state"]) == (10, 1990, 2, "open")
    assert up.json("sale", "update", sale_id, "--add-stock", "5")["initial"] == 15
    assert up.json("sale", "update", sale_id, "--remove-stock", "3")["initial"] == 12
    too_many = up.run("sale", "update", sale_id, "--remove-stock", "100")
    assert too_many.returncode == 1
    assert "12 of 100" in too_many.stderr
    assert up.json("sale", "update", sale_id, "--add-stock", "4", "--name", "Lamp")["name"] == "Lamp"
    assert up.json("sale", "pause", sale_id)["state"] == "paused"
    refused = up.run("publish", "--user", "1", "--product", "1")
    assert refused.returncode == 1
    assert "PAUSED" in refused.stderr
    assert up.json("sale", "resume", sale_id)["state"] == "open"
    shown = up.json("sale", "show", sale_id)
    assert (shown["initial"], shown["redis"]["stock"]) == (4, 4)
    assert [each["sale_id"] for each in up.json("sale", "list", "--product", "1")["sales"]] == [sale["sale_id"]]
    assert up.json("sale", "close", sale_id)["state"] == "closed"
    assert up.json("sale", "list", "--product", "1", "--state", "open")["sales"] == []
    for command in (["sale", "list"], ["sale", "show", sale_id]):
        plain = up.run(*command)
        assert plain.returncode == 0
        assert "Lamp" in plain.stdout
        assert "\x1b" not in plain.stdout


def test_a_change_is_safe_to_repeat(up: Seckill) -> None:
    """The same change id makes one sale and adds units once; a second sale of the product is refused."""
    create = ("sale", "create", "--product", "2", "--stock", "10", "--change-id", "first")
    sale = up.json(*create)
    assert up.json(*create)["sale_id"] == sale["sale_id"]
    update = ("sale", "update", str(sale["sale_id"]), "--add-stock", "5", "--change-id", "second")
    assert up.json(*update)["initial"] == up.json(*update)["initial"] == 15
    conflict = up.run("sale", "create", "--product", "2", "--stock", "1")
    assert conflict.returncode == 1
    assert "SALE_CONFLICT" in conflict.stderr


def test_an_order_from_wish_to_confirmation(up: Seckill) -> None:
    """publish names the order, order show waits for its end, tx show has its transaction and its reservation."""
    up.json("sale", "create", "--product", "3", "--stock", "10")
    order = up.json("publish", "--user", "7", "--product", "3")
    assert order["code"] == "ACCEPTED"
    result = up.json("order", "show", order["order_id"], "--wait", "20")
    assert result["status"] == "confirmed"
    again = up.run("publish", "--user", "7", "--product", "3")
    assert again.returncode == 1
    assert f"ALREADY_ORDERED (order {order['order_id']})" in again.stderr
    shown = [up.json("tx", "show", each["gid"]) for each in up.json("tx", "list")["transactions"]]
    mine = [
        each for each in shown if order["order_id"].endswith(tuple(row["order_key"] for row in each["reservations"]))
    ]
    assert [each["transaction"]["status"] for each in mine] == ["succeed"]
    assert {branch["op"] for branch in mine[0]["transaction"]["branches"]} >= {"confirm"}
    assert mine[0]["reservations"][0]["state"] == "sold"
    unknown = up.run("order", "show", "3-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b")
    assert unknown.returncode == 1
    assert "UNKNOWN_ORDER" in unknown.stderr
    assert up.run("tx", "show", "no-such-gid").returncode == 1


def test_many_orders_from_a_file(up: Seckill, tmp_path: Path) -> None:
    """Every line is accounted for: accepted, refused or malformed, each failure with its line number."""
    up.json("sale", "create", "--product", "4", "--stock", "5")
    file = tmp_path / "orders.csv"
    wishes = [f"{user},4" for user in range(1, 9)]
    file.write_text("\n".join(["user_id,product_id", *wishes, "nobody,4", "9,999"]) + "\n")
    ended = up.run("publish", str(file), "--concurrency", "1", "--json")
    assert ended.returncode == 1
    *lines, summary = [json.loads(line) for line in ended.stdout.splitlines()]
    assert summary["codes"] == {"ACCEPTED": 5, "SOLD_OUT": 3, "MALFORMED": 1, "UNKNOWN_PRODUCT": 1}
    assert (summary["lines"], summary["failed"], len(lines)) == (10, 5, 10)
    assert {line["line"] for line in lines} == set(range(2, 12))
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == [f"line {n}" for n in range(7, 12)]
    piped = up.run("publish", "-", stdin='{"user_id": 1, "product_id": 4}\n')
    assert piped.returncode == 1
    assert "line 1: ALREADY_ORDERED" in piped.stderr


def test_orders_straight_to_kafka(up: Seckill) -> None:
    """--direct passes the front by; the worker admits the order late and it ends like any other."""
    sale = up.json("sale", "create", "--product", "5", "--stock", "1")
    first = up.json("publish", "--user", "1", "--product", "5", "--direct")
    assert first["code"] == "PUBLISHED"
    assert up.json("order", "show", first["order_id"], "--wait", "20")["status"] == "confirmed"
    keyed = (
        "publish",
        "--user",
        "2",
        "--product",
        "5",
        "--direct",
        "--sale",
        str(sale["sale_id"]),
        "--request-id",
        "k",
    )
    second = up.json(*keyed)
    assert up.json(*keyed)["order_id"] == second["order_id"]
    result = wait_for_order(up, second["order_id"])
    assert result == {"order_id": second["order_id"], "status": "rejected", "reason": "SOLD_OUT"}
    assert up.run("publish", "--user", "2", "--product", "5", "--direct", "--request-id", "k").returncode == 1


def wait_for_order(up: Seckill, order_id: str) -> object:
    """An order that went past the front is unknown to it until the worker has seen it."""
    for _ in range(40):
        ended = up.run("order", "show", order_id, "--wait", "5", "--json")
        if ended.returncode == 0:
            return json.loads(ended.stdout)
    pytest.fail(f"{order_id} did not end: {ended.stderr}")


def test_status_shows_every_part(up: Seckill) -> None:
    """All roles are ready, the lag is known per partition, the ledger per sale, nothing is undecided at rest."""
    report = up.json("status")
    assert {role["role"]: role["state"] for role in report["roles"]} == dict.fromkeys(
        ("front", "product", "order", "worker", "reconcile", "dead-letters", "alerts", "coordinator"), "ready"
    )
    assert report["lag"]["partitions"]
    assert {each["delay_ms"]: each["lag"] for each in report["retry"]["topics"]} == {5_000: 0, 30_000: 0, 300_000: 0}
    assert report["letters"] == {"total": 0, "by_state": {}}
    assert report["undecided"]["total"] == 0
    plain = up.run("status")
    assert plain.returncode == 0
    assert "undecided transactions: 0" in plain.stdout
    assert "dead letters: none" in plain.stdout
    assert "seckill-topic-retry-0" in plain.stdout


def test_the_stores_of_a_running_pipeline_can_be_audited(up: Seckill) -> None:
    """After everything that the other tests did, all six invariants hold."""
    audit = up.json("audit")
    assert all(audit["invariants"].values()), audit["broken"]


def test_the_operator_token_is_needed(up: Seckill) -> None:
    """With a wrong token nothing changes, and the line says which setting to look at."""
    wrong = {**up.environment, "SECKILL__FRONT__OPERATOR_TOKEN": "wrong"}
    refused = type(up)(wrong, up.folder).run("sale", "create", "--product", "6", "--stock", "1")
    assert refused.returncode == 1
    assert "UNAUTHORIZED" in refused.stderr
    assert "front.operator_token" in refused.stderr


def test_the_demo_on_a_pipeline_that_runs(up: Seckill) -> None:
    """`demo --attach` sells products that had no sale so far, judges those alone, and leaves its sales closed."""
    for _ in range(2):
        report = up.json("demo", "--attach", "--stock", "20", "--buyers", "100", "--products", "2")
        assert (report["confirmed"], report["lost"], report["oversold"]) == (40, 0, 0)
    demos = [sale for sale in up.json("sale", "list")["sales"] if sale["name"].startswith("demo product")]
    assert len({sale["product_id"] for sale in demos}) == 4
    assert {sale["state"] for sale in demos} == {"closed"}


def test_the_demo_cannot_keep_running_what_is_not_its_own(up: Seckill) -> None:
    """`--attach --keep-running` is a mistake, said in one line."""
    ended = up.run("demo", "--attach", "--keep-running")
    assert ended.returncode == 2
    assert "--keep-running" in ended.stderr
