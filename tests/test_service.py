"""Which init system serves, what it is told, and what is done without one: detection on made-up hosts, words as run.

Real init systems are in tests/system/test_service.py; here are those that no distribution at hand ships, and hosts
that nobody would build: two init systems at once, a service that is somebody else's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_subprocess import FakeProcess

import ipsec

PLUTO = "#!/bin/sh\nexec /usr/libexec/ipsec/pluto --nofork\n"
STRONGSWAN = "#!/bin/sh\n# IPsec for strongSwan\nexec /usr/lib/ipsec/starter --daemon charon\n"
SCRIPT = {"/etc/init.d/ipsec": PLUTO}
INITTAB = {"/etc/inittab": "id:2:initdefault:\n"}

Tree = Callable[..., ipsec.Host]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree(files, process 1, other processes): a host with these; a text that ends with / is a directory."""

    def make(files: dict[str, str], first: str = "", *others: str, exe: str = "") -> ipsec.Host:
        for number, name in enumerate([first, *others], 1):
            files = {**files, f"/proc/{number}/comm": f"{name}\n"}
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_text(text)
        if exe:
            os.symlink(exe, tmp_path / "proc/1/exe")
        return ipsec.Host({}, root=str(tmp_path))

    return make


HOSTS = {
    "openrc": ({"/run/openrc/softlevel": "default\n", "/etc/init.d/ipsec": "#!/sbin/openrc-run\ncommand=pluto\n"},
               "init", "rc-service ipsec start"),
    "openrc as process 1": ({"/etc/init.d/pluto": "#!/sbin/openrc-run\ncommand=pluto\n"}, "openrc-init",
                            "rc-service pluto start"),
    "upstart": ({"/proc/net/unix": "0: 2 0 10000 1 1 1 @/com/ubuntu/upstart\n", "/etc/init/ipsec.conf": "exec pluto\n"},
                "init", "start ipsec"),
    "runit": ({"/etc/service/ipsec/run": PLUTO}, "runit", "sv -w 30 start /etc/service/ipsec"),
    "s6": ({"/run/service/ipsec/run": PLUTO}, "s6-svscan", "s6-svc -wu -T 60000 -u /run/service/ipsec"),
    "dinit": ({"/etc/dinit.d/ipsec": "type = process\ncommand = /usr/libexec/ipsec/pluto --nofork\n"}, "dinit",
              "dinitctl start ipsec"),
    "procd": ({"/etc/init.d/ipsec": "#!/bin/sh /etc/rc.common\nUSE_PROCD=1\nPROG=/usr/libexec/ipsec/pluto\n"}, "procd",
              "/etc/init.d/ipsec start"),
    "sysvinit": (SCRIPT, "init", "/etc/init.d/ipsec start"),
    "sysvinit, another name": ({"/etc/init.d/libreswan": PLUTO}, "init", "/etc/init.d/libreswan start"),
    "a container with an init script": (SCRIPT, "sh", "/etc/init.d/ipsec start"),
    "busybox as init": (SCRIPT, "busybox", "/etc/init.d/ipsec start"),
}


@pytest.mark.parametrize("name", HOSTS)
def test_what_runs_is_what_serves(name: str, tree: Tree) -> None:
    files, first, words = HOSTS[name]
    service = ipsec.find_service(tree(files, first), "", "start")
    assert service and service.argvs(tree({}), "start") == [words.split()]


@pytest.mark.parametrize("first, words", [
    ("runit", {"stop": ["sv -w 30 stop /etc/service/ipsec"], "status": ["sv status /etc/service/ipsec"],
               "restart": ["sv -w 30 stop /etc/service/ipsec", "sv -w 30 start /etc/service/ipsec"]}),
    ("dinit", {"stop": ["dinitctl stop --ignore-unstarted ipsec"], "status": ["dinitctl status ipsec"],
               "restart": ["dinitctl stop --ignore-unstarted ipsec", "dinitctl start ipsec"]}),
    ("procd", {action: [f"/etc/init.d/ipsec {action}"] for action in ("stop", "restart", "status")}),
])
def test_the_words_for_each_action(first: str, words: dict[str, list[str]], tree: Tree) -> None:
    service = ipsec.find_service(tree(HOSTS[first][0], first), "", "start")
    assert service
    for action, lines in words.items():
        assert service.argvs(tree({}), action) == [line.split() for line in lines]


