"""A proxy that overrules what clients ask: it passes bytes on, some of them replaced by others of the same length.

Put before a MariaDB it stands for the proxies and init scripts that change a session behind the back of who opened it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

CHUNK_BYTES = 65_536


@contextmanager
def overruling_proxy(target: tuple[str, int], replaced: Mapping[bytes, bytes]) -> Iterator[int]:
    """Passes connections on to `target`; yields the port it listens on. A statement must come in one piece."""
    assert all(len(asked) == len(done) for asked, done in replaced.items()), "a packet's length comes before it"
    listening = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(target)
                opened.extend((client, server))
                threading.Thread(target=_pass_on, args=(client, server, replaced), daemon=True).start()
                threading.Thread(target=_pass_on, args=(server, client, {}), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()
        for each in opened:
            each.close()


def _pass_on(source: socket.socket, sink: socket.socket, replaced: Mapping[bytes, bytes]) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            for asked, done in replaced.items():
                data = data.replace(asked, done)
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
