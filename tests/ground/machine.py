"""Machine: a throw-away copy of a root file system that runs in namespaces of its own.

Its processes, network, mounts, host name and IPC are its own; it shares the kernel of the tests. Its changes are in
memory and are lost when it is closed. `run` starts a program in it and waits for the end, `spawn` leaves the program
running; `path` gives its files to read and write from outside.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, TypeVar

from . import host
from .host import Problem, Result, Unavailable, cache

#: The path of the built ipsec.pyz in every machine.
PYZ = "/usr/local/sbin/ipsec.pyz"

#: The environment of programs in a machine: that of a login of root.
ENVIRONMENT = {"PATH": host.PATH, "HOME": "/root", "TERM": "dumb", "LC_ALL": "C"}

Value = TypeVar("Value")
Self = TypeVar("Self", bound="Machine")


def wait_for(condition: Callable[[], Value], what: str, timeout: float = 60) -> Value:
    """Call `condition` until it returns a true value; return that. Raises Problem after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Problem(f"not seen in {timeout} s: {what}")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Return whether a process with this PID exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Spec(NamedTuple):
    """The description of a machine for keeper.py."""

    layers: Sequence[str]  #: directories below the cache, topmost first
    hostname: str
    cache: str
    network: bool = True  #: a network of its own; False only for building roots
    upper: Sequence[str] = ()  #: two directories (changes, work) instead of memory
    binds: Sequence[tuple[str, str, bool]] = ()  #: (path here, path in the machine, read-only)
    drop: Sequence[str] = ()  #: directories of the layers that the machine shall not have
    readonly: bool = False
    run: bool = True  #: an empty /run in memory
    cgroup: str = ""  #: control group directory, for an init system
    init: Sequence[str] = ()  #: what becomes the first process on `boot`
    environment: Mapping[str, str] = {}


