"""Machines on which an init system is process 1, with a service called `ipsec`.

systemd runs the unit that Debian ships with libreswan. For the others Debian ships nothing, so the tests bring services
that run pluto. No service is started at boot. The init system runs on the kernel of the tests, in namespaces and a
control group of its own, and is up in a second or two. The test acts from outside, with `machine.run`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .host import PATH, Problem
from .machine import Machine, control_group, wait_for

PLUTO = "/usr/libexec/ipsec/pluto --nofork --config /etc/ipsec.conf"

#: The commands before the start of pluto. As in Debian's unit, libreswan's own command makes the NSS database.
PREPARE = "mkdir -p /run/pluto; /usr/sbin/ipsec --checknss >/dev/null"

SYSVINIT = f"""#!/bin/sh
### BEGIN INIT INFO
# Provides:          ipsec
# Required-Start:    $network $remote_fs
# Required-Stop:     $network $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: IPsec
### END INIT INFO
. /lib/lsb/init-functions
pidfile=/run/pluto/pluto.pid
pluto=/usr/libexec/ipsec/pluto
case "$1" in
    start) {PREPARE}; start-stop-daemon --start --oknodo --pidfile $pidfile --exec $pluto -- --config /etc/ipsec.conf ;;
    stop) start-stop-daemon --stop --oknodo --retry TERM/60 --pidfile $pidfile --exec $pluto ;;
    restart) "$0" stop && "$0" start ;;
    status) status_of_proc -p $pidfile $pluto ipsec ;;
    *) echo "Usage: $0 {{start|stop|restart|status}}" >&2; exit 2 ;;
esac
"""

OPENRC = f"""#!/sbin/openrc-run
description="IPsec"
command=/usr/libexec/ipsec/pluto
command_args="--config /etc/ipsec.conf"
pidfile=/run/pluto/pluto.pid
start_pre() {{
    {PREPARE}
}}
"""

RUN = f"""#!/bin/sh
{PREPARE}
exec {PLUTO}
"""

#: The directory of the services of runit's default runlevel in Debian.
RUNIT = "/etc/service/ipsec"

#: A line of inittab(5): init runs it once when it has entered the runlevel.
INITTAB = "gt:2345:once:/bin/touch /run/booted\n"

S6_INIT = """#!/bin/sh
mkdir -p /run/service
cp -r /etc/s6/* /run/service
exec s6-svscan /run/service
"""


class Init(NamedTuple):
    """An init system: the command of its first process, the files of the service (path, mode, text), and a command
    that succeeds when the init system is up."""

    command: Sequence[str]
    files: Sequence[tuple[str, int, str]]
    up: Sequence[str]


INITS: dict[str, Init] = {
    "systemd": Init(["/sbin/init"], [], ["sh", "-c", "systemctl is-system-running | grep -qx -e running -e degraded"]),
    "sysvinit": Init(["/sbin/init"], [("/etc/init.d/ipsec", 0o755, SYSVINIT)], ["test", "-e", "/run/booted"]),
    "openrc": Init(["/sbin/init"], [("/etc/init.d/ipsec", 0o755, OPENRC)], ["test", "-e", "/run/booted"]),
    "runit": Init(["/sbin/init"], [(f"{RUNIT}/run", 0o755, RUN), (f"{RUNIT}/down", 0o644, "")],
                  ["sv", "status", "ipsec"]),
    "s6": Init(["/sbin/s6-init"], [("/sbin/s6-init", 0o755, S6_INIT), ("/etc/s6/ipsec/run", 0o755, RUN),
                                   ("/etc/s6/ipsec/down", 0o644, "")], ["s6-svstat", "/run/service/ipsec"]),
}


class Booted(Machine):
    """A machine whose init system has booted it; `init` is the name of the init system."""

    def __init__(self, name: str, init: str, layers: Sequence[str], pyz: Path | None = None, **options: Any) -> None:
        system = INITS[init]
        self.init = init
        with contextlib.ExitStack() as stack:
            self.group = stack.enter_context(control_group(name))
            super().__init__(name, layers, pyz, cgroup=self.group, init=system.command,
                             environment={"PATH": PATH, "TERM": "dumb", "container": "ipsec-tests"}, **options)
            stack.callback(super().close)
            for path, mode, text in system.files:
                self.write(path, text, mode)
            self.write("/etc/hostname", f"{self.hostname}\n")
            self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")  # or systemd's first boot would enable every unit
            for wants in self.path("/etc/systemd/system").glob("*.wants"):
                wants.joinpath("ipsec.service").unlink(missing_ok=True)
            inittab = self.path("/etc/inittab")
            if inittab.exists():  # remove the consoles, and make init create a file in the runlevel
                lines = [line for line in inittab.read_text().splitlines(keepends=True) if "getty" not in line]
                inittab.write_text("".join([*lines, INITTAB]))
            self.boot()
            wait_for(self._is_up, f"{name} up under {init}", 180)
            self._whole = stack.pop_all()

    def _is_up(self) -> bool:
        if not self.running:
            raise Problem(f"{self.name}: {self.init} ended")
        return self.run(INITS[self.init].up).status == 0

    def close(self) -> None:
        self._whole.close()
