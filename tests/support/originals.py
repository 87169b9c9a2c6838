"""The two articles' callers: messages of their fields alone, their TCC and their saga, on a product of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from seckill.dtm import Branch, DtmClient, Saga, Step, Tcc, TransOptions, global_transaction
from tests.support.backbone import Backbone

QUICK = TransOptions(retry_interval_s=1, request_timeout_s=3)
WAITING = replace(QUICK, wait_result=True)
TRY_TIMEOUT_MS = 3_000

CREATED_MS = 9_000


def fields(*values: int) -> bytes:
    """A message with the integer fields 1, 2, … and nothing else; zeros are left out, as protobuf does."""
    return b"".join(_varint(number << 3) + _varint(value) for number, value in enumerate(values, 1) if value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def stock_branch(address: str) -> Branch:
    names = ("CheckProductStock", "UpdateProductStock", "RollbackProductStock")
    return Branch(*(f"{address}/product.Product/{name}" for name in names))


def order_branch(address: str) -> Branch:
    return Branch(*(f"{address}/order.Order/{name}" for name in ("CreateOrderCheck", "CreateOrder", "RollbackOrder")))


@dataclass(frozen=True, slots=True)
class Shop:
    """A product with units on no sale, and who sells it."""

    backbone: Backbone
    product_id: int

    @classmethod
    async def open(cls, backbone: Backbone, *, stock: int) -> Shop:
        product_id = uuid4().int % 10**12 + 1
        await backbone.query(
            "product",
            "INSERT INTO product (product_id, stock, created_at_ms, updated_at_ms) VALUES (:id, :stock, :at, :at)",
            id=product_id, stock=stock, at=CREATED_MS,
        )  # fmt: skip
        return cls(backbone, product_id)

    async def stock(self) -> int:
        return int(str((await self._product())[0]))

    async def changed_ms(self) -> int:
        """When the stock last changed."""
        return int(str((await self._product())[1]))

    async def _product(self) -> tuple[object, ...]:
        (row,) = await self.backbone.query(
            "product", "SELECT stock, updated_at_ms FROM product WHERE product_id = :id", id=self.product_id
        )
        return row

    async def orders(self) -> list[tuple[object, ...]]:
        """Buyer, quantity and status of every order of the product, oldest first."""
        return await self.backbone.query(
            "order",
            "SELECT user_id, quantity, status FROM orders WHERE product_id = :id ORDER BY created_at_ms, user_id",
            id=self.product_id,
        )

    async def barrier(self, service: str, gid: str) -> list[tuple[object, ...]]:
        """Branch, operation and who wrote the row, in the order of the rows."""
        return await self.backbone.query(
            service, "SELECT branch_id, op, reason FROM barrier WHERE gid = :gid ORDER BY id", gid=gid
        )

    def tcc_branches(self) -> tuple[Branch, Branch]:
        settings = self.backbone.settings
        return stock_branch(settings.product.grpc), order_branch(settings.order.grpc)


async def buy(client: DtmClient, shop: Shop, *, user_id: int, units: int) -> str:
    """The first article's transaction: the stock's branch, then the order's, each with its own fields. Its gid."""
    stock, order = shop.tcc_branches()

    async def body(tcc: Tcc) -> str:
        await tcc.call_branch(stock, fields(shop.product_id, units), timeout_ms=TRY_TIMEOUT_MS)
        await tcc.call_branch(order, fields(user_id, shop.product_id), timeout_ms=TRY_TIMEOUT_MS)
        return tcc.gid

    return await global_transaction(client, body, options=WAITING)


@dataclass(frozen=True, slots=True)
class SagaNames:
    """The names under which the second article's operations are called, and the order's message."""

    order: str
    create: str
    product: str
    order_fields: Sequence[str]

    def order_payload(self, **values: int) -> bytes:
        return fields(*(values.get(name, 0) for name in self.order_fields))


OURS = SagaNames(
    "order.Order", "CreateOrderDTM", "product.Product",
    ("user", "product", "quantity", "postage", "address"),
)  # fmt: skip
THEIRS = SagaNames("orderclient.Order", "Create", "productclient.Product", ("user", "product", "amount", "status"))


async def saga_of(
    client: DtmClient,
    shop: Shop,
    *,
    names: SagaNames,
    user_id: int,
    units: int,
    product_address: str = "",
    options: TransOptions = WAITING,
    **order: int,
) -> Saga:
    """The second article's saga: make the order, then take the stock. Not submitted yet.

    `order` are further fields of the order's message; `product_address` is where the stock is taken, if not at the
    service itself.
    """
    settings = shop.backbone.settings
    creating = f"{settings.order.grpc}/{names.order}/{names.create}"
    taking = f"{product_address or settings.product.grpc}/{names.product}/DecrStock"
    saga = Saga(client, await client.new_gid(), options=options)
    payload = names.order_payload(user=user_id, product=shop.product_id, **order)
    saga.add(Step(creating, f"{creating}Revert"), payload)
    return saga.add(Step(taking, f"{taking}Revert"), fields(shop.product_id, units))
