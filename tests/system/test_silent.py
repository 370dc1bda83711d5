"""File systems that never answer, behind everything that the program reads: each command ends, and names the path."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from ..ground import deadfs, dyingfs
from ..ground.host import Result, Unavailable
from ..ground.machine import PYZ, Machine

DEAD = "/mnt/dead"
BOUND = 45.0  # seconds for any command, on a machine with much to do; a command that hangs takes for ever


def behind(machine: Machine, covered: str, *words: str) -> Result:
    """Run ipsec in the machine while the path `covered` never answers."""
    if not Path("/dev/fuse").exists():
        raise Unavailable("no /dev/fuse: modprobe fuse")
    machine.write("/deadfs.py", Path(deadfs.__file__).read_text())
    return machine.run(["unshare", "-m", "python3", "/deadfs.py", covered, "--", "timeout", "-s", "KILL", str(BOUND),
                        "python3", PYZ, *words], timeout=BOUND + 30)


@pytest.fixture
def gateway(root: Callable[..., Machine]) -> Machine:
    machine = root("bookworm")
    machine.path(DEAD).mkdir(parents=True)
    machine.write("/etc/ipsec.conf", "config setup\nconn a\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauthby=secret\n")
    return machine


CONFIGS = {
    "include": f"include {DEAD}/x.conf\n",
    "pattern": f"include {DEAD}/*.conf\n",
    "secretsfile": f"config setup\n\tsecretsfile={DEAD}/secrets\n",
    "nssdir": f"config setup\n\tnssdir={DEAD}/nss\n",
    "logfile": f"config setup\n\tlogfile={DEAD}/log\n",
}


@pytest.mark.parametrize("place", CONFIGS)
def test_what_the_configuration_names(gateway: Machine, place: str) -> None:
    """barf goes on and names it."""
    gateway.write("/etc/ipsec.conf", CONFIGS[place])
    ran = behind(gateway, DEAD, "barf", "--timeout", "4")
    assert ran.status == 1, ran.stderr
    assert DEAD in ran.stderr + ran.stdout.split("plog")[-1]
    assert ran.stdout.rstrip().splitlines()[-1].endswith(ran.stdout.splitlines()[1][-4:])  # the section `date`


@pytest.mark.parametrize("words", [["checkconfig"], ["verify"], ["look"], ["status"], ["why", "a"], ["start"],
                                   ["add", "a"]], ids=" ".join)
def test_commands_behind_an_include(gateway: Machine, words: list[str]) -> None:
    gateway.write("/etc/ipsec.conf", CONFIGS["include"])
    ran = behind(gateway, DEAD, *words)
    assert ran.status not in (0, 137)
    if words != ["status"]:  # which does not read the configuration
        assert f"{DEAD}/x.conf" in ran.stdout + ran.stderr


@pytest.mark.parametrize("variable", ["IPSEC_EXECDIR", "IPSEC_SBINDIR"])
def test_the_directory_of_programs(gateway: Machine, variable: str) -> None:
    gateway.write("/with.py", f"import os, sys\nos.environ[{variable!r}] = {DEAD!r}\n"
                              "os.execv(sys.argv[1], sys.argv[1:])\n")
    gateway.write("/deadfs.py", Path(deadfs.__file__).read_text())
    for words in (["barf", "--timeout", "4"], ["status"], ["look"]):
        ran = gateway.run(["unshare", "-m", "python3", "/deadfs.py", DEAD, "--", "timeout", "-s", "KILL", str(BOUND),
                           "python3", "/with.py", "/usr/bin/python3", PYZ, *words], timeout=BOUND + 30)
        assert ran.status not in (0, 137) and DEAD in ran.stderr and "no answer" in ran.stderr, ran


@pytest.mark.parametrize("name", ["/fifo", "/dev/zero", "/huge"])
@pytest.mark.parametrize("place", ["include", "ipsec.conf"])
def test_addconn_is_not_given_a_file_without_an_end(gateway: Machine, name: str, place: str) -> None:
    gateway.run(["sh", "-c", "mkfifo /fifo; truncate -s 8G /huge"]).check()
    if place == "include":
        gateway.write("/etc/ipsec.conf", f"include {name}\n")
    else:
        gateway.run(["ln", "-sf", name, "/etc/ipsec.conf"]).check()
        name = "/etc/ipsec.conf"
    for words in (["checkconfig"], ["start"], ["add", "a"], ["readwriteconf"],
                  ["addconn", "--config", "/etc/ipsec.conf", "a"]):
        ran = gateway.run(["timeout", "-s", "KILL", str(BOUND), "python3", PYZ, *words], timeout=BOUND + 30)
        assert ran.status == 3 and name in ran.stderr and len(ran.stderr.splitlines()) == 1, ran


@pytest.mark.parametrize("words", [["initnss"], ["checknss"], ["nsslist"], ["showhostkey", "--list"], ["look"],
                                   ["verify"]], ids=" ".join)
def test_commands_behind_the_nss_database(gateway: Machine, words: list[str]) -> None:
    ran = behind(gateway, DEAD, "--nssdir", f"{DEAD}/nss", *words)
    assert ran.status not in (0, 137)
    told = [line for line in (ran.stdout + ran.stderr).splitlines() if DEAD in line]
    assert any("no answer" in line or "not answer" in line for line in told)
    if words[0] not in ("look", "verify"):
        assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["initnss"], ["checknss"], ["newhostkey"], ["verify"]], ids=" ".join)
@pytest.mark.parametrize("covered", ["", "/cert9.db", "/pkcs11.txt"], ids=["directory", "cert9.db", "pkcs11.txt"])
def test_what_is_mounted_on_the_nss_database_itself(gateway: Machine, covered: str, words: list[str]) -> None:
    """For example a file that is bound into a container from a network file system."""
    gateway.ipsec("initnss").check()
    ran = behind(gateway, f"/var/lib/ipsec/nss{covered}", *words)
    assert ran.status not in (0, 137)
    assert any("/var/lib/ipsec/nss" in line and "not answer" in line.replace("no answer", "not answer")
               for line in (ran.stdout + ran.stderr).splitlines()), ran


CERTIFICATE = ("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout /key.pem -out /cert.pem 2>/dev/null; "
               "openssl pkcs12 -export -in /cert.pem -inkey /key.pem -name x -passout pass: -out /x.p12; ")
@pytest.mark.parametrize("name", ["/etc/hosts", "/etc/resolv.conf"])
def test_fifos_that_addconn_would_read_to_resolve_names(gateway: Machine, name: str) -> None:
    gateway.run(["sh", "-c", f"rm -f {name}; mkfifo {name}"]).check()
    for words in (["checkconfig"], ["start"], ["add", "a"], ["readwriteconf"]):
        ran = gateway.ipsec(*words, timeout=30)
        assert (ran.status, ran.stderr) == (1, f"ipsec: {name}: not a regular file\n")


ENDLESS = ("WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more) "
           "SELECT n AS id, x'00' AS item1, x'00' AS item2 FROM more")


@pytest.mark.parametrize("name, made", [
    ("pkcs11.txt", "rm {0}; mkfifo {0}"), ("key4.db", "rm {0}; mkfifo {0}"), ("cert9.db", "truncate -s 8G {0}"),
    ("pkcs11.txt", "truncate -s 8G {0}"), ("key4.db", "python3 /view.py {0}"),
], ids=["fifo", "fifo-key4", "huge", "huge-pkcs11", "view"])
def test_files_that_the_tools_of_nss_would_read_for_ever(gateway: Machine, name: str, made: str) -> None:
    """The file is named at once, also before libreswan's own showhostkey reads it."""
    file = f"/var/lib/ipsec/nss/{name}"
    gateway.write("/view.py", "import sqlite3, sys\nbase = sqlite3.connect(sys.argv[1])\n"
                              f"base.executescript(\"DROP TABLE metaData; CREATE VIEW metaData AS {ENDLESS}\")\n")
    gateway.ipsec("initnss").check()
    gateway.run(["sh", "-c", f"{CERTIFICATE} echo >/empty; {made.format(file)}"]).check()
    for words in (["newhostkey"], ["import", "--password-file", "/empty", "/x.p12"], ["checknss"], ["start"],
                  ["showhostkey", "--list"]):
        ran = gateway.ipsec(*words, timeout=30)
        assert ran.status not in (0, 137) and file in ran.stderr and len(ran.stderr.splitlines()) == 1, ran
        assert ran.seconds < 20
    ran = gateway.ipsec("verify", timeout=30)
    assert ran.seconds < 20 and name in ran.stdout


