#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""ipsec - libreswan's ipsec(8) command in one file that runs anywhere.

Read from top to bottom; a later section uses earlier ones, never the other way round:

   1. Constants and errors     7. NSS
   2. Host                     8. Firewall
   3. Redaction                9. Service managers
   4. Configuration           10. Registry
   5. Kernel                  11. Commands
   6. Whack                   12. Dispatch

Sections 1, 2, 10 and 12 need no others to start: the archive loads those first, the rest for a command that is there.

Imports are rationed: every `ipsec` on a gateway pays for them, and the smallest hosts (python3-minimal) lack half of
the standard library.  At import time only what the interpreter has loaded anyway; the rest where it is used.
"""
from __future__ import annotations

import errno
import os
import sys
import time

TYPE_CHECKING = False  # typing costs 3 ms and is not needed at run time
if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import ModuleType
    from typing import Callable, NoReturn
    from typing import NamedTuple as Record

# =====================================================================================================================
# 1. Constants and errors
#
# The version, the exit statuses (one table), the one exception that every section raises, and the base of the value
# classes.  Touches nothing.
# =====================================================================================================================

VERSION = "0.1.0"

# Exit statuses (ipsec(8), EXIT STATUS).  A sub-command's own status is passed on; death by signal N is 128+N.
OK = 0
ERROR = 1  # the command failed, or there is no such command
USAGE = 2  # the words of the command line are wrong
NO_INIT_SYSTEM = 3  # setup: no init system that we know
NSS_FAILURE = 4  # initnss, checknss: the database could not be made, moved or migrated
NO_PLUTO = 33  # whack: pluto is not running (RC_WHACK_PROBLEM of libreswan's whack.h, 3.25 to 5.4)
NSS_EXISTS = 42  # initnss: there is a database already
NOT_EXECUTABLE = 126  # as the shell says it
NOT_FOUND = 127
SIGNALLED = 128


class Failure(Exception):
    """What a user is told in one line: `message`, the exit `status`, and `hint`, the way out.

    The text is shown and logged as it is: it never holds a secret.
    """

    def __init__(self, message: str, status: int = ERROR, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Missing(Failure):
    """A program, Python module or file that the host does not have."""


class TimedOut(Failure):
    """Something did not answer in its time."""


if not TYPE_CHECKING:

    class Record:
        """Base of the value classes.  To the type checker it is typing.NamedTuple, whose import would cost 5 ms."""

        def __init_subclass__(cls) -> None:
            cls._fields = tuple(cls.__annotations__)

        def __init__(self, *values, **named) -> None:
            named.update(zip(self._fields, values))
            for field in self._fields:
                setattr(self, field, named.pop(field) if field in named else getattr(type(self), field))
            if named or len(values) > len(self._fields):
                raise TypeError(f"{type(self).__name__}: unexpected {sorted(named) or values}")

        def __eq__(self, other) -> bool:
            return type(self) is type(other) and self.__dict__ == other.__dict__

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"

        def _asdict(self) -> dict:
            return {field: getattr(self, field) for field in self._fields}


def need(module: str, feature: str) -> ModuleType:
    """The imported `module`.  Raises Missing, naming the `feature` that goes without it (python3-minimal)."""
    try:
        # __import__ and not importlib, which the smallest start-up has not loaded
        __import__(module)
    except ImportError:
        raise Missing(f"{feature} needs Python's module {module}, which this interpreter lacks",
                      hint="use a full python3 for it") from None
    return sys.modules[module]


# =====================================================================================================================
# 2. Host
#
# The one door to the outside: paths, files, programs, sockets, output.  Nothing else in this file opens, runs or
# connects on its own; tests hand in another Host.  Facts: ipsec(8) and the scripts of libreswan 3.29, 4.10 and 5.4
# for the environment; hier(7).
# =====================================================================================================================

SYSTEM_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
EXEC_DIRS = ("/usr/libexec/ipsec", "/usr/lib/ipsec", "/usr/local/libexec/ipsec", "/usr/local/lib/ipsec",
             "/usr/lib64/ipsec")
READ_CHUNK = 1 << 16


class Ran(Record):
    """What a program that ended left: its status (128+N for signal N), and both outputs as bytes."""

    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 survive a round trip."""
        return decode(self.out)

    @property
    def complaint(self) -> str:
        """The last line of standard error, or what the status says, for an error message."""
        lines = decode(self.err).strip().splitlines()
        return lines[-1] if lines else f"status {self.status}"


