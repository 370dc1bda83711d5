"""Make a test process independent of what it inherits: signals, umask, limits, locale, time zone and other variables.

These things differ between a terminal, nohup(1), cron(8), a service, a container and a CI system. Programs that the
tests start inherit the values that are set here. A test about one of these things sets it itself.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import tempfile

#: Signals that Python ignores, but not in the programs that it starts, and signals that can't be caught.
LEFT = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGKILL, signal.SIGSTOP}

#: Variables that change the output or the behaviour of programs: prefixes, and whole names.
PREFIXES = ("LC_", "PYTHON", "IPSEC_", "SUDO_", "LISTEN_")
NAMES = ("LANG", "LANGUAGE", "TZ", "COLUMNS", "LINES", "CDPATH", "ENV", "BASH_ENV", "POSIXLY_CORRECT", "NO_COLOR",
         "FORCE_COLOR", "PAGER", "MANPAGER", "LESS", "EDITOR", "VISUAL", "NOTIFY_SOCKET")

#: Variables of the tests themselves.
KEPT = ("IPSEC_PYZ", "IPSEC_TESTS_RUN")

#: Limits that are raised as far as this process may: a login has none of them.
UNLIMITED = (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_AS,
             resource.RLIMIT_DATA)

#: Limits that a login has: open files, bytes of the stack, bytes of a core file (none, as it would be left behind).
LIMITS = {resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_STACK: 8 << 20, resource.RLIMIT_CORE: 0}

#: A directory that can hold the tests' directories: its name needs no quotes in a script. 107 bytes are the most that
#: the path of a socket can have; pytest's directories and the name of a socket need 80 of them.
PLAIN = re.compile(r"/[\w/.+-]{1,26}", re.ASCII)


def receive(number: int, frame: object) -> None:
    """Ignore a signal in this process.  Unlike SIG_IGN, programs that this process starts do not inherit this."""


def settle() -> None:
    """Set everything that programs inherit from this process to the defaults of a login."""
    for number in signal.valid_signals() - LEFT:
        if signal.getsignal(number) == signal.SIG_IGN:
            # if SIGCHLD is ignored, the kernel does not keep the exit statuses of programs
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else receive)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    for name in list(os.environ):
        if (name.startswith(PREFIXES) or name in NAMES) and name not in KEPT:
            del os.environ[name]
    os.environ["LC_ALL"] = "C.UTF-8"
    if not os.access(os.environ.get("HOME", ""), os.W_OK | os.X_OK):
        os.environ.pop("HOME", None)  # without it, the home is that of the user database
    if os.access("/tmp", os.W_OK | os.X_OK) and not PLAIN.fullmatch(os.environ.get("TMPDIR", "/tmp")):
        del os.environ["TMPDIR"]
        tempfile.tempdir = None  # the module remembers the variable's value
    for limit in (*UNLIMITED, *LIMITS):
        hard = resource.getrlimit(limit)[1]
        wanted = LIMITS.get(limit, resource.RLIM_INFINITY)
        if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
            wanted = hard
        resource.setrlimit(limit, (wanted, hard))