@pytest.mark.parametrize("covered", ["/etc/hosts", "/etc/resolv.conf", "/mnt/dead"])
def test_files_that_addconn_reads_to_resolve_names(gateway: Machine, covered: str) -> None:
    gateway.write("/etc/ipsec.conf", f"config setup\n\tdnssec-rootkey-file={DEAD}/key\nconn a\n\tleft=192.0.2.1\n"
                                     "\tright=peer.example\n\tauthby=secret\n")
    if not gateway.path(covered).exists():
        gateway.write(covered, "")
    for words in (["checkconfig"], ["start"], ["add", "a"]):
        ran = behind(gateway, covered, *words)
        assert ran.status == 1 and len(ran.stderr.splitlines()) == 1 and covered in ran.stderr, ran
    ran = behind(gateway, covered, "verify")
    assert ran.status in (2, 3) and "internal error" not in ran.stderr
    assert f"not checked: {covered}" in ran.stdout and "no answer within 5 s" in ran.stdout


KEY = f"python3 {PYZ} --nssdir {DEAD}/nss newhostkey"
IMPORT = f"{CERTIFICATE} echo >/empty; python3 {PYZ} --nssdir {DEAD}/nss import --password-file /empty /x.p12"
INIT = f"python3 {PYZ} --nssdir {DEAD}/nss initnss"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command, operation, count", [
    (INIT, "MKDIR", 1), (INIT, "RENAME", 1), (IMPORT, "MKDIR", 1), (IMPORT, "RENAME", 1), (IMPORT, "RMDIR", 1),
    (IMPORT, "UNLINK", 5), (KEY, "CREATE", 1), (f"python3 {PYZ} --nssdir {DEAD}/nss checknss --settrusts", "NEVER", 0),
], ids=lambda value: value.split()[-1].rpartition("/")[2] if isinstance(value, str) else str(value))
def test_the_nss_database_on_a_file_system_that_dies_during_a_change(gateway: Machine, command: str, operation: str,
                                                                     count: int) -> None:
    """The command ends with one line that names the path."""
    if not Path("/dev/fuse").exists():
        raise Unavailable("no /dev/fuse: modprobe fuse")
    gateway.write("/dyingfs.py", Path(dyingfs.__file__).read_text())
    prepare = "" if command == INIT else f"{INIT} >/dev/null || exit 99; "
    program, _, last = command.rpartition("; ")
    script = (f"mkdir {DEAD}/nss; {prepare}{program and program + '; '}: >{DEAD}/arm; "
              f"exec timeout -s KILL 150 {last}")
    ran = gateway.run(["unshare", "-m", "python3", "/dyingfs.py", DEAD, operation, str(count), "--", "sh", "-c",
                       script], timeout=240)
    print(f"{command.split()[-1]} {operation} {count}: status {ran.status}, {ran.stderr!r}")
    if operation == "NEVER":
        assert (ran.status, ran.stderr) == (0, "")
        return
    assert ran.status not in (0, 99, 137), ran.stdout
    assert len(ran.stderr.splitlines()) == 1 and f"{DEAD}/nss: no" in ran.stderr and "not answer" in ran.stderr.replace(
        "no answer within", "does not answer within")


