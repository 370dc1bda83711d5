"""Two gateways, west and east, in a kernel with ESP, for a real tunnel.

Each has its own processes, network, host name, /etc, /run and state, made from the files of one machine, so that a
command finds everything in its default place. A wire connects 192.0.2.1 (west) and 192.0.2.2 (east); 10.1.0.1 is behind
west and 10.2.0.1 behind east.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from . import uml
from .host import Result
from .machine import PYZ, Machine

NAMES = ("west", "east")
#: The beginning of an ipsec.conf
SETUP = "config setup\n\tlogfile=/var/log/pluto.log\n"
#: Lines of a conn section that needs no routes: libreswan's updown script takes seconds in that kernel.
NO_UPDOWN = ("leftupdown=/bin/true", "rightupdown=/bin/true")


def conn(name: str, *lines: str, west: str = "@west", east: str = "@east",
         networks: tuple[str, str] = ("10.1.0.0/24", "10.2.0.0/24")) -> str:
    """Return a conn section with a pre-shared key between the networks behind west (left) and east (right).

    `west` and `east` are their IDs; `lines` are more lines of the section.
    """
    ends = ("left=192.0.2.1", f"leftid={west}", f"leftsubnet={networks[0]}",
            "right=192.0.2.2", f"rightid={east}", f"rightsubnet={networks[1]}")
    return "\n\t".join([f"\nconn {name}", "authby=secret", *ends, *lines]) + "\n"


def road_warrior(east: str, network: str) -> dict[str, str]:
    """Return the conn sections of west, which is the road warrior `laptop`, and of east, which leases it an address.

    `east` is the ID of east, `network` the network behind it.  The address comes from 10.9.0.1-10.9.0.99.
    """
    return {"west": conn("laptop", "leftmodecfgclient=yes", "narrowing=yes", "auto=add", west="@laptop", east=east,
                         networks=("0.0.0.0/0", network)),
            "east": "\n\t".join(["\nconn rw", "authby=secret", "left=192.0.2.2", f"leftid={east}",
                                f"leftsubnet={network}", "leftmodecfgserver=yes", "right=%any", "rightid=%any",
                                "rightaddresspool=10.9.0.1-10.9.0.99", "rightmodecfgclient=yes", "narrowing=yes",
                                "auto=add"]) + "\n"}


#: `at NAME COMMAND…` runs a command in a gateway; `step STEP NAME COMMAND…` also keeps its status and outputs.
PRELUDE = """
gateway() {  # NAME
    unshare --mount --net --uts --pid --fork --mount-proc sh -c "
        mount --bind /gateways/$1/etc /etc
        mount --bind /gateways/$1/log /var/log
        mount --bind /gateways/$1/state /var/lib/ipsec
        mount -t tmpfs tmpfs /run
        mount -t sysfs sysfs /sys
        hostname $1
        ip link set lo up
        touch /gateways/$1/up
        while :; do sleep 1; done" &
    until [ -e /gateways/$1/up ]; do sleep 0.1; done
    eval $1=$(pgrep -P $!)
}
at() {  # NAME COMMAND…
    eval target=\\$$1
    shift
    nsenter --target $target --mount --net --uts --pid "$@"
}
step() {  # STEP NAME COMMAND…
    kept=/gateways/steps/$1
    shift
    read began _ </proc/uptime
    at "$@" >$kept.stdout 2>$kept.stderr </dev/null
    status=$?
    read ended _ </proc/uptime
    echo $status $began $ended >$kept.status
}
gateway west
gateway east
ip link add wire-west type veth peer name wire-east
ip link set wire-west netns $west name eth0
ip link set wire-east netns $east name eth0
at west ip address add 192.0.2.1/24 dev eth0
at west ip address add 10.1.0.1/24 dev lo
at east ip address add 192.0.2.2/24 dev eth0
at east ip address add 10.2.0.1/24 dev lo
for name in west east; do
    at $name ip link set eth0 up
    at $name ip route add 10.0.0.0/8 dev eth0
done
"""


class Gateways:
    """West and east on the files of a machine: `write` their files, add each `step`, then `run` them in one boot."""

    def __init__(self, machine: Machine, prepare: str = "") -> None:
        """`prepare` is a script that runs in the kernel before the two are made."""
        self.machine = machine
        self._script = ["#!/bin/sh", prepare, PRELUDE]
        self._steps: list[str] = []
        machine.path("/gateways/steps").mkdir(parents=True)
        for name in NAMES:
            for directory in ("log", "state/nss"):
                machine.path(f"/gateways/{name}/{directory}").mkdir(parents=True)
            machine.run(["cp", "-a", "/etc", f"/gateways/{name}/etc"]).check()

    def write(self, gateway: str, inside_etc: str, text: str, mode: int = 0o644) -> None:
        """Write a file below /etc of a gateway."""
        self.machine.write(f"/gateways/{gateway}/etc/{inside_etc}", text, mode)

    def step(self, name: str, gateway: str, argv: Sequence[str]) -> None:
        """Run `argv` in the gateway as the next step."""
        self._steps.append(name)
        self._script.append(f"step {name} {gateway} {shlex.join(argv)}")

    def ipsec(self, name: str, gateway: str, *words: str) -> None:
        """Run ipsec.pyz with `words` in the gateway as the next step."""
        self.step(name, gateway, [self.machine.python, PYZ, *words])

    def make_databases(self) -> None:
        """Make the NSS database of each gateway, before the boot, because NSS's programs are slow in that kernel."""
        for name in NAMES:
            self.machine.ipsec("initnss", "--nssdir", f"/gateways/{name}/state/nss").check()

    def start(self, configs: Mapping[str, str], secrets: str = ': PSK "SwordfishForTheTunnel"\n') -> None:
        """Write the ipsec.conf of each gateway, and the same secrets to both, then start pluto with ipsec.pyz.

        The steps are NAME-start.  East is first, so that west finds a peer if it starts tunnels.
        """
        self.make_databases()
        for name in reversed(NAMES):
            self.write(name, "ipsec.conf", configs[name])
            self.write(name, "ipsec.secrets", secrets, 0o600)
            self.ipsec(f"{name}-start", name, "start")

    def run(self, timeout: float = 600) -> dict[str, Result]:
        """Boot, run all steps and return the Result of each. Raises Problem after `timeout` seconds."""
        uml.boot(self.machine, "\n".join([*self._script, "exit 0\n"]), timeout=timeout).check()
        results = {}
        for name in self._steps:
            kept = f"/gateways/steps/{name}"
            status, began, ended = self.machine.read(f"{kept}.status").split()
            results[name] = Result(int(status), self.machine.read(f"{kept}.stdout"),
                                   self.machine.read(f"{kept}.stderr"), float(ended) - float(began))
        return results
