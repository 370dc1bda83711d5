"""Which init system serves, what it is told, and what is done without one: detection on made-up hosts, words as run.

Real init systems are in tests/system/test_service.py; here are those that no distribution at hand ships, and hosts
that nobody would build: two init systems at once, a service that is somebody else's.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
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


@pytest.mark.parametrize("action", ["start", "stop", "status"])
@pytest.mark.parametrize("options, is_used", [
    ({}, True), ({"conf": "/x.conf"}, False), ({"rundir": "/x"}, False), ({"nssdir": "/var/lib/ipsec/nss"}, True),
    ({"nssdir": "sql:/etc/keys"}, True), ({"nssdir": "/x"}, None),
])
def test_a_service_has_its_own_configuration_and_directories(action: str, options: dict[str, str], is_used: bool | None,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Another NSS database matters only for a start; ipsec.conf has nssdir=/etc/keys."""
    monkeypatch.setattr(ipsec, "configured_directory", lambda host, key: "sql:/etc/keys")
    host, service = ipsec.Host({}, **options), ipsec.Service(ipsec.MANAGERS[0], "ipsec")
    if is_used or (is_used is None and action != "start"):
        ipsec.check_action(host, service, action)
        return
    with pytest.raises(ipsec.Failure, match="systemd starts pluto with its own configuration and directories"):
        ipsec.check_action(host, service, action)


