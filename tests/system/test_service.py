"""Starting and stopping pluto on real hosts: under each init system, and without any."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..ground import summary
from ..ground.gateways import NAMES, Gateways
from ..ground.host import Result
from ..ground.inits import Booted
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import CONFIG, Pluto

#: addconn of every release refuses it.
BROKEN = "config setup\n\tbogus=1\nconn x\n\tauto=banana\n"

#: What each init system is told: the first line of the original's output where it knew the init system.
WORDS = {
    "systemd": "systemctl {} ipsec.service", "sysvinit": "/etc/init.d/ipsec {}", "openrc": "rc-service ipsec {}",
    "runit": "sv -w 30 {} /etc/service/ipsec", "s6": "s6-svc ",
}

FOREIGN = ["ip", "xfrm", "policy", "add", "src", "10.1.0.0/16", "dst", "10.2.0.0/16", "dir", "out", "action", "block",
           "priority", "7"]


@pytest.fixture
def bookworm(root: Callable[..., Machine]) -> Machine:
    return root("bookworm")


def ended(machine: Machine) -> bool:
    return not machine.processes("pluto")


def one_pluto(machine: Machine) -> int:
    """The only pluto of a machine, which answers; what it starts is called pluto, too, for a moment."""
    (pid,) = wait_for(lambda: [found for found in [machine.processes("pluto")] if len(found) == 1], "one pluto")[0]
    machine.ipsec("whack", "--status").check()
    return pid


def rundir(machine: Machine) -> list[str]:
    return sorted(path.name for path in machine.path("/run/pluto").iterdir())


# --- a pluto that this process can't see ------------------------------------------------------------------------------

TRAP = """conn a
	left=192.0.2.1
	right=192.0.2.2
	leftsubnet=10.1.0.0/16
	rightsubnet=10.2.0.0/16
	authby=secret
	auto=ondemand
