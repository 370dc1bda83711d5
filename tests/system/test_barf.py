"""The report on real hosts: complete in the original's order, safe to mail, never hanging, honest on what it lacks."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path
from typing import Callable

import pytest

from ..ground.host import DOCKER
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import Pluto

# One canary for each place where a secret can stand; each is unlike all others
SECRETS = r'''
@a @b : PSK "CANARYquoted01"
"@west" "@east" : PSK "CANARYquotedids02"
@w @e : PSK 0x43414e4152597878303378
@w2 @e2 : PSK 0sQ0FOQVJZYmFzZTY0MDQ=
@w3 @e3 : PSK 0tCANARYtext05
@u : PSK 'CANARYsingle06'
@c : PSK
    0x43414e41525963303707
#@old : PSK "CANARYcommented08"
@n : PSK "CANARYnew09" # was "CANARYold10"
@x : XAUTH "CANARYxauth11"
@bare : XAUTH CANARYbare12
@p : PPKS "ppkid" "CANARYppk13"
@pin : PIN "token" "CANARYpin14"
@file : RSA /etc/key.pem CANARYpassphrase15
include /etc/ipsec.d/*.secrets
'''
MALFORMED = '@m : PSK CANARYmalformed16\n@unbalanced : PSK "CANARYunbalanced17\n'
CONFIG = '''config setup
    plutodebug=all
    logfile=/var/log/pluto-own.log
conn thetest
    auto=add
    left=192.0.2.1
    right=192.0.2.2
    authby=secret
    leftid=@a
    rightid=@b
    modecfgbanner="esc \x1b]0;CANARYTITLE\x07 here"
include /etc/ipsec.d/more.conf
'''
INCLUDED = '''conn included
    left=192.0.2.1
    right=192.0.2.3
    authby=secret
'''
FORMS = ("CANARY", "43414e415259", "Q0FOQVJZ")  # plain, hexadecimal, base64


def headings(text: str) -> list[str]:
    return [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("+ _________________________ ")]


def section(text: str, name: str) -> str:
    """The text of one section, without its heading."""
    mark = "+ _________________________ "
    return text.partition(f"\n{mark}{name}\n")[2].partition(f"\n{mark}")[0]


def leaks(text: str) -> list[str]:
    """The lines in which any form of a canary stands; the banner's title is not a secret."""
    return [line for line in text.splitlines() if any(form.lower() in line.lower().replace("canarytitle", "")
                                                      for form in FORMS)]


def plant(gateway: Machine) -> None:
    """Put a canary in every place where secrets stand, but for those that pluto itself is given."""
    gateway.address("192.0.2.1/24")
    gateway.write("/etc/ipsec.d/more.conf", INCLUDED)
    gateway.write("/etc/ipsec.d/more.secrets", MALFORMED, 0o600)
    gateway.write("/etc/ipsec.d/passwd", "user:CANARYhash18:thetest\n", 0o600)
    gateway.write("/etc/ipsec.d/nsspassword", "NSS Certificate DB:CANARYnss:19\n", 0o600)
    gateway.write("/etc/rsyslog.conf", 'action(type="ommysql" pwd="CANARYrsyslog20")\n')
    gateway.write("/var/log/pluto-own.log", 'Starting Pluto\nPSK data malformed: CANARYmalformed16\n'
                  'someone typed CANARYxauth11 and 43414e4152597878303378\n')
    # it waits at a pipe: whatever it started would have its words too, until it became another program
    gateway.run(["mkfifo", "/run/nobody-writes"]).check()
    gateway.spawn(["/bin/sh", "-c", "read word </run/nobody-writes", "pluto-login", "--xauthpass", "CANARYargv21"],
                  "/var/log/shell")
    gateway.run(["iptables", "-A", "INPUT", "-p", "esp", "-m", "comment", "--comment", "psk CANARYquoted01",
                 "-j", "ACCEPT"]).check()


@pytest.fixture
def planted(gateway: Machine, pluto: Callable[..., Pluto]) -> Pluto:
    """A gateway with a canary in every place where secrets stand, and a pluto that loaded them."""
    plant(gateway)
    return pluto(gateway, CONFIG, SECRETS)