def test_red_hat_calls_service(tree: Tree, fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tree({**SCRIPT, "/etc/redhat-release": "CentOS release 6.10\n"}, "init")
    monkeypatch.setattr(host, "which", lambda program: f"/sbin/{program}")
    service = ipsec.find_service(host, "", "start")
    assert service and service.argvs(host, "start") == [["service", "ipsec", "start"]]


def test_bsd_runs_rc_d(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("FreeBSD", "h", "14.1", "", "amd64")))
    host = tree({"/usr/local/etc/rc.d/pluto": "#!/bin/sh\nname=pluto\n"})
    service = ipsec.find_service(host, "", "status")
    assert service and service.argvs(host, "status") == [["/usr/local/etc/rc.d/pluto", "onestatus"]]


@pytest.mark.parametrize("files, first, exe", [
    ({}, "sh", ""), ({}, "tini", ""), ({}, "init", "/bin/busybox"), ({}, "init", "/usr/bin/dash"),
    ({}, "init", "/init"), ({}, "init", ""), ({}, "docker-init", "/sbin/docker-init"),  # WSL, LinuxKit, docker --init
    ({"/etc/s6-overlay/": ""}, "s6-svscan", ""), ({"/package/admin/s6-overlay/": ""}, "s6-svscan", ""),
    ({"/etc/init.d/ipsec": "#!/sbin/openrc-run\ncommand=pluto\n"}, "sh", ""),  # OpenRC is installed, but does not run
    ({"/etc/init.d/ipsec": STRONGSWAN}, "sh", ""), ({"/lib/systemd/system/ipsec.service": "pluto"}, "sh", ""),
])
def test_without_init_system_we_act_ourselves(files: dict[str, str], first: str, exe: str, tree: Tree) -> None:
    assert ipsec.find_service(tree(files, first, exe=exe), "", "start") is None


@pytest.mark.parametrize("action, status", [("start", 5), ("stop", 5), ("status", 4)])
@pytest.mark.parametrize("first, files", [
    ("init", INITTAB), ("init", {**INITTAB, "/etc/init.d/ipsec": STRONGSWAN}), ("init", {"/sbin/telinit": ""}),
    ("init", {"/run/initctl": ""}), ("runit", {}), ("dinit", {}), ("procd", {}), ("s6-svscan", {}),
])
def test_an_init_system_without_our_service(first: str, files: dict[str, str], action: str, status: int,
                                            tree: Tree) -> None:
    with pytest.raises(ipsec.Failure, match="has no service for pluto.*--init none") as caught:
        ipsec.find_service(tree(files, first), "", action)
    assert caught.value.status == status


def test_process_1_decides_between_two(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**HOSTS["runit"][0], **HOSTS["dinit"][0], "/run/dinitctl": ""}
    service = ipsec.find_service(tree(files, "dinit", "runsvdir"), "", "start")
    assert service and service.manager.name == "dinit"
    assert "more than one init system has a service for pluto" in capsys.readouterr().err


def test_two_that_conflict_are_named(tree: Tree) -> None:
    host = tree({**HOSTS["runit"][0], **HOSTS["s6"][0]}, "tini", "runsvdir", "s6-svscan")
    with pytest.raises(ipsec.Failure, match="runit .*/etc/service/ipsec.* and s6 .*/run/service/ipsec") as caught:
        ipsec.find_service(host, "", "start")
    assert caught.value.status == ipsec.NO_INIT_SYSTEM
    service = ipsec.find_service(host, "s6", "start")
    assert service and service.manager.name == "s6"


def test_a_supervisor_beside_init_serves_what_init_does_not(tree: Tree) -> None:
    service = ipsec.find_service(tree(HOSTS["runit"][0], "init", "runsvdir"), "", "start")
    assert service and service.manager.name == "runit"


def test_a_process_of_another_user_is_no_init_system(tree: Tree) -> None:
    host = tree(HOSTS["runit"][0], "sh", "runsvdir")
    if os.geteuid() == 0:
        os.chown(f"{host.root}/proc/2", 1000, 1000)
        assert ipsec.find_service(host, "", "start") is None


def test_the_user_s_choice(tree: Tree) -> None:
    host = tree({**SCRIPT, "/run/systemd/system/": ""}, "systemd")
    assert ipsec.find_service(host, "none", "start") is None
    service = ipsec.find_service(host, "sysvinit", "start")
    assert service and service.path == "/etc/init.d/ipsec"
    with pytest.raises(ipsec.Failure, match='Unknown init system "launchd"') as caught:
        ipsec.find_service(host, "launchd", "start")
    assert caught.value.status == ipsec.NO_INIT_SYSTEM


