"""How a worker carries its orders: the checkout of the pattern that the settings name, and what that pattern needs."""

from __future__ import annotations

import grpc
from sqlalchemy.engine import make_url

from seckill.checkout.message import MessageCheckout
from seckill.checkout.orphans import Orphans
from seckill.checkout.plan import Checkout, Plan
from seckill.checkout.reservations import Reservations
from seckill.checkout.saga import SagaCheckout
from seckill.checkout.tcc import TccCheckout
from seckill.checkout.xa import XaCheckout
from seckill.dtm.client import DtmClient
from seckill.dtm.database import MYSQL
from seckill.dtm.protocol import TransOptions
from seckill.settings import ServiceSettings, Settings, SettingsError, variable


def checkout_of(
    settings: Settings,
    client: DtmClient,
    reservations: Reservations,
    *,
    product: grpc.aio.Channel,
    order: grpc.aio.Channel,
) -> Checkout:
    plan = plan_of(settings)
    orphans = orphans_of(settings, client, product=product, order=order)
    match settings.transaction.pattern:
        case "tcc":
            return TccCheckout(client, reservations, plan)
        case "saga":
            return SagaCheckout(client, reservations, orphans, plan)
        case "message":
            return MessageCheckout(client, reservations, orphans, plan)
        case "xa":
            return XaCheckout(client, reservations, orphans.prepared, plan)


def require_xa(settings: Settings, *names: str) -> None:
    """Raises SettingsError when the pattern is XA and one of these services has a database without it.

    A worker need not be told the databases of the services: only those that the settings name are looked at.
    """
    if settings.transaction.pattern != "xa":
        return
    for name in names:
        section: ServiceSettings = getattr(settings, name)
        named = settings.profile == "embedded" or "database_url" in section.model_fields_set
        if named and make_url(section.database_url.get_secret_value()).get_backend_name() not in MYSQL:
            setting = f"{name}.database_url"
            raise SettingsError(
                f"transaction.pattern is xa, and {setting} is SQLite, which has no XA: name a MariaDB or MySQL with "
                f"{variable(setting)}, or another pattern with {variable('transaction.pattern')}"
            )


def orphans_of(settings: Settings, client: DtmClient, *, product: grpc.aio.Channel, order: grpc.aio.Channel) -> Orphans:
    """It calls branches itself, where we dial them, and not where a coordinator does."""
    return Orphans(
        client,
        product=product,
        order=order,
        product_address=settings.product.grpc,
        order_address=settings.order.grpc,
        timeout_ms=settings.dtm.request_timeout_ms,
    )


def plan_of(settings: Settings) -> Plan:
    """Raises SettingsError when the coordinator could not talk to a branch."""
    return Plan(
        product_address=settings.product.grpc,
        order_address=settings.order.grpc,
        product_branch_address=_registered("product", settings.product, settings),
        order_branch_address=_registered("order", settings.order, settings),
        try_timeout_ms=settings.dtm.try_timeout_ms,
        submit_timeout_ms=settings.dtm.submit_timeout_ms,
        batch_max=settings.worker.batch_max,
        batch_bytes_max=settings.worker.batch_bytes_max,
        concurrency_max=settings.transaction.concurrency_max,
        options=TransOptions(
            wait_result=True,
            timeout_to_fail_s=settings.dtm.timeout_to_fail_s,
            retry_interval_s=settings.dtm.retry_interval_s,
            request_timeout_s=settings.dtm.branch_timeout_s,
        ),
    )


def _registered(name: str, service: ServiceSettings, settings: Settings) -> str:
    """Where the coordinator finds the branch. Raises SettingsError when it could not talk to it there."""
    if not settings.tls.enabled:
        return service.branch_grpc or service.grpc
    if settings.dtm.tls:
        return service.grpc
    if service.branch_grpc is None:
        raise SettingsError(
            f"{name}.branch_grpc is not set: with [tls] and dtm.tls = false the coordinator needs a port without TLS"
        )
    return service.branch_grpc
