"""ipsec.pyz where next to nothing else is: on the smallest hosts, and on each interpreter that it promises."""

from __future__ import annotations

from typing import Callable

import pytest

from ..ground.host import Result
from ..ground.machine import PYZ, Machine
from ..ground.pluto import Pluto

#: Commands that must work wherever the program starts: words, what the first line begins with.
SMOKE = [
    (["--version"], "Libreswan "),
    (["--directory"], "/usr/libexec/ipsec"),
    (["--help"], "Usage: ipsec "),
]


def smoke(machine: Machine, **options: object) -> None:
    for words, start in SMOKE:
        result = machine.ipsec(*words, **options)
        assert (result.status, result.stderr) == (0, ""), words
        assert result.stdout.startswith(start), words


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
    before = host.changes()
    smoke(host, env={"HOME": None, "PATH": None})
    assert host.changes() == before


@pytest.mark.parametrize("release", ["bookworm"])
def test_an_initramfs(minimal: Callable[..., Machine], release: str, initramfs: Callable[..., Result]) -> None:
    host = minimal(release, with_pluto=False)
    script = ["#!/bin/sh", "mount | head -1"]
    script += [f"python3 {PYZ} {' '.join(words)} >/uml/{words[0]} || echo failed" for words, _ in SMOKE]
    result = initramfs(host, "\n".join(script))
    assert (result.status, result.stdout, result.stderr) == (0, "rootfs on / type rootfs (rw)\n", "")
    for words, start in SMOKE:
        assert host.read(f"/uml/{words[0]}").startswith(start)
