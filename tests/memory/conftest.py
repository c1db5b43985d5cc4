from collections.abc import Iterator

import pytest

import pyvmm_memory as pm

from .backings import BACKINGS, backing


@pytest.fixture(params=BACKINGS)
def each(request: pytest.FixtureRequest) -> Iterator[pm.GuestMemory]:
    """Guest memory over each backing in turn."""
    with backing(request.param) as memory:
        yield memory
