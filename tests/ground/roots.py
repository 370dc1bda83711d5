"""The root file systems the tests run on, and the cache they are built into.

A root is built by mmdebstrap from the mirror that apt is configured with, or is another root with more packages on top
(only the difference is kept, as an overlay layer). Each lies in the cache under its name and a hash of its recipe, so a
changed recipe is a new root; it is built aside and renamed when whole. Test runs share the cache: whoever builds or
uses a root holds a lock on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, NamedTuple, TextIO

from . import host
from .host import Problem
from .machine import Machine, cache

#: What every root with a pluto has besides: what libreswan's programs, the commands of ipsec.pyz and the tests call.
TOOLS = ("libreswan", "iptables", "nftables", "iproute2", "libnss3-tools", "tcpdump", "kmod", "procps", "iputils-ping",
         "openssl", "python3")

#: A root not used for so long is removed when another of its name is built.
KEEP_SECONDS = 14 * 24 * 3600


class Recipe(NamedTuple):
    """How a root is made. `parts`: archives besides the suite's own. With `base`, `packages` are added to that root."""

    suite: str
    packages: tuple[str, ...]
    parts: tuple[str, ...] = ()
    base: str = ""
    libreswan: str = ""
    python: str = ""
    init: str = ""


#: bullseye without its security archive, whose index names packages that are gone.
ROOTS: dict[str, Recipe] = {
    "bullseye": Recipe("bullseye", TOOLS, libreswan="4.3", python="3.9"),
    "bookworm": Recipe("bookworm", TOOLS, ("updates", "security"), libreswan="4.10", python="3.11"),
    "trixie": Recipe("trixie", TOOLS, ("updates", "security"), libreswan="5.2", python="3.13"),
    "sid": Recipe("sid", ("python3",), python="3.14"),
    "bookworm-systemd": Recipe("bookworm", ("systemd-sysv",), base="bookworm", init="systemd"),
    "trixie-systemd": Recipe("trixie", ("systemd-sysv",), base="trixie", init="systemd"),
    "bookworm-sysvinit": Recipe("bookworm", ("sysvinit-core", "initscripts"), base="bookworm", init="sysvinit"),
    "bookworm-openrc": Recipe("bookworm", ("openrc", "sysvinit-core", "initscripts"), base="bookworm", init="openrc"),
    "bookworm-runit": Recipe("bookworm", ("runit", "runit-init"), base="bookworm", init="runit"),
    "bookworm-s6": Recipe("bookworm", ("s6",), base="bookworm", init="s6"),
    "bookworm-shells": Recipe("bookworm", ("zsh", "fish", "man-db", "mandoc", "less", "strace"), base="bookworm"),
}

#: The three releases with a pluto: libreswan 4.3, 4.10 and 5.2.
RELEASES = ("bullseye", "bookworm", "trixie")

#: The roots with an init system.
WITH_INIT = tuple(name for name, recipe in ROOTS.items() if recipe.init)

