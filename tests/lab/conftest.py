"""Hosts of the lab, one of each kind for all tests here."""

from collections.abc import Callable
from pathlib import Path

import lab
import pytest
from guest.host import GuestError
from lab import image

HostOf = Callable[..., lab.Host]
HERE = Path(__file__).resolve().parent
hosts: dict[tuple[str, ...], lab.Host] = {}


@pytest.fixture(scope="session")
def host_of(request: pytest.FixtureRequest) -> HostOf:
    """Return what gives the host of an architecture, with more of QEMU's words; each is started when first asked for.

    Making the images of the foreign architectures is left to whoever asks for slow tests, or has made them before.
    """

    def give(name: str, *arguments: str) -> lab.Host:
        key = (name, *arguments)
        if key not in hosts:
            architecture = lab.ARCHITECTURES[name]
            if name != "x86_64" and not image.kept(architecture) and not request.config.getoption("--slow"):
                pytest.skip(f"no image of the {name} host is kept: --slow, or 'python -m lab {name}', makes one")
            try:
                hosts[key] = lab.Host(name, arguments=arguments)
            except GuestError as error:
                pytest.skip(f"no {name} host: {error}") if "no packages" in str(error) else pytest.fail(str(error))
        return hosts[key]

    return give


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the hosts with the last test that may use them: even one that idles takes time from the tests that follow."""
    if nextitem is None or HERE not in nextitem.path.parents:
        while hosts:
            hosts.popitem()[1].close()
