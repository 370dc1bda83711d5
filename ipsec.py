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
    import re
    import socket
    import subprocess
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import ModuleType
    from typing import Any, Callable, Literal, NoReturn
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

    # --- standard input and output ----------------------------------------------------------------------------------

    def stdin(self) -> Iterator[bytes]:
        """Standard input, piece by piece.  Raises OSError."""
        while data := os.read(0, READ_CHUNK):
            yield data

    def ask(self, prompt: str, *, secret: bool, hint: str) -> str:
        """What somebody types on the terminal after the prompt, unseen when `secret`.

        Raises Failure when there is no terminal or nothing comes from it, Missing without termios.
        """
        termios: Any = need("termios", "asking for a password") if secret else None
        try:
            terminal = os.dup(0) if os.isatty(0) else os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            raise Failure(f"{prompt.rstrip(': ')}: there is no terminal to ask on", NO_PLUTO, hint) from None
        settings = termios.tcgetattr(terminal) if secret else []
        typed = b""
        try:
            if secret:
                silent = [*settings[:3], settings[3] & ~termios.ECHO, *settings[4:]]
                termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
            write_all(terminal, prompt.encode())
            while not typed.endswith(b"\n"):
                piece = os.read(terminal, 1)
                if not piece:
                    raise Failure(f"{prompt.rstrip(': ')}: nothing was typed", NO_PLUTO, hint)
                typed += piece
        finally:
            if secret:
                termios.tcsetattr(terminal, termios.TCSAFLUSH, settings)
                write_all(terminal, b"\n")
            os.close(terminal)
        return decode(typed[:-1])

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
#
# What leaves the program in a report passes here.  Secrets are known by their place (the syntax of ipsec.secrets,
# options, assignments, key dumps) and by value: once seen, a secret is masked wherever it turns up.  Touches nothing;
# redactor_of() of the next section feeds it from the host's files.  Facts: lib/libswan/lex.c, secrets.c and ttodata.c
# of libreswan 3.25 to 5.4, ipsec.secrets(5), ip-xfrm(8).
# =====================================================================================================================

REDACTED = "[redacted]"
KEY_KINDS = frozenset("psk xauth rsa ecdsa eddsa pkcs8 p12 pin ppk ppks ntlm eap".split())  # of all generations
RSA_FIELDS = frozenset("modulus publicexponent privateexponent prime1 prime2 exponent1 exponent2 coefficient ckaidnss "
                       "ckaid privatekey publickey".split())
PUBLIC_FIELDS = ("modulus", "publicexponent", "ckaidnss", "ckaid", "publickey")
LONGEST_LINE = 1 << 16  # a report shows no more of a line
# Secrets that are everyday words of a report would, masked everywhere, leave neither a report nor a doubt what they are
EVERYDAY = frozenset("secret secrets password ipsec libreswan pluto test default public private tunnel transport "
                     "systemd kernel linux debian redacted".split())


class Token:
    """A word of ipsec.secrets: its text without quotes, where it is in its line, and how it is written."""

    __slots__ = ("end", "form", "line", "start", "text")

    def __init__(self, text: str, line: int, start: int, end: int, form: str) -> None:
        self.text = text
        self.line = line
        self.start = start
        self.end = end
        self.form = form  # the quote; 0x, 0s or 0t; `open` for a string without end; empty for a bare word

    def data(self) -> bytes | None:
        """The bytes that it stands for, or None when it is no key that pluto would load."""
        if self.form in ("0x", "0s"):
            digits = self.text[2:].replace("_", "")
            try:
                import binascii
                return (binascii.unhexlify(digits) if self.form == "0x" else
                        binascii.a2b_base64(digits + "=" * (-len(digits) % 4)))
            except ValueError:
                return None
        return encode(self.text[2:] if self.form == "0t" else self.text)

    def censored(self) -> str:
        """What a report shows in its place: how it is written, and the length of a key."""
        if self.form in ('"', "'", "`"):
            return f"{self.form}{REDACTED}{self.form}"
        if self.form in ("0x", "0s"):
            data = self.data()
            return self.form + ("[redacted, malformed]" if data is None else f"[redacted {len(data)} bytes]")
        return {"0t": "0t", "open": '"'}.get(self.form, "") + REDACTED


def secret_tokens(text: str, line: int = 0) -> tuple[list[Token], int]:
    """The tokens of one line of ipsec.secrets as pluto's lexer sees them, and where the line's comment starts (its
    length when it has none).  Never fails."""
    tokens: list[Token] = []
    place = 0
    stop = text.find("\0")  # a C string ends there
    stop = len(text) if stop < 0 else stop
    while place < stop:
        first = text[place]
        if first in " \t":
            place += 1
            continue
        if first == "#":
            return tokens, place
        start = place
        form = text[start:start + 2].lower()
        form = form if form in ("0x", "0s", "0t") else ""
        to_end = text.startswith("0t", start)  # such a key may hold blanks
        if first in "\"'`":
            place = text.find(first, start + 1, stop) + 1
            form = first if place else "open"
            place = place or stop
            word = text[start + 1:place - 1] if form == first else text[start + 1:place]
        else:
            place = start + 1
            while place < stop and (to_end or text[place] not in " \t"):
                place += 1
            if place - start > 1 and text[place - 1] == ":" and not to_end:
                place -= 1  # the colon after an adjacent ID is a token of its own
            word = text[start:place]
        tokens.append(Token(word, line, start, place, form))
    return tokens, stop


class SecretRecord:
    """A record of ipsec.secrets: `include` and a pattern, or IDs, a colon and a key.  `shown` are the tokens that a
    report may show, `secrets` those to mask wherever they turn up, `problem` why pluto would not load it."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.line = tokens[0].line if tokens else 0
        self.kind = ""
        self.ids: list[Token] = []
        self.include = ""
        self.problem = ""
        self.shown: list[Token] = []
        self.secrets: list[Token] = []
        self._parse()

    def _parse(self) -> None:
        tokens = self.tokens
        if tokens and tokens[0].text.lower() == "include" and not tokens[0].form:
            self.kind = "include"
            self.shown = list(tokens[:1])
            if len(tokens) != 2 or tokens[1].form == "open":
                self.problem = "include needs one file name and nothing behind it"
                return
            self.include = tokens[1].text
            self.shown.append(tokens[1])
            return
        colon = next((i for i, token in enumerate(tokens) if token.text == ":"), -1)
        keyword = next((i for i, token in enumerate(tokens) if is_key_word(token.text)), len(tokens))
        for token in tokens[:max(0, min(colon, keyword))]:
            if token.form not in ("", '"', "'"):
                break  # no ID is written so: a key at the wrong place
            self.ids.append(token)
        self.shown = list(self.ids)
        if any(token.form == "open" for token in tokens):
            self.problem = "unterminated string"
        if colon < 0:
            self.problem = self.problem or "no `:` (a word of its own) between the IDs and the key"
            self.secrets = [token for token in tokens[:keyword] if token.form] + list(tokens[keyword + 1:])
            self.shown = []
            return
        self.secrets = [token for token in tokens[len(self.ids):colon] if token.form]
        values = tokens[colon + 1:]
        self.shown.append(tokens[colon])
        kind = values[0].text.lower() if values else ""
        if kind not in KEY_KINDS or (values[0].form and values[0].form not in "\"'"):
            self.problem = self.problem or "no PSK, XAUTH or other kind of key behind the `:`"
            self.secrets += values
            return
        self.kind = kind
        self.shown.append(values[0])
        self._parse_key(values[1:])

    def _parse_key(self, values: Sequence[Token]) -> None:
        if not values:
            self.problem = self.problem or "no key behind the kind of key"
        elif self.kind in ("psk", "xauth", "ppk", "ppks"):
            wanted = 2 if self.kind.startswith("ppk") else 1
            self.secrets += values[wanted - 1:] if len(values) >= wanted else values
            if wanted == 2 and len(values) > 1 and values[0].form in ('"', "'"):
                self.shown.append(values[0])
            if len(values) != wanted:
                self.problem = self.problem or ("more than one key" if len(values) > wanted else "no key behind its ID")
            elif values[-1].form not in ('"', "'") and (values[-1].form in ("", "`") or values[-1].data() is None):
                self.problem = self.problem or "malformed key: neither quoted nor 0x, 0s or 0t and digits"
        elif self.kind == "pin":
            self.secrets += values[1:] or values
        else:  # a raw private key, or the file and the passphrase of one
            field = ""
            for token in values:
                word = token.text.rstrip(":").lower()
                if not token.form and (token.text in ("{", "}", ":") or word in RSA_FIELDS):
                    self.shown.append(token)
                    field = field if token.text == ":" else word
                elif token.form and field not in PUBLIC_FIELDS:
                    self.secrets.append(token)

    def censored(self, number: int, text: str) -> str:
        """What a report shows of the record's line `number`, whose text before any comment is given."""
        parts = []
        place = 0
        for token in self.tokens:
            if token.line == number:
                parts += [text[place:token.start],
                          text[token.start:token.end] if token in self.shown else token.censored()]
                place = token.end
        return "".join(parts)


def is_key_word(text: str) -> bool:
    """True for the name of a kind of key, also where a blank before it was forgotten."""
    return text.rpartition(":")[2].lower() in KEY_KINDS


def secret_records(lines: Iterable[str]) -> Iterator[tuple[SecretRecord, list[tuple[int, str, int]]]]:
    """The records of a secrets file and the lines of each: number, text, where the comment starts.

    A record begins at the left margin and goes on in indented lines (lex.c).  Comment and blank lines come with the
    record before them, or with an empty one.  Never fails, whatever the file holds.
    """
    tokens: list[Token] = []
    rows: list[tuple[int, str, int]] = []
    for number, text in enumerate(lines, 1):
        text = text.rstrip(" \t\r\n\v\f")
        found, comment = secret_tokens(text, number)
        if found and not found[0].start and rows:
            yield SecretRecord(tokens), rows
            tokens, rows = [], []
        tokens += found
        rows.append((number, text, comment))
    if rows:
        yield SecretRecord(tokens), rows


def commented_out(text: str) -> SecretRecord | None:
    """The entry that a comment (its text begins with `#`) holds, or None for any other remark."""
    record = SecretRecord(secret_tokens(text.lstrip("# \t"))[0])
    entry = record.kind in KEY_KINDS and all(any(c in token.text for c in "@.:%=") for token in record.ids)
    return record if entry else None


