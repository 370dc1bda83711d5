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

Sections 1, 2, 10 and 12 need no others to start: the archive loads those first, then what the command needs of the rest
(build.py finds that out by the names that are used, so don't look one up by a string).

Imports are rationed: every `ipsec` on a gateway pays for them, and the smallest hosts (python3-minimal) lack half of
the standard library.  At import time only what the interpreter has loaded anyway; the rest where it is used.  Of socket
and sqlite3 we import the half that is in C (_socket, _sqlite3) where that does: it loads in a tenth of the time.
"""
from __future__ import annotations

import _thread
import errno
import os
import sys
import time

TYPE_CHECKING = False  # typing costs 3 ms and is not needed at run time
if TYPE_CHECKING:
    import _socket
    import re
    import subprocess
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType
    from typing import Any, Callable, Literal, NoReturn, TextIO, TypeVar
    from typing import NamedTuple as Record
    Kind = TypeVar("Kind")

    T = TypeVar("T")


# =====================================================================================================================
# 1. Constants and errors
#
# The version, the exit statuses (one table), the one exception that every section raises, and the base of the value
# classes.  Used by all sections.  Touches nothing.
# =====================================================================================================================

VERSION = "0.1.0"

# The last words of an internal error.  SECURITY.md says how to report a secret that was shown.
REPORT_IT = "please report it to the issue tracker of ipsec.pyz, with the output of `ipsec version --verbose`"

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
NO_KEY = 20  # showhostkey's status when there is no such key

# Statuses of `ipsec import` beside 1 and 4 (ipsec_import(8))
IMPORT_UNREADABLE, IMPORT_FORMAT, IMPORT_CORRUPT, IMPORT_PASSWORD, IMPORT_DUPLICATE = range(10, 15)
LSB_NO_RIGHT, LSB_NOT_INSTALLED = 4, 5  # of the other actions

LSB_DEAD, LSB_STOPPED, LSB_UNKNOWN = 1, 3, 4  # of `status`: dead with a pid file, not running, can't tell
UNKNOWN_NAME = 21  # RC_UNKNOWN_NAME
NOT_ROUTED = 25  # RC_ROUTE: pluto up to 4.15 can't route a connection, or does not have it


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


class Denied(Failure):
    """The system refused a right to a program that was run."""


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


def pyroute2_module(name: str, feature: str) -> Any:
    """A module of the embedded pyroute2, imported without the package's own __init__: that imports all of pyroute2,
    ten times what we use.  Raises Missing."""
    import types
    if "pyroute2" not in sys.modules:
        package = types.ModuleType("pyroute2")
        package.__path__ = [os.path.join(entry, "pyroute2") for entry in sys.path]
        sys.modules["pyroute2"] = package
    return need(name, feature)


# =====================================================================================================================
# 2. Host
#
# The one door to the outside: paths, files, programs, sockets, output.  Nothing else in this file opens, runs or
# connects on its own; tests hand in another Host.  Used by all later sections.  Facts: ipsec(8) and the scripts of
# libreswan 3.29, 4.10 and 5.4 for the environment; hier(7).
# =====================================================================================================================

SYSTEM_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
EXEC_DIRS = ("/usr/libexec/ipsec", "/usr/lib/ipsec", "/usr/local/libexec/ipsec", "/usr/local/lib/ipsec",
             "/usr/lib64/ipsec")
DEFAULT_NSSDIRS = ("/var/lib/ipsec/nss", "/etc/ipsec.d")  # of 4.0 and later, of 3.x
PACKAGE_MANAGERS = {"apt-get": "install", "dnf": "install", "yum": "install", "zypper": "install", "apk": "add",
                    "pacman": "-S", "opkg": "install", "emerge": "-a"}
READ_CHUNK = 1 << 16
# Bounds of what is read.  Data that may be larger is streamed, as Host.chunks() does, and never in memory as a whole.
TEXT_LIMIT = 32 << 20  # bytes of a file that is read as text: room for 50,000 connections
TEXT_LINE = 8 << 20  # bytes of a line of text
GLOB_LIMIT = 1000  # directories that a pattern with wildcards may look into
PATTERN_LIMIT = 1000  # patterns that one with {a,b} may stand for
FILES_LIMIT = 20_000  # files that a configuration may include
MOUNTS_AGE = 1.0  # seconds after which the table of mounts is read again
SILENT_AGE = 60.0  # seconds after which a file system that did not answer is tried again
# File systems that the kernel serves from a local disk or from memory.  All others, such as NFS and FUSE, depend on a
# server or a program, which may fall silent.
LOCAL_TYPES = frozenset("""
    aufs bcachefs binfmt_misc bpf btrfs cgroup cgroup2 configfs cramfs debugfs devpts devtmpfs efivarfs erofs exfat
    ext2 ext3 ext4 f2fs fusectl hugetlbfs iso9660 jffs2 jfs mqueue msdos nilfs2 nsfs ntfs3 overlay proc pstore ramfs
    reiserfs rootfs rpc_pipefs securityfs selinuxfs squashfs sysfs tmpfs tracefs ubifs udf vfat xfs zfs""".split())
AF_INET, AF_INET6 = 2, 10  # of socket(2), without importing it
NETLINK_XFRM = 6  # linux/netlink.h
# struct nlmsghdr (length, type XFRM_MSG_GETSPDINFO, flag NLM_F_REQUEST, sequence, port) and 32 bits of flags
XFRM_QUESTION = b"".join(value.to_bytes(size, sys.byteorder)
                         for value, size in ((20, 4), (37, 2), (1, 2), (0, 4), (0, 4), (0, 4)))


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


_ESCAPES: dict[int, str] = {}


def printable(text: str) -> str:
    """Return the text with control characters, undecodable bytes and characters that change the direction of writing
    escaped (\\x1b), so that it can't drive a terminal.  Line ends and tabs stay."""
    if text.isprintable():
        return text
    if not _ESCAPES:
        codes = [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
        _ESCAPES.update({code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in codes})
        _ESCAPES.update({0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)})
    return text.translate(_ESCAPES)


def quote(word: str) -> str:
    """A word from outside as it can be shown in a message: quoted, control characters escaped."""
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogateescape").decode("latin-1")
                         for c in word) + '"'


def error_text(error: Exception) -> str:
    """An error as one line of text: `/etc/x: Permission denied`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is there, which it is not when we were started without, and leads to a terminal."""
    return stream is not None and stream.isatty()


# Where packages are recorded: file, the prefix of the line that names one, the prefix of its version
PACKAGE_LISTS = (("/var/lib/dpkg/status", "Package: ", "Version: "), ("/lib/apk/db/installed", "P:", "V:"),
                 ("/usr/lib/opkg/status", "Package: ", "Version: "))


class Lock:
    """A lock that a descriptor holds; given back at the end of a `with` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)


def check_link(path: str, info: os.stat_result) -> None:
    """Raise PermissionError for a symbolic link that neither root nor the caller made; `info` is its lstat(2).

    Such a link would lead a write to a file of its maker's choice.  fs.protected_symlinks stops that only in
    directories with the sticky bit, and not for programs that resolve links on their own.
    """
    import stat
    if stat.S_ISLNK(info.st_mode) and info.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, f"a link of user {info.st_uid} is not followed", path)


class Place(Record):
    """Where a path leads: an open directory, and a name in it that is no link, with its lstat(2) if it exists.

    `is_link` tells whether the last part of the path was a link.  `is_descriptor` marks a name like /proc/self/fd/1,
    to which /dev/stdout leads; `info` is the stat(2) of the open file then.
    """

    directory: int
    base: str
    info: os.stat_result | None
    is_link: bool
    is_descriptor: bool = False


def find_place(name: str, root: str, check: Callable[[str, os.stat_result], None]) -> Place:
    """Follow the links of a path one by one, with `root` as `/`.  The caller closes the directory.

    No other process can exchange what was checked, because each part is opened in the directory before it.  `check`
    gets the path and lstat(2) of each directory and link on the way.  Raises OSError, also those of `check`.
    """
    import stat
    if not name.startswith("/") and not root:
        name = os.path.join(os.getcwd(), name)
    opened, names = [open_part(root or "/", None, False)], [""]
    todo = [part for part in reversed(name.split("/")) if part not in ("", ".")]
    links, is_link = 0, False
    try:
        check("/", os.fstat(opened[0]))
        while todo:
            part = todo.pop()
            if part == "..":
                for fd in opened[1:][-1:]:
                    os.close(fd)
                    del opened[-1], names[-1]
                continue
            try:
                fd = open_part(part, opened[-1], not todo)
            except FileNotFoundError:
                if todo:
                    raise
                return Place(opened.pop(), part, None, is_link)
            opened.append(fd)
            names.append(part)
            info = os.fstat(fd)
            if stat.S_ISLNK(info.st_mode):
                check("/".join(names), info)
                links += 1
                if links > 40:  # as the kernel's MAXSYMLINKS
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                is_link = is_link or not todo
                target = os.readlink("", dir_fd=fd)
                os.close(opened.pop())
                names.pop()
                if not todo and (real := open_file_behind(part, opened[-1], info)):
                    return Place(opened.pop(), part, real, is_link, True)
                if target.startswith("/"):
                    for fd in opened[1:]:
                        os.close(fd)
                    del opened[1:], names[1:]
                todo += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
            elif todo:
                check("/".join(names), info)
            else:
                os.close(opened.pop())
                return Place(opened.pop(), part, info, is_link)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    finally:
        for fd in opened:
            os.close(fd)


def open_part(part: str, directory: int | None, is_last: bool) -> int:
    """Return a descriptor (O_PATH) of a part of a path, of the link itself if it is one.  Raises OSError."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    if not is_last:
        try:
            return os.open(part, flags | os.O_DIRECTORY, dir_fd=directory)  # mounts a directory of autofs, too
        except NotADirectoryError:
            return os.open(part, flags, dir_fd=directory)  # a link
    return os.open(part, flags, dir_fd=directory)


def open_file_behind(part: str, directory: int, link: os.stat_result) -> os.stat_result | None:
    """Return the stat(2) of the open file that a link of /proc/PID/fd stands for (proc(5)), None for another link.

    Its text is no path if the file is a pipe, for example.  A regular file of another process is left to its path.
    """
    import stat
    if not os.path.isdir("/proc/self/fd") or link.st_dev != os.stat("/proc/self").st_dev:
        return None
    info = os.stat(part, dir_fd=directory)
    is_plain = stat.S_ISREG(info.st_mode) and not is_own_descriptor(part, info)
    return None if is_plain or stat.S_ISDIR(info.st_mode) else info


def is_own_descriptor(part: str, info: os.stat_result) -> bool:
    """Return whether the number in `part` is that of a descriptor of this process for the file of `info`."""
    try:
        return os.path.samestat(os.fstat(int(part)), info)
    except (OSError, ValueError):
        return False


class Replacement:
    """A file that is written apart and takes the place of `name` at commit(): the old content or the new, whole.

    Links are followed if root or the caller made them (check_link).  The file that a link leads to must belong to one
    of the two as well, unless it is of a service: systemd-resolved owns the file behind /etc/resolv.conf.
    The new file has no name until commit() (O_TMPFILE of open(2)).  It gets one that the next run clears away for the
    moment in which it replaces another, and from the start where the file system has no files without a name.
    A device or a pipe is written to directly.  A file that can't be renamed over, because a container has mounted it,
    is rewritten in place at commit().

    With a `mode`, the file has it; without one, owner and mode of the earlier file stay (0644 for a new file).  Each
    method raises OSError with the name.
    """

    def __init__(self, name: str, root: str = "", mode: int | None = None, of_service: bool = False) -> None:
        self.name = name
        self.mode = mode
        self.of_service = of_service
        self.fd = self.directory = -1
        self.work = ""  # the name that the file has now, if any
        self.is_direct = self.in_memory = False
        try:
            self.place = find_place(name, root, check_link)
            self.directory = self.place.directory
            self._open()
        except OSError as error:
            self.drop()
            link = error.filename if error.errno == errno.EPERM and str(error.filename).startswith("/") else name
            nobody = "nobody reads from this pipe" if error.errno == errno.ENXIO else error.strerror
            raise OSError(error.errno, nobody, link) from None

    def _open(self) -> None:
        """Open what is written to: the device or pipe, or the new file."""
        import stat
        info = self.place.info
        if info is not None and not self.place.is_descriptor:
            foreign = info.st_uid not in (0, os.geteuid()) and not self.of_service
            if foreign and (stat.S_ISFIFO(info.st_mode) or (self.place.is_link and stat.S_ISREG(info.st_mode))):
                raise PermissionError(errno.EPERM, f"it belongs to user {info.st_uid}, so it is not written to",
                                      self.name)
        if info is not None and stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if info is not None and (self.place.is_descriptor or not stat.S_ISREG(info.st_mode)):
            self.is_direct = True
            self.fd = self._open_target()
        else:
            self._open_apart(0o644 if self.mode is None else self.mode)

    def _open_target(self) -> int:
        """Return a descriptor for writing to the target itself; raises OSError if another has taken its place."""
        info = self.place.info
        if self.place.is_descriptor and info is not None and is_own_descriptor(self.place.base, info):
            return os.dup(int(self.place.base))  # it has the same offset, so that output of others goes behind it
        follow = 0 if self.place.is_descriptor else os.O_NOFOLLOW
        fd = os.open(self.place.base, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | follow,
                     dir_fd=self.directory)
        if info is None or not os.path.samestat(info, os.fstat(fd)):
            os.close(fd)
            raise OSError(errno.EBUSY, "another program replaced it meanwhile")
        os.set_blocking(fd, True)
        return fd

    def _open_apart(self, mode: int) -> None:
        """Open the new file: without a name, where the file system lacks that with one, in memory on a read-only disk
        whose file can be written all the same, because it is mounted from another."""
        if os.path.isdir("/proc/self/fd"):
            try:
                self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.directory)
                return
            except OSError as error:
                if error.errno == errno.EROFS and self.place.info is not None:
                    os.close(self._open_target())
                    self.fd = os.memfd_create("ipsec", os.MFD_CLOEXEC)
                    self.in_memory = True
                    return
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
        while self.fd < 0:
            work = self._free_name()
            try:
                self.fd = os.open(work, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode,
                                  dir_fd=self.directory)
            except FileExistsError:
                continue
            if lock_at_once(self.fd) and os.fstat(self.fd).st_nlink:
                self.work = work
            else:  # before the lock, another run took it for the file of a killed one: it removes or removed the name
                os.close(self.fd)
                self.fd = -1

    def _free_name(self) -> str:
        """Return the name of the new file, after removing what a killed run left under it.

        A run that lives holds a lock on its file.  Raises OSError(EBUSY) if one run does so for 10 seconds.
        """
        work = os.fsdecode(b"." + os.fsencode(self.place.base)[:240] + b".ipsec")
        deadline = time.monotonic() + 10
        waited_for = 0  # the number of the inode
        while True:
            try:
                fd = os.open(work, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
                             dir_fd=self.directory)
            except FileNotFoundError:
                return work
            except OSError:  # a link, a socket, a file of somebody else: none of a run that lives
                os.unlink(work, dir_fd=self.directory)
                return work
            try:
                info = os.fstat(fd)
                if info.st_ino != waited_for:
                    waited_for, deadline = info.st_ino, time.monotonic() + 10
                is_late = time.monotonic() > deadline
                if lock_at_once(fd) or (is_late and info.st_uid not in (0, os.geteuid())):
                    if os.path.samestat(info, os.stat(work, dir_fd=self.directory, follow_symlinks=False)):
                        os.unlink(work, dir_fd=self.directory)
                        return work
                elif is_late:
                    raise OSError(errno.EBUSY, "another run of ipsec is writing it")
            except FileNotFoundError:
                return work
            finally:
                os.close(fd)
            time.sleep(0.01)

    def write(self, data: bytes) -> None:
        """Append data."""
        try:
            write_all(self.fd, data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None

    def commit(self) -> None:
        """Put the whole file in place."""
        try:
            if not self.is_direct:
                self._put_in_place()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None
        finally:
            self.drop()

    def _put_in_place(self) -> None:
        directory, base, info = self.directory, self.place.base, self.place.info
        if info is not None and self.mode is None and not self.in_memory:
            os.fchown(self.fd, info.st_uid, info.st_gid)
            os.fchmod(self.fd, info.st_mode & 0o7777)
        os.fsync(self.fd)
        if self.in_memory:
            return self._rewrite()
        if not self.work:
            work = self._free_name()
            if self._link(base):
                return
            lock_at_once(self.fd)
            while not self._link(work):
                work = self._free_name()
            self.work = work
        try:
            os.rename(self.work, base, src_dir_fd=directory, dst_dir_fd=directory)
            self.work = ""
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self._rewrite()

    def _link(self, name: str) -> bool:
        """Give the file without a name this one; return False if there is such a file."""
        try:
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self.directory, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def _rewrite(self) -> None:
        """Copy the new content into the earlier file."""
        fd = self._open_target()
        try:
            os.ftruncate(fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
            while data := os.read(self.fd, READ_CHUNK):
                write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def drop(self) -> None:
        """Give up what is not in place, and close everything; of no effect after commit()."""
        if self.work:
            os.unlink(self.work, dir_fd=self.directory)
        for fd in (self.fd, self.directory):
            if fd >= 0:
                os.close(fd)
        self.fd = self.directory = -1
        self.work = ""


def lock_at_once(fd: int) -> bool:
    """Take the lock of flock(2) on a file; return False if another process has it.  True where there are no locks."""
    import fcntl
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def why_untrusted(directory: str) -> str:
    """Return why root must not run programs of a directory; empty if only root can change what the path leads to.

    Counted are the directory, all above it, and those that links on the way lie in.  The sticky bit of /tmp changes
    nothing: others can make files there.
    """
    import stat

    def check(path: str, info: os.stat_result) -> None:
        if not stat.S_ISLNK(info.st_mode) and (info.st_uid != 0 or info.st_mode & 0o022):
            raise PermissionError(errno.EPERM, "others than root can write", path)

    if not directory.startswith("/"):
        return "it is not an absolute path"
    try:
        os.close(find_place(f"{directory}/x", "", check).directory)
    except (FileNotFoundError, NotADirectoryError):
        return ""  # nobody but root can make it
    except OSError as error:
        return f"{error.strerror} {error.filename}"
    return ""


def resolve_links(name: str, root: str, stops: Collection[str]) -> tuple[str, str]:
    """Return where `name` really lies below `root`, symbolic links resolved as if root were `/`, and an empty string.

    If the way leads through one of the paths `stops`, return the way so far and that path; nothing beyond it is
    touched.  Raises OSError(ELOOP).
    """
    todo = [part for part in reversed(name.split("/")) if part]
    if name[:1] not in ("", "/") and not root:
        todo += [part for part in reversed(os.getcwd().split("/")) if part]
    done: list[str] = []
    links = 0
    if (root or "/") in stops:
        return root, root or "/"
    while todo:
        part = todo.pop()
        if part == ".":
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/".join((root, *done, part))
        if here in stops:
            return here, here
        try:
            target = os.readlink(here)
        except (OSError, ValueError):
            done.append(part)
            continue
        links += 1
        if links > 40:  # as the kernel's MAXSYMLINKS
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        if target.startswith("/"):
            done.clear()
        todo.extend(piece for piece in reversed(target.split("/")) if piece)
    return "/".join((root, *done)), ""


class Mounts:
    """The mounts of this process whose file systems may not answer.

    `silent` are those that did not: when they were asked, for which path, and how many seconds that lasted.
    """

    def __init__(self) -> None:
        self.silent: dict[str, tuple[float, str, float]] = {}
        self._points: frozenset[str] = frozenset()
        self._read = 0.0  # the time of the last look at the table of mounts; 0 if there was none

    def that_may_hang(self) -> frozenset[str]:
        """Return the mount points of file systems that may not answer; `/` if the table of mounts can't be read."""
        now = time.monotonic()
        if not self._read or now - self._read > MOUNTS_AGE:
            self._read = now
            self._points = mounts_that_may_hang()
        return self._points

    def is_silent(self, mount: str) -> bool:
        """Return whether the file system did not answer in the last SILENT_AGE seconds."""
        return mount in self.silent and time.monotonic() - self.silent[mount][0] < SILENT_AGE


def mounts_that_may_hang() -> frozenset[str]:
    """Return the mount points whose file system is not one of LOCAL_TYPES, from /proc/self/mountinfo (proc(5)); `/` if
    that file can't be read."""
    try:
        with open("/proc/self/mountinfo", "rb", buffering=0) as stream:
            table = stream.readall()
    except OSError:
        return frozenset("/")
    mounts: dict[str, bool] = {}
    for line in decode(table).splitlines():
        # 36 35 98:0 /subtree /mount/point options optional-fields… - type source options
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ", 5)[4]
        if "\\" in point:  # a blank is \040
            for character in " \t\n\\":
                point = point.replace(f"\\{ord(character):03o}", character)
        # the kernel mounts nothing on demand there but its own binfmt_misc
        mounts[point] = rest.partition(" ")[0] not in LOCAL_TYPES and not point.startswith("/proc/sys/")
    return frozenset(point for point, may_hang in mounts.items() if may_hang)


MOUNTS = Mounts()


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
        self.patience = 5.0  # seconds that a file system may take to answer, see within()
        if self.root and not self.within(self.root, lambda: os.path.isdir(self.root), ""):
            raise Failure(f"--root {root}: not a directory", USAGE)
        get = self.env.get
        # an empty variable counts as unset, as ${VAR:-default} does in the original
        self.conf = conf or get("IPSEC_CONF") or "/etc/ipsec.conf"
        self.confddir = get("IPSEC_CONFDDIR") or "/etc/ipsec.d"
        self.sbindir = self._program_dir("IPSEC_SBINDIR") or "/usr/sbin"
        self.execdir = self._program_dir("IPSEC_EXECDIR") or self._first_dir(EXEC_DIRS)
        self.rundir = rundir or get("IPSEC_RUNDIR") or "/run/pluto"
        self.ctlsocket = ctlsocket or f"{self.rundir}/pluto.ctl"
        self.given_nssdir = nssdir or get("IPSEC_NSSDIR") or ""
        self._nssdir = ""
        self.version: str | None = ""  # of libreswan, see libreswan_version()
        self.pluto: Pluto | None = None  # that listens on the control socket, see probe()
        self.children: set[int] = set()  # programs that run for us, each the leader of a session
        self._thread = _thread.get_ident()  # the one that signals interrupt
        self._starting = _thread.allocate_lock()  # held while a program is being started
        self._ending = self._deferring = False
        self._deferred = ""  # the name of a signal that waits

    def _program_dir(self, variable: str) -> str:
        """Return the directory of programs that a variable of the environment names.

        Raises Failure if this is root and others could put programs there.  The default directories need no check.
        """
        directory = self.env.get(variable, "")
        if directory and self.superuser and directory not in (*SYSTEM_PATH, *EXEC_DIRS):
            if reason := why_untrusted(directory):
                raise Failure(f"{variable}={quote(directory)}: {reason}, so root runs nothing from it",
                              hint=f"unset {variable}, or name a directory that only root can change")
        return directory

    def _first_dir(self, candidates: Sequence[str]) -> str:
        """The first directory that exists, else the first named."""
        return next((path for path in candidates if self._is_surely(path, os.path.isdir)), candidates[0])

    @property
    def nssdir(self) -> str:
        """The directory of the NSS database: the one that was given, else the installed release's own."""
        if not self._nssdir:
            self._nssdir = self.given_nssdir or self._default_nssdir()
        return self._nssdir

    def _default_nssdir(self) -> str:
        """Return where the installed release keeps its NSS database by default.

        A pluto of 4.0 or later names /var/lib/ipsec/nss in its code, unless it was built for the old directory (RHEL
        8).  Reading pluto takes 1 ms, asking whack for its version 15 ms; whack is asked where one of the two is
        absent or a script.  Without libreswan the directory is that of 4.0 and later.
        """
        new, old = DEFAULT_NSSDIRS
        code = [b"", b""]
        for place, name in enumerate(("whack", "pluto")):
            try:
                chunks = self.chunks(os.path.join(self.execdir, name), limit=TEXT_LIMIT)
                code[place] = next(chunks, b"")
                if name == "pluto":
                    code[place] += b"".join(chunks)
            except OSError:
                break
        if all(part.startswith(b"\x7fELF") for part in code):
            return new if new.encode() in code[1] else old
        return old if (self.libreswan_version() or "").startswith("3.") else new

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
        return resolve_links(name, self.root, frozenset())[0] if self.root else name

    def within(self, name: str, work: Callable[[], T], root: str | None = None) -> T:
        """Return what `work` returns, which asks the file system about `name` or something that is open there.

        Every read of this class passes here.  Where the path leads to a file system that may not answer, the work runs
        in a thread, which is given up after `patience` seconds; such a file system is not asked again for SILENT_AGE
        seconds.  `name` is a path of the reported system, or below `root`.  Raises TimeoutError, and OSError for a
        path with a NUL byte.
        """
        if "\0" in name:
            raise OSError(errno.EINVAL, "a path can't hold a NUL byte", name)
        mounts = MOUNTS.that_may_hang()
        mount = ""
        if mounts:
            base, mount = resolve_links(self.root if root is None else root, "", mounts)
            mount = mount or resolve_links(name, base.rstrip("/"), mounts)[1]
        if not mount:
            return work()
        if MOUNTS.is_silent(mount):
            raise OSError(errno.ETIMEDOUT, f"not read, as the file system on {mount} does not answer", name)
        done = _thread.allocate_lock()
        done.acquire()
        results: list[T] = []
        errors: list[BaseException] = []

        def attempt() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            done.release()

        try:
            _thread.start_new_thread(attempt, ())
        except RuntimeError:
            raise OSError(errno.EAGAIN, f"not read, as the file system on {mount} may not answer and no thread can be "
                          "made to ask it", name) from None
        if not done.acquire(timeout=self.patience):
            MOUNTS.silent[mount] = (time.monotonic(), name, self.patience)
            raise OSError(errno.ETIMEDOUT, f"no answer within {self.patience:g} s from the file system on {mount}",
                          name)
        if errors:
            raise errors[0]
        return results[0]

    def open(self, name: str) -> int:
        """A descriptor for reading the regular file `name` (or a kernel file).  A device is not opened, because that
        alone can have an effect: a watchdog starts, a tape rewinds.

        Raises OSError, with the name as the user knows it.
        """
        return self._open(name)[0]

    def _open(self, name: str) -> tuple[int, int]:
        """As open(), and the size of the file, which is 0 for most files of the kernel."""
        import stat

        def opened() -> tuple[int, os.stat_result]:
            path = self.path(name)
            follow = os.O_NOFOLLOW if self.root else 0
            info = os.stat(path, follow_symlinks=not follow)
            if not stat.S_ISREG(info.st_mode):
                return -1, info
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | follow)
            return fd, os.fstat(fd)

        try:
            fd, info = self.within(name, opened)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        if not stat.S_ISREG(info.st_mode):
            if fd >= 0:
                os.close(fd)  # another program exchanged it between the two calls
            if stat.S_ISDIR(info.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd, info.st_size

    def close(self, fd: int, name: str) -> None:
        """Close a descriptor that open() returned for `name`.  It stays open if its file system does not answer: FUSE
        and NFS ask their server when a file is closed."""
        try:
            self.within(name, lambda: os.close(fd))
        except TimeoutError:
            return

    def check_readable(self, name: str) -> None:
        """Raise OSError if `name` is not a regular file that this process may read."""
        self.close(self.open(name), name)

    def chunks(self, name: str, start: int = 0, limit: int | None = None) -> Iterator[bytes]:
        """The content of a file from the offset `start` on, piece by piece, for files of any size.

        Raises OSError, also for a file of more than `limit` bytes: before the first piece, or after so many bytes if
        the size does not tell, as with files of the kernel.
        """
        fd, size = self._open(name)
        try:
            if start:
                os.lseek(fd, start, os.SEEK_SET)
                size -= start
            done = 0
            while True:
                if limit is not None and max(size, done) > limit:
                    raise OSError(errno.EFBIG, f"larger than {limit >> 20} MiB, not read", name)
                try:
                    data = self.within(name, lambda: os.read(fd, READ_CHUNK))
                except OSError as error:
                    raise OSError(error.errno, error.strerror, name) from None
                if not data:
                    return
                done += len(data)
                yield data
        finally:
            self.close(fd, name)

    def read_at(self, fd: int, name: str, start: int, size: int) -> bytes:
        """Up to `size` bytes at the offset `start` of a descriptor that open() returned for `name`.  Raises OSError."""
        return self.within(name, lambda: os.pread(fd, size, start))

    def text_chunks(self, name: str) -> Iterator[bytes]:
        """As chunks(), for a file of text.  Raises OSError beyond TEXT_LIMIT, except for files of the kernel, which are
        long where it has many routes or sockets."""
        return self.chunks(name, limit=None if name.startswith(("/proc/", "/sys/")) else TEXT_LIMIT)

    def read(self, name: str) -> str:
        """The whole text of a file, which has at most TEXT_LIMIT bytes.  Raises OSError."""
        return decode(b"".join(self.chunks(name, limit=TEXT_LIMIT)))

    def value(self, name: str, default: str = "") -> str:
        """The text of a one-line kernel or state file without the line end; `default` when it can't be read."""
        try:
            return self.read(name).rstrip("\n")
        except OSError:
            return default

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a file of text, without their ends.  Raises OSError, also beyond TEXT_LIMIT and TEXT_LINE."""
        return split_lines(self.text_chunks(name), name)

    def stat(self, name: str, *, follow: bool = True) -> os.stat_result:
        """os.stat of the reported system's `name`.  Raises OSError."""
        if follow or not self.root:
            return self.within(name, lambda: os.stat(self.path(name), follow_symlinks=follow))
        head, tail = os.path.split(name)
        return self.within(name, lambda: os.lstat(os.path.join(self.path(head), tail)))

    def readlink(self, name: str) -> str:
        """Where the symbolic link points, as it is written.  Raises OSError."""
        head, tail = os.path.split(name)
        return self.within(head, lambda: os.readlink(os.path.join(self.path(head), tail)))

    def realpath(self, name: str) -> str:
        """Where `name` really lies on the running system, all symbolic links resolved.  Raises OSError."""
        return self.within(name, lambda: os.path.realpath(self.path(name)))

    def exists(self, name: str) -> bool:
        """True when `name` is there (a dangling link is not).  Raises TimeoutError."""
        return self._holds(name, os.path.exists)

    def isdir(self, name: str) -> bool:
        """True when `name` is a directory.  Raises TimeoutError."""
        return self._holds(name, os.path.isdir)

    def lexists(self, name: str) -> bool:
        """True when there is something of that name, be it a dangling link.  Raises TimeoutError."""
        head, tail = os.path.split(name)
        return self._holds(head, lambda path: os.path.lexists(os.path.join(path, tail)))

    def writable(self, name: str) -> bool:
        """True when this process may write to a file, or make files in a directory; False on a read-only disk.  Raises
        TimeoutError."""
        return self._holds(name, lambda path: os.access(path, os.W_OK | os.X_OK if os.path.isdir(path) else os.W_OK))

    def _holds(self, name: str, test: Callable[[str], bool], root: str | None = None) -> bool:
        """Return whether the test holds for a path, as within(); False if there can't be such a path.  Raises
        TimeoutError."""
        try:
            return self.within(name, lambda: test(self.path(name) if root is None else root + name), root)
        except TimeoutError:
            raise
        except OSError:
            return False

    def executable(self, name: str) -> bool:
        """True when `name` is a regular file that we may execute; False if its file system does not answer, which
        MOUNTS tells."""
        return self._is_surely(name, is_program)

    def _is_surely(self, name: str, test: Callable[[str], bool], root: str | None = None) -> bool:
        """As _holds(), but False if the file system does not answer."""
        try:
            return self._holds(name, test, root)
        except TimeoutError:
            return False

    def listdir(self, name: str) -> list[str]:
        """The sorted names in a directory.  Raises OSError."""
        try:
            return sorted(self.within(name, lambda: os.listdir(self.path(name))))
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None

    def glob(self, *patterns: str) -> list[str]:
        """The existing names that match, sorted by pattern, as glob(3): `*` crosses no `/` and leaves leading dots out.

        Raises TimeoutError, and OSError if the patterns look into more than GLOB_LIMIT directories.
        """
        left = [GLOB_LIMIT]
        return [name for pattern in patterns for name in self._glob(pattern, left)]

    def _glob(self, pattern: str, left: list[int]) -> list[str]:
        """Expand one pattern as glob() does.  `left` is the number of directories that may still be searched."""
        head, tail = os.path.split(pattern)
        parents = [head] if not any(c in head for c in "*?[") else self._glob(head, left)
        found = []
        for parent in parents:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.E2BIG, f"looks into more than {GLOB_LIMIT} directories", pattern)
            if not any(c in tail for c in "*?["):
                if self.exists(os.path.join(parent, tail)):
                    found.append(os.path.join(parent, tail))
                continue
            try:
                names = self.listdir(parent or ".")
            except TimeoutError:
                raise
            except OSError:
                continue
            first, star, last = tail.partition("*")
            if not star or any(c in first + last for c in "*?["):  # else without fnmatch, which takes 5 ms to import
                import fnmatch
                names = [name for name in names if fnmatch.fnmatchcase(name, tail)]
                first = last = ""
            found += [os.path.join(parent, name) for name in names
                      if name.startswith(first) and name.endswith(last) and len(name) >= len(first + last)
                      and (tail.startswith(".") or not name.startswith("."))]
        return found

    def write(self, name: str, text: str) -> None:
        """Write a small file in place: a sysctl, a file of this program.  Raises OSError, with the name."""
        try:
            place = self.within(name, lambda: find_place(name, self.root, check_link))
            try:
                fd = os.open(place.base, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
                             | os.O_NOFOLLOW, 0o644, dir_fd=place.directory)
            finally:
                os.close(place.directory)
            try:
                write_all(fd, encode(text))
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None

    def replace(self, name: str, text: str, of_service: bool = False) -> None:
        """Write a file so that whoever reads it finds the old text or the new one, whole; owner and mode stay.

        Replacement tells which links are followed, and what is written in place.  Raises OSError.
        """
        file = Replacement(name, self.root, of_service=of_service)
        try:
            file.write(encode(text))
            file.commit()
        finally:
            file.drop()

    def remove(self, name: str) -> None:
        """Remove a file if it exists.  Raises OSError."""
        path = self.path(name)
        if self.lexists(name):  # unlink(2) fails on a read-only file system also if there is no file
            try:
                os.unlink(path)
            except FileNotFoundError:
                return  # another process was faster
            except OSError as error:
                raise OSError(error.errno, error.strerror, name) from None

    def lock(self, directory: str, timeout: float = 120.0) -> Lock:
        """Hold the lock on a directory, made when missing, for a `with` block; or on the network of this process,
        /proc/self/ns/net.  Our end gives it back too, however we end, and so does becoming another program.  Raises
        TimedOut, OSError."""
        import fcntl
        def opened() -> int:
            if not os.path.exists(self.path(directory)):
                os.makedirs(self.path(directory), 0o700, exist_ok=True)
            return os.open(self.path(directory), os.O_RDONLY | os.O_CLOEXEC)

        fd = self.within(directory, opened)
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Lock(fd)
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

        System directories come first; then PATH, without its relative entries and, as root, without those of
        why_untrusted().
        """
        for directory in (self.sbindir, *SYSTEM_PATH, *self._safe_path()):
            candidate = os.path.join(directory, program)
            if self._is_surely(candidate, is_program, ""):
                return candidate
        return None

    def _safe_path(self) -> Iterator[str]:
        for directory in self.env.get("PATH", "").split(os.pathsep):
            if directory.startswith("/") and directory not in SYSTEM_PATH and (not self.superuser or self._is_surely(
                    directory, lambda path: not why_untrusted(path), "")):
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

    def _program(self, argv: Sequence[str], hint: str = "") -> str:
        """As resolve(), of argv[0].  Raises Failure also for a word with a NUL byte, which no program can get."""
        if any("\0" in word for word in argv):
            raise Failure(f"{argv[0]}: a NUL byte in an argument", NOT_EXECUTABLE)
        return self.resolve(argv[0], hint)

    def resolve(self, program: str, hint: str = "") -> str:
        """The path of `program`, a bare name or a path.  Raises Missing (status 127)."""
        found = program if "/" in program else self.which(program)
        if found is None or not self._holds(found, os.path.exists, ""):
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
        path = self._program(argv, hint)
        try:
            child = self._start(lambda: subprocess.Popen(
                [path, *argv[1:]], stdin=stdin if isinstance(stdin, int) else
                subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pass_fds,
                env=self.child_env() if env is None else dict(env), start_new_session=True))
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
            self.children.discard(child.pid)
        return Ran(SIGNALLED - child.returncode if child.returncode < 0 else child.returncode, out, err)

    def run_together(self, commands: Sequence[tuple[Sequence[str], bytes, bytes]], timeout: float) -> list[Ran]:
        """Run programs side by side and return what each left.

        A command is the argv, the standard input, and the end of that, which makes the program act (COMMIT).  All have
        their input but for the end before one gets the end.  So if this process is killed, none acts or all do: two
        writes to pipes are the only moment in between.  Raises as run() does.
        """
        import signal
        paths = [self.resolve(argv[0]) for argv, _, _ in commands]
        children: list[subprocess.Popen[bytes]] = []
        writers: list[int] = []
        try:
            for path, (argv, data, _) in zip(paths, commands):
                reader, writer = filled_pipe(data)
                writers.append(writer)
                try:
                    children.append(self._start_reading(path, argv[1:], reader))
                finally:
                    os.close(reader)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            try:  # from here on all have to act, so Ctrl-C waits for them
                for writer, (_, _, last) in zip(writers, commands):
                    write_to_reader(writer, last)
                while writers:
                    os.close(writers.pop())
                return [self._left(path, child, timeout) for path, child in zip(paths, children)]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            for writer in writers:
                os.close(writer)
            for child in children:
                if child.poll() is None:  # time is up, or not all could be started
                    self._end(child.pid)
                    child.communicate()
                self.children.discard(child.pid)

    def _start_reading(self, path: str, words: Sequence[str], reader: int) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, with a descriptor as standard input.  Raises Failure."""
        import subprocess
        try:
            child: subprocess.Popen[bytes] = self._start(lambda: subprocess.Popen(
                [path, *words], stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.child_env(),
                start_new_session=True))
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}", NOT_EXECUTABLE) from None
        return child

    @staticmethod
    def _left(path: str, child: subprocess.Popen[bytes], timeout: float) -> Ran:
        """Return what a program leaves that must not be interrupted.  Raises TimedOut, KeyboardInterrupt after it."""
        import subprocess
        interrupt = None
        while True:
            try:
                out, err = child.communicate(None, timeout)
                break
            except subprocess.TimeoutExpired:
                raise TimedOut(f"{os.path.basename(path)} did not end within {timeout:g} s") from None
            except KeyboardInterrupt as signalled:
                interrupt = signalled
        if interrupt:
            raise interrupt
        return Ran(SIGNALLED - child.returncode if child.returncode < 0 else child.returncode, out, err)

    def call(self, argv: Sequence[str], *, quiet: bool = False, timeout: float | None = None) -> int:
        """Run a program in our place, on our terminal or silently; its status.

        It may take `timeout` seconds, longer while the reader of its output keeps it waiting.  Raises Missing,
        TimedOut, and Failure when it can't be executed.
        """
        import subprocess
        child = self.spawn(argv, subprocess.DEVNULL if quiet else None, detached=False)
        try:
            while True:
                try:
                    status = child.wait(timeout)
                    break
                except subprocess.TimeoutExpired:
                    if quiet or takes_output(1):
                        raise TimedOut(f"{os.path.basename(argv[0])} did not end within {timeout:g} s",
                                       NO_PLUTO) from None
        finally:
            if child.poll() is None:  # time is up, or Ctrl-C
                child.terminate()
                child.wait()
        return SIGNALLED - status if status < 0 else status

    def relay(self, argv: Sequence[str], wait: Callable[[bytes], float | None]) -> int | None:
        """Run a program on this terminal, copy its output to standard output as it comes, and return its status.

        `wait` gets each piece of the output, an empty one first, and returns how many seconds the next may take, None
        for any time; the program is ended after that, and None is returned.  Raises Missing, Failure if the program
        can't be executed, OSError if the output can't be written.
        """
        import select
        reader, writer = os.pipe()
        try:
            child = self.spawn(argv, writer, detached=False)
        except Failure:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        seconds = wait(b"")
        try:
            while poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
                data = os.read(reader, READ_CHUNK)
                if not data:
                    status = child.wait()
                    return SIGNALLED - status if status < 0 else status
                write_all(1, data)
                seconds = wait(data)
            return None
        finally:
            os.close(reader)
            if child.poll() is None:  # time is up, or Ctrl-C
                child.terminate()
                child.wait()

    def _check_answers(self, words: Sequence[str]) -> None:
        """Raise TimeoutError if a path that a program gets in its words or its environment, or the directory of the
        control socket, is on a file system that does not answer: the program would wait for ever."""
        if MOUNTS.that_may_hang():
            paths = [word.rpartition("=")[2] if word.startswith("-") else word for word in words]
            for path in (self.conf, self.rundir, os.path.dirname(self.ctlsocket), *paths):
                if path.startswith("/"):
                    self._holds(path, os.path.exists, "")

    def spawn(self, argv: Sequence[str], output: int | None, *, detached: bool = True) -> subprocess.Popen[bytes]:
        """Start a program and leave it running, both outputs on the descriptor; detached, in a session of its own.

        Raises Missing, and Failure when it can't be executed.
        """
        import subprocess
        self.flush()
        path = self._program(argv)
        self._check_answers(argv)
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

    def is_alive(self, pid: int) -> bool:
        """Return whether a process of this number exists, also if it belongs to another user (kill(2))."""
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def stream(self, argv: Sequence[str], *, timeout: float | None = None,
               hint: str = "") -> Generator[bytes, None, None]:
        """Start a program, and give its output (both kinds) piece by piece, waiting `timeout` seconds for it in all.

        Raises Missing, TimedOut, and Failure when it failed.  Not through subprocess, which takes longer to import
        than most programs of a report take.
        """
        path = self._program(argv, hint)
        reader, writer = os.pipe()
        try:
            # the signals are SIGPIPE and SIGXFSZ, see exec()
            child = self._start(lambda: os.posix_spawn(
                path, [path, *argv[1:]], self.child_env(), setsid=True, setsigdef=(13, 25),
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                              *((os.POSIX_SPAWN_DUP2, writer, fd) for fd in (1, 2))]))
        except OSError as error:
            os.close(reader)
            raise Failure(f"{path}: {error.strerror}", NOT_EXECUTABLE, hint) from None
        finally:
            os.close(writer)
        output = self._output(path, child, reader, timeout)
        next(output)  # from here on the program ends with whoever reads it
        return output

    def _output(self, path: str, child: int, reader: int, timeout: float | None) -> Generator[bytes, None, None]:
        """What a started program writes into the pipe, until its end; nothing at first.  Raises TimedOut, Failure."""
        import select
        status = None
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        left = timeout
        try:
            yield b""
            while True:
                began = time.monotonic()
                if not poll.poll(None if left is None else max(0.0, left) * 1000):
                    raise TimedOut(f"timed out after {timeout:g} s; what had come by then is above")
                data = os.read(reader, READ_CHUNK)
                left = left and left - (time.monotonic() - began)
                if not data:
                    break
                yield data
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            if status is None:
                self._end(child)
                os.waitpid(child, 0)
            self.children.discard(child)
            os.close(reader)
        if status:
            raise Failure(f"{os.path.basename(path)} ended with status {status if status > 0 else SIGNALLED - status}")

    def _end(self, pid: int) -> None:
        """Kill a program that we started, with all that it started."""
        import signal
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it ended by itself meanwhile

    def _start(self, spawn: Callable[[], Any]) -> Any:
        """What `spawn` returns, a process or its number, once that is among the children: until then no signal of
        end_on_signals() interrupts us, and end_all() waits.  Raises OSError; KeyboardInterrupt for a signal."""
        ours = _thread.get_ident() == self._thread
        with self._starting:
            if self._ending:
                raise OSError(errno.ECANCELED, "not started, as this command ends")
            self._deferring = ours
            pid = 0
            try:
                child = spawn()
                pid = child if isinstance(child, int) else child.pid
                self.children.add(pid)
                if self._ending:  # meanwhile
                    self._end(pid)
            finally:
                self._deferring = False
                if ours and self._deferred:
                    if pid:
                        self._end(pid)  # the caller never gets it
                    raise KeyboardInterrupt(self._deferred)
        return child

    def interrupt(self, name: str) -> None:
        """The signal of that name: ends what we do, by KeyboardInterrupt."""
        if not self._deferring:
            raise KeyboardInterrupt(name)
        self._deferred = name

    def end_all(self) -> None:
        """Kill the programs that still run for us, in threads that were given up; those start no others."""
        waited = self._starting.acquire(timeout=1)  # one may be starting, for ever if its disk is dead
        self._ending = True
        for pid in list(self.children):
            self._end(pid)
        if waited:
            self._starting.release()

    def exec(self, path: str, arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> NoReturn:
        """Become the program `path`: same arguments byte for byte, the signals as a program expects to find them.

        Raises Failure (126, or 127 when it is not there).
        """
        import signal
        self._check_answers(arguments)
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

    def memory_file(self, data: bytes) -> int:
        """A descriptor of a file in memory, for a program that reads `/proc/self/fd/N`, as often as it likes; what is
        in it is on no disk.  Raises Missing."""
        if not os.path.isdir("/proc/self/fd"):
            raise Missing("/proc is not mounted, so nothing can be handed to a program unseen",
                          hint="mount -t proc proc /proc")
        try:
            fd = os.memfd_create("ipsec", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            raise Missing("this system has no files in memory (memfd_create)", hint="use Linux 3.17 or later") from None
        write_all(fd, data)
        return fd

    # --- sockets ----------------------------------------------------------------------------------------------------

    def netlink(self, family: int, timeout: float = 10.0) -> _socket.socket:
        """A bound netlink socket of the family (NETLINK_ROUTE 0, NETLINK_XFRM 6, NETLINK_NETFILTER 12, …: netlink(7)).

        Raises OSError: the kernel lacks the family, or the caller may not.
        """
        import _socket as socket
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            link.settimeout(timeout)
            link.bind((0, 0))
        except OSError:
            link.close()
            raise
        return link

    def has_xfrm(self) -> bool:
        """Return whether the running kernel has the XFRM stack: it answers on a NETLINK_XFRM socket, be it with EPERM.

        The sysctls net.core.xfrm_* do not tell: the kernel hides them in every user namespace but the first
        (net/xfrm/xfrm_sysctl.c), and pluto works there.
        """
        if not self.live:
            return False
        try:
            link = self.netlink(NETLINK_XFRM)
            try:
                link.send(XFRM_QUESTION)
                return bool(link.recv(READ_CHUNK))
            finally:
                link.close()
        except OSError:
            return False

    def bind_udp(self, family: int, port: int) -> None:
        """Bind a UDP port on all addresses and release it.  Raises OSError: EADDRINUSE if any socket has the port."""
        import _socket as socket
        link = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            if family == AF_INET6:
                link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            link.bind(("", port))
        finally:
            link.close()

    def connect(self, name: str, kind: int, timeout: float | None) -> _socket.socket:
        """A Unix socket of the kind (SOCK_STREAM, SOCK_SEQPACKET) connected to `name`.  Raises OSError."""
        import _socket as socket
        link = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            link.settimeout(timeout)
            self.within(name, lambda: link.connect(name), "")
        except OSError:
            link.close()
            raise
        return link

    # --- standard input and output ----------------------------------------------------------------------------------

    def stdin(self, limit: int | None = None) -> Iterator[bytes]:
        """Standard input, piece by piece.  Raises OSError, also for more than `limit` bytes."""
        done = 0
        while data := os.read(0, READ_CHUNK):
            done += len(data)
            if limit is not None and done > limit:
                raise OSError(errno.EFBIG, f"more than {limit >> 20} MiB, not read", "standard input")
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
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
        sys.stdout.write(text + end)

    def warn(self, text: str) -> None:
        """One line on standard error."""
        self.flush()
        if sys.stderr is not None:
            sys.stderr.write(f"ipsec: {printable(text)}\n")

    def flush(self) -> None:
        """Write out what is buffered.  Raises OSError."""
        if sys.stdout is not None:
            sys.stdout.flush()

    @property
    def colour(self) -> bool:
        """True when standard output is a terminal that wants colour (NO_COLOR, https://no-color.org)."""
        return not self.env.get("NO_COLOR") and self.env.get("TERM") != "dumb" and is_terminal(sys.stdout)

    @property
    def columns(self) -> int:
        """How many characters a line of standard output may have: COLUMNS, the terminal's width, or 80."""
        given = self.env.get("COLUMNS", "")
        if given.isascii() and given.isdigit() and int(given):
            return int(given)
        return self.terminal_size()[0]

    def terminal_size(self) -> tuple[int, int]:
        """Columns and lines of the terminal that standard output leads to; (80, 24) where it leads to none."""
        try:
            size = os.get_terminal_size(1)
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def key(self, seconds: float) -> str:
        """The key that somebody presses within so many seconds; nothing when none is, or without a keyboard."""
        import select
        if is_terminal(sys.stdin) and select.select([0], [], [], seconds)[0]:
            return decode(os.read(0, 1))
        if not is_terminal(sys.stdin):
            time.sleep(seconds)
        return ""

    def keyboard(self) -> Callable[[], None]:
        """Have keys arrive one by one and unseen.  Return a function that undoes it; does nothing without a keyboard.
        """
        if not is_terminal(sys.stdin):
            return lambda: None
        termios: Any = need("termios", "reading keys")
        before = termios.tcgetattr(0)
        flags = before[3] & ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(0, termios.TCSADRAIN, [*before[:3], flags, *before[4:]])
        return lambda: termios.tcsetattr(0, termios.TCSADRAIN, before)

    # --- what is installed ------------------------------------------------------------------------------------------

    def libreswan_version(self) -> str | None:
        """The version of the installed libreswan, such as `4.10`; None when there is none.  Found out once.

        Asked of its programs (`whack --version` prints `Libreswan 4.10` from 3.25 to 5.4).  Under a root, where
        nothing is run, and without programs, it is read from the `ipsec` script, the programs' files, or the package
        manager's list.
        """
        if self.version == "":
            self.version = self._version()
        return self.version

    def _version(self) -> str | None:
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
            pass  # not installed, or replaced by this program
        # a running system without the programs has no libreswan, whatever the package manager remembers
        return self._compiled_version() or (None if self.live else self._packaged_version())

    def _compiled_version(self) -> str | None:
        """Return the version in libreswan's programs, which hold it as `Libreswan 4.10`; None if there is none."""
        for name in ("whack", "addconn", "pluto"):
            try:
                data = b"".join(self.chunks(os.path.join(self.execdir, name), limit=TEXT_LIMIT))
            except OSError:
                continue
            for after in data.split(b"Libreswan ")[1:]:
                if after[:1].isdigit():
                    return decode(after.partition(b"\0")[0][:40])
        return None

    def _packaged_version(self) -> str | None:
        """Return the version of libreswan in the package manager's own list, without its revision, or None."""
        for name, is_package, is_version in PACKAGE_LISTS:
            try:
                package = ""
                for line in self.lines(name):
                    if line.startswith(is_package):
                        package = line[len(is_package):]
                    elif package == "libreswan" and line.startswith(is_version):
                        return line[len(is_version):].rpartition(":")[2].partition("-")[0]
            except OSError:
                continue
        return None

    def kernel_release(self) -> str:
        """The release of the running kernel, as `uname -r`."""
        return os.uname().release


def split_lines(chunks: Iterable[bytes], name: str | None = None) -> Iterator[str]:
    """Lines, without their ends, from pieces of any size.  Raises OSError for a line longer than TEXT_LINE; `name` is
    the file."""
    rest: list[bytes] = []  # of a line whose end has not come
    size = 0
    for chunk in chunks:
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            rest.append(head)
            yield from decode(b"".join(rest)).split("\n")
            rest, size = [], 0
        rest.append(tail)
        size += len(tail)
        if size > TEXT_LINE:
            raise OSError(errno.EFBIG, f"a line is longer than {TEXT_LINE >> 20} MiB, not read further", name)
    if size:
        yield decode(b"".join(rest))


def is_program(path: str) -> bool:
    """Return whether the path leads to a regular file that this process may execute."""
    return os.path.isfile(path) and os.access(path, os.X_OK)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it to a blocking descriptor.  Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def filled_pipe(data: bytes) -> tuple[int, int]:
    """Return both ends of a pipe that holds the data and has room for a few bytes more.

    Raises OSError: EPERM if the data is more than a pipe may hold (pipe(7), /proc/sys/fs/pipe-max-size).
    """
    import fcntl
    reader, writer = os.pipe()
    try:
        if len(data) + 4096 > READ_CHUNK:
            fcntl.fcntl(writer, 1031, len(data) + 4096)  # F_SETPIPE_SZ, which Python names from 3.10 on
        write_all(writer, data)
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    return reader, writer


def write_to_reader(fd: int, data: bytes) -> None:
    """Write to a pipe whose reader may have ended: its status tells why."""
    try:
        write_all(fd, data)
    except BrokenPipeError:
        return


def takes_output(fd: int) -> bool:
    """True when whoever reads what we write there keeps up; False for a full pipe to a pager."""
    import select
    try:
        return bool(select.select([], [fd], [], 0)[1])
    except (OSError, ValueError):
        return True


def install_command(host: Host, package: str) -> str:
    """Return the command that installs a package, with the package manager that the host has (default apt-get)."""
    for name, action in PACKAGE_MANAGERS.items():
        if any(host.executable(f"{directory}/{name}") for directory in SYSTEM_PATH):
            return f"{name} {action} {package}"
    return f"apt-get install {package}"


def libreswan_hint(host: Host, hint: str) -> str:
    """Return the hint of a message; where libreswan is not installed, that fact and how to install it come instead."""
    if host.exists(os.path.join(host.execdir, "pluto")):
        return hint
    return f"libreswan is not installed ({install_command(host, 'libreswan')})"


def start_hint(host: Host) -> str:
    """Return the way to a running pluto, as the hint of a message: start it, or install libreswan first."""
    return libreswan_hint(host, "start it with: ipsec start")


def start_advice(host: Host) -> str:
    """Return the command that leads to a running pluto: one that starts it, or that installs libreswan."""
    return "ipsec start" if not libreswan_hint(host, "") else install_command(host, "libreswan")


def version_in(text: str) -> str | None:
    """The version number in what a libreswan program prints of itself (`Libreswan 4.10`, `Libreswan v5.2-…`)."""
    words = text.replace("(", " ").replace("/", " ").split()
    for before, word in zip(words, words[1:]):
        if before.lower() == "libreswan" and word.lstrip("vU")[:1].isdigit():
            return word.lstrip("vU")
    return None


# --- releases of libreswan --------------------------------------------------------------------------------------------

RELEASES = (*(f"3.{n}" for n in range(25, 33)), *(f"4.{n}" for n in range(16)), "5.0", "5.1", "5.2", "5.3", "5.3.1",
            "5.3.2", "5.4")


def version_key(version: str) -> tuple[int, ...]:
    """A version number as what compares."""
    return tuple(int(part) for part in version.split("."))


def covers(releases: str, version: tuple[int, ...]) -> bool:
    """Return whether `version` is one of a table's `releases`: `3.25-4.2`, `5.4`, `3.25-3.32,4.2-5.4`, or `*`."""
    if releases == "*":
        return True
    ranges = (part.partition("-") for part in releases.split(","))
    return any(version_key(first) <= version <= version_key(last or first) for first, _, last in ranges)


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


# =====================================================================================================================
# 3. Redaction
#
# What leaves the program in a report passes here.  Secrets are known by their place (the syntax of ipsec.secrets,
# options, assignments, key dumps) and by value: once seen, a secret is masked wherever it turns up.  Touches nothing;
# redactor_of() of the next section feeds it from the host's files.  Used by barf, look, show, start, _secretcensor
# and _keycensor.  Facts: lib/libswan/lex.c, secrets.c and ttodata.c
# of libreswan 3.25 to 5.4, ipsec.secrets(5), ip-xfrm(8).
# =====================================================================================================================

REDACTED = "[redacted]"
KEY_KINDS = frozenset("psk xauth rsa ecdsa eddsa pkcs8 p12 pin ppk ppks ntlm eap".split())  # of all generations
RSA_FIELDS = frozenset("modulus publicexponent privateexponent prime1 prime2 exponent1 exponent2 coefficient ckaidnss "
                       "ckaid privatekey publickey".split())
PUBLIC_FIELDS = ("modulus", "publicexponent", "ckaidnss", "ckaid", "publickey")
BASE64_LINE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
BASE64_DIGITS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
LONGEST_LINE = 1 << 16  # a report shows no more of a line
# Secrets that are everyday words of a report would, masked everywhere, leave neither a report nor a doubt what they are
EVERYDAY = frozenset("secret secrets password ipsec libreswan pluto test default public private tunnel transport "
                     "systemd kernel linux debian redacted root admin user none auto".split())


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
        """Return the bytes of the key, or None if pluto refuses to load it (ttodata() of libreswan).

        Pluto takes base64 only with its padding and without stray bits at the end; an underscore may separate hex
        digits, but not begin them.
        """
        data = self.decoded()
        digits = self.text[2:]
        if data is None or self.form not in ("0x", "0s"):
            return data
        if self.form == "0x":
            return None if not data or digits.startswith("_") else data
        import binascii
        return data if data and binascii.b2a_base64(data, newline=False).decode() == digits else None

    def decoded(self) -> bytes | None:
        """Return the bytes that the digits stand for, even if pluto refuses them; None if they are no digits."""
        if self.form in ("0x", "0s"):
            digits = self.text[2:].replace("_", "")
            if self.form == "0s" and not BASE64_DIGITS.issuperset(digits.rstrip("=")):
                return None
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
        if not tokens:
            return  # comments and blank lines
        if tokens[0].text.lower() == "include" and not tokens[0].form:
            self.kind = "include"
            self.shown = [tokens[0]]
            if len(tokens) != 2 or tokens[1].form == "open":
                self.problem = "include needs one file name and nothing behind it"
                return
            self.include = tokens[1].text
            self.shown.append(tokens[1])
            return
        if tokens[0].text.startswith("\ufeff"):
            self._wrong("the file begins with a byte order mark, which pluto takes for a part of the first ID")
        elif tokens[0].start:
            self._wrong("indented, and no record begins before it: pluto leaves it out")
        colon = next((i for i, token in enumerate(tokens) if token.text == ":"), -1)
        keyword = next((i for i, token in enumerate(tokens) if is_key_word(token.text)), len(tokens))
        for token in tokens[:max(0, min(colon, keyword))]:
            if token.form not in ("", '"', "'"):
                break  # no ID is written so: a key at the wrong place
            self.ids.append(token)
            if "," in token.text and "=" not in token.text:  # a DN has some
                self._wrong("a comma in an ID: IDs have blanks between them")
        if any(token.form == "open" for token in tokens):
            self._wrong("unterminated string")
        if colon < 0:
            self._wrong("no `:` (a word of its own) between the IDs and the key")
            self.secrets = [token for token in tokens[:keyword] if token.form or not looks_like_id(token.text)]
            self.secrets += tokens[keyword + 1:]
            return
        self.secrets = [token for token in tokens[len(self.ids):colon] if token.form]
        self.shown = [*self.ids, tokens[colon]]
        values = tokens[colon + 1:]
        if not values:
            self._wrong("nothing behind the `:`; pluto, 5.2 too, crashes on that")
        elif values[0].text.lower() in KEY_KINDS and values[0].form in ("", '"', "'"):
            self.kind = values[0].text.lower()
            self.shown.append(values[0])
            self._parse_key(values[1:])
        else:
            self._wrong("no PSK, XAUTH or other kind of key behind the `:`")
            self.secrets += values

    def _parse_key(self, values: Sequence[Token]) -> None:
        if not values:
            self._wrong("no key behind the kind of key")
        elif self.kind in ("psk", "xauth", "ppk", "ppks"):
            named = self.kind.startswith("ppk")  # its ID comes first
            self.secrets += values[named:] or values
            if len(values) != 1 + named:
                self._wrong("more than one key" if len(values) > 1 + named else "no key behind its ID")
            elif named and values[0].form not in ('"', "'"):
                self._wrong("the ID of a PPK is not quoted")
            elif values[-1].form not in ('"', "'") and (values[-1].form in ("", "`") or not values[-1].data()):
                self._wrong("malformed key: neither quoted nor 0x, 0s or 0t and digits")
            elif named:
                self.shown.append(values[0])
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

    def _wrong(self, problem: str) -> None:
        self.problem = self.problem or problem

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


def looks_like_id(text: str) -> bool:
    """True for a word that is more likely an address, a name, a mail address or a DN than a secret."""
    return any(char in text for char in "@.:%=")


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
    """The entry that the text of a comment holds, or None for any other remark."""
    record = SecretRecord(secret_tokens(text)[0])
    return record if record.kind in KEY_KINDS and all(looks_like_id(token.text) for token in record.ids) else None


def secrets_of_remark(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens of a remark that may be secrets: keys, and quoted words behind a word that speaks of one.

    `# the key for "west-east"` names a connection.
    """
    return [token for before, token in zip((None, *tokens), tokens) if token.form in ("0x", "0s", "0t") or (
        token.form and before is not None and (before.text.endswith((":", "=")) or before.text.lower() in (
            *KEY_KINDS, "is", "was", "secret", "password", "passphrase", "pass", "pw", "old", "new")))]


def censor_secrets(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a secrets file as a report shows them: IDs, kinds of keys, includes; all else `[redacted]`."""
    for record, rows in secret_records(lines):
        for number, text, comment in rows:
            before, remark = text[:comment], text[comment:]
            if bare := remark.lstrip("# \t"):
                old = commented_out(bare)
                remark = remark[:-len(bare)] + old.censored(0, bare) if old else "#[redacted comment]"
            yield record.censored(number, before) + before[len(before.rstrip(" \t")):] + remark


# Words without which none of SECRET_PLACES can match, then those places: what comes before the secret is kept.
PLACE_HINTS = ("key", "unwrapped", "sk_", "g^", "comment", "prefix", "/*",
               "pass", "pwd", "psk", "secret", "pin", "xauth", "ppk", "shared", "api", "token", "://", "malformed",
               "unrecogni", 'index "', "lex ", "util", "banner", "$", " 0x", "\te: ", "\ta: ",
               "| sk_", "curl", "authorization:", "certificate db:", "access",
               "exponent:", "prime", "coefficient:", ":rsa ", ": rsa ", "ecdsa ", "ntlm", "eap")
_SECRET_NAME = (r"[\w-]*(?:passw(?:or)?d|passphrase|xauthpass|userpass|pwd|secret[_-]?key|shared[_-]?(?:secret|key)|"
                r"client[_-]?secret|(?:api|access)[_-]?key|auth[_-]?token|_pass|[_-](?:psk|secret|pin))|pass|psk|secret|pin")
_QUOTED = r"""\\?"(?:[^"\\\n]|\\.)*(?:"|$)|\\?'[^'\n]*(?:'|$)"""
_NOT_SECRET = r"[ \t]*(?:files|compat|sss|systemd|db|nis|winbind)\b"  # sources of nsswitch.conf(5)
_SPEAKS_OF_SECRET = (r"(?:passw|passphrase|\bpass\b|secret|psk|pwd|\bkeys?\b(?! exchange)|\bpin\b|token|credential|"
                     r"login)")
# Ordinary words in mixed case
MIXED_CASE = frozenset("IPsec IKEv1 IKEv2 OpenVPN WireGuard strongSwan StrongSwan NetworkManager macOS iOS".split())
# Remarks of firewall rules, as iptables, nft and pyroute2 write them
REMARKS = (r"((?:--comment|--(?:nf)?log-prefix|(?<![\w-])(?:comment|(?:nflog-)?prefix)(?=[ \t=]+[^-\s]))(?:[ \t]+|=))"
           rf"({_QUOTED}|[^\s\"\']+)|(/\* )([^\n]*?)(?= \*/)")
# A word of pluto's log that names a key, then bytes as digits
_BYTES = r"(?:0x)?(?:[0-9a-f]{12,}|(?=[A-Za-z0-9+/]*[0-9A-Z])[A-Za-z0-9+/]{12,}={0,2})(?![\w.:@-])"
SECRET_PLACES = (
    rf"(\|[^\n]*?(?<!public )(?<!ckaid )\b(?:\w*key|keymat|unwrapped|sk_\w+|skeyid\w*|skeyseed|psk|ppk|g\^\w+)"
    rf"(?![\w(@-])[\w \t]{{0,16}}?[ :=]+)(?!/){_BYTES}[^\n]*",
    # options of a command line, up to the next option; the short ones of the NSS tools
    rf"((?<![\w-])--?(?:{_SECRET_NAME}|passin|passout)(?:=|[ \t]+))(?:{_QUOTED}|(?:(?![ \t]-)[^\n])+)",
    r"(\bsshpass[ \t]+-p[ \t]*)\S+",
    r"(\bcurl\b[^\n]*?[ \t](?:-u|--user)[ \t=]*[^\s:]+:)\S+",
    r"(\bAuthorization:[ \t]*\w+[ \t]+)\S+",
    r"(\bNSS (?:FIPS 140-2 )?Certificate DB:)[^\n]+",
    # name=value and name: value, in any kind of text; at the start of a line its rest is the value
    rf"(^[ \t]*(?:{_SECRET_NAME})[ \t]*[=:][ \t]*)(?!{_NOT_SECRET}|$)[^\n]+",
    rf"((?<![\w/.-])(?<!loaded PSK )(?!complete_dh_)[\"\']?(?:{_SECRET_NAME})[\"\']?[ \t]*[=:][ \t]*)"
    rf"(?!{_NOT_SECRET})(?:{_QUOTED}|[^\s,;&)\]}}]+)",
    r"(\bpassword for [^\n:]*:[ \t]*)[^\n]+",
    r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)",
    # entries of ipsec.secrets, and what pluto says of malformed ones (secrets.c, lex.c)
    rf"(:[ \t]*(?:PSK|XAUTH|NTLM|EAP)[ \t]*)(?:{_QUOTED})[^\n]*",
    rf"(:[ \t]*(?:RSA|ECDSA|PIN)[ \t]+[^\s\"\']+[ \t]+)(?:{_QUOTED})[^\n]*",
    r"(\b(?:PrivateExponent|Prime[12]|Exponent[12]|Coefficient):[ \t]*)\S+",
    rf"(:[ \t]*(?:PSK|XAUTH|PIN|PPKS?(?:[ \t]+\"[^\"\n]*\"(?=[ \t]+\S))?)[ \t]+)(?:{_QUOTED}|0[xst]|\[red)[^\n]*",
    r"((?:PSK|XAUTH|PPK|RSA|key)[^\n]{0,40} malformed \([^\n]*?\):[ \t]*)[^\n]+",
    r"((?:unrecogni[sz]ed (?:keyword|key format):|\bline \d+: index)[ \t]*)[^\n]+",
    r"(\blex (?:shift|flushline)[^\n']*')[^\n]*",
    r"(\buser\([^\n]*\) pass[ \t]+)[^\n]+",
    # comments and banners that speak of a secret
    rf"((?:modecfgbanner[ \t]*=|banner:)[ \t]*)(?=[^\n]{{0,300}}?{_SPEAKS_OF_SECRET})[^\n]+",
    # keys of the kernel, as ip-xfrm(8) and setkey(8) print them, and hashes of passwords, crypt(5)
    r"(\b(?:auth|auth-trunc|enc|aead|comp)[ \t]+(?!spi\b)\S+[ \t]+0x)[0-9a-f]+",
    r"^(\t[EA]: [\w()-]+[ \t]+)[0-9a-f]{8}[0-9a-f \t]*$",
    r"(\| sk_\w+:[ \t]*)[0-9a-f]{2}[0-9a-f \t]*$",
    r"(\$(?:1|2[abxy]?|5|6|7|y|gy|apr1|sha1|md5)\$)[\w./=,$+-]{8,}",
)

# One command of the NSS tools may have several of these, so they are looked for until no more is found
NSS_PASSWORDS = r"(\b(?:pk12|cert|crl|mod)util\b[^\n]*?[ \t]-[WKP][ \t]*)(?![\ue000 \t]|\[redacted)(?:(?![ \t]-)[^\n])+"


def is_harmless_word(word: str) -> bool:
    """Return whether a word of free text is an ordinary word, a small number, an address, or a name such as eth0."""
    word = word.strip("\"'()[]{}<>,;!?")
    if word in MIXED_CASE:
        return True
    bare = word.replace("-", "").replace("_", "").replace(":", "").replace(".", "").replace("/", "")
    if not bare or (bare.isdigit() and (len(bare) < 6 or "." in word)):
        return True
    letters = bare.rstrip("0123456789")
    if not letters.isalpha() or len(bare) - len(letters) > (3 if len(letters) < 12 else 0):
        return ("." in word or ":" in word) and set(word.lower()) <= set("0123456789abcdef.:/") and word.count(":") > 1
    return len(letters) <= 24 and (letters.islower() or letters.isupper() or letters.istitle())


def shown_remark(text: str) -> str:
    """Return a comment, a description or a log prefix if it is known to be harmless, else REDACTED."""
    import re
    if re.search(_SPEAKS_OF_SECRET, text, re.IGNORECASE) or not all(map(is_harmless_word, text.split())):
        return REDACTED
    return text


class Redactor:
    """Masks secrets in text: by place, and by value every secret that it learned.

    With `show_secrets` it changes nothing but control characters.
    """

    def __init__(self, show_secrets: bool = False) -> None:
        self.show_secrets = show_secrets
        self.masked = 0  # places, so far
        self._values: set[str] = set()  # masked anywhere
        self._words: set[str] = set()  # masked where they stand alone
        self._digits: dict[str, list[str]] = {}  # in hex, by the first four bytes, for dumps
        self._base64: set[str] = set()
        self._dumped = "\n"  # all of them, a line each
        self._sorted: list[str] | None = None
        self._runs: dict[str, list[str]] = {}
        self._word_pattern: re.Pattern[str] | None = None
        self._places: list[re.Pattern[str]] = []
        self._rows: list[re.Pattern[str]] = []
        self._remarks: re.Pattern[str] | None = None

    def learn(self, secret: str | bytes) -> None:
        """From now on, mask this secret in every form it may turn up in: as it is, decoded, in hex and base64, escaped.

        A secret of fewer than four characters, or an everyday word, is masked only where a secret is expected.
        """
        import binascii
        text = decode(secret) if isinstance(secret, bytes) else secret
        data = encode(text)
        if isinstance(secret, str) and text[:2].lower() in ("0x", "0s", "0t"):
            data = Token(text, 0, 0, len(text), text[:2].lower()).decoded() or data
        forms = {text, text.strip(), decode(data)}
        if len(data) >= 4:
            digits = binascii.hexlify(data).decode()
            self._digits.setdefault(digits[:8], []).append(digits)
            encoded = base64_forms(data)
            self._base64 |= encoded
            forms |= {digits, digits.upper(), *encoded}
        for form in (text, decode(data)):
            # as a shell, C and Python, pluto (jam_sanitized_bytes) and JSON write it
            quoted = form.replace("\\", "\\\\").replace('"', '\\"')
            escaped = quoted.encode("unicode_escape", "surrogateescape").decode("latin-1").replace("\\\\", "\\")
            octal = "".join(c if " " <= c <= "~" and c != "\\" else "".join(f"\\{b:03o}" for b in encode(c))
                            for c in form)
            json = "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in quoted)
            forms |= {form.replace("'", "'\\''"), printable(form), quoted, escaped, octal, json}
            # what a URL, HTML, careful JSON, a shell and C make of all that is no letter or digit
            for plain, write in (("-_.~", "%{:02X}"), ("-_.~", "%{:02x}"), ("", "\\x{:02x}"), ("", "\\{:03o}")):
                forms.add("".join(c if c.isascii() and c.isalnum() or c in plain else "".join(
                    map(write.format, encode(c))) for c in form))
            for marks, write in (("&<>\"'", "&#{};"), ("&<>\"'", "&#x{:x};"), ("&<>'", "\\u{:04x}")):
                forms.add("".join(write.format(ord(c)) if c in marks else c for c in form))
            named = form.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            forms |= {named, named.replace('"', "&quot;"), named.replace('"', "&quot;").replace("'", "&#39;"),
                      "".join(c if c.isalnum() or c in "_./-" else f"\\{c}" for c in form)}
        for line in "\n".join(forms).split("\n"):
            if len(line) >= 4 and line.lower() not in EVERYDAY:
                (self._values if len(line) >= 6 else self._words).add(line)
        self._sorted = None

    def learn_file(self, lines: Iterable[str]) -> list[str]:
        """Learn the secrets in the lines of a file like ipsec.secrets, those in its comments too; the patterns that
        it includes."""
        includes = []
        for record, rows in secret_records(lines):
            found = list(record.secrets)
            for _, text, comment in rows:
                bare = text[comment:].lstrip("# \t")
                old = commented_out(bare)
                found += old.secrets if old else secrets_of_remark(secret_tokens(bare)[0])
            for token in found:
                self.learn(token.text)
                if token.form in ("0x", "0s") and token.data() is None:
                    self.learn(token.text[2:])
                elif not token.form and '"' in token.text:  # PSK"…": a blank was forgotten
                    self.learn(token.text.split('"')[1])
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
        self.masked += text.count(MASK)
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
        if self._sorted is None:
            self._sorted = sorted(self._values, key=len, reverse=True)
            self._dumped = "".join(f"{digits}\n" for group in self._digits.values() for digits in group)
            self._runs = {}
            if len(self._sorted) > MANY_VALUES:
                import re
                for value in self._sorted:
                    longest = max(re.findall(WORD_RUN, value), key=len, default="")
                    self._runs.setdefault(longest, []).append(value)
            if self._words:
                import re
                words = "|".join(re.escape(word) for word in sorted(self._words, key=len, reverse=True))
                self._word_pattern = re.compile(f"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])")
        if self._runs:
            import re
            # one look at each word of the text instead of one search for each value
            hits = set(re.findall(WORD_RUN, text)) & self._runs.keys()
            values = sorted((value for word in (*hits, "") for value in self._runs.get(word, ())), key=len,
                            reverse=True)
        else:
            values = self._sorted
        for value in values:
            if value in text:
                text = text.replace(value, MASK)
        text = self._word_pattern.sub(MASK, text) if self._word_pattern else text
        return self._mask_wrapped(text) if self._base64 else text

    def _mask_wrapped(self, text: str) -> str:
        """Mask base64 that holds a secret across the ends of lines."""
        lines = text.split("\n")
        start = 0
        while start < len(lines):
            end = start
            while end < len(lines) and len(lines[end]) > 3 and BASE64_LINE.issuperset(lines[end].strip()):
                end += 1
            if end - start > 1:
                joined = "".join(line.strip() for line in lines[start:end])
                if any(value in joined for value in self._base64):
                    lines[start:end] = [MASK] * (end - start)
            start = max(end, start + 1)
        return "\n".join(lines)

    def _mask_row(self, found: re.Match[str]) -> str:
        """Mask a row of hex bytes that holds a secret or is a piece of one, up to the end of the line: a dump repeats
        the bytes as text there.  Each run of bytes in a line is looked at: the first may be a date or a MAC address.
        """
        row = found[2].lower().translate({32: None, 58: None})
        piece = row if len(row) > 6 else f"{row}\n"  # so short a one only as the last row of a secret
        known = piece in self._dumped or any(row.startswith(digits, place) for place in range(0, len(row) - 7, 2)
                                             for digits in self._digits.get(row[place:place + 8], ()))
        return f"{found[1]}{ROW_MASK}" if known else found[0]

    def compile(self) -> None:
        """Make the patterns, once.  Takes longer than many a command, so they are made when a text needs them."""
        if not self._places:
            import re
            self._places = [re.compile(place, re.IGNORECASE) for place in (NSS_PASSWORDS, *SECRET_PLACES)]

    def compile_rows(self) -> None:
        """The same for the patterns of dumps in hexadecimal."""
        if not self._rows:
            import re
            # a row of pluto's dumps, of any length; bytes in a row anywhere
            self._rows = [re.compile(r"^(.*?\|  +|  +)((?:[0-9a-f]{2} {1,2})*[0-9a-f]{2})(?:$|   .*)", re.MULTILINE),
                          re.compile(r"((?<![0-9A-Za-z]))((?:[0-9A-Fa-f]{2}[ :]{1,2}){3,}[0-9A-Fa-f]{2})\b"),
                          re.compile(r"((?<![0-9A-Za-z])(?:0x)?)((?:[0-9A-Fa-f]{4} {1,2})+[0-9A-Fa-f]{2,4})\b"),
                          re.compile(f"{ROW_MASK}.*")]

    def _mask_remarks(self, line: str) -> str:
        """Mask the comments and log prefixes of a firewall rule that are not known to be harmless."""
        if self._remarks is None:
            import re
            self._remarks = re.compile(REMARKS)

        def shown(found: re.Match[str]) -> str:
            before, remark = (found[1], found[2]) if found[1] else (found[3], found[4])
            is_masked = MASK in remark or shown_remark(remark.replace("\\", "")) != remark.replace("\\", "")
            return before + (MASK if is_masked else remark)
        return self._remarks.sub(shown, line)

    def _mask_places(self, text: str) -> str:
        lines = text.split("\n")
        if self._digits and not self._rows and (len(lines) > 100 or any(map(may_be_row, lines))):
            self.compile_rows()
        for number, line in enumerate(lines):
            lowered = line.lower()
            if any(hint in lowered for hint in PLACE_HINTS):
                self.compile()
                before = ""
                while "util" in lowered and line != before:
                    before, line = line, self._places[0].sub(mask_place, line)
                for place in self._places[1:]:
                    line = place.sub(mask_place, line)
            if "comment" in lowered or "prefix" in lowered or "/* " in line:
                line = self._mask_remarks(line)
            lines[number] = line
        text = "\n".join(lines)
        if self._digits and self._rows:
            for row in self._rows[:-1]:
                text = row.sub(self._mask_row, text)
            text = self._rows[-1].sub(MASK, text)
        return text


def base64_forms(data: bytes) -> set[str]:
    """Return the base64 of the data: alone, and as a part of longer data at each of the three offsets."""
    import binascii
    forms = {binascii.b2a_base64(data, newline=False).decode().rstrip("=")}
    for offset, first in ((0, 0), (1, 2), (2, 3)):  # the first digits, and an incomplete last one, have other bits too
        text = binascii.b2a_base64(bytes(offset) + data, newline=False).decode().rstrip("=")
        inner = text[first:len(text) - bool((offset + len(data)) % 3)]
        if len(inner) >= 8:
            forms.add(inner)
    return forms


def may_be_row(line: str) -> bool:
    """False for a line in which the patterns of rows of bytes find nothing.  Slower than they are, once made."""
    words = line.replace("0x", " ").translate(_MARKS).split()
    lengths = [len(word) for word in words if HEX_DIGITS.issuperset(word)]
    return 4 in lengths or lengths.count(2) > 3 or (2 in lengths and (line.startswith("  ") or "|  " in line))


def mask_place(found: re.Match[str]) -> str:
    """What SECRET_PLACES found, without the secret.  What is masked already stays as it is."""
    secret = found[0][len(found[1]):]
    if secret.lstrip("\"'\\0xst").startswith("[redacted"):
        return found[0]
    return found[1] + (f"[redacted {len(secret) // 2} bytes]" if found[1].endswith("0x") else MASK)


def mask_pem(text: str, in_key: bool) -> tuple[str, bool]:
    """The text without what is between BEGIN and END of private keys, and whether it ends within a key."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        while True:
            if in_key:
                end = line.find("-----END")
                shown += MASK if line and end else ""
                if end < 0:
                    break
                in_key = False
                line = line[end:]
            head, mark, rest = line.partition("PRIVATE KEY-----")
            if not mark:
                shown += line
                break
            shown += head + mark
            in_key = "-----BEGIN" in head.rpartition("-----END")[2]
            line = rest
        lines.append(shown)
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


HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_MARKS = {code: 32 for code in range(128) if not chr(code).isalnum()}
ROW_MASK = "\ue001"  # stands for a masked row of a dump; the rest of the line goes with it
MASK = "\ue000"  # stands for REDACTED until all is masked, so that nothing is found in it
MANY_VALUES = 1000  # beyond, a value glued to other letters is not found; searching for each would take minutes
WORD_RUN = "(?:0[xXsStT])?([A-Za-z0-9]{4,})"


# =====================================================================================================================
# 4. Configuration
#
# Readers of ipsec.conf and of the files with secrets beside it; every error has a file and a line.  Reads through
# Host only.  Used by verify, barf, setup, NSS, NFLOG, and add, addconn and readwriteconf.  Facts: ipsec.conf(5);
# parser.lex, parser.y, keywords.c and confread.c of libreswan 3.25 to 5.4.  Keywords and values are judged by the
# installed release; if none is known, a keyword or value is right if it is right for some release.
# =====================================================================================================================

INCLUDE_DEPTH = 10  # MAX_INCLUDE_DEPTH
# --- keywords and their values ---------------------------------------------------------------------------------------
#
# A word of a kind with `@` behind it is a value of those releases only.

_NEW_BOOL = "|".join(f"{word}@5.0-5.4" for word in "y true on n false off".split())
# The kinds of values, each with its keywords.  `side` keywords are written left… or right… .  `seconds` is a number,
# from 5.1 on a duration.
SETUP_KEYWORDS = """
bool: audit-log crl-strict dnssec-enable drop-oppo-null ike-socket-errqueue ipsec-interface-managed listen-tcp
 listen-udp logappend logip logtime loglimit ocsp-enable ocsp-strict uniqueids fragicmp hidetos perpeerlog
text: curl-iface dnssec-anchors dnssec-rootkey-file dumpdir dns-resolver global-redirect global-redirect-to ipsecdir
 listen logfile myvendorid nssdir ocsp-trustname ocsp-uri perpeerlogdir protostack secretsfile seeddev statsbin
 syslog virtual-private
duration: crlcheckinterval crl-timeout curl-timeout expire-shunt-interval ocsp-cache-max-age ocsp-cache-min-age
 shuntlifetime
seconds: keep-alive ocsp-timeout xfrmlifetime
number: ddos-ike-threshold ike-socket-bufsize ikeport max-halfopen-ike nat-ikeport nhelpers ocsp-cache-size overridemtu
 secctx-attr-type seedbits
0-65535: nflog-all
debug: debug plutodebug
accept|reject|drop: ikev1-policy
auto|busy|unlimited: ddos-mode
enabled|disabled|tolerant: seccomp
get|post: ocsp-method
obsolete: disable-port-floating force-busy force-keepalive forwardcontrol interfaces klipsdebug nat-traversal nocrsend
 oe pluto plutofork plutoopts plutorestartoncrash plutowait postpluto prepluto rp-filter
"""
CONN_KEYWORDS = f"""
side text: addresspool ca cert ckaid ecdsakey eddsakey groundhog id interface-ip nexthop protoport pubkey rsasigkey
 rsasigkey2 sourceip subnet updown updown-config username vti
side list: subnets
side number: ikeport
side bool: cat modecfgclient modecfgserver xauthclient xauthserver
side never|secret|rsasig|rsa@4.6-5.4|ecdsa@4.6-5.4|null|eaponly@4.6-5.4|eddsa@5.3-5.4: auth
side none|tls: autheap
side never|sendifasked|alwayssend|always: sendcert
list: also connalias
text: accept-redirect-to ah authby esp ike ipsec-interface mark mark-in mark-out modecfgbanner modecfgdns
 modecfgdomains ppk-ids redirect-to sec-label vti-interface
bool: aggressive cisco-split cisco-unity compress decap-dscp dns-match-id, encap-dscp fake-strongswan ignore-peer-dns
 initial-contact intermediate iptfs iptfs-fragmentation labeled-ipsec mobike modecfgpull ms-dh-downgrade narrowing
 nat-keepalive nm-configured nopmtudisc overlapip pam-authorize pfs pfs-rekey-workaround reauth
 reject-simultaneous-ike-auth rekey require-id-on-certificate send-esp-tfc-padding-not-supported send-vendorid
 session-resumption sha2-truncbug share-lease vti-routing vti-shared
bool|auto@5.2-5.4: ikepad
duration: dpddelay dpdtimeout ikelifetime ipsec-lifetime iptfs-drop-time iptfs-init-delay rekeymargin
 retransmit-timeout
seconds: retransmit-interval
debug: debug plutodebug
number: clones keyingtries metric mtu priority replay-window reqid tcp-remoteport tfc
0-65535: nflog
percent: rekeyfuzz
size: ipsec-max-bytes ipsec-max-packets iptfs-max-queue-size iptfs-packet-size iptfs-reorder-window
ignore|add|ondemand|route|start|up|keep@4.2-5.4: auto
hold|clear|restart|restart_by_peer: dpdaction
tunnel|transport|pass|passthrough|reject|drop: type
none|passthrough|drop|hold|reject: failureshunt
passthrough|drop|hold: negotiationshunt
ike|ikev1@5.0-5.4|ikev2@5.0-5.4: keyexchange
never|permit|propose|insist|yes|always|no|{_NEW_BOOL}: ikev2 ppk
never|no|yes|insist|force|{_NEW_BOOL}: fragmentation
yes|no|either|{_NEW_BOOL}: esn
yes|no|auto|{_NEW_BOOL}: encapsulation send-redirect
yes|no|auto|0@5.0-5.2|1@5.0-5.2|{_NEW_BOOL}: accept-redirect
yes|no|auto@3.25-4.15|crypto@5.0-5.4|packet@5.0-5.4: nic-offload
yes|no|fallback|{_NEW_BOOL}: enable-tcp
yes|no|conntrack: sareftrack
both|rfc|drafts|none: nat-ikev1-method
cisco|ietf@5.3-5.4: remote-peer-type
file|pam|alwaysok: xauthby
hard|soft: xauthfail
none|issuer|all: sendca
esp|ah|default: phase2
ipv4|ipv6|v4|inet|v6|inet6: clientaddrfamily hostaddrfamily
yes|no|auto|{_NEW_BOOL}: send-supported-auth-methods
obsolete: alsoflip connaddrfamily disablearrivalcheck forceencaps modecfgdns2 modecfgwins1 modecfgwins2
"""
# Other spellings of a keyword: those of older releases, and NetworkManager's
ALIASES = {"plutostderrlog": "logfile", "plutostderrlogtime": "logtime", "strictcrlpolicy": "crl-strict",
           "ocsp-trust-name": "ocsp-trustname", "secctx-attr-value": "secctx-attr-type",
           "ikev1-secctx-attr-type": "secctx-attr-type", "expire-lifetime": "xfrmlifetime",
           "aggrmode": "aggressive", "phase2alg": "esp", "ike-frag": "fragmentation", "keylife": "ipsec-lifetime",
           "lifetime": "ipsec-lifetime", "salifetime": "ipsec-lifetime", "ikev1-dpdtimeout": "dpdtimeout",
           "nflog-group": "nflog", "policy-label": "sec-label", "modecfgdns1": "modecfgdns",
           "modecfgdomain": "modecfgdomains", "send-no-esp-tfc": "send-esp-tfc-padding-not-supported",
           "xauthusername": "username", "xauthname": "username"}
# The spellings that only some releases have; all have the others, except those with `_`, of which only these exist.
# Then those that a release has, and ignores.  `setup` stands in config setup, `side` behind left or right.
KEYWORD_RELEASES = """
3.25-3.32  setup crl_strict curl_iface curl_timeout disable_port_floating force-busy force_keepalive forwardcontrol
 fragicmp hidetos ikeport keep_alive klipsdebug nat-ikeport nat_ikeport nat_traversal nocrsend ocsp-trust-name
 ocsp_enable ocsp_strict ocsp_timeout ocsp_trust_name ocsp_uri oe overridemtu perpeerlog perpeerlogdir pluto
 plutofork plutoopts plutorestartoncrash plutostderrlogtime plutowait postpluto prepluto rp_filter
 secctx-attr-value secctx_attr_value strictcrlpolicy
3.25-5.4   setup virtual_private
3.28-5.4   setup global-redirect global-redirect-to
3.30-5.4   setup audit-log
4.0-5.4    setup ikev1-secctx-attr-type listen-tcp listen-udp
4.2-5.4    setup ikev1-policy
5.1-5.2    setup debug
5.2-5.4    setup ipsec-interface-managed
5.3-5.4    setup crl-timeout expire-lifetime expire-shunt-interval
5.4        setup dns-resolver loglimit seeddev
-          setup disable-port-floating force-keepalive nat-traversal ocsp-trust-name rp-filter
3.25-3.32  side rsasigkey2 xauthname
3.25-3.32,4.2-5.4  side xauthusername
3.32-4.3,5.0-5.4   side interface-ip
4.0-5.4    side ikeport
4.6-5.4    side autheap
4.8-5.4    side ecdsakey pubkey
5.0-5.4    side groundhog
5.4        side eddsakey updown-config
3.25-3.32  conn cisco_unity connaddrfamily disablearrivalcheck ike-frag ike_frag initial_contact labeled-ipsec
 labeled_ipsec modecfgdns1 modecfgdns2 modecfgdomain modecfgwins1 modecfgwins2 nat_keepalive nm_configured
 policy_label sareftrack send_vendorid sha2_truncbug
3.25-3.32,4.2-5.4  conn remote_peer_type
3.25-4.15  conn alsoflip forceencaps
3.28-5.4   conn accept-redirect accept-redirect-to redirect-to send-redirect
3.30-5.4   conn ipsec-interface require-id-on-certificate
4.0-5.4    conn enable-tcp intermediate tcp-remoteport
4.2-5.4    conn ignore-peer-dns sec-label
4.8-5.4    conn ipsec-lifetime ipsec-max-bytes ipsec-max-packets
5.0-5.4    conn debug encap-dscp ikev1-dpdtimeout pfs-rekey-workaround ppk-ids
5.1-5.2    conn plutodebug
5.2-5.4    conn iptfs iptfs-drop-time iptfs-fragmentation iptfs-init-delay iptfs-max-queue-size iptfs-packet-size
 iptfs-reorder-window session-resumption
5.3-5.4    conn cisco-split nflog-group send-esp-tfc-padding-not-supported share-lease
5.4        conn clones reject-simultaneous-ike-auth send-supported-auth-methods
"""
IGNORED_KEYWORDS = """
5.0-5.4    dpdaction ikev1-secctx-attr-type secctx-attr-type
5.3-5.4    clientaddrfamily keyingtries plutostderrlog syslog virtual_private
"""
# The words of plutodebug=
DEBUG_FLAGS = """
3.25-5.4   all crypt none private whackwatch add-prefix
3.25       pfkey
3.25-4.5   control controlmore crypt-low dns dpd emitting kernel klips lifecycle nattraversal netkey oppo oppoinfo
 parsing proposal-parser raw retransmits x509 xauth
3.28-5.4   base cpu-usage tmi
4.2-5.4    refcnt
5.0-5.4    routing
5.1-5.4    updown
5.4        add-state
"""
SEPARATE = (5, 3)  # from this release on, config setup and connections have keywords of their own
FIRST_WORD = (4, 7)  # from this release up to 4.15, unknown words after a right one are passed over
IKEPAD_AUTO = (5, 2)  # from this release on, ikepad= takes auto
NO_BRACES = (5, 0)  # from this release on, include does not expand {a,b}
LENIENT = (5, 0)  # from this release on, a value that is none is ignored; before it, most such values refuse the file
NUMBER_KINDS = ("number", "0-65535", "duration", "seconds", "percent", "size")
_BOOL = ("y", "yes", "true", "on", "n", "no", "false", "off")
_KEYWORDS: dict[str, dict[str, str]] = {}
_VOCABULARY: dict[str, dict[str, Keyword]] = {}


class ConfigError(Failure):
    """A configuration that libreswan can't load.  The message is `file:line: reason`."""


class Setting:
    """A keyword in its canonical spelling, its value, and the file and line that have it."""

    __slots__ = ("file", "key", "line", "value")

    def __init__(self, key: str, value: str, file: str, line: int) -> None:
        self.key = key
        self.value = value
        self.file = file
        self.line = line


class Problem(Record):
    """An error or a doubtful line in a configuration.  `fatal`: libreswan refuses the file, or the meaning is unknown.
    `script`: the script for sed(1) that corrects the whole file, if there is one.  `key`: the keyword of the line that
    has the problem, in its canonical spelling; empty if the line has none."""

    file: str
    line: int  # 0: the file as a whole
    text: str
    fatal: bool = True
    script: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class Section(Record):
    """A section as a file has it: its name (empty for config setup), file, line, and settings in order."""

    name: str
    file: str
    line: int
    settings: list[Setting]


class Conn:
    """A connection with its also= sections and conn %default merged in.

    `settings` has the settings by keyword, `alsos` the names of the sections from also=.  `broken` is why libreswan
    does not load the connection: also= names a missing section, or (only up to 4.15) a keyword has two values.
    """

    def __init__(self, section: Section) -> None:
        self.name = section.name
        self.file = section.file
        self.line = section.line
        self.settings: dict[str, Setting] = {}
        self.alsos: list[str] = []
        self.broken: Problem | None = None

    def get(self, key: str, default: str = "") -> str:
        """Return the value of a keyword such as `leftid`, or the default."""
        setting = self.settings.get(key)
        return setting.value if setting else default

    def flag(self, key: str, default: bool = False) -> bool:
        """Return the value of a yes/no keyword, or the default."""
        return is_yes(self.get(key)) if self.get(key) else default

    @property
    def auto(self) -> str:
        """What pluto does with the connection when it starts: ignore, add, ondemand, start or keep."""
        value = self.get("auto", "ignore").lower()
        return {"route": "ondemand", "up": "start"}.get(value, value)


def is_shunt(conn: Conn) -> bool:
    """Return whether a connection makes no tunnel, but only lets packets pass in clear or drops them."""
    return conn.get("type") in ("pass", "passthrough", "reject", "drop") or conn.get("authby") == "never"


def is_yes(value: str) -> bool:
    """Return whether a value means yes in ipsec.conf."""
    return value.lower() in ("y", "yes", "true", "on", "1")


class Keyword(Record):
    """A spelling of a keyword: `key` is the canonical spelling, `kind` the kind of value.

    `releases` are the releases that know the spelling, `ignored` those that ignore it (may be empty); see covers().
    """

    key: str
    kind: str
    releases: str
    ignored: str = ""


def keywords(setup: bool) -> dict[str, str]:
    """Return the keywords of `config setup`, or of connections, and the kind of value that each takes."""
    name = "setup" if setup else "conn"
    if name not in _KEYWORDS:
        table = _KEYWORDS[name] = {} if setup else {"left": "text", "right": "text"}
        for row in joined_rows(SETUP_KEYWORDS if setup else CONN_KEYWORDS):
            kind, _, names = row.partition(": ")
            for key in names.split():
                table.update({place + key: kind.removeprefix("side ") for place in
                              (("left", "right") if kind.startswith("side ") else ("",))})
    return _KEYWORDS[name]


def vocabulary(setup: bool) -> dict[str, Keyword]:
    """Return the spellings of the keywords of `config setup`, or of connections, in lower case."""
    name = "setup" if setup else "conn"
    if name not in _VOCABULARY:
        kinds, words = keywords(setup), _VOCABULARY.setdefault(name, {})
        for row in ("*", *kinds), ("*", *(alias for alias in ALIASES if alias in kinds or canonical(alias) in kinds)), (
                "*", *(side + alias for side in ("left", "right") for alias in ALIASES)):
            _spell(words, kinds, *row)
        for rowtext in joined_rows(KEYWORD_RELEASES):
            releases, scope, *spellings = rowtext.split()
            if (scope == "setup") == setup:
                sides = ("left", "right") if scope == "side" else ("",)
                _spell(words, kinds, releases, *(side + spelling for side in sides for spelling in spellings))
        for rowtext in joined_rows(IGNORED_KEYWORDS):
            releases, *spellings = rowtext.split()
            for spelling in spellings:
                if spelling in words:
                    words[spelling] = Keyword(words[spelling].key, words[spelling].kind, words[spelling].releases,
                                              releases)
    return _VOCABULARY[name]


def _spell(words: dict[str, Keyword], kinds: Mapping[str, str], releases: str, *spellings: str) -> None:
    """Add spellings to `words` if their canonical form is in `kinds`.  The releases `-` remove them."""
    for spelling in spellings:
        key = canonical(spelling)
        if releases == "-":
            words.pop(spelling, None)
        elif key in kinds:
            words[spelling] = Keyword(key, kinds[key], releases)


def joined_rows(table: str) -> list[str]:
    """Return the rows of a table; a line that begins with a blank goes on the row above."""
    return table.strip("\n").replace("\n ", " ").split("\n")


def canonical(key: str) -> str:
    """Return the canonical spelling of a keyword: lower case, `-` for `_`, the present name for an older one."""
    key = key.lower().replace("_", "-")
    for side in ("left", "right"):
        if key.startswith(side):
            bare = key[len(side):].removeprefix("-")
            return side + ALIASES.get(bare, bare)
    return ALIASES.get(key, key)


def misplaced(text: str) -> str:
    """Return how a message names a misplaced line: by its first word if that is a keyword, otherwise as `this`, because
    the line may be a secret that belongs into ipsec.secrets."""
    word = text.replace("=", " ").partition(" ")[0]
    return quote(word) if any(canonical(word) in keywords(setup) for setup in (True, False)) else "this"


class Reading(Record):
    """How libreswan reads a value: `wrong` is what is wrong with it, or empty.

    A wrong value makes libreswan refuse the file (`fatal`), take `value` instead, or ignore the keyword (`value` None).
    """

    value: str | None
    wrong: str = ""
    fatal: bool = False


def is_right(kind: str, value: str) -> bool:
    """Return whether every release accepts a value of some kind.  False if only some releases do."""
    if kind in ("text", "list"):
        return True
    if kind in NUMBER_KINDS:
        return not number_problem(kind, value)
    if kind.startswith("bool"):
        return value in _BOOL
    return kind != "debug" and value.lower() in kind.split("|")


def read_value(kind: str, value: str, bare: bool, release: Callable[[], tuple[int, ...] | None]) -> Reading:
    """Return how libreswan reads a value of some kind; `bare`: the file has it without quotes or braces.

    `release()` returns the release, or None if it is not known.  Then a value is right if it is right for some release;
    other values are judged as before 5.0.  Facts: parser.lex, parser.y and keywords.c; the tests compare with addconn.
    The function does without re, because its import takes longer than reading a configuration.
    """
    if is_right(kind, value) or kind == "obsolete":
        return Reading(value)
    if kind.startswith("bool"):
        return read_bool(kind, value, release())
    if kind in NUMBER_KINDS:
        return read_number(kind, value, bare, release())
    if not value and bare:
        return Reading(value)  # before 5.0 the line means nothing, in 5.x it is ignored
    return read_words(kind, value, bare, release())


def is_integer(value: str) -> bool:
    """Return whether the lexer before 5.0 reads a value without quotes as a number."""
    return value.isdigit() or value == "%forever"


def read_number(kind: str, value: str, bare: bool, release: tuple[int, ...] | None) -> Reading:
    """Return how libreswan reads an invalid number, duration, percentage or size."""
    wrong = number_problem(kind, value)
    if not is_strict(release):
        return Reading(None, f"{wrong}, and is ignored")
    if kind in ("number", "0-65535") and not is_integer(value):
        return Reading("0", f"{wrong}, and counts as 0")
    is_missing = not value and kind in ("duration", "percent", "size")
    lacks_sign = kind == "percent" and is_integer(value)
    return Reading(None, wrong, bare and (is_missing or lacks_sign))


def is_strict(release: tuple[int, ...] | None) -> bool:
    """Return whether the release refuses a file with an invalid value.  An unknown release (None) counts as strict."""
    return release is None or release < LENIENT


def read_bool(kind: str, value: str, release: tuple[int, ...] | None) -> Reading:
    """Return how libreswan reads the value of a yes/no keyword: only lower case before 5.0, 0 and 1 from 5.0 on."""
    low = value.lower().replace("%forever", "0")
    if release is None or release >= LENIENT:
        takes_auto = "|auto" in kind and (release is None or release >= IKEPAD_AUTO)
        if low in (*_BOOL, "0", "1") or (takes_auto and low == "auto"):
            return Reading(low)
    wrong = "is not one of yes, no" if value else "has no value"
    if not is_strict(release):
        return Reading(None, f"{wrong}, and is ignored")
    word = lexed_bool(value)
    return Reading(word, f"{wrong}; libreswan 3 and 4 read it as {word}") if word else Reading(None, wrong, True)


def lexed_bool(value: str) -> str:
    """Return the yes/no word at the end of a value, or nothing.  The lexer before 5.0 skips what precedes it."""
    for place in range(len(value)):
        if words := [word for word in _BOOL if value.startswith(word, place)]:
            word = max(words, key=len)
            return "" if value[place + len(word):].strip(' "') else word
    return ""


def read_words(kind: str, value: str, bare: bool, release: tuple[int, ...] | None) -> Reading:
    """Return how libreswan reads the value of plutodebug=, or of a keyword that takes one of the words in `kind`.

    Before 5.0 a number without quotes is taken for the internal number of a word.
    """
    if kind == "debug":
        taken, wrong = value, flags_problem(value, release)
    else:
        words = [word for word, _, releases in (entry.partition("@") for entry in kind.split("|"))
                 if not releases or release is None or covers(releases, release)]
        taken, wrong = pick_word(words, value.lower(), release)
    if not wrong:
        return Reading(taken)
    if not is_strict(release):
        return Reading(None, f"{wrong}, and is ignored")
    if not value:
        return Reading(None, wrong)
    if bare and is_integer(value):
        return Reading(None, f"{wrong}; libreswan 3 and 4 take it for the internal number of one")
    return Reading(None, wrong, True)


def flags_problem(value: str, release: tuple[int, ...] | None) -> str:
    """Return what is wrong with a value of plutodebug=, or nothing."""
    flags: set[str] = set()
    for releases, *names in map(str.split, joined_rows(DEBUG_FLAGS)):
        if release is None or covers(releases, release):
            flags.update(names)
    given = value.replace("+", " ").replace(",", " ").split()
    unknown = [word for word in given if word.removeprefix("no-").removeprefix("debug-") not in flags]
    return f"names no debug flag: {', '.join(unknown)}" if unknown else ""


def pick_word(words: Sequence[str], value: str, release: tuple[int, ...] | None) -> tuple[str, str]:
    """Return the word that a value stands for, and what is wrong with the value, or nothing.

    Before 5.0 a value may have separators.  Up to 4.6 all words between them have to be known, from 4.7 on the first.
    """
    given = [value]
    if is_strict(release) and value not in words:
        given = value.replace(":", " ").replace(",", " ").split()
    known = [word for word in given if word in words]
    is_lax = release is not None and FIRST_WORD <= release < LENIENT and known[:1] == given[:1]
    if len(known) == 1 and (is_lax or len(given) == 1):
        return known[0], ""
    return "", f"is not one of {', '.join(words)}"


def number_problem(kind: str, value: str) -> str:
    """Return what is wrong with a number, duration, percentage or size, or nothing."""
    low = value.lower()
    if not value:
        return "has no value" if kind in ("duration", "percent", "size") else ""
    if kind == "number" or kind[0].isdigit():
        least, _, most = kind.partition("-")
        if not is_number(low if most else low.removeprefix("-")) and (most or low != "%forever"):
            return "is not a number"
        return f"is not within {kind}" if most and not int(least) <= int(low) <= int(most) else ""
    fits = {"duration": is_duration, "seconds": is_duration, "percent": is_percent, "size": is_size}[kind](low)
    if fits or (low == "%forever" and kind != "percent"):
        return ""
    return f"is no {'duration' if kind == 'seconds' else kind}"


def is_number(text: str) -> bool:
    """Return whether a text is a decimal number of at most 20 digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def is_duration(text: str) -> bool:
    """Return whether a text is a number or decimal fraction, with or without a unit of time (ttodeltatime.c)."""
    unit = next(unit for unit in ("us", "ms", *"smhdw", "") if text.endswith(unit))
    count = text.removesuffix(unit).removesuffix(" ") if unit else text
    return is_number(count.replace(".", "", 1)) and not count.endswith(".")


def is_percent(text: str) -> bool:
    """Return whether a text is a number with `%` behind it."""
    return text.endswith("%") and is_number(text[:-1])


def is_size(text: str) -> bool:
    """Return whether a text is a number with or without a binary prefix: 10, 10Mi, 10MiB (ttobinary.c)."""
    count = text.removesuffix("b")
    return is_number(count[:-2] if count.endswith("i") and count[-2:-1] in (*"kmgtpe",) else count)


def split_value(text: str) -> tuple[str, str]:
    """Return a value and the rest of its line: the longest of the quoted, braced and bare matches (parser.lex)."""
    quoted = text.find('"', 1) + 1 if text[:1] == '"' else 0
    before = text.partition('"')[0]
    braced = before.rfind("}") + 1 if text[:1] == "{" else 0
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
    """ipsec.conf with the files that it includes.  Errors in the files raise nothing; they are in `problems`.

    `files` are the names of all files that were read, in order.  `sections` are the connections as written, with
    %default.  `unread` is True if a file could not be read.
    """

    def __init__(self, host: Host, name: str = "", text: str | None = None) -> None:
        """Read the file `name`, or parse `text`, for which messages give `name` as the source.

        The default is the host's configuration; `-` is standard input.
        """
        self.host = host
        self.name = name or host.conf
        self.files: list[str] = []
        self.problems: list[Problem] = []
        self.sections: list[Section] = []
        self.unread = False
        self._open: list[str] = []  # files that are being read, each included by the one before
        self._reads = 0  # how often a file was read
        self._setup: dict[str, Setting] = {}
        self._setups = 0
        self._section: Section | None = None
        self._conns: list[Conn] | None = None
        self._release: list[tuple[int, ...] | None] = []  # empty: not asked for yet
        if text is None and self.name == "-":
            text = decode(b"".join(host.stdin(TEXT_LIMIT)))
        if text is not None:
            self._read(self.name, text.split("\n"), 0)
        else:
            self._read_file(self.name, 0, 0, self.name)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _problem(self, file: str, line: int, text: str, fatal: bool = True, key: str = "") -> None:
        self.problems.append(Problem(file, line, text, fatal, key=key))

    def _read_file(self, name: str, depth: int, line: int, parent: str, matched: bool = False) -> None:
        self._reads += 1
        self.files.append(name)
        self._open.append(name)
        try:
            self._read(name, self.host.lines(name), depth)
        except OSError as error:
            self.files.pop()
            # libreswan passes over a link to nothing that a pattern finds
            passed = matched and error.errno == errno.ENOENT
            self.unread |= not passed
            self._problem(parent, line, f"can't load {quote(name)}: {error.strerror}", not passed, "include")
        self._open.pop()

    def _read(self, name: str, lines: Iterable[str], depth: int) -> None:
        self._section = None

        def tell(number: int, what: str, script: str) -> None:
            self.problems.append(Problem(name, number, f"{what}, which libreswan takes for a part of a word",
                                         script=script))

        for number, line in enumerate(unix_lines(lines, tell), 1):
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
            self._problem(name, number, f"{misplaced(word)} begins no section: conn, config setup and include do"
                          + (", and a setting is indented" if "=" in line else ""))
        elif not value or self._trailing(after) or (word == "config" and value != "setup"):
            self._problem(name, number, f"{word} needs " + {"conn": "one name", "config": "the word setup"}.get(
                word, "one value") + " and nothing behind it")
        elif word == "version" and (self.sections or self._setups or depth):
            self._problem(name, number, "version stands before all sections and includes")
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
        """Return whether the text after a value is something other than a comment.

        The lexer reads a single `#word` as a keyword.
        """
        text = text.lstrip(" \t")
        return bool(text) and (text[0] != "#" or not any(c in text for c in '"= \t'))

    def _include(self, name: str, number: int, pattern: str, depth: int) -> None:
        if depth + 1 >= INCLUDE_DEPTH:
            self._problem(name, number, f"include {quote(pattern)}: deeper than {INCLUDE_DEPTH}, left out", False)
            return
        if not pattern.startswith("/"):
            self._problem(name, number, f"include {quote(pattern)} is not followed: libreswan does not look beside "
                          f"{name}, write the whole path", False, "include")
            return
        expands = self.release is None or self.release < NO_BRACES if "{" in pattern else False
        try:
            found = self.host.glob(*(braces(pattern) if expands else [pattern]))
        except OSError as error:
            self.unread = True
            self._problem(name, number, f"include {quote(pattern[:200])}: {error.strerror}", True, "include")
            return
        if not found and "{" in pattern and not expands:
            self._problem(name, number, f"include {quote(pattern)} is not followed: libreswan 5 does not expand {{}}, "
                          "write a line for each", False, "include")
            return
        if not found and "*" not in pattern:
            self._problem(name, number, f"could not open include filename {quote(pattern)}", False, "include")
        for match in found:
            if match in self._open:  # libreswan reads it again, until it is ten deep
                self._problem(name, number, f"include {quote(pattern)}: {match} is being read already, a loop", False)
            elif self._reads >= FILES_LIMIT:
                self.unread = True
                self._problem(name, number, f"include {quote(pattern)}: more than {FILES_LIMIT} files are included, "
                              "the rest is not read", True, "include")
                return
            else:
                self._read_file(match, depth + 1, number, name, any(char in pattern for char in "*?["))

    def _statement(self, name: str, number: int, line: str) -> None:
        key, equals, rest = line.partition("=")
        key = key.rstrip(" \t")
        if self._section is None:
            self._problem(name, number, f"{misplaced(key)} is indented, but in no section")
            return
        if not equals or " " in key or "\t" in key or '"' in key or not key:
            word = key.replace("\t", " ").partition(" ")[0]
            self._problem(name, number, f"syntax error: {misplaced(key)} is no keyword=value", key=canonical(word))
            return
        rest = rest.lstrip(" \t")
        if key[:2].lower() in ("x-", "x_"):
            self._section.settings.append(Setting(key, rest, name, number))
            return
        if any(c in rest for c in ' \t"{}'):
            value, after = split_value(rest)
            if self._trailing(after):
                self._problem(name, number, f"syntax error behind the value of {key}: quote a value with blanks, and "
                              "put a blank behind the # of a comment", key=canonical(key))
                return
        else:
            value = rest
        bare = not rest or rest.startswith(value or "\n") or rest[0] == "#"
        self._set(Setting(canonical(key), value, name, number), key, bare)

    @property
    def release(self) -> tuple[int, ...] | None:
        """The installed release, such as (4, 10), that judges keywords and values; None if it is not known.

        A release older or newer than those of the tables counts as the oldest or newest.
        """
        if not self._release:
            version = self.host.libreswan_version()
            first, last = version_key(RELEASES[0]), version_key(RELEASES[-1])
            self._release = [min(max(leading_version(version), first), last) if version else None]
        return self._release[0]

    def _has(self, releases: str) -> bool:
        """Return whether the installed release is one of these; True if it is not known."""
        return releases == "*" or self.release is None or covers(releases, self.release)

    def _set(self, setting: Setting, written: str, bare: bool = True) -> None:
        """Add a setting to the section that is being read, or report what is wrong with it.

        `written` is the keyword as the file has it; `bare`: the value has no quotes and no braces.
        """
        assert self._section is not None
        setup = not self._section.name
        word = vocabulary(setup).get(written.lower())
        if word is not None and word.releases == "*" and not word.ignored and is_right(word.kind, setting.value):
            self._add(setting, word)
            return
        word, belongs = self._keyword(setting, written, setup)
        if word is None:
            return
        if (word.kind == "obsolete" and belongs) or (word.ignored and self.release and self._has(word.ignored)):
            self._problem(setting.file, setting.line, f"obsolete keyword {written} is ignored", False, word.key)
            return
        reading = read_value(word.kind, setting.value, bare, lambda: self.release)
        if reading.wrong:
            # somebody may have put a secret there
            shown = "" if "auth" in setting.key else quote(setting.value)
            self._problem(setting.file, setting.line, f"{written}={shown} {reading.wrong}", reading.fatal, word.key)
        if reading.value is None:
            return
        if not belongs:
            self._report_misplaced(setting, written, word, bare)
            return
        setting.value = reading.value
        self._add(setting, word)

    def _keyword(self, setting: Setting, written: str, setup: bool) -> tuple[Keyword | None, bool]:
        """Return the keyword of a spelling, and whether the keyword belongs into this kind of section.

        Return None and report a problem if the installed release does not have the keyword.
        """
        words, others, spelling = vocabulary(setup), vocabulary(not setup), written.lower()
        word = words.get(spelling)
        right = f"right{spelling}"
        if word is None and not setup and right in words:
            word = words[right]
            refused = self.release is not None and self.release >= SEPARATE
            self._problem(setting.file, setting.line, f"{written} needs left or right before it; libreswan up to 5.2 "
                          f"reads it as right{written}", refused, word.key)
            return (None if refused else word), True
        if word is not None and self._has(word.releases):
            return word, True
        other = others.get(right if setup and right in others else spelling)
        if other is not None and self._has(other.releases):
            return other, False
        self._problem(setting.file, setting.line, self._unknown(written, word or other), key=setting.key)
        return None, False

    def _report_misplaced(self, setting: Setting, written: str, word: Keyword, bare: bool) -> None:
        """Report a keyword that belongs into the other kind of section."""
        assert self._section is not None
        setup = not self._section.name
        means_nothing = bare and not setting.value  # to the releases before 5.0
        refused = (setup and is_strict(self.release) and not means_nothing) or (
            self.release is not None and self.release >= SEPARATE)
        self._problem(setting.file, setting.line, f"keyword {written} is not valid in "
                      f"{'config setup' if setup else 'a conn'}", refused, word.key)

    def _add(self, setting: Setting, word: Keyword) -> None:
        """Add a setting to the section that is being read."""
        assert self._section is not None
        setting.key = word.key
        if word.key == "virtual-private" and (bad := bad_private_nets(setting.value)):
            self._problem(setting.file, setting.line, f"virtual-private: {quote(bad[0])} is no network such as "
                          "%v4:10.0.0.0/8 or %v6:!fd00::/8; libreswan 4 then loads none of them", False, word.key)
        self._section.settings.append(setting)
        if not self._section.name:
            self._setup[setting.key] = setting

    def _unknown(self, written: str, word: Keyword | None) -> str:
        """Return the message for a keyword that the installed release lacks; `word`: other releases have it."""
        if word is None or not self.release:
            return f"unknown keyword {quote(written)}"
        return (f"libreswan {'.'.join(map(str, self.release))} has no keyword {written}; "
                f"{word.releases.replace('-', ' to ').replace(',', ' and ')} have it")

    # --- what it says -----------------------------------------------------------------------------------------------

    def check(self) -> Config:
        """Return self if libreswan can load the configuration.  Raises ConfigError for the first fatal problem."""
        for problem in self.problems:
            if problem.fatal:
                raise ConfigError(str(problem))
        return self

    def setup(self, key: str, default: str = "") -> str:
        """Return the value of a keyword of `config setup`, or the default."""
        setting = self._setup.get(key)
        return setting.value if setting and setting.value else default

    def setup_at(self, key: str) -> Setting | None:
        """Return the setting of `config setup` for a keyword, or None."""
        return self._setup.get(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return the value of a yes/no keyword of `config setup`, or the default."""
        value = self.setup(key)
        return is_yes(value) if value else default

    def number(self, key: str, default: int | None = None) -> int | None:
        """Return the value of a number of `config setup`, or the default if it is not set."""
        value = self.setup(key)
        return int(value) if value.lstrip("-").isdigit() else default

    def seconds(self, key: str, default: int) -> int:
        """Return a duration of `config setup` in whole seconds: a number, or a number with s, m, h, d or w."""
        value = self.setup(key).lower()
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}.get(value[-1:])
        number = (value[:-1] if unit else value).strip()
        return int(float(number) * (unit or 1)) if number.replace(".", "", 1).isdigit() else default

    def conns(self) -> list[Conn]:
        """Return the connections in the order of the file, a Conn for each `conn` line, also= and %default merged."""
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
        """Return the first connection of this name, otherwise the first with this connalias, or None."""
        return next((conn for conn in self.conns() if conn.name == name), None) or next(
            (conn for conn in self.conns() if name in conn.get("connalias").split()), None)

    def _merged(self, section: Section, by_name: Mapping[str, Section], default: Mapping[str, Setting]) -> Conn:
        """Return a connection with its own settings, those of its also= sections, and those of %default.

        The sections are read breadth-first, each once (load_conn() of confread.c).  Of a keyword with two values the
        first counts; libreswan 4 refuses the connection.
        """
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
                            self._problem(setting.file, setting.line, f"conn {conn.name}: there is no conn "
                                          f"{quote(name)} to take in with also=", False)
                            conn.broken = self.problems[-1]
                        elif name not in seen:
                            seen.add(name)
                            conn.alsos.append(name)
                            todo.append(other)
                elif key not in merged:
                    merged[key] = setting
                elif kinds.get(key) == "list":
                    merged[key] = Setting(key, f"{merged[key].value} {setting.value}", setting.file, setting.line)
                elif merged[key].value != setting.value and key in kinds:
                    self._problem(setting.file, setting.line, f"duplicate key {key} in conn {conn.name} (first in "
                                  f"{merged[key].file}:{merged[key].line})", False)
                    conn.broken = self.problems[-1]
        for key, setting in default.items():
            if key in merged and kinds.get(key) == "list":
                merged[key] = Setting(key, f"{setting.value} {merged[key].value}", setting.file, setting.line)
            else:
                merged.setdefault(key, setting)
        conn.settings = merged
        return conn


def unix_lines(lines: Iterable[str], tell: Callable[[int, str, str], None]) -> Iterator[str]:
    """Yield the lines without a byte order mark and without CR, which libreswan reads as parts of words.

    `tell` is called once for each kind, with the number of the line, a description, and the script for sed(1) that
    removes it from the file.
    """
    told_of = False
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith("\ufeff"):
            tell(number, "the file begins with a byte order mark", r"1s/^\xef\xbb\xbf//")
            line = line[1:]
        if line.endswith("\r"):
            if not told_of:
                tell(number, "the line ends in CR LF", r"s/\r$//")
            told_of = True
            line = line[:-1]
        yield line


def braces(pattern: str) -> list[str]:
    """Return the patterns for which a pattern with {a,b} stands, as GLOB_BRACE of glob(3) expands it.  Raises OSError
    for more than PATTERN_LIMIT."""
    head, opened, rest = pattern.partition("{")
    inner, closed, tail = rest.partition("}")
    if not opened or not closed:
        return [pattern]
    too_many = OSError(errno.E2BIG, f"stands for more than {PATTERN_LIMIT} patterns", pattern)
    if tail.count("{") > PATTERN_LIMIT.bit_length():  # two words in each of these would be too many
        raise too_many
    words, ends = inner.split(","), braces(tail)
    if len(words) * len(ends) > PATTERN_LIMIT:
        raise too_many
    return [head + word + end for word in words for end in ends]


def secrets_file(host: Host, config: Config | None = None) -> str:
    """Return the name of the secrets file: secretsfile= of the configuration, or the default next to ipsec.conf."""
    return (config.setup("secretsfile") if config else "") or host.secrets


def secret_files(host: Host, name: str) -> tuple[list[str], list[Problem]]:
    """Return the secrets file `name` and the files that it includes, in pluto's order, and the problems in them.

    The text of a problem never quotes the file.
    """
    files: list[str] = []
    problems: list[Problem] = []
    stopped: list[str] = []  # the first file beyond FILES_LIMIT

    def visit(file: str, depth: int, parent: str, line: int) -> None:
        if depth > INCLUDE_DEPTH:
            problems.append(Problem(parent, line, f"includes nested deeper than {INCLUDE_DEPTH} (a loop?)"))
            return
        if len(files) >= FILES_LIMIT:
            if not stopped:
                stopped.append(file)
                problems.append(Problem(parent, line, f"more than {FILES_LIMIT} files are included, the rest is not "
                                        "read"))
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
                visit_included(record.include, depth, file, record.line)

    def visit_included(pattern: str, depth: int, file: str, line: int) -> None:
        try:
            found = host.glob(os.path.join(os.path.dirname(file), pattern))
        except OSError as error:
            problems.append(Problem(file, line, f"include {quote(pattern[:200])}: {error.strerror}"))
            return
        if not found and not any(c in pattern for c in "*?["):
            problems.append(Problem(file, line, f"{quote(pattern)}: no such file", False))
        for match in found:
            visit(match, depth + 1, file, line)

    visit(name, 0, name, 0)
    return files, problems


ANY_ID = ("%any", "%any4", "%any6", "0.0.0.0", "::", "0::0")


def host_names(host: Host) -> dict[str, str]:
    """Return the first address of each name in /etc/hosts; the names are in lower case (hosts(5))."""
    names: dict[str, str] = {}
    try:
        for line in host.lines("/etc/hosts"):
            address, *words = line.partition("#")[0].split() or [""]
            for word in words:
                names.setdefault(word.lower(), address)
    except OSError:
        return names
    return names


def comparable_id(text: str, names: Mapping[str, str]) -> str | None:
    """Return an ID in a form that is equal for IDs that pluto treats as the same (atoid() and id_eq() of id.c).

    Empty stands for any ID.  None is an ID that depends on DNS or a certificate, or is a distinguished name.  `names`
    comes from host_names().
    """
    if text in ANY_ID:
        return ""
    if text.startswith(("%", "@~")) or "=" in text:
        return None
    if "@" not in text:
        return canonical_net(names.get(text.lower(), text))
    if text.startswith("@#"):
        return "key " + text[2:].lower().removeprefix("0x")
    if text.startswith("@["):
        return "key " + encode(text[2:].removesuffix("]")).hex()
    return "name " + text.lower().rstrip(".")


def canonical_net(text: str) -> str | None:
    """Return an address or network in canonical spelling, with its prefix and no host bits, or None."""
    import _socket as socket
    address, slash, bits = text.partition("/")
    family = AF_INET6 if ":" in address else AF_INET
    try:
        number = int.from_bytes(socket.inet_pton(family, address), "big")
        size = 128 if family == AF_INET6 else 32
        if slash and not (bits.isascii() and bits.isdigit()):
            return None
        length = int(bits) if slash else size
        number = number >> size - length << size - length
        return f"{socket.inet_ntop(family, number.to_bytes(size // 8, 'big'))}/{length}"
    except (OSError, ValueError):
        return None


def bad_private_nets(value: str) -> list[str]:
    """Return the entries of virtual-private= that pluto refuses (read_subnet() of virtual_ip.c)."""
    return [entry for entry in value.split(",") if is_bad_private(entry)] if value else []


def is_bad_private(entry: str) -> bool:
    """Return whether pluto refuses an entry of virtual-private=.

    An entry is a network, after `%v4:` or `%v6:` and perhaps `!`, without bits behind its prefix.  5.2 accepts a single
    address, too.
    """
    net = entry.strip().lower()
    version = {"%v4:": 4, "%v6:": 6}.get(net[:4], 0)
    net = (net[4:] if version else net).removeprefix("!")
    address, slash, mask = net.partition("/")
    if not slash or (version == 4 and ":" in net) or (version == 6 and ":" not in net):
        return True
    if canonical_net(mask) and canonical_net(address):
        return False  # 10.0.0.0/255.0.0.0
    known = canonical_net(net)
    if known is None:
        is_short = address.isdigit() or address.count(".") in (1, 2)  # pluto completes 10/8
        return not is_short or not set(net) <= set("0123456789./")
    return canonical_net(address) != canonical_net(known.partition("/")[0])


def has_secret(ids: Sequence[str | None], ours: str, theirs: str) -> bool | None:
    """Return whether pluto uses the PSK with these IDs for the two IDs of a connection; None if an unknown ID decides.

    All IDs are as comparable_id() returns them.  Facts: lsw_find_secret_by_id() of secrets.c.
    """
    if not ids or (len(ids) == 1 and ids[0] in ("", ours)):
        return True
    if None in ids:
        return None
    # two of the three have to fit: this end, the other, any
    return [ours in ids, theirs in ids, "" in ids].count(True) == 2 or set(ids) == {""}


def nss_passwords(host: Host, directory: str = "") -> dict[str, str]:
    """Return the passwords in the file nsspassword, by NSS token.  A line without a token is under the empty name.

    Lines are `token:password` (lswnss.c).  The default directory is ipsec.d.  Without the file there are none.
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
    """Return the password of an NSS token as pluto finds it, or None.

    The token of the database has another name in FIPS mode, so its password is found under both names.
    """
    passwords = nss_passwords(host, directory)
    names = [token]
    if token in ("NSS Certificate DB", "NSS FIPS 140-2 Certificate DB"):
        names += ["NSS Certificate DB", "NSS FIPS 140-2 Certificate DB", ""]
    return next((passwords[name] for name in names if name in passwords), None)


def learn_secrets(redactor: Redactor, host: Host, file: str) -> None:
    """Have the redactor learn the secrets of a file, as far as it can be read."""
    try:
        redactor.learn_file(host.lines(file))
    except OSError:
        return  # it was readable a moment ago


def redactor_of(host: Host, show_secrets: bool = False, config: Config | None = None) -> Redactor:
    """Return a Redactor that has learnt the host's secrets: ipsec.secrets with its includes, *.secrets, NSS passwords,
    and the hashes in ipsec.d/passwd.  A file that can't be read is left out; secret_files() reports it."""
    redactor = Redactor(show_secrets)
    config = config or Config(host)
    directories = list(dict.fromkeys((host.confddir, config.setup("ipsecdir", host.confddir), host.nssdir,
                                      config.setup("nssdir", host.nssdir))))
    names = [host.secrets, secrets_file(host, config)]
    for directory in directories:
        try:
            names += host.glob(f"{directory}/*.secrets")
        except OSError:
            continue  # a directory with wildcards in its name
        for password in nss_passwords(host, directory).values():
            redactor.learn(password)
    seen: set[str] = set()
    for name in dict.fromkeys(names):
        for file in secret_files(host, name)[0]:
            if file not in seen:
                seen.add(file)
                learn_secrets(redactor, host, file)
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
    """Yield the lines of a secrets file without the secrets.  Raises OSError."""
    return censor_secrets(host.lines(name or host.secrets))


def own_reader(host: Host, args: Args, name: str) -> Config:
    """Return the configuration for a command that replaces libreswan's program.  Raises ConfigError (status 3)."""
    why = "libreswan's own program is not installed" if host.live else "nothing of a mounted disk is run"
    version = host.libreswan_version()
    host.warn(f"{name}: {why}; the built-in reader answers" + (f" as libreswan {version} would" if version else ""))
    config = Config(host, args.value("--config"))
    config.conns()
    for problem in config.problems:
        if problem.fatal:
            raise ConfigError(f"ipsec {name}: cannot load config {quote(config.name)}: {problem}", 3)
        host.warn(f"{name}: {problem}")
    return config


def check_answers(host: Host, name: str = "") -> None:
    """Raise TimeoutError if the NSS database, the configuration `name` (default the host's own) or a file that it
    includes is on a file system that does not answer: a program of libreswan would wait for it for ever."""
    if MOUNTS.that_may_hang():
        host.isdir(host.nssdir)
        if (name or host.conf) != "-":
            Config(host, name)
        for mount, (_, path, seconds) in MOUNTS.silent.items():
            raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:g} s from the file system on {mount}", path)


# =====================================================================================================================
# 5. Kernel
#
# The state of the running kernel, read from plain netlink sockets by a small streaming reader, and from /proc: XFRM
# states and policies, addresses, routes, rules and links, as text in the words of iproute2 5.10 to 6.15, and as data;
# and the removal of the states and policies that pluto left.  Used by reports, verify, look, show, _updown and the
# service commands.  Facts: the headers named below, rtnetlink(7), proc(5); kernel_xfrm.c and spd_priority() of
# libreswan 3.29 to 5.2.
# =====================================================================================================================


# --- numbers and structures of the kernel's headers -------------------------------------------------------------------

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NLMSGHDR_FORM = "=IHHII"  # struct nlmsghdr: length, type, flags, sequence, port
NLMSGHDR_SIZE = 16
NLATTR_SIZE = 4  # struct nlattr, struct rtattr: 16 bits of length, 16 bits of type
ERRNO_SIZE = 4  # struct nlmsgerr and the body of NLMSG_DONE begin with a negative errno

# linux/xfrm.h
XFRM_MSG_DELSA = 17
XFRM_MSG_GETSA = 18
XFRM_MSG_DELPOLICY = 20
XFRM_MSG_GETPOLICY = 21
XFRMA_ALG_AUTH = 1
XFRMA_ALG_CRYPT = 2
XFRMA_ALG_COMP = 3
XFRMA_ENCAP = 4
XFRMA_TMPL = 5
XFRMA_SEC_CTX = 8
XFRMA_REPLAY_VAL = 10
XFRMA_COADDR = 14
XFRMA_LASTUSED = 15
XFRMA_POLICY_TYPE = 16
XFRMA_ALG_AEAD = 18
XFRMA_ALG_AUTH_TRUNC = 20
XFRMA_MARK = 21
XFRMA_TFCPAD = 22
XFRMA_REPLAY_ESN_VAL = 23
XFRMA_SA_EXTRA_FLAGS = 24
XFRMA_OFFLOAD_DEV = 28
XFRMA_SET_MARK = 29
XFRMA_SET_MARK_MASK = 30
XFRMA_IF_ID = 31
XFRMA_SA_DIR = 33
XFRMA_SA_PCPU = 35
XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_POLICY_FWD, XFRM_POLICY_MAX = 0, 1, 2, 3
XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK = 0, 1
XFRM_POLICY_TYPE_MAIN, XFRM_POLICY_TYPE_SUB = 0, 1
XFRM_SA_DIR_IN, XFRM_SA_DIR_OUT = 1, 2
XFRM_OFFLOAD_INBOUND, XFRM_OFFLOAD_PACKET = 2, 4
XFRM_INF = (1 << 64) - 1
SELECTOR_FORM = "16s16s2s2s2s2sHBBB3xiI"  # struct xfrm_selector
LIFETIMES_FORM = "8Q4Q"  # struct xfrm_lifetime_cfg, struct xfrm_lifetime_cur
POLICY_FORM = f"={SELECTOR_FORM}{LIFETIMES_FORM}IIBBBB4x"  # struct xfrm_userpolicy_info
STATE_FORM = f"={SELECTOR_FORM}16sIB3x16s{LIFETIMES_FORM}IIIIIHBBB7x"  # struct xfrm_usersa_info
TEMPLATE_FORM = "=16sIB3xH2x16sIBBBxIII"  # struct xfrm_user_tmpl
POLICY_ID_FORM = "=56sIB3x"  # struct xfrm_userpolicy_id: selector, index, direction
STATE_ID_FORM = "=16sIHBx"  # struct xfrm_usersa_id: destination, SPI, family, protocol
SELECTOR_SIZE = 56
SELECTOR_FIELDS = 12  # the number of fields that SELECTOR_FORM unpacks to
LIFETIMES_FIELDS = 12
ALGORITHM_NAME_SIZE = 64  # struct xfrm_algo and its kind: the name, 32 bits of key length, …, the key
SEC_CTX_SIZE = 8  # struct xfrm_user_sec_ctx; the label follows it
MARK_FORM = "=II"  # struct xfrm_mark: value, mask
ENCAP_FORM = "=H2s2s2x16s"  # struct xfrm_encap_tmpl: type, source and destination port, original address
REPLAY_FORM = "=III"  # struct xfrm_replay_state: outgoing and incoming sequence number, bitmap
REPLAY_ESN_FORM = "=6I"  # struct xfrm_replay_state_esn: length of the bitmap, oseq, seq, oseq_hi, seq_hi, window
REPLAY_ESN_SIZE = 24
OFFLOAD_FORM = "=IB"  # struct xfrm_user_offload: interface, flags

# linux/in.h, linux/udp.h
IPPROTO_ICMP, IPPROTO_GRE, IPPROTO_ESP, IPPROTO_AH, IPPROTO_ICMPV6, IPPROTO_COMP, IPPROTO_MH = (
    1, 47, 50, 51, 58, 108, 135)
UDP_ENCAP_ESPINUDP_NON_IKE, UDP_ENCAP_ESPINUDP, TCP_ENCAP_ESPINTCP = 1, 2, 7

# linux/if.h
IFF_UP = 1
IFF_LOOPBACK = 8
IFF_POINTOPOINT = 0x10
IFF_RUNNING = 0x40

# linux/rtnetlink.h
RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28
RTM_NEWRULE, RTM_GETRULE = 32, 34
RTM_GETNSID = 90
RTM_NEW_TO_DEL = 1  # RTM_DELLINK = RTM_NEWLINK + 1, and so on
RTMSG_FORM = "=8BI"  # struct rtmsg: family, bits of destination and source, TOS, table, protocol, scope, type, flags
RTMSG_SIZE = 12
RTMSG_TABLE = 4  # the offset of the table in struct rtmsg
RTGENMSG_SIZE = 4  # struct rtgenmsg and its padding
RTM_F_CLONED = 0x200
RT_TABLE_MAIN = 254
RTN_UNICAST, RTN_LOCAL = 1, 2
RTPROT_UNSPEC, RTPROT_KERNEL, RTPROT_BOOT = 0, 2, 3
RT_SCOPE_UNIVERSE, RT_SCOPE_SITE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 200, 253, 254, 255
RTNH_F_ONLINK = 4
RTNEXTHOP_FORM = "=HBBi"  # struct rtnexthop: length, flags, weight less one, interface
RTNEXTHOP_SIZE = 8
CACHEINFO_FORM = "=8xiI"  # struct rta_cacheinfo, without its first two fields: expires (1/100 s), error
RTA_DST = 1
RTA_SRC = 2
RTA_IIF = 3
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_METRICS = 8
RTA_MULTIPATH = 9
RTA_FLOW = 11
RTA_CACHEINFO = 12
RTA_TABLE = 15
RTA_MARK = 16
RTA_VIA = 18
RTA_NEWDST = 19
RTA_PREF = 20
RTA_ENCAP_TYPE = 21
RTA_ENCAP = 22
RTA_UID = 25
RTA_NH_ID = 30
RTAX_LOCK = 1
RTAX_MTU = 2
RTAX_WINDOW = 3
RTAX_RTT = 4
RTAX_RTTVAR = 5
RTAX_SSTHRESH = 6
RTAX_CWND = 7
RTAX_ADVMSS = 8
RTAX_REORDERING = 9
RTAX_HOPLIMIT = 10
RTAX_INITCWND = 11
RTAX_FEATURES = 12
RTAX_RTO_MIN = 13
RTAX_INITRWND = 14
RTAX_QUICKACK = 15
RTAX_CC_ALGO = 16
RTAX_FASTOPEN_NO_COOKIE = 17
RTAX_FEATURE_ECN = 1
NO_LIMIT = 0xFFFFFFFF  # -1 in 32 bits: no value is set
AF_MPLS = 28  # linux/socket.h

# linux/lwtunnel.h, linux/mpls_iptunnel.h
LWTUNNEL_ENCAP_MPLS, LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6, LWTUNNEL_ENCAP_XFRM = 1, 2, 4, 10
LWTUNNEL_IP_ID, LWTUNNEL_IP_DST, LWTUNNEL_IP_SRC, LWTUNNEL_IP_TTL, LWTUNNEL_IP_TOS = 1, 2, 3, 4, 5
LWT_XFRM_IF_ID, LWT_XFRM_LINK = 1, 2
MPLS_IPTUNNEL_DST, MPLS_IPTUNNEL_TTL = 1, 2

# linux/fib_rules.h
FIB_RULE_FORM = "=8BI"  # struct fib_rule_hdr: family, bits of destination and source, TOS, table, -, -, action, flags
FIB_RULE_SIZE = 12
FIB_RULE_INVERT, FIB_RULE_UNRESOLVED, FIB_RULE_IIF_DETACHED, FIB_RULE_OIF_DETACHED = 2, 4, 8, 16
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_BLACKHOLE, FR_ACT_UNREACHABLE, FR_ACT_PROHIBIT = 1, 2, 3, 6, 7, 8
FRA_DST = 1
FRA_SRC = 2
FRA_IIFNAME = 3
FRA_GOTO = 4
FRA_PRIORITY = 6
FRA_FWMARK = 10
FRA_FLOW = 11
FRA_TUN_ID = 12
FRA_SUPPRESS_IFGROUP = 13
FRA_SUPPRESS_PREFIXLEN = 14
FRA_TABLE = 15
FRA_FWMASK = 16
FRA_OIFNAME = 17
FRA_PAD = 18
FRA_L3MDEV = 19
FRA_UID_RANGE = 20
FRA_PROTOCOL = 21
FRA_IP_PROTO = 22
FRA_SPORT_RANGE = 23
FRA_DPORT_RANGE = 24
FRA_DSCP = 25
FRA_FLOWLABEL = 26
FRA_FLOWLABEL_MASK = 27
FRA_SPORT_MASK = 28
FRA_DPORT_MASK = 29
FRA_DSCP_MASK = 30

# linux/if_link.h
IFINFOMSG_FORM = "=B1xHiII"  # struct ifinfomsg: family, type, index, flags, changed flags
IFINFOMSG_SIZE = 16
IFLA_ADDRESS = 1
IFLA_BROADCAST = 2
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_QDISC = 6
IFLA_MASTER = 10
IFLA_TXQLEN = 13
IFLA_OPERSTATE = 16
IFLA_LINKINFO = 18
IFLA_STATS64 = 23
IFLA_GROUP = 27
IFLA_LINK_NETNSID = 37
IFLA_PROTO_DOWN = 39
IFLA_XDP = 43
IFLA_PROP_LIST = 52
IFLA_PERM_ADDRESS = 54
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_XDP_ATTACHED, IFLA_XDP_PROG_ID = 2, 4
IFLA_XFRM_LINK, IFLA_XFRM_IF_ID = 1, 2
STATS64_SIZE = 48
STATS64_FORM = "=6Q"  # struct rtnl_link_stats64: packets in and out, bytes in and out, errors in and out, …

# linux/if_tunnel.h
IFLA_VTI_LINK, IFLA_VTI_IKEY, IFLA_VTI_OKEY, IFLA_VTI_LOCAL, IFLA_VTI_REMOTE = 1, 2, 3, 4, 5
IFLA_GRE_IKEY, IFLA_GRE_OKEY, IFLA_GRE_LOCAL, IFLA_GRE_REMOTE = 4, 5, 6, 7
IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE = 2, 3

# linux/if_arp.h
ARPHRD_TUNNEL, ARPHRD_TUNNEL6, ARPHRD_SIT, ARPHRD_IPGRE, ARPHRD_IP6GRE = 768, 769, 776, 778, 823

# linux/if_addr.h
IFADDRMSG_FORM = "=4BI"  # struct ifaddrmsg: family, bits, flags, scope, interface
IFADDRMSG_SIZE = 8
IFADDRMSG_INDEX = 4  # the offset of the interface in struct ifaddrmsg
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_LABEL = 3
IFA_BROADCAST = 4
IFA_ANYCAST = 5
IFA_CACHEINFO = 6
IFA_FLAGS = 8
IFA_RT_PRIORITY = 9
IFA_PROTO = 11
IFA_F_TEMPORARY = 1  # of an IPv6 address; the same bit is IFA_F_SECONDARY of an IPv4 address
IFA_F_PERMANENT = 0x80
IFA_CACHEINFO_FORM = "=II"  # struct ifa_cacheinfo: preferred and valid lifetime in seconds, …

# linux/neighbour.h
NDMSG_FORM = "=B3xiHBB"  # struct ndmsg: family, interface, state, flags, type
NDA_DST = 1
NUD_PERMANENT = 0x80
NTF_PROXY = 8

# linux/net_namespace.h
NETNSA_NSID, NETNSA_FD = 1, 3

# linux/netfilter.h, linux/netfilter/nfnetlink.h
NF_INET_PRE_ROUTING, NF_INET_LOCAL_IN, NF_INET_FORWARD, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING = 0, 1, 2, 3, 4
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFGENMSG_SIZE = 4  # struct nfgenmsg: family, version, resource

# linux/netfilter/nf_tables.h
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = (NFNL_SUBSYS_NFTABLES << 8 | number for number in (0, 1, 2))
NFT_MSG_NEWCHAIN = NFNL_SUBSYS_NFTABLES << 8 | 3
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = (NFNL_SUBSYS_NFTABLES << 8 | number for number in (6, 7, 8))
NFTA_LIST_ELEM = 1
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE = 3, 4, 7
NFTA_TABLE_NAME = NFTA_CHAIN_TABLE = NFTA_RULE_TABLE = 1
NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 2, 3, 4, 7
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_DATA_VALUE = 1
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA = 1, 2, 3
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFTA_RT_DREG, NFTA_RT_KEY = 1, 2
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
NFTA_LOG_GROUP, NFTA_LOG_PREFIX = 1, 2
NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN = 1, 2, 3
NFT_REG_1 = 1
NFT_CMP_EQ = 0
NFT_META_NFPROTO, NFT_META_SECPATH = 15, 25
NFT_RT_XFRM = 4
NFT_PAYLOAD_NETWORK_HEADER = 1
NFT_NAT_SNAT, NFT_NAT_DNAT = 0, 1
UDATA_RULE_COMMENT = 0  # libnftnl's udata.h: NFTNL_UDATA_RULE_COMMENT

# linux/ip.h, linux/ipv6.h: the offset of the source address; the destination follows it
IPV4_SOURCE, IPV6_SOURCE = 12, 8


# --- netlink ----------------------------------------------------------------------------------------------------------

NETLINK_BUFFER = 1 << 16  # the kernel sends at most 32 KiB at a time
NETLINK_TABLES = {NETLINK_ROUTE: "the kernel's network configuration", NETLINK_XFRM: "the kernel's IPsec (XFRM)",
                  NETLINK_GENERIC: "the kernel's generic netlink"}
TEXT_PIECE = 1 << 16  # in_pieces() joins texts up to this number of characters
REMEMBERED = 5000  # the number of values that Remembered keeps
if TYPE_CHECKING:
    Message = tuple[bytes, int, int]  # a buffer, and where the message's body begins and ends in it
    NetlinkRequest = tuple[int, int, bytes]  # message type, flags, body


def unsigned(data: bytes | None) -> int:
    """Return an unsigned integer of any size in the host's byte order; 0 for no data."""
    return int.from_bytes(data, sys.byteorder) if data else 0


def u16(value: int) -> bytes:
    """Return 16 bits in the host's byte order."""
    return value.to_bytes(2, sys.byteorder)


def u32(value: int) -> bytes:
    """Return 32 bits in the host's byte order."""
    return value.to_bytes(4, sys.byteorder)


def be32(value: int) -> bytes:
    """Return 32 bits in network byte order."""
    return value.to_bytes(4, "big")


def flipped(value: int) -> int:
    """Swap the bytes of a 32-bit number that was read in the wrong byte order (network or host)."""
    return int.from_bytes(u32(value), "big")


def unpack_struct(form: str, data: bytes, start: int = 0) -> tuple[Any, ...]:
    """Return the fields of a C structure at an offset.  Raises struct.error if the data is too short."""
    import struct  # only where the kernel is read: the import takes time at every start
    return struct.unpack_from(form, data, start)


def pack_struct(form: str, *values: bytes | int) -> bytes:
    """Return a C structure with these fields."""
    import struct
    return struct.pack(form, *values)


def aligned(size: int) -> int:
    """Return the size rounded up to a multiple of 4, as netlink pads messages and attributes."""
    return (size + 3) & ~3


def attribute(kind: int, *values: bytes | str | int) -> bytes:
    """Return a netlink attribute (struct nlattr) with padding.

    An int is packed as 32 bits in the host's byte order, a str ends in NUL, bytes are copied.  Several values
    follow each other, as nested attributes do.
    """
    data = b""
    for value in values:
        if isinstance(value, bytes):
            data += value
        elif isinstance(value, str):
            data += encode(value) + b"\0"
        else:
            data += u32(value)
    size = NLATTR_SIZE + len(data)
    return u16(size) + u16(kind) + data + bytes(aligned(size) - size)


def each_attribute(buffer: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of the attributes between two offsets, in order."""
    end = len(buffer) if end is None else end
    while start + NLATTR_SIZE <= end:
        length = int.from_bytes(buffer[start:start + 2], sys.byteorder)
        if length < NLATTR_SIZE:
            break
        kind = int.from_bytes(buffer[start + 2:start + NLATTR_SIZE], sys.byteorder) & NLA_TYPE_MASK
        yield kind, buffer[start + NLATTR_SIZE:start + length]
        start += aligned(length)


def attributes(buffer: bytes, start: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Return the data of the attributes between two offsets by type."""
    return dict(each_attribute(buffer, start, end))


def dump(host: Host, family: int, kind: int, body: bytes) -> Iterator[Message]:
    """Yield the messages of a dump as they arrive.  Raises OSError, TimedOut, as exchange() does."""
    return exchange(host, family, [(kind, NLM_F_DUMP, body)])


def exchange(host: Host, family: int, *packets: Sequence[NetlinkRequest],
             ignored: Sequence[int] = ()) -> Iterator[Message]:
    """Send packets of requests one after the other and yield the kernel's answers to them.

    The answer to a packet ends with the last of its requests that asks for an acknowledgement or a dump.
    Raises OSError with the kernel's errno, unless that is one of `ignored`, and with the table's name as the
    file name; raises TimedOut if the kernel does not answer.
    """
    import _socket as socket
    import struct
    header = struct.Struct(NLMSGHDR_FORM)
    name = NETLINK_TABLES.get(family, f"netlink family {family}")
    changed, sequence, awaited = False, 0, 0
    try:
        link = host.netlink(family)
        try:
            for packet in packets:
                data = b""
                for kind, flags, body in packet:
                    sequence += 1
                    awaited = sequence if flags & (NLM_F_ACK | NLM_F_DUMP) else awaited
                    size = NLMSGHDR_SIZE + len(body)
                    data += header.pack(size, kind, flags | NLM_F_REQUEST, sequence, 0) + body
                    data += bytes(aligned(size) - size)
                link.send(data)
                done = False
                while not done:
                    try:
                        buffer = link.recv(NETLINK_BUFFER)
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:  # some messages were lost; the next ones are whole
                            raise
                        changed = True
                        continue
                    start = 0
                    while start + NLMSGHDR_SIZE <= len(buffer):
                        length, message, flags, answered, _ = header.unpack_from(buffer, start)
                        if length < NLMSGHDR_SIZE or start + length > len(buffer):
                            raise OSError(errno.EBADMSG, "the kernel's reply is cut short")
                        changed |= bool(flags & NLM_F_DUMP_INTR)
                        begin, end = start + NLMSGHDR_SIZE, start + length
                        if message in (NLMSG_DONE, NLMSG_ERROR):
                            # an error of 0 is the acknowledgement
                            code = -int.from_bytes(buffer[begin:begin + ERRNO_SIZE], sys.byteorder, signed=True)
                            if code and code not in ignored:
                                raise OSError(code, os.strerror(code))
                            done |= answered == awaited
                        elif answered == awaited:
                            yield buffer, begin, end
                        start += aligned(length)
        finally:
            link.close()
    except socket.timeout:
        raise TimedOut(f"{name}: no answer") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    if changed:
        host.warn(f"{name} changed while it was read: entries may be missing or listed twice")


def acknowledge(host: Host, family: int, *packets: Sequence[NetlinkRequest], ignored: Sequence[int] = ()) -> None:
    """Send requests that the kernel only acknowledges.  Raises OSError, TimedOut, as exchange() does."""
    for _ in exchange(host, family, *packets, ignored=ignored):
        continue


def message_texts(messages: Iterable[Message], tell: Callable[[bytes, int, int], str]) -> Iterator[str]:
    """Yield the text that tell() makes of each message; a message that it can't decode becomes a line that
    says so.
    """
    import struct
    for buffer, start, end in messages:
        try:
            yield tell(buffer, start, end)
        except (struct.error, IndexError, KeyError, ValueError, OverflowError):
            yield f"(a message of {end - start} bytes that can't be read)\n"


def in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Join short texts into longer ones, which cost less to write.

    If the source fails, the texts read so far are yielded first, then the error is raised.
    """
    pieces: list[str] = []
    size = 0
    failure: Exception | None = None
    try:
        for text in texts:
            pieces.append(text)
            size += len(text)
            if size > TEXT_PIECE:
                yield "".join(pieces)
                pieces.clear()
                size = 0
    except Exception as error:
        failure = error
    if pieces:
        yield "".join(pieces)
    if failure:
        raise failure


class Remembered(dict):  # type: ignore[type-arg]
    """A cache of make(key).  It forgets all values when it holds more than REMEMBERED."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: Any) -> Any:
        if len(self) > REMEMBERED:
            self.clear()
        value = self[key] = self.make(key)
        return value


def ip_text(data: bytes) -> str:
    """Return an IP address of 4 or 16 bytes as text; other bytes in hexadecimal."""
    import _socket as socket
    if len(data) not in (4, 16):
        return data.hex()
    return socket.inet_ntop(AF_INET if len(data) == 4 else AF_INET6, data)


def packed_address(address: str) -> bytes:
    """Return an IP address in network byte order.  Raises OSError if the text is no IP address."""
    import _socket as socket
    return socket.inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def text_name(data: bytes | None) -> str:
    """Return a C string of the kernel as printable text."""
    return printable(decode((data or b"").partition(b"\0")[0]))


def hexadecimal(value: int) -> str:
    """Format a number as C's %#x does: zero has no prefix."""
    return f"0x{value:x}" if value else "0"


def link_names(host: Host) -> dict[int, str]:
    """Return the names of the network interfaces by index."""
    import _socket as socket
    try:
        return {index: printable(name) for index, name in socket.if_nameindex()}
    except OSError:
        return {}


class KernelReader:
    """The base of all readers of the kernel's tables: it gives addresses and interfaces their names."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.address = Remembered(ip_text)
        self.links = link_names(host)

    def device(self, index: int) -> str:
        """Return the name of an interface, `if7` if it is unknown."""
        return self.links.get(index, f"if{index}")


# --- XFRM ------------------------------------------------------------------------------------------------------------

XFRM_PROTOCOLS = {IPPROTO_ESP: "esp", IPPROTO_AH: "ah", IPPROTO_COMP: "comp", 43: "route2", 60: "hao",
                  255: "ipsec-any"}
XFRM_MODES = {0: "transport", 1: "tunnel", 2: "ro", 3: "in_trigger", 4: "beet", 5: "iptfs"}
POLICY_DIRS = ("in", "out", "fwd")
POLICY_ACTIONS = {XFRM_POLICY_ALLOW: "allow", XFRM_POLICY_BLOCK: "block"}
POLICY_TYPES = {XFRM_POLICY_TYPE_MAIN: "main", XFRM_POLICY_TYPE_SUB: "sub"}
ENCAPSULATED = {UDP_ENCAP_ESPINUDP_NON_IKE: "espinudp-nonike", UDP_ENCAP_ESPINUDP: "espinudp",
                TCP_ENCAP_ESPINTCP: "espintcp"}
SHARES = {0: "any", 1: "session", 2: "user", 3: "unique"}
SA_DIRECTIONS = {0: "other (0)", XFRM_SA_DIR_IN: "in", XFRM_SA_DIR_OUT: "out"}
STATE_FLAGS = ("noecn", "decap-dscp", "nopmtudisc", "wildrecv", "icmp", "af-unspec", "align4", "esn")
STATE_EXTRA_FLAGS = ("dont-encap-dscp", "oseq-may-wrap")
POLICY_FLAGS = ("localok", "icmp")
# The algorithms of a state: attribute, word of iproute2, bytes between the length of the key and the key
ALGORITHMS = ((XFRMA_ALG_AUTH_TRUNC, "auth-trunc", 4), (XFRMA_ALG_AUTH, "auth", 0), (XFRMA_ALG_AEAD, "aead", 4),
              (XFRMA_ALG_CRYPT, "enc", 0), (XFRMA_ALG_COMP, "comp", 0))


def policy_messages(host: Host) -> Iterator[Message]:
    """Yield the kernel's policies as messages.  Raises OSError."""
    return dump(host, NETLINK_XFRM, XFRM_MSG_GETPOLICY, bytes(64))  # struct xfrm_userpolicy_id


def state_messages(host: Host) -> Iterator[Message]:
    """Yield the kernel's states as messages.  Raises OSError."""
    # no body: the kernel parses any body as attributes and logs a complaint
    return dump(host, NETLINK_XFRM, XFRM_MSG_GETSA, b"")


def flag_words(flags: int, names: Sequence[str]) -> str:
    """Return the names of the bits that are set; bits without a name follow in hexadecimal."""
    words = [name for bit, name in enumerate(names) if flags >> bit & 1]
    unknown = flags >> len(names) << len(names)
    return " ".join([*words, f"{unknown:x}"] if unknown else words)


def time_text(seconds: int) -> str:
    """Format a time (seconds since the epoch) as `ip xfrm` does; 0 is `-`."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
    except (OSError, OverflowError, ValueError):
        return "invalid-time"


def protocol_names(host: Host) -> dict[int, str]:
    """Return the names of /etc/protocols by number; the common protocols where that file is missing."""
    known = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp",
             135: "mobility-header"}
    names: dict[int, str] = {}
    try:
        for line in host.lines("/etc/protocols"):
            words = line.partition("#")[0].split()
            if len(words) > 1 and words[1].isdigit():
                names.setdefault(int(words[1]), words[0])
    except OSError:
        return known
    return names


def algorithms(more: Mapping[int, bytes]) -> Iterator[tuple[str, bytes, int]]:
    """Yield the algorithms among a state's attributes: word, data, and the bytes between length and key.

    The kernel sends authentication in the old form (XFRMA_ALG_AUTH) as well as in the new one; the new one is
    used.
    """
    for kind, word, gap in ALGORITHMS:
        if kind in more and (kind != XFRMA_ALG_AUTH or XFRMA_ALG_AUTH_TRUNC not in more):
            yield word, more[kind], gap


class RawSelector:
    """A selector as the kernel sends it (struct xfrm_selector); addresses have the size of their family."""

    def __init__(self, fields: tuple[Any, ...], other_family: int = 0) -> None:
        """`other_family` is the address family to use if the selector has none."""
        (destination, source, self.destination_port, self.destination_mask, self.source_port, self.source_mask,
         family, self.destination_bits, self.source_bits, self.protocol, self.interface, self.user) = fields
        size = address_size(family or other_family)
        self.source, self.destination = source[:size], destination[:size]

    @property
    def ports(self) -> tuple[int | None, int | None]:
        """Source and destination port; None for any port."""
        return (int.from_bytes(self.source_port, "big") if any(self.source_mask) else None,
                int.from_bytes(self.destination_port, "big") if any(self.destination_mask) else None)


class RawTemplate:
    """A template of a policy as the kernel sends it (struct xfrm_user_tmpl)."""

    def __init__(self, fields: tuple[Any, ...], other_family: int = 0) -> None:
        (destination, self.spi, self.protocol, family, source, self.reqid, self.mode, self.share, self.optional,
         self.auth_mask, self.encryption_mask, self.compression_mask) = fields
        size = address_size(family or other_family)
        self.source, self.destination = source[:size], destination[:size]


class RawPolicy:
    """A policy as the kernel sends it: struct xfrm_userpolicy_info, and the attributes `more`."""

    def __init__(self, fields: tuple[Any, ...], more: dict[int, bytes]) -> None:
        self.selector = RawSelector(fields[:SELECTOR_FIELDS])
        self.lifetimes = fields[SELECTOR_FIELDS:SELECTOR_FIELDS + LIFETIMES_FIELDS]
        (self.priority, self.index, direction, self.action, self.flags,
         self.share) = fields[SELECTOR_FIELDS + LIFETIMES_FIELDS:]
        self.family = fields[6]
        self.of_socket = direction >= XFRM_POLICY_MAX  # the directions of a socket's policies follow the others
        self.direction = direction - XFRM_POLICY_MAX if self.of_socket else direction
        self.more = more


class RawState:
    """A state as the kernel sends it: struct xfrm_usersa_info, and the attributes `more`."""

    def __init__(self, fields: tuple[Any, ...], more: dict[int, bytes], has_selector: bool) -> None:
        self.address, self.spi, self.protocol, source = fields[SELECTOR_FIELDS:SELECTOR_FIELDS + 4]
        lifetimes = SELECTOR_FIELDS + 4
        self.lifetimes = fields[lifetimes:lifetimes + LIFETIMES_FIELDS]
        (self.window_errors, self.replays, self.failures, self.sequence, self.reqid, self.family, self.mode,
         self.replay_window, self.flags) = fields[lifetimes + LIFETIMES_FIELDS:]
        size = address_size(self.family)
        self.source, self.destination = source[:size], self.address[:size]
        self.selector = RawSelector(fields[:SELECTOR_FIELDS], self.family)
        self.has_selector = has_selector
        self.more = more


def address_size(family: int) -> int:
    """Return the bytes of an address of a family."""
    return 16 if family == AF_INET6 else 4


class XfrmReader(KernelReader):
    """Decodes the kernel's messages about states and policies."""

    def __init__(self, host: Host) -> None:
        import struct
        super().__init__(host)
        self.protocols = protocol_names(host)
        self.policy_struct = struct.Struct(POLICY_FORM)
        self.state_struct = struct.Struct(STATE_FORM)
        self.template_struct = struct.Struct(TEMPLATE_FORM)

    def read_policy(self, buffer: bytes, start: int, end: int) -> RawPolicy:
        """Decode a policy.  Raises struct.error if the message is truncated."""
        form = self.policy_struct
        return RawPolicy(form.unpack_from(buffer, start), attributes(buffer, start + form.size, end))

    def read_state(self, buffer: bytes, start: int, end: int) -> RawState:
        """Decode a state.  Raises struct.error if the message is truncated."""
        form = self.state_struct
        return RawState(form.unpack_from(buffer, start), attributes(buffer, start + form.size, end),
                        any(buffer[start:start + SELECTOR_SIZE]))

    def read_templates(self, data: bytes, family: int = 0) -> Iterator[RawTemplate]:
        """Yield the templates of a policy (XFRMA_TMPL); an incomplete one at the end is left out."""
        form = self.template_struct
        for fields in form.iter_unpack(data[:len(data) // form.size * form.size]):
            yield RawTemplate(fields, family)


class XfrmText(XfrmReader):
    """States and policies in the words of `ip xfrm`, with or without statistics (`ip -s xfrm`).

    Keys are left out unless show_keys is set.
    """

    def __init__(self, host: Host, stats: bool = True, show_keys: bool = False) -> None:
        super().__init__(host)
        self.stats = stats
        self.show_keys = show_keys
        self.template_texts = Remembered(self._templates)
        self.times = Remembered(time_text)

    def policies(self) -> Iterator[str]:
        """Yield all policies in chunks of text.  Raises OSError."""
        return in_pieces(message_texts(policy_messages(self.host), self.policy_text))

    def states(self) -> Iterator[str]:
        """Yield all states in chunks of text.  Raises OSError."""
        return in_pieces(message_texts(state_messages(self.host), self.state_text))

    def policy_text(self, buffer: bytes, start: int, end: int) -> str:
        """Return the text of one policy."""
        policy = self.read_policy(buffer, start, end)
        text = self._selector(policy.selector)
        text += self._label(policy.more)
        direction = POLICY_DIRS[policy.direction] if policy.direction < XFRM_POLICY_MAX else policy.direction
        text += f"\t{'socket' if policy.of_socket else 'dir'} {direction} "
        if policy.action or self.stats:
            text += f"action {POLICY_ACTIONS.get(policy.action, policy.action)} "
        if self.stats:
            text += f"index {policy.index} "
        text += f"priority {policy.priority} "
        if kind := policy.more.get(XFRMA_POLICY_TYPE):  # from kernels with CONFIG_XFRM_SUB_POLICY
            text += f"ptype {POLICY_TYPES.get(kind[0], kind[0])} "
        words = flag_words(policy.flags, POLICY_FLAGS)
        if self.stats:
            # iproute2 prints the mask in binary
            text += f"share {SHARES.get(policy.share, policy.share)} flag {words} (0x{policy.flags:08b})\n"
            text += self._lifetimes(policy.lifetimes)
        else:
            text += f"flag {words}\n" if words else "\n"
        return text + self._attributes(policy.more, policy.family, False)

    def state_text(self, buffer: bytes, start: int, end: int) -> str:
        """Return the text of one state."""
        state = self.read_state(buffer, start, end)
        text = (f"{self._ends(state)}\tproto {XFRM_PROTOCOLS.get(state.protocol, state.protocol)} "
                f"{self._id(state, state.protocol in (IPPROTO_ESP, IPPROTO_AH, IPPROTO_COMP))}\n"
                f"\treplay-window {state.replay_window} ")
        words = flag_words(state.flags, STATE_FLAGS)
        if self.stats:
            text += f"seq 0x{state.sequence:08d} flag {words}"  # iproute2 prints the number in decimal
            if extra := state.more.get(XFRMA_SA_EXTRA_FLAGS):
                text += f"extra_flag {flag_words(unsigned(extra), STATE_EXTRA_FLAGS)}"
            text += f" (0x{state.flags:08b})"
        elif words:
            text += f"flag {words}"
        text += "\n" + self._attributes(state.more, state.family, True)
        if state.has_selector:
            text += f"\tsel {self._selector(state.selector)}"
        if self.stats:
            text += self._lifetimes(state.lifetimes)
            text += (f"\tstats:\n\t  replay-window {state.window_errors} replay {state.replays} "
                     f"failed {state.failures}\n")
        return text + self._label(state.more)

    def _selector(self, selector: RawSelector) -> str:
        text = (f"src {self.address[selector.source]}/{selector.source_bits} "
                f"dst {self.address[selector.destination]}/{selector.destination_bits} ")
        if selector.protocol:
            text += f"proto {self.protocols.get(selector.protocol, selector.protocol)} "
        text += self._ports(selector)
        if selector.interface > 0:
            text += f"dev {self.device(selector.interface)} "
        return f"{text}uid {selector.user}\n" if self.stats else text + "\n"

    def _ports(self, selector: RawSelector) -> str:
        """Return the ports of a selector; some protocols have other values in these fields."""
        source, destination = selector.ports
        if source is None and destination is None:
            return ""
        if selector.protocol == IPPROTO_GRE:  # the key is in both fields, whatever their masks
            ports = selector.source_port + selector.destination_port
            return f"key {int.from_bytes(ports, 'big')} "
        text = ""
        if selector.protocol == IPPROTO_MH:
            text += "" if source is None else f"type {source} "
            if destination is not None and self.stats:
                text += f"(dport) 0x{unsigned(selector.destination_port):04x} "
            return text
        names = ("type", "code") if selector.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6) else ("sport", "dport")
        text += "" if source is None else f"{names[0]} {source} "
        text += "" if destination is None else f"{names[1]} {destination} "
        return text

    def _lifetimes(self, numbers: Sequence[int]) -> str:
        limit = ["(INF)" if value == XFRM_INF else str(value) for value in numbers[:4]]
        soft_add, hard_add, soft_use, hard_use, count, packets, added, used = numbers[4:]
        return (f"\tlifetime config:\n\t  limit: soft {limit[0]}(bytes), hard {limit[1]}(bytes)\n"
                f"\t  limit: soft {limit[2]}(packets), hard {limit[3]}(packets)\n"
                f"\t  expire add: soft {soft_add}(sec), hard {hard_add}(sec)\n"
                f"\t  expire use: soft {soft_use}(sec), hard {hard_use}(sec)\n"
                f"\tlifetime current:\n\t  {count}(bytes), {packets}(packets)\n"
                f"\t  add {self.times[added]} use {self.times[used]}\n")

    def _label(self, more: Mapping[int, bytes]) -> str:
        label = more.get(XFRMA_SEC_CTX)
        return f"\tsecurity context {text_name(label[SEC_CTX_SIZE:])} \n" if label else ""

    def _ends(self, owner: RawState | RawTemplate) -> str:
        return f"src {self.address[owner.source]} dst {self.address[owner.destination]}\n"

    def _id(self, owner: RawState | RawTemplate, always: bool = False) -> str:
        """Return SPI, reqid and mode; without statistics an SPI of 0 only if `always` is set."""
        spi = flipped(owner.spi)
        if self.stats:
            text = f"spi 0x{spi:08x}({spi}) reqid {owner.reqid}(0x{owner.reqid:08x}) "
        else:
            text = f"spi 0x{spi:08x} " if spi or always else ""
            text += f"reqid {owner.reqid} "
        return f"{text}mode {XFRM_MODES.get(owner.mode, owner.mode)}"

    def _templates(self, key: tuple[bytes, int]) -> str:
        text = ""
        for template in self.read_templates(*key):
            level = {0: "required", 1: "use"}.get(template.optional, str(template.optional))
            text += (f"\ttmpl {self._ends(template)}"
                     f"\t\tproto {XFRM_PROTOCOLS.get(template.protocol, template.protocol)} {self._id(template)}\n")
            if self.stats:
                text += (f"\t\tlevel {level} share {SHARES.get(template.share, template.share)} \n"
                         f"\t\tenc-mask {template.encryption_mask:08x} auth-mask {template.auth_mask:08x} "
                         f"comp-mask {template.compression_mask:08x}\n")
            elif template.optional:
                text += f"\t\tlevel {level} \n"
        return text

    def _algorithm(self, word: str, data: bytes, gap: int) -> str:
        """Return an algorithm; of the key only its length, unless show_keys is set."""
        name, (bits,) = text_name(data[:ALGORITHM_NAME_SIZE]), unpack_struct("=I", data, ALGORITHM_NAME_SIZE)
        after_bits = ALGORITHM_NAME_SIZE + 4
        shown = ""
        if bits >= 8:
            key = data[after_bits + gap:after_bits + gap + bits // 8]
            shown = f"0x{key.hex()}" if self.show_keys else f"0x[redacted {bits // 8} bytes]"
            shown += f" ({bits} bits)" if self.stats else ""
        text = f"\t{word} {name} {shown}"
        if gap:  # the length of the truncated authenticator or of the ICV
            text += f" {unsigned(data[after_bits:after_bits + gap])}"
        return text + "\n"

    def _attributes(self, more: dict[int, bytes], family: int, of_state: bool) -> str:
        """Return the lines for the attributes, in the order of iproute2."""
        text = self._marks(more)
        if of_state:
            text += "".join(self._algorithm(word, data, gap) for word, data, gap in algorithms(more))
        if encapsulation := more.get(XFRMA_ENCAP):
            kind, source, destination, address = unpack_struct(ENCAP_FORM, encapsulation)
            text += (f"\tencap type {ENCAPSULATED.get(kind, kind)} sport {int.from_bytes(source, 'big')} "
                     f"dport {int.from_bytes(destination, 'big')} "
                     f"addr {self.address[address[:address_size(family)]]}\n")
        if templates := more.get(XFRMA_TMPL):
            text += self.template_texts[templates, family]
        if address := more.get(XFRMA_COADDR):
            text += f"\tcoa {self.address[address[:address_size(family)]]}\n"
        if used := more.get(XFRMA_LASTUSED):
            text += f"\tlastused {self.times[unsigned(used)]}\n"
        text += self._replay(more)
        if offload := more.get(XFRMA_OFFLOAD_DEV):
            device, flags = unpack_struct(OFFLOAD_FORM, offload)
            text += f"\tcrypto offload parameters: dev {self.device(device)} "
            if of_state:
                text += f"dir {'in' if flags & XFRM_OFFLOAD_INBOUND else 'out'} "
            text += f"mode {'packet' if flags & XFRM_OFFLOAD_PACKET else 'crypto'}\n"
        if XFRMA_IF_ID in more:
            text += f"\tif_id {hexadecimal(unsigned(more[XFRMA_IF_ID]))}\n"
        if XFRMA_TFCPAD in more:
            text += f"\ttfcpad {unsigned(more[XFRMA_TFCPAD])}\n"
        if direction := more.get(XFRMA_SA_DIR):
            text += f"\tdir {SA_DIRECTIONS.get(direction[0], f'other ({direction[0]})')}\n"
        if XFRMA_SA_PCPU in more:
            text += f"\tpcpu-num {unsigned(more[XFRMA_SA_PCPU])}\n"
        return text

    def _marks(self, more: Mapping[int, bytes]) -> str:
        output = ""
        if XFRMA_SET_MARK in more:
            output = f"output-mark 0x{unsigned(more[XFRMA_SET_MARK]):x}"
            if XFRMA_SET_MARK_MASK in more:
                output += f"/0x{unsigned(more[XFRMA_SET_MARK_MASK]):x}"
        if mark := more.get(XFRMA_MARK):
            value, mask = unpack_struct(MARK_FORM, mark)
            return f"\tmark {hexadecimal(value)}/{hexadecimal(mask)} {output}\n"
        return f"\t{output}\n" if output else ""

    def _replay(self, more: Mapping[int, bytes]) -> str:
        text = ""
        if replay := more.get(XFRMA_REPLAY_VAL):
            oseq, seq, bitmap = unpack_struct(REPLAY_FORM, replay)
            text += f"\tanti-replay context: seq 0x{seq:x}, oseq 0x{oseq:x}, bitmap 0x{bitmap:08x}\n"
        if replay := more.get(XFRMA_REPLAY_ESN_VAL):
            length, oseq, seq, oseq_hi, seq_hi, window = unpack_struct(REPLAY_ESN_FORM, replay)
            text += (f"\tanti-replay esn context:\n\t seq-hi 0x{seq_hi:x}, seq 0x{seq:x}, oseq-hi 0x{oseq_hi:x}, "
                     f"oseq 0x{oseq:x}\n\t replay_window {window}, bitmap-length {length}")
            words = [replay[at:at + 4] for at in range(REPLAY_ESN_SIZE, len(replay) - 3, 4)][:length]
            for index, word in enumerate(reversed(words)):  # the highest word comes first
                text += "" if index % 8 else "\n\t "
                text += f"{unsigned(word):08x} "
            text += "\n"
        return text


# --- IPsec as data, and its removal ----------------------------------------------------------------------------------

MANUAL_REQID_MAX = 0x3FFF  # an administrator may set a reqid up to this value; pluto's own are higher (reqid.h)
NO_ADDRESS = ("0.0.0.0", "::")


class Selector(Record):
    """The packets that a policy or a state applies to."""

    source: str  # address/bits
    destination: str
    protocol: int  # 0: any
    source_port: int | None  # of ICMP the type
    destination_port: int | None  # of ICMP the code
    device: str
    user: int

    @property
    def prefixes(self) -> tuple[int, int]:
        """The lengths of the prefixes of source and destination."""
        return int(self.source.rpartition("/")[2]), int(self.destination.rpartition("/")[2])

    def takes(self, source: str, destination: str, protocol: int = 0, source_port: int = 0, destination_port: int = 0,
              device: str = "", *, perhaps: bool = False) -> bool:
        """Return whether the selector matches a packet; protocol and ports of 0 are unknown.

        With `perhaps`, an unknown value matches any wanted value.
        """
        def fits(wanted: int | None, known: int) -> bool:
            return wanted in (None, known) or (perhaps and not known)

        return (within(source, self.source) and within(destination, self.destination)
                and fits(self.protocol or None, protocol) and fits(self.source_port, source_port)
                and fits(self.destination_port, destination_port) and self.device in ("", device))


class Template(Record):
    """The transformation that a policy requires."""

    source: str
    destination: str
    protocol: str
    spi: int
    reqid: int
    mode: str
    optional: bool


class Policy(Record):
    """An entry of the security policy database."""

    selector: Selector
    direction: str  # in, out, fwd
    socket: bool  # it applies to one socket only
    action: str  # allow, block
    policy_index: int
    priority: int  # the lowest one is used
    kind: str  # main, sub
    mark: int
    mask: int
    if_id: int
    templates: tuple[Template, ...]


class State(Record):
    """A security association in the kernel, without its keys."""

    source: str
    destination: str
    protocol: str
    spi: int
    reqid: int
    mode: str
    mark: int
    mask: int
    if_id: int
    selector: Selector
    flags: tuple[str, ...]
    algorithms: tuple[tuple[str, str, int], ...]  # auth, enc, aead or comp; the name; bits of the key
    encapsulation: str  # espinudp, espintcp or empty
    replay_window: int
    bytes: int
    packets: int
    added: int  # seconds since the epoch
    used: int  # seconds since the epoch, 0: never
    direction: str  # in, out; empty on kernels that do not tell
    device: str  # the interface that the state is offloaded to


def within(address: str, prefix: str) -> bool:
    """Return whether the address lies in `network/bits`; False if their families differ."""
    network, _, bits = prefix.partition("/")
    first, second = packed_address(address), packed_address(network)
    if len(first) != len(second):
        return False
    return not (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")) >> (8 * len(first) - int(bits))


class XfrmData(XfrmReader):
    """States and policies as records."""

    def policies_data(self) -> Iterator[Policy]:
        """Yield all policies in the kernel's order; truncated messages are left out.  Raises OSError."""
        return self._records(policy_messages(self.host), self.policy_data)

    def states_data(self) -> Iterator[State]:
        """Yield all states in the kernel's order; truncated messages are left out.  Raises OSError."""
        return self._records(state_messages(self.host), self.state_data)

    @staticmethod
    def _records(messages: Iterable[Message], decoded: Callable[[bytes, int, int], Any]) -> Iterator[Any]:
        import struct
        for message in messages:
            try:
                yield decoded(*message)
            except struct.error:
                continue

    def policies_for(self, source: str, destination: str, protocol: int = 0, source_port: int = 0,
                     destination_port: int = 0, direction: str = "out", mark: int = 0, if_id: int = 0,
                     device: str = "") -> list[Policy | None]:
        """Return the policies that may apply to a packet, in the order in which the kernel tries them.

        The last one matches in any case, or is None if no policy does.  The earlier ones match only if the
        values that are unknown (0) happen to fit.  Of equal priority the oldest policy is used
        (xfrm_policy_lookup_bytype); the kernel lists the newest first.
        """
        packet = source, destination, protocol, source_port, destination_port, device
        possible = [policy for policy in self.policies_data()
                    if policy.direction == direction and not policy.socket and policy.kind == "main"
                    and policy.if_id == if_id and mark & policy.mask == policy.mark
                    and policy.selector.takes(*packet, perhaps=True)]
        possible.reverse()
        possible.sort(key=lambda policy: policy.priority)
        for index, policy in enumerate(possible):
            if policy.selector.takes(*packet):
                return [*possible[:index + 1]]
        return [*possible, None]

    def fate(self, policy: Policy | None, destination: str) -> str:
        """Return what a policy does to a packet to the destination.

        `encrypt`, `authenticate` (AH), `hold` (until pluto has made the missing state), `block` or `clear`.
        Raises OSError.
        """
        if policy is None:
            return "clear"
        if policy.action == "block":
            return "block"
        required = [template for template in policy.templates if template.protocol != "comp"]
        if not required:
            return "clear"
        states = [state for state in self.states_data() if state.spi]  # a state with SPI 0 is a request to pluto
        protocols = []
        for template in required:
            end = destination if template.mode == "transport" else template.destination
            wanted = template.protocol, template.reqid, template.mode, end
            if any((state.protocol, state.reqid, state.mode, state.destination) == wanted for state in states):
                protocols.append(template.protocol)
            elif not template.optional:
                return "hold"
        if not protocols:
            return "clear"
        return "encrypt" if "esp" in protocols else "authenticate"

    def policy_data(self, buffer: bytes, start: int, end: int) -> Policy:
        """Return one policy.  Raises struct.error if the message is truncated."""
        raw = self.read_policy(buffer, start, end)
        mark, mask = self._mark(raw.more)
        templates = tuple(
            Template(self.address[template.source], self.address[template.destination],
                     XFRM_PROTOCOLS.get(template.protocol, str(template.protocol)), flipped(template.spi),
                     template.reqid, XFRM_MODES.get(template.mode, str(template.mode)), bool(template.optional))
            for template in self.read_templates(raw.more.get(XFRMA_TMPL, b"")))
        kind = unsigned(raw.more.get(XFRMA_POLICY_TYPE, b"")[:1])
        return Policy(self._selector(raw.selector), POLICY_DIRS[raw.direction % XFRM_POLICY_MAX], raw.of_socket,
                      "block" if raw.action == XFRM_POLICY_BLOCK else "allow", raw.index, raw.priority,
                      "sub" if kind == XFRM_POLICY_TYPE_SUB else "main", mark, mask,
                      unsigned(raw.more.get(XFRMA_IF_ID)), templates)

    def state_data(self, buffer: bytes, start: int, end: int) -> State:
        """Return one state.  Raises struct.error if the message is truncated."""
        raw = self.read_state(buffer, start, end)
        get = raw.more.get
        mark, mask = self._mark(raw.more)
        window = raw.replay_window
        if XFRMA_REPLAY_ESN_VAL in raw.more:
            *_, window = unpack_struct(REPLAY_ESN_FORM, raw.more[XFRMA_REPLAY_ESN_VAL])
        encapsulation = ""
        if XFRMA_ENCAP in raw.more:
            kind, *_ = unpack_struct(ENCAP_FORM, raw.more[XFRMA_ENCAP])
            encapsulation = str(ENCAPSULATED.get(kind, kind)) if kind else ""
        device = ""
        if XFRMA_OFFLOAD_DEV in raw.more:
            device = self.device(unpack_struct(OFFLOAD_FORM, raw.more[XFRMA_OFFLOAD_DEV])[0])
        direction = unsigned(get(XFRMA_SA_DIR))
        count, packets, added, used = raw.lifetimes[-4:]
        return State(self.address[raw.source], self.address[raw.destination],
                     XFRM_PROTOCOLS.get(raw.protocol, str(raw.protocol)), flipped(raw.spi), raw.reqid,
                     XFRM_MODES.get(raw.mode, str(raw.mode)), mark, mask, unsigned(get(XFRMA_IF_ID)),
                     self._selector(raw.selector),
                     tuple(name for bit, name in enumerate(STATE_FLAGS) if raw.flags >> bit & 1),
                     tuple((word.removesuffix("-trunc"), text_name(data[:ALGORITHM_NAME_SIZE]),
                            unsigned(data[ALGORITHM_NAME_SIZE:ALGORITHM_NAME_SIZE + 4]))
                           for word, data, _ in algorithms(raw.more)),
                     encapsulation, window, count, packets, added, used,
                     SA_DIRECTIONS.get(direction, "") if direction else "", device)

    @staticmethod
    def _mark(more: Mapping[int, bytes]) -> tuple[int, int]:
        """Return the mark of a state or policy and its mask; both are 0 if there is none."""
        mark, mask = unpack_struct(MARK_FORM, more[XFRMA_MARK]) if XFRMA_MARK in more else (0, 0)
        return mark, mask

    def _selector(self, raw: RawSelector) -> Selector:
        return Selector(f"{self.address[raw.source]}/{raw.source_bits}",
                        f"{self.address[raw.destination]}/{raw.destination_bits}", raw.protocol, *raw.ports,
                        self.device(raw.interface) if raw.interface else "", raw.user)


def pluto_priorities(selector: Selector) -> set[int]:
    """Return the priorities that pluto may give to a policy with this selector if its connection sets none.

    Since 4.6 a priority consists of a base (2 bits, 1 to 3), the number of ports that are not set (2 bits),
    an unset protocol (1 bit), 128 less the length of each prefix (8 bits each; 0 for the second one of
    opportunistic connections) and a template (1 bit).  Before 4.6 it is a maximum less the ports, the
    protocol and the prefixes (the second one of opportunistic connections is a host's); since 3.32 in units
    of 2^20 and with a template.
    """
    priorities = set()
    protocol = bool(selector.protocol)
    whole = 128 if ":" in selector.source else 32
    for first, second in (selector.prefixes, selector.prefixes[::-1], (whole, whole)):
        for base in (1, 2, 3):
            for ports in range(3):
                for prefix in (second, whole):
                    old = ports << 17 | protocol << 16 | first << 8 | prefix
                    priorities |= {(base + 1 << 19) - 1 - old, (base + 1 << 20) - 1 - (old << 1),
                                   (base + 1 << 20) - 2 - (old << 1)}
                for rest in (128 - second, 0):
                    new = ((base << 2 | ports) << 1 | (not protocol)) << 16 | 128 - first << 8 | rest
                    priorities |= {new << 1, new << 1 | 1}
    return priorities


def is_plutos_policy(policy: Policy, reqids: Collection[int] = ()) -> bool:
    """Return whether pluto made the policy, as far as its form tells; policies of others must not be removed.

    A policy of pluto has one of pluto's own reqids or one of `reqids`, which connections set.  A shunt (trap,
    pass, drop) has no template, or one of ESP transport without reqid, and one of pluto's priorities.  The
    exceptions for neighbour discovery have priority 1.
    """
    templates, selector = policy.templates, policy.selector
    if policy.socket:
        return False  # the kernel removes it together with the socket
    if any(template.reqid > MANUAL_REQID_MAX or template.reqid in reqids for template in templates if template.reqid):
        return True
    if not templates and policy.priority == 1 and policy.action == "allow":
        return (selector.protocol == IPPROTO_ICMPV6 and selector.source_port in (135, 136)
                and selector.prefixes == (0, 0))
    trap = len(templates) == 1 and (templates[0].protocol, templates[0].mode, templates[0].reqid) == (
        "esp", "transport", 0) and templates[0].source in NO_ADDRESS and templates[0].destination in NO_ADDRESS
    if trap and policy.action == "block" and not policy.priority:
        return True  # a bare shunt; no other program gives a template to a policy that blocks
    return (trap or not templates) and policy.priority in pluto_priorities(selector)


def is_plutos_state(state: State, reqids: Collection[int] = ()) -> bool:
    """Return whether a state has one of pluto's own reqids or one of `reqids`, which connections set."""
    return state.reqid > MANUAL_REQID_MAX or (state.reqid != 0 and state.reqid in reqids)


def flush_xfrm(host: Host, reqids: Collection[int] = ()) -> tuple[int, int]:
    """Remove the states and policies that pluto made; return how many states and how many policies.

    Call it only while no pluto runs: the traffic that was protected is sent in clear afterwards.  Raises
    OSError.
    """
    data = XfrmData(host)
    states, policies = [], []
    for buffer, start, end in state_messages(host):
        if is_plutos_state(data.state_data(buffer, start, end), reqids):
            state = data.read_state(buffer, start, end)
            body = pack_struct(STATE_ID_FORM, state.address, state.spi, state.family, state.protocol)
            states.append([(XFRM_MSG_DELSA, NLM_F_ACK, body + naming_attributes(state.more))])
    for buffer, start, end in policy_messages(host):
        if is_plutos_policy(data.policy_data(buffer, start, end), reqids):
            policy = data.read_policy(buffer, start, end)
            body = pack_struct(POLICY_ID_FORM, buffer[start:start + SELECTOR_SIZE], policy.index, policy.direction)
            policies.append([(XFRM_MSG_DELPOLICY, NLM_F_ACK, body + naming_attributes(policy.more))])
    acknowledge(host, NETLINK_XFRM, *states, *policies, ignored=(errno.ENOENT, errno.ESRCH))
    return len(states), len(policies)


def naming_attributes(more: Mapping[int, bytes]) -> bytes:
    """Return the attributes of a state or policy that are part of its identity."""
    return b"".join(attribute(kind, more[kind]) for kind in (XFRMA_MARK, XFRMA_IF_ID, XFRMA_POLICY_TYPE)
                    if kind in more)


# --- addresses, routes, rules, links ---------------------------------------------------------------------------------

ROUTE_TYPES = ("none", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit",
               "throw", "nat", "xresolve")
ROUTE_METRICS = {RTAX_MTU: "mtu", RTAX_WINDOW: "window", RTAX_RTT: "rtt", RTAX_RTTVAR: "rttvar",
                 RTAX_SSTHRESH: "ssthresh", RTAX_CWND: "cwnd", RTAX_ADVMSS: "advmss", RTAX_REORDERING: "reordering",
                 RTAX_HOPLIMIT: "hoplimit", RTAX_INITCWND: "initcwnd", RTAX_FEATURES: "features",
                 RTAX_RTO_MIN: "rto_min", RTAX_INITRWND: "initrwnd", RTAX_QUICKACK: "quickack",
                 RTAX_CC_ALGO: "congctl", RTAX_FASTOPEN_NO_COOKIE: "fastopen_no_cookie"}
TIME_METRICS = {RTAX_RTT: 8, RTAX_RTTVAR: 4, RTAX_RTO_MIN: 1}  # by how much the kernel multiplies milliseconds
ROUTE_FLAGS = ((1, "dead"), (RTNH_F_ONLINK, "onlink"), (2, "pervasive"), (8, "offload"), (64, "trap"),
               (0x100, "notify"), (16, "linkdown"), (32, "unresolved"), (0x4000, "rt_offload"), (0x8000, "rt_trap"),
               (0x20000000, "rt_offload_failed"))
ROUTE_TABLES = {255: "local", RT_TABLE_MAIN: "main", 253: "default"}
ROUTE_SCOPES = {RT_SCOPE_UNIVERSE: "global", RT_SCOPE_NOWHERE: "nowhere", RT_SCOPE_HOST: "host",
                RT_SCOPE_LINK: "link", RT_SCOPE_SITE: "site"}
ROUTE_PROTOCOLS = {RTPROT_UNSPEC: "unspec", 1: "redirect", RTPROT_KERNEL: "kernel", RTPROT_BOOT: "boot", 4: "static",
                   8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk",
                   16: "dhcp", 18: "keepalived", 42: "babel", 99: "openr", 186: "bgp", 187: "isis", 188: "ospf",
                   189: "rip", 192: "eigrp"}
# struct rtattr of RTA_DST, by the family of the destination
ROUTE_DESTINATIONS = {AF_INET: u16(NLATTR_SIZE + 4) + u16(RTA_DST), AF_INET6: u16(NLATTR_SIZE + 16) + u16(RTA_DST)}
PREFERENCES = {0: "medium", 1: "high", 3: "low"}  # RFC 4191, two's complement in two bits
ENCAPSULATIONS = {LWTUNNEL_ENCAP_MPLS: "mpls", LWTUNNEL_ENCAP_IP: "ip", 3: "ila", LWTUNNEL_ENCAP_IP6: "ip6",
                  5: "seg6", 6: "bpf", 7: "seg6local", 8: "rpl", 9: "ioam6", LWTUNNEL_ENCAP_XFRM: "xfrm"}
RULE_ACTIONS = {FR_ACT_BLACKHOLE: "blackhole", FR_ACT_UNREACHABLE: "unreachable", FR_ACT_PROHIBIT: "prohibit"}


def iproute_names(host: Host, name: str, known: Mapping[int, str]) -> dict[int, str]:
    """Return the numbers that iproute2 shows by name: `known`, and the entries of its file rt_tables,
    rt_protos, …
    """
    names = dict(known)
    for directory in ("/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2"):
        for file in (f"{directory}/{name}", *host.glob(f"{directory}/{name}.d/*.conf")):
            try:
                lines = list(host.lines(file))
            except OSError:
                continue
            for line in lines:
                words = line.partition("#")[0].split()
                try:
                    names[int(words[0], 0)] = words[1]
                except (IndexError, ValueError):
                    continue  # not a line `number name`
    return names


class RouteText(KernelReader):
    """Routes and rules in the words of `ip route list table all` and `ip rule list`."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.tables = iproute_names(host, "rt_tables", ROUTE_TABLES)
        self.origins = iproute_names(host, "rt_protos", ROUTE_PROTOCOLS)
        self.scopes = iproute_names(host, "rt_scopes", ROUTE_SCOPES)
        self.realms = iproute_names(host, "rt_realms", {0: "cosmos"})
        self.groups = iproute_names(host, "group", {0: "default"})
        self.services = iproute_names(host, "rt_dsfield", {})
        self.known = Remembered(self._around_destination)

    def routes(self, table: int = 0) -> Iterator[str]:
        """Yield the routes of all tables, or of one, in chunks of text: IPv4, then IPv6.  Raises OSError."""
        messages = dump(self.host, NETLINK_ROUTE, RTM_GETROUTE, bytes(RTMSG_SIZE))
        if table:
            messages = (message for message in messages if message[0][message[1] + RTMSG_TABLE] == table)
        return in_pieces(message_texts(messages, self.route_text))

    def route_text(self, buffer: bytes, start: int, end: int) -> str:
        """Return the text of one route: struct rtmsg and its attributes, which begin with RTA_TABLE and
        RTA_DST.

        There may be hundreds of thousands of routes that differ only in their destination: they share the
        text of everything else.
        """
        family, bits = buffer[start], buffer[start + 1]
        size = address_size(family)
        head = start + RTMSG_SIZE + NLATTR_SIZE + 4  # after struct rtmsg and RTA_TABLE
        address = head + NLATTR_SIZE
        if buffer[head:address] == ROUTE_DESTINATIONS.get(family):
            rest = buffer[start:head] + buffer[address + size:end]
            target = self.address[buffer[address:address + size]]
            if bits != size * 8:
                target = f"{target}/{bits}"
        else:
            rest = buffer[start:end]
            target = "default"
            if data := attributes(buffer, start + RTMSG_SIZE, end).get(RTA_DST):
                target = self.text_of(family, data)
                target += "" if bits == len(data) * 8 or family == AF_MPLS else f"/{bits}"
            elif bits:
                target = f"0/{bits} "
        before, after = self.known[rest]
        return f"{before}{target}{after}"

    def text_of(self, family: int, data: bytes) -> str:
        """Return an address as text; of MPLS its labels, 20 bits each."""
        if family == AF_MPLS:
            return "/".join(str(int.from_bytes(data[at:at + 4], "big") >> 12) for at in range(0, len(data), 4))
        return str(self.address[data])

    def _prefix(self, family: int, data: bytes | None, bits: int) -> str:
        """Return a network; the kernel leaves the address of `0/8` out."""
        if not data:
            return f"0/{bits}"
        return self.text_of(family, data) + ("" if bits == len(data) * 8 else f"/{bits}")

    def _service(self, tos: int) -> str:
        return f"tos {self.services.get(tos, f'0x{tos:02x}')} " if tos else ""

    def _around_destination(self, rest: bytes) -> tuple[str, str]:
        """Return the text before and after the destination of a route."""
        family, _, source_bits, tos, table, origin, scope, kind, flags = unpack_struct(RTMSG_FORM, rest)
        more = attributes(rest, RTMSG_SIZE)
        table = unsigned(more.get(RTA_TABLE)) or table
        text = " "
        if RTA_SRC in more or source_bits:
            text += f"from {self._prefix(family, more.get(RTA_SRC), source_bits)} "
        text += f"nhid {unsigned(more[RTA_NH_ID])} " if RTA_NH_ID in more else ""
        text += f"as to {self.text_of(family, more[RTA_NEWDST])} " if more.get(RTA_NEWDST) else ""
        text += self._encapsulation(more) + self._service(tos) + self._next_hop(family, more)
        text += f"dev {self.device(unsigned(more[RTA_OIF]))} " if RTA_OIF in more else ""
        text += f"table {self.tables.get(table, table)} " if table and table != RT_TABLE_MAIN else ""
        if not flags & RTM_F_CLONED:
            text += f"proto {self.origins.get(origin, origin)} " if origin != RTPROT_BOOT else ""
            text += f"scope {self.scopes.get(scope, scope)} " if scope else ""
        text += f"src {self.text_of(family, more[RTA_PREFSRC])} " if RTA_PREFSRC in more else ""
        text += f"metric {unsigned(more[RTA_PRIORITY])} " if RTA_PRIORITY in more else ""
        text += self._flags(flags) + self._properties(family, more)
        before = "" if kind == RTN_UNICAST else f"{ROUTE_TYPES[kind] if kind < len(ROUTE_TYPES) else kind} "
        return before, text + "\n"

    def _properties(self, family: int, more: Mapping[int, bytes]) -> str:
        """Return the words of a route that follow its flags."""
        text = ""
        if mark := unsigned(more.get(RTA_MARK)):
            text += f"mark 0x{mark:x} " if mark >= 16 else f"mark {mark} "
        text += self._realms(more.get(RTA_FLOW), "realm")
        text += f"uid {unsigned(more[RTA_UID])} " if RTA_UID in more else ""
        if cache := more.get(RTA_CACHEINFO):
            expires, error = unpack_struct(CACHEINFO_FORM, cache)
            text += f"expires {int(expires / 100)}sec " if expires else ""
            text += f"error {error} " if error else ""
        text += self._metrics(more.get(RTA_METRICS, b""))
        text += f"iif {self.device(unsigned(more[RTA_IIF]))} " if RTA_IIF in more else ""
        if preference := more.get(RTA_PREF):
            text += f"pref {PREFERENCES.get(preference[0], preference[0])}"
        return text + self._next_hops(family, more.get(RTA_MULTIPATH, b""))

    def _realms(self, data: bytes | None, word: str) -> str:
        """Return the realms of source and destination, 16 bits each.  A single realm is the destination's.
        """
        if not data:
            return ""
        source, destination = unsigned(data) >> 16, unsigned(data) & 0xFFFF
        target = self.realms.get(destination, destination)
        return f"realms {self.realms.get(source, source)}/{target} " if source else f"{word} {target} "

    def _encapsulation(self, more: Mapping[int, bytes]) -> str:
        """Return the encapsulation of a route; details only of MPLS, IP and XFRM tunnels."""
        if RTA_ENCAP_TYPE not in more:
            return ""
        kind, details = unsigned(more[RTA_ENCAP_TYPE]), attributes(more.get(RTA_ENCAP, b""))
        text = f" encap {ENCAPSULATIONS.get(kind, kind)} "
        tunnel = (LWTUNNEL_IP_ID, LWTUNNEL_IP_SRC, LWTUNNEL_IP_DST, LWTUNNEL_IP_TTL, LWTUNNEL_IP_TOS)
        if kind == LWTUNNEL_ENCAP_MPLS and MPLS_IPTUNNEL_DST in details:
            text += f" {self.text_of(AF_MPLS, details[MPLS_IPTUNNEL_DST])} "
            text += f"ttl {details[MPLS_IPTUNNEL_TTL][0]} " if MPLS_IPTUNNEL_TTL in details else ""
        elif kind in (LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6) and details.keys() >= {*tunnel}:
            hops, service = ("ttl", "tos") if kind == LWTUNNEL_ENCAP_IP else ("hoplimit", "tc")
            key, source, destination, limit, tos = (details[field] for field in tunnel)
            text += (f"id {int.from_bytes(key, 'big')} src {self.address[source]} dst {self.address[destination]} "
                     f"{hops} {unsigned(limit)} {service} {unsigned(tos)} ")
        elif kind == LWTUNNEL_ENCAP_XFRM:
            text += f"if_id {unsigned(details.get(LWT_XFRM_IF_ID))} "
            if LWT_XFRM_LINK in details:
                text += f"link_dev {self.device(unsigned(details[LWT_XFRM_LINK]))} "
        return text

    def _flags(self, flags: int) -> str:
        return "".join(f"{name} " for bit, name in ROUTE_FLAGS if flags & bit)

    def _next_hop(self, family: int, more: Mapping[int, bytes]) -> str:
        text = f"via {self.text_of(family, more[RTA_GATEWAY])} " if RTA_GATEWAY in more else ""
        if via := more.get(RTA_VIA):  # struct rtvia: a family of its own (16 bits), an address
            other = unsigned(via[:2])
            text += f"via {'inet6' if other == AF_INET6 else 'inet'} {self.text_of(other, via[2:])} "
        return text

    def _next_hops(self, family: int, data: bytes) -> str:
        text, start = "", 0
        while start + RTNEXTHOP_SIZE <= len(data):
            length, flags, hops, interface = unpack_struct(RTNEXTHOP_FORM, data, start)
            length = max(RTNEXTHOP_SIZE, length)
            more = attributes(data, start + RTNEXTHOP_SIZE, start + length)
            text += (f"\n\tnexthop {self._encapsulation(more)}{self._next_hop(family, more)}"
                     f"{self._realms(more.get(RTA_FLOW), 'realm')}dev {self.device(interface)} "
                     f"weight {hops + 1} {self._flags(flags)}")
            start += aligned(length)
        return text

    def _metrics(self, data: bytes) -> str:
        values = attributes(data)
        locked = unsigned(values.get(RTAX_LOCK))
        text = ""
        for kind, name in ROUTE_METRICS.items():
            value = unsigned(values.get(kind))
            is_locked = bool(locked >> kind & 1)
            if (kind not in values and not is_locked) or (kind == RTAX_HOPLIMIT and value == NO_LIMIT):
                continue
            text += f"{name} lock " if is_locked else f"{name} "
            if kind == RTAX_CC_ALGO:
                text += f"{text_name(values.get(kind))} "
            elif kind == RTAX_FEATURES:
                text += "ecn " if value & RTAX_FEATURE_ECN else ""
                text += f"{value:#x} " if value & ~RTAX_FEATURE_ECN else ""  # iproute2 repeats the known bits
            elif kind in TIME_METRICS:
                value //= TIME_METRICS[kind]
                text += f"{value / 1000:g}s " if value >= 1000 else f"{value}ms "
            else:
                text += f"{value} "
        return text

    def rules(self) -> Iterator[str]:
        """Yield the routing rules as text: IPv4, then IPv6 under its own title.  Raises OSError."""
        for family, title in ((AF_INET, ""), (AF_INET6, "IPv6:\n")):
            request = pack_struct(FIB_RULE_FORM, family, *bytes(7), 0)
            messages = dump(self.host, NETLINK_ROUTE, RTM_GETRULE, request)
            yield title + "".join(message_texts(messages, self.rule_text))

    def rule_text(self, buffer: bytes, start: int, end: int) -> str:
        """Return the text of one rule: struct fib_rule_hdr and its attributes."""
        family, target_bits, source_bits, tos, table, _, _, action, flags = unpack_struct(FIB_RULE_FORM, buffer, start)
        more = attributes(buffer, start + FIB_RULE_SIZE, end)
        text = f"{unsigned(more.get(FRA_PRIORITY))}:\t"
        text += "not " if flags & FIB_RULE_INVERT else ""
        source = "all"
        if FRA_SRC in more or source_bits:
            source = self._prefix(family, more.get(FRA_SRC), source_bits)
        text += f"from {source} "
        if FRA_DST in more or target_bits:
            text += f"to {self._prefix(family, more.get(FRA_DST), target_bits)} "
        text += self._service(tos) + self._rule_conditions(more, flags)
        text += self._rule_table(more, unsigned(more.get(FRA_TABLE)) or table)
        text += self._realms(more.get(FRA_FLOW), "realms")
        if action == FR_ACT_GOTO:
            text += f"goto {unsigned(more.get(FRA_GOTO)) or 'none'} "
            text += "[unresolved] " if flags & FIB_RULE_UNRESOLVED else ""
        elif action == FR_ACT_NOP:
            text += "nop "
        elif action != FR_ACT_TO_TBL:
            text += f"{RULE_ACTIONS.get(action, action)} "
        origin = unsigned(more.get(FRA_PROTOCOL))
        text += f"proto {self.origins.get(origin, origin)} " if origin not in (RTPROT_UNSPEC, RTPROT_KERNEL) else ""
        return text.rstrip() + "\n"

    def _rule_conditions(self, more: Mapping[int, bytes], flags: int) -> str:
        """Return what a rule requires of a packet besides addresses and TOS.

        A condition that this program does not know is shown as `attribute NUMBER`: without it the rule would
        look as if it applied to more packets than it does.
        """
        text = ""
        mark, mark_mask = unsigned(more.get(FRA_FWMARK)), unsigned(more.get(FRA_FWMASK))
        if mark or mark_mask:
            text += f"fwmark {hexadecimal(mark)}"
            text += f"/0x{mark_mask:x} " if FRA_FWMASK in more and mark_mask != NO_LIMIT else " "
        for kind, word, detached in ((FRA_IIFNAME, "iif", FIB_RULE_IIF_DETACHED),
                                     (FRA_OIFNAME, "oif", FIB_RULE_OIF_DETACHED)):
            if kind in more:
                text += f"{word} {text_name(more[kind])} "
                text += "[detached] " if flags & detached else ""
        text += "lookup [l3mdev-table] " if unsigned(more.get(FRA_L3MDEV)) else ""
        if users := more.get(FRA_UID_RANGE):
            text += "uidrange {}-{} ".format(*unpack_struct("=II", users))  # struct fib_rule_uid_range
        if protocol := more.get(FRA_IP_PROTO):
            text += f"ipproto {protocol_names(self.host).get(protocol[0], protocol[0])} "
        text += self._rule_ports(more)
        if tunnel := more.get(FRA_TUN_ID):
            text += f"tun_id {int.from_bytes(tunnel, 'big')} "
        for kind, mask_kind, word in ((FRA_DSCP, FRA_DSCP_MASK, "dscp"),
                                      (FRA_FLOWLABEL, FRA_FLOWLABEL_MASK, "flowlabel")):
            if kind in more:
                text += f"{word} 0x{int.from_bytes(more[kind], 'big'):x}"
                text += f"/0x{int.from_bytes(more[mask_kind], 'big'):x} " if mask_kind in more else " "
        for kind in sorted(more):
            if kind > FRA_DSCP_MASK:
                text += f"attribute {kind} 0x{more[kind].hex()} "
        return text

    @staticmethod
    def _rule_ports(more: Mapping[int, bytes]) -> str:
        text = ""
        for kind, mask_kind, word in ((FRA_SPORT_RANGE, FRA_SPORT_MASK, "sport"),
                                      (FRA_DPORT_RANGE, FRA_DPORT_MASK, "dport")):
            if kind in more:
                low, high = unpack_struct("=HH", more[kind])  # struct fib_rule_port_range
                mask = unsigned(more.get(mask_kind, b"\xff\xff"))
                text += f"{word} {low}" if low == high else f"{word} {low}-{high}"
                text += " " if mask == 0xFFFF else f"/0x{mask:x} "
        return text

    def _rule_table(self, more: Mapping[int, bytes], table: int) -> str:
        if not table:
            return ""
        text = f"lookup {self.tables.get(table, table)} "
        length, group = (unsigned(more.get(kind, u32(NO_LIMIT))) for kind in (FRA_SUPPRESS_PREFIXLEN,
                                                                              FRA_SUPPRESS_IFGROUP))
        text += f"suppress_prefixlength {length} " if length != NO_LIMIT else ""
        text += f"suppress_ifgroup {self.groups.get(group, group)} " if group != NO_LIMIT else ""
        return text


LINK_FLAGS = ((IFF_LOOPBACK, "LOOPBACK"), (2, "BROADCAST"), (IFF_POINTOPOINT, "POINTOPOINT"), (0x1000, "MULTICAST"),
              (0x80, "NOARP"), (0x200, "ALLMULTI"), (0x100, "PROMISC"), (0x400, "MASTER"), (0x800, "SLAVE"),
              (4, "DEBUG"), (0x8000, "DYNAMIC"), (0x4000, "AUTOMEDIA"), (0x2000, "PORTSEL"), (0x20, "NOTRAILERS"),
              (IFF_UP, "UP"), (0x10000, "LOWER_UP"), (0x20000, "DORMANT"), (0x40000, "ECHO"))
LINK_STATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")  # RFC 2863
LINK_TYPES = {1: "ether", 24: "ieee1394", 32: "infiniband", 512: "ppp", ARPHRD_TUNNEL: "ipip",
              ARPHRD_TUNNEL6: "tunnel6", 772: "loopback", ARPHRD_SIT: "sit", ARPHRD_IPGRE: "gre",
              ARPHRD_IP6GRE: "gre6", 65534: "none"}
XDP_MODES = {1: "xdp", 2: "xdpgeneric", 3: "xdpoffload", 4: "xdpmulti"}
ADDRESS_FLAGS = ((IFA_F_TEMPORARY, "secondary"), (2, "nodad"), (4, "optimistic"), (8, "dadfailed"), (0x10, "home"),
                 (0x20, "deprecated"), (0x40, "tentative"), (IFA_F_PERMANENT, ""), (0x100, "mngtmpaddr"),
                 (0x200, "noprefixroute"), (0x400, "autojoin"), (0x800, "stable-privacy"))
ADDRESS_ORIGINS = {1: "kernel_lo", 2: "kernel_ra", 3: "kernel_ll"}
VTI_FIELDS = (IFLA_VTI_LOCAL, IFLA_VTI_REMOTE, IFLA_VTI_IKEY, IFLA_VTI_OKEY)
GRE_FIELDS = (IFLA_GRE_LOCAL, IFLA_GRE_REMOTE, IFLA_GRE_IKEY, IFLA_GRE_OKEY)
IPTUN_FIELDS = (IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE, 0, 0)
# The attributes of a tunnel by the kind of its link: local end, remote end, key in, key out; 0: it has none
TUNNEL_KINDS = {"vti": VTI_FIELDS, "vti6": VTI_FIELDS, "gre": GRE_FIELDS, "gretap": GRE_FIELDS, "ip6gre": GRE_FIELDS,
                "ipip": IPTUN_FIELDS, "sit": IPTUN_FIELDS, "ip6tnl": IPTUN_FIELDS, "xfrm": (0, 0, IFLA_XFRM_IF_ID, 0)}
IFLA_TUNNEL_LINK = 1  # IFLA_VTI_LINK, IFLA_GRE_LINK, IFLA_IPTUN_LINK and IFLA_XFRM_LINK: the interface below


class LinkText(KernelReader):
    """Interfaces and their addresses in the words of `ip addr list`, and the tunnels among them."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.scopes = iproute_names(host, "rt_scopes", ROUTE_SCOPES)
        self.groups = iproute_names(host, "group", {0: "default"})
        self.up: set[int] = set()
        self.namespaces: dict[int, str] | None = None

    def addresses(self) -> Iterator[str]:
        """Yield the text of each interface with its addresses.  Raises OSError."""
        texts: dict[int, str] = {}
        for message in dump(self.host, NETLINK_ROUTE, RTM_GETADDR, bytes(IFADDRMSG_SIZE)):
            at = message[1] + IFADDRMSG_INDEX
            index = unsigned(message[0][at:at + 4])
            texts[index] = texts.get(index, "") + "".join(message_texts([message], self.address_text))
        links = list(self._links())
        self.up = {index for _, index, flags, _ in links if flags & IFF_UP}
        for kind, index, flags, more in links:
            yield self._link(kind, index, flags, more) + texts.get(index, "")

    def _links(self) -> Iterator[tuple[int, int, int, dict[int, bytes]]]:
        """Yield type, index, flags and attributes of each interface (struct ifinfomsg)."""
        for buffer, start, end in dump(self.host, NETLINK_ROUTE, RTM_GETLINK, bytes(IFINFOMSG_SIZE)):
            if start + IFINFOMSG_SIZE > end:
                continue  # the message is truncated
            _, kind, index, flags, _ = unpack_struct(IFINFOMSG_FORM, buffer, start)
            yield kind, index, flags, attributes(buffer, start + IFINFOMSG_SIZE, end)

    def _hardware(self, kind: int, data: bytes) -> str:
        """Return the hardware address of an interface; for an IP tunnel it is an IP address."""
        tunnels = (ARPHRD_TUNNEL, ARPHRD_TUNNEL6, ARPHRD_SIT, ARPHRD_IPGRE, ARPHRD_IP6GRE)
        if kind in tunnels and len(data) in (4, 16):
            return str(self.address[data])
        return data.hex(":")

    def _link(self, kind: int, index: int, flags: int, more: dict[int, bytes]) -> str:
        """Return the text of one interface without its addresses."""
        text = f"{index}: {text_name(more.get(IFLA_IFNAME))}"
        elsewhere = IFLA_LINK_NETNSID in more  # the interface below, or the other end, is in another namespace
        below = unsigned(more.get(IFLA_LINK))
        if IFLA_LINK in more:
            text += "@" + self._lower_name(below, elsewhere)
        words = [name for bit, name in LINK_FLAGS if flags & bit]
        if flags & IFF_UP and not flags & IFF_RUNNING:
            words.insert(0, "NO-CARRIER")
        if below and not elsewhere and below not in self.up:
            words.append("M-DOWN")
        text += f": <{','.join(words)}> mtu {unsigned(more.get(IFLA_MTU))} " + self._link_properties(more)
        text += f"\n    link/{LINK_TYPES.get(kind, f'[{kind}]')} "
        text += self._hardware(kind, more[IFLA_ADDRESS]) if IFLA_ADDRESS in more else ""
        if IFLA_BROADCAST in more:
            word = "peer" if flags & IFF_POINTOPOINT else "brd"
            text += f" {word} {self._hardware(kind, more[IFLA_BROADCAST])}"
        permanent = more.get(IFLA_PERM_ADDRESS)
        if permanent and permanent != more.get(IFLA_ADDRESS):
            text += f" permaddr {permanent.hex(':')}"
        text += self._namespace(unsigned(more[IFLA_LINK_NETNSID])) if elsewhere else ""
        text += " protodown on " if unsigned(more.get(IFLA_PROTO_DOWN)) else ""
        text += "\n"
        for _, name in each_attribute(more.get(IFLA_PROP_LIST, b"")):  # each of them is IFLA_ALT_IFNAME
            text += f"    altname {text_name(name)}\n"
        return text

    def _lower_name(self, below: int, elsewhere: bool) -> str:
        if not below:
            return "NONE"
        return f"if{below}" if elsewhere else self.device(below)

    def _link_properties(self, more: Mapping[int, bytes]) -> str:
        text = ""
        xdp = attributes(more.get(IFLA_XDP, b""))
        if mode := unsigned(xdp.get(IFLA_XDP_ATTACHED)):
            program = unsigned(xdp.get(IFLA_XDP_PROG_ID))
            text += XDP_MODES.get(mode, f"xdp[{mode}]") + (f"/id:{program} " if program else " ")
        text += f"qdisc {text_name(more[IFLA_QDISC])} " if IFLA_QDISC in more else ""
        if IFLA_MASTER in more:
            master = unsigned(more[IFLA_MASTER])
            text += f"master {self.links.get(master, master)} "
        if IFLA_OPERSTATE in more:
            state = unsigned(more[IFLA_OPERSTATE])
            text += f"state {LINK_STATES[state] if state < len(LINK_STATES) else state} "
        if IFLA_GROUP in more:
            group = unsigned(more[IFLA_GROUP])
            text += f"group {self.groups.get(group, group)} "
        length = unsigned(more.get(IFLA_TXQLEN))
        return text + (f"qlen {length}" if length else "")

    def _namespace(self, nsid: int) -> str:
        """Return the words for another network namespace: the name that `ip netns` gave it, or its number
        here.
        """
        if self.namespaces is None:
            self.namespaces = dict(self._named_namespaces())
        if nsid >> 31:
            return " link-netnsid unknown"
        return f" link-netns {self.namespaces[nsid]}" if nsid in self.namespaces else f" link-netnsid {nsid}"

    def _named_namespaces(self) -> Iterator[tuple[int, str]]:
        """Yield number and name of the network namespaces that `ip netns` made."""
        for file in reversed(self.host.glob("/run/netns/*")):
            try:
                fd = self.host.open(file)
                try:
                    request = (RTM_GETNSID, NLM_F_ACK, bytes(RTGENMSG_SIZE) + attribute(NETNSA_FD, fd))
                    for buffer, start, end in exchange(self.host, NETLINK_ROUTE, [request]):
                        more = attributes(buffer, start + RTGENMSG_SIZE, end)
                        yield unsigned(more.get(NETNSA_NSID)), os.path.basename(file)
                finally:
                    os.close(fd)
            except (OSError, Failure):
                continue  # the file is no namespace, or this user may not open it

    def address_text(self, buffer: bytes, start: int, end: int) -> str:
        """Return the text of one address: struct ifaddrmsg and its attributes."""
        family, bits, flags, scope, _ = unpack_struct(IFADDRMSG_FORM, buffer, start)
        more = attributes(buffer, start + IFADDRMSG_SIZE, end)
        flags = unsigned(more.get(IFA_FLAGS)) or flags
        local = more.get(IFA_LOCAL) or more.get(IFA_ADDRESS) or b""
        target = more.get(IFA_ADDRESS) or local
        text = f"    {'inet' if family == AF_INET else 'inet6'} {self.address[local]}"
        text += f"/{bits} " if local == target else f" peer {self.address[target]}/{bits} "
        metric = unsigned(more.get(IFA_RT_PRIORITY))
        text += f"metric {metric} " if metric else ""
        text += f"brd {self.address[more[IFA_BROADCAST]]} " if IFA_BROADCAST in more else ""
        text += f"any {self.address[more[IFA_ANYCAST]]} " if IFA_ANYCAST in more else ""
        text += f"scope {self.scopes.get(scope, scope)} "
        if origin := unsigned(more.get(IFA_PROTO)):
            text += f"proto {ADDRESS_ORIGINS.get(origin, origin)} "
        text += self._address_flags(family, flags) + text_name(more.get(IFA_LABEL))
        if IFA_CACHEINFO in more:
            preferred, valid = ("forever" if value == NO_LIMIT else f"{value}sec"
                                for value in unpack_struct(IFA_CACHEINFO_FORM, more[IFA_CACHEINFO]))
            text += f"\n       valid_lft {valid} preferred_lft {preferred}"
        return text + "\n"

    @staticmethod
    def _address_flags(family: int, flags: int) -> str:
        text = ""
        for bit, name in ADDRESS_FLAGS:
            if bit == IFA_F_PERMANENT:
                text += "" if flags & bit else "dynamic "
            elif flags & bit:
                text += "temporary " if bit == IFA_F_TEMPORARY and family == AF_INET6 else f"{name} "
        return text

    def tunnels(self, *kinds: str) -> Iterator[str]:
        """Yield the text of each tunnel interface of these kinds, by default of all: ends, keys, interface
        below, counters.  Raises OSError.
        """
        for _, _, _, more in self._links():
            info = attributes(more.get(IFLA_LINKINFO, b""))
            kind = text_name(info.get(IFLA_INFO_KIND))
            if kind in (kinds or TUNNEL_KINDS):
                counters = more.get(IFLA_STATS64) or bytes(STATS64_SIZE)
                yield self._tunnel(text_name(more.get(IFLA_IFNAME)), kind,
                                   attributes(info.get(IFLA_INFO_DATA, b"")), counters)

    def _tunnel(self, name: str, kind: str, data: Mapping[int, bytes], counters: bytes) -> str:
        local, remote, key_in, key_out = (data.get(field, b"") for field in TUNNEL_KINDS[kind])
        below = unsigned(data.get(IFLA_TUNNEL_LINK))
        text = f"{name}: {kind} "
        if kind == "xfrm":
            text += f"if_id 0x{unsigned(key_in):x} "
        else:
            for word, end in (("remote", remote), ("local", local)):
                text += f"{word} {self.address[end] if any(end) else 'any'} "
            for word, key in (("ikey", key_in), ("okey", key_out)):
                text += f"{word} {int.from_bytes(key, 'big')} " if any(key) else ""
        text += f"dev {self.links.get(below, below)}" if below else ""
        received, sent, bytes_in, bytes_out, bad_in, bad_out = unpack_struct(STATS64_FORM, counters)
        return (f"{text.rstrip()}\n    RX: packets {received} bytes {bytes_in} errors {bad_in}\n"
                f"    TX: packets {sent} bytes {bytes_out} errors {bad_out}\n")


# --- processes, sockets, options -------------------------------------------------------------------------------------


class Process(Record):
    """A process as /proc shows it."""

    pid: int
    parent: int
    user: int
    state: str
    nice: int
    memory: int  # resident, KiB
    started: float  # seconds since the epoch
    cpu: float  # seconds
    command: str  # its arguments joined by blanks, or its name in brackets


def list_processes(host: Host) -> Iterator[Process]:
    """Yield the processes that this user can see, by number (proc(5)); a process that ends meanwhile is left
    out.
    """
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE") // 1024
    booted = time.time() - float(host.value("/proc/uptime", "0").split()[0])
    for pid in sorted(int(name) for name in host.listdir("/proc") if name.isdigit()):
        try:
            arguments = host.read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            name, _, rest = host.read(f"/proc/{pid}/stat").partition("(")[2].rpartition(")")
            fields = rest.split()
            yield Process(pid, int(fields[1]), host.stat(f"/proc/{pid}").st_uid, fields[0], int(fields[16]),
                          int(fields[21]) * page, booted + int(fields[19]) / tick,
                          (int(fields[11]) + int(fields[12])) / tick, arguments or f"[{name}]")
        except (OSError, IndexError, ValueError):
            continue


def is_pluto(host: Host, pid: int) -> bool:
    """Return whether the process is alive and is pluto; the number in a stale file may belong to another
    program.
    """
    try:
        name, _, rest = host.read(f"/proc/{pid}/stat").partition("(")[2].rpartition(")")
        if name != "pluto" or rest.split()[0] in "ZX":  # zombie: ended, but not yet collected
            return False
        return os.path.basename(host.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")) == "pluto"
    except PermissionError:
        return True  # only root may read the link; the name decides
    except (OSError, IndexError):
        return False


def find_pluto(host: Host) -> int | None:
    """Return the number of the pluto process that the pid file of this run directory names; None if it does
    not run.
    """
    text = host.value(f"{host.rundir}/pluto.pid").strip()
    return int(text) if text.isdigit() and is_pluto(host, int(text)) else None


def plutos(host: Host) -> list[int]:
    """Return the plutos in the network namespace of this process, of any run directory; they share its kernel
    state.
    """
    def here(pid: str) -> bool:
        try:
            return host.stat(f"/proc/{pid}/ns/net").st_ino == host.stat("/proc/self/ns/net").st_ino
        except OSError:
            return True  # unknown: it may share the namespace
    return [int(pid) for pid in host.listdir("/proc") if pid.isdigit() and is_pluto(host, int(pid)) and here(pid)]


def read_sysctl(host: Host, name: str) -> str:
    """Return the value of a sysctl such as `net.ipv4.ip_forward`; empty if there is none.

    A dot in the name of an interface is written `/`.
    """
    return host.value("/proc/sys/" + name.translate({46: "/", 47: "."}))


def has_module(host: Host, *names: str) -> bool:
    """Return whether the running kernel has one of the modules: loaded, or built in with parameters or a
    version.
    """
    return any(host.isdir(f"/sys/module/{name.replace('-', '_')}") for name in names)


def crypto_algorithms(host: Host) -> dict[str, str]:
    """Return the type of each algorithm that the kernel has loaded, such as `rfc4106(gcm(aes))`
    (/proc/crypto).

    The kernel may load others on demand.  Raises OSError.
    """
    found: dict[str, str] = {}
    name = ""
    for line in host.lines("/proc/crypto"):
        key, _, value = line.partition(":")
        if key.strip() == "name":
            name = value.strip()
        elif key.strip() == "type":
            found.setdefault(name, value.strip())
    return found


def open_files(host: Host, pid: int) -> set[str]:
    """Return the files that a process has open, sockets as `socket:[INODE]` (proc_pid_fd(5)).

    Raises OSError if the process is gone or belongs to another user.
    """
    found = set()
    for name in host.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(host.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


class Socket(Record):
    """A bound UDP socket or a listening TCP one."""

    protocol: str  # udp, udp6, tcp, tcp6
    address: str
    port: int
    inode: int


def list_sockets(host: Host, ports: Sequence[int], pid: int | None = None,
                 protocols: Sequence[str] = ("udp", "udp6", "tcp", "tcp6")) -> Iterator[Socket]:
    """Yield the sockets bound to the ports in the network namespace of a process, by default of this one.

    Format (proc_net_tcp.txt): the address is in hexadecimal words of the host's byte order; state 07 is a
    bound UDP socket, 0A a listening TCP socket.  Reading tcp or tcp6 takes about 4 ms, however few sockets
    there are.
    """
    import _socket as socket
    for protocol in protocols:
        try:
            lines = host.lines(f"/proc/{pid or 'self'}/net/{protocol}")
            next(lines, "")
            for line in lines:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if int(port, 16) in ports and fields[3] in ("07", "0A"):
                    words = bytes.fromhex(address)
                    if sys.byteorder == "little":
                        words = b"".join(words[at:at + 4][::-1] for at in range(0, len(words), 4))
                    text = socket.inet_ntop(AF_INET6 if protocol.endswith("6") else AF_INET, words)
                    yield Socket(protocol, text, int(port, 16), int(fields[9]))
        except (FileNotFoundError, IndexError, ValueError):
            continue  # no IPv6 in this kernel


def kernel_config(host: Host) -> str:
    """Return the running kernel's configuration, from the kernel itself or from the files of distributions.

    Raises Missing if there is none.
    """
    release = host.kernel_release()
    if host.live and host.exists("/proc/config.gz"):
        zlib: Any = need("zlib", "reading /proc/config.gz")
        return decode(zlib.decompress(b"".join(host.chunks("/proc/config.gz")), 31))  # 31: with a gzip header
    found = [f"/boot/config-{release}", f"/lib/modules/{release}/config", f"/lib/modules/{release}/build/.config"]
    if not host.live:
        found = [*host.glob("/boot/config-*"), *host.glob("/lib/modules/*/config")][-1:]
    for name in found:
        if host.exists(name):
            return host.read(name)
    raise Missing("no kernel configuration in /proc/config.gz, /boot or /lib/modules")


# =====================================================================================================================
# 6. Whack
#
# Talks to a running pluto over its control socket, as libreswan's whack does, for every release from 3.25 to 5.4, and
# reads what it says into data.  Touches nothing but that socket.  Used by whack, auto, status and the words of 5.x,
# tunnels, metrics, verify, barf and setup.  Facts: whack.h, whack.c, rcv_whack.c and log.c of
# those releases, and the bytes that their whacks sent (tests/data/whack).
# =====================================================================================================================

BASIC_MAGIC = 0x77686B19  # whack.h, WHACK_BASIC_MAGIC: the one message that every release takes
BASIC_STATUS = (4,)  # the bytes of a basic message that ask for the status…
# …and the byte that asks for the end: where releases from this one on keep whack_shutdown.  In another release the same
# byte has another meaning: byte 16 is whack_leave_state from 4.2 to 4.15, and keeps the tunnels.
BASIC_SHUTDOWN = (((5, 1), 5), ((5, 0), 16), ((4, 0), 14), ((3, 28), 12), ((3, 25), 11))
BASIC_LENGTH = 64  # some releases take fewer than 17 for a runt
PLUTO_TIMEOUT = 60.0
DRAIN_TIME = 5.0  # seconds for the rest of a reply that nobody wants any more
LINE_LIMIT = 1 << 20  # no line of pluto's comes near
REPLY_LIMIT = 1 << 30  # nor a whole reply: the status of 100,000 connections has 300 MB
NOT_ALLOWED = "be root"  # the way out for somebody whom pluto's socket refuses


class NoPluto(Failure):
    """Pluto can't be asked: it does not run, the caller may not ask, or its reply is cut (status 33, as whack's).

    `silent` is true only if nothing listens on the socket: it does not exist, or it refuses connections.
    """

    def __init__(self, message: str, hint: str = "", *, silent: bool = False) -> None:
        super().__init__(f"ipsec whack: {message}", NO_PLUTO, hint)
        self.silent = silent


class Conversation:
    """One request to pluto: a message, then its lines until it closes.  A context manager.

    `timeout` is how many seconds pluto may keep us waiting altogether (the time that our own reader takes, a pager
    say, does not count); None waits for ever.
    """

    def __init__(self, host: Host, timeout: float | None = PLUTO_TIMEOUT) -> None:
        """Raises NoPluto, TimedOut."""
        import _socket as socket
        if not host.live:
            raise NoPluto(f"the pluto of the system under {host.root} can't be asked")
        self.host = host
        self.name = host.ctlsocket
        self.timeout = timeout
        self.left = timeout
        self.size = 0
        self.whole = True  # pluto has no more to say
        kind = socket.SOCK_STREAM
        while True:
            try:
                self.link = host.connect(self.name, kind, self.left)
                break
            except OSError as error:
                if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_STREAM:
                    kind = socket.SOCK_SEQPACKET  # 5.4 and later
                elif error.errno == errno.EAGAIN:  # its queue of callers is full: it does not answer
                    time.sleep(0.1)
                    self._spent(0.1)
                else:
                    raise self._refused(error) from None
        self.packets = kind == socket.SOCK_SEQPACKET

    def _refused(self, error: OSError) -> Failure:
        name = f'"{self.name}"'
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return NoPluto(f"Pluto is not running (no {name})", start_hint(self.host), silent=True)
        if error.errno in (errno.EACCES, errno.EPERM):
            return NoPluto(f"no right to communicate with pluto ({name})", NOT_ALLOWED)
        if error.errno == errno.ECONNREFUSED:
            return NoPluto(f"is Pluto running?  connect() for {name} failed (111 Connection refused)",
                           start_hint(self.host), silent=True)
        if isinstance(error, TimeoutError) or error.errno is None:  # before 3.10 a time-out is no TimeoutError
            return NoPluto(f"connect() for {name} failed ({error})")
        return NoPluto(f"connect() for {name} failed ({error.errno} {error.strerror})")

    def _spent(self, seconds: float) -> None:
        if self.left is not None and self.timeout is not None:
            self.left -= seconds
            if self.left <= 0:
                raise TimedOut(f"ipsec whack: pluto did not answer on {self.name} within {self.timeout:g} s", NO_PLUTO,
                               "it may be stopped or very busy")

    def limit(self, seconds: float | None) -> None:
        """Give pluto so many seconds from now for the rest of its answer; None changes nothing."""
        if seconds is not None:
            self.timeout = self.left = max(0.001, seconds)
            self.link.settimeout(self.left)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close the socket.  If the caller stopped early (GeneratorExit) or could not write (OSError), the rest of
        the reply is read first: pluto logs an error for each line that it can't send.
        """
        try:
            if not self.whole and (kind is None or issubclass(kind, (GeneratorExit, OSError))):
                self.left = min(DRAIN_TIME, DRAIN_TIME if self.left is None else self.left)
                for _ in self.lines():
                    continue
        except Failure:
            return  # the caller has the answer that it wanted
        finally:
            self.link.close()

    def say(self, data: bytes) -> None:
        """Send a message in the single write(2) that pluto reads.  Raises NoPluto."""
        try:
            sent = self.link.send(data)
        except OSError as error:
            raise NoPluto(f"write() failed ({error.errno} {error.strerror})") from None
        self.whole = False
        if sent != len(data):
            raise NoPluto("pluto took half of the message")

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the reply, without line ends, with the code that each begins with.

        Raises NoPluto if the reply is cut or is none, TimedOut.
        """
        for block in self.blocks():
            yield from block.split(b"\n")

    def blocks(self) -> Iterator[bytes]:
        """Yield the reply in blocks of whole lines, as they come, without the last line end.  Raises as lines()."""
        import _socket as socket
        rest = b""
        self.link.settimeout(self.left)
        while True:
            began = time.monotonic()
            try:
                data = self.link.recv(READ_CHUNK)
            except socket.timeout:
                data = b""
                self._spent(self.left or 0.0)
            except OSError as error:
                raise NoPluto(f"read() failed ({error.errno} {error.strerror})") from None
            waited = time.monotonic() - began
            self._spent(waited)
            if waited > 0.01:  # pluto sends line by line: not a system call more for each
                self.link.settimeout(self.left)
            if not data:
                self.whole = True
                break
            self.size += len(data)
            block, end, rest = (rest + data).rpartition(b"\n")
            if end:
                yield block
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


def status_value(line: str, name: str) -> str:
    """The value in `…, name=value, …` of a line of the status's settings, or nothing."""
    _, found, rest = f" {line}".partition(f" {name}=")
    return rest.partition(",")[0].strip() if found else ""


def split_code(line: bytes) -> tuple[int, str]:
    """The code and the text of a reply line; -1 for a line that has none."""
    code, _, text = line.partition(b" ")
    return (int(code), decode(text)) if code.isdigit() and len(code) <= 4 else (-1, decode(line))


def pluto_status(host: Host, timeout: float | None = PLUTO_TIMEOUT,
                 beginnings: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield the lines of pluto's full status, without codes, as they come.  Works with every release.

    `beginnings` leaves out the lines of connections that go on with none of these texts (`"conn":   TEXT…`); for
    thousands of connections that takes a fifth of the time of reading them.  Raises NoPluto (not running, no
    permission, cut reply), TimedOut; both when a line is asked for.
    """
    with Conversation(host, timeout) as talk:
        talk.say(basic_message(BASIC_STATUS))
        for block in talk.blocks():
            lines = decode(block).split("\n")
            if beginnings is not None:
                lines = [line for line in lines
                         if (place := line.find(":   ")) < 0 or line.startswith(beginnings, place + 4)]
            for line in lines:
                yield line[4:] if line.startswith("000 ") else split_code(encode(line))[1]


def has_connection(host: Host, name: str) -> bool | None:
    """Return whether pluto has a connection of that name; None if it does not tell."""
    heads = (f'"{name}":', f'"{name}"[', f'"{name}/')
    try:
        return any(line.startswith(heads) for line in list(pluto_status(host, 10.0)))
    except Failure:
        return None


def await_pluto(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> None:
    """Return once pluto has answered a message that asks for nothing.  Raises NoPluto, TimedOut.

    Every release takes a basic message without a request, says nothing and hangs up.  It is the shortest
    question: a status may have megabytes.
    """
    with Conversation(host, timeout) as talk:
        talk.say(basic_message(()))
        for _ in talk.lines():
            continue


def probe(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> Pluto:
    """Return which pluto listens on the control socket; it is asked once per command.  Raises NoPluto, TimedOut.

    A message of one release is sent only after this: up to 5.0 pluto looks at the byte that it takes for
    whack_shutdown even if the magic number is another release's.
    """
    if host.pluto is None:
        version, labelled, seccomp = "", False, False
        with Conversation(host, timeout) as talk:
            talk.say(basic_message(BASIC_STATUS))
            for line in talk.lines():
                text = split_code(line)[1]
                if text.startswith("pluto_version="):
                    version = status_value(text, "pluto_version")
                elif text.startswith("seccomp="):
                    seccomp = status_value(text, "seccomp") != "unsupported"
                elif text.startswith("secctx-attr-type="):
                    labelled = "<unsupported>" not in text
                elif text.startswith(("nat-traversal", "algorithm")):
                    break  # the settings end here
        host.pluto = Pluto(version, talk.packets, labelled, seccomp)
    return host.pluto


def shutdown_message(version: str) -> bytes:
    """Return the basic message that ends a pluto of that version, and does nothing else.

    A pluto that does not tell its version gets the bytes of all releases but 5.0, whose byte would keep the tunnels of
    4.2 to 4.4 and leave their peers uninformed.
    """
    if not version:
        return basic_message(place for since, place in BASIC_SHUTDOWN if since != (5, 0))
    number = leading_version(version)
    return basic_message([next((place for since, place in BASIC_SHUTDOWN if since <= number), BASIC_SHUTDOWN[-1][1])])


def pluto_shutdown(host: Host, timeout: float | None = PLUTO_TIMEOUT) -> None:
    """Ask pluto of any release to end, and wait until it hangs up.  Raises NoPluto, TimedOut."""
    message = shutdown_message(probe(host, timeout).version)
    with Conversation(host, timeout) as talk:
        talk.say(message)
        for _ in talk.lines():
            continue


# --- messages: what a release's whack sends ---------------------------------------------------------------------------
#
# The message is whack.h's struct whack_message in the host's own representation, then its strings.  The tables below
# say it for all releases: a line holds for the releases that it names; a line that begins with blanks goes on the one
# above.  A new release: add it to RELEASES, extend the ranges of what stayed and add lines for what changed.

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
3.28-3.29  11w b active_redirect 3b h active_redirect_peer.family 1h i active_redirect_peer.inet x16
           active_redirect_peer.inet6 1i h active_redirect_gw.family 1h i active_redirect_gw.inet x16
           active_redirect_gw.inet6 2i 6w
3.30-3.32  11w b active_redirect i active_redirect_peer.version x16 active_redirect_peer.bytes 1h i
           active_redirect_gw.version x16 active_redirect_gw.bytes 1h 1i 6w
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
# (?) or of no use (.); the releases; what it sets; after a `/`, the same for other releases.  `word` is a command or a
# member that becomes 1, `word=N` and `word|N` are a member (and the command of that name), `*` the option's value,
# `$word` a string, `@word` the members of an address.
WHACK_OPTIONS = """
status                      . *         status
shutdown                    . *         shutdown
leave-state                 . 4.2-5.2   leave_state / 5.3-5.4 shutdown_leave_state
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
rekey-ike                   + 3.30-4.15 rekey_ike / 5.0-5.2 sa=1 / 5.3-5.4 rekey_ike
rekey-ipsec                 + 3.30-4.15 rekey_ipsec
rekey-child                 + 5.0-5.2   sa=1 sa_type=1 / 5.3-5.4 rekey_child
delete-ike                  + 5.0-5.2   sa=2 / 5.3-5.4 delete_ike
delete-child                + 5.0-5.2   sa=2 sa_type=1 / 5.3-5.4 delete_child
down-ike                    + 5.0-5.2   sa=3 / 5.3-5.4 down_ike
down-child                  + 5.0-5.2   sa=3 sa_type=1 / 5.3-5.4 down_child
deletestate=NUMBER          . *         deletestate deletestateno=*
deleteuser                  + *         deleteuser
deleteid                    + *         deleteid
crash=ADDRESS               . *         crash @crash_peer
listen                      . *         listen
unlisten                    . *         unlisten
ike-socket-bufsize=NUMBER   . *         listen ike_buf_size=*
ike-socket-errqueue-toggle  . *         listen ike_sock_err_toggle=1
ike-socket-errqueue=YES|NO  . 5.3-5.4   listen ike_sock_err=*
ddos-mode=AUTO|BUSY|UNLIMITED . 5.3-5.4 ddos=*
ddos-auto                   . *         ddos=1
ddos-busy                   . *         ddos=2
ddos-unlimited              . *         ddos=3
ddns                        . 3.30-5.3.2 ddns
ddns                        ? 5.4       ddns
purgeocsp                   . *         purgeocsp
checkpubkeys                . 3.25-4.4  checkpubkeys list|1 / 4.5-5.4 checkpubkeys
listpubkeys                 . 3.25-4.4  list|1 / 4.5-5.2 listpubkeys / 5.3-5.3.2 list|1 / 5.4 list list_pubkeys
listcerts                   . 3.25-5.3.2 list|2 / 5.4 list list_certs
listcacerts                 . 3.25-5.3.2 list|4 / 5.4 list list_cacerts
listcrls                    . 3.25-5.3.2 list|8 / 5.4 list list_crls
listpsks                    . 3.25-5.3.2 list|16 / 5.4 list list_psks
listevents                  . 3.25-5.3.2 list|32 / 5.4 list list_events
listall                     . 3.25-4.4  list|31 / 4.5-5.2 list|31 listpubkeys / 5.3-5.3.2 list|31 /
                              5.4 list list_pubkeys list_psks list_certs list_cacerts list_crls
rereadsecrets               . 3.25-4.15 reread|1 / 5.0-5.4 rereadsecrets
rereadcrls                  . 3.25-4.15 reread|2
fetchcrls                   . 3.25-4.15 reread|4 / 5.0-5.4 fetchcrls
rereadcerts                 . 4.0-4.15  reread|8 / 5.0-5.4 rereadcerts
rereadall                   . 3.25-3.32 reread|7 / 4.0-4.15 reread|15 / 5.0-5.2 rereadcerts rereadsecrets fetchcrls /
                              5.3-5.4 rereadall
redirect                    ? 3.28-3.32 active_redirect
gateway=ADDRESS             ? 3.28-3.32 @active_redirect_gw
peer-ip=ADDRESS             ? 3.28-3.32 @active_redirect_peer
redirect-to=ADDRESS,…       ? 4.0-5.2   $redirect_to / 5.3-5.4 active_redirect $redirect_to
global-redirect=YES|NO|AUTO . 4.3-5.4   global_redirect=*
global-redirect-to=ADDRESS,… . 4.3-5.2   $global_redirect_to / 5.3-5.3.2 global_redirect $redirect_to /
                              5.4 global_redirect $global_redirect_to
debug=NAME                  . *         debug
no-debug=NAME               . 3.28-5.4  debug
name=CONNECTION             ? *         $name
remote-host=ADDRESS         + *         $remote_host
username=NAME               + *         $username
asynchronous                ? *         async
utc                         ? *         utc
label=TEXT                  ? *
"""
# The words of members that are an enum: yn_options, global_redirect, ddos_mode
WHACK_WORDS = {"ike_sock_err": {"no": 1, "yes": 2}, "global_redirect": {"no": 1, "yes": 2, "auto": 3},
               "ddos": {"auto": 1, "busy": 2, "unlimited": 3}}
# The numbers of an IP version, of IPv4 and IPv6 (ip_version.h): another one ends pluto
IP_VERSIONS = """
3.25-5.3.2 4 6
5.4        1 2
"""
# Requests that end a pluto of 5.4 if they name no connection
ENDS_WITHOUT_NAME = ("redirect-to", "ddns")
OBSOLETE_OPTIONS = frozenset(("rereadcrls",))  # those that 5.x still names, to say that they are obsolete
# Options that are no request alone; from 5.1 leave-state is one
WHACK_MODIFIERS = frozenset(("name", "remote-host", "username", "asynchronous", "utc", "label", "leave-state"))


def table_rows(table: str) -> Iterator[list[str]]:
    """The rows of one of the tables here, as words.  What follows a `/` is a row of its own with the same two first
    words."""
    for row in table.strip("\n").replace("\n ", " ").splitlines():
        head, *others = row.split(" / ")
        yield head.split()
        for other in others:
            yield head.split()[:2] + other.split()


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


def buffer_size(text: str) -> int:
    """Return the bytes of a UDP buffer as whack of 5.3 and later reads them (`8Ki`, `60000`).  Raises ValueError."""
    digits = text.rstrip("KiB")
    count = int(digits) << (10 if text[len(digits):] in ("K", "Ki", "KB", "KiB") else 0)
    if text[len(digits):] not in ("", "B", "K", "Ki", "KB", "KiB") or (count and not 1500 <= count <= 0xFFFF):
        raise ValueError
    return count


def refusal_status(version: tuple[int, ...]) -> int:
    """Return the status that whack of a release exits with for wrong options."""
    return ERROR if version >= (5, 3) else NO_PLUTO


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
        self.refusal = refusal_status(self.version)
        self.abi = abi or host_abi()
        self.layout = Layout(self.version, self.abi)
        self.data = bytearray(self.layout.size)
        for offset, size, value in self.layout.always:
            self._write(offset, size, value)
        self.strings: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.command = ""
        self.commands = [name for releases, *row in table_rows(WHACK_COMMANDS) if covers(releases, self.version)
                         for name in row if name != "seccomp_crashtest" or pluto.seccomp]

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
            status = NO_PLUTO if name in OBSOLETE_OPTIONS else self.refusal
            raise Failure(f"ipsec whack: pluto {self.pluto.version} does not know --{name}", status)
        self.given[name] = value
        try:
            if name in ("debug", "no-debug"):
                self._debug(value, name == "debug")
            elif name == "ike-socket-bufsize" and self.version >= (5, 3):
                value = str(buffer_size(value))
            for effect in effects:
                self._apply(effect, value)
        except (ValueError, OverflowError, OSError):
            raise Failure(f"ipsec whack: --{name} {quote(value)}: not a value for it", self.refusal) from None

    def _apply(self, effect: str, value: str) -> None:
        if effect.startswith("$"):
            self.strings[effect[1:]] = value
            return
        if effect.startswith("@"):
            self._set_address(effect[1:], value)
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
            wanted = int(number or 1) if number != "*" else self._number(name, value)
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
                          f"{', '.join(sorted(bits))}", self.refusal)
        wanted = bits[name]
        to, other = ("debug.set", "debug.clr") if on != (name == "none") else ("debug.clr", "debug.set")
        self._set(to, self._get(to) | wanted)
        self._set(other, self._get(other) & ~wanted)
        if "options" in self.layout.members:
            self._set("options", 1)

    @staticmethod
    def _number(member: str, value: str) -> int:
        words = WHACK_WORDS.get(member)
        if words is None:
            return int(value)
        if value not in words:
            raise ValueError
        return words[value]

    def _set_address(self, place: str, address: str) -> None:
        import _socket as socket
        members = self.layout.members
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        if f"{place}.family" in members:  # struct sockaddr_in or sockaddr_in6
            self._set(f"{place}.family", family)
            member = f"{place}.inet" if family == socket.AF_INET else f"{place}.inet6"
            if member not in members:
                raise ValueError
            offset, size = members[member]
            self.data[offset:offset + size] = packed
            return
        offset, size = members[f"{place}.bytes"]
        self.data[offset:offset + size] = packed.ljust(size, b"\0")
        versions = next(row[1:] for row in table_rows(IP_VERSIONS) if covers(row[0], self.version))
        number = int(versions[family == socket.AF_INET6])
        for member, value in ((f"{place}.is_set", 1), (f"{place}.version", number), ("host_afi", number)):
            if member in members:
                self._set(member, value)

    def check(self) -> None:
        """Raises Failure when the options make no request, as whack does."""
        rules = {row[0].partition("=")[0]: row[1] for row in table_rows(WHACK_OPTIONS) if covers(row[2], self.version)}
        modifiers = WHACK_MODIFIERS if self.version < (5, 1) else WHACK_MODIFIERS - {"leave-state"}
        actions = [name for name in self.given if name not in modifiers]
        if not actions:
            raise Failure("ipsec whack: no action specified", NO_PLUTO, "see ipsec whack --help")
        if "name" not in self.given and any(rules[name] == "+" for name in self.given):
            raise Failure("ipsec whack: missing --name <connection_name>", NO_PLUTO)
        if "name" in self.given and self.version >= (5,) and all(rules[name] == "." for name in actions):
            raise Failure(f'ipsec whack: {quote(self.given["name"])}: no reason for --name', NO_PLUTO)
        needs_name = [name for name in ENDS_WITHOUT_NAME if name in self.given and "name" not in self.given]
        if self.version >= (5, 4) and needs_name:
            raise Failure(f"ipsec whack: --{needs_name[0]} needs --name: pluto {self.pluto.version} ends without",
                          NO_PLUTO)
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


def whack_words(words: Sequence[str], refusal: int = NO_PLUTO) -> list[tuple[str, str]]:
    """The options on a command line of whack's, in order, each with its value.

    As getopt_long(3): unambiguous beginnings will do, and the word after an option that takes a value is its value,
    whatever it looks like.  Raises Failure with the status `refusal`.
    """
    table = [row[0] for row in table_rows(WHACK_OPTIONS)]
    metavars = {name: metavar for name, _, metavar in (option.partition("=") for option in
                                                       (*table, *WHACK_OWN_OPTIONS))}
    found = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if not word.startswith("--") or word == "--":
            raise Failure(f"ipsec whack: unexpected argument {quote(word)}", refusal)
        given, equals, value = word[2:].partition("=")
        close = [given] if given in metavars else [name for name in metavars if name.startswith(given)]
        if len(close) != 1:
            raise Failure(f"ipsec whack: {quote('--' + given)} is " +
                          (f"ambiguous: --{', --'.join(close)}" if close else "an option that we don't know"), refusal,
                          "" if close else "definitions of connections need libreswan's own whack or addconn")
        name = close[0]
        if not metavars[name] and equals:
            raise Failure(f"ipsec whack: --{name} takes no value", refusal)
        if metavars[name] and not equals:
            if not rest:
                raise Failure(f"ipsec whack: --{name} needs a value: {metavars[name]}", refusal)
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
        self.asks = ""
        if line.startswith(b"000 "):  # nearly all lines
            return decode(line[4:] if self.version >= (5,) else line)
        code, text = split_code(line)
        if code < 0:
            if self.version < (3, 30) or not line:
                return text
            raise NoPluto(f"log line missing NNN prefix: {quote(text)}")
        prompts = (40, 41) if self.version < (5,) else (10, 11)
        if code in prompts:
            self.asks = ("password", "user name")[prompts.index(code)]
        if self.version >= (5,):
            if 20 <= code < 100 and self.status == OK:
                self.status = code
            shown = text if text or self.version < (5, 4) or code == 0 else None
        else:
            if 20 <= code < 100 and not self.asks:
                self.status = OK if self.forgiving else code
            elif code not in (0, 1, 2, 5, 6) and not self.asks:
                self.status = OK
            shown = text if code == 1 and self.version >= (3, 30) else decode(line)
        if self.lenient:
            self.status = OK
        return shown


def xauth_answer(host: Host, options: Mapping[str, str], what: str) -> bytes:
    """The XAUTH user name or password as pluto reads it, NUL at its end: given on the command line, in a file, or asked
    on the terminal.  Raises Failure: nobody there to ask, too long."""
    given = options.get("xauthpass" if what == "password" else "username")
    if given is None and what == "password" and "xauthpass-file" in options:
        name = options["xauthpass-file"]
        try:
            given = host.read(name).partition("\n")[0]
        except OSError as error:
            raise Failure(f"ipsec whack: --xauthpass-file {name}: {error.strerror}", NO_PLUTO) from None
    if given is None:
        given = host.ask(f"Enter {what}: ", secret=what == "password", hint="give --username and --xauthpass-file FILE")
    answer = encode(given) + b"\0"
    if len(answer) > XAUTH_ROOM:
        raise Failure(f"ipsec whack: the {what} is longer than {XAUTH_ROOM - 1} bytes", NO_PLUTO)
    return answer


def loaded_names(host: Host, timeout: float | None) -> list[str]:
    """Return the names of the connections that pluto has, without instances.  Raises NoPluto, TimedOut."""
    names = (line[1:].partition('"')[0] for line in pluto_status(host, timeout) if line.startswith('"'))
    return list(dict.fromkeys(names))


def is_question(name: str) -> bool:
    """Return True if an option asks for a status or a list; whack takes no code of the answer for an error then."""
    is_list = name.startswith(("list", "show")) and name != "listen"
    return is_list or "status" in name or name == "checkpubkeys"


def native_whack(host: Host, words: Sequence[str], *, timeout: float | None = None,
                 wait: Callable[[bytes], float | None] | None = None) -> int:
    """Do what whack does with the words, without it; whack's exit status.  Raises Failure.

    `timeout` None: PLUTO_TIMEOUT, or none for what waits for a peer (initiate, route, terminate, rekey).  `wait` gets
    each line, and returns how many seconds the rest may take, None for no change.
    """
    installed = host.libreswan_version()
    given = whack_words(words, refusal_status(leading_version(installed)) if installed else NO_PLUTO)
    options = dict(given)
    if "help" in options or "version" in options:
        host.print(whack_help() if "help" in options else f"ipsec.pyz {VERSION}, for libreswan {RELEASES[0]} to "
                   f"{RELEASES[-1]}")
        return OK
    if "timeout" in options:
        timeout = parse_seconds(options["timeout"])
    elif timeout is None and not options.keys() & WAITS_FOR_PEER:
        timeout = PLUTO_TIMEOUT
    for name, end in (("ctlsocket", ""), ("rundir", "/pluto.ctl"), ("ctlbase", "/pluto.ctl")):
        if name in options:
            host.ctlsocket = options[name] + end
    if options.keys().isdisjoint(("name", "global-redirect", "global-redirect-to")) and any(
            name in options for name in ENDS_WITHOUT_NAME) and leading_version(probe(host, timeout).version) >= (5, 4):
        statuses = [native_whack(host, ["--name", name, *words]) for name in loaded_names(host, timeout)]
        return max(statuses, default=OK)
    own = {option.partition("=")[0] for option in WHACK_OWN_OPTIONS}
    message, version = whack_message(host, [(name, value) for name, value in given if name not in own], timeout)
    names = options.keys() - own
    return show_replies(
        host, message, version, options, timeout, wait=wait,
        lenient=any(is_question(name) for name in names),
        must_speak=bool(version and version < (5,) and names & {"terminate", "delete"}
                        and has_connection(host, options.get("name", "")) is False))


def whack_message(host: Host, options: Sequence[tuple[str, str]], timeout: float | None = PLUTO_TIMEOUT,
                  pluto: Pluto | None = None) -> tuple[bytes, tuple[int, ...] | None]:
    """The message for the running pluto, and its version: None when it is one that every release understands.

    Raises NoPluto, TimedOut, Failure (whack's status) for options that make no request.
    """
    names = {name for name, _ in options}
    if names == {"status"}:
        return basic_message(BASIC_STATUS), None
    if not names:
        raise Failure("ipsec whack: no action specified", NO_PLUTO, "see ipsec whack --help")
    pluto = pluto or probe(host, PLUTO_TIMEOUT if timeout is None else timeout)
    if names == {"shutdown"}:
        return shutdown_message(pluto.version), leading_version(pluto.version)
    request = Request(pluto)
    for name, value in options:
        request.option(name, value)
    request.check()
    return request.pack(), request.version


def pluto_lines(host: Host, *words: str, timeout: float | None = PLUTO_TIMEOUT,
                pluto: Pluto | None = None) -> Iterator[str]:
    """Yield the lines of pluto's answer to a command line of whack's, without codes, as they come.

    `pluto` None asks which pluto listens.  A pluto of an unknown release is asked by the whack that is installed.
    Raises NoPluto, TimedOut, Failure; all when a line is asked for.
    """
    options = whack_words(words)
    if options not in ([("status", "")], [("shutdown", "")]):
        pluto = pluto or probe(host, PLUTO_TIMEOUT if timeout is None else timeout)
        program = os.path.join(host.execdir, "whack")
        if pluto.version not in RELEASES and host.executable(program):
            for text in split_lines(host.stream([program, "--ctlsocket", host.ctlsocket, *words], timeout=timeout)):
                code = text.partition(" ")[0]
                yield text[4:] if len(code) == 3 and is_number(code) else text
            return
    message, _ = whack_message(host, options, timeout, pluto)
    with Conversation(host, timeout) as talk:
        talk.say(message)
        for line in talk.lines():
            yield split_code(line)[1]


WAITS_FOR_PEER = frozenset(("initiate", "route", "ondemand", "terminate", "down", "delete", "suspend", "rekey-ike",
                            "rekey-ipsec", "rekey-child", "delete-ike", "delete-child", "down-ike", "down-child"))


def parse_seconds(text: str) -> float:
    """A time-out as the user wrote it.  Raises Failure(USAGE)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise Failure(f"ipsec: --timeout {quote(text)}: not a number of seconds", USAGE)
    return value


def show_replies(host: Host, message: bytes, version: tuple[int, ...] | None, options: Mapping[str, str],
                 timeout: float | None, *, lenient: bool = False, must_speak: bool = False,
                 wait: Callable[[bytes], float | None] | None = None) -> int:
    """Send the message, print pluto's replies and answer its prompts; return whack's exit status.  Raises Failure.

    Without a `version`, lines are held back until the status has told it.  `must_speak`: a pluto that says nothing
    does not know the connection (up to 4.15 it has no other way to say so).
    """
    asynchronous = "asynchronous" in options
    replies = Replies(version or version_key(RELEASES[-1]), lenient=lenient, asynchronous=asynchronous)
    held: list[bytes] = []
    spoke = False
    with Conversation(host, timeout) as talk:

        def show(lines: Sequence[bytes]) -> None:
            for line in lines:
                shown = replies.take(line)
                if shown is not None:
                    host.print(shown if shown.isprintable() else printable(shown))
                if replies.asks:
                    host.flush()
                    talk.say(xauth_answer(host, options, replies.asks))

        if talk.packets:
            version = replies.version
        talk.say(message)
        for line in talk.lines():
            spoke = True
            if wait:
                talk.limit(wait(line + b"\n"))
            if version is None:
                held.append(line)
                found = status_value(split_code(line)[1], "pluto_version")
                if found or len(held) == 10_000:
                    version = replies.version = leading_version(found)
                    show(held)
                    held = []
            else:
                show((line,))
        show(held)
    if must_speak and not spoke and not asynchronous:
        raise Failure(f'ipsec whack: no connection named {quote(options["name"])}', UNKNOWN_NAME)
    return replies.status


def whack_help() -> str:
    """The options of our own whack."""
    names = dict.fromkeys(row[0] for row in table_rows(WHACK_OPTIONS))
    return "Usage: ipsec whack OPTION...\n" + "\n".join(f"  --{name.replace('=', ' ')}"
                                                         for name in (*names, *WHACK_OWN_OPTIONS))


# --- status text as data ----------------------------------------------------------------------------------------------

STATUS_SCHEMA = 2
STATUS_HEADINGS = ("config setup options:", "Kernel algorithms supported:", "IKE algorithms supported:",
                   "ESP algorithms supported:", "Connection list:", "Bare Shunt list:", "PID  Process", "- disallowed",
                   "current.states.enumerate", "State list:", "Traffic list:")
# What else the lines of a connection say without a value
STATUS_FLAGS = frozenset(("oriented", "unoriented", "ipcomp"))
# The options of a connection, which the releases name differently, and the fields that they fill
STATUS_FIELDS = {"our_id": "local.id", "their_id": "remote.id", "our_auth": "local.auth", "their_auth": "remote.auth",
                 "newest_ike_sa": "ike_sa", "newest_isakmp_sa": "ike_sa", "established_ike_sa": "ike_sa",
                 "established_isakmp_sa": "ike_sa", "newest_ipsec_sa": "child_sa", "established_child_sa": "child_sa",
                 "established_ipsec_sa": "child_sa", "ike_life": "lifetimes.ike",
                 "ipsec_life": "lifetimes.ipsec", "rekey_margin": "lifetimes.rekey_margin", "interface": "interface",
                 "routing": "routing", "policy": "policy"}
SIZE_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")  # pluto counts in steps of 1,024
# Words in the name or the description of a state that belong to a Child SA, and those that overrule them
CHILD_MARKS = ("CHILD", "QUICK", "V2_IPSEC", "V2_CREATE", "Child SA", "IPsec SA", "Quick Mode", "QI1", "QI2", "QR1")
IKE_MARKS = ("REKEY_IKE", "rekey IKE SA", "IKE_SA_INIT")
OWNER_MARKS = ("IKE SA #", "ISAKMP SA #", "isakmp#")
FIELD_KEYS: dict[str, str] = {}  # what field_key() has made of a text


def status_fields(text: str) -> dict[str, str] | None:
    """`a: b; c=d, e:f;` as a dictionary with plain keys; None when the text is not like that.

    A piece without a key continues the value before it (`dns:192.0.2.1, 192.0.2.2`).
    """
    values: dict[str, str] = {}
    text = text.strip()
    if text.startswith("modecfg info: us:"):
        text = text.replace("modecfg info: us:", "modecfg us:").replace(", them:", ", modecfg them:", 1)
    if text.startswith("CAs: "):
        return {"cas": text.removeprefix("CAs: ").rstrip(";")}
    if text.startswith("our idtype: "):
        return id_fields(text)
    if text.startswith("policy: ") and text.find(";") in (-1, len(text) - 1):
        return {"policy": text[8:].rstrip(";")}
    for part in text.split(";"):
        pieces = part.split(", ")
        if len(pieces) == 1:  # nearly all parts
            end, equals = part.find(":"), part.find("=")
            if end <= 0 or 0 < equals < end:
                end = equals
            if end > 0 and not part[:end].isspace():
                values[field_key(part[:end].strip())] = part[end + 1:].strip().rstrip(",")
                continue
        if not ends_of_keys(pieces[0]):
            pieces = [part]
        key = ""
        for piece in pieces:
            piece = piece.strip().rstrip(";")
            ends = ends_of_keys(piece)
            is_address = piece.count(":") > 1 and not piece.partition(":")[0].strip("0123456789abcdefABCDEF")
            if key and (not ends or is_address):
                values[key] += f", {piece}" if piece else ""
                continue
            key = field_key(piece[:min(ends)] if ends else piece)
            if not ends and key.startswith("+") and "policy" in values:
                values["policy"] += piece
                continue
            if not ends and key and key not in STATUS_FLAGS:
                return None
            if key:
                values[key] = piece[min(ends) + 1:].strip().rstrip(",") if ends else "yes"
    return values


def field_key(text: str) -> str:
    """Return the key in lower case with underscores; the same string each time, as there are many connections."""
    key = FIELD_KEYS.get(text)
    if key is None:
        key = sys.intern(text.lower().replace(" ", "_").replace("-", "_"))
        if len(FIELD_KEYS) < REMEMBERED:
            FIELD_KEYS[text] = key
    return key


def id_fields(text: str) -> dict[str, str] | None:
    """The fields of `our idtype: T; our id=ID; their idtype: T; their id=ID`; an ID may hold any character."""
    ours, _, theirs = text.partition("; their idtype: ")
    our_type, our_mark, our_id = ours.removeprefix("our idtype: ").partition("; our id=")
    their_type, their_mark, their_id = theirs.partition("; their id=")
    if not our_mark or not their_mark:
        return None
    return {"our_idtype": our_type, "our_id": our_id, "their_idtype": their_type, "their_id": their_id.rstrip(";")}


def ends_of_keys(piece: str) -> list[int]:
    """The places of the first `:` and the first `=`, of those that stand behind a key."""
    return [end for end in (piece.find(":"), piece.find("=")) if end > 0]


def count_of(text: str) -> int | None:
    """The number in a count (`168B!`, `2^63`, `#2`, `540s`, `-1s`); None when the text is none or is rounded."""
    digits = text[1:] if text.startswith("#") else text.removesuffix("s")
    if is_number(digits):  # nearly always
        return int(digits)
    text = text.lstrip("#").rstrip("!")
    if text.endswith(("B", "s")):
        text = text[:-1]
    if is_number(text) or (text.startswith("-") and is_number(text[1:])):
        return int(text)
    base, power, exponent = text.partition("^")
    if power and base == "2" and is_number(exponent) and len(exponent) < 3 and int(exponent) < 65:
        return 1 << int(exponent)
    return None


def rounded_bytes(text: str) -> int | None:
    """The bytes in a rounded count (`4KB`, `2KiB`, `30MB`), about; None when the text is no such count."""
    text = text.rstrip("!").replace("iB", "B")
    digits = text.rstrip("BKMGTPE")
    unit = text[len(digits):]
    if not is_number(digits) or unit not in SIZE_UNITS:
        return None
    return int(digits) << 10 * SIZE_UNITS.index(unit)


def find_outside(text: str, mark: str, start: int = 0) -> int:
    """Where the mark first stands outside square brackets, which hold IDs; -1 when it does not."""
    place = text.find(mark, start)
    while place >= 0 and text.count("[", 0, place) > text.count("]", 0, place):
        place = text.find(mark, place + 1)
    return place


def split_topology(body: str) -> tuple[str, str, str] | None:
    """Local end, remote end, rest of the first line of a connection; None when the line is no such line."""
    middle = find_outside(body, "...")
    end = find_outside(body, ";", middle) if middle >= 0 else -1
    if end < 0:
        return None
    return body[:middle], body[middle + 3:end], body[end + 1:].strip()


def plain_end(text: str, is_remote: bool) -> dict[str, Any] | None:
    """Return the end if it is `NETWORK===ADDRESS[ID]` of IPv4 (remote: `ADDRESS[ID]===NETWORK`), the usual form.

    None for any other form, which read_end() reads: this is for the speed with thousands of connections.
    """
    first, mark, last = text.partition("===")
    side, client = (first, last) if is_remote else (last, first) if mark else (first, "")
    host, _, identity = side.partition("[")
    digits = f"{host}{client}".replace(".", "").replace("/", "")
    if not digits.isdigit() or "/" in host or (identity and identity.find("]") != len(identity) - 1):
        return None
    return {"host": host, "subnet": client or None, "id": None, "auth": None}


def read_end(text: str, is_remote: bool) -> dict[str, Any]:
    """One end of a connection: host and subnet (None where pluto names none), port, protoport and pool where there are.
    """
    if plain := plain_end(text, is_remote):
        return plain
    mark = find_outside(text, "===")
    client = ""
    if mark >= 0:
        client, text = (text[mark + 3:], text[:mark]) if is_remote else (text[:mark], text[mark + 3:])
    hop = find_outside(text, "---")
    if hop >= 0:
        # the next hop stands in the middle: HOST---NEXTHOP...NEXTHOP---HOST
        text = text[hop + 3:] if is_remote else text[:hop]
    address = text.startswith("[") and "]" in text and ":" in text.partition("]")[0]
    host = text[1:].partition("]")[0] if address else text.partition("[")[0].partition("<")[0]
    rest = text.rpartition("]")[2] if "]" in text else text.partition(">")[2]
    if address:
        rest = text.partition("]")[2].partition("[")[0] or rest
    protoport = ""
    if not address and (host.count(":") == 1 or "/" in host.rpartition(":")[2]):
        host, _, rest = host.rpartition(":")
    rest = rest.lstrip(":")
    port = count_of(rest)
    if rest and port is None and "/" in rest:
        protoport = rest
    is_leased = client.startswith("{")
    client = client.replace("{", "").replace("}", "")
    parts = [split_protoport(part) for part in client.split(",")]
    subnet = ",".join(part[0] for part in parts)
    protoport = protoport or parts[0][1]
    pool = None
    if is_leased and subnet and not subnet.endswith(("/32", "/128")):
        subnet, pool = "", subnet
    end: dict[str, Any] = {"host": host or None, "subnet": subnet or None, "id": None, "auth": None}
    end.update({key: value for key, value in (("port", port), ("protoport", protoport), ("pool", pool)) if value})
    return end


def split_protoport(client: str) -> tuple[str, str]:
    """Subnet and protoport of `10.0.0.0/8:UDP/53` (up to 4.x) or `10.0.0.0/8/UDP/53` (5.x)."""
    network, slash, rest = client.partition("/")
    for place, letter in enumerate(rest):
        if not is_number(letter):
            return f"{network}{slash}{rest[:place]}", rest[place + 1:]
    return client, ""


def split_instance(text: str) -> tuple[str, str | None, str | None, str | None, str] | None:
    """Instance, remote address, local client, remote client and the rest of what follows a connection's quoted name.

    The forms of the middle part: nothing, `192.0.2.1`, `...192.0.2.1`, `10.0.10.1/32=== ...192.0.2.1`,
    `...192.0.2.1===10.0.10.1/32`.  The rest begins with `,`, `:` or a blank.  None: of another form.
    """
    end = 0
    while text.startswith("[", end):
        close = text.find("]", end)
        if not is_number(text[end + 1:close]):
            return None
        end = close + 1
    instance, rest = text[:end], text[end:]
    if not instance or not rest.startswith(" "):
        return instance, None, None, None, rest
    word, blank, tail = rest[1:].partition(" ")
    local_client = ""
    if word.endswith("==="):
        local_client = word[:-3]
        word, blank, tail = tail.partition(" ")
    if "@" in word or word.startswith(("ref=", "Traffic:")):
        return instance, None, None, None, rest
    behind = blank + tail
    remote = word
    if word.endswith(","):
        remote, behind = word[:-1], "," + behind
    remote, _, client = remote.removeprefix("...").partition("===")
    place = client if client else remote
    address, colon, port = place.rpartition(":")
    is_state = colon and behind.startswith(" ") and not behind.startswith((" esp.", " ah.", " comp.", " ref=", " tun.",
                                                                           " Traffic:"))
    if is_state:
        remote, client, behind = (remote, address, f":{port}{behind}") if client else (address, "", f":{port}{behind}")
    return instance, remote, local_client.strip("{}") or None, client.strip("{}") or None, behind


class StatusReader:
    """Makes data of the lines of status, the other status commands and the lists (ipsec_status(8), JSON).

    A line of an unknown form is kept under `unparsed`.  `takers` names kinds of entries (`connections`, `states`,
    `traffic`) whose entries are not kept, as there may be many: each is handed to the function when it is complete.
    `exact` has the entries of trafficstatus by serial number: they have exact bytes, and times.
    The text is read by its form, not by the release.  Facts: show_status() and its callees of 3.25 to 5.4.
    """

    def __init__(self, takers: Mapping[str, Callable[[dict[str, Any]], None]] | None = None,
                 exact: Mapping[int, dict[str, Any]] | None = None) -> None:
        self._takers = takers or {}
        self._exact = exact or {}
        self.data: dict[str, Any] = {
            "schema": STATUS_SCHEMA, "settings": {}, "interfaces": [], "algorithms": [], "connections": [],
            "states": [], "traffic": [], "pending": [], "shunts": [], "totals": {}, "counters": {}, "lists": {},
            "unparsed": []}
        self._list: list[dict[str, Any]] | None = None
        self._states: dict[int, dict[str, Any]] = {}
        self._family: list[dict[str, Any]] = []  # a connection and its instances, which follow it

    def read(self, lines: Iterable[str]) -> dict[str, Any]:
        """Return the data of all lines."""
        for line in lines:
            text = line.strip()
            if text and not self._line(line, text):
                self.data["unparsed"].append(line)
        self.finish()
        if "states" in self._takers:
            self._hand_over_states()
        return self.data

    def finish(self) -> None:
        """Complete the connections that were read last."""
        for connection in self._family:
            self._set_up(connection)
        templates = [connection for connection in self._family if not connection["instance"]]
        instances = [connection for connection in self._family if connection["instance"]]
        if templates and instances:
            template = templates[0]
            template["instances"] = [{"instance": one["instance"], "remote": one["remote"]["host"], "up": one["up"]}
                                     for one in instances]
            ups = [one["up"] for one in instances]
            if any(ups):
                template["up"] = True
                template["since"] = min((one["since"] for one in instances if one["up"] and one["since"]),
                                        default=None)
        for connection in self._family:
            self._keep("connections", connection)
        self._family = []

    def _keep(self, kind: str, entry: dict[str, Any]) -> None:
        if kind in self._takers:
            self._takers[kind](entry)
        else:
            self.data[kind].append(entry)

    def _set_up(self, connection: dict[str, Any]) -> None:
        serial = connection["child_sa"]
        if serial is not None:
            connection["up"] = True
        elif connection["up"] is None and "tunnel" in (connection["routing"] or ""):
            connection["up"] = True
        elif connection["up"] is None and connection["routing"] == "erouted":
            connection["up"] = True
        elif connection["up"] is None and connection["routing"]:
            connection["up"] = False
        connection["since"] = self._exact.get(serial, {}).get("added") if serial is not None else None

    def connection(self, text: str) -> bool:
        """Take in a line that begins with a quote; False when it is not of a form that is known."""
        end = text.find('"', 1)
        instance, _, body = text[end + 1:].partition(": ")
        name = text[1:end]
        if end < 0 or not body:
            return False
        instance = instance.strip().partition(" ")[0]
        if not body.startswith(" "):
            return self._first_of(name, instance, body)
        last = self._family[-1] if self._family else {}
        fields = status_fields(body)
        if fields is None or last.get("name") != name or last.get("instance") != instance:
            return False
        if fields.get("host") == "oriented" or "oriented" in fields:
            last["oriented"] = True
        for key, value in fields.items():
            last["options"][key] = value
            if key in STATUS_FIELDS:
                self._set_field(last, STATUS_FIELDS[key], value)
        return True

    @staticmethod
    def _set_field(connection: dict[str, Any], place: str, value: str) -> None:
        group, _, field = place.rpartition(".")
        target = connection[group] if group else connection
        if field.endswith("_sa"):
            target[field] = count_of(value) or None  # #0 is none
            if field == "child_sa":
                connection["up"] = target[field] is not None
        elif group == "lifetimes":
            target[field] = count_of(value)
        elif field == "policy":
            target[field] = value.split("+")
        else:
            target[field] = None if value in ("(none)", "%none") else value

    def _first_of(self, name: str, instance: str, body: str) -> bool:
        ends = split_topology(body)
        if ends is None:
            return False
        local, remote, rest = ends
        routing, _, fields = rest.partition(";")
        last = self._family[-1] if self._family else None
        if last and last["name"] != name:
            self.finish()
        elif last and last["instance"] == instance and last["topology"] != f"{local}...{remote}":
            # from 5.0 a connection of several pairs of networks has such a line for each of them
            pair = read_end(local, False)["subnet"], read_end(remote, True)["subnet"]
            last.setdefault("selectors", [(last["local"]["subnet"], last["remote"]["subnet"])]).append(pair)
            return True
        self._family.append({
            "name": name, "instance": instance, "up": None, "since": None, "local": read_end(local, False),
            "remote": read_end(remote, True), "routing": routing.strip() or None,
            "oriented": False, "interface": None, "policy": [], "ike_sa": None, "child_sa": None,
            "lifetimes": {"ike": None, "ipsec": None, "rekey_margin": None}, "topology": f"{local}...{remote}",
            "options": status_fields(fields) or {}})
        return True

    def _line(self, line: str, text: str) -> bool:
        if text.startswith("List of "):
            self._list = self.data["lists"].setdefault(text[8:].rstrip(":"), [])
            return True
        if self._list is not None:
            if line.startswith("   ") and self._list:
                self._list[-1]["details"].append(text)
            else:
                self._list.append({"text": text, "details": []})
            return True
        if text.startswith('"'):
            return self.connection(text)
        if text.startswith("#") and is_number(text[1:].partition(":")[0]):
            return self._state(text)
        word, _, rest = text.partition(" ")
        if word == "interface":
            return self._interface(rest.split())
        if word == "algorithm":
            kind, _, fields = rest.partition(": ")
            self.data["algorithms"].append({"kind": kind, **(status_fields(fields) or {})})
            return True
        if text.startswith(("IKE SAs: ", "IPsec SAs: ")):
            self.data["totals"][text.partition(" ")[0].lower() + "_sas"] = {
                name.strip().replace("-", "_"): count_of(number.rstrip(")"))
                for name, _, number in (part.partition("(") for part in text.partition(":")[2].split(","))}
            return True
        if text.startswith("Total IPsec connections: "):
            self.data["totals"]["connections"] = {
                name: count_of(number) for name, _, number in (part.strip().partition(" ")
                                                                for part in text.partition(":")[2].split(","))}
            return True
        if " => " in text and "-> " in text:
            ends, _, action = text.partition(" => ")
            source, _, target = ends.partition(" -")
            protocol, _, target = target.partition("-> ")
            self.data["shunts"].append({"source": source, "protocol": protocol, "destination": target,
                                        "action": action.strip()})
            return True
        return self._setting(text) or text.startswith(STATUS_HEADINGS)

    def _setting(self, text: str) -> bool:
        key, colon, value = text.partition(":")
        if text.startswith(("current.", "config.", "total.")) and "=" in text:
            name, _, value = text.partition("=")
            self.data["counters"][name] = count_of(value) if count_of(value) is not None else value
        elif text.startswith("FIPS mode "):
            self.data["settings"]["fips_mode"] = text[10:]
        elif key in ("debug", "using kernel interface", "virtual-private (%priv)", "State Information",
                     "virtual_private (%priv)", "- allowed subnets", "- excluded subnets", "stats db_ops") and colon:
            name = key.removesuffix(" (%priv)").lstrip("- ").lower().replace(" ", "_").replace("-", "_")
            self.data["settings"][name] = value.strip()
        elif "=" in text and " " not in text.partition("=")[0].partition(": ")[2]:
            name = ""
            for piece in text.removeprefix("nat-traversal: ").rstrip(";").split(", "):
                before, equals, value = piece.partition("=")
                if equals and before.replace("-", "").replace("_", "").replace(" ", "").isalnum():
                    name = before.strip().lower().replace("-", "_").replace(" ", "_")
                    self.data["settings"][name] = value
                elif name:
                    self.data["settings"][name] += f", {piece}"
        else:
            return False
        return True

    def _interface(self, words: list[str]) -> bool:
        # lo UDP 127.0.0.1:500 (4.x); lo 127.0.0.1:UDP/500 (NAT) (5.x); lo/lo 127.0.0.1@500 (3.x)
        if len(words) < 2:
            return False
        place = words[2] if words[1] in ("UDP", "TCP") and len(words) > 2 else words[1]
        mark = "@" if "@" in place else ":"
        has_port = mark == "@" or place.startswith("[") or place.count(":") == 1  # KLIPS names none
        address, _, port = place.rpartition(mark) if has_port else (place, "", "")
        protocol, slash, number = port.partition("/")
        self.data["interfaces"].append({
            "name": words[0].partition("/")[0], "address": address.strip("[]"),
            "port": count_of(number if slash else port),
            "protocol": protocol if slash else words[1] if place != words[1] else "UDP"})
        return True

    def _state(self, text: str) -> bool:
        number, _, rest = text[1:].partition(": ")
        if rest.startswith("pending ") and " for " in rest:
            kind, _, name = rest[8:].partition(" for ")
            self.data["pending"].append({"ike_sa": int(number), "kind": kind, "connection": name.strip().strip('"')})
            return True
        end = rest.find('"', 1)
        if not rest.startswith('"') or end < 0:
            return False
        parts = split_instance(rest[end + 1:])
        if parts is None:
            return False
        instance, remote, local_client, remote_client, body = parts
        key = {"serial": int(number), "connection": rest[1:end], "instance": instance, "remote": remote}
        if local_client or remote_client:
            key.update({"local_client": local_client, "remote_client": remote_client})
        if body.startswith(", "):
            return self._traffic(key, body[2:])
        if body.startswith(":"):
            return self._state_itself(key, body[1:])
        if " Traffic:" in f" {body}":
            return self._state_bytes(key, body)
        return False

    def _state_of(self, key: dict[str, Any]) -> dict[str, Any]:
        state = self._states.get(key["serial"])
        if state is None:
            traffic = self._exact.get(key["serial"], {})
            state = {
                **key, "port": None, "transport": None, "type": None, "state": None, "description": None,
                "established": None, "events": {}, "newest": False, "owner": False, "ike_sa": None, "spis": [],
                "since": traffic.get("added"), "bytes_in": traffic.get("bytes_in"),
                "bytes_out": traffic.get("bytes_out"), "bytes_max": traffic.get("bytes_max"),
                "username": traffic.get("username"), "notes": []}
            if "states" not in self._takers:
                self.data["states"].append(state)
            elif self._states:
                self._hand_over_states()
            self._states[key["serial"]] = state
        return state

    def _hand_over_states(self) -> None:
        # all lines of a state stand together
        for state in self._states.values():
            self._takers["states"](state)
        self._states.clear()

    def _state_itself(self, key: dict[str, Any], body: str) -> bool:
        port, _, rest = body.partition(" ")
        head, semicolon, notes = rest.partition(";")
        name, bracket, description = head.partition(" (")
        if not semicolon or not port:
            return False
        if bracket and name == name.upper() and " " not in name:
            # the description may hold a semicolon itself
            end = rest.find(");")
            description, notes = rest[len(name) + 2:end], rest[end + 2:]
            if end < 0:
                return False
        else:
            name, description = "", head
        state = self._state_of(key)
        transport, _, number = port.rpartition("/")
        state.update(port=count_of(number), transport=transport or "UDP", state=name or None, description=description,
                     established="established" in description)
        for note in filter(None, (part.strip() for part in notes.split(";"))):
            self._note(state, note)
        text = f"{name} {description}"
        is_child = any(mark in text for mark in CHILD_MARKS) or state["ike_sa"] is not None
        is_child = is_child and not any(mark in text for mark in IKE_MARKS)
        state["type"] = "child" if is_child else "ike"
        return True

    @staticmethod
    def _note(state: dict[str, Any], note: str) -> None:
        event, is_event, when = note.partition(" in ")
        if is_event and " " not in event and event == event.replace("_v1_", "").replace("_v2_", "").upper() or \
                event.startswith("EVENT_"):
            event = event.removeprefix("EVENT_").removeprefix("v1_").removeprefix("v2_").removeprefix("SA_")
            state["events"][event.lower()] = count_of(when.strip())
        elif note.startswith(OWNER_MARKS):
            state["ike_sa"] = count_of(note.rpartition("#")[2]) or None  # #0 is none
        elif note.startswith("newest"):
            state["newest"] = True
        elif note == "eroute owner":
            state["owner"] = True
        else:
            state["notes"].append(note)

    def _state_bytes(self, key: dict[str, Any], body: str) -> bool:
        state = self._state_of(key)
        places, _, counts = f" {body}".partition(" Traffic:")
        for word in places.split():
            protocol, dot, place = word.partition(".")
            spi, at, address = place.partition("@")
            if dot and at and protocol in ("esp", "ah", "comp"):
                is_sent = not any(other["protocol"] == protocol for other in state["spis"])
                state["spis"].append({"protocol": protocol, "direction": "out" if is_sent else "in",
                                      "spi": f"0x{spi}", "address": address})
        values: dict[str, str] = {}
        for word in counts.split():
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
        if "username" in values:
            state["username"] = values["username"]
        for way in ("in", "out", "max"):
            # AH and IPCOMP count the bytes of ESP once more
            texts = [values[f"{protocol}{way}"] for protocol in ("ESP", "AH", "IPCOMP") if f"{protocol}{way}" in values]
            if not texts or state[f"bytes_{way}"] is not None:
                continue
            state[f"bytes_{way}"] = count_of(texts[0])
            about = rounded_bytes(texts[0])
            if state[f"bytes_{way}"] is None and about is not None:
                state[f"bytes_{way}_about"] = about
            if way == "max" and state["bytes_max"] == 0:
                state["bytes_max"] = None  # no limit
        return True

    def _traffic(self, key: dict[str, Any], text: str) -> bool:
        # the id is last but for a lease, quoted, and holds what it likes
        fields, has_id, rest = text.partition(", id='")
        peer, is_leased, lease = rest.partition("', lease=")
        if not has_id:
            fields, is_leased, lease = text.partition(", lease=")
        values = {name.strip(): value for name, _, value in (part.partition("=") for part in fields.split(","))}
        if "type" not in values or "add_time" not in values:
            return False
        about = {}
        for way in ("in", "out", "max"):
            value = values.get(f"{way}Bytes", "")
            if count_of(value) is None and rounded_bytes(value) is not None:
                about[f"bytes_{way}_about"] = rounded_bytes(value)
        self._keep("traffic", {
            **key, "type": values["type"], "username": values.get("username"),
            "added": count_of(values["add_time"]), "bytes_in": count_of(values.get("inBytes", "")),
            "bytes_out": count_of(values.get("outBytes", "")), "bytes_max": count_of(values.get("maxBytes", "")),
            **about, "id": peer.removesuffix("'") or None, "lease": lease or None})
        return True


def exact_traffic(host: Host, timeout: float) -> dict[int, dict[str, Any]]:
    """Return the entries of trafficstatus by serial number; none if pluto does not answer, which the caller reports."""
    try:
        traffic = StatusReader().read(pluto_lines(host, "--trafficstatus", timeout=timeout))["traffic"]
    except (Failure, OSError):
        return {}
    return {entry["serial"]: entry for entry in traffic}


def connection_state(told: Sequence[Mapping[str, Any]]) -> str:
    """Return the state of a connection as a word of Diagnosis, from the entries that pluto's status has of it."""
    if not any(one["oriented"] for one in told):
        return "not oriented"
    instances = [one for one in told if one["instance"]]
    plain = [one for one in told if not one["instance"]]
    ups = [bool(one["up"]) for one in plain]
    if ups and all(ups):
        return "up"
    if any(one["up"] for one in told):
        return "up" if any(one["up"] for one in instances) else "partly up"
    if any(one["remote"]["host"] in (None, "%any", "0.0.0.0", "::") for one in plain):
        return "waiting"
    routings = [one["routing"] or "" for one in plain]
    if any("prospective" in routing or "ondemand" in routing for routing in routings):
        return "on demand"
    return "down"


# =====================================================================================================================
# 7. NSS
#
# The NSS database with pluto's certificates and keys: cert9.db, key4.db and pkcs11.txt in one directory.
# NSS's own tools make the changes.  A change that must happen whole or not at all (create, move, migrate,
# import) is built in a directory beside the database.  When it is complete that directory is renamed to
# `.nss-commit`, and its files are put in place from there; if the command is killed, the next one finishes
# the work.  Files of another user under these names are neither read nor emptied.  Reading needs no tools:
# the databases are SQLite, with a row for each object and a column for each PKCS#11 attribute (`a` and its
# number in hex).  Used by the NSS commands, setup, verify, barf and look.
# Facts: certutil(1), pk12util(1); pkcs11t.h and pkcs11n.h of NSS 3.61 to 3.110; RFC 5280 for certificates.
# =====================================================================================================================

NSS_FILES = ("pkcs11.txt", "key4.db", "cert9.db")  # put in place in this order: no certificate before its key
DBM_FILES = ("cert8.db", "key3.db", "secmod.db")
NSS_COMMIT = ".nss-commit"
NSS_BUILD = ".nss-build."
NSS_STRAY = ".nss-stray."  # the new name of something that another user or program put at `.nss-commit`
NSS_PARTS = ("cert9.db", "key4.db", "pkcs11.tx")  # how the names begin of files that NSS makes (pkcs11.txu, journals)
OPEN_FILES = "/proc/self/fd/"
NSS_ROOM = 256 << 10  # bytes that a new database and its journal need
NSS_READ_TIME = 10.0  # seconds in which a database file is read
NSS_ROWS, NSS_MEMORY = 100_000, 256 << 20  # objects that a database file may hold, and bytes
NSS_TIME = 60.0  # seconds that a tool may take; it never waits for a person
# the database's token; its name in FIPS mode
NSS_TOKENS = ("NSS Certificate DB", "NSS FIPS 140-2 Certificate DB")
NSS_PACKAGES = {"debian": "libnss3-tools", "ubuntu": "libnss3-tools", "fedora": "nss-tools",
                "rhel": "nss-tools",
                "centos": "nss-tools", "suse": "mozilla-nss-tools", "opensuse": "mozilla-nss-tools",
                "alpine": "nss-tools", "arch": "nss", "openwrt": "nss-utils", "gentoo": "dev-libs/nss[utils]"}
# PKCS#11 attributes and values (pkcs11t.h), and NSS's own (pkcs11n.h, from CKA_NSS 0xce534350 on)
CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_NSS_TRUST = (n.to_bytes(4, "big") for n in (1, 3, 0xce534353))
CKK_RSA, CKK_EC = (n.to_bytes(4, "big") for n in (0, 3))
TRUST_COLUMNS = ("ace536358", "ace536359", "ace53635b", "ace53635a")  # server, client, e-mail, code signing
# the letters of certutil -t
TRUST_LETTERS = {0xce534351: "P", 0xce534352: "C", 0xce53435a: "p", 0xce53435b: "c"}
NSS_EMPTY = b"\xa5\x00\x5a"  # NSS stores an attribute of length 0 as these bytes (sdb.c)
NAME_PARTS = {"550403": "CN", "55040a": "O", "55040b": "OU", "550406": "C", "550407": "L", "550408": "ST",
              "550405": "serialNumber", "2a864886f70d010901": "E", "0992268993f22c640119": "DC"}
SOON = 30  # days before its expiry from which a certificate is marked
CERTIFICATE_DER = b"\x30\x82"  # the first bytes of a certificate of 256 bytes to 64 kB


class Certificate(Record):
    """A certificate of the database; `trust` is in the form of certutil -t, without `u`."""

    nickname: str
    der: bytes
    trust: str
    has_key: bool


class HostKey(Record):
    """The public part of a private key of the database.

    `kind` is RSA or ECDSA, `ckaid` its CKA_ID.  `first` and `second` are the modulus and the exponent of an
    RSA key, the DER of the curve and the point of an ECDSA key.
    """

    kind: str
    ckaid: bytes
    first: bytes
    second: bytes


# --- DER: as much as it takes to read a certificate (X.690) ----------------------------------------------------------


def der_items(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, first byte, end) of the content of each element between start and end.  Raises
    ValueError."""
    end = len(data) if end is None else end
    while start < end:
        if start + 2 > end:
            raise ValueError("DER: cut off")
        tag, length, start = data[start], data[start + 1], start + 2
        if length & 0x80:
            size = length & 0x7f
            length, start = int.from_bytes(data[start:start + size], "big"), start + size
        if start + length > end:
            raise ValueError("DER: cut off")
        yield tag, start, start + length
        start += length


def der(tag: int, *contents: bytes) -> bytes:
    """Return a DER element with the tag and the contents."""
    content = b"".join(contents)
    size = b"" if len(content) < 0x80 else len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size) if size else len(content))) + size + content


class Parsed(Record):
    """The fields of a certificate that the program uses: both names as text, and the start and end of its
    validity in seconds since 1970."""

    subject: str
    issuer: str
    begins: int
    expires: int
    is_ca: bool


def parse_certificate(data: bytes) -> Parsed:
    """Parse a DER certificate (RFC 5280, 4.1).

    `is_ca` comes from the basic constraints alone (4.2.1.9): a certificate without them, as in version 1, is
    no CA. Raises ValueError.
    """
    try:
        _, start, end = next(der_items(data))
        _, start, end = next(der_items(data, start, end))
        fields = list(der_items(data, start, end))
        fields = fields[1:] if fields[0][0] == 0xa0 else fields  # the version
        issuer, validity, subject = fields[2:5]
        begins, expires = (der_time(data[first:last].decode("ascii"), tag == 0x17)
                           for tag, first, last in der_items(data, *validity[1:]))
        is_ca = False
        for _, outer, stop in (field for field in fields[5:] if field[0] == 0xa3):
            for _, *extension in der_items(data, *next(der_items(data, outer, stop))[1:]):
                parts = list(der_items(data, *extension))
                if data[parts[0][1]:parts[0][2]] == b"\x55\x1d\x13":  # 2.5.29.19
                    inner = list(der_items(data, *next(der_items(data, *parts[-1][1:]))[1:]))
                    is_ca = bool(inner) and inner[0][0] == 1 and data[inner[0][1]] != 0
        return Parsed(der_name(data, *subject[1:]), der_name(data, *issuer[1:]), begins, expires, is_ca)
    except (IndexError, StopIteration, RuntimeError):
        raise ValueError("not a certificate") from None


def der_name(data: bytes, start: int, end: int) -> str:
    """Return a distinguished name as text, in the order of the certificate: `C=CH, CN=gateway`."""
    words = []
    for _, *one in der_items(data, start, end):
        for _, *pair in der_items(data, *one):
            oid, value = list(der_items(data, *pair))[:2]
            text = data[value[1]:value[2]].decode("utf-16-be" if value[0] == 0x1e else "utf-8", "replace")
            number = data[oid[1]:oid[2]].hex()
            words.append(f"{NAME_PARTS.get(number, number)}={text}")
    return ", ".join(words)


def der_time(text: str, short: bool) -> int:
    """Return a time of a certificate in seconds since 1970.

    `short`: a UTCTime, whose year has two digits (RFC 5280, 4.1.2.5.1); otherwise a GeneralizedTime.  The
    module calendar is not used, because its import takes longer than reading a database.  Raises ValueError.
    """
    if short:
        text = ("19" if text[:2] >= "50" else "20") + text
    year, month, day, hour, minute, second = (int(text[:4]), *(int(text[i:i + 2]) for i in range(4, 14, 2)))
    if not 1 <= month <= 12:
        raise ValueError(f"month {month}")
    # count years from March, so that a leap day is the last day; any five months then have 153 days
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return ((days * 24 + hour) * 60 + minute) * 60 + second


# --- the database ----------------------------------------------------------------------------------------------------


class NssTool(Failure):
    """One of NSS's tools failed; `code` is NSS's name of the error, such as SEC_ERROR_BAD_PASSWORD."""

    def __init__(self, message: str, code: str, hint: str = "") -> None:
        super().__init__(message, NSS_FAILURE, hint)
        self.code = code


class BrokenDatabase(Failure):
    """A file is not an NSS database, or a damaged one."""


def nss_package(host: Host) -> str:
    """Return how to install NSS's tools on this distribution (os-release(5)), as a hint."""
    known: dict[str, str] = {}
    for line in host.value("/etc/os-release", host.value("/usr/lib/os-release")).splitlines():
        key, _, value = line.partition("=")
        known[key] = value.strip("\"'").lower()
    for name in [known.get("ID", ""), *known.get("ID_LIKE", "").split()]:
        package = NSS_PACKAGES.get(name) or NSS_PACKAGES.get(name.partition("-")[0])
        if package:
            return f"install the package {package}"
    return "install NSS's tools: libnss3-tools, nss-tools or mozilla-nss-tools"


def first_line(host: Host, name: str) -> str:
    """Return the first line of a password file.  Raises Failure."""
    try:
        return next(iter(host.read(name).splitlines()), "")
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}",
                      hint="it must hold the password in its first line") from None


class NssDatabase:
    """The NSS database in a directory.

    The methods up to `certificates` only read.  The others change the database: whole or not at all, and one
    command at a time.  `password` opens it; without one, it comes from pluto's file nsspassword.
    """

    def __init__(self, host: Host, directory: str = "", password: str | None = None) -> None:
        self.host = host
        self.directory = os.path.normpath((directory or host.nssdir).removeprefix("sql:"))
        self.passwords = nss_passwords(host)
        if password is None:
            password = nss_password(host, NSS_TOKENS[0])
        self.password = password
        self.opened = -1  # the directory, while lock() is held

    def file(self, name: str) -> str:
        """Return the path of one of the database's files."""
        return os.path.join(self.host.path(self.directory), name)

    def has(self, *names: str) -> list[str]:
        """Return those of the files that exist."""
        return [name for name in names if self.host.lexists(f"{self.directory}/{name}")]

    def secret(self) -> bytes:
        """Return a password file for NSS's tools.  They take the line that begins with the name of their
        token and `:`, otherwise the last line (SECU_FilePasswd)."""
        lines = [f"{token}:{text}" for token, text in self.passwords.items() if token
                 and token not in NSS_TOKENS]
        if self.password is not None:
            lines += [f"{token}:{self.password}" for token in NSS_TOKENS] + [self.password]
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")

    def tool(self, program: str, *words: str, directory: str = "", secret: str = "-f",
             files: Sequence[bytes] = (),
             twice: bool = False) -> Ran:
        """Run one of NSS's tools on the database, or on the database in `directory`.

        `{0}` and `{1}` in a word are replaced by the paths of in-memory files with the contents of `files`.  The
        password is passed the same way, after the option `secret` (and after -@ if `twice`), so that it is in no
        argument and in no file on disk.  Raises NssTool.
        """
        directory = directory or self.host.path(self.directory)
        argv = [program, "-d", f"sql:{directory}", *words]
        built = [int(directory[len(OPEN_FILES):])] if directory.startswith(OPEN_FILES) else []
        opened: list[int] = []
        try:
            password_words: list[str] = []
            if self.password is not None:
                opened.append(self.host.memory_file(self.secret()))
                password_words = [secret, f"/proc/self/fd/{opened[0]}"]
                password_words += ["-@", password_words[1]] if twice else []
            paths = []
            for data in files:
                if words[0] == "-B":  # each line of a batch has options of its own
                    data = data.replace(b"\n", f" {' '.join(password_words)}\n".encode())
                opened.append(self.host.memory_file(data))
                paths.append(f"/proc/self/fd/{opened[-1]}")
            argv = [word.format(*paths) if word in ("{0}", "{1}") else word for word in argv] + password_words
            ran = self.host.run(argv, timeout=NSS_TIME, pass_fds=opened + built, hint=nss_package(self.host))
        finally:
            for fd in opened:
                os.close(fd)
        if ran.status and directory and self.is_full(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)
        if ran.status:
            raise self._tool_failure(program, ran)
        return ran

    def is_full(self, directory: str) -> bool:
        """Return whether the disk has no room for a new database, whose tools don't tell that."""
        info = self.host.within(directory, lambda: os.statvfs(directory), "")
        return info.f_bfree * info.f_frsize < NSS_ROOM

    def _tool_failure(self, program: str, ran: Ran) -> NssTool:
        """Return the error for a tool that failed; a wrong password of the database has a message of its
        own."""
        text = decode(ran.err)
        code = next((word.strip(":,.()") for word in text.split()
                     if word.startswith(("SEC_ERROR_", "PR_", "SSL_ERROR_"))), "")
        is_locked = any(part in text
                        for part in ("Incorrect password/PIN", "could not auth", "ailed to authenticate",
                                                  "TOKEN_NOT_LOGGED_IN"))
        # pk12util reports the password of the imported file with the same code
        if is_locked or (code == "SEC_ERROR_BAD_PASSWORD" and program != "pk12util"):
            what = "needs a password" if self.password is None else "has another password"
            return NssTool(f"{self.directory}: the NSS database {what}", "SEC_ERROR_BAD_PASSWORD",
                           f"put the line `{NSS_TOKENS[0]}:PASSWORD` into {self.host.confddir}/nsspassword")
        return NssTool(f"{program}: {ran.complaint.removeprefix(program + ': ')}", code)

    def broken(self, name: str, why: object) -> Failure:
        """Return the error for a database file that can't be used; `why` is an OSError, or what is wrong in
        it."""
        if not isinstance(why, OSError):
            return BrokenDatabase(f"{self.directory}/{name}: {why}", NSS_FAILURE,
                                  f"restore it from a backup, or wipe the database: rm {self.directory}/*.db")
        hint = ""
        if isinstance(why, PermissionError):
            hint = "run it as root"
        elif isinstance(why, FileNotFoundError):
            hint = "ipsec initnss makes a new database"
            if self.has(*NSS_FILES[1:]):
                hint = "restore it from a backup"
        return Failure(f"{self.directory}/{name}: {why.strerror}", NSS_FAILURE, hint)

    def check(self) -> None:
        """Raise Failure if cert9.db or key4.db is missing, empty or not a database."""
        for name in NSS_FILES[1:]:
            try:
                head = next(self.host.chunks(f"{self.directory}/{name}"), b"")[:16]
            except OSError as error:
                raise self.broken(name, error) from None
            if head != b"SQLite format 3\0":
                raise self.broken(name, "not an NSS database")
        try:
            self.rows("cert9.db", "nssPublic", ("a0",))
            self.rows("key4.db", "nssPrivate", ("a0",))
        except Missing:
            if self.host.live and self.host.which("certutil"):
                self.tool("certutil", "-L")  # without certutil and sqlite3, the heads of the files must do

    def damage(self, name: str) -> str:
        """Return what SQLite finds wrong in the pages of a database file; empty if they are sound, or without
        sqlite3.

        Raises Failure if SQLite can't look, for example while another program writes.
        """
        try:
            self.rows(name, "nssPublic" if name == "cert9.db" else "nssPrivate", ("a0",))
            (result,), *_ = self._ask(name, "PRAGMA quick_check")
        except Missing:
            return ""
        except BrokenDatabase as failure:
            return f"is damaged: {failure.message.rpartition(': ')[2]}"
        return "" if result == "ok" else "is damaged: " + str(result).partition("\n")[2].partition("\n")[0]

    def rows(self, name: str, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the columns of all objects of a database file; None for a column that this database does not
        have.

        Raises Missing without sqlite3, Failure if the file is broken.
        """
        known = {row[1] for row in self._ask(name, f"PRAGMA table_info({table})")}
        if "a0" not in known:
            raise self.broken(name, f"no table {table}")
        asked = ", ".join(column if column in known else "NULL" for column in columns)
        rows = self._ask(name, f"SELECT {asked} FROM {table} ORDER BY rowid")
        if any(value is not None and not isinstance(value, bytes) for row in rows for value in row):
            raise self.broken(name, f"the table {table} holds a value that NSS does not write")
        return rows

    def _ask(self, name: str, question: str) -> list[tuple[Any, ...]]:
        """Return SQLite's answer about a database file.  Raises as rows()."""
        sqlite: Any = need("_sqlite3", "reading an NSS database")
        try:
            self.host.check_readable(f"{self.directory}/{name}")  # SQLite would wait for ever on a pipe
        except OSError as error:
            raise self.broken(name, error) from None
        try:
            return self.host.within(f"{self.directory}/{name}", lambda: self._query(sqlite, name, question))
        except MemoryError:
            raise self.broken(name, "a value is too large") from None
        except UnicodeDecodeError:  # in the name of a column, or in the text of SQLite's own error
            raise self.broken(name, "damaged: a name in it is not UTF-8") from None
        except OSError as error:
            raise self.broken(name, error) from None
        # locked, or in the middle of a change: the file may be sound
        except sqlite.OperationalError as error:
            if str(error) == "interrupted":
                raise self.broken(name, f"not read within {NSS_READ_TIME:g} s") from None
            raise Failure(f"{self.directory}/{name}: {error}", NSS_FAILURE,
                          "another program is changing it, or was killed while it did: try again, or "
                          "certutil -L -d "
                          f"sql:{self.directory}") from None
        except sqlite.Error as error:
            raise self.broken(name, error) from None

    def _query(self, sqlite: Any, name: str, question: str) -> list[tuple[Any, ...]]:
        """Return SQLite's answer.  A database may hold a view without end in the place of a table: the answer is
        bounded in time, rows and memory.  Raises Failure, MemoryError, sqlite.Error."""
        path = self.host.path(f"{self.directory}/{name}")
        for special in "%?#":
            path = path.replace(special, f"%{ord(special):02x}")
        deadline = time.monotonic() + NSS_READ_TIME
        base = sqlite.connect(f"file:{path}?mode=ro{'' if self.host.live else '&immutable=1'}", uri=True, timeout=10)
        try:
            base.text_factory = decode
            base.execute(f"PRAGMA hard_heap_limit={NSS_MEMORY}")
            base.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            rows, size = [], 0
            for row in base.execute(question):
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, (bytes, str)))
                if len(rows) > NSS_ROWS or size > NSS_MEMORY:
                    raise self.broken(name, f"more than {NSS_ROWS} objects or {NSS_MEMORY >> 20} MiB")
            return rows
        finally:
            base.close()

    def keys(self) -> list[HostKey]:
        """Return the public parts of the private keys, in the order of showhostkey(8).  Raises as rows()."""
        keys = []
        # CKA_CLASS, CKA_KEY_TYPE, CKA_ID, CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_EC_PARAMS, CKA_NSS_DB (the
        # point)
        for what, kind, ckaid, modulus, exponent, curve, point in self.rows(
                "key4.db", "nssPrivate", ("a0", "a100", "a102", "a120", "a122", "a180", "ad5a0db00")):
            if what == CKO_PRIVATE_KEY and kind == CKK_RSA and modulus:
                if not modulus.strip(b"\0") or not 0 < len((exponent or b"").strip(b"\0")) < 1 << 16:
                    raise self.broken("key4.db", "an RSA key without a modulus or an exponent")
                keys.append(HostKey("RSA", ckaid or b"", modulus, exponent or b""))
            elif what == CKO_PRIVATE_KEY and kind == CKK_EC and point:
                keys.append(HostKey("ECDSA", ckaid or b"", curve or b"", point))
        return keys

    def has_certificates(self) -> bool:
        """Return False if the database holds no certificate.  Raises OSError.

        The bytes of the file tell without sqlite3, whose import takes longer than many a command.  True also
        for a file that is not a database: other methods report that.
        """
        before = b""  # the bytes before a piece, in which a mark may begin
        for data in self.host.chunks(f"{self.directory}/cert9.db", limit=NSS_MEMORY):
            if (not before and not data.startswith(b"SQLite format 3\0")) or CERTIFICATE_DER in before + data:
                return True
            before = data[-1:]
        return not before

    def certificates(self) -> list[Certificate]:
        """Return all certificates.  Raises Failure."""
        try:
            if not self.has_certificates():
                return []
        except OSError as error:
            raise self.broken("cert9.db", error) from None
        try:
            objects = self.rows("cert9.db", "nssPublic",
                                ("a0", "a3", "a11", "a81", "a82", "a102", *TRUST_COLUMNS))
        except Missing:
            return self._certutil_certificates()
        owned = {row[1] for row in self.rows("key4.db", "nssPrivate", ("a0", "a102"))
                 if row[0] == CKO_PRIVATE_KEY}
        # CKA_ISSUER and CKA_SERIAL_NUMBER connect a trust object with its certificate
        trusts = {row[3:5]: trust_text(row[6:]) for row in objects if row[0] == CKO_NSS_TRUST}
        return [Certificate("" if row[1] in (None, NSS_EMPTY) else decode(row[1]), row[2],
                            trusts.get(row[3:5], ",,"), row[5] in owned)
                for row in objects if row[0] == CKO_CERTIFICATE and row[2]]

    def _certutil_certificates(self) -> list[Certificate]:
        """Return the certificates as certutil lists them, for a Python without sqlite3.

        It takes a run of certutil for each.  Of several with one nickname, only the one that certutil picks
        is listed.  Raises Missing on a mounted disk, as NSS's tools follow its links and load libraries of its
        pkcs11.txt.
        """
        if not self.host.live:
            raise Missing("an NSS database below --root is read with Python's module _sqlite3, which is missing here",
                          hint="use a full python3 for it")
        certificates: dict[str, Certificate] = {}
        for line in self.tool("certutil", "-L").text.split("\n")[4:]:
            if not line.strip():
                continue
            # the nickname in 60 bytes or more, a blank, the trust
            nickname, _, trust = line.rstrip().rpartition(" ")
            nickname = nickname.rstrip()
            data = self.tool("certutil", "-L", "-n", nickname, "-r").out
            certificates[nickname] = Certificate(nickname, data, trust.strip().replace("u", ""), "u" in trust)
        return list(certificates.values())

    # --- changes ----------------------------------------------------------------------------------------------------

    def writable(self) -> bool:
        """Return whether this process may change files in the directory; False on a read-only disk."""
        return self.host.isdir(self.directory) and self.host.writable(self.directory)

    def make_directory(self) -> None:
        """Create the release's own directory of the database, mode 0700, with missing parents.  Raises
        Failure.

        A directory that an option or the environment names is not created: the name may be misspelt.
        """
        path = self.host.path(self.directory)
        if self.host.given_nssdir or self.directory != self.host.nssdir or self.host.lexists(
                self.directory):
            return
        try:
            missing = [path]
            while not self.host.isdir(os.path.dirname(missing[0])):
                missing.insert(0, os.path.dirname(missing[0]))
            for name in missing:
                try:
                    os.mkdir(name, 0o700)
                except FileExistsError:
                    continue  # another command made it at the same time
        except OSError as error:
            raise Failure(f'ERROR: destination directory "{self.directory}" can\'t be created: {error.strerror}',
                          ERROR, f"mkdir -p -m 700 {self.directory}") from None

    def lock(self) -> Lock:
        """Lock the directory for changes, and finish the work of a command that was killed.  Raises
        Failure."""
        if not self.writable():
            raise Failure(f'ERROR: destination directory "{self.directory}" is missing or permission denied',
                          ERROR, "it must be a directory that can be written" if self.host.lexists(self.directory)
                          else f"mkdir -m 700 {self.directory}")
        lock = self.host.lock(self.directory)
        self.opened = lock.fd
        try:
            for name in os.listdir(lock.fd):
                if name.startswith(NSS_BUILD):
                    self._sweep(name)
            fd = self._open_own(NSS_COMMIT)
            if fd is not None:
                try:
                    self._finish(fd)
                finally:
                    os.close(fd)
        except BaseException as error:
            os.close(lock.fd)
            if isinstance(error, OSError):
                raise self.failed(error) from None
            raise
        return lock

    def _lstat(self, name: str) -> os.stat_result | None:
        """Return lstat(2) of a name in the locked directory; None if there is none."""
        try:
            return os.stat(name, dir_fd=self.opened, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _open_own(self, name: str) -> int | None:
        """Return a descriptor of a directory in the locked one that this user's command made, None for anything else.

        Raises Failure if root made it and the caller is another user.
        """
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.opened)
        except PermissionError:
            info = self._lstat(name)
            if info is None or info.st_uid:
                return None
            raise Failure(f"{self.directory}/{name}: a killed command of root left it behind", NSS_FAILURE,
                          "run it as root") from None
        except OSError:
            return None  # not a directory, or a link
        info = os.fstat(fd)
        if info.st_uid == os.geteuid() and not info.st_mode & 0o022:
            return fd
        os.close(fd)
        return None

    def _set_aside(self) -> None:
        """Rename a `.nss-commit` that no command of this user made, because it would block every later change."""
        if self._lstat(NSS_COMMIT) is not None:
            stray = f"{NSS_STRAY}{os.urandom(4).hex()}"
            os.rename(NSS_COMMIT, stray, src_dir_fd=self.opened, dst_dir_fd=self.opened)
            self.host.warn(f"{self.directory}/{NSS_COMMIT} is not of this command, and was renamed to {stray}")

    def _path(self, directory: int, place: str, name: str = "") -> str:
        """Return a path to an open directory, or to a file in it, for programs that take paths alone.

        `place` is the path from the database's directory; it is used where /proc is not mounted.
        """
        if os.path.isdir(OPEN_FILES):
            return f"{OPEN_FILES}{directory}/{name}".rstrip("/")
        return os.path.normpath(self.file(f"{place}/{name}"))

    def failed(self, error: OSError) -> Failure:
        """Return the error for a change that an OSError ended."""
        return Failure(f"{self.directory}: {error.strerror}", NSS_FAILURE, "the database is as it was")

    def _sweep(self, name: str) -> None:
        """Remove a directory of files for the database, if this command made it."""
        fd = self._open_own(name)
        if fd is None:
            return
        try:
            for part in os.listdir(fd):
                if part.startswith(NSS_PARTS):
                    os.unlink(part, dir_fd=fd)
        finally:
            os.close(fd)
        try:
            os.rmdir(name, dir_fd=self.opened)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise

    def build(self, work: Callable[[str], None]) -> None:
        """Let `work` create database files in a new directory, then put all of them in place, or none.

        Call it with the lock held.  Once the directory is renamed, the change is decided: lock() of the next command
        finishes it if this one is killed.  Raises Failure.
        """
        name = f"{NSS_BUILD}{os.getpid()}.{os.urandom(4).hex()}"
        before = self.state()
        try:
            os.mkdir(name, 0o700, dir_fd=self.opened)
            fd = self._open_own(name)
            if fd is None:
                raise self._exchanged(name)
            try:
                try:
                    self._build_in(fd, self._path(fd, name), work)
                    if self.state() != before:
                        raise Failure(f"{self.directory}: another program changed the database meanwhile", NSS_FAILURE,
                                      "it is as that program left it; try again")
                    self._commit(name, fd)
                except BaseException:
                    self._sweep(name)
                    raise
                os.fsync(self.opened)
                self._finish(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self.failed(error) from None
        restorecon = self.host.which("restorecon")
        if restorecon:
            self.host.run([restorecon, "-R", self.directory])

    def _build_in(self, fd: int, path: str, work: Callable[[str], None]) -> None:
        """Let `work` create its files in an open directory, and write them to the disk."""
        work(path)
        for name in os.listdir(fd):
            if name not in NSS_FILES:
                os.unlink(name, dir_fd=fd)  # an empty journal
                continue
            if name == "pkcs11.txt":  # its text names the directory in which it was created
                text = self.host.read(f"{path}/{name}").replace(path, self.directory)
                self._write(fd, name, encode(text))
            self._sync(fd, name)
            if self._is_own_file(name):
                os.close(os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self.opened))  # fails now if it is immutable

    def _commit(self, name: str, fd: int) -> None:
        """Rename the complete directory to `.nss-commit`; from then on the change is decided."""
        self._set_aside()
        os.rename(name, NSS_COMMIT, src_dir_fd=self.opened, dst_dir_fd=self.opened)
        info = self._lstat(NSS_COMMIT)
        if info is None or not os.path.samestat(info, os.fstat(fd)):
            raise self._exchanged(name)

    def _exchanged(self, name: str) -> Failure:
        return Failure(f"{self.directory}: another user exchanged {name}", NSS_FAILURE,
                       f"let nobody else write there: chmod go-w {self.directory}")

    def state(self) -> list[tuple[str, int, int, int]]:
        """Return the name, inode, size and time of each file; equal values mean that no file has changed."""
        infos = ((name, os.stat(self.file(name))) for name in NSS_FILES if os.path.exists(self.file(name)))
        return [(name, info.st_ino, info.st_size, info.st_mtime_ns) for name, info in infos]

    @staticmethod
    def _sync(directory: int, name: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _write(directory: int, name: str, data: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    def _is_own_file(self, name: str) -> bool:
        """Return whether a file of the database exists and belongs, as does the link to it, to root or the caller."""
        info = self._lstat(name)
        if info is None or info.st_uid not in (0, os.geteuid()) or not os.path.exists(self.file(name)):
            return False
        return os.stat(name, dir_fd=self.opened).st_uid in (0, os.geteuid())

    def _finish(self, fd: int) -> None:
        """Put the files of the commit, an open directory, in place.  The pages of an earlier file are replaced in one
        transaction of SQLite, so that a pluto that has it open sees the change; where that can't be, the file is."""
        for name in NSS_FILES:
            try:
                os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if name.endswith(".db") and self._is_own_file(name) and snapshot(
                    self._path(fd, NSS_COMMIT, name), self._path(self.opened, ".", name)):
                os.unlink(name, dir_fd=fd)
            else:
                os.rename(name, name, src_dir_fd=fd, dst_dir_fd=self.opened)
        self._sweep(NSS_COMMIT)
        os.fsync(self.opened)

    def wrong_trusts(self, only: Collection[bytes] | None = None) -> list[tuple[Certificate, str]]:
        """Return the CAs that are not trusted for IPsec, each with its right trust: `CT` for SSL, the rest
        unchanged.

        `only` limits the result to certificates with these DER encodings.  A CA that somebody distrusted
        (`p`) is left out.  Raises Failure.
        """
        wrong: list[tuple[Certificate, str]] = []
        for one in self.certificates():
            ssl, _, others = one.trust.partition(",")
            if (only is not None and one.der not in only) or "p" in ssl or {"C", "T"} <= set(ssl):
                continue
            try:
                if parse_certificate(one.der).is_ca:
                    wrong.append((one, f"CT,{others}"))
            except ValueError:
                self.host.warn(f"{quote(one.nickname)}: the certificate can't be parsed; its trust is "
                               "unchanged")
        return wrong

    def set_trusts(self, directory: str = "", only: Collection[bytes] | None = None) -> list[str]:
        """Trust the CAs of wrong_trusts() for IPsec; return their nicknames.

        `directory` is a copy of the database to change in place of this one.  Raises Failure.
        """
        base = NssDatabase(self.host, directory, self.password) if directory else self
        wrong = base.wrong_trusts(only)
        names = [one.nickname for one in base.certificates()] if wrong else []
        # certutil's batch syntax can't name every certificate; the others are named by the certificate itself
        plain = [pair for pair in wrong if names.count(pair[0].nickname) == 1
                 and pair[0].nickname.isprintable()
                 and pair[0].nickname and not set(pair[0].nickname) & {'"', "\\", ":"}]
        if len(plain) > 1:
            batch = "".join(f'-M -n "{one.nickname}" -t "{trust}"\n' for one, trust in plain)
            self.tool("certutil", "-B", "-i", "{0}", directory=directory, files=[encode(batch)])
        for one, trust in wrong:
            if len(plain) < 2 or (one, trust) not in plain:
                self.tool("certutil", "-A", "-n", one.nickname, "-t", trust, "-i", "{0}", directory=directory,
                          files=[one.der])
        after = {one.der: one.trust for one in base.certificates()} if wrong else {}
        for one, trust in wrong:
            if after.get(one.der) != trust:
                raise Failure(f"{quote(one.nickname)}: its trust could not be corrected", NSS_FAILURE)
        return [one.nickname for one, _ in wrong]


def trust_text(values: Sequence[bytes | None]) -> str:
    """Return the four trust values of a trust object in the form of certutil -t."""
    server, client, mail, code = (TRUST_LETTERS.get(int.from_bytes(value or b"", "big"), "")
                                  for value in values)
    if client == "C":
        client = "T"  # a CA for clients
    elif client == server:
        client = ""
    ssl = server + client
    return f"{ssl},{mail},{code}"


def snapshot(source: str, target: str) -> bool:
    """Copy the SQLite file `source` over `target` in one transaction.  Return False if the copy fails."""
    try:
        import sqlite3
    except ImportError:
        return False
    try:
        left, right = sqlite3.connect(source, timeout=10), sqlite3.connect(target, timeout=10)
        try:
            left.backup(right)
        finally:
            left.close()
            right.close()
    except sqlite3.Error:
        return False
    return True


def same_content(host: Host, one: str, other: str) -> bool:
    """Return whether two SQLite files hold the same data.  A copy by snapshot() differs in the bytes of a
    counter."""
    if host.read(one) == host.read(other):
        return True
    try:
        import sqlite3
    except ImportError:
        return False
    bases = [sqlite3.connect(name, timeout=10) for name in (one, other)]
    try:
        return list(bases[0].iterdump()) == list(bases[1].iterdump())
    except sqlite3.Error:
        return False
    finally:
        for base in bases:
            base.close()


def copy_database(host: Host, source: str, target: str) -> None:
    """Copy the files of a database.  Raises OSError, Failure."""
    for name in NSS_FILES:
        old, new = os.path.join(source, name), os.path.join(target, name)
        if not os.path.exists(old):
            continue
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if name.endswith(".db") and snapshot(old, new):
            continue
        if os.path.exists(f"{old}-journal"):
            raise Failure(f"{old}: another program is changing it, or was killed", NSS_FAILURE,
                          f"run: certutil -L -d sql:{source}")
        fd = os.open(new, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            with open(old, "rb") as stream:
                while data := stream.read(READ_CHUNK):
                    write_all(fd, data)
        finally:
            os.close(fd)


def create_database(base: NssDatabase, password: str = "") -> None:
    """Create the database with the lock held; an existing pkcs11.txt stays.  Raises Failure (4)."""
    kept = base.has("pkcs11.txt")
    base.password = password or None

    def work(path: str) -> None:
        base.tool("certutil", "-N", *([] if base.password else ["--empty-password"]), directory=path)
        if kept:
            os.unlink(os.path.join(path, "pkcs11.txt"))

    if kept:
        base.host.warn(f"WARNING: using existing modules from {base.directory}/pkcs11.txt")
    base.build(work)


def migrate_dbm(base: NssDatabase) -> None:
    """Convert a Berkeley DB database to a SQLite database in the same directory, with the lock held.

    Raises Failure (4).
    """
    source = base.host.path(base.directory)

    def work(path: str) -> None:
        base.tool("certutil", "-N", *([] if base.password else ["--empty-password"]), directory=path)
        base.tool("certutil", "--upgrade-merge", "--source-dir", source, "--upgrade-id", "pluto",
                  directory=path,
                  twice=True)

    probe_argv = ["certutil", "-L", "-d", f"dbm:{source}"]
    if base.host.run(probe_argv, timeout=NSS_TIME, hint=nss_package(base.host)).status:
        raise Failure(f"{base.directory}: NSS database in Berkeley DB format, which this NSS can't read",
                      NSS_FAILURE,
                      "on a host whose certutil can: certutil --upgrade-merge --source-dir DIR -d sql:NEW "
                      "--upgrade-id pluto")
    base.host.print(f"Migrating NSS db to sql:{base.directory}")
    base.build(work)
    base.host.print("NSS upgrade complete")


def move_database(base: NssDatabase, old: str) -> None:
    """Move the database from `old`, the directory of 3.x, to the directory of `base`, with the lock held.

    Raises Failure (4).
    """
    source = NssDatabase(base.host, old)
    if not source.has(*NSS_FILES[1:], NSS_COMMIT):
        return
    with source.lock():
        if not base.has(*NSS_FILES[1:]):
            source.check()
            base.build(lambda path: copy_database(base.host, base.host.path(source.directory), path))
            remove_database(source)
            base.host.print(f"Moved the NSS database from {source.directory} to {base.directory}")
        # both exist: if they hold the same, a move was killed before it removed all of the old database
        elif all(os.path.exists(base.file(name))
                 and same_content(base.host, source.file(name), base.file(name))
                 for name in NSS_FILES[1:] if os.path.exists(source.file(name))):
            remove_database(source)


def remove_database(base: NssDatabase) -> None:
    """Remove the files of a database, keys and certificates last, because move_database() recognises it by
    them.

    Raises Failure (4).
    """
    try:
        for name in NSS_FILES:
            base.host.remove(f"{base.directory}/{name}")
    except OSError as error:
        raise base.failed(error) from None


def check_database(base: NssDatabase) -> None:
    """Create, move or migrate the database, or find it sound: the work of `ipsec checknss`.

    Only the default directory takes over a database of 3.x, not the directory of a second instance.  A sound
    database on a read-only disk needs no change.  Raises Failure.
    """
    base.make_directory()
    if len(base.has(*NSS_FILES[1:])) == 2 and not base.writable():
        base.check()
        return
    with base.lock():
        old = base.host.confddir
        if base.directory == DEFAULT_NSSDIRS[0] and base.host.realpath(old) != base.host.realpath(
                base.directory):
            dbm = NssDatabase(base.host, old)
            if dbm.has("cert8.db") and not dbm.has("cert9.db") and not base.has("cert9.db"):
                raise Failure("Failure - we cannot handle both nss db format conversion and nss db move to new "
                              "location in one run.", NSS_FAILURE,
                              f"first run: ipsec checknss --nssdir {old}")
            move_database(base, old)
        if base.has(*NSS_FILES[1:]):
            base.check()
        elif base.has(*DBM_FILES):
            migrate_dbm(base)
        else:
            base.host.print("Initializing NSS database\n")
            create_database(base)


def certificate_state(parsed: Parsed, days: int) -> str:
    """Return `expired`, `expiring` (within `days`) or `valid`."""
    left = parsed.expires - time.time()
    if left < 0:
        return "expired"
    return "expiring" if left < days * 86400 else "valid"


def certificate_data(base: NssDatabase, days: int = SOON) -> Iterator[dict[str, Any]]:
    """Yield the certificates of a database as data; `state` is certificate_state() or `unreadable`.  Raises
    Failure."""
    base.check()
    for one in base.certificates():
        entry: dict[str, Any] = {"nickname": one.nickname, "trust": one.trust, "has_key": one.has_key}
        try:
            parsed = parse_certificate(one.der)
        except ValueError:
            entry.update(subject=None, issuer=None, expires=None, is_ca=None, state="unreadable")
        else:
            entry.update(subject=parsed.subject, issuer=parsed.issuer, is_ca=parsed.is_ca,
                         expires=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(parsed.expires)),
                         state=certificate_state(parsed, days))
        yield entry


def pluto_nickname(nickname: str) -> str:
    """Return the nickname as leftcert= must have it.

    NSS takes the part of a nickname before its first colon for the name of a token, so a nickname with a
    colon needs the name of the database's token in front (PK11_FindCertFromNickname).
    """
    return f"{NSS_TOKENS[0]}:{nickname}" if ":" in nickname else nickname


# --- PKCS#12 and PEM -------------------------------------------------------------------------------------------------


def import_file(base: NssDatabase, names: Sequence[str], password: Callable[[], str],
                nickname: str) -> list[str]:
    """Import a PKCS#12 file, or PEM files, and trust the CAs in it; return the nicknames of the new
    certificates.

    `password` gives the password of the PKCS#12 file.  `nickname`, if not empty, names the certificate with
    the key.  Raises Failure; the database is then unchanged.
    """
    host = base.host
    data = [read_import(base.host, name) for name in names]
    if any(b"-----BEGIN " in one[:READ_CHUNK] for one in data):
        pkcs12, secret = pem_to_pkcs12(host, b"\n".join(data), nickname), b"pem"
    elif len(data) > 1:
        raise Failure("several files are imported only when they are PEM", USAGE,
                      "import one PKCS#12 file at a time")
    else:
        try:
            tag, start, end = next(der_items(data[0]), (0, 0, 0))
            head = data[0][start:start + 3]
        except ValueError:
            tag, head = data[0][0] if data[0] else 0, b""
            if tag == 0x30:
                raise Failure(f"{names[0]}: corrupt or cut off", IMPORT_CORRUPT, "copy it again") from None
        if tag != 0x30 or head != b"\x02\x01\x03":  # SEQUENCE, version 3 (RFC 7292)
            raise Failure(f"{names[0]}: not a PKCS#12 file", IMPORT_FORMAT,
                          "openssl pkcs12 -export makes one")
        pkcs12, secret = data[0], encode(password())
    with base.lock():
        if len(base.has(*NSS_FILES[1:])) < 2:
            raise Failure("ERROR: NSS database files are missing, import aborted.", ERROR,
                          'Initialize database with command "ipsec checknss".')
        base.check()
        before = {(one.der, one.has_key) for one in base.certificates()}
        done: list[str] = []

        def work(path: str) -> None:
            copy_database(host, host.path(base.directory), path)
            try:
                base.tool("pk12util", "-i", "{0}", "-w", "{1}", directory=path, secret="-k",
                          files=[pkcs12, secret + b"\n"])
            except NssTool as failure:
                raise import_failure(names[0], failure) from None
            new = [one for one in NssDatabase(host, path, base.password).certificates()
                   if (one.der, one.has_key) not in before]
            if not new:
                raise Failure(f"{names[0]}: all its certificates are in the database already",
                              IMPORT_DUPLICATE)
            owner = next((one for one in new if one.has_key), new[0])
            if not owner.nickname:
                raise Failure(f"{names[0]}: a certificate with no private key, and not a CA", IMPORT_CORRUPT,
                              "name the file of its key too; for a peer's certificate: ipsec certutil -A -n "
                              "NICKNAME "
                              "-t ,, -i FILE")
            if nickname and owner.nickname != nickname:
                base.tool("certutil", "--rename", "-n", owner.nickname, "--new-n", nickname, directory=path)
            base.set_trusts(path, {one.der for one in new})
            done.extend(one.nickname if one is not owner else nickname or one.nickname for one in new)

        base.build(work)
    return done


def read_import(host: Host, name: str) -> bytes:
    """Return the bytes of a file, a FIFO or /dev/fd/N.  Raises Failure."""
    try:
        with host.within(name, lambda: open(name, "rb")) as stream:
            return host.within(name, lambda: stream.read(64 << 20))
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}", IMPORT_UNREADABLE) from None


# NSS's errors for a PKCS#12 file that is damaged, and for one that this release of NSS can't read (secerr.h)
CORRUPT_PKCS12 = ("SEC_ERROR_BAD_DER", "SEC_ERROR_INPUT_LEN", "SEC_ERROR_PKCS12_DECODING_PFX",
                  "SEC_ERROR_PKCS12_INVALID_MAC", "SEC_ERROR_PKCS12_CORRUPT_PFX_STRUCTURE")
UNREADABLE_PKCS12 = ("SEC_ERROR_PKCS12_UNSUPPORTED_", "SEC_ERROR_UNSUPPORTED_", "SEC_ERROR_INVALID_ALGORITHM",
                     "SEC_ERROR_BAD_EXPORT_ALGORITHM")


def import_failure(name: str, failure: NssTool) -> Failure:
    """Return the error for a failure of pk12util: of the file where NSS's code says so, otherwise as NSS
    tells it."""
    if failure.hint:  # of the database's password
        return failure
    if failure.code == "SEC_ERROR_BAD_PASSWORD":
        return Failure(f"{name}: wrong password", IMPORT_PASSWORD, "give --password-file FILE")
    if any(word in failure.message for word in ("DUPLICATE", "COLLISION", "same")):
        return Failure(f"{name}: its nickname or certificate is in the database already", IMPORT_DUPLICATE)
    if failure.code in CORRUPT_PKCS12:
        return Failure(f"{name}: corrupt: {failure.message}", IMPORT_CORRUPT, "copy it again")
    if failure.code.startswith(UNREADABLE_PKCS12):
        return Failure(f"{name}: this release of NSS does not support it: {failure.message}", IMPORT_FORMAT,
                       "openssl pkcs12 -export makes a file with other algorithms (-keypbe, -certpbe, "
                       "-macalg)")
    return Failure(f"{name}: {failure.message}", NSS_FAILURE, "the database is as it was")


def pem_to_pkcs12(host: Host, pem: bytes, nickname: str) -> bytes:
    """Convert PEM certificates and the key of one of them to PKCS#12, with openssl.  Raises Failure."""
    source, secret = host.memory_file(pem), host.memory_file(b"pem\n")
    try:
        argv = ["openssl", "pkcs12", "-export", "-in", f"/proc/self/fd/{source}", "-passout",
                f"file:/proc/self/fd/{secret}"]
        if b"PRIVATE KEY-----" not in pem:
            argv.append("-nokeys")
        if nickname:
            argv += ["-name", nickname]
        ran = host.run(argv, pass_fds=(source, secret),
                       hint="install the package openssl to import PEM files")
    finally:
        os.close(source)
        os.close(secret)
    if ran.status:
        raise Failure("these PEM files don't contain a certificate and its key, or the key has a password",
                      IMPORT_CORRUPT,
                      "openssl pkcs12 -export -in CERT -inkey KEY -out FILE.p12, then import that")
    return ran.out


# --- keys as showhostkey(8) writes them -------------------------------------------------------------------------------


def key_texts(key: HostKey) -> tuple[str, str, str, int]:
    """Return four texts about a key: its keyid; the key as in leftrsasigkey= and IPSECKEY records, in base64;
    the DER public key in base64; IPSECKEY's number of the algorithm.

    An RSA key has the form of RFC 3110, an ECDSA key is the point without its first byte.  The keyid is 9
    characters: of an RSA key, or of the CKAID of an ECDSA key.
    """
    from binascii import b2a_base64
    if key.kind == "RSA":
        exponent, modulus = key.second.lstrip(b"\0"), key.first.lstrip(b"\0")
        size = bytes((len(exponent),)) if len(exponent) < 256 else b"\0" + len(exponent).to_bytes(2, "big")
        data, number_ = size + exponent + modulus, 2
        numbers = (der(2, b"\0" * (part[0] >> 7) + part) for part in (modulus, exponent))
        # rsaEncryption
        algorithm, bits = der(6, b"\x2a\x86\x48\x86\xf7\r\1\1\1") + der(5), der(0x30, *numbers)
    else:
        data, number_ = key.second[1:], 3
        algorithm, bits = der(6, b"\x2a\x86\x48\xce\x3d\2\1") + key.first, key.second  # id-ecPublicKey
    text = b2a_base64(data, newline=False).decode()
    keyid = text[:9] if key.kind == "RSA" else b2a_base64(key.ckaid, newline=False).decode()[:9]
    spki = der(0x30, der(0x30, algorithm), der(3, b"\0", bits))
    return keyid, text, b2a_base64(spki, newline=False).decode(), number_


def generate_key(base: NssDatabase, kind: str, size: str, seed: bytes) -> str:
    """Make a key pair in the database; return its CKAID in hex.

    `size` is the bits of an RSA key or the curve of an ECDSA key.  certutil makes the key, because rsasigkey
    takes a password only on its command line.  Raises Failure.
    """
    with base.lock():
        base.check()
        before = {key.ckaid for key in base.keys()}
        words = ["-k", "rsa", "-g", size] if kind == "RSA" else ["-k", "ec", "-q", size]
        base.tool("certutil", "-G", *words, "-z", "{0}", files=[seed])
        made = [key.ckaid.hex() for key in base.keys() if key.ckaid not in before]
    if not made:
        raise Failure(f"{base.directory}: certutil made no key", NSS_FAILURE)
    return made[0]


# =====================================================================================================================
# 8. Firewall
#
# NFLOG rules (for checknflog, stopnflog and sniff), and the changes that _updown makes for a connection: routes,
# addresses, rules, VTI interfaces, proxy ARP, address translation, resolv.conf.  Used by the service commands and
# _updown; verify, show and look use Routing.  Facts: the ipsec script and _updown.netkey/_updown.xfrm of libreswan
# 3.25 to 5.4; ipsec.conf(5) for nflog= and nflog-all=; rtnetlink(7), the headers of section 5; ip-route(8) for the
# words of a route.
# =====================================================================================================================


# --- routing --------------------------------------------------------------------------------------------------------

# The words of `ip route` whose value is a number, by the attribute of the route, or of its RTA_METRICS
ROUTE_NUMBERS = {"metric": RTA_PRIORITY, "preference": RTA_PRIORITY, "priority": RTA_PRIORITY,
                 "table": RTA_TABLE}  # struct rtmsg has room for tables below 256
METRIC_NUMBERS = {"mtu": RTAX_MTU, "window": RTAX_WINDOW, "ssthresh": RTAX_SSTHRESH, "cwnd": RTAX_CWND,
                  "advmss": RTAX_ADVMSS, "hoplimit": RTAX_HOPLIMIT, "initcwnd": RTAX_INITCWND,
                  "quickack": RTAX_QUICKACK, "initrwnd": RTAX_INITRWND}
ROUTE_ACTIONS = {"add": NLM_F_CREATE | NLM_F_EXCL, "replace": NLM_F_CREATE | NLM_F_REPLACE, "change": NLM_F_REPLACE,
                 "del": 0}


class Route(Record):
    """A route that the kernel has, or that it chooses for an address."""

    local: bool  # the destination is an address of this host
    destination: str  # address/bits
    gateway: str
    device: str
    source: str


def address_family(address: str) -> int:
    """Return AF_INET or AF_INET6 for the text of an address or network."""
    return AF_INET6 if ":" in address else AF_INET


def split_net(net: str) -> tuple[bytes, int]:
    """Return address and bits of `address[/bits]`; all bits if there are none.

    Raises OSError, ValueError.
    """
    address, _, bits = net.partition("/")
    data = packed_address(address)
    return data, int(bits or 8 * len(data))


class RouteWords:
    """The words of a route, as ip-route(8) has them, read into the fields of a netlink message."""

    def __init__(self, words: Sequence[str]) -> None:
        """Read the words.  Raises OSError (EINVAL) for a word that is unknown or lacks its value."""
        self.attributes = b""
        self.metrics = b""
        self.table = RT_TABLE_MAIN
        self.scope: int | None = None
        self.origin = RTPROT_BOOT
        self.flags = 0
        self.has_gateway = False
        scopes = {name: scope for scope, name in ROUTE_SCOPES.items()}
        rest = iter(words)
        for word in rest:
            if word == "onlink":
                self.flags |= RTNH_F_ONLINK
                continue
            value = next(rest, None)
            if value is None:
                raise OSError(errno.EINVAL, f"{quote(word)} needs a value, or is not a word of a route")
            if word == "scope" and (value in scopes or value.isdigit()):
                self.scope = scopes[value] if value in scopes else int(value)
            elif word in ("proto", "protocol") and value.isdigit():
                self.origin = int(value)
            elif word == "table" and value.isdigit() and int(value) < 256:
                self.table = int(value)
            elif word in METRIC_NUMBERS and value.isdigit():
                self.metrics += attribute(METRIC_NUMBERS[word], int(value))
            else:
                self.attributes += self._attribute(word, value)

    def _attribute(self, word: str, value: str) -> bytes:
        if word == "via":
            self.has_gateway = True
            return attribute(RTA_GATEWAY, packed_address(value))
        if word == "dev":
            return attribute(RTA_OIF, Routing.index(value))
        if word == "src":
            return attribute(RTA_PREFSRC, packed_address(value))
        if word in ROUTE_NUMBERS and value.isdigit():
            if word == "table":
                self.table = 0
            return attribute(ROUTE_NUMBERS[word], int(value))
        raise OSError(errno.EINVAL, f"{quote(f'{word} {value}')} is not understood as words of a route")


class Routing:
    """Routes, addresses, rules, neighbours and links of the kernel (rtnetlink(7)).

    The requests are those of iproute2, so that `ip` shows the same afterwards.  pyroute2 is not used: pluto
    waits for _updown at every SA, and the import takes 0.3 s.  All methods raise OSError with the kernel's
    errno, and TimedOut.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Return the bodies of the kernel's answers."""
        return [buffer[start:end] for buffer, start, end in
                exchange(self.host, NETLINK_ROUTE, [(kind, NLM_F_ACK | flags, body)])]

    def _change(self, add: bool, kind: int, body: bytes) -> None:
        """Create an object that must not exist yet, or delete it; `kind` is one of RTM_NEW…"""
        if add:
            self._ask(kind, NLM_F_CREATE | NLM_F_EXCL, body)
        else:
            self._ask(kind + RTM_NEW_TO_DEL, 0, body)

    @staticmethod
    def index(device: str, default: int | None = None) -> int:
        """Return the index of an interface; without a default raises OSError (ENODEV) if there is none."""
        import _socket as socket
        try:
            return socket.if_nametoindex(device)
        except OSError:
            if default is not None:
                return default
            raise OSError(errno.ENODEV, f'Cannot find device "{device}"') from None

    @staticmethod
    def _route(reply: bytes) -> Route:
        import _socket as socket
        family, bits, _, _, _, _, _, kind, _ = unpack_struct(RTMSG_FORM, reply)
        more = attributes(reply, RTMSG_SIZE)
        target, gateway, source = (ip_text(more.get(field, b"")) for field in (RTA_DST, RTA_GATEWAY, RTA_PREFSRC))
        try:
            device = socket.if_indextoname(unsigned(more.get(RTA_OIF)))
        except OSError:
            device = ""  # the route has several next hops, or the interface has just disappeared
        target = target or ("0.0.0.0" if family == AF_INET else "::")
        return Route(kind == RTN_LOCAL, f"{target}/{bits}", gateway, device, source)

    def lookup(self, address: str, source: str = "", mark: int = 0) -> Route:
        """Return the route to an address: `ip route get ADDRESS [from SOURCE] [mark MARK]`."""
        target, origin = packed_address(address), packed_address(source) if source else b""
        body = pack_struct(RTMSG_FORM, address_family(address), 8 * len(target), 8 * len(origin), *bytes(5), 0)
        body += attribute(RTA_DST, target)
        body += attribute(RTA_SRC, origin) if origin else b""
        body += attribute(RTA_MARK, mark) if mark else b""
        return self._route(self._ask(RTM_GETROUTE, 0, body)[0])

    def routes(self, family: int) -> Iterator[Route]:
        """Yield the routes of the main table for IP version 4 or 6: `ip route list`."""
        request = pack_struct(RTMSG_FORM, AF_INET if family == 4 else AF_INET6, *bytes(7), 0)
        for buffer, start, end in dump(self.host, NETLINK_ROUTE, RTM_GETROUTE, request):
            *_, flags = unpack_struct(RTMSG_FORM, buffer, start)
            if buffer[start + RTMSG_TABLE] == RT_TABLE_MAIN and not flags & RTM_F_CLONED:
                yield self._route(buffer[start:end])

    def addresses(self) -> list[tuple[str, int, int, int]]:
        """Return all addresses of this host: address, bits, scope, index of the interface."""
        found = []
        for buffer, start, end in dump(self.host, NETLINK_ROUTE, RTM_GETADDR, bytes(IFADDRMSG_SIZE)):
            _, bits, _, scope, index = unpack_struct(IFADDRMSG_FORM, buffer, start)
            more = attributes(buffer, start + IFADDRMSG_SIZE, end)
            if local := more.get(IFA_LOCAL) or more.get(IFA_ADDRESS):
                found.append((ip_text(local), bits, scope, index))
        return found

    def link(self, device: str) -> tuple[int, dict[int, bytes], str]:
        """Return the flags of an interface, the attributes of its kind (IFLA_INFO_DATA), and its kind."""
        request = pack_struct(IFINFOMSG_FORM, 0, 0, self.index(device), 0, 0)
        reply = self._ask(RTM_GETLINK, 0, request)[0]
        _, _, _, flags, _ = unpack_struct(IFINFOMSG_FORM, reply)
        info = attributes(attributes(reply, IFINFOMSG_SIZE).get(IFLA_LINKINFO, b""))
        return flags, attributes(info.get(IFLA_INFO_DATA, b"")), text_name(info.get(IFLA_INFO_KIND))

    def route(self, action: str, destination: str, words: Sequence[str]) -> None:
        """Add, replace, change or delete a route: `ip route ACTION DESTINATION WORDS…`."""
        target, bits = split_net(destination)
        family = address_family(destination)
        route = RouteWords(words)
        scope = route.scope
        if scope is None:
            scope = self._default_scope(action, family, route.has_gateway)
        remove = action == "del"
        # iproute2 deletes a route of any origin and type unless the origin is given
        origin = RTPROT_UNSPEC if remove and route.origin == RTPROT_BOOT else route.origin
        kind = 0 if remove else RTN_UNICAST
        body = pack_struct(RTMSG_FORM, family, bits, 0, 0, route.table, origin, scope, kind, route.flags)
        body += attribute(RTA_DST, target) + route.attributes
        body += attribute(RTA_METRICS | NLA_F_NESTED, route.metrics) if route.metrics else b""
        self._ask(RTM_DELROUTE if remove else RTM_NEWROUTE, ROUTE_ACTIONS[action], body)

    @staticmethod
    def _default_scope(action: str, family: int, has_gateway: bool) -> int:
        """Return the scope of a route whose words have none, as iproute2 chooses it."""
        if family == AF_INET6:
            return RT_SCOPE_UNIVERSE
        if action == "del":
            return RT_SCOPE_NOWHERE
        return RT_SCOPE_UNIVERSE if has_gateway else RT_SCOPE_LINK

    def address(self, add: bool, address: str, device: str, scope: int = 0) -> None:
        """Add or delete an address: `ip addr add|del ADDRESS/BITS dev DEVICE scope SCOPE`."""
        data, bits = split_net(address)
        body = pack_struct(IFADDRMSG_FORM, address_family(address), bits, 0, scope, self.index(device))
        self._change(add, RTM_NEWADDR, body + attribute(IFA_LOCAL, data) + attribute(IFA_ADDRESS, data))

    def proxy(self, add: bool, address: str, device: str) -> None:
        """Add or delete an entry for proxy ARP or NDP: `ip neigh add|del proxy ADDRESS dev DEVICE`."""
        body = pack_struct(NDMSG_FORM, address_family(address), self.index(device), NUD_PERMANENT, NTF_PROXY, 0)
        self._change(add, RTM_NEWNEIGH, body + attribute(NDA_DST, packed_address(address)))

    def rule(self, add: bool, to: str, mark: str, table: int, priority: int) -> None:
        """Add or delete a rule: `ip rule add|del prio PRIORITY to NET fwmark MARK[/MASK] lookup TABLE`."""
        target, bits = split_net(to)
        value, _, mask = mark.partition("/")
        action = FR_ACT_TO_TBL if add else 0
        body = pack_struct(FIB_RULE_FORM, address_family(to), bits, 0, 0, table, 0, 0, action, 0)
        body += attribute(FRA_DST, target) + attribute(FRA_PRIORITY, priority) + attribute(FRA_FWMARK, int(value, 0))
        body += attribute(FRA_FWMASK, int(mask, 0)) if mask else b""
        self._change(add, RTM_NEWRULE, body)

    def up(self, device: str) -> None:
        """Bring an interface up: `ip link set DEVICE up`."""
        self._ask(RTM_NEWLINK, 0, pack_struct(IFINFOMSG_FORM, 0, 0, self.index(device), IFF_UP, IFF_UP))

    def add_vti(self, device: str, local: str, remote: str, key_in: int, key_out: int) -> None:
        """Make a VTI interface: `ip tunnel add DEVICE mode vti local … remote … ikey … okey …`."""
        data = (attribute(IFLA_VTI_IKEY, be32(key_in)) + attribute(IFLA_VTI_OKEY, be32(key_out))
                + attribute(IFLA_VTI_LOCAL, packed_address(local)) + attribute(IFLA_VTI_REMOTE, packed_address(remote)))
        info = attribute(IFLA_INFO_KIND, b"vti") + attribute(IFLA_INFO_DATA | NLA_F_NESTED, data)
        self._change(True, RTM_NEWLINK, bytes(IFINFOMSG_SIZE) + attribute(IFLA_IFNAME, device)
                     + attribute(IFLA_LINKINFO | NLA_F_NESTED, info))


# --- nf_tables ------------------------------------------------------------------------------------------------------

# The errors of a kernel without nf_tables
NO_NFTABLES = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.EAFNOSUPPORT)


def nft_expression(name: str, *data: bytes) -> bytes:
    """Return one expression of a rule; `data` are its attributes."""
    return attribute(NFTA_LIST_ELEM | NLA_F_NESTED, attribute(NFTA_EXPR_NAME, name),
                     attribute(NFTA_EXPR_DATA | NLA_F_NESTED, *data))


def nft_value(kind: int, value: bytes) -> bytes:
    """Return an attribute that holds a constant."""
    return attribute(kind | NLA_F_NESTED, attribute(NFTA_DATA_VALUE, value))


def nft_equal(load: bytes, value: bytes) -> bytes:
    """Return expressions that go on with the rule if the value that `load` puts into register 1 equals this
    one.
    """
    return load + nft_expression("cmp", attribute(NFTA_CMP_SREG, be32(NFT_REG_1)),
                                 attribute(NFTA_CMP_OP, be32(NFT_CMP_EQ)), nft_value(NFTA_CMP_DATA, value))


def nft_meta(key: int) -> bytes:
    """Return the expression that puts a property of the packet (NFT_META_…) into register 1."""
    return nft_expression("meta", attribute(NFTA_META_DREG, be32(NFT_REG_1)), attribute(NFTA_META_KEY, be32(key)))


def nft_ipsec(way: str) -> bytes:
    """Return expressions that go on if the packet came, or will go, through a tunnel (`in`, `out`)."""
    if way == "in":
        return nft_equal(nft_meta(NFT_META_SECPATH), b"\1")
    route = nft_expression("rt", attribute(NFTA_RT_DREG, be32(NFT_REG_1)), attribute(NFTA_RT_KEY, be32(NFT_RT_XFRM)))
    return nft_equal(route, b"\1")


def nft_net(field: str, net: str) -> bytes:
    """Return expressions that go on if the packet's address (`source`, `destination`) is in the network."""
    value, bits = split_net(net)
    size = len(value)
    offset = IPV4_SOURCE if size == 4 else IPV6_SOURCE
    offset += size if field == "destination" else 0
    mask = (-1 << 8 * size - bits) % (1 << 8 * size)
    load = nft_expression(
        "payload", attribute(NFTA_PAYLOAD_DREG, be32(NFT_REG_1)),
        attribute(NFTA_PAYLOAD_BASE, be32(NFT_PAYLOAD_NETWORK_HEADER)),
        attribute(NFTA_PAYLOAD_OFFSET, be32(offset)), attribute(NFTA_PAYLOAD_LEN, be32(size)))
    load += nft_expression(
        "bitwise", attribute(NFTA_BITWISE_SREG, be32(NFT_REG_1)), attribute(NFTA_BITWISE_DREG, be32(NFT_REG_1)),
        attribute(NFTA_BITWISE_LEN, be32(size)), nft_value(NFTA_BITWISE_MASK, mask.to_bytes(size, "big")),
        nft_value(NFTA_BITWISE_XOR, bytes(size)))
    return nft_equal(load, (int.from_bytes(value, "big") & mask).to_bytes(size, "big"))


def nft_nat(kind: int, address: str) -> bytes:
    """Return expressions that translate the source (NFT_NAT_SNAT) or destination (NFT_NAT_DNAT) to an
    address.
    """
    data = packed_address(address)
    protocol = NFPROTO_IPV4 if len(data) == 4 else NFPROTO_IPV6
    return (nft_expression("immediate", attribute(NFTA_IMMEDIATE_DREG, be32(NFT_REG_1)),
                           nft_value(NFTA_IMMEDIATE_DATA, data))
            + nft_expression("nat", attribute(NFTA_NAT_TYPE, be32(kind)), attribute(NFTA_NAT_FAMILY, be32(protocol)),
                             attribute(NFTA_NAT_REG_ADDR_MIN, be32(NFT_REG_1))))


class NftRule(Record):
    """A rule of nf_tables."""

    chain: str
    expressions: bytes  # as the kernel takes and gives them
    comment: str = ""
    handle: int = 0  # the kernel's number of the rule; 0 for a new one

    def each_expression(self) -> Iterator[tuple[str, dict[int, bytes]]]:
        """Yield the name and the attributes of each expression."""
        for _, data in each_attribute(self.expressions):
            parts = attributes(data)
            yield text_name(parts[NFTA_EXPR_NAME]), attributes(parts.get(NFTA_EXPR_DATA, b""))


class NftChain(Record):
    """A chain of nf_tables that is attached to a hook."""

    hook: int  # NF_INET_…
    priority: int
    kind: str = "filter"  # filter, nat


class NftTable:
    """A table of this program in the kernel's nf_tables.

    The requests go to the kernel directly (nfnetlink), with or without nft on the host.  pyroute2 is not
    used: up to 0.9.7 it encodes the group of a log statement in 32 bits where the kernel reads 16, so that
    every group becomes 0.
    """

    def __init__(self, host: Host, name: str, protocol: int, chains: Mapping[str, NftChain]) -> None:
        """`protocol` is one of NFPROTO_…; `chains` are those that the table may have, by name."""
        self.host = host
        self.name = name
        self.protocol = protocol
        self.chains = chains

    def _head(self) -> bytes:
        return bytes((self.protocol, 0, 0, 0))  # struct nfgenmsg

    def rules(self) -> list[NftRule]:
        """Return the rules of the table; none if there is no such table.  Raises OSError."""
        rules = []
        for buffer, start, end in dump(self.host, NETLINK_NETFILTER, NFT_MSG_GETRULE, self._head()):
            rule = attributes(buffer, start + NFGENMSG_SIZE, end)
            if text_name(rule[NFTA_RULE_TABLE]) == self.name and buffer[start] == self.protocol:
                comment = comment_of_userdata(rule.get(NFTA_RULE_USERDATA, b""))
                rules.append(NftRule(text_name(rule[NFTA_RULE_CHAIN]), rule.get(NFTA_RULE_EXPRESSIONS, b""), comment,
                                     int.from_bytes(rule[NFTA_RULE_HANDLE], "big")))
        return rules

    def change(self, gone: Sequence[NftRule], new: Sequence[NftRule]) -> None:
        """Remove rules and add others in one transaction; a table that would be empty is removed.

        Raises OSError.
        """
        head = self._head()
        table = attribute(NFTA_RULE_TABLE, self.name)  # NFTA_TABLE_NAME and NFTA_CHAIN_TABLE have the same number
        batch = [(NFT_MSG_DELRULE, NLM_F_ACK, head + table + attribute(NFTA_RULE_CHAIN, rule.chain)
                  + attribute(NFTA_RULE_HANDLE, rule.handle.to_bytes(8, "big"))) for rule in gone]
        create = NLM_F_CREATE | NLM_F_ACK
        if new:
            batch.append((NFT_MSG_NEWTABLE, create, head + table))
        for name in sorted({rule.chain for rule in new}):
            chain = self.chains[name]
            hook = attribute(NFTA_HOOK_HOOKNUM, be32(chain.hook))
            hook += attribute(NFTA_HOOK_PRIORITY, be32(chain.priority % (1 << 32)))
            batch.append((NFT_MSG_NEWCHAIN, create, head + table + attribute(NFTA_CHAIN_NAME, name)
                          + attribute(NFTA_CHAIN_HOOK | NLA_F_NESTED, hook) + attribute(NFTA_CHAIN_TYPE, chain.kind)))
        for rule in new:
            body = head + table + attribute(NFTA_RULE_CHAIN, rule.chain)
            body += attribute(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, rule.expressions)
            body += attribute(NFTA_RULE_USERDATA, comment_userdata(rule.comment)) if rule.comment else b""
            batch.append((NFT_MSG_NEWRULE, create | NLM_F_APPEND, body))
        if gone and not new and len(gone) == len(self.rules()):
            batch = [(NFT_MSG_DELTABLE, NLM_F_ACK, head + table)]
        if batch:
            edge = b"\0\0" + NFNL_SUBSYS_NFTABLES.to_bytes(2, "big")  # struct nfgenmsg: the resource in network order
            acknowledge(self.host, NETLINK_NETFILTER,
                        [(NFNL_MSG_BATCH_BEGIN, 0, edge), *batch, (NFNL_MSG_BATCH_END, 0, edge)])


def comment_userdata(comment: str) -> bytes:
    """Return user data in which nft finds a comment: type, length (8 bits each), text (libnftnl's udata.h).
    """
    data = encode(comment) + b"\0"
    return bytes((UDATA_RULE_COMMENT, len(data))) + data


def comment_of_userdata(userdata: bytes) -> str:
    """Return the comment in a rule's user data; empty if there is none."""
    return text_name(userdata[2:]) if userdata[:1] == bytes((UDATA_RULE_COMMENT,)) else ""


# --- NFLOG ----------------------------------------------------------------------------------------------------------

NFLOG_ALL = "all-ipsec"  # the prefix of nflog-all= (ipsec.conf(5)); the 5.x script appends -input and -output
NFLOG_CONN = "ipsec-conn:"  # and, with the name behind it, that of a connection's nflog= in checknflog
NFLOG_TABLE = "ipsec-log"  # in nftables, as in 5.x
# A packet of a tunnel is for this host, from this host, or forwarded out of the tunnel or into it
NFLOG_PLACES = (("INPUT", "in"), ("FORWARD", "in"), ("OUTPUT", "out"), ("FORWARD", "out"))
# The priority is before that of the filters, so that packets which the filters drop are copied, too
NFLOG_CHAINS = {"INPUT": NftChain(NF_INET_LOCAL_IN, -1), "FORWARD": NftChain(NF_INET_FORWARD, -1),
                "OUTPUT": NftChain(NF_INET_LOCAL_OUT, -1)}
NFLOG_KEYWORDS = ("nflog", "nflog-all")
# Seconds to wait for other programs to finish with the tables.  systemd ends a service that has not started within 90
# seconds (systemd-system.conf(5), DefaultTimeoutStartSec=), and checknflog is a part of its start.
FILTER_WAIT = 15


class Capture(Record):
    """A rule that copies the packets of IPsec tunnels to an NFLOG group; `way` is in or out."""

    chain: str
    way: str
    group: int
    prefix: str
    family: int = 0  # 4, 6; 0 is both
    source: str = ""
    destination: str = ""

    @property
    def ends(self) -> str:
        """Source and destination in one text, which distinguishes the rules of one connection."""
        return f"{self.source} {self.destination}".strip()


class FoundRule(Record):
    """An NFLOG rule in the kernel.  `body` is the rule in the syntax of its backend."""

    chain: str
    group: int
    prefix: str
    family: int
    ends: str  # source and destination
    body: bytes
    handle: int = 0


def is_capture(prefix: str) -> bool:
    """Return whether a prefix is one of checknflog's rules, of this program or of libreswan's script."""
    return prefix in (NFLOG_ALL, f"{NFLOG_ALL}-input", f"{NFLOG_ALL}-output") or prefix.startswith(NFLOG_CONN)


def rule_words(line: str) -> list[str]:
    """Return the words of a line of iptables-save, without quotes."""
    import re
    return [re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word
            for word in re.findall(r'"(?:[^"\\]|\\.)*"|\S+', line)]


def word_after(words: Sequence[str], name: str, default: str = "") -> str:
    """Return the word that follows `name`, or the default."""
    return words[words.index(name) + 1] if name in words[:-1] else default


class Iptables:
    """NFLOG rules through iptables and ip6tables.  The flavour is `-legacy` or `-nft`; empty is the default one."""

    def __init__(self, host: Host, flavour: str = "") -> None:
        self.host = host
        self.flavour = flavour
        self.families = (4, 6) if host.exists("/proc/net/if_inet6") else (4,)

    def _program(self, family: int, suffix: str = "") -> str:
        return f"{'iptables' if family == 4 else 'ip6tables'}{self.flavour}{suffix}"

    def usable(self) -> bool:
        """Return whether the programs for all address families of the kernel are installed."""
        return all(self.host.which(self._program(family, end)) for family in self.families
                   for end in ("-save", "-restore"))

    def legacy(self) -> bool:
        """Return whether this is the older flavour, whose tables nft does not show."""
        return "nf_tables" not in self.host.run([self._program(4), "-V"]).text

    def found(self, wanted: Callable[[str], bool]) -> list[FoundRule]:
        """Return the NFLOG rules whose prefix is wanted.  Raises Failure."""
        rules = []
        for family in self.families:
            names = f"/proc/net/{'ip' if family == 4 else 'ip6'}_tables_names"
            if self.flavour == "-legacy" and "filter" not in self.host.value(names).split():
                continue  # asking would make the table
            ran = self.host.run([self._program(family, "-save"), "-t", "filter"], timeout=FILTER_WAIT)
            if ran.status:
                raise Failure(f"{self._program(family)}: {ran.complaint}", hint="be root" if not self.host.superuser
                              else "is netfilter in this kernel?")
            for line in ran.text.splitlines():
                words = rule_words(line)
                if words[:1] == ["-A"] and word_after(words, "-j") == "NFLOG":
                    prefix = word_after(words, "--nflog-prefix")
                    if wanted(prefix):
                        group = int(word_after(words, "--nflog-group", "0"))
                        ends = f"{word_after(words, '-s')} {word_after(words, '-d')}".strip()
                        rules.append(FoundRule(words[1], group, prefix, family, ends, encode(line[3:])))
        return rules

    def change(self, gone: Sequence[FoundRule], new: Sequence[Capture | FoundRule]) -> None:
        """Remove rules and add others: one transaction for each address family, started at one moment, so that kill -9
        leaves no half of a set; undone when one fails.

        Raises Failure.
        """
        lines: dict[int, list[str]] = {}
        undo: dict[int, list[str]] = {}
        for family in self.families:
            out = [self.rule(rule) for rule in gone if rule.family == family]
            into = [self.rule(rule) for rule in new if rule.family in (0, family)]
            if out or into:
                lines[family] = [*(f"-D {rule}" for rule in out), *(f"-I {rule}" for rule in reversed(into))]
                undo[family] = [*(f"-D {rule}" for rule in into), *(f"-I {rule}" for rule in reversed(out))]
        failures = self._restore(lines)
        if failures:
            self._restore({family: undo[family] for family in lines if family not in failures})
            raise next(iter(failures.values()))

    @staticmethod
    def rule(capture: Capture | FoundRule) -> str:
        """Return the arguments of iptables for a rule, from the chain's name on."""
        if isinstance(capture, FoundRule):
            return decode(capture.body)
        ends = (f" -s {capture.source}" if capture.source else "") + (
            f" -d {capture.destination}" if capture.destination else "")
        quoted = '"' + capture.prefix.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return (f"{capture.chain}{ends} -m policy --dir {capture.way} --pol ipsec -j NFLOG "
                f"--nflog-group {capture.group} --nflog-prefix {quoted}")

    def _restore(self, lines: Mapping[int, Sequence[str]]) -> dict[int, Failure]:
        """Give lines to iptables-restore of each family; return the failures.  Raises Failure if nothing was done."""
        if not lines:
            return {}
        names = [self._program(family, "-restore") for family in lines]
        text = [encode("\n".join(["*filter", *some, ""])) for some in lines.values()]
        try:
            left = self.host.run_together([((name, "--noflush", "--wait", str(FILTER_WAIT)), data, b"COMMIT\n")
                                           for name, data in zip(names, text)], 3 * FILTER_WAIT)
        except OSError as error:
            raise Failure(f"{names[0]}: {error.strerror}") from None
        hint = "be root" if not self.host.superuser else ""
        return {family: Failure(f"{name}: {ran.complaint}", hint=hint)
                for family, name, ran in zip(lines, names, left) if ran.status}


class NfTables:
    """NFLOG rules in a table of this program for both address families, with or without nft on the host."""

    def __init__(self, host: Host) -> None:
        self.table = NftTable(host, NFLOG_TABLE, NFPROTO_INET, NFLOG_CHAINS)

    @staticmethod
    def usable() -> bool:
        """Return True: no program is needed.  The first request shows whether the kernel has nf_tables."""
        return True

    def found(self, wanted: Callable[[str], bool]) -> list[FoundRule]:
        """Return the NFLOG rules whose prefix is wanted; none in a kernel without nf_tables.  Raises Failure."""
        try:
            rules = self.table.rules()
        except OSError as error:
            if error.errno in NO_NFTABLES:
                return []
            raise self._failed(error) from None
        captures = []
        for rule in rules:
            for name, more in rule.each_expression():
                prefix = text_name(more.get(NFTA_LOG_PREFIX)) if name == "log" else ""
                if prefix and wanted(prefix):
                    group = int.from_bytes(more.get(NFTA_LOG_GROUP, b""), "big")
                    captures.append(FoundRule(rule.chain, group, prefix, 0, rule.comment, rule.expressions,
                                              rule.handle))
        return captures

    def change(self, gone: Sequence[FoundRule], new: Sequence[Capture | FoundRule]) -> None:
        """Remove rules and add others in one transaction; an empty table is removed.  Raises Failure."""
        try:
            self.table.change([NftRule(rule.chain, rule.body, rule.ends, rule.handle) for rule in gone],
                              [NftRule(rule.chain, self.rule(rule), rule.ends) for rule in new])
        except OSError as error:
            raise self._failed(error) from None

    @staticmethod
    def rule(capture: Capture | FoundRule) -> bytes:
        """Return the expressions of a rule."""
        if isinstance(capture, FoundRule):
            return capture.body
        steps = b""
        if capture.family:
            protocol = NFPROTO_IPV4 if capture.family == 4 else NFPROTO_IPV6
            steps = nft_equal(nft_meta(NFT_META_NFPROTO), bytes((protocol,)))
        steps += nft_ipsec(capture.way)
        for field, net in (("source", capture.source), ("destination", capture.destination)):
            steps += nft_net(field, net) if net else b""
        group = attribute(NFTA_LOG_GROUP, capture.group.to_bytes(2, "big"))
        return steps + nft_expression("log", group, attribute(NFTA_LOG_PREFIX, capture.prefix))

    def _failed(self, error: OSError) -> Failure:
        hint = ""
        if error.errno in (errno.EPERM, errno.EACCES):
            hint = "be root"
        elif error.errno in NO_NFTABLES:
            hint = "install iptables"
        return Failure(f"nf_tables: {error.strerror or error}", hint=hint)


def nflog_backends(host: Host) -> list[Iptables | NfTables]:
    """Return the backend that makes the rules on this host, then others that may have made rules before."""
    backend = Iptables(host)
    if not backend.usable():
        return [NfTables(host)]
    other = Iptables(host, "-nft" if backend.legacy() else "-legacy")
    return [backend, *([other] if other.usable() else []), NfTables(host)]


def nflog_lock(host: Host) -> Lock:
    """Hold the lock on the NFLOG rules of this network for a `with` block.  Raises TimedOut, OSError."""
    network = "/proc/self/ns/net"
    return host.lock(network if host.exists(network) else "/", FILTER_WAIT)


def nflog_replace(host: Host, wanted: Sequence[Capture], mine: Callable[[str], bool]) -> list[FoundRule]:
    """Make the wanted rules the only ones whose prefix is mine, and return the rules that were there before.

    Only one process at a time does this in a network namespace.  Raises Failure; then no rule changes.
    """
    with nflog_lock(host):
        primary, *others = nflog_backends(host)
        before = primary.found(mine)
        elsewhere = []
        for backend in others:
            try:
                elsewhere.append((backend, backend.found(mine)))
            except Failure:
                continue  # the kernel lacks this backend, so it has no rules
        primary.change(before, wanted)
        stale = list(before)
        for backend, rules in elsewhere:
            try:
                if rules:
                    backend.change(rules, ())
            except Failure:
                primary.change(primary.found(mine), before)
                raise
            stale += rules
        return stale


def conn_nets(conn: Conn, side: str, behind: bool = True) -> list[str]:
    """Return the networks behind an end of a connection, or the address of the end itself if there are none.

    Return an empty list if they are not known before the connection is up.
    """
    behind_it = f"{conn.get(f'{side}subnet')} {conn.get(f'{side}subnets')}".strip() if behind else ""
    nets = behind_it or conn.get(side)
    found = nets.translate({ord(c): " " for c in ",{}"}).split()
    return found if all(map(canonical_net, found)) else []


def conn_prefix(conn: Conn) -> str:
    """Return the prefix of the rules for a connection's nflog=, at most 63 characters (xt_NFLOG.h)."""
    return f"{NFLOG_CONN}{conn.name}"[:63]


def conn_captures(conn: Conn, group: int, local: Sequence[str]) -> list[Capture]:
    """Return the rules for a connection's nflog=; none if its ends are not known before it is up."""
    here, there = ("left", "right") if conn.get("left") in local else ("right", "left")
    if conn.get(here) not in local or conn.get(f"{there}addresspool"):
        return []
    return [Capture(chain, way, group, conn_prefix(conn), 6 if ":" in ours else 4, *((theirs, ours) if way == "in" else
                    (ours, theirs))) for ours in conn_nets(conn, here)
            for theirs in conn_nets(conn, there) if (":" in ours) == (":" in theirs)
            for chain, way in NFLOG_PLACES]


def nflog_groups(config: Config) -> tuple[int, list[tuple[Conn, int]]]:
    """Return the group of nflog-all=, and the connections that have nflog= with their groups.  0 is no group."""
    conns = [(conn, int(conn.get("nflog"))) for conn in config.conns() if conn.get("nflog").strip("0")]
    return config.number("nflog-all", 0) or 0, conns


def check_nflog(host: Host, tell: bool = True) -> bool:
    """Make the NFLOG rules for nflog= and nflog-all=, print them, and return False if some are not made.

    A failure raises nothing, because pluto has to start without the rules, too.  Each complaint is a line on standard
    error.  A keyword with an invalid value gets no rule; the other rules are made.  If a change fails, no rule changes.
    """
    config = Config(host)
    complaints = [f"{problem}; it gets no rule" for problem in config.problems if problem.key in NFLOG_KEYWORDS]
    lines: list[str] = []
    try:
        if not config.files:
            config.check()
        complaints += [f"{problem}; the rules of connections in it stay" for problem in config.problems
                       if problem.key == "include" and problem.fatal]
        lines = make_nflog(host, config)
    except (Failure, OSError) as error:
        complaints.append(f"no rule is changed: {error}")
    if tell:
        for line in lines:
            host.print(line)
    for complaint in complaints:
        host.warn(f"nflog: {complaint}")
    return not complaints


def make_nflog(host: Host, config: Config) -> list[str]:
    """Make the rules of a configuration the only ones of checknflog, and return lines that name each change.

    If some file can't be read, the rules for connections that were not read stay.  Raises Failure, OSError; then no
    rule changes.
    """
    group, conns = nflog_groups(config)
    wanted = [Capture(chain, way, group, NFLOG_ALL) for chain, way in NFLOG_PLACES] if group else []
    enabled = [f"nflog ipsec capture enabled on nflog:{group}" if group else "nflog ipsec capture disabled"]
    local = [address for address, _, _, _ in Routing(host).addresses()] if conns else []
    for conn, conn_group in conns:
        rules = conn_captures(conn, conn_group, local)
        wanted += rules
        if rules or conn.auto != "ignore":
            enabled.append(f"nflog capture of connection {quote(conn.name)} "
                           + (f"enabled on nflog:{conn_group}" if rules else
                              f"on nflog:{conn_group} begins when it is routed"))
    read = {conn_prefix(conn) for conn in config.conns()}
    replaced = nflog_replace(host, wanted, lambda prefix: is_capture(prefix) and (
        not config.unread or not prefix.startswith(NFLOG_CONN) or prefix in read))
    kept = {(capture.prefix, capture.group) for capture in wanted}
    deleted = []
    for prefix, old in dict.fromkeys((rule.prefix, rule.group) for rule in replaced):
        if (prefix, old) not in kept:
            of = f" of connection {quote(prefix[len(NFLOG_CONN):])}" if prefix.startswith(NFLOG_CONN) else ""
            deleted.append(f"deleting rules{of} with old nflog group {old}")
    return deleted + enabled


def stop_nflog(host: Host) -> None:
    """Remove every rule that checknflog has made, whatever the configuration says now.  Raises Failure."""
    nflog_replace(host, (), is_capture)


def nflog_conn(host: Host, add: bool, name: str, group: int, ours: str, theirs: str) -> None:
    """Add or remove the rules of a connection for _updown.  The prefix and the ends identify the rules.

    If checknflog has made rules for the connection, nothing is added.  Raises Failure.
    """
    source, destination = ("" if net in ("0.0.0.0/0", "::/0") else net for net in (ours, theirs))
    family = 6 if ":" in ours else 4
    wanted = [Capture("INPUT", "in", group, name[:63], family, destination, source),
              Capture("OUTPUT", "out", group, name[:63], family, source, destination)]
    with nflog_lock(host):
        backend = nflog_backends(host)[0]
        made = backend.found(lambda prefix: prefix in (name[:63], f"{NFLOG_CONN}{name}"[:63]))
        if add and any(is_capture(rule.prefix) and rule.group == group for rule in made):
            return
        there = [rule for rule in made if not is_capture(rule.prefix)
                 and any((rule.chain, rule.ends) == (one.chain, one.ends) for one in wanted)]
        if not add or [rule.group for rule in there] != [group, group]:
            backend.change(there, wanted if add else ())


# --- _updown --------------------------------------------------------------------------------------------------------

# The steps of each verb, done (+) or undone (-), as in libreswan's script; the status is that of the last step.  Verbs
# whose -host and -client forms have the same steps stand without the suffix
UPDOWN_STEPS = {
    "prepare": "+interface", "route": "+vti +route +nflog", "unroute": "-route -source", "up-host": "",
    "up-client": "+interface +resolver +cat +source +notify +vti", "down-host": "-cisco -nflog -cat -vti",
    "down-client": "-cisco -nflog -cat -vti -resolver -notify", "disconnectNM": "-notify",
    "prepare-v6": "", "route-v6": "+nflog +route", "unroute-v6": "-route -source", "up-host-v6": "",
    "up-client-v6": "+source +resolver +notify", "down-host-v6": "-nflog",
    "down-client-v6": "-nflog -resolver -notify", "disconnectNM-v6": "-notify",
}
RESOLV_CONF = "/etc/resolv.conf"
NM_HELPER = "/usr/libexec/nm-libreswan-service-helper"
ESP_TABLE, ESP_RULE_PRIORITY = 50, 100  # the route to a peer whose address its own tunnel covers
# Two routes that together cover all addresses and precede the default route
HALVES = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}
OLD_HALVES = {**HALVES, "::/0": ("2000::/3",)}  # before 5.2
# Client address translation, in a chain for each direction
CAT_TABLE = "ipsec-cat"
CAT_CHAINS = {"POSTROUTING": NftChain(NF_INET_POST_ROUTING, 100, "nat"),
              "PREROUTING": NftChain(NF_INET_PRE_ROUTING, -100, "nat")}
TENTATIVE_TIME = 1.0  # seconds until a new IPv6 address can be the source of a route


class Updown:
    """The changes to the network that pluto asks for when a connection comes and goes.

    Pluto describes the connection in the environment; the variables are those of libreswan's _updown.xfrm.
    """

    def __init__(self, host: Host, routing: Routing, route: str = "", route_words: str = "") -> None:
        """`route` and `route_words` are the values of --route and --iproute.  Raises Failure."""
        self.host = host
        self.routing = routing
        self.env = {**host.env, **updown_defaults(host)}
        self.routed = self.get("ROUTE")
        if route:
            self.routed = "yes" if route[0] in "yY" else ""
        self.proxied = self.get("PROXY_ARP_ROUTE") == "yes" and not route
        self.words = route_words or self.get("IPRARGS")
        self.host_family = self._address_family("PLUTO_CONN_ADDRFAMILY")
        self.family = self.host_family
        if self.get("PLUTO_CLIENT_FAMILY"):
            self.family = self._address_family("PLUTO_CLIENT_FAMILY")
        self.bits = 32 if self.family == 4 else 128
        self.scope = 50 if self.family == 4 else 0  # marks the addresses that source() added

    def _address_family(self, name: str) -> int:
        family = {"ipv4": 4, "ipv6": 6}.get(self.get(name))
        if family is None:
            raise Failure(f"_updown: unknown address family {quote(self.get(name))} in {name}")
        return family

    def get(self, name: str) -> str:
        """Return a variable; empty if it is not set."""
        return self.env.get(name, "")

    def yes(self, name: str) -> bool:
        """Return whether a variable is a number other than 0."""
        return self.get(name).lstrip("0") not in ("", "no")

    def is_since(self, major: int, minor: int) -> bool:
        """Return whether the calling pluto is of this release or a later one.

        Its variables decide where they can: PLUTO_CLIENT_FAMILY is new in 5.0, PLUTO_DNS_RESOLVER in 5.4.
        Between these the installed release is asked; without one the answer is that of 5.3.
        """
        if self.get("PLUTO_DNS_RESOLVER"):
            return (major, minor) <= (5, 4)
        if not self.get("PLUTO_CLIENT_FAMILY"):
            return (major, minor) < (5, 0)
        if (5, 0) < (major, minor) < (5, 4):
            return leading_version(self.host.libreswan_version() or "5.3") >= (major, minor)
        return (major, minor) <= (5, 0)

    def steps(self, verb: str) -> list[str]:
        """Return the steps of a verb.  Raises Failure for an unknown one."""
        if set(verb.split("-")) <= {"prepare", "route", "up"}:  # 5.4 with updown-config=async: verbs without a suffix
            kind = "host" if self.get("PLUTO_MY_CLIENT_NET") == self.get("PLUTO_ME") else "client"
            suffix = f"-{kind}-v6" if self.family == 6 else f"-{kind}"
            return [step for word in verb.split("-") for step in self.steps(word + suffix)]
        word, _, kind = verb.partition("-")
        steps = UPDOWN_STEPS.get(verb, UPDOWN_STEPS.get(f"{word}-v6" if kind.endswith("-v6") else word))
        if steps is None or kind not in ("host", "client", "host-v6", "client-v6"):
            raise Failure(f"_updown: unknown verb {quote(verb)}")
        return steps.split()

    def run(self, verb: str) -> int:
        """Do the steps of the verb and return the status of the last one.

        Raises Failure for an unknown verb.
        """
        status = OK
        for step in self.steps(verb):
            try:
                status = getattr(self, step[1:])(step[0] == "+") or OK
            except (Failure, OSError) as error:
                self.host.warn(f"_updown: {step}: {error}")
                status = error.status if isinstance(error, Failure) else USAGE
        return status

    def change(self, shown: str, fine: Sequence[int], change: Callable[..., None], *arguments: object) -> int:
        """Make a change and return 0, or the status of ip(8) for a failure, which is reported on standard
        error.

        `fine` are the errors which mean that the change has been made before.
        """
        try:
            change(*arguments)
        except OSError as error:
            if error.errno not in fine:
                self.host.warn(f'_updown: "ip {shown}" failed (RTNETLINK answers: {error.strerror or error})')
                return 1 if error.errno == errno.ENODEV else 2
        return OK

    def ip_route(self, action: str, net: str, words: Sequence[str], *fine: int) -> int:
        """Do `ip route ACTION NET WORDS…`; return as change() does."""
        tentative = "src" in words and self.family == 6
        deadline = time.monotonic() + (TENTATIVE_TIME if tentative else 0)

        def change() -> None:
            while True:
                try:
                    return self.routing.route(action, net, words)
                except OSError as error:
                    # the source is an address that was added just now
                    if error.errno != errno.EINVAL or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)

        return self.change(f"route {action} {net} {' '.join(words)}", fine, change)

    def way(self, address: str, source: str = "") -> Route | OSError:
        """Return the route to an address, or the error that the kernel gives instead."""
        try:
            return self.routing.lookup(address, source)
        except OSError as error:
            return error

    def device_to(self, address: str, source: str = "") -> str:
        """Return the interface that leads to an address; empty if there is none."""
        way = self.way(address, source) if address else None
        return way.device if isinstance(way, Route) else ""

    def link_flags(self, device: str) -> int:
        """Return the flags of an interface (IFF_…); 0 if there is none of that name."""
        try:
            return self.routing.link(device.partition(":")[0])[0]
        except OSError:
            return 0

    # --- routes and addresses -----------------------------------------------------------------------------------

    def route(self, up: bool) -> int:
        """Add or remove the route to the peer's client, and proxy ARP for a single address of this network.
        """
        if up:
            self._proxy(True)
            return self._route("replace")
        status = self._route("del")
        self._proxy(False)
        return status

    def cisco(self, _: bool) -> int:
        """Remove the route to a Cisco peer's client when the connection goes down: its source address may
        change.
        """
        return self._route("del") if self.get("PLUTO_MY_SOURCEIP") and self.yes("PLUTO_IS_PEER_CISCO") else OK

    def _source_device(self) -> str:
        if self.get("VTI_IFACE") and self.get("VTI_ROUTING") == "yes":
            return self.get("VTI_IFACE")
        return self.get("PLUTO_VIRT_INTERFACE") if self.get("PLUTO_XFRMI_ROUTE") else "lo"

    def source(self, up: bool) -> int:
        """Add the connection's source address if this host does not have it.

        Undone, remove the address if source() added it and no route uses it.
        """
        source = self.get("PLUTO_MY_SOURCEIP")
        if not source or (self.is_since(5, 0) and self.get("PLUTO_XFRMI_ROUTE") == "yes"):
            return OK  # since 5.0 pluto itself manages the addresses of its interfaces
        device, address = self._source_device(), f"{source}/{self.bits}"
        if up:
            way = self.way(source)
            if isinstance(way, Route) and way.local:
                return OK
            return self.change(f"addr add {address} dev {device} scope {self.scope}", [errno.EEXIST],
                               self.routing.address, True, address, device, self.scope)
        if self.get("PLUTO_MOBIKE_EVENT"):
            return OK
        added = source, self.bits, self.scope, self.routing.index(device, 0)
        if added not in self.routing.addresses():
            return OK
        if any(route.source == source for route in self.routing.routes(self.family)):
            return OK
        return self.change(f"addr del {address} dev {device}", [errno.EADDRNOTAVAIL],
                           self.routing.address, False, address, device)

    def _proxy(self, add: bool) -> None:
        """Answer ARP or NDP requests for the peer's client if it is a single address in a network of this
        host.
        """
        net, peer = self.get("PLUTO_PEER_CLIENT_NET"), self.get("PLUTO_PEER_CLIENT")
        if (peer.rpartition("/")[2] != str(self.bits) or net in ("0.0.0.0", "::", self.get("PLUTO_PEER"))
                or self.get("PLUTO_MY_CLIENT_NET") == self.get("PLUTO_ME")):
            return
        way = self.way(net)
        if isinstance(way, OSError) or way.local or way.gateway:
            return
        if not self.host.value(f"/sys/class/net/{way.device}/address"):
            return  # without a hardware address nobody asks
        self.change(f"neigh {'add' if add else 'del'} proxy {net} dev {way.device}", [errno.ENOENT],
                    self.routing.proxy, add, net, way.device)
        self.proxied = self.proxied or add  # the kernel answers only for addresses that it has a route to

    def _next_hop(self) -> list[str]:
        """Return `via NEXT_HOP`, or nothing if there is none or the link is point-to-point."""
        hop = self.get("PLUTO_NEXT_HOP")
        if not hop or hop == self.get("PLUTO_PEER") or self.family != self.host_family:
            return []
        return [] if self.link_flags(self.get("PLUTO_INTERFACE")) & IFF_POINTOPOINT else ["via", hop]

    def _halves(self) -> Sequence[str]:
        """Return the two routes that are used instead of a default route; empty for any other destination."""
        peer = self.get("PLUTO_PEER_CLIENT")
        if peer != "::/0":
            return HALVES.get(peer, ())
        return (HALVES if self.is_since(5, 2) else OLD_HALVES)[peer]

    def _route(self, action: str) -> int:
        """Replace or delete the route to the peer's client if one is wanted, and the route of ESP beside it.

        Return the status of the first change that fails.
        """
        # all lookups come first: afterwards the new route would answer them
        esp = self._esp_route_words()
        wanted = self._is_route_wanted(action)
        device = self._route_device(action)
        if self.get("VTI_IFACE"):
            self.source(True)
        words = self._route_words(action, device)
        fine = [errno.ESRCH, errno.EEXIST] if self.is_since(5, 0) else [errno.ESRCH]
        for net in self._halves() or [self.get("PLUTO_PEER_CLIENT")] if wanted else ():
            if status := self.ip_route(action, net, words, *fine):
                return status
        mark = self.get("PLUTO_XFRMI_FWMARK")
        if not mark:
            return OK
        peer = f"{self.get('PLUTO_PEER')}/{32 if self.host_family == 4 else 128}"
        if status := self.ip_route(action, peer, esp, *fine):
            return status
        add, client = action != "del", self.get("PLUTO_PEER_CLIENT")
        shown = f"rule {'add' if add else 'del'} prio {ESP_RULE_PRIORITY} to {client} fwmark {mark} lookup {ESP_TABLE}"
        return self.change(shown, [errno.ESRCH, errno.ENOENT, errno.EEXIST], self.routing.rule, add, client, mark,
                           ESP_TABLE, ESP_RULE_PRIORITY)

    def _is_route_wanted(self, action: str) -> bool:
        """Return whether the route to the peer's client is to be changed."""
        through_xfrmi = self.get("PLUTO_XFRMI_ROUTE")
        same = self.get("PLUTO_PEER_CLIENT") == self.get("PLUTO_MY_CLIENT")
        if through_xfrmi == "yes" and same:
            self.host.print(f"leftsubnet == rightsubnet = {self.get('PLUTO_PEER_CLIENT')} cannot add route")
        if self.get("PLUTO_MY_SOURCEIP") or self.get("PLUTO_MTU") or self.proxied:
            return True
        if through_xfrmi == "yes" and not same:
            return True
        if self.get("PLUTO_XFRMI_FWMARK"):
            return False
        if self.routed == "yes":
            return True
        if action == "del" or through_xfrmi:
            return False
        way = self.way(self.get("PLUTO_PEER_CLIENT_NET"))
        return isinstance(way, OSError) and way.errno == errno.EHOSTUNREACH  # IPsec needs a route to work on

    def _route_device(self, action: str) -> str:
        """Return the interface of the route to the peer's client."""
        interface = self.get("PLUTO_INTERFACE")
        if self.get("VTI_IFACE"):
            return self.get("VTI_IFACE")
        if self.get("PLUTO_XFRMI_ROUTE") == "yes":
            return self.get("PLUTO_VIRT_INTERFACE")
        halves = self._halves()
        if action != "del":
            return self._device_of_next_hop() or interface
        if not halves:
            return self.device_to(self.get("PLUTO_PEER_CLIENT_NET")) or interface
        devices = [route.device for route in self.routing.routes(self.family) if route.destination == halves[0]]
        return devices[0] if devices else interface

    def _device_of_next_hop(self) -> str:
        """Return the interface that leads to the next hop; empty if pluto's own choice (PLUTO_INTERFACE) is
        used.

        Since 5.4 the script does not look, which is wrong if left= is an address of a loopback interface: a
        packet that is routed there never reaches IPsec (net.ipv4.conf.lo.disable_xfrm).
        """
        hop = self.get("PLUTO_NEXT_HOP")
        if self.link_flags(self.get("PLUTO_INTERFACE")) & IFF_LOOPBACK:
            return self.device_to(hop or self.get("PLUTO_PEER"))
        return "" if self.is_since(5, 4) else self.device_to(hop)

    def _route_words(self, action: str, device: str) -> list[str]:
        """Return the words of the route to the peer's client; adds the source address that they name."""
        hop = [] if self.get("PLUTO_XFRMI_ROUTE") else self._next_hop()
        words = hop or self.words.split()
        for word, name in (("mtu", "PLUTO_MTU"), ("metric", "PLUTO_METRIC")):
            if self.get(name):
                words += [word, self.get(name)]
        words += [*self.get("IPROUTEARGS").split(), "dev", device.partition(":")[0]]
        source = self.get("PLUTO_MY_SOURCEIP")
        if action == "replace" and source:
            self.source(True)
            words += ["src", source]
        return words

    def _esp_route_words(self) -> list[str]:
        """Return the words of the route to the peer in table 50, which PLUTO_XFRMI_FWMARK asks for."""
        if not self.get("PLUTO_XFRMI_FWMARK"):
            return []
        words = []
        if self.get("PLUTO_METRIC") and self.is_since(5, 1):
            words += ["metric", self.get("PLUTO_METRIC")]
        device = self.device_to(self.get("PLUTO_NEXT_HOP"), self.get("PLUTO_ME")) or self.get("PLUTO_INTERFACE")
        return [*words, *self._next_hop(), "dev", device.partition(":")[0], "table", str(ESP_TABLE)]

    # --- VTI --------------------------------------------------------------------------------------------------------

    def _vti_keys(self) -> list[int]:
        """Return the keys of the VTI interface, in and out; empty if there is no such interface or no mark.
        """
        if not self.get("VTI_IFACE"):
            return []
        marks = [self.get(name).partition("/")[0] for name in ("CONNMARK_IN", "CONNMARK_OUT")]
        if not all(marks):
            self.host.print("vti-interface option ignored because no mark was configured")
            return []
        return [int(mark, 0) for mark in marks]

    def interface(self, _: bool) -> int:
        """Make the VTI interface if it does not exist."""
        keys, name = self._vti_keys(), self.get("VTI_IFACE")
        if not keys:
            return OK
        shared = self.get("VTI_SHARED") == "yes"
        me, peer = self.get("PLUTO_ME"), self.get("PLUTO_PEER")
        if shared or self.get("PLUTO_CONN_KIND") == "CK_INSTANCE":
            peer = "0.0.0.0"
        if self.host.isdir(f"/proc/sys/net/ipv4/conf/{name}"):
            self._compare_vti(name, shared, {
                IFLA_VTI_LOCAL: packed_address(me), IFLA_VTI_REMOTE: packed_address(peer),
                IFLA_VTI_IKEY: be32(keys[0]), IFLA_VTI_OKEY: be32(keys[1])})
            return OK
        self.routing.add_vti(name, me, peer, keys[0], keys[1])
        for sysctl, value in (("disable_policy", 1), ("rp_filter", 0), ("forwarding", 1)):
            self.host.write(f"/proc/sys/net/ipv4/conf/{name}/{sysctl}", f"{value}\n")
            self.host.print(f"net.ipv4.conf.{name}.{sysctl} = {value}")
        if self.get("VTI_IP"):
            self.routing.address(True, self.get("VTI_IP"), name)
        self.routing.up(name)
        return OK

    def _compare_vti(self, name: str, shared: bool, wanted: Mapping[int, bytes]) -> None:
        """Say whether an interface that exists is the wanted one; the words are those of libreswan's script.
        """
        existing = self.routing.link(name)[1]
        if shared and all(existing.get(field) == value for field, value in wanted.items()):
            self.host.print("vti interface already exists with identical parameters, OK")
            return
        option = "vti-shared" if self.is_since(5, 0) else "vti-sharing"
        hint = "" if shared else f" (perhaps need {option}=yes ?"
        self.host.print(f'vti interface "{name}" already exists with conflicting setting{hint}')

    def vti(self, up: bool) -> int:
        """Add or remove the route to the peer's client through the VTI interface.

        The interface is never removed: other connections may use it.
        """
        name, peer, source = self.get("VTI_IFACE"), self.get("PLUTO_PEER_CLIENT"), self.get("PLUTO_MY_SOURCEIP")
        words = ["dev", name]
        words += ["src", source] if source else []
        if self.get("PLUTO_METRIC") and self.is_since(5, 4):
            words += ["metric", self.get("PLUTO_METRIC")]
        if (up and not self._vti_keys()) or not name or self.get("VTI_ROUTING") != "yes":
            return OK
        if not up:
            if self.host.isdir(f"/proc/sys/net/ipv4/conf/{name}"):
                self.ip_route("del", peer, words, errno.ESRCH)
            return OK
        routes = list(self.routing.routes(4))
        exists = any(route.destination == peer for route in routes)
        gateways = [route for route in routes if route.destination == "0.0.0.0/0" and route.gateway]
        if exists and gateways:
            # the new route may cover the gateway: give it a route of its own
            self.ip_route("add", gateways[0].gateway, ["dev", gateways[0].device], errno.EEXIST)
        self.ip_route("change" if exists else "add", peer, words, errno.EEXIST)
        self.host.print("done ip route")
        return OK

    # --- firewall ---------------------------------------------------------------------------------------------------

    def nflog(self, up: bool) -> None:
        """Copy the connection's packets to its NFLOG group."""
        if group := self.get("NFLOG"):
            nflog_conn(self.host, up, self.get("PLUTO_CONNECTION"), int(group), self.get("PLUTO_MY_CLIENT"),
                       self.get("PLUTO_PEER_CLIENT"))

    def cat(self, up: bool) -> int:
        """Translate this host's address to the one that the peer assigned to it (client address translation).
        """
        peer, given = self.get("PLUTO_PEER_CLIENT"), self.get("PLUTO_MY_CLIENT_NET")
        if not self.get("CAT") or (up and given == "0.0.0.0"):
            return OK
        with self.host.lock("/proc/self/ns/net"):  # one change of the firewall of this network at a time
            if self.host.which("iptables"):
                return self._cat_by_iptables(up, peer, given)
            self._cat_by_nftables(up, peer, given)
        return OK

    def _cat_by_iptables(self, up: bool, peer: str, given: str) -> int:
        status = OK
        for chain, way, rest in (("POSTROUTING", "out", ["-d", peer, "-j", "SNAT", "--to-source", given]),
                                 ("PREROUTING", "in", ["-d", given, "-s", peer, "-j", "DNAT", "--to-destination",
                                                       self.get("PLUTO_ME")])):
            rule = [chain, "-m", "policy", "--dir", way, "--pol", "ipsec", *rest]
            exists = not self._iptables("-C", rule).status
            if exists == up:
                continue
            ran = self._iptables("-I" if up else "-D", rule)
            if ran.status:
                self.host.warn(f"_updown: iptables: {ran.complaint}")
                status = ran.status
        return status

    def _iptables(self, action: str, rule: Sequence[str]) -> Ran:
        return self.host.run(["iptables", "-w", str(FILTER_WAIT), "-t", "nat", action, *rule], timeout=2 * FILTER_WAIT)

    def _cat_by_nftables(self, up: bool, peer: str, given: str) -> None:
        """Add or remove the same rules in nf_tables, in a table of their own; the comment tells whose they
        are.

        Raises Failure.
        """
        comment = f"{given} {peer}"
        wanted = [NftRule("POSTROUTING", nft_ipsec("out") + nft_net("destination", peer)
                          + nft_nat(NFT_NAT_SNAT, given), comment),
                  NftRule("PREROUTING", nft_ipsec("in") + nft_net("source", peer) + nft_net("destination", given)
                          + nft_nat(NFT_NAT_DNAT, self.get("PLUTO_ME")), comment)]
        table = NftTable(self.host, CAT_TABLE, NFPROTO_IPV4, CAT_CHAINS)
        try:
            existing = [rule for rule in table.rules() if rule.comment == comment]
            table.change(existing, wanted if up else ())
        except OSError as error:
            if not up and error.errno in NO_NFTABLES:
                return
            raise Failure(f"nf_tables: {error.strerror or error}", hint="the address translation of this connection "
                          "needs iptables, or a kernel with nf_tables and NAT") from None

    # --- names ------------------------------------------------------------------------------------------------------

    def notify(self, up: bool) -> None:
        """Tell NetworkManager's service that the connection is up or down."""
        if self.yes("PLUTO_NM_CONFIGURED"):
            reason = "connect" if up else "disconnect"
            self.host.print(f"sending {reason} signal to NetworkManager")
            if self.host.executable(NM_HELPER):
                self.host.run([NM_HELPER], env={**self.host.exported(), "libreswan_reason": reason}, timeout=30)

    def resolver(self, up: bool) -> int:
        """Use the name servers and domains that the peer sent (mode config); undone, use the earlier ones
        again.
        """
        import re
        kind = self.get("PLUTO_DNS_RESOLVER") or "file"
        # the peer chose these words: anything that is no address or no name is dropped
        servers = [word for word in self.get("PLUTO_PEER_DNS_INFO").split() if re.fullmatch(r"[0-9a-fA-F:.]+", word)]
        domains = [word for word in self.get("PLUTO_PEER_DOMAIN_INFO").split() if re.fullmatch(r"\w[\w.-]*", word)]
        if kind == "systemd":
            self._systemd(up, {"dns": servers, "domain": domains})
        elif kind != "file":
            raise Failure(f"{kind}: resolver unrecognized")
        elif not self.yes("PLUTO_CFG_CLIENT"):
            return OK
        elif servers and domains and self._unbound_runs():
            self._unbound(up, servers, domains)
        elif not self.yes("PLUTO_NM_CONFIGURED"):
            if not up:
                restore_resolv_conf(self.host)
            elif servers:
                self._resolv_conf(servers, domains)
        return OK

    def _unbound_runs(self) -> bool:
        return any(self.host.value(f"/proc/{pid}/comm") == "unbound" for pid in self.host.listdir("/proc")
                   if pid.isdigit())

    def _unbound(self, up: bool, servers: Sequence[str], domains: Sequence[str]) -> None:
        """Have unbound ask the peer's servers about the peer's domains, or no longer."""
        for domain in domains:
            if up:
                self.host.print(f"updating local nameserver for {domain} with {' '.join(servers)}")
                self.host.run(["unbound-control", "forward_add", domain, *servers])
            else:
                self.host.print(f"flushing local nameserver of {domain}")
                self.host.run(["unbound-control", "forward_remove", domain])
            self.host.run(["unbound-control", "flush_zone", domain])
            self.host.run(["unbound-control", "flush_requestlist"])

    def _resolv_conf(self, servers: Sequence[str], domains: Sequence[str]) -> None:
        """Write a resolv.conf that begins with the peer's servers, and keep the earlier one."""
        host = self.host
        host.print("updating resolvconf")
        if not host.exists(RESOLV_CONF):
            host.print("resolv.conf does not exist, so doing nothing")
            return
        text = host.read(RESOLV_CONF)
        volatile, lasting = resolv_conf_backups(host)
        if is_generated(text) and not host.exists(volatile) and host.exists(lasting):
            text = host.read(lasting)  # the host was restarted while a peer's servers were in use
        if not is_generated(text):
            if host.exists(volatile):
                host.print("backup resolv.conf exists, but current resolv.conf is not generated by Libreswan")
            host.replace(volatile, text)
            try:
                host.replace(lasting, text)
            except OSError as error:
                host.warn(f"_updown: {error_text(error)}: a restart of this host will lose the present resolv.conf")
        elif host.exists(volatile) and not self.is_since(5, 0):
            host.print("Current resolv.conf is generated by Libreswan, and backup resolv.conf already exists, "
                       "so doing nothing")
            return
        host.replace(RESOLV_CONF, self._generated(text, servers, domains), of_service=True)

    def _generated(self, text: str, servers: Sequence[str], domains: Sequence[str]) -> str:
        """Return a resolv.conf with the peer's servers and domains, and the search list and first server of
        `text`.
        """
        first: dict[str, list[str]] = {}
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            if words[1:]:
                first.setdefault(words[0], words[1:])
        domain = first.get("domain", [""])[0]
        search = first.get("search", [domain] if domain else [])
        search = [*domains, *search] if self.is_since(5, 0) else [*search, *domains]
        lines = ["# Generated by Libreswan (IPsec)"]
        lines += [f"domain {domain}"] if domain else []
        lines += [f"search {' '.join(dict.fromkeys(search))}"] if search else []
        lines += [f"nameserver {name}" for name in dict.fromkeys([*servers, *first.get("nameserver", [])])]
        return "\n".join(lines) + "\n"

    def _systemd(self, up: bool, peer: Mapping[str, Sequence[str]]) -> None:
        """Set the servers and domains of systemd-resolved, which keeps them for each interface."""
        interface = self.get("PLUTO_INTERFACE")
        for what, values in peer.items():
            backup = f"{self.host.rundir}/libreswan-prev-{what}-{interface}"
            label = "DNS" if what == "dns" else what
            if up:
                if not self.host.exists(backup):
                    shown = self.host.run(["resolvectl", what, interface]).text
                    self.host.replace(backup, shown.partition(":")[2].strip() + "\n")
                if values:
                    self.host.print(f"setting {label}: {' '.join(values)} on {interface}")
                    self.host.run(["resolvectl", what, interface, *values])
            elif self.host.exists(backup):
                before = self.host.read(backup).split()
                self.host.print(f"restoring {label} to \"{' '.join(before)}\"" if before else f"clearing {label}")
                self.host.run(["resolvectl", what, interface, *(before or [""])])
                self.host.remove(backup)


def is_generated(resolv_conf: str) -> bool:
    """Return whether _updown, this one or libreswan's, wrote the text of a resolv.conf."""
    return "Libreswan" in resolv_conf


def resolv_conf_backups(host: Host) -> tuple[str, str]:
    """Return where resolv.conf is kept while a peer's name servers are in use.

    The first copy is where libreswan's script keeps it; a restart of the host removes it.  The second one is
    beside resolv.conf itself (where a link leads) and lasts as long as that.
    """
    real = host.realpath(RESOLV_CONF)
    base = host.realpath("/").rstrip("/")
    return f"{host.rundir}/libreswan-resolv-conf-backup", f"{real[len(base):]}.libreswan-backup"


def restore_resolv_conf(host: Host) -> None:
    """Restore the resolv.conf from before a peer's name servers; one that another program has written since
    stays.

    Raises OSError.
    """
    backups = resolv_conf_backups(host)
    if host.exists(RESOLV_CONF) and is_generated(host.read(RESOLV_CONF)):
        existing = [backup for backup in backups if host.exists(backup)]
        if not existing:
            return
        host.print("restoring resolvconf")
        host.replace(RESOLV_CONF, host.read(existing[0]), of_service=True)
    for backup in backups:
        host.remove(backup)


def updown_defaults(host: Host) -> dict[str, str]:
    """Return the variables in /etc/sysconfig/pluto_updown or /etc/default/pluto_updown.

    Only lines NAME=value have an effect; other lines, which libreswan's script runs as shell text, are
    reported.
    """
    names = ("/etc/sysconfig/pluto_updown", "/etc/default/pluto_updown")
    name = next((name for name in names if host.exists(name)), "")
    values: dict[str, str] = {}
    for line in host.lines(name) if name else ():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        value = value.strip()
        if equals and key.isidentifier():
            values[key] = value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value
        elif line.strip() and not line.lstrip().startswith("#"):
            host.warn(f"{name}: only NAME=value lines have an effect: {quote(line.strip())}")
    return values


# =====================================================================================================================
# 9. Service managers
#
# Starts and stops pluto: through the init system of the host (one table of init systems, their services and their
# command lines), or directly if there is none.  Touches the init system's programs, pluto's process and run directory,
# the kernel's states, policies, modules and sysctls.  Used by setup, start, stop, restart, _stackmanager, _plutorun.
# Facts: sd_booted(3), systemctl(1), rc-service(8), sv(8), s6-svc and s6-svstat, dinitctl(8), initctl(8) of upstart,
# rc.subr(8), the init scripts of LSB 5.0 and their statuses, setup, _plutorun and _stackmanager of libreswan 3.29,
# 4.10 and 5.4.
# =====================================================================================================================

DEFAULT_CONF, DEFAULT_RUNDIRS = "/etc/ipsec.conf", ("/run/pluto", "/var/run/pluto")
SERVICE_NAMES = ("ipsec", "libreswan", "pluto")
NOT_OURS = ("strongswan", "charon", "racoon", "setkey")  # other programs whose service may be called `ipsec`
CHECK_TIME = 60.0  # seconds that a check of the configuration, modprobe or the start of pluto may take
ANSWER_TIME = 5.0  # seconds in which a healthy pluto answers
STOP_TIMES = (("shutdown", 20.0), ("SIGTERM", 10.0), ("SIGKILL", 10.0))  # the ways to end pluto, seconds for each


def wait_until(done: Callable[[], object], seconds: float) -> bool:
    """Call `done` until its result is true.  Return False if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- is pluto running? ------------------------------------------------------------------------------------------------
#
# A pluto in another PID namespace of the same network (a container with the host's network) shares the kernel's states
# and policies with this process, but /proc does not show it.  So several signs are looked at, and a sign that can't be
# read counts as a sign of a pluto.  A NETLINK_XFRM listener is no sign: `ip xfrm monitor` and strongSwan have one too.

IKE_PORTS = (500, 4500)  # RFC 7296: IKE, and IKE and ESP in UDP; RFC 8229: 4500 for TCP


def pid_file(host: Host) -> str:
    """Return the file in which pluto writes its process number."""
    return f"{host.rundir}/pluto.pid"


def pluto_answers(host: Host) -> bool:
    """Return whether a pluto answers on the control socket."""
    try:
        await_pluto(host, ANSWER_TIME)
    except (NoPluto, TimedOut):
        return False
    return True


def socket_signs(host: Host) -> Iterator[str]:
    """Yield the sign of a pluto on the control socket; none if nothing listens there."""
    try:
        await_pluto(host, ANSWER_TIME)
        yield f"a pluto answers on {host.ctlsocket}"
    except NoPluto as failure:
        if not failure.silent:
            yield failure.message.removeprefix("ipsec whack: ")
    except TimedOut:
        yield f"{host.ctlsocket} accepts connections, but does not answer"


def pid_file_signs(host: Host) -> Iterator[str]:
    """Yield the sign of a pluto in the pid file; none if the process has ended or is another program."""
    name = pid_file(host)
    try:
        text = host.read(name).strip()
    except FileNotFoundError:
        return
    except OSError as error:
        yield f"{error_text(error)}: the process of pluto is unknown"
        return
    if not text.isdecimal():
        return
    pid = int(text)
    if is_pluto(host, pid):
        yield f"pluto runs as process {pid}"
    elif not host.exists("/proc/self/stat") and host.is_alive(pid):
        yield f"process {pid} of {name} is alive, and without /proc nothing tells whether it is pluto"


def process_signs(host: Host) -> Iterator[str]:
    """Yield a sign for each pluto in the network namespace of this process, of any run directory."""
    if not host.exists("/proc/self/stat"):
        yield "/proc can't be read, so no process can be seen"
        return
    for pid in plutos(host):
        yield f"pluto runs in this network as process {pid}"


def port_signs(host: Host) -> Iterator[str]:
    """Yield a sign for each port of IKE that is bound in this network namespace by no process that /proc shows."""
    if not host.exists("/proc/self/net/udp"):
        yield "/proc/net/udp can't be read, so the ports of IKE may be in use"
        return
    try:
        bound = {f"socket:[{entry.inode}]": entry for entry in list_sockets(host, IKE_PORTS)
                 if entry.protocol.startswith("udp") or entry.port == 4500}
    except OSError as error:
        yield f"{error_text(error)}: the ports of IKE may be in use"
        return
    for pid in host.listdir("/proc") if bound else ():
        try:
            for name in open_files(host, int(pid)) & bound.keys() if pid.isdecimal() else ():
                del bound[name]
        except OSError:
            continue  # the process has ended, or belongs to another user: its sockets stay in `bound`
    for port in sorted({f"{entry.protocol[:3].upper()} port {entry.port}" for entry in bound.values()}):
        yield f"{port} is in use by a process that this one can't see"


def bind_signs(host: Host) -> Iterator[str]:
    """Yield a sign for each UDP port of IKE that can't be bound."""
    for port in IKE_PORTS:
        for family in (AF_INET, AF_INET6):
            try:
                host.bind_udp(family, port)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
                    yield f"UDP port {port} can't be bound: {error.strerror}"
                    break


def signs_of_own_pluto(host: Host) -> list[str]:
    """Return the signs that the pluto of this run directory runs, or one that /proc does not show."""
    return [*socket_signs(host), *pid_file_signs(host), *port_signs(host)]


def signs_of_pluto(host: Host) -> list[str]:
    """Return the signs that any pluto runs in the network of this process; empty only if all could be read.

    While there is one, the kernel's states and policies, the control socket and the pid file must stay.
    """
    return [*signs_of_own_pluto(host), *process_signs(host)]


def may_run(signs: Sequence[str]) -> Failure:
    """Return the error for an action that these signs of a pluto forbid."""
    return Failure(f"a pluto runs here or may run here, so nothing was done: {signs[0]}", ERROR,
                   "stop it where it was started, for example on the host of this container; "
                   "ipsec whack --shutdown ends the one that answers on the control socket")


def check_not_running(host: Host) -> bool:
    """Return whether everything shows that no pluto runs, so that what the last one left may be removed.

    A start needs less, so that it works without /proc: no answer on the control socket, no live process of the
    pid file, and free ports.  Then the result is False.  Raises Failure if a pluto may run.
    """
    signs = signs_of_pluto(host)
    if signs and (needed := [*socket_signs(host), *pid_file_signs(host), *bind_signs(host)]):
        raise may_run(needed)
    return not signs


# --- the kernel's IPsec stack ----------------------------------------------------------------------------------------


def flush_leftovers(host: Host) -> bool:
    """Remove what earlier plutos left in the kernel; return False, with nothing removed, if a pluto may run.

    Raises OSError, TimedOut.
    """
    if signs_of_pluto(host):
        return False
    flush_states_and_policies(host)
    return True


def flush_states_and_policies(host: Host) -> None:
    """Remove the kernel states and policies that pluto made.  Call it only while no pluto runs.

    Raises OSError, TimedOut, and Failure if root lacks the right, as in a container.
    """
    if not host.has_xfrm():
        return
    reqids: set[int] = set()
    try:
        for conn in Config(host).conns():
            if (setting := conn.settings.get("reqid")) and setting.value.isdecimal():
                reqids.add(int(setting.value))
    except (Failure, OSError):
        reqids.clear()  # only the reqids that pluto chooses itself are known then
    try:
        flush_xfrm(host, reqids)
    except PermissionError as error:
        raise Failure(f"{error_text(error)}: pluto can't work here", ERROR,
                      "start the container with --cap-add NET_ADMIN") from None


# The modules of today's kernels, and those that kernels before 5.2 kept apart.  The kernel loads ciphers on demand
# (MODULE_ALIAS_CRYPTO), but only if it can call modprobe itself; so the common ones are in the list, too.
STACK_MODULES = (
    "xfrm_user xfrm_algo esp4 esp6 ah4 ah6 ipcomp ipcomp6 xfrm_ipcomp xfrm4_tunnel xfrm6_tunnel tunnel4 tunnel6 "
    "xfrm4_mode_transport xfrm4_mode_tunnel xfrm4_mode_beet xfrm6_mode_transport xfrm6_mode_tunnel xfrm6_mode_beet "
    "xfrm6_mode_ro ip_vti ip6_vti xfrm_interface aesni_intel aes_generic des_generic sha256_generic sha512_generic "
    "md5 cbc xcbc ecb ccm gcm ctr cts seqiv echainiv authenc deflate camellia_generic cmac chacha20poly1305")
SYSCTLS = "/proc/sys/net/core"


def give_resolv_conf_back(host: Host) -> None:
    """Restore the resolv.conf that a pluto left behind when it crashed; report a failure on stderr."""
    try:
        restore_resolv_conf(host)
    except OSError as error:
        host.warn(f"cannot restore resolv.conf: {error_text(error)}")


def stack_start(host: Host, config: Config, stack: str = "") -> None:
    """Load the kernel's IPsec stack and set its sysctls; `stack` overrides protostack=.  Raises Failure."""
    stack = stack or config.setup("protostack", "xfrm")
    if stack == "none":
        return
    if stack not in ("xfrm", "auto", "mast", "klips", "netkey"):  # the others are old values that mean xfrm today
        host.warn(f"unknown protostack={quote(stack)}: the kernel's XFRM stack is used")
    if flush_leftovers(host):
        give_resolv_conf_back(host)
    if host.exists("/proc/modules"):
        load_modules(host)
    if not host.has_xfrm():
        raise Failure("FAILURE in loading XFRM IPsec stack", ERROR,
                      "the kernel does not have it, or the modules of `uname -r` are not installed")
    set_sysctl(host, "xfrm_acq_expires", f"{config.seconds('xfrmlifetime', 30)}")
    set_sysctl(host, "xfrm_larval_drop", "1")


def stack_stop(host: Host) -> list[str]:
    """Remove what pluto left in the kernel and restore the sysctls.

    Return the signs that a pluto runs; with any of them, nothing is changed.  Modules stay loaded: unloading
    them may hang for long.  Raises Failure.
    """
    if signs := signs_of_pluto(host):
        return signs
    flush_states_and_policies(host)
    saved = saved_sysctls(host)
    try:
        for line in host.lines(saved):
            name, _, value = line.partition(" ")
            if name.startswith("xfrm_") and value.isdigit() and host.value(f"{SYSCTLS}/{name}").strip() != value:
                host.write(f"{SYSCTLS}/{name}", value)
    except FileNotFoundError:
        return []
    except OSError as error:
        host.warn(f"WARNING: cannot restore a sysctl: {error_text(error)}")  # read-only in containers
    host.remove(saved)
    return []


def saved_sysctls(host: Host) -> str:
    """Return the file that keeps the values which stack_start() has changed."""
    return f"{host.rundir}/ipsec.sysctl"


def set_sysctl(host: Host, name: str, value: str) -> None:
    """Set a sysctl of net.core.  The value from before the first change is kept for stack_stop()."""
    path = f"{SYSCTLS}/{name}"
    now = host.value(path)
    if not now or now == value:
        return
    saved = saved_sysctls(host)
    kept = host.value(saved)
    try:
        if f"{name} " not in kept:
            host.write(saved, f"{kept}\n{name} {now}\n".lstrip())
        host.write(path, value)
    except OSError:
        host.warn(f"WARNING: cannot change {path} from {now} to {value}")  # read-only in containers
        return
    host.print(f"changing {path} from {now} to {value}")


def load_modules(host: Host) -> None:
    """Load the modules of the stack that the kernel has.  No kernel has all of them; the caller asks the stack."""
    if not host.which("modprobe"):
        host.warn("modprobe is not installed, so no kernel module is loaded")
        return
    for flags in ("-qab", "-qa"):  # b: skip modules that the administrator blacklisted; busybox may lack it
        if b"option" not in host.run(["modprobe", flags, *STACK_MODULES.split()], timeout=CHECK_TIME).err:
            return


# --- the direct start and stop ---------------------------------------------------------------------------------------


def check_nss(host: Host) -> None:
    """Prepare the NSS database for pluto as checknss does; on a read-only disk, only check it.  Raises Failure."""
    base = NssDatabase(host)
    whole = len(base.has(*NSS_FILES[1:])) == 2
    try:
        if whole and not host.writable(base.directory):
            base.check()
        else:
            check_database(base)
    except Missing as missing:
        if not whole:
            raise
        host.warn(f"the NSS database is not checked: {missing}")  # pluto itself needs no certutil


def check_config(host: Host) -> Config:
    """Return the configuration if pluto would take it: the installed addconn decides, and only without one the built-in
    reader.  Raises Failure with addconn's status; addconn's complaints go to standard error."""
    addconn = os.path.join(host.execdir, "addconn")
    if hint := libreswan_hint(host, ""):
        raise Missing(f"pluto is not in {host.execdir}", LSB_NOT_INSTALLED, hint)
    config = Config(host)
    if not host.executable(addconn):
        return config.check()
    ran = host.run([addconn, "--config", host.conf, "--checkconfig"], timeout=CHECK_TIME)
    if ran.status:
        complain(host, ran.out + ran.err)
        raise Failure(f"{host.conf}: configuration error, addconn refuses it; pluto was left as it is", ran.status)
    for problem in config.problems:
        if problem.fatal:
            host.warn(f"{problem}; addconn takes it")
    return config


def complain(host: Host, output: bytes, limit: int = 10) -> None:
    """Print the last `limit` lines of a program's output on standard error, without secrets."""
    for line in redactor_of(host).clean(decode(output)).strip().splitlines()[-limit:]:
        host.warn(line)


class Direct:
    """Starts and stops pluto without an init system.

    A lock on the run directory admits one `ipsec` process at a time.  With `dry` nothing is done but printing.
    """

    def __init__(self, host: Host, dry: bool) -> None:
        self.host = host
        self.dry = dry

    def _announce(self, line: str) -> bool:
        """Print the line that stands for a redirection.  Return False if nothing more is to be done.

        Raises Failure if the user is not root.
        """
        self.host.print(f"Redirecting to: {line}")
        if not self.dry and not self.host.superuser:
            raise Failure("permission denied (must be superuser)", LSB_NO_RIGHT)
        return not self.dry

    def start(self, foreground: bool = False) -> int:
        """Start pluto as its unit does; return 0 once it answers, or if it ran before.

        With `foreground` this process becomes pluto.  Raises Failure, with pluto's own status if pluto ends.
        """
        host, argv = self.host, self._argv(foreground)
        if not self._announce(f"ipsec pluto {' '.join(argv[1:])} [start manually]"):
            return OK
        with host.lock(host.rundir):
            if pid := find_pluto(host):
                if foreground:
                    raise Failure(f"pluto is running already (pid {pid})")
                if not wait_until(lambda: pluto_answers(host), ANSWER_TIME):
                    raise Failure(f"pluto (pid {pid}) runs but does not answer", ERROR,
                                  "ipsec setup restart --init none")
                host.print(f"ipsec: pluto (pid {pid}) is running already")
                return OK
            gone = check_not_running(host)
            config = check_config(host)
            if gone:  # otherwise pluto replaces both
                host.remove(pid_file(host))
                host.remove(host.ctlsocket)
            stack_start(host, config)
            check_nss(host)
            check_nflog(host, tell=False)
            if foreground:
                # until pluto writes its own: no other start begins meanwhile
                host.write(pid_file(host), f"{os.getpid()}\n")
                os.chdir("/")
                host.exec(argv[0], argv[1:])
            self._launch(argv)
        return OK

    def _argv(self, foreground: bool) -> list[str]:
        """Return pluto's command line.

        Without logfile=, pluto logs to a file, because there may be no syslog; in the foreground it logs to
        syslog if /dev/log exists, otherwise to standard error.
        """
        host = self.host
        argv = [os.path.join(host.execdir, "pluto"), "--config", host.conf, "--nofork"]
        if host.rundir not in DEFAULT_RUNDIRS:
            argv += ["--rundir", host.rundir]
        if host.given_nssdir:
            argv += ["--nssdir", host.given_nssdir]
        if not Config(host).setup("logfile"):
            if not foreground:
                argv += ["--logfile", self._log()]
            elif not host.exists("/dev/log"):
                argv += ["--stderrlog"]
        return argv

    def _log(self) -> str:
        """Return the path of pluto's log."""
        own = "/var/log" if self.host.writable("/var/log") else self.host.rundir
        return Config(self.host).setup("logfile", f"{own}/pluto.log")

    def _launch(self, argv: list[str]) -> None:
        """Start pluto and wait until it answers.

        Raises Failure if it does not: its last lines are on stderr then, and the process has been ended.
        """
        host, log = self.host, self._log()
        before = host.stat(log).st_size if host.exists(log) else 0
        output = os.memfd_create("pluto")  # for the lines that pluto prints before it opens its log
        try:
            child = host.spawn(argv, output)
            if wait_until(lambda: child.poll() is not None or pluto_answers(host), CHECK_TIME) and child.poll() is None:
                return
            status, what = ERROR, f"did not answer within {CHECK_TIME:g} s and was ended"
            if child.poll() is not None:
                status = child.returncode if child.returncode >= 0 else SIGNALLED - child.returncode
                what = f"ended with status {status}"
            child.kill()
            child.wait()
            said = os.pread(output, READ_CHUNK, 0)
        finally:
            os.close(output)
        try:
            said += b"".join(host.chunks(log, before) if host.exists(log) else ())
        except OSError as error:
            said += encode(f"{error_text(error)}\n")  # logfile=/dev/null
        complain(host, said)
        if signs := clean_up(host):
            host.warn(f"what pluto left is not removed: {signs[0]}")
        raise Failure(f"pluto {what}", status or ERROR, f"its log: {log}")

    def stop(self) -> int:
        """End pluto and clean up; return 0, also if no pluto ran.

        Raises Failure if pluto does not end or may still run.  Then the kernel keeps its policies.
        """
        if self._announce("ipsec whack --shutdown [stop manually]"):
            with self.host.lock(self.host.rundir):
                pid = find_pluto(self.host)
                if pid:
                    self._end(pid)
                finish_stop(self.host, bool(pid))
        return OK

    def _end(self, pid: int) -> None:
        host = self.host
        for how, seconds in STOP_TIMES:
            if how == "shutdown":
                try:
                    await_pluto(host, ANSWER_TIME)  # or a stopped pluto would take all of the time
                    pluto_shutdown(host, seconds)
                except (NoPluto, TimedOut) as failure:
                    host.warn(f"{failure.message}: ending pluto (pid {pid}) by signal")
                    continue
            elif is_pluto(host, pid):
                host.signal(pid, how, "SIGCONT")  # stopped, it would not see the first
            if wait_until(lambda: not is_pluto(host, pid), seconds):
                return
        raise Failure(f"pluto (pid {pid}) does not end; the kernel's policies are left as they are")

    def restart(self) -> int:
        """Stop and start pluto.  Raises Failure; a configuration with errors stops nothing."""
        if not self._announce("[stop start manually]"):
            return OK
        check_config(self.host)
        return self.stop() or self.start()

    def status(self) -> int:
        """Print and return the status as LSB numbers it: 0 running, 1 dead with a pid file, 3 stopped, 4 unknown."""
        host = self.host
        try:
            dead = bool(host.read(pid_file(host)))
        except OSError as error:
            dead = False
            if isinstance(error, PermissionError):
                host.print("ipsec: pluto status unknown due to insufficient privileges.")
                return LSB_UNKNOWN
        if pid := find_pluto(host):
            healthy = pluto_answers(host) or not host.superuser
            host.print(f"ipsec: pluto (pid {pid}) is running{'...' if healthy else ', but does not answer'}")
            return OK if healthy else LSB_UNKNOWN
        if pluto_answers(host):
            host.print("ipsec: pluto is running, in another PID namespace or without its pid file")
            return OK
        if signs := signs_of_own_pluto(host):
            host.print(f"ipsec: pluto status unknown: {signs[0]}")
            return LSB_UNKNOWN
        host.print("ipsec: pluto dead but pid file exists" if dead else "ipsec: pluto is stopped")
        return LSB_DEAD if dead else LSB_STOPPED


def clean_up(host: Host) -> list[str]:
    """Remove what a pluto left that has ended: kernel states and policies, sysctls, pid file, socket, capture rules,
    resolv.conf.

    Return the signs that a pluto runs; with any of them, nothing is removed.  Raises Failure.
    """
    if signs := stack_stop(host):
        return signs
    host.remove(pid_file(host))
    host.remove(host.ctlsocket)
    try:
        stop_nflog(host)
    except (Failure, OSError) as error:
        host.warn(f"nflog: rules that copy packets are left: {error}")
    restore_resolv_conf(host)
    return []


def finish_stop(host: Host, ended: bool) -> None:
    """Clean up after a stop; `ended`: a pluto was seen to end.

    Raises Failure if none was seen to end, and the pluto of this run directory may run.
    """
    signs = clean_up(host)
    if signs and not ended and (own := signs_of_own_pluto(host)):
        raise may_run(own)
    if signs:
        host.warn(f"the kernel's policies, and what else a pluto left, are not removed: {signs[0]}")


# --- init systems -----------------------------------------------------------------------------------------------------


class Manager(Record):
    """An init system.

    `programs` are names of processes that run while it does.  `traces` are files, or @abstract sockets, that exist
    only while it does.  `places` are the paths of a service called {}.  `words` is the command line for an action;
    `special` has other command lines for single actions.  An empty command line means a stop and a start.  `up` is
    the text that its status command prints while the service runs, for an init system whose exit status does not
    tell; such an init system does not report either whether a start succeeded.
    """

    name: str
    programs: str
    traces: str
    places: str
    words: str
    special: Mapping[str, str] = {}
    up: str = ""


MANAGERS = (
    Manager("systemd", "systemd", "/run/systemd/system", "", "systemctl {action} {name}.service"),
    Manager("openrc", "openrc-init", "/run/openrc/softlevel", "/etc/init.d/{}", "rc-service {name} {action}"),
    Manager("upstart", "", "@/com/ubuntu/upstart", "/etc/init/{}.conf", "{action} {name}", up="start/running"),
    Manager("runit", "runit runsvdir", "", "/etc/service/{} /var/service/{} /service/{} /run/runit/service/{}",
            "sv -w 30 {action} {path}", {"status": "sv status {path}", "restart": ""}, "run:"),
    Manager("s6", "s6-svscan", "", "/run/service/{} /service/{} /var/service/{} /etc/service/{}", "",
            {"start": "s6-svc -wu -T 60000 -u {path}", "stop": "s6-svc -wD -T 60000 -d {path}",
             "status": "s6-svstat {path}"}, "up "),
    Manager("dinit", "dinit", "/run/dinitctl", "/etc/dinit.d/{} /run/dinit.d/{} /usr/local/lib/dinit.d/{} "
            "/usr/lib/dinit.d/{} /lib/dinit.d/{}", "dinitctl {action} {name}",
            {"stop": "dinitctl stop --ignore-unstarted {name}", "restart": ""}, "State: STARTED"),
    Manager("procd", "procd", "", "/etc/init.d/{}", "{path} {action}"),
    Manager("rc.d", "", "", "/etc/rc.d/{} /usr/local/etc/rc.d/{}", "{path} one{action}"),
    Manager("sysvinit", "init", "", "/etc/init.d/{} /etc/rc.d/init.d/{}", "{path} {action}"),
)
# The interpreters of scripts that only one init system can run
INTERPRETERS = {"openrc-run": "openrc", "runscript": "openrc", "rc.common": "procd"}
# Any program may be called init: in WSL, LinuxKit and many images process 1 is, and it has no services.  sysvinit and
# busybox's init read inittab; the others are sysvinit's own (init(8), initctl(5), telinit(8))
SYSVINIT_MARKS = ("/etc/inittab", "/run/initctl", "/dev/initctl", "/sbin/telinit", "/usr/sbin/telinit")
# s6-overlay supervises a container; it is an init system for pluto only if the image has a service for it
S6_OVERLAY_MARKS = ("/package/admin/s6-overlay", "/etc/s6-overlay", "/etc/s6/init")
SCRIPT_MARK = "IPSEC_INIT_SCRIPT"  # in the environment: the init script that this program runs


class Service(Record):
    """The service of an init system that runs pluto.

    `name` is its name there, `path` the path of its description (empty for systemd); `masked`: systemd refuses to
    start it.
    """

    manager: Manager
    name: str
    path: str = ""
    masked: bool = False

    def argvs(self, host: Host, action: str) -> list[list[str]]:
        """Return the programs to run one after the other for `start`, `stop`, `restart` or `status`."""
        words = self.manager.special.get(action, self.manager.words)
        if not words:
            return [*self.argvs(host, "stop"), *self.argvs(host, "start")]
        if self.manager.name == "sysvinit" and host.exists("/etc/redhat-release") and host.which("service"):
            words = "service {name} {action}"  # as Red Hat's manuals and libreswan's own setup have it
        return [[word.format(action=action, name=self.name, path=self.path) for word in words.split()]]


def is_ours(text: str) -> bool:
    """Return whether a unit or script is for libreswan, as far as its text tells: a service called `ipsec` may be
    strongSwan's.
    """
    text = text.lower()
    return "pluto" in text or "libreswan" in text or not any(word in text for word in NOT_OURS)


def first_process(host: Host) -> str:
    """Return the name of the program that is process 1: of its file if that can be read, because busybox and shells
    may call themselves init, otherwise its own.
    """
    try:
        return os.path.basename(host.readlink("/proc/1/exe").removesuffix(" (deleted)"))
    except OSError:
        return host.value("/proc/1/comm")


def daemons(host: Host) -> set[str]:
    """Return the names of the processes of process 1's user.  Those of other users must not pass as an init system."""
    names = set()
    for pid in host.listdir("/proc") if host.exists("/proc/1") else ():
        try:
            if pid.isdecimal() and host.stat(f"/proc/{pid}").st_uid == host.stat("/proc/1").st_uid:
                names.add(host.value(f"/proc/{pid}/comm"))
        except OSError:
            continue  # it has ended meanwhile
    return names


def running_managers(host: Host) -> list[Manager]:
    """Return the init systems that run here, the one that is process 1 first."""
    first, names = first_process(host), daemons(host)
    sockets = host.value("/proc/net/unix")

    def runs(manager: Manager) -> bool:
        programs = set(manager.programs.split())
        if manager.name == "rc.d":
            return os.uname().sysname.endswith(("BSD", "DragonFly"))
        if manager.name == "sysvinit":
            return first in programs and any(map(host.exists, SYSVINIT_MARKS))
        if programs & {first, *names}:
            return True
        return any(trace in sockets if trace.startswith("@") else host.exists(trace)
                   for trace in manager.traces.split())

    return sorted(filter(runs, MANAGERS), key=lambda manager: first not in manager.programs.split())


def service_of(host: Host, manager: Manager) -> Service | None:
    """Return the service of an init system that runs pluto, or None.  Raises Failure if systemctl can't be run."""
    if manager.name == "systemd":
        return systemd_service(host, manager)
    for place in manager.places.split():
        for name in SERVICE_NAMES:
            path = place.format(name)
            script = f"{path}/run" if host.isdir(path) else path
            text = host.value(script)
            for word, owner in INTERPRETERS.items():
                if word in text.partition("\n")[0] and owner != manager.name:
                    text = ""
            if text and is_ours(text):
                return Service(manager, name, path)
    return None


def systemd_service(host: Host, manager: Manager) -> Service | None:
    """Return systemd's unit for pluto: the first that is loaded, else a masked one, else None.

    A unit of that name may belong to strongSwan (an alias in Debian), so the programs that it starts are compared.
    If systemd does not answer, the usual name is returned: systemctl then reports the reason.
    """
    units = [f"{name}.service" for name in SERVICE_NAMES]
    ran = host.run(["systemctl", "show", *(f"--property={name}" for name in ("Id", "LoadState", "ExecStart")), "--",
                    *units, "libreswan@*.service"], timeout=CHECK_TIME, hint="systemd runs this host")
    if ran.status:
        return Service(manager, SERVICE_NAMES[0])
    masked = None
    for block in ran.text.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name, state = unit.get("Id", "").removesuffix(".service"), unit.get("LoadState")
        if name and state == "masked":
            masked = masked or Service(manager, name, masked=True)
        elif name and state not in (None, "not-found") and is_ours(block):
            return Service(manager, name)
    return masked


def outside(host: Host) -> str:
    """Return why the init system does not serve this process (a chroot, another network namespace), or nothing."""
    for path, own, where in (("/proc/1/root/.", "/", "in a chroot"),
                             ("/proc/1/ns/net", "/proc/self/ns/net", "in a network namespace of its own")):
        try:
            first, this = host.stat(path), host.stat(own)
        except OSError:
            continue  # an ordinary user may not look
        if (first.st_dev, first.st_ino) != (this.st_dev, this.st_ino):
            return where
    return ""


def runs_this(host: Host, service: Service) -> bool:
    """Return whether the service itself has started this program.

    An init script or a unit may call `ipsec setup start`.  It must not be called again for that.
    """
    if service.manager.name == "systemd":
        groups = host.value("/proc/self/cgroup").splitlines()  # cgroups(7)
        return any(group.endswith(f"/{service.name}.service") for group in groups)
    if host.env.get(SCRIPT_MARK) == service.path:
        return True
    pid = os.getpid()
    while pid > 1:
        stat = host.value(f"/proc/{pid}/stat").rpartition(")")[2].split()
        words = host.value(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
        for word, after in zip(words, words[1:]):  # sh /etc/init.d/ipsec start, or sh /sbin/service ipsec start
            if word == service.path or (os.path.basename(word), after) == ("service", service.name):
                return True
        pid = int(stat[1]) if len(stat) > 1 else 0
    return False


def find_service(host: Host, wanted: str, action: str) -> Service | None:
    """Return the service that an action is for; None if this program has to start or stop pluto directly.

    `wanted` is the init system that the user chose, `none`, or empty.  Raises Failure: no such init system, no
    service for pluto, two candidates.
    """
    known = {manager.name: manager for manager in MANAGERS}
    if wanted == "none":
        return None
    if wanted and wanted not in known:
        raise Failure(f"Unknown init system {quote(wanted)}", NO_INIT_SYSTEM, f"one of {', '.join(known)}, none")
    if not wanted and (where := outside(host)):
        if action != "status":
            host.warn(f"{where}, which the init system does not serve: acting without it")
        return None
    managers = [known[wanted]] if wanted else running_managers(host)
    services = [service for service in (service_of(host, manager) for manager in managers) if service]
    if not services and not wanted and (script := service_of(host, known["sysvinit"])):
        services = [script]  # an init script works without init, too: libreswan 3.29 starts it in containers
    if not services:
        if managers and (wanted or serves_host(host, managers[0])):
            raise without_service(managers[0], action)
        return None
    service = choose_service(host, services, action)
    if runs_this(host, service):
        host.env.pop(SCRIPT_MARK, None)
        return None
    return service


def serves_host(host: Host, manager: Manager) -> bool:
    """Return whether the init system is process 1 and serves a whole host, where pluto should have a service."""
    overlay = manager.name == "s6" and any(map(host.exists, S6_OVERLAY_MARKS))
    return first_process(host) in manager.programs.split() and not overlay


def without_service(manager: Manager, action: str) -> Failure:
    """Return the error for an init system without a service for pluto, with the places of such a service."""
    places = " ".join(place.format("{" + ",".join(SERVICE_NAMES) + "}") for place in manager.places.split())
    return Failure(f"{manager.name} runs this host, but has no service for pluto",
                   LSB_UNKNOWN if action == "status" else LSB_NOT_INSTALLED,
                   f"looked for {places or 'the units ' + ', '.join(SERVICE_NAMES)}; "
                   f"ipsec setup {action} --init none does without")


def choose_service(host: Host, services: Sequence[Service], action: str) -> Service:
    """Return the service of process 1, or the only one.  Raises Failure if there is a choice.

    An init script of sysvinit is the last choice and no rival of another service.
    """
    rivals = [service for service in services if service.manager.name != "sysvinit"] or services
    if len(rivals) > 1:
        names = " and ".join(f"{service.manager.name} ({service.path or service.name})" for service in rivals)
        first = first_process(host)
        if first not in rivals[0].manager.programs.split():
            raise Failure(f"several init systems with a service for pluto run here: {names}", NO_INIT_SYSTEM,
                          f"choose: ipsec setup {action} --init {rivals[0].manager.name}")
        host.warn(f"several init systems have a service for pluto: {names}; using process 1's, {first}")
    return rivals[0]


def act(host: Host, service: Service, action: str, dry: bool) -> int:
    """Run the action through the init system; return its exit status.

    Raises Failure if it can't be run, if pluto still runs after a stop, or if it does not answer after a start.
    """
    argvs = service.argvs(host, action)
    was_running = not dry and action == "stop" and find_pluto(host) is not None
    if not dry:
        if service.masked and action in ("start", "restart"):
            raise Failure(f"{service.name}.service is masked", ERROR, f"systemctl unmask {service.name}.service")
        if host.conf != DEFAULT_CONF or host.rundir not in DEFAULT_RUNDIRS:
            raise Failure(f"{service.manager.name} starts pluto with a configuration and a run directory of its own",
                          USAGE, f"with other ones: ipsec --config … --rundir … setup {action} --init none")
        if action == "restart" or (service.manager.up and action == "start"):
            check_config(host)  # an invalid one would end a running pluto and start none
    if service.manager.name == "sysvinit":
        host.env[SCRIPT_MARK] = service.path  # see runs_this()
    for argv in argvs:
        host.print(f"Redirecting to: {' '.join(argv)}")
        if dry:
            continue
        path = host.resolve(argv[0], f"{service.manager.name} runs this host")
        if action == "status" and service.manager.up:
            ran = host.run([path, *argv[1:]], timeout=CHECK_TIME)
            host.print(ran.text + decode(ran.err), end="")
            said = ran.text.partition("; ")[0]  # runit: what follows is the log's service
            return OK if service.manager.up in said else LSB_UNKNOWN if ran.status else LSB_STOPPED
        if action != "stop" and not service.manager.up:
            host.exec(path, argv[1:])
        status = host.call([path, *argv[1:]])
        if status:
            return status  # the init system reports the reason; the policies stay, or traffic would leave in clear
    if dry:
        return OK
    if action != "stop":
        if wait_until(lambda: pluto_answers(host), CHECK_TIME / 2):
            return OK
        raise Failure(f"pluto does not answer on {host.ctlsocket} after {CHECK_TIME / 2:g} s", ERROR,
                      "see its log; ipsec barf collects it")
    if host.superuser:  # for an ordinary user, the service itself has to clean up
        with host.lock(host.rundir):
            if not wait_until(lambda: not find_pluto(host), STOP_TIMES[1][1]):
                raise Failure(f"pluto (pid {find_pluto(host)}) still runs: {service.manager.name} did not start it",
                              ERROR, "ipsec setup stop --init none ends it")
            finish_stop(host, was_running)
    return OK


# =====================================================================================================================
# 10. Registry
#
# What a command is: a function, registered with a decorator that carries all that the user sees of it.  Help,
# completion and the test of the manual pages read the registry, so they always agree with it.  load_rest() loads the
# blocks of the archive that a command needs.  Used by sections 11 and 12.
# =====================================================================================================================


class Opt(Record):
    """An option of a command: its spellings, the name of its value (None: a flag; [X]: after = only), what it does."""

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
    stands in where libreswan's own program of that name is not installed.  `rescue`: it only reads, and so may be used
    on a mounted disk (--root).
    """

    def __init__(self, function: Callable[[Host, Args], int], names: str, operands: str, summary: str,
                 options: Sequence[Opt] | None, details: str, hidden: bool, fallback: bool, rescue: bool) -> None:
        self.function = function
        self.name, *self.aliases = names.split()
        self.operands = operands
        self.summary = summary
        self.options = options
        self.details = details
        self.hidden = hidden
        self.fallback = fallback
        self.rescue = rescue

    @property
    def usage(self) -> str:
        """The synopsis, one line."""
        shown = " [OPTION...]" if self.options else ""
        return f"ipsec {self.name}{shown}{' ' + self.operands if self.operands else ''}"

    def parse(self, words: Sequence[str], others: Sequence[Opt] = ()) -> Args:
        """Return the parsed words, in which options from `others` may be, too.  Raises Failure(USAGE).

        Not argparse: it takes a value that begins with a dash (a nickname, a connection) for an option, and it costs
        as much as the rest of the start.
        """
        args = Args()
        if self.options is None:
            args.operands = list(words)
            return args
        args.operands = parse_options((*self.options, *others), words, args, f"ipsec {self.name}")
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
            hidden: bool = False, fallback: bool = False,
            rescue: bool = False) -> Callable[[Callable[[Host, Args], int]], Callable[[Host, Args], int]]:
    """Register a function as the command `names` (the name, then aliases).

    Every built-in name may also be written with two leading dashes, as in 5.x (`ipsec --checknss`).
    """

    def register(function: Callable[[Host, Args], int]) -> Callable[[Host, Args], int]:
        entry = Command(function, names, operands, summary, options, details, hidden, fallback, rescue)
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
        elif option.metavar.startswith("["):  # a value only when it is given with =
            value = value if given else ""
        elif not given:
            if not rest:
                raise Failure(f"{whose}: {name} needs a value: {option.metavar}", USAGE)
            value = rest.pop()
        if option.many:
            args.options.setdefault(option.key, []).append(value)
        else:
            args.options[option.key] = [value]
    return operands


def shell_words(words: Sequence[str]) -> str:
    """The words as a shell would have to be given them."""
    safe = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")
    return " ".join(word if word and safe.issuperset(word) else "'" + printable(word).replace("'", "'\"'\"'") + "'"
                    for word in words)


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for a misspelt word, or nothing."""
    try:
        import difflib
    except ImportError:  # python3-minimal
        return ""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


# --- options that several commands share ------------------------------------------------------------------------------

CTLSOCKET_OPTION = Opt("--ctlsocket", "FILE", "pluto's control socket")
NATIVE_OPTION = Opt("--native", None, "talk to pluto directly, without libreswan's whack (same as IPSEC_WHACK=native)")
TIMEOUT_OPTION = Opt("--timeout", "SECONDS", "seconds to wait for pluto's answer (default 60)")
DRY_RUN_OPTION = Opt("--dry-run -n --showonly", None, "show what would be run")
ASYNC_OPTION = Opt("--asynchronous --async --bg", "[yes|no]", "do not wait for the outcome")
UTC_OPTION = Opt("--utc", None, "times in UTC")
JSON_OPTION = Opt("--json", None, "as JSON, see ipsec_status(8)")
VERBOSE_OPTION = Opt("--verbose", None, "tell more while loading")
REMOTE_HOST_OPTION = Opt("--remote-host", "ADDRESS", "the peer's address")
PLUTO_OPTIONS = (CTLSOCKET_OPTION, Opt("--config", "FILE", "the configuration, - for standard input"), VERBOSE_OPTION,
                 NATIVE_OPTION, DRY_RUN_OPTION)
CONNECTION_OPTIONS = (*PLUTO_OPTIONS, ASYNC_OPTION, REMOTE_HOST_OPTION)
UP_OPTIONS = (Opt("--timeout", "SECONDS", "how long a connection may take to come up; one that does not is taken down"),
              Opt("--keep-trying", None, "with --timeout: pluto goes on trying"),
              Opt("--once", None, "take the connection down if it does not come up, so that pluto does not try again"))

GLOBAL_OPTIONS = (
    Opt("--config", "FILE", "the configuration instead of /etc/ipsec.conf"),
    Opt("--rundir", "DIR", "pluto's run directory instead of /run/pluto"),
    Opt("--ctlsocket", "FILE", "pluto's control socket instead of RUNDIR/pluto.ctl"),
    Opt("--nssdir", "DIR", "the directory of the NSS database (default: that of the installed release)"),
    Opt("--root", "DIR", "report on the system whose file system is mounted at DIR"),
)
# Those of 5.x that may stand before the command as well as after it
SHARED_OPTIONS = (ASYNC_OPTION, REMOTE_HOST_OPTION, UTC_OPTION, VERBOSE_OPTION, DRY_RUN_OPTION, NATIVE_OPTION)


# --- finding and describing commands ----------------------------------------------------------------------------------


# Set by the archive's __main__.py (see build.py): its member with the blocks, and the bytecode of the front, with which
# the blocks are compressed.  `loaded_blocks` has a bit for each block that is loaded.
BLOCKS = ""
FRONT = b""
loaded_blocks = 0


def load_rest(name: str = "") -> None:
    """Register the command of that name; without a name, or in a plain file, all commands are registered afterwards.

    The archive starts with sections 1, 2, 10 and 12.  This runs the blocks, (sub)sections of the file, that the command
    needs; a name after a colon is that of a global (see load_part).  A block is compressed bytecode or, for an
    interpreter whose bytecode the archive lacks, a place in ipsec.py: the number of lines before it, and where it
    starts and ends in bytes.
    """
    global loaded_blocks
    if not BLOCKS:
        return
    import gc
    from marshal import loads
    from zlib import decompressobj
    get_data: Callable[[str], bytes] = globals()["__loader__"].get_data
    gc.disable()  # nothing that is loaded here becomes garbage
    index, *blocks = loads(get_data(BLOCKS))
    needed = index.get(name, 0) if name else -1
    source = b""
    for number, block in enumerate(blocks):
        if not needed & ~loaded_blocks & 1 << number:
            continue
        if isinstance(block, bytes):
            code = loads(decompressobj(zdict=FRONT).decompress(block))
        else:
            source = source or get_data(__file__)
            line, start, end = block
            code = compile(b"\n" * line + source[start:end], "ipsec.py", "exec", optimize=2)
        exec(code, globals())
        loaded_blocks |= 1 << number
    gc.freeze()
    gc.enable()


def load_part(name: str) -> Any:
    """Return a global of this file by its name, which the call must have as a string; load its blocks if need be.

    For what a command rarely needs: a block that uses a name directly is always loaded together with that of the name.
    """
    load_rest(f":{name}")
    return globals()[name]


def read_packed(name: str) -> bytes:
    """Return a file of the archive, or of the checkout when the program runs as a plain file.  Raises OSError."""
    loader: Any = globals()["__loader__"]
    data: bytes = loader.get_data(os.path.join(os.path.dirname(os.path.abspath(__file__)), name))
    return data


def find_command(name: str) -> Command | None:
    """The built-in command of that name, which may be written with two leading dashes as in 5.x."""
    bare = name[2:] if name.startswith("--") else name
    if name not in COMMANDS and bare not in COMMANDS:
        load_rest(bare)
    return COMMANDS.get(name) or COMMANDS.get(bare)


def program_of(host: Host, name: str) -> str | None:
    """The path of the exec directory's program `name`, or None.  A name is a name, never a path (ipsec(8))."""
    if not name or "/" in name or name in (".", ".."):
        return None
    path = os.path.join(host.execdir, name)
    return path if host.executable(path) else None


# Self-tests that Debian's 4.10 installs beside the commands; some run when asked for --help
SELF_TESTS = ("algparse", "asn1check", "cavp", "dncheck", "enumcheck", "getpeercon_server", "hunkcheck", "ipcheck",
              "jambufcheck", "keyidcheck", "timecheck", "vendoridcheck")


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


def option_help(option: Opt) -> str:
    """The lines that explain an option in 80 columns."""
    import textwrap
    value = option.metavar or ""
    value = value.replace("[", "[=") if value.startswith("[") else f" {value}" if value else ""
    head = "  " + ", ".join(option.names.split()) + value
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


# Commands that some releases of libreswan, 3.29 to 5.4, have as programs: why one is not here, and the way out
NOT_HERE = {
    **dict.fromkeys(("eroute", "klipsdebug", "pf_key", "spi", "spigrp", "tncfg"),
                    ("is a command of KLIPS, the kernel stack that libreswan dropped in 4.0",
                     "ipsec look shows what Linux's own stack has")),
    "portexcludes": ("is a contribution that libreswan's packages leave out", "write conns with type=passthrough"),
    "pluto": ("is a program of libreswan that is not installed here", "apt-get install libreswan"),
    "unbound": ("is a script of libreswan that is not installed here",
                "unbound-control set_option ipsecmod-enabled: yes"),
    "letsencrypt": ("is a script of libreswan 4.0 and later that is not installed here", "ipsec import FILE"),
    "showroute": ("is a program of libreswan 4.10 and later that is not installed here", "ipsec show ADDRESS"),
    "eddsasigkey": ("is a program of libreswan 5.4 that is not installed here", "ipsec newhostkey makes other keys"),
    "rereadcrls": ("is obsolete: revocation lists are fetched, into the NSS database", "ipsec fetchcrls"),
    "rereadcacerts": ("is obsolete: CAs are in the NSS database", "ipsec import FILE, then ipsec rereadcerts"),
    **dict.fromkeys(SELF_TESTS, ("is a self-test of libreswan that is not installed here", "")),
}
SEE_ALSO = "See <https://libreswan.org/> for more general info."


# Words that people type for a command, from other programs and from common sense; the command is named, never run
SYNONYMS = {
    **dict.fromkeys("report dump debug log logs info collect sosreport".split(), "barf"),
    **dict.fromkeys("check doctor test troubleshoot".split(), "verify"),
    **dict.fromkeys("diagnose explain reason".split(), "why"),
    **dict.fromkeys("statusall list list-sas list-conns sas connections tunnel".split(), "tunnels"),
    **dict.fromkeys("update reread refresh load-all load-conns load-creds".split(), "reload"),
    **dict.fromkeys("connect establish".split(), "up"), **dict.fromkeys("disconnect hangup".split(), "down"),
    **dict.fromkeys("mask censor sanitize anonymize".split(), "redact"),
}
# Commands that change something: none of them is offered for a word that is not close to it alone
CHANGING = frozenset("up down start stop restart add delete replace route unroute ondemand import initnss reload "
                     "redirect newhostkey initiate terminate unlisten purgeocsp setup checknss stopnflog".split())


def unknown_command(host: Host, name: str) -> Failure:
    """Return the error for a command that is neither built in nor in the exec directory.

    A synonym leads to its command.  A misspelt word leads to a command that changes something only if the two differ
    in one letter or in the order of two, so that a word for reading never leads there.
    """
    if "/" in name or name in (".", "..", ""):
        return Failure(f"ipsec: {quote(name)} is not a command name", ERROR, "a path is never run; see ipsec --help")
    known = command_names(host)
    if name in NOT_HERE:
        return Failure(f"ipsec {name}: {NOT_HERE[name][0]}", ERROR, NOT_HERE[name][1])
    if name in SYNONYMS:
        return Failure(f"ipsec: unknown IPsec command {quote(name)}", ERROR, f"use: ipsec {SYNONYMS[name]}")
    offered = [word for word in known if word not in CHANGING or is_slip(name, word)]
    return Failure(f"ipsec: unknown IPsec command {quote(name)}", ERROR,
                   suggest(name, offered) or '"ipsec --help" for list')


def is_slip(word: str, meant: str) -> bool:
    """Return whether two words differ in one letter (another, one more, one less) or in the order of two letters."""
    if abs(len(word) - len(meant)) > 1:
        return False
    same = len(os.path.commonprefix((word, meant)))
    rest, other = word[same:], meant[same:]
    return (rest[1:] == other[1:] or rest == other[1:] or rest[1:] == other
            or (rest[:2] == other[:2][::-1] and rest[2:] == other[2:]))


def version_line(host: Host) -> str:
    """The line of `ipsec --version`.  Open vSwitch and NetworkManager parse its start (ipsec(8), --version)."""
    version = host.libreswan_version() or "(none)"
    kernel = f"{host.kernel_release()} netkey" if host.has_xfrm() else "(no kernel code presently loaded)"
    return f"Libreswan {version} (U{version}/K{kernel})"


# =====================================================================================================================
# 11. Commands
#
# One function (or small class) each, registered with all that the user sees of it.  Each part is for its own commands;
# `reports` and the packet filter's rules are used by the parts after them.  Used by dispatch(), through the registry.
# =====================================================================================================================

# --- free text: what a report shows of it ----------------------------------------------------------------------------
#
# Administrators write secrets into every kind of text.  A report shows what is known to be harmless, and of the rest
# only its shape: the name of a setting, the number of arguments or of lines.  Redaction comes on top.  Used by barf,
# look and `ipsec redact`.  Facts: ipsec.conf(5), systemd.exec(5), rsyslog.conf(5), syslog-ng.conf(5), resolv.conf(5),
# os-release(5), pluto(8).

LEFT_OUT = "[redacted]"
# Programs whose arguments are shown, as far as they are known
IPSEC_PROGRAMS = frozenset((
    "pluto whack addconn ipsec ipsec.pyz ipsec.py _plutorun _stackmanager _updown _updown.xfrm _updown.netkey "
    "readwriteconf charon charon-systemd starter xl2tpd").split())
# Their options with a harmless value; other options are shown without
SHOWN_VALUES = frozenset((
    "config conf nofork logfile nssdir rundir ctlsocket ctlbase ipsecdir secretsfile dumpdir coredir nhelpers "
    "interface listen uniqueids keep-alive keepalive perpeerlogdir name host to client ikeport virtual- "
    "private virtual_private root section init timeout output since up down add delete replace route unroute "
    "ondemand start").split())
PLUTO_OPTION_NAMES = frozenset((
    "nofork fork stderrlog logappend log-no-append log-no-time log-no-ip log-no-audit use-xfrm use-netkey "
    "use-nostack strictcrlpolicy crl-strict crlcheckinterval ocsp-enable ocsp-strict ocsp-timeout listen-tcp "
    "no-listen-udp natikeport seccomp-enabled seccomp-tolerant leak-detective efence-protect curl-timeout "
    "ikev1-policy ddos-mode drop-oppo-null expire-shunt-interval expire-bare-shunts force-busy perpeerlog "
    "vendorid version help optionsfrom global-redirect selftest debug-all debug-none verbose quiet dry-run "
    "foreground native json checkconfig checknss checknflog stopnflog initnss autoall liststack configsetup").split())
COMMAND_WORDS = IPSEC_PROGRAMS.union(
    "setup start stop restart status auto barf verify look show up down add replace delete route unroute ondemand "
    "listen reload tunnels why import checknss initnss checknflog stopnflog yes no".split())
# The programs whose lines are shown of a log that others write to as well
LOGGED_PROGRAMS = frozenset((
    "pluto ipsec ipsec__plutorun _plutorun ipsec_setup ipsec_starter ipsec-starter whack addconn _updown "
    "charon charon-systemd charon-nm starter swanctl xl2tpd libreswan").split())
UNIT_DIRECTIVES = frozenset((
    "Documentation After Before Wants Requires Requisite BindsTo PartOf Conflicts OnFailure "
    "ConditionPathExists ConditionKernelCommandLine DefaultDependencies Type PIDFile Restart RestartSec "
    "TimeoutSec TimeoutStartSec TimeoutStopSec WatchdogSec NotifyAccess KillMode KillSignal RemainAfterExit "
    "SuccessExitStatus RestartPreventExitStatus User Group Nice LimitNOFILE LimitCORE LimitNPROC LimitMEMLOCK "
    "LimitAS TasksMax MemoryMax CapabilityBoundingSet AmbientCapabilities NoNewPrivileges ProtectSystem "
    "ProtectHome PrivateTmp PrivateNetwork NetworkNamespacePath ReadWritePaths ReadOnlyPaths "
    "InaccessiblePaths RuntimeDirectory StateDirectory SystemCallFilter RestrictAddressFamilies "
    "ProtectKernelModules ProtectKernelTunables StandardOutput StandardError WantedBy RequiredBy Alias Also "
    "EnvironmentFile StartLimitBurst StartLimitInterval StartLimitIntervalSec Slice OOMScoreAdjust").split())
HARMLESS_VARIABLES = frozenset((
    "IPSEC_CONF IPSEC_CONFS IPSEC_CONFDDIR IPSEC_EXECDIR IPSEC_SBINDIR IPSEC_RUNDIR IPSEC_NSSDIR "
    "IPSEC_VERSION CTLSOCKET ENABLED START RESTART DEBUG").split())
OPTION_VARIABLES = frozenset("PLUTO_OPTIONS IPSEC_OPTIONS OPTIONS PLUTO_ARGS DAEMON_ARGS COMMAND_ARGS".split())
RELEASE_KEYS = frozenset((
    "NAME VERSION ID ID_LIKE VERSION_ID VERSION_CODENAME PRETTY_NAME BUILD_ID VARIANT VARIANT_ID CPE_NAME "
    "PLATFORM_ID DISTRIB_ID DISTRIB_RELEASE DISTRIB_CODENAME DISTRIB_DESCRIPTION UBUNTU_CODENAME "
    "DEBIAN_VERSION_FULL IMAGE_ID IMAGE_VERSION").split())
RELEASE_FILES = frozenset((
    "alpine-release arch-release centos-release debian_version fedora-release gentoo-release mageia-release "
    "openEuler-release oracle-release redhat-release rocky-release almalinux-release slackware-version SuSE- "
    "release system-release").split())
POLICY_MODES = ("enforcing", "permissive", "disabled", "targeted", "mls", "minimum", "DEFAULT", "FIPS", "FUTURE",
                "LEGACY")  # of SELinux and the crypto-policies, DEFAULT:SHA1 and the like included


def count_text(number: int, what: str) -> str:
    """Return `1 line` or `7 lines` for a count of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shown_name(name: str, characters: str) -> str:
    """Return a name of a setting if it has only these characters and no unusual length: others may be a secret."""
    return name if 0 < len(name) <= 40 and set(name) <= set(characters) else LEFT_OUT


UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"


def shown_arguments(words: Sequence[str]) -> str:
    """Return a command line: the arguments of programs of IPsec as far as they are known, of others their number."""
    rest = list(words)
    shown = []
    while rest and os.path.basename(rest[0]) not in IPSEC_PROGRAMS and is_interpreter(rest[0]):
        shown.append(rest.pop(0))
        while rest and rest[0].startswith("-") and set(rest[0]) <= set("-IESBOubsx"):
            shown.append(rest.pop(0))
    if not rest or os.path.basename(rest[0]) not in IPSEC_PROGRAMS:
        return f"{words[0]} ({count_text(len(words) - 1, 'argument')})" if words else ""
    shown.append(rest.pop(0))
    options = PLUTO_OPTION_NAMES.union(row[0].partition("=")[0] for row in table_rows(WHACK_OPTIONS))
    value_is_shown = False
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            key = name.lstrip("-")
            value_is_shown = key in SHOWN_VALUES
            known = value_is_shown or key in options
            shown.append((name if known else "-[redacted]")
                         + (f"={value}" if equals and known and value_is_shown else f"={LEFT_OUT}" if equals else ""))
        elif value_is_shown or word in COMMAND_WORDS:
            shown.append(word)
            value_is_shown = False
        else:
            shown.append(LEFT_OUT)
    return " ".join(shown)


def is_interpreter(path: str) -> bool:
    """Return whether the program runs a script that its first argument names."""
    return os.path.basename(path).rstrip("0123456789.") in ("python", "sh", "bash", "dash", "ash", "busybox", "env")


def shown_file(lines: Iterable[str], show: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a file as `show` gives them; comments become `#`, so that line numbers stay right."""
    for line in lines:
        bare = line.strip()
        if bare[:1] in ("#", ";"):
            yield line[:len(line) - len(line.lstrip())] + "# [comment]\n"
        else:
            yield (show(line) if bare else "") + "\n"


def shown_conf_line(line: str) -> str:
    """Return a line of ipsec.conf: headings, includes, and settings whose keyword is known."""
    indent = line[:len(line) - len(line.lstrip())]
    key, equals, value = line.strip().partition("=")
    words = line.split()
    if not equals or words[0] in ("conn", "config", "ca", "include", "version"):
        known = words[0] in ("conn", "config", "ca", "include", "version") and len(words) > 1
        return f"{indent}{' '.join(words[:2])}" if known else f"{indent}{LEFT_OUT}"
    keyword = canonical(key.strip())
    if keyword not in keywords(False) and keyword not in keywords(True) and keyword not in ("also", "alsoflip"):
        return f"{indent}{shown_name(key.strip(), LOWER + '-_')}={LEFT_OUT}"
    text = split_value(value.strip())[0] if value.strip() else ""
    quotes = value.strip()[:1] if value.strip()[:1] in ('"', "{") else ""
    if keyword.endswith(("updown", "updown-config")):
        text = shown_arguments(text.split()) if text else ""
    elif keyword == "modecfgbanner":
        text = LEFT_OUT
    return f"{indent}{key.strip()}={quotes}{text}{'}' if quotes == '{' else quotes}"


def shown_setting(line: str) -> str:
    """Return an assignment for a shell (/etc/default, /etc/sysconfig): the name, and a value that is known harmless."""
    name, equals, value = line.strip().partition("=")
    name = name.removeprefix("export ").strip()
    if not equals or name.startswith("#"):
        return LEFT_OUT
    value = value.strip().strip("\"'")
    if name in OPTION_VARIABLES:
        return f'{name}="{shown_arguments(["pluto", *value.split()]).removeprefix("pluto").strip()}"'
    return f"{name}={value}" if name in HARMLESS_VARIABLES else f"{shown_name(name, UPPER + '_')}={LEFT_OUT}"


def shown_unit_line(line: str) -> str:
    """Return a line of a systemd unit: headings, known directives, names of variables, known programs."""
    bare = line.strip()
    key, equals, value = bare.partition("=")
    if bare.startswith("[") and bare.endswith("]"):
        return bare if bare[1:-1] in ("Unit", "Service", "Install") else LEFT_OUT
    if not equals:
        return LEFT_OUT  # the second line of a value
    if key.startswith("Exec"):
        value = value.lstrip("@-:+!")
        return f"{key}={shown_arguments(value.split())}"
    if key in ("Environment", "PassEnvironment", "UnsetEnvironment"):
        names = [shown_name(word.strip("\"'").partition("=")[0], UPPER + "_") for word in value.split() if "=" in word]
        return f"{key}=" + " ".join(f"{name}={LEFT_OUT}" for name in names)
    if key == "Description":
        return f"{key}={shown_remark(value)}"
    return bare if key in UNIT_DIRECTIVES else f"{shown_name(key, UPPER + LOWER + '-')}={LEFT_OUT}"


def shown_script_line(line: str) -> str:
    """Return a line of a shell script: the interpreter, and what it runs of IPsec's programs."""
    words = line.replace(";", " ").replace("&&", " ").split()
    if line.startswith("#!"):
        return line
    place = next((place for place, word in enumerate(words) if os.path.basename(word) in IPSEC_PROGRAMS), None)
    return f"… {shown_arguments(words[place:])}" if place is not None else LEFT_OUT


def shown_syslog_line(line: str) -> str:
    """Return a line of rsyslog's or syslog-ng's configuration: selectors with files, modules, includes."""
    words = line.split()
    first = words[0]
    _, dot, _ = first.partition(".")
    is_selector = bool(dot) and len(words) == 2 and set(first) <= SELECTOR_CHARACTERS
    if is_selector and words[1].lstrip("-").startswith(("/", "@", "~")) and ";" not in words[1]:
        return line.rstrip()
    if first in ("$IncludeConfig", "$ModLoad", "$FileOwner", "$FileCreateMode", "@include", "@version:"):
        return " ".join(words[:2])
    return f"{shown_name(first.partition('(')[0].partition('{')[0], LOWER + '_')} {LEFT_OUT}"


SELECTOR_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789*.,;=!")


def shown_resolver_line(line: str) -> str:
    """Return a line of resolv.conf: name servers, domains, options."""
    words = line.split()
    if words[0] == "options":
        return " ".join(word if word.rpartition(":")[0] in ("ndots", "timeout", "attempts") and word.rpartition(":")[
            2].isdigit() or word in RESOLVER_OPTIONS else LEFT_OUT for word in words)
    known = words[0] in ("nameserver", "search", "domain", "sortlist")
    return line.rstrip() if known else LEFT_OUT


# Of resolv.conf(5), without values
RESOLVER_OPTIONS = frozenset("options debug rotate no-check-names inet6 edns0 single-request single-request-reopen "
                             "no-tld-query use-vc no-reload trust-ad no-aaaa".split())


def shown_policy_line(line: str) -> str:
    """Return a line of a policy group: networks, protocols and ports (ipsec_auto(8))."""
    words = line.partition("#")[0].split()
    network = words[0] if words else ""
    harmless = set(network) <= set("0123456789abcdefABCDEF.:/") and ("." in network or ":" in network)
    return " ".join(word if place == 0 or word.isdecimal() or word in ("tcp", "udp", "icmp", "sctp") else LEFT_OUT
                    for place, word in enumerate(words)) if harmless else LEFT_OUT


def shown_release_line(line: str) -> str:
    """Return a line of os-release(5) with a known name."""
    name, equals, _ = line.partition("=")
    if not equals:
        return LEFT_OUT
    return line.rstrip() if name in RELEASE_KEYS else f"{shown_name(name, UPPER + '_')}={LEFT_OUT}"


def shown_mode_line(line: str) -> str:
    """Return a line of SELinux's or the crypto-policies' configuration, whose values are modes."""
    name, equals, value = line.strip().rpartition("=")
    known = name in ("SELINUX", "SELINUXTYPE") if equals else True
    modes = value.split(":")  # DEFAULT:SHA1
    return line.rstrip() if known and modes[0] in POLICY_MODES and len(modes) < 3 and len(value) < 20 else LEFT_OUT


# A run of two or more pairs of hexadecimal digits, with what follows: a dump shows the same bytes as text there
DUMP_RUN = r"(?<![\w.:/-])[0-9A-Fa-f]{2}(?:  ?[0-9A-Fa-f]{2}(?![\w:])){%d,}.*"
LONG_HEX = r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{17,}(?![0-9A-Za-z])"  # longer than an IKE SPI


# What the kernel logs about pluto and IPsec: faults, denials by security modules, XFRM, dropped packets of IKE and ESP
KERNEL_WORDS = (r"pluto\[\d+\]: segfault|traps: pluto|Killed process \d+ \(pluto\)|(?:apparmor=|avc: +denied).*"
                r"(?:pluto|ipsec)|\bxfrm|\bXFRM|IN=.* OUT=.*(?:PROTO=(?:ESP|AH)\b|DPT=4?500\b)")


def without_log_prefix(line: str) -> str:
    """Return a line of the kernel's log without the prefix that a firewall rule gives a packet, unless the prefix is
    known to be harmless."""
    head, packet, rest = line.partition("IN=")
    if not packet or "OUT=" not in rest:
        return line
    place = max(head.rfind("] "), head.rfind("kernel: ") + len("kernel: ") - 2) + 2
    prefix = head[place:].strip()
    return f"{head[:place]}{shown_remark(prefix)} {packet}{rest}" if prefix else line


class LogFilter:
    """Shows the lines of a log that pluto or another IPsec program wrote, without dumped bytes.

    `left_out` counts the lines of programs that are not IPsec's, `rows` the masked dumps.
    """

    def __init__(self) -> None:
        import re
        self.left_out = self.rows = 0
        self.debug_run = re.compile(DUMP_RUN % 1)
        self.any_run = re.compile(DUMP_RUN % 3)
        self.whole_row = re.compile(r"\s*[0-9A-Fa-f]{2}(?:  ?[0-9A-Fa-f]{2})*(?:  .*)?")
        self.long_hex = re.compile(LONG_HEX)
        self.kernel_words = re.compile(KERNEL_WORDS)
        self.tag = re.compile(r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?|\d{4}-\d\d-\d\d[T ][\d:.,]+\S*) "
                              r"\S+ ([^\s:\[]+)(?:\[\d+\])?:? ")

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines that may be shown."""
        for line in lines:
            if self.is_shown(line):
                yield self.without_bytes(line)
            else:
                self.left_out += 1

    def is_shown(self, line: str) -> bool:
        """Return whether a line is of an IPsec program, or of the kernel or systemd about it.

        A line without a program's name is pluto's own: logfile= has such lines.
        """
        tag = self.tag.match(line)
        if not tag:
            return True
        program = os.path.basename(tag[1])
        if program == "kernel":
            return bool(self.kernel_words.search(line, tag.end()))
        if program == "systemd":
            lower = line[tag.end():].lower()
            return any(word in lower for word in ("ipsec", "pluto", "libreswan"))
        return program in LOGGED_PROGRAMS

    def without_bytes(self, line: str) -> str:
        """Return the line with each run of dumped bytes masked, to its end; the length of the run stays."""
        line = without_log_prefix(line)
        head, bar, text = line.partition("| ")
        if bar and (not head or head.endswith(": ")):
            if self.whole_row.fullmatch(text):
                self.rows += 1
                return f"{head}{bar}{dumped(text)}"
            found = self.debug_run.search(text)
            if found:
                self.rows += 1
                return f"{head}{bar}{text[:found.start()]}{dumped(found[0])}"
            return head + bar + self.long_hex.sub(self._mask_hex, text)
        found = self.any_run.search(line)
        if found:
            self.rows += 1
            return line[:found.start()] + dumped(found[0])
        return line

    def _mask_hex(self, found: re.Match[str]) -> str:
        """Mask a long number in hexadecimal; a CKAID names a public key and stays."""
        if "ckaid" in found.string[max(0, found.start() - 12):found.start()].lower():
            return found[0]
        self.rows += 1
        return f"[redacted {len(found[0].removeprefix('0x')) // 2} bytes]"


def dumped(text: str) -> str:
    """Return what stands for a run of dumped bytes."""
    number = 0
    for word in text.split():
        if len(word) != 2 or not HEX_DIGITS.issuperset(word):
            break
        number += 1
    return f"[redacted {count_text(number, 'byte')}]"


# --- reports ---------------------------------------------------------------------------------------------------------
#
# How a report is made: sections, the processes and threads beside the main one, sinks, and the bodies that barf and
# look share.  What can't keep us waiting is read when its turn comes; what runs programs or asks others runs side by
# side with it, in threads, what may be very long in processes.  All text is streamed: section -> redaction -> pipe ->
# sink, and a pipe that stays empty is given up.

# How a section ended
OUTCOMES = ("ok", "absent", "denied", "failed", "timeout")
INCOMPLETE = OUTCOMES[2:]
FAILED = OUTCOMES[3:]
PIPE_SIZE = 1 << 20  # F_SETPIPE_SZ allows an unprivileged process that much (pipe(7))
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def stamp(line: str) -> float | None:
    """The time at the start of a log line, in seconds since the epoch: `Nov 23 06:12:08` (RFC 3164, and pluto's own
    logfile) or `2026-11-23T06:12:08`; None when there is none."""
    now = time.localtime()
    try:
        if line[:3] in MONTHS:
            clock = [int(part) for part in line[7:15].split(":")]
            month, day = MONTHS.index(line[:3]) + 1, int(line[4:6])
            # such a stamp has no year: one that would be in the future is of last year
            year = now.tm_year - ((month, day) > (now.tm_mon, now.tm_mday))
        else:
            year, month, day = (int(part) for part in line[:10].split("-"))
            clock = [int(part) for part in line[11:19].split(":")]
        return time.mktime((year, month, day, *clock[:3], 0, 0, -1))  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return None


SINCE_UNITS = {name: seconds for names, seconds in (("s sec second", 1), ("m min minute", 60), ("h hr hour", 3600), (
    "d day", 86400), ("w week", 604800), ("month", 30 * 86400), ("y year", 365 * 86400)) for name in names.split()}


def parse_since(text: str) -> float:
    """The moment that --since names, in seconds since the epoch.  Raises Failure(USAGE).

    `2026-11-23`, `2026-11-23 06:12`, `2026-11-23 06:12:08`, `90 minutes ago`, `24 hours ago`, `2d`.
    """
    words = text.lower().removesuffix("ago").strip()
    number = words.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = words[len(number):].strip()
    seconds = SINCE_UNITS.get(unit.removesuffix("s") or unit)
    if number.isdigit() and seconds:
        return time.time() - int(number) * seconds
    when = stamp(f"{text} 00:00:00" if len(text) == 10 else f"{text}:00" if len(text) == 16 else text)
    # mktime(3) takes the 31st of February for the 3rd of March
    if when is None or time.strftime("%Y-%m-%d", time.localtime(when)) != text[:10] or text[11:13] > "23":
        raise Failure(f"--since {quote(text)}: not a time", USAGE, "such as 2026-11-23 06:12 or 24 hours ago")
    return when


class ReportSection(Record):
    """One part of the report.

    `command` shows people how to see the same by hand; `body` gives the text piece by piece; `live`: only the running
    system can tell; `slow`: may block or take long, so it runs in a thread; `apart`: may be so much that it runs in a
    process of its own, on another processor; `bulk`: text of the kernel's own, in which secrets are looked for by value
    but not by pattern; `blocks`: calls the resolver, which nothing interrupts, so that it runs beside
    the report or not at all; `data`: what JSON shows in the place of the text, item by item; `title`: look's heading.
    """

    name: str
    command: str
    body: Callable[[Report], Iterator[str]]
    live: bool = False
    slow: bool = False
    apart: bool = False
    bulk: bool = False
    blocks: bool = False
    title: str = ""
    data: Callable[[Report], Iterable[object]] | None = None


def outcome_of(error: Exception) -> tuple[str, str]:
    """Return how a section ended by this error, one of OUTCOMES, and the line that says so in its text."""
    text = error_text(error)
    if isinstance(error, (PermissionError, Denied)) or (isinstance(error, NoPluto) and error.hint == NOT_ALLOWED):
        return "denied", f"denied: {text}"
    if isinstance(error, (Missing, NoPluto, FileNotFoundError, NotADirectoryError)):
        return "absent", text
    if isinstance(error, OSError) and error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return "absent", text  # the kernel lacks this kind of socket: NETLINK_XFRM without its modules
    if isinstance(error, (TimedOut, TimeoutError)):
        return "timeout", text
    if isinstance(error, MemoryError):
        return "failed", "not enough memory"
    if isinstance(error, (Failure, OSError)):
        return "failed", text
    # the text of an unforeseen exception may hold what must not be shown
    return "failed", f"internal error: {type(error).__name__}; {REPORT_IT}"


class Report:
    """What the sections need to know: the host, the redaction, and the words of the command line."""

    def __init__(self, host: Host, args: Args) -> None:
        self.host = host
        self.timeout = parse_seconds(args.value("--timeout", "10"))
        host.patience = min(host.patience, self.timeout / 2)  # so that a section tells which path does not answer
        self.config = Config(host)
        self.redactor = redactor_of(host, args.flag("--show-secrets"), self.config)
        self.program_timeout: float | None = None  # of those that no Worker gives up
        self.log_filter = LogFilter()
        self.ended: dict[str, list[str]] = {}  # the names of sections by how they ended, so far
        self._verdicts: list[Finding] | None = None
        self._verifying = _thread.allocate_lock()
        self.short = args.flag("--short")
        self.since = parse_since(args.value("--since")) if args.flag("--since") else 0.0

    def verdicts(self) -> list[Finding]:
        """Return the findings of verify; they are made once, for the summary and for the section."""
        with self._verifying:
            if self._verdicts is None:
                self._verdicts = list(load_part("findings")(self.host, self.timeout / 2))
            return self._verdicts

    def ending(self) -> str:
        """Return what is known only at the end: sections that could not be made, and what is not shown."""
        lines = [f"{outcome}: {', '.join(self.ended[outcome])}" for outcome in INCOMPLETE if outcome in self.ended]
        lines.append(f"{count_text(self.redactor.masked + self.log_filter.rows, 'value')} masked, "
                     f"{count_text(self.log_filter.left_out, 'line')} of other programs left out")
        return "".join(f"{line}\n" for line in lines)

    def log_lines(self, lines: Iterable[str]) -> Iterable[str]:
        """Return the lines of a log that may be shown: of IPsec programs, without dumped bytes."""
        return lines if self.redactor.show_secrets else self.log_filter.lines(lines)

    def host_name(self) -> str:
        """The name of the reported host."""
        if self.host.live:
            return os.uname().nodename
        try:
            return self.host.read("/etc/hostname").rstrip("\n")
        except FileNotFoundError:
            return "(no hostname)"
        except OSError as error:
            return f"(no hostname: {error_text(error)})"

    def produce(self, section: ReportSection, write: Callable[[str], None],
                item: Callable[[object, Redactor], None] | None = None) -> str:
        """Write the text of a section, made safe, or hand its data to `item`; how it ended.  What goes wrong in it
        becomes a line of its text."""
        if section.live and self.host.root:
            write("left out: only the running system can tell\n")
            return "absent"
        piece = "\n"
        problems: list[Exception] = []

        def body() -> Iterator[str]:
            # an error is told after what came before it
            try:
                if item and section.data:
                    for each in section.data(self):
                        item(each, self.redactor)
                else:
                    yield from section.body(self)
            except Exception as error:
                problems.append(error)

        clean = self.redactor.clean
        try:
            for piece in ((clean(text, bulk=True) for text in body()) if section.bulk
                          else self.redactor.stream(map(encode, body()))):
                write(piece)
            if problems:
                raise problems[0]
            return "ok"
        except Exception as error:  # a report goes on
            outcome, text = outcome_of(error)
        write(clean(f"{'' if piece.endswith(chr(10)) else chr(10)}{text}\n"))
        return outcome


def widen(pipe: int) -> None:
    """Have a pipe hold PIPE_SIZE bytes, where users may have so much (pipe(7)); it works without, slower."""
    import fcntl
    try:
        fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_SIZE)
    except PermissionError:
        return


class Worker:
    """A section that runs in a thread or process of its own; its text comes through a pipe."""

    def __init__(self, report: Report, section: ReportSection) -> None:
        """Start the section.  Raises OSError, RuntimeError or MemoryError if no thread or process can be made."""
        self.started = time.monotonic()
        self.outcome = "failed"
        self.pid = 0
        self.reader, self.writer = os.pipe()
        try:
            widen(self.writer)
            if section.apart:
                self._fork(report, section)
            else:
                _thread.start_new_thread(self._run, (report, section))
        except (OSError, RuntimeError, MemoryError):
            os.close(self.reader)
            os.close(self.writer)
            raise

    def _fork(self, report: Report, section: ReportSection) -> None:
        """Run the section in a process of its own.  Raises OSError."""
        self.pid = os.fork()
        if self.pid:
            os.close(self.writer)
            return
        try:
            os.close(self.reader)
            self._run(report, section)
        finally:  # whatever happens, nothing of ours may run twice
            os._exit(OUTCOMES.index(self.outcome))

    def _run(self, report: Report, section: ReportSection) -> None:
        def write(text: str) -> None:
            view = memoryview(encode(text))
            while view:
                view = view[os.write(self.writer, view):]

        try:
            self.outcome = report.produce(section, write)
        except BrokenPipeError:
            return  # it was given up, or we are ending
        finally:
            os.close(self.writer)

    def deliver(self, timeout: float, write: Callable[[str], None]) -> str:
        """Write the text of the section as it comes; how it ended.  We wait for it `timeout` seconds in all.

        Time that we spend elsewhere doesn't count: one that has text ready waits for us, not we for it.
        """
        import codecs
        import select
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        patience = timeout if poll.poll(0) else timeout - (time.monotonic() - self.started)
        while True:
            before = time.monotonic()
            if not poll.poll(max(0.0, patience) * 1000):
                write(f"timed out after {timeout:g} s; what had come by then is above\n")
                self.give_up()
                return "timeout"
            data = os.read(self.reader, PIPE_SIZE)
            patience -= time.monotonic() - before
            if not data:
                break
            write(decoder.decode(data))
        os.close(self.reader)
        if self.pid:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return OUTCOMES[code] if 0 <= code < len(OUTCOMES) else "failed"
        return self.outcome

    def give_up(self) -> None:
        """Wait no longer.  A process is killed, a thread ends when it writes, or with us; neither is waited for: in
        uninterruptible sleep (a dead NFS server) it dies later."""
        import signal
        os.close(self.reader)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, os.WNOHANG)


class TextSink:
    """The report as people know it."""

    item: Callable[[object, Redactor], None] | None = None  # takes data, where that is shown in the place of text

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.at_line_start = True

    def open(self, report: Report) -> None:
        """Before the first section: the host and the date, as the original."""
        self.write(f"{report.host_name()}\n{date_line()}\n")

    def begin(self, section: ReportSection) -> None:
        """The heading that people search for, and the command that shows the same by hand."""
        self.write(f"+ _________________________ {section.name}\n")
        if section.command:
            self.write(f"+ {section.command}\n")

    def text(self, piece: str) -> None:
        """A piece of the section."""
        if piece:
            self.write(piece)
            self.at_line_start = piece.endswith("\n")

    def end(self, section: ReportSection, outcome: str, seconds: float) -> None:
        """A section always ends its last line."""
        if not self.at_line_start:
            self.write("\n")
            self.at_line_start = True

    def close(self) -> None:
        """Nothing follows the last section."""


class JsonSink(TextSink):
    """The same content as one JSON document, written as it comes: no section is ever whole in memory."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(write)
        self.dumps = need("json", "--json").dumps
        self.separator = self.between = "\n"
        self.last = ""  # what ends the member that is being written
        self.item = self._item

    def open(self, report: Report) -> None:
        """Write the members with the host and the time."""
        head = {"ipsec": VERSION, "host": report.host_name(), "date": date_line(), "root": report.host.root or None}
        self.write(self.dumps(head)[:-1] + ', "sections": [')

    def begin(self, section: ReportSection) -> None:
        """Open a section's object, up to the start of its text or data."""
        head = self.dumps({"section": section.name, "command": section.command})
        self.last = "]" if section.data else '"'
        self.write(f"{self.separator}{head[:-1]}, " + ('"data": [' if section.data else '"text": "'))
        self.separator, self.between = ",\n", "\n"

    def _item(self, item: object, redactor: Redactor) -> None:
        text = self.dumps(item, default=lambda record: record._asdict())
        self.write(self.between + redactor.clean(text, bulk=True))
        self.between = ",\n"

    def text(self, piece: str) -> None:
        """A piece of the text, escaped; with data, what went wrong."""
        if self.last == "]" and piece:
            self.write('], "text": "')
            self.last = '"'
        self.write(self.dumps(piece)[1:-1])

    def end(self, section: ReportSection, outcome: str, seconds: float) -> None:
        """Close the text; how the section ended and how long it took, in seconds."""
        self.write(f'{self.last}, "status": "{outcome}", "duration": {seconds:.3f}}}')

    def close(self) -> None:
        """Close the document."""
        self.write("\n]}\n")


class OutputFile:
    """The file of --output: mode 0600, compressed if its name ends in .gz.  It appears only when it is complete.

    Each method raises OSError.
    """

    def __init__(self, name: str) -> None:
        zlib = need("zlib", "--output FILE.gz") if name.endswith(".gz") else None
        self.file = Replacement(name, mode=0o600)
        self.squeeze: Any = zlib and zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header and trailer

    def write(self, text: str) -> None:
        """Append text."""
        data = encode(text)
        self.file.write(self.squeeze.compress(data) if self.squeeze else data)

    def commit(self) -> None:
        """Put the whole file in place."""
        if self.squeeze:
            self.file.write(self.squeeze.flush())
        self.file.commit()

    def drop(self) -> None:
        """Give up a file that is not whole; of no effect after commit()."""
        self.file.drop()


def start_workers(report: Report, sections: Sequence[ReportSection], sink: TextSink) -> dict[str, Worker]:
    """Start the slow sections ahead of their turn: processes first, as threads don't survive a fork.

    A section for which no thread or process can be made is not in the result.
    """
    workers: dict[str, Worker] = {}
    for section in sorted(sections, key=lambda part: not part.apart):
        if (section.slow or section.apart) and not (section.live and report.host.root) and not (
                section.data and sink.item):
            try:
                workers[section.name] = Worker(report, section)
            except (OSError, RuntimeError, MemoryError):
                report.program_timeout = report.timeout  # nothing else ends a program of this section
    return workers


def produce_here(report: Report, section: ReportSection, sink: TextSink) -> str:
    """Run a section in this thread, unless it may block for ever; how it ended."""
    if section.blocks and not report.host.root:
        sink.text("left out: it may block for ever, and no thread can be made that could be given up\n")
        return "failed"
    return report.produce(section, sink.text, sink.item)


def run_report(report: Report, sections: Sequence[ReportSection], sink: TextSink) -> dict[str, list[str]]:
    """Write all sections in their order; the names of the sections by how they ended."""
    ended = report.ended
    show = is_terminal(sys.stderr) and not is_terminal(sys.stdout)
    report.host.flush()
    workers = start_workers(report, sections, sink)
    try:
        sink.open(report)
        for number, section in enumerate(sections, 1):
            if show:
                sys.stderr.write(f"\rbarf: {number}/{len(sections)} {section.name:<50.50}")
                sys.stderr.flush()
            begun = time.monotonic()
            sink.begin(section)
            worker = workers.pop(section.name, None)
            try:
                if worker is None:
                    outcome = produce_here(report, section, sink)
                else:
                    begun = worker.started
                    outcome = worker.deliver(report.timeout, sink.text)
            except MemoryError:
                outcome = "failed"
                sink.text("not enough memory\n")
            sink.end(section, outcome, time.monotonic() - begun)
            ended.setdefault(outcome, []).append(section.name)
        sink.close()
    finally:
        for worker in workers.values():  # Ctrl-C, a full disk, a closed pipe
            worker.give_up()
        report.host.end_all()
        if show:
            sys.stderr.write(f"\r{'':<70}\r")
    return ended


def end_on_signals(host: Host) -> None:
    """Make SIGTERM and SIGHUP end this process as Ctrl-C does, so that it leaves no program and no file behind.

    A signal that is ignored (nohup(1)) stays ignored.
    """
    import signal
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name)
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda number, frame: host.interrupt(signal.Signals(number).name))


def completeness(host: Host, name: str, ended: Mapping[str, Sequence[str]], outcomes: Sequence[str]) -> int:
    """ERROR, and a line on standard error, when a section of a report ended in one of these ways; else OK."""
    lacking = [f"{outcome}: {', '.join(ended[outcome])}" for outcome in outcomes if outcome in ended]
    if lacking:
        host.warn(f"{name}: incomplete ({'; '.join(lacking)})")
    return ERROR if lacking else OK


# The capability that each section needs of root, with its number in linux/capability.h; the others need the first
NET_ADMIN, SYSLOG = ("NET_ADMIN", 12), ("SYSLOG", 34)
CAPABILITIES = {"klog": SYSLOG}


def missing_rights(host: Host, name: str, sections: Sequence[str]) -> str:
    """Return one line about the sections that the system refused to a report: how many, and how to get them."""
    count = f"{len(sections)} section{'s' * (len(sections) != 1)}"
    verb = "need" if len(sections) != 1 else "needs"
    if not host.superuser:
        own = sys.argv[0]
        python = [] if "/" in own and os.access(own, os.X_OK) else ["python3"]
        return f"{name}: {count} {verb} root: {shell_words(['sudo', *python, *sys.argv])}"
    effective = next((int(line.split()[1], 16) for line in host.lines("/proc/self/status")
                      if line.startswith("CapEff:")), -1)
    wanted = dict.fromkeys(CAPABILITIES.get(section, NET_ADMIN) for section in sections)
    lacking = [capability for capability, number in wanted if not effective >> number & 1]
    if not lacking:
        return f"{name}: {count} denied: {', '.join(sections)}"
    options = " ".join(f"--cap-add {capability}" for capability in lacking)
    return f"{name}: {count} {verb} more rights than root has here: start the container with {options}"


def text_of_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines as pieces of text."""
    return in_pieces(f"{line}\n" for line in lines)


def date_line() -> str:
    """Now, as date(1) says it in the C locale."""
    return time.strftime("%a %b %e %H:%M:%S %Z %Y")


# What programs print where the system refuses a right, in the C locale: EPERM, EACCES, and journalctl(1)'s words
REFUSALS = ("Operation not permitted", "Permission denied", "insufficient permissions")


def denied_if_refused(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the output of a program.  Raises Denied if it fails and its last words name a refused right."""
    end = b""
    try:
        for data in chunks:
            end = (end + data)[-1000:]
            yield data
    except (Missing, TimedOut):
        raise
    except Failure as failure:
        if any(words in decode(end) for words in REFUSALS):
            raise Denied(failure.message) from None
        raise


def program_output(*argv: str, hint: str = "") -> Callable[[Report], Iterator[str]]:
    """Return a body that yields the output of a program.  The body raises Failure if the program fails, Denied if the
    system refused it a right."""
    return lambda report: map(decode, whole_lines(denied_if_refused(
        report.host.stream(argv, timeout=report.program_timeout, hint=hint))))


def resolved(name: str) -> tuple[str, list[str]]:
    """The name and the addresses that the resolver gives for a name, as hostname(1) asks it.  Raises Missing."""
    import _socket as socket
    try:
        # as bytes: for a str, Python would import its codec of international names
        found = socket.getaddrinfo(encode(name), None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except (OSError, ValueError) as error:  # gaierror, or what glibc met when its resolver libraries are not there
        raise Missing(f"{printable(name)}: {getattr(error, 'strerror', 'not a name')}") from None
    return found[0][3] or name, list(dict.fromkeys(str(entry[4][0]) for entry in found))


def has_database(host: Host) -> None:
    """Raises Missing if there is no NSS database, PermissionError if this process may not read it."""
    try:
        host.check_readable(f"{host.nssdir}/cert9.db")
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{host.nssdir}: no NSS database") from None


def certificate_lines(host: Host) -> Iterator[str]:
    """The certificates and their trust as certutil lists them, read from the database itself.  Raises Failure."""
    for one in NssDatabase(host).certificates():
        trust = ",".join(f"{flags}u" for flags in one.trust.split(",")) if one.has_key else one.trust
        yield f"{one.nickname:<60} {trust:<5}\n"


NFT_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_* of linux/netfilter.h


def nft_ruleset(report: Report) -> Iterator[str]:
    """Yield the ruleset of nftables as nft prints it or, on a host without nft, as the kernel has it.

    Raises Failure; OSError, PermissionError among them, with the kernel's answer.
    """
    if report.host.which("nft"):
        yield from program_output("nft", "list", "ruleset")(report)
        return
    feature = "listing nftables without nft"
    nftables = pyroute2_module("pyroute2.nftables.main", feature)
    errors = pyroute2_module("pyroute2.netlink.exceptions", feature)
    yield "nft: no such program on this host; this is the kernel's own form\n"
    try:
        yield from nft_objects(nftables)
    except errors.NetlinkDumpInterrupted:
        raise Failure("nf_tables: the rules changed while the kernel listed them", hint="try again") from None
    except errors.NetlinkError as error:  # none of pyroute2's exceptions is an OSError
        raise OSError(error.code, os.strerror(error.code), "nf_tables") from None
    except errors.NetlinkDecodeError:
        raise Failure("nf_tables: pyroute2 can't decode the kernel's answer") from None


def nft_objects(nftables: Any) -> Iterator[str]:
    """Yield tables, chains, and rules as the expressions of nf_tables, much as `nft --debug=netlink` shows them.

    Raises OSError and the exceptions of pyroute2.
    """
    with nftables.NFTables(nfgen_family=0) as link:
        for kind, found in (("table", link.get_tables()), ("chain", link.get_chains()), ("rule", link.get_rules())):
            for entry in found:
                words = [f"{kind} {NFT_FAMILIES.get(entry['nfgen_family'], entry['nfgen_family'])}"]
                for name, value in entry["attrs"]:
                    if name == "NFTA_RULE_EXPRESSIONS":
                        words += [f"\n\t[{nft_words(expression)} ]" for expression in value]
                    elif not name.endswith(("_HANDLE", "_USE", "_FLAGS", "_POSITION", "_USERDATA")):
                        words.append(nft_words({"attrs": [(name, value)]}))
                yield "".join(words) + "\n"


def nft_words(expression: Any) -> str:
    """The attributes of an nf_tables object as pyroute2 decodes them, in words: last part of the name, then value."""
    text = ""
    for name, value in expression["attrs"]:
        short = name.rpartition("_")[2].lower()
        if isinstance(value, dict):
            text += f" {short}{nft_words(value)}" if short not in ("data", "hook", "verdict") else nft_words(value)
        else:
            shown = f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
            for prefix in ("NFT_META_", "NFT_PAYLOAD_", "NFT_CMP_", "NFT_", "NF_"):
                shown = shown.removeprefix(prefix)
            text += f" {shown}" if short in ("name", "table", "chain", "value", "code") else f" {short} {shown}"
    return text


# --- what the rules do with a packet ----------------------------------------------------------------------------------
#
# The rules of iptables and nftables as their own programs print them (iptables-save(8), nft(8)), and what
# they do with a packet.  Much of a rule or of a packet may be unknown, so an answer is given only if it is
# certain.  Used by verify.  The text of nft is parsed, not its JSON:  OpenWrt's nft has no JSON, and
# python3-minimal has no module json.

# The fields of a packet that the conditions of both programs name; `ipsec-out`: the packet is going to be
# encrypted
IPTABLES_FIELDS = {"-s": "src", "-d": "dst", "-i": "in", "-o": "out", "-p": "proto", "--dport": "dport",
                   "--dports": "dport", "--sport": "sport", "--sports": "sport", "--ctstate": "state",
                   "--state": "state", "--ctstatus": "status", "--icmp-type": "icmp", "--icmpv6-type": "icmp",
                   "--pol": "ipsec-"}
NFT_FIELDS = {"ip saddr": "src", "ip daddr": "dst", "ip6 saddr": "src", "ip6 daddr": "dst",
              "iif": "in", "iifname": "in", "oif": "out", "oifname": "out", "ct state": "state",
              "ct status": "status", "meta l4proto": "proto", "ip protocol": "proto", "ip6 nexthdr": "proto",
              "icmp type": "icmp", "icmpv6 type": "icmp", "rt ipsec": "ipsec-out", "meta ipsec": "ipsec-in",
              "meta secpath": "ipsec-in", "meta nfproto": "family",
              **{f"{protocol} {port}": port for protocol in ("udp", "tcp", "th")
                 for port in ("dport", "sport")}}
# Statements that decide nothing, and those of their words that have a value
NFT_SILENT = {"log": ("prefix", "level", "flags", "group", "snaplen", "queue-threshold"), "comment": (),
              "counter": ("packets", "bytes", "name")}
# Words that imply a condition on the protocol or the family
NFT_IMPLIED = {**{name: ("proto", name, False) for name in ("tcp", "udp", "icmp", "icmpv6", "esp", "ah")},
               "ip": ("family", "ipv4", False), "ip6": ("family", "ipv6", False)}
IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
RULE_TARGETS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return",
                "masquerade": "snat",
                "snat": "snat", "netmap": "?", "?": "?", "queue": "?", "nfqueue": "?", "dnat": "dnat",
                "redirect": "dnat", "notrack": ""}
Condition = tuple[str, str, bool]  # field, values separated by commas, negated
Rule = tuple[list[Condition], str]  # conditions, target
Packet = dict[str, str]  # the fields of a packet, with all spellings of a value, separated by blanks
Table = tuple[str, "dict[str, Chain]"]  # the family (ip, ip6, inet for both), the chains by name
UNKNOWN_CONDITION: Condition = ("?", "", False)
EVERYTHING = ("0.0.0.0/0", "::/0")
TABLE_FAMILIES = {"ipv4": ("ip", "inet"), "ipv6": ("ip6", "inet")}


class Chain(Record):
    """A chain of rules.

    `hook`, `kind` and `policy` are empty if only other chains jump to it; `kind` is empty for a filter, too.
    `insert` is the command that puts a rule at its head.
    """

    hook: str
    kind: str
    policy: str
    insert: str
    rules: list[Rule]


class RuleWords:
    """The words of a rule, read from left to right."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.place = 0

    def __bool__(self) -> bool:
        return self.place < len(self.words)

    @property
    def next(self) -> str:
        """The word that take() returns next; empty at the end."""
        return self.words[self.place] if self else ""

    def take(self) -> str:
        """Return the next word and move past it; empty at the end."""
        word = self.next
        self.place += 1
        return word

    def skip(self, *words: str) -> bool:
        """Move past the next word if it is one of `words`; return whether it is."""
        is_one = bool(self) and self.next in words
        self.place += is_one
        return is_one

    def rest(self) -> Sequence[str]:
        """Return the words that are left."""
        return self.words[self.place:]


def iptables_tables(text: str, program: str) -> Iterator[Table]:
    """Yield the tables in the output of `program`-save: iptables, ip6tables, or the same with -legacy or
    -nft."""
    family = program.partition("tables")[0]
    name = ""
    table: dict[str, Chain] = {}
    for line in text.splitlines():
        words = rule_words(line)
        if line.startswith("*"):
            table, name = {}, line[1:]
        elif line.startswith(":"):
            policy, chain = words[1].lower().strip("-"), words[0][1:]
            insert = f"{program} -t {name} -I {chain}"
            table[chain] = Chain(chain.lower() if policy else "", "nat" if name == "nat" else "", policy,
                                 insert, [])
        elif words[:1] == ["-A"] and words[1] in table:
            table[words[1]].rules.append(iptables_rule(words[2:]))
        elif line == "COMMIT":
            yield family, table


def iptables_rule(text: Sequence[str]) -> Rule:
    """Parse the words of a rule of iptables-save behind `-A CHAIN`."""
    conditions: list[Condition] = []
    negated, direction = False, ""
    words = RuleWords(text)
    while words:
        word = words.take()
        if word in ("-j", "-g"):
            target = iptables_target(words)
            return conditions, f"goto {target}" if word == "-g" else target
        if word in IPTABLES_FIELDS:
            field = IPTABLES_FIELDS[word]
            conditions.append((f"ipsec-{direction}" if field == "ipsec-" else field, words.take(), negated))
        elif word == "--dir":
            direction = words.take()
        elif word in ("-m", "--comment"):
            words.take()
        elif word != "!":
            conditions.append(UNKNOWN_CONDITION)
        negated = word == "!"
    return conditions, ""


def iptables_target(words: RuleWords) -> str:
    """Return the target of a rule from the words behind `-j`; SNAT with the new source."""
    target = words.take()
    if target == "SNAT":
        return f"SNAT {word_after(words.rest(), '--to-source')}"
    if target == "CT" and "--notrack" in words.rest():
        return "NOTRACK"
    return target


class NftReader:
    """Reads the output of `nft list ruleset`.

    `wrapped` names, by family, the iptables that stores its rules in nf_tables.  A chain of iptables gets new
    rules through iptables only: iptables can't read a rule that nft adds there, and so does not save it.
    """

    def __init__(self, wrapped: Mapping[str, str]) -> None:
        self.wrapped = wrapped
        self.depth = 0  # of braces
        self.family = self.name = self.chain = ""
        self.dormant = False  # the kernel skips the chains of a dormant table
        self.table: dict[str, Chain] = {}
        # the anonymous chains (`jump {`) that are open, under names of no other chain
        self.unnamed: list[str] = []

    def tables(self, text: str) -> Iterator[Table]:
        """Yield the tables of the IP families, without dormant ones."""
        for line in text.splitlines():
            words = rule_words(line)
            self._line(line, words)
            self.depth += words.count("{") - words.count("}")
            del self.unnamed[max(0, self.depth - 2):]
            if self.depth < 2:
                self.chain = ""
            if self.depth == 0 and self.table:
                if self.family in ("ip", "ip6", "inet") and not self.dormant:
                    yield self.family, self.table
                self.table = {}

    def _line(self, line: str, words: list[str]) -> None:
        """Take in one line; `depth` is that of its start."""
        if self.depth == 0 and words[:1] == ["table"]:
            self.table, self.family, self.name, self.dormant = {}, words[1], words[2], False
        elif self.depth == 1 and words[:1] == ["flags"]:
            self.dormant = "dormant" in line
        elif self.depth == 1 and words[:1] == ["chain"]:
            self.chain = words[1]
            self.table[self.chain] = Chain("", "", "", self._insert(), [])
        elif self.depth == 2 and self.chain and words[:1] == ["type"]:
            policy = word_after(words, "policy", "accept;").strip(";")
            self.table[self.chain] = Chain(word_after(words, "hook"), words[1].replace("filter", ""), policy,
                                           self._insert(), [])
        elif self.depth >= 2 and self.chain and words != ["}"]:
            self._rule(words)

    def _insert(self) -> str:
        """Return the command that puts a rule at the head of the current chain."""
        if self.chain.isupper() and self.family in self.wrapped:
            return f"{self.wrapped[self.family]} -t {self.name} -I {self.chain}"
        return f"nft insert rule {self.family} {self.name} {self.chain}"

    def _rule(self, words: list[str]) -> None:
        """Add the rules of a line to the current chain."""
        here = self.table[self.unnamed[-1] if self.unnamed else self.chain]
        if words[-2:] in (["jump", "{"], ["goto", "{"]):
            name = f"{self.chain} {len(self.table)}"
            self.unnamed.append(name)
            self.table[name] = Chain("", "", "", "", [])
            words = [*words[:-1], name]
        here.rules.extend(nft_rules(words))


def nft_rules(text: Sequence[str]) -> Iterator[Rule]:
    """Yield the rules that a line of nft stands for: one, or one for each entry of a verdict map."""
    conditions: list[Condition] = []
    is_joined = not {".", "&", "|"}.isdisjoint(text)  # several fields compared at once
    words = RuleWords(text)
    while words:
        word = words.take()
        if target := nft_target(word, words):
            yield conditions, target
            return
        if word in NFT_IMPLIED:
            conditions.append(NFT_IMPLIED[word])
        two = f"{word} {words.next}"
        field = "" if is_joined else NFT_FIELDS.get(two) or NFT_FIELDS.get(word, "")
        if word in NFT_SILENT:
            skip_silent(word, words)
        elif two == "xt target":
            words.take()
        elif word == "vmap":
            yield [*conditions, UNKNOWN_CONDITION], "?"
            return
        elif not field:
            conditions.append(UNKNOWN_CONDITION)
        else:
            if two in NFT_FIELDS:
                words.take()
            negated = words.skip("!=", "!")
            if words.skip("vmap"):
                yield from map_rules(conditions, field, nft_values(words))
                return
            conditions.append((field, nft_values(words), negated))


def nft_target(word: str, words: RuleWords) -> str:
    """Return the word if it is the target of a rule, otherwise an empty string.  `words` follow the word."""
    if word == "jump":
        return words.take()
    if word == "goto":
        return f"goto {words.take()}"
    if word == "snat":
        return f"snat {word_after(words.rest(), 'to').partition(':')[0]}"
    return word if word.lower() in RULE_TARGETS else ""


def skip_silent(word: str, words: RuleWords) -> None:
    """Move past a statement of NFT_SILENT, whose first word is `word`."""
    if word == "comment":
        words.take()
    while words.skip(*NFT_SILENT[word]):
        words.take()


def nft_values(words: RuleWords) -> str:
    """Take a value or a set in braces; return the values, separated by commas."""
    if not words.skip("{"):
        return words.take()
    values = ""
    while words and words.next != "}":
        values += words.take()
    words.skip("}")
    return values


def map_rules(conditions: list[Condition], field: str, entries: str) -> Iterator[Rule]:
    """Yield a rule for each entry `value:verdict` of a verdict map."""
    for entry in entries.split(","):
        value, _, target = entry.partition(":")
        target = target.replace("goto", "goto ").removeprefix("jump")
        yield [*conditions, (field, value, False)], target or "?"


def family_of(address: str) -> str:
    """Return the IP family of an address or network: `ipv4` or `ipv6`."""
    return "ipv6" if ":" in address else "ipv4"


def net_fits(mine: str, wanted: str) -> bool | None:
    """Return whether the network `mine` lies in the other; None if only a part of it does, or if it is
    unknown."""
    (first, _, bits), (second, _, wide) = mine.partition("/"), wanted.partition("/")
    if (":" in first) != (":" in second):
        return False
    full = "128" if ":" in first else "32"
    try:
        if within(first, f"{second}/{wide or full}") and int(bits or full) >= int(wide or full):
            return True
        return None if within(second, f"{first}/{bits or full}") else False
    except (OSError, ValueError):
        return None


def device_fits(mine: str, wanted: str) -> bool | None:
    """Return whether an interface matches the one of a rule (`eth+`, `eth*`); None if `mine` is unknown
    (empty).

    A packet of IKE or of a tunnel never passes `lo`.
    """
    if not mine:
        return False if wanted == "lo" else None
    if wanted[-1:] in ("+", "*"):
        return mine.startswith(wanted[:-1])
    return mine == wanted


def value_fits(field: str, mine: str, wanted: str) -> bool | None:
    """Return whether a field of a packet has the value of a rule; None if that is unknown.

    `mine` holds all spellings of the field's value, separated by blanks.
    """
    if wanted.startswith("@"):  # a named set
        return None
    if field in ("src", "dst"):
        return net_fits(mine, wanted)
    if field in ("in", "out"):
        return device_fits(mine, wanted)
    low, dash, high = wanted.replace(":", "-").partition("-")
    if dash and low.isdigit() and high.isdigit():
        return int(low) <= int(mine) <= int(high)
    return wanted.lower() in mine.split()


def condition_fits(condition: Condition, packet: Mapping[str, str]) -> bool | None:
    """Return whether the packet meets the condition; None if that is unknown."""
    field, values, negated = condition
    answers: list[bool | None] = [None]
    if field in packet:
        answers = [value_fits(field, packet[field], value) for value in values.split(",")]
    if True in answers:
        return not negated
    return None if None in answers else negated


def rule_fits(conditions: Sequence[Condition], packet: Mapping[str, str]) -> bool | None:
    """Return whether the rule matches the packet; None if its conditions can't be evaluated."""
    answers = [condition_fits(condition, packet) for condition in conditions]
    if False in answers:
        return False
    return None if None in answers else True


def verdict(table: Mapping[str, Chain], chain: Chain, packet: Mapping[str, str]) -> str:
    """Return what happens to a packet in a chain: accept, drop, snat or dnat.

    Empty: the packet leaves the chain at its end.  `?`: nothing is certain; the packet may be accepted.
    """
    for conditions, target in chain.rules:
        fits = rule_fits(conditions, packet)
        if fits is False:
            continue
        name = target.removeprefix("goto ")
        kind, _, source = target.partition(" ")
        result = verdict(table, table[name], packet) if name in table else RULE_TARGETS.get(kind.lower(), "")
        if result == "snat" and source and net_fits(source, packet["src"]):
            result = "accept"  # the new source belongs to the same network
        if fits and (result or name != target):
            return result.replace("return", "") or chain.policy
        if result in ("accept", "return", "?"):
            return "?"
    return chain.policy


def filter_tables(host: Host, timeout: float = 10.0) -> list[Table]:
    """Return the tables of this network namespace: those of nf_tables, and those of iptables-legacy, which
    nft does not show.

    Raises OSError or Failure if this process may not ask, or if the program to ask with is missing.
    """
    known = set()
    try:
        for buffer, start, end in dump(host, NETLINK_NETFILTER, NFT_MSG_GETTABLE, bytes(NFGENMSG_SIZE)):
            name = attributes(buffer, start + NFGENMSG_SIZE, end)[NFTA_TABLE_NAME]
            known.add((buffer[start], decode(name.rstrip(b"\0"))))
    except OSError as error:
        if error.errno not in NO_NFTABLES:
            raise
    known.discard((NFPROTO_INET, NFLOG_TABLE))
    programs = []
    if known and host.which("nft"):
        programs.append(["nft", "list", "ruleset"])
    elif known:
        others = [name for family, name in known if family == NFPROTO_INET or name not in IPTABLES_TABLES]
        if others:
            raise Missing(f"nft is not installed, and is needed to read table {quote(others[0])}")
        programs += [["iptables-save"], ["ip6tables-save"]]
    for family in ("ip", "ip6"):
        if host.value(f"/proc/net/{family}_tables_names"):
            legacy = f"{family}tables-legacy-save"
            programs.append([legacy if host.which(legacy) else f"{family}tables-save"])
    tables: list[Table] = []
    for argv in programs:
        ran = host.run(argv, timeout=timeout)
        if ran.status:
            raise Failure(f"{argv[0]}: {ran.complaint}")
        if argv[0] == "nft":
            wrapped = {family: f"{family}tables-nft" for family in ("ip", "ip6")
                       if host.which(f"{family}tables-nft")}
            tables += NftReader(wrapped).tables(ran.text)
        else:
            tables += iptables_tables(ran.text, argv[0].removesuffix("-save"))
    return tables


# --- diagnosis: what pluto's log says of a connection -----------------------------------------------------------------
#
# Why a connection is down, as far as pluto's log tells: finding the log, the last attempt in it, and a table of causes
# with the words that pluto uses for them.  Reads logs only.  Facts: the messages in the source of libreswan 3.25, 3.32,
# 4.3, 4.10, 5.2, 5.4 and of its main branch, and logs of real plutos of which the cause was known.

LOG_TAIL = 4 << 20  # bytes at the end of a log file that are read at most
LOG_SEARCH = 1 << 30  # bytes at the end of a log file in which pluto's start is looked for
LOG_LINES = 20_000  # lines of the journal that are read at most
CONN_LINES = 600  # lines about one connection that are looked at
LOG_START = (b"Starting Pluto", b"Starting Libreswan")  # where a daemon's part of a log begins, 3.x to 5.x
JOURNAL = "/var/log/journal"
SYSLOGS = ("/var/log/secure", "/var/log/auth.log", "/var/log/daemon.log", "/var/log/debug", "/var/log/syslog",
           "/var/log/messages", "/var/log/pluto.log")


def last_start(host: Host, name: str) -> int | None:
    """Return the offset of the line in which pluto last started, searched from the end of the file; None if no such
    line is in the last LOG_SEARCH bytes.  Raises OSError.
    """
    fd = host.open(name)
    try:
        end = size = host.stat(name).st_size
        overlap = b""
        while end > max(0, size - LOG_SEARCH):
            start = max(0, end - READ_CHUNK * 16)
            block = host.read_at(fd, name, start, end - start) + overlap
            position = max(block.rfind(marker) for marker in LOG_START)
            if position >= 0:
                return start + block.rfind(b"\n", 0, position) + 1
            end, overlap = start, block[:32]
        return None
    finally:
        host.close(fd, name)


class LogLine(Record):
    """A line of pluto's log: its time in seconds since the epoch, None if it has none, and pluto's own words."""

    when: float | None
    text: str


class PlutoLog(Record):
    """The end of pluto's log: where it was read (a file, or a command), and its lines since pluto's last start."""

    source: str
    lines: list[LogLine]


def read_log_line(line: str) -> LogLine:
    """Return a line of a log file, of syslog or of the journal without what stands before pluto's own words."""
    tag = line.find("pluto[", 0, 200)
    end = line.find("]: ", tag) if tag >= 0 else -1
    if end >= 0:
        return LogLine(stamp(line), line[end + 3:])
    when = stamp(line)
    if when is None:
        return LogLine(None, line)
    return LogLine(when, line[15:].partition(": ")[2])  # `Nov 23 06:12:08.123456: ` of logfile=


def tail_of_file(host: Host, name: str) -> list[str]:
    """Return the lines at the end of a file, at most LOG_TAIL bytes of them.  Raises OSError."""
    size = host.stat(name).st_size
    lines = list(split_lines(host.chunks(name, max(0, size - LOG_TAIL))))
    return lines[1:] if size > LOG_TAIL else lines


def read_pluto_log(host: Host, config: Config, timeout: float = 10.0) -> PlutoLog:
    """Return the end of pluto's log, from logfile=, the journal, or the first file of syslog with a start of pluto.

    Raises PermissionError if the log may not be read, Missing if there is none.
    """
    denied: Exception | None = None
    for source, lines in log_sources(host, config, timeout):
        try:
            texts = lines()
        except PermissionError as error:
            denied = error
            continue
        except Denied as failure:
            denied = PermissionError(errno.EACCES, failure.message)
            continue
        except (OSError, Failure):
            continue
        start = max((number for number, line in enumerate(texts) if "Starting Pluto" in line
                     or "Starting Libreswan" in line), default=0)
        entries = [read_log_line(line) for line in texts[start:]]
        entries = [entry for entry in entries if entry.text and not entry.text.startswith("|")]
        if entries:
            return PlutoLog(source, entries)
    if denied:
        raise denied
    raise Missing("pluto's log was not found: no logfile=, nothing of pluto in the journal, no start of pluto in "
                  + ", ".join(SYSLOGS))


def journal_command(host: Host) -> list[str]:
    """Return the first words of a journalctl command; none without journalctl, or without a journal below --root.

    Below --root each file is named, after its links were followed inside: journalctl would follow those in a directory
    out of the mounted disk.
    """
    if not host.which("journalctl"):
        return []
    if host.live:
        return ["journalctl"]
    import stat
    files = []
    for name in [name for end in ("", "~") for place in ("", "*/") for name in
                 host.glob(f"{JOURNAL}/{place}*.journal{end}")]:
        try:
            if stat.S_ISREG(host.stat(name).st_mode):
                files.append(host.path(name))
        except OSError:
            continue
    quoted = str.maketrans({special: f"\\{special}" for special in "\\*?[]{}"})  # journalctl takes a pattern (glob(7))
    return ["journalctl", *(f"--file={name.translate(quoted)}" for name in files)] if files else []


def journal_title(argv: Sequence[str]) -> str:
    """Return a journalctl command as a heading, with the number of its files in place of their names."""
    count = sum(word.startswith("--file=") for word in argv)
    words = [word for word in argv if not word.startswith("--file=")]
    return " ".join(words) + (f" ({count} files of {JOURNAL})" if count else "")


def log_sources(host: Host, config: Config, timeout: float) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Yield where pluto's log may be, each with the function that reads its end."""
    logfile = config.setup("logfile")
    if logfile:
        yield logfile, lambda: tail_of_file(host, logfile)
    if journal := journal_command(host):
        argv = [*journal, "-t", "pluto", "-n", str(LOG_LINES), "--no-pager", "-q", "-o", "short-iso"]
        yield journal_title(argv), lambda: list(split_lines(denied_if_refused(host.stream(argv, timeout=timeout))))
    for name in SYSLOGS:
        if host.exists(name):
            yield name, lambda name=name: syslog_lines(host, name)  # type: ignore[misc]


def syslog_lines(host: Host, name: str) -> list[str]:
    """Return the lines of pluto's at the end of a file of syslog; none if pluto's start is not in the file."""
    if last_start(host, name) is None:
        return []
    return [line for line in tail_of_file(host, name) if "pluto[" in line or "Starting Pluto" in line]


class Cause(Record):
    """Why a connection may be down.

    `short` has at most three words.  `side` is where to look first: here, peer, or both.  `means` goes on after
    `"NAME" is down: `.  `check` is what to look at, `command` one command.  `signs` are pluto's words for it, in any
    case: `*` stands for anything, `[1]` before them means "before the IKE SA is up", `[2]` "after it is up".
    `weak`: the words tell what happened and not why, so that this host is looked at too.  `local` names checks of
    verify that belong to the cause.
    """

    name: str
    short: str
    side: str
    means: str
    check: str
    command: str
    signs: tuple[str, ...]
    weak: bool = False
    local: str = ""


KEY_CHECKS = "certificates host_keys psk nss_health"
# The first cause in the table whose words are in the last attempt is taken: the words further up explain those below,
# and the errors that pluto goes on with after the first one stand below it.
CAUSES = (
    Cause("kernel", "kernel refused SA", "here",
          "the kernel refused the IPsec SA: it lacks ESP, a module or an algorithm of esp=",
          "whether the kernel has ESP and the algorithms of esp=; after an update of the kernel, reboot",
          "ipsec verify xfrm esp algorithms",
          ("netlink response for Add SA", "netlink response for Upd SA", "netlink response for New SA",
           "Requested AEAD algorithm not found", "Requested type not found", "Requested AUTH algorithm not found",
           "Requested CRYPT algorithm not found", "XFRM: unknown * algorithm", "NETKEY/XFRM: unknown",
           "unknown encryption algorithm:", "failed to install inbound kernel state", "setup_half_ipsec_sa() hit fail",
           "add_sa ipcomp failed", "No XFRM*detected", "installing IPsec SA failed", "Adding IPsec SA to failed",
           "no acceptable kernel algorithms", "kernel is not configured to do IPCOMP", "raw_eroute()*failed",
           "raw_policy()*failed", "netlink write() of * failed", "netlink recvfrom() of *Add SA*failed",
           "netlink response for * policy*", "kernel: * outbound failed"), local="xfrm esp algorithms"),
    Cause("interface", "interface not made", "here",
          "the kernel did not make the interface of ipsec-interface= or vti-interface=",
          "whether the kernel has CONFIG_XFRM_INTERFACE, and what already has that name",
          "ip -d link show type xfrm",
          ("xfrmi is not supported", "failed to create ipsec-interface", "CONFIG_XFRM_INTERFACE fail",
           "ipsec-interface * exists but", "do not match expected type xfrm", "cannot find ipsec-interface",
           "conflict * already exist*xfrm-interface", "creating netlink message failed"), local="xfrm"),
    Cause("updown", "updown script failed", "here",
          "the updown script failed: routes or addresses of the tunnel were not set",
          "leftupdown= and what the script printed, in pluto's log",
          "ipsec barf --section plog",
          ("updown* command exited with", "up-client* command exited", "up-host* command exited",
           "prepare-* command exited", "route-* command exited", "-client command exited with",
           "-host command exited with", "unable to popen", "command '* failed: ")),
    Cause("overlap", "route in use", "here",
          "the networks overlap: another connection already has a route or a policy for them",
          "leftsubnet= and rightsubnet= of the connections that pluto has",
          "ipsec verify overlap",
          ("cannot route -- route already in use", "cannot install eroute -- it is in use",
           "cannot install route: peer is within its client", "cannot install kernel policy", "cannot route template",
           "conflicts with existing", "kernel policy * already in use", "overlaps with"), local="overlap"),
    Cause("not-oriented", "no end here", "here",
          "neither left= nor right= is an address of this host",
          "left= and right= against the addresses of this host; after a new address: ipsec listen",
          "ip address",
          ("cannot identify ourselves with either end", "is not oriented", "connection is unoriented",
           "unoriented connection", "orient() * failed", "must specify host IP address for our side",
           "interface vanished", "no such interface"), local="loaded"),
    Cause("peer-address", "peer address unknown", "here",
          "the address of the peer is not known: the host name in right= does not resolve (DNS), or right= is %any",
          "right=, and whether its name resolves",
          "getent ahosts {peer}",
          ("without knowing peer IP address", "without resolved dynamic peer", "failed to resolve '",
           "failed to convert '", "still no address for", "unable to resolve", "name resolution failed",
           "DNS lookup * failed", "does not look numeric and name lookup failed", "with ID wildcards",
           "template conn", "cannot resolve")),
    Cause("send-refused", "firewall blocks sending", "here",
          "this host may not send to the peer: a firewall rule here drops outgoing IKE packets (Operation not "
          "permitted)",
          "rules of the chain OUTPUT for udp ports 500 and 4500",
          "ipsec verify firewall",
          ("send*Operation not permitted", "send*errno 1:", "sendto*not permitted", "using UDP failed*errno 1)"),
          local="firewall"),
    Cause("route", "no route", "here",
          "there is no route to the peer: the network or the host is unreachable",
          "the routes of this host, and right=",
          "ip route get {peer}",
          ("send*Network is unreachable", "send*No route to host", "send*Errno 101", "send*Errno 113",
           "send*Host is unreachable", "send*Network is down", "complainant*No route to host",
           "complainant*unreachable", "recvfrom*unreachable", "no local source address to reach",
           "unresolved gateway"), local="firewall"),
    Cause("port-closed", "peer port closed", "peer",
          "the peer answers with \"Connection refused\": no IKE daemon listens on the port there",
          "whether pluto runs on the peer, and whether right= is the right host",
          "nc -vzu {peer} 500",
          ("complainant*Connection refused", "send*Connection refused", "ECONNREFUSED", "send*errno 111",
           "recvfrom*Connection refused")),
    Cause("tcp", "TCP refused", "both",
          "IKE over TCP does not work between the ends: the port is closed, or the kernel lacks ESP in TCP",
          "enable-tcp=, tcp-remoteport= and listen-tcp= of both ends",
          "ipsec verify xfrm",
          ("TCP: connect(", "espintcp", "IKE-in-TCP*failed", "TCP_ULP) failed", "TCP:*failed")),
    Cause("psk-missing", "no PSK here", "here",
          "no pre-shared key (PSK) here is for these IDs",
          "the line in ipsec.secrets for leftid= and rightid=; after a change: ipsec secrets",
          "ipsec verify psk",
          ("no PSK found", "No matching PSK found", "Failed to find our PreShared Key", "no preshared key found",
           "cannot find PSK", "PreShared Key not found"), local="psk"),
    Cause("psk-fips", "PSK too short", "here",
          "the pre-shared key (PSK) is too short for FIPS mode",
          "a longer key in ipsec.secrets of both ends",
          "ipsec verify fips psk",
          ("PSK length of * bytes is too short*FIPS: authentication", "FIPS: authentication failed: *PSK length",
           "FIPS Error: connection*PSK length", "FIPS: connection * PSK length"), local="psk"),
    Cause("key-missing", "no private key", "here",
          "the private key of this host's certificate or public key is missing in the NSS database",
          "the keys in the NSS database: a certificate needs its key beside it (ipsec import FILE.p12)",
          "ipsec showhostkey --list",
          ("unable to locate my private key", "no * private key for connection", "No * private key found",
           "Failed to find our RSA key", "Failed to find our ECDSA key", "DigSig: failed to find our",
           "private key matching * not found", "private key not found", "private key for connection not found",
           "cannot find * key", "cannot find RSA key", "Can't find the private key", "Private key not found",
           "has type * but * is needed", "could not authenticate slot", "NSS Password for token * failed",
           "token locked", "authentication of \"NSS* failed", "sign function failed", "sign_hash: "),
          local=KEY_CHECKS),
    Cause("null-auth", "NULL authentication", "both",
          "the ends disagree on NULL authentication (authby=null)",
          "authby=, leftauth= and rightauth= of both ends", "ipsec status",
          ("NULL Authentication failed", "attempted NULL authentication", "connection with authnull")),
    Cause("eap", "EAP refused", "both",
          "EAP authentication failed, or only one end wants it (leftautheap=, rightautheap=): authentication method",
          "leftautheap= and rightautheap= of both ends, and the certificates", "ipsec status",
          ("EAP authentication, but", "EAP AUTH failed", "EAP Failure", "EAP * unexpected", "Handshake failed",
           "TLS Handshake")),
    Cause("auth-method", "authentication method differs", "both",
          "the ends want different authentication methods (authby=: PSK or certificates and RSA keys)",
          "authby= (leftauth=, rightauth=) of both ends",
          "ipsec status",
          ("policy does not allow * authentication", "authentication but we want", "but we want",
           "peer authentication requires policy", "authentication failed: method", "peer requires * authentication",
           "requires hash algorithm", "no acceptable ECDSA/RSA-PSS", "legacy RSA-SHA1",
           "local policy requires ECDSA", "unknown or unsupported hash algorithm", "Unsupported authby",
           "Auth Method mismatched", "unknown remote authentication", "Unknown or unsupported authby",
           "no connection has been authorized with authby=*RSA", "DigSig:*not*allow",
           "authentication method * refused", "unsupported AUTH_METHOD", "peer attempted")),
    Cause("clock", "certificates not valid", "both",
          "a certificate is not valid at the time of this host's clock: it has expired or is not valid yet",
          "the clock, then the dates of the certificate and of its CA",
          "date; ipsec verify clock certificates",
          ("is expired or not yet valid", "SEC_ERROR_EXPIRED_CERTIFICATE*not yet"), local="clock certificates"),
    Cause("crl", "CRL missing", "here",
          "crl-strict=yes, and the list of revoked certificates (CRL) is missing or has expired",
          "the CRLs that pluto has; ipsec crls fetches them",
          "ipsec listcrls",
          ("crl-strict=yes and Certificate Revocation List", "missing or expired CRL", "SEC_ERROR_CRL_",
           "SEC_ERROR_OCSP_", "OCSP server", "CRL has expired", "revocation list * expired",
           "SEC_ERROR_UNKNOWN_CERT", "SEC_ERROR_REVOCATION")),
    Cause("cert-revoked", "certificate revoked", "both",
          "the peer's certificate is revoked, by the CRL that is here",
          "the CRLs that pluto has; a revoked certificate has to be replaced",
          "ipsec listcrls",
          ("SEC_ERROR_REVOKED_CERTIFICATE", "Certificate has been revoked", "certificate revoked",
           "SEC_ERROR_REVOKED_KEY")),
    Cause("ca-expired", "CA expired", "both",
          "the CA certificate above the peer's certificate has expired",
          "the dates of the CAs here, and the chain that the peer sends",
          "ipsec verify certificates clock",
          ("SEC_ERROR_EXPIRED_ISSUER_CERTIFICATE", "issuer*certificate has expired", "Issuer has expired"),
          local="clock certificates"),
    Cause("cert-expired", "certificate expired", "peer",
          "the peer's certificate has expired, or is not valid yet by the clock here",
          "the dates of the peer's certificate; the clock of this host",
          "date; ipsec listcerts",
          ("SEC_ERROR_EXPIRED_CERTIFICATE", "Certificate has expired", "certificate '*' has expired",
           "public key * has expired", "SEC_ERROR_INVALID_TIME"), local="clock"),
    Cause("cert-issuer", "CA unknown", "both",
          "no valid and trusted CA here issued the peer's certificate: the CA is missing, not trusted, or expired",
          "the CA of the peer in the NSS database: is it there, trusted (CT,,), and still valid?",
          "ipsec verify certificates",
          ("SEC_ERROR_UNKNOWN_ISSUER", "issuer is not recognized", "SEC_ERROR_UNTRUSTED_ISSUER",
           "SEC_ERROR_UNTRUSTED_CERT", "not trusted", "SEC_ERROR_CA_CERT_INVALID", "SEC_ERROR_PATH_LEN",
           "No Certificate Authority in NSS", "No Certificate Authority available", "Issuer certificate is invalid",
           "X509: no EE-cert", "SEC_ERROR_BAD_SIGNATURE", "certificate*signature is invalid"),
          local="certificates"),
    Cause("cert-usage", "certificate unsuitable", "both",
          "the peer's certificate may not be used for IPsec: its key usage, or a key or signature that is too weak",
          "keyUsage and extendedKeyUsage of the certificate, its key length and signature",
          "ipsec listcerts",
          ("SEC_ERROR_INADEQUATE_", "key usage inadequate", "Certificate type not approved",
           "SEC_ERROR_CERT_SIGNATURE_ALGORITHM_DISABLED", "rejecting * cert with key size", "cannot use CA certificate",
           "cannot use peer CA certificate", "SEC_ERROR_EXTENSION", "SEC_ERROR_UNKNOWN_CRITICAL_EXTENSION",
           "signature algorithm that is disabled", "ERROR_CERT_USAGES")),
    Cause("own-cert-name", "ID not certified", "here",
          "the certificate of this host does not hold the ID that this host claims (leftid=, subjectAltName)",
          "leftid= against the names in the certificate: ipsec nsslist", "ipsec nsslist",
          ("our certificate subjectAltName", "our certificate contains no subjectAltName")),
    Cause("cert-name", "certificate lacks ID", "both",
          "the ID that the peer claims is not in its certificate (subjectAltName)",
          "leftid= of the peer (rightid= here) against the names in its certificate",
          "ipsec listcerts",
          ("subjectAltName extension", "SubjectAltName does not match", "unmatched IKE ID in certificate",
           "specified on the certificate SubjectAltName", "No matching subjectAltName", "CERT payload does not match",
           "cannot match peer's certificate")),
    Cause("id-expected", "peer ID differs", "both",
          "the peer has another ID than rightid= here expects",
          "rightid= here against leftid= of the peer",
          "ipsec status",
          ("we require IKEv* peer to have ID", "Peer ID * mismatched on first found", "Peer mismatch on first found",
           "ID_DER_ASN1_DN * does not match expected", "peer ID_* does not match", "no suitable connection for peer",
           "peer ID payload", "did not include ID* payload", "switched * required ID", "Peer ID*not*expected",
           "ID payload invalid", "initiator ID '*' does not match", "responder ID '*' does not match",
           "peer is not * ID", "IDr payload * not")),
    Cause("xauth", "login refused", "both",
          "XAUTH refused the user name or the password",
          "the user name and password at the client, and xauthby= with the password file at the server",
          "ipsec status",
          ("Authentication Failed: Incorrect Username", "Authentication Failed (", "XAUTH status: FAIL",
           "XAUTH password prompt failed", "XAUTH username prompt failed", "no file descriptor available for prompt",
           "unable to open password file", "XAUTH*Rejected", "XAUTH* failed", "XAUTH: No username or password request",
           "XAUTH client mode not enabled", "XAUTH client is not yet authenticated", "until XAUTH done",
           "missing password hash", "aborting entire IKE Exchange", "PAM*fail", "authorize*denied")),
    Cause("signature", "public key wrong", "both",
          "the peer's signature does not fit the public key (RSA, rightrsasigkey= or certificate) that is here for its "
          "ID",
          "rightrsasigkey= here against: ipsec showhostkey --left, on the peer",
          "ipsec listpubkeys",
          ("public key known for", "Signature check", "Sig check failed", "RSA authentication of * failed",
           "RSA authentication failed", "Digital Signature authentication", "authentication failed: using * with * for",
           "zero-length signature", "sig length * does not match", "zero-length RSA signature", "no public key known",
           "raw public key", "authentication failed: no key", "pubkey could not be loaded")),
    Cause("cert-rejected", "certificate rejected", "both",
          "the peer's certificate was rejected here",
          "the lines before this one in pluto's log; the CAs in the NSS database",
          "ipsec verify certificates",
          ("certificate payload rejected", "Certificate rejected for this connection", "CERT payload bogus",
           "end certificate invalid", "no certificate matched", "failed verification", "failed IPsec verification",
           "NSS: ERROR:", "NSS ERROR:", "cert verify failed", "NSS verification failure",
           "certificate payload could not be decoded", "decoding certificate payload"), local="certificates"),
    Cause("psk-differs", "PSKs differ", "both",
          "the pre-shared keys (PSK) of the two ends differ",
          "the PSK lines in ipsec.secrets of both ends; after a change: ipsec secrets",
          "ipsec verify psk",
          ("AUTH mismatch", "computed hash does not match", "hash received from peer*does not match",
           "mismatch of preshared secrets", "received Hash Payload does not match", "PSK Authentication failed",
           "byte length of ISAKMP Identification Payload is larger", "[1] malformed payload in packet",
           "HASH(*does not match", "[1] informational payload PAYLOAD_MALFORMED",
           "[1] informational payload INVALID_HASH", "authentication failed*hash*PRF",
           "hash length*does not match")),
    Cause("auth-refused", "peer refuses authentication", "peer",
          "the peer refused to authenticate this host (AUTHENTICATION_FAILED); its log tells which it was: the PSK, "
          "the ID (leftid=), the method (authby=), or this host's certificate or RSA key",
          "leftid=, authby= and the key or certificate of this host against what the peer expects; ask the peer for "
          "its log",
          "ipsec verify psk certificates",
          ("rejected by peer: AUTHENTICATION_FAILED", "request rejected: AUTHENTICATION_FAILED",
           "error notification AUTHENTICATION_FAILED", "rejected*AUTHENTICATION_FAILED",
           "informational payload AUTHENTICATION_FAILED", "informational payload INVALID_CERT",
           "informational payload CERTIFICATE_UNAVAILABLE", "notification payload: AUTHENTICATION_FAILED",
           "notification payload: INVALID_CERT", "notification payload: INVALID_SIGNATURE",
           "informational payload INVALID_SIGNATURE", "informational payload INVALID_KEY_INFORMATION"),
          weak=True, local="certificates clock psk host_keys"),
    Cause("id-refused", "ID refused", "peer",
          "the peer refused the ID or the certificate of this host (INVALID_ID_INFORMATION): leftid= is not what it "
          "expects, or it does not accept the certificate (unknown CA, expired, revoked)",
          "leftid= here against rightid= of the peer; the dates and the CA of this host's certificate",
          "ipsec verify certificates",
          ("[1] payload INVALID_ID_INFORMATION", "[1] payload: INVALID_ID_INFORMATION",
           "rejected by peer: INVALID_ID_INFORMATION"), weak=True, local="certificates clock"),
    Cause("ppk", "PPK missing", "both",
          "the ends do not share the post-quantum key (PPK) that ppk= insists on",
          "ppk= and the PPKS lines in ipsec.secrets of both ends", "ipsec status",
          ("requires PPK", "requires a valid PPK", "ppk=insist", "PPK_ID not found", "does not allow PPK",
           "no matching (PPK_ID, PPK)", "PPK confirmation", "rejected*PPK")),
    Cause("pool", "no address left", "peer",
          "no address is free in the address pool",
          "leftaddresspool= or rightaddresspool= of the gateway, and who holds the leases",
          "ipsec addresspoolstatus",
          ("lease_an_address failure", "leasing * address failed", "no free address", "address pool exhausted",
           "addresspool * is empty", "INTERNAL_ADDRESS_FAILURE", "lease of * but it is unavailable",
           "confused, no address pool", "confused, no lease", "pool * exhausted", "addresspool*is not valid",
           "invalid addresspool")),
    Cause("mode-config", "address not agreed", "both",
          "the ends disagree on mode config: one asks for an internal address (CP payload, leftmodecfgclient=), the "
          "other does not give one, or the other way round",
          "leftmodecfgclient= of the client; rightaddresspool= and leftmodecfgserver= of the gateway", "ipsec status",
          ("FAILED_CP_REQUIRED", "CP payload required", "missing v2CP reply", "no valid internal address",
           "MODE_CFG_REPLY is missing", "until MODECFG done", "INTERNAL_IP*_ADDRESS * is invalid",
           "connection has no addresspool", "mode cfg*unsupported", "MODECFG*fail")),
    Cause("mode", "mode differs", "both",
          "one end wants tunnel mode, the other transport mode (type=, ENCAPSULATION_MODE)",
          "type= of both ends", "ipsec status",
          ("requires Transport Mode but", "requires Tunnel Mode but", "must specify ENCAPSULATION_MODE",
           "USE_TRANSPORT_MODE*reject", "ENCAPSULATION_MODE*refused", "invalid value * for attribute "
           "ENCAPSULATION_MODE", "peer * require * Mode")),
    Cause("virtual", "private network refused", "here",
          "the network of the client is not one of virtual-private=: its subnet is refused",
          "virtual-private= and rightsubnet=vhost:… here", "ipsec verify config",
          ("private network virtual IP was required", "rejected in a virtual connection policy")),
    Cause("aggressive", "exchange mode differs", "both",
          "one end uses IKEv1 aggressive mode, the other main mode or IKEv2 only (aggressive=, ikev2=)",
          "aggressive= and keyexchange= of both ends", "ipsec status",
          ("initial Aggressive Mode *no", "Aggressive Mode * no (wildcard)", "Cannot initiate aggressive mode",
           "Aggressive Mode*not allow", "aggressive mode*refused")),
    Cause("version-refused", "IKE version refused", "both",
          "one end drops this IKE version: the peer speaks IKEv1 and ikev1-policy= here accepts only IKEv2, or IKEv2 "
          "is not accepted",
          "keyexchange= (ikev2=) of both ends; ikev1-policy= in config setup",
          "ipsec verify config",
          ("IKEv1 packet*polic", "IKEv1 packet dropped", "ikev1-policy", "INVALID_MAJOR_VERSION",
           "unsupported IKE major version", "ignoring packet with IKE major", "unsupported IKE version",
           "ISAKMP_N_INVALID_MAJOR", "no * IKEv1 * supported", "wrong IKE version")),
    Cause("unknown-peer", "no connection fits", "here",
          "the peer asks for an IKE SA, and no connection that is loaded here fits: its address, the version (IKEv1 or "
          "IKEv2 only) or authby= differs, or the connection is not loaded",
          "what pluto has loaded for this peer (left=, right=, keyexchange=, authby=); ipsec add NAME loads it",
          "ipsec verify loaded",
          ("no suitable connection found", "no connection has been authorized", "no matching connection has been",
           "no connection has been configured", "but no connection", "no connection is known for this peer",
           "no suitable connection for"), weak=True, local="loaded certificates"),
    Cause("ts-here", "networks differ", "both",
          "the networks (subnets, traffic selectors) that the peer asks for are not those of a connection here",
          "leftsubnet= and rightsubnet= of both ends, which must mirror each other, or narrowing=yes",
          "ipsec status",
          ("compatible Traffic Selectors", "responding with TS_UNACCEPTABLE", "encrypted notification TS_UNACCEPTABLE",
           "cannot respond to IPsec SA request", "rejecting responder TS", "Traffic Selectors mismatch",
           "default does not match proposal", "ID payload in Quick I1", "has no remote client selector",
           "TSi/TSr*reject", "Traffic Selector*unacceptable", "does not match any * connection; responding",
           "Quick I1*unacceptable")),
    Cause("kernel-peer", "peer sends nothing", "peer",
          "the peer sent no IPsec SA in its answer: the kernel there refused it (no ESP, or an algorithm of esp= is "
          "missing), or it found no fitting esp= or subnet",
          "the peer's log for \"netlink response\"; modules of its kernel",
          "ipsec verify esp algorithms",
          ("missing v2SA, v2TSi or v2TSr", "missing at least one of the Child SA payloads",
           "initiator rejected Child SA response", "No CHILD SA proposals received"), weak=True,
          local="xfrm esp algorithms"),
    Cause("ts-peer", "networks refused", "peer",
          "the peer refused the networks (subnets, TS_UNACCEPTABLE); a peer with libreswan 4.x says the same when its "
          "kernel refuses the SA",
          "leftsubnet= and rightsubnet= of both ends, which must mirror each other, or narrowing=yes; who asks for an "
          "address (leftmodecfgclient=) needs a pool there",
          "ipsec status",
          ("TS_UNACCEPTABLE", "[2] payload INVALID_ID_INFORMATION", "[2] payload: INVALID_ID_INFORMATION",
           "SINGLE_PAIR_REQUIRED")),
    Cause("pfs", "PFS differs", "both",
          "the ends disagree on perfect forward secrecy (pfs=, the DH group in esp=)",
          "pfs= and the group in esp= of both ends", "ipsec status",
          ("we require PFS", "GROUP_DESCRIPTION", "missing KE payload in", "but no KE was sent", "KE missing from",
           "INVALID_KE_PAYLOAD response but", "peer * not * PFS", "PFS required")),
    Cause("dh", "DH groups differ", "both",
          "the ends have no DH group in common (ike=, esp=)",
          "the group (modp…, dh…) in ike= and esp= of both ends", "ipsec status",
          ("INVALID_KE_PAYLOAD*not acceptable", "suggesting * instead of", "error notification INVALID_KE_PAYLOAD",
           "with INVALID_KE_PAYLOAD", "suggested DH * is not acceptable", "suggested KEM * is not")),
    Cause("esp-here", "ESP proposals differ", "both",
          "no ESP proposal of the peer is allowed by esp= (phase2alg=) here",
          "esp= of both ends", "ipsec status",
          ("no local proposal matches*:ESP:", "no local proposal matches*:AH:",
           "matching remote ESP/AH proposals failed", "ESP IPsec Transform refused", "AH IPsec Transform refused",
           "no acceptable Proposal in IPsec SA",
           "IPsec encryption transform", "unsupported ESP Transform", "unsupported IPsec encryption algorithm",
           "AUTH_ALGORITHM attribute missing", "protocol id does not match my proposal", "unsupported IPsec attribute",
           "ESP_NULL requires", "unsupported IPCOMP", "unsupported IPsec IPcomp",
           "accepted an unsupported algorithm")),
    Cause("esp-peer", "ESP proposals refused", "peer",
          "the peer accepts none of the ESP proposals of this host (NO_PROPOSAL_CHOSEN): esp= (phase2alg=) differs",
          "esp= of both ends, and pfs=", "ipsec status",
          ("Child SA with NO_PROPOSAL_CHOSEN", "IKE_AUTH response contained*NO_PROPOSAL_CHOSEN",
           "failed with error notification NO_PROPOSAL_CHOSEN", "[2] payload NO_PROPOSAL_CHOSEN",
           "[2] payload: NO_PROPOSAL_CHOSEN", "Child SA*NO_PROPOSAL_CHOSEN")),
    Cause("ike-here", "IKE proposals differ", "both",
          "no IKE proposal of the peer is allowed by ike= here",
          "ike= of both ends", "ipsec status",
          ("no local proposal matches", "Oakley Transform", "OAKLEY proposal refused", "insecure and was rejected",
           "no acceptable Oakley", "initiator proposed an unsupported algorithm", "Invalid IKEv1 default algorithms",
           "algo not allowed in fips mode", "a single Transform is required", "proposals * failed")),
    Cause("ike-peer", "IKE proposals refused", "peer",
          "the peer refused the first message (NO_PROPOSAL_CHOSEN): no IKE proposal (ike=) in common, or it has no "
          "connection for this host with this version of IKE (not loaded, deleted, or its certificate has expired)",
          "ike= and keyexchange= of both ends, and whether the peer has loaded its connection; its log tells which",
          "ipsec status",
          ("NO_PROPOSAL_CHOSEN",)),
    Cause("redirect", "peer redirects", "peer",
          "the peer redirects to another gateway", "which gateway the peer names, and accept-redirect=", "ipsec status",
          ("redirect exceeds limit", "redirects to new gateway", "redirect*failed", "REDIRECT payload failed")),
    Cause("peer-refused", "peer refused", "peer",
          "the peer refused the connection",
          "the quoted line has the cause; the log of the peer has the details", "ipsec status",
          ("rejected by peer", "rejected Child SA with", "contained the error notification",
           "contains the Child SA error notification", "contains the status notification",
           "failed with error notification",
           "unrecognized IKE_AUTH response", "contained an unknown error notification",
           "was rejected with", "error notification"), weak=True, local=KEY_CHECKS),
    Cause("peer-gone", "peer gone", "peer",
          "the peer stopped answering (dead peer detection, DPD): there was no answer to the liveness probes",
          "whether the peer is up and reachable, and whether pluto runs there",
          "ping -c 3 {peer}",
          ("liveness action", "DPD action", "ESTABLISHED_IKE_SA: * timeout", "V2_ESTABLISHED*timeout exceeded",
           "to our IKEv2 message", "declared dead", "peer is dead", "MAIN_I4: * timeout", "MAIN_R3: * timeout",
           "via DPD", "liveness*timeout"), weak=True, local="firewall"),
    Cause("silent-quick", "no ESP answer", "peer",
          "the IKE SA is up, and the peer did not answer the request for the IPsec SA (Quick Mode): the kernel there "
          "refused the SA, or it likes no esp= or subnet",
          "the peer's log at that time; esp=, leftsubnet= and rightsubnet= of both ends",
          "ipsec verify esp algorithms",
          ("first Quick Mode message", "QUICK_I1: * timeout", "QUICK_R0: * timeout", "QUICK_R1: * timeout"),
          weak=True, local="esp algorithms"),
    Cause("unconfirmed", "peer refuses answer", "peer",
          "the peer refused the first encrypted message of this host: with IKEv1 the pre-shared keys (PSK) mostly "
          "differ, or the peer expects another ID",
          "the PSK lines in ipsec.secrets of both ends, leftid= and rightid=; the peer's log",
          "ipsec verify psk",
          ("Informational Exchange message must be encrypted", "[1] payload INVALID_HASH"), weak=True, local="psk"),
    Cause("silent-main", "no encrypted answer", "peer",
          "the peer did not answer the first encrypted message: with IKEv1 the pre-shared keys (PSK) mostly differ, or "
          "the peer expects another ID or method (authby=); or udp port 4500 is blocked on the way",
          "the PSK lines in ipsec.secrets of both ends, leftid= and authby=; ask the peer for its log",
          "ipsec verify psk certificates",
          ("MAIN_I3: * timeout", "AGGR_I2: * timeout"), weak=True, local="psk certificates host_keys firewall"),
    Cause("silent-auth", "no second answer", "peer",
          "the first message was answered, the encrypted one after it was not: udp port 4500 or large packets "
          "(fragments) are lost on the way, or the kernel of the peer refused the SA (4.x)",
          "firewalls on the way for udp port 4500; MTU and fragmentation=; the peer's log at that time",
          "tcpdump -n udp port 4500 and host {peer}",
          ("first encrypted message", "PARENT_I2: * timeout", "IKE_AUTH_I: * timeout", "MAIN_I2: * timeout",
           "IKE_AUTH*timeout exceeded", "IKE_INTERMEDIATE*timeout",
           "MAIN_R2: * timeout", "AGGR_R1: * timeout", "XAUTH*timeout exceeded", "MODE_CFG*timeout"),
          weak=True, local="firewall psk mtu"),
    Cause("silent", "no answer", "peer",
          "the peer did not answer the first message: a firewall here, on the way or there drops udp port 500, the "
          "address is wrong, or no IKE daemon runs there; a peer that has no connection for this host says nothing "
          "with IKEv1 either",
          "right=, firewalls for udp ports 500 and 4500, whether packets arrive at the peer",
          "tcpdump -n udp port 500 and host {peer}",
          ("to our first IKEv", "PARENT_I1: * timeout", "IKE_SA_INIT_I: * timeout", "MAIN_I1: * timeout",
           "timeout exceeded after * retransmits", "max number of retransmissions", "AGGR_I1: * timeout",
           "negotiation * timed out", "giving up"), weak=True, local="firewall udp500 udp4500"),
    Cause("refused-here", "peer ID unknown", "both",
          "this host refused to authenticate the peer (AUTHENTICATION_FAILED), and its log has no reason: with "
          "libreswan 5 the ID of the peer, or the names in its certificate, fit no connection (rightid=)",
          "rightid= here against leftid= of the peer and the names in its certificate",
          "ipsec status", ()),
    Cause("fatal", "no key found", "here",
          "pluto gave up before it authenticated: mostly the private key or the PSK of this host is missing",
          "the keys and certificates of this host in the NSS database and in ipsec.secrets",
          "ipsec verify certificates host_keys psk",
          ("encountered fatal error in state", "had internal error", "internal error"), weak=True, local=KEY_CHECKS),
    Cause("deleted", "peer deleted it", "peer",
          "the peer ended the tunnel: it deleted the SA",
          "the log of the peer: was the connection taken down, deleted or loaded anew there?",
          "ipsec up {conn}",
          ("received Delete SA payload", "received delete request for", "peer deleted", "deleted by peer",
           "received INFORMATIONAL request to delete"), weak=True),
    Cause("half-open", "peer stops halfway", "peer",
          "the peer begins and does not go on after the first answer: a firewall drops that answer or udp port 4500, "
          "or the peer has no key",
          "firewalls on the way for udp ports 500 and 4500; the peer's log",
          "tcpdump -n udp port 4500 and host {peer}",
          ("sent IKE_SA_INIT reply", "sent IKE_SA_INIT response", "PARENT_R1: * timeout", "IKE_SA_INIT_R: * timeout",
           "sent Main Mode R1",
           "half-open"), weak=True, local="firewall"),
    Cause("waiting", "waiting for peer", "peer",
          "the peer has not answered so far; pluto still tries",
          "right=, firewalls for udp ports 500 and 4500",
          "tcpdump -n udp port 500 and host {peer}",
          ("retransmission; will wait",), weak=True, local="firewall udp500 udp4500"),
)
CAUSE_BY_NAME = {one.name: one for one in CAUSES}
# Of an attempt that goes on, these tell less than what the attempt before it ended with
PENDING_CAUSES = frozenset(("half-open", "waiting"))

# What this host refuses the peer with: words of the line, and the cause if no other line tells more
REFUSAL_CAUSES = (
    ("no suitable connection", "unknown-peer"), ("TS_UNACCEPTABLE", "ts-here"),
    ("AUTHENTICATION_FAILED", "refused-here"),
    ("IKE_SA_INIT*NO_PROPOSAL_CHOSEN", "ike-here"), ("IKE_AUTH*NO_PROPOSAL_CHOSEN", "esp-here"),
    ("CREATE_CHILD*NO_PROPOSAL_CHOSEN", "esp-here"), ("INTERNAL_ADDRESS_FAILURE", "pool"),
    ("FAILED_CP_REQUIRED", "mode-config"))
REFUSES = ("responding to*with*notification", "sending*notification")
STARTS = ("initiating*IKEv", "initiating*Main Mode", "initiating*Aggressive Mode", "initiating v2 parent",
          "responding to Main Mode", "responding to Aggressive Mode")
PEER_STARTS = ("IKE_SA_INIT re", ":IKE=", ":IKE:", "processing IKE_SA_INIT")
CHILD_STARTS = ("initiating Quick Mode", "initiating Child SA", "sent CREATE_CHILD_SA", "responding to Quick Mode",
                "processing decrypted CREATE_CHILD_SA")
CHILD_UP = ("established Child SA", "IPsec SA established", "rekeyed Child SA", "negotiated connection")
IKE_UP = ("IKE SA established", "ISAKMP SA established", "established IKE SA")
# What the updown script says while a failed attempt is cleaned up
CLEANS_UP = ("unroute-* output:", "down-* output:", "unroute-* command exited", "down-* command exited")
TAKEN_DOWN = ("terminating SAs using this connection", "initiating delete of connection", "terminating all conns")


def has_words(parts: Sequence[str], text: str) -> bool:
    """Return whether the text has all the parts, one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


PATTERN_PARTS: dict[str, list[str]] = {}  # by pattern, those that were asked for


def has_any(patterns: Iterable[str], text: str) -> bool:
    """Return whether one of the patterns is in the text, in any case."""
    text = text.lower()
    for pattern in patterns:
        parts = PATTERN_PARTS.get(pattern)
        if parts is None:
            parts = PATTERN_PARTS[pattern] = pattern.lower().split("*")
        if has_words(parts, text):
            return True
    return False


def split_sign(sign: str) -> tuple[str, list[str]]:
    """Return the phase that a sign of a cause belongs to, `1`, `2` or empty, and its parts in lower case."""
    phase = sign[1] if sign.startswith(("[1] ", "[2] ")) else ""
    return phase, (sign[4:] if phase else sign).lower().split("*")


SIGNS = [(one, *split_sign(sign)) for one in CAUSES for sign in one.signs]


CAUSE_OF_TEXT: dict[tuple[str, bool], Cause | None] = {}  # by text and phase, those that were asked for


def cause_of(text: str, ike_up: bool) -> Cause | None:
    """Return the first cause in the table that a line of pluto's log is a sign of; `ike_up`: the IKE SA is up."""
    text = text.lower()
    other_phase = "1" if ike_up else "2"
    key = text, ike_up
    if key not in CAUSE_OF_TEXT:  # pluto says the same again and again
        CAUSE_OF_TEXT[key] = next((one for one, phase, parts in SIGNS if phase != other_phase
                                   and has_words(parts, text)), None)
    return CAUSE_OF_TEXT[key]


def refusal_of(text: str) -> Cause | None:
    """Return the cause for which this host refuses the peer, as far as the notification that it sends tells."""
    return next((CAUSE_BY_NAME[name] for words, name in REFUSAL_CAUSES if has_any((words,), text)), None)


class Clue(Record):
    """A line of the log and the cause that it is a sign of."""

    cause: Cause
    line: LogLine


class Attempt:
    """What pluto tried with a connection, from one start of IKE to the next.

    `rounds` has the clues by each try to make a Child SA.  `ended`: a Child SA was established (`up`), or somebody here
    took the connection down (`taken down`).  `was_up`: a Child SA was established, whatever came after.
    """

    def __init__(self, first: LogLine, from_peer: bool = False) -> None:
        self.first = first
        self.last = first
        self.from_peer = from_peer
        self.ike_up = self.was_up = False
        self.ended = ""
        self.rounds: list[list[Clue]] = [[]]

    def take(self, line: LogLine, text: str) -> None:
        """Take in a line of the log; `text` has neither the connection nor the number of the state."""
        self.last = line
        if has_any(CLEANS_UP, text):
            return
        if has_any(CHILD_UP, text):
            self.ended, self.rounds = "up", [[]]
            self.ike_up = self.was_up = True
            return
        if has_any(IKE_UP, text) and "rejected" not in text:
            self.ike_up = True
            return
        if has_any(TAKEN_DOWN, text):
            self.rounds = [[]] if self.ended == "up" else self.rounds  # why it failed before still counts
            self.ended = "taken down"
            return
        if has_any(CHILD_STARTS, text) and self.rounds[-1]:
            self.rounds.append([])
        one = refusal_of(text) if has_any(REFUSES, text) else cause_of(text, self.ike_up)
        if one:
            self.rounds[-1].append(Clue(one, line))

    @property
    def clues(self) -> list[Clue]:
        """The clues of the last two tries to make a Child SA, the most telling first."""
        rounds = [clues for clues in self.rounds if clues][-2:]
        return sorted((clue for clues in rounds for clue in clues), key=lambda clue: CAUSES.index(clue.cause))


def split_log_text(text: str) -> tuple[str, str, str]:
    """Return the connection, the number of the state and the rest of a line of pluto's; both are empty if it has none.

    Forms: `"c" #1: text`, `"c"[2] 192.0.2.1 #3: text`, `"c": text`, with `ERROR: ` and the like before them.
    """
    for lead in ("ERROR: ", "FATAL ERROR: ", "FATAL: ", "WARNING: ", "EXPECTATION FAILED: ", "ABORT: "):
        if text.startswith(lead):
            conn, serial, rest = split_log_text(text[len(lead):])
            return conn, serial, lead + rest
    end = text.find('"', 1)
    if not text.startswith('"') or end < 0:
        return "", "", text
    head, _, rest = text[end + 1:].partition(": ")
    return text[1:end], head.rpartition("#")[2] if "#" in head else "", rest


def belongs_to(conn: str, name: str) -> bool:
    """Return whether a connection in the log is `name`, or one of its pairs of subnets (`NAME/1x2`)."""
    if conn == name:
        return True
    pair = conn[len(name) + 1:] if conn.startswith(f"{name}/") else ""
    one, _, other = pair.partition("x")
    return one.isdigit() and other.isdigit()


def names_address(text: str, peers: Collection[str]) -> bool:
    """Return whether a line of pluto's without a connection is about one of the addresses; with `%any`, about any."""
    if text.startswith("packet from "):
        return "%any" in peers or any(text.startswith((f"packet from {peer}:", f"packet from [{peer}]:"))
                                      for peer in peers)
    if "network error report" in text or "recvfrom" in text or text.startswith("ERROR: send"):
        return any(f" {peer}{end}" in text for peer in peers for end in (" ", ":", ",", ")", "]"))
    return False


def read_attempts(lines: Iterable[LogLine], name: str, peers: Collection[str]) -> list[Attempt]:
    """Return what pluto tried with a connection, in order.

    `peers` are the addresses of its peer: the lines that pluto can't assign to a connection name only those.
    """
    attempts: list[Attempt] = []
    newest = 0
    started: set[int] = set()  # the states with which attempts began
    split = ((line, *split_log_text(line.text)) for line in lines)
    rows = [row for row in split if belongs_to(row[1], name) or (not row[1] and names_address(row[3], peers))]
    for line, conn, serial, text in rows[-CONN_LINES:]:
        if not conn:
            take_unassigned(attempts, line, text)
            continue
        number = int(serial) if is_number(serial) else 0
        if not number:
            if attempts:
                attempts[-1].take(line, text)
            elif cause_of(text, False):
                attempts.append(Attempt(line))
                attempts[-1].take(line, text)
            continue
        begins = has_any(STARTS, text) and not has_any(("rekey", "Quick Mode", "Child SA"), text)
        answers = number > newest and has_any(PEER_STARTS, text) and not has_any(("sent IKE_SA_INIT request",), text)
        if not attempts or ((begins or answers) and number not in started):
            attempts.append(Attempt(line))
            started.add(number)
        if has_any(("responding to",), text) or (answers and not begins):
            attempts[-1].from_peer = True
        newest = max(newest, number)
        attempts[-1].take(line, text)
    return attempts


def take_unassigned(attempts: list[Attempt], line: LogLine, text: str) -> None:
    """Take in a line without a connection that is about the peer: part of the attempt that runs, or one of its own."""
    one = cause_of(text, False)
    if not one or (has_any(REFUSES, text) and one.name != "unknown-peer"):
        return
    if one.name in ("unknown-peer", "version-refused", "aggressive", "auth-method") or not attempts:
        if attempts and attempts[-1].rounds[-1] and attempts[-1].rounds[-1][-1].cause is one:
            attempts[-1].take(line, text)  # the peer tries again and again
            return
        if one.name != "ike-peer":
            attempts.append(Attempt(line, True))
            attempts[-1].take(line, text)
    elif "response" not in text:
        attempts[-1].take(line, text)


def last_clues(attempts: Sequence[Attempt]) -> list[Clue]:
    """Return the clues of the last attempt that tells why it failed, the most telling first; none if a Child SA was
    established after it.

    An attempt that somebody here took down at once tells nothing: pluto may begin one between a failure and the end of
    `ipsec up --once`.
    """
    pending: list[Clue] = []
    for attempt in reversed(attempts):
        clues = attempt.clues
        if clues and clues[0].cause.name not in PENDING_CAUSES:
            return clues
        pending = pending or clues
        if attempt.was_up:
            break
    return pending


def loading_complaint(lines: Sequence[LogLine], name: str) -> LogLine | None:
    """Return the last line of the log that says why pluto refused to load the connection, None if there is none."""
    for line in reversed(lines):
        conn, _, text = split_log_text(line.text)
        if belongs_to(conn, name) and has_any(("failed to add connection", "failed to load"), text):
            return line
        if belongs_to(conn, name) and has_any(("added *connection", "loaded*connection"), text):
            return None
        if text.lower().startswith(("failed to add connection", "failed to load connection")) and f'"{name}"' in text:
            return line
    return None


def last_clue(log: PlutoLog, name: str, peers: Collection[str]) -> Clue | None:
    """Return the line of the log that tells most of why a connection is down, with its cause; None if no line does.

    The cause's `short` has the reason in three words.
    """
    clues = last_clues(read_attempts(log.lines, name, peers))
    return clues[0] if clues else None


# How long up waits for more after pluto has named the cause of a failure: some releases never let whack go then
LET_GO_TIME = 6.0
# Causes after which pluto goes on to send and lets whack go by itself
SENDS_ON = frozenset(("route", "port-closed", "send-refused", "tcp", "ike-peer", "dh"))


class UpWait:
    """How long up may wait for pluto, by what pluto says: `established` is a Child SA, `cause` why it failed."""

    def __init__(self, limit: float | None) -> None:
        self.established = False
        self.lines: list[LogLine] = []
        self.cause: Cause | None = None
        self._end = None if limit is None else time.monotonic() + limit
        self._rest = b""

    def take(self, data: bytes) -> float | None:
        """Take in output of whack; return how many seconds more of it may take, None for any time."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = split_code(line)[1]
            self.lines.append(LogLine(time.time(), text))
            self._line(split_log_text(text)[2])
        seconds = LET_GO_TIME if self.cause and self.cause.name not in SENDS_ON else None
        if self._end is not None:
            left = self._end - time.monotonic()
            seconds = left if seconds is None else min(left, seconds)
        return seconds

    def _line(self, text: str) -> None:
        if has_any(CHILD_UP, text):
            self.established, self.cause = True, None
            return
        one = cause_of(text, False)
        if one and (not one.weak or one.name in ("kernel-peer", "auth-refused", "peer-refused")):
            self.cause = one


def explain_tunnels(host: Host, failed: Sequence[TunnelRow]) -> None:
    """Set `problem` and `since` of tunnels that should be up and are not, as far as pluto's log tells."""
    try:
        log = read_pluto_log(host, Config(host))
    except (Failure, OSError):
        return  # ipsec why says that the log can't be read
    for row in failed:
        clue = last_clue(log, row.name, [row.remote_host] if row.remote_host else []) if log else None
        if clue and (row.problem is None or row.state == "connecting"):
            row.problem = clue.cause.short
            row.since = int(clue.line.when) if clue.line.when and row.state == "down" else row.since


# --- verify ----------------------------------------------------------------------------------------------------------
#
# The checks of libreswan's verify (4.10; 5.0 dropped it), in its order and its form of line, and more checks
# for what breaks tunnels.  A check is a generator that is registered with its texts.  It yields troubles, and
# nothing if all is well.  It raises NotChecked, OSError or Failure if it can't be made: the finding is then
# SKIP, never OK.  Everything only reads: pluto is asked for its status, and its secrets are not reloaded
# (libreswan's verify reloads them).

# level (WARN, FAIL, or SKIP: not checked), word, reason, the command that fixes it
Trouble = tuple[str, str, str, str]


class NotChecked(Failure):
    """A check can't be made; `cause` is a key of SKIP_CAUSES.  Checks with one cause are reported in one
    line."""

    def __init__(self, cause: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


# Why checks are not made: the verb for one check and for several, the rest of the sentence, and the check
# whose line comes before it in the report ("more")
SKIP_CAUSES = {
    "root": ("needs", "need", "root", ""),
    "rights": ("needs", "need", "the capability NET_ADMIN: start the container with --cap-add NET_ADMIN", ""),
    "pluto": ("needs", "need", "pluto", "pluto"),
    "process": ("needs", "need", "to see pluto's process: run verify where pluto runs", ""),
    "configuration": ("needs", "need", "the configuration", "config"),
    "connections": ("has", "have", "nothing to check, because no connection is loaded", ""),
    "ends": ("has", "have", "nothing to check, because no connection has a known address of this host", ""),
    "secrets": ("needs", "need", "the secrets file", "secrets"),
    "database": ("needs", "need", "the NSS database", "nss"),
    "live": ("needs", "need", "the running system and can't be made under --root", ""),
}


class Finding(Record):
    """The result of a check: its name and text, `level` OK, WARN, FAIL or SKIP, the `word` in brackets, the
    reason in one sentence, one command that fixes it, and for SKIP the key of SKIP_CAUSES (empty for any
    other cause)."""

    check: str
    text: str
    level: str = "OK"
    word: str = "OK"
    why: str = ""
    mend: str = ""
    cause: str = ""


class Check(Record):
    """A check: its name, the text of its line, its function, whether only a running system can be asked, and
    the three texts of --explain: what it checks, why that matters, how to fix it."""

    name: str
    text: str
    function: Callable[[Patient], Iterator[Trouble]]
    live: bool
    checks: str
    matters: str
    fix: str


CHECKS: dict[str, Check] = {}  # by name, in the order of the report


def verify_check(name: str, text: str, checks: str, matters: str, fix: str, *,
                 live: bool = False) -> Callable[[Callable[[Patient], Iterator[Trouble]]], None]:
    """Register a function as the check `name`; a check that is `live` is left out under --root."""
    def register(function: Callable[[Patient], Iterator[Trouble]]) -> None:
        CHECKS[name] = Check(name, text, function, live, checks, matters, fix)
    return register


def once(method: Callable[[Any], Kind]) -> Callable[[Any], Kind]:
    """Decorate a method without arguments, so that it runs once for each object.

    Later calls return the same value, or raise the same OSError or Failure.
    """
    key = f"_once_{method.__name__}"

    def remembered(self: Any) -> Kind:
        if key not in self.__dict__:
            try:
                self.__dict__[key] = method(self)
            except (OSError, Failure) as error:
                self.__dict__[key] = error
        value: Any = self.__dict__[key]
        if isinstance(value, (OSError, Failure)):
            raise value
        result: Kind = value
        return result
    return remembered


class Patient:
    """The system that verify checks, and the facts about it that several checks need."""

    def __init__(self, host: Host, timeout: float) -> None:
        self.host = host
        self.timeout = timeout
        self.config = Config(host)
        # the pid file may be missing or stale
        self.pid = (find_pluto(host) or next(iter(plutos(host)), None)) if host.live else None
        self._addconn: Generator[bytes, None, None] | Failure | None = None

    # --- libreswan's own word on the configuration ------------------------------------------------------------------

    def ask_addconn(self) -> None:
        """Start the installed addconn, which reads the configuration while other checks are made.

        It is not started if a file of the configuration can't be read here, because it would wait or fail
        there, too.
        """
        host, config = self.host, self.config
        program = os.path.join(host.execdir, "addconn")
        if host.live and host.executable(program) and config.files and not config.unread:
            try:
                self._addconn = host.stream([program, "--config", config.name, "--checkconfig"],
                                            timeout=self.timeout)
            except Failure as failure:
                self._addconn = failure

    def addconn_answer(self) -> tuple[bool | None, list[str]]:
        """Return whether the installed addconn refuses the configuration, and the lines that it prints.

        None: addconn can't be asked.  Raises Failure if it can't be run, TimedOut.
        """
        output, refuses = b"", False
        if self._addconn is None:
            return None, []
        if isinstance(self._addconn, Failure):
            raise self._addconn
        try:
            for piece in self._addconn:
                output += piece
        except TimedOut:
            raise TimedOut(f"the installed addconn --checkconfig did not end within {self.timeout:g} s") from None
        except Failure as failure:
            output, refuses = output.strip() or encode(failure.message), True
        return refuses, [line for line in decode(output).splitlines() if line.strip("] \r")]

    def close(self) -> None:
        """End addconn if it still runs."""
        if self._addconn and not isinstance(self._addconn, Failure):
            self._addconn.close()

    # --- the configuration ------------------------------------------------------------------------------------------

    def read_configuration(self) -> None:
        """Raise NotChecked if there is no configuration, OSError if it can't be read."""
        if not self.config.files:
            try:
                next(self.host.lines(self.config.name), "")
            except FileNotFoundError as error:
                raise NotChecked("configuration", error_text(error)) from None

    @property
    def conns(self) -> list[Conn]:
        """The connections to check: those that pluto loads when it starts, and others that it has loaded.

        Connections that only let packets pass or drop them are left out.  Raises as read_configuration().
        """
        self.read_configuration()
        tunnels = [conn for conn in self.config.conns() if not conn.broken and not is_shunt(conn)]
        return [conn for conn in tunnels if conn.auto != "ignore" or conn.name in self.loaded_names()]

    def known_conns(self) -> list[Conn]:
        """Return `conns`; none without a configuration, for checks that look at more than connections."""
        try:
            return self.conns
        except NotChecked:
            return []

    def needed_conns(self) -> list[Conn]:
        """Return `conns`; raises NotChecked if there is none."""
        conns = self.conns
        if not conns:
            raise NotChecked("connections", "nothing to check: no connection is loaded at start or by pluto")
        return conns

    @property
    def tunnels(self) -> list[Tunnel]:
        """The connections that have an end on this host, as far as the file tells.  Raises OSError,
        NotChecked."""
        return self._tunnels()

    @once
    def _tunnels(self) -> list[Tunnel]:
        own = {address: index for address, _, _, index in Routing(self.host).addresses()}
        tunnels = []
        for conn in self.conns:
            for here, there in (("left", "right"), ("right", "left")):
                if conn.get(here) in ("%defaultroute", *own):
                    tunnels.append(self._tunnel(conn, here, there, own))
                    break
        return tunnels

    def _tunnel(self, conn: Conn, here: str, there: str, own: Mapping[str, int]) -> Tunnel:
        """Return a connection whose side `here` is this host; `own` are the host's addresses, with the index
        of their interface."""
        source, peer = conn.get(here), conn.get(there)
        if not conn_nets(conn, there, False) or peer in ANY_ID:
            peer = ""
        device = ""
        if peer:
            try:
                device = Routing(self.host).lookup(peer, source if source in own else "").device
            except OSError:
                device = ""  # there is no route now
        ours = conn_nets(conn, here)
        if conn.flag("narrowing") or conn.flag(f"{here}modecfgclient"):
            ours = []  # the peer decides the networks of a client
        pool = conn.get(f"{there}addresspool").split("-")[0]
        theirs = [pool] if pool else conn_nets(conn, there)
        return Tunnel(conn, here, ours, [net for net in ours if is_behind(net, own)], theirs, device, peer)

    def needed_tunnels(self) -> list[Tunnel]:
        """Return `tunnels`; raises NotChecked if there is none."""
        self.needed_conns()
        tunnels = self.tunnels
        if not tunnels:
            raise NotChecked("ends", "nothing to check: no connection has a known address of this host")
        return tunnels

    @property
    def sides(self) -> dict[str, str]:
        """The side of this host, `left` or `right`, for each connection where it is known.  Raises
        OSError."""
        return {tunnel.conn.name: tunnel.here for tunnel in self.tunnels} if self.host.live else {}

    @once
    def own_addresses(self) -> dict[str, str]:
        """Return the interface of each address of this host.  Raises OSError."""
        names = link_names(self.host)
        return {address: names.get(index, "") for address, _, _, index in Routing(self.host).addresses()}

    def device_to(self, net: str) -> str:
        """Return the interface that leads to a network behind this host; empty if it is unknown."""
        try:
            return "" if net in EVERYTHING else Routing(self.host).lookup(net.partition("/")[0]).device
        except OSError:
            return ""

    # --- pluto ------------------------------------------------------------------------------------------------------

    @once
    def sockets(self) -> list[tuple[Socket, bool]]:
        """Return the UDP sockets on the ports of IKE in pluto's network namespace, each with whether it is
        pluto's.

        Raises OSError.
        """
        own = open_files(self.host, self.pid) if self.pid else set()
        return [(entry, f"socket:[{entry.inode}]" in own) for entry in list_sockets(
            self.host, (500, 4500), self.pid, ("udp", "udp6"))]

    @once
    def _status(self) -> list[str]:
        try:
            return list(pluto_status(self.host, self.timeout))
        except Failure as failure:
            if failure.hint == NOT_ALLOWED and not self.host.superuser:
                raise PermissionError(failure.message) from None
            raise

    def status(self) -> list[str]:
        """Return the lines of pluto's status.  Raises NoPluto, TimedOut; PermissionError if only root may
        ask."""
        return self._status()

    def pluto_setting(self, name: str) -> str:
        """Return the value of a setting in pluto's status; empty if pluto does not answer, and under
        --root."""
        if not self.host.live:
            return ""
        try:
            return next(filter(None, (status_value(line, name) for line in self.status())), "")
        except (Failure, PermissionError):
            return ""  # the check of pluto reports it

    @once
    def loaded(self) -> dict[str, list[dict[str, Any]]]:
        """Return the connections of pluto by name, each with its instances and those of its pairs of subnets
        (`NAME/1x2`).  Raises NotChecked; PermissionError if only root may ask."""
        conns: dict[str, list[dict[str, Any]]] = {}
        reader = StatusReader()
        try:
            for line in self.status():
                if line.startswith('"'):
                    reader.connection(line)
        except Failure as failure:
            raise NotChecked("pluto", failure.message) from None
        reader.finish()
        for conn in reader.data["connections"]:
            name, _, pair = conn["name"].rpartition("/")
            first, _, second = pair.partition("x")
            is_pair = first.isdigit() and second.isdigit()
            conns.setdefault(name if is_pair else conn["name"], []).append(conn)
        return conns

    def loaded_names(self) -> Collection[str]:
        """Return the names of pluto's connections; none if pluto does not answer, and under --root."""
        try:
            return self.loaded() if self.host.live else ()
        except (Failure, OSError):
            return ()  # the check of pluto reports it

    def has_changed(self, file: str) -> bool:
        """Return whether a file has changed since pluto started; True also if that is unknown."""
        try:
            return self.host.stat(file).st_mtime >= self.host.stat(pid_file(self.host)).st_mtime
        except OSError:
            return True

    def has_loaded(self, conn: Conn) -> bool:
        """Return whether pluto has loaded the connection and its file has not changed since pluto started.

        False also if pluto does not answer.
        """
        return conn.name in self.loaded_names() and not self.has_changed(conn.file)

    def process(self) -> int:
        """Return the number of pluto's process.  Raises NotChecked if there is none, or none that is visible
        here."""
        if self.pid:
            return self.pid
        if self.pluto_setting("pluto_version"):
            raise NotChecked("process", "pluto answers, but its process is not visible here")
        raise NotChecked("pluto", "pluto is not running")

    # --- the NSS database -------------------------------------------------------------------------------------------

    @property
    def nssdir(self) -> str:
        """The directory of the NSS database: the one that an option or the environment names, that of the
        running pluto, that of the configuration, or that of the installed release."""
        return self._nssdir()

    @once
    def _nssdir(self) -> str:
        host = self.host
        name = host.given_nssdir or self.pluto_setting("nssdir").rstrip(",")
        return os.path.normpath((name or self.config.setup("nssdir") or host.nssdir).removeprefix("sql:"))

    @property
    def has_database(self) -> bool:
        """Whether both files of the NSS database exist.  Raises OSError."""
        return all(self.host.exists(f"{self.nssdir}/{name}") for name in NSS_FILES[1:])

    def database(self) -> NssDatabase:
        """Return the NSS database.  Raises NotChecked if a file of it is missing; OSError."""
        if not self.has_database:
            if not self.host.superuser and self.host.exists(self.nssdir):
                self.host.listdir(self.nssdir)  # only root may see what is in it
            raise NotChecked("database", f"{self.nssdir} has no NSS database")
        return NssDatabase(self.host, self.nssdir)

    @property
    def needs_database(self) -> bool:
        """Whether the NSS database holds a certificate, or connections name certificates or keys in it.
        Raises OSError."""
        return self._needs_database()

    @once
    def _needs_database(self) -> bool:
        words = ("cert", "ckaid", "rsasigkey", "ecdsakey", "pubkey")
        return NssDatabase(self.host, self.nssdir).has_certificates() or any(
            conn.get(f"{side}{word}") for conn in self.known_conns() for side in ("left", "right")
            for word in words)

    # --- the kernel -------------------------------------------------------------------------------------------------

    @once
    def _kernel_files(self) -> tuple[str, str]:
        """Return the lists of the running kernel's modules, and its configuration; empty where they are
        missing."""
        host = self.host
        names = [f"/lib/modules/{host.kernel_release()}/modules.{name}" for name in ("dep", "builtin")]
        try:
            options = kernel_config(host)
        except Failure:
            options = ""
        return "".join(map(host.value, names)), f"\n{options}"

    def kernel_has(self, option: str, module: str) -> bool | None:
        """Return whether the running kernel has CONFIG_`option` or can load the module; None if nothing
        tells."""
        host = self.host
        if has_module(host, module):
            return True
        files, options = self._kernel_files()
        if f"/{module}.ko" in files or f"/{module}_generic.ko" in files or f"\nCONFIG_{option}=y" in options:
            return True
        if f"\nCONFIG_{option}=m" in options and not files:
            # /lib/modules of another kernel; a container has none
            return False if host.isdir("/lib/modules") else None
        return False if files or len(options) > 1 else None

    def module_fix(self, modules: Sequence[str]) -> str:
        """Return the fix for missing modules of the running kernel."""
        host, names = self.host, " ".join(modules)
        marks = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
        if any(map(host.exists, marks)) or (host.superuser and not has_capability(host, SYS_MODULE)):
            return f"on the host of this container: modprobe {names}"
        if host.isdir(f"/lib/modules/{host.kernel_release()}"):
            return f"modprobe {names}"
        if host.isdir("/lib/modules"):
            return "boot a kernel whose modules are installed in /lib/modules"
        return f"boot a kernel that has {names}"

    def unknown_modules(self, modules: Sequence[str]) -> Trouble:
        """Return the trouble for modules of which kernel_has() knows nothing."""
        return ("SKIP", "UNKNOWN", f"nothing here tells whether the kernel can load {', '.join(modules)}",
                self.module_fix(modules))

    @once
    def crypto(self) -> dict[str, str]:
        """Return crypto_algorithms().  Raises OSError."""
        return crypto_algorithms(self.host)

    # --- the firewall -----------------------------------------------------------------------------------------------

    @once
    def _tables(self) -> list[Table]:
        return filter_tables(self.host, self.timeout)

    @property
    def tables(self) -> list[Table]:
        """The rules of the firewall.  Raises OSError, Failure."""
        return self._tables()

    @property
    def targets(self) -> set[str]:
        """The targets of the firewall's rules, in lower case.  Raises as `tables`."""
        return self._targets()

    @once
    def _targets(self) -> set[str]:
        return {target.lower() for _, table in self.tables for chain in table.values() for _,
                target in chain.rules}

    def gives_source(self, net: str) -> bool:
        """Return whether NAT gives packets a source in this network; their source is another one before that.
        Raises as `tables`."""
        targets = [target.split() for _, table in self.tables for chain in table.values()
                   for _, target in chain.rules]
        return any(len(words) == 2 and words[0].lower() == "snat" and net_fits(words[1], net)
                   for words in targets)

    def blocks(self, hooks: str, kind: str = "", what: str = "drop", **packet: str) -> str:
        """Return the command that puts a rule before those that certainly drop the packet at one of the
        hooks.

        Empty if no rule certainly does.  `what` is another verdict to look for.  The packet's family is IPv4
        by default.  Raises OSError, Failure.
        """
        if "notrack" in self.targets:
            packet.pop("state", "")  # other rules decide which packets are tracked
        packet = {"family": "ipv4", "status": "", **{name.replace("_", "-"): packet[name] for name in packet}}
        return next((chain.insert for family, table in self.tables
                     if family in TABLE_FAMILIES[packet["family"]]
                     for chain in table.values() if chain.hook in hooks.split() and chain.kind == kind
                     and verdict(table, chain, packet) == what), "")


class Tunnel(Record):
    """A connection with one end on this host.

    `here` is this host's side, left or right.  `ours` are the networks of this end (none if the peer decides
    them), `behind` those of them that this host must forward packets for, `theirs` the networks of the peer.
    `device` is the interface towards the peer and `peer` its address; both are empty if unknown.
    """

    conn: Conn
    here: str
    ours: list[str]
    behind: list[str]
    theirs: list[str]
    device: str
    peer: str

    @property
    def inner(self) -> str:
        """The interface that packets pass before they are encrypted and after they are decrypted."""
        number = self.conn.get("ipsec-interface", "no").lower()
        if number.isdigit():
            return f"ipsec{number}"
        if is_yes(number):
            return "ipsec1"
        return self.conn.get("vti-interface") or self.device

    @property
    def family(self) -> str:
        """The IP family of the encrypted packets, `ipv4` or `ipv6`."""
        return family_of(self.conn.get("left") + self.conn.get("right"))

    def pairs(self, ours: Sequence[str]) -> list[tuple[str, str]]:
        """Return which of `ours` talks to which network of the peer: all pairs of the same IP family."""
        return [(one, other) for one in ours for other in self.theirs if family_of(one) == family_of(other)]


def is_behind(net: str, own: Mapping[str, int]) -> bool:
    """Return whether this host forwards packets for a network: not for an address of its own, nor for a
    network that is inside the host, as an address on the loopback interface tells (index 1 in `own`)."""
    if is_single(net) and net.partition("/")[0] in own:
        return False
    inside = [address for address, index in own.items() if index == 1 and address not in ("127.0.0.1", "::1")]
    return net in EVERYTHING or not any(within(address, net) for address in inside)


def is_single(net: str) -> bool:
    """Return whether a network is a single address."""
    bits = net.partition("/")[2]
    return bits in ("", "128" if ":" in net else "32")


SYS_MODULE = 16  # CAP_SYS_MODULE of linux/capability.h


def has_capability(host: Host, number: int) -> bool:
    """Return whether this process has a capability (proc_pid_status(5)); True if /proc does not tell."""
    for line in host.value("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return True


def both_here(patient: Patient, conn: Conn) -> bool:
    """Return whether both ends of a connection are addresses of this host; pluto never brings it up."""
    return all(conn.get(side) in patient.own_addresses() for side in ("left", "right"))


def edit_command(problem: Problem | Setting | Conn) -> str:
    """Return the command that opens a file at the line with the problem, or that corrects the whole file."""
    if isinstance(problem, Problem) and problem.script:
        return shell_words(["sed", "-i", problem.script, problem.file])
    return shell_words(["vi", *([f"+{problem.line}"] if problem.line else ()), problem.file])


def interface_sysctls(host: Host, option: str, family: str = "ipv4") -> dict[str, str]:
    """Return a sysctl below net.ipv4.conf (or ipv6) of each interface, without `all`, `default` and `lo`."""
    directory = f"/proc/sys/net/{family}/conf"
    names = host.listdir(directory) if host.isdir(directory) else []
    return {name: host.value(f"{directory}/{name}/{option}") for name in names
            if name not in ("all", "default", "lo")}


def sysctl_command(option: str, interfaces: Sequence[str], value: int) -> str:
    """Return the command that sets a sysctl below net.ipv4.conf of interfaces."""
    names = (name.replace(".", "/") for name in interfaces)
    return shell_words(["sysctl", "-w", *(f"net.ipv4.conf.{name}.{option}={value}" for name in names)])


def pluto_fix(patient: Patient, is_hung: bool) -> str:
    """Return the command that starts pluto, or restarts a pluto that does not answer (`is_hung`)."""
    if not patient.host.exists(os.path.join(patient.host.execdir, "pluto")):
        return install_command(patient.host, "libreswan")
    return "ipsec restart" if is_hung else "ipsec start"


@verify_check(
    "installed", "Version check and ipsec on-path",
    "Whether pluto is in the directory of libreswan's own programs and can be executed.",
    "Pluto negotiates keys with the peer; without it there are no tunnels.",
    "Install the package libreswan. If pluto is in another directory, set IPSEC_EXECDIR.")
def check_installed(patient: Patient) -> Iterator[Trouble]:
    program = os.path.join(patient.host.execdir, "pluto")
    if not patient.host.exists(program):
        yield ("FAIL", "FAILED", f"libreswan is not installed: no pluto in {patient.host.execdir}",
               install_command(patient.host, "libreswan"))
    elif not patient.host.executable(program):
        yield "FAIL", "FAILED", f"{program} can't be executed", shell_words(["chmod", "755", program])


@verify_check(
    "xfrm", "Checking for IPsec support in kernel",
    "Whether the kernel's XFRM stack answers on a NETLINK_XFRM socket, whether root may change it, and "
    "whether disable_xfrm is off where tunnels leave this host.",
    "XFRM encrypts and decrypts packets. Pluto does not start without it.",
    "modprobe xfrm_user. If that module is missing, use a kernel with CONFIG_XFRM_USER. In a container: "
    "start it with --cap-add NET_ADMIN.", live=True)
def check_xfrm(patient: Patient) -> Iterator[Trouble]:
    host = patient.host
    if not host.has_xfrm():
        yield "FAIL", "FAILED", "the kernel has no XFRM stack", patient.module_fix(["xfrm_user"])
        return
    try:
        for _ in policy_messages(host):
            break
    except PermissionError:
        # an ordinary user is refused, too, but the refusal shows that the stack answers
        if host.superuser and not patient.pid:
            yield ("FAIL", "NO RIGHT",
                   "root has no capability NET_ADMIN here, so pluto can't set up IPsec in the "
                   "kernel", "start the container with --cap-add NET_ADMIN")
    except OSError as error:
        yield ("FAIL", "NO NETLINK", f"{error_text(error)}: pluto can't talk to the kernel",
               "modprobe xfrm_user")
    tunnels = patient.tunnels if patient.known_conns() else []
    for device in {tunnel.device: None for tunnel in tunnels if tunnel.device not in ("", "lo")}:
        if read_sysctl(host, f"net.ipv4.conf.{device.replace('.', '/')}.disable_xfrm") == "1":
            yield ("FAIL", "DISABLED",
                   f"disable_xfrm is set on {device}: packets leave it without encryption",
                   sysctl_command("disable_xfrm", [device], 0))


def redirect_troubles(patient: Patient, option: str) -> Iterator[Trouble]:
    """Yield the trouble of a gateway that sends or accepts ICMP redirects, which lead around the tunnel.

    On a gateway an interface sends redirects if it or `all` allows it, and accepts them if both do
    (ip-sysctl.rst).  A host that does not forward sends none.
    """
    host = patient.host
    if read_sysctl(host, "net.ipv4.ip_forward") != "1":
        return
    combine = max if option == "send_redirects" else min
    everywhere = read_sysctl(host, f"net.ipv4.conf.all.{option}")
    values = interface_sysctls(host, option)
    on = [name for name, value in values.items() if combine(value, everywhere) == "1"]
    if on:
        verb = "sends" if option == "send_redirects" else "accepts"
        yield ("WARN", "NOT DISABLED", f"this gateway {verb} ICMP redirects on {', '.join(on[:5])}",
               sysctl_command(option, ("all", *on), 0))


@verify_check(
    "send_redirects", "         ICMP send_redirects",
    "send_redirects of each interface, on a host that forwards packets.",
    "If a packet for a tunnel leaves by the interface on which it arrived, the gateway tells the sender "
    "about a shorter route. That route bypasses the tunnel.",
    "Set net.ipv4.conf.*.send_redirects to 0, and keep the setting in /etc/sysctl.d.", live=True)
def check_send_redirects(patient: Patient) -> Iterator[Trouble]:
    yield from redirect_troubles(patient, "send_redirects")


@verify_check(
    "accept_redirects", "         ICMP accept_redirects",
    "accept_redirects of each interface, on a host that forwards packets.",
    "A redirect that the gateway accepts creates a route that bypasses the tunnel.",
    "Set net.ipv4.conf.*.accept_redirects to 0, and keep the setting in /etc/sysctl.d.", live=True)
def check_accept_redirects(patient: Patient) -> Iterator[Trouble]:
    yield from redirect_troubles(patient, "accept_redirects")


@verify_check(
    "larval_drop", "         XFRM larval drop",
    "Whether net.core.xfrm_larval_drop is 1.",
    "If it is 0, programs block while a tunnel is being negotiated.",
    "sysctl -w net.core.xfrm_larval_drop=1, which is the kernel's default.", live=True)
def check_larval_drop(patient: Patient) -> Iterator[Trouble]:
    value = read_sysctl(patient.host, "net.core.xfrm_larval_drop")
    if value == "0":
        yield ("FAIL", "NOT ENABLED", "programs block while a tunnel is being negotiated",
               "sysctl -w net.core.xfrm_larval_drop=1")
    elif not value:
        yield "SKIP", "UNKNOWN", "net.core.xfrm_larval_drop can't be read here", ""


@verify_check(
    "config", "Pluto ipsec.conf syntax",
    "ipsec.conf and all files that it includes. The installed addconn --checkconfig decides; the built-in "
    "reader, which names file and line, decides only where addconn is missing.",
    "Libreswan does not load a connection with an error, and after some errors it loads none.",
    "Correct the line that is named; ipsec.conf(5) describes the syntax.")
def check_config_syntax(patient: Patient) -> Iterator[Trouble]:
    config = patient.config
    fatal = [problem for problem in config.problems if problem.fatal]
    if (fatal or config.unread) and not patient.host.superuser:
        next(patient.host.lines(config.name), "")  # raises PermissionError if only root may read it
    refuses, lines = patient.addconn_answer()
    if fatal and refuses is not False:
        version = patient.host.libreswan_version()
        which = f", judged as libreswan {version} does" if refuses is None and version and config.files else ""
        yield "FAIL", "PARSE ERROR", "; ".join(map(str, fatal[:3])) + which, edit_command(fatal[0])
        return
    if refuses:
        yield "FAIL", "REFUSED", *refused_by_addconn(config, lines[-1])
        return
    yield from accepted_troubles(patient, fatal, lines)


def accepted_troubles(patient: Patient, fatal: Sequence[Problem], lines: Sequence[str]) -> Iterator[Trouble]:
    """Yield the troubles of a configuration that the installed addconn accepts, or that has no error.

    `fatal` are the errors that only the built-in reader finds, `lines` the output of addconn.
    """
    config = patient.config
    for problem in fatal[:3]:
        yield "WARN", "DOUBTFUL", f"{problem}; the installed addconn accepts it", edit_command(problem)
    includes = [problem for problem in config.problems if problem.key == "include" and not problem.fatal]
    for problem in includes[:3]:
        yield "WARN", "NOT LOADED", str(problem), edit_command(problem)
    yield from addconn_complaints(patient, [line for line in lines if not includes or "include" not in line
                                            and "ipsec.conf file" not in line])


def complaint_words(line: str) -> list[str]:
    """Return the words of a line of addconn, without its punctuation."""
    return line.translate({ord(char): " " for char in ":,[]'\"=\r"}).split()


def known_keywords() -> set[str]:
    """Return the keywords of `config setup` and of connections."""
    return {*keywords(True), *keywords(False)}


def named_place(config: Config, words: Sequence[str]) -> tuple[str, int] | None:
    """Return the file and line that the words of a complaint name; None if they name none."""
    for before, word in zip(words, words[1:]):
        if before in config.files and word.isdigit():
            return before, int(word)
    return None


def refused_by_addconn(config: Config, line: str) -> tuple[str, str]:
    """Return the reason and the command that corrects it, for a file that addconn refuses with this last
    line.

    Only the place and a keyword of the line are shown.  The rest may be a secret that belongs in
    ipsec.secrets.
    """
    words, known = complaint_words(line), known_keywords()
    keyword = next((word for word in words if canonical(word) in known), "")
    file = next((word for word in words if word in config.files), config.name)
    _, number = named_place(config, words) or (file, 0)
    problem = Problem(file, number, f"the installed addconn refuses {keyword or 'this'}")
    return f"{problem}, see ipsec addconn --checkconfig", edit_command(problem)


def addconn_complaints(patient: Patient, lines: Sequence[str]) -> Iterator[Trouble]:
    """Yield at most three complaints of addconn about a configuration that it accepts.

    Complaints about lines that the built-in reader reports, too, are left out.
    """
    config, shown = patient.config, 0
    told = {(problem.file, problem.line) for problem in config.problems}
    told_keys = {problem.key for problem in config.problems if problem.key}
    seen: set[str] = set()
    for line in lines:
        sentence, words = addconn_sentence(config, line), complaint_words(line)
        if named_place(config, words) in told or sentence in seen or shown == 3:
            continue
        seen.add(sentence)
        known = known_keywords()
        keyword = next((canonical(word) for word in words if canonical(word) in known), "")
        if keyword not in told_keys:
            shown += 1
            yield complaint_trouble(patient, line, sentence, keyword)


def complaint_trouble(patient: Patient, line: str, sentence: str, keyword: str) -> Trouble:
    """Return the trouble for one line of addconn; `sentence` is addconn_sentence(), `keyword` the one that it
    names.

    Up to 4.15 addconn names the connection: while loading 'NAME'.  5.x often does not.
    """
    config = patient.config
    conn = next((conn for conn in config.conns() if f"'{conn.name}'" in line or f" {conn.name} " in line),
                None)
    file, number = named_place(config, complaint_words(line)) or (config.name, 0)
    if conn:
        place = conn.settings.get(keyword) or conn
        file, number = place.file, place.line
    # addconn loads some connections that it complains about; of one with a bad network it loads all but that
    # network
    is_refused = conn is not None and ("bad subnet" in line or not patient.has_loaded(conn))
    verb = "refuses" if is_refused else "complains about"
    what = f"conn {conn.name}" if conn and conn.name not in sentence else "this"
    problem = Problem(file, number, f"the installed addconn {verb} {what}: {sentence}")
    return ("FAIL" if is_refused else "WARN", "REFUSED", f"{problem}; see ipsec addconn --checkconfig",
            edit_command(problem))


def addconn_sentence(config: Config, line: str) -> str:
    """Return a line of addconn without its quotations from the configuration, which may be secrets.

    Names of connections, keywords, files that were read, patterns of includes, and numbers stay.
    """
    for lead in ("ERROR: ", "ipsec addconn: ", "addconn, in config "):
        line = line.removeprefix(lead)
    line = line.removeprefix(f"'{config.name}', ").removeprefix("ignoring: ")
    if line.startswith("while loading '"):
        line = line.partition("': ")[2]
    known = known_keywords()
    for cut in ("invalid value: ", "keyword ignored: ", "only one value, not "):
        head, separator, rest = line.partition(cut)
        word = rest.partition("=")[0]
        if separator:
            line = head + separator + (word if canonical(word) in known else "")
    harmless_words = {*(conn.name for conn in config.conns()), *config.files, *known}
    directories = {os.path.dirname(file) for file in config.files}
    pieces = []
    quote_char, start = "", 0
    for place, char in enumerate(line):
        if quote_char and char == quote_char:
            inside = line[start:place]
            is_plain = inside in harmless_words or inside.isdigit() or os.path.dirname(inside) in directories
            pieces.append(f"{quote_char}{inside if is_plain else '…'}{quote_char}")
            quote_char, start = "", place + 1
        elif not quote_char and char in "'\"":
            pieces.append(line[start:place])
            quote_char, start = char, place + 1
    pieces.append("…" if quote_char else line[start:])
    return " ".join(f"{word.partition('=')[0]}=" if "=" in word else word for word in "".join(pieces).split())


@verify_check(
    "rp_filter", "Checking rp_filter",
    "The reverse path filter of each interface. The kernel uses the higher of the interface's own value and "
    "that of `all`: 2 (loose) overrides 1 (strict).",
    "A strict filter drops packets that arrive on an interface other than the one used for the reply, for "
    "example on a gateway with two uplinks. Packets that come out of a tunnel are not filtered.",
    "Set net.ipv4.conf.*.rp_filter to 2, and keep the setting in /etc/sysctl.d.", live=True)
def check_rp_filter(patient: Patient) -> Iterator[Trouble]:
    host = patient.host
    everywhere = read_sysctl(host, "net.ipv4.conf.all.rp_filter")  # ip-sysctl.rst
    values = interface_sysctls(host, "rp_filter")
    strict = [name for name, value in values.items() if max(value, everywhere) == "1"]
    if not strict:
        return
    troubles = 0
    for tunnel, device, back in dropped_peers(patient, strict):
        troubles += 1
        yield ("FAIL", "ENABLED",
               f"conn {tunnel.conn.name}: {tunnel.peer} is in the network of {device}, whose "
               f"filter is strict, and the route to it leads to {back}: its packets are dropped",
               sysctl_command("rp_filter", [device], 2))
    if not troubles:
        yield ("WARN", "ENABLED",
               f"strict on {', '.join(strict[:5])}: packets arriving on an interface other than "
               "the one used for the reply are dropped (e.g. two uplinks)",
               sysctl_command("rp_filter", strict, 2))


def dropped_peers(patient: Patient, strict: Sequence[str]) -> Iterator[tuple[Tunnel, str, str]]:
    """Yield each tunnel whose peer the strict filter drops, with the interface of the peer's network and the
    one of the route to the peer.

    Only peers in a network of this host are judged: for others the incoming interface is unknown.  Raises
    OSError.
    """
    routing, links = Routing(patient.host), link_names(patient.host)
    own_nets = {address: (links.get(index, ""), bits) for address, bits, _, index in routing.addresses()}
    for tunnel in patient.tunnels:
        own = tunnel.conn.get(tunnel.here)
        device, bits = own_nets.get(own, ("", 0))
        if device in strict and tunnel.peer and within(tunnel.peer, f"{own}/{bits}"):
            try:
                back = routing.lookup(tunnel.peer, own).device
            except OSError:
                back = "no interface"
            if back != device:
                yield tunnel, device, back


# What a connection needs from the kernel: a keyword (or `any`), the value that needs it (empty: any but `no`;
# `:`: an IPv6 address), the kernel's option, the module
KERNEL_PARTS = (("any", "", "INET_ESP", "esp4"), ("any", ":", "INET6_ESP", "esp6"),
                ("phase2", "ah", "INET_AH", "ah4"),
                ("compress", "yes", "INET_IPCOMP", "ipcomp"), ("vti-interface", "", "NET_IPVTI", "ip_vti"),
                ("ipsec-interface", "", "XFRM_INTERFACE", "xfrm_interface"))
# The words of esp= (longest first), the algorithm in /proc/crypto, the option, the module
KERNEL_ALGORITHMS = (
    ("chacha20_poly1305", "rfc7539esp(chacha20,poly1305)", "CRYPTO_CHACHA20POLY1305", "chacha20poly1305"),
    ("aes_gmac", "rfc4543(gcm(aes))", "CRYPTO_GCM", "gcm"),
    ("aes_gcm", "rfc4106(gcm(aes))", "CRYPTO_GCM", "gcm"),
    ("aes_ccm", "rfc4309(ccm(aes))", "CRYPTO_CCM", "ccm"),
    ("aes_ctr", "rfc3686(ctr(aes))", "CRYPTO_CTR", "ctr"),
    ("aes_xcbc", "xcbc(aes)", "CRYPTO_XCBC", "xcbc"), ("aes_cmac", "cmac(aes)", "CRYPTO_CMAC", "cmac"),
    ("aes", "cbc(aes)", "CRYPTO_CBC", "cbc"), ("3des", "cbc(des3_ede)", "CRYPTO_DES", "des_generic"),
    ("camellia", "cbc(camellia)", "CRYPTO_CAMELLIA", "camellia_generic"),
    ("sha2_512", "hmac(sha512)", "CRYPTO_SHA512", "sha512"),
    ("sha2_384", "hmac(sha384)", "CRYPTO_SHA512", "sha512"),
    ("sha2", "hmac(sha256)", "CRYPTO_SHA256", "sha256"), ("sha1", "hmac(sha1)", "CRYPTO_SHA1", "sha1"),
    ("md5", "hmac(md5)", "CRYPTO_MD5", "md5"))
# all releases propose these, and every peer takes one of them
DEFAULT_ESP = "aes_gcm,aes-sha2_512,aes-sha2_256"
# the most that ESP in UDP adds to an IPv4 packet: 20 IP, 8 UDP, 8 ESP, 16 IV, 2 + 15 padding, 16-32 ICV
ESP_ROOM = 88
IPV6_LEAST_MTU = 1280
BUILT = 1767225600  # 2026-01-01: this program is younger, so no right clock shows an earlier time


def needs_part(conn: Conn, key: str, value: str) -> bool:
    """Return whether a connection needs a row of KERNEL_PARTS."""
    if key == "any":
        return value in conn.get("left") + conn.get("right")
    if value:
        return conn.get(key) == value
    return conn.get(key) not in ("", "no")


@verify_check(
    "esp", "Checking for ESP and AH in the kernel",
    "Whether the kernel has ESP for IPv4, and what else connections need: IPv6, AH, IPComp, VTI and XFRM "
    "interfaces. The check looks at the loaded modules, at /lib/modules, and at the kernel's configuration.",
    "IKE succeeds, but the tunnel fails when pluto hands its keys to the kernel; or pluto does not start.",
    "modprobe the module that is named. If it is missing, install the modules for `uname -r`, or boot a "
    "kernel that has them. In a container, load them on its host.", live=True)
def check_esp(patient: Patient) -> Iterator[Trouble]:
    missing: list[str] = []
    unknown: list[str] = []
    conns = patient.known_conns()
    for key, value, option, module in KERNEL_PARTS:
        if (key, value) != ("any", "") and not any(needs_part(conn, key, value) for conn in conns):
            continue
        has = patient.kernel_has(option, module)
        if has is False:
            missing.append(module)
        elif has is None:
            unknown.append(module)
    if missing:
        what = "ESP" if missing[0].startswith("esp") else "that protocol"
        yield ("FAIL", "MISSING",
               f"this kernel has no {', '.join(missing)}, so it can't do {what}; install the "
               f"modules for {patient.host.kernel_release()}, or boot a kernel that has them",
               patient.module_fix(missing))
    elif unknown:
        yield patient.unknown_modules(unknown)


@verify_check(
    "algorithms", "Checking the kernel's algorithms for ESP",
    "Whether the kernel has the algorithms in esp= and phase2alg= of all connections; without these "
    "keywords, AES-GCM, and AES-CBC with SHA-2.",
    "Pluto agrees on an algorithm with the peer, and then the kernel refuses the keys.",
    "modprobe the module that is named, or propose another algorithm in esp=.", live=True)
def check_algorithms(patient: Patient) -> Iterator[Trouble]:
    known: dict[str, bool | None] = {}  # what kernel_has() says about each module
    troubles = 0
    lists = {conn.get("esp") or DEFAULT_ESP: f"conn {conn.name}" for conn in patient.known_conns()}
    for proposals, user in (lists or {DEFAULT_ESP: "any connection"}).items():
        missing = [lacking_modules(patient, proposal, known)
                   for proposal in proposals.replace(" ", "").split(",")]
        if any(missing):
            troubles += 1
            modules = list(dict.fromkeys(module for group in missing for module in group))
            others = "" if all(missing) else "; the other proposals still work"
            yield ("FAIL" if all(missing) else "WARN", "MISSING",
                   f"{user}: {proposals} needs {' and '.join(modules)}, "
                   f"which this kernel lacks{others}", patient.module_fix(modules))
    unknown = [module for module, has in known.items() if has is None]
    if unknown and not troubles:
        yield patient.unknown_modules(unknown)


def lacking_modules(patient: Patient, proposal: str, known: dict[str, bool | None]) -> list[str]:
    """Return the modules that the kernel lacks for a proposal of esp=; add what kernel_has() says to `known`.

    Raises OSError if /proc/crypto can't be read.
    """
    modules = []
    proposal = proposal.lower().partition(";")[0].replace("aesgcm", "aes_gcm").replace("sha512", "sha2_512")
    ready = patient.crypto()
    for word in proposal.split("-"):
        row = next((row for row in KERNEL_ALGORITHMS if row[0] in word), None)
        if row and row[1] not in ready:
            if row[3] not in known:
                known[row[3]] = patient.kernel_has(*row[2:])
            if known[row[3]] is False:
                modules.append(row[3])
    return modules


@verify_check(
    "forwarding", "Checking IP forwarding",
    "net.ipv4.ip_forward and net.ipv6.conf.*.forwarding, if a connection has a subnet behind this host.",
    "The tunnel is up and this host answers, but nothing behind it can be reached.",
    "sysctl -w net.ipv4.ip_forward=1, and keep the setting in /etc/sysctl.d.", live=True)
def check_forwarding(patient: Patient) -> Iterator[Trouble]:
    tunnels = patient.needed_tunnels()
    for family, option in (("ipv4", "net.ipv4.ip_forward"), ("ipv6", "net.ipv6.conf.all.forwarding")):
        forwards = interface_sysctls(patient.host, "forwarding", family)
        needs = [(f"conn {tunnel.conn.name} needs IP forwarding for {net}", device)
                 for tunnel in tunnels for net in tunnel.behind
                 if family_of(net) == family and tunnel.inner == tunnel.device
                 for device in (patient.device_to(net), tunnel.device)]
        if needs and "1" not in forwards.values():
            yield "FAIL", "DISABLED", f"{needs[0][0]}; it is off", f"sysctl -w {option}=1"
            continue
        off = {device: why for why, device in needs if forwards.get(device) == "0"}
        for device, why in off.items():
            name = device.replace(".", "/")
            yield ("FAIL", "DISABLED", f"{why}; it is off for packets that arrive on {device}",
                   shell_words(["sysctl", "-w", f"net.{family}.conf.{name}.forwarding=1"]))


@verify_check(
    "peers", "Checking routes to peers and their networks",
    "Whether this host has a route to the peer of each connection and, while the connection is routed or "
    "up, to the networks behind the peer; and whether only one end is an address of this host.",
    "Without a route to the peer, IKE can't leave this host. Without a route to the networks behind it, the "
    "kernel drops packets before it encrypts them.",
    "Add the route that is named; ipsec route CONN adds the routes of a connection again.", live=True)
def check_peers(patient: Patient) -> Iterator[Trouble]:
    routing = Routing(patient.host)
    for conn in patient.needed_conns():
        if both_here(patient, conn) and conn.name not in patient.loaded_names():
            yield ("FAIL", "BOTH ENDS",
                   f"conn {conn.name}: both {conn.get('left')} and {conn.get('right')} are "
                   "addresses of this host", edit_command(conn))
    for tunnel in patient.needed_tunnels():
        name, source = tunnel.conn.name, tunnel.conn.get(tunnel.here)
        if tunnel.peer and not tunnel.device:
            yield ("FAIL", "NO ROUTE", f"conn {name}: no route to the peer {tunnel.peer}",
                   f"ip route add {tunnel.peer} via GATEWAY")
            continue
        if not is_routed(patient, tunnel.conn) or "vti-interface" in tunnel.conn.settings:
            continue
        for net in tunnel.theirs:
            try:
                if net not in EVERYTHING:
                    routing.lookup(net.partition("/")[0])
            except OSError as error:
                yield ("FAIL", "NO ROUTE",
                       f"conn {name} is routed, and there is no route from {source} to its network "
                       f"{net} ({error.strerror}): the kernel drops packets before it encrypts them",
                       shell_words(["ip", "route", "replace", net, "dev", tunnel.device or "DEVICE"]))


def is_routed(patient: Patient, conn: Conn) -> bool:
    """Return whether pluto has routed the connection or has it up; False if pluto does not answer."""
    if conn.name not in patient.loaded_names():
        return False
    return any(one["child_sa"] or not one["routing"].startswith("unrouted")
               for one in patient.loaded()[conn.name])


@verify_check(
    "mtu", "Checking MTU and path MTU discovery",
    "The MTU of the interfaces, mtu= of connections, and net.ipv4.ip_no_pmtu_disc.",
    "ESP makes packets up to 88 bytes longer. Packets that no longer fit are dropped silently if path MTU "
    "discovery is blocked: small packets pass, a download stalls.",
    "Raise the interface's MTU, keep path MTU discovery on, or lower mtu= of the connection.", live=True)
def check_mtu(patient: Patient) -> Iterator[Trouble]:
    if read_sysctl(patient.host, "net.ipv4.ip_no_pmtu_disc") not in ("", "0"):
        yield ("WARN", "NO PMTU", "path MTU discovery is off (ip_no_pmtu_disc)",
               "sysctl -w net.ipv4.ip_no_pmtu_disc=0")
    tunnels = patient.needed_tunnels()
    mtus = {}
    for buffer, start, end in dump(patient.host, NETLINK_ROUTE, RTM_GETLINK, bytes(16)):
        more = attributes(buffer, start + IFINFOMSG_SIZE, end)
        mtus[decode(more[IFLA_IFNAME].rstrip(b"\0"))] = unsigned(more.get(IFLA_MTU))
    for device in {tunnel.device: None for tunnel in tunnels if tunnel.device in mtus}:
        if mtus[device] < IPV6_LEAST_MTU + ESP_ROOM:
            yield ("WARN", "SMALL",
                   f"{device} carries tunnels, and its MTU of {mtus[device]} is too small for ESP "
                   f"with a packet of {IPV6_LEAST_MTU} bytes, which IPv6 needs",
                   shell_words(["ip", "link", "set", device, "mtu", "1500"]))
    for tunnel in tunnels:
        mtu = tunnel.conn.get("mtu")
        if mtu.isdigit() and tunnel.device in mtus and int(mtu) > mtus[tunnel.device] - ESP_ROOM // 2:
            yield ("WARN", "TOO LARGE",
                   f"conn {tunnel.conn.name}: a packet of mtu={mtu} with ESP does not fit into "
                   f"the {mtus[tunnel.device]} bytes of {tunnel.device}",
                   edit_command(tunnel.conn.settings["mtu"]))


class Traffic(Record):
    """Packets that the peers exchange: the words for them of iptables and nft, the level of the trouble if
    they are dropped (empty: the connections decide), and their fields in the form of verdict()."""

    name: str
    iptables: str
    nft: str
    level: str
    packet: dict[str, str]


IKE_TRAFFIC = (
    Traffic("UDP 500", "-p udp --dport 500", "udp dport 500", "FAIL",
            {"proto": "udp 17", "sport": "500", "dport": "500"}),
    Traffic("UDP 4500", "-p udp --dport 4500", "udp dport 4500", "",
            {"proto": "udp 17", "sport": "4500", "dport": "4500"}),
    Traffic("ESP", "-p esp", "meta l4proto esp", "", {"proto": "esp 50"}),
    Traffic("AH", "-p ah", "meta l4proto ah", "", {"proto": "ah 51"}),
    Traffic("ICMP fragmentation-needed", "-p icmp --icmp-type 3", "icmp type destination-unreachable", "WARN",
            {"proto": "icmp 1", "icmp": "3/4 3 any destination-unreachable", "state": "related",
             "family": "ipv4"}),
    Traffic("ICMPv6 packet-too-big", "-p icmpv6 --icmpv6-type 2", "icmpv6 type packet-too-big", "WARN",
            {"proto": "icmpv6 ipv6-icmp 58", "icmp": "2/0 2 any packet-too-big", "state": "related",
             "family": "ipv6"}))


class Roles(Record):
    """What connections ask of a firewall: whether unknown peers begin (`answers`), peers may begin (`waits`)
    or this host does (`begins`), and the level of the trouble if a kind of IKE_TRAFFIC is dropped (empty: it
    is not needed)."""

    answers: bool
    waits: bool
    begins: bool
    levels: dict[str, str]


def roles_of(conns: Sequence[Conn]) -> Roles:
    """Return what these connections ask of a firewall."""
    answers = any("%any" in (conn.get("left"), conn.get("right")) for conn in conns)
    servers = [conn for conn in conns if not conn.flag("leftmodecfgclient")
               and not conn.flag("rightmodecfgclient")]
    waits = answers or any(conn.auto in ("add", "keep", "ignore") for conn in servers)
    begins = any(conn.auto in ("start", "ondemand") for conn in conns)
    kinds = {conn.get("phase2", "esp") for conn in conns if conn.get("encapsulation") != "yes"}
    in_udp = any(conn.get("encapsulation") == "yes" for conn in conns)
    return Roles(answers, waits, begins, {"UDP 4500": "FAIL" if in_udp else "WARN",
                                          "ESP": "FAIL" if "esp" in kinds else "",
                                          "AH": "FAIL" if "ah" in kinds else ""})


@verify_check(
    "firewall", "Checking the firewall for IKE and ESP",
    "What the rules of nftables and iptables do with UDP 500, UDP 4500 and ESP (or AH), incoming and "
    "outgoing, and with incoming ICMP fragmentation-needed. Only what is certain counts: a rule that may "
    "accept the packet ends the search.",
    "If these packets are dropped, IKE gets no answer, a tunnel carries no packets, or large packets "
    "disappear.",
    "Accept udp 500, udp 4500, esp and ICMP errors (related) in the chain that is named, before the rule "
    "that drops them.",
    live=True)
def check_firewall(patient: Patient) -> Iterator[Trouble]:
    # connections over TCP or with ports of their own need other rules
    conns = [conn for conn in patient.needed_conns() if conn.get("enable-tcp", "no") == "no" and not any(
        conn.get(key) for key in ("leftikeport", "rightikeport"))]
    if not conns or patient.config.setup("ikeport") or patient.config.setup("nat-ikeport"):
        yield ("SKIP", "UNKNOWN",
               "the connections use TCP or ports of their own; the rules for these are not "
               "checked", "")
        return
    roles = roles_of(conns)
    ways = {(tunnel.device, tunnel.peer, tunnel.family): None for tunnel in patient.tunnels
            if tunnel.conn in conns}
    for traffic in IKE_TRAFFIC:
        level = traffic.level or roles.levels[traffic.name]
        for device, peer, family in ways or {("", "", "ipv4"): None}:
            if not level or traffic.packet.get("family", family) != family:
                continue
            troubles = list(dropped_traffic(patient, traffic, roles, level, device, peer, family))
            yield from troubles
            if troubles:
                break  # the other tunnels would only repeat it


def dropped_traffic(patient: Patient, traffic: Traffic, roles: Roles, level: str, device: str, peer: str,
                    family: str) -> Iterator[Trouble]:
    """Yield the troubles of one kind of packet, to and from a peer through an interface (empty if
    unknown)."""
    is_icmp = "icmp" in traffic.packet
    by = f" through {device}" if device else ""
    incoming = {"family": family, "in": device, "ipsec_in": "missing none", **traffic.packet}
    outgoing = {"family": family, "out": device, "ipsec_out": "missing none", **traffic.packet}
    if peer:
        outgoing["dst"] = peer
    if peer and not is_icmp:
        incoming["src"] = peer
    # the first incoming packet may be an answer to this host, the first outgoing packet an answer to the peer
    directions = [("from", "prerouting input", incoming, roles.waits, "this host")]
    if not is_icmp:
        directions.append(("to", "output postrouting", outgoing, roles.begins, "the peer"))
    for way, hooks, packet, first_counts, beginner in directions:
        always = patient.blocks(hooks, **{"state": "established", **packet})
        head = always
        if not always and first_counts:
            head = patient.blocks(hooks, **{**packet, "state": packet_state(traffic)})
        if head:
            severe = level if always or roles.answers or way == "to" else "WARN"
            unless = "" if always else f", unless {beginner} begins"
            yield (severe, "BLOCKED", f"{traffic.name} {way} {peer or 'anywhere'}{by} is dropped{unless}",
                   accept_traffic(head, traffic))
    if not is_icmp:
        head = patient.blocks("prerouting", "nat", "dnat", **{"state": "new", **incoming})
        if head:
            yield (level, "SENT ON",
                   f"{traffic.name} from {peer or 'anywhere'}{by} goes to another address or port",
                   accept_traffic(head, traffic))


def packet_state(traffic: Traffic) -> str:
    """Return the conntrack state of the first packet: ICMP errors are related to one that was sent."""
    return traffic.packet.get("state", "new")


def accept_traffic(head: str, traffic: Traffic) -> str:
    """Return the command that accepts the packets; `head` puts a rule before the others of a chain."""
    if head.startswith("ip"):
        return f"{head} {traffic.iptables} -j ACCEPT"
    return f"{head} {traffic.nft} accept"


def accept_command(head: str, source: str, target: str, way: str) -> str:
    """Return the command that accepts packets of a tunnel; `head` puts a rule before the others of a chain.

    The rule names both networks; if one of them is everything, it accepts all packets of tunnels.
    """
    family = TABLE_FAMILIES[family_of(source)][0]
    is_iptables = head.startswith("ip")
    if source in EVERYTHING or target in EVERYTHING:
        if is_iptables:
            return f"{head} -m policy --dir {way} --pol ipsec -j ACCEPT"
        return f"{head} {'rt ipsec' if way == 'out' else 'meta secpath'} exists accept"
    if is_iptables:
        return f"{head} -s {source} -d {target} -j ACCEPT"
    return f"{head} {family} saddr {source} {family} daddr {target} accept"


@verify_check(
    "forward_rules", "Checking the firewall for packets of tunnels",
    "What the rules in the chain FORWARD do with packets between the subnets of a connection, in both "
    "directions.",
    "The tunnel is up, but packets are dropped before they enter it or after they leave it.",
    "Accept packets that will be encrypted or were encrypted: -m policy --pol ipsec, or meta secpath exists "
    "and rt ipsec exists.", live=True)
def check_forward_rules(patient: Patient) -> Iterator[Trouble]:
    unchecked = ""
    for tunnel in patient.needed_tunnels():
        for ours, theirs in tunnel.pairs(tunnel.behind):
            if "netmap" in patient.targets or has_other_addresses(patient, tunnel, ours, theirs):
                unchecked = f"NAT may give {ours} of conn {tunnel.conn.name} other addresses"
                continue
            yield from dropped_forwards(patient, tunnel, ours, theirs)
    if unchecked:
        yield "SKIP", "UNKNOWN", f"{unchecked}: the rules for its packets are not known", ""


def tunnel_packets(patient: Patient, tunnel: Tunnel, ours: str, theirs: str) -> tuple[Packet, Packet]:
    """Return a forwarded packet to the peer's network and one from it."""
    behind, family = patient.device_to(ours), family_of(ours)
    out = {"in": behind, "out": tunnel.inner, "ipsec_out": "exists ipsec", "src": ours, "dst": theirs}
    back = {"in": tunnel.inner, "out": behind, "ipsec_in": "exists ipsec", "src": theirs, "dst": ours}
    return {"family": family, **out}, {"family": family, **back}


def has_other_addresses(patient: Patient, tunnel: Tunnel, ours: str, theirs: str) -> bool:
    """Return whether NAT changes addresses of the network behind this host, so that rules see others."""
    _, back = tunnel_packets(patient, tunnel, ours, theirs)
    return patient.gives_source(ours) or bool(patient.blocks("prerouting", "nat", "dnat",
                                                             **{**back, "state": "new"}))


def dropped_forwards(patient: Patient, tunnel: Tunnel, ours: str, theirs: str) -> Iterator[Trouble]:
    """Yield the troubles of forwarded packets between two networks."""
    out, back = tunnel_packets(patient, tunnel, ours, theirs)
    # packets of an established flow come in both directions, and one direction has to begin
    answers = [(packet, way, patient.blocks("forward", **{**packet, "state": "new"}),
                patient.blocks("forward", **{**packet, "state": "established"}))
               for packet, way in ((out, "out"), (back, "in"))]
    none_begins = all(new for _, _, new, _ in answers)
    for packet, way, new, established in answers:
        if new and (established or none_begins):
            what = "are dropped" if established else "pass only as replies, and no new connection can begin"
            ends = f"from {packet['src']} to {packet['dst']}"
            yield ("FAIL", "BLOCKED", f"conn {tunnel.conn.name}: packets {ends} {what}",
                   accept_command(new, packet["src"], packet["dst"], way))


@verify_check(
    "nat", "Checking NAT for packets of tunnels",
    "What the rules of NAT in the chain POSTROUTING do with packets from this end's networks to those of "
    "the peer.",
    "A packet with a changed source no longer belongs to the connection: it leaves in clear, or not at all.",
    "Before the rule of NAT, accept packets to the peer's networks, or those that match -m policy --dir out "
    "--pol ipsec.", live=True)
def check_nat(patient: Patient) -> Iterator[Trouble]:
    own = patient.own_addresses()
    for tunnel in patient.needed_tunnels():
        for ours, theirs in tunnel.pairs(tunnel.ours):
            if ours in EVERYTHING:
                continue  # every source belongs to the connection
            if own.get(ours.partition("/")[0], "") == tunnel.device and is_single(ours):
                continue  # masquerading gives the packet the address that it has
            head = patient.blocks("postrouting", "nat", "snat", src=ours, dst=theirs, out=tunnel.inner,
                                  state="new",
                                  family=family_of(ours), ipsec_out="exists ipsec")
            if head:
                yield ("FAIL", "NAT",
                       f"conn {tunnel.conn.name}: NAT rewrites the source address of {ours} to {theirs} "
                       "traffic before encryption", accept_command(head, ours, theirs, "out"))


@verify_check(
    "clock", "Checking the clock",
    "Whether the clock is not earlier than this program's build date and, for connections with "
    "certificates, whether it is synchronised (adjtimex).",
    "Certificates are valid for a limited time: with a wrong clock they are not, and logs can't be compared "
    "with those of the peer.",
    "timedatectl set-ntp true, or date -s.", live=True)
def check_clock(patient: Patient) -> Iterator[Trouble]:
    if time.time() < BUILT:
        yield ("FAIL", "WRONG", f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime())}",
               "timedatectl set-ntp true")
    elif any(conn.get("leftcert") or conn.get("rightcert") for conn in patient.known_conns()):
        ctypes = need("ctypes", "asking whether the clock is synchronised")
        # adjtimex(2): a struct timex of zeros sets nothing; TIME_ERROR is 5
        if ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) == 5:
            yield ("WARN", "NOT SYNCHRONISED",
                   "the clock isn't synchronised (no NTP), and certificates depend on it",
                   "timedatectl set-ntp true")


@verify_check(
    "entropy", "Checking entropy",
    "kernel.random.entropy_avail. Since Linux 5.18 its value is 256 once the generator is ready.",
    "If the kernel has no random numbers yet, pluto waits for them, for seconds or for ever.",
    "Run rngd or haveged, or give a virtual machine virtio-rng.", live=True)
def check_entropy(patient: Patient) -> Iterator[Trouble]:
    available = patient.host.read("/proc/sys/kernel/random/entropy_avail").strip()
    if int(available) < 128:
        yield "WARN", "LOW", f"the kernel has {available} bits of entropy", "systemctl start rngd"


@verify_check(
    "pluto", "Checking that pluto is running",
    "Whether pluto answers on its control socket within the time of --timeout, and whether its pid file "
    "names it.",
    "Without pluto no tunnel is set up or renewed. A process of that name proves nothing: it may hang.",
    "ipsec start; if pluto runs and does not answer: ipsec restart.", live=True)
def check_pluto(patient: Patient) -> Iterator[Trouble]:
    try:
        patient.status()
    except Failure as failure:
        is_hung = bool(patient.pid) or isinstance(failure, TimedOut)
        yield "FAIL", "FAILED", failure.message, pluto_fix(patient, is_hung)
    if patient.pid and find_pluto(patient.host) != patient.pid:
        yield ("WARN", "NO PID FILE",
               f"pluto runs as process {patient.pid}, but {pid_file(patient.host)} does not "
               "name it: programs that stop or start pluto may not find it", "ipsec restart")


def listen_setting(config: Config) -> Setting | None:
    """Return the setting that keeps pluto from listening on every address: listen=, or listen-udp=no."""
    udp = config.setup_at("listen-udp")
    return config.setup_at("listen") or (udp if udp and not is_yes(udp.value) else None)


def port_troubles(patient: Patient, port: int) -> Iterator[Trouble]:
    """Yield the trouble of a UDP port on which pluto has no socket, in pluto's network namespace."""
    sockets = [(entry.address, own) for entry, own in patient.sockets() if entry.port == port]
    if not patient.pid and sockets and not patient.pluto_setting("pluto_version"):
        yield ("FAIL", "IN USE", f"another program has port {port} on {sockets[0][0]}: pluto can't start",
               f"ss -lunp sport = :{port}")
        return
    patient.process()
    if any(own for _, own in sockets):
        return
    others = f"; another program has it on {sockets[0][0]}" if sockets else ""
    fix = "ipsec whack --listen" if patient.pluto_setting("pluto_version") else "ipsec restart"
    if limit := listen_setting(patient.config):
        others, fix = f"; {limit.file}:{limit.line} has {limit.key}={limit.value}", edit_command(limit)
    yield "FAIL", "FAILED", f"pluto has no socket on port {port}{others}", fix


@verify_check(
    "udp500", " Pluto listening for IKE on udp 500",
    "Whether the running pluto has a socket of its own on UDP port 500, in its network namespace "
    "(/proc/PID/net/udp and /proc/PID/fd).",
    "Peers send the first message of every IKE exchange to this port.",
    "ipsec whack --listen. If that does not help, see which program has the port, and interfaces= and "
    "listen= in ipsec.conf(5).", live=True)
def check_udp500(patient: Patient) -> Iterator[Trouble]:
    yield from port_troubles(patient, 500)


@verify_check(
    "udp4500", " Pluto listening for IKE/NAT-T on udp 4500",
    "Whether the running pluto has a socket of its own on UDP port 4500.",
    "If there is NAT between the peers, IKE and ESP use this port.",
    "ipsec whack --listen.", live=True)
def check_udp4500(patient: Patient) -> Iterator[Trouble]:
    yield from port_troubles(patient, 4500)


@verify_check(
    "loaded", " Pluto's connections are those of ipsec.conf",
    "Whether pluto has the connections with auto=add, ondemand, start or keep, with the ends, networks and "
    "IDs of "
    "the file; whether one of their ends is an address of this host; whether those with auto=ondemand are "
    "routed. A "
    "connection without auto= is checked if pluto has loaded it.",
    "Pluto leaves out a connection with an error, and does not notice that the file changes. A connection "
    "without an end on this host never comes up.",
    "ipsec add CONN loads it again. If that fails, its message or pluto's log names the reason.", live=True)
def check_loaded(patient: Patient) -> Iterator[Trouble]:
    patient.read_configuration()
    loaded, names, here = patient.loaded(), host_names(patient.host), patient.sides
    checked = 0
    for conn in patient.config.conns():
        ends = conn.get("left"), conn.get("right")
        told = loaded.get(conn.name, [])
        if (conn.auto == "ignore" and not told) or not {"%group", "%opportunisticgroup"}.isdisjoint(ends):
            continue
        checked += 1
        what, again = f"conn {conn.name}", shell_words(["ipsec", "add", conn.name])
        if not told:
            reason = f" ({conn.broken})" if conn.broken else ": it was not told to load it, or refused to"
            yield ("FAIL", "NOT LOADED", f"pluto has no {what} of {conn.file}:{conn.line}{reason}",
                   edit_command(conn.broken) if conn.broken else again)
        elif not any(one["oriented"] for one in told):
            yield orientation_trouble(patient, conn)
        elif conn.name in here and (changed := list(changes(conn, here[conn.name], told, names))):
            yield ("WARN", "CHANGED",
                   f"{what}: {' and '.join(changed)} of {conn.file}:{conn.line} differ from the "
                   "connection that pluto has loaded", again)
        elif conn.auto == "ondemand" and all(one["routing"].startswith("unrouted") for one in told):
            yield ("WARN", "NOT ROUTED", f"{what} has auto=ondemand and is not routed",
                   shell_words(["ipsec", "route", conn.name]))
    if not checked:
        raise NotChecked("connections", "nothing to check: no connection is loaded at start or by pluto")


def orientation_trouble(patient: Patient, conn: Conn) -> Trouble:
    """Return the trouble of a connection for which pluto does not know which end is this host."""
    ends, what = (conn.get("left"), conn.get("right")), f"conn {conn.name}"
    limit, is_known = listen_setting(patient.config), conn.name in patient.sides
    if both_here(patient, conn):
        return ("FAIL", "BOTH ENDS", f"{what}: both {ends[0]} and {ends[1]} are addresses of this host",
                edit_command(conn))
    if "%defaultroute" in ends and not is_known:
        return ("FAIL", "NOT ORIENTED", f"{what} has %defaultroute, and there is no default route",
                "ip route add default via GATEWAY")
    if not is_known:
        fix = edit_command(conn.settings.get("left", conn))
    else:
        fix = edit_command(limit) if limit else "ipsec whack --listen"
    return ("WARN" if conn.auto in ("add", "ignore") else "FAIL", "NOT ORIENTED",
            f"{what}: neither {ends[0]} nor {ends[1]} is an address of this host that pluto listens on", fix)


def changes(conn: Conn, here: str, told: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Iterator[str]:
    """Yield the keywords whose values in pluto's status differ from the file, as far as both are known."""
    told = [one for one in told if not one["instance"].startswith("[")]
    for side, end, whose in ((here, "local", "our"),
                             ("right" if here == "left" else "left", "remote", "their")):
        hosts = {canonical_net(one[end]["host"]) for one in told}
        nets = {canonical_net(one[end]["subnet"] or one[end]["host"]) for one in told}
        ids = {comparable_id(one["options"].get(f"{whose}_id", "%none"), names) for one in told}
        wanted = comparable_id(conn.get(f"{side}id") or conn.get(side), names)
        for key, ours, theirs in ((side, {canonical_net(conn.get(side))}, hosts),
                                  (f"{side}subnet", set(map(canonical_net, conn_nets(conn, side))), nets),
                                  (f"{side}id", {wanted or None}, ids)):
            if ours and theirs and None not in {*ours, *theirs} and ours != theirs:
                yield f"{key}="


@verify_check(
    "up", " Connections that should be up are up",
    "Whether connections with auto=start, and those that pluto is told to keep up, have an IPsec SA; if one "
    "has none, "
    "what the last attempt in pluto's log says.",
    "Packets for the networks behind the peer are dropped, or leave in clear.",
    "ipsec why CONN explains more; often only the log of the peer has the reason.", live=True)
def check_up(patient: Patient) -> Iterator[Trouble]:
    loaded = patient.loaded()
    starts = {conn.name for conn in (patient.conns if loaded else patient.needed_conns())
              if conn.auto == "start"}
    down = {}
    for name, told in loaded.items():
        is_wanted = name in starts or any("UP" in one["policy"] for one in told)
        is_template = any(one["remote"]["host"] in ANY_ID for one in told)
        if not is_wanted or is_template or any(one["up"] for one in told):
            continue
        if any(one["oriented"] for one in told):
            down[name] = {one["remote"]["host"] for one in told if one["remote"]["host"]}
    if down:
        yield from down_troubles(patient, down)


def down_troubles(patient: Patient, down: Mapping[str, set[str]]) -> Iterator[Trouble]:
    """Yield a trouble for each connection that is down, with the cause of the last attempt in pluto's log.

    `down` has the addresses of the peers by connection.
    """
    lines: Sequence[LogLine] = []
    unknown = "pluto's log has no attempt since it started"
    try:
        lines = read_pluto_log(patient.host, patient.config, patient.timeout).lines
    except (OSError, Missing) as error:
        unknown = f"the cause is unknown: {error_text(error)}"
    for name, peers in down.items():
        level, cause = "WARN", unknown
        clues = last_clues(read_attempts(lines, name, peers))
        if clues:
            at = clues[0].line.when
            when = "" if at is None else time.strftime(" at %Y-%m-%d %H:%M:%S", time.localtime(at))
            cause = f"tried{when}: {clues[0].cause.means}"
            level = "WARN" if clues[0].cause.name in PENDING_CAUSES else "FAIL"
        yield (level, "DOWN", f"conn {name} should be up and has no IPsec SA; {cause}",
               shell_words(["ipsec", "why", name]))


@verify_check(
    "virtual_private", "Checking virtual-private=",
    "Whether every entry of virtual-private= is a network that pluto accepts.",
    "If one entry is wrong, pluto drops all of them. Connections with vhost: or vnet: then refuse every "
    "client.",
    "Correct the entry that is named: %v4:10.0.0.0/8, or %v4:!10.1.0.0/16 for an exception.")
def check_virtual_private(patient: Patient) -> Iterator[Trouble]:
    patient.read_configuration()
    setting = patient.config.setup_at("virtual-private")
    if not setting:
        return
    bad = bad_private_nets(setting.value)
    if patient.pluto_setting("pluto_version") and not patient.has_changed(setting.file):
        if any(line.lstrip(" -").startswith(("allowed subnet", "excluded subnet"))
               for line in patient.status()):
            return
    elif not bad:
        return
    used = any(word in conn.get(f"{side}subnet") for conn in patient.config.conns()
               for side in ("left", "right")
               for word in ("vhost:", "vnet:", "%priv"))
    what = f"{quote(bad[0])} is not a valid entry" if bad else "an entry is wrong"
    yield ("FAIL" if used else "WARN", "NONE LOADED",
           f"{setting.file}:{setting.line}: virtual-private: {what}, so pluto drops all "
           "entries", edit_command(setting))


@verify_check(
    "secrets", " Pluto ipsec.secret syntax",
    "ipsec.secrets and the files that it includes: quotes, keys, and the words before the colon.",
    "Pluto stops reading a file at a syntax error: the entries after it are missing.",
    "Correct the line that is named, then run ipsec secrets. ipsec.secrets(5) describes the syntax.")
def check_secrets_syntax(patient: Patient) -> Iterator[Trouble]:
    name = secrets_file(patient.host, patient.config)
    if not patient.host.exists(name) and not any("secret" in ways_of(conn) for conn in patient.conns):
        yield "SKIP", "UNKNOWN", f"nothing to check: {name} does not exist, and no connection needs it", ""
        return
    if patient.host.exists(name) and not patient.host.superuser:
        next(patient.host.lines(name), "")  # raises PermissionError if only root may read it
    problems = secret_files(patient.host, name)[1]
    if problems:
        yield "FAIL", "PARSE ERROR", "; ".join(map(str, problems[:3])), edit_command(problems[0])


@verify_check(
    "prelink", "Checking 'prelink' command does not interfere with FIPS",
    "Whether prelink is not installed.",
    "Prelinked libraries break the FIPS self-test, and pluto ends.",
    "Remove the package prelink.")
def check_prelink(patient: Patient) -> Iterator[Trouble]:
    if patient.host.exists("/usr/sbin/prelink"):
        yield "WARN", "PRESENT", "prelinked libraries break the FIPS self-test", "prelink --undo --all"


@verify_check(
    "obsolete", "Checking for obsolete ipsec.conf options",
    "Keywords and values that libreswan ignores or misreads, or because of which it does not load a "
    "connection.",
    "The setting has no effect, and the next release may refuse it.",
    "Remove or replace the line that is named.")
def check_obsolete(patient: Patient) -> Iterator[Trouble]:
    patient.read_configuration()
    patient.config.conns()
    old = [problem for problem in patient.config.problems if not problem.fatal
           and problem.key not in ("include", "virtual-private")]  # other checks report these
    if old and not any(problem.fatal for problem in patient.config.problems):
        word = "OBSOLETE KEYWORD" if any("obsolete" in problem.text for problem in old) else "DOUBTFUL"
        yield "WARN", word, "; ".join(map(str, old[:3])), edit_command(old[0])


@verify_check(
    "nss", "Checking the NSS database",
    "Whether the files of the database are where pluto looks for them.",
    "Pluto does not start without its database.",
    "ipsec initnss makes a new database; ipsec checknss moves or migrates an old one, too.")
def check_nss_files(patient: Patient) -> Iterator[Trouble]:
    import stat
    host, directory = patient.host, patient.nssdir
    lacking = [name for name in NSS_FILES[1:] if not host.exists(f"{directory}/{name}")]
    strange = [name for name in NSS_FILES[1:] if name not in lacking and not stat.S_ISREG(
        host.stat(f"{directory}/{name}").st_mode)]
    if strange:
        yield ("FAIL", "BROKEN",
               f"{directory}/{strange[0]} is not a regular file: restore a backup, or make {ANEW}",
               new_database(patient))
    if lacking and not host.superuser and host.exists(directory):
        host.listdir(directory)  # raises PermissionError if only root may see what is in it
    if lacking:
        half = f": restore a backup, or make {ANEW}" if len(lacking) == 1 else ""
        yield ("FAIL", "MISSING", f"{directory} has no {' and no '.join(lacking)}{half}",
               taken_over_database(patient) if not half and has_old_database(patient)
               else new_database(patient))


ANEW = "a new database; its keys have to be made or imported again"


def has_old_database(patient: Patient) -> bool:
    """Return whether there is a database that checknss moves or migrates."""
    host, directory = patient.host, patient.nssdir
    old = [f"{directory}/{name}" for name in DBM_FILES]
    if directory == DEFAULT_NSSDIRS[0]:
        old += [f"{host.confddir}/{name}" for name in (*NSS_FILES[1:], *DBM_FILES)]
    return any(map(host.exists, old))


def taken_over_database(patient: Patient) -> str:
    """Return the command that moves or migrates an old database."""
    directory = patient.nssdir
    return " && ".join(map(shell_words, (["mkdir", "-p", "-m", "700", directory],
                                         ["ipsec", "checknss", "--nssdir", directory])))


def new_database(patient: Patient) -> str:
    """Return the command that makes a new NSS database, after it has moved aside what is left of an old
    one."""
    host, directory = patient.host, patient.nssdir
    names = host.listdir(directory) if host.isdir(directory) else []
    # with SQLite's journals
    old = [f"{directory}/{name}" for name in names if name.startswith(NSS_FILES[1:])]
    aside = f"{directory}/broken-{time.strftime('%Y%m%d-%H%M%S')}"
    steps = [["mkdir", aside], ["mv", *old, aside]] if old else [["mkdir", "-p", "-m", "700", directory]]
    return " && ".join(map(shell_words, [*steps, ["ipsec", "initnss", "--nssdir", directory]]))


@verify_check(
    "nss_health", "Checking that the NSS database can be read",
    "The format of the database's files, their pages if connections need something in them, and who may "
    "enter the directory. While pluto is down, also whether the database's password is known.",
    "Pluto ends if it can't open the database. Users who can write to it decide whom this host trusts.",
    "ipsec checknss reports more. chmod 700 closes a directory.")
def check_nss_health(patient: Patient) -> Iterator[Trouble]:
    host, directory = patient.host, patient.nssdir
    base = patient.database()
    for name in NSS_FILES[1:]:
        damage = file_damage(patient, base, name)
        if damage:
            yield ("FAIL", "BROKEN", f"{directory}/{name} {damage}: restore a backup, or make {ANEW}",
                   new_database(patient))
    infos = [host.stat(directory), host.stat(f"{directory}/key4.db")]
    if infos[0].st_mode & 0o022 or infos[1].st_mode & 0o077 or (host.superuser
                                                                and any(info.st_uid for info in infos)):
        yield ("WARN", "OPEN", f"others may read or change files in {directory}",
               " && ".join(map(shell_words, (
            ["chown", "-R", "root", directory], ["chmod", "-R", "go=", directory]))))
    if host.live and host.superuser and not patient.pluto_setting("pluto_version") and host.which("certutil"):
        try:
            base.tool("certutil", "-K")  # as pluto does when it starts
        except NssTool as failure:
            if failure.code == "SEC_ERROR_BAD_PASSWORD":
                yield "FAIL", "LOCKED", failure.message, shell_words(["vi", f"{host.confddir}/nsspassword"])


def file_damage(patient: Patient, base: NssDatabase, name: str) -> str:
    """Return what is wrong in a file of the database; empty if it is sound.  Raises OSError, Failure.

    The header tells the format and the size (fileformat2.html, 1.3) without sqlite3, whose import takes
    longer than all other checks.  sqlite3 reads the pages only if connections need something in them.
    """
    path = f"{base.directory}/{name}"
    head = next(patient.host.chunks(path), b"")[:100]
    if head[:16] != b"SQLite format 3\0":
        return "is not an NSS database"
    size = int.from_bytes(head[28:32], "big") * (int.from_bytes(head[16:18], "big") or 1)
    if head[24:28] == head[92:96] and size > patient.host.stat(path).st_size:
        return "is cut short"
    return base.damage(name) if patient.needs_database else ""


class Held(Record):
    """The certificates of one nickname, of which NSS picks one."""

    nickname: str
    certificates: list[tuple[Parsed | None, Certificate]]  # None: it can't be parsed

    @property
    def has_key(self) -> bool:
        """Whether the database has the private key of one of them."""
        return any(one.has_key for _, one in self.certificates)

    def chosen(self) -> tuple[Parsed | None, Certificate]:
        """Return the certificate that pluto gets: NSS prefers one that is valid now, then the one that begins
        last."""
        now = time.time()

        def rank(entry: tuple[Parsed | None, Certificate]) -> tuple[bool, int]:
            parsed, _ = entry
            return (parsed is not None and parsed.begins <= now <= parsed.expires, parsed.begins if parsed
                    else 0)
        return max(self.certificates, key=rank)


def held_certificates(certificates: Iterable[Certificate]) -> dict[str, Held]:
    """Return the certificates of a database by nickname."""
    by_nickname: dict[str, Held] = {}
    for one in certificates:
        try:
            parsed = parse_certificate(one.der)
        except ValueError:
            parsed = None
        by_nickname.setdefault(one.nickname, Held(one.nickname, [])).certificates.append((parsed, one))
    return by_nickname


def bare_nickname(name: str) -> str:
    """Return the nickname that NSS looks for in its database for a leftcert=; empty if it looks elsewhere.

    The part before a colon names a token (PK11_FindCertFromNickname); the database's tokens are NSS_TOKENS.
    """
    token, colon, nickname = name.partition(":")
    if not colon:
        return name
    return nickname if token in NSS_TOKENS else ""


@verify_check(
    "certificates", "Checking certificates",
    "The certificates that connections name and those that have a private key: their validity, private key, "
    "and the CAs above them. Of several certificates with one nickname, the one that pluto gets is checked.",
    "The peer refuses an expired certificate, or one of an expired CA. Without its private key or CA no "
    "connection comes up.",
    "Import a new one with ipsec import FILE.p12. ipsec nsslist shows all certificates.")
def check_certificates(patient: Patient) -> Iterator[Trouble]:
    base = patient.database()
    if not patient.needs_database:
        patient.needed_conns()
        return
    certificates = base.certificates()
    by_nickname = held_certificates(certificates)
    used: dict[str, None] = {}
    for conn in patient.conns:
        yield from named_troubles(patient, conn, by_nickname, used)
    if not used and not any(entry.has_key for entry in by_nickname.values()):
        patient.needed_conns()
    issuers: dict[str, list[tuple[Parsed, Certificate]]] = {}
    for entry in by_nickname.values():
        for parsed, one in entry.certificates:
            if parsed and parsed.is_ca:
                issuers.setdefault(parsed.subject, []).append((parsed, one))
    told: set[str] = set()  # the issuers whose troubles were yielded
    for entry in by_nickname.values():
        if entry.nickname in used or entry.has_key:
            yield from validity_troubles(entry, entry.nickname in used, issuers, told)


def named_troubles(patient: Patient, conn: Conn, by_nickname: Mapping[str, Held],
                   used: dict[str, None]) -> Iterator[Trouble]:
    """Yield the troubles of leftcert= and rightcert= of a connection; add the nicknames to `used`."""
    here = patient.sides.get(conn.name, "")
    own_names = []
    for side in ("left", "right"):
        name = conn.get(f"{side}cert")
        nickname = bare_nickname(name)
        if not name:
            continue
        if not nickname and name not in by_nickname:
            yield ("SKIP", "UNKNOWN",
                   f"conn {conn.name}: the certificate {quote(name)} is on another token than the "
                   "NSS database", "")
        elif not nickname:
            yield ("FAIL", "MISSING",
                   f"conn {conn.name}: NSS takes the part of {quote(name)} before the colon for the "
                   f"name of a token; write {quote(pluto_nickname(name))}",
                   edit_command(conn.settings[f"{side}cert"]))
        elif nickname not in by_nickname:
            yield ("FAIL", "MISSING",
                   f"conn {conn.name}: no certificate {quote(nickname)} in the NSS database",
                   "ipsec import FILE.p12")
        else:
            used[nickname] = None
            if here in ("", side):
                own_names.append(nickname)
    if own_names and not any(by_nickname[nickname].has_key for nickname in own_names):
        yield ("FAIL", "NO KEY",
               f"conn {conn.name}: no private key for {quote(own_names[0])} in the NSS database",
               "ipsec import FILE.p12")


def validity_troubles(entry: Held, is_used: bool, issuers: Mapping[str, list[tuple[Parsed, Certificate]]],
                      told: set[str]) -> Iterator[Trouble]:
    """Yield the troubles of the certificate that pluto gets for a nickname, and of the CAs above it.

    `issuers` are the CAs of the database by subject.  The CAs in `told` are left out, and others are added to
    it.
    """
    parsed, one = entry.chosen()
    what = f"the certificate {quote(entry.nickname)}"
    if parsed is None:
        yield ("WARN", "UNREADABLE", f"{what} can't be read",
               shell_words(["ipsec", "certutil", "-L", "-n", entry.nickname]))
        return
    yield from validity_trouble(parsed, what, "ipsec import FILE.p12")
    while is_used and one.has_key and parsed.issuer != parsed.subject and parsed.issuer not in told:
        told.add(parsed.issuer)
        if parsed.issuer not in issuers:
            yield ("WARN", "NO CA", f"the database has no CA {quote(parsed.issuer)}, which issued {what}",
                   "ipsec import FILE.p12 CA.pem")
            return
        parsed, ca = max(issuers[parsed.issuer], key=lambda issuer: issuer[0].expires)  # the renewed one
        what = f"the CA {quote(ca.nickname)}, which issued {what},"
        yield from validity_trouble(parsed, what, "ipsec import CA.pem")


def validity_trouble(parsed: Parsed, what: str, renew: str) -> Iterator[Trouble]:
    """Yield the trouble of a certificate that is not valid now, or soon; `renew` is the command that imports
    a new one."""
    now = time.time()
    begins, day = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (parsed.begins, parsed.expires))
    if parsed.expires < now:
        yield "FAIL", "EXPIRED", f"{what} expired on {day}", renew
    elif parsed.begins > now:
        yield ("FAIL", "NOT YET VALID", f"{what} is valid from {begins}, or the clock is wrong",
               "timedatectl status")
    elif parsed.expires < now + SOON * 86400:
        yield "WARN", "EXPIRES SOON", f"{what} expires on {day}", renew


class Psk(Record):
    """The IDs of a PSK as pluto uses them, each as comparable_id() has it, and where the entry is.

    `dropped` are the IDs that pluto drops, because they are neither addresses nor names.
    """

    ids: list[str | None]
    dropped: list[str]
    file: str
    line: int


def is_dropped_id(text: str) -> bool:
    """Return whether pluto certainly drops an ID of ipsec.secrets (atoid() of id.c).

    Pluto drops an ID that is neither an address nor a name that DNS knows, and uses the entry without it.
    """
    if text.startswith("@#"):
        digits = text[2:].removeprefix("0x")
        return not digits or not set(digits.lower()) <= set("0123456789abcdef")
    if "@" in text or "=" in text or text in ANY_ID or canonical_net(text) and "/" not in text:
        return False
    if "%" in text and ":" in text:
        return False  # an address with a scope, which 4.10 accepts
    if set(text) <= set("0123456789."):
        return text.count(".") > 3 or any(part == "" or int(part) > 255 for part in text.split(".")[:-1])
    return any(not char.isalnum() and char not in ".-_" for char in text)


def psks(patient: Patient, files: Sequence[str], names: Mapping[str, str]) -> Iterator[Psk]:
    """Yield the PSKs of the secrets files; `names` as host_names() has them.  Raises OSError."""
    for file in files:
        for record, rows in secret_records(patient.host.lines(file)):
            if record.kind == "psk":
                words = [token.text for token in record.ids]
                dropped = [word for word in words if is_dropped_id(word)]
                ids = [comparable_id(word, names) for word in words if word not in dropped]
                yield Psk(ids, dropped, file, rows[0][0])


@verify_check(
    "psk", "Checking that connections have a pre-shared key",
    "Whether ipsec.secrets has, for each connection with authby=secret, an entry that pluto takes for the "
    "IDs of its ends: one with both IDs, with one of them and %any, or with this end's ID alone. And "
    "whether pluto uses all IDs of the entries.",
    "Pluto finds no key for the peer, and the IKE SA fails. If pluto drops all IDs of an entry, it matches every "
    "peer.",
    'Add the line: LEFTID RIGHTID : PSK "..." and run ipsec secrets.')
def check_psk(patient: Patient) -> Iterator[Trouble]:
    host = patient.host
    conns = [conn for conn in patient.needed_conns() if "secret" in ways_of(conn)]
    name = secrets_file(host, patient.config)
    if not host.exists(name):
        if conns:
            raise NotChecked("secrets", f"{name} does not exist")
        return
    files, problems = secret_files(host, name)
    if problems:
        if not host.superuser:
            next(host.lines(name), "")  # raises PermissionError if only root may read it
        raise NotChecked("secrets", f"{name} has a syntax error; entries after it are not read")
    names = host_names(host)
    entries = list(psks(patient, files, names))
    for entry in entries:
        if entry.dropped:
            yield dropped_id_trouble(entry)
    # lists of IDs by each of their IDs; "" for a list without
    groups: dict[str | None, list[list[str | None]]] = {}
    for entry in entries:
        for key in set(entry.ids) or {""}:
            groups.setdefault(key, []).append(entry.ids)
    unknown = []
    here = patient.sides
    for conn in conns:
        answer = has_psk(conn, here.get(conn.name, ""), groups, names)
        ends = [quote(conn.get(f"{side}id") or conn.get(side)) for side in ("left", "right")]
        if answer is False:
            yield ("FAIL", "NO SECRET", f"{name} has no PSK for {ends[0]} and {ends[1]} of conn {conn.name}",
                   shell_words(["vi", name]))
        elif answer is None:
            unknown.append(f"conn {conn.name}")
    if unknown:
        yield ("SKIP", "UNKNOWN", f"only DNS or the certificate of the peer tells which PSK pluto takes for "
               f"{', '.join(unknown[:5])}", "")


def dropped_id_trouble(entry: Psk) -> Trouble:
    """Return the trouble of an entry with IDs that pluto drops.  Only a network is shown: other words may be
    secrets."""
    shown = next((f" {quote(word)}" for word in entry.dropped if canonical_net(word)), "")
    effect = "" if entry.ids else ", so the PSK is for every peer"
    return ("WARN", "FOR ANYBODY" if not entry.ids else "ID IGNORED",
            f"{entry.file}:{entry.line}: pluto drops an ID{shown}, which is neither an address nor a "
            f"name{effect}",
            shell_words(["vi", f"+{entry.line}", entry.file]))


def has_psk(conn: Conn, here: str, groups: Mapping[str | None, Sequence[Sequence[str | None]]],
            names: Mapping[str, str]) -> bool | None:
    """Return whether pluto takes one of the PSKs for a connection; None if only DNS or a certificate tells.

    `here` is this host's side, or empty if unknown.  `groups` are the IDs of the PSKs by each of their IDs.
    """
    ids = {side: comparable_id(conn.get(f"{side}id") or conn.get(side), names) for side in ("left", "right")}
    answers: list[bool | None] = []
    for side, other in (("left", "right"), ("right", "left")):
        if here in ("", side):
            answers += fitting_psks(ids[side], ids[other], groups)
    if True in answers:
        return True
    return None if None in answers else False


def fitting_psks(ours: str | None, theirs: str | None,
                 groups: Mapping[str | None, Sequence[Sequence[str | None]]]) -> list[bool | None]:
    """Return, for each PSK that may be for two ends, whether pluto takes it; None if that is unknown.

    The IDs are as comparable_id() has them; `groups` as in has_psk().
    """
    if ours is None or theirs is None:
        return [None] if groups else []
    near = [ids for key in {ours, theirs, "", None} for ids in groups.get(key, ())]
    if ours == "":  # this end's ID is known only when the connection comes up
        return [None for _ in near]
    if theirs == "":  # for any peer, a PSK for some peer will do
        return [True if ours in ids or "" in ids or not ids else None for ids in near]
    return [has_secret(ids, ours, theirs) for ids in near]


def ways_of(conn: Conn, sides: Sequence[str] = ("left", "right")) -> set[str]:
    """Return the words of authby=, leftauth= and rightauth= of a connection, in lower case."""
    words = " ".join([conn.get("authby"), *(conn.get(f"{side}auth") for side in sides)]).lower()
    return set(words.replace(",", " ").replace("|", " ").replace("+", " ").split())


def public_text(value: str) -> str:
    """Convert a public key from ipsec.conf (0s..., 0x... or bare base64) to bare base64."""
    import binascii
    if value[:2].lower() == "0x":
        data = Token(value, 0, 0, len(value), "0x").data() or b""
        return binascii.b2a_base64(data, newline=False).decode()
    return value.removeprefix("0s")


KEY_WORDS = ("ckaid", "rsasigkey", "ecdsakey", "pubkey")  # that name a key of the NSS database


@verify_check(
    "host_keys", "Checking that connections have their private keys",
    "Whether the NSS database has the key that ckaid=, rsasigkey=, ecdsakey= or pubkey= of this host's end "
    "names, for each connection.",
    "Pluto can't sign for this end, and the IKE SA fails.",
    "Make a key with ipsec newhostkey, and write the output of ipsec showhostkey --left into the "
    "configuration of both ends.", live=True)
def check_host_keys(patient: Patient) -> Iterator[Trouble]:
    tunnels = patient.needed_tunnels()
    for tunnel in tunnels:
        side, get = tunnel.here, tunnel.conn.get
        signs = all(way.startswith(("rsa", "ecdsa", "eddsa")) for way in ways_of(tunnel.conn, (side,)))
        if signs and not any(get(f"{side}{word}") for word in ("cert", "eddsakey", *KEY_WORDS)):
            # without authby=, every release authenticates by signature
            default = "" if get("authby") or get(f"{side}auth") else ", because authby= is not set"
            yield ("FAIL", "NO KEY",
                   f"conn {tunnel.conn.name} has to sign{default}, and names no key of this end: "
                   f"{side}cert=, {side}ckaid= or {side}rsasigkey=", edit_command(tunnel.conn))
    named = [(tunnel.conn.name, f"{tunnel.here}{word}", tunnel.conn.get(f"{tunnel.here}{word}"))
             for tunnel in tunnels for word in KEY_WORDS]
    named = [(conn, word, value) for conn, word, value in named if value and not value.startswith("%")]
    keys = patient.database().keys() if named else []
    texts = {text for key in keys for text in key_texts(key)[1:3]}
    for conn, word, value in named:
        ckaid = value.lower().replace(":", "")
        if word.endswith("ckaid"):
            is_there = any(key.ckaid.hex().startswith(ckaid) for key in keys)
        else:
            is_there = public_text(value) in texts
        if not is_there:
            yield ("FAIL", "NO KEY", f"conn {conn}: no private key for {word} in the NSS database",
                   "ipsec showhostkey --list")


@verify_check(
    "secret_modes", "Checking who can read the secrets",
    "Owner and permissions of ipsec.secrets, of the files that it includes, and of the password file of the "
    "NSS database (a file without secrets may be readable); who may change ipsec.conf and the files that it "
    "includes.",
    "Anyone with the keys can impersonate this host or read its traffic. Users who can change ipsec.conf "
    "can make pluto run programs.",
    "chmod 600 the file, chown root.")
def check_secret_modes(patient: Patient) -> Iterator[Trouble]:
    host = patient.host
    names = [secrets_file(host, patient.config), f"{host.confddir}/nsspassword",
             f"{patient.nssdir}/nsspassword"]
    if host.exists(names[0]) and host.superuser:
        names += secret_files(host, names[0])[0]
    names = [name for name in dict.fromkeys(names) if host.exists(name)]
    if not names and not patient.config.files:
        raise NotChecked("configuration", "there is neither a configuration nor a secrets file")
    for name in names:
        info = host.stat(name)
        if info.st_mode & 0o002 or (info.st_mode & 0o004 and holds_secrets(host, name)):
            verb = "writable" if info.st_mode & 0o002 else "readable"
            yield "WARN", "OPEN", f"{name} is {verb} by others", shell_words(["chmod", "600", name])
        elif info.st_uid and host.superuser:
            yield "WARN", "OPEN", f"{name} belongs to user {info.st_uid}", shell_words(["chown", "root",
                                                                                        name])
    for name in dict.fromkeys(patient.config.files):
        if host.stat(name).st_mode & 0o022 or (host.stat(name).st_uid and host.superuser):
            yield ("WARN", "OPEN", f"{name} is writable by users other than root",
                   " && ".join(map(shell_words, (
                ["chown", "root", name], ["chmod", "go-w", name]))))


def holds_secrets(host: Host, name: str) -> bool:
    """Return whether a file with secrets holds more than comments and includes.  Raises OSError."""
    if os.path.basename(name) == "nsspassword":
        return bool(host.read(name).strip())
    return any(record.tokens and not record.include for record, _ in secret_records(host.lines(name)))


@verify_check(
    "overlap", "Checking connections for overlaps",
    "Whether two loaded connections have the same name, or the same networks with different peers.",
    "The kernel has one policy for a pair of networks: the connection that comes up last takes the packets "
    "of the other.",
    "Remove one of them, narrow its subnets, or set auto=ignore in it.")
def check_overlap(patient: Patient) -> Iterator[Trouble]:
    named: dict[str, Conn] = {}
    seen: dict[object, tuple[Conn, str]] = {}  # the first connection for a pair of networks, and its peer
    here = patient.sides
    for conn in patient.needed_conns():
        first = named.setdefault(conn.name, conn)
        if first is not conn:
            yield ("WARN", "TWICE", f"conn {conn.name} is in {first.file}:{first.line} and in "
                   f"{conn.file}:{conn.line}", edit_command(conn))
        if conn.flag("overlapip") or any(map(conn.get, (
                "mark", "mark-out", "vti-interface", "ipsec-interface", "leftprotoport", "rightprotoport",
                "sec-label"))):
            continue  # more than addresses tell these connections apart
        ours, theirs = ("right", "left") if here.get(conn.name) == "right" else ("left", "right")
        peer = canonical_net(conn.get(theirs)) or conn.get(theirs)
        for one in map(canonical_net, conn_nets(conn, ours)):
            for other in map(canonical_net, conn_nets(conn, theirs)):
                before, first_peer = seen.setdefault((one, other), (conn, peer))
                if first_peer != peer:
                    yield ("WARN", "OVERLAP",
                           f"conn {before.name} and conn {conn.name}: {one} and {other}, but "
                           "different peers", edit_command(conn))


@verify_check(
    "versions", "Checking that pluto is what is installed",
    "Whether the running pluto is the program in libreswan's directory, and not one that an update has "
    "replaced.",
    "whack of one release and pluto of another don't understand each other.",
    "ipsec restart.", live=True)
def check_versions(patient: Patient) -> Iterator[Trouble]:
    program = patient.host.readlink(f"/proc/{patient.process()}/exe")
    if program.endswith(" (deleted)"):
        yield ("WARN", "REPLACED",
               f"pluto runs from {program.removesuffix(' (deleted)')}, which was replaced",
               "ipsec restart")
    elif os.path.dirname(program) != patient.host.realpath(patient.host.execdir):
        yield ("WARN", "MISMATCH", f"pluto runs from {program}, but libreswan's other programs are in "
               f"{patient.host.execdir}", "ipsec restart")


@verify_check(
    "fips", "Checking FIPS mode",
    "Whether the kernel, the system's crypto-policy and the running pluto agree on FIPS mode.",
    "Pluto takes its FIPS mode from the kernel when it starts; NSS takes its own from the crypto-policy. If "
    "they differ, one offers algorithms that the other refuses.",
    "fips-mode-setup --check reports more.")
def check_fips(patient: Patient) -> Iterator[Trouble]:
    host = patient.host
    policy = host.value("/etc/crypto-policies/config").strip()
    kernel = host.live and host.value("/proc/sys/crypto/fips_enabled").strip() == "1"
    state = "on" if kernel else "off"
    pluto = patient.pluto_setting("fips mode").strip(";")
    if host.live and policy and policy.startswith("FIPS") != kernel:
        yield ("WARN", "MISMATCH", f"the kernel's FIPS mode is {state}, but the crypto-policy is {policy}",
               f"fips-mode-setup --{'enable' if kernel else 'disable'}")
    elif host.live and not pluto and kernel:
        raise NotChecked("pluto", "pluto's FIPS mode is not known")
    if pluto and (pluto == "enabled") != kernel:
        yield ("WARN", "MISMATCH", f"the kernel's FIPS mode is {state}, but pluto's is {pluto}",
               "ipsec restart")


@verify_check(
    "crypto_policy", "Checking the system's crypto-policy",
    "Whether ipsec.conf includes libreswan's part of the crypto-policy, on a system that has "
    "crypto-policies.",
    "Without that part, pluto offers its own defaults, which the administrator's policy may forbid.",
    "Put the include line that is named at the top of ipsec.conf.")
def check_crypto_policy(patient: Patient) -> Iterator[Trouble]:
    backend = "/etc/crypto-policies/back-ends/libreswan.config"
    if not patient.host.exists(backend):
        return
    patient.read_configuration()
    if backend not in patient.config.files:
        yield ("WARN", "NOT INCLUDED", f"{patient.config.name} does not include {backend}",
               shell_words(["sed", "-i", f"1i include {backend}", patient.config.name]))


@verify_check(
    "selinux", "Checking for denials of SELinux",
    "Messages in the last MiB of /var/log/audit/audit.log that SELinux denied something to pluto.",
    "Pluto could not read a file or make a socket that it needs; its own log names only the effect.",
    "ausearch -m avc -c pluto shows the messages; restorecon corrects wrong labels.")
def check_selinux(patient: Patient) -> Iterator[Trouble]:
    host, log = patient.host, "/var/log/audit/audit.log"
    if host.live and host.value("/sys/fs/selinux/enforce").strip() != "1":
        return  # SELinux denies nothing
    if not host.exists(log):
        if host.live:
            yield "SKIP", "UNKNOWN", f"SELinux is enforcing, and {log} can't be found here", ""
        return
    start = max(0, host.stat(log).st_size - (1 << 20))
    denied = [line for line in split_lines(host.chunks(log, start)) if "type=AVC" in line and "denied" in line
              and ('comm="pluto"' in line or ":ipsec_t:" in line)]
    if denied:
        yield ("WARN", "DENIED", f"SELinux denied pluto something {len(denied)} times: "
               f"{denied[-1].partition('avc:')[2].strip()[:120]}", "ausearch -m avc -c pluto")


def findings(host: Host, timeout: float, names: Collection[str] = ()) -> Iterator[Finding]:
    """Yield the findings of the checks with these names, or of all checks.

    Under --root, checks that only a running system can answer are left out.
    """
    patient = Patient(host, timeout)
    chosen = [check for check in CHECKS.values()
              if (not names or check.name in names) and (host.live or not check.live)]
    if CHECKS["config"] in chosen:
        patient.ask_addconn()
        patient.pluto_setting("pluto_version")  # other checks need pluto's status, too; it comes while addconn reads
    try:
        for check in chosen:
            is_fine = True
            try:
                for level, word, why, fix in check.function(patient):
                    is_fine = False
                    yield Finding(check.name, check.text, level, word, why, on_its_system(host, fix))
            except (OSError, Failure) as error:
                is_fine = False
                yield not_checked(host, check, error)
            if is_fine:
                yield Finding(check.name, check.text)
    finally:
        patient.close()


def not_checked(host: Host, check: Check, error: OSError | Failure) -> Finding:
    """Return the finding for a check that raised an error."""
    cause, fix = "", ""
    if isinstance(error, NotChecked):
        cause, fix = error.cause, error.hint
    elif isinstance(error, (NoPluto, TimedOut)) and check.name != "config":
        cause = "pluto"
    elif isinstance(error, PermissionError) and not host.superuser:
        cause, fix = "root", f"sudo ipsec verify {check.name}"
    elif isinstance(error, PermissionError) and not has_capability(host, NET_ADMIN[1]):
        cause, fix = "rights", "start the container with --cap-add NET_ADMIN"
    return Finding(check.name, check.text, "SKIP", "UNKNOWN", error_text(error), fix, cause)


def on_its_system(host: Host, fix: str) -> str:
    """Return the command so that it runs on the system that is checked: under --root, through chroot."""
    if not host.root or not fix:
        return fix
    if " && " in fix:
        fix = f"sh -c {shell_words([fix])}"
    return f"{shell_words(['chroot', host.root])} {fix}"


def finding_lines(finding: Finding, colour: bool = False) -> Iterator[str]:
    """Yield the line of a finding as libreswan's verify prints it, with the level in front of the word, and a
    line with the reason and the fix."""
    tint = {"OK": 92, "FAIL": 91}.get(finding.level, 93)
    word = f"\x1b[{tint}m{finding.word}\x1b[0m" if colour else finding.word
    level = "" if finding.level == "OK" else f"{finding.level} "
    yield f"{finding.text:<50}\t{level}[{word}]"
    if finding.why:
        lead = "not checked: " if finding.level == "SKIP" else ""
        fix = f"; fix: {printable(finding.mend)}" if finding.mend else ""
        yield f"  {lead}{printable(finding.why)}{fix}"


def cause_line(cause: str, checks: Sequence[str], shown: Collection[str], is_whole: bool) -> str:
    """Return the line about the checks that were not made for one cause.

    `shown` are the checks that have a line of their own; `is_whole`: all checks were asked for.
    """
    one, several, rest, before = SKIP_CAUSES[cause]
    more = "more " if before in shown else ""
    verb = one if len(checks) == 1 else several
    count = f"{len(checks)} {more}check{'s' * (len(checks) != 1)} {verb} {rest}"
    names = ", ".join(checks)
    if cause == "root":
        return f"{count}: sudo ipsec verify{'' if is_whole else ' ' + ' '.join(checks)} ({names})"
    return f"{count} ({names})"


def summary_line(levels: Sequence[str]) -> str:
    """Return the last line: how many findings there are of each level."""
    failed, warned, skipped, fine = (levels.count(level) for level in ("FAIL", "WARN", "SKIP", "OK"))
    return f"{failed} failed, {warned} warning{'s' * (warned != 1)}, {skipped} not checked, {fine} ok"


def verify_lines(found: Iterable[Finding], left_out: Sequence[str] = (), colour: bool = False,
                 is_whole: bool = True) -> Iterator[str]:
    """Yield the lines of findings as they come, then one line for each cause of checks that were not made,
    and the summary.  `left_out` are the checks that --root excludes; `is_whole`: all checks were asked
    for."""
    levels: list[str] = []
    shown: list[str] = []
    skipped: dict[str, list[str]] = {}
    yield "Verifying installed system and configuration files\n"
    for finding in found:
        levels.append(finding.level)
        if finding.cause:
            skipped.setdefault(finding.cause, []).append(finding.check)
        else:
            shown.append(finding.check)
            yield from finding_lines(finding, colour)
    if left_out:
        skipped["live"] = list(left_out)
        levels += ["SKIP"] * len(left_out)
    yield ""
    for cause, checks in skipped.items():
        yield cause_line(cause, checks, shown, is_whole)
    yield summary_line(levels)


def explain(check: Check) -> str:
    """Return the text of --explain for a check, in 80 columns."""
    import textwrap
    parts = (("Checks", check.checks), ("Why it matters", check.matters), ("Fix", check.fix))
    return "\n\n".join([f"{check.name}: {check.text.strip()}", *(
        textwrap.fill(text, 79, initial_indent=f"{title:<16}", subsequent_indent=" " * 16) for title,
        text in parts)])


@command("verify", "[CHECK...]", summary="check the installation, the kernel, the configuration and pluto",
         rescue=True, options=(
    Opt("--explain", "[CHECK]", "explain a check: what it checks, why a failure matters, and how to fix it; "
                                "without "
                                "CHECK (or with list) print the names of all checks"),
    Opt("--json", None, "print the findings as a JSON list: check, text, level, word, why, mend, cause"),
    Opt("--timeout", "SECONDS", "how long to wait for pluto (default 10)"),
    Opt("--nocolour --nocolor", None, "no colours (default if the output is not a terminal)"),
), details="Makes all checks, or the named ones.  Every finding is OK, WARN, FAIL, or SKIP for a check that "
           "can't be "
           "made here; with the reason and a command to fix it.  The last line counts them.\n\nExit status: "
           "the number of findings that are FAIL, at most 255; 2 if a named check does not exist.")
def verify_command(host: Host, args: Args) -> int:
    """`ipsec verify`: return the number of failures, at most 255.  Raises Failure."""
    names = [*args.operands, *filter(None, args.values("--explain"))]
    if args.flag("--explain") and names in ([], ["list"]):
        host.print("\n".join(f"{check.name:<18}{check.text.strip()}" for check in CHECKS.values()))
        return OK
    for name in names:
        if name not in CHECKS:
            raise Failure(f"ipsec verify: no check {quote(name)}", USAGE,
                          suggest(name, CHECKS) or "see ipsec verify --explain")
    if args.flag("--explain"):
        host.print("\n\n".join(explain(CHECKS[name]) for name in names))
        return OK
    levels: list[str] = []
    left_out = [check.name for check in CHECKS.values()
                if check.live and not host.live and check.name in (names or CHECKS)]

    def counted() -> Iterator[Finding]:
        for finding in findings(host, timeout, names):
            levels.append(finding.level)
            yield finding

    timeout = parse_seconds(args.value("--timeout", "10"))
    if args.flag("--json"):
        host.print(need("json", "--json").dumps([finding._asdict() for finding in counted()], indent=1))
        if left_out:
            host.warn(f"verify: {cause_line('live', left_out, (), not names)}")
    else:
        for line in verify_lines(counted(), left_out, host.colour and not args.flag("--nocolour"), not names):
            host.print(line)
    return min(levels.count("FAIL"), 255)


# --- barf ------------------------------------------------------------------------------------------------------------
#
# A table of sections in the order of the report, and their bodies.  Facts: barf(8) and programs/barf of libreswan 3.29
# and 4.10 for headings and order.

SHORT_LOG = 500  # lines of each log with --short, as the original
MODULE_NAMES = ("xfrm", "ipsec", "esp")


# Bodies: each gives the text of a section piece by piece.


def cat(*names: str) -> Callable[[Report], Iterator[str]]:
    """The files, whole; one that is not there is one line."""
    def body(report: Report) -> Iterator[str]:
        for name in names:
            yield from file_text(report.host, name)
    return body


def file_text(host: Host, name: str) -> Iterator[str]:
    """The text of a file in pieces of whole lines.  Raises OSError."""
    return map(decode, whole_lines(host.text_chunks(name)))


def matching_files(pattern: str, separator: str = ": ", below: str = "") -> Callable[[Report], Iterator[str]]:
    """`name: value` for every file that matches, names shortened by the directory `below`."""
    def body(report: Report) -> Iterator[str]:
        for name in report.host.glob(pattern):
            try:
                yield f"{name[len(below):]}{separator}{report.host.read(name).rstrip()}\n"
            except OSError as error:
                yield f"{name[len(below):]}{separator}{error.strerror}\n"
    return body


def matching(lines: Iterable[str], words: Sequence[str]) -> Iterator[str]:
    """The lines in which one of the words stands, in either case."""
    for line in lines:
        lower = line.lower()
        if any(word in lower for word in words):
            yield line + "\n"


def long_listing(host: Host, directory: str) -> Iterator[str]:
    """A directory as `ls -l` shows it: permissions, links, numeric owner and group, size, time, name and target."""
    import stat
    for name in host.listdir(directory):
        path = os.path.join(directory, name)
        info = host.stat(path, follow=False)
        target = ""
        if stat.S_ISLNK(info.st_mode):
            target = f" -> {host.readlink(path)}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.st_mtime))
        yield (f"{stat.filemode(info.st_mode)} {info.st_nlink:>2} {info.st_uid:>4} {info.st_gid:>4} {info.st_size:>9} "
               f"{when} {name}{target}\n")


def listing(*directories: str) -> Callable[[Report], Iterator[str]]:
    """Long listings of directories."""
    def body(report: Report) -> Iterator[str]:
        for directory in directories:
            yield from long_listing(report.host, directory)
    return body


def uptime(report: Report) -> Iterator[str]:
    """As uptime(1), without the users: time of day, time since boot, load averages (proc(5))."""
    seconds = int(float(report.host.read("/proc/uptime").split()[0]))
    days, rest = divmod(seconds, 86400)
    since = (f"{days} day{'s' * (days != 1)}, " if days else "") + f"{rest // 3600}:{rest % 3600 // 60:02}"
    load = ", ".join(report.host.read("/proc/loadavg").split()[:3])
    yield f" {time.strftime('%H:%M:%S')} up {since}, load average: {load}\n"


def fqdn(report: Report) -> Iterator[str]:
    """The name that the resolver gives for ours."""
    yield resolved(report.host_name())[0] + "\n"


def addresses_of_host(report: Report) -> Iterator[str]:
    """The addresses that the resolver gives for our name."""
    yield " ".join(resolved(report.host_name())[1]) + "\n"


def distribution(report: Report) -> Iterator[str]:
    """The release files of the distribution, os-release among them."""
    found = False
    for name in dict.fromkeys(("/etc/os-release", *report.host.glob("/etc/*-release"), "/etc/debian_version")):
        if report.host.exists(name):
            found = True
            is_known = os.path.basename(name) in RELEASE_FILES or report.redactor.show_secrets
            for line in report.host.lines(name):
                yield f"{name}: {line if is_known else shown_release_line(line)}\n"
    if not found:
        raise Missing("no release file in /etc")


def shown_lines(name: str, show: Callable[[str], str]) -> Callable[[Report], Iterator[str]]:
    """Return a body that yields a file with its lines as `show` gives them.  Raises OSError."""
    return lambda report: shown_text(report, name, show)


def shown_text(report: Report, name: str, show: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a file as `show` gives them; with --show-secrets as they are.  Raises OSError."""
    if report.redactor.show_secrets:
        return file_text(report.host, name)
    return shown_file(report.host.lines(name), show)


def configuration(report: Report) -> Iterator[str]:
    """Yield ipsec.conf and the files that it includes, in the order of reading, then the problems in them."""
    for name in report.config.files:
        yield f"==> {name} <==\n"
        yield from shown_text(report, name, shown_conf_line)
    yield from (f"problem: {problem}\n" for problem in report.config.problems)


def secrets(report: Report) -> Iterator[str]:
    """ipsec.secrets and all files that it includes: identities and kinds, and what is wrong in them."""
    host = report.host
    name = secrets_file(host, report.config)
    host.check_readable(name)  # one that we may not read, or no file, is an error
    files, problems = secret_files(host, name)
    for file in dict.fromkeys([*files, *host.glob(f"{host.confddir}/*.secrets")]):
        yield f"==> {file} <==\n"
        yield from file_text(host, file) if report.redactor.show_secrets else \
            (f"{line}\n" for line in secrets_report(host, file))
    yield from (f"problem: {problem}\n" for problem in problems)


def kernel_symbols(report: Report) -> Iterator[str]:
    """Whether the kernel tells its symbols: where netif_rx is.  The first page with it is enough."""
    for data in whole_lines(report.host.chunks("/proc/kallsyms")):
        if b"netif_rx" in data:
            yield from matching(decode(data).splitlines(), ("netif_rx",))
            return
    raise Failure("/proc/kallsyms: no netif_rx, a kernel without symbols")


def kernel_log(report: Report) -> Iterator[str]:
    """The messages of the kernel about IPsec, as dmesg(1) prints them."""
    messages = report.host.kernel_messages()
    return matching(messages if report.redactor.show_secrets else map(without_log_prefix, messages), MODULE_NAMES)


def kernel_debug_log(report: Report) -> Iterator[str]:
    """Yield the last 100 lines of kern.debug (barf of libreswan 4.10), as far as they are about IPsec."""
    return text_of_lines(report.log_lines(tail_of_file(report.host, "/var/log/kern.debug")[-100:]))


def last_lines(lines: Iterable[str], most: int) -> Iterable[str]:
    """The last lines, `most` of them."""
    import collections
    return collections.deque(lines, most)


def pluto_log(report: Report) -> Iterator[str]:
    """Yield pluto's messages from its logfile= and from the journal; if neither has any, from the system's log."""
    host, found = report.host, False
    since = report.since
    denied: Exception | None = None
    logfile = report.config.setup("logfile")
    if logfile:
        yield f"==> {logfile} <==\n"
        try:
            yield from log_text(report, logfile, since)
            found = True
        except PermissionError as error:
            denied = error
        except OSError as error:
            yield error_text(error) + "\n"
    journal = journal_command(host)
    if journal:
        argv = [*journal, "-u", "ipsec.service", "--no-pager", "-q", "--since",
                f"@{int(since or time.time() - 86400)}"]
        try:
            for text in shortened_log(report, split_lines(denied_if_refused(
                    host.stream(argv, timeout=report.program_timeout)))):
                if not found:
                    yield f"==> {journal_title(argv)} <==\n"
                found = True
                yield text
        except Denied as failure:
            denied = failure
        except Failure as failure:
            yield f"{failure}\n"
    elif host.root and host.isdir(JOURNAL):
        yield (f"{JOURNAL}: the journal is not shown, because " + (
            "it has no file that lies on this disk" if host.which("journalctl") else
            "this rescue system has no journalctl") + "\n")
    for name in () if found else SYSLOGS:
        if host.exists(name) and last_start(host, name) is not None:
            yield f"==> {name} <==\n"
            yield from log_text(report, name, since)
            return
    if denied:
        raise denied
    if not found:
        raise Missing("no messages of pluto: no logfile= in the configuration, no journal of ipsec.service, no start "
                      "in " + ", ".join(SYSLOGS))


def shortened_log(report: Report, lines: Iterable[str]) -> Iterator[str]:
    """Yield log lines as text, as far as they may be shown; with --short the last 500."""
    lines = report.log_lines(lines)
    return text_of_lines(last_lines(lines, SHORT_LOG) if report.short else lines)


def log_text(report: Report, name: str, since: float) -> Iterator[str]:
    """Yield a log file from pluto's last start (or from `since`, in seconds), at most LOG_TAIL bytes of its end.

    Raises OSError.
    """
    host = report.host
    size = host.stat(name).st_size
    start = 0 if since else last_start(host, name) or 0
    cut = size - start > LOG_TAIL
    if cut:
        yield f"... {size - LOG_TAIL - start} bytes left out\n"
        start = size - LOG_TAIL
    lines: Iterator[str] = split_lines(host.chunks(name, start))
    if cut:
        next(lines, "")  # the rest of a line that may hold half a secret
    if since:
        lines = newer(lines, since)
    yield from shortened_log(report, lines)


def newer(lines: Iterable[str], since: float) -> Iterator[str]:
    """The lines from the first on whose time stamp is not before `since` (seconds since the epoch)."""
    lines = iter(lines)
    for line in lines:
        when = stamp(line)
        if when is not None and when >= since:
            yield line
            break
    yield from lines


def processes(report: Report) -> Iterator[str]:
    """The processes of IPsec, and whatever names it in its arguments."""
    yield f"{'UID':>5} {'PID':>7} {'PPID':>7} {'NI':>3} {'RSS':>8} S STARTED             {'TIME':>6} COMMAND\n"
    for process in list_processes(report.host):
        is_own = process.pid in (os.getpid(), os.getppid()) or process.parent == os.getpid()
        if not is_own and any(word in process.command.lower() for word in ("pluto", "ipsec")):
            started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process.started))
            minutes, seconds = divmod(int(process.cpu), 60)
            text = process.command if report.redactor.show_secrets else shown_arguments(process.command.split())
            yield (f"{process.user:>5} {process.pid:>7} {process.parent:>7} {process.nice:>3} {process.memory:>8} "
                   f"{process.state} {started} {minutes:>3}:{seconds:02} {text}\n")


def listeners(report: Report) -> Iterator[str]:
    """Who listens on the ports of IKE, in pluto's network namespace when it runs, and whether that is pluto."""
    host = report.host
    pid = find_pluto(host)
    yield f"pluto: {f'process {pid}' if pid else 'not running'}\n"
    owned = set()
    if pid:
        try:
            owned = open_files(host, pid)
        except OSError as error:
            yield f"which sockets are pluto's: {error.strerror}\n"
    for entry in list_sockets(host, (500, 4500), pid):
        shown = f"[{entry.address}]" if ":" in entry.address else entry.address
        yield f"{entry.protocol} {shown}:{entry.port}{' pluto' if f'socket:[{entry.inode}]' in owned else ''}\n"


def algorithm_lines(report: Report) -> Iterator[str]:
    """Yield one line for each algorithm of /proc/crypto: name, driver, type, and a self-test that did not pass."""
    entry: dict[str, str] = {}
    for line in (*report.host.lines("/proc/crypto"), ""):
        key, _, value = line.partition(":")
        if line.strip():
            entry[key.strip()] = value.strip()
        elif entry:
            selftest = "" if entry.get("selftest") == "passed" else f", selftest {entry.get('selftest', 'unknown')}"
            yield f"{entry.get('name')} ({entry.get('driver')}): {entry.get('type')}{selftest}\n"
            entry = {}


def kernel_options(report: Report) -> Iterator[str]:
    """The options of the kernel that matter to IPsec."""
    import re
    wanted = re.compile("|".join(KERNEL_OPTIONS)).search
    yield from (f"{line}\n" for line in kernel_config(report.host).splitlines() if wanted(line))


def l2tp(*words: str) -> Callable[[Report], Iterator[str]]:
    """What `ip l2tp show` tells; nothing when the kernel has no L2TP."""
    def body(report: Report) -> Iterator[str]:
        if report.host.isdir("/sys/module/l2tp_core"):
            yield from program_output("ip", "l2tp", "show", *words)(report)
    return body


def nss_program(name: str) -> Callable[[Report], Iterator[str]]:
    """What certutil or crlutil lists of the database."""
    def body(report: Report) -> Iterator[str]:
        host = report.host
        has_database(host)
        if name == "certutil" and not (host.live and host.which(name)):
            # of a mounted disk, and without certutil: read from the database itself, which changes nothing in it
            yield from certificate_lines(host)
            return
        keys = f"{host.nssdir}/key4.db"
        if host.exists(keys):
            host.check_readable(keys)  # NSS's programs call a file that they may not read a bad database
        yield from program_output(name, "-L", "-d", f"sql:{host.path(host.nssdir)}")(report)
    return body


PACKAGES = ("libreswan", "strongswan", "nss", "libnss3", "unbound", "xl2tpd", "iproute", "iptables", "nftables",
            "busybox", "kmod", "systemd", "openvswitch-ipsec", "network-manager-libreswan", "crypto-policies",
            "python3-minimal")


def packages(report: Report) -> Iterator[str]:
    """The installed packages that matter here, from the package managers' own files; from rpm where that is used."""
    import re
    host, found = report.host, False
    for name, is_package, is_version in PACKAGE_LISTS:
        if host.exists(name):
            found = True
            entry = f"^{is_package}((?:{'|'.join(PACKAGES)}).*)\n(?:.+\n)*?{is_version}(.+)"
            yield from (f"{package} {version}\n" for package, version in re.findall(entry, host.read(name), re.M))
    for name in host.glob("/var/lib/pacman/local/*-*"):
        found = True
        if os.path.basename(name).startswith(PACKAGES):
            yield os.path.basename(name) + "\n"
    if host.live and host.exists("/var/lib/rpm") and host.which("rpm"):
        found = True
        output = host.stream(["rpm", "-qa"], timeout=report.program_timeout)
        yield from (f"{line}\n" for line in split_lines(output) if line.startswith(PACKAGES))
    if not found:
        raise Missing("no package database that we can read")


def surroundings(report: Report) -> Iterator[str]:
    """What confines us: container, cgroup, capabilities, security modules."""
    host = report.host
    for name in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container"):
        if host.exists(name):
            yield f"{name}: {host.value(name) or 'present'}\n"
    if host.live:
        yield f"pid 1: {host.value('/proc/1/comm', 'not readable')}\n"
        yield f"cgroup: {host.value('/proc/self/cgroup', 'not readable')}\n"
        wanted = ("Cap", "NoNewPrivs", "Seccomp:")
        yield from (f"{line}\n" for line in host.lines("/proc/self/status") if line.startswith(wanted))


def security_modules(report: Report) -> Iterator[str]:
    """The mode of SELinux and AppArmor."""
    host = report.host
    if host.live:
        enforce = {"0": "permissive", "1": "enforcing"}.get(host.value("/sys/fs/selinux/enforce"), "not active")
        yield f"SELinux: {enforce}\n"
        apparmor = host.value("/sys/module/apparmor/parameters/enabled") == "Y"
        yield f"AppArmor: {'enabled' if apparmor else 'not active'}\n"
        profiles = "/sys/kernel/security/apparmor/profiles"
        if host.superuser and host.exists(profiles):
            yield from matching(host.lines(profiles), ("ipsec", "pluto"))
    for name in ("/etc/selinux/config", "/etc/apparmor.d/usr.lib.ipsec.pluto", "/etc/crypto-policies/config"):
        if host.exists(name):
            for line in host.lines(name):
                if line and not line.startswith("#"):
                    yield f"{name}: {shown_mode_line(line)}\n"


def pluto_answer(word: str) -> Callable[[Report], Iterator[str]]:
    """What pluto answers; when it falls silent, this ends before the section does, and all until then is shown."""
    return lambda report: text_of_lines(pluto_lines(report.host, word, timeout=report.timeout * 0.9))


# The files that start the service, and what they read
SERVICE_FILES = ("/etc/systemd/system/ipsec.service", "/etc/systemd/system/ipsec.service.d/*.conf",
                 "/usr/lib/systemd/system/ipsec.service", "/lib/systemd/system/ipsec.service", "/etc/init.d/ipsec",
                 "/etc/init/ipsec.conf", "/etc/sv/ipsec/run", "/etc/dinit.d/ipsec", "/etc/sysconfig/pluto",
                 "/etc/sysconfig/ipsec", "/etc/default/ipsec", "/etc/default/pluto", "/etc/conf.d/ipsec")


def service_line(name: str) -> Callable[[str], str]:
    """Return the function that shows the lines of a file of the service: a unit, settings, or a script."""
    if "/systemd/" in name:
        return shown_unit_line
    if name.startswith(("/etc/sysconfig/", "/etc/default/", "/etc/conf.d/")):
        return shown_setting
    return shown_script_line


def service_files(report: Report) -> Iterator[str]:
    """The unit or init script in use, with its drop-ins and settings; each file once, whatever its names."""
    host, seen = report.host, set()
    for name in (name for pattern in SERVICE_FILES for name in host.glob(pattern)):
        try:
            info = host.stat(name)
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                yield f"==> {name} <==\n"
                yield from shown_text(report, name, service_line(name))
        except OSError as error:
            yield f"{error_text(error)}\n"  # a masked unit is a link to /dev/null
            seen.add((0, 0))
    if not seen:
        raise Missing("no unit or init script named ipsec")


def names_or_pattern(host: Host, pattern: str) -> list[str]:
    """Return the names that match, or the pattern itself if its directory can't be read: a section tells why then."""
    try:
        return host.glob(pattern)
    except OSError:
        return [pattern]


KERNEL_OPTIONS = ("IPSEC", "ESP", "CONFIG_NET_KEY", "CONFIG_INET", "CONFIG_IP", "_XFRM")


def report_sections(host: Host) -> list[ReportSection]:
    """The table of contents.  Names and order are those of 3.29 and 4.10; what is new stands beside its like."""
    part = ReportSection
    net, conf = "/proc/sys/net", "/proc/sys/net/ipv4/conf/"

    def live_file(name: str) -> ReportSection:
        return part(name, f"cat {name}", cat(name), live=True, bulk=True)

    def disk_file(name: str, show: Callable[[str], str]) -> ReportSection:
        return part(name[1:], f"cat {name}", shown_lines(name, show))

    syslog_configs = ("/etc/syslog.conf", "/etc/syslog-ng/syslog-ng.conf", "/etc/rsyslog.conf")
    save = ("--modprobe=/dev/null",)
    return [
        part("summary", "", lambda report: iter(load_part("report_summary")(report)), slow=True),
        part("version", "ipsec --version", lambda report: iter([version_line(host) + "\n"])),
        part("packages", "", packages, slow=True),
        live_file("/proc/version"),
        part("ip-xfrm-state", "ip -s xfrm state",
             lambda report: XfrmText(host, show_keys=report.redactor.show_secrets).states(), live=True, slow=True),
        part("ip-xfrm-policy", "ip -s xfrm policy", lambda report: XfrmText(host).policies(), live=True, apart=True,
             bulk=True),
        part("cat-proc-net-xfrm_stat", "cat /proc/net/xfrm_stat", cat("/proc/net/xfrm_stat"), live=True, bulk=True),
        part("ip-l2tp-tunnel", "ip l2tp show tunnel", l2tp("tunnel"), live=True),
        part("ip-l2tp-session", "ip l2tp show session", l2tp("session"), live=True),
        part("ip-tunnel", "ip -s tunnel show", lambda report: LinkText(host).tunnels(), live=True),
        part("ip-xfrm-interface", "ip -d link show type xfrm", lambda report: LinkText(host).tunnels("xfrm"),
             live=True),
        part(f"{net}/core/xfrm-star", "", matching_files(f"{net}/core/xfrm_*"), live=True),
        part(f"{net}/ipsec-star", "", matching_files(f"{net}/ipsec/*"), live=True),
        part("ipsec/status", "ipsec whack --status", pluto_answer("--status"), live=True, slow=True),
        part("ip-addr-list", "ip addr list", lambda report: LinkText(host).addresses(), live=True),
        part("ip-route-list-table-all", "ip route list table all", lambda report: RouteText(host).routes(), live=True,
             apart=True, bulk=True),
        part("ip-rule-list", "ip rule list", lambda report: RouteText(host).rules(), live=True),
        part("ipsec_verify", "ipsec verify --nocolour",
             lambda report: (f"{line}\n" for line in verify_lines(report.verdicts())), live=True, slow=True),
        part("ipsec/directory", "ipsec --directory", lambda report: iter([host.execdir + "\n"])),
        part("hostname/fqdn", "hostname --fqdn", fqdn, live=True, slow=True, blocks=True),
        part("hostname/ipaddress", "hostname --ip-address", addresses_of_host, live=True, slow=True, blocks=True),
        part("uptime", "uptime", uptime, live=True),
        part("ps", "ps alxwf", processes, live=True, slow=True),
        part("listeners", "ss -nlpu sport = 500 or sport = 4500", listeners, live=True, slow=True),
        part("container", "", surroundings),
        part("security-modules", "", security_modules),
        part("service", "", service_files),
        part("ipsec/conf", f"cat {host.conf}", configuration),
        part("ipsec/secrets", f"ipsec _secretcensor {host.secrets}", secrets),
        part("ipsec/listall", "ipsec whack --listall", pluto_answer("--listall"), live=True, slow=True),
        part("nss/directory", f"ls -l {host.nssdir}", listing(host.nssdir)),
        part("nss/contents", f"certutil -L -d sql:{host.nssdir}", nss_program("certutil"), slow=True),
        part("nss/crls", f"crlutil -L -d sql:{host.nssdir}", nss_program("crlutil"), live=True, slow=True),
        *(part(f"ipsec/policies/{os.path.basename(name)}", f"cat {name}", shown_lines(name, shown_policy_line))
          for name in names_or_pattern(host, f"{host.confddir}/policies/*")),
        part("ipsec/ls-execdir", f"ls -l {host.execdir}", listing(host.execdir)),
        live_file("/proc/net/dev"),
        part("/proc/net/route", "cat /proc/net/route", cat("/proc/net/route"), live=True, slow=True, bulk=True),
        live_file(f"{net}/ipv4/ip_no_pmtu_disc"),
        live_file(f"{net}/ipv4/ip_forward"),
        part(f"{net}/ipv6/conf/star-forwarding", "", matching_files(f"{net}/ipv6/conf/*/forwarding"), live=True),
        live_file(f"{net}/ipv4/tcp_ecn"),
        part(f"{conf}star-rp_filter", "", matching_files(f"{conf}*/rp_filter", ":", conf), live=True),
        part(f"{conf}star-star-redirects", "", matching_files(f"{conf}*/*redirects", ":", conf), live=True),
        live_file(f"{net}/ipv4/tcp_window_scaling"),
        live_file(f"{net}/ipv4/tcp_adv_win_scale"),
        part("uname-a", "uname -a", lambda report: iter([" ".join(os.uname()) + "\n"]), live=True),
        part("config-built-with", "cat /proc/config_built_with", cat("/proc/config_built_with"), live=True),
        part("distro-release", "cat /etc/*release", distribution),
        part("iptables", "iptables-save", program_output("iptables-save", *save), live=True, slow=True),
        part("ip6tables", "ip6tables-save", program_output("ip6tables-save", *save), live=True, slow=True),
        part("nftables", "nft list ruleset", nft_ruleset, live=True, slow=True),
        live_file("/proc/modules"),
        part("/proc/crypto", "cat /proc/crypto", algorithm_lines, live=True, bulk=True),
        live_file("/proc/meminfo"),
        part("usr/src/linux/.config", "zcat /proc/config.gz", kernel_options, bulk=True),
        *(disk_file(name, shown_syslog_line) for path in syslog_configs for name in names_or_pattern(host, path)),
        disk_file("/etc/resolv.conf", shown_resolver_line),
        part("lib/modules-ls", "ls -l /lib/modules", listing("/lib/modules")),
        part("fipscheck", "cat /proc/sys/crypto/fips_enabled", cat("/proc/sys/crypto/fips_enabled"), live=True),
        part("/proc/ksyms-netif_rx", "grep netif_rx /proc/kallsyms", kernel_symbols, live=True, apart=True),
        part("kern.debug", "tail -100 /var/log/kern.debug", kernel_debug_log),
        part("klog", "dmesg", kernel_log, live=True),
        part("plog", "", pluto_log, slow=True),
        part("report", "", lambda report: iter([report.ending()])),
        part("date", "date", lambda report: iter([date_line() + "\n"])),
    ]


@command("barf", rescue=True, summary="dump the system's IPsec state for debugging, without secrets", options=(
    Opt("--short", None, f"of each log only the last {SHORT_LOG} lines"),
    Opt("--section", "NAME", "only this section", many=True),
    Opt("--list-sections", None, "print the names of the sections"),
    Opt("--json", None, "one JSON document: section, command, text, status, duration in seconds"),
    Opt("--output", "FILE", "write to FILE, mode 0600, whole or not at all; compressed when it ends in .gz"),
    Opt("--since", "TIME", "log messages from then on: 2026-11-23, 2026-11-23 06:12, 24 hours ago"),
    Opt("--timeout", "SECONDS", "how long to wait for one section (default 10)"),
    Opt("--show-secrets", None, "leave secrets in; root only, never mail such a report"),
    Opt("--strict", None, "status 1 also if the system denies a section"),
), details="Pre-shared keys, passwords, private keys and kernel keys are replaced by "
           "[redacted]. What can't be read, does not answer in time or is not installed becomes a line of its section."
           "\n\nExit status: 0, also if the system denies sections to this user or container; 1 if sections failed or "
           "timed out, with --strict also if some were denied. Standard error says which, and how to get the rights.")
def barf(host: Host, args: Args) -> int:
    """`ipsec barf`: OK, or ERROR when a section is incomplete.  Raises Failure."""
    end_on_signals(host)  # before any program is run
    sections = report_sections(host)
    if args.flag("--list-sections"):
        host.print("\n".join(section.name for section in sections))
        return OK
    if wanted := args.values("--section"):
        known = {section.name: section for section in sections}
        for name in wanted:
            if name not in known:
                raise Failure(f"barf: no section {quote(name)}", USAGE, suggest(name, known) or "see --list-sections")
        sections = [section for section in sections if section.name in wanted]
    if args.flag("--show-secrets"):
        if not host.superuser:
            raise Failure("barf: --show-secrets is for root")
        host.warn("this report shows secrets: do not mail it")
    output = args.value("--output")
    file = OutputFile(output) if output else None
    write = file.write if file else lambda text: host.print(text, end="")
    try:
        sink = (JsonSink if args.flag("--json") else TextSink)(write)
        report = Report(host, args)
        if len(sections) > 1:  # what threads and processes need is made and imported once, before they part
            import _socket  # noqa: F401
            import subprocess  # noqa: F401
            report.redactor.compile()
        ended = run_report(report, sections, sink)
        if file:
            file.commit()
    finally:
        if file:
            file.drop()
    status = completeness(host, "barf", ended, FAILED)
    denied = ended.get("denied", [])
    rights = missing_rights(host, "barf", denied) if denied else ""
    if output:
        rights = f"; {rights.removeprefix('barf: ')}" if rights else ""
        host.warn(f"barf: wrote {output}, {kilobytes(output)}; {report.ending().splitlines()[-1]}{rights}")
    elif rights:
        host.warn(rights)
    return ERROR if denied and args.flag("--strict") else status


def kilobytes(name: str) -> str:
    """Return the size of a file for people: `31 kB`."""
    size = os.stat(name).st_size
    return f"{size} bytes" if size < 1000 else f"{round(size / 1000)} kB"


# --- look and show ---------------------------------------------------------------------------------------------------
#
# Facts: programs/look and programs/show of libreswan 3.29 and 4.10 (both are in 4.12, neither is in 5.0) for headings,
# order and lines; net/xfrm/xfrm_policy.c, xfrm_interface_core.c and net/ipv4/ip_vti.c for the kernel's treatment of a
# packet.

LOOK_WORDS = ("state", "policy", "nftables", "iptables", "route", "nss")


class LookSink(TextSink):
    """The form of look: host and date in one line, sections under their titles."""

    def open(self, report: Report) -> None:
        """Write host and date."""
        self.write(f"{report.host_name()} {date_line()}\n")

    def begin(self, section: ReportSection) -> None:
        """Write the title of a section."""
        self.write(f"{section.title}\n")


def sorted_policies(report: Report) -> Iterator[str]:
    """Yield the policies, without those of sockets, in libreswan's order: family, ICMPv6 type, priority,
    text.
    """
    text = XfrmText(report.host, stats=False)

    def order(policy: str) -> tuple[bool, int, int, str]:
        words = policy.split()
        is_ipv6 = ":" in policy
        kind = words[words.index("type") + 1] if is_ipv6 and "type" in words else "0"
        return is_ipv6, int(kind), int(words[words.index("priority") + 1]), policy.replace("\n", "\\")

    plain = (trimmed(policy) for policy in message_texts(policy_messages(report.host), text.policy_text))
    return in_pieces(sorted((policy for policy in plain if "\tsocket " not in policy), key=order))


def trimmed(text: str) -> str:
    """Return the text without blanks at the ends of its lines."""
    return "".join(f"{line.rstrip(' ')}\n" for line in text.splitlines())


def main_routes(report: Report) -> Iterator[str]:
    """Yield the routes of the main table, as `ip -4 route; ip -6 route`, with single blanks."""
    return (trimmed(text.replace("  ", " ")) for text in RouteText(report.host).routes(RT_TABLE_MAIN))


def iptables_lists(report: Report) -> Iterator[str]:
    """Yield the chain IPSEC of the mangle tables and the filter table.

    A table that the kernel does not have is not listed, because listing it would load its module.
    """
    host = report.host
    is_legacy = host.realpath(host.which("iptables") or "").endswith("legacy-multi")
    for tool, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        if "mangle" in host.value(f"/proc/net/{family}_tables_names"):
            ran = host.run([tool, "-n", "-t", "mangle", "-L", "IPSEC"])
            yield "" if ran.status else ran.text  # the chain is optional
    yield "iptables filter TABLE\n"
    if not is_legacy or "filter" in host.value("/proc/net/ip_tables_names"):
        yield from program_output("iptables", "-n", "-t", "filter", "-L")(report)


def nss_listing(report: Report) -> Iterator[str]:
    """Yield the certificates in the form of certutil -L, sorted."""
    has_database(report.host)
    yield (f"\n{'Certificate Nickname':<60} Trust Attributes\n{'':<61}SSL,S/MIME,JAR/XPI\n\n")
    yield from sorted(certificate_lines(report.host), key=encode)


def look_sections(host: Host, words: Sequence[str]) -> list[ReportSection]:
    """Return the parts of look that the words name, in libreswan's order."""
    part = ReportSection
    final = "policy" if "policy" in words else "state"

    def xfrm(name: str, body: Callable[[Report], Iterator[str]]) -> Callable[[Report], Iterator[str]]:
        def with_end(report: Report) -> Iterator[str]:
            yield from body(report)
            yield "XFRM done\n" if name == final else ""
        return with_end

    sections = [
        part("state", "ip xfrm state list nokeys", xfrm("state", lambda report: XfrmText(host, stats=False).states()),
             live=True, bulk=True, title="XFRM state:", data=lambda report: XfrmData(host).states_data()),
        part("policy", "ip xfrm policy", xfrm("policy", sorted_policies), live=True, bulk=True, title="XFRM policy:",
             data=lambda report: (policy for policy in XfrmData(host).policies_data() if not policy.socket)),
        part("nftables", "nft list ruleset", nft_ruleset, live=True, title="nft list ruleset"),
        part("iptables", "iptables -n -t filter -L", iptables_lists, live=True, title="IPSEC mangle TABLES"),
        part("route", "ip route", main_routes, live=True, bulk=True, title="ROUTING TABLES", data=routes_data),
        part("nss", f"certutil -L -d sql:{host.nssdir}", nss_listing, title="NSS_CERTIFICATES", data=nss_data),
    ]
    return [section for section in sections if section.name in words]


def routes_data(report: Report) -> Iterator[Route]:
    """Yield the routes of the main table as data, IPv4 then IPv6."""
    for family in (4, 6):
        yield from Routing(report.host).routes(family)


def nss_data(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the certificates as data."""
    has_database(report.host)
    return certificate_data(NssDatabase(report.host))


@command("look", "[state|policy|iptables|nftables|route|nss]...", rescue=True, options=(
    Opt("--json", None, "print one JSON document; states, policies, routes and certificates as data"),
    Opt("--timeout", "SECONDS", "how long to wait for the firewall's programs (default 10)"),
    Opt("--version", None, "print the version"),
), summary="short view of states, policies, firewall, routes and certificates",
   details="Without words it shows all of them; of the firewall the output of iptables or, if that is not installed, "
           "of nft. Keys are never shown.\n\nExit status: 0; 1 if something could not be shown, which standard error "
           "names.")
def look_command(host: Host, args: Args) -> int:
    """Run `ipsec look [WORD...]`; return OK, or ERROR if a part is missing.  Raises Failure."""
    if args.flag("--version"):
        host.print(f"ipsec look {host.libreswan_version() or VERSION}")
        return OK
    for word in args.operands:
        if word not in LOOK_WORDS:
            raise Failure(f"ipsec look: unknown word {quote(word)}", USAGE, f"the words are {', '.join(LOOK_WORDS)}")
    other = "iptables" if host.live and not host.which("iptables") else "nftables"
    words = args.operands or [word for word in LOOK_WORDS if word != other]
    sink = (JsonSink if args.flag("--json") else LookSink)(lambda text: host.print(text, end=""))
    report = Report(host, args)
    report.program_timeout = report.timeout
    ended = run_report(report, look_sections(host, words), sink)
    return completeness(host, "look", ended, OUTCOMES[1:] if host.live else INCOMPLETE)


# The words for the fate of a packet, as XfrmData.fate() calls it
FATES = {"encrypt": "encrypted", "authenticate": "only authenticated", "block": "dropped", "clear": "sent in clear",
         "hold": "held until pluto has made its tunnel,"}


def policy_line(data: XfrmData, policy: Policy) -> str:
    """Return a policy in libreswan's form, with its conditions: `10.1.0.0/24 <=> 10.2.0.0/24 proto tcp using
    reqid 1`.
    """
    selector = policy.selector
    words = [selector.source, "<=>", selector.destination]
    if selector.protocol:
        words += ["proto", str(data.protocols.get(selector.protocol, selector.protocol))]
    names = ("type", "code") if selector.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6) else ("sport", "dport")
    for name, port in zip(names, (selector.source_port, selector.destination_port)):
        words += [] if port is None else [name, str(port)]
    words += ["dev", selector.device] if selector.device else []
    words += ["mark", f"0x{policy.mark:x}/0x{policy.mask:x}"] if policy.mask else []
    words += ["if_id", f"0x{policy.if_id:x}"] if policy.if_id else []
    reqids = [template.reqid for template in policy.templates if template.reqid]
    words += ["using reqid", str(reqids[0])] if reqids else []
    return " ".join(words)


class PacketQuery(Record):
    """The known properties of the packets that show is asked about."""

    source: str  # empty: the address that the kernel chooses
    protocol: int  # 0: not known
    source_port: int  # of ICMP the type; 0: not known
    destination_port: int  # of ICMP the code; 0: not known
    mark: int


class PacketFates:
    """What the kernel does with packets: route, then policies by priority, then states."""

    def __init__(self, host: Host, query: PacketQuery) -> None:
        self.host = host
        self.query = query
        self.data = XfrmData(host)
        self.routing = Routing(host)

    def fate(self, destination: str, source: str = "") -> dict[str, Any]:
        """Return the fate of packets to an address, as --json prints it.  Raises OSError."""
        query, data = self.query, self.data
        source = source or query.source
        result: dict[str, Any] = {"source": source, "destination": destination, "device": "", "fate": "unroutable",
                                  "why": "it has no route", "policy": None, "exceptions": []}
        route = self._route(destination, source)
        if route is None:
            return result
        source, device = source or route.source, route.device
        result.update(source=source, device=device, fate="clear", why="no policy is for it")
        if route.local:
            result["why"] = "it is an address of this host"
            return result
        path = f"net.ipv4.conf.{device.replace('.', '/')}.disable_xfrm"
        if "." in destination and read_sysctl(self.host, path) == "1":
            result["why"] = f"disable_xfrm is set on {device}"
            return result
        packet = source, destination, query.protocol, query.source_port, query.destination_port
        *exceptions, policy = data.policies_for(*packet, mark=query.mark)
        _, fields, kind = self.routing.link(device)
        if kind in ("xfrm", "vti", "vti6") and data.fate(policy, destination) == "clear":
            # such an interface looks for its own policies and drops a packet if there is none
            if kind == "xfrm":
                own = data.policies_for(*packet, if_id=unsigned(fields.get(IFLA_XFRM_IF_ID)))
            else:
                own = data.policies_for(*packet, mark=int.from_bytes(fields.get(IFLA_VTI_OKEY, b""), "big"))
            *exceptions, policy = own
            result.update(fate="block", why=f"{device} drops packets that no policy is for")
        if policy:
            result.update(fate=data.fate(policy, destination), policy=policy)
            result["why"] = f"{FATES[result['fate']]} by {policy_line(data, policy)}"
        result["exceptions"] = [{"fate": data.fate(other, destination), "policy": other} for other in exceptions]
        return result

    def _route(self, destination: str, source: str) -> Route | None:
        """Return the route of packets from a source; None if there is none.

        A source that is not an address of this host, but of a host behind it, does not restrict the lookup.
        """
        for sender in dict.fromkeys((source, "")):
            try:
                return self.routing.lookup(destination, sender, self.query.mark)
            except OSError:
                continue
        return None

    def protected_sources(self, destination: str) -> Iterator[tuple[str, str]]:
        """Yield each network whose packets to the destination would be encrypted, and an address in it.

        An address of this host is preferred; without one it is the first address of the network.  Raises
        OSError.
        """
        own = [address for address, _, _, _ in self.routing.addresses()]
        networks = {policy.selector.source for policy in self.data.policies_data()
                    if policy.direction == "out" and not policy.socket and policy.templates
                    and within(destination, policy.selector.destination)}
        for network in sorted(networks):
            source = next((address for address in own if within(address, network)), "") or first_address(network)
            if self.fate(destination, source)["fate"] in ("encrypt", "hold"):
                yield network, source


def first_address(network: str) -> str:
    """Return the first address of a network that a host can have; of a single address itself."""
    data, bits = split_net(network)
    offset = 0 if bits == 8 * len(data) else 1
    return ip_text((int.from_bytes(data, "big") + offset).to_bytes(len(data), "big"))


def addresses_of(name: str, source: str) -> list[str]:
    """Return the addresses of a name or an address; those of the family of `source` if there is one.

    Raises Failure, also if the resolver does not answer in time.
    """
    import threading
    addresses: list[str] = []
    failures = ["no answer from the resolver"]

    def ask() -> None:
        try:
            addresses.extend(resolved(name)[1])
        except Missing as missing:
            failures.append(missing.message.rpartition(": ")[2])

    thread = threading.Thread(target=ask, daemon=True)  # the resolver's own timeout may be long
    try:
        thread.start()
    except RuntimeError:
        raise Failure(f"show: {quote(name)}: no thread can be made to ask the resolver", ERROR,
                      "give an IP address") from None
    thread.join(10)
    if not addresses:
        raise Failure(f"show: {quote(name)}: {failures[-1]}", ERROR, "give an IP address")
    same = [address for address in addresses if not source or (":" in address) == (":" in source)]
    if not same:
        raise Failure(f"show: {quote(name)} and {source} are of different IP families")
    return same


def packet_query(host: Host, args: Args) -> PacketQuery:
    """Read show's options.  Raises Failure."""
    numbers = {name: str(number) for number, name in protocol_names(host).items()}
    protocol = args.value("--protocol", "0")
    try:
        source = args.value("--source")
        if source:
            source = ip_text(packed_address(source))
        query = PacketQuery(source, int(numbers.get(protocol, protocol)), int(args.value("--source-port", "0")),
                            int(args.value("--destination-port", "0")), int(args.value("--mark") or "0", 0))
        if not 0 <= query.mark < 1 << 32 or not all(
                0 <= port < 1 << 16 for port in (query.source_port, query.destination_port)):
            raise ValueError
    except (ValueError, OSError):
        raise Failure("ipsec show: --source takes an IP address, --protocol a name of /etc/protocols or a number, "
                      "ports are numbers of 16 bits, marks of 32", USAGE) from None
    if query.source and not args.operands:
        raise Failure("ipsec show: if specifying a source, specifying a destination is required", USAGE)
    return query


@command("show", "[DEST...]", rescue=True, options=(
    Opt("--source -s", "ADDRESS", "the source of the packets (default: the address that the kernel chooses)"),
    Opt("--protocol -p", "NAME", "the protocol of the packets, by name or number"),
    Opt("--source-port", "PORT", "the source port of the packets; of ICMP the type"),
    Opt("--destination-port", "PORT", "the destination port of the packets; of ICMP the code"),
    Opt("--mark", "MARK", "the firewall mark of the packets"),
    Opt("--json", None, "print a JSON list, see ipsec_show(8)"),
    Opt("--debug -d", None, "say what is looked for"),
    Opt("--version -v", None, "print the version"),
), summary="tell whether packets to an address or host would be encrypted, or list the tunnels",
   details="The answer is what the kernel would do now: route, policies by priority, states. Without DEST the policies "
           "of tunnels are listed. If packets from this host would not be encrypted, but those of a network behind it "
           "would, the answer names that network and the --source to ask with.\n\n"
           "Exit status: 0 if all would be encrypted, 1 if not, 4 if that can't be known.")
def show_command(host: Host, args: Args) -> int:
    """Run `ipsec show [DEST...]`; return OK, ERROR if something would not be encrypted, 4 if not root.

    Raises Failure.
    """
    if args.flag("--version"):
        host.print(f"version: {VERSION}")
        return OK
    if not host.live:
        raise Failure(f"show: left out: only the running system can tell, not the files under {host.root}", USAGE)
    fates = PacketFates(host, packet_query(host, args))
    try:
        if args.operands:
            return show_packets(host, args, fates)
        return show_tunnels(host, args, fates.data)
    except PermissionError:
        raise Failure("show: only root may read the kernel's policies, so what is encrypted is not known", LSB_UNKNOWN,
                      "run it as root") from None


def print_json(host: Host, records: Sequence[Any]) -> None:
    """Print a list of records as JSON.  Raises Missing if this Python has no json."""
    host.print(need("json", "--json").dumps(records, default=lambda record: record._asdict(), indent=1))


def show_tunnels(host: Host, args: Args, data: XfrmData) -> int:
    """List the outgoing policies of tunnels."""
    tunnels = [policy for policy in data.policies_data() if policy.direction == "out" and not policy.socket
               and any(template.reqid for template in policy.templates)]
    if args.flag("--json"):
        print_json(host, tunnels)
        return OK
    for policy in tunnels:
        host.print(policy_line(data, policy))
    return OK


def show_packets(host: Host, args: Args, fates: PacketFates) -> int:
    """Print the fate of packets to each destination; return OK if all would be encrypted, else ERROR."""
    results = []
    for name in args.operands:
        for address in addresses_of(name, fates.query.source):
            result = {"name": name, **fates.fate(address)}
            sources = [] if result["fate"] in ("encrypt", "hold") else [*fates.protected_sources(address)]
            result["protected_sources"] = [{"network": network, "source": source} for network, source in sources]
            results.append(result)
    if args.flag("--json"):
        print_json(host, results)
    else:
        for result in results:
            print_fate(host, args, fates.data, result)
    return OK if all(result["fate"] == "encrypt" for result in results) else ERROR


def print_fate(host: Host, args: Args, data: XfrmData, result: Mapping[str, Any]) -> None:
    """Print the fate of packets to one destination."""
    destination = result["destination"]
    if args.flag("--debug"):
        host.print(f"checking destination {printable(result['name'])}: {destination} by {result['device'] or '-'}")
    if result["fate"] == "encrypt":
        host.print(policy_line(data, result["policy"]))
    else:
        host.print(f"Packet with source address {result['source'] or '(none)'} to destination {destination} "
                   f"would not be encrypted: {result['why']}")
    for other in result["exceptions"]:
        host.print(f"    but {FATES[other['fate']]} by {policy_line(data, other['policy'])}")
    options = []
    for name in ("--protocol", "--source-port", "--destination-port", "--mark"):
        options += [name, args.value(name)] if args.flag(name) else []
    for other in result["protected_sources"]:
        asked = shell_words(["ipsec", "show", "--source", other["source"], *options, destination])
        host.print(f"    packets from {other['network']} go through a tunnel: {asked}")


# --- diagnosis (why) --------------------------------------------------------------------------------------------------
#
# Why a connection is down, or up and passes nothing: pluto's status and the last attempt in its log first, then, where
# the log has no reason, checks of verify.  Reads only.

UP_CHECKS = ("nat", "forwarding", "forward_rules", "rp_filter", "firewall", "mtu", "esp")
NO_REASON_CHECKS = "firewall udp500 udp4500 certificates host_keys psk nss_health config"
# What goes before the sentence of a finding that explains the failure
FINDING_WORDS = {
    "firewall": "a firewall rule of this host is in the way", "udp500": "pluto does not listen for IKE",
    "udp4500": "pluto does not listen for IKE/NAT-T", "certificates": "a certificate or its private key is not usable",
    "host_keys": "the private key is missing", "psk": "the pre-shared key (PSK) is missing",
    "nss_health": "the NSS database can't be read", "config": "the configuration is refused",
    "clock": "the clock is not right", "esp": "the kernel lacks ESP or AH",
    "algorithms": "the kernel lacks an algorithm",
    "xfrm": "the kernel has no IPsec", "overlap": "the networks overlap with another connection",
    "loaded": "pluto does not have it as it is in the file",
    "nat": "NAT changes the source of packets, which then leave in clear", "rp_filter": "rp_filter drops packets",
    "forwarding": "this host does not forward packets", "forward_rules": "the firewall does not forward packets",
    "mtu": "the MTU is too small"}
# Counters of the kernel that grow when packets of tunnels are lost, and the usual reason (Documentation/networking/
# xfrm_proc.rst of Linux)
XFRM_COUNTERS = {
    "XfrmInNoStates": "packets came for an SA that is not here: the peer still uses an old one",
    "XfrmInStateProtoError": "packets could not be decrypted: keys or algorithms are not the same",
    "XfrmInStateSeqError": "packets came out of the replay window, or twice",
    "XfrmInStateExpired": "packets came for an SA that has run out",
    "XfrmInTmplMismatch": "packets came outside of the tunnel, or through another one",
    "XfrmInNoPols": "packets came out of a tunnel that no policy allows",
    "XfrmInPolBlock": "a policy blocks packets that came in",
    "XfrmOutNoStates": "packets had no SA to leave by",
    "XfrmOutPolBlock": "a policy blocks packets that go out",
    "XfrmOutStateExpired": "packets used an SA that has expired",
    "XfrmOutBundleGenError": "no route for packets that go out", "XfrmFwdHdrError": "packets could not be forwarded"}


class Diagnosis(Record):
    """What is known of a connection.

    `state`: up, partly up, down, on demand (waits for a packet), waiting (for a client), not loaded, not oriented, or
    unknown.  `level`: OK, WARN, FAIL, or SKIP if it can't be told.  `cause`: the name of a row of CAUSES, of a check of
    verify, or empty.  `short` has at most three words; `means` goes on after `"NAME" is STATE: `.  `evidence`: lines of
    pluto's log and counters, masked.  `others`: what else was seen.  `when`: the time of the evidence, in seconds since
    the epoch.
    """

    connection: str
    state: str
    level: str
    cause: str = ""
    short: str = ""
    means: str = ""
    check: str = ""
    command: str = ""
    side: str = ""
    when: float | None = None
    evidence: Sequence[str] = ()
    others: Sequence[str] = ()
    tried: str = ""


def clock_text(when: float | None) -> str:
    """Return a time for people: of today the hour alone, else with the date; empty for None."""
    if when is None:
        return ""
    day, hour = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)).split()
    return hour if day == time.strftime("%Y-%m-%d") else f"{day} {hour}"


class Doctor:
    """Finds out why connections are down.  Status, log and rules are read once for all of them."""

    def __init__(self, host: Host, timeout: float, patient: Patient | None = None) -> None:
        self.host = host
        self.patient = patient or Patient(host, timeout)
        self.timeout = timeout
        self.redactor = redactor_of(host, config=self.patient.config)
        self.said: list[LogLine] = []  # what pluto told whack, which stands in for a log without an attempt
        self._log: PlutoLog | Exception | None = None

    def log(self) -> PlutoLog:
        """Return the end of pluto's log.  Raises PermissionError, Missing."""
        if self._log is None:
            try:
                self._log = read_pluto_log(self.host, self.patient.config, self.timeout)
            except (OSError, Missing) as error:
                self._log = error
        if isinstance(self._log, Exception):
            raise self._log
        return self._log

    def names(self) -> list[str]:
        """Return the connections that pluto has or that the file would have it load, those of the file first."""
        try:
            loaded = list(self.patient.loaded())
        except (Failure, PermissionError):
            loaded = []
        return list(dict.fromkeys([*(conn.name for conn in self.patient.conns), *loaded]))

    def conn(self, name: str) -> Conn | None:
        """Return the connection of that name in the file."""
        return next((conn for conn in self.patient.config.conns() if conn.name == name), None)

    def peers(self, name: str, told: Sequence[Mapping[str, Any]]) -> set[str]:
        """Return the addresses of the peer, `%any` for one that may be anybody."""
        hosts = {one["remote"]["host"] for one in told}
        conn = self.conn(name)
        if not told and conn:
            hosts |= {conn.get("left"), conn.get("right")}
        return {host for host in hosts if host}

    def told(self, name: str) -> list[dict[str, Any]]:
        """Return what pluto's status says of a connection, or of those with that alias (connalias=).

        Raises NoPluto, TimedOut, PermissionError.
        """
        try:
            loaded = self.patient.loaded()
        except NotChecked:
            self.patient.status()  # raises what stands behind it
            raise
        return loaded.get(name) or [one for entries in loaded.values() for one in entries
                                    if name in one["options"].get("aliases", "").split()]

    def diagnose(self, name: str) -> Diagnosis:
        """Return what is known of a connection; what can't be known is in it."""
        try:
            told = self.told(name)
        except PermissionError as error:
            return Diagnosis(name, "unknown", "SKIP", means=f"only root may ask pluto ({error_text(error)})",
                             command=shell_words(["sudo", "ipsec", "why", name]))
        except NoPluto as failure:
            return Diagnosis(name, "down", "FAIL", "pluto-down", "pluto not running",
                             "pluto is not running on this host",
                             libreswan_hint(self.host, "why it ended, in its log"), start_advice(self.host), "here",
                             others=[f"asking it: {failure}"])
        except TimedOut as failure:
            return Diagnosis(name, "unknown", "SKIP", means=f"pluto does not answer: {failure.message}",
                             command="ipsec status")
        if not told:
            return self._not_loaded(name)
        state = connection_state(told)
        if state == "not oriented":
            return self._from_cause(name, state, CAUSE_BY_NAME["not-oriented"], [], told)
        if state == "up":
            return self._traffic(name, told)
        return self._down(name, state, told)

    # not loaded

    def _not_loaded(self, name: str) -> Diagnosis:
        conn = self.conn(name)
        add = shell_words(["ipsec", "add", name])
        if conn is None:
            known = suggest(name, self.names())
            return Diagnosis(name, "not loaded", "FAIL", "not-loaded", "no such connection",
                             f"no connection named {quote(name)}, neither in pluto nor in {self.patient.config.name}",
                             known or "the name", "ipsec connectionstatus", "here")
        complaint = self._complaint(name)
        if complaint:
            _, _, text = split_log_text(complaint.text)
            reason = text.partition(": ")[2] or text
            one = cause_of(text, False)
            others = self._texts(self._findings((one.local if one else "") or "config", name))
            return Diagnosis(name, "not loaded", "FAIL", one.name if one else "not-loaded",
                             one.short if one else "not loaded",
                             f"pluto refused to load it: {self.redactor.clean(reason)}",
                             one.check if one else "what the message names", add, "here", complaint.when,
                             [self._shown(complaint)], others)
        if conn.broken:
            return Diagnosis(name, "not loaded", "FAIL", "not-loaded", "not loaded",
                             f"the file has an error in it: {conn.broken}", f"{conn.file}:{conn.line}", add, "here")
        if conn.auto == "ignore":
            return Diagnosis(name, "not loaded", "FAIL", "not-loaded", "not loaded",
                             "pluto does not have it, as auto= is ignore or not set",
                             f"auto= at {conn.file}:{conn.line}", add, "here")
        return Diagnosis(name, "not loaded", "FAIL", "not-loaded", "not loaded",
                         "it is in the file, and pluto does not have it: it was deleted, or never loaded",
                         "whether ipsec add complains", add, "here",
                         others=self._texts(self._findings("config certificates", name)))

    def _complaint(self, name: str) -> LogLine | None:
        try:
            return loading_complaint(self.log().lines, name)
        except (OSError, Failure):
            return None

    # down

    def _down(self, name: str, state: str, told: Sequence[Mapping[str, Any]]) -> Diagnosis:
        problem, lines = "", self.said
        try:
            lines = self.log().lines
        except (OSError, Failure) as error:
            problem = error_text(error)
        peers = self.peers(name, told)
        attempts = read_attempts(lines, name, peers) or read_attempts(self.said, name, peers)
        if problem and not attempts:
            return self._without_log(name, state, told, problem)
        clues = last_clues(attempts)
        tried = tried_text(attempts)
        if clues and not (state == "waiting" and clues[0].cause.name == "deleted"):  # that client left
            return self._from_cause(name, state, clues[0].cause, clues, told, tried, before_text(attempts))
        if state in ("on demand", "waiting"):
            return Diagnosis(name, state, "OK", tried=tried)
        if attempts and attempts[-1].ended == "taken down":
            return Diagnosis(name, state, "WARN" if self._wanted(name, told) else "OK", "taken-down", "taken down here",
                             "it was taken down on this host", "who did, in the log",
                             shell_words(["ipsec", "up", name]), "here", attempts[-1].last.when,
                             [self._shown(attempts[-1].last)], tried=tried)
        return self._without_log(name, state, told, "", tried)

    def _strangers(self) -> dict[str, LogLine]:
        """Return the addresses that asked for an IKE SA and are no connection's peer, the last line of each, the newest
        first.
        """
        known = {one["remote"]["host"] for told in self.patient.loaded().values() for one in told}
        strangers: dict[str, LogLine] = {}
        for line in reversed(self.log().lines):
            one = cause_of(line.text, False) if line.text.startswith("packet from ") else None
            address = line.text[12:].partition(": ")[0].rpartition(":")[0].strip("[]")
            if one and one.name in ("unknown-peer", "version-refused") and address not in known:
                strangers.setdefault(address, line)
        return strangers

    def _wanted(self, name: str, told: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the connection should be up: auto=start, or pluto's own policy."""
        conn = self.conn(name)
        return any("UP" in one["policy"] for one in told) or bool(conn and conn.auto == "start")

    def _without_log(self, name: str, state: str, told: Sequence[Mapping[str, Any]], problem: str,
                     tried: str = "") -> Diagnosis:
        """Return what this host itself shows of a connection whose failure is not in the log."""
        troubles = self._findings(NO_REASON_CHECKS, name)
        if state in ("on demand", "waiting"):
            return Diagnosis(name, state, "OK", others=[f"pluto's log: {problem}"] if problem else ())
        reason = f"why is not known, as pluto's log can't be read ({problem})" if problem else \
            "pluto's log has no attempt since it started"
        telling = [trouble for trouble in troubles if explains(trouble, "silent")]
        strangers = self._strangers() if not problem else {}
        if strangers and not telling:
            address, line = next(iter(strangers.items()))
            expected = ", ".join(sorted(self.peers(name, told)))
            return Diagnosis(name, state, "WARN", "unknown-peer", "unknown peer asks",
                             f"no peer at {expected} has tried; a peer at {address} asks for an IKE SA, and no "
                             "connection here is for that address",
                             "left= and right= here against the addresses of the peer", "ipsec status", "here",
                             line.when, [self._shown(line)], self._texts(troubles), tried)
        wanted = self._wanted(name, told)
        up = shell_words(["ipsec", "up", name])
        if telling:
            first = telling[0]
            return Diagnosis(name, state, "FAIL", first.check, short_finding(first),
                             finding_text(first), "the rule or setting that is named", first.mend, "here",
                             others=[reason, *self._texts([trouble for trouble in troubles if trouble is not first])],
                             tried=tried)
        return Diagnosis(name, state, "SKIP" if problem else "WARN" if wanted else "OK", "", "not tried",
                         reason, "whether the peer is to begin (auto= of both ends)", up, "here",
                         others=self._texts(troubles), tried=tried)

    def _from_cause(self, name: str, state: str, cause: Cause, clues: Sequence[Clue],
                    told: Sequence[Mapping[str, Any]], tried: str = "", before: str = "") -> Diagnosis:
        """Return a diagnosis by the log; where that tells no reason, by what this host itself shows."""
        conn = self.conn(name)
        names = [conn.get(side) for side in ("right", "left")] if conn else []
        peer = next((host for host in (*sorted(self.peers(name, told)), *names) if host and not host.startswith("%")),
                    "PEER")
        means = self._refined(name, cause, told)
        step = cause.command.format(conn=shell_words([name]), peer=peer)
        telling_lines = [clue for clue in clues if clue.cause.name not in PENDING_CAUSES] or clues
        evidence = [self._shown(line) for line in {clue.line.text: clue.line for clue in telling_lines}.values()][:4]
        others = [before] if before else []
        telling: list[Finding] = []
        if cause.weak and cause.local:
            troubles = self._findings(cause.local, name)
            telling = [trouble for trouble in troubles if explains(trouble, cause.name)]
            others += self._texts([trouble for trouble in troubles if trouble not in telling[:1]])
        when = clues[0].line.when if clues else None
        if telling:
            others.insert(0, f"the log: {means}")
            return Diagnosis(name, state, "FAIL", telling[0].check, short_finding(telling[0]),
                             finding_text(telling[0]), cause.check, telling[0].mend, "here", when, evidence, others,
                             tried)
        level = "WARN" if cause.name in PENDING_CAUSES else "FAIL"
        return Diagnosis(name, state, level, cause.name, cause.short, means, cause.check, step, cause.side, when,
                         evidence, others, tried)

    def _refined(self, name: str, cause: Cause, told: Sequence[Mapping[str, Any]]) -> str:
        """Return what the cause means for this connection, as far as its configuration narrows it down."""
        words = set().union(*(set(one["policy"]) for one in told)) if told else set()
        if cause.name == "auth-refused" and words & {"RSASIG", "ECDSA", "RSASIG_v1_5"} and "PSK" not in words:
            return ("the peer refused to authenticate this host (AUTHENTICATION_FAILED): it does not accept the "
                    "certificate or RSA key (expired, revoked, unknown CA), its private key, or the ID (leftid=)")
        if cause.name == "auth-refused" and "PSK" in words:
            return ("the peer refused to authenticate this host (AUTHENTICATION_FAILED): the pre-shared key (PSK), the "
                    "ID (leftid=) or the method (authby=) is not the one that it expects")
        if cause.name == "unknown-peer" and told:
            version = "IKEv1 only" if words & {"IKEV1", "IKEv1"} else "IKEv2 only"
            return (f"the peer asks for an IKE SA, and no connection here fits: this one is {version}, with its own "
                    "address, authby= and ike=; the peer may use another IKE version or authby=")
        return cause.means

    # up

    def _traffic(self, name: str, told: Sequence[Mapping[str, Any]]) -> Diagnosis:
        """Return what is known of a connection that is up: whether packets pass, and what stands in their way."""
        serials = {one["child_sa"] for one in told if one["child_sa"]}
        traffic = exact_traffic(self.host, self.timeout)
        entries = [traffic[serial] for serial in serials if serial in traffic]
        came = sum(entry["bytes_in"] or 0 for entry in entries)
        went = sum(entry["bytes_out"] or 0 for entry in entries)
        since = min((entry["added"] for entry in entries if entry["added"]), default=None)
        counted = f"{came} bytes came in and {went} went out" if entries else "its traffic is not known"
        tried = f"up since {clock_text(since)}, {counted}" if since else counted
        refused = self._refused_client(name, told, tried)
        if refused:
            return refused
        in_clear = self._in_clear(name)
        if in_clear:
            means, mend = in_clear
            return Diagnosis(name, "up", "FAIL", "nat", "NAT, in clear", means,
                             "an exception before the rule of NAT for what goes to the peer's networks", mend, "here",
                             since, tried=tried)
        troubles = [trouble for trouble in self._findings(" ".join(UP_CHECKS), name) if trouble.level == "FAIL"
                    and trouble.check not in ("esp", "firewall" if came else "")]
        if troubles:
            first = troubles[0]
            return Diagnosis(name, "up", "FAIL", first.check, short_finding(first),
                             finding_text(first), "the rule or setting that is named", first.mend, "here", since,
                             others=self._texts(troubles[1:]), tried=tried)
        if entries and went and not came:
            return Diagnosis(
                name, "up", "WARN", "nothing-back", "nothing comes back",
                f"nothing comes back ({counted}): the peer has lost the SA (it was restarted), ESP is dropped by a "
                "firewall on the way, or the hosts behind the peer do not answer",
                "at the peer: XfrmInNoStates in /proc/net/xfrm_stat grows if it lost the SA; dpddelay= ends that",
                f"{shell_words(['ipsec', 'down', name])}; {shell_words(['ipsec', 'up', name])}", "peer", since,
                xfrm_counters(self.host), tried=tried)
        return Diagnosis(name, "up", "OK", when=since, tried=tried)

    def _refused_client(self, name: str, told: Sequence[Mapping[str, Any]], tried: str) -> Diagnosis | None:
        """Return why the last client of a template failed although others are up; None if none did."""
        if not any(one["instance"] for one in told):
            return None
        try:
            clues = last_clues(read_attempts(self.log().lines, name, self.peers(name, told)))
        except (OSError, Failure):
            return None
        clues = [clue for clue in clues if clue.cause.name not in PENDING_CAUSES | {"deleted", "peer-gone"}]
        if not clues:
            return None
        found = self._from_cause(name, "partly up", clues[0].cause, clues, told, tried)
        means = f"the last client that tried failed: {found.means}"
        return Diagnosis(**{**found._asdict(), "level": "WARN", "means": means})

    def _in_clear(self, name: str) -> tuple[str, str] | None:
        """Return how NAT takes packets out of the tunnel, and the command that ends that; None if it is not known to.
        """
        patient = self.patient
        try:
            pairs = [(tunnel, ours, theirs) for tunnel in patient.tunnels if tunnel.conn.name == name
                     for ours in conn_nets(tunnel.conn, tunnel.here) for theirs in tunnel.theirs
                     if family_of(ours) == family_of(theirs) and ours not in EVERYTHING]
            for tunnel, ours, theirs in pairs:
                if ours.removesuffix("/128" if ":" in ours else "/32") == tunnel.conn.get(tunnel.here):
                    continue  # NAT of packets that already have the address of this host changes nothing
                head = patient.blocks("postrouting", "nat", "snat", src=ours, dst=theirs, out=tunnel.inner, state="new",
                                      family=family_of(ours), ipsec_out="exists ipsec")
                if head:
                    return (f"packets from {ours} to {theirs} leave in clear: a rule of NAT changes their source "
                            "before they are encrypted, and they no longer belong to the tunnel",
                            accept_command(head, ours, theirs, "out"))
        except (OSError, Failure):
            return None
        return None

    # what several need

    def _findings(self, names: str, conn: str) -> list[Finding]:
        """Return what checks of verify find wrong that may have to do with the connection."""
        found = []
        for check in dict.fromkeys(names.split()):
            one = CHECKS[check]
            try:
                for level, word, why, mend in one.function(self.patient):
                    if level in ("FAIL", "WARN") and ("conn " not in why or f"conn {conn}" in why):
                        found.append(Finding(check, one.text.strip(), level, word, why, mend))
            except (OSError, Failure):
                continue
        return sorted(found, key=lambda finding: finding.level != "FAIL")

    @staticmethod
    def _texts(troubles: Iterable[Finding]) -> list[str]:
        return [finding_text(trouble) for trouble in troubles if trouble.level == "FAIL"][:4]

    def _shown(self, line: LogLine) -> str:
        text = self.redactor.clean(line.text)
        return f"{clock_text(line.when)} {text}".strip()[:400]


def explains(finding: Finding, cause: str) -> bool:
    """Return whether a finding explains a failure for which pluto's log gives no reason."""
    if finding.check == "firewall":
        ike = finding.why.startswith("UDP")
        if cause in ("silent-auth", "half-open"):
            return ike
        return ike and finding.level == "FAIL"
    return finding.level == "FAIL" and finding.check not in ("xfrm", "esp", "algorithms", "loaded", "config", "mtu")


def finding_text(finding: Finding) -> str:
    """Return what a check found as a sentence that says what it is about."""
    return f"{FINDING_WORDS.get(finding.check, finding.text)}: {finding.why}"


def short_finding(finding: Finding) -> str:
    """Return what a check found in two or three words."""
    return f"{finding.check.replace('_', ' ')} {finding.word.lower()}"


def tried_text(attempts: Sequence[Attempt]) -> str:
    """Return how often the connection was tried, since when and by whom, for people; empty if never."""
    if not attempts:
        return ""
    first, last = attempts[0].first.when, attempts[-1].first.when
    who = "the peer" if attempts[-1].from_peer else "this host"
    if len(attempts) == 1:
        return f"once, by {who}" + (f", at {clock_text(last)}" if last else "")
    times = f" since {clock_text(first)}, last at {clock_text(last)}" if first and last else ""
    return f"{len(attempts)} times{times}, last by {who}"


def before_text(attempts: Sequence[Attempt]) -> str:
    """Return how the tunnel ended that was up before the last attempts; empty if none was, or that is not known."""
    for attempt in reversed(attempts):
        if attempt.ended != "up":
            continue
        ends = [clue.cause.name for clue in attempt.clues]
        if "peer-gone" in ends:
            return "the tunnel was up before, and the peer stopped answering"
        if "deleted" in ends:
            return "the tunnel was up before, and the peer deleted it"
        return "the tunnel was up before, and ended"
    return ""


def xfrm_counters(host: Host) -> list[str]:
    """Return the counters of lost packets that the kernel has, with what each means; none if all are 0."""
    shown = []
    for line in host.value("/proc/net/xfrm_stat").splitlines():
        name, _, count = line.partition("\t") if "\t" in line else line.partition(" ")
        if name.strip() in XFRM_COUNTERS and count.strip() not in ("", "0"):
            shown.append(f"{name.strip()} is {count.strip()}: {XFRM_COUNTERS[name.strip()]}")
    return shown


def diagnosis_lines(found: Diagnosis) -> list[str]:
    """Return the two lines that say why a connection is down: the cause, and the next step."""
    first = f'"{found.connection}" is {found.state}'
    lines = [f"{first}: {found.means}" if found.means else first]
    step = "; ".join(part for part in (f"check {found.check}" if found.check else "",
                                       f"run: {found.command}" if found.command else "") if part)
    return [printable(line) for line in (*lines, *([f"    {step}"] if step else ()))]


def explained_lines(found: Diagnosis) -> Iterator[str]:
    """Yield all that is known of a connection."""
    yield from diagnosis_lines(found)
    if found.tried:
        yield f"    {found.tried}" if found.state == "up" else f"    tried: {found.tried}"
    for text in found.evidence:
        yield f"    seen: {printable(text)}"
    for text in found.others:
        yield f"    also: {printable(text)}"


@command("why", "[CONN...]", summary="tell why a connection is down, or up and passes nothing",
         options=(CTLSOCKET_OPTION, Opt("--timeout", "SECONDS", "how long pluto may take to answer (default 10)"),
                  Opt("--json", None, "a JSON list, see ipsec_why(8)")),
         details="Looks at pluto's status, at the last attempt in pluto's log and, where that has no reason, at the "
                 "NSS database, the firewall, the routes and the kernel.  Without CONN all connections.\n\n"
                 "Exit status: 0 if nothing is wrong, 1 if a connection has failed, passes nothing, or should be up "
                 "and is not, 4 if that can't be known.")
def why_command(host: Host, args: Args) -> int:
    """Run `ipsec why [CONN...]`; return OK, ERROR if something is down, 4 if that can't be known.  Raises Failure."""
    if not host.live:
        raise Failure(f"why: only the running system can tell, not the files under {host.root}", USAGE,
                      "ipsec --root DIR barf --section plog shows its log")
    host.ctlsocket = args.value("--ctlsocket") or host.ctlsocket
    doctor = Doctor(host, parse_seconds(args.value("--timeout", "10")))
    diagnoses = [doctor.diagnose(name) for name in args.operands or doctor.names()]
    diagnoses.sort(key=lambda found: ("FAIL", "WARN", "SKIP", "OK").index(found.level))
    if args.flag("--json"):
        print_json(host, diagnoses)
    elif not diagnoses:
        host.print(f"no connections, neither in pluto nor in {doctor.patient.config.name}")
    else:
        for found in diagnoses:
            for line in explained_lines(found):
                host.print(line)
    levels = {found.level for found in diagnoses}
    if levels & {"FAIL", "WARN"}:
        return ERROR
    return LSB_UNKNOWN if "SKIP" in levels else OK


# --- pluto: whack, auto, status and the words of 5.x ------------------------------------------------------------------

# What is done with a connection: loaded first or not, then whack's option
OPERATIONS = {"up": (False, "--initiate"), "down": (False, "--terminate"), "route": (False, "--route"),
              "unroute": (False, "--unroute"), "delete": (False, "--delete"), "add": (True, ""), "replace": (True, ""),
              "start": (True, "--initiate"), "ondemand": (True, "--route")}
# Requests that older releases lack: since when they are there, and which lines of the status answer them before
SINCE: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "--connectionstatus": ((5, 0), ('"',)), "--briefconnectionstatus": ((5, 0), ('"',)),
    "--showstates": ((4, 0), ("#",)),
    "--briefstatus": ((3, 28), ("State Information", "IKE SAs", "IPsec SAs"))}


# Requests whose rounded bytes --json replaces by the exact bytes of trafficstatus
WITH_TRAFFIC = frozenset(("--status", "--showstates", "--connectionstatus"))


def connection_names(host: Host) -> list[str]:
    """Return the names and aliases of the connections in the file, then the names of those that pluto has."""
    # standard input is left to addconn
    conns = Config(host).conns() if host.conf != "-" else []
    names = [name for conn in conns for name in (conn.name, *conn.get("connalias").split())]
    try:
        names += [line.split('"')[1] for line in list(pluto_status(host, ANSWER_TIME)) if line.startswith('"')]
    except (Failure, OSError):
        return names  # pluto does not answer, and other messages say so
    return list(dict.fromkeys(names))


def no_connection(host: Host, name: str, where: str = "") -> str:
    """Return the message for a name that no connection has, with the name that may be meant."""
    hint = suggest(name, connection_names(host))
    return f"no connection named {quote(name)}{where}{f' ({hint})' if hint else ''}"


class Teller:
    """Runs whack and addconn for one command line, libreswan's or our own, or only shows them."""

    def __init__(self, host: Host, args: Args) -> None:
        self.host = host
        self.args = args
        host.ctlsocket = args.value("--ctlsocket") or host.ctlsocket
        host.conf = args.value("--config") or host.conf
        whack = os.path.join(host.execdir, "whack")
        native = args.flag("--native") or host.env.get("IPSEC_WHACK") == "native" or not host.executable(whack)
        self.compiled = "" if native else whack

    def _shown(self, program: str, words: Sequence[str]) -> bool:
        if self.args.flag("--dry-run"):
            self.host.print(shell_words(["ipsec", program, *words]))
        return self.args.flag("--dry-run")

    def whack(self, *words: str, timeout: float | None = None) -> int:
        """Run whack with the words; its status.  With compiled whack and no timeout this is the last that we do."""
        words = ("--ctlsocket", self.host.ctlsocket, *words)
        if self._shown("whack", words):
            return OK
        if not self.compiled:
            return native_whack(self.host, words, timeout=timeout)
        if "--terminate" in words or "--delete" in words:
            return self._listened(words)
        if timeout is None:
            self.host.exec(self.compiled, words)
        return self.host.call([self.compiled, *words], timeout=timeout)

    def _listened(self, words: Sequence[str]) -> int:
        # up to 4.15 silence is all that an unknown connection gets, and all that some known ones get, with status 0
        name = words[words.index("--name") + 1]
        is_old = (self.host.libreswan_version() or "").startswith(("3.", "4."))
        known = has_connection(self.host, name) if is_old and "--delete" in words else None
        ran = self.host.run([self.compiled, *words], timeout=None)
        self.host.print(ran.text, end="")
        self.host.flush()
        sys.stderr.write(decode(ran.err))
        if is_old and not (ran.out or ran.err or ran.status):
            known = has_connection(self.host, name) if "--terminate" in words else known
            if known is False:
                raise Failure(f"ipsec whack: {no_connection(self.host, name)}", UNKNOWN_NAME)
        return self._known(name, ran.status)

    def _known(self, name: str, status: int) -> int:
        """Return whack's status for a request about a connection; say which one may be meant if pluto has none."""
        if status in (UNKNOWN_NAME, NOT_ROUTED):
            names = connection_names(self.host)
            if name not in names and (hint := suggest(name, names)):
                self.host.warn(hint)
        return status

    def bring_up(self, name: str, words: Sequence[str]) -> int:
        """Have pluto negotiate a connection and wait for the outcome; return OK only if it is up.

        Otherwise tell why on standard error, and return whack's status, or ERROR if that is 0.
        """
        words = ("--ctlsocket", self.host.ctlsocket, *words)
        if self._shown("whack", words):
            return OK
        limit = parse_seconds(self.args.value("--timeout")) if self.args.flag("--timeout") else None
        wait: UpWait = load_part("UpWait")(limit)
        if self.host.conf == "-":  # addconn has read it, and it can't be read again
            self.host.conf = DEFAULT_CONF
        try:
            status = self._negotiate(words, limit, wait)
            if status == OK and not wait.lines and self._waits_to_retry(name):
                self._take_down(name)
                status = self._negotiate(words, limit, wait)
        except KeyboardInterrupt:
            self._take_down(name)
            raise
        if status == OK and wait.established and not wait.cause:
            return OK
        doctor: Doctor = load_part("Doctor")(self.host, 10.0)
        doctor.said = wait.lines
        found = doctor.diagnose(name)
        if found.state == "up":
            return status or OK
        conn = doctor.conn(name)
        if status == OK and not wait.cause and (found.state in ("waiting", "unknown") or (conn and is_shunt(conn))):
            return OK  # a template, a group or a shunt has no IPsec SA of its own
        self.host.flush()
        for line in load_part("diagnosis_lines")(found):
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        gives_up = self.args.flag("--once") or (limit is not None and not self.args.flag("--keep-trying"))
        if gives_up and found.cause != "pluto-down" and found.state != "not loaded":
            self._take_down(name)
        return status or ERROR

    def _negotiate(self, words: Sequence[str], limit: float | None, wait: UpWait) -> int | None:
        """Run whack and return its status, or None if this program stopped waiting for it.  Raises Failure."""
        if self.compiled:
            return self.host.relay([self.compiled, *words], wait.take)
        try:
            return native_whack(self.host, words, timeout=limit, wait=wait.take)
        except TimedOut:
            return None
        except NoPluto as failure:
            self.host.warn(str(failure))
            return failure.status

    def _waits_to_retry(self, name: str) -> bool:
        """Return whether a connection is down of which pluto 4.x said nothing: it waits until it tries again by itself.
        """
        try:
            return self._state(name) == "down"
        except (Failure, OSError):
            return False

    def _state(self, name: str) -> str:
        """Return the state of a connection as Diagnosis has it.  Raises NoPluto, TimedOut, PermissionError."""
        told = load_part("Doctor")(self.host, 5.0).told(name)
        return connection_state(told) if told else "not loaded"

    def _take_down(self, name: str) -> None:
        """End what pluto tries with a connection, unless it is up; say so if that fails."""
        try:
            if self._state(name) == "up":
                return
            words = ["--ctlsocket", self.host.ctlsocket, "--name", name, "--terminate"]
            if self.compiled:
                self.host.run([self.compiled, *words], timeout=10.0)
            else:
                for _ in pluto_lines(self.host, *words[2:], timeout=10.0):
                    continue
        except (Failure, OSError) as error:
            self.host.warn(f"up: {quote(name)} was not taken down: {error_text(error)}")

    def load(self, *words: str) -> int:
        """Have connections loaded by addconn (5.4: add); its status.  Raises Missing."""
        host = self.host
        program = next((name for name in ("addconn", "add") if host.executable(os.path.join(host.execdir, name))), "")
        if host.conf != "/etc/ipsec.conf":
            words = ("--config", host.conf if host.conf == "-" else os.path.abspath(host.conf), *words)
        words = ("--ctlsocket", host.ctlsocket, *(["--verbose"] if self.args.flag("--verbose") else ()), *words)
        if self._shown(program or "addconn", words):
            return OK
        if not program and "--checkconfig" in words:
            own_reader(host, Args(), "checkconfig")
            return OK
        if not program:
            raise Missing(f"ipsec: loading a connection needs libreswan's addconn, which is not in {host.execdir}",
                          NOT_FOUND, libreswan_hint(host, "set IPSEC_EXECDIR"))
        argv = [os.path.join(host.execdir, program), *words]
        if words[-1] in ("--checkconfig", "--autoall"):
            check_answers(host)
            return host.call(argv)
        ran = host.run(argv, timeout=None, stdin=0 if host.conf == "-" else None)
        host.print(ran.text, end="")
        host.flush()
        sys.stderr.write(decode(ran.err))
        return self._load_status(words[-1], ran)

    def _load_status(self, name: str, ran: Ran) -> int:
        """Return the status of addconn for a connection, and print the cause of a failure that addconn does not print.

        ERROR if addconn exits 0 for a connection that it can't load, NO_PLUTO if it finds no pluto.
        """
        host, output = self.host, ran.text + decode(ran.err)
        if ran.status == UNKNOWN_NAME:
            host.warn(f"add: {no_connection(host, name, f' in {host.conf}')}")
        elif "connect(pluto_ctl) failed" in output or "Pluto is not running" in output:
            host.warn(f"add: pluto is not running ({start_hint(host)})")
            return NO_PLUTO
        elif f"conn {name} did not load properly" in output:
            return ran.status or ERROR
        elif ran.status in range(20, 100) and "failed to add connection" not in output:
            # pluto's reason, which addconn up to 4.15 keeps to itself
            host.warn(f"add: pluto refuses connection {quote(name)}; the reason is in its log: "
                      "ipsec barf --section plog")
        return ran.status

    def operate(self, operation: str, name: str) -> int:
        """up, down, add… a connection; the status of the first step that fails.  Raises Failure."""
        loads, action = OPERATIONS[operation]
        if not name:
            raise Failure(f"ipsec {operation}: the name of the connection is empty", USAGE)
        if loads:
            if operation == "replace" and (self.host.libreswan_version() or "").startswith(("3.", "4.")):
                try:  # 5.x replaces by itself; that there was none is fine
                    self.whack("--name", name, "--delete")
                except Failure as failure:
                    if failure.status != UNKNOWN_NAME:
                        raise
            status = self.load(*(("--", name) if name.startswith("-") else (name,)))
            if status or not action:
                return status
        words = ["--asynchronous"] if self.args.value("--asynchronous", "no") != "no" else []
        words += ["--name", name, action]
        if self.args.flag("--remote-host") and action == "--initiate":
            words += ["--remote-host", self.args.value("--remote-host")]
        if action == "--initiate" and "--asynchronous" not in words:
            return self.bring_up(name, words)
        if self.compiled and action in ("--route", "--unroute") and not self.args.flag("--dry-run"):
            return self._known(name, self.host.call([self.compiled, "--ctlsocket", self.host.ctlsocket, *words]))
        return self.whack(*words)

    def ask(self, *words: str) -> int:
        """Show what pluto answers to a request that it should answer soon, as text or as --json."""
        timeout = parse_seconds(self.args.value("--timeout", "60"))
        since, marks = SINCE.get(words[-1], ((), ()))
        lines: Iterator[str] | None = None
        if since and not self.args.flag("--dry-run"):
            pluto = probe(self.host, timeout)
            if leading_version(pluto.version) < since:
                lines = self._of_status(words, marks, timeout)
        if self.args.flag("--json"):
            exact = exact_traffic(self.host, timeout) if words[-1] in WITH_TRAFFIC else {}
            self._as_json(pluto_lines(self.host, *words, timeout=timeout) if lines is None else lines, exact)
            return OK
        if lines is None:
            return self.whack(*words, timeout=timeout)
        for line in lines:
            self.host.print(printable(line))
        return OK

    def _as_json(self, lines: Iterator[str], exact: Mapping[int, dict[str, Any]]) -> None:
        json = need("json", "--json")
        separator = '{"connections": ['

        def show(connection: dict[str, Any]) -> None:
            nonlocal separator
            self.host.print(f"{separator}\n  {json.dumps(connection)}", end="")
            separator = ","

        data = StatusReader({"connections": show}, exact).read(lines)
        del data["connections"]
        self.host.print((separator if separator != "," else "") + "],\n" + json.dumps(data, indent=1)[2:])

    def _of_status(self, words: Sequence[str], marks: tuple[str, ...], timeout: float) -> Iterator[str]:
        wanted = words[1] if words[0] == "--name" else ""
        for line in pluto_status(self.host, timeout):
            ours = not wanted or line[1:].startswith((f'{wanted}"', f"{wanted}/"))
            if line.startswith(marks) and ours and (words[-1] != "--briefconnectionstatus" or '":   ' not in line):
                yield line


@command("whack", "OPTION...", options=None, summary="send pluto a request in whack's own words",
         details="Libreswan's whack where it is installed, unless --native comes first or IPSEC_WHACK=native.")
def whack_command(host: Host, args: Args) -> int:
    """Run `ipsec whack`; return whack's own status, 33 if pluto is not running."""
    words = args.operands
    dry_run = words[:1] == [DRY_RUN_OPTION.key]  # `ipsec --dry-run whack …`; whack itself has no such option
    words = words[1:] if dry_run else words
    compiled = Teller(host, Args()).compiled
    values = {row[0].partition("=")[0]: "=" in row[0] for row in table_rows(WHACK_OPTIONS)}
    values.update((option.partition("=")[0], "=" in option) for option in WHACK_OWN_OPTIONS)
    given = set()
    rest = list(reversed(words))
    while rest:
        name, equals, _ = rest.pop().partition("=")
        given.add(name)
        if values.get(name[2:]) and not equals and rest:
            rest.pop()  # a value is a value, whatever it looks like
    if "--ctlsocket" not in given:
        words = ["--ctlsocket", host.ctlsocket, *words]
    if dry_run:
        host.print(shell_words(["ipsec", "whack", *words]))
        return OK
    if not compiled or given & {"--native", "--xauthpass-file", "--timeout"}:
        return native_whack(host, words)
    host.exec(compiled, words)


REQUESTS: dict[str, str] = {}  # whack's option of each command that is one request to pluto, by name


def request_command(names: str, operand: str, request: str, summary: str) -> None:
    """Register a command that is one request to pluto; `request` is whack's option for it."""
    REQUESTS.update(dict.fromkeys(names.split(), request))
    shows = request != "--listen" and ("status" in request or request.startswith(("--list", "--show", "--check")))
    shaped = (UTC_OPTION, JSON_OPTION) if shows and "status" not in request else (JSON_OPTION,) if shows else ()

    @command(names, operand, summary=summary,
             options=(CTLSOCKET_OPTION, *shaped, TIMEOUT_OPTION, NATIVE_OPTION, DRY_RUN_OPTION))
    def run_request(host: Host, args: Args) -> int:
        words = ["--name", args.operands[0]] if args.operands else []
        words += ["--utc"] if args.flag("--utc") else []
        return Teller(host, args).ask(*words, request)


request_command("status", "", "--status", "show all of pluto's status")
request_command("trafficstatus traffic", "[CONN]", "--trafficstatus", "show the traffic of the IPsec SAs")
request_command("briefstatus", "", "--briefstatus", "show how many SAs there are")
request_command("globalstatus", "", "--globalstatus", "show pluto's counters")
request_command("fipsstatus fips", "", "--fipsstatus", "show whether pluto is in FIPS mode")
request_command("shuntstatus", "", "--shuntstatus", "show the bare shunts")
request_command("addresspoolstatus", "", "--addresspoolstatus", "show the address pools")
request_command("connectionstatus", "[CONN]", "--connectionstatus", "show the connections")
request_command("briefconnectionstatus", "[CONN]", "--briefconnectionstatus", "show the connections, a line each")
request_command("showstates statestatus", "", "--showstates", "show the states (SAs)")
request_command("listall", "", "--listall", "list keys, secrets, certificates and CRLs")
request_command("listpubkeys", "", "--listpubkeys", "list the public keys")
request_command("listcerts", "", "--listcerts", "list the end certificates")
request_command("listcacerts", "", "--listcacerts", "list the CA certificates")
request_command("listcrls", "", "--listcrls", "list the CRLs")
request_command("listpsks", "", "--listpsks", "list whose pre-shared secrets are loaded")
request_command("listevents", "", "--listevents", "list the events that pluto waits for")
request_command("checkpubkeys", "", "--checkpubkeys", "list the public keys that are or will be invalid")
request_command("listen ready rereadgroups", "", "--listen",
                "make pluto rescan interfaces and reload secrets and groups")
request_command("unlisten", "", "--unlisten", "make pluto close its interfaces")
request_command("rereadsecrets secrets", "", "--rereadsecrets", "make pluto reload the secrets")
request_command("rereadcerts", "", "--rereadcerts", "make pluto reload the certificates")
request_command("rereadall", "", "--rereadall", "make pluto reload secrets, certificates and CRLs")
request_command("fetchcrls crls", "", "--fetchcrls", "make pluto fetch CRLs")
request_command("purgeocsp", "", "--purgeocsp", "empty pluto's cache of OCSP answers")


def operation_command(names: str, summary: str, options: Sequence[Opt] = CONNECTION_OPTIONS,
                      details: str = "") -> None:
    """Register a command that does one of OPERATIONS with a connection."""
    operation = names.split()[0]

    @command(names, "CONN", summary=summary, options=options, details=details)
    def run_operation(host: Host, args: Args) -> int:
        return Teller(host, args).operate(operation, args.operands[0])


operation_command("up initiate", "negotiate a connection", (*CONNECTION_OPTIONS, *UP_OPTIONS),
                  "Waits until the connection is up or has failed.  If it is not up, two lines on standard error tell "
                  "why and what to do; ipsec why CONN tells more.  Ctrl-C takes it down again.\n\n"
                  "Exit status: 0 only if the connection is up; else whack's own status, or 1.  With --asynchronous 0 "
                  "if pluto took the request.")
operation_command("down terminate", "end the SAs of a connection")
operation_command("route", "install a trap policy: the first packet brings the connection up")
operation_command("unroute", "undo route")
operation_command("delete", "make pluto forget a connection")
operation_command("replace", "load a connection again, replacing the loaded one")
operation_command("ondemand", "load a connection, and bring it up with the first packet")


def pluto_start(host: Host, args: Args) -> int:
    """`ipsec start CONN...` (options: CONNECTION_OPTIONS): load and bring up; the status of the first that fails."""
    teller = Teller(host, args)
    return next((status for name in args.operands if (status := teller.operate("start", name))), OK)


@command("add", "[CONN...]", summary="load connections into pluto",
         options=(*CONNECTION_OPTIONS, Opt("--auto", "KEYWORD", "and do as auto=KEYWORD would: add, route, start"),
                  Opt("--autoall", None, "load all connections that have auto="),
                  Opt("--checkconfig", None, "only check the configuration")))
def add_command(host: Host, args: Args) -> int:
    """`ipsec add`: addconn's status; the first that fails."""
    teller = Teller(host, args)
    for word in ("--checkconfig", "--autoall"):
        if args.flag(word):
            return teller.load(word)
    operations = {"": "add", "add": "add", "keep": "add", "route": "ondemand", "ondemand": "ondemand", "start": "start",
                  "up": "start"}
    if args.value("--auto") not in operations or not args.operands:
        raise Failure("ipsec add: " + ("--auto is add, route or start" if args.operands else "CONN is missing"), USAGE)
    for name in args.operands:
        status = teller.operate(operations[args.value("--auto")], name)
        if status:
            return status
    return OK


@command("checkconfig", rescue=True, summary="check the configuration", options=PLUTO_OPTIONS)
def checkconfig_command(host: Host, args: Args) -> int:
    """`ipsec checkconfig`: addconn's status."""
    return Teller(host, args).load("--checkconfig")


@command("redirect", "[CONN]", summary="send the peers of a connection, or all, to another gateway",
         options=(CTLSOCKET_OPTION, Opt("--redirect-to", "ADDRESS,…", "where to"), NATIVE_OPTION, DRY_RUN_OPTION))
def redirect_command(host: Host, args: Args) -> int:
    """`ipsec redirect`: whack's status."""
    if not args.flag("--redirect-to"):
        raise Failure("ipsec redirect: --redirect-to is missing", USAGE)
    name = ["--name", args.operands[0]] if args.operands else []
    return Teller(host, args).whack(*name, "--redirect-to", args.value("--redirect-to"))


AUTO_REQUESTS = {name: request for name, request in REQUESTS.items() if name in ("ready", "rereadgroups", "status")
                 or name.startswith(("reread", "list", "check", "fetch", "purge"))}
AUTO_OPTIONS = (*CONNECTION_OPTIONS, *UP_OPTIONS, UTC_OPTION, Opt("--show", None, "ignored"),
                Opt("--version", None, "the version"),
                Opt("--rereadcrls --rereadcacerts --rotatecert", None, "of old releases"),
                *(Opt(f"--{name}", None, f"as ipsec {name}") for name in (*OPERATIONS, *AUTO_REQUESTS)))


@command("auto", "[CONN] [WORD]", options=AUTO_OPTIONS,
         summary="manage connections, with the syntax of libreswan 3.x and 4.x")
def auto_command(host: Host, args: Args) -> int:
    """`ipsec auto`: the status of the first step that fails."""
    if args.flag("--version"):
        host.print(f"ipsec auto {host.libreswan_version() or '(none)'}")
        return OK
    known = (*OPERATIONS, *AUTO_REQUESTS)
    given = [name for name in known if args.flag(f"--{name}")]
    names = args.operands
    if args.flag("--rereadcrls") or names == ["rereadcrls"]:
        raise Failure("ipsec auto: --rereadcrls has been obsoleted - please see: ipsec crls")
    if not given and names and names[-1] in known:
        host.warn("auto: warning: obsolete command syntax used")
        given, names = [names[-1]], names[:-1]
    if len(given) != 1 or len(names) != (given[0] in OPERATIONS):
        raise Failure("ipsec auto: one operation and, but for status and lists, one connection", USAGE,
                      "usage: ipsec auto [--asynchronous] --up|--down|--add|… CONN; see ipsec auto --help")
    teller = Teller(host, args)
    if given[0] in OPERATIONS:
        return teller.operate(given[0], names[0])
    utc = ["--utc"] if args.flag("--utc") else []
    # the auto of 3.x and 4.x lists everything before it empties the cache
    is_old = given[0] == "purgeocsp" and (host.libreswan_version() or "").startswith(("3.", "4."))
    return teller.ask(*utc, *(["--listall"] if is_old else []), AUTO_REQUESTS[given[0]])


# --- tunnels: pluto's connections as a table --------------------------------------------------------------------------

TUNNEL_SCHEMA = 1
# The lines of a connection's status that make a tunnel, by their first words
TUNNEL_LINES = ("host:", "  oriented", "  unoriented", "established", "newest", "routing:", "policy:", "our id", "IKE",
                "ESP algorithm newest", "AH algorithm newest")
# The states of a tunnel, and the colours that a terminal shows them in (ECMA-48, SGR)
TUNNEL_STATES = {"up": "32", "connecting": "33", "down": "1;31", "routed": "36", "ready": "36", "idle": "2",
                 "bypass": "2", "block": "2", "unknown": "35"}
SHUNTS = {"PASS": "bypass", "DROP": "block", "REJECT": "block"}  # policies of connections that never negotiate
ANY_PEER = ("%any", "%any6", "%group", "%opportunistic", "%opportunisticgroup", "%virtual", "0.0.0.0", "::")
TRAPS = ("prospective erouted", "routed-ondemand", "routed-prospective")
BOLD, DIM, CHANGED = "1", "2", "7"
HOLD_SECONDS = 0.25  # how soon a resized terminal is drawn anew


class TunnelRow:
    """One connection or instance as `ipsec tunnels` shows it (ipsec_tunnels(8), JSON).

    None is unknown.  `since` is in seconds since 1970, `rekey_in` and `ends_in` in seconds from now.  `wanted`: pluto
    is to keep the tunnel up.  `problem`: why a tunnel that is not up is not, in a few words.
    """

    def __init__(self, name: str, instance: str = "") -> None:
        self.name = name
        self.instance = instance
        self.state = "unknown"
        self.wanted: bool | None = None
        self.since: int | None = None
        self.problem: str | None = None
        self.local_host: str | None = None
        self.local_id: str | None = None
        self.local_networks: list[str] = []
        self.remote_host: str | None = None
        self.remote_id: str | None = None
        self.remote_networks: list[str] = []
        self.peers: int | None = None
        self.ike_version: int | None = None
        self.ike_algorithm: str | None = None
        self.ipsec_algorithm: str | None = None
        self.marks: list[str] = []
        self.bytes_in: int | None = None
        self.bytes_out: int | None = None
        self.rekey_in: int | None = None
        self.ends_in: int | None = None
        self.username: str | None = None
        self.ike_sa: int | None = None
        self.child_sa: int | None = None

    @property
    def full_name(self) -> str:
        """The name with the number of the instance."""
        return f"{self.name}{self.instance}"

    @property
    def fails(self) -> bool:
        """True when the tunnel should be up and is not."""
        return bool(self.wanted) and self.state not in ("up", "routed")


def ike_version_of(connection: Mapping[str, Any]) -> int | None:
    """1 or 2: what the policy names, or what was negotiated where the policy allows both (up to 4.2)."""
    policy, options = connection["policy"], connection["options"]
    versions = [version for version in (1, 2) if f"IKEv{version}" in policy or f"IKEV{version}_ALLOW" in policy]
    if len(versions) == 1:
        return versions[0]
    if "ikev2_algorithm_newest" in options:
        return 2
    return 1 if "ikev1_algorithm_newest" in options or "ike_algorithm_newest" in options else None


def newest_algorithm(connection: Mapping[str, Any], kinds: Sequence[str]) -> str | None:
    """The algorithms in use of the first kind that has some: `AES_GCM_16_256`, `AES_CBC_128-HMAC_SHA1_96`."""
    for kind in kinds:
        text = connection["options"].get(f"{kind}_algorithm_newest")
        if text:
            return str(text).partition(";")[0].removesuffix("-NONE")
    return None


def networks_of(connection: Mapping[str, Any], side: str) -> list[str]:
    """The networks of the local or the remote end: subnets, else the pool, else the host."""
    end = connection[side]
    pairs = connection.get("selectors", ())
    networks = [pair[side == "remote"] for pair in pairs] or [end["subnet"] or end.get("pool") or end["host"]]
    port = f"/{end['protoport']}" if end.get("protoport") else ""
    return list(dict.fromkeys(f"{network}{port}" for network in networks if network))


def static_problem(connection: Mapping[str, Any]) -> str | None:
    """Why a connection can't come up, as far as its own lines in the status say."""
    if not connection["oriented"] and ("host" in connection["options"] or "unoriented" in connection["options"]
                                       or connection["routing"] == "unoriented"):
        return "no local address"
    if (connection["remote"]["host"] or "").startswith("%dns"):
        return "peer's name unresolved"
    if connection["ike_sa"] is not None and connection["child_sa"] is None:
        return "IKE SA without IPsec SA"
    return None


def state_of_tunnel(connection: Mapping[str, Any]) -> str:
    """One of TUNNEL_STATES.  Negotiations are not in the lines of a connection, but in those of states."""
    policy, routing = connection["policy"], connection["routing"] or ""
    shunt = next((word for word in policy if word in SHUNTS), "")
    if connection["up"] and not connection.get("instances"):
        return "up"
    if shunt:
        return SHUNTS[shunt]
    if "UP" in policy or "fail" in routing:
        return "down"
    if routing in TRAPS:
        return "routed"
    if connection["remote"]["host"] in ANY_PEER or connection.get("instances"):
        return "ready"
    return "unknown" if connection["up"] is None else "idle"


def tunnel_of(connection: Mapping[str, Any]) -> TunnelRow:
    """The tunnel of a connection, before states and traffic are known (see Tunnels)."""
    policy = connection["policy"]
    row = TunnelRow(connection["name"], connection["instance"])
    row.state = state_of_tunnel(connection)
    row.wanted = "UP" in policy if policy else None
    row.problem = None if row.state == "up" else static_problem(connection)
    row.local_host, row.local_id = connection["local"]["host"], connection["local"]["id"]
    row.local_networks = networks_of(connection, "local")
    row.remote_host, row.remote_id = connection["remote"]["host"], connection["remote"]["id"]
    row.remote_networks = networks_of(connection, "remote")
    row.peers = len(connection["instances"]) if "instances" in connection else None
    row.ike_version = ike_version_of(connection)
    row.ike_algorithm = newest_algorithm(connection, ("ikev2", "ikev1", "ike"))
    row.ipsec_algorithm = newest_algorithm(connection, ("esp", "ah"))
    row.marks = [mark for word, mark in (("MOBIKE", "MOBIKE"), ("COMPRESS", "IPCOMP"), ("AUTHENTICATE", "AH"),
                                         ("TRANSPORT", "transport")) if word in policy]
    row.ike_sa, row.child_sa = connection["ike_sa"], connection["child_sa"]
    return row


def names_only(host: Host, file: str, names: Collection[str]) -> bool:
    """Return True if a configuration without includes has no connection but those of `names`.

    False is no answer: Config reads the file then, which takes ten times as long.
    """
    try:
        lines = list(host.lines(file))
    except (OSError, ValueError):
        return False
    heads = [line.split() for line in lines if line.startswith(("conn", "include"))]
    return all(len(words) == 2 and words[0] == "conn" and (words[1] in names or words[1] == "%default")
               for words in heads)


def makes_a_tunnel(line: str) -> bool:
    """Return True for the line of a state that a tunnel needs: not for SPIs, nor for an established IKE SA."""
    return not (" Traffic: " in line or "established IKE SA" in line or "IKE SA established" in line
                or "ISAKMP SA established" in line or "established ISAKMP SA" in line)


class Tunnels:
    """The tunnels of a pluto: `rows` in pluto's order, connections that pluto should have loaded after them."""

    WITH_SAS = False  # whether SPIs and established IKE SAs are read, too

    def __init__(self, host: Host, timeout: float, name: str = "") -> None:
        """Ask pluto; with a `name`, only for that connection, its instances and its pairs of subnets.

        Raises NoPluto, TimedOut.
        """
        self.rows: list[TunnelRow] = []
        self.settings: dict[str, str] = {}
        self.options: dict[str, dict[str, str]] = {}  # of the connection `name`, by full name
        self.states: list[dict[str, Any]] = []  # of the connection `name`
        self._name = name
        self._by_name: dict[tuple[str, str], TunnelRow] = {}
        self._by_child: dict[int, TunnelRow] = {}
        takers = {"connections": self._take_connection, "states": self._take_state}
        lines = pluto_status(host, timeout, None if name else TUNNEL_LINES)
        if not name and not self.WITH_SAS:
            lines = (line for line in lines if not line.startswith("#") or makes_a_tunnel(line))
        data = StatusReader(takers).read(lines)
        self.settings = data["settings"]
        for entry in data["pending"]:
            self._negotiates(entry["connection"], "", f"waits for #{entry['ike_sa']}")
        pluto = Pluto(self.settings.get("pluto_version", ""), False,
                      "<unsupported>" not in self.settings.get("secctx_attr_type", "<unsupported>"),
                      self.settings.get("seccomp", "unsupported") != "unsupported")
        if self._by_child:
            lines = pluto_lines(host, "--trafficstatus", timeout=timeout, pluto=pluto)
            StatusReader({"traffic": self._take_traffic}).read(lines)
        self._finish_templates()
        self._add_missing(host)
        self._add_reasons(host)

    def _add_reasons(self, host: Host) -> None:
        failed = [row for row in self.rows if row.fails and row.state != "unknown"]
        if failed:
            load_part("explain_tunnels")(host, failed)

    def _is_asked_for(self, name: str, instance: str) -> bool:
        return not self._name or self._name in (name, f"{name}{instance}") or name.startswith(f"{self._name}/")

    def _take_connection(self, connection: dict[str, Any]) -> None:
        if not self._is_asked_for(connection["name"], connection["instance"]):
            return
        row = tunnel_of(connection)
        self.rows.append(row)
        self._by_name[row.name, row.instance] = row
        if row.child_sa is not None:
            self._by_child[row.child_sa] = row
        if self._name:
            self.options[row.full_name] = connection["options"]

    def _negotiates(self, name: str, instance: str, step: str) -> None:
        row = self._by_name.get((name, instance))
        if row and row.state in ("down", "idle", "ready", "routed", "unknown") and row.peers is None:
            row.state = "connecting"
            row.problem = row.problem or step

    def _take_state(self, state: dict[str, Any]) -> None:
        row = self._by_name.get((state["connection"], state["instance"]))
        if row is None:
            return
        if self._name:
            self.states.append(state)
        if not state["established"]:
            self._negotiates(row.name, row.instance, state["description"])
        if state["serial"] != row.child_sa:
            return
        events = state["events"]
        row.rekey_in = events.get("rekey")
        row.ends_in = events.get("replace", events.get("expire"))
        if state["transport"] == "TCP":
            row.marks.append("TCP")
        elif state["port"] not in (None, 500):
            row.marks.append("NAT-T")

    def _take_traffic(self, entry: dict[str, Any]) -> None:
        row = self._by_child.get(entry["serial"])
        if row is not None:
            row.since, row.username = entry["added"], entry["username"]
            row.bytes_in, row.bytes_out = entry["bytes_in"], entry["bytes_out"]

    def _finish_templates(self) -> None:
        for row in self.rows:
            if row.state == "connecting" and row.wanted is False and row.remote_host in ANY_PEER:
                row.state = "ready"

    def _add_missing(self, host: Host) -> None:
        """Add the connections that the configuration has pluto start, and that pluto has not loaded."""
        name = self.settings.get("configfile") or host.conf
        if not host.exists(name):
            return
        loaded = {name for row in self.rows for name in (row.name, row.name.partition("/")[0])}
        if names_only(host, name, loaded):
            return
        for conn in Config(host, name).conns():
            is_wanted = conn.get("auto", "ignore").lower() in ("start", "up", "route", "ondemand")
            if is_wanted and conn.name not in loaded and self._is_asked_for(conn.name, ""):
                row = TunnelRow(conn.name)
                row.state, row.wanted, row.problem = "down", True, "not loaded"
                self.rows.append(row)

    @property
    def status(self) -> int:
        """The exit status: 1 when a tunnel that should be up is not."""
        return ERROR if any(row.fails for row in self.rows) else OK


def short_time(seconds: float) -> str:
    """A duration in at most six characters: 45s, 12m, 2h03m, 3d04h, 120d."""
    count = max(int(seconds), 0)
    if count < 60:
        return f"{count}s"
    if count < 3600:
        return f"{count // 60}m"
    if count < 86400:
        return f"{count // 3600}h{count % 3600 // 60:02}m"
    days = count // 86400
    return f"{days}d{count % 86400 // 3600:02}h" if days < 100 else f"{days}d"


def short_bytes(count: float | None) -> str:
    """A number of bytes in at most five characters, in steps of 1,024: 0, 512, 1.2K, 30M; `?` when it is unknown."""
    if count is None:
        return "?"
    units = iter("KMGTPE")
    unit = ""
    while count >= 1000:
        count /= 1024
        unit = next(units)
    return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"


def paint(text: str, style: str, colour: bool) -> str:
    """The text in a style of ECMA-48 where there are colours."""
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style and text else text


class TunnelTable:
    """The tunnels as lines of a width: one line a tunnel where there is room, else peer and algorithms below it."""

    HEADINGS = ("NAME", "STATE", "NETWORKS", "IN", "OUT", "REKEY")
    RIGHT = frozenset((3, 4, 5))  # columns of numbers
    NAME_ROOM = 24  # longer names have a line of their own

    def __init__(self, width: int, now: float, *, colour: bool = False,
                 rates: Mapping[str, tuple[float, float]] | None = None, changed: Collection[str] = ()) -> None:
        self.width = max(width, 72)  # what short names and numbers need
        self.now = now
        self.colour = colour
        self.rates = rates  # bytes a second in and out by full name; None: the mean since the SA was made
        self.changed = changed

    def lines(self, rows: Sequence[TunnelRow]) -> list[str]:
        """The table with its headings; one line says so when there are no tunnels."""
        if not rows:
            return ["pluto has no connections loaded"]
        table = [(row, self._cells(row), self._notes(row)) for row in rows]
        widths = [max(len(heading), *(len(cells[place]) for _, cells, _ in table))
                  for place, heading in enumerate(self.HEADINGS)]
        widths[0] = min(widths[0], max(self.NAME_ROOM, len(self.HEADINGS[0])))
        total = sum(widths) + 2 * (len(widths) - 1)
        longest = max(sum(len(note) + 2 for note in notes) for _, _, notes in table)
        is_wide = total + longest <= self.width
        if not is_wide:
            widths[2] = max(self.width - (total - widths[2]), len(self.HEADINGS[2]))
        lines = [paint(self._line(self.HEADINGS, widths), BOLD, self.colour)]
        for row, cells, notes in table:
            lines += self._of_tunnel(row, cells, notes, widths, is_wide)
        return lines + fold_cells(summary_of(rows).split(), self.width, "", " ")

    def _cells(self, row: TunnelRow) -> list[str]:
        state = row.state.upper()
        if row.since is not None and row.state in ("up", "down"):
            state += f" {short_time(self.now - row.since)}"
        networks = f"{','.join(row.local_networks)} === {','.join(row.remote_networks)}"
        is_up = row.state == "up"
        life = short_time(row.rekey_in) if row.rekey_in is not None else ""
        if is_up and not life and row.ends_in is not None:
            life = f"end {short_time(row.ends_in)}"
        return [printable(row.full_name), state, printable(networks) if len(networks) > 5 else "",
                short_bytes(row.bytes_in) if is_up else "", short_bytes(row.bytes_out) if is_up else "", life]

    def _notes(self, row: TunnelRow) -> list[str]:
        name = "" if row.remote_id in (None, row.remote_host) else f" {row.remote_id}"
        peers = "" if row.peers is None else f"{row.peers} peer{'s' * (row.peers != 1)}"
        version = f"IKEv{row.ike_version}" if row.ike_version and row.state not in ("bypass", "block") else ""
        notes = (row.problem or "", f"{row.remote_host or ''}{name}", peers, row.username or "", version,
                 row.ipsec_algorithm or "", " ".join(row.marks), self._rate(row))
        return [printable(note.strip()) for note in notes if note.strip()]

    def _rate(self, row: TunnelRow) -> str:
        if self.rates is not None:
            rate = self.rates.get(row.full_name)
        elif row.bytes_in is None or row.bytes_out is None or row.since is None or self.now - row.since < 1:
            rate = None
        else:
            rate = row.bytes_in / (self.now - row.since), row.bytes_out / (self.now - row.since)
        mean = "" if self.rates is not None else "mean "
        return f"{mean}{short_bytes(rate[0])}/s in {short_bytes(rate[1])}/s out" if rate and max(rate) >= 1 else ""

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        return "  ".join(cell.rjust(width) if place in self.RIGHT else cell.ljust(width)
                         for place, (cell, width) in enumerate(zip(cells, widths))).rstrip()

    def _of_tunnel(self, row: TunnelRow, cells: list[str], notes: list[str], widths: Sequence[int],
                   is_wide: bool) -> list[str]:
        before = []
        if len(cells[0]) > widths[0]:
            before = fold_cells([cells[0]], self.width, "")
            cells[0] = ""
        if len(cells[2]) > widths[2]:
            notes = [cells[2], *notes]
            cells[2] = ""
        state = cells[1].ljust(widths[1])
        style = CHANGED if row.full_name in self.changed else TUNNEL_STATES[row.state]
        start = cells[0].ljust(widths[0]) + "  "
        first = start + paint(state, style, self.colour) + self._line(cells, widths)[len(start) + len(state):]
        if is_wide:
            room = sum(widths) + 2 * len(widths) + len(first) - len(self._line(cells, widths))
            return [*before, (first.ljust(room) + "  ".join(notes)).rstrip()]
        below = fold_cells(notes, self.width, "  ")
        return [*before, first.rstrip(), *(paint(line, DIM, self.colour) for line in below)]


def fold_cells(cells: Sequence[str], width: int, indent: str, between: str = "  ") -> list[str]:
    """Put the cells, two blanks apart, in lines of the width; a cell longer than a line goes on in the next line."""
    lines: list[str] = []
    line = indent
    for cell in cells:
        gap = "" if line == indent else between
        if line != indent and len(line) + len(gap) + len(cell) > width:
            lines.append(line)
            line, gap = indent, ""
        line += gap + cell
        while len(line) > width:
            end = line.rfind(" ", len(indent) + 1, width + 1)
            end = end if end > len(indent) else width
            lines.append(line[:end].rstrip())
            line = indent + line[end:].lstrip()
    if line != indent:
        lines.append(line)
    return lines


def summary_of(rows: Sequence[TunnelRow]) -> str:
    """How many tunnels there are in each state: `3 tunnels: 2 up, 1 down that should be up`."""
    counts: dict[str, int] = {}
    for row in rows:
        text = f"{row.state} that should be up" if row.fails else row.state
        counts[text] = counts.get(text, 0) + 1
    order = list(TUNNEL_STATES)
    texts = sorted(counts, key=lambda text: order.index(text.partition(" ")[0]))
    return f"{len(rows)} tunnel{'s' * (len(rows) != 1)}: " + ", ".join(f"{counts[text]} {text}" for text in texts)


def describe_tunnel(row: TunnelRow, options: Mapping[str, str], states: Sequence[dict[str, Any]],
                    now: float) -> list[str]:
    """All of one tunnel, a `name  value` a line; then its SAs, and what else pluto says of the connection."""
    wanted = {True: "should be up", False: "", None: ""}[row.wanted]
    state = ", ".join(text for text in (row.state.upper(), wanted if row.state != "up" else "", row.problem) if text)
    since = "" if row.since is None else f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row.since))} " \
                                         f"({short_time(now - row.since)} ago)"
    count = "" if row.bytes_in is None else f"{row.bytes_in} bytes in, {row.bytes_out} bytes out"
    fields = (("state", state), ("since", since), ("networks", " === ".join(
                  ",".join(networks) for networks in (row.local_networks, row.remote_networks))),
              ("local", f"{row.local_host or '?'}  {row.local_id or ''}"),
              ("remote", f"{row.remote_host or '?'}  {row.remote_id or ''}"), ("user", row.username),
              ("peers", row.peers), ("IKE", " ".join(filter(None, (
                  f"IKEv{row.ike_version}" if row.ike_version else "", row.ike_algorithm)))),
              ("IPsec", row.ipsec_algorithm), ("marks", " ".join(row.marks)), ("traffic", count),
              ("rekey in", None if row.rekey_in is None else short_time(row.rekey_in)),
              ("ends in", None if row.ends_in is None else short_time(row.ends_in)))
    lines = [row.full_name, *(f"  {name:<9} {value}".rstrip() for name, value in fields if value not in (None, ""))]
    for sa in states:
        if (sa["connection"], sa["instance"]) == (row.name, row.instance):
            events = ", ".join(f"{event} in {seconds}s" for event, seconds in sa["events"].items())
            port = "" if sa["port"] is None else f"{sa['transport']} port {sa['port']}"
            spis = ", ".join(f"{spi['protocol']} {spi['spi']} {spi['direction']}" for spi in sa["spis"])
            parts = (sa["type"], sa["state"], sa["description"], port, spis, events)
            lines.append(f"  {'#' + str(sa['serial']):<9} " + "; ".join(filter(None, parts)))
    lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in options.items()]
    return [printable(line) for line in lines]


class TunnelView:
    """What one command line of `ipsec tunnels` shows, once or again and again."""

    def __init__(self, host: Host, args: Args) -> None:
        self.host = host
        self.name = args.operands[0] if args.operands else ""
        self.timeout = parse_seconds(args.value("--timeout", "60"))
        self.as_json = args.flag("--json")
        self.is_screen = args.flag("--watch") and is_terminal(sys.stdout) and host.env.get("TERM") != "dumb"
        self.status = OK
        self._before: dict[str, tuple[str, int | None, int | None]] = {}  # state and bytes, by full name
        self._at = 0.0  # when that was

    def lines(self, width: int, is_again: bool) -> list[str]:
        """Ask pluto, and return what to show; sets the status.  `is_again`: rates and changes since the last time.

        Raises NoPluto, TimedOut, Failure (UNKNOWN_NAME).
        """
        now = time.time()
        tunnels = Tunnels(self.host, self.timeout, self.name)
        if self.name and not tunnels.rows:
            raise Failure(f"ipsec tunnels: pluto has no connection named {quote(self.name)}", UNKNOWN_NAME,
                          "ipsec tunnels shows all")
        self.status = tunnels.status
        if self.as_json:
            json = need("json", "--json")
            rows = ",\n  ".join(json.dumps(vars(row)) for row in tunnels.rows)
            return [f'{{"schema": {TUNNEL_SCHEMA}, "tunnels": [', f"  {rows}", "]}"]
        if self.name:
            return [line for row in tunnels.rows
                    for line in describe_tunnel(row, tunnels.options.get(row.full_name, {}), tunnels.states, now)]
        rates = self._rates(tunnels.rows, now) if is_again else None
        changed = {row.full_name for row in tunnels.rows
                   if self._before and self._before.get(row.full_name, ("", None, None))[0] != row.state}
        self._before = {row.full_name: (row.state, row.bytes_in, row.bytes_out) for row in tunnels.rows}
        self._at = now
        table = TunnelTable(width, now, colour=self.host.colour, rates=rates, changed=changed)
        return table.lines(sorted(tunnels.rows, key=lambda row: not row.fails) if self.is_screen else tunnels.rows)

    def _rates(self, rows: Sequence[TunnelRow], now: float) -> dict[str, tuple[float, float]]:
        passed = now - self._at
        rates = {}
        for row in rows:
            _, bytes_in, bytes_out = self._before.get(row.full_name, ("", None, None))
            if None in (bytes_in, bytes_out, row.bytes_in, row.bytes_out) or passed <= 0:
                continue
            differences = (row.bytes_in or 0) - (bytes_in or 0), (row.bytes_out or 0) - (bytes_out or 0)
            if min(differences) >= 0:  # a new SA counts from 0
                rates[row.full_name] = differences[0] / passed, differences[1] / passed
        return rates

    def watch(self, seconds: float) -> int:
        """Show the tunnels every `seconds` seconds until q or Ctrl-C; return the status of the last display."""
        host = self.host
        load_part("end_on_signals")(host)
        undo = host.keyboard() if self.is_screen else None
        try:
            if self.is_screen:
                host.print("\x1b[?1049h\x1b[?25l", end="")  # the other screen, without cursor (xterm's ctlseqs)
            while self._shown(seconds):
                continue
        except KeyboardInterrupt as interrupt:
            if interrupt.args and interrupt.args[0] != "SIGINT":
                raise
        finally:
            if undo:
                host.print("\x1b[?25h\x1b[?1049l", end="")
                host.flush()
                undo()
        return self.status

    def _shown(self, seconds: float) -> bool:
        """Show the tunnels once and wait; False when somebody pressed q."""
        host = self.host
        clock = time.strftime("%Y-%m-%d %H:%M:%S")
        lines: list[str] = []
        size = (0, 0)
        deadline = time.monotonic() + seconds
        drawn = False
        while not drawn or time.monotonic() < deadline:
            if not drawn or (self.is_screen and size != host.terminal_size()):
                size = host.terminal_size()
                lines = self._lines_or_failure(host.columns)
                self._draw(clock, lines, size if self.is_screen else None)
                drawn = True
            left = max(deadline - time.monotonic(), 0)
            if host.key(min(HOLD_SECONDS, left) if self.is_screen else left) in ("q", "Q"):
                return False
        return True

    def _lines_or_failure(self, width: int) -> list[str]:
        try:
            return self.lines(width, bool(self._before))
        except (NoPluto, TimedOut) as failure:
            self.status = failure.status
            self._before = {}
            return [str(failure)]

    def _draw(self, clock: str, lines: Sequence[str], size: tuple[int, int] | None) -> None:
        """Write the lines at once.  With the size of a terminal they replace the text on the screen."""
        host = self.host
        if size is None:
            host.print("\n".join(lines if self.as_json else [clock, *lines, ""]))
        else:
            room = size[1] - 1
            left = len(lines) - room + 1
            shown = lines if left <= 1 else [*lines[:room - 2], f"… {left} more lines", lines[-1]]
            head = f"ipsec tunnels  {clock}  q ends"[:size[0]]
            host.print("\x1b[H" + "\x1b[K\r\n".join([paint(head, DIM, host.colour), *shown]) + "\x1b[K\x1b[J", end="")
        host.flush()


@command("tunnels sa", "[CONN]", summary="show the tunnels: state, networks, peer, traffic",
         options=(CTLSOCKET_OPTION, Opt("--json", None, "as JSON, see ipsec_tunnels(8)"),
                  Opt("--watch -w", "[SECONDS]", "again every 2 or so many seconds; q or Ctrl-C ends"), TIMEOUT_OPTION),
         details="The status is 0 when all tunnels that should be up are, 1 when one is not, 33 without pluto.")
def tunnels_command(host: Host, args: Args) -> int:
    """Run `ipsec tunnels`; return 0, 1 for a tunnel that should be up and is not, 21, or 33 without pluto."""
    host.ctlsocket = args.value("--ctlsocket") or host.ctlsocket
    view = TunnelView(host, args)
    if args.flag("--watch"):
        return view.watch(parse_seconds(args.value("--watch") or "2"))
    host.print("\n".join(view.lines(host.columns, False)))
    return view.status


# --- metrics ----------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    Family = tuple[str, str, str, list[tuple[dict[str, str], int]]]  # name, type, help, labels and value of each series


class MeteredTunnels(Tunnels):
    """The tunnels, with their live SAs, by name and instance.

    `sas` has serial number, bytes in and bytes out of each IPsec SA; `counts` how many IKE and IPsec SAs are
    established and how many negotiate; `spis` the SPIs.
    """

    WITH_SAS = True

    def __init__(self, host: Host, timeout: float) -> None:
        """Raises NoPluto, TimedOut."""
        self.sas: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        self.counts: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
        self.spis: dict[tuple[str, str], list[int]] = {}
        super().__init__(host, timeout)

    def _take_state(self, state: dict[str, Any]) -> None:
        super()._take_state(state)
        name = state["connection"], state["instance"]
        kind = state["type"], "established" if state["established"] else "negotiating"
        counts = self.counts.setdefault(name, {})
        counts[kind] = counts.get(kind, 0) + 1
        self.spis.setdefault(name, []).extend(int(spi["spi"], 16) for spi in state["spis"])

    def _take_traffic(self, entry: dict[str, Any]) -> None:
        super()._take_traffic(entry)
        if entry["bytes_in"] is not None and entry["bytes_out"] is not None:
            sas = self.sas.setdefault((entry["connection"], entry["instance"]), [])
            sas.append((entry["serial"], entry["bytes_in"], entry["bytes_out"]))


class Ledger:
    """The bytes of SAs that have ended, kept in a file from one `ipsec metrics` to the next while one pluto lives.

    `totals` has for each tunnel the bytes in, the bytes out, and when they last changed (seconds since 1970, 0: not
    seen).  A file of an earlier pluto counts as none.
    """

    def __init__(self, host: Host, name: str, started: int) -> None:
        self.host = host
        self.name = name
        self.started = started
        self.totals: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._ended: dict[tuple[str, str], tuple[int, int]] = {}
        self._live: dict[int, tuple[str, str, int, int]] = {}
        try:
            rows = [line.split("\t") for line in host.lines(name)] if name else []
            if rows[:1] == [["pluto", str(started)]]:
                for kind, *words in rows[1:]:
                    self._take(kind, words)
        except (OSError, ValueError):
            self.totals, self._ended, self._live = {}, {}, {}  # another program's file, or a part of one

    def _take(self, kind: str, words: Sequence[str]) -> None:
        if kind == "ended":
            connection, instance, *numbers = words
            bytes_in, bytes_out, changed, ended_in, ended_out = map(int, numbers)
            self.totals[connection, instance] = bytes_in, bytes_out, changed
            self._ended[connection, instance] = ended_in, ended_out
        elif kind == "live":
            serial, connection, instance, *numbers = words
            bytes_in, bytes_out = map(int, numbers)
            self._live[int(serial)] = connection, instance, bytes_in, bytes_out

    def update(self, tunnels: MeteredTunnels, now: int) -> None:
        """Take in what the live SAs have carried.  SAs that are gone keep the bytes that were seen last."""
        known = {(row.name, row.instance) for row in tunnels.rows}
        live = {serial: (*name, bytes_in, bytes_out) for name, sas in tunnels.sas.items()
                for serial, bytes_in, bytes_out in sas}
        for serial, (connection, instance, bytes_in, bytes_out) in self._live.items():
            if serial not in live:
                ended = self._ended.get((connection, instance), (0, 0))
                self._ended[connection, instance] = ended[0] + bytes_in, ended[1] + bytes_out
        self._live = live
        totals = {}
        for name in known & (self._ended.keys() | tunnels.sas.keys()):
            ended = self._ended.get(name, (0, 0))
            sas = tunnels.sas.get(name, [])
            sums = ended[0] + sum(sa[1] for sa in sas), ended[1] + sum(sa[2] for sa in sas)
            before = self.totals.get(name)
            changed = before[2] if before else 0
            if before and sums != before[:2]:
                changed = now
            totals[name] = *sums, changed
        self.totals = totals

    def save(self) -> None:
        """Write the file.  Raises OSError."""
        rows: list[tuple[object, ...]] = [("pluto", self.started)]
        rows += [("ended", *name, *total, *self._ended.get(name, (0, 0))) for name, total in self.totals.items()]
        rows += [("live", serial, *live) for serial, live in self._live.items()]
        self.host.replace(self.name, "".join("\t".join(map(str, row)) + "\n" for row in rows))


def last_uses(host: Host) -> dict[int, int]:
    """When each state of the kernel last carried a packet, by SPI; empty where the kernel does not tell."""
    reader = XfrmReader(host)
    uses = {}
    try:
        for message in state_messages(host):
            state = reader.read_state(*message)
            used = unsigned(state.more.get(XFRMA_LASTUSED))
            if used:
                uses[flipped(state.spi)] = used
    except (OSError, Failure):
        return {}
    return uses


def certificate_expiry(host: Host) -> list[tuple[dict[str, str], int]]:
    """The end of each certificate of the NSS database; of certificates of one name the last.  Empty if unreadable."""
    ends: dict[tuple[str, str, str], int] = {}
    try:
        base = NssDatabase(host)
        base.check()
        for certificate in base.certificates():
            parsed = parse_certificate(certificate.der)
            key = certificate.nickname, parsed.subject, "yes" if parsed.is_ca else "no"
            ends[key] = max(parsed.expires, ends.get(key, parsed.expires))
    except (Failure, OSError, ValueError):
        return []
    return [(dict(zip(("nickname", "subject", "ca"), key)), end) for key, end in ends.items()]


def xfrm_errors(host: Host) -> list[tuple[dict[str, str], int]]:
    """The counters of /proc/net/xfrm_stat; empty if the kernel has none."""
    try:
        rows = [line.split() for line in host.lines("/proc/net/xfrm_stat")]
    except OSError:
        return []
    return [({"counter": row[0]}, int(row[1])) for row in rows if len(row) == 2 and is_number(row[1])]


def tunnel_labels(row: TunnelRow) -> dict[str, str]:
    """The labels that all families of tunnels share.  None changes when an SA is rekeyed."""
    return {"connection": row.name, "instance": row.instance, "remote": row.remote_host or ""}


def tunnel_families(tunnels: MeteredTunnels, ledger: Ledger, uses: Mapping[int, int], now: int) -> Iterator[Family]:
    """Yield the families with a series a tunnel.  Templates have none: their instances have."""
    rows = [(tunnel_labels(row), (row.name, row.instance), row) for row in tunnels.rows
            if row.state not in ("bypass", "block") and row.peers is None
            and (row.instance or row.remote_host not in ANY_PEER)]
    yield ("ipsec_connection_info", "gauge", "What a connection is; join it by connection, instance and remote.",
           [({**labels, "remote_id": row.remote_id or "", "username": row.username or "",
              "ike_version": str(row.ike_version or "")}, 1) for labels, _, row in rows])
    yield ("ipsec_connection_up", "gauge", "Whether the connection has an IPsec SA.",
           [(labels, int(row.state == "up")) for labels, _, row in rows if row.state != "unknown"])
    yield ("ipsec_connection_wanted", "gauge", "Whether the connection should be up.",
           [(labels, int(row.wanted)) for labels, _, row in rows if row.wanted is not None])
    for kind, text in (("ike", "IKE"), ("child", "IPsec")):
        yield (f"ipsec_connection_{kind}_sas", "gauge", f"Established {text} SAs of the connection.",
               [(labels, tunnels.counts.get(name, {}).get((kind, "established"), 0)) for labels, name, _ in rows])
    for place, way, text in ((0, "in", "received"), (1, "out", "sent")):
        yield (f"ipsec_connection_{way}_bytes_total", "counter",
               f"Bytes {text} by all IPsec SAs of the connection since pluto started.",
               [(labels, ledger.totals[name][place]) for labels, name, _ in rows if name in ledger.totals])
    yield ("ipsec_connection_established_time_seconds", "gauge", "When the newest IPsec SA was made.",
           [(labels, row.since) for labels, _, row in rows if row.since is not None])
    idle = []
    for labels, name, _ in rows:
        times = [uses[spi] for spi in tunnels.spis.get(name, ()) if spi in uses]
        changed = ledger.totals.get(name, (0, 0, 0))[2]
        last = max(times) if times else changed
        if last:
            idle.append((labels, max(now - last, 0)))
    yield "ipsec_connection_idle_seconds", "gauge", "Seconds since the last packet in an IPsec SA.", idle


def pluto_families(host: Host, timeout: float, state: str) -> Iterator[Family]:
    """Yield the families that pluto's status gives.  Raises NoPluto, TimedOut."""
    now = int(time.time())
    tunnels = MeteredTunnels(host, timeout)
    started = int(host.stat(host.ctlsocket).st_mtime)  # pluto makes the socket when it starts
    ledger = Ledger(host, state, started)
    ledger.update(tunnels, now)
    if state:
        try:
            ledger.save()
        except OSError as error:
            host.warn(f"metrics: the bytes of SAs that end are not kept: {state}: {error.strerror}")
    states = dict.fromkeys(TUNNEL_STATES, 0)
    for row in tunnels.rows:
        states[row.state] += 1
    steps = "established", "negotiating"
    sums = {(kind, step): sum(counts.get((kind, step), 0) for counts in tunnels.counts.values())
            for kind in ("ike", "child") for step in steps}
    yield ("ipsec_pluto_info", "gauge", "The version of pluto.",
           [({"version": tunnels.settings.get("pluto_version", "")}, 1)])
    yield ("ipsec_pluto_start_time_seconds", "gauge", "When pluto started, and all counters of connections with it.",
           [({}, started)])
    yield ("ipsec_connections", "gauge", "Connections and instances by state; each has one.",
           [({"state": name}, count) for name, count in states.items()])
    for kind, text in (("ike", "IKE"), ("child", "IPsec")):
        yield (f"ipsec_{kind}_sas", "gauge", f"{text} SAs by state; each has one.",
               [({"state": step}, sums[kind, step]) for step in steps])
    yield from tunnel_families(tunnels, ledger, last_uses(host), now)


def metric_families(host: Host, timeout: float, state: str) -> list[Family]:
    """Return all families for the pluto that answers, or for none.  Raises NoPluto if the caller may not ask."""
    families: list[Family] = []
    try:
        families += pluto_families(host, timeout, state)
        is_up = 1
    except (NoPluto, TimedOut) as failure:
        if failure.hint == NOT_ALLOWED:
            raise  # whether pluto is up is not known
        host.warn(failure.message)
        is_up = 0
    return [("ipsec_up", "gauge", "Whether pluto answers.", [({}, is_up)]), *families,
            ("ipsec_certificate_expiry_time_seconds", "gauge", "When a certificate of the NSS database expires.",
             certificate_expiry(host)),
            ("ipsec_xfrm_errors_total", "counter", "Packets that the kernel's IPsec dropped, by cause.",
             xfrm_errors(host))]


def metrics_text(families: Sequence[Family]) -> str:
    """The families in Prometheus' text format; families without a series are left out."""
    lines = []
    for name, kind, text, values in families:
        if values:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in values:
            shown = ",".join('{}="{}"'.format(key, printable(label).replace("\\", "\\\\").replace('"', '\\"')
                                              .replace("\n", "\\n")) for key, label in labels.items())
            lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    return "\n".join(lines) + "\n"


@command("metrics", summary="show pluto's state in the text format of Prometheus",
         options=(CTLSOCKET_OPTION, TIMEOUT_OPTION,
                  Opt("--output", "FILE", "write there instead, for node_exporter's textfile collector"),
                  Opt("--state", "FILE", "where to keep the bytes of SAs that end, instead of metrics.state beside "
                      "pluto's control socket; empty: nowhere")))
def metrics_command(host: Host, args: Args) -> int:
    """Run `ipsec metrics`; return 0, also if pluto is down (ipsec_up is 0 then).  Raises Failure if refused."""
    host.ctlsocket = args.value("--ctlsocket") or host.ctlsocket
    state = args.value("--state", os.path.join(os.path.dirname(host.ctlsocket), "metrics.state"))
    text = metrics_text(metric_families(host, parse_seconds(args.value("--timeout", "60")), state))
    if args.flag("--output"):
        host.replace(args.value("--output"), text)
    else:
        host.print(text, end="")
    return OK


# --- the summary of barf ----------------------------------------------------------------------------------------------
#
# The first section of a report: what an expert asks first, in at most SUMMARY_LINES lines.

SUMMARY_LINES, SUMMARY_TUNNELS, SUMMARY_CAUSES = 25, 10, 3


def report_summary(report: Report) -> Iterator[str]:
    """Yield the lines of the summary.  For a part that can't be made, a line gives the reason."""
    host = report.host
    lines = [f"{version_line(host)}; ipsec {VERSION}", f"{distribution_name(host)}, kernel {host.kernel_release()}"
             if host.live else f"{distribution_name(host)}, mounted at {host.root}"]
    if host.live:
        lines += [pluto_summary(host), *tunnels_summary(report), firewall_summary(host)]
    troubles = [finding for finding in report.verdicts() if finding.level in ("FAIL", "WARN") and not finding.cause]
    troubles.sort(key=lambda finding: finding.level != "FAIL")
    room = max(1, SUMMARY_LINES - len(lines) - 1)
    lines += [f"verify: {finding.level} {finding.check}: {finding.why}" for finding in troubles[:room]]
    if len(troubles) > room:
        lines.append(f"verify: {len(troubles) - room} more lines that are not OK; see ipsec_verify")
    return text_of_lines(lines or ["verify: nothing is wrong"])


def distribution_name(host: Host) -> str:
    """Return the name of the distribution (os-release(5)), or that it is unknown."""
    for name in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            for line in host.lines(name):
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip("\"'")
        except OSError:
            continue
    return "unknown distribution"


def pluto_summary(host: Host) -> str:
    """Return one line about pluto: its process and start, or the signs of one that this process can't see."""
    pid = find_pluto(host)
    if pid:
        started = next((process.started for process in list_processes(host) if process.pid == pid), 0.0)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else "unknown"
        return f"pluto: process {pid}, since {since}"
    signs = signs_of_pluto(host)
    return f"pluto: {signs[0]}" if signs else "pluto: not running"


def tunnels_summary(report: Report) -> Iterator[str]:
    """Yield one line for each of the first connections, those in trouble first, and causes of the first failures."""
    try:
        rows = Tunnels(report.host, report.timeout / 2).rows
    except (Failure, OSError) as error:
        yield f"connections: {error_text(error)}"
        return
    order = ("down", "connecting", "partly up")
    rows.sort(key=lambda row: (not row.fails, row.state not in order))
    now = time.time()
    for row in rows[:SUMMARY_TUNNELS]:
        since = "" if row.since is None else f" {short_time(now - row.since)}"
        yield printable(f"{row.full_name}: {row.state.upper()}{since}, peer {row.remote_host or 'unknown'}"
                        f"{', ' + row.problem if row.problem else ''}")
    if len(rows) > SUMMARY_TUNNELS:
        up = sum(row.state == "up" for row in rows[SUMMARY_TUNNELS:])
        yield f"{len(rows) - SUMMARY_TUNNELS} more connections, {up} of them up"
    failed = list(dict.fromkeys(row.name for row in rows if row.fails))[:SUMMARY_CAUSES]
    if failed:
        doctor: Doctor = load_part("Doctor")(report.host, report.timeout / 2)
        for name in failed:
            diagnosis = doctor.diagnose(name)
            yield printable(f"why {name}: {diagnosis.means or 'the cause is unknown'}"
                            f"{'; next: ' + diagnosis.command if diagnosis.command else ''}")


def firewall_summary(host: Host) -> str:
    """Return one line with the tables of the packet filters in use."""
    tables = [f"iptables {name}" for name in host.value("/proc/net/ip_tables_names").split()]
    tables += [f"ip6tables {name}" for name in host.value("/proc/net/ip6_tables_names").split()]
    if host.which("nft"):
        try:
            ran = host.run(["nft", "list", "tables"])
        except Failure as failure:
            return f"firewall: {failure.message}"
        if ran.status:
            return f"firewall: {ran.complaint}"
        tables += [f"nft {line.removeprefix('table ')}" for line in ran.text.splitlines()]
    shown = ", ".join(tables[:6]) + (f" and {len(tables) - 6} more" if len(tables) > 6 else "")
    return f"firewall: {shown or 'no tables seen'}"


# --- configuration: what libreswan's own programs say of it, and what a report shows ---------------------------------

ADDCONN_LISTS = {"--listall": "ignore add ondemand start keep", "--listadd": "add", "--listroute": "ondemand start",
                 "--liststart": "start", "--listignore": "ignore"}


@command("addconn", "[CONN...]", summary="check ipsec.conf, list connections, load them into pluto", fallback=True,
         rescue=True, options=(Opt("--config", "FILE", "the configuration; - is standard input"),
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
    """Run `ipsec addconn`; return 0, 3 if the configuration can't be loaded, 127 for what only libreswan's can do."""
    if args.operands or args.flag("--autoall"):
        raise Missing(f"ipsec addconn: loading connections needs libreswan's own program in {host.execdir}", NOT_FOUND,
                      libreswan_hint(host, "set IPSEC_EXECDIR"))
    lists = [name for name in ADDCONN_LISTS if args.flag(name)]
    if not lists and not any(args.flag(name) for name in ("--checkconfig", "--configsetup", "--liststack")):
        raise Failure("ipsec addconn: nothing to do", USAGE, "name what to list or check; see ipsec addconn --help")
    config = own_reader(host, args, "addconn")
    if args.flag("--checkconfig"):
        return OK
    if "--listall" in lists:
        lists = ["--listall"]
    elif "--listroute" in lists and "--liststart" in lists:
        lists.remove("--liststart")  # --listroute names them, too
    for name in lists:
        names = [f"{conn.name} " for conn in config.conns() if conn.auto in ADDCONN_LISTS[name].split()]
        host.print("".join(names), end="\n" if name in ("--listall", "--listignore") else "")
    if args.flag("--liststack"):
        host.print(config.setup("protostack", "xfrm"))
    elif args.flag("--configsetup"):
        print_setup(host, args, config)
    return OK


def print_setup(host: Host, args: Args, config: Config) -> None:
    """Print `config setup` as assignments for a shell, with --varprefix before all names except two."""
    export, prefix = "" if args.flag("--noexport") else "export", args.value("--varprefix")
    values = {f"{prefix}confreadstatus": "", "configfile": config.name,
              "ctlsocket": args.value("--ctlsocket", host.ctlsocket)}
    values.update({prefix + key: value for key, value in setup_values(host, config)})
    for key, value in values.items():
        # libreswan's addconn leaves quotes as they are, and a shell that evals them runs what follows
        host.print(f"{export} {key.replace('-', '_')}='" + value.replace("'", "'\\''") + "'")


def setup_values(host: Host, config: Config) -> Iterator[tuple[str, str]]:
    """Yield the keywords and values of `config setup`, with the defaults that 4.3 to 5.2 share (confread.c).

    Left out are the defaults that libreswan prints as internal numbers: times, ddos-mode, ikev1-policy.
    """
    defaults = {"dumpdir": "/run/pluto", "ipsecdir": host.confddir, "nssdir": host.nssdir, "secretsfile": host.secrets,
                "xfrmlifetime": "30", "nhelpers": "-1", "ddos-ike-threshold": "25000", "max-halfopen-ike": "50000",
                "ocsp-cache-size": "1000", **dict.fromkeys(
                    "audit-log dnssec-enable ike-socket-errqueue listen-udp logappend logip logtime uniqueids".split(),
                    "yes"),
                **dict.fromkeys("crl-strict drop-oppo-null listen-tcp ocsp-enable ocsp-strict".split(), "no")}
    for key, kind in keywords(True).items():
        value = config.setup(key, defaults.get(key, ""))
        if value and kind == "bool":
            yield key, "yes" if is_yes(value) else "no"
        elif value and kind != "obsolete":
            yield key, value
            if key == "logfile":
                yield "plutostderrlog", value


@command("readwriteconf", summary="print ipsec.conf with also=, %default and includes resolved", fallback=True,
         rescue=True, options=(Opt("--config", "FILE", "the configuration; - is standard input"),
                  Opt("--conn", "CONN", "only this connection"),
                  Opt("--nosetup", None, "leave config setup out"),
                  Opt("--rootdir", "DIR", "look for included files below DIR (as ipsec --root)"),
                  Opt("--verbose --debug", None, "say more")),
         details="Libreswan's own readwriteconf does this where it is installed; else the built-in reader does, which "
                 "prints what is configured and adds no defaults.")
def readwriteconf_command(host: Host, args: Args) -> int:
    """Run `ipsec readwriteconf`; return 0, or 3 if the configuration can't be loaded."""
    if args.flag("--rootdir"):
        host = Host(host.env, root=args.value("--rootdir"), conf=host.conf)
    for line in config_lines(own_reader(host, args, "readwriteconf"), args.value("--conn"), not args.flag("--nosetup")):
        host.print(line)
    return OK


def config_lines(config: Config, name: str = "", setup: bool = True) -> Iterator[str]:
    """Yield the lines of an ipsec.conf without also=, %default and includes; `name` selects one connection."""
    if setup:
        yield "config setup"
        for key in keywords(True):
            if value := config.setup(key):
                yield f"\t{key}={quoted_value(value)}"
        yield ""
    for conn in config.conns():
        if name in ("", conn.name):
            yield f"conn {quoted_value(conn.name)}"
            if conn.alsos:
                yield f"\t#also = {' '.join(conn.alsos)}"
            keys = sorted(conn.settings, key=lambda key: (not key.startswith("left"), not key.startswith("right"),
                                                          key.startswith(("x-", "x_"))))
            for key in keys:
                value = conn.settings[key].value
                yield f"\t{key}={value if key[:2] in ('x-', 'x_') else quoted_value(value)}"


def quoted_value(value: str) -> str:
    """Return a value as ipsec.conf needs it: quoted or in braces if the bare value would be read differently."""
    if value and split_value(value) == (value, ""):
        return value
    return f"{{{value}}}" if '"' in value else f'"{value}"'


@command("_secretcensor secretcensor", "[FILE...]", summary="show ipsec.secrets without the secrets", hidden=True,
         rescue=True)
def secretcensor_command(host: Host, args: Args) -> int:
    """Run `ipsec _secretcensor`: print files, or standard input, as barf does; return 1 if a file can't be read."""
    return filtered(host, args.operands, lambda chunks: (
        f"{printable(line)}\n" for line in censor_secrets(split_lines(chunks))))


@command("_keycensor keycensor", "[FILE...]", summary="show a text without the keys and secrets in it", hidden=True,
         rescue=True)
def keycensor_command(host: Host, args: Args) -> int:
    """Run `ipsec _keycensor`: print files, or standard input, as barf prints logs and configuration.

    Return 1 if one of them, or a file with secrets, can't be read.
    """
    config = Config(host)
    name = secrets_file(host, config)
    hidden = [problem for problem in secret_files(host, name)[1] if "can't read" in problem.text] if host.exists(
        name) else []
    for problem in hidden:
        host.warn(f"keycensor: {problem}: its secrets are masked by their place only")
    return filtered(host, args.operands, redactor_of(host, config=config).stream) or (ERROR if hidden else OK)


@command("redact", "[FILE...]", rescue=True, summary="mask secrets in any text, as barf does",
         details="Read files, or standard input, and print them without secrets: as barf shows a log. Lines of other "
                 "programs in a system log, and dumped bytes, are left out.")
def redact_command(host: Host, args: Args) -> int:
    """`ipsec redact`: 0; 1 if a file can't be read."""
    log = LogFilter()
    redactor = redactor_of(host)

    def censor(chunks: Iterable[bytes]) -> Iterator[str]:
        return redactor.stream(map(encode, text_of_lines(log.lines(split_lines(chunks)))))

    status = filtered(host, args.operands, censor)
    if log.left_out:
        host.warn(f"redact: {count_text(log.left_out, 'line')} of other programs left out")
    return status


def filtered(host: Host, names: Sequence[str], censor: Callable[[Iterable[bytes]], Iterable[str]]) -> int:
    """Print files, or standard input, through a censor; return ERROR if a file can't be read."""
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


# --- reload -----------------------------------------------------------------------------------------------------------
#
# `ipsec reload` makes pluto's connections those of ipsec.conf again, without a restart.  Pluto itself tells whether a
# connection has changed: a copy is loaded under another name, the status of both is compared, and the copy is deleted.
# A copy is only loaded, never routed or initiated.  The status of no release shows some keywords; the run directory
# keeps a digest of them, from one reload of the same pluto to the next.

COPY_PREFIX = "ipsec.reload."  # of the names of copies
COPIES_AT_A_TIME = 50
# The settings of a status line that change while a connection is used; `my_ip` and others only for a client (below)
STATE_FIELDS = ("newest ", "conn serial", "instance serial", "eroute owner", "routing", "owner", "negotiating ",
                "established ")
CLIENT_FIELDS = ("my_ip", "dns", "domains")  # a peer may set them by mode config
# Keywords whose values the status of 4.3, 4.10 or 5.2 does not show (tried with each keyword)
UNSEEN_KEYWORDS = frozenset((
    *(side + key for side in ("left", "right")
      for key in "addresspool ckaid ecdsakey eddsakey interface-ip pubkey rsasigkey rsasigkey2 sendcert vti".split()),
    *("accept-redirect-to cisco-split clientaddrfamily esn hostaddrfamily ignore-peer-dns ikepad modecfgbanner "
      "nat-ikev1-method negotiationshunt nic-offload nm-configured ppk-ids redirect-to remote-peer-type reqid sendca "
      "tcp-remoteport xauthby xauthfail".split())))
ID_FIELDS = ("our idtype", "our id", "their idtype", "their id")  # %fromcert: the peer's certificate sets them


class Loaded:
    """A connection of pluto, from the lines of the status with its name.

    `parts` has the settings of each part, in the order of the status; a part is `1x0` for leftsubnets=, else empty.
    `routed`: a policy or a tunnel exists.  `is_up`: pluto keeps the connection up.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[str]] = {}
        self.routed = self.is_up = False

    def add(self, part: str, text: str) -> None:
        """Take in one line of the status, without its name."""
        text = text.lstrip(":").strip().rstrip(";")
        fields = text.split("; ")
        if part not in self.parts:  # the first line: the networks, then the routing
            self.routed |= len(fields) > 1 and not fields[1].startswith("unrouted")
            fields = [fields[0], *(field for field in fields[2:] if "=" in field)]
        elif text.startswith("policy: "):
            words = text.removeprefix("policy: ").split("+")
            self.is_up |= "UP" in words
            fields = ["policy: " + "+".join(word for word in words if word not in ("UP", "ROUTE"))]
        if " algorithm newest" not in text:
            self.parts.setdefault(part, []).extend(
                field for field in fields if not field.startswith(STATE_FIELDS))

    def definition(self, conn: Conn, in_use: bool) -> dict[str, list[str]]:
        """Return the fields of each part that only a new definition changes.

        `in_use`: the connection has a policy or a tunnel, so that the peer may have set some fields.
        """
        client = in_use and any(conn.flag(key) for key in ("leftmodecfgclient", "rightmodecfgclient"))
        from_certificate = any(conn.get(key).lower() == "%fromcert" for key in ("leftid", "rightid"))
        left_out = (CLIENT_FIELDS if client else ()) + (ID_FIELDS if from_certificate else ())
        first = 1 if client else 0  # the networks of a client come from the peer
        return {part: [field for field in fields[first:] if not left_out or not field.startswith(left_out)]
                for part, fields in self.parts.items()}


def loaded_connections(host: Host, timeout: float) -> dict[str, Loaded]:
    """Return pluto's connections by name; the parts of one with leftsubnets= are together, instances are left out.

    Raises NoPluto, TimedOut.
    """
    connections: dict[str, Loaded] = {}
    for line in pluto_status(host, timeout):
        if not line.startswith('"'):
            continue
        name, _, text = line[1:].partition('"')
        base, slash, part = name.rpartition("/")
        numbers = part.partition("x")
        if not slash or not (numbers[0].isdecimal() and numbers[2].isdecimal()):
            base, part = name, ""
        if not text.startswith("["):
            connections.setdefault(base, Loaded()).add(part, text.replace(COPY_PREFIX, ""))  # `aliases: NAME`
    return connections


def changed_fields(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> str:
    """Return what differs between two definitions as text for a person; empty if nothing does."""
    if old.keys() != new.keys():
        return f"{len(old)} pairs of networks become {len(new)}"
    pairs = {(before, after) for part in old for before, after in zip(old[part], new[part]) if before != after}
    texts = sorted(f"{before} becomes {after}" for before, after in pairs)
    if not texts and any(len(old[part]) != len(new[part]) for part in old):
        return "its settings differ"
    return "; ".join(texts[:3]) + ("; …" if len(texts) > 3 else "")


class Digests:
    """Digests of what ipsec.conf said, in keywords that the status does not show, of the connections of one pluto.

    The file in the run directory has a line `pluto PID START`, then `DIGEST NAME` for each connection.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = f"{host.rundir}/ipsec.reload"
        self.owner, self.started = "", 0.0
        self.digests: dict[str, str] = {}
        pid = find_pluto(host)
        process = next((process for process in list_processes(host) if process.pid == pid), None)
        if process:
            self.owner, self.started = f"pluto {pid} {process.started:.0f}", process.started
            lines = host.value(self.name).splitlines()
            if lines[:1] == [self.owner]:
                for line in lines[1:]:
                    digest, _, name = line.partition(" ")
                    self.digests[name] = digest

    def digest(self, conn: Conn) -> str:
        """Return the digest of a connection in ipsec.conf."""
        import hashlib
        text = "\n".join(f"{key}={conn.get(key)}" for key in sorted(UNSEEN_KEYWORDS & conn.settings.keys()))
        return hashlib.sha256(encode(text)).hexdigest()

    def unknown_keywords(self, conn: Conn) -> list[str]:
        """Return the keywords that may have changed since pluto started, without a digest to tell."""
        if conn.name in self.digests:
            return []
        return [key for key in sorted(UNSEEN_KEYWORDS & conn.settings.keys())
                if not self.owner or self.host.stat(conn.settings[key].file).st_mtime > self.started]

    def changed(self, conn: Conn) -> bool:
        """Return whether the digest is known, and is another one now."""
        return self.digests.get(conn.name, self.digest(conn)) != self.digest(conn)

    def keep(self, conns: Iterable[Conn]) -> None:
        """Write the digests of these connections.  Raises OSError."""
        if self.owner:
            lines = [self.owner, *(f"{self.digest(conn)} {conn.name}" for conn in conns)]
            self.host.replace(self.name, "\n".join(lines) + "\n")


class Step(Record):
    """One step of a reload.

    `mark` is + (add), ~ (replace), - (delete), ! (pluto refuses the definition) or ? (a change can't be seen).
    """

    mark: str
    name: str
    text: str
    auto: str = ""


class Reload:
    """Compares ipsec.conf with pluto's connections and applies the difference.  Raises Failure, OSError."""

    def __init__(self, host: Host, args: Args) -> None:
        self.host = host
        self.teller = Teller(host, args)
        self.timeout = parse_seconds(args.value("--timeout", "60"))
        self.prune = args.flag("--prune")
        self.addconn = next((path for name in ("addconn", "add")
                             if host.executable(path := os.path.join(host.execdir, name))), "")
        if not self.addconn:
            raise Missing(f"ipsec reload: libreswan's addconn is not in {host.execdir}", NOT_FOUND,
                          libreswan_hint(host, "set IPSEC_EXECDIR"))
        host.conf = os.path.abspath(host.conf)

    def check(self) -> None:
        """Raises Failure if ipsec.conf or a file with secrets has an error."""
        check_config(self.host)
        self.config = Config(self.host)
        problems = [problem for problem in secret_files(self.host, secrets_file(self.host, self.config))[1]
                    if problem.fatal and self.host.exists(problem.file)]
        if problems:
            raise Failure(f"{problems[0]}; nothing was changed", ERROR,
                          "ipsec rereadsecrets loads the entries that pluto can read")

    def whack(self, *words: str) -> Ran:
        """Run libreswan's whack, or the built-in one; return its status and output."""
        if self.teller.compiled:
            return self.host.run([self.teller.compiled, "--ctlsocket", self.host.ctlsocket, *words],
                                 timeout=self.timeout)
        try:
            lines = list(pluto_lines(self.host, *words, timeout=self.timeout))
        except Failure as failure:
            return Ran(failure.status, b"", encode(failure.message))
        return Ran(OK, encode("\n".join(lines)), b"")

    def load(self, config: str, names: Sequence[str], *descriptors: int) -> Ran:
        """Load connections of a file into pluto; return addconn's status and output."""
        argv = [self.addconn, "--ctlsocket", self.host.ctlsocket, "--config", config, *names]
        return self.host.run(argv, timeout=CHECK_TIME, pass_fds=descriptors)

    def copies(self, conns: Sequence[Conn]) -> dict[str, Loaded]:
        """Return copies of connections, by the name of the original; one that pluto refuses is missing."""
        sections = [f"conn {quoted_value(COPY_PREFIX + conn.name)}\n\talso={quoted_value(conn.name)}" for conn in conns]
        return self.load_copies(f"include {self.host.conf}\n" + "\n".join(sections) + "\n",
                                [conn.name for conn in conns])

    def loads_without_pool(self, conn: Conn) -> bool:
        """Return whether pluto takes a copy without the address pool; with it, the pools of both may overlap."""
        settings = [f"\t{key}={quoted_value(setting.value)}" for key, setting in conn.settings.items()
                    if not key.endswith("addresspool")]
        lines = [f"conn {quoted_value(COPY_PREFIX + conn.name)}", *settings]
        return len(settings) < len(conn.settings) and bool(self.load_copies("\n".join(lines) + "\n", [conn.name]))

    def load_copies(self, text: str, originals: Sequence[str]) -> dict[str, Loaded]:
        """Load copies from the text of an ipsec.conf, read their status, and delete them."""
        names = [COPY_PREFIX + name for name in originals]
        copy = self.host.memory_file(encode(text))
        try:
            self.load(f"/proc/self/fd/{copy}", names, copy)
            loaded = loaded_connections(self.host, self.timeout)
        finally:
            os.close(copy)
            self.delete_copies(names)
        return {name.removeprefix(COPY_PREFIX): loaded[name] for name in names if name in loaded}

    def delete_copies(self, names: Iterable[str]) -> None:
        """Delete copies from pluto."""
        for name in names:
            self.whack("--name", name, "--delete")

    def plan(self) -> tuple[list[Step], int, list[str]]:
        """Return the steps, the number of unchanged connections, and the connections that only pluto has."""
        self.digests = Digests(self.host)
        loaded = loaded_connections(self.host, self.timeout)
        self.delete_copies([name for name in loaded if name.startswith(COPY_PREFIX)])  # of a reload that was killed
        loaded = {name: connection for name, connection in loaded.items() if not name.startswith(COPY_PREFIX)}
        conns = {conn.name: conn for conn in self.config.conns()}
        steps = [Step("+", name, f"auto={conn.auto}", conn.auto) for name, conn in conns.items()
                 if name not in loaded and conn.auto != "ignore"]
        both = [conn for name, conn in conns.items() if name in loaded]
        unchanged = 0
        for start in range(0, len(both), COPIES_AT_A_TIME):
            group = both[start:start + COPIES_AT_A_TIME]
            copies = self.copies(group)
            for conn in group:
                step = self.compare(conn, loaded[conn.name], copies.get(conn.name))
                if step:
                    steps.append(step)
                else:
                    unchanged += 1
        others = [name for name in loaded if name not in conns]
        if self.prune:
            steps += [Step("-", name, f"not in {self.host.conf}") for name in others]
            others = []
        return steps, unchanged, others

    def compare(self, conn: Conn, loaded: Loaded, copy: Loaded | None) -> Step | None:
        """Return the step that a connection needs which both pluto and the file have, or None."""
        if copy is None and self.loads_without_pool(conn):
            return Step("~", conn.name, "its address pool", conn.auto)
        if copy is None:
            return Step("!", conn.name, "pluto refuses its new definition, so the old one stays; ipsec add shows why")
        difference = changed_fields(loaded.definition(conn, loaded.routed), copy.definition(conn, loaded.routed))
        if difference:
            return Step("~", conn.name, difference, conn.auto)
        if self.digests.changed(conn):
            return Step("~", conn.name, "a setting that pluto's status does not show", conn.auto)
        if keys := self.digests.unknown_keywords(conn):
            return Step("?", conn.name, f"pluto's status does not show {', '.join(keys)}; "
                                        f"after a change there, use: ipsec replace {shell_words([conn.name])}")
        if conn.auto == "start" and not (loaded.is_up or loaded.routed):
            return Step("~", conn.name, "auto=start, and it is down", "start")
        if conn.auto == "ondemand" and not loaded.routed:
            return Step("~", conn.name, "auto=ondemand, and it is not routed", "ondemand")
        return None

    def apply(self, step: Step) -> bool:
        """Do one step; return False, with the reason on stderr, if pluto refuses it."""
        changed = step.mark == "~" and not step.text.startswith("auto=")
        if step.mark == "-" or (changed and leading_version(probe(self.host, self.timeout).version) < (5,)):
            self.whack("--name", step.name, "--delete")  # from 5.0 on, addconn replaces a connection
        ran = Ran(OK, b"", b"")
        if step.mark == "+" or changed:
            ran = self.load(self.host.conf, ["--", step.name] if step.name.startswith("-") else [step.name])
        if not ran.status and step.mark != "-" and step.auto in ("start", "ondemand"):
            words = ["--asynchronous", "--initiate"] if step.auto == "start" else ["--route"]
            ran = self.whack("--name", step.name, *words)
        if ran.status:
            complain(self.host, ran.out + ran.err, 3)
            self.host.warn(f"{step.name}: status {ran.status}")
        return not ran.status

    def run(self, dry: bool) -> int:
        """Reread secrets and certificates, print the plan, and unless `dry` apply it; 1 if pluto refuses a step."""
        self.check()
        if not dry:
            ran = self.whack("--rereadall")
            if ran.status:
                complain(self.host, ran.out + ran.err, 3)
                raise Failure("ipsec reload: pluto can't reread its secrets; nothing else was changed", ran.status)
        steps, unchanged, others = self.plan()
        status = OK
        refused = set()
        for step in steps:
            self.host.print(printable(f"{step.mark} {step.name}: {step.text}"))
            self.host.flush()
            if step.mark == "!" or (step.mark in "+~-" and not dry and not self.apply(step)):
                status = ERROR
                refused.add(step.name)
        if not dry:
            self.digests.keep(conn for conn in self.config.conns() if conn.name not in refused)
        for name in others:
            self.host.print(printable(f"  {name}: not in {self.host.conf}; kept (--prune deletes it)"))
        counts = [f"{sum(step.mark == mark for step in steps)} {word}"
                  for mark, word in (("+", "added"), ("~", "replaced"), ("-", "deleted"), ("!", "refused"),
                                     ("?", "not known")) if mark in "+~-" or any(step.mark == mark for step in steps)]
        self.host.print(f"{', '.join(counts)}, {unchanged} unchanged, {len(others)} kept"
                        f"{'; nothing was done (--dry-run)' if dry else ''}")
        return status


@command("reload", summary="apply ipsec.conf, secrets and certificates to the running pluto",
         options=(CTLSOCKET_OPTION, Opt("--config", "FILE", "the configuration"), TIMEOUT_OPTION, NATIVE_OPTION,
                  DRY_RUN_OPTION, Opt("--prune", None, "also delete connections that the configuration does not have")),
         details="Add new connections, replace changed ones, and reread secrets and certificates. Unchanged tunnels "
                 "are not touched. A configuration or secrets file with an error changes nothing.")
def reload_command(host: Host, args: Args) -> int:
    """`ipsec reload`: 0; 1 if pluto refuses a connection; addconn's status for a file with errors; 33 without pluto."""
    reload = Reload(host, args)
    await_pluto(host, reload.timeout)
    with host.lock(host.rundir):
        return reload.run(args.flag("--dry-run"))


# --- setup: the service -----------------------------------------------------------------------------------------------

SETUP_OPTIONS = (
    Opt("--init", "NAME", f"the init system to use, whatever runs: {', '.join(m.name for m in MANAGERS)}; or none, to "
        "start and stop pluto directly"),
    DRY_RUN_OPTION,
)
START_OPTIONS = (*SETUP_OPTIONS, Opt("--foreground", None, "without init system: prepare everything, then become pluto "
                                     "(the entry point of a container, a supervisor's run script)"))


def control_service(host: Host, args: Args, action: str) -> int:
    """Start, stop, restart or ask for the service, through the init system or without; its status."""
    host.conf = args.value("--config") or host.conf
    dry, foreground = args.flag("--dry-run"), args.flag("--foreground")
    if foreground and action != "start":
        raise Failure(f"ipsec setup {action}: --foreground is for start", USAGE)
    service = None if foreground else find_service(host, args.value("--init"), action)
    if service:
        return act(host, service, action, dry)
    direct = Direct(host, dry)
    if action == "start":
        return direct.start(foreground)
    return {"stop": direct.stop, "restart": direct.restart, "status": direct.status}[action]()


SETUP_DETAILS = """\
The work is passed on to the init system that runs this host (not to one that is merely installed): the line
"Redirecting to:" says how. Its status is ours. Without one, in a container, an initramfs or a chroot, pluto is
started and stopped directly: configuration check, kernel stack, NSS database, NFLOG rules, pluto, and 0 only when
pluto answers.

Status 0 means running, 1 dead with a pid file, 3 not running, 4 unknown."""


@command("setup", "[start|stop|restart|status]", summary="start, stop, restart or query the IKE daemon",
         options=(*START_OPTIONS, *(Opt(f"--{action}", None, f"the same as {action}")
                                    for action in ("start", "stop", "restart", "status"))), details=SETUP_DETAILS)
def setup_command(host: Host, args: Args) -> int:
    """Run `ipsec setup ACTION`; return the service's status, or for `status` without init system LSB's number."""
    words = {"_autostart": "start", "_autostop": "stop"}
    actions = [words.get(word, word) for word in args.operands]
    actions += [action for action in ("start", "stop", "restart", "status") if args.flag(f"--{action}")]
    if len(actions) != 1 or actions[0] not in ("start", "stop", "restart", "status"):
        raise Failure("Usage: {--start|--stop|--restart|--status}", USAGE)
    return control_service(host, args, actions[0])


@command("start _autostart", "[CONN...]", summary="start the IKE daemon; with CONN, add and bring up connections",
         options=(*START_OPTIONS, *(option for option in (*CONNECTION_OPTIONS, *UP_OPTIONS)
                                    if option.key != "--dry-run")),
         details=SETUP_DETAILS)
def start_command(host: Host, args: Args) -> int:
    """`ipsec start`: as setup start; `ipsec start CONN...`: the status of the first connection that fails."""
    return pluto_start(host, args) if args.operands else control_service(host, args, "start")


@command("stop _autostop", summary="stop the IKE daemon", options=SETUP_OPTIONS, details=SETUP_DETAILS)
def stop_command(host: Host, args: Args) -> int:
    """`ipsec stop`: as setup stop."""
    return control_service(host, args, "stop")


@command("restart", summary="restart the IKE daemon", options=SETUP_OPTIONS, details=SETUP_DETAILS)
def restart_command(host: Host, args: Args) -> int:
    """`ipsec restart`: as setup restart."""
    return control_service(host, args, "restart")


@command("_stackmanager", "start|stop|restart", summary="load, or give back, the kernel's IPsec stack",
         options=(Opt("--xfrm --netkey", None, "whatever protostack= says"),), hidden=True)
def stackmanager_command(host: Host, args: Args) -> int:
    """`ipsec _stackmanager ACTION`: 0, 1 when it can't be done, 4 when not root."""
    action = args.operands[0]
    if action not in ("start", "stop", "restart"):
        raise Failure(f"unknown action {quote(action)}", ERROR, "start, stop or restart")
    if not host.superuser:
        raise Failure("permission denied (must be superuser)", LSB_NO_RIGHT)
    with host.lock(host.rundir):
        config = check_config(host) if action != "stop" else None
        if action != "start" and (signs := stack_stop(host)):
            raise may_run(signs)
        if config:
            stack_start(host, config, "xfrm" if args.flag("--xfrm") else "")
    return OK


PLUTORUN_PAUSE = 10.0  # seconds before a pluto that failed is started again
PLUTORUN_ENDS = {
    0: "pluto killed by SIGTERM, terminating without restart",
    10: "pluto apparently already running (?!?), giving up",
    137: "pluto killed by SIGKILL, terminating without restart or unlock",
}


@command("_plutorun", "[OPTION...]", summary="run pluto with these options, and start it again when it fails",
         options=None, hidden=True)
def plutorun_command(host: Host, args: Args) -> int:
    """`ipsec _plutorun`: 0 when pluto was told to end, 1 when it failed or one runs already."""
    def say(text: str) -> None:
        host.warn(text)
        syslog.openlog("ipsec__plutorun", 0, syslog.LOG_AUTHPRIV)
        syslog.syslog(syslog.LOG_ERR, text)

    syslog = need("syslog", "_plutorun's log")
    check_nss(host)
    if pid := find_pluto(host):
        say(f"pluto appears to be running already (pid {pid}), will not start another")
        return ERROR
    if check_not_running(host):
        host.remove(pid_file(host))
    say("Starting Pluto")
    status = host.call([os.path.join(host.execdir, "pluto"), *args.operands], quiet=True)
    if status in PLUTORUN_ENDS:
        say(PLUTORUN_ENDS[status])
        if status != 10:
            host.remove(pid_file(host))
        return OK
    by_signal = f" (signal {status - SIGNALLED})" if status > SIGNALLED else ""
    say(f"!pluto failure!:  exited with error status {status}{by_signal}")
    say("restarting IPsec after pause...")
    host.flush()
    if os.fork() == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            time.sleep(PLUTORUN_PAUSE)
            setup_command(host, COMMANDS["setup"].parse(["start"]))
        except Failure as failure:
            say(str(failure))
        finally:
            os._exit(ERROR)
    return ERROR


# --- NSS -------------------------------------------------------------------------------------------------------------

NSSDIR_OPTION = Opt("--nssdir -d", "DIR", "the directory of the NSS database (default: that of the installed "
                                          "release)")
PASSWORD_OPTION = Opt("--password-file", "FILE", "the first line of FILE is the database's password (default: the "
                                                 "file nsspassword)")
CONFIGDIR_OPTION = Opt("--configdir", "DIR", "same as --nssdir, obsolete")
NSS_OPTIONS = (NSSDIR_OPTION, CONFIGDIR_OPTION, PASSWORD_OPTION)


def nss_database(host: Host, args: Args, name: str, password_option: str = "--password-file") -> NssDatabase:
    """Return the database that the options of the command `name` select.  Raises Failure."""
    if args.flag("--configdir"):
        host.warn(f"{name} warning: --configdir is obsoleted, use --nssdir")
    file = args.value(password_option)
    directory = args.value("--nssdir") or args.value("--configdir")
    if not directory and (args.flag("--nssdir") or args.flag("--configdir")):
        raise Failure(f"ipsec {name}: --nssdir needs a value: DIR", USAGE)
    return NssDatabase(host, directory, first_line(host, file) if file else None)


@command("initnss", summary="create the NSS database", options=NSS_OPTIONS,
         details="The database has no password unless --password-file gives one. The exit status is 42 if a database "
         "already exists.")
def initnss_command(host: Host, args: Args) -> int:
    """`ipsec initnss`: return 0.  Raises Failure: 1 if the directory can't be used, 4 if the database can't
    be made, 42 if a database exists."""
    base = nss_database(host, args, "initnss")
    base.make_directory()
    with base.lock():
        if base.has(*NSS_FILES[1:], *DBM_FILES):
            raise Failure(f"NSS database already initialised - aborted\nTo wipe the old NSS database, issue: "
                          f"rm {base.directory}/*.db", NSS_EXISTS)
        host.print("Initializing NSS database\n")
        create_database(base, (base.password or "") if args.flag("--password-file") else "")
    return OK


@command("checknss", summary="create the NSS database if there is none, move or migrate an old one", options=(
    *NSS_OPTIONS,
    Opt("--settrusts", None, "trust its CAs for IPsec (CT,,), except those that are distrusted")))
def checknss_command(host: Host, args: Args) -> int:
    """`ipsec checknss`: return 0.  Raises Failure: 1 if the directory can't be used, 4 if the database is not
    sound."""
    base = nss_database(host, args, "checknss")
    check_database(base)
    if args.flag("--settrusts") and (base.writable() or base.wrong_trusts()):
        with base.lock():
            for nickname in base.set_trusts():
                host.print(f"correcting trust bits for {printable(nickname)}")
    return OK


@command("import", "FILE...", summary="import a PKCS#12 file, or PEM files of a certificate and its key", options=(
    NSSDIR_OPTION, CONFIGDIR_OPTION,
    Opt("--password-file", "FILE", "the first line of FILE is the password of the PKCS#12 file"),
    Opt("--nss-password-file", "FILE", "the first line of FILE is the database's password (default: the file "
                                       "nsspassword)"),
    Opt("--name", "NICKNAME", "the nickname for the certificate with the key")),
    details="The CAs in the file are trusted for IPsec. If anything fails, the database is unchanged.")
def import_command(host: Host, args: Args) -> int:
    """`ipsec import FILE...`: return 0.  Raises Failure with the statuses of ipsec_import(8)."""
    base = nss_database(host, args, "import", "--nss-password-file")
    file = args.value("--password-file")

    def password() -> str:
        if file:
            return first_line(host, file)
        try:
            return host.ask(f"Password of {quote(args.operands[0])}: ", secret=True,
                            hint="give --password-file FILE")
        except Failure as failure:
            raise Failure(failure.message, IMPORT_PASSWORD, failure.hint) from None

    for nickname in import_file(base, args.operands, password, args.value("--name")):
        host.print(f"imported {quote(nickname)}")
        if pluto_nickname(nickname) != nickname:
            host.warn(f"import: in ipsec.conf write leftcert={quote(pluto_nickname(nickname))}, because NSS takes "
                      "the part of a nickname before a colon for the name of a token")
    return OK


# The options of NSS's tools for the directory and for a file with the database's password
def nss_tool_command(name: str, directory: str, secret: str) -> None:
    """Register a tool of NSS as a command that becomes this tool, with the directory and, if nsspassword has
    one, the password.  `directory` and `secret` are the tool's options for them; `secret` is empty if it has
    none."""

    @command(name, "ARG...", options=None, summary=f"run NSS's {name} on the database",
             details="The arguments are the tool's own, without the directory.")
    def run_tool(host: Host, args: Args) -> int:
        words = args.operands
        if words[:1] in ([], ["--help"]):
            host.print(describe(COMMANDS[name]))
            return OK if words else ERROR
        refused = next((word for word in words if word in ("-d", "--nssdir", "-dbdir", "--dry-run")), "")
        if refused:
            raise Failure(f"ipsec {name}: {refused} is not accepted", USAGE, f"ipsec --nssdir DIR {name} …")
        base = NssDatabase(host)
        path = host.resolve(name, nss_package(host))
        argv = [directory, f"sql:{host.path(base.directory)}"]
        own = {secret, "--empty-password", "-K" if name == "pk12util" else ""}
        if secret and base.password is not None and not own & set(words):
            fd = host.memory_file(base.secret())
            os.set_inheritable(fd, True)
            argv += [secret, f"/proc/self/fd/{fd}"]
        host.exec(path, [*argv, *words])


nss_tool_command("certutil", "-d", "-f")
nss_tool_command("crlutil", "-d", "-f")
nss_tool_command("modutil", "-dbdir", "")
nss_tool_command("pk12util", "-d", "-k")
nss_tool_command("vfychain", "-d", "-f")


@command("showhostkey", rescue=True, summary="show the public keys of this host", fallback=True, options=(
    NSSDIR_OPTION, Opt("--list --dump", None, "list the keys"),
    Opt("--left", None, "show the key as a leftrsasigkey= (or leftecdsakey=) line"),
    Opt("--right", None, "show the key as a rightrsasigkey= (or rightecdsakey=) line"),
    Opt("--ipseckey", None, "show the key as an IPSECKEY record for the DNS"),
    Opt("--pem", None, "show the key as PEM"),
    Opt("--pubkey", None, "with --left, --right or --ipseckey: use the DER public key"),
    Opt("--gateway", "ADDRESS", "the gateway of the record"),
    Opt("--precedence", "NUMBER", "the precedence of the record (default 10)"),
    Opt("--ckaid", "HEX", "the key whose CKAID starts with HEX"),
    Opt("--rsaid", "ID", "the RSA key with this keyid")))
def showhostkey_command(host: Host, args: Args) -> int:
    """`ipsec showhostkey` where libreswan's own is not installed: return 0.  Raises Failure: 20 if there is
    no such key."""
    keys = nss_database(host, args, "showhostkey").keys()
    if args.flag("--list"):
        for place, key in enumerate(keys, 1):
            host.print(f"<{place:2}> {key.kind} keyid: {key_texts(key)[0]} ckaid: {key.ckaid.hex()}")
        return OK
    modes = [mode for mode in ("--left", "--right", "--ipseckey", "--pem") if args.flag(mode)]
    if len(modes) != 1:
        raise Failure("ipsec showhostkey: one of --list, --left, --right, --ipseckey and --pem is needed", USAGE)
    key = chosen_key(keys, args.value("--ckaid"), args.value("--rsaid"))
    if modes[0] == "--pem":
        spki = key_texts(key)[2]
        lines = [spki[i:i + 64] for i in range(0, len(spki), 64)]
        host.print("\n".join(("-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----")))
    elif modes[0] == "--ipseckey":
        host.print(ipseckey_record(key, args.value("--gateway"), args.value("--precedence", "10"),
                                   args.flag("--pubkey")))
    else:
        host.print(conf_lines(key, modes[0][2:], args.flag("--pubkey")))
    return OK


def chosen_key(keys: Sequence[HostKey], ckaid: str, rsaid: str) -> HostKey:
    """Return the first key whose CKAID starts with `ckaid`, or the RSA key with the keyid `rsaid`.  Raises
    Failure."""
    if not ckaid and not rsaid:
        raise Failure("ipsec showhostkey: --ckaid or --rsaid is needed", USAGE, "ipsec showhostkey --list")
    wanted = ckaid.lower().replace(":", "")
    for key in keys:
        if wanted and key.ckaid.hex().startswith(wanted):
            return key
        if rsaid and key.kind == "RSA" and key_texts(key)[0] == rsaid:
            return key
    raise Failure(f"ipsec showhostkey: no such key: {quote(ckaid or rsaid)}", NO_KEY, "ipsec showhostkey --list")


def ipseckey_record(key: HostKey, gateway: str, precedence: str, as_spki: bool) -> str:
    """Return a key as an IPSECKEY record of the DNS (RFC 4025); `as_spki`: as DER public key."""
    _, text, spki, algorithm = key_texts(key)
    kind = 2 if ":" in gateway else int(bool(gateway))  # of gateway: 0 none, 1 IPv4, 2 IPv6
    return (f"{os.uname().nodename}.    IN    IPSECKEY  {precedence} {kind} {4 if as_spki else algorithm} "
            f"{gateway or '.'} {spki if as_spki else text}")


def conf_lines(key: HostKey, side: str, as_spki: bool) -> str:
    """Return the line of ipsec.conf for a key of the side `left` or `right`; `as_spki`: as DER public key."""
    keyid, text, spki, _ = key_texts(key)
    if as_spki:
        return f"\t{side}pubkey={spki}"
    kind, word = ("rsa", "rsasigkey") if key.kind == "RSA" else ("ecdsa", "ecdsakey")
    return f"\t# {kind}key {keyid}\n\t{side}{word}=0s{text}"


CURVES = ("secp256r1", "secp384r1", "secp521r1")
KEY_OPTIONS = (*NSS_OPTIONS, Opt("--password", "PASSWORD", "same; visible to all users, avoid"),
               Opt("--seeddev", "FILE", "take more random bytes from FILE"),
               Opt("--seedbits", "NUMBER", "accepted and ignored"),
               Opt("--verbose", None, "accepted and ignored"),
               Opt("--quiet", None, "don't print the CKAID"),
               Opt("--hostname", "NAME", "accepted and ignored"))


def make_key(host: Host, args: Args, name: str, kind: str, size: str) -> int:
    """Make a host key, and print its CKAID as rsasigkey(8) does; return 0.  Raises Failure."""
    base = nss_database(host, args, name)
    if args.flag("--password"):
        host.warn(f"{name}: a password on the command line can be seen by others; use --password-file")
        base.password = args.value("--password")
    if kind == "RSA" and (not size.isascii() or not size.isdigit() or not 2192 <= int(size) <= 16384):
        raise Failure(f"ipsec {name}: {quote(size)} is not a valid RSA key size", USAGE, "2192 to 16384 bits")
    if kind == "RSA" and int(size) % 16:
        raise Failure(f"ipsec {name}: the RSA key size {size} is not a multiple of 16", ERROR,
                      f"try {int(size) // 16 * 16} or {int(size) // 16 * 16 + 16}")
    if kind == "ECDSA" and size not in CURVES:
        raise Failure(f"ipsec {name}: unknown curve {quote(size)}", USAGE, ", ".join(CURVES))
    seed = os.urandom(64)
    if args.flag("--seeddev"):
        try:
            fd = os.open(host.path(args.value("--seeddev")), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            seed += os.read(fd, 64)
            os.close(fd)
        except OSError as error:
            raise Failure(f"{args.value('--seeddev')}: {error.strerror}") from None
    ckaid = generate_key(base, kind, size, seed)
    if not args.flag("--quiet"):
        sys.stderr.write(f"Generated {kind} key pair with CKAID {ckaid} was stored in the NSS database\nThe public key "
                         f"can be displayed using: ipsec showhostkey --left --ckaid {ckaid}\n")
    return OK


@command("newhostkey", summary="make a key for this host in the NSS database", options=(
    *KEY_OPTIONS, Opt("--keytype", "rsa|ecdsa", "the kind of key (default rsa)"),
    Opt("--bits", "NUMBER", "the size of an RSA key (default 3072)"),
    Opt("--curve", "NAME", f"the curve of an ECDSA key (default {CURVES[0]})")))
def newhostkey_command(host: Host, args: Args) -> int:
    """`ipsec newhostkey`: return 0.  Raises Failure: 1 if the size is not a multiple of 16, 2 for a usage
    error, 4 if certutil fails."""
    kind = args.value("--keytype", "rsa")
    if kind not in ("rsa", "ecdsa"):
        raise Failure(f"ipsec newhostkey: unknown key type {quote(kind)}", USAGE, "rsa or ecdsa")
    wrong = "--curve" if kind == "rsa" else "--bits"
    if args.flag(wrong):
        raise Failure(f"ipsec newhostkey: {wrong} and --keytype {kind} are mutually exclusive", USAGE)
    size = args.value("--bits", "3072") if kind == "rsa" else args.value("--curve", CURVES[0])
    return make_key(host, args, "newhostkey", kind.upper(), size)


@command("rsasigkey", "[BITS]", summary="make an RSA key in the NSS database", options=KEY_OPTIONS, fallback=True)
def rsasigkey_command(host: Host, args: Args) -> int:
    """`ipsec rsasigkey [BITS]` where libreswan's own is not installed."""
    return make_key(host, args, "rsasigkey", "RSA", args.operands[0] if args.operands else "3072")


@command("ecdsasigkey", "[CURVE]", summary="make an ECDSA key in the NSS database", options=KEY_OPTIONS,
         fallback=True)
def ecdsasigkey_command(host: Host, args: Args) -> int:
    """`ipsec ecdsasigkey [CURVE]` where libreswan's own is not installed."""
    return make_key(host, args, "ecdsasigkey", "ECDSA", args.operands[0] if args.operands else CURVES[0])


@command("nsslist", summary="list the certificates in the NSS database, with their expiry and trust",
         rescue=True, options=(
    NSSDIR_OPTION, PASSWORD_OPTION, Opt("--json", None, "print JSON, see ipsec_nsslist(8)"),
    Opt("--days", "NUMBER", f"mark certificates that expire within NUMBER days (default {SOON})")))
def nsslist_command(host: Host, args: Args) -> int:
    """`ipsec nsslist`: return 0.  Raises Failure: 4 if the database can't be read."""
    base = nss_database(host, args, "nsslist")
    days_text = args.value("--days", str(SOON))
    if not days_text.isdecimal():
        raise Failure(f"ipsec nsslist: --days {quote(days_text)}: not a number", USAGE)
    found = list(certificate_data(base, int(days_text)))
    if args.flag("--json"):
        json: Any = need("json", "--json")
        host.print(json.dumps(found, indent=1, ensure_ascii=True))
        return OK
    for entry in found:
        marks = [word for word in ("key" if entry["has_key"] else "", "CA" if entry["is_ca"] else "") if word]
        mark = {"expired": " EXPIRED", "expiring": " EXPIRES SOON"}.get(entry["state"], "")
        host.print(f"{printable(entry['nickname']) or '(no nickname)'}\n"
                   f"    subject  {printable(entry['subject'] or '(unreadable)')}\n"
                   f"    issuer   {printable(entry['issuer'] or '(unreadable)')}\n"
                   f"    expires  {(entry['expires'] or '(unreadable)')[:10]}{mark}\n"
                   f"    trust    {entry['trust']}{' (' + ', '.join(marks) + ')' if marks else ''}")
    return OK


# --- capture, _updown ------------------------------------------------------------------------------------------------


@command("checknflog nflog", summary="copy IPsec traffic to the NFLOG groups that the configuration asks for",
         details="Makes the firewall rules for nflog-all= and for nflog= of connections, replaces those of another "
         "group and removes those that are no longer wanted: through iptables and ip6tables, or nf_tables on a host "
         "without them. Rules that can't be made are a complaint on standard error, and the status is 0: the service "
         "runs this command before pluto, and pluto must start.",
         options=(Opt("--strict", None, "exit with status 1 if some rules can't be made"),))
def checknflog_command(host: Host, args: Args) -> int:
    """Run `ipsec checknflog`; return OK, or ERROR with --strict if some rules are not made."""
    made = check_nflog(host)
    return OK if made or not args.flag("--strict") else ERROR


@command("stopnflog", summary="stop copying IPsec traffic: remove the rules that checknflog made",
         details="It removes all of them, whatever the configuration says now.")
def stopnflog_command(host: Host, args: Args) -> int:
    """Run `ipsec stopnflog`; return OK.  Raises Failure, and nothing is changed then."""
    stop_nflog(host)
    return OK


@command("sniff", "[ARG...]", options=None, summary="watch IPsec traffic in clear: tcpdump on the NFLOG groups",
         details="The arguments are tcpdump's. The groups are those of nflog-all= and nflog=; ipsec checknflog makes "
         "the rules that fill them.")
def sniff_command(host: Host, args: Args) -> int:
    """Run `ipsec sniff [ARG...]`: replace this process by tcpdump.  Raises Failure."""
    if args.operands in (["--help"], ["-h"]):
        host.print(describe(COMMANDS["sniff"]))
        return OK
    config = Config(host)
    if not config.files:
        config.check()
    group_of_all, conns = nflog_groups(config)
    wanted = ",".join(str(group) for group in dict.fromkeys((group_of_all, *(group for _, group in conns))) if group)
    if not wanted:
        raise Failure("ipsec sniff: no NFLOG group is configured", ERROR,
                      f"put nflog-all=50 into config setup of {host.conf}, then: ipsec checknflog")
    host.exec(host.resolve("tcpdump", "install tcpdump"), ["-n", "-i", f"nflog:{wanted}", *args.operands])


@command("_updown _updown.xfrm _updown.netkey", "[custom]", hidden=True,
         summary="what pluto runs when a connection comes up or goes down",
         options=(Opt("--route", "yes|no", "yes: always route to the peer's network; no: only where it is needed"),
                  Opt("--iproute", "ARGS", "more words for the route, as for ip route: `table 100 onlink`")))
def updown_command(host: Host, args: Args) -> int:
    """Run `ipsec _updown`; return the status of the last step, 1 for an unknown verb or address family.

    Raises Failure.
    """
    stack = host.env.get("PLUTO_STACK", "")
    if stack.lower() not in ("", "xfrm", "netkey"):
        raise Failure(f"_updown: no support for the IPsec stack {quote(stack)}", 3, "only Linux's XFRM is supported")
    updown = Updown(host, Routing(host), args.value("--route"), args.value("--iproute"))
    return updown.run(host.env.get("PLUTO_VERB", ""))


# --- manual and completion -------------------------------------------------------------------------------------------

# The macros of mdoc(7) that the pages use: the text around a macro's arguments, and the macros that take the whole rest
MDOC_INLINE = {"Ar": "", "Cm": "", "Dv": "", "Ev": "", "Fl": "-", "Ic": "", "Li": "", "Nm": "", "No": "", "Pa": "",
               "Va": "", "Xr": "", "Ql": "\"", "Op": "[]", "Pq": "()", "Ns": "", "Oo": "", "Oc": ""}
MDOC_CLOSING = (".", ",", ":", ";", ")", "]", "?", "!")
MANUAL_WIDTH = 78


def unescaped(text: str) -> str:
    """Text of a manual page without the escapes that our pages use."""
    import re
    return re.sub(r"\\(&|f[A-Z]|-|e|\(dq)", lambda found: {"-": "-", "e": "\\", "(dq": '"'}.get(found[1], ""), text)


def mdoc_text(line: str, name: str) -> str:
    """The text of a line of mdoc(7); `name` is what a lone .Nm stands for."""
    import re
    words = [unescaped(quoted or bare) for quoted, bare in re.findall(r'"([^"]*)"|([^\s"]+)', line)]
    pieces: list[str] = []
    glued = True

    def put(text: str) -> None:
        nonlocal glued
        if pieces and (glued or text in MDOC_CLOSING):
            pieces[-1] += text
        else:
            pieces.append(text)
        glued = text in ("(", "[")

    while words:
        macro = words.pop(0)
        if macro not in MDOC_INLINE:
            put(macro)
            continue
        if macro in ("Ns", "Oo", "Oc"):
            glued = glued or macro != "Oo"
            if macro != "Ns":
                put("[" if macro == "Oo" else "]")
            continue
        around = MDOC_INLINE[macro]
        least = 2 if macro == "Xr" else len(line) if around in ("[]", "()") else 1
        taken: list[str] = []
        while words and (len(taken) < least or words[0] not in (*MDOC_INLINE, *MDOC_CLOSING)):
            taken.append(words.pop(0))
            if least == 1 and taken[-1] in MDOC_INLINE:
                words.insert(0, taken.pop())
                break
        if around in ("[]", "()"):
            tail: list[str] = []
            while taken and taken[-1] in MDOC_CLOSING:
                tail.insert(0, taken.pop())
            inner = " ".join(f'"{word}"' if " " in word else word for word in taken)
            put(around[0] + mdoc_text(inner, name) + around[1])
            words = tail
        elif macro == "Xr":
            put(f"{taken[0]}({taken[1]})")
        elif macro == "Ql":
            put(f'"{" ".join(taken)}"')
        elif macro == "Fl":
            while words and words[0] not in MDOC_INLINE and (words[0] != "." or len(words) > 1):
                taken.append(words.pop(0))
            for flag in taken:
                put(flag if flag in (*MDOC_CLOSING, "|") else f"-{flag}")
        else:
            for word in taken or ["file ..." if macro == "Ar" else name]:
                put(word)
    return " ".join(pieces)


def manual_text(page: str) -> str:
    """A page of ours, in mdoc(7), as text of MANUAL_WIDTH columns."""
    import textwrap
    lines: list[str] = []
    words: list[str] = []  # of the paragraph that is being read
    name = section = ""
    lists: list[str] = []
    term = literal = False

    def flush(end: str = "") -> None:
        nonlocal term
        indent = 8 * len(lists) + 8 - 8 * term
        if words:
            hang = 8 if section == "SYNOPSIS" else 0
            lines.extend(textwrap.wrap(" ".join(words), MANUAL_WIDTH, initial_indent=" " * indent,
                                       subsequent_indent=" " * (indent + hang), break_on_hyphens=False,
                                       break_long_words=False))
            words.clear()
        term = False
        if end == "\n" and lines and lines[-1]:
            lines.append("")

    for line in page.splitlines():
        macro, _, rest = line[1:].partition(" ") if line.startswith(".") else ("", "", line)
        if literal and macro != "Ed":
            lines.append(f"{'':16}{unescaped(line)}".rstrip())
        elif not macro:
            words.append(unescaped(rest))
        elif macro == "Dt":
            lines += [rest.replace(" ", "(") + ")", ""]
        elif macro in ("Sh", "Ss"):
            flush("\n")
            section = rest if macro == "Sh" else section
            lines.append(rest if macro == "Sh" else f"   {rest}")
        elif macro == "Pp":
            flush("\n")
        elif macro == "Nd":
            words.append(f"- {rest}")
        elif macro == "Bl":
            flush("" if "-compact" in rest else "\n")
            lists.append(rest)
        elif macro == "It":
            flush("" if "-compact" in lists[-1] else "\n")
            term = True
            words.append(mdoc_text(rest, name))
            flush()
        elif macro == "El":
            flush("\n")
            lists.pop()
        elif macro in ("Bd", "Ed"):
            flush("\n")
            literal = macro == "Bd"
        elif macro == "Dl":
            flush()
            lines.append(" " * (16 + 8 * len(lists)) + mdoc_text(rest, name))
        elif macro in MDOC_INLINE:
            if macro == "Nm":
                name = name or rest.partition(" ")[0]
                if section == "SYNOPSIS":
                    flush()
            words.append(mdoc_text(line[1:], name))
    flush()
    return "\n".join(lines).rstrip() + "\n"


def page_of(name: str, entry: Command | None) -> bytes:
    """Return the page of a command: its own, or else the first whose synopsis names the command.  Raises OSError."""
    load_rest()  # the search goes through all commands, whichever the archive has loaded
    names = {name, *([entry.name, *entry.aliases] if entry else [])}
    for owner in dict.fromkeys(([entry.name] if entry else []) + [each.name for each in COMMANDS.values()]):
        try:
            page = read_packed(f"man/ipsec_{owner}.8")
        except OSError:
            continue
        synopsis = [line.split() for line in decode(page).splitlines() if line.startswith(".Nm ipsec Cm ")]
        if owner in names or any(not names.isdisjoint(words) for words in synopsis):
            return page
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), f"ipsec_{name}.8")


@command("man", "[COMMAND]", rescue=True, summary="show the manual page of ipsec or of one of its commands",
         details="The pages are part of this program. On a terminal man or mandoc shows them where it is installed; "
                 "otherwise they are plain text.")
def man_command(host: Host, args: Args) -> int:
    """`ipsec man [COMMAND]`: 0; 1 for a command that is not there."""
    name = args.operands[0] if args.operands else ""
    entry = find_command(name) if name else None
    if name not in ("", "ipsec") and entry is None and not program_of(host, name):
        raise unknown_command(host, name)
    try:
        page = read_packed("man/ipsec.8") if name in ("", "ipsec") else page_of(name, entry)
    except OSError:
        if entry is None:
            raise Failure(f"ipsec man: {name} is a program of libreswan with a page of its own", ERROR,
                          f"man ipsec_{name}") from None
        host.print(f"{describe(entry)}\n\nThis command has no page of its own; see also ipsec man.")
        return OK
    viewer = next((path for path in map(host.which, ("man", "mandoc"))
                   if path and os.path.basename(host.realpath(path)) not in ("busybox", "toybox")), None)
    if viewer and is_terminal(sys.stdout):
        try:
            os.dup2(host.memory_file(page), 0)
            os.lseek(0, 0, os.SEEK_SET)
        except Missing:
            viewer = None
        else:
            host.exec(viewer, ["-l", "-"] if viewer.endswith("/man") else ["-a"], env=host.env)
    host.print(manual_text(decode(page)), end="")
    return OK


# The functions that complete a line in a shell: they ask ipsec for the possible words, and fall back to file names
COMPLETIONS = {
    "bash": """\
_ipsec() {
    mapfile -t COMPREPLY < <("$1" completion --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
}
complete -o default -F _ipsec ipsec ipsec.pyz
""",
    "zsh": """\
#compdef ipsec ipsec.pyz
_ipsec() {
    local -a found
    found=("${(@f)$("${(Q)words[1]}" completion --words -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found[1] ]]; then compadd -a found; else _files; fi
}
if [[ $funcstack[1] == _ipsec ]]; then _ipsec; else compdef _ipsec ipsec ipsec.pyz; fi
""",
    "fish": """\
function __ipsec_words
    set -l words (commandline -opc)
    set -l last (string unescape -- (commandline -ct)); or set last (commandline -ct)
    set -l found ($words[1] completion --words -- $words[2..-1] "$last" 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c ipsec -f -a '(__ipsec_words)'
complete -c ipsec.pyz -f -a '(__ipsec_words)'
"""}


def completions(host: Host, words: Sequence[str]) -> list[str]:
    """The words that may stand in the place of the last of these, which follow `ipsec` on its command line; empty
    where a file name may, or nothing is known.  Never fails."""
    *before, current = words or [""]
    leaders = {name: option for option in (*GLOBAL_OPTIONS, *SHARED_OPTIONS) for name in option.names.split()}
    place = 0
    while place < len(before) and before[place].partition("=")[0] in leaders:
        metavar = leaders[before[place].partition("=")[0]].metavar or "["
        place += 1 if "=" in before[place] or metavar.startswith("[") else 2
    if place > len(before):
        return []  # the value of a global option
    if place == len(before):
        found = [*leaders, "--help", "--version", "--directory"] if current.startswith("-") else command_names(host)
        return sorted(word for word in found if word.startswith(current))
    name, *rest = before[place:]
    entry = find_command(name)
    if entry is None:
        return []
    known = {word: option for option in entry.options or () for word in option.names.split()}
    last = known.get(rest[-1]) if rest else None
    option, equals, value = current.partition("=")
    if last and last.metavar and not last.metavar.startswith("["):
        kind, start = last.metavar, ""
    elif equals and option in known:
        kind, start, current = (known[option].metavar or "").strip("[]"), f"{option}=", value
    elif current.startswith("-") and "--" not in rest:
        return sorted(word for word in (*known, "--help") if word.startswith(current))
    else:
        kind, start = entry.operands.replace("...", "").strip("[]"), ""
    if kind.startswith("CONN"):
        found = [conn.name for conn in Config(host).conns()]
    elif kind == "COMMAND":
        found = command_names(host)
    elif kind == "CHECK":
        found = list(CHECKS)
    elif kind.startswith("SHELL"):
        found = list(COMPLETIONS)
    else:
        found = kind.split("|") if "|" in kind else []
    return sorted({start + word for word in found if word.startswith(current) and "\n" not in word})


def line_completions(host: Host, line: str) -> list[str]:
    """completions() for a command line as bash has it up to the cursor, quoted as they can stand in it."""
    shlex = need("shlex", "completion")
    words: list[str] = []
    quoted = ""
    for quoted in ("", "'", '"'):  # one of them may be open
        try:
            words = shlex.split(line.rstrip("\\") + quoted)
            break
        except ValueError:
            continue
    if line[-1:].isspace() and not quoted:
        words.append("")
    found = completions(host, words[1:])
    if quoted:
        return found
    # to bash what follows one of these is a word of its own
    done = max(words[-1].rfind(char) for char in "=:") + 1 if words else 0
    safe = "-_./,+@%:="
    return ["".join(c if c.isalnum() or c in safe else f"\\{c}" for c in word[done:]) for word in found]


@command("completion", "[SHELL] [WORD...]", summary="print what makes bash, zsh or fish complete ipsec's words",
         rescue=True, options=(
    Opt("--line", "LINE", "the words that may follow a line of bash, one a line"),
    Opt("--words", None, "the words that may stand in the place of the last WORD, one a line")),
         details="For bash: eval \"$(ipsec completion bash)\" in ~/.bashrc. For zsh: the same in ~/.zshrc after "
         "compinit, or the output as a file _ipsec in a directory of $fpath. For fish: ipsec completion fish | source."
         "\n\n"
         "Commands, options and the names of connections are completed, from this program and ipsec.conf.")
def completion_command(host: Host, args: Args) -> int:
    """`ipsec completion SHELL`: 0; 2 for a shell that we don't know."""
    if args.flag("--line") or args.flag("--words"):
        line = args.value("--line")
        found = line_completions(host, line) if args.flag("--line") else completions(host, args.operands)
        host.print("".join(f"{word}\n" for word in found), end="")
        return OK
    shell = args.operands[0] if len(args.operands) == 1 else ""
    if shell not in COMPLETIONS:
        raise Failure(f"ipsec completion: {quote(shell) if shell else 'SHELL'} is not one of {', '.join(COMPLETIONS)}",
                      USAGE, suggest(shell, COMPLETIONS))
    host.print(COMPLETIONS[shell], end="")
    return OK


# =====================================================================================================================
# 12. Dispatch
#
# Global options, the registry, then programs in the exec directory, then a clear error; what ipsec prints about itself;
# and the one place where failures, closed pipes and Ctrl-C become an exit status.  main() is the program.  Used by
# the archive's __main__.py.
# =====================================================================================================================


# --- ipsec itself: help, version, directory --------------------------------------------------------------------------


# The groups of `ipsec --help` on a terminal; the rest is "for programs and old habits"
HELP_GROUPS = (
    ("tunnels", "up down tunnels why reload add delete replace ondemand route unroute redirect show"),
    ("diagnose", "verify why barf look status trafficstatus metrics redact"),
    ("keys and certificates", "import nsslist initnss checknss newhostkey showhostkey rereadsecrets rereadcerts"),
    ("service", "start stop restart setup"),
    ("capture", "checknflog stopnflog sniff"),
    ("help", "help man completion version"),
)


def command_columns(names: Sequence[str]) -> Iterator[str]:
    """Yield the names in two columns, as libreswan's `ipsec --help` has them: Open vSwitch and others search there."""
    for place in range(0, len(names), 2):
        left, right = names[place], names[place + 1] if place + 1 < len(names) else ""
        tabs = "\t" if len(left) >= 16 else "\t\t" if len(left) >= 8 else "\t\t\t"
        yield f"\t{left}{tabs}{right}" if right else f"\t{left}"


def grouped_commands(names: Sequence[str]) -> Iterator[str]:
    """Yield the commands for a person: by group, with one line each; the others by name only."""
    import textwrap
    left = dict.fromkeys(names)
    for title, words in HELP_GROUPS:
        yield f"{title}:"
        for name in words.split():
            entry = COMMANDS.get(name)
            if entry and name in names:
                left.pop(name, None)
                yield f"  {name:<14} {entry.summary}"
        yield ""
    yield "for programs and old habits:"
    yield from textwrap.wrap(" ".join(left), 78, initial_indent="  ", subsequent_indent="  ")


@command("help -h", "[COMMAND]", rescue=True, summary="list the commands, or explain one")
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
    lines = grouped_commands(names) if is_terminal(sys.stdout) else command_columns(names)
    host.print("\n".join(lines))
    host.print("\noptions before the command:")
    for option in GLOBAL_OPTIONS:
        host.print(option_help(option))
    host.print(f"\nSee also: man ipsec <command> or ipsec <command> --help\n{SEE_ALSO}\n{version_line(host)}\n"
               f"ipsec.pyz {VERSION}")
    return OK


def usage_text(host: Host) -> str:
    """What `ipsec` without arguments says."""
    return ("Usage: ipsec {command} [argument] ...\n"
            "Use --help for a list of commands, or see the ipsec(8) manual page.\n"
            f"Most commands have their own manual pages, e.g. ipsec_auto(8).\n{SEE_ALSO}\n{version_line(host)}")


@command("version versioncode", rescue=True, summary="print the versions of libreswan and of the kernel's IPsec stack",
         options=(Opt("--verbose", None, "also of this program, its commit, what it embeds, and the interpreter"),))
def version_command(host: Host, args: Args) -> int:
    """`ipsec version`: always 0."""
    host.print(version_line(host))
    if args.flag("--verbose"):
        try:
            about = decode(read_packed("about.txt")).rstrip()  # written by build.py
        except OSError:
            about = "commit unknown, unknown date"
        host.print(f"ipsec.pyz {VERSION}, GPL-2.0-or-later\n{about}")
        host.print(f"Python {sys.version.split()[0]} ({sys.executable})")
    return OK


@command("directory", rescue=True, summary="print where the IPsec commands are stored")
def directory_command(host: Host, args: Args) -> int:
    """`ipsec directory`: always 0."""
    host.print(host.execdir)
    return OK


def dispatch(words: Sequence[str]) -> int:
    """Run the command that the words name and return its exit status.  Raises Failure."""
    before, rest = split_leading(words)
    args = Args()
    parse_options((*GLOBAL_OPTIONS, *SHARED_OPTIONS), before, args, "ipsec")
    try:
        status = run_command(args, rest)
    except (Failure, OSError) as error:
        warn_of_silence(error_text(error))
        raise
    silence = warn_of_silence()
    return status or silence


def warn_of_silence(told: str = "") -> int:
    """Warn of the file systems that did not answer, unless the message `told` names the path.  Return ERROR if there
    are any, otherwise OK: what they hold is missing in the output."""
    for mount, (_, name, seconds) in list(MOUNTS.silent.items()):
        if name not in told and mount not in told and sys.stderr is not None:
            line = (f"ipsec: {name}: the file system on {mount} did not answer within {seconds:g} s; what it holds is "
                    "left out")
            sys.stderr.write(printable(line) + "\n")
    return ERROR if MOUNTS.silent else OK


def run_command(args: Args, words: Sequence[str]) -> int:
    """Run the command that the words begin with, after the global options `args`; its exit status.  Raises Failure."""
    host = host_of(args)
    if not words:
        sys.stderr.write(usage_text(host) + "\n")
        return USAGE
    name, *rest = words
    entry = find_command(name)
    rest = [*shared_words(args, name, entry), *rest]
    if entry is None and name.startswith("-"):
        raise unknown_option(name)
    program = program_of(host, name) if entry is None or (entry.fallback and host.live) else None
    if program is not None:
        run_program(host, program, name, entry, rest)
    if entry is None:
        raise unknown_command(host, name)
    return run_builtin(entry, args, rest)


def split_leading(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the options before the command, with their values, and the words from the command on."""
    known = {name: option for option in (*GLOBAL_OPTIONS, *SHARED_OPTIONS) for name in option.names.split()}
    count = 0
    while count < len(words) and words[count].partition("=")[0] in known:
        metavar = known[words[count].partition("=")[0]].metavar or "["
        count += 1 if "=" in words[count] or metavar.startswith("[") else 2
    return words[:count], words[count + 1:] if words[count:count + 1] == ["--"] else words[count:]


def host_of(args: Args) -> Host:
    """Return the host that the global options describe.  Raises Failure if one of them is empty."""
    for option in GLOBAL_OPTIONS:
        if args.flag(option.key) and not args.value(option.key):
            raise Failure(f"{option.key} is empty", USAGE,
                          f"an unset variable? It is a {option.metavar}, or is left out")
    return Host(root=args.value("--root"), conf=args.value("--config"), rundir=args.value("--rundir"),
                ctlsocket=args.value("--ctlsocket"), nssdir=args.value("--nssdir"))


def shared_words(args: Args, name: str, entry: Command | None) -> list[str]:
    """Return the shared options from before a command as words to put after it.

    Raises Failure if the command does not have one of them.
    """
    options = entry.options if entry else None
    accepted = (DRY_RUN_OPTION, NATIVE_OPTION) if name == "whack" else options or ()
    words: list[str] = []
    for option in SHARED_OPTIONS:
        if not args.flag(option.key):
            continue
        if option.key not in [other.key for other in accepted]:
            raise Failure(f"ipsec {name}: {option.key} means nothing to it", USAGE, f"see ipsec help {name}")
        value = args.value(option.key)
        words.insert(0, f"{option.key}={value}" if value else option.key)
    return words


def unknown_option(name: str) -> Failure:
    """Return the Failure for an unknown option in the place of a command."""
    load_rest()
    options = [word for option in (*GLOBAL_OPTIONS, *SHARED_OPTIONS) for word in option.names.split()]
    hint = suggest(name, [*options, *(f"--{command_name}" for command_name in COMMANDS)])
    return Failure(f"ipsec: unknown option {quote(name)}", USAGE,
                   hint or "perhaps the command name was omitted? see ipsec --help")


def run_builtin(entry: Command, before: Args, words: Sequence[str]) -> int:
    """Run a built-in command with the options before it and the words after it; return its status.  Raises Failure.

    The global options that the command does not have itself may also be among the words.
    """
    asks = words[:1] in (["--help"], ["-h"]) or (words == ["help"] and not entry.operands)
    if asks and entry.options is not None:
        host_of(before).print(describe(entry))
        return OK
    check_root(host_of(before), entry)
    own = {name for option in entry.options or () for name in option.names.split()}
    others = [option for option in GLOBAL_OPTIONS if option.key not in own]
    args = entry.parse(words, others)
    for option in others:
        if args.flag(option.key):
            before.options[option.key] = args.options.pop(option.key)
    host = host_of(before)
    check_root(host, entry)
    return entry.function(host, args)


def check_root(host: Host, entry: Command) -> None:
    """Raise Failure if the command does more than read, but --root names a system that does not run."""
    if host.root and not entry.rescue:
        raise Failure(f"ipsec {entry.name}: the system under {host.root} does not run, and is only read", USAGE,
                      f"chroot {host.root} ipsec {entry.name}")


def run_program(host: Host, program: str, name: str, entry: Command | None, words: Sequence[str]) -> NoReturn:
    """Become a program of libreswan, which stands in for the built-in command `entry` if there is one.

    Such a program is given --config and --nssdir, which it knows under the same names.  Raises Failure.
    """
    takes = {option_name for option in (entry and entry.options) or () for option_name in option.names.split()}
    given = {word.partition("=")[0] for word in words}
    if "--config" in takes and "--config" not in given and host.conf != "/etc/ipsec.conf":
        words = ["--config", host.conf, *words]  # it does not read IPSEC_CONF
    if "--nssdir" in takes and not given & {"--nssdir", "-d"}:
        words = ["--nssdir", host.nssdir, *words]
    if host.root:
        raise Failure(f"ipsec {name}: programs of the system under {host.root} are not run", USAGE,
                      f"chroot {host.root} ipsec {name}")
    if MOUNTS.that_may_hang():
        load_part("check_answers")(host, dict(zip(words, words[1:])).get("--config", ""))
    host.exec(program, words, env=script_env(host, program))


def script_env(host: Host, program: str) -> dict[str, str]:
    """The environment for a program of the exec directory.  Its scripts expect IPSEC_VERSION from the front door."""
    env = host.exported()
    try:
        is_script = next(host.chunks(program), b"").startswith(b"#!")
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
    except KeyboardInterrupt as interrupt:
        die_of(interrupt.args[0] if interrupt.args else "SIGINT")
    except OSError as error:
        message, status = f"{error.filename or 'standard output'}: {error.strerror}", ERROR
    except MemoryError:
        message, status = "not enough memory", ERROR
    except (Exception, RecursionError) as error:
        # the text of an unforeseen exception may hold what must not be shown: its type and place are enough to report
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" in {place.tb_frame.f_code.co_name}, ipsec.py:{place.tb_frame.f_code.co_firstlineno}" if place else ""
        message, status = f"internal error: {type(error).__name__}{where}; {REPORT_IT}", ERROR
    try:
        sys.stderr.write(printable(f"{message if message.startswith('ipsec') else 'ipsec: ' + message}") + "\n")
    except (OSError, AttributeError):
        return status  # nowhere to say it
    return status


def main() -> NoReturn:
    """The program.  All output is flushed by then, so the interpreter's own end, 1 ms and a second try to write what
    could not be written, is left out."""
    os._exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