# --- systemd's units -------------------------------------------------------------------------------------------------

def unit(name: str, state: str, start: str = "") -> str:
    return f"Id={name}\nLoadState={state}\n" + (f"ExecStart={{ path={start} ; argv[]={start} }}\n" if start else "")


OURS = unit("ipsec.service", "loaded", "/usr/libexec/ipsec/pluto")
THEIRS = unit("strongswan-starter.service", "loaded", "/usr/sbin/ipsec start --nofork")


@pytest.fixture
def systemd(tree: Tree, fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ipsec.Service | None]:
    def find(*units: str, status: int = 0, action: str = "start") -> ipsec.Service | None:
        host = tree({"/run/systemd/system/": ""}, "systemd")
        monkeypatch.setattr(host, "resolve", lambda program, hint="": program)
        fp.register(["systemctl", "show", fp.any()], stdout="\n".join(units), returncode=status)
        return ipsec.find_service(host, "", action)

    return find


@pytest.mark.parametrize("units, name, masked", [
    ([OURS, unit("libreswan.service", "not-found")], "ipsec", False),
    ([THEIRS, unit("libreswan.service", "loaded", "/usr/libexec/ipsec/pluto")], "libreswan", False),
    ([unit("ipsec.service", "masked"), unit("pluto.service", "loaded", "/usr/libexec/ipsec/pluto")], "pluto", False),
    ([unit("ipsec.service", "not-found"), unit("libreswan@west.service", "loaded", "/usr/libexec/ipsec/pluto")],
     "libreswan@west", False),
    ([unit("ipsec.service", "loaded", "/usr/local/sbin/ipsec start --foreground")], "ipsec", False),
    ([unit("ipsec.service", "masked")], "ipsec", True),
])
def test_the_unit_that_is_ours(units: list[str], name: str, masked: bool,
                               systemd: Callable[..., ipsec.Service | None]) -> None:
    service = systemd(*units)
    assert service and (service.name, service.masked) == (name, masked)
    assert service.argvs(ipsec.Host({}), "stop") == [["systemctl", "stop", f"{name}.service"]]


@pytest.mark.parametrize("units", [[THEIRS], [unit("ipsec.service", "not-found")]])
def test_no_unit_of_ours(units: list[str], systemd: Callable[..., ipsec.Service | None]) -> None:
    with pytest.raises(ipsec.Failure, match="systemd runs this host, but has no service for pluto"):
        systemd(*units)


def test_a_systemd_that_does_not_answer_is_left_to_systemctl(systemd: Callable[..., ipsec.Service | None]) -> None:
    service = systemd(status=1)
    assert service and service.argvs(ipsec.Host({}), "start") == [["systemctl", "start", "ipsec.service"]]


# --- init systems by their documented commands -----------------------------------------------------------------------

@pytest.fixture
def served(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[ipsec.Host, ipsec.Service]]:
    """served(name): a live host on which that init system has the service, and pluto answers after a start."""

    def make(name: str) -> tuple[ipsec.Host, ipsec.Service]:
        files, first, _ = HOSTS[name]
        service = ipsec.find_service(tree(files, first), "", "start")
        host = ipsec.Host({})
        monkeypatch.setattr(host, "resolve", lambda program, hint="": program)
        monkeypatch.setattr(ipsec, "check_config", lambda host: None)
        monkeypatch.setattr(ipsec, "pluto_answers", lambda host: True)
        assert service
        return host, service

    return make


