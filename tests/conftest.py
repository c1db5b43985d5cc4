"""What every test shares: the markers that ask for /dev/kvm or for patience, and the count of what they skipped."""

from collections.abc import Generator
from typing import Any

import pytest
from guest.host import NotPrepared, is_pvm, kvm_refusal


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = kvm_refusal()
    in_lab = is_pvm() and not config.getoption("--slow")
    for item in items:
        if reason and (item.get_closest_marker("kvm") or item.get_closest_marker("guest")):
            item.add_marker(pytest.mark.skip(reason=reason))
        if in_lab and item.get_closest_marker("kernel_bound"):
            item.add_marker(pytest.mark.skip(reason="tests/lab/test_vmm.py runs it in the lab, where it is faster"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip what needs more than was prepared for this host."""
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, NotPrepared):
        skipped = pytest.skip.Exception(str(error), _use_item_location=True)
        call.excinfo = pytest.ExceptionInfo.from_exception(skipped.with_traceback(error.__traceback__))
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.getreports("skipped"):
        where_and_why = report.longrepr
        reason = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
