"""The proving ground itself: machines are what they promise, and leave nothing behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Callable

import pytest

from ..ground.host import PATH, Problem, Result
from ..ground.inits import Booted
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import Pluto
from ..ground.roots import ROOTS
from ..ground.uml import version

CONFIG = """config setup
conn west-east
	left=127.0.0.1
	right=192.0.2.9
	authby=secret
	auto=add
"""


def test_a_machine_has_the_libreswan_and_python_of_its_release(gateway: Machine, release: str) -> None:
    assert f"Libreswan {ROOTS[release].libreswan}" in gateway.run(["/usr/sbin/ipsec", "--version"]).check().stdout
    assert f"Python {ROOTS[release].python}." in gateway.run([gateway.python, "--version"]).check().stdout


def test_a_machine_has_processes_network_and_name_of_its_own(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    assert machine.run(["hostname"]).stdout == "bookworm\n"
    assert machine.run(["sh", "-c", "echo $$"]).stdout.strip().isdigit()
    assert "lo" in machine.run(["ip", "-o", "link"]).stdout and "eth0" not in machine.run(["ip", "-o", "link"]).stdout
    assert "overlay on / " in machine.run(["mount"]).stdout
    assert machine.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]).status == 0
    assert machine.run(["sh", "-c", "echo stolen >/proc/sys/kernel/hostname"]).status == 2


def test_a_command_gets_the_environment_input_directory_and_user_it_was_given(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    environment = machine.run(["env"], env={"A": "b", "HOME": None}).stdout.splitlines()
    assert environment == [f"PATH={PATH}", "TERM=dumb", "LC_ALL=C", "A=b"]
    assert machine.run(["cat"], input="line\n").stdout == "line\n"
    assert machine.run(["sh", "-c", "pwd; id -u"], cwd="/usr/lib", user=65534).stdout == "/usr/lib\n65534\n"
    assert machine.run(["sh", "-c", "kill -KILL $$"]).status == 128 + signal.SIGKILL
    with pytest.raises(Problem, match="no end after"):
        machine.run(["sleep", "60"], timeout=0.2)


def test_a_machines_changes_go_with_it(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    machine.write("/etc/trace", "x")
    machine.spawn(["sleep", "1000"], "/var/log/sleep")
    sleep = machine.outside(wait_for(lambda: machine.processes("sleep"), "sleep")[0])
    machine.close()
    wait_for(lambda: not Path(f"/proc/{sleep}").exists(), "the end of sleep")
    assert root("bookworm").run(["cat", "/etc/trace"]).status == 1


def test_links_in_a_machine_lead_nowhere_outside_it(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    machine.path("/etc/evil").symlink_to("/../etc")
    machine.write("/etc/evil/trace", "inside")
    assert machine.run(["cat", "/etc/trace"]).stdout == "inside"
    assert not Path("/etc/trace").exists()


def test_two_machines_can_be_connected(root: Callable[..., Machine]) -> None:
    west, east = root("bookworm"), root("trixie")
    west.link(east, "192.0.2.1/24", "192.0.2.2/24")
    west.run(["ping", "-c", "1", "-w", "20", "192.0.2.2"]).check()


def test_pluto_runs_answers_and_ends(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    daemon = pluto(gateway, CONFIG, ': PSK "x"\n')
    assert gateway.processes("pluto") == [daemon.pid]
    status = gateway.run(["ipsec", "whack", "--status"]).check().stdout
    assert "127.0.0.1:" in status and '"west-east"' in status
    assert "Starting Pluto" in daemon.output
    daemon.stop()
    assert not daemon.running and gateway.processes("pluto") == []


def test_a_stopped_pluto_can_be_ended(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    daemon = pluto(gateway)
    gateway.signal(daemon.pid, signal.SIGSTOP)
    wait_for(lambda: " (pluto) T " in gateway.read(f"/proc/{daemon.pid}/stat"), "a stopped pluto")
    with pytest.raises(Problem, match="no end after"):
        gateway.run(["ipsec", "whack", "--status"], timeout=1)
    daemon.stop()
    assert not daemon.running


def test_two_plutos_in_one_machine(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    machine = root("bookworm")
    machine.ip("address", "add", "127.0.0.2", "dev", "lo")
    other = pluto(machine, rundir="/run/other", nssdir="/root/nss", configdir="/root",
                  arguments=["--listen", "127.0.0.2"])
    daemon = pluto(machine, arguments=["--listen", "127.0.0.1"])
    assert machine.processes("pluto") == sorted([daemon.pid, other.pid])
    status = machine.run(["ipsec", "whack", "--ctlsocket", other.ctl, "--status"]).check().stdout
    assert "configfile=/root/ipsec.conf" in status


def test_a_pluto_that_cannot_start_says_why(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    with pytest.raises(Problem, match="no-such-option"):
        pluto(root("bookworm"), arguments=["--no-such-option"])


def test_the_program_lies_in_every_machine(gateway: Machine) -> None:
    assert gateway.ipsec("--help").check().stdout
    assert gateway.path(PYZ).exists()


def test_another_kernel_boots_on_a_machines_files(gateway: Machine, uml: Callable[..., Result]) -> None:
    script = """#!/bin/sh
uname -r
ip xfrm state add src 127.0.0.1 dst 127.0.0.2 proto esp spi 0x100 aead 'rfc4106(gcm(aes))' 0x$(printf %040d 7) 128
ip xfrm state add src 127.0.0.1 dst 127.0.0.2 proto ah spi 0x200 auth 'hmac(sha256)' 0x$(printf %064d 7)
ip xfrm state count >/kept
echo warning >&2
exit 7
"""
    result = uml(gateway, script)
    assert (result.status, result.stdout, result.stderr) == (7, f"{version()}\n", "warning\n")
    assert "SAD count 2" in gateway.read("/kept")


def test_a_kernel_that_dies_says_what_its_console_said(gateway: Machine, uml: Callable[..., Result]) -> None:
    with pytest.raises(Problem, match="sysrq: Power Off"):
        uml(gateway, "#!/bin/sh\necho o >/proc/sysrq-trigger; sleep 1000")


#: How each init system itself is told to act on the service.
ACTIONS = {
    "systemd": ["systemctl", "{action}", "ipsec"],
    "sysvinit": ["/etc/init.d/ipsec", "{action}"],
    "openrc": ["rc-service", "ipsec", "{action}"],
    "runit": ["sv", "{action}", "ipsec"],
    "s6": ["sh", "-c", "[ {action} = stop ] && down=-d; s6-svc ${{down:--u}} /run/service/ipsec"],
}


def test_an_init_system_is_process_1_and_runs_the_service(booted: Booted) -> None:
    first = {"sysvinit": "init", "openrc": "init", "s6": "s6-svscan"}.get(booted.init, booted.init)
    assert booted.read("/proc/1/comm").strip() == first
    assert booted.processes("pluto") == []
    booted.run([word.format(action="start") for word in ACTIONS[booted.init]]).check()
    wait_for(lambda: booted.processes("pluto"), "pluto")
    booted.run([word.format(action="stop") for word in ACTIONS[booted.init]]).check()
    wait_for(lambda: not booted.processes("pluto"), "the end of pluto")


def test_an_init_system_leaves_no_control_group(pid1: Callable[..., Booted]) -> None:
    machine = pid1("bookworm-systemd")
    group = machine.group
    assert Path(group).is_dir()
    machine.close()
    assert not Path(group).exists()
