"""The processes that take records off topics. Each composes the rooms of `seckill`; none holds rules of its own."""
