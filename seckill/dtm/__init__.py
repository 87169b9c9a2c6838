"""An asyncio client library for DTM: global transactions over gRPC, in four patterns. It knows nothing of orders.

Here is what starts transactions: `Tcc`, `Saga`, `Xa`, `Message`. What serves their branches is in the modules
`tcc_branch`, `saga_branch`, `xa_branch` and `message_branch`, beside `barrier` and `serving`, and needs SQLAlchemy.
Importing opens nothing; channels and sessions open on first use.
"""

from __future__ import annotations

from seckill.dtm.channels import Channels
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import BadTarget, CallFailed, DtmError, MissingMetadata, Ongoing, Refused, Unavailable
from seckill.dtm.message import Message
from seckill.dtm.protocol import BranchContext, BranchState, GlobalTransaction, TransOptions
from seckill.dtm.saga import Saga, Step
from seckill.dtm.tcc import Branch, Tcc, TryReply, global_transaction
from seckill.dtm.xa import Xa, xa_transaction

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
    "Message",
    "MissingMetadata",
    "Ongoing",
    "Refused",
    "Saga",
    "Step",
    "Tcc",
    "TransOptions",
    "TryReply",
    "Unavailable",
    "Xa",
    "global_transaction",
    "xa_transaction",
]
