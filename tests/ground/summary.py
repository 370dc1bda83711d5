"""What a test run met: which real systems, in which versions, how many tests on each, what their preparation took."""

from __future__ import annotations

import collections
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

import build

from . import interpreters, roots, uml

#: Packages whose versions tell what a root is.
PACKAGES = {"libreswan": "libreswan", "libnss3": "NSS", "python3": "Python", "systemd": "systemd",
            "sysvinit-core": "sysvinit", "openrc": "OpenRC", "runit": "runit", "s6": "s6"}

_systems: dict[str, set[str]] = collections.defaultdict(set)  # test -> systems it used
_outcomes: dict[str, str] = {}


def state() -> dict[str, Any]:
    """What a worker of a parallel run met, as plain data for the run's own process."""
    return {"systems": {test: sorted(systems) for test, systems in _systems.items()}, "outcomes": _outcomes,
            "made": [[made.name, str(made.directory), made.seconds, made.built] for made in roots.made],
            "waited": roots.store.waited}


def merge(worker: dict[str, Any]) -> None:
    """Add what a worker met."""
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
    """What a root consists of, from its own list of packages."""
    installed = {}
    with contextlib.suppress(FileNotFoundError):  # a minimal root has none
        for paragraph in (directory / "var/lib/dpkg/status").read_text().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
            if fields.get("Status") == "install ok installed":
                installed[fields["Package"]] = fields["Version"]
    return ", ".join(f"{label} {installed[package]}" for package, label in PACKAGES.items() if package in installed)


def lines(missing: str | None) -> list[str]:
    """The summary, a line for each system."""
    if missing:
        return [f"real systems: none; {missing}"]
    if not _systems:
        return []
    tests: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for nodeid, systems in _systems.items():
        for system in systems:
            tests[system][_outcomes.get(nodeid, "failed")] += 1
    notes = {f"CPython {version}": str(path) for version, path in interpreters.installed().items()
             if not interpreters.debian(version)}
    notes["user-mode-linux"] = f"Linux {uml.version()}" if "user-mode-linux" in tests else ""
    for made in roots.made:
        effort = f"built in {made.seconds:.0f} s" if made.built else "in the cache"
        notes[made.name] = f"{versions(made.directory)} ({effort})".lstrip()
    table = [(system, ", ".join(f"{number} {outcome}" for outcome, number in sorted(tests[system].items())),
              notes.get(system, "")) for system in sorted(tests)]
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    absent = [version for version in build.TARGETS if version not in interpreters.promised()]
    return [f"real systems, on Linux {os.uname().release}; the tests waited {roots.store.waited:.0f} s for roots:",
            *(f"  {system:<{widths[0]}}  {counts:<{widths[1]}}  {note}".rstrip() for system, counts, note in table),
            *(f"  CPython {version}: not to be had on this machine" for version in absent)]