@pytest.mark.parametrize("name, argv, text, status, expected", [
    ("upstart", ["status", "ipsec"], "ipsec start/running, process 812\n", 0, 0),
    ("upstart", ["status", "ipsec"], "ipsec stop/waiting\n", 0, 3),
    ("upstart", ["status", "ipsec"], "", 1, 4),
    ("dinit", ["dinitctl", "status", "ipsec"], "Service: ipsec\n    State: STARTED\n", 0, 0),
    ("dinit", ["dinitctl", "status", "ipsec"], "Service: ipsec\n    State: STOPPED\n", 0, 3),
    ("dinit", ["dinitctl", "status", "ipsec"], "", 1, 4),
    ("runit", ["sv", "status", "/etc/service/ipsec"], "down: /etc/service/ipsec: 7s\n", 0, 3),
    ("runit", ["sv", "status", "/etc/service/ipsec"], "down: /etc/service/ipsec: 7s; run: log: (pid 9) 8s\n", 0, 3),
    ("runit", ["sv", "status", "/etc/service/ipsec"], "run: /etc/service/ipsec: (pid 8) 7s; down: log: 1s\n", 0, 0),
    ("s6", ["s6-svstat", "/run/service/ipsec"], "up (pid 14) 9 seconds\n", 0, 0),
])
def test_a_status_that_only_the_text_tells(name: str, argv: list[str], text: str, status: int, expected: int,
                                           served: Callable[[str], tuple[ipsec.Host, ipsec.Service]], fp: FakeProcess,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    fp.register(argv, stdout=text, returncode=status)
    assert ipsec.act(*served(name), "status", dry=False) == expected
    assert capsys.readouterr().out == f"Redirecting to: {' '.join(argv)}\n{text}"


@pytest.mark.parametrize("name, action, argvs", [
    ("upstart", "start", ["start ipsec"]), ("upstart", "restart", ["restart ipsec"]),
    ("dinit", "start", ["dinitctl start ipsec"]),
    ("dinit", "restart", ["dinitctl stop --ignore-unstarted ipsec", "dinitctl start ipsec"]),
])
def test_the_words_are_run_and_a_failure_passed_back(
        name: str, action: str, argvs: list[str], served: Callable[[str], tuple[ipsec.Host, ipsec.Service]],
        fp: FakeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in argvs:
        fp.register(argv.split())
    assert ipsec.act(*served(name), action, dry=False) == 0
    assert capsys.readouterr().out == "".join(f"Redirecting to: {argv}\n" for argv in argvs)
    fp.register(argvs[0].split(), returncode=7)
    assert ipsec.act(*served(name), action, dry=False) == 7
    assert len(fp.calls) == len(argvs) + 1


def test_a_stop_that_fails_touches_nothing(served: Callable[[str], tuple[ipsec.Host, ipsec.Service]],
                                           fp: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean_up(host: ipsec.Host) -> None:
        raise AssertionError("the kernel's policies were touched")

    monkeypatch.setattr(ipsec, "clean_up", clean_up)
    fp.register(["dinitctl", "stop", "--ignore-unstarted", "ipsec"], returncode=1)
    assert ipsec.act(*served("dinit"), "stop", dry=False) == 1


def test_a_service_that_starts_without_pluto_is_no_success(
        served: Callable[[str], tuple[ipsec.Host, ipsec.Service]], fp: FakeProcess,
        monkeypatch: pytest.MonkeyPatch) -> None:
    host, service = served("dinit")
    monkeypatch.setattr(ipsec, "pluto_answers", lambda host: False)
    monkeypatch.setattr(ipsec, "CHECK_TIME", 0.2)
    fp.register(["dinitctl", "start", "ipsec"])
    with pytest.raises(ipsec.Failure, match="pluto does not answer"):
        ipsec.act(host, service, "start", dry=False)


# --- an init script that calls this program ---------------------------------------------------------------------------

@pytest.mark.parametrize("files, processes", [
    ({}, ["/bin/sh /etc/init.d/ipsec start"]), ({}, ["/etc/init.d/ipsec start"]),
    ({}, ["/bin/sh /sbin/service ipsec start"]), ({}, ["ipsec setup start", "/bin/sh -e /etc/init.d/ipsec restart"]),
])
def test_an_init_script_that_calls_this_program_is_not_called_again(files: dict[str, str], processes: list[str],
                                                                    tree: Tree) -> None:
    """/proc of this process and of its parents, the nearest first."""
    pids = [os.getpid(), *range(100, 100 + len(processes)), 1]
    for pid, parent, line in zip(pids, pids[1:], ["ipsec setup start", *processes]):
        files = {**files, f"/proc/{pid}/stat": f"{pid} (sh) S {parent} 1\n",
                 f"/proc/{pid}/cmdline": "\0".join(line.split()) + "\0"}
    assert ipsec.find_service(tree({**SCRIPT, **files}, "sh"), "", "start") is None


def test_an_editor_of_the_init_script_is_no_init_script(tree: Tree) -> None:
    files = {f"/proc/{os.getpid()}/stat": f"{os.getpid()} (ipsec) S 100 1\n", "/proc/100/stat": "100 (vi) S 1 1\n",
             "/proc/100/cmdline": "vi\0/etc/init.d/ipsec\0"}
    assert ipsec.find_service(tree({**SCRIPT, **files}, "sh"), "", "start")


def test_an_init_script_without_a_process_of_its_own_is_known_by_the_environment(tree: Tree) -> None:
    host = tree(SCRIPT, "sh")
    host.env[ipsec.SCRIPT_MARK] = "/etc/init.d/ipsec"
    assert ipsec.find_service(host, "", "start") is None
    assert ipsec.SCRIPT_MARK not in host.env


def test_a_unit_that_calls_this_program_is_not_started_again(tree: Tree, fp: FakeProcess) -> None:
    fp.register([fp.any()], stdout="Id=ipsec.service\nLoadState=loaded\nExecStart={ path=/usr/sbin/ipsec }\n")
    fp.keep_last_process(True)
    for group, served in (("/system.slice/ipsec.service", False), ("/user.slice/session-1.scope", True)):
        host = tree({"/proc/self/cgroup": f"0::{group}\n"}, "systemd")
        assert (ipsec.find_service(host, "", "start") is not None) == served


# --- is pluto running? -----------------------------------------------------------------------------------------------

UDP = "  sl  local_address rem_address   st\n   0: 0100007F:01F4 00000000:0000 07 0:0 0:0 0 0 0 4711 2 0 0\n"
PROC = {"/proc/self/stat": "1 (x) S 0\n", "/proc/self/net/udp": "  sl\n"}


@pytest.mark.parametrize("files, sign", [
    ({}, "/proc can't be read"),
    ({"/proc/self/stat": "1 (x) S 0\n"}, "/proc/net/udp can't be read"),
    ({**PROC, "/proc/self/net/udp": UDP}, "UDP port 500 is in use by a process"),
    ({**PROC, "/proc/self/net/udp6": UDP.replace("0100007F", 24 * "0" + "01000000")}, "UDP port 500 is in use"),
    ({**PROC, "/proc/self/net/tcp": UDP.replace("01F4", "1194").replace(" 07 ", " 0A ")}, "TCP port 4500 is in use"),
    ({**PROC, "/run/pluto/pluto.pid": "7", "/proc/7/stat": "7 (pluto) S 1\n"}, ""),  # exe can't be read: not pluto
    (PROC, ""), ({**PROC, "/run/pluto/pluto.pid": "garbage"}, ""), ({**PROC, "/run/pluto/pluto.pid": "99999"}, ""),
])
def test_each_sign_of_a_pluto_that_proc_does_not_show(files: dict[str, str], sign: str, tree: Tree,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "socket_signs", lambda host: iter(()))
    signs = ipsec.signs_of_pluto(tree(files))
    assert any(text.startswith(sign) for text in signs) if sign else signs == []


def test_a_port_of_a_process_that_proc_shows_is_no_sign(tree: Tree, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "socket_signs", lambda host: iter(()))
    host = tree({**PROC, "/proc/self/net/udp": UDP, "/proc/9/fd/": "", "/proc/9/stat": "9 (charon) S 1\n"})
    os.symlink("socket:[4711]", tmp_path / "proc/9/fd/3")
    assert ipsec.signs_of_pluto(host) == []


@pytest.mark.parametrize("error, silent", [(errno.ENOENT, True), (errno.ECONNREFUSED, True), (errno.EACCES, False),
                                           (errno.EMFILE, False)])
def test_a_socket_is_silent_only_if_nothing_listens(error: int, silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ipsec.Host({})

    def connect(name: str, kind: int, timeout: float | None) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(host, "connect", connect)
    assert (list(ipsec.socket_signs(host)) == []) == silent


def test_a_start_needs_a_silent_socket_no_process_and_free_ports(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc a start goes on, but removes nothing; a port in use stops it."""
    host = tree({})
    monkeypatch.setattr(ipsec, "socket_signs", lambda host: iter(()))
    monkeypatch.setattr(host, "bind_udp", lambda family, port: None)
    assert ipsec.check_not_running(host) is False

    def refuse(family: int, port: int) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(host, "bind_udp", refuse)
    with pytest.raises(ipsec.Failure, match="UDP port 500 can't be bound: Address already in use"):
        ipsec.check_not_running(host)


# --- what a start and a stop touch on hosts that lack it -------------------------------------------------------------

def test_a_kernel_without_netfilter_has_no_rules_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ipsec.Host({})

    def without(family: int, timeout: float = 10.0) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(host, "netlink", without)
    rules = ipsec.NfTables(host)
    assert rules.found(lambda prefix: True) == []
    with pytest.raises(ipsec.Failure, match="install iptables"):
        rules.change([], [ipsec.Capture("INPUT", "in", 50, "x")])
