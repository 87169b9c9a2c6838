"""Certificates of a test: an authority, what it vouches for, and every way in which a file can be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files. `both` holds the key and then the certificate, as Kafka wants its key store."""

    certificate: str
    key: str
    both: str


class Authority:
    """Vouches for servers and clients alike; `ca` is the path of its own certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *hosts: str, expired: bool = False) -> Certificate:
        """For these host names and addresses, or for this machine's loopback."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        issued = self._authority.issue_cert(*(hosts or HOSTS), common_name=name, not_after=until)
        key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        files = {"crt": chain, "key": key_pem, "both": key_pem + chain}
        for ending, content in files.items():
            (self._folder / f"{name}.{ending}").write_bytes(content)
        certificate, own_key, both = (str(self._folder / f"{name}.{ending}") for ending in files)
        return Certificate(certificate, own_key, both)
