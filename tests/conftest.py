"""For all tests: the built program, the rule about skipped tests, the summary of real systems.

A test that this machine can't run is skipped. One line at the end names the skipped tests, the reasons, and how to run
these tests. With CI=true or --no-skips, a skipped test, a skipped module and an expected failure are failures, because
a test that is skipped there would run nowhere.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import build

from .ground import clock, summary, surroundings
from .ground.host import Unavailable, cache

# Hypothesis tries the same examples in each run, without a time limit; --hypothesis-profile=default tries others
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

surroundings.settle()
if os.geteuid() == 0:  # root runs no programs from a directory below /tmp
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(cache()))

TOP = Path(__file__).resolve().parent.parent


def is_of_this_checkout(archive: Path) -> bool:
    """Return whether an archive was built from the checkout's commit and for the interpreters of this machine."""
    with zipfile.ZipFile(archive) as packed:
        commit = packed.read("about.txt").decode().splitlines()[0]
        tags = set(re.findall(r"^bytecode/(cpython-\d+)\.front$", "\n".join(packed.namelist()), re.M))
    return commit == build.commit_line() and tags == set(map(build.tag_of, build.interpreters()))


def is_out_of_date(archive: Path) -> bool:
    """Return whether the archive is missing, older than one of its sources, or of another commit."""
    if not archive.exists() or not is_of_this_checkout(archive):
        return True
    vendored = [path for path in (TOP / "vendor").rglob("*") if path.is_file()]
    sources = [TOP / "ipsec.py", TOP / "build.py", *(TOP / "man").iterdir(), *vendored]
    return max(path.stat().st_mtime for path in sources) > archive.stat().st_mtime


@pytest.fixture(scope="session")
def pyz() -> Path:
    """The built ipsec.pyz: the file that $IPSEC_PYZ names, or the checkout's own, rebuilt if it is out of date."""
    given = os.environ.get("IPSEC_PYZ")
    if given:
        return Path(given).resolve(strict=True)
    archive = TOP / "ipsec.pyz"
    with open(TOP / "build.py") as lock:  # only one worker of a parallel run builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_out_of_date(archive):
            subprocess.run([sys.executable, str(TOP / "build.py")], cwd=TOP, check=True, stdin=subprocess.DEVNULL)
    return archive


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure; the default if CI=true")


def nothing_may_skip(config: pytest.Config) -> bool:
    """Return whether a skipped test is a failure."""
    return os.environ.get("CI") == "true" or bool(config.getoption("--no-skips"))


def reason(skipped: object) -> str:
    """Return the reason for a skip; `skipped` is the longrepr of a report."""
    return str(skipped[2] if isinstance(skipped, tuple) else skipped).removeprefix("Skipped: ")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, None]:
    report = (yield).get_result()  # type: ignore[attr-defined]
    if call.excinfo is not None and isinstance(call.excinfo.value, Unavailable):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1], f"Skipped: {call.excinfo.value}")
    if report.skipped and nothing_may_skip(item.config):
        report.longrepr = f"nothing may skip here: {getattr(report, 'wasxfail', None) or reason(report.longrepr)}"
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)
    if report.when == "call" or not report.passed:  # a test that ends in its setup has no call
        summary.count(item, report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, object, None]:
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.skipped and nothing_may_skip(collector.config):
        report.outcome, report.longrepr = "failed", f"nothing may skip here: {reason(report.longrepr)}"


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    clock.begin(item, settings)


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    clock.end()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a parallel run, send the worker's part of the summary to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ground"] = summary.state()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if "ground" in getattr(node, "workeroutput", {}):
        summary.merge(node.workeroutput["ground"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary.lines(nothing_may_skip(terminalreporter.config)):
        terminalreporter.write_line(line)
    skipped = [(report.nodeid.partition("::")[0], reason(report.longrepr))
               for report in terminalreporter.stats.get("skipped", ())]
    for line in summary.skipped(skipped):
        terminalreporter.write_line(line)
