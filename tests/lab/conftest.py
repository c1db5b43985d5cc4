"""Hosts of the lab, one of each kind for all tests here."""

from collections.abc import Callable, Iterator

import lab
import pytest
from guest.host import GuestError
from lab import image

HostOf = Callable[..., lab.Host]


@pytest.fixture(scope="session")
def host_of(request: pytest.FixtureRequest) -> Iterator[HostOf]:
    """Return what gives the host of an architecture, with more of QEMU's words; each is started when first asked for.

    Making the images of the foreign architectures is left to whoever asks for slow tests, or has made them before.
    """
    hosts: dict[tuple[str, ...], lab.Host] = {}

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

    yield give
    for host in hosts.values():
        host.close()
