"""What the proving ground takes from the machine that the tests run on.

It needs root on Debian, namespaces and mounts, the packages in BUILDERS (installed here if they are missing) and the
mirror in apt's own configuration.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, TypeVar

#: Packages that the ground installs on the machine itself: those that build and enter the roots.
BUILDERS = ("mmdebstrap", "busybox-static", "iproute2", "util-linux")

#: The search path inside machines and for programs run here.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


#: Words that run a program as root with docker's default capabilities (00000000a80425fb).
DOCKER = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,"
          "+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap", "--")


class Problem(Exception):
    """The proving ground could not do what a test asked for; the text says what and why."""

    @property
    def line(self) -> str:
        """The line of the text that says why: the first error of apt, or the last line if there is none."""
        lines = [line.strip() for line in str(self).splitlines() if line.strip() and not line.startswith("---")]
        for line in lines:
            if line.startswith("E: "):
                return line
        return lines[-1] if lines else "no reason given"


class Unavailable(Problem):
    """This machine cannot give what a test needs; the text is one line that says what and why. The test is skipped."""


class NotBegun(Problem):
    """A program did not reach its beginning in time."""


class Result(NamedTuple):
    """The result of a command: its exit status (128+N if signal N killed it), its two outputs, and its run time."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    def check(self, status: int = 0) -> Result:
        """Return self.  Raises Problem, with both outputs, if the exit status is not `status`."""
        if self.status != status:
            raise Problem(f"status {self.status}, not {status}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}")
        return self


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, input: str | bytes | None = None,
        timeout: float = 120, cwd: str | None = None, begun: Callable[[], bool] | None = None,
        begun_within: float = 0) -> Result:
    """Run `argv` and return its Result.

    Both outputs go to files, not pipes, so that a daemon that keeps them open does not block the caller.  After
    `timeout` seconds, the command and its process group are killed, and Problem is raised, with the output so far.
    If `begun` is given and does not return true within `begun_within` seconds, the same happens with NotBegun.
    """
    data = input.encode() if isinstance(input, str) else input
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as stdin:
        if data is not None:
            stdin.write(data)
            stdin.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(argv, stdin=stdin if data is not None else subprocess.DEVNULL, stdout=out,
                                   stderr=err, env=dict(os.environ if env is None else env), cwd=cwd,
                                   start_new_session=True)
        failure: type[Problem] | None = None
        try:
            if begun is not None and not wait_for_begin(process, begun, min(begun_within, timeout)):
                failure = NotBegun
            else:
                process.wait(began + timeout - time.monotonic())
        except subprocess.TimeoutExpired:
            failure = Problem
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    if failure is not None:
        raise failure(f"no end after {seconds:.0f} s: {' '.join(argv)}\n--- stdout\n{texts[0][-5000:]}\n"
                      f"--- stderr\n{texts[1][-5000:]}")
    status = process.returncode
    return Result(status if status >= 0 else 128 - status, texts[0], texts[1], seconds)


def wait_for_begin(process: subprocess.Popen[bytes], begun: Callable[[], bool], timeout: float) -> bool:
    """Wait until `begun` returns true or the process ends; return False if neither happens within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and not begun():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def contained(argv: Sequence[str], *namespaces: str) -> list[str]:
    """Return words that run `argv` in its own PID and mount namespaces.

    When the command or this process ends, the kernel kills all processes of these namespaces.
    """
    return ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", *namespaces, "--",
            *argv]


Answer = TypeVar("Answer")


def once(function: Callable[[], Answer]) -> Callable[[], Answer]:
    """Return a function that calls `function` once; later calls, also from other threads, return or raise the same."""
    lock = threading.Lock()

    @functools.cache
    def outcome() -> tuple[Answer | None, Problem | None]:
        try:
            return function(), None
        except Problem as problem:
            return None, problem

    @functools.wraps(function)
    def wrapper() -> Answer:
        with lock:
            answer, problem = outcome()
        if problem is not None:
            raise problem.with_traceback(None)
        return answer  # type: ignore[return-value]

    return wrapper


#: How a machine gets the rights that the ground needs, for the line about skipped tests.
AS_ROOT = "run `sudo python3 build.py test`"
IN_CONTAINER = "in a container, start that with `docker run --privileged`"

#: Makes the same mounts as keeper.py, to find out whether that is possible here: a file system in memory, a device,
#: and an overlay of the cache.
PROBE = """
mount -t tmpfs tmpfs "$0/mnt" && mknod "$0/mnt/null" c 1 3 && mkdir "$0/mnt/upper" "$0/mnt/work" "$0/mnt/root" &&
mount -t overlay overlay "$0/mnt/root" -o "lowerdir=$0/roots,upperdir=$0/mnt/upper,workdir=$0/mnt/work"
"""


def distribution() -> str:
    """Return the ID in os-release(5), such as `debian` or `ubuntu`."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line[3:].strip("\"'") for line in lines if line.startswith("ID=")), "unknown")