class Machine:
    """A running machine; a context manager that closes it. `pid` is the PID on this host of its first process."""

    _numbers = itertools.count(1)

    def __init__(self, name: str, layers: Sequence[str], pyz: Path | None = None, **options: object) -> None:
        self.name = name
        self.python = "/usr/bin/python3"
        self._spawned: list[subprocess.Popen[bytes]] = []
        self.hostname = name.split("-")[0]
        spec = Spec(layers, self.hostname, str(cache()), **options)  # type: ignore[arg-type]
        if pyz is not None:
            spec = spec._replace(binds=[*spec.binds, (str(pyz), PYZ, True)])
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._keeper.stdout and self._keeper.stderr
        self._tell(json.dumps(spec._asdict()))
        line = self._keeper.stdout.readline()
        if not line:
            raise Problem(f"machine {name} did not start: {self._keeper.stderr.read().decode().strip()}")
        self.pid = int(line)
        if spec.network:
            self.ip("link", "set", "lo", "up")

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and all processes in it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._keeper.wait()  # it ends when all processes of the machine have ended
        for process in self._spawned:
            process.kill()
            process.wait()
        for pipe in (self._keeper.stdin, self._keeper.stdout, self._keeper.stderr):
            if pipe:
                pipe.close()

    def _tell(self, line: str) -> None:
        assert self._keeper.stdin
        self._keeper.stdin.write(f"{line}\n".encode())
        self._keeper.stdin.flush()

    def boot(self) -> None:
        """Let the init system of the spec become the first process. Before that, the test can prepare the files."""
        self._tell("init")

    @property
    def running(self) -> bool:
        """Whether the first process is alive."""
        return self._keeper.poll() is None

    # Programs

    def _argv(self, argv: Sequence[str], cwd: str = "/", user: int = 0) -> list[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup"]
        enter.append(f"--wd={self.path(cwd)}")
        if user:
            enter += [f"--setuid={user}", f"--setgid={user}"]
        return [*enter, "--", *argv]

    @staticmethod
    def _environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
        merged: dict[str, str | None] = {**ENVIRONMENT, **(changes or {})}
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, argv: Sequence[str], *, env: Mapping[str, str | None] | None = None, input: str | bytes | None = None,
            timeout: float = 120, cwd: str = "/", user: int = 0) -> Result:
        """Run `argv` in the machine and return its Result, as `host.run` does. `env` adds to a login's environment;
        a value of None removes a variable. `user` is the number of the user and group of the program."""
        return host.run(self._argv(argv, cwd, user), env=self._environment(env), input=input, timeout=timeout)

    def ipsec(self, *words: str, **options: object) -> Result:
        """Run the built ipsec.pyz with `words`; options as for `run`."""
        return self.run([self.python, PYZ, *words], **options)  # type: ignore[arg-type]

    def spawn(self, argv: Sequence[str], log: str,
              env: Mapping[str, str | None] | None = None) -> subprocess.Popen[bytes]:
        """Start `argv` and leave it running until the machine ends; both outputs go to the file `log`."""
        with self.path(log).open("ab") as output:
            process = subprocess.Popen(self._argv(argv), env=self._environment(env), stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self._spawned.append(process)
        return process

    def outside(self, pid: int) -> int:
        """Return the PID on this host of the process that has the PID `pid` in the machine.

        Raises ProcessLookupError if there is no such process."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{entry}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if numbers[-1] == str(pid) and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                    return int(entry)
        raise ProcessLookupError(f"no process {pid} in {self.name}")

    def signal(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to process `pid` of the machine."""
        os.kill(self.outside(pid), number)
        if number == signal.SIGCONT:  # nsenter stops itself when its program is stopped
            for process in self._spawned:
                process.send_signal(signal.SIGCONT)

    def processes(self, name: str) -> list[int]:
        """Return the PIDs (in the machine) of its running processes called `name`, without zombies."""
        pids = []
        for stat in self.path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, command, state = re.findall(r"^(\d+) \((.*)\) (.)", stat.read_text(), re.S)[0]
                if command == name and state not in "ZX":
                    pids.append(int(pid))
        return sorted(pids)

    # Files

    def path(self, inside: str) -> Path:
        """Return the path on this host of a file of the machine. Symbolic links are followed as in the machine."""
        root = Path(f"/proc/{self.pid}/root")
        done: list[str] = []
        left = [part for part in reversed(inside.split("/")) if part not in ("", ".")]
        for _ in range(1000):
            if not left:
                break
            part = left.pop()
            if part == "..":
                done = done[:-1]
                continue
            try:
                target = os.readlink(root.joinpath(*done, part))
            except OSError:
                done.append(part)
                continue
            if target.startswith("/"):
                done = []
            left += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
        return root.joinpath(*done)

    def write(self, inside: str, data: str | bytes, mode: int = 0o644) -> None:
        """Write a file of the machine, and make the directories above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)

    def read(self, inside: str) -> str:
        """Return the text of a file of the machine."""
        return self.path(inside).read_text(errors="backslashreplace")

    def copy_out(self, inside: str, target: Path) -> None:
        """Copy a directory of the machine to this host; links stay links."""
        shutil.copytree(self.path(inside), target, symlinks=True)

    def changes(self) -> dict[str, tuple[int, float, int]]:
        """Return the files that differ from the root of the machine: path -> (mode, time of change, size).

        Compare the results of two calls to see the changes between them. A removed file shows as a character device.
        /run, /dev, /proc and /sys are left out. This does not work for a machine under an init system.
        """
        changes = Path(f"/proc/{self.pid}/fd/9")  # CHANGES of keeper.py
        changed = {}
        for directory, names, files in os.walk(changes):
            for name in (*names, *files):
                path = Path(directory, name)
                status = path.lstat()
                changed[f"/{path.relative_to(changes)}"] = (status.st_mode, status.st_mtime, status.st_size)
        return changed

    # Network

    def ip(self, *words: str) -> Result:
        """Run the `ip` of this host in the network of the machine, which may lack one. Raises Problem if it fails.

        Use numbers, not names of protocols, tables or scopes: those come from files of this host."""
        return host.run(["nsenter", f"--target={self.pid}", "--net", "ip", *words]).check()

    def address(self, address: str, device: str = "eth0") -> None:
        """Make an interface with `address` (with prefix length) in the machine: a veth with DEVICE-peer as the peer."""
        self.ip("link", "add", device, "type", "veth", "peer", "name", f"{device}-peer")
        self.ip("address", "add", address, "dev", device)
        for name in (device, f"{device}-peer"):
            self.ip("link", "set", name, "up")

    def link(self, other: Machine, here: str, there: str, device: str = "eth0") -> None:
        """Connect two machines by a wire: interface `device` in both, with the two addresses (with prefix length)."""
        self.ip("link", "add", device, "type", "veth", "peer", "name", device, "netns", str(other.pid))
        for machine, address in ((self, here), (other, there)):
            machine.ip("address", "add", address, "dev", device)
            machine.ip("link", "set", device, "up")

    def fill(self, routes: int, policies: int) -> None:
        """Give the machine, which has iproute2 and eth0, that many different routes and IPsec policies."""
        self.write("/run/routes", "".join(f"route add 10.{n >> 8 & 255}.{n & 255}.{n >> 16}/32 dev eth0\n"
                                          for n in range(routes)))
        self.write("/run/policies", "".join(
            f"xfrm policy add src 10.{n >> 8 & 255}.{n & 255}.0/24 dst 172.16.0.0/16 dir out priority 100 tmpl "
            f"src 192.0.2.1 dst 192.0.2.2 proto esp reqid {n + 1} mode tunnel\n" for n in range(policies)))
        for batch in ("/run/routes", "/run/policies"):
            self.run(["ip", "-batch", batch], timeout=600).check()


@contextlib.contextmanager
def control_group(name: str) -> Iterator[str]:
    """Make a control group (version 2) for an init system; yield its directory and remove it afterwards.

    Raises Unavailable if this host has none or it can't be written."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    base = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if base is None:
        raise Unavailable(f"an init system needs a file system of type cgroup2 ({host.IN_CONTAINER})")
    group = base / f"ipsec-tests-{os.getpid()}-{name}"
    try:
        group.mkdir()
    except OSError as error:
        raise Unavailable(f"an init system needs a control group of its own: {error} ({host.IN_CONTAINER})") from None
    try:
        yield str(group)
    finally:
        def remove() -> bool:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            return not group.exists()
        wait_for(remove, f"an empty control group {group}")