def censor_secrets(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a secrets file as a report shows them: IDs, kinds of keys, includes; all else `[redacted]`."""
    for record, rows in secret_records(lines):
        for number, text, comment in rows:
            shown = record.censored(number, text[:comment])
            remark = text[comment:]
            if remark.lstrip("#\0 \t"):
                old = commented_out(remark)
                bare = remark.lstrip("# \t")
                remark = remark[:len(remark) - len(bare)] + old.censored(0, bare) if old else "#[redacted comment]"
                remark = remark if remark.startswith("#") else f"#{remark}"
            yield shown + (text[len(text[:comment].rstrip(" \t")):comment] if remark else "") + remark


# Words without which none of SECRET_PLACES can match, then those places: what comes before the secret is kept.
PLACE_HINTS = ("pass", "pwd", "psk", "secret", "pin", "xauth", "ppk", "shared", "api", "token", "://", "malformed",
               "unrecogni", 'index "', "lex ", "util", "--comment", "banner", "$", " 0x", "\te: ", "\ta: ")
_SECRET_NAME = (r"[\w-]*(?:passw(?:or)?d|passphrase|xauthpass|userpass|pwd|secret[_-]?key|shared[_-]?(?:secret|key)|"
                r"client[_-]?secret|api[_-]?key|auth[_-]?token)|pass|psk|secret|pin")
_QUOTED = r"""\\?"(?:[^"\\\n]|\\.)*(?:"|$)|\\?'[^'\n]*(?:'|$)"""
SECRET_PLACES = (
    # options of a command line, up to the next option; the short ones of the NSS tools
    rf"((?<![\w-])--?(?:{_SECRET_NAME}|passin|passout)(?:=|[ \t]+))(?:{_QUOTED}|(?:(?![ \t]-)[^\n])+)",
    r"(\b(?:pk12|cert|crl|mod)util\b[^\n]*?[ \t]-[WKP][ \t]*)(?:(?![ \t]-)[^\n])+",
    # name=value and name: value, in any kind of text; at the start of a line its rest is the value
    rf"(^[ \t]*(?:{_SECRET_NAME})[ \t]*[=:][ \t]*)(?!$)[^\n]+",
    rf"((?<![\w/.-])[\"\']?(?:{_SECRET_NAME})[\"\']?[ \t]*[=:][ \t]*)(?:{_QUOTED}|[^\s,;&)\]}}]+)",
    r"(\bpassword for [^\n:]*:[ \t]*)[^\n]+",
    r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)",
    # entries of ipsec.secrets, and what pluto says of malformed ones (secrets.c, lex.c)
    rf"(:[ \t]*(?:PSK|XAUTH|PPKS?|PIN)[ \t]+)(?:{_QUOTED}|0[xst])[^\n]*",
    r"((?:PSK|XAUTH|PPK|RSA|key)[^\n]{0,40} malformed \([^\n]*?\):[ \t]*)[^\n]+",
    r"((?:unrecogni[sz]ed (?:keyword|key format):|\bline \d+: index)[ \t]*)[^\n]+",
    r"(\blex (?:shift|flushline)[^\n']*')[^\n]*",
    r"(\buser\([^\n]*\) pass[ \t]+)[^\n]+",
    # comments and banners that speak of a secret
    r"((?:--comment|modecfgbanner[ \t]*=|banner:)[ \t]*)(?=[^\n]{0,300}?(?:pass|secret|psk|pwd|key))"
    r"[^\n]+?(?=[ \t]-|$)",
    # keys of the kernel, as ip-xfrm(8) and setkey(8) print them, and hashes of passwords, crypt(5)
    r"^(\t[EA]: [\w()-]+[ \t]+)[0-9a-f]{8}[0-9a-f \t]*$",
    r"(\$(?:1|2[abxy]?|5|6|7|y|gy|apr1|sha1|md5)\$)[\w./=,$+-]{8,}",
)


class Redactor:
    """Masks secrets in text: by place, and by value every secret that it learned.

    With `show_secrets` it changes nothing but control characters.
    """

    def __init__(self, show_secrets: bool = False) -> None:
        self.show_secrets = show_secrets
        self._values: set[str] = set()  # masked anywhere
        self._words: set[str] = set()  # masked where they stand alone
        self._digits: set[str] = set()  # in hex, for dumps
        self._sorted: list[str] | None = None
        self._runs: dict[str, list[str]] = {}
        self._word_pattern: re.Pattern[str] | None = None
        self._places: list[re.Pattern[str]] = []

    def learn(self, secret: str | bytes) -> None:
        """From now on, mask this secret in every form it may turn up in: as it is, decoded, in hex and base64, escaped.

        One of fewer than four characters, or an everyday word, is masked in the places of secrets only.
        """
        import binascii
        text = decode(secret) if isinstance(secret, bytes) else secret
        data = encode(text)
        if isinstance(secret, str) and text[:2].lower() in ("0x", "0s", "0t"):
            data = Token(text, 0, 0, len(text), text[:2].lower()).data() or data
        if len(text) < 4 or len(data) < 4 or text.lower() in EVERYDAY or not text.strip():
            return
        digits = binascii.hexlify(data).decode()
        self._digits.add(digits)
        forms = {text, text.strip(), decode(data), digits, digits.upper(),
                 binascii.b2a_base64(data, newline=False).decode().rstrip("=")}
        for form in (text, decode(data)):
            forms |= {form.replace("\\", "\\\\").replace('"', '\\"'), form.replace("'", "'\\''"), printable(form),
                      form.encode("unicode_escape", "surrogateescape").decode("latin-1"),
                      "".join(c if 32 <= ord(c) < 127 and c != "\\" else "".join(f"\\{b:03o}" for b in encode(c))
                              for c in form)}
        for form in forms:
            for line in form.splitlines() or [form]:
                if len(line) >= 6:
                    self._values.add(line)
                elif len(line) >= 4:
                    self._words.add(line)
        self._sorted = None

    def learn_file(self, lines: Iterable[str]) -> list[str]:
        """Learn the secrets in the lines of a file like ipsec.secrets, those in its comments too; the patterns that
        it includes."""
        includes = []
        for record, rows in secret_records(lines):
            found = list(record.secrets)
            for _, text, comment in rows:
                old = commented_out(text[comment:])
                found += old.secrets if old else [token for token in secret_tokens(text[comment:].lstrip("# \t"))[0]
                                                  if token.form]
            for token in found:
                self.learn(token.text)
            if record.include:
                includes.append(record.include)
        return includes

    def text(self, text: str, *, bulk: bool = False) -> str:
        """The text with all secrets masked.  `bulk` text is known to hold numbers only (routes): by value only."""
        return self._masked(text, bulk, False)[0]

    def _masked(self, text: str, bulk: bool, in_key: bool) -> tuple[str, bool]:
        """The masked text, and whether it ends within a PEM key; `in_key` when it starts there."""
        if self.show_secrets:
            return text, False
        text = self._mask_values(text)
        if "PRIVATE KEY-----" in text or in_key:
            text, in_key = mask_pem(text, in_key)
        if not bulk:
            text = self._mask_places(text)
        return text.replace(MASK, REDACTED), in_key

    def clean(self, text: str, *, bulk: bool = False) -> str:
        """The text as a report shows it: secrets masked, control characters escaped."""
        return printable(self.text(text, bulk=bulk))

    def stream(self, chunks: Iterable[bytes], *, bulk: bool = False) -> Iterator[str]:
        """What clean() gives, for text of any size that comes in pieces: a secret across two pieces is masked too.

        Gives whole lines, many at a time; of lines beyond LONGEST_LINE the start.
        """
        in_key = False
        for data in whole_lines(chunks):
            text, in_key = self._masked(decode(data), bulk, in_key)
            if len(text) > LONGEST_LINE:
                # a secret that whole_lines() cut through lies behind what is shown
                text = "\n".join(line if len(line) <= LONGEST_LINE else
                                 f"{line[:LONGEST_LINE // 2]} [rest of the line left out]" for line in text.split("\n"))
            yield printable(text)

    def _mask_values(self, text: str) -> str:
        import re
        if self._sorted is None:
            self._sorted = sorted(self._values, key=len, reverse=True)
            self._runs = {}
            if len(self._sorted) > MANY_VALUES:
                for value in self._sorted:
                    run = max(re.findall("[A-Za-z0-9]{4,}", value), key=len, default="")
                    self._runs.setdefault(run, []).append(value)
            words = "|".join(re.escape(word) for word in sorted(self._words, key=len, reverse=True))
            self._word_pattern = re.compile(f"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])") if words else None
        if self._runs:
            # one look at each word of the text instead of one search for each value
            hits = set(re.findall("[A-Za-z0-9]{4,}", text)) & self._runs.keys()
            values = sorted((value for run in (*hits, "") for value in self._runs.get(run, ())), key=len, reverse=True)
        else:
            values = self._sorted
        for value in values:
            if value in text:
                text = text.replace(value, MASK)
        return self._word_pattern.sub(MASK, text) if self._word_pattern else text

    def _mask_dump(self, found: re.Match[str]) -> str:
        """For a row of hex bytes: masked to the end of the line, where a dump repeats it as text, if it holds a secret
        or is a piece of one."""
        row = found[2].lower().translate({32: None, 58: None})
        known = any(digits in row or (row in digits if len(row) > 6 else digits.endswith(row))
                    for digits in self._digits)
        return f"{found[1]}{MASK}" if known else found[0]

    def _mask_places(self, text: str) -> str:
        import re
        if not self._places:
            self._places = [re.compile(place, re.IGNORECASE) for place in SECRET_PLACES]
            self._key = re.compile(r"\b((?:auth|auth-trunc|enc|aead|comp)[ \t]+\S+[ \t]+0x)([0-9a-f]+)", re.IGNORECASE)
            # a row of pluto's dumps, of any length; bytes in a row anywhere
            self._dumps = [re.compile(r"^(.*?\|  +|  +)((?:[0-9a-f]{2} {1,2})*[0-9a-f]{2})(?:$|   .*)", re.MULTILINE),
                           re.compile(r"((?<![0-9A-Za-z]))((?:[0-9A-Fa-f]{2}[ :]{1,2}){3,}[0-9A-Fa-f]{2})\b.*")]
        lines = text.split("\n")
        for number, line in enumerate(lines):
            lowered = line.lower()
            if any(hint in lowered for hint in PLACE_HINTS):
                for place in self._places:
                    line = place.sub(rf"\g<1>{MASK}", line)
                lines[number] = self._key.sub(lambda found: f"{found[1]}[redacted {len(found[2]) // 2} bytes]", line)
        text = "\n".join(lines)
        for dump in self._dumps if self._digits else ():
            text = dump.sub(self._mask_dump, text)
        return text


def mask_pem(text: str, in_key: bool) -> tuple[str, bool]:
    """The text without the lines between BEGIN and END of private keys, and whether it ends within a key."""
    lines = []
    for line in text.split("\n"):
        if "PRIVATE KEY-----" in line:
            in_key = "-----BEGIN" in line
        elif in_key and line:
            line = MASK
        lines.append(line)
    return "\n".join(lines), in_key


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut behind line ends only.  Of a line longer than two LONGEST_LINE no more than those."""
    rest = b""
    for chunk in chunks:
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        elif len(rest) < 2 * LONGEST_LINE:
            rest += chunk
    if rest:
        yield rest


MASK = "\ue000"  # stands for REDACTED until all is masked, so that nothing is found in it
MANY_VALUES = 300
_ESCAPES: dict[int, str] = {}


def printable(text: str) -> str:
    """The text with control characters, undecodable bytes and what turns the direction of writing shown escaped
    (\\x1b), so that it can't drive a terminal.  Line ends and tabs stay."""
    if not _ESCAPES:
        codes = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
        _ESCAPES.update({code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in codes})
        _ESCAPES.update({0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)})
    return text.translate(_ESCAPES)

# =====================================================================================================================
# 4. Configuration
#
# Readers of ipsec.conf and of the files with secrets beside it; every error has a file and a line.  Reads through Host
# only.  Facts: ipsec.conf(5); parser.lex, parser.y, keywords.c and confread.c of libreswan 3.25 to 5.4, whose keywords
# and values are all taken, whichever release is installed.
# =====================================================================================================================