def test_no_secret_leaves(planted: Pluto) -> None:
    """In the report, as text and as JSON, in messages, in the arguments of what it runs, on the disk: nothing."""
    machine = planted.machine
    seen: list[str] = []
    running = True

    def watch() -> None:
        ours = {str(path) for path in machine.path("/proc").glob("[0-9]*")}
        while running:
            for path in machine.path("/proc").glob("[0-9]*"):
                if str(path) not in ours:
                    try:
                        seen.append((path / "cmdline").read_bytes().decode(errors="replace")
                                    + (path / "environ").read_bytes().decode(errors="replace"))
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        results = [machine.ipsec("barf", *words, timeout=300) for words in ([], ["--json"], ["--short"])]
    finally:
        running = False
        watcher.join()
    for result in results:
        assert leaks(result.stdout + result.stderr) == []
        assert "[redacted" in result.stdout
        assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert seen and leaks("\n".join(seen)) == []
    # still of use: the identities and the kinds are there, and the configuration with its include
    text = results[0].stdout
    assert "@west" in section(text, "ipsec/secrets") and "PSK" in section(text, "ipsec/secrets")
    assert "conn included" in section(text, "ipsec/conf")
    assert "thetest" in section(text, "ipsec/status")
    assert "interface" in section(text, "ipsec/status")
    found = machine.run(["grep", "-rlE", "CANARY[a-z0-9]+[0-9][0-9]", "/etc", "/run", "/tmp", "/var", "/root"]).stdout
    assert set(found.split()) <= {"/etc/ipsec.secrets", "/etc/ipsec.d/more.secrets", "/etc/ipsec.d/passwd",
                                  "/etc/ipsec.d/nsspassword", "/etc/rsyslog.conf", "/var/log/pluto-own.log",
                                  "/var/log/pluto.log"}  # pluto itself logs what is malformed


def test_secrets_can_be_asked_for_by_root_only(planted: Pluto) -> None:
    shown = planted.machine.ipsec("barf", "--show-secrets", "--section", "ipsec/secrets")
    assert "CANARYquoted01" in shown.stdout and "secrets" in shown.stderr
    refused = planted.machine.ipsec("barf", "--show-secrets", user=65534)
    assert (refused.status, refused.stdout) == (1, "") and "root" in refused.stderr


