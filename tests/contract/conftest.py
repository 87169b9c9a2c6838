"""Fixtures of the contract suites."""

from tests.support.redis_servers import admission, product_id, redis_backend

__all__ = ["admission", "product_id", "redis_backend"]