@pytest.mark.parametrize("action", ["start", "status"])
def test_the_service_has_the_control_socket_of_its_run_directory(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the socket that --ctlsocket names, a start would wait in vain for pluto, and then kill it."""
    monkeypatch.chdir("/proc")
    host, args = ipsec.Host({}, rundir="./blue", ctlsocket="/x"), ipsec.Args()
    args.options["--init"] = ["none"]
    asked: list[str] = []
    monkeypatch.setattr(ipsec.Direct, action, lambda self, **_: asked.append(self.host.ctlsocket))
    ipsec.control_service(host, args, action)
    assert asked == ["/proc/blue/pluto.ctl"]
    host, args.options["--dry-run"] = ipsec.Host({}, ctlsocket="/x"), [""]
    monkeypatch.setattr(ipsec, "find_service", lambda *_: ipsec.Service(ipsec.MANAGERS[0], "ipsec"))
    ipsec.control_service(host, args, action)
    assert host.ctlsocket == "/run/pluto/pluto.ctl"


@pytest.mark.parametrize("name, action", [("_autostart", "start"), ("_autostop", "stop")])
def test_names_of_older_releases_start_and_stop(name: str, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as a command and as the action of `ipsec setup`."""
    actions: list[str] = []
    monkeypatch.setattr(ipsec, "control_service", lambda host, args, action: actions.append(action))
    for command, *words in ([name], ["setup", name]):
        entry = ipsec.COMMANDS[command]
        entry.function(ipsec.Host({}), entry.parse(words))
    assert actions == [action, action]


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


def test_a_unit_that_calls_this_program_is_not_started_again(tree: Tree, fp: FakeProcess,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec.Host, "resolve", lambda host, program, hint="": program)
    fp.register(["systemctl", fp.any()], stdout=unit("ipsec.service", "loaded", "/usr/sbin/ipsec"))
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
    ({**PROC, "/run/pluto/pluto.pid": "1" * 5000}, ""), ({"/run/pluto/pluto.pid": "1" * 20}, "/proc can't be read"),
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
    assert rules.find_rules(lambda prefix: True) == []
    with pytest.raises(ipsec.Failure, match="install iptables"):
        rules.change([], [ipsec.Capture("INPUT", "in", 50, "x")])


# --- the direct start and stop, with programs in the place of libreswan's ---------------------------------------------

def program(directory: Path, name: str, text: str) -> None:
    """Write a shell script that stands in for a program of libreswan."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ipsec.Host:
    """A host whose files are below tmp_path, where the user counts as root and no pluto runs or may run."""
    monkeypatch.setattr(ipsec.Host, "superuser", property(lambda self: True))
    programs = tmp_path / "libexec"
    for name in ("pluto", "addconn"):
        program(programs, name, "exit 0")
    (tmp_path / "ipsec.conf").write_text(f"config setup\n\tlogfile={tmp_path}/pluto.log\n\nconn a\n\treqid=77\n")
    host = ipsec.Host({"PATH": os.environ["PATH"]}, conf=f"{tmp_path}/ipsec.conf", rundir=f"{tmp_path}/run",
                      nssdir=f"{tmp_path}/nss")
    host.execdir, host.confddir = str(programs), f"{tmp_path}/ipsec.d"
    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(ipsec, "SYSCTLS", f"{tmp_path}/sys")
    monkeypatch.setattr(host, "has_xfrm", lambda: True)
    for name, value in (("find_pluto", None), ("pluto_answers", False), ("signs_of_pluto", []),
                        ("signs_of_own_pluto", []), ("flush_xfrm", (0, 0)), ("stop_nflog", None),
                        ("restore_resolv_conf", None), ("load_modules", None)):
        monkeypatch.setattr(ipsec, name, lambda *_, value=value: value)
    return host


def error_of(function: Callable[..., object], *words: object, **options: object) -> ipsec.Failure:
    """Return the Failure that a call raises."""
    with pytest.raises(ipsec.Failure) as caught:
        function(*words, **options)
    return caught.value


def test_a_pluto_that_ends_at_once_is_a_failure_with_its_status_and_words(
        gateway: ipsec.Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ipsec.secrets").write_text(': PSK "SwordfishForTheTunnel"\n')
    log = tmp_path / "pluto.log"
    log.write_text("of an earlier start\n")
    program(tmp_path / "libexec", "pluto", f"echo no database >&2; echo SwordfishForTheTunnel >>{log}; exit 7")
    monkeypatch.setattr(ipsec.Direct, "_prepare", lambda self: None)
    failure = error_of(ipsec.Direct(gateway, dry=False).start)
    assert (failure.status, failure.message, failure.hint) == (7, "pluto ended with status 7", f"its log: {log}")
    shown = capsys.readouterr().err
    assert "no database" in shown and "[redacted]" in shown
    assert "Swordfish" not in shown and "earlier" not in shown

    monkeypatch.setattr(ipsec, "signs_of_pluto", lambda host: ["UDP port 500 is in use"])
    error_of(ipsec.Direct(gateway, dry=False).start)
    assert "pluto left are not removed: UDP port 500 is in use" in capsys.readouterr().err


def test_a_pluto_that_does_not_answer_is_killed(gateway: ipsec.Host, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    number = tmp_path / "number"
    program(tmp_path / "libexec", "pluto", f"echo $$ >{number}.new; mv {number}.new {number}; exec sleep 600")

    def wait(done: Callable[[], object], seconds: float) -> bool:
        while not number.exists():
            time.sleep(0.01)
        return bool(done())

    monkeypatch.setattr(ipsec, "wait_until", wait)
    monkeypatch.setattr(ipsec.Direct, "_prepare", lambda self: None)
    failure = error_of(ipsec.Direct(gateway, dry=False).start)
    assert (failure.status, failure.message) == (1, "pluto did not answer within 60 s and was ended")
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_a_pluto_that_runs_is_not_started_again(gateway: ipsec.Host, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    direct = ipsec.Direct(gateway, dry=False)
    monkeypatch.setattr(ipsec, "find_pluto", lambda host: 42)
    monkeypatch.setattr(ipsec, "wait_until", lambda done, seconds: done())
    assert error_of(direct.start).message == "pluto runs but does not answer (pid 42)"
    monkeypatch.setattr(ipsec, "pluto_answers", lambda host: True)
    assert direct.start() == ipsec.OK
    assert capsys.readouterr().out.endswith("ipsec: pluto (pid 42) is running already\n")
    assert error_of(direct.start, foreground=True).message == "pluto is running already (pid 42)"


def test_in_the_foreground_pluto_replaces_this_process(gateway: ipsec.Host, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid file has this process until pluto writes its own; without /dev/log, pluto logs to standard error."""
    (tmp_path / "ipsec.conf").write_text("config setup\n")
    run: list[object] = []
    monkeypatch.setattr(gateway, "exec", lambda path, words: run.extend([path, *words]))
    monkeypatch.setattr(gateway, "exists", lambda name: name != "/dev/log" and os.path.exists(name))
    monkeypatch.setattr(os, "chdir", run.append)
    monkeypatch.setattr(ipsec.Direct, "_prepare", lambda self: None)
    monkeypatch.setattr(ipsec.Direct, "_launch", lambda self, argv: None)
    assert ipsec.Direct(gateway, dry=False).start(foreground=True) == ipsec.OK
    assert run == ["/", f"{tmp_path}/libexec/pluto", "--config", f"{tmp_path}/ipsec.conf", "--nofork",
                   "--rundir", f"{tmp_path}/run", "--nssdir", f"{tmp_path}/nss", "--stderrlog"]
    assert (tmp_path / "run/pluto.pid").read_text() == f"{os.getpid()}\n"


def test_pluto_gets_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pluto is started in the directory `/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ipsec.Host, "writable", lambda host, name: True)  # by an ordinary user, /var/log is not
    host = ipsec.Host({}, conf="x.conf", rundir="./run", nssdir="sql:nss")
    argv = ipsec.Direct(host, dry=False)._argv(foreground=False)
    assert argv[1:] == ["--config", f"{tmp_path}/x.conf", "--nofork", "--rundir", f"{tmp_path}/run",
                        "--nssdir", f"{tmp_path}/nss", "--logfile", "/var/log/pluto.log"]


def test_only_root_starts_and_stops(gateway: ipsec.Host, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ipsec.Host, "superuser", property(lambda self: False))
    for act in (ipsec.Direct.start, ipsec.Direct.stop, ipsec.Direct.restart):
        assert error_of(act, ipsec.Direct(gateway, dry=False)).status == ipsec.LSB_NO_RIGHT
        capsys.readouterr()
        assert act(ipsec.Direct(gateway, dry=True)) == ipsec.OK
        assert capsys.readouterr().out.startswith("Redirecting to: ")


def test_if_a_pluto_may_run_a_start_leaves_its_files(gateway: ipsec.Host, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if no pluto runs for sure are the pid file and the control socket of an earlier one removed."""
    for name in ("stack_start", "check_nss", "check_nflog"):
        monkeypatch.setattr(ipsec, name, lambda *_, **__: None)
    (tmp_path / "run").mkdir()
    files = [tmp_path / "run/pluto.pid", tmp_path / "run/pluto.ctl"]
    for is_alone in (False, True):
        for file in files:
            file.write_text("")
        monkeypatch.setattr(ipsec, "check_not_running", lambda host, is_alone=is_alone: is_alone)
        ipsec.Direct(gateway, dry=False)._prepare()
        assert [file.exists() for file in files] == [not is_alone] * 2


def test_a_restart_with_a_broken_configuration_stops_nothing(gateway: ipsec.Host, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    program(tmp_path / "libexec", "addconn", "echo 'ipsec.conf:3: nonsense' >&2; exit 3")
    monkeypatch.setattr(ipsec.Direct, "stop", lambda self: pytest.fail("stopped"))
    failure = error_of(ipsec.Direct(gateway, dry=False).restart)
    assert failure.status == 3 and "addconn refuses the configuration; pluto was left as it is" in failure.message
    assert "ipsec.conf:3: nonsense" in capsys.readouterr().err


def test_addconn_decides_and_the_reader_only_warns(gateway: ipsec.Host, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ipsec.conf").write_text("config setup\nconn a\n\tfrobnicate=1\n")
    assert ipsec.check_config(gateway).conns()
    warning = capsys.readouterr().err
    assert "frobnicate" in warning and "addconn accepts it" in warning
    (tmp_path / "libexec/addconn").unlink()
    assert "frobnicate" in error_of(ipsec.check_config, gateway).message
    (tmp_path / "libexec/pluto").unlink()
    for failure in (error_of(ipsec.check_config, gateway),
                    error_of(ipsec.plutorun_command, gateway, ipsec.Args())):
        assert failure.status == ipsec.LSB_NOT_INSTALLED and "libreswan is not installed" in failure.hint


def test_what_does_not_end_by_a_request_ends_by_signals(gateway: ipsec.Host, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    """A process that ignores SIGTERM gets SIGKILL."""
    ignoring = 'trap "" TERM; echo ready; while :; do sleep 1; done'
    child = subprocess.Popen(["sh", "-c", ignoring], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"ready\n"
    sent: list[tuple[str, ...]] = []

    def signal_it(pid: int, *names: str) -> None:
        sent.append(names)
        for name in names:
            child.send_signal(signal.Signals[name])

    monkeypatch.setattr(gateway, "signal", signal_it)
    monkeypatch.setattr(ipsec, "is_pluto", lambda host, pid: child.poll() is None)
    monkeypatch.setattr(ipsec, "STOP_TIMES", (("shutdown", 0.1), ("SIGTERM", 0.1), ("SIGKILL", 60.0)))
    try:
        ipsec.Direct(gateway, dry=False)._end(child.pid)
    finally:
        child.kill()
        child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert sent == [("SIGTERM", "SIGCONT"), ("SIGKILL", "SIGCONT")]
    assert f"ending pluto (pid {child.pid}) by signal" in capsys.readouterr().err


def test_a_pluto_that_never_ends_keeps_its_policies(gateway: ipsec.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "find_pluto", lambda host: 42)
    monkeypatch.setattr(ipsec, "is_pluto", lambda host, pid: True)
    monkeypatch.setattr(ipsec, "STOP_TIMES", (("shutdown", 0.0), ("SIGKILL", 0.0)))
    monkeypatch.setattr(gateway, "signal", lambda *_: None)
    monkeypatch.setattr(ipsec, "clean_up", lambda host: pytest.fail("cleaned up"))
    failure = error_of(ipsec.Direct(gateway, dry=False).stop)
    assert failure.message == "pluto (pid 42) does not end; the kernel's policies are left as they are"


@pytest.mark.parametrize("pid, answers, signs, has_file, text, status", [
    (42, True, [], True, "pluto (pid 42) is running...", 0),
    (42, False, [], True, "pluto is running, but does not answer (pid 42)", 4),
    (None, True, [], False, "pluto is running, in another PID namespace or without its pid file", 0),
    (None, False, ["the pid file can't be read"], False, "pluto status unknown: the pid file can't be read", 4),
    (None, False, [], True, "pluto dead but pid file exists", 1),
    (None, False, [], False, "pluto is stopped", 3),
])
def test_the_status_of_pluto(pid: int | None, answers: bool, signs: list[str], has_file: bool, text: str, status: int,
                             gateway: ipsec.Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    if has_file:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/pluto.pid").write_text("42\n")
    monkeypatch.setattr(ipsec, "find_pluto", lambda host: pid)
    monkeypatch.setattr(ipsec, "pluto_answers", lambda host: answers)
    monkeypatch.setattr(ipsec, "signs_of_own_pluto", lambda host: signs)
    assert ipsec.Direct(gateway, dry=False).status() == status
    assert capsys.readouterr().out == f"ipsec: {text}\n"


def test_the_sysctls_are_set_at_a_start_and_restored_at_a_stop(gateway: ipsec.Host, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    expires, drop = tmp_path / "sys/xfrm_acq_expires", tmp_path / "sys/xfrm_larval_drop"
    expires.write_text("165\n")
    drop.write_text("1\n")
    (tmp_path / "run").mkdir()
    config = ipsec.Config(gateway)
    ipsec.stack_start(gateway, config, "none")
    assert expires.read_text() == "165\n"
    for _ in range(2):  # the second start must not save the changed value
        ipsec.stack_start(gateway, config, "frob")
    captured = capsys.readouterr()
    assert captured.out == f"changing {expires} from 165 to 30\n"
    assert 'unknown protostack="frob"' in captured.err
    assert ipsec.stack_stop(gateway) == []
    assert (expires.read_text(), drop.read_text()) == ("165", "1\n")
    assert not (tmp_path / "run/ipsec.sysctl").exists()

    def refuse(name: str, text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    monkeypatch.setattr(gateway, "write", refuse)
    ipsec.stack_start(gateway, config)
    assert f"WARNING: cannot change {expires} from 165 to 30" in capsys.readouterr().err
    monkeypatch.setattr(gateway, "has_xfrm", lambda: False)
    assert error_of(ipsec.stack_start, gateway, config).message == "FAILURE in loading XFRM IPsec stack"


def test_the_flush_knows_the_reqids_of_the_configuration(gateway: ipsec.Host, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr(ipsec, "flush_xfrm", lambda host, reqids: asked.append(set(reqids)))
    ipsec.flush_states_and_policies(gateway)
    (tmp_path / "ipsec.conf").unlink()
    ipsec.flush_states_and_policies(gateway)
    monkeypatch.setattr(gateway, "has_xfrm", lambda: False)
    ipsec.flush_states_and_policies(gateway)
    assert asked == [{77}, set()]

    def refuse(host: ipsec.Host, reqids: set[int]) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(gateway, "has_xfrm", lambda: True)
    monkeypatch.setattr(ipsec, "flush_xfrm", refuse)
    assert error_of(ipsec.flush_states_and_policies, gateway).hint == "start the container with --cap-add NET_ADMIN"


def test_a_stop_leaves_everything_if_a_pluto_may_run(gateway: ipsec.Host, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Its files, states and policies stay.  After a pluto was ended, this is a warning only."""
    (tmp_path / "run").mkdir()
    pid = tmp_path / "run/pluto.pid"
    pid.write_text("42\n")
    sign = "UDP port 500 is in use"
    with monkeypatch.context() as patch:
        patch.setattr(ipsec, "signs_of_pluto", lambda host: [sign])
        patch.setattr(ipsec, "flush_xfrm", lambda *_: pytest.fail("flushed"))
        ipsec.finish_stop(gateway, ended=True)
        patch.setattr(ipsec, "signs_of_own_pluto", lambda host: [sign])
        assert sign in error_of(ipsec.finish_stop, gateway, ended=False).message
        assert pid.exists() and sign in capsys.readouterr().err

    def refuse(host: ipsec.Host) -> None:
        raise ipsec.Failure("iptables: no answer")

    monkeypatch.setattr(ipsec, "stop_nflog", refuse)
    assert ipsec.Direct(gateway, dry=False).stop() == ipsec.OK
    assert not pid.exists()
    assert "nflog: the rules that copy packets are not removed: iptables: no answer" in capsys.readouterr().err


def test_modprobe_of_busybox_lacks_an_option(tree: Tree, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    host = tree({})
    calls: list[str] = []

    def run(argv: list[str], timeout: float) -> ipsec.Ran:
        calls.append(argv[1])
        return ipsec.Ran(1, b"", b"modprobe: invalid option -- b" if "b" in argv[1] else b"")

    monkeypatch.setattr(host, "run", run)
    monkeypatch.setattr(host, "which", lambda program: f"/sbin/{program}")
    ipsec.load_modules(host)
    assert calls == ["-qab", "-qa"]
    monkeypatch.setattr(host, "which", lambda program: None)
    ipsec.load_modules(host)
    assert "modprobe is not installed" in capsys.readouterr().err
