"""Settings as text: TOML, with the secrets masked unless the text is for the program itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import tomli_w
from pydantic import SecretStr

if TYPE_CHECKING:
    from seckill.settings import Settings

MASK = "********"

Document = dict[str, Any]
"""Sections of plain values; keys without a section come first."""


def document(settings: Settings, *, reveal: bool = False) -> Document:
    """The effective settings. Unset ones are absent; secrets are masked unless `reveal`."""
    result: Document = {}
    for name, value in settings:
        if hasattr(value, "model_fields_set"):
            plain = {key: _plain(key, entry, reveal=reveal) for key, entry in value}
            result[name] = {key: entry for key, entry in plain.items() if entry is not None}
        else:
            result[name] = value
    return result


def to_toml(values: Mapping[str, Any]) -> str:
    return tomli_w.dumps(values)


def masked_url(url: str) -> str:
    """A URL without what is secret in it: the password, and the values of its query."""
    parts = urlsplit(url)
    user_info, at, host = parts.netloc.rpartition("@")
    user, colon, _ = user_info.partition(":")
    shown = f"{user if colon else ''}{colon}{MASK}@{host}" if at else host
    query = "&".join(f"{pair.partition('=')[0]}={MASK}" for pair in parts.query.split("&") if pair)
    slashes = "//" if "://" in url else ""
    return f"{parts.scheme}:{slashes}{shown}{parts.path}{'?' if query else ''}{query}"


def _plain(key: str, value: Any, *, reveal: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(key, each, reveal=reveal) for each in value]
    if not isinstance(value, SecretStr):
        return value
    if reveal:
        return value.get_secret_value()
    return masked_url(value.get_secret_value()) if key.endswith("url") else MASK
