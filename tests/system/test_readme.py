"""The README's recipes, line by line as they stand there, on real systems."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

import build

from ..ground import host, uml
from ..ground.host import Problem, cache
from ..ground.inits import Booted
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import Pluto
from ..ground.roots import RELEASES, ROOTS, keep

README = (Path(build.__file__).parent / "README.md").read_text()

def recipe(begin: str) -> list[list[str]]:
    """Return the indented blocks, as lists of lines, of the README's part that begins with these words."""
    text = README.partition(f"\n{begin}")[2]
    assert text, begin
    part = re.split(r"\n\n(?=\*\*|#|\|)", text)[0]
    return [[line[4:] for line in block.splitlines()] for block in part.split("\n\n") if block.startswith("    ")]


ANSIBLE = "ansible-core>=2.15,<2.23"

# In the place of ssh: becomes the command in the machine that is named
SSH = """#!/usr/bin/python3
import json, os, sys
machines = json.loads({machines!r})
argv = next(machines[word] for word in sys.argv if word in machines)
os.execvp(argv[0], [*argv, sys.argv[-1]])
"""


def install(target: Path) -> None:
    error = build.run_pip("-q", "--disable-pip-version-check", "install", "--target", target, ANSIBLE)
    if error:
        raise Problem(f"can't fetch {ANSIBLE}: {error}")


@pytest.fixture
def library() -> Path:
    return cache() / keep("ansible", (ANSIBLE, sys.version_info[:2]), install).layer


def failed_checks(findings: list[dict[str, Any]]) -> list[str]:
    """Return the check of each FAIL that verify found; the check of pluto itself must have an OK."""
    assert "OK" in [finding["level"] for finding in findings if finding["check"] == "pluto"]
    return [finding["check"] for finding in findings if finding["level"] == "FAIL"]


def files_left(changes: set[str], home: str) -> set[str]:
    """Return the changed files of ipsec.  Ansible has its own files in `home`, on the gateways too."""
    return {path for path in changes if "ipsec" in path and not path.startswith(home) and not home.startswith(path)}


def test_many_gateways(root: Callable[..., Machine], pluto: Callable[..., Pluto], library: Path, tmp_path: Path,
                       pyz: Path) -> None:
    machines = {}
    for release in RELEASES:
        machine = root(release)
        machine.address("192.0.2.1/24")
        pluto(machine)
        machines[release] = machine
    before = {name: set(machine.changes()) for name, machine in machines.items()}
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(machines=json.dumps(
        {name: machine._argv(["sh", "-c"]) for name, machine in machines.items()})))
    ssh.chmod(0o755)
    (tmp_path / "hosts").write_text("[gateways]\n" + "".join(f"{name}\n" for name in [*machines, "unreachable"]))
    shutil.copy(pyz, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(library), "HOME": str(tmp_path), "ANSIBLE_SSH_EXECUTABLE": str(ssh),
                   "ANSIBLE_SSH_TRANSFER_METHOD": "piped", "ANSIBLE_HOST_KEY_CHECKING": "0"}
    host.install("jq")
    lines, (jq,) = recipe("**Many gateways")
    failures = set()
    for command, line in zip(("barf", "verify"), lines):
        words = [word for word in shlex.split(line)[1:] if word != "--become"]  # there is no sudo, and no need of it
        ran = subprocess.run([sys.executable, "-m", "ansible", "adhoc", *words], cwd=tmp_path, env=environment,
                             capture_output=True, text=True, check=False)
        for name in machines:
            report = json.loads((tmp_path / "reports" / command / name).read_text())
            document = json.loads(report["stdout"])
            if command == "barf":
                assert (report["rc"], document["host"]) == (0, name), ran.stderr
                assert "ip-xfrm-policy" in [section["section"] for section in document["sections"]]
            else:
                failed = failed_checks(document)
                assert report["rc"] == len(failed)
                failures |= {(name, check) for check in failed}
    rows = host.run(["sh", "-c", jq], cwd=str(tmp_path)).check().stdout.splitlines()
    assert {(os.path.basename(row.split("\t")[0]), row.split("\t")[1]) for row in rows} == {
        *failures, ("unreachable", "no report")}
    for name, machine in machines.items():
        assert files_left(set(machine.changes()) - before[name], str(tmp_path)) == set(), name