"""
#: Ways to call this program so that it does not see the pluto of the machine.
PLACES = {
    "another PID namespace": "exec unshare --pid --fork --mount-proc {}",
    "another PID namespace and /run": "mount -t tmpfs tmpfs /run; exec unshare --pid --fork --mount-proc {}",
    "another PID namespace, /proc of the first": "exec unshare --pid --fork {}",
    "no /proc": "umount -l /proc; exec {}",
    "no /proc and another /run": "umount -l /proc; mount -t tmpfs tmpfs /run; exec {}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_pluto_out_of_sight_keeps_its_policies_and_its_socket(gateway: Machine, pluto: Callable[..., Pluto],
                                                                place: str) -> None:
    gateway.address("192.0.2.1/24")
    gateway.ip("route", "add", "10.2.0.0/16", "via", "192.0.2.2")
    running = pluto(gateway, config=CONFIG + TRAP, secrets=': PSK "k1k2k3k4k5k6k7k8"\n')

    def policies() -> int:
        return gateway.ip("xfrm", "policy").stdout.count("src 10.1.0.0/16")

    before = policies()
    assert before
    for action in ("stop", "start", "restart", "_stackmanager stop"):
        words = PLACES[place].format(f"python3 {PYZ} {action}")
        if place == "another PID namespace, /proc of the first" and action != "_stackmanager stop":
            continue  # it sees the pluto and may end it
        result = gateway.run(["unshare", "--mount", "sh", "-c", words])
        assert result.status == 1 and "a pluto runs here or may run here" in result.stderr, (action, result)
        assert policies() == before and running.running
        gateway.run([running.WHACK, "--status"]).check()
    status = gateway.run(["unshare", "--mount", "sh", "-c", PLACES[place].format(f"python3 {PYZ} setup status")])
    assert status.status in (0, 4) and "stopped" not in status.stdout
    for command in ("barf --section listeners", "barf --section summary", "verify pluto", "verify udp500", "why"):
        words = PLACES[place].format(f"python3 {PYZ} {command}")
        result = gateway.run(["unshare", "--mount", "sh", "-c", words])
        assert "not running" not in result.stdout, (command, result)
        assert "FAIL" not in result.stdout or not command.startswith("verify"), (command, result)


def test_a_start_needs_no_list_of_processes_and_a_stop_does(bookworm: Machine) -> None:
    """Of /proc there is only sys, which pluto needs (4.3 also needs /proc/self/exe)."""
    hide = ("mkdir -p /sys.kept && mount --bind /proc/sys /sys.kept && umount -l /proc && "
            "mount -t tmpfs tmpfs /proc && mkdir /proc/sys && mount --move /sys.kept /proc/sys")

    def ipsec(action: str) -> Result:
        return bookworm.run(["unshare", "--mount", "sh", "-c", f"{hide} && exec python3 {PYZ} {action}"])

    ipsec("start").check()
    pid = one_pluto(bookworm)
    assert ipsec("start").status == 1 and "nothing was done" in ipsec("stop").stderr
    assert bookworm.processes("pluto") == [pid]
    bookworm.ipsec("stop").check()
    assert ended(bookworm)


@pytest.mark.parametrize("line", ['exec ipsec setup "$1"', 'ipsec setup "$1"', 'env -i PATH="$PATH" ipsec setup "$1"'])
def test_an_init_script_that_calls_this_program(bookworm: Machine, line: str) -> None:
    bookworm.write("/etc/init.d/ipsec", f"#!/bin/sh\n# libreswan\necho script \"$1\" >>/called\n{line}\n", 0o755)
    bookworm.run(["ln", "-sf", PYZ, "/usr/sbin/ipsec"]).check()
    for action in ("start", "stop"):
        bookworm.run(["/usr/sbin/ipsec", "setup", action]).check()
        assert bool(bookworm.processes("pluto")) == (action == "start")
        bookworm.run(["/etc/init.d/ipsec", action]).check()
    assert bookworm.read("/called").count("script") <= 6


@pytest.mark.parametrize("words", [["setup", "status"], ["start"], ["showstates"], ["verify"], ["metrics"],
                                   ["status", "--json"], ["stop"]], ids=" ".join)
def test_no_command_makes_pluto_log_an_error(gateway: Machine, pluto: Callable[..., Pluto], words: list[str]) -> None:
    conns = "".join(f"conn c{n}\n\tleft=192.0.2.1\n\tright=192.0.2.{n}\n\tauto=add\n" for n in range(2, 60))
    gateway.address("192.0.2.1/24")
    running = pluto(gateway, config=CONFIG + conns)
    for how in ("", "native"):
        before = len(running.output)
        gateway.ipsec(*words, env={"IPSEC_WHACK": how})
        assert "Broken pipe" not in running.output[before:] and "runt" not in running.output[before:]


# --- under an init system --------------------------------------------------------------------------------------------

def test_each_init_system_starts_restarts_and_stops_pluto(booted: Booted) -> None:
    words = WORDS[booted.init]

    def do(action: str, status: int) -> Result:
        result = booted.ipsec("setup", action).check(status)
        if action in ("start", "stop"):
            assert result.stdout.splitlines()[0].startswith(f"Redirecting to: {words.format(action)}")
        return result

    booted.write("/etc/ipsec.conf", CONFIG)
    do("status", 3)
    do("start", 0)
    first = one_pluto(booted)
    do("start", 0)
    assert one_pluto(booted) == first
    do("status", 0)
    do("restart", 0)
    assert one_pluto(booted) != first
    do("stop", 0)
    assert ended(booted)
    do("stop", 0)
    do("status", 3)
    do("restart", 0)
    one_pluto(booted)
    do("stop", 0)
    assert ended(booted)


def test_each_init_system_reports_a_configuration_that_fails(booted: Booted) -> None:
    booted.write("/etc/ipsec.conf", BROKEN)
    assert booted.ipsec("start").status == 1
    assert ended(booted)
    booted.ipsec("setup", "--status").check(3)
    booted.ipsec("--stop").check(0)


def test_dry_run_names_the_words_and_runs_nothing(booted: Booted) -> None:
    result = booted.ipsec("start", "--dry-run").check()
    assert result.stdout.startswith(f"Redirecting to: {WORDS[booted.init].format('start')}") and not result.stderr
    assert ended(booted)


@pytest.mark.parametrize("name, directory", [("bookworm-runit", "/etc/service"), ("bookworm-s6", "/run/service")])
def test_a_supervisor_runs_us_as_pluto(pid1: Callable[..., Booted], name: str, directory: str) -> None:
    machine = pid1(name)
    machine.write("/etc/ipsec.conf", CONFIG)
    machine.write(f"{directory}/ipsec/run", f"#!/bin/sh\nexec {machine.python} {PYZ} start --foreground\n", 0o755)
    machine.ipsec("start").check()
    first = one_pluto(machine)
    machine.ipsec("restart").check()
    assert one_pluto(machine) != first
    machine.signal(one_pluto(machine), signal.SIGKILL)
    wait_for(lambda: machine.run(["ipsec", "whack", "--status"]).status == 0, "another pluto")
    machine.ipsec("stop").check()
    assert ended(machine) and rundir(machine) == []
    machine.ipsec("setup", "status").check(3)


@pytest.fixture
def systemd(pid1: Callable[..., Booted]) -> Booted:
    return pid1("bookworm-systemd")


def test_a_stop_that_fails_leaves_the_kernel_and_says_so(systemd: Booted) -> None:
    systemd.write("/etc/ipsec.conf", CONFIG)
    systemd.ipsec("start").check()
    systemd.write("/run/systemd/system/ipsec.service.d/x.conf", "[Unit]\nRefuseManualStop=yes\n")
    systemd.run(["systemctl", "daemon-reload"]).check()
    systemd.run(FOREIGN).check()
    before = systemd.run(["ip", "xfrm", "policy"]).stdout
    assert systemd.ipsec("stop").status == 4  # systemctl's
    one_pluto(systemd)
    assert systemd.run(["ip", "xfrm", "policy"]).stdout == before


def test_a_pluto_that_the_service_did_not_start_is_no_success(systemd: Booted) -> None:
    systemd.write("/etc/ipsec.conf", CONFIG)
    systemd.ipsec("start", "--init", "none").check()
    pid = one_pluto(systemd)
    result = systemd.ipsec("stop", timeout=200).check(1)
    assert f"pluto (pid {pid}) still runs" in result.stderr and "--init none" in result.stderr
    systemd.ipsec("stop", "--init", "none").check()
    assert ended(systemd)


def test_a_unit_that_is_masked_missing_or_somebody_else_s(systemd: Booted) -> None:
    systemd.run(["systemctl", "mask", "ipsec.service"]).check()
    for action in ("start", "restart"):
        assert "ipsec.service is masked (systemctl unmask ipsec.service)" in systemd.ipsec(action).check(1).stderr
    systemd.run(["systemctl", "unmask", "ipsec.service"]).check()
    systemd.run(["rm", "/lib/systemd/system/ipsec.service"]).check()
    systemd.run(["systemctl", "daemon-reload"]).check()
    for action, status in (("start", 5), ("stop", 5), ("restart", 5), ("status", 4)):
        result = systemd.ipsec("setup", action).check(status)
        assert result.stderr.startswith("ipsec: systemd runs this host, but has no service for pluto")
    systemd.write("/etc/systemd/system/strongswan-starter.service",
                  "[Service]\nExecStart=/bin/sleep 1000\nExecStartPre=/bin/touch /run/charon\n"
                  "[Install]\nAlias=ipsec.service\n")
    systemd.path("/etc/systemd/system/ipsec.service").symlink_to("strongswan-starter.service")
    systemd.run(["systemctl", "daemon-reload"]).check()
    systemd.ipsec("start").check(5)
    assert not systemd.path("/run/charon").exists()


def test_a_failed_unit_is_started_again(systemd: Booted) -> None:
    systemd.write("/etc/ipsec.conf", BROKEN)
    systemd.ipsec("start").check(1)
    systemd.write("/etc/ipsec.conf", CONFIG)
    systemd.ipsec("start").check()
    one_pluto(systemd)


def test_a_chroot_is_not_served_by_the_init_system_outside(systemd: Booted) -> None:
    systemd.write("/etc/ipsec.conf", CONFIG)
    systemd.run(["sh", "-ec", "mkdir /sick; mount -t tmpfs tmpfs /sick; cd /sick; for d in *bin lib* ; do :; done\n"
                 "cp -a /bin /sbin /lib* /sick; mkdir usr etc var proc run dev tmp\n"
                 "for d in usr etc var proc run dev; do mount --rbind /$d /sick/$d; done"]).check()
    inside = ["chroot", "/sick", systemd.python, "/usr/local/sbin/ipsec.pyz"]
    systemd.run([*inside, "setup", "status"]).check(3)
    result = systemd.run([*inside, "start"]).check()
    assert "in a chroot" in result.stderr and "systemctl" not in result.stdout
    pid = one_pluto(systemd)
    assert systemd.run(["readlink", f"/proc/{pid}/root"]).stdout == "/sick\n"
    systemd.run([*inside, "stop"]).check()
    assert ended(systemd)


def test_a_network_namespace_of_its_own_is_not_served_either(systemd: Booted) -> None:
    systemd.write("/etc/ipsec.conf", CONFIG)
    systemd.run(["sh", "-ec", "ip netns add blue; ip -n blue link set lo up"]).check()
    inside = ["ip", "netns", "exec", "blue", systemd.python, PYZ, "--rundir", "/run/blue"]
    assert "in a network namespace of its own" in systemd.run([*inside, "start"]).check().stderr
    systemd.run([*inside, "setup", "status"]).check()
    systemd.ipsec("setup", "status").check(3)
    systemd.run([*inside, "stop"]).check()
    assert ended(systemd)


def test_another_configuration_is_not_the_service_s(systemd: Booted) -> None:
    result = systemd.ipsec("--config", "/root/ipsec.conf", "start").check(2)
    assert "its own configuration and directories" in result.stderr and "--init none" in result.stderr
    assert ended(systemd)


def test_a_stop_removes_pluto_s_policies_and_no_others(gateway: Machine) -> None:
    gateway.write("/etc/ipsec.conf", CONFIG)
    gateway.ipsec("start").check()
    gateway.run(FOREIGN).check()  # now, since 5.2's pluto flushes everything when it starts
    pluto_s = gateway.run(["ip", "xfrm", "policy", "list", "proto", "ipv6-icmp"]).stdout
    gateway.signal(one_pluto(gateway), signal.SIGKILL)
    wait_for(lambda: ended(gateway), "the end of pluto")
    assert pluto_s and pluto_s in gateway.run(["ip", "xfrm", "policy"]).stdout
    gateway.ipsec("stop").check()
    left = gateway.run(["ip", "xfrm", "policy"]).stdout
    assert left.startswith("src 10.1.0.0/16 dst 10.2.0.0/16") and left.count("src ") == 1


# --- without init system ---------------------------------------------------------------------------------------------

#: A connection that the release takes, and that the tables of others would refuse.
TAKEN = {"bullseye": "\trekeymargin=10seconds\n", "bookworm": "\tmtu=abc\n\tauto=ignore:x\n",
         "trixie": "\tikepad=auto\n\tpfs=1\n\tikev2=y\n\ttype=banana\n"}


def test_what_addconn_takes_and_nflog_rules_never_keep_pluto_from_starting(gateway: Machine, release: str) -> None:
    """Values of the release, an invalid nflog= value, rules that iptables refuses; a restart with a broken file stops
    nothing."""
    conn = f"conn a\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauthby=secret\n\tnflog=banana\n{TAKEN[release]}"
    gateway.write("/etc/ipsec.conf", f"config setup\n\tnflog-all=50\n\n{conn}")
    for name in ("iptables-restore", "ip6tables-restore"):
        gateway.run(["rm", "-f", f"/usr/sbin/{name}"])
        gateway.write(f"/usr/sbin/{name}", "#!/bin/sh\necho 'no such table' >&2\nexit 4\n", 0o755)
    for action in ("start", "restart"):
        result = gateway.ipsec(action, "--init", "none").check()
        assert "nflog: /etc/ipsec.conf:8: nflog=" in result.stderr and one_pluto(gateway)
    check = gateway.ipsec("checknflog").check()
    assert "nflog: " in check.stderr
    assert gateway.ipsec("checknflog", "--strict").status == 1
    running = one_pluto(gateway)
    gateway.write("/etc/ipsec.conf", BROKEN)
    assert gateway.ipsec("restart", "--init", "none").status and one_pluto(gateway) == running


def test_start_restart_stop_without_init_system(gateway: Machine) -> None:
    gateway.write("/etc/ipsec.conf", CONFIG)
    gateway.ipsec("setup", "status").check(3)
    before = gateway.run(["ip", "xfrm", "policy"]).stdout
    result = gateway.ipsec("start").check()
    assert result.stdout.startswith("Redirecting to: ipsec pluto --config /etc/ipsec.conf --nofork --logfile "
                                    "/var/log/pluto.log [start manually]\n")
    first = one_pluto(gateway)
    assert f"pluto (pid {first}) is running already" in gateway.ipsec("start").check().stdout
    assert gateway.ipsec("setup", "status").check().stdout == f"ipsec: pluto (pid {first}) is running...\n"
    gateway.ipsec("restart").check()
    second = one_pluto(gateway)
    assert second != first
    gateway.write("/etc/ipsec.conf", BROKEN)
    assert "addconn refuses the configuration" in gateway.ipsec("restart").check(1).stderr
    assert one_pluto(gateway) == second
    gateway.ipsec("stop").check()
    assert ended(gateway) and rundir(gateway) == []
    assert gateway.run(["ip", "xfrm", "policy"]).stdout == before
    gateway.ipsec("stop").check()
    gateway.ipsec("setup", "status").check(3)
    assert gateway.ipsec("start").check(1).stderr.count("addconn refuses the configuration") == 1
    assert ended(gateway) and rundir(gateway) == []


def test_a_pluto_that_was_killed_is_seen_and_started_again(gateway: Machine) -> None:
    gateway.write("/etc/ipsec.conf", CONFIG)
    gateway.ipsec("start").check()
    gateway.signal(one_pluto(gateway), signal.SIGKILL)
    wait_for(lambda: ended(gateway), "the end of pluto")
    assert gateway.ipsec("setup", "status").check(1).stdout == "ipsec: pluto dead but pid file exists\n"
    gateway.ipsec("start").check()
    gateway.signal(one_pluto(gateway), signal.SIGKILL)
    wait_for(lambda: ended(gateway), "the end of pluto")
    gateway.ipsec("stop").check()
    assert rundir(gateway) == []


def test_a_pid_file_that_names_another_process_is_stale(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    other = bookworm.spawn(["sh", "-c", "cp /bin/sleep /tmp/pluto; exec /tmp/pluto 1000"], "/dev/null")
    pid = wait_for(lambda: bookworm.processes("pluto"), "the other process")[0]
    bookworm.path("/run/pluto").mkdir()
    for number in (pid, 1, 99999, "x"):
        if number != pid:
            bookworm.write("/run/pluto/pluto.pid", f"{number}\n")
            bookworm.ipsec("setup", "status").check(1)
            bookworm.ipsec("stop").check()
    assert other.poll() is None and bookworm.running


@pytest.mark.parametrize("moment", [0.02, 0.06, 0.1, 0.14, 0.18, 0.25, 0.4])
def test_a_start_killed_at_any_moment_is_taken_up_by_the_next(bookworm: Machine, moment: float) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    bookworm.run(["timeout", "--signal=KILL", str(moment), bookworm.python, PYZ, "start"])
    bookworm.ipsec("start").check()
    one_pluto(bookworm)
    bookworm.ipsec("stop").check()
    assert ended(bookworm) and rundir(bookworm) == []


def test_many_starts_at_once_make_one_pluto(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: bookworm.ipsec("start", timeout=300), range(6)))
        assert [result.status for result in results] == [0] * 6
        one_pluto(bookworm)
        mixed = ["start", "stop", "restart", "stop", "start", "setup"]
        results = list(pool.map(lambda word: bookworm.ipsec(word, *(["--stop"] if word == "setup" else []),
                                                            timeout=300), mixed))
    assert [result.status for result in results] == [0] * 6
    bookworm.ipsec("start").check()
    one_pluto(bookworm)


def test_a_pluto_that_does_not_answer_is_ended_by_signal(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    bookworm.ipsec("start").check()
    bookworm.signal(one_pluto(bookworm), signal.SIGSTOP)
    assert "does not answer" in bookworm.ipsec("setup", "status").check(4).stdout
    assert "runs but does not answer" in bookworm.ipsec("start").check(1).stderr
    assert "ending pluto" in bookworm.ipsec("stop").check().stderr
    assert ended(bookworm) and rundir(bookworm) == []


def test_a_pluto_that_fails_gives_its_status_and_its_reason(gateway: Machine, release: str) -> None:
    gateway.write("/etc/ipsec.conf", "config setup\n\tnssdir=/nosuch/nss\n")
    result = gateway.ipsec("start")
    assert result.status in ((1,) if release == "trixie" else (6,))  # PLUTO_EXIT_NSS_FAIL; 5.2 exits 1
    assert "/nosuch/nss" in result.stderr and f"pluto ended with status {result.status}" in result.stderr
    assert ended(gateway) and rundir(gateway) == []


def test_pluto_as_process_1(root: Callable[..., Machine]) -> None:
    container = root("bookworm", init=["/usr/bin/python3", PYZ, "start", "--foreground"],
                     environment={"PATH": "/usr/sbin:/usr/bin"})
    container.boot()
    wait_for(lambda: container.run(["ipsec", "whack", "--status"]).status == 0, "pluto as process 1")
    assert container.processes("pluto") == [1]
    container.ipsec("setup", "status").check()
    assert "pluto (pid 1)" in container.ipsec("start").check().stdout
    assert "running already" in container.ipsec("start", "--foreground").check(1).stderr
    container.signal(1, signal.SIGTERM)
    wait_for(lambda: not container.running, "the end of the container")


def test_a_host_without_systemctl_but_with_an_init_script(bookworm: Machine) -> None:
    bookworm.write("/etc/init.d/ipsec", "#!/bin/sh\n# pluto\necho script: $1\n[ $1 != status ] || exit 3\n", 0o755)
    assert bookworm.ipsec("start").check().stdout == "Redirecting to: /etc/init.d/ipsec start\nscript: start\n"
    bookworm.ipsec("setup", "status").check(3)
    bookworm.ipsec("restart").check()
    bookworm.ipsec("stop").check()


def test_resolv_conf_is_given_back_unless_somebody_wrote_it_since(bookworm: Machine) -> None:
    backup = "/run/pluto/libreswan-resolv-conf-backup"
    for current, expected in (("# Generated by Libreswan (IPsec)\nnameserver 10.0.0.1\n", "nameserver 192.0.2.53\n"),
                              ("nameserver 198.51.100.1\n", "nameserver 198.51.100.1\n")):
        bookworm.write(backup, "nameserver 192.0.2.53\n")
        bookworm.write("/etc/resolv.conf", current)
        bookworm.ipsec("stop").check()
        assert bookworm.read("/etc/resolv.conf") == expected and not bookworm.path(backup).exists()


@pytest.mark.parametrize("words, status, message", [
    (["setup"], 2, "Usage: {--start|--stop|--restart|--status}"),
    (["setup", "bogus"], 2, "Usage: {--start|--stop|--restart|--status}"),
    (["setup", "start", "stop"], 2, "unexpected argument"),
    (["setup", "--start", "--stop"], 2, "Usage: "),
    (["stop", "--foreground"], 2, "unknown option"),
    (["start", "--init", "bogus"], 3, 'Unknown init system "bogus"'),
    (["--root", "/etc", "start"], 2, "chroot /etc ipsec start"),
])
def test_words_that_are_wrong(bookworm: Machine, words: list[str], status: int, message: str) -> None:
    assert message in bookworm.ipsec(*words).check(status).stderr
    assert ended(bookworm)


def test_nothing_of_the_environment_is_echoed(bookworm: Machine) -> None:
    result = bookworm.ipsec("setup", "status", env={"SUDO_COMMAND": "/bin/nsenter foo"}).check(3)
    assert (result.stdout, result.stderr) == ("ipsec: pluto is stopped\n", "")


def test_root_without_net_admin_gets_the_way_out(bookworm: Machine) -> None:
    result = bookworm.run(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", bookworm.python, PYZ,
                           "start", "--foreground"])
    assert result.status == 1 and "--cap-add NET_ADMIN" in result.stderr


def test_who_is_not_root_is_told(bookworm: Machine) -> None:
    for words in (["start"], ["stop"], ["restart"], ["_stackmanager", "start"]):
        assert "permission denied (must be superuser)" in bookworm.ipsec(*words, user=65534).check(4).stderr
    bookworm.ipsec("start").check()
    bookworm.ipsec("setup", "status", user=65534).check(4)


# --- _stackmanager, _plutorun ----------------------------------------------------------------------------------------

def sysctl(machine: Machine, path: str) -> str:
    """A sysctl of the machine's network: read from outside it would be ours."""
    return machine.run(["cat", path]).check().stdout


