"""The smallest hosts that ipsec.pyz must serve: busybox and Debian's python3-minimal, with or without pluto and NSS.

They are cut out of a whole root: the files of the packages, and the shared libraries that these files need. There is no
/etc/passwd, no /etc/hosts and no certutil; `ip` is that of busybox.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
from pathlib import Path
from typing import Iterable

from . import host
from .machine import Machine
from .roots import ROOTS, Store, keep

#: Packages other than Python's: the library that glibc loads to end a thread, and for pluto, the libraries that NSS
#: loads by name.
ALWAYS, FOR_PLUTO = ("libgcc-s1",), ("libnss3",)

#: The directory of libreswan's programs. Its scripts are copied, too, but do not run on such a host.
PROGRAMS = "/usr/libexec/ipsec"

#: Empty directories of the smallest host.
DIRECTORIES = ("etc/ipsec.d", "root", "tmp", "run", "var/lib/ipsec/nss", "var/log", "proc", "sys", "dev", "uml")


class Cutter:
    """Copies files of a machine to `target`, each with the links that lead to it and the libraries that it needs."""

    def __init__(self, machine: Machine, target: Path) -> None:
        self.machine, self.target = machine, target
        self._root = machine.path("/")
        self._done: set[Path] = set()
        for entry in sorted(self._root.iterdir()):  # the links of a merged /usr: bin, lib, lib64, sbin
            if entry.is_symlink():
                (target / os.readlink(entry).lstrip("/")).mkdir(parents=True, exist_ok=True)
                (target / entry.name).symlink_to(os.readlink(entry))

    def copy(self, names: Iterable[str]) -> None:
        """Copy files and links, and the directories in which they lie."""
        for name in names:
            source = self.machine.path(os.path.dirname(name)) / os.path.basename(name)
            place = self.target / source.relative_to(self._root)
            if place in self._done or (source.is_dir() and not source.is_symlink()):
                continue
            self._done.add(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place, follow_symlinks=False)
            if source.is_symlink():
                self.copy([os.path.join(os.path.dirname(name), os.readlink(source))])

    def libraries(self) -> None:
        """Copy the shared libraries that the files copied so far are linked with."""
        names = [f"/{place.relative_to(self.target)}" for place in self._done if not place.is_symlink()]
        output = self.machine.run(["ldd", *names]).stdout  # for other files ldd prints a line on stderr
        words = (line.split() for line in output.splitlines() if line.startswith("\t"))
        self.copy(sorted({word for line in words for word in line if word.startswith("/")}))

    def package(self, name: str) -> list[str]:
        """Return the files of an installed package, without those in /usr/share."""
        lines = self.machine.run(["dpkg-query", "--listfiles", name]).check().stdout.splitlines()
        return [line for line in lines if not line.startswith("/usr/share/")]

    def bytecode(self) -> None:
        """Copy the bytecode of the Python files copied so far; the packages compile it when they are installed."""
        directories = {f"/{place.parent.relative_to(self.target)}/__pycache__" for place in self._done
                       if place.suffix == ".py"}
        for directory in sorted(directories):
            names = []
            for entry in self.machine.path(directory).glob("*"):
                source = f"{entry.name.split('.')[0]}.py"
                if (self.target / directory[1:]).with_name(source) in self._done:
                    names.append(f"{directory}/{entry.name}")
            self.copy(names)


def cut(store: Store, release: str, with_pluto: bool, target: Path) -> None:
    """Make the smallest root of `release` at `target`."""
    python = f"python{ROOTS[release].python}-minimal"
    with Machine(release, store.layers(release)) as machine:
        target.mkdir()
        cutter = Cutter(machine, target)
        for package in ("python3-minimal", python, f"lib{python}", *ALWAYS, *(FOR_PLUTO if with_pluto else ())):
            cutter.copy(cutter.package(package))
        if with_pluto:
            cutter.bytecode()
            cutter.copy(f"{PROGRAMS}/{entry.name}" for entry in machine.path(PROGRAMS).iterdir())
        cutter.libraries()
    (target / "bin").mkdir(exist_ok=True)
    shutil.copy2(host.busybox(), target / "bin/busybox")
    for line in host.run([str(host.busybox()), "--list-full"]).check().stdout.splitlines():
        applet = target / line
        applet.parent.mkdir(parents=True, exist_ok=True)
        if not applet.exists():
            applet.symlink_to("/bin/busybox")
    for directory in DIRECTORIES:
        (target / directory).mkdir(parents=True, exist_ok=True)


def layer(store: Store, release: str, with_pluto: bool) -> str:
    """Return the directory (below the cache) of the smallest root of `release`. Raises Unavailable."""
    name = f"minimal-{release}" if with_pluto else f"initramfs-{release}"
    recipe = (store.layers(release), ALWAYS, FOR_PLUTO, DIRECTORIES, inspect.getsource(Cutter), inspect.getsource(cut))
    return keep(name, recipe, functools.partial(cut, store, release, with_pluto)).layer
