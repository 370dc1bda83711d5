"""What a test run met: which real systems, in which versions, how many tests on each, what their preparation took."""

from __future__ import annotations

import collections

import pytest

from . import roots

_systems: dict[str, set[str]] = collections.defaultdict(set)  # test -> systems it used
_outcomes: dict[str, str] = {}
_versions: dict[str, str] = {}


def used(item: pytest.Item, system: str) -> None:
    """Note that a test uses a system."""
    _systems[item.nodeid].add(system)


def version(system: str, text: str) -> None:
    """Note what a system turned out to be."""
    _versions[system] = text


def count(item: pytest.Item, report: pytest.TestReport) -> None:
    """Note how a test ended."""
    _outcomes[item.nodeid] = report.outcome


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
    prepared = {made.name: f"{'built' if made.built else 'found'} in {made.seconds:.0f} s" for made in roots.built}
    width = max(map(len, tests))
    return ["real systems:"] + [
        f"  {system:<{width}}  {', '.join(f'{number} {outcome}' for outcome, number in sorted(counts.items()))}"
        f"  {prepared.get(system, '')}  {_versions.get(system, '')}".rstrip()
        for system, counts in sorted(tests.items())]
