"""Channels to our own roles and a client of the coordinator, as settings name them; they connect on first use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from seckill.client import front_url
from seckill.dtm.channels import open_channel as dial
from seckill.dtm.client import DtmClient
from seckill.security import channel_credentials
from seckill.settings import NO_TLS, Settings, TlsSettings


@asynccontextmanager
async def open_channel(address: str, tls: TlsSettings = NO_TLS) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to one of our own roles; it connects on first use. Raises CertificateProblem."""
    async with dial(address, channel_credentials(tls)) as channel:
        yield channel


@asynccontextmanager
async def open_dtm(settings: Settings, *, timeout_ms: int | None = None) -> AsyncIterator[DtmClient]:
    """A client of the coordinator that the settings name; it connects when it is first used."""
    credentials = channel_credentials(settings.tls)  # of the branches, whoever coordinates them
    async with (
        open_channel(settings.dtm.grpc, settings.tls if settings.dtm.tls else NO_TLS) as channel,
        DtmClient(
            channel,
            address=settings.dtm.grpc,
            http_url=front_url(settings.dtm.http),
            timeout_ms=timeout_ms or settings.dtm.request_timeout_ms,
            credentials=credentials,
        ) as client,
    ):
        yield client
