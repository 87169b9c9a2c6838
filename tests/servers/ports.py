"""Ports that stay ours while nobody listens on them."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

FIXED_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to clients: nobody's connection takes a server's port while the server is down."""

_random = random.SystemRandom()  # runs side by side must not choose alike, whoever has seeded the common generator


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that no outgoing connection will be given."""
    with ExitStack() as held:
        found: list[int] = []
        for port in _random.sample(FIXED_PORTS, 40 * count):
            if len(found) == count:
                return found
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    raise AssertionError(f"only {len(found)} of {count} ports are free")
