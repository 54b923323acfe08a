"""A store with three lanes, on each server family. After each test nothing may be amiss in its data."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asyncq.store import Store
from tests.jobs import amiss, open_store
from tests.servers import TestServer


@pytest.fixture
async def store(server: TestServer, name: str) -> AsyncIterator[Store]:
    async with open_store(server.url, name) as store:
        yield store
        assert await amiss(store) == []