@pytest.mark.parametrize("covered, section", [
    ("/etc/resolv.conf", "etc/resolv.conf"), ("/etc/os-release", "distro-release"), ("/etc/default", "service"),
    ("/lib/modules", "lib/modules-ls"), ("/etc/hosts", "hostname/fqdn"),
])
def test_the_system_s_own_files(gateway: Machine, covered: str, section: str) -> None:
    """One section of barf is lost, with a line; the others are there."""
    if covered == "/lib/modules":
        gateway.path(covered).mkdir(exist_ok=True)
    elif not gateway.path(covered).exists():
        gateway.write(covered, "")
    ran = behind(gateway, covered, "barf", "--timeout", "4")
    lost = ran.stderr.partition("timeout: ")[2]
    assert section in lost and "ipsec/conf" not in lost, ran.stderr
    if section != "hostname/fqdn":  # read by the C library
        assert "file system on" in ran.stdout
    assert behind(gateway, covered, "verify").status != 137


def test_the_control_socket_s_directory(gateway: Machine) -> None:
    for words in (["status"], ["verify"], ["add", "a"]):
        ran = behind(gateway, DEAD, "--rundir", DEAD, *words)
        assert ran.status not in (0, 137) and DEAD in ran.stdout + ran.stderr


def test_a_mounted_disk(gateway: Machine) -> None:
    ran = behind(gateway, DEAD, "--root", DEAD, "barf")
    assert ran.status == 1 and len(ran.stderr.splitlines()) == 1 and DEAD in ran.stderr


@pytest.mark.parametrize("name", ["report.txt", "report.txt.gz", "ipsec.prom"])
def test_the_file_of_a_report(gateway: Machine, name: str) -> None:
    """One line names the path; no report is made in vain."""
    command = "metrics" if name.endswith(".prom") else "barf"
    ran = behind(gateway, DEAD, command, "--output", f"{DEAD}/{name}")
    assert ran.status == 1 and not ran.stdout, ran
    *others, line = ran.stderr.splitlines()
    assert f"{DEAD}/{name}" in line and "no answer" in line
    assert not others or command == "metrics" and "Pluto is not running" in "".join(others)


def test_a_user_who_may_start_nothing_more(gateway: Machine) -> None:
    """barf runs its sections one after the other, and says which it left out."""
    ran = gateway.run(["bash", "-c", f"ulimit -u 1; exec python3 {PYZ} barf"], user=65500)
    assert "internal error" not in ran.stdout + ran.stderr
    assert "left out: this section may block for ever" in ran.stdout
    assert "\n+ _________________________ date\n" in ran.stdout
    assert "incomplete (failed: " in ran.stderr and "hostname/fqdn" in ran.stderr


def test_little_memory(gateway: Machine) -> None:
    """Every section has its heading; what does not fit is a line."""
    for size in (30_000, 60_000):
        ran = gateway.run(["sh", "-c", f"ulimit -v {size}; exec python3 {PYZ} barf"])
        assert "internal error" not in ran.stdout + ran.stderr and "Traceback" not in ran.stderr
        assert "\n+ _________________________ date\n" in ran.stdout, ran.stderr
