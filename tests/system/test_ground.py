"""The proving ground itself: machines are what they promise, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from ..ground import uml as kernels
from ..ground.host import PATH, Problem, Result, cache
from ..ground.inits import Booted
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import Pluto
from ..ground.roots import ROOTS, store
from ..ground.uml import boot, version

TOP = Path(__file__).resolve().parents[2]

CONFIG = """config setup
conn west-east
	left=127.0.0.1
	right=192.0.2.9
	authby=secret
	auto=add
"""


#: Make a root of the one called `base` in the cache, without a mirror, and run a program in it.
MAKE = """
from pathlib import Path
from tests.ground import host, roots
from tests.ground.machine import Machine
print(host.missing())
target = host.cache() / "roots/made"
with Machine("building", ["roots/base"], network=False) as machine:
    machine.write("/usr/bin/hello", "#!/bin/sh\\necho hello\\n", 0o755)
    machine.run(["rm", "-r", "/usr/share/keyrings"]).check()
    roots.merge(host.cache() / "roots/base", machine, target, without=[])
assert (target / "usr/bin").is_dir() and not (target / "usr/share/keyrings").exists()
with Machine("made", ["roots/made"]) as machine:
    print(machine.run(["hello"]).check().stdout, end="")
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


def test_a_kernel_without_modules_stops_at_once(gateway: Machine, tmp_path: Path) -> None:
    """Its console and the results say why, and no script runs without ESP."""
    with pytest.raises(Problem, match=rf"^no modules: {tmp_path} of the host can't be mounted\n--- console\n"):
        boot(gateway, "#!/bin/sh\ntouch /ran\n", library=tmp_path)
    (tmp_path / "modules.dep").touch()
    with pytest.raises(Problem, match=f"^no module xfrm_user in {tmp_path} of the host\n--- console\n"):
        boot(gateway, "#!/bin/sh\ntouch /ran\n", library=tmp_path)
    assert not gateway.path("/ran").exists()


@pytest.mark.parametrize("release", ["bookworm"])
def test_a_script_may_run_longer_than_a_kernel_may_take_to_boot(gateway: Machine, uml: Callable[..., Result],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BOOT_SECONDS", 20)
    assert uml(gateway, "#!/bin/sh\nsleep 25\necho end\n", timeout=100).check().stdout == "end\n"
    with pytest.raises(Problem, match="no end after"):
        uml(gateway, "#!/bin/sh\nsleep 1000\n", timeout=20)


@pytest.mark.parametrize("words", [(), ("-n", "2")])
def test_without_a_network_a_run_ends_and_says_why_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    """No root can be built: the tests that need one are skipped, and where nothing may skip they fail."""
    tests = ["tests/system/test_look.py", "-k", "release or trixie or bookworm", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "IPSEC_TESTS_RUN")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    for strict in ((), ("--no-skips",)):
        argv = ["unshare", "--net", sys.executable, "-m", "pytest", *tests, *words, *strict]
        ran = subprocess.run(argv, cwd=TOP, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
        output = ran.stdout
        if strict:
            assert ran.returncode == 1 and "nothing may skip here: bookworm can't be built" in output, output
            for name in ("bookworm", "trixie"):
                assert output.count(f"{name} can't be built: E: ") == 1, output
        else:
            (line,) = re.findall(r"\nskipped: (.*)", output)
            for name in ("bookworm", "trixie"):
                told = re.findall(rf"tests/system\S*: [^:]*{name}[^:]* can't be built \(.*?\): E: ", line)
                assert len(told) == 1, line
            assert ran.returncode == 0 and output.count("E: ") == line.count("E: "), output


def test_a_root_on_another_holds_the_same_files_and_its_own(root: Callable[..., Machine]) -> None:
    """Unchanged files are hard links; owners, modes and capabilities are those of the machine it was built in."""
    machine = root("bookworm-systemd")
    (layer,) = store.layers("bookworm-systemd")
    (below,) = store.layers("bookworm")
    kept, base = cache() / layer, cache() / below
    assert (kept / "usr/bin/dash").stat().st_ino == (base / "usr/bin/dash").stat().st_ino
    assert (kept / "var/lib/dpkg/status").read_text() != (base / "var/lib/dpkg/status").read_text()
    for path in ("usr/bin/passwd", "etc/shadow", "usr/bin", "var/mail"):
        ours, theirs = (kept / path).stat(), (base / path).stat()
        assert (ours.st_mode, ours.st_uid, ours.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid), path
    assert machine.run(["dpkg", "--audit"]).check().stdout == ""
    assert "systemd" in machine.run(["readlink", "/sbin/init"]).check().stdout


@pytest.mark.timeout(900)
def test_the_cache_may_lie_on_overlayfs(tmp_path: Path) -> None:
    """As in a container: a root on another one is built, and a machine stands."""
    for name in ("lower", "upper", "work", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/ipsec-tests").mkdir()
    script = f"""
mount -t overlay overlay {tmp_path}/home -o lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work
mkdir {tmp_path}/home/ipsec-tests/roots
cp -a {cache() / store.layers("bookworm")[0]} {tmp_path}/home/ipsec-tests/roots/base
exec {sys.executable} -c '{MAKE}'
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}
    ran = subprocess.run(["unshare", "--mount", "sh", "-ec", script], cwd=TOP, env=environment, capture_output=True,
                         text=True, timeout=600, check=False)
    assert (ran.returncode, ran.stdout) == (0, "None\nhello\n"), ran.stderr


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
