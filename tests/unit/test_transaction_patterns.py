"""What a pattern asks of the databases, and what is concluded about transactions without asking anybody."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from seckill.checkout.orphans import End, Hold, Look
from seckill.checkout.single import Finished, Left, Shut, Spared, Unfinished
from seckill.domain.errors import BranchFailed, CoordinatorUnavailable, ProductUnavailable
from seckill.dtm.protocol import GlobalTransaction, TransOptions
from seckill.settings import Settings, SettingsError, load_settings, with_values
from seckill.wiring import open_embedded, open_order, open_product, open_worker
from seckill.wiring.checkout import require_xa
from seckill.wiring.worker import reader_limits

SERVER = SecretStr("mysql+asyncmy://user:secret@db:3306/seckill")
FILE = SecretStr("sqlite+aiosqlite:///orders.db")


def xa(**databases: SecretStr) -> Settings:
    over: dict[str, dict[str, Any]] = {name: {"database_url": url} for name, url in databases.items()}
    return with_values(Settings(), over | {"transaction": {"pattern": "xa"}})


def test_tcc_is_the_pattern_unless_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is `transaction.pattern`, and a wrong name is told with those that there are."""
    assert load_settings().transaction.pattern == "tcc"
    monkeypatch.setenv("SECKILL__TRANSACTION__PATTERN", "message")
    assert load_settings().transaction.pattern == "message"
    monkeypatch.setenv("SECKILL__TRANSACTION__PATTERN", "msg")
    with pytest.raises(SettingsError, match=r"transaction\.pattern = 'msg': .*'tcc', 'saga', 'xa' or 'message'"):
        load_settings()


@pytest.mark.parametrize("service", ["product", "order"])
def test_xa_on_sqlite_is_refused_with_both_settings(service: str) -> None:
    """One line, which names the pattern and the service's URL, and shows nothing of the URL itself."""
    with pytest.raises(SettingsError) as caught:
        require_xa(xa(**{service: FILE}), "product", "order")
    told = str(caught.value)
    assert "transaction.pattern is xa" in told
    assert f"{service}.database_url" in told
    assert "\n" not in told
    assert "orders.db" not in told


def test_xa_is_no_trouble_where_nothing_is_known_of_sqlite() -> None:
    """A worker need not know the services' databases; servers do; and other patterns run on anything."""
    require_xa(xa(), "product", "order")
    require_xa(xa(product=SERVER, order=SERVER), "product", "order")
    require_xa(with_values(xa(product=FILE), {"transaction": {"pattern": "saga"}}), "product", "order")


def test_groups_of_a_sale_do_not_wait_for_each_other_in_xa() -> None:
    """An XA keeps its sale's row locked until it is committed: a worker carries one group of a sale at a time then."""
    settings = with_values(Settings(), {"worker": {"groups_per_sale_max": 4}})
    assert reader_limits(settings, of_retry_topics=False).groups_per_sale_max == 4
    of_xa = with_values(settings, {"transaction": {"pattern": "xa"}})
    assert reader_limits(of_xa, of_retry_topics=False).groups_per_sale_max == 1


@pytest.mark.parametrize("open_role", [open_product, open_order, open_worker, open_embedded])
async def test_whoever_needs_xa_does_not_start_on_sqlite(open_role: Any) -> None:
    """Both services, the worker, and the whole pipeline on its stand-ins."""
    with pytest.raises(SettingsError, match=r"transaction\.pattern is xa"):
        async with open_role(xa(product=FILE, order=FILE)):
            pass


def transaction(status: str) -> GlobalTransaction:
    return GlobalTransaction("g", "saga", status, None, None, None, TransOptions())


@pytest.mark.parametrize("trans_type", ["tcc", "saga", "msg"])
@pytest.mark.parametrize("known", [None, transaction("succeed"), transaction("failed")])
def test_who_nobody_carries_ends_as_its_orders_stand(trans_type: str, known: GlobalTransaction | None) -> None:
    """Whatever its coordinator calls it: a confirmed order decides for confirm, none for cancel."""
    assert Look("g", known, 1, trans_type).end is End.CONFIRMED
    assert Look("g", known, 0, trans_type).end is End.CANCELLED


def test_an_xa_ends_as_product_has_begun_to_end_it() -> None:
    """What product has committed is committed in order too, though nothing of the order can be seen yet."""
    assert Look("g", None, 0, "xa", committed=True).end is End.CONFIRMED
    assert Look("g", None, 0, "xa", committed=False).end is End.CANCELLED


@pytest.mark.parametrize("status", ["prepared", "submitted", "aborting"])
def test_what_is_carried_is_left_alone(status: str) -> None:
    """Whatever the rows say."""
    assert Look("g", transaction(status), 1, "saga", committed=True).end is End.CARRIED


def test_only_a_checkouts_own_branches_are_ended() -> None:
    """Which branch is product's depends on the pattern; what another application's transaction holds is its own."""
    mine = [("tcc", "01"), ("saga", "02"), ("msg", "00"), ("xa", "01")]
    assert all(Hold("g", branch_id, 0, trans_type).by_checkout for trans_type, branch_id in mine)
    assert not any(Hold("g", "01", 0, trans_type).by_checkout for trans_type in ("saga", "msg", "workflow"))


DOWN = ProductUnavailable("product", "no answer")
SILENT = CoordinatorUnavailable("dtm", "no answer")
BROKEN = BranchFailed("product.Product/TakeStock", "INTERNAL", "as the order wants")


@pytest.mark.parametrize(
    ("left", "spared"),
    [
        ([Shut("1", DOWN), Unfinished("2", SILENT), Shut("3", DOWN)], True),
        ([Shut("1", DOWN), Shut("2", DOWN)], False),
        ([Shut("1", DOWN), Finished("2"), Shut("3", DOWN)], False),
        ([Shut("1", DOWN), Unfinished("2"), Shut("3", DOWN)], False),
        ([Shut("1", BROKEN), Shut("2", BROKEN), Shut("3", BROKEN)], False),
    ],
)
def test_the_rest_is_spared_when_all_that_are_under_way_fail(left: list[Left], spared: bool) -> None:
    """Three at a time: three failures in a row that trying again may mend, and nobody else waits for the same."""
    seen = Spared(3)
    for each in left:
        seen.note(each)
    assert (seen.cause is not None) == spared
