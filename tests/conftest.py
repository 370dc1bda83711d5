"""For all tests: the built program, the rule that nothing may skip where all can run, the summary of real systems.

As root on Debian, and wherever CI=true, a skipped test, a skipped module and an expected failure are failures: what is
not tried there is tried nowhere. Elsewhere the tests of real systems skip with one line that says what is missing.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from .ground import host, summary

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def pyz() -> Path:
    """The built ipsec.pyz: the one $IPSEC_PYZ names, or the checkout's own, rebuilt when out of date."""
    named = os.environ.get("IPSEC_PYZ")
    if named:
        return Path(named).resolve(strict=True)
    archive = TOP / "ipsec.pyz"
    with open(TOP / "build.py") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        vendored = (path for path in (TOP / "vendor").rglob("*") if path.is_file())
        sources = [TOP / "ipsec.py", TOP / "build.py", *vendored]
        if not archive.exists() or any(path.stat().st_mtime > archive.stat().st_mtime for path in sources):
            subprocess.run([sys.executable, str(TOP / "build.py")], cwd=TOP, check=True, stdin=subprocess.DEVNULL)
    return archive


def nothing_may_skip() -> bool:
    return os.environ.get("CI") == "true" or (os.geteuid() == 0 and Path("/etc/debian_version").exists())


def reason(skipped: object) -> str:
    """The reason in a report's longrepr."""
    return str(skipped[2] if isinstance(skipped, tuple) else skipped).removeprefix("Skipped: ")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, object, None]:
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.skipped and nothing_may_skip():
        report.longrepr = f"nothing may skip here: {getattr(report, 'wasxfail', None) or reason(report.longrepr)}"
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)
    if report.when == "call":
        summary.count(item, report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, object, None]:
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.skipped and nothing_may_skip():
        report.outcome, report.longrepr = "failed", f"nothing may skip here: {reason(report.longrepr)}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a parallel run, hand the worker's part of the summary over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ground"] = summary.state()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if "ground" in getattr(node, "workeroutput", {}):
        summary.merge(node.workeroutput["ground"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary.lines(host.missing()):
        terminalreporter.write_line(line)