#: A gateway of which the README shows what `verify` says.
BRANCH = """config setup
	logfile=/var/log/pluto.log

conn branch
	left=192.0.2.1
	leftid=@hq
	leftsubnet=10.1.0.0/24
	right=192.0.2.2
	rightid=@branch
	rightsubnet=10.2.0.0/24
	authby=secret
	auto=start
"""
FAULTS = """
ip route add default via 192.0.2.254
nft add table inet filter
nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'
nft add rule inet filter input tcp dport 22 accept
nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }'
nft add rule ip nat post masquerade
"""


def test_the_sample_of_verify_is_real(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    machine.address("192.0.2.1/24")
    machine.write("/etc/ipsec.conf", BRANCH)
    machine.write("/etc/ipsec.secrets", '@hq @branch : PSK "an example of the README"\n', 0o644)
    machine.run(["sh", "-ec", FAULTS]).check()
    machine.ipsec("start").check()
    real = machine.ipsec("verify").stdout.splitlines()
    sample = recipe("This is a part of the output of `ipsec verify`")[0]
    assert len(sample) == 10 and [line for line in sample if line not in real] == []


@pytest.mark.parametrize("name", ["bookworm-systemd", "trixie-systemd"])
def test_in_place_of_the_distribution_s_command_and_back(pid1: Callable[..., Booted], name: str) -> None:
    """The units use it, and removing the diversion gives the distribution's command back."""
    machine = pid1(name)
    original = machine.read("/usr/sbin/ipsec")
    machine.run(["cp", PYZ, "/root/ipsec.pyz"]).check()
    install, back = recipe("**In place of")
    machine.run(["sh", "-ec", "\n".join(install)], cwd="/root").check()
    assert "ipsec.pyz" in machine.run(["ipsec", "--help"]).check().stdout
    assert machine.read("/usr/sbin/ipsec.distrib") == original
    machine.run(["systemctl", "start", "ipsec"]).check()
    assert "loaded" in machine.run(["ipsec", "status"]).check().stdout
    machine.run(["systemctl", "stop", "ipsec"]).check()
    machine.run(["sh", "-ec", "\n".join(back)]).check()
    assert machine.read("/usr/sbin/ipsec") == original
    assert not machine.path("/usr/sbin/ipsec.distrib").exists()


def test_beside_the_distribution_s_command(gateway: Machine) -> None:
    machine = gateway
    machine.run(["cp", PYZ, "/root/ipsec.pyz"]).check()
    machine.run(["sh", "-ec", "\n".join(recipe("**In addition to the distribution")[0])], cwd="/root").check()
    assert machine.run(["sh", "-c", "command -v ipsec"]).check().stdout == "/usr/local/sbin/ipsec\n"
    assert "ipsec.pyz" in machine.run(["ipsec", "--help"]).check().stdout


@pytest.mark.parametrize("name", ["bookworm-systemd", "trixie-systemd"])
def test_as_the_reload_action_of_the_unit(pid1: Callable[..., Booted], name: str) -> None:
    """A connection that was added to ipsec.conf is loaded, and pluto is the same process."""
    machine = pid1(name)
    machine.run(["install", "-m", "755", PYZ, "/usr/local/sbin/ipsec"]).check()
    machine.run(["mkdir", "-p", "/etc/systemd/system/ipsec.service.d"]).check()
    lines = recipe("**As the reload action")[0]
    machine.write("/etc/systemd/system/ipsec.service.d/reload.conf", "\n".join([*lines, ""]))
    machine.run(["systemctl", "daemon-reload"]).check()
    machine.run(["systemctl", "start", "ipsec"]).check()
    process = machine.run(["systemctl", "show", "--property=MainPID", "ipsec"]).check().stdout
    with machine.path("/etc/ipsec.conf").open("a") as configuration:
        configuration.write("\nconn added\n\tleft=127.0.0.1\n\tright=127.0.0.2\n\tauto=add\n")
    machine.run(["systemctl", "reload", "ipsec"]).check()
    assert '"added"' in machine.run(["/usr/local/sbin/ipsec", "status"]).check().stdout
    assert machine.run(["systemctl", "show", "--property=MainPID", "ipsec"]).check().stdout == process != "MainPID=0\n"


#: The rights that docker gives, as setpriv(1) names them; the recipe adds net_admin.
DOCKER = ("chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,"
          "audit_write,setfcap,net_admin")


def test_a_container(root: Callable[..., Machine]) -> None:
    """Each line of the Dockerfile but those that get the packages, which the root has; docker's rights, /proc/sys
    that can't be written, and pluto as process 1."""
    lines = recipe("**A container")[0]
    (packages,) = [line for line in lines if "apt-get" in line]
    assert {"libreswan", "python3-minimal"} <= set(packages.split())
    entry = json.loads(lines[-1].removeprefix("ENTRYPOINT "))
    bounds = "-all," + ",".join(f"+{name}" for name in DOCKER.split(","))
    limited = ["/usr/bin/setpriv", "--inh-caps=-all", f"--bounding-set={bounds}", "/usr/local/sbin/ipsec", *entry[1:]]
    container = root("bookworm", init=limited, environment={"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"})
    for line in lines:
        word, _, arguments = line.partition(" ")
        if word == "COPY":
            container.run(["cp", PYZ, arguments.split()[1]]).check()
        elif word == "RUN" and line != packages:
            container.run(["sh", "-c", arguments]).check()
    container.write("/etc/ipsec.conf", "config setup\n\nconn c\n\tleft=127.0.0.1\n\tright=127.0.0.2\n\tauto=add\n")
    container.run(["mount", "--bind", "-o", "ro", "/proc/sys", "/proc/sys"]).check()
    container.boot()
    wait_for(lambda: '"c"' in container.run(["ipsec", "status"]).stdout, "pluto as process 1 with its connection")
    assert container.processes("pluto") == [1]
    container.signal(1, signal.SIGTERM)
    wait_for(lambda: not container.running, "the end of the container")


def test_an_initramfs(tmp_path: Path, pyz: Path) -> None:
    """All lines but the build's; mmdebstrap gets this machine's mirror. The kernel boots on the file, whose shell runs
    the program."""
    kernel = uml.kernel()
    host.prepare()
    shutil.copy(pyz, tmp_path / "ipsec.pyz")
    options = shlex.join([f"--aptopt={line}" for line in host.apt_options()])
    sources = shlex.join(host.mirror().sources("bookworm", ROOTS["bookworm"].parts))
    lines = [f'mmdebstrap() {{ command mmdebstrap {options} "$@" {sources}; }}', *recipe("**An initramfs")[0][1:]]
    host.run(["sh", "-ec", "\n".join(lines)], cwd=str(tmp_path), timeout=250).check()
    (tmp_path / "root/go").write_text("ipsec --version; ipsec directory; poweroff -f\n")
    (tmp_path / "root/init").write_text((tmp_path / "root/init").read_text().replace("exec sh\n", "exec sh /go\n"))
    host.run(["sh", "-ec", lines[-1].replace("gzip", "cat")], cwd=str(tmp_path)).check()
    console = uml.run_kernel(kernel, [f"initrd={tmp_path}/initramfs.gz", f"uml_dir={tmp_path}"], "300M", 120)
    shown = console.stdout + console.stderr
    assert "Libreswan (none) (U(none)/K" in shown and "/usr/libexec/ipsec" in shown, shown