INCLUDE_DEPTH = 10  # MAX_INCLUDE_DEPTH
_BOOL = "y|yes|true|on|n|no|false|off"
_PERMIT = "never|permit|propose|insist|yes|always|no"
_FORCE = "never|no|yes|insist|force"
_FAMILY = "ipv4|ipv6|v4|inet|v6|inet6"
# What may stand behind a keyword, then the keywords.  `side` keywords are written left… or right… .
SETUP_KEYWORDS = f"""
{_BOOL}: audit-log crl-strict dnssec-enable drop-oppo-null ike-socket-errqueue ipsec-interface-managed listen-tcp
 listen-udp logappend logip logtime loglimit ocsp-enable ocsp-strict uniqueids fragicmp hidetos perpeerlog
text: curl-iface dnssec-anchors dnssec-rootkey-file dumpdir dns-resolver global-redirect-to ipsecdir listen logfile
 myvendorid nssdir ocsp-trustname ocsp-uri perpeerlogdir protostack secretsfile seeddev statsbin virtual-private
duration: crlcheckinterval crl-timeout curl-timeout expire-shunt-interval ocsp-cache-max-age ocsp-cache-min-age
 ocsp-timeout shuntlifetime xfrmlifetime keep-alive
number: ddos-ike-threshold ike-socket-bufsize ikeport max-halfopen-ike nat-ikeport nhelpers ocsp-cache-size overridemtu
 secctx-attr-type seedbits
0-65535: nflog-all
debug: plutodebug
accept|reject|drop: ikev1-policy
auto|busy|unlimited: ddos-mode
enabled|disabled|tolerant: seccomp
get|post: ocsp-method
no|yes|auto: global-redirect
obsolete: disable-port-floating force-busy force-keepalive forwardcontrol interfaces klipsdebug nat-traversal nocrsend
 oe pluto plutofork plutoopts plutorestartoncrash plutowait postpluto prepluto rp-filter syslog
"""
CONN_KEYWORDS = f"""
side text: addresspool ca cert ckaid ecdsakey eddsakey id interface-ip nexthop protoport pubkey rsasigkey rsasigkey2
 sourceip subnet updown updown-config username vti
side list: subnets
side number: ikeport
side {_BOOL}: cat groundhog modecfgclient modecfgserver xauthclient xauthserver
side never|secret|rsasig|rsa|ecdsa|eddsa|null|eaponly: auth
side none|tls: autheap
side never|no|sendifasked|ifasked|alwayssend|always|yes: sendcert
list: also connalias
text: accept-redirect-to ah authby debug esp ike mark mark-in mark-out modecfgbanner modecfgdns modecfgdomains phase2alg
 ppk-ids redirect-to sec-label vti-interface
{_BOOL}: aggressive cisco-split cisco-unity compress decap-dscp dns-match-id dns-match-id, encap-dscp fake-strongswan
 ignore-peer-dns ikepad initial-contact intermediate iptfs iptfs-fragmentation labeled-ipsec mobike modecfgpull
 ms-dh-downgrade narrowing nat-keepalive nm-configured nopmtudisc overlapip pam-authorize pfs pfs-rekey-workaround
 reauth reject-simultaneous-ike-auth rekey require-id-on-certificate send-esp-tfc-padding-not-supported send-vendorid
 session-resumption sha2-truncbug share-lease vti-routing vti-shared
duration: dpddelay dpdtimeout ikelifetime ipsec-lifetime iptfs-drop-time iptfs-init-delay rekeymargin
 retransmit-interval retransmit-timeout
number: clones iptfs-max-queue-size iptfs-packet-size iptfs-reorder-window keyingtries metric mtu priority
 replay-window reqid tcp-remoteport tfc
0-65535: nflog
yes|no|number: ipsec-interface
percent: rekeyfuzz
size: ipsec-max-bytes ipsec-max-packets
ignore|add|ondemand|route|start|up|keep: auto
hold|clear|restart|restart_by_peer|none|disabled|trap: dpdaction
tunnel|transport|pass|passthrough|reject|drop: type
none|pass|passthrough|drop|hold|reject: failureshunt
pass|passthrough|drop|hold: negotiationshunt
ike|ikev1|ikev2: keyexchange
{_PERMIT}: ikev2 ppk
{_FORCE}: fragmentation
yes|no|either: esn
yes|no|auto: accept-redirect encapsulation send-redirect
yes|no|auto|crypto|packet: nic-offload
yes|no|fallback: enable-tcp
yes|no|conntrack: sareftrack
both|rfc|drafts|none: nat-ikev1-method
cisco|ietf: remote-peer-type
file|pam|alwaysok: xauthby
hard|soft: xauthfail
none|issuer|all: sendca
esp|ah|default: phase2
{_FAMILY}: clientaddrfamily hostaddrfamily
yes|no|auto|{_BOOL}: send-supported-auth-methods
obsolete: alsoflip connaddrfamily disablearrivalcheck forceencaps modecfgdns2 modecfgwins1 modecfgwins2
"""
# Other spellings of a keyword: those of older releases, and NetworkManager's
ALIASES = {"plutostderrlog": "logfile", "plutostderrlogtime": "logtime", "strictcrlpolicy": "crl-strict",
           "ocsp-trust-name": "ocsp-trustname", "secctx-attr-value": "secctx-attr-type",
           "ikev1-secctx-attr-type": "secctx-attr-type", "expire-lifetime": "xfrmlifetime",
           "aggrmode": "aggressive", "ike-frag": "fragmentation", "keylife": "ipsec-lifetime",
           "lifetime": "ipsec-lifetime", "salifetime": "ipsec-lifetime", "ikev1-dpdtimeout": "dpdtimeout",
           "nflog-group": "nflog", "policy-label": "sec-label", "modecfgdns1": "modecfgdns",
           "modecfgdomain": "modecfgdomains", "send-no-esp-tfc": "send-esp-tfc-padding-not-supported",
           "xauthusername": "username", "xauthname": "username"}
DEBUG_FLAGS = frozenset("all none base cpu-usage refcnt crypt private whackwatch add-prefix tmi raw parsing emitting "
                        "control lifecycle kernel dns oppo oppoinfo controlmore pfkey nattraversal x509 dpd xauth "
                        "retransmits timecheck routing proposal-parser sysdep klips netkey natt app-parse "
                        "oppo-info".split())
DURATION = r"\d*\.?\d+ ?(?:us|ms|s|m|h|d|w)?|\d+"
_KEYWORDS: dict[str, dict[str, str]] = {}


class ConfigError(Failure):
    """A configuration that can't be used: `file:line: what`."""


class Setting:
    """A keyword (in its canonical spelling), its value, and where it was read."""

    __slots__ = ("file", "key", "line", "value")

    def __init__(self, key: str, value: str, file: str, line: int) -> None:
        self.key = key
        self.value = value
        self.file = file
        self.line = line


class Problem(Record):
    """Something wrong in a configuration.  `fatal`: libreswan refuses the file, or what was meant can't be known."""

    file: str
    line: int  # 0: the file as a whole
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class Section(Record):
    """A section as it stands in a file: its name (empty for config setup), place and settings in order."""

    name: str
    file: str
    line: int
    settings: list[Setting]


class Conn:
    """A connection with its also= sections and conn %default merged in.

    `settings` by keyword; `alsos` the sections it took in; `broken` when libreswan would not load it.
    """

    def __init__(self, section: Section) -> None:
        self.name = section.name
        self.file = section.file
        self.line = section.line
        self.settings: dict[str, Setting] = {}
        self.own: set[str] = set()  # keywords that don't come from conn %default
        self.alsos: list[str] = []
        self.broken = False

    def get(self, key: str, default: str = "") -> str:
        """The value of a keyword such as `leftid`, or the default."""
        setting = self.settings.get(key)
        return setting.value if setting else default

    def flag(self, key: str, default: bool = False) -> bool:
        """The value of a yes/no keyword."""
        return is_yes(self.get(key)) if self.get(key) else default

    @property
    def auto(self) -> str:
        """What is done with it at start: ignore, add, ondemand, start or keep."""
        value = self.get("auto", "ignore").lower()
        return {"route": "ondemand", "up": "start"}.get(value, value)


def is_yes(value: str) -> bool:
    """True for the words that mean yes in ipsec.conf."""
    return value.lower() in ("y", "yes", "true", "on", "1")


def keywords(setup: bool) -> dict[str, str]:
    """The keywords of `config setup`, or of connections, and the kind of value that each takes."""
    name = "setup" if setup else "conn"
    if name not in _KEYWORDS:
        table = _KEYWORDS[name] = {} if setup else {"left": "text", "right": "text"}
        for row in (SETUP_KEYWORDS if setup else CONN_KEYWORDS).replace("\n ", " ").split("\n"):
            kind, _, names = row.partition(": ")
            side = kind.startswith("side ")
            for key in names.split():
                table.update({lr + key: kind[5:] for lr in ("left", "right")} if side else {key: kind})
    return _KEYWORDS[name]


def canonical(key: str) -> str:
    """The spelling of a keyword in our tables: lower case, `-` for `_`, the name that replaced an older one."""
    key = key.lower().replace("_", "-")
    for side in ("left", "right"):
        if key.startswith(side):
            bare = key[len(side):].removeprefix("-")
            return side + ALIASES.get(bare, bare)
    return ALIASES.get(key, key)


def value_problem(kind: str, value: str) -> str:
    """What is wrong with a value for the kind of keyword, or nothing."""
    import re
    low = value.lower()
    if kind in ("text", "list", "obsolete") or not value:
        return ""
    if kind == "number" or kind[0].isdigit():
        if not re.fullmatch(r"-?\d+|%forever", low):
            return "is not a number"
        least, _, most = kind.partition("-")
        return f"is not within {kind}" if most and not int(least) <= int(low) <= int(most) else ""
    if kind == "debug":
        bad = [word for word in re.split(r"[,\s]+", low) if word and word.removeprefix("no-") not in DEBUG_FLAGS]
        return f"names no debug flag: {', '.join(bad)}" if bad else ""
    pattern = {"duration": DURATION, "percent": r"\d+%?", "size": r"\d+([kmgtpe]i)?b?"}.get(kind)
    if pattern:
        return "" if re.fullmatch(pattern, low) else f"is no {kind}"
    if low in kind.split("|") or ("number" in kind and low.isdigit()):
        return ""
    return f"is not one of {'yes, no' if kind == _BOOL else ', '.join(kind.split('|'))}"


def split_value(text: str) -> tuple[str, str]:
    """A value and what follows it in its line: of its quoted, braced and bare readings the longest (parser.lex)."""
    quoted = text.find('"', 1) + 1 if text[0] == '"' else 0
    before = text.partition('"')[0]
    braced = before.rfind("}") + 1 if text[0] == "{" else 0
    bare, unbraced = len(text), len(text)
    for place, char in enumerate(text):
        if char in " \t":
            bare, unbraced = min(bare, place), min(unbraced, place)
            break
        if char == '"':
            bare = min(bare, place)
        elif char in "{}":
            unbraced = min(unbraced, place)
    best = max(quoted, braced, bare, unbraced)
    if best in (quoted, braced):
        return text[1:best - 1], text[best:]
    return text[:best], text[best:]


