"""Expecting a gRPC status, and nothing in it that a caller should not see."""

from __future__ import annotations

from typing import Any

import grpc


class Fails:
    """Expects a status; `error` is the call's error afterwards."""

    def __init__(self, code: grpc.StatusCode, *words: str) -> None:
        self._code, self._words = code, words

    def __enter__(self) -> Fails:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert isinstance(error, grpc.aio.AioRpcError), f"no status, expected {self._code}"
        assert error.code() is self._code, error
        detail = error.details() or ""
        assert "Traceback" not in detail
        assert all(word in detail for word in self._words), detail
        self.error = error
        return True

    def trailing(self) -> dict[str, Any]:
        pairs: Any = self.error.trailing_metadata() or ()
        return dict(pairs)