def decode(data: bytes) -> str:
    """Bytes from a file, a program or the kernel as str; encode() gives the same bytes back."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of decode(); a lone surrogate that no byte gave becomes `?`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def status_of(wait_status: int) -> int:
    """An exit status as the shell would give it, from what wait(2) gave."""
    return SIGNALLED + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


class Host:
    """The system that we report on or change: this one, or the one whose file system is mounted under `root`.

    Paths come, the later the stronger, from what is compiled into libreswan, what is installed, the environment
    (IPSEC_CONF, IPSEC_EXECDIR, IPSEC_SBINDIR, IPSEC_CONFDDIR, IPSEC_RUNDIR, IPSEC_NSSDIR) and the global options.
    All paths that methods take and that messages show are those of the reported system, without `root`.
    """

    def __init__(self, env: Mapping[str, str] | None = None, *, root: str = "", conf: str = "", rundir: str = "",
                 ctlsocket: str = "", nssdir: str = "") -> None:
        self.env = dict(os.environ if env is None else env)
        self.root = os.path.abspath(root).rstrip("/") if root else ""
        if self.root and not os.path.isdir(self.root):
            raise Failure(f"--root {root}: not a directory", USAGE)
        get = self.env.get
        # an empty variable counts as unset, as ${VAR:-default} does in the original
        self.conf = conf or get("IPSEC_CONF") or "/etc/ipsec.conf"
        self.confddir = get("IPSEC_CONFDDIR") or "/etc/ipsec.d"
        self.sbindir = get("IPSEC_SBINDIR") or "/usr/sbin"
        self.execdir = get("IPSEC_EXECDIR") or self._first_dir(EXEC_DIRS)
        self.rundir = rundir or get("IPSEC_RUNDIR") or "/run/pluto"
        self.ctlsocket = ctlsocket or f"{self.rundir}/pluto.ctl"
        # 3.x keeps the database in /etc/ipsec.d, 4.0 and later in /var/lib/ipsec/nss
        self.nssdir = nssdir or get("IPSEC_NSSDIR") or self._first_dir(("/var/lib/ipsec/nss", "/etc/ipsec.d"))
        self.own_group = False  # True in a process that leads its own group: what it runs is ended with it

    def _first_dir(self, candidates: Sequence[str]) -> str:
        """The first directory that exists, else the first named."""
        return next((path for path in candidates if self.isdir(path)), candidates[0])

    @property
    def secrets(self) -> str:
        """The secrets file that goes with the configuration: pluto's default is beside ipsec.conf."""
        return os.path.join(os.path.dirname(self.conf) or ".", "ipsec.secrets")

    @property
    def live(self) -> bool:
        """True when this is the running system, so that its kernel, processes and sockets can be asked."""
        return not self.root

    @property
    def superuser(self) -> bool:
        """True when we may expect to be allowed everything."""
        return os.geteuid() == 0

    # --- files ------------------------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """Where `name` really lies: itself, or below root, symbolic links resolved as if root were `/`.

        Raises OSError(ELOOP).
        """
        if not self.root:
            return name
        done: list[str] = []
        todo = [part for part in reversed(name.split("/")) if part]
        links = 0
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                del done[-1:]
                continue
            here = "/".join((self.root, *done, part))
            try:
                target = os.readlink(here)
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > 40:  # as the kernel's MAXSYMLINKS
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            if target.startswith("/"):
                done.clear()
            todo.extend(piece for piece in reversed(target.split("/")) if piece)
        return "/".join((self.root, *done))

    def open(self, name: str) -> int:
        """A descriptor for reading the regular file `name` (or a kernel file).  Never blocks on a FIFO or a device.

        Raises OSError, with the name as the user knows it.
        """
        import stat
        try:
            fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The content of a file from the offset `start` on, piece by piece, for files of any size.  Raises OSError."""
        fd = self.open(name)
        try:
            if start:
                os.lseek(fd, start, os.SEEK_SET)
            while True:
                try:
                    data = os.read(fd, READ_CHUNK)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, name) from None
                if not data:
                    return
                yield data
        finally:
            os.close(fd)

    def read(self, name: str) -> str:
        """The whole text of a file of modest size.  Raises OSError."""
        return decode(b"".join(self.chunks(name)))

    def value(self, name: str, default: str = "") -> str:
        """The text of a one-line kernel or state file without the line end; `default` when it can't be read."""
        try:
            return self.read(name).rstrip("\n")
        except OSError:
            return default

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a file, without their ends, however large the file is.  Raises OSError."""
        return split_lines(self.chunks(name))

    def stat(self, name: str, *, follow: bool = True) -> os.stat_result:
        """os.stat of the reported system's `name`.  Raises OSError."""
        if follow or not self.root:
            return os.stat(self.path(name), follow_symlinks=follow)
        head, tail = os.path.split(name)
        return os.lstat(f"{self.path(head)}/{tail}")

    def readlink(self, name: str) -> str:
        """Where the symbolic link points, as it is written.  Raises OSError."""
        head, tail = os.path.split(name)
        return os.readlink(f"{self.path(head)}/{tail}")

    def exists(self, name: str) -> bool:
        """True when `name` is there (a dangling link is not)."""
        try:
            return os.path.exists(self.path(name))
        except OSError:
            return False

    def isdir(self, name: str) -> bool:
        """True when `name` is a directory."""
        try:
            return os.path.isdir(self.path(name))
        except OSError:
            return False

    def executable(self, name: str) -> bool:
        """True when `name` is a regular file that we may execute."""
        path = self.path(name)
        return os.path.isfile(path) and os.access(path, os.X_OK)

    def listdir(self, name: str) -> list[str]:
        """The sorted names in a directory.  Raises OSError."""
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None

    def glob(self, pattern: str) -> list[str]:
        """The sorted existing names that match, as glob(3): `*` crosses no `/` and leaves leading dots out."""
        import fnmatch
        head, tail = os.path.split(pattern)
        parents = [head] if not any(c in head for c in "*?[") else self.glob(head)
        found = []
        for parent in parents:
            if not any(c in tail for c in "*?["):
                if self.exists(os.path.join(parent, tail)):
                    found.append(os.path.join(parent, tail))
                continue
            try:
                names = self.listdir(parent or ".")
            except OSError:
                continue
            found += [os.path.join(parent, name) for name in names
                      if fnmatch.fnmatchcase(name, tail) and (tail.startswith(".") or not name.startswith("."))]
        return found

    def write(self, name: str, text: str) -> None:
        """Write a small file in place: a sysctl, a file of ours, one that is mounted and can't be renamed over.

        Raises OSError, with the name.
        """
        try:
            fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
            try:
                write_all(fd, encode(text))
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None

    def remove(self, name: str) -> None:
        """Remove a file; none there is fine.  Raises OSError."""
        try:
            os.unlink(self.path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None

    def lock(self, directory: str, timeout: float = 120.0) -> int:
        """A descriptor that holds the lock on a directory, made when missing: os.close() gives it back, as our end
        does, however we end, and becoming another program.  Raises TimedOut, OSError."""
        import fcntl
        os.makedirs(self.path(directory), 0o700, exist_ok=True)
        fd = os.open(self.path(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR) or time.monotonic() > deadline:
                    os.close(fd)
                    raise TimedOut(f"{directory} is in use by another ipsec command for {timeout:g} s") from None
            time.sleep(0.05)

    def kernel_messages(self) -> Iterator[str]:
        """The kernel's log as dmesg(1) prints it: `[seconds since boot] text`.  Raises OSError.

        A read of /dev/kmsg gives one record, `priority,number,microseconds,flags;text` and continuation lines
        (Documentation/ABI/testing/dev-kmsg); EPIPE: records were overwritten meanwhile.
        """
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    record = decode(os.read(fd, 8192))
                except BlockingIOError:
                    return
                except BrokenPipeError:
                    continue
                prefix, _, text = record.partition(";")
                micros = int(prefix.split(",")[2])
                yield f"[{micros // 1000000:5}.{micros % 1000000:06}] {text.splitlines()[0] if text else ''}"
        finally:
            os.close(fd)

    # --- programs ---------------------------------------------------------------------------------------------------

    def which(self, program: str) -> str | None:
        """The path of a program of the running system, or None.

        System directories come first; then PATH, without its relative entries and, as root, without those that
        others can write.
        """
        for directory in (self.sbindir, *SYSTEM_PATH, *self._safe_path()):
            candidate = os.path.join(directory, program)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                return candidate
        return None

    def _safe_path(self) -> Iterator[str]:
        for directory in self.env.get("PATH", "").split(os.pathsep):
            if not directory.startswith("/"):
                continue
            if self.superuser:
                try:
                    info = os.stat(directory)
                except OSError:
                    continue
                if info.st_uid != 0 or info.st_mode & 0o022:
                    continue
            yield directory

    def child_env(self) -> dict[str, str]:
        """The environment for programs that we run for ourselves: the caller's, with names exported as the original
        does, a safe PATH and the C locale."""
        env = self.exported()
        env["LC_ALL"] = "C"
        env["PATH"] = os.pathsep.join(dict.fromkeys((self.sbindir, *SYSTEM_PATH)))
        return env

    def exported(self) -> dict[str, str]:
        """The environment for a program that takes our place: the caller's and what the original exports."""
        env = dict(self.env)
        env.update(IPSEC_EXECDIR=self.execdir, IPSEC_CONF=self.conf, IPSEC_RUNDIR=self.rundir,
                   CTLSOCKET=self.ctlsocket, EF_DISABLE_BANNER="1")
        search = [entry for entry in env.get("PATH", os.pathsep.join(SYSTEM_PATH)).split(os.pathsep)
                  if entry != self.sbindir]
        env["PATH"] = os.pathsep.join((self.sbindir, *search))
        return env

    def resolve(self, program: str, hint: str = "") -> str:
        """The path of `program`, a bare name or a path.  Raises Missing (status 127)."""
        found = program if "/" in program else self.which(program)
        if found is None or not os.path.exists(found):
            raise Missing(f"{program}: no such program on this host", NOT_FOUND, hint)
        return found

    def run(self, argv: Sequence[str], *, timeout: float | None = 10.0, stdin: bytes | int | None = None,
            pass_fds: Sequence[int] = (), env: Mapping[str, str] | None = None, hint: str = "") -> Ran:
        """Run a program to its end and return what it left.

        argv[0] is a bare name (looked up with which()) or a path; never a shell.  Standard input is closed, or gets
        `stdin` (bytes, or a descriptor).  The program and what it started are killed after `timeout` seconds.
        Raises Missing when it is not there, TimedOut, Failure when it can't be executed.
        """
        import subprocess
        path = self.resolve(argv[0], hint)
        try:
            child = subprocess.Popen(
                [path, *argv[1:]], stdin=stdin if isinstance(stdin, int) else
                subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pass_fds,
                env=self.child_env() if env is None else dict(env), start_new_session=not self.own_group)
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}", NOT_EXECUTABLE, hint) from None
        try:
            out, err = child.communicate(stdin if isinstance(stdin, bytes) else None, timeout)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{os.path.basename(path)} did not end within {timeout:g} s") from None
        finally:
            if child.poll() is None:  # time is up, or Ctrl-C
                self._end(child.pid)
                child.communicate()
        return Ran(SIGNALLED - child.returncode if child.returncode < 0 else child.returncode, out, err)

    def call(self, argv: Sequence[str], *, quiet: bool = False) -> int:
        """Run a program in our place, on our terminal or silently, for as long as it takes; its status.

        Raises Missing, and Failure when it can't be executed.
        """
        import subprocess
        child = self.spawn(argv, subprocess.DEVNULL if quiet else None, detached=False)
        try:
            status = child.wait()
        finally:
            if child.poll() is None:  # Ctrl-C
                child.terminate()
                child.wait()
        return SIGNALLED - status if status < 0 else status

    def spawn(self, argv: Sequence[str], output: int | None, *, detached: bool = True) -> subprocess.Popen[bytes]:
        """Start a program and leave it running, both outputs on the descriptor; detached, in a session of its own.

        Raises Missing, and Failure when it can't be executed.
        """
        import subprocess
        self.flush()
        path = self.resolve(argv[0])
        try:
            return subprocess.Popen([path, *argv[1:]], stdin=subprocess.DEVNULL if detached else None, stdout=output,
                                    stderr=output, env=self.exported(), cwd="/", start_new_session=detached)
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}", NOT_EXECUTABLE) from None

    def signal(self, pid: int, *names: str) -> None:
        """Send signals to a process; that it is gone is fine.  Raises OSError."""
        import signal
        for name in names:
            try:
                os.kill(pid, getattr(signal, name))
            except ProcessLookupError:
                return

    def stream(self, argv: Sequence[str], *, hint: str = "") -> Iterator[bytes]:
        """Run a program and give its output (both kinds) piece by piece.  Raises Missing, and Failure when it failed.

        It has no timeout of its own: it is for report sections, which are ended from outside.
        """
        import subprocess
        path = self.resolve(argv[0], hint)
        child = subprocess.Popen([path, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, env=self.child_env(), start_new_session=not self.own_group)
        assert child.stdout is not None
        fd = child.stdout.fileno()
        try:
            while data := os.read(fd, READ_CHUNK):
                yield data
            status = child.wait()
        finally:
            if child.poll() is None:
                self._end(child.pid)
                child.wait()
            child.stdout.close()
        if status:
            raise Failure(f"{os.path.basename(path)} ended with status {status if status > 0 else SIGNALLED - status}")

    def _end(self, pid: int) -> None:
        """Kill a program that we started, with its process group when it has one of its own."""
        import signal
        try:
            (os.kill if self.own_group else os.killpg)(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it ended by itself meanwhile

    def exec(self, path: str, arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> NoReturn:
        """Become the program `path`: same arguments byte for byte, the signals as a program expects to find them.

        Raises Failure (126, or 127 when it is not there).
        """
        import signal
        self.flush()
        # Python ignores these two, and ignored signals stay ignored across execve(2)
        for name in ("SIGPIPE", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            os.execve(path, [path, *arguments], self.exported() if env is None else dict(env))
        except OSError as error:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
            raise Failure(f"{path}: {error.strerror}", status) from None

    # --- sockets ----------------------------------------------------------------------------------------------------

    def netlink(self, family: int, timeout: float = 10.0) -> socket.socket:
        """A bound netlink socket of the family (NETLINK_ROUTE 0, NETLINK_XFRM 6, NETLINK_NETFILTER 12, …: netlink(7)).

        Raises OSError: the kernel lacks the family, or the caller may not.
        """
        import socket
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            link.settimeout(timeout)
            link.bind((0, 0))
        except OSError:
            link.close()
            raise
        return link

    def connect(self, name: str, kind: int, timeout: float | None) -> socket.socket:
        """A Unix socket of the kind (SOCK_STREAM, SOCK_SEQPACKET) connected to `name`.  Raises OSError."""
        import socket
        link = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            link.settimeout(timeout)
            link.connect(name)
        except OSError:
            link.close()
            raise
        return link

    # --- output -----------------------------------------------------------------------------------------------------

    def print(self, text: str = "", *, end: str = "\n") -> None:
        """Write to standard output.  Raises OSError when it can't be written (a full disk, a closed pipe)."""
        sys.stdout.write(text + end)

    def warn(self, text: str) -> None:
        """One line on standard error."""
        self.flush()
        sys.stderr.write(f"ipsec: {text}\n")

    def flush(self) -> None:
        """Write out what is buffered.  Raises OSError."""
        if sys.stdout is not None:
            sys.stdout.flush()

    @property
    def colour(self) -> bool:
        """True when standard output is a terminal that wants colour (NO_COLOR, https://no-color.org)."""
        return not self.env.get("NO_COLOR") and self.env.get("TERM") != "dumb" and sys.stdout.isatty()

    # --- what is installed ------------------------------------------------------------------------------------------

    def libreswan_version(self) -> str | None:
        """The version of the installed libreswan, such as `4.10`; None when there is none.

        Asked of its programs (`whack --version` prints `Libreswan 4.10` from 3.25 to 5.4); under a root, where
        nothing is run, and without programs, read from the `ipsec` script that it installs.
        """
        if self.live:
            for name in ("whack", "addconn", "pluto"):
                program = os.path.join(self.execdir, name)
                if self.executable(program):
                    try:
                        version = version_in(self.run([program, "--version"]).text)
                    except Failure:
                        continue
                    if version:
                        return version
        try:
            for line in self.lines(os.path.join(self.sbindir, "ipsec")):
                name, _, value = line.removeprefix("export ").partition("=")
                if name == "IPSEC_VERSION" and value.strip('"')[:1].isdigit():
                    return value.strip('"')
        except (OSError, ValueError):
            return None
        return None

    def kernel_release(self) -> str:
        """The release of the running kernel, as `uname -r`."""
        return os.uname().release

    def xfrm_loaded(self) -> bool:
        """True when the running kernel has the XFRM stack (net/xfrm/xfrm_sysctl.c makes the file)."""
        return self.live and os.path.exists("/proc/sys/net/core/xfrm_acq_expires")


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines, without their ends, from pieces of any size."""
    rest = b""
    for chunk in chunks:
        pieces = (rest + chunk).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            yield decode(piece)
    if rest:
        yield decode(rest)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it to a blocking descriptor.  Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def version_in(text: str) -> str | None:
    """The version number in what a libreswan program prints of itself (`Libreswan 4.10`, `Libreswan v5.2-…`)."""
    words = text.replace("(", " ").replace("/", " ").split()
    for before, word in zip(words, words[1:]):
        if before.lower() == "libreswan" and word.lstrip("vU")[:1].isdigit():
            return word.lstrip("vU")
    return None


# =====================================================================================================================
# 3. Redaction
# =====================================================================================================================

# =====================================================================================================================
# 4. Configuration
# =====================================================================================================================

# =====================================================================================================================
# 5. Kernel
# =====================================================================================================================

# =====================================================================================================================
# 6. Whack
#
# Talks to a running pluto over its control socket, as libreswan's whack does, for every release from 3.25 to 5.4, and
# reads what it says into data.  Touches nothing but that socket.  Facts: whack.h, whack.c, rcv_whack.c and log.c of
# those releases, and the bytes that their whacks sent (tests/data/whack).
# =====================================================================================================================

BASIC_MAGIC = 0x77686B19  # whack.h, WHACK_BASIC_MAGIC: the one message that every release takes
BASIC_STATUS = (4,)  # the bytes of a basic message that ask for the status…
BASIC_SHUTDOWN = (5, 11, 12, 14, 16)  # …and for the end: where the releases keep whack_shutdown
BASIC_LENGTH = 64  # some releases take fewer than 17 for a runt
PLUTO_TIMEOUT = 60.0
LINE_LIMIT = 1 << 20  # no line of pluto's comes near
REPLY_LIMIT = 1 << 30  # nor a whole reply: the status of 100,000 connections has 300 MB


class NoPluto(Failure):
    """Pluto can't be asked: it does not run, we may not, or what it says is no reply (status 33, as whack's)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"ipsec whack: {message}", NO_PLUTO, hint)


class Conversation:
    """One request to pluto: a message, then its lines until it closes.  A context manager.

    `timeout` is how many seconds pluto may keep us waiting altogether (the time that our own reader takes, a pager
    say, does not count); None waits for ever.
    """

    def __init__(self, host: Host, timeout: float | None = PLUTO_TIMEOUT) -> None:
        """Raises NoPluto, TimedOut."""
        import socket
        if not host.live:
            raise NoPluto(f"the pluto of the system under {host.root} can't be asked")
        self.name = host.ctlsocket
        self.timeout = timeout
        self.left = timeout
        self.size = 0
        kind = socket.SOCK_STREAM
        while True:
            try:
                self.link = host.connect(self.name, kind, self.left)
                break
            except OSError as error:
                if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_STREAM:
                    kind = socket.SOCK_SEQPACKET  # 5.4 and later
                elif error.errno == errno.EAGAIN:  # its queue of callers is full: it does not answer
                    self._wait(0.1)
                else:
                    raise self._refused(error) from None
        self.packets = kind == socket.SOCK_SEQPACKET

    def _refused(self, error: OSError) -> Failure:
        name = f'"{self.name}"'
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return NoPluto(f"Pluto is not running (no {name})", "start it with: ipsec start")
        if error.errno in (errno.EACCES, errno.EPERM):
            return NoPluto(f"no right to communicate with pluto ({name})", "be root")
        if error.errno == errno.ECONNREFUSED:
            return NoPluto(f"is Pluto running?  connect() for {name} failed (111 Connection refused)",
                           "start it with: ipsec start")
        if isinstance(error, TimeoutError) or error.errno is None:  # before 3.10 a time-out is no TimeoutError
            return NoPluto(f"connect() for {name} failed ({error})")
        return NoPluto(f"connect() for {name} failed ({error.errno} {error.strerror})")

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)
        self._spent(seconds)

    def _spent(self, seconds: float) -> None:
        if self.left is not None and self.timeout is not None:
            self.left -= seconds
            if self.left <= 0:
                raise TimedOut(f"ipsec whack: pluto did not answer on {self.name} within {self.timeout:g} s", NO_PLUTO,
                               "it may be stopped or very busy")

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.link.close()

    def say(self, data: bytes) -> None:
        """Send a message in the single write(2) that pluto reads.  Raises NoPluto."""
        try:
            sent = self.link.send(data)
        except OSError as error:
            raise NoPluto(f"write() failed ({error.errno} {error.strerror})") from None
        if sent != len(data):
            raise NoPluto("pluto took half of the message")

    def lines(self) -> Iterator[bytes]:
        """What pluto says, line by line, without line ends, with the code that each begins with.

        Raises NoPluto when the reply is cut or is none, TimedOut.
        """
        import socket
        rest = b""
        while True:
            began = time.monotonic()
            try:
                self.link.settimeout(self.left)
                data = self.link.recv(READ_CHUNK)
            except socket.timeout:
                data = b""
                self._spent(self.left or 0.0)
            except OSError as error:
                raise NoPluto(f"read() failed ({error.errno} {error.strerror})") from None
            self._spent(time.monotonic() - began)
            if not data:
                break
            self.size += len(data)
            pieces = (rest + data).split(b"\n")
            rest = pieces.pop()
            yield from pieces
            if len(rest) > LINE_LIMIT or self.size > REPLY_LIMIT:
                raise NoPluto("pluto says more than it can mean: reply given up")
        if rest:
            yield rest
            raise NoPluto("last line from pluto unterminated: it ended in the middle of its reply")


class Pluto(Record):
    """Who listens on the control socket: its version, and what it was built with that changes the messages."""

    version: str  # as it calls itself, suffix included; empty when it does not say
    packets: bool  # SOCK_SEQPACKET
    labelled: bool = False  # USE_LABELED_IPSEC
    seccomp: bool = False  # USE_SECCOMP


def basic_message(places: Iterable[int]) -> bytes:
    """The message that every release understands, with the bytes at `places` set."""
    message = bytearray(BASIC_LENGTH)
    message[:4] = BASIC_MAGIC.to_bytes(4, sys.byteorder)
    for place in places:
        message[place] = 1
    return bytes(message)


def setting(line: str, name: str) -> str:
    """The value in `…, name=value, …` of a line of the status's settings, or nothing."""
    _, found, rest = f" {line}".partition(f" {name}=")
    return rest.partition(",")[0].strip() if found else ""


def split_code(line: bytes) -> tuple[int, str]:
    """The code and the text of a reply line; -1 for a line that has none."""
    code, _, text = line.partition(b" ")
    return (int(code), decode(text)) if code.isdigit() and len(code) <= 4 else (-1, decode(line))


def pluto_status(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> Iterator[str]:
    """The lines of pluto's full status, without codes, as they come.  Works with every release.

    Raises NoPluto (not running, no permission, cut reply), TimedOut; both when a line is asked for.
    """
    with Conversation(host, timeout) as talk:
        talk.say(basic_message(BASIC_STATUS))
        for line in talk.lines():
            yield split_code(line)[1]


def probe(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> Pluto:
    """Who listens on the control socket.  Raises NoPluto, TimedOut.

    Always asked before a message of one version is sent: up to 5.0 pluto looks at the byte that it takes for
    whack_shutdown even when the magic number is another version's.
    """
    with Conversation(host, timeout) as talk:
        talk.say(basic_message(BASIC_STATUS))
        version, labelled, seccomp = "", False, False
        for line in talk.lines():
            text = split_code(line)[1]
            if text.startswith("pluto_version="):
                version = setting(text, "pluto_version")
            elif setting(text, "seccomp"):
                seccomp = setting(text, "seccomp") != "unsupported"
            elif text.startswith("secctx-attr-type="):
                labelled = "<unsupported>" not in text
            elif text.startswith(("nat-traversal", "algorithm")):
                break  # the settings end here; pluto writes on without a reader (MSG_NOSIGNAL)
        return Pluto(version, talk.packets, labelled, seccomp)


def pluto_shutdown(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> None:
    """Ask pluto of any release to end, and wait until it hangs up.  Raises NoPluto, TimedOut."""
    with Conversation(host, timeout) as talk:
        talk.say(basic_message(BASIC_SHUTDOWN))
        for _ in talk.lines():
            continue

# =====================================================================================================================
# 7. NSS
# =====================================================================================================================

# =====================================================================================================================
# 8. Firewall
# =====================================================================================================================

# =====================================================================================================================
# 9. Service managers
# =====================================================================================================================

# =====================================================================================================================
# 10. Registry
#
# What a command is: a function, registered with a decorator that carries all that the user sees of it.  Help,
# completion and the test of the man pages read the registry, so none can drift.
# =====================================================================================================================


class Opt(Record):
    """An option of a command: its spellings, the name of its value (None: a flag), what it does."""

    names: str
    metavar: str | None
    help: str
    many: bool = False

    @property
    def key(self) -> str:
        """The spelling under which the parsed value is kept: the first."""
        return self.names.split()[0]


class Args:
    """The parsed arguments of a command."""

    def __init__(self) -> None:
        self.options: dict[str, list[str]] = {}
        self.operands: list[str] = []

    def flag(self, name: str) -> bool:
        """True when the option was given."""
        return name in self.options

    def value(self, name: str, default: str = "") -> str:
        """The value of an option, the last when given several times."""
        return self.options.get(name, [default])[-1]

    def values(self, name: str) -> list[str]:
        """All values of an option that may be repeated."""
        return self.options.get(name, [])


class Command:
    """A built-in command: what runs it and what help, completion and manual say of it.

    `operands` is written as in a synopsis: `FILE`, `[CONN]`, `[ARG...]`; the count is checked against it.  `options`
    None means that the command reads its words itself (they belong to another program's grammar).
    """

    def __init__(self, function: Callable[[Host, Args], int], names: str, operands: str, summary: str,
                 options: Sequence[Opt] | None, details: str, hidden: bool) -> None:
        self.function = function
        self.name, *self.aliases = names.split()
        self.operands = operands
        self.summary = summary
        self.options = options
        self.details = details
        self.hidden = hidden

    @property
    def usage(self) -> str:
        """The synopsis, one line."""
        shown = " [OPTION...]" if self.options else ""
        return f"ipsec {self.name}{shown}{' ' + self.operands if self.operands else ''}"

    def parse(self, words: Sequence[str]) -> Args:
        """The parsed words.  Raises Failure(USAGE).

        Not argparse: it takes a value that begins with a dash (a nickname, a connection) for an option, and it costs
        as much as the rest of the start.
        """
        args = Args()
        if self.options is None:
            args.operands = list(words)
            return args
        args.operands = parse_options(self.options, words, args, f"ipsec {self.name}")
        wanted = self.operands.split()
        least = sum(not word.startswith("[") for word in wanted)
        if len(args.operands) < least:
            raise Failure(f"ipsec {self.name}: {wanted[len(args.operands)]} is missing", USAGE, f"usage: {self.usage}")
        if len(args.operands) > len(wanted) and "..." not in self.operands:
            raise Failure(f"ipsec {self.name}: unexpected argument {quote(args.operands[len(wanted)])}", USAGE,
                          f"usage: {self.usage}")
        return args


COMMANDS: dict[str, Command] = {}  # by name and by alias


def command(names: str, operands: str = "", *, summary: str, options: Sequence[Opt] | None = (), details: str = "",
            hidden: bool = False) -> Callable[[Callable[[Host, Args], int]], Callable[[Host, Args], int]]:
    """Register a function as the command `names` (the name, then aliases).

    Every built-in name may also be written with two leading dashes, as in 5.x (`ipsec --checknss`).
    """

    def register(function: Callable[[Host, Args], int]) -> Callable[[Host, Args], int]:
        entry = Command(function, names, operands, summary, options, details, hidden)
        for name in names.split():
            COMMANDS[name] = entry
        return function

    return register


def parse_options(options: Sequence[Opt], words: Sequence[str], args: Args, whose: str, *,
                  permute: bool = True) -> list[str]:
    """Sort `words` into options (kept in `args`) and operands (returned).

    As getopt_long(3), without abbreviations: `--name value`, `--name=value`, `-d value`, `--` ends the options, the
    word after an option that takes a value is its value whatever it looks like.  Without `permute` the first operand
    ends the options.  Raises Failure(USAGE).
    """
    known = {name: option for option in options for name in option.names.split()}
    operands: list[str] = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            return operands + rest[::-1]
        if not word.startswith("-") or word == "-":
            if not permute:
                return [word, *reversed(rest)]
            operands.append(word)
            continue
        name, given, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = known.get(name)
        if option is None:
            raise Failure(f"{whose}: unknown option {quote(name)}", USAGE,
                          suggest(name, known) or f"see {whose} --help")
        if option.metavar is None:
            if given:
                raise Failure(f"{whose}: {name} takes no value", USAGE)
            value = ""
        elif not given:
            if not rest:
                raise Failure(f"{whose}: {name} needs a value: {option.metavar}", USAGE)
            value = rest.pop()
        if option.many:
            args.options.setdefault(option.key, []).append(value)
        else:
            args.options[option.key] = [value]
    return operands


def quote(word: str) -> str:
    """A word from outside as it can be shown in a message: quoted, control characters escaped."""
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogateescape").decode("latin-1")
                         for c in word) + '"'


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for a misspelt word, or nothing."""
    try:
        import difflib
    except ImportError:  # python3-minimal
        return ""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


# =====================================================================================================================
# 11. Commands
#
# One function (or small class) each, registered with all that the user sees of it.
# =====================================================================================================================

# =====================================================================================================================
# 12. Dispatch
#
# Global options, the registry, then programs in the exec directory, then a clear error; what ipsec says of itself; and
# the one place where failures, closed pipes and Ctrl-C become an exit status.
# =====================================================================================================================

GLOBAL_OPTIONS = (
    Opt("--config", "FILE", "the configuration instead of /etc/ipsec.conf"),
    Opt("--rundir", "DIR", "pluto's run directory instead of /run/pluto"),
    Opt("--ctlsocket", "FILE", "pluto's control socket instead of RUNDIR/pluto.ctl"),
    Opt("--nssdir", "DIR", "the NSS database instead of /var/lib/ipsec/nss"),
    Opt("--root", "DIR", "report on the system whose file system is mounted at DIR"),
)


def load_rest() -> None:
    """Have every command registered.

    The archive begins with the sections that dispatch needs, and puts a loader of the others in this place (build.py);
    as a plain file the program is whole.
    """


# --- ipsec itself: help, version, directory --------------------------------------------------------------------------

# Self-tests that Debian's 4.10 installs beside the commands; some run when asked for --help
SELF_TESTS = ("algparse", "asn1check", "cavp", "dncheck", "enumcheck", "getpeercon_server", "hunkcheck", "ipcheck",
              "jambufcheck", "keyidcheck", "timecheck", "vendoridcheck")
SEE_ALSO = "See <https://libreswan.org/> for more general info."


def is_mentioned(name: str) -> bool:
    """True when a program of the exec directory is a command for people, as the original's --help sees it."""
    return not (name.startswith("_") or name == "ipsec" or name.endswith((".old", ".orig", "~")) or name in SELF_TESTS)


def command_names(host: Host) -> list[str]:
    """What --help lists and completion offers: the built-in commands and those in the exec directory, sorted."""
    load_rest()
    names = {entry.name for entry in COMMANDS.values() if not entry.hidden}
    try:
        names.update(name for name in host.listdir(host.execdir) if is_mentioned(name)
                     and host.executable(os.path.join(host.execdir, name)))
    except OSError:
        # no libreswan here: the built-in commands are all there is
        return sorted(names)
    return sorted(names)


def version_line(host: Host) -> str:
    """The line of `ipsec --version`.  Open vSwitch and NetworkManager parse its start (ipsec(8), --version)."""
    version = host.libreswan_version() or "(none)"
    kernel = f"{host.kernel_release()} netkey" if host.xfrm_loaded() else "(no kernel code presently loaded)"
    return f"Libreswan {version} (U{version}/K{kernel})"


@command("help -h", "[COMMAND]", summary="list the commands, or explain one")
def help_command(host: Host, args: Args) -> int:
    """`ipsec help [COMMAND]`: 0, or 1 for a command that is not there."""
    if args.operands:
        name = args.operands[0]
        entry = find_command(name)
        if entry is None:
            if program_of(host, name):
                host.print(f"{name} is a program of libreswan: see man ipsec_{name} or ipsec {name} --help")
                return OK
            raise unknown_command(host, name)
        host.print(describe(entry))
        return OK
    host.print("Usage: ipsec {command} [argument] ...\nwhere {command} is one of:\n")
    names = command_names(host)
    for left, right in zip(names[::2], [*names[1::2], ""][:len(names[::2])]):
        tabs = "\t" if len(left) >= 16 else "\t\t" if len(left) >= 8 else "\t\t\t"
        host.print(f"\t{left}{tabs}{right}" if right else f"\t{left}")
    host.print("\noptions before the command:")
    for option in GLOBAL_OPTIONS:
        host.print(option_help(option))
    host.print(f"\nSee also: ipsec help COMMAND, man ipsec_COMMAND, ipsec(8)\n{SEE_ALSO}\n{version_line(host)}\n"
               f"ipsec.pyz {VERSION}")
    return OK


def option_help(option: Opt) -> str:
    """The lines that explain an option in 80 columns."""
    import textwrap
    head = "  " + ", ".join(option.names.split()) + (f" {option.metavar}" if option.metavar else "")
    body = textwrap.wrap(option.help + (" (may be repeated)" if option.many else ""), 54)
    if len(head) > 24:
        return "\n".join([head, *(" " * 26 + line for line in body)])
    return "\n".join(f"{head if not i else '':<26}{line}" for i, line in enumerate(body))


def describe(entry: Command) -> str:
    """What `ipsec help COMMAND` shows, in 80 columns."""
    import textwrap
    parts = [f"Usage: {entry.usage}", textwrap.fill(entry.summary[:1].upper() + entry.summary[1:] + ".", 79)]
    if entry.aliases:
        parts[-1] += f"\nAlso written: {', '.join(entry.aliases)}"
    parts += [textwrap.fill(paragraph, 79) for paragraph in entry.details.split("\n\n") if paragraph]
    if entry.options:
        parts.append("Options:\n" + "\n".join(option_help(option) for option in entry.options))
    return "\n\n".join(parts)


def usage_text(host: Host) -> str:
    """What `ipsec` without arguments says."""
    return ("Usage: ipsec {command} [argument] ...\n"
            "Use --help for a list of commands, or see the ipsec(8) manual page.\n"
            f"Most commands have their own manual pages, e.g. ipsec_auto(8).\n{SEE_ALSO}\n{version_line(host)}")


@command("version versioncode", summary="print the versions of libreswan and of the kernel's IPsec stack",
         options=(Opt("--verbose", None, "also the version of this program and of the interpreter"),))
def version_command(host: Host, args: Args) -> int:
    """`ipsec version`: always 0."""
    host.print(version_line(host))
    if args.flag("--verbose"):
        host.print(f"ipsec.pyz {VERSION}\nPython {sys.version.split()[0]} ({sys.executable})")
    return OK


@command("directory", summary="print where the IPsec commands are stored")
def directory_command(host: Host, args: Args) -> int:
    """`ipsec directory`: always 0."""
    host.print(host.execdir)
    return OK


def find_command(name: str) -> Command | None:
    """The built-in command of that name, which may be written with two leading dashes as in 5.x."""
    bare = name[2:] if name.startswith("--") else name
    if name not in COMMANDS and bare not in COMMANDS:
        load_rest()
    return COMMANDS.get(name) or COMMANDS.get(bare)


def program_of(host: Host, name: str) -> str | None:
    """The path of the exec directory's program `name`, or None.  A name is a name, never a path (ipsec(8))."""
    if not name or "/" in name or name in (".", ".."):
        return None
    path = os.path.join(host.execdir, name)
    return path if host.executable(path) else None


def unknown_command(host: Host, name: str) -> Failure:
    """The error for a command that is neither built in nor in the exec directory."""
    if "/" in name or name in (".", "..", ""):
        return Failure(f"ipsec: {quote(name)} is not a command name", ERROR, "a path is never run; see ipsec --help")
    known = command_names(host)
    return Failure(f"ipsec: unknown IPsec command {quote(name)}", ERROR,
                   suggest(name, known) or '"ipsec --help" for list')


def dispatch(words: Sequence[str]) -> int:
    """Run the command that the words name; its exit status.  Raises Failure."""
    args = Args()
    mine = {name for option in GLOBAL_OPTIONS for name in option.names.split()}
    leading = 0
    while leading < len(words) and words[leading].partition("=")[0] in mine:
        leading += 1 if "=" in words[leading] else 2
    parse_options(GLOBAL_OPTIONS, words[:leading], args, "ipsec")
    host = Host(root=args.value("--root"), conf=args.value("--config"), rundir=args.value("--rundir"),
                ctlsocket=args.value("--ctlsocket"), nssdir=args.value("--nssdir"))
    if leading >= len(words):
        sys.stderr.write(usage_text(host) + "\n")
        return USAGE
    name, *rest = words[leading:]
    entry = find_command(name)
    if entry is None and name.startswith("-"):
        known = {*mine, *(f"--{command_name}" for command_name in COMMANDS)}
        raise Failure(f"ipsec: unknown option {quote(name)}", USAGE, suggest(name, known) or
                      "perhaps the command name was omitted? see ipsec --help")
    if entry is not None:
        asks = rest[:1] in (["--help"], ["-h"]) or (rest == ["help"] and not entry.operands)
        if asks and entry.options is not None:
            host.print(describe(entry))
            return OK
        return entry.function(host, entry.parse(rest))
    program = program_of(host, name)
    if program is None:
        raise unknown_command(host, name)
    if host.root:
        raise Failure(f"ipsec {name}: programs of the system under {host.root} are not run", USAGE,
                      f"chroot {host.root} ipsec {name}")
    host.exec(program, rest, env=script_env(host, program))


def script_env(host: Host, program: str) -> dict[str, str]:
    """The environment for a program of the exec directory.  Its scripts expect IPSEC_VERSION from the front door."""
    env = host.exported()
    try:
        with open(program, "rb") as stream:
            is_script = stream.read(2) == b"#!"
    except OSError:
        is_script = False
    if is_script and (version := host.libreswan_version()):
        env["IPSEC_VERSION"] = version
    return env


def die_of(name: str) -> NoReturn:
    """End by the signal, so that the shell sees 128+N; as PID 1, which its own signals don't end, with that status."""
    import signal
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(SIGNALLED + number)


def run(words: Sequence[str]) -> int:
    """Run `ipsec` with the words of the command line; the exit status.  Never raises."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # whatever the locale says: text from files, argv and the kernel passes through byte for byte
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    try:
        try:
            status = dispatch(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except Failure as failure:
        message, status = str(failure), failure.status
    except BrokenPipeError:
        die_of("SIGPIPE")
    except KeyboardInterrupt:
        die_of("SIGINT")
    except OSError as error:
        message, status = f"{error.filename or 'standard output'}: {error.strerror}", ERROR
    except (Exception, RecursionError) as error:
        # the text of an unforeseen exception may hold what must not be shown: its type and place are enough to report
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        line = place.tb_lineno if place else 0
        message, status = f"internal error: {type(error).__name__} at ipsec.py:{line}; please report it", ERROR
    try:
        sys.stderr.write(f"{message if message.startswith('ipsec') else 'ipsec: ' + message}\n")
    except (OSError, AttributeError):
        return status  # nowhere to say it
    return status


def main() -> NoReturn:
    """The program.  All output is flushed by then, so the interpreter's own end, 1 ms and a second try to write what
    could not be written, is left out."""
    os._exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