class Config:
    """ipsec.conf with what it includes.  Never raises for what the files hold: see `problems`.

    `files` are all files that were read, in order; `sections` the connections as written, %default too.
    """

    def __init__(self, host: Host, name: str = "", text: str | None = None) -> None:
        """Read the file `name` (the host's configuration by default; `-` is standard input), or parse `text`, of which
        `name` is said to be the source."""
        self.host = host
        self.name = name or host.conf
        self.files: list[str] = []
        self.problems: list[Problem] = []
        self.sections: list[Section] = []
        self._setup: dict[str, Setting] = {}
        self._setups = 0
        self._section: Section | None = None
        self._conns: list[Conn] | None = None
        if text is None and self.name == "-":
            text = decode(b"".join(host.stdin()))
        if text is not None:
            self._read(self.name, text.split("\n"), 0)
        else:
            self._read_file(self.name, 0, 0, self.name)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _problem(self, file: str, line: int, text: str, fatal: bool = True) -> None:
        self.problems.append(Problem(file, line, text, fatal))

    def _read_file(self, name: str, depth: int, line: int, parent: str) -> None:
        self.files.append(name)
        try:
            self._read(name, self.host.lines(name), depth)
        except OSError as error:
            self.files.pop()
            self._problem(parent, line, f"can't load {quote(name)}: {error.strerror}")

    def _read(self, name: str, lines: Iterable[str], depth: int) -> None:
        self._section = None
        for number, line in enumerate(lines, 1):
            if line[:1] in " \t":
                line = line.lstrip(" \t")
                if line and line[0] != "#":
                    self._statement(name, number, line)
            elif line[0] != "#":
                self._heading(name, number, line, depth)

    def _heading(self, name: str, number: int, line: str, depth: int) -> None:
        word, _, rest = line.replace("\t", " ").partition(" ")
        rest = line[len(word):].lstrip(" \t")
        value, after = split_value(rest) if rest and rest[0] != "#" else ("", rest)
        if word not in ("conn", "config", "include", "version"):
            self._problem(name, number, f"{quote(word)} begins no section: conn, config setup and include do"
                          + (", and a setting is indented" if "=" in line else ""))
        elif not value or self._trailing(after) or (word == "config" and value != "setup"):
            self._problem(name, number, f"{word} needs " + {"conn": "one name", "config": "the word setup"}.get(
                word, "one value") + " and nothing behind it")
        elif word == "conn":
            self._section = Section(value, name, number, [])
            self.sections.append(self._section)
            return
        elif word == "config":
            self._setups += 1
            if self._setups > 1 and self._setup:
                self._problem(name, number, "a second config setup: libreswan 4 ignores it, 5 merges it", False)
            self._section = Section("", name, number, [])
            return
        elif word == "include":
            self._include(name, number, value, depth)
        self._section = None

    @staticmethod
    def _trailing(text: str) -> bool:
        """True when what follows a value is no comment.  The lexer takes `#word` alone for a keyword."""
        text = text.lstrip(" \t")
        return bool(text) and (text[0] != "#" or not any(c in text for c in '"= \t'))

    def _include(self, name: str, number: int, pattern: str, depth: int) -> None:
        if depth + 1 >= INCLUDE_DEPTH:
            self._problem(name, number, f"include {quote(pattern)}: nested deeper than {INCLUDE_DEPTH} (a loop?)")
            return
        where = os.path.join(os.path.dirname(name), pattern)
        found = [match for single in braces(where) for match in self.host.glob(single)]
        if not found and "*" not in pattern:
            self._problem(name, number, f"could not open include filename {quote(pattern)}", False)
        for match in found:
            self._read_file(match, depth + 1, number, name)

    def _statement(self, name: str, number: int, line: str) -> None:
        key, equals, rest = line.partition("=")
        key = key.rstrip(" \t")
        if self._section is None:
            self._problem(name, number, f"{quote(key)} is indented, but in no section")
            return
        if not equals or " " in key or "\t" in key or '"' in key or not key:
            self._problem(name, number, f"syntax error: no keyword=value: {quote(key)}")
            return
        rest = rest.lstrip(" \t")
        if key[:2].lower() in ("x-", "x_"):
            self._section.settings.append(Setting(key, rest, name, number))
            return
        if not rest or rest[0] == "#":
            value = ""
        elif any(c in rest for c in ' \t"{}'):
            value, after = split_value(rest)
            if self._trailing(after):
                self._problem(name, number, f"syntax error behind the value of {key}: quote a value with blanks, and "
                              "put a blank behind the # of a comment")
                return
        else:
            value = rest
        self._set(Setting(canonical(key), value, name, number), key)

    def _set(self, setting: Setting, written: str) -> None:
        section = self._section
        assert section is not None
        setup = not section.name
        kind = keywords(setup).get(setting.key)
        place = setting.file, setting.line
        if kind is None and not setup and f"right{setting.key}" in keywords(False):
            self._problem(*place, f"{written} needs left or right before it; libreswan 4 takes it for right{written}",
                          False)
            setting.key = f"right{setting.key}"
            kind = keywords(False)[setting.key]
        if kind is None:
            known = setting.key in keywords(not setup)
            where = "config setup" if setup else "a conn"
            self._problem(*place, f"keyword {written} is not valid in {where}" if known else
                          f"unknown keyword {quote(written)}", setup or not known)
            return
        if kind == "obsolete":
            self._problem(*place, f"obsolete keyword {written} is ignored", False)
            return
        if kind not in ("text", "list") and (wrong := value_problem(kind, setting.value)):
            self._problem(*place, f"{written}={quote(setting.value)} {wrong}")
            return
        section.settings.append(setting)
        if setup:
            self._setup[setting.key] = setting

    # --- what it says -----------------------------------------------------------------------------------------------

    def check(self) -> Config:
        """Itself, when libreswan could load it.  Raises ConfigError for the first fatal problem."""
        for problem in self.problems:
            if problem.fatal:
                raise ConfigError(str(problem))
        return self

    def setup(self, key: str, default: str = "") -> str:
        """The value of a keyword of `config setup`, or the default."""
        setting = self._setup.get(key)
        return setting.value if setting and setting.value else default

    def setup_at(self, key: str) -> Setting | None:
        """The setting of `config setup` with its place, or None."""
        return self._setup.get(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """A yes/no keyword of `config setup`."""
        value = self.setup(key)
        return is_yes(value) if value else default

    def number(self, key: str, default: int | None = None) -> int | None:
        """A number of `config setup`; the default when it is not set."""
        value = self.setup(key)
        return int(value) if value.lstrip("-").isdigit() else default

    def conns(self) -> list[Conn]:
        """The connections in the order of the file, also= and %default merged in; one for each `conn` line."""
        if self._conns is None:
            self._conns = []
            by_name: dict[str, Section] = {}
            for section in self.sections:
                by_name.setdefault(section.name, section)
            default: dict[str, Setting] = {}
            for section in self.sections:
                if section.name == "%default":
                    for setting in section.settings:
                        if setting.key == "also":
                            self._problem(setting.file, setting.line, "also= is not valid in conn %default", False)
                        else:
                            default[setting.key] = setting
            for section in self.sections:
                if section.name != "%default":
                    self._conns.append(self._merged(section, by_name, default))
        return self._conns

    def conn(self, name: str) -> Conn | None:
        """The first connection of this name, else the first that has it as connalias, or None."""
        return next((conn for conn in self.conns() if conn.name == name), None) or next(
            (conn for conn in self.conns() if name in conn.get("connalias").split()), None)

    def _merged(self, section: Section, by_name: Mapping[str, Section], default: Mapping[str, Setting]) -> Conn:
        """Own settings, then those of also= sections in breadth-first order, each section once, then %default's
        (confread.c, load_conn).  A keyword set twice: the first counts; libreswan 4 refuses the connection."""
        conn = Conn(section)
        merged: dict[str, Setting] = {}
        seen = {section.name}
        todo = [section]
        kinds = keywords(False)
        for part in todo:
            for setting in part.settings:
                key = setting.key
                if key == "also":
                    for name in setting.value.split():
                        other = by_name.get(name)
                        if other is None:
                            conn.broken = True
                            self._problem(setting.file, setting.line, f"conn {conn.name}: there is no conn "
                                          f"{quote(name)} to take in with also=", False)
                        elif name not in seen:
                            seen.add(name)
                            conn.alsos.append(name)
                            todo.append(other)
                elif key not in merged:
                    merged[key] = setting
                elif kinds.get(key) == "list":
                    merged[key] = Setting(key, f"{merged[key].value} {setting.value}", setting.file, setting.line)
                elif merged[key].value != setting.value and key in kinds:
                    conn.broken = True
                    self._problem(setting.file, setting.line, f"duplicate key {key} in conn {conn.name} (first in "
                                  f"{merged[key].file}:{merged[key].line})", False)
        conn.own = set(merged)
        for key, setting in default.items():
            if key in merged and kinds.get(key) == "list":
                merged[key] = Setting(key, f"{setting.value} {merged[key].value}", setting.file, setting.line)
            else:
                merged.setdefault(key, setting)
        conn.settings = merged
        return conn


def braces(pattern: str) -> list[str]:
    """The patterns that one with {a,b} stands for, as GLOB_BRACE of glob(3)."""
    head, opened, rest = pattern.partition("{")
    inner, closed, tail = rest.partition("}")
    if not opened or not closed:
        return [pattern]
    return [head + word + end for word in inner.split(",") for end in braces(tail)]


def secrets_file(host: Host, config: Config | None = None) -> str:
    """The secrets file in use: secretsfile= of the configuration, else the one beside it."""
    return (config.setup("secretsfile") if config else "") or host.secrets


def secret_files(host: Host, name: str) -> tuple[list[str], list[Problem]]:
    """The secrets file `name` and all that it includes, in pluto's order, and what is wrong with them.

    A problem never holds the text of the file.
    """
    files: list[str] = []
    problems: list[Problem] = []

    def visit(file: str, depth: int, parent: str, line: int) -> None:
        if depth > INCLUDE_DEPTH:
            problems.append(Problem(parent, line, f"includes nested deeper than {INCLUDE_DEPTH} (a loop?)"))
            return
        try:
            records = list(secret_records(host.lines(file)))
        except OSError as error:
            problems.append(Problem(parent, line, f"can't read {quote(file)}: {error.strerror}"))
            return
        files.append(file)
        for record, _ in records:
            if record.problem:
                problems.append(Problem(file, record.line, record.problem))
            if record.include:
                found = host.glob(os.path.join(os.path.dirname(file), record.include))
                if not found and not any(c in record.include for c in "*?["):
                    problems.append(Problem(file, record.line, f"{quote(record.include)}: no such file", False))
                for match in found:
                    visit(match, depth + 1, file, record.line)

    visit(name, 0, name, 0)
    return files, problems


def nss_passwords(host: Host, directory: str = "") -> dict[str, str]:
    """The passwords in the file nsspassword (ipsec.d by default) by token; under the empty name one without token.

    Lines are `token:password` (lswnss.c).  Empty when there is no such file.
    """
    passwords: dict[str, str] = {}
    try:
        for line in host.lines(f"{directory or host.confddir}/nsspassword"):
            line = line.rstrip("\r")
            token, colon, password = line.partition(":")
            if line:
                passwords.setdefault(token if colon else "", password if colon else line)
    except OSError:
        return passwords  # not there, or not for us
    return passwords


def nss_password(host: Host, token: str = "NSS Certificate DB", directory: str = "") -> str | None:
    """The password of an NSS token as pluto finds it, or None.  In FIPS mode the token of the database has another
    name, so either name finds it."""
    passwords = nss_passwords(host, directory)
    names = [token]
    if token in ("NSS Certificate DB", "NSS FIPS 140-2 Certificate DB"):
        names += ["NSS Certificate DB", "NSS FIPS 140-2 Certificate DB", ""]
    return next((passwords[name] for name in names if name in passwords), None)


def redactor_of(host: Host, show_secrets: bool = False, config: Config | None = None) -> Redactor:
    """A Redactor that knows the host's secrets: ipsec.secrets with includes, *.secrets, NSS passwords, the hashes in
    ipsec.d/passwd.  What can't be read is left out: see secret_files()."""
    redactor = Redactor(show_secrets)
    config = config or Config(host)
    directories = list(dict.fromkeys((host.confddir, config.setup("ipsecdir", host.confddir), host.nssdir,
                                      config.setup("nssdir", host.nssdir))))
    names = [host.secrets, secrets_file(host, config)]
    for directory in directories:
        names += host.glob(f"{directory}/*.secrets")
        for password in nss_passwords(host, directory).values():
            redactor.learn(password)
    seen: set[str] = set()
    for name in dict.fromkeys(names):
        for file in secret_files(host, name)[0]:
            if file not in seen:
                seen.add(file)
                redactor.learn_file(host.lines(file))
    for directory in directories:
        try:
            for line in host.lines(f"{directory}/passwd"):
                fields = line.split(":")
                if len(fields) > 1 and not line.startswith("#"):
                    redactor.learn(fields[1])
        except OSError:
            continue  # no users, or not for us
    return redactor


def secrets_report(host: Host, name: str = "") -> Iterator[str]:
    """The lines of a secrets file without the secrets.  Raises OSError."""
    return censor_secrets(host.lines(name or host.secrets))

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

# --- messages: what a release's whack sends ---------------------------------------------------------------------------
#
# The message is whack.h's struct whack_message in the host's own representation, then its strings.  The tables below
# say it for all releases: a line holds for the releases that it names; a line that begins with blanks goes on the one
# above.  A new release: add it to RELEASES, extend the ranges of what stayed and add lines for what changed.

RELEASES = (*(f"3.{n}" for n in range(25, 33)), *(f"4.{n}" for n in range(16)), "5.0", "5.1", "5.2", "5.3", "5.3.1",
            "5.3.2", "5.4")

# From 5.1 the magic number is the cksum(1) of the version instead
WHACK_MAGIC = """
3.25       0x6f686b2d
3.26-3.29  0x6f686b2e
3.30-3.32  0x6f686b2f
4.0-4.2    0x6f686b30
4.3-5.0    0x6f686b31
"""

# The members in their order.  A letter is the C type of the names after it: b bool or char, h 16 bits, i int, w size_t
# or pointer, q 64 bits, t time_t, a a bool that opens a struct of ints, xN N bytes.  `t=60` is a member that whack
# always sends so (of connections: lifetimes, margins, ports…); `12w` are 12 members that we have no use for, summed up
# such that what follows is aligned as in C wherever time_t and pointers have 4 or 8 bytes and 64-bit integers are
# aligned to 4 or 8.
WHACK_MESSAGE = """
3.25-5.2   i magic b status
5.1-5.2    b shutdown
3.25-5.0   b globalstatus
5.1-5.2    a globalstatus
3.25-5.2   b clearstats trafficstatus shuntstatus fipsstatus
3.28-5.2   b briefstatus
4.0-5.2    b addresspoolstatus
5.0-5.2    b connectionstatus briefconnectionstatus
4.0-5.2    b showstates
3.25-3.27  1b b shutdown
3.28-3.32  a shutdown
4.0-4.15   1b b shutdown
5.0        a shutdown
5.0        b=1
4.2-5.0    b processstatus
5.1-5.2    1b b processstatus
4.2-5.2    b leave_state
5.0-5.2    w name
3.25-4.15  2w b options
3.25-5.2   q debug.set debug.clr
5.1-5.2    2w 3i i=1
3.25-3.26  4i 1b b async
3.27-3.32  6i 1b b async
4.0-4.15   1w 1i 1b b async
5.0        2w 2i 2b b async
5.1-5.2    b async
3.25       1q
3.26-3.29  2q
3.25-3.29  q=3600000 q=28800000 q=540000 w=100 1w w=32 q=60000 q=500 i=1
3.25-3.27  16w 1q 124i
3.28-3.29  4q b=1 15w 118i
3.25-3.29  h=500 4w 20i h=2 h=2
3.30-3.31  2q
3.32       q=0x4000400000006 q=7
3.30-3.32  t=3600 1t t=28800 1t t=540 1t w=100 1w w=32 t=60 2t t=500000 i=1 3t 6i b=1 14w 122i h=500 3w 20i h=2 h=2
4.3-4.15   i=2
4.0-4.1    q=0x1000200000006 q=7 t=3600
4.2        q=0x2000200000006 q=7 t=28800
4.3-4.5    q=0x800000000006 q=7 t=28800
4.6        q=0x40000000006 q=7 3i t=28800
4.7-4.15   2q q=28 3i t=28800
4.0-4.15   1t t=28800 1t t=540 1t
4.0-4.5    w=100 1w w=32
4.6-4.7    w=100 1w w=128
4.8-4.15   q=0x8000000000000000 q=0x8000000000000000 w=100 1w q=128
4.0-4.15   t=60 2t t=500000 i=1 i=0xffffffff 4t 4i i=4500 i=1 b=1
4.0-4.1    20w 186i h=2 h=2
4.2        25w 176i h=2
4.3        25w 144i h=2
4.4        27w 128i h=2
4.5        25w 128i h=2
5.0-5.2    i=2 3i q=28
5.0-5.1    31i
5.2        16q
5.0-5.2    q=0x8000000000000000 q=0x8000000000000000
5.0-5.1    6t t=540 1t b=1 q=100 3i q=128 t=60 1t b=1 1t t=500000 b=1 4w 4q b=1
5.2        9t q=100 3i q=128 6t 4w 8i b=1
5.0        14w 49i w username 20w 43i w host_afi
5.1        16w 41i w username 22w 35i w host_afi
5.2        5t 17w 1q 47i w username 22w 39i w host_afi
5.0-5.2    9w w remote_host
3.25-4.5   9w b route
4.6-4.7    37w 132i b route
4.8-4.15   39w 132i b route
5.0-5.2    b route
3.25-5.2   b unroute initiate
4.3-5.2    6i i=8 7i i=1
3.25-3.29  16i b down
3.30-3.32  14i b down
4.0-4.1    18i b down
4.2        20i b down
4.3-5.2    b down
3.25-5.2   b delete deletestate w deletestateno
5.0-5.2    i sa sa_type
3.30-4.15  b rekey_ike rekey_ipsec
3.25-5.2   1w b deleteuser deleteuser_name deleteid deleteid_name purgeocsp listen unlisten w ike_buf_size b
           ike_sock_err_toggle i ddos
3.30-5.2   b ddns
3.25-5.2   b crash
4.2-5.2    a crash_peer.is_set
3.30-5.2   i crash_peer.version x16 crash_peer.bytes
4.0-4.1    2i b crash_peer.is_set
3.25-3.29  2b h crash_peer.family i crash_peer.inet
3.25-3.29  5i b utc
3.30-3.32  1i b utc
4.0-4.1    a utc
4.2        3i b utc
4.3-5.2    b utc
3.25-5.2   b checkpubkeys
4.5-5.2    b listpubkeys
3.25-5.2   q list
5.0-5.2    b rereadcerts rereadsecrets fetchcrls
3.25-4.15  b reread
4.3-4.15   8w 1i i global_redirect
5.0-5.2    9w 2i i global_redirect
5.0-5.2    w global_redirect_to redirect_to
5.2        2w 1i b suspend
3.25-3.27  14w 2i
3.28-3.29  17w 16i
3.30-3.32  17w 14i
4.0-4.2    19w
4.3-4.15   11w
5.0-5.1    4w 2i
5.2        3w
5.3-5.3.2  i magic b status shutdown i command w name q debug.set debug.clr 2w i=1 b async i ike_buf_size b
           ike_sock_err_toggle i ike_sock_err ddos 19t 51w 63i w username 37w 11i w remote_host deletestateno 1w b
           crash_peer.is_set crash_peer.version 2b x16 crash_peer.bytes b utc q list 9w 2i i global_redirect w
           redirect_to 3w 2i
5.4        i magic b status shutdown i command w name i=1 b async utc i ike_buf_size b ike_sock_err_toggle i
           ike_sock_err ddos 4w 17i w deletestateno b crash_peer.is_set crash_peer.version 2b x16 crash_peer.bytes b
           list_pubkeys list_psks list_certs list_cacerts list_crls list_events w remote_host i global_redirect w
           global_redirect_to redirect_to 2w q debug.set debug.clr 9w
"""

# The strings, in the order in which they follow the struct.  Up to 4.15 all are always there, those that we don't use
# as a number of empty ones; `label` only where pluto has labelled IPsec.  From 5.0 only those that are set, and the
# member of that name holds the length.
WHACK_STRINGS = """
3.25-3.27  name 4 updown 5 updown 5 username 7 label 7 remote_host
3.28-3.32  name 4 updown 5 updown 5 username 7 label 7 remote_host 2
4.0-4.1    name 6 updown 9 updown 1 username 9 label 7 remote_host 2 redirect_to
4.2        name 8 updown 11 updown 1 username 16 remote_host 2 redirect_to
4.3-4.4    name 8 updown 11 updown 1 username 16 remote_host global_redirect_to 2 redirect_to
4.5-4.6    name 7 updown 10 updown 1 username 16 remote_host global_redirect_to 2 redirect_to 1
4.7-4.15   name 6 updown 1 username 7 updown 18 remote_host global_redirect_to 2 redirect_to 1
5.0-5.3.2  name username remote_host global_redirect_to redirect_to
5.4        name remote_host global_redirect_to redirect_to
"""
STRINGS_ROOM = 4096

# From 5.3 what to do is a number, counted from 1 in this order
WHACK_COMMANDS = """
5.3-5.4    rereadall fetchcrls rereadsecrets rereadcerts processstatus addresspoolstatus connectionstatus
           briefconnectionstatus briefstatus fipsstatus globalstatus trafficstatus shuntstatus delete add route unroute
           initiate
5.3-5.3.2  suspnd
5.3-5.4    acquire down suspend deleteuser deleteid deletestate crash clearstats ddns purgeocsp showstates rekey_ike
           rekey_child delete_ike delete_child down_ike down_child ddos list checkpubkeys seccomp_crashtest
           shutdown_leave_state active_redirect global_redirect listen unlisten
5.4        impair debug pubkey
"""

# Names of debugging bits, each the next higher one unless it says its value
WHACK_DEBUG = """
3.25       raw parsing emitting control lifecycle kernel dns oppo controlmore pfkey nattraversal x509 dpd xauth
           retransmits oppoinfo crypt crypt-low private proposal-parser whackwatch add-prefix all=0xffff
3.26-3.27  raw parsing emitting control lifecycle kernel dns oppo controlmore nattraversal x509 dpd xauth retransmits
           oppoinfo crypt crypt-low private proposal-parser whackwatch add-prefix all=0x7fff
3.28-4.1   base cpu-usage tmi crypt private whackwatch add-prefix all=3
4.2-4.5    base cpu-usage refcnt tmi crypt private whackwatch add-prefix all=7
4.6-4.15   base cpu-usage refcnt tmi=0xf crypt private whackwatch add-prefix all=7
5.0        routing=2 cpu-usage refcnt tmi=0x1f crypt private whackwatch add-prefix base=3 all=0xf
5.1-5.3.2  routing=2 cpu-usage refcnt tmi=0x1f updown crypt private whackwatch add-prefix base=3 all=0xf
5.4        routing=1 cpu-usage=4 refcnt tmi=0x1f updown crypt private add-prefix add-state whackwatch base=3 all=0xf
           none=0xfff
"""

# whack's options that need no definition of a connection: name and kind of value; whether --name is needed (+), taken
# (?) or of no use (.); the releases; what it sets.  `word` is a command or a member that becomes 1, `word=N` and
# `word|N` are a member (and the command of that name), `*` the option's value, `$word` a string.
WHACK_OPTIONS = """
status                      . *         status
shutdown                    . *         shutdown
leave-state                 . 4.2-5.2   leave_state
leave-state                 . 5.3-5.4   shutdown_leave_state
globalstatus                . *         globalstatus
clearstats                  . *         clearstats
trafficstatus               ? *         trafficstatus
shuntstatus                 . *         shuntstatus
fipsstatus                  . *         fipsstatus
briefstatus                 . 3.28-5.4  briefstatus
addresspoolstatus           . 4.0-5.4   addresspoolstatus
processstatus               . 4.2-5.4   processstatus
showstates                  . 4.0-5.4   showstates
connectionstatus            ? 5.0-5.4   connectionstatus
briefconnectionstatus       ? 5.0-5.4   briefconnectionstatus
initiate                    + *         initiate
terminate                   + *         down
down                        + 5.0-5.4   down
delete                      + *         delete
route                       + *         route
ondemand                    + *         route
unroute                     + *         unroute
suspend                     + 5.2-5.4   suspend
rekey-ike                   + 3.30-4.15 rekey_ike
rekey-ike                   + 5.0-5.2   sa=1
rekey-ike                   + 5.3-5.4   rekey_ike
rekey-ipsec                 + 3.30-4.15 rekey_ipsec
rekey-child                 + 5.0-5.2   sa=1 sa_type=1
rekey-child                 + 5.3-5.4   rekey_child
delete-ike                  + 5.0-5.2   sa=2
delete-ike                  + 5.3-5.4   delete_ike
delete-child                + 5.0-5.2   sa=2 sa_type=1
delete-child                + 5.3-5.4   delete_child
down-ike                    + 5.0-5.2   sa=3
down-ike                    + 5.3-5.4   down_ike
down-child                  + 5.0-5.2   sa=3 sa_type=1
down-child                  + 5.3-5.4   down_child
deletestate=NUMBER          . *         deletestate deletestateno=*
deleteuser                  + *         deleteuser
deleteid                    + *         deleteid
crash=ADDRESS               . *         crash
listen                      . *         listen
unlisten                    . *         unlisten
ike-socket-bufsize=NUMBER   . *         listen ike_buf_size=*
ike-socket-errqueue-toggle  . *         listen ike_sock_err_toggle=1
ike-socket-errqueue=YES|NO  . 5.3-5.4   listen ike_sock_err=*
ddos-auto                   . *         ddos=1
ddos-busy                   . *         ddos=2
ddos-unlimited              . *         ddos=3
ddns                        . 3.30-5.3.2 ddns
purgeocsp                   . *         purgeocsp
checkpubkeys                . 3.25-4.4  checkpubkeys list|1
checkpubkeys                . 4.5-5.4   checkpubkeys
listpubkeys                 . 3.25-4.4  list|1
listpubkeys                 . 4.5-5.2   listpubkeys
listpubkeys                 . 5.3-5.3.2 list|1
listpubkeys                 . 5.4       list list_pubkeys
listcerts                   . 3.25-5.3.2 list|2
listcerts                   . 5.4       list list_certs
listcacerts                 . 3.25-5.3.2 list|4
listcacerts                 . 5.4       list list_cacerts
listcrls                    . 3.25-5.3.2 list|8
listcrls                    . 5.4       list list_crls
listpsks                    . 3.25-5.3.2 list|16
listpsks                    . 5.4       list list_psks
listevents                  . 3.25-5.3.2 list|32
listevents                  . 5.4       list list_events
listall                     . 3.25-4.4  list|31
listall                     . 4.5-5.2   list|31 listpubkeys
listall                     . 5.3-5.3.2 list|31
listall                     . 5.4       list list_pubkeys list_psks list_certs list_cacerts list_crls
rereadsecrets               . 3.25-4.15 reread|1
rereadsecrets               . 5.0-5.4   rereadsecrets
rereadcrls                  . 3.25-4.15 reread|2
fetchcrls                   . 3.25-4.15 reread|4
fetchcrls                   . 5.0-5.4   fetchcrls
rereadcerts                 . 4.0-4.15  reread|8
rereadcerts                 . 5.0-5.4   rereadcerts
rereadall                   . 3.25-3.32 reread|7
rereadall                   . 4.0-4.15  reread|15
rereadall                   . 5.0-5.2   rereadcerts rereadsecrets fetchcrls
rereadall                   . 5.3-5.4   rereadall
redirect-to=ADDRESS,…       ? 4.0-5.2   $redirect_to
redirect-to=ADDRESS,…       ? 5.3-5.4   active_redirect $redirect_to
global-redirect=YES|NO|AUTO . 4.3-5.4   global_redirect=*
global-redirect-to=ADDRESS,… . 4.3-5.2  $global_redirect_to
global-redirect-to=ADDRESS,… . 5.3-5.3.2 global_redirect $redirect_to
global-redirect-to=ADDRESS,… . 5.4      global_redirect $global_redirect_to
debug=NAME                  . *         debug
no-debug=NAME               . 3.28-5.4  debug
name=CONNECTION             ? *         $name
remote-host=ADDRESS         + *         $remote_host
username=NAME               + *         $username
asynchronous                ? *         async
utc                         ? *         utc
label=TEXT                  ? *
"""
WORDS_AS_NUMBERS = {"no": 1, "yes": 2, "auto": 3}  # enum yn_options, enum global_redirect
# What these options mean only together with others, so that they alone are no request
WHACK_MODIFIERS = frozenset(("name", "remote-host", "username", "asynchronous", "utc", "label", "leave-state"))


def table_rows(table: str) -> Iterator[list[str]]:
    """The rows of one of the tables here, as words."""
    row: list[str] = []
    for line in table.splitlines():
        if line and not line.startswith(" "):
            if row:
                yield row
            row = []
        row += line.split()
    yield row


def version_key(version: str) -> tuple[int, ...]:
    """A version number as what compares."""
    return tuple(int(part) for part in version.split("."))


def covers(releases: str, version: tuple[int, ...]) -> bool:
    """True when `version` is one of a table's `releases`: `3.25-4.2`, `5.4`, or `*`."""
    first, _, last = releases.partition("-")
    return releases == "*" or version_key(first) <= version <= version_key(last or first)


def cksum(data: bytes) -> int:
    """The checksum of POSIX cksum(1): a CRC of the bytes and of their count."""
    crc = 0
    count = len(data)
    length = []
    while count:
        length.append(count & 0xFF)
        count >>= 8
    for byte in (*data, *length):
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc ^ 0xFFFFFFFF


class Abi(Record):
    """What the C compiler makes of a struct: bytes of a pointer and of time_t, alignment of 64 bits, byte order."""

    word: int
    time: int
    wide: int
    order: Literal["little", "big"]

    def unit(self, letter: str) -> tuple[int, int]:
        """Size and alignment of a type of WHACK_MESSAGE."""
        if letter.startswith("x"):
            return int(letter[1:]), 1
        return {"b": (1, 1), "a": (1, 4), "h": (2, 2), "i": (4, 4), "w": (self.word, self.word), "q": (8, self.wide),
                "t": (self.time, self.wide if self.time == 8 else 4)}[letter]


def host_abi() -> Abi:
    """This host's.  Libreswan is taken to be built like the interpreter."""
    import struct
    try:
        time.gmtime(1 << 33)  # past 2038
        clock = 8
    except (OverflowError, OSError):
        clock = 4
    return Abi(struct.calcsize("@P"), clock, struct.calcsize("@bq") - 8, sys.byteorder)


class Layout:
    """struct whack_message of one release on one kind of host: where its members are, and what is always in them."""

    def __init__(self, version: tuple[int, ...], abi: Abi) -> None:
        self.members: dict[str, tuple[int, int]] = {}  # offset and size
        self.always: list[tuple[int, int, int]] = []  # offset, size and value
        self.size = 0
        kind = ""
        for releases, *words in table_rows(WHACK_MESSAGE):
            if not covers(releases, version):
                continue
            for word in words:
                name, _, value = word.partition("=")
                if word[0].isdigit():
                    for _ in range(int(word[:-1])):
                        self._place(abi, word[-1])
                elif value:
                    self.always.append((*self._place(abi, name), int(value, 0)))
                elif len(word) == 1 or word[1:].isdigit():
                    kind = word
                else:
                    self.members[word] = self._place(abi, kind)

    def _place(self, abi: Abi, kind: str) -> tuple[int, int]:
        size, alignment = abi.unit(kind)
        offset = -(-self.size // alignment) * alignment
        self.size = offset + size
        return offset, size


class Request:
    """A message of whack's for one pluto, built option by option."""

    def __init__(self, pluto: Pluto, abi: Abi | None = None) -> None:
        """Raises Failure for a pluto whose messages we don't know."""
        if pluto.version not in RELEASES:
            raise Failure(f"ipsec whack: pluto is {pluto.version or 'of an unknown version'}; we speak the language of "
                          f"{RELEASES[0]} to {RELEASES[-1]}", NO_PLUTO,
                          "status and shutdown work with any; for the rest install its own whack in the exec directory")
        self.pluto = pluto
        self.version = version_key(pluto.version)
        self.abi = abi or host_abi()
        self.layout = Layout(self.version, self.abi)
        self.data = bytearray(self.layout.size)
        for offset, size, value in self.layout.always:
            self._write(offset, size, value)
        self.strings: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.command = ""
        self.commands = self._commands() if "command" in self.layout.members else []

    def _commands(self) -> list[str]:
        names = [name for releases, *row in table_rows(WHACK_COMMANDS) if covers(releases, self.version)
                 for name in row]
        return [name for name in names if name != "seccomp_crashtest" or self.pluto.seccomp]

    def _write(self, offset: int, size: int, value: int) -> None:
        self.data[offset:offset + size] = value.to_bytes(size, self.abi.order)

    def _get(self, member: str) -> int:
        offset, size = self.layout.members[member]
        return int.from_bytes(self.data[offset:offset + size], self.abi.order)

    def _set(self, member: str, value: int) -> None:
        self._write(*self.layout.members[member], value)

    def option(self, name: str, value: str = "") -> None:
        """Do what whack does for --name=value.  Raises Failure: not in this release, or not a value."""
        effects = next((words for option, _, releases, *words in table_rows(WHACK_OPTIONS)
                        if option.partition("=")[0] == name and covers(releases, self.version)), None)
        if effects is None:
            raise Failure(f"ipsec whack: pluto {self.pluto.version} does not know --{name}", NO_PLUTO)
        self.given[name] = value
        try:
            if name in ("debug", "no-debug"):
                self._debug(value, name == "debug")
            elif name == "crash":
                self._crash(value)
            for effect in effects:
                self._apply(effect, value)
        except (ValueError, OverflowError, OSError):
            raise Failure(f"ipsec whack: --{name} {quote(value)}: not a value for it", NO_PLUTO) from None

    def _apply(self, effect: str, value: str) -> None:
        if effect.startswith("$"):
            self.strings[effect[1:]] = value
            return
        name, separator, number = effect.replace("|", "=").partition("=")
        if name in self.commands:
            if self.command not in ("", name):
                raise Failure(f"ipsec whack: --{name.replace('_', '-')} and --{self.command.replace('_', '-')} are two "
                              f"commands, pluto {self.pluto.version} takes one", NO_PLUTO)
            self.command = name
            self._set("command", self.commands.index(name) + 1)
            if not separator:
                return
        if name in self.layout.members:
            wanted = WORDS_AS_NUMBERS.get(value) or int(value) if number == "*" else int(number or 1)
            self._set(name, self._get(name) | wanted if "|" in effect else wanted)

    def _debug(self, name: str, on: bool) -> None:
        bits: dict[str, int] = {}
        for releases, *words in table_rows(WHACK_DEBUG):
            if covers(releases, self.version):
                for word in words:
                    key, _, number = word.partition("=")
                    top = 1 << max([value.bit_length() for value in bits.values()], default=0)
                    bits[key] = int(number, 0) if number else top
        every = 0
        for value in bits.values():
            every |= value
        bits.setdefault("none", every)
        if name not in bits:
            raise Failure(f"ipsec whack: --debug {quote(name)}: pluto {self.pluto.version} has "
                          f"{', '.join(sorted(bits))}", NO_PLUTO)
        wanted = bits[name]
        to, other = ("debug.set", "debug.clr") if on != (name == "none") else ("debug.clr", "debug.set")
        self._set(to, self._get(to) | wanted)
        self._set(other, self._get(other) & ~wanted)
        if "options" in self.layout.members:
            self._set("options", 1)

    def _crash(self, address: str) -> None:
        import socket
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        if "crash_peer.inet" in self.layout.members:  # struct sockaddr_in
            if family == socket.AF_INET6:
                raise ValueError
            self._set("crash_peer.family", family)
            self._set("crash_peer.inet", int.from_bytes(packed, self.abi.order))
            return
        offset, size = self.layout.members["crash_peer.bytes"]
        self.data[offset:offset + size] = packed.ljust(size, b"\0")
        for member, value in (("crash_peer.is_set", 1), ("crash_peer.version", 6 if ":" in address else 4),
                              ("host_afi", 6 if ":" in address else 4)):
            if member in self.layout.members:
                self._set(member, value)

    def check(self) -> None:
        """Raises Failure when the options make no request, as whack does."""
        rules = {row[0].partition("=")[0]: row[1] for row in table_rows(WHACK_OPTIONS)}
        actions = [name for name in self.given if name not in WHACK_MODIFIERS or name == "leave-state"]
        if not actions:
            raise Failure("ipsec whack: no action specified", NO_PLUTO, "see ipsec whack --help")
        if "name" not in self.given and any(rules[name] == "+" for name in self.given):
            raise Failure("ipsec whack: missing --name <connection_name>", NO_PLUTO)
        if "name" in self.given and self.version >= (5,) and all(rules[name] == "." for name in actions):
            raise Failure(f'ipsec whack: {quote(self.given["name"])}: no reason for --name', NO_PLUTO)
        if self.version >= (5, 4) and "redirect-to" in self.given and "name" not in self.given:
            raise Failure(f"ipsec whack: --redirect-to needs --name: pluto {self.pluto.version} ends without", NO_PLUTO)
        if self.version >= (5, 4) and "remote-host" in self.given and self.command != "initiate":
            raise Failure("ipsec whack: --remote-host is for --initiate", NO_PLUTO)

    def pack(self) -> bytes:
        """The message.  Raises Failure when its strings are too long."""
        if "leave-state" in self.given and self.version >= (5, 1):
            self._set("shutdown", 0)  # which would win, and flush the state
        basic = (self._get("status") or self._get("shutdown") if self.version >= (5, 1) else
                 self.given.keys() - {"label"} <= {"status", "shutdown"})
        magic = BASIC_MAGIC if basic else cksum(f"{self.pluto.version}\n".encode()) if self.version >= (5, 1) else next(
            int(number, 0) for releases, number in table_rows(WHACK_MAGIC) if covers(releases, self.version))
        self._set("magic", magic)
        pool = b""
        for slot in next(row[1:] for row in table_rows(WHACK_STRINGS) if covers(row[0], self.version)):
            text = encode("ipsec _updown" if slot == "updown" else self.strings.get(slot, "")) + b"\0"
            if self.version < (5,):
                if slot != "label" or self.pluto.labelled:
                    pool += bytes(int(slot)) if slot.isdigit() else text
            elif slot in self.strings:
                self._set(slot, len(text))
                pool += text
        if self.version >= (5, 4):
            if "username" in self.strings:  # of a connection's words, here KWS_USERNAME of its left end
                pool += bytes(4) + (22).to_bytes(4, self.abi.order) + encode(self.strings["username"]) + b"\0"
            pool += bytes(8)
        if len(pool) > STRINGS_ROOM or any("\0" in text for text in self.strings.values()):
            raise Failure("ipsec whack: too long a name, or a NUL in it", NO_PLUTO)
        return bytes(self.data) + pool


# --- whack's command line and what pluto answers ----------------------------------------------------------------------

# Options that shape the conversation rather than the message; the last three are ours
WHACK_OWN_OPTIONS = ("ctlsocket=FILE", "rundir=DIR", "ctlbase=DIR", "xauthname=NAME", "xauthuser=NAME",
                     "xauthpass=PASSWORD", "help", "version", "xauthpass-file=FILE", "timeout=SECONDS", "native")
XAUTH_ROOM = 128  # XAUTH_MAX_NAME_LENGTH and XAUTH_MAX_PASS_LENGTH of whack.h
UNKNOWN_NAME = 21  # RC_UNKNOWN_NAME


def whack_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """The options on a command line of whack's, in order, each with its value.

    As getopt_long(3): unambiguous beginnings will do, and the word after an option that takes a value is its value,
    whatever it looks like.  Raises Failure, with whack's status.
    """
    table = [row[0] for row in table_rows(WHACK_OPTIONS)]
    metavars = {name: metavar for name, _, metavar in (option.partition("=") for option in
                                                       (*table, *WHACK_OWN_OPTIONS))}
    found = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if not word.startswith("--") or word == "--":
            raise Failure(f"ipsec whack: unexpected argument {quote(word)}", NO_PLUTO)
        given, equals, value = word[2:].partition("=")
        close = [given] if given in metavars else [name for name in metavars if name.startswith(given)]
        if len(close) != 1:
            raise Failure(f"ipsec whack: {quote('--' + given)} is " +
                          (f"ambiguous: --{', --'.join(close)}" if close else "an option that we don't know"), NO_PLUTO,
                          "" if close else "definitions of connections need libreswan's own whack or addconn")
        name = close[0]
        if not metavars[name] and equals:
            raise Failure(f"ipsec whack: --{name} takes no value", NO_PLUTO)
        if metavars[name] and not equals:
            if not rest:
                raise Failure(f"ipsec whack: --{name} needs a value: {metavars[name]}", NO_PLUTO)
            value = rest.pop()
        found.append(("username" if name in ("xauthname", "xauthuser") else name, value))
    return found


class Replies:
    """What whack of one release makes of pluto's lines: what it shows, asks and ends with.

    Up to 4.15 the last error counts and a later success takes it back; from 5.0 the first one stays.
    """

    def __init__(self, version: tuple[int, ...], *, lenient: bool = False, asynchronous: bool = False) -> None:
        self.version = version
        self.lenient = lenient  # status and lists: codes are not errors
        self.forgiving = asynchronous and version < (5,)
        self.status = OK
        self.asks = ""  # what the line just taken asks for

    def take(self, line: bytes) -> str | None:
        """What to show of a line, None for nothing.  Raises NoPluto for a line that is no reply."""
        code, text = split_code(line)
        self.asks = ""
        if code < 0:
            if self.version < (3, 30) or not line:
                return text
            raise NoPluto(f"log line missing NNN prefix: {quote(text)}")
        self.asks = {(40, 10): "password", (41, 11): "user name"}.get(
            (code, code - 30) if self.version < (5,) else (code + 30, code), "")
        if self.version >= (5,):
            if 20 <= code < 100 and self.status == OK:
                self.status = code
            shown = text if text or code == 0 else None
        else:
            if 20 <= code < 100 and not self.asks:
                self.status = OK if self.forgiving else code
            elif code not in (0, 1, 2, 5, 6) and not self.asks:
                self.status = OK
            shown = text if code == 1 and self.version >= (3, 30) else decode(line)
        if self.lenient:
            self.status = OK
        return shown


class Answers:
    """The XAUTH user name and password: given on the command line, in a file, or asked on the terminal."""

    def __init__(self, host: Host, options: Mapping[str, str]) -> None:
        self.host = host
        self.options = options

    def __call__(self, what: str) -> bytes:
        """The answer as pluto reads it, NUL at its end.  Raises Failure: nobody there to ask, too long."""
        given = self.options.get("xauthpass" if what == "password" else "username")
        if given is None and what == "password" and "xauthpass-file" in self.options:
            name = self.options["xauthpass-file"]
            try:
                given = self.host.read(name).partition("\n")[0]
            except OSError as error:
                raise Failure(f"ipsec whack: --xauthpass-file {name}: {error.strerror}", NO_PLUTO) from None
        if given is None:
            given = self.host.ask(f"Enter {what}: ", secret=what == "password",
                                  hint="give --username and --xauthpass-file FILE")
        answer = encode(given) + b"\0"
        if len(answer) > XAUTH_ROOM:
            raise Failure(f"ipsec whack: the {what} is longer than {XAUTH_ROOM - 1} bytes", NO_PLUTO)
        return answer


def native_whack(host: Host, words: Sequence[str], *, timeout: float | None = None) -> int:
    """Do what whack does with the words, without it; whack's exit status.  Raises Failure.

    `timeout` None: PLUTO_TIMEOUT, or none for what waits for a peer (initiate, route, terminate, rekey).
    """
    given = whack_words(words)
    options = dict(given)
    if "help" in options or "version" in options:
        host.print(whack_help() if "help" in options else f"ipsec.pyz {VERSION}, for libreswan {RELEASES[0]} to "
                   f"{RELEASES[-1]}")
        return OK
    if "timeout" in options:
        timeout = seconds(options["timeout"])
    elif timeout is None and not options.keys() & WAITS_FOR_PEER:
        timeout = PLUTO_TIMEOUT
    for name, end in (("ctlsocket", ""), ("rundir", "/pluto.ctl"), ("ctlbase", "/pluto.ctl")):
        if name in options:
            host.ctlsocket = options[name] + end
    own = {option.partition("=")[0] for option in WHACK_OWN_OPTIONS}
    message, version = whack_message(host, [(name, value) for name, value in given if name not in own], timeout)
    names = options.keys() - own
    return show_replies(
        host, message, version, options, timeout, lenient=any("status" in name or name.startswith(("list", "show"))
                                                              for name in names),
        must_speak=bool(version and version < (5,) and names & {"terminate", "delete"}))


def whack_message(host: Host, options: Sequence[tuple[str, str]],
                  timeout: float | None = PLUTO_TIMEOUT) -> tuple[bytes, tuple[int, ...] | None]:
    """The message for the running pluto, and its version: None when it is one that every release understands.

    Raises NoPluto, TimedOut, Failure (whack's status) for options that make no request.
    """
    names = {name for name, _ in options}
    if names in ({"status"}, {"shutdown"}):
        return basic_message(BASIC_STATUS if names == {"status"} else BASIC_SHUTDOWN), None
    if not names:
        raise Failure("ipsec whack: no action specified", NO_PLUTO, "see ipsec whack --help")
    request = Request(probe(host, PLUTO_TIMEOUT if timeout is None else timeout))
    for name, value in options:
        request.option(name, value)
    request.check()
    return request.pack(), request.version


def pluto_lines(host: Host, *words: str, timeout: float | None = PLUTO_TIMEOUT) -> Iterator[str]:
    """The lines of pluto's answer to a command line of whack's, without codes, as they come.

    Raises NoPluto, TimedOut, Failure; all when a line is asked for.
    """
    message, _ = whack_message(host, whack_words(words), timeout)
    with Conversation(host, timeout) as talk:
        talk.say(message)
        for line in talk.lines():
            yield split_code(line)[1]


WAITS_FOR_PEER = frozenset(("initiate", "route", "ondemand", "terminate", "down", "delete", "suspend", "rekey-ike",
                            "rekey-ipsec", "rekey-child", "delete-ike", "delete-child", "down-ike", "down-child"))


def seconds(text: str) -> float:
    """A time-out as the user wrote it.  Raises Failure(USAGE)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise Failure(f"ipsec: --timeout {quote(text)}: not a number of seconds", USAGE)
    return value


def show_replies(host: Host, message: bytes, version: tuple[int, ...] | None, options: Mapping[str, str],
                 timeout: float | None, *, lenient: bool = False, must_speak: bool = False) -> int:
    """Send the message, print what pluto says and answer what it asks; whack's exit status.  Raises Failure.

    Without a `version`, lines are held back until the status has told it.  `must_speak`: a pluto that says nothing
    does not know the connection (up to 4.15 it has no other way to say so).
    """
    answers = Answers(host, options)
    held: list[bytes] = []
    spoke = False
    asynchronous = "asynchronous" in options
    replies = Replies(version or version_key(RELEASES[-1]), lenient=lenient, asynchronous=asynchronous)
    with Conversation(host, timeout) as talk:
        if version is None and talk.packets:
            version = replies.version
        talk.say(message)
        for line in talk.lines():
            spoke = True
            if version is None:
                held.append(line)
                found = setting(split_code(line)[1], "pluto_version")
                if not found and len(held) < 10_000:
                    continue
                version = replies.version = leading_version(found)
            for known in held or (line,):
                shown = replies.take(known)
                if shown is not None:
                    host.print(shown if shown.isprintable() else printable(shown))
                if replies.asks:
                    host.flush()
                    talk.say(answers(replies.asks))
            held = []
        for known in held:
            shown = replies.take(known)
            if shown is not None:
                host.print(shown if shown.isprintable() else printable(shown))
    if must_speak and not spoke and not asynchronous:
        raise Failure(f'ipsec whack: no connection named {quote(options["name"])}', UNKNOWN_NAME)
    return replies.status


def leading_version(text: str) -> tuple[int, ...]:
    """The number that a version begins with (`5.2-17-gabc`), the newest release for none."""
    numbers = []
    for part in text.split("."):
        digits = part[:len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or version_key(RELEASES[-1])


def whack_help() -> str:
    """The options of our own whack."""
    names = dict.fromkeys(row[0] for row in table_rows(WHACK_OPTIONS))
    return "Usage: ipsec whack OPTION...\n" + "\n".join(f"  --{name.replace('=', ' ')}"
                                                         for name in (*names, *WHACK_OWN_OPTIONS))


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
    None means that the command reads its words itself (they belong to another program's grammar).  A `fallback`
    stands in where libreswan's own program of that name is not installed.
    """

    def __init__(self, function: Callable[[Host, Args], int], names: str, operands: str, summary: str,
                 options: Sequence[Opt] | None, details: str, hidden: bool, fallback: bool) -> None:
        self.function = function
        self.name, *self.aliases = names.split()
        self.operands = operands
        self.summary = summary
        self.options = options
        self.details = details
        self.hidden = hidden
        self.fallback = fallback

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
            hidden: bool = False,
            fallback: bool = False) -> Callable[[Callable[[Host, Args], int]], Callable[[Host, Args], int]]:
    """Register a function as the command `names` (the name, then aliases).

    Every built-in name may also be written with two leading dashes, as in 5.x (`ipsec --checknss`).
    """

    def register(function: Callable[[Host, Args], int]) -> Callable[[Host, Args], int]:
        entry = Command(function, names, operands, summary, options, details, hidden, fallback)
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


# --- configuration: what libreswan's own programs say of it, and what a report shows ---------------------------------

def own_reader(host: Host, args: Args, name: str) -> Config:
    """The configuration for a command that stands in for libreswan's program.  Raises ConfigError (3, as theirs)."""
    host.warn(f"{name}: libreswan's own program is not installed; the built-in reader answers")
    config = Config(host, args.value("--config"))
    config.conns()
    for problem in config.problems:
        if problem.fatal:
            raise ConfigError(f"ipsec {name}: cannot load config {quote(config.name)}: {problem}", 3)
        host.warn(f"{name}: {problem}")
    return config


ADDCONN_LISTS = {"--listall": "ignore add ondemand start keep", "--listadd": "add", "--listroute": "ondemand start",
                 "--liststart": "start", "--listignore": "ignore"}


@command("addconn", "[CONN...]", summary="check ipsec.conf, list connections, load them into pluto", fallback=True,
         options=(Opt("--config", "FILE", "the configuration; - is standard input"),
                  Opt("--checkconfig", None, "only say whether the configuration can be loaded"),
                  Opt("--configsetup", None, "print the settings of config setup for a shell"),
                  Opt("--varprefix", "PREFIX", "what the variables of --configsetup begin with"),
                  Opt("--noexport", None, "leave out the word export"),
                  Opt("--liststack", None, "print the protocol stack"),
                  *(Opt(name, None, f"print the names of connections with auto={' or '.join(autos.split())}")
                    for name, autos in ADDCONN_LISTS.items()),
                  Opt("--autoall --addall", None, "load all with auto= (needs libreswan's addconn)"),
                  Opt("--ctlsocket --ctlbase", "FILE", "pluto's control socket"),
                  Opt("--verbose --debug", None, "say more")),
         details="Libreswan's own addconn does this where it is installed; else the built-in reader answers all but "
                 "the loading of connections.")
def addconn_command(host: Host, args: Args) -> int:
    """`ipsec addconn`: 0; 3 when the configuration can't be loaded; 127 for what only libreswan's addconn can."""
    if args.operands or args.flag("--autoall"):
        raise Missing(f"ipsec addconn: loading connections needs libreswan's own program in {host.execdir}", NOT_FOUND)
    lists = [name for name in ADDCONN_LISTS if args.flag(name)]
    if not lists and not any(args.flag(name) for name in ("--checkconfig", "--configsetup", "--liststack")):
        raise Failure("ipsec addconn: nothing to do", USAGE, "name what to list or check; see ipsec addconn --help")
    config = own_reader(host, args, "addconn")
    if args.flag("--checkconfig"):
        return OK
    if "--listall" in lists:
        lists = ["--listall"]
    elif "--listroute" in lists and "--liststart" in lists:
        lists.remove("--liststart")
    for name in lists:
        names = [f"{conn.name} " for conn in config.conns() if conn.auto in ADDCONN_LISTS[name].split()]
        host.print("".join(names), end="\n" if name in ("--listall", "--listignore") else "")
    if args.flag("--liststack"):
        host.print(config.setup("protostack", "xfrm"))
    elif args.flag("--configsetup"):
        export = "" if args.flag("--noexport") else "export"
        values = {"configfile": config.name, "ctlsocket": args.value("--ctlsocket", host.ctlsocket)}
        prefix = args.value("--varprefix")
        values.update({prefix + key: value for key, value in setup_values(host, config)})
        for key, value in {f"{prefix}confreadstatus": "", **values}.items():
            # the original leaves quotes as they are, and whoever evals it runs what is behind them
            host.print(f"{export} {key.replace('-', '_')}='" + value.replace("'", "'\\''") + "'")
    return OK


def setup_values(host: Host, config: Config) -> Iterator[tuple[str, str]]:
    """Keyword and value of `config setup`, with libreswan's defaults for those that are not set (confread.c)."""
    on = "audit-log dnssec-enable ike-socket-errqueue listen-udp logappend logip logtime uniqueids".split()
    defaults = {"dumpdir": "/run/pluto", "ipsecdir": host.confddir, "nssdir": host.nssdir, "secretsfile": host.secrets,
                "xfrmlifetime": "30", "nhelpers": "-1"}
    for key, kind in keywords(True).items():
        value = config.setup(key, defaults.get(key, ""))
        if kind == _BOOL:
            yield key, "yes" if config.flag(key, key in on) else "no"
        elif value and kind != "obsolete":
            yield key, value
            if key == "logfile":
                yield "plutostderrlog", value


@command("readwriteconf", summary="print ipsec.conf with also=, %default and includes resolved", fallback=True,
         options=(Opt("--config", "FILE", "the configuration; - is standard input"),
                  Opt("--conn", "CONN", "only this connection"),
                  Opt("--nosetup", None, "leave config setup out"),
                  Opt("--rootdir", "DIR", "look for included files below DIR (as ipsec --root)"),
                  Opt("--verbose --debug", None, "say more")),
         details="Libreswan's own readwriteconf does this where it is installed; else the built-in reader does, which "
                 "prints what is configured and adds no defaults.")
def readwriteconf_command(host: Host, args: Args) -> int:
    """`ipsec readwriteconf`: 0, or 3 when the configuration can't be loaded."""
    if args.flag("--rootdir"):
        host = Host(host.env, root=args.value("--rootdir"), conf=host.conf)
    for line in config_lines(own_reader(host, args, "readwriteconf"), args.value("--conn"), not args.flag("--nosetup")):
        host.print(line)
    return OK


def config_lines(config: Config, name: str = "", setup: bool = True) -> Iterator[str]:
    """The lines of ipsec.conf that say the same with nothing left to resolve; of one connection with `name`."""
    if setup:
        yield "config setup"
        for key in keywords(True):
            if value := config.setup(key):
                yield f"\t{key}={quoted_value(value)}"
        yield ""
    for conn in config.conns():
        if name in ("", conn.name):
            yield f"conn {conn.name}"
            if conn.alsos:
                yield f"\t#also = {' '.join(conn.alsos)}"
            keys = sorted(conn.settings, key=lambda key: (not key.startswith("left"), not key.startswith("right"),
                                                          key.startswith(("x-", "x_"))))
            for key in keys:
                value = conn.settings[key].value
                yield f"\t{key}={value if key[:2] in ('x-', 'x_') else quoted_value(value)}"


def quoted_value(value: str) -> str:
    """A value as ipsec.conf has it: quoted or in braces where a bare one would be read otherwise."""
    if value and split_value(value) == (value, ""):
        return value
    return f"{{{value}}}" if '"' in value else f'"{value}"'


@command("_secretcensor", "[FILE...]", summary="show ipsec.secrets without the secrets", hidden=True)
def secretcensor_command(host: Host, args: Args) -> int:
    """`ipsec _secretcensor`: the files, or standard input, as barf shows them; 1 when a file can't be read."""
    return filtered(host, args.operands, lambda chunks: (
        f"{printable(line)}\n" for line in censor_secrets(split_lines(chunks))))


@command("_keycensor", "[FILE...]", summary="show a text without the keys and secrets in it", hidden=True)
def keycensor_command(host: Host, args: Args) -> int:
    """`ipsec _keycensor`: the files, or standard input, as barf shows logs and configuration."""
    return filtered(host, args.operands, redactor_of(host).stream)


def filtered(host: Host, names: Sequence[str], censor: Callable[[Iterable[bytes]], Iterable[str]]) -> int:
    """Print files, or standard input, through a censor.  1 when a file can't be read."""
    status = OK
    for name in names or ["-"]:
        try:
            for text in censor(host.stdin() if name == "-" else host.chunks(name)):
                host.print(text, end="")
        except BrokenPipeError:
            raise
        except OSError as error:
            host.warn(f"{name}: {error.strerror}")
            status = ERROR
    return status


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
    program = program_of(host, name) if entry is None or (entry.fallback and host.live) else None
    if entry is not None and program is not None:
        # the one global option that such a program knows under the same name; it does not look at IPSEC_CONF
        named = any(word.partition("=")[0] == "--config" for word in rest)
        rest = rest if named or host.conf == "/etc/ipsec.conf" else ["--config", host.conf, *rest]
    elif entry is not None:
        asks = rest[:1] in (["--help"], ["-h"]) or (rest == ["help"] and not entry.operands)
        if asks and entry.options is not None:
            host.print(describe(entry))
            return OK
        return entry.function(host, entry.parse(rest))
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
