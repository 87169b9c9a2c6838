"""The test equipment itself: what it starts, it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.compose.loader import compose_file
from tests.servers import compose, install

OWNER = """
import sys, time
from pathlib import Path
from tests.servers import native
from tests.servers.keeper import keeper
folder = Path(sys.argv[1])
keeper().remove_at_end(folder)
with native.redis_process(folder) as redis:
    print(redis.pid, flush=True)
    time.sleep(60)
"""


def test_no_server_outlives_its_owner(tmp_path: Path) -> None:
    """When the process that started a server is killed, the server ends and its folder goes."""
    install.require("Redis")
    folder = tmp_path / "redis"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server = int(owner.stdout.readline())
    assert runs(server)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while folder.exists() or runs(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """An ended process that nobody has asked for yet (Z) does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_override_of_the_compose_file_fits_it() -> None:
    """Laid over docker-compose.yml, DTM is on the host's network with ports and a store that the tests reach."""
    variables = compose.own_variables()
    services = compose_file(compose.FILE, compose.OVERRIDE, variables=variables)["services"]
    dtm = services["dtm"]
    assert (dtm["network_mode"], dtm.get("ports", [])) == ("host", [])
    mariadb = {port["target"]: port["published"] for port in services["mariadb"]["ports"]}
    assert (dtm["environment"]["STORE_HOST"], dtm["environment"]["STORE_PORT"]) == ("127.0.0.1", mariadb[3306])
    assert compose.addresses(variables).dtm.http.endswith(f":{dtm['environment']['HTTP_PORT']}")
    assert set(compose.SERVICES) <= services.keys()
