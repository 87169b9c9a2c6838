"""Fixtures of the contract suites."""

from tests.support.redis_servers import admission, own_redis, product_id, redis_backend

__all__ = ["admission", "own_redis", "product_id", "redis_backend"]
