"""The order service: the orders that confirmed transactions make."""
