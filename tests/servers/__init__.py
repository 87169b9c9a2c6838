"""Real servers for the tests and the demo: found by environment, started by Docker Compose, or as processes of our own.

`real_servers()` is the way in; `native` starts one server for a test that needs its own. Everything is on loopback, on
free ports, in temporary folders, and ends with whoever asked for it. Test equipment: it is not part of the wheel.
"""

from tests.servers.addresses import DtmAddress, Servers, ServersMissing
from tests.servers.databases import fresh_database
from tests.servers.found import can_start_twice, real_servers

__all__ = ["DtmAddress", "Servers", "ServersMissing", "can_start_twice", "fresh_database", "real_servers"]