def test_all_that_the_original_reports_in_its_order(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    machine = root("bookworm")
    pluto(machine, CONFIG)
    theirs = headings(machine.run(["ipsec", "barf"], timeout=300).stdout)
    ours = headings(machine.ipsec("barf", timeout=300).stdout)
    assert len(theirs) > 40
    position = -1
    for name in theirs:
        assert name in ours, name
        if name != "/proc/crypto":  # it is long, and stands near the end
            assert ours.index(name) > position, name
            position = ours.index(name)
    assert ours[0] == "summary" and ours.index("/proc/crypto") > len(ours) * 2 // 3
    for name in ("nftables", "listeners", "ip-xfrm-interface", "service", "container", "security-modules",
                 "nss/directory", "packages", "/proc/sys/net/core/xfrm-star", "ip6tables", "distro-release"):
        assert name in ours


def settled(machine: Machine) -> bool:
    """Return whether each end of the link has the address that IPv6, if the kernel has it, gives after a probe."""
    addresses = machine.run(["ip", "-6", "addr", "list"]).stdout
    has_both = addresses.count("inet6 fe80:") == 2 and "tentative" not in addresses
    return has_both or not Path("/proc/net/if_inet6").exists()


def test_kernel_and_network_are_the_originals(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    """Where the original shows the same from other programs, the text is the same."""
    machine = root("bookworm")
    machine.address("192.0.2.1/24")
    pluto(machine, CONFIG)
    wait_for(lambda: settled(machine), "the link-local addresses of both ends of the link")
    machine.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.254")
    machine.ip("route", "add", "unreachable", "203.0.113.0/24", "table", "77")
    ours = machine.ipsec("barf", timeout=300).stdout
    # iproute2 6.1 does not tell by what an address was made
    addresses = re.sub(r" proto kernel_\w+", "", section(ours, "ip-addr-list"))
    assert addresses == "+ ip addr list\n" + machine.run(["ip", "addr", "list"]).stdout.rstrip("\n")
    routes = section(ours, "ip-route-list-table-all").splitlines()[1:]
    assert routes == machine.run(["ip", "route", "list", "table", "all"]).stdout.splitlines()
    policies, theirs = (re.sub(r" use .*", "", text) for text in (  # they may be used in between
        section(ours, "ip-xfrm-policy"), machine.run(["ip", "-s", "xfrm", "policy"]).stdout))
    assert policies.splitlines()[1:] == theirs.splitlines()
    for name in ("/proc/net/xfrm_stat", "/proc/sys/net/ipv4/ip_forward"):
        assert machine.run(["cat", name]).stdout.strip() in ours
    assert "UDP" in section(ours, "listeners").upper() and "500" in section(ours, "listeners")
    assert "pluto" in section(ours, "ps")


def test_a_stopped_pluto_costs_the_timeout_only(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    daemon = pluto(gateway, CONFIG)
    gateway.signal(daemon.pid, signal.SIGSTOP)
    result = gateway.ipsec("barf", "--timeout", "2", timeout=300)
    assert result.status == 1
    status = section(result.stdout, "ipsec/status")  # whack and the section have the same time
    assert "did not answer" in status or "timed out after 2 s" in status
    checks = section(result.stdout, "ipsec_verify")  # the other checks are made all the same
    assert re.search(r"Checking that pluto is running\s+FAIL \[FAILED\]", checks) and checks.count("[OK]") > 10
    assert headings(result.stdout)[-1] == "date"
    assert "ipsec/status" in result.stderr and result.stderr.count("\n") == 1
    daemon.stop(signal.SIGKILL)  # pluto 4.10 does not survive that its clients hung up meanwhile


def test_fifos_do_not_block(gateway: Machine) -> None:
    for name in ("/etc/ipsec.secrets", "/etc/ipsec.conf", "/etc/ipsec.d/policies/clear", "/etc/ipsec.d/x.secrets",
                 "/var/log/auth.log", "/etc/resolv.conf"):
        gateway.path(name).parent.mkdir(parents=True, exist_ok=True)
        gateway.run(["rm", "-f", name])
        gateway.run(["mkfifo", name]).check()
    result = gateway.ipsec("barf", timeout=300)
    assert headings(result.stdout)[-1] == "date"
    for name in ("ipsec/conf", "ipsec/secrets", "ipsec/policies/clear"):
        assert "not a regular file" in section(result.stdout, name), name


#: The sections that only root sees on a host with pluto, iptables and nft.
FOR_ROOT = ["ip-xfrm-state", "ip-xfrm-policy", "ipsec/status", "ipsec/secrets", "ipsec/listall", "nss/contents",
            "nss/crls", "iptables", "ip6tables", "nftables"]

#: Those that root does not see without CAP_NET_ADMIN.
FOR_NET_ADMIN = ["ip-xfrm-state", "ip-xfrm-policy", "iptables", "ip6tables", "nftables"]


def denied_sections(document: str) -> list[str]:
    """Return the names of the sections of a report in JSON that say denied."""
    sections = json.loads(document)["sections"]
    for entry in sections:
        assert "internal error" not in entry["text"], entry["section"]
        assert entry["status"] in ("ok", "absent", "denied"), entry["section"]
        if entry["status"] == "denied":
            last = entry["text"].splitlines()[-1]
            refusals = ("Permission denied", "Operation not permitted", "no right")
            assert last.startswith("denied: ") and any(words in entry["text"] for words in refusals), entry
    return [entry["section"] for entry in sections if entry["status"] == "denied"]


def test_an_ordinary_user_gets_what_he_may_read(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    pluto(gateway, CONFIG, SECRETS)
    result = gateway.ipsec("barf", user=65534, timeout=300).check()
    assert headings(result.stdout)[-1] == "date"
    assert "denied: /etc/ipsec.secrets: Permission denied" in section(result.stdout, "ipsec/secrets")
    assert "conn thetest" in section(result.stdout, "ipsec/conf")
    assert leaks(result.stdout) == []
    result = gateway.ipsec("barf", "--json", user=65534, timeout=300).check()
    assert denied_sections(result.stdout) == FOR_ROOT
    assert result.stderr == f"ipsec: barf: {len(FOR_ROOT)} sections need root: sudo {PYZ} barf --json\n"
    strict = gateway.ipsec("barf", "--strict", "--section", "nftables", user=65534).check(1)
    assert strict.stderr == f"ipsec: barf: 1 section needs root: sudo {PYZ} barf --strict --section nftables\n"
    gateway.ipsec("barf", "--strict", "--section", "version", user=65534).check(0)


def test_root_in_a_container_is_told_the_capability(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    """With docker's default capabilities: with nft and iptables, and without both."""
    pluto(gateway, CONFIG, SECRETS)
    without = "start the container with --cap-add NET_ADMIN"
    result = gateway.run([*DOCKER, gateway.python, PYZ, "barf", "--json"], timeout=300).check()
    assert denied_sections(result.stdout) == FOR_NET_ADMIN
    assert result.stderr == f"ipsec: barf: 5 sections need more rights than root has here: {without}\n"
    for name in ("nft", "iptables-save", "ip6tables-save"):
        gateway.run(["sh", "-c", f"rm -f $(command -v {name}) /sbin/{name}"]).check()
    result = gateway.run([*DOCKER, gateway.python, PYZ, "barf", "--json"], timeout=300).check()
    assert denied_sections(result.stdout) == ["ip-xfrm-state", "ip-xfrm-policy", "nftables"]
    text = next(entry["text"] for entry in json.loads(result.stdout)["sections"] if entry["section"] == "nftables")
    assert text.endswith("denied: nf_tables: Operation not permitted\n")


def test_without_libreswan_and_tools_it_is_still_a_report(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    gone = ["/usr/libexec/ipsec", "/usr/sbin/ipsec", "/usr/bin/certutil", "/usr/sbin/iptables-save", "/usr/sbin/ip",
            "/usr/bin/ip", "/usr/sbin/nft", "/usr/bin/ps", "/usr/bin/hostname", "/usr/bin/uptime", "/etc/ipsec.conf",
            "/etc/ipsec.secrets", "/etc/ipsec.d"]
    machine.run(["rm", "-rf", *gone]).check()
    result = machine.ipsec("barf", env={"PATH": None, "HOME": None}, timeout=300)
    assert (result.status, result.stderr) == (0, "")
    assert "Libreswan (none)" in section(result.stdout, "version")
    assert "nft is not installed, so the rules are shown in the kernel's own form" in section(result.stdout, "nftables")
    assert "lo: <LOOPBACK" in section(result.stdout, "ip-addr-list")


def test_a_rescue_system_reads_only_below_root(root: Callable[..., Machine], tmp_path: Path) -> None:
    """The sick system's disk is read, absolute links inside it resolve inside it, and it stays as it is."""
    machine = root("bookworm")
    sick = "/mnt/sick"
    machine.write(f"{sick}/etc/real/ipsec.conf", "conn of-the-sick\n\tleft=192.0.2.77\ninclude /etc/ipsec.d/*.conf\n")
    machine.write(f"{sick}/etc/ipsec.d/more.conf", "conn included-there\n\tleft=192.0.2.78\n")
    machine.write(f"{sick}/etc/ipsec.secrets", '@sick : PSK "CANARYsick22"\n', 0o600)
    machine.write(f"{sick}/etc/hostname", "sickhost\n")
    machine.write(f"{sick}/etc/os-release", 'PRETTY_NAME="Sick OS 1"\n')
    machine.write(f"{sick}/var/log/auth.log", "Nov  2 10:00:00 h pluto[1]: Starting Pluto, CANARYsick22\n")
    machine.run(["ln", "-s", "/etc/real/ipsec.conf", f"{sick}/etc/ipsec.conf"]).check()
    machine.run(["ln", "-s", "/etc/shadow", f"{sick}/etc/resolv.conf"]).check()
    machine.write("/etc/ipsec.conf", "conn of-the-rescuer\n")
    machine.write("/etc/shadow", "RESCUERSHADOW\n")
    nss = f"sql:{sick}/var/lib/ipsec/nss"
    machine.run(["mkdir", "-p", nss[4:]]).check()
    machine.run(["certutil", "-N", "-d", nss, "--empty-password"]).check()
    machine.run(["certutil", "-S", "-x", "-d", nss, "-n", "the sick certificate", "-s", "CN=sick", "-t", "CT,,", "-z",
                 "/bin/sh"]).check()
    before = machine.run(["find", sick, "-printf", "%p %T@ %s\\n"]).stdout
    result = machine.ipsec("--root", sick, "barf", timeout=300)
    assert re.search(r"the sick certificate +CTu,u,u", section(result.stdout, "nss/contents"))
    assert result.stdout.startswith("sickhost\n")
    assert "of-the-sick" in result.stdout and "included-there" in result.stdout and "Sick OS 1" in result.stdout
    assert "Starting Pluto" in section(result.stdout, "plog")
    assert "of-the-rescuer" not in result.stdout and "RESCUERSHADOW" not in result.stdout
    assert leaks(result.stdout) == []
    for name in ("ip-xfrm-state", "ipsec/status", "ps", "klog", "/proc/modules"):
        assert section(result.stdout, name).endswith("left out: only the running system has these data"), name
    assert machine.run(["find", sick, "-printf", "%p %T@ %s\\n"]).stdout == before


def test_it_leaves_no_trace(root: Callable[..., Machine]) -> None:
    """On a read-only root without /tmp and HOME it works; and where it could write it does not."""
    machine = root("bookworm", readonly=True, drop=["/tmp"])
    result = machine.run(["/usr/bin/python3", PYZ, "barf"], env={"HOME": None, "PATH": None}, timeout=300)
    assert headings(result.stdout)[-1] == "date"
    writable = root("bookworm")
    listing = ["find", "/", "-xdev", "-newer", "/run/mark", "-not", "-path", "/proc/*"]
    writable.run(["touch", "/run/mark"]).check()
    before = writable.run(listing).stdout
    writable.ipsec("barf", timeout=300)
    assert writable.run(listing).stdout == before


def test_json_says_the_same(gateway: Machine) -> None:
    document = json.loads(gateway.ipsec("barf", "--json", timeout=300).stdout)
    names = gateway.ipsec("barf", "--list-sections").stdout.split("\n")[:-1]
    assert [entry["section"] for entry in document["sections"]] == names
    assert {entry["status"] for entry in document["sections"]} <= {"ok", "absent"}
    by_name = {entry["section"]: entry for entry in document["sections"]}
    assert by_name["/proc/version"]["text"] == gateway.read("/proc/version")


def test_only_the_sections_asked_for(gateway: Machine) -> None:
    result = gateway.ipsec("barf", "--section", "uptime", "--section", "version")
    assert headings(result.stdout) == ["version", "uptime"]


def test_memory_stays_flat(root: Callable[..., Machine]) -> None:
    """20,000 routes and 5,000 policies: the peak of the report and of each child stays below 64 MiB."""
    machine = root("bookworm")
    machine.address("192.0.2.1/24")
    machine.fill(routes=20_000, policies=5_000)
    measure = ("import os,sys,resource as r\np=os.spawnvp(os.P_WAIT,sys.argv[1],sys.argv[1:])\n"
               "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)")
    barf = ["/usr/bin/python3", PYZ, "barf", "--output", "/run/report"]
    result = machine.run(["/usr/bin/python3", "-c", measure, *barf], timeout=600).check()
    report = machine.read("/run/report")
    assert report.count("10.78.31.0 dev eth0") == 1 and "reqid 5000(" in report
    assert int(result.stdout.split()[-1]) <= 64 * 1024