@functools.cache
def missing() -> str | None:
    """Return one line that says why the ground cannot be used here and what to do, or None if it can be used."""
    if os.geteuid() != 0:
        return f"the proving ground needs root ({AS_ROOT})"
    if distribution() != "debian" or not Path("/usr/bin/apt-get").exists():
        return (f"the proving ground needs Debian, whose mirror its roots come from; this is {distribution()} (run it "
                "in a container of debian:12, started with `docker run --privileged`)")
    kinds = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork"]
    probe = run(["unshare", *kinds, "true"])
    if probe.status != 0:
        return f"the proving ground needs to make namespaces: {probe.stderr.strip()} ({IN_CONTAINER})"
    place = cache()
    (place / "roots").mkdir(exist_ok=True)
    probe = run(["unshare", *kinds, "sh", "-c", PROBE, str(place)])
    if probe.status != 0:
        reason = probe.stderr.strip().partition("\n")[0] or "no reason given"
        return (f"the proving ground needs mounts, devices and overlays of {place}: {reason} ({IN_CONTAINER}, or set "
                "XDG_CACHE_HOME to a directory on another file system)")
    return None


def cache() -> Path:
    """Return the directory in which the ground keeps roots and kernels for later test runs.

    Root runs no programs from the home of another user, which $HOME is if sudo keeps the variable.
    """
    home = os.path.expanduser("~")
    if os.getuid() == 0 and os.stat(home).st_uid != 0:
        home = pwd.getpwuid(0).pw_dir
    directory = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache", "ipsec-tests")
    (directory / "mnt").mkdir(parents=True, exist_ok=True)
    return directory


def refused(*kinds: str) -> str | None:
    """Return one line that says why unshare(1) does not make these namespaces, or None if it does."""
    probe = run(["unshare", *kinds, "true"])
    if probe.status == 0:
        return None
    return f"unshare {' '.join(kinds)} is refused: {probe.stderr.strip()} ({IN_CONTAINER})"


@contextlib.contextmanager
def package_lists() -> Iterator[None]:
    """Hold a lock while apt's package lists are read or updated.

    apt's own lock is not enough: with it, a second update fails at once instead of waiting.
    """
    with open(cache() / "apt.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@once
def prepare() -> None:
    """Install the builder packages that are missing. Raises Problem if that fails."""
    install(*BUILDERS)


def install(*packages: str) -> None:
    """Install those of the packages that this machine lacks. Raises Problem if that fails."""
    with package_lists():
        query = ["dpkg-query", "--showformat=${Package} ${db:Status-Status}\n", "--show"]
        states = run([*query, *packages]).stdout.splitlines()
        wanted = [name for name in packages if f"{name} installed" not in states]
        if not wanted:
            return
        apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600", "--no-install-recommends"]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        result = run([*apt, "install", *wanted], env=env, timeout=900)
        if result.status != 0:  # the package lists are missing or out of date
            run([*apt, "update"], env=env, timeout=900)
            result = run([*apt, "install", *wanted], env=env, timeout=900)
    if result.status != 0:
        raise Problem(f"can't install {' '.join(wanted)}:\n{result.stderr.strip()}")


class Mirror(NamedTuple):
    """The addresses of Debian's archive and of its security archive (None if apt is not configured for that)."""

    archive: str
    security: str | None

    def sources(self, suite: str, parts: Sequence[str]) -> list[str]:
        """Return lines of a sources.list for `suite`; `parts` may add "updates" and "security"."""
        lines = [f"deb {self.archive} {suite} main"]
        if "updates" in parts:
            lines.append(f"deb {self.archive} {suite}-updates main")
        if "security" in parts and self.security:
            lines.append(f"deb {self.security} {suite}-security main")
        return lines


@once
def mirror() -> Mirror:
    """Return the Debian mirror in apt's configuration. Raises Problem if apt knows none."""
    query = ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages", "Component: main"]
    with package_lists():
        for update in (False, True):
            if update:  # the label of an archive is known only once its index has been fetched
                run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", "update"], timeout=900)
            archives = dict(line.split("|", 1) for line in run(query).stdout.splitlines())
            if "Debian" in archives:
                return Mirror(archives["Debian"], archives.get("Debian-Security"))
    raise Problem("apt's configuration names no Debian archive with component main")


def apt_options() -> list[str]:
    """Return the settings of apt that the build of a root must share: proxies, and whether an old index is valid."""
    kept = ("Acquire::http::", "Acquire::https::", "Acquire::Check-Valid-Until ", "Acquire::Check-Date ")
    lines = run(["apt-config", "dump", "--no-empty"]).stdout.splitlines()
    return [line for line in lines if line.startswith(kept)]


def busybox() -> Path:
    """Return the statically linked busybox of this machine. Raises Problem if it can't be installed."""
    prepare()
    return next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
