"""An asyncio client library for DTM: global transactions over gRPC. It knows nothing of orders.

Importing it opens nothing; channels and sessions open on first use.
"""

from __future__ import annotations

from seckill.dtm.channels import Channels
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import BadTarget, CallFailed, DtmError, MissingMetadata, Ongoing, Refused, Unavailable
from seckill.dtm.protocol import BranchContext, BranchState, GlobalTransaction, TransOptions
from seckill.dtm.saga import Saga, Step
from seckill.dtm.tcc import Branch, Tcc, TryReply, global_transaction

__all__ = [
    "BadTarget",
    "Branch",
    "BranchContext",
    "BranchState",
    "CallFailed",
    "Channels",
    "DtmClient",
    "DtmError",
    "GlobalTransaction",
    "MissingMetadata",
    "Ongoing",
    "Refused",
    "Saga",
    "Step",
    "Tcc",
    "TransOptions",
    "TryReply",
    "Unavailable",
    "global_transaction",
]