#: dpkg options for all roots: nothing that only a reader needs, and no waiting for a disk that can be lost.
DPKG = [*(f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")), "force-unsafe-io"]


class Made(NamedTuple):
    """For the summary: a root that was made ready, where, the seconds it took, and whether it had to be built."""

    name: str
    directory: Path
    seconds: float
    built: bool


made: list[Made] = []


class Cached(NamedTuple):
    """A directory of the cache, relative to it, and the lock that says it is in use."""

    layer: str
    lock: TextIO


def keep(name: str, recipe: object, build: Callable[[Path], None]) -> Cached:
    """The directory of the cache that `build` fills, called `name` and a hash of `recipe`; built when it isn't there.

    `build` is given a path to make, which is renamed once it returns. The lock is held until this process ends, so that
    no other run removes the directory meanwhile.
    """
    began = time.monotonic()
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    directory = cache() / "roots" / f"{name}-{digest}"
    directory.parent.mkdir(exist_ok=True)
    lock = open(f"{directory}.lock", "w")  # noqa: SIM115 – kept
    os.utime(lock.fileno())
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not directory.exists():
        fcntl.flock(lock, fcntl.LOCK_EX)  # not held by any user, as there is nothing to use
    missing = not directory.exists()  # another run may have built it meanwhile
    if missing:
        for stale in directory.parent.glob(f"{name}-*"):
            if stale.suffix != ".lock" and stale.name[len(name) + 1:].split(".")[0].isalnum():
                remove_unused(stale, directory)
        aside = Path(f"{directory}.building")
        aside.mkdir()
        build(aside / "root")
        (aside / "root").rename(directory)
        shutil.rmtree(aside)
    fcntl.flock(lock, fcntl.LOCK_SH)
    made.append(Made(name, directory, time.monotonic() - began, missing))
    return Cached(str(directory.relative_to(cache())), lock)


def remove_unused(stale: Path, current: Path) -> None:
    """Remove what an interrupted build of `current` left, or another root of its name that nobody used for long."""
    if stale.name == f"{current.name}.building":
        shutil.rmtree(stale)
        return
    with open(f"{current.with_name(stale.name.split('.')[0])}.lock", "a") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(lock.fileno()).st_mtime > KEEP_SECONDS:
            shutil.rmtree(stale)


def bootstrap(recipe: Recipe, target: Path) -> None:
    """Make a whole root with mmdebstrap."""
    host.prepare()
    options = [f"--aptopt={line}" for line in host.apt_options()] + [f"--dpkgopt={line}" for line in DPKG]
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
            f"--include={','.join(recipe.packages)}", *options, recipe.suite, str(target),
            *host.mirror().sources(recipe.suite, recipe.parts)]
    host.run(host.contained(argv, "--mount-proc"), timeout=1800).check()


def extend(base: list[str], recipe: Recipe, target: Path) -> None:
    """Make the layer that `recipe.packages` add to a root."""
    work = target.with_name("work")
    with Machine("building", base, network=False, upper=(str(target), str(work)),
                 binds=[("/etc/resolv.conf", "/etc/resolv.conf", True)]) as machine:
        machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)  # packages shall start nothing
        machine.write("/run/first/ischroot", "#!/bin/sh\nexit 0\n", 0o755)  # or sysvinit waits 45 s to be restarted
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-y", "--no-install-recommends", "-o", f"DPkg::Path=/run/first:{host.PATH}"]
        machine.run([*apt, "update"], env=env, timeout=900).check()
        machine.run([*apt, "install", *recipe.packages], env=env, timeout=900).check()
        machine.run([*apt, "clean"], env=env).check()
        machine.run(["rm", "-r", "/usr/sbin/policy-rc.d", "/var/lib/apt/lists"]).check()


class Store:
    """The roots of one test run: built when first asked for, or ahead of that in the background, two at a time."""

    def __init__(self) -> None:
        self._ready: dict[str, list[Cached]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._builders = ThreadPoolExecutor(2)
        self.waited = 0.0  #: seconds that tests have waited for roots

    def layers(self, name: str) -> list[str]:
        """The overlay layers of root `name`, topmost first. Raises Problem when it cannot be built."""
        if name not in ROOTS:
            raise Problem(f"no root is called {name}; there are {', '.join(ROOTS)}")
        began = time.monotonic()
        with self._locks.setdefault(name, threading.Lock()):
            if name not in self._ready:
                recipe = ROOTS[name]
                below = self._build_below(recipe)
                layers = [cached.layer for cached in below]
                build = functools.partial(extend, layers, recipe) if below else functools.partial(bootstrap, recipe)
                top = keep(name, (layers, recipe, DPKG, inspect.getsource(build.func)), build)
                self._ready[name] = [top, *below]
        if threading.current_thread() is threading.main_thread():
            self.waited += time.monotonic() - began
        return [cached.layer for cached in self._ready[name]]

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to build roots. One that fails is tried again, and the failure told, when a test asks for it."""
        for name in names:
            self._builders.submit(self.layers, name)

    def stop(self) -> None:
        """Begin no more builds."""
        self._builders.shutdown(wait=False, cancel_futures=True)

    def _build_below(self, recipe: Recipe) -> list[Cached]:
        if not recipe.base:
            return []
        self.layers(recipe.base)
        return self._ready[recipe.base]


#: The roots of this run.
store = Store()
