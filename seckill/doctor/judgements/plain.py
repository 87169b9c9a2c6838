"""Connections without TLS. Inside the embedded profile everything is one process, and nothing is said of it."""

from __future__ import annotations

from seckill.doctor.findings import Finding, ok, warning
from seckill.plaintext import Plaintext


def judge_encryption(plain: Plaintext | None) -> Finding:
    """`plain` is what the roles themselves warn of at their start."""
    return ok("encryption", "TLS") if plain is None else warning("encryption", "plaintext", plain.remedy)
