"""The lines at the end of a test run: the real systems with their versions and numbers of tests, and the skips."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import build

from . import interpreters, roots, uml

#: The packages whose versions the summary shows for a root, and their labels.
PACKAGES = {"libreswan": "libreswan", "libnss3": "NSS", "python3": "Python", "systemd": "systemd",
            "sysvinit-core": "sysvinit", "openrc": "OpenRC", "runit": "runit", "s6": "s6"}

_systems: dict[str, set[str]] = collections.defaultdict(set)  # test -> systems it used
_outcomes: dict[str, str] = {}


def state() -> dict[str, Any]:
    """Return the data of a worker of a parallel run, for merge() in the main process."""
    made = [[made.name, str(made.directory), made.seconds, made.built] for made in roots.made]
    return {"systems": {test: sorted(systems) for test, systems in _systems.items()}, "outcomes": _outcomes,
            "made": made, "failures": roots.failures, "waited": roots.store.waited}


def merge(worker: dict[str, Any]) -> None:
    """Add the data that state() returned in a worker."""
    roots.failures.update(worker["failures"])
    for test, systems in worker["systems"].items():
        _systems[test].update(systems)
    _outcomes.update(worker["outcomes"])
    for name, directory, seconds, built in worker["made"]:
        if not any(made.name == name and made.built >= built for made in roots.made):
            roots.made.append(roots.Made(name, Path(directory), seconds, built))
    roots.store.waited += worker["waited"]


def used(item: pytest.Item, system: str) -> None:
    """Note that a test uses a system."""
    _systems[item.nodeid].add(system)


def count(item: pytest.Item, report: pytest.TestReport) -> None:
    """Note how a test ended."""
    _outcomes[item.nodeid] = report.outcome


def versions(directory: Path) -> str:
    """Return the versions of the main packages of a root, from its own list."""
    installed = {}
    with contextlib.suppress(FileNotFoundError):  # a minimal root has none
        for paragraph in (directory / "var/lib/dpkg/status").read_text().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
            if fields.get("Status") == "install ok installed":
                installed[fields["Package"]] = fields["Version"]
    return ", ".join(f"{label} {installed[package]}" for package, label in PACKAGES.items() if package in installed)


def skipped(tests: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line about all skipped tests (file and reason of each), or none if no test was skipped."""
    files: dict[str, list[str]] = collections.defaultdict(list)
    unbuilt: dict[str, list[str]] = collections.defaultdict(list)
    for file, reason in tests:
        root = reason.removesuffix(roots.UNBUILT)
        if root in roots.failures:
            unbuilt[roots.failures[root]].append(root)
            reason = roots.failures[root]
        files[reason].append(file)
    parts = []
    for reason, names in sorted(files.items(), key=lambda item: -len(item[1])):
        where = names[0] if len(set(names)) == 1 else os.path.commonpath(names)
        number = "1 test" if len(names) == 1 else f"{len(names)} tests"
        if reason in unbuilt:
            unbuilt_roots = ", ".join(sorted(set(unbuilt[reason])))
            reason = (f"{unbuilt_roots}{roots.UNBUILT} (Debian's mirror of apt's configuration has to be within "
                      f"reach): {reason}")
        parts.append(f"{number} of {where}: {reason}")
    return [f"skipped: {'; '.join(parts)}"] if parts else []


def lines(is_strict: bool) -> list[str]:
    """Return the summary of real systems: a heading and a line for each system.

    If `is_strict` is true, a line follows for each root that can't be built.  Otherwise, the line about skipped tests
    has the reason.
    """
    failed: list[str] = []
    if is_strict:
        failed = [f"{name}{roots.UNBUILT}: {reason}" for name, reason in sorted(roots.failures.items())]
    if not _systems:
        return failed
    tests: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for nodeid, systems in _systems.items():
        for system in systems:
            tests[system][_outcomes.get(nodeid, "failed")] += 1
    notes = {f"CPython {version}": str(path) for version, path in interpreters.installed().items()
             if not interpreters.debian(version)}
    for made in roots.made:
        effort = f"built in {made.seconds:.0f} s" if made.built else "in the cache"
        notes[made.name] = f"{versions(made.directory)} ({effort})".lstrip()
    if "user-mode-linux" in tests:
        notes["user-mode-linux"] = uml.description()
    table = [(system, ", ".join(f"{number} {outcome}" for outcome, number in sorted(tests[system].items())),
              notes.get(system, "")) for system in sorted(tests)]
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    absent = [version for version in build.TARGETS if version not in interpreters.promised()]
    return [f"real systems, on Linux {os.uname().release}; the tests waited {roots.store.waited:.0f} s for roots:",
            *(f"  {system:<{widths[0]}}  {counts:<{widths[1]}}  {note}".rstrip() for system, counts, note in table),
            *(f"  CPython {version}: neither this machine nor a Debian release here has it" for version in absent),
            *failed]
