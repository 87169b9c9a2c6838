"""Who may change something: the operator token of a role's settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr

from seckill.front.problems import Problem, ProblemError

OPERATOR_CODES = ("UNAUTHORIZED", "CLOSED", "UNAVAILABLE")
BEARER = HTTPBearer(
    auto_error=False, scheme_name="operatorToken", description="`operator_token` of the section of this role's settings"
)


def operator(token: SecretStr | None, *, closed: str) -> Callable[..., None]:
    """The check of the operator token, as a dependency of endpoints; `closed` is what is said when there is none."""
    turned_away = who_is_turned_away(token, closed=closed)

    def require_operator(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None) -> None:
        if problem := turned_away(sent.credentials if sent is not None else ""):
            raise ProblemError(problem)

    return require_operator


def who_is_turned_away(token: SecretStr | None, *, closed: str) -> Callable[[str], Problem | None]:
    """Says what is wrong with a token that was sent (empty: none was); None: nothing is."""
    expected = None if token is None else token.get_secret_value().encode()

    def turned_away(sent: str) -> Problem | None:
        if expected is None:
            return Problem("CLOSED", closed)
        if not sent or not secrets.compare_digest(sent.encode(), expected):
            return Problem("UNAUTHORIZED", "send `Authorization: Bearer <operator token>`")
        return None

    return turned_away


def sent_token(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The token of a request whose headers nobody has read yet; empty: there is none."""
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, token = get_authorization_scheme_param(authorization.decode("latin-1"))
    return token if scheme.lower() == "bearer" else ""
