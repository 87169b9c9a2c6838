"""Who may change something: the operator token of a role's settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from seckill.front.problems import Problem, ProblemError

OPERATOR_CODES = ("UNAUTHORIZED", "CLOSED", "UNAVAILABLE")
BEARER = HTTPBearer(
    auto_error=False, scheme_name="operatorToken", description="`operator_token` of the section of this role's settings"
)


def operator(token: SecretStr | None, *, closed: str) -> Callable[..., None]:
    """The check of the operator token, as a dependency of endpoints; `closed` is what is said when there is none."""
    expected = None if token is None else token.get_secret_value().encode()

    def require_operator(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None) -> None:
        if expected is None:
            raise ProblemError(Problem("CLOSED", closed))
        if sent is None or not secrets.compare_digest(sent.credentials.encode(), expected):
            raise ProblemError(Problem("UNAUTHORIZED", "send `Authorization: Bearer <operator token>`"))

    return require_operator
