"""The root file systems that the tests run on, and the cache that holds them.

mmdebstrap builds a root from the mirror in apt's configuration. Some roots are another root with more packages; the
files that are equal in both are hard links. The directory of a root in the cache has the name of the root and a hash of
its recipe, so that a changed recipe makes a new root. It is built under another name and renamed when it is complete.
Test runs share the cache: a process that builds or uses a root holds a lock on it. If a root can't be built, the test
run does not try again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, NamedTuple, TextIO

from . import clock, host
from .host import Problem, Unavailable, cache
from .machine import Machine

#: Packages of every root with a pluto: programs that libreswan, ipsec.pyz and the tests call.
TOOLS = ("libreswan", "iptables", "nftables", "iproute2", "libnss3-tools", "tcpdump", "kmod", "procps", "iputils-ping",
         "openssl", "python3")

#: A root that was not used for this time is removed when another root of the same name is built.
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

#: dpkg options for all roots: without documentation, and without waiting for the disk.
DPKG = [*(f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")), "force-unsafe-io"]


class Made(NamedTuple):
    """A root for the summary: its name and directory, the seconds until it was ready, and whether it was built."""

    name: str
    directory: Path
    seconds: float
    built: bool


made: list[Made] = []

#: The roots that could not be built in this test run: name of the root -> the reason.
failures: dict[str, str] = {}

#: The text that follows the name of such a root in messages.
UNBUILT = " can't be built"

#: The name of this test run, which the processes of a parallel run share.
RUN = os.environ.setdefault("IPSEC_TESTS_RUN", uuid.uuid4().hex)


class Cached(NamedTuple):
    """A directory of the cache, relative to it, and the lock that says it is in use."""

    layer: str
    lock: TextIO


def keep(name: str, recipe: object, build: Callable[[Path], None]) -> Cached:
    """Return a directory of the cache, and build it first if it does not exist.

    Its name is `name` and a hash of `recipe`. `build` gets the path of a directory to make, which is then renamed. The
    lock is held until this process ends, so that no other run removes the directory. Raises Unavailable if the build
    fails, or has failed in this test run; `failures` has the reason.
    """
    began = time.monotonic()
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    directory = cache() / "roots" / f"{name}-{digest}"
    directory.parent.mkdir(exist_ok=True)
    lock = open(f"{directory}.lock", "w")  # noqa: SIM115 – kept
    try:
        os.utime(lock.fileno())
        with clock.stopped():
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not directory.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)  # no user holds it, as there is nothing to use
            is_new = not directory.exists()  # another process may have built it meanwhile
            if is_new:
                _build_once(name, directory, build)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        lock.close()  # or the exception would keep the lock, and the next test would wait for it for ever
        raise
    made.append(Made(name, directory, time.monotonic() - began, is_new))
    return Cached(str(directory.relative_to(cache())), lock)


def _build_once(name: str, directory: Path, build: Callable[[Path], None]) -> None:
    """Build a directory of the cache unless that has failed in this test run. Raises Unavailable."""
    record = Path(f"{directory}.failed")
    if record.exists():
        run, _, reason = record.read_text().partition("\n")
        if run == RUN:
            failures[name] = reason
            raise Unavailable(f"{name}{UNBUILT}")
    for stale in directory.parent.glob(f"{name}-*"):
        if stale.is_dir() and stale.name[len(name) + 1:].split(".")[0].isalnum():
            remove_unused(stale, directory)
    aside = Path(f"{directory}.building")
    aside.mkdir()
    try:
        build(aside / "root")
    except Problem as problem:
        reason = problem.line
        record.write_text(f"{RUN}\n{reason}")
        failures[name] = reason
        raise Unavailable(f"{name}{UNBUILT}") from problem
    (aside / "root").rename(directory)
    shutil.rmtree(aside)
    record.unlink(missing_ok=True)


def remove_unused(stale: Path, current: Path) -> None:
    """Remove the directory of an interrupted build of `current`, or a root that was not used for KEEP_SECONDS."""
    if stale.name == f"{current.name}.building":
        shutil.rmtree(stale)
        return
    with open(f"{current.with_name(stale.name.split('.')[0])}.lock", "a") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(lock.fileno()).st_mtime > KEEP_SECONDS:
            shutil.rmtree(stale)


def bootstrap(recipe: Recipe, target: Path) -> None:
    """Make a whole root with mmdebstrap."""
    options = [f"--aptopt={line}" for line in host.apt_options()] + [f"--dpkgopt={line}" for line in DPKG]
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
            f"--include={','.join(recipe.packages)}", *options, recipe.suite, str(target),
            *host.mirror().sources(recipe.suite, recipe.parts)]
    host.run(host.contained(argv, "--mount-proc"), timeout=1800).check()


def extend(base: str, recipe: Recipe, target: Path) -> None:
    """Make a root of another one (a directory of the cache) and `recipe.packages`.

    The changes are made in memory: a cache on overlayfs, as in a container, can't hold the upper directory of another
    overlay.
    """
    resolver = "/etc/resolv.conf"
    with Machine("building", [base], network=False, binds=[(resolver, resolver, True)]) as machine:
        machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)  # packages shall start nothing
        machine.write("/run/first/ischroot", "#!/bin/sh\nexit 0\n", 0o755)  # or sysvinit waits 45 s to be restarted
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-y", "--no-install-recommends", "-o", f"DPkg::Path=/run/first:{host.PATH}"]
        machine.run([*apt, "update"], env=env, timeout=900).check()
        machine.run([*apt, "install", *recipe.packages], env=env, timeout=900).check()
        machine.run([*apt, "clean"], env=env).check()
        machine.run(["rm", "-r", "/usr/sbin/policy-rc.d", "/var/lib/apt/lists"]).check()
        merge(cache() / base, machine, target, without=[resolver])


def merge(base: Path, machine: Machine, target: Path, without: Sequence[str]) -> None:
    """Make `target` of the machine's files, as hard links to those of `base` that have not changed.

    The paths in `without`, mounted from elsewhere, come from `base` if it has them.
    """
    top = str(machine.path("/"))
    changed = set(machine.changes())
    directories = []
    for place, names, files in os.walk(top):
        inside = place[len(top):]
        copy = f"{target}{inside}"
        os.mkdir(copy)
        directories.append((place, copy))
        if not inside:
            for mount in ("proc", "sys", "dev", "run"):
                if mount in names:
                    names.remove(mount)
                    os.mkdir(f"{copy}/{mount}")
        links = [name for name in names if os.path.islink(f"{place}/{name}")]
        for name in [*files, *links]:
            path = f"{inside}/{name}"
            original, is_mounted = f"{base}{path}", path in without
            if os.path.lexists(original) and (is_mounted or path not in changed):
                os.link(original, f"{target}{path}", follow_symlinks=False)
            elif not is_mounted:
                copy_file(f"{top}{path}", f"{target}{path}")
    for place, copy in reversed(directories):  # what lies in a directory changes its time
        copy_owner_and_mode(place, copy)


def copy_file(source: str, target: str) -> None:
    """Copy a file, a symbolic link or a device with its owner, mode, times and extended attributes."""
    info = os.lstat(source)
    if stat.S_ISREG(info.st_mode):
        shutil.copyfile(source, target)
    elif stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, info.st_mode, info.st_rdev)
    copy_owner_and_mode(source, target)


def copy_owner_and_mode(source: str, target: str) -> None:
    """Copy owner, mode, times and extended attributes; the owner first, as its change takes bits of the mode away."""
    info = os.lstat(source)
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


class Store:
    """The roots of one test run.

    A root is built when a test needs it.  prefetch() builds roots earlier, in the background, two at a time.
    """

    def __init__(self) -> None:
        self._ready: dict[str, Cached] = {}
        self._failed: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._builders = ThreadPoolExecutor(2)
        self.waited = 0.0  #: seconds that tests have waited for roots

    def layers(self, name: str) -> list[str]:
        """Return the layers of root `name` for Machine: a list of one directory, relative to the cache.

        Raises Problem if no root has that name, Unavailable if the root can't be built.
        """
        if name not in ROOTS:
            raise Problem(f"no root is called {name}; there are {', '.join(ROOTS)}")
        began = time.monotonic()
        with clock.stopped(), self._locks.setdefault(name, threading.Lock()):
            if name in self._failed:
                raise Unavailable(self._failed[name])
            if name not in self._ready:
                try:
                    self._ready[name] = self._build(name, ROOTS[name])
                except Unavailable as reason:
                    self._failed[name] = str(reason)
                    raise
        if threading.current_thread() is threading.main_thread():
            self.waited += time.monotonic() - began
        return [self._ready[name].layer]

    def _build(self, name: str, recipe: Recipe) -> Cached:
        """Return the root in the cache, built if it is new. Raises Unavailable, also if its base can't be built."""
        if not recipe.base:
            self._prepare(name)
            source = inspect.getsource(bootstrap)
            return keep(name, ([], recipe, DPKG, source), functools.partial(bootstrap, recipe))
        (base,) = self.layers(recipe.base)
        source = inspect.getsource(extend) + inspect.getsource(merge)
        return keep(name, (base, recipe, DPKG, source), functools.partial(extend, base, recipe))

    @staticmethod
    def _prepare(name: str) -> None:
        """Install the programs of this host that builds and machines need, also if the root is in the cache.

        Raises Unavailable.
        """
        try:
            host.prepare()
        except Problem as problem:
            failures[name] = problem.line
            raise Unavailable(f"{name}{UNBUILT}") from problem

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to build roots. A failure is kept for the tests that ask for the root."""
        for name in names:
            self._builders.submit(self.layers, name)

    def stop(self) -> None:
        """Start no more builds."""
        self._builders.shutdown(wait=False, cancel_futures=True)


#: The roots of this run.
store = Store()
