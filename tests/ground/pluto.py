"""Pluto: libreswan's IKE daemon running in a machine, with its own configuration, secrets, NSS database, directories.

It runs with --nofork, as in the unit of its distribution, and logs to a file of the machine. By default the paths are
the compiled-in ones, as a machine is a host of its own; with other paths two plutos run in one machine.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Sequence

from .host import Problem
from .machine import Machine, wait_for

#: An ipsec.conf that every release loads; tests add connections.
CONFIG = "config setup\n"


class Pluto:
    """A running pluto; a context manager that stops it.

    When the constructor returns, pluto listens and has loaded its connections. With `listening=False`, for a
    configuration that does not load, pluto only answers on its control socket. `pid` is its PID in the machine; `log`,
    `rundir` and `nssdir` are paths in the machine.
    """

    PROGRAM = "/usr/libexec/ipsec/pluto"
    WHACK = "/usr/libexec/ipsec/whack"

    def __init__(self, machine: Machine, config: str = CONFIG, secrets: str = "", *, rundir: str = "/run/pluto",
                 nssdir: str = "/var/lib/ipsec/nss", configdir: str = "/etc", arguments: Sequence[str] = (),
                 listening: bool = True) -> None:
        self.machine, self.rundir, self.nssdir = machine, rundir, nssdir
        self.config, self.secrets = f"{configdir}/ipsec.conf", f"{configdir}/ipsec.secrets"
        self.ctl, self.log = f"{rundir}/pluto.ctl", f"/var/log{rundir.replace('/run', '', 1)}.log"
        machine.write(self.config, config)
        machine.write(self.secrets, secrets, 0o600)
        machine.path(rundir).mkdir(parents=True, exist_ok=True)
        self.create_nss()
        argv = [self.PROGRAM, "--nofork", "--stderrlog", "--config", self.config, "--secretsfile", self.secrets,
                "--nssdir", nssdir, "--rundir", rundir, *arguments]
        self._process = machine.spawn(argv, self.log)
        wait_for(self._listens if listening else self._answers, f"pluto of {machine.name} ready on {self.ctl}")
        self.pid = int(machine.read(f"{rundir}/pluto.pid").split()[0])

    def __enter__(self) -> Pluto:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def create_nss(self) -> None:
        """Make an empty NSS database without a password if there is none."""
        if not self.machine.path(f"{self.nssdir}/cert9.db").exists():
            self.machine.path(self.nssdir).mkdir(parents=True, exist_ok=True)
            self.machine.run(["certutil", "-N", "-d", f"sql:{self.nssdir}", "--empty-password"]).check()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise Problem(f"pluto of {self.machine.name} ended with {self._process.returncode}:\n{self.output}")
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(5)
            client.connect(str(self.machine.path(self.ctl)))
            return bool(self.machine.read(f"{self.rundir}/pluto.pid").strip())
        return False

    def _listens(self) -> bool:
        """Return whether pluto listens: its addconn loads the connections, makes it listen, and ends."""
        if not self._answers():
            return False
        status = self.machine.run([self.WHACK, "--ctlsocket", self.ctl, "--status"]).stdout
        return "interface " in status and not self.machine.processes("addconn")

    @property
    def output(self) -> str:
        """The text of pluto's log."""
        return self.machine.read(self.log)

    @property
    def running(self) -> bool:
        """Whether the process of pluto exists, even if a signal has stopped it."""
        return self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send pluto a signal, and wait until it has ended.

        If it runs for another minute, it is killed, and Problem is raised.
        """
        if not self.running:
            return
        self.machine.signal(self.pid, signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)  # nsenter stops itself when pluto is stopped
        self.machine.signal(self.pid, number)
        try:
            wait_for(lambda: not self.running, "the end of pluto", 60)
        except Problem:
            self.machine.signal(self.pid, signal.SIGKILL)
            raise
