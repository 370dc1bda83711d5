"""Fixtures for tests on real systems. Each test gets fresh ones, which end with the test. A fixture that this machine
can't provide raises Unavailable, and the test is skipped.

    root(name, **options) -> Machine        a throw-away host made from root `name` of ground/roots.py
                                            ("bookworm", "trixie-systemd", …), with ipsec.pyz at machine.PYZ.
                                            Options: `machine.Spec` (readonly=True, drop=["/tmp"], …)
    release                                 "bullseye", "bookworm", "trixie" in turn: libreswan 4.3, 4.10, 5.2
    gateway -> Machine                      root(release)
    pluto(machine, config, secrets, …)      a pluto running in that machine -> Pluto
    uml(machine, script, …) -> Result       boot a kernel with ESP and AH on its files, run the script there
    gateways                                west and east of each release, with a wire between them, in such a kernel
    pid1(name) -> Machine                   a host with its init system as process 1 ("bookworm-openrc", …), which has
                                            a service `ipsec`, not enabled; .init is the init system's name
    booted -> Machine                       pid1() of all of them in turn
    minimal(release, with_pluto=True, …)    a Machine of busybox, python3-minimal, pluto and the NSS libraries
    initramfs(machine, script, …) -> Result as uml(), on a copy of the machine's files in memory; for minimal() ones
    readonly(name, …) -> Machine            nothing can be written; no /tmp
    interpreter -> Machine                  a host of each CPython from 3.9 to 3.14, which m.ipsec() uses
    pyz                                     (session) the path here of the built ipsec.pyz

A Machine (ground/machine.py):

    m.run(["ip", "a"], env={}, input="", timeout=60, cwd="/", user=0)
                                            -> Result(status, stdout, stderr, seconds); .check() raises
    m.ipsec("barf", "--short")              the same with `python3 ipsec.pyz` before it
    m.spawn(argv, log="/var/log/x")         leave running
    m.path("/etc/ipsec.conf")               the file as seen from here: read, write, stat, mkdir it
    m.write(path, text, mode), m.read(path), m.processes("pluto"), m.signal(pid, SIGSTOP)
    m.address("192.0.2.1/24"), m.link(other, "192.0.2.1/24", "192.0.2.2/24"), m.ip("route", …)

A Pluto (ground/pluto.py): .ctl .pid .log .rundir .nssdir .config .secrets (paths in the machine)
.output .running .machine .stop()
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ..ground import host, interpreters, summary
from ..ground import minimal as smallest
from ..ground import uml as kernel
from ..ground.gateways import Gateways
from ..ground.host import Result
from ..ground.inits import Booted
from ..ground.interpreters import promised
from ..ground.machine import Machine
from ..ground.pluto import Pluto
from ..ground.roots import RELEASES, ROOTS, WITH_INIT, store


def is_system_test(item: pytest.Item) -> bool:
    """Return whether a test is in tests/system."""
    return Path(__file__).parent in item.path.parents


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = host.missing()
    if missing:
        for item in filter(is_system_test, items):
            item.add_marker(pytest.mark.skip(reason=missing))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start to build the roots that the parameters of the chosen tests name.

    In a parallel run, only the first worker does this.
    """
    worker = getattr(session.config, "workerinput", {"workerid": "gw0"})
    if host.missing() or session.config.option.collectonly or worker["workerid"] != "gw0":
        return
    parameters = set()
    for item in filter(is_system_test, session.items):
        if hasattr(item, "callspec"):
            parameters.update(value for value in item.callspec.params.values() if isinstance(value, str))
    store.prefetch(name for name, recipe in ROOTS.items() if name in parameters or recipe.python in parameters)


def pytest_sessionfinish() -> None:
    store.stop()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """A stack of what the fixtures of a test open; it is closed in reverse order when the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def root(request: pytest.FixtureRequest, closing: contextlib.ExitStack, pyz: Path) -> Callable[..., Machine]:
    """root(name, **options): a running Machine made from that root."""

    def make(name: str, **options: object) -> Machine:
        summary.used(request.node, name)
        return closing.enter_context(Machine(name, store.layers(name), pyz, **options))

    return make


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each Debian release that has a libreswan of its own."""
    return str(request.param)


@pytest.fixture
def gateway(root: Callable[..., Machine], release: str) -> Machine:
    """A host of each release."""
    return root(release)


@pytest.fixture
def pluto(closing: contextlib.ExitStack) -> Callable[..., Pluto]:
    """pluto(machine, config, secrets, …): a running pluto in the machine; the arguments are those of class Pluto."""

    def start(machine: Machine, *arguments: str, **options: str) -> Pluto:
        return closing.enter_context(Pluto(machine, *arguments, **options))  # type: ignore[arg-type]

    return start


@pytest.fixture
def uml(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """uml(machine, script, memory="512M", timeout=180): boot another kernel on the machine's files; run the script."""
    summary.used(request.node, "user-mode-linux")
    return kernel.boot


@pytest.fixture
def gateways(request: pytest.FixtureRequest, gateway: Machine) -> Gateways:
    """Two gateways of each release in a kernel with ESP; see ground/gateways.py for how to use them."""
    summary.used(request.node, "user-mode-linux")
    return Gateways(gateway)


@pytest.fixture
def pid1(request: pytest.FixtureRequest, closing: contextlib.ExitStack, pyz: Path) -> Callable[..., Booted]:
    """pid1(name, **options): a Machine made from that root that has come up under its init system."""

    def make(name: str, **options: Any) -> Booted:
        summary.used(request.node, name)
        return closing.enter_context(Booted(name, ROOTS[name].init, store.layers(name), pyz, **options))

    return make


@pytest.fixture(params=WITH_INIT)
def booted(request: pytest.FixtureRequest, pid1: Callable[..., Booted]) -> Booted:
    """A booted host of each init system."""
    return pid1(request.param)


@pytest.fixture
def minimal(request: pytest.FixtureRequest, closing: contextlib.ExitStack, pyz: Path) -> Callable[..., Machine]:
    """minimal(release, with_pluto=True, **options): a host with only busybox, python3-minimal and pluto."""

    def make(release: str, with_pluto: bool = True, **options: Any) -> Machine:
        layer = smallest.layer(store, release, with_pluto)
        summary.used(request.node, f"minimal-{release}" if with_pluto else f"initramfs-{release}")
        return closing.enter_context(Machine(f"minimal-{release}", [layer], pyz, **options))

    return make


@pytest.fixture
def initramfs() -> Callable[..., Result]:
    """initramfs(machine, script, memory="160M", timeout=180): as uml(), on a copy of the machine's files in memory."""
    return kernel.boot_initramfs


@pytest.fixture
def readonly(root: Callable[..., Machine]) -> Callable[..., Machine]:
    """readonly(name, **options): a host on which nothing can be written, without /tmp and with an empty /run."""
    return functools.partial(root, readonly=True, run=False, drop=["/tmp"])


@pytest.fixture(params=promised())
def interpreter(request: pytest.FixtureRequest, root: Callable[..., Machine]) -> Machine:
    """A host of each CPython that the project promises, as machine.python; see ground/interpreters.py."""
    name, binds, python = interpreters.find(request.param)
    machine = root(name, binds=binds)
    machine.python = python
    summary.used(request.node, f"CPython {request.param}")
    return machine
