"""What requests may say: what the log can keep exactly, and what branches can be called with. Each raises Refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from seckill.coordinator import refusals
from seckill.coordinator.pattern import Contents
from seckill.coordinator.state import BranchOp
from seckill.coordinator.tables import CUSTOM_DATA_LENGTH_MAX, ID_LENGTH_MAX, URL_LENGTH_MAX
from seckill.dtm.protocol import TransOptions

SECONDS_MAX = 31_536_000  # a year
REPEATS_MAX = 100  # of calls that are repeated without a pause
HEADERS_BYTES_MAX = 4_096  # gRPC takes 8 KiB of metadata, ours and its own included

_ID = re.compile(r"[!-~]+")
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")


def check_gid(gid: str) -> None:
    if len(gid) > ID_LENGTH_MAX or not _ID.fullmatch(gid):
        raise refusals.invalid(f"a gid is 1 to {ID_LENGTH_MAX} visible ASCII characters")


def check_seconds(*seconds: int) -> None:
    if not all(0 <= each <= SECONDS_MAX for each in seconds):
        raise refusals.invalid(f"times are 0 to {SECONDS_MAX} seconds")


def check_branches(branches: Sequence[BranchOp]) -> None:
    for branch in branches:
        if len(branch.branch_id) > ID_LENGTH_MAX or not _ID.fullmatch(branch.branch_id):
            raise refusals.invalid(f"a branch id is 1 to {ID_LENGTH_MAX} visible ASCII characters")
        _check_address(branch.op, branch.url)


def check_contents(contents: Contents) -> None:
    _check_address("QueryPrepared", contents.query_prepared)
    if len(contents.custom_data) > CUSTOM_DATA_LENGTH_MAX:
        raise refusals.invalid(f"the custom data are longer than {CUSTOM_DATA_LENGTH_MAX} characters")


def check_options(options: TransOptions) -> None:
    check_seconds(options.timeout_to_fail_s, options.retry_interval_s, options.request_timeout_s)
    if not 0 <= options.retry_limit <= REPEATS_MAX:
        raise refusals.invalid(f"the retry limit is 0 to {REPEATS_MAX}")
    if sum(len(name) + len(value.encode()) for name, value in options.branch_headers.items()) > HEADERS_BYTES_MAX:
        raise refusals.invalid(f"branch headers have more than {HEADERS_BYTES_MAX} bytes")
    for name, value in options.branch_headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower().startswith("grpc-"):
            raise refusals.invalid(f"{name!r} cannot be the name of a branch header")
        if not name.lower().endswith("-bin") and not _HEADER_VALUE.fullmatch(value):
            raise refusals.invalid(f"the branch header {name!r} is not printable ASCII")


def _check_address(of: str, url: str) -> None:
    if len(url) > URL_LENGTH_MAX:
        raise refusals.invalid(f"the address for {of} is longer than {URL_LENGTH_MAX} characters")
    if url.startswith(("http://", "https://")):
        raise refusals.invalid(f"branches over HTTP are not supported: {url}")