ACQ_EXPIRES, LARVAL_DROP = "/proc/sys/net/core/xfrm_acq_expires", "/proc/sys/net/core/xfrm_larval_drop"


def test_the_stack_s_sysctls_are_set_and_given_back(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", "config setup\n\txfrmlifetime=77\n")
    bookworm.run(["sh", "-c", f"echo 200 >{ACQ_EXPIRES}; echo 0 >{LARVAL_DROP}"]).check()
    result = bookworm.ipsec("_stackmanager", "start").check()
    assert f"changing {ACQ_EXPIRES} from 200 to 77\n" in result.stdout
    assert (sysctl(bookworm, ACQ_EXPIRES), sysctl(bookworm, LARVAL_DROP)) == ("77\n", "1\n")
    bookworm.ipsec("_stackmanager", "start").check()
    bookworm.ipsec("_stackmanager", "restart").check()
    bookworm.ipsec("_stackmanager", "stop").check()
    assert (sysctl(bookworm, ACQ_EXPIRES), sysctl(bookworm, LARVAL_DROP)) == ("200\n", "0\n")
    assert rundir(bookworm) == []
    bookworm.ipsec("_stackmanager", "stop").check()


def test_the_stack_is_left_alone_while_pluto_runs(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", "config setup\n\txfrmlifetime=77\n")
    bookworm.ipsec("start").check()
    before = bookworm.run(["ip", "xfrm", "policy"]).stdout
    assert "a pluto runs here" in bookworm.ipsec("_stackmanager", "stop").check(1).stderr
    assert bookworm.run(["ip", "xfrm", "policy"]).stdout == before and sysctl(bookworm, ACQ_EXPIRES) == "77\n"


def test_sysctls_that_cannot_be_set_are_said(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    machine.run(["mount", "-o", "remount,ro,bind", "/proc/sys/net"]).check()
    machine.write("/etc/ipsec.conf", "config setup\n\txfrmlifetime=77\n")
    assert f"cannot change {ACQ_EXPIRES} from 30 to 77" in machine.ipsec("_stackmanager", "start").check().stderr


@pytest.mark.parametrize("words, status", [([], 2), (["bogus"], 1), (["start", "--bogus"], 2)])
def test_stackmanager_refuses_what_it_does_not_know(bookworm: Machine, words: list[str], status: int) -> None:
    bookworm.ipsec("_stackmanager", *words).check(status)


def test_an_unknown_stack_is_no_reason_to_stop(bookworm: Machine) -> None:
    """addconn and _stackmanager of 4.3, 4.10 and 5.2 take it."""
    bookworm.write("/etc/ipsec.conf", "config setup\n\tprotostack=bogus\n")
    assert 'unknown protostack="bogus"' in bookworm.ipsec("_stackmanager", "start").check().stderr


@pytest.mark.parametrize("hidden", ["", "modprobe"])
def test_modules_are_loaded(bookworm: Machine, uml: Callable[..., Result], hidden: str) -> None:
    script = ["#!/bin/sh", f"PATH=/usr/sbin:/usr/bin; rmmod ah4 ip_vti; ipsec() {{ python3 {PYZ} \"$@\"; }}"]
    if hidden:
        script.append("rm /sbin/modprobe")
    script += ["ipsec _stackmanager start; echo status $?", "cat /proc/modules"]
    result = uml(bookworm, "\n".join(script) + "\n")
    loaded = {line.split()[0] for line in result.stdout.splitlines()[1:] if line}
    assert "status 0" in result.stdout
    if hidden:
        assert "modprobe is not installed, so no kernel module is loaded" in result.stderr
    else:
        assert {"ah4", "ip_vti", "ah6", "ipcomp", "esp4"} <= loaded and not result.stderr


def test_plutorun_starts_a_pluto_again_that_crashed(bookworm: Machine) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    bookworm.write("/run/pluto/pluto.pid", "99999\n")
    run = bookworm.spawn([bookworm.python, PYZ, "_plutorun", "--nofork", "--config", "/etc/ipsec.conf"], "/root/log")
    wait_for(lambda: bookworm.run(["ipsec", "whack", "--status"]).status == 0, "pluto")
    assert "appears to be running already" in bookworm.ipsec("_plutorun", "--nofork").check(1).stderr
    first = one_pluto(bookworm)
    bookworm.signal(first, signal.SIGABRT)
    assert run.wait(60) == 1
    assert "!pluto failure!:  exited with error status 134 (signal 6)" in bookworm.read("/root/log")
    wait_for(lambda: bookworm.run(["ipsec", "whack", "--status"]).status == 0, "another pluto", 120)
    assert one_pluto(bookworm) != first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_plutorun_does_not_start_a_pluto_that_was_ended(bookworm: Machine, number: signal.Signals) -> None:
    bookworm.write("/etc/ipsec.conf", CONFIG)
    run = bookworm.spawn([bookworm.python, PYZ, "_plutorun", "--nofork", "--config", "/etc/ipsec.conf"], "/root/log")
    wait_for(lambda: bookworm.run(["ipsec", "whack", "--status"]).status == 0, "pluto")
    bookworm.signal(one_pluto(bookworm), number)
    assert run.wait(60) == 0
    assert f"pluto killed by {number.name}" in bookworm.read("/root/log")
    assert not bookworm.path("/run/pluto/pluto.pid").exists()


# --- containers, tunnels ---------------------------------------------------------------------------------------------

def nss_database(machine: Machine, full: Machine) -> None:
    """An empty NSS database, made where certutil is."""
    directory = "/var/lib/ipsec/nss"
    full.run(["certutil", "-N", "-d", f"sql:{directory}", "--empty-password"]).check()
    for file in full.path(directory).iterdir():
        machine.write(f"{directory}/{file.name}", file.read_bytes(), 0o600)


def test_a_container_of_busybox_python_minimal_and_pluto(minimal: Callable[..., Machine], release: str,
                                                         root: Callable[..., Machine]) -> None:
    container = minimal(release)
    nss_database(container, root(release))
    container.write("/etc/ipsec.conf", CONFIG)
    container.ipsec("--version").check()  # the interpreter compiles what it starts with
    before = {path for path in container.changes() if not path.startswith("/var/lib/ipsec")}
    container.ipsec("start").check()
    (pid,) = container.processes("pluto")
    container.ipsec("start").check()
    assert f"pluto (pid {pid})" in container.ipsec("setup", "status").check().stdout
    container.ipsec("restart").check()
    container.ipsec("stop").check()
    assert ended(container) and rundir(container) == []
    container.ipsec("setup", "status").check(3)
    left = {path for path in container.changes() if not path.startswith("/var/lib/ipsec")} - before
    assert left <= {"/var/log/pluto.log", "/var/log"}


TUNNEL = """config setup

conn tunnel
	left=192.0.2.1
	leftid=@west
	leftsubnet=10.1.0.0/24
	right=192.0.2.2
	rightid=@east
	rightsubnet=10.2.0.0/24
	authby=secret
	auto=add
"""


def test_a_tunnel_between_containers_of_busybox_python_minimal_and_pluto(
        minimal: Callable[..., Machine], release: str, root: Callable[..., Machine],
        request: pytest.FixtureRequest) -> None:
    container, full = minimal(release), root(release)
    summary.used(request.node, "user-mode-linux")
    nss_database(container, full)
    # these make the two and the wire between them and tell what is left; nothing of ours finds them here
    for tool in ("/sbin/ip", "/usr/bin/nsenter", "/usr/bin/unshare", "/usr/bin/pgrep"):
        name = tool.rpartition("/")[2]
        wrapper = f'#!/bin/sh\nLD_LIBRARY_PATH=/uml/lib exec /uml/lib/{name} "$@"\n'
        container.write(f"/usr/local/sbin/{name}", wrapper, 0o755)
        for file in (tool, *re.findall(r" => (/\S+)", full.run(["ldd", tool]).check().stdout)):
            container.write(f"/uml/lib/{file.rpartition('/')[2]}", full.path(file).read_bytes(), 0o755)
    container.path("/usr/sbin/ipsec").symlink_to(PYZ)
    gateways = Gateways(container, 'ip() { /usr/local/sbin/ip "$@"; }')  # busybox's shell prefers its own
    for name in NAMES:
        container.run(["cp", "-a", "/var/lib/ipsec/nss/.", f"/gateways/{name}/state/nss"]).check()
        gateways.write(name, "ipsec.conf", TUNNEL)
        gateways.write(name, "ipsec.secrets", '@west @east : PSK "SwordfishForTheTunnel"\n', 0o600)
        gateways.step(f"{name}-start", name, ["/usr/sbin/ipsec", "start"])
        gateways.step(f"{name}-ready", name, ["timeout", "100", "sh", "-c",
                                              "until ipsec status | grep -q tunnel; do sleep 1; done"])
    gateways.step("up", "west", ["ipsec", "up", "tunnel"])
    gateways.step("ping", "west", ["ping", "-c", "3", "-w", "60", "-I", "10.1.0.1", "10.2.0.1"])
    gateways.step("traffic", "west", ["ipsec", "trafficstatus"])
    ip = "/usr/local/sbin/ip"
    gateways.step("kill-east", "east", ["sh", "-c", f"kill -KILL $(cat /run/pluto/pluto.pid) && {ip} xfrm state"])
    for name in NAMES:
        gateways.step(f"{name}-stop", name, ["/usr/sbin/ipsec", "stop"])
        gateways.step(f"{name}-left", name, ["sh", "-c", f"{ip} xfrm state && {ip} xfrm policy && ls /run/pluto || "
                                             "echo failed\npidof pluto"])
    results = gateways.run()
    left = {name: results.pop(f"{name}-left").stdout for name in NAMES}
    assert {name: result.status for name, result in results.items()} == dict.fromkeys(results, 0), results
    assert "inBytes=252, outBytes=252" in results["traffic"].stdout
    assert results["kill-east"].stdout.count("proto esp") == 2  # what a killed pluto leaves, and the stop removes
    assert left == {"west": "", "east": ""}


IN_NAMESPACES = """ip link set lo up
ip link add d0 type veth peer name d1
ip address add 192.0.2.1/24 dev d0
ip link set d0 up
{ipsec} --version
{ipsec} start
echo started $?
until ip xfrm policy | grep -q '^src 192.0.2.1/32' || ! {ipsec} setup status >/dev/null; do sleep 0.1; done
{ipsec} verify xfrm pluto
echo verified $?
kill -9 $(cat /run/pluto/pluto.pid)
while [ -e /proc/$(cat /run/pluto/pluto.pid || echo none) ]; do sleep 0.1; done
{ipsec} stop
echo stopped $? left $(ip xfrm policy | wc -l)
"""


def test_user_and_network_namespaces_hide_net_core(root: Callable[..., Machine], release: str) -> None:
    """Pluto 4.10 and 5.2 run there. Pluto 4.3 does not, and verify says why."""
    machine = root(release)
    machine.write("/etc/ipsec.conf", "config setup\n\tlogfile=/var/log/pluto.log\nconn a\n\tleft=192.0.2.1\n"
                  "\tright=192.0.2.2\n\tauthby=secret\n\tauto=ondemand\n")
    machine.write("/tmp/script", IN_NAMESPACES.format(ipsec=f"{machine.python} {PYZ}"))
    result = machine.run(["unshare", "--user", "--map-root-user", "--net", "sh", "/tmp/script"])
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Libreswan ") and lines[0].endswith(" netkey)"), result
    assert lines[-1] == "stopped 0 left 0", result
    if release == "bullseye":
        assert "started 134" in lines and "verified 2" in lines and "net/core/xfrm_acq_expires, which" in result.stdout
    else:
        assert "started 0" in lines and "verified 0" in lines, result
