"""The time limit of a test (pytest-timeout), which does not count while a root is built or fetched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_running: list[tuple[Any, Any]] = []  # the test whose clock runs, and pytest-timeout's settings for it


def begin(item: Any, settings: Any) -> None:
    """Note that pytest-timeout has started the clock of a test."""
    _running[:] = [(item, settings)]


def end() -> None:
    """Note that pytest-timeout has stopped the clock."""
    _running.clear()


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """Stop the clock of the running test, and restart it from 0 afterwards.  Outside a test, do nothing."""
    tests = list(_running) if threading.current_thread() is threading.main_thread() else []
    for item, _ in tests:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
    try:
        yield
    finally:
        for item, settings in tests:
            item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
