"""ipsec.pyz where next to nothing else is: on the smallest hosts, and on each interpreter that it promises."""

from __future__ import annotations

from typing import Callable

import pytest

from ..ground.host import Result
from ..ground.machine import PYZ, Machine
from ..ground.pluto import Pluto

#: Commands that must work wherever the program starts: words, what the output holds, beginnings of lines.
SMOKE = [
    (["--version"], ["Libreswan "]),
    (["--directory"], ["/usr/libexec/ipsec"]),
    (["--help"], ["Usage: ipsec ", "\tbarf"]),
    (["barf", "--list-sections"], ["ip-xfrm-state", "ipsec/conf"]),
    (["barf"], ["+ _________________________ version", "+ _________________________ date"]),
]


def seen(words: list[str], starts: list[str], output: str) -> None:
    """Check that the output of a command of SMOKE is whole."""
    for start in starts:
        assert f"\n{start}" in f"\n{output}", words


def smoke(machine: Machine, **options: object) -> None:
    """Each command works and leaves no trace."""
    before = machine.changes()
    for words, starts in SMOKE:
        result = machine.ipsec(*words, **options)
        assert (result.status, result.stderr) == (0, ""), words
        seen(words, starts, result.stdout)
    assert machine.changes() == before


def test_every_interpreter(interpreter: Machine) -> None:
    smoke(interpreter)


def test_a_host_of_busybox_python_minimal_and_pluto(minimal: Callable[..., Machine], release: str,
                                                    root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    host = minimal(release)
    smoke(host)
    nss = "/var/lib/ipsec/nss"
    full = root(release)  # certutil is there, not here
    full.run(["certutil", "-N", "-d", f"sql:{nss}", "--empty-password"]).check()
    for file in full.path(nss).iterdir():
        host.write(f"{nss}/{file.name}", file.read_bytes(), 0o600)
    daemon = pluto(host)
    status = host.ipsec("whack", "--status").check().stdout
    assert "interface lo " in status
    daemon.stop()
    assert host.ipsec("whack", "--status").status == 33


def test_a_host_where_nothing_can_be_written(readonly: Callable[..., Machine], release: str) -> None:
    host = readonly(release)
    for place in ("/", "/run", "/dev", "/dev/shm", "/var/tmp", "/root"):
        assert "Read-only file system" in host.run(["sh", "-c", f"echo x >{place}/x"]).stderr
    assert not host.path("/tmp").exists()
    smoke(host, env={"HOME": None, "PATH": None})


@pytest.mark.parametrize("release", ["bookworm"])
def test_an_initramfs(minimal: Callable[..., Machine], release: str, initramfs: Callable[..., Result]) -> None:
    host = minimal(release, with_pluto=False)
    script = ["#!/bin/sh", "mount | head -1"]
    script += [f"python3 {PYZ} {' '.join(words)} >/uml/{number} || echo failed"
               for number, (words, _) in enumerate(SMOKE)]
    result = initramfs(host, "\n".join(script))
    assert (result.status, result.stdout, result.stderr) == (0, "rootfs on / type rootfs (rw)\n", "")
    for number, (words, starts) in enumerate(SMOKE):
        seen(words, starts, host.read(f"/uml/{number}"))
