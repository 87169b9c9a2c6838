"""What libraries log looks like our own lines, and is no longer than it has to be."""

from __future__ import annotations

import logging

import pytest

from seckill.log import configure_logging


@pytest.mark.parametrize(
    ("logger", "short"),
    [("sqlalchemy.pool.impl.AsyncAdaptedQueuePool", True), ("grpc._cython.cygrpc", True), ("asyncio", False)],
)
def test_a_connection_that_went_is_one_line(capfd: pytest.CaptureFixture[str], logger: str, short: bool) -> None:
    """Of a library that logs a traceback for each lost connection there is one line, with the error."""
    configure_logging()
    error = ConnectionResetError("gone\naway")
    logging.getLogger(logger).error("Exception during %s", "reset", exc_info=error)
    told = capfd.readouterr().err
    assert "Exception during reset" in told
    assert "ConnectionResetError" in told
    assert (told.count("\n") == 1) is short
