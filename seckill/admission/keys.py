"""The names of everything that admission keeps in Redis.

All keys of a product share the hash tag `{product_id}`, so that one script may touch them together on a cluster. What
belongs to one sale carries the sale's id: settling an order of an old sale never touches the new one.

| key                              | type   | holds                                                                  |
|----------------------------------|--------|------------------------------------------------------------------------|
| seckill:products                 | set    | ids of the products that have a sale here                              |
| seckill:change:CHANGE_ID         | string | when this change of a sale was asked for first (ms); expires            |
| seckill:doubted                  | set    | "P:S" of sales whose orders tell more than is held of them here        |
| seckill:complete                 | string | run id of the server on which every sale was last seen to be held      |
| seckill:{P}:sale                 | hash   | the current sale: id, state, window, per-user limit, price, name       |
| seckill:{P}:sales                | zset   | ids of all sales held here; score: when their last result expires (ms) |
| seckill:{P}:S:stock              | hash   | stock, admitted, initial (units), number, run_id, ends_at_ms; `rebuild` |
|                                  |        | while nobody vouches for it: "needed", or the token of a rebuild       |
| seckill:{P}:S:buyers             | hash   | user id → "units order_id order_id …"                                  |
| seckill:{P}:S:ledger             | hash   | order id → "user:quantity:admitted_at:number:published_at"             |
| seckill:{P}:S:due                | zset   | pending entries by the time at which someone should look at them (ms)  |
| seckill:{P}:S:ages               | zset   | pending entries by the time of their admission (ms)                    |
| seckill:{P}:S:parked             | zset   | dead-lettered entries by the time of their parking (ms)                |
| seckill:{P}:S:changes            | hash   | "add:CHANGE_ID", "take:CHANGE_ID" → units that the change moved        |
| seckill:{P}:S:result:ORDER_ID    | string | "status:user:quantity:reason"; expires                                 |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

PRODUCTS = "seckill:products"
DOUBTED = "seckill:doubted"
COMPLETE = "seckill:complete"


def change_key(change_id: str) -> str:
    return f"seckill:change:{change_id}"


def current_sale_key(product_id: int) -> str:
    return f"seckill:{{{product_id}}}:sale"


def sales_key(product_id: int) -> str:
    return f"seckill:{{{product_id}}}:sales"


@dataclass(frozen=True, slots=True)
class SaleKeys:
    """The keys of one sale."""

    stock: str
    buyers: str
    ledger: str
    due: str
    ages: str
    parked: str
    changes: str
    result_prefix: str

    def result(self, order_id: str) -> str:
        return self.result_prefix + order_id


@lru_cache(maxsize=4_096)
def sale_keys(product_id: int, sale_id: int) -> SaleKeys:
    root = f"seckill:{{{product_id}}}:{sale_id}"
    return SaleKeys(
        stock=f"{root}:stock",
        buyers=f"{root}:buyers",
        ledger=f"{root}:ledger",
        due=f"{root}:due",
        ages=f"{root}:ages",
        parked=f"{root}:parked",
        changes=f"{root}:changes",
        result_prefix=f"{root}:result:",
    )
