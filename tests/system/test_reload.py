"""`ipsec reload` with real plutos: the plan for edits of ipsec.conf, and what is left as it was."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from ..ground.gateways import NAMES, Gateways
from ..ground.machine import PYZ, Machine
from ..ground.pluto import Pluto

CONFIG = """config setup

conn %default
	ikelifetime=8h
	authby=secret
	left=192.0.2.1

conn routed
	right=192.0.2.2
	leftsubnet=10.1.0.0/16
	rightsubnet=10.2.0.0/16
	auto=ondemand

conn several
	right=192.0.2.3
	leftsubnets={10.1.0.0/24,10.3.0.0/24}
	rightsubnet=10.9.0.0/16
	auto=add

conn rw
	right=%any
	rightaddresspool=10.77.0.1-10.77.0.9
	salifetime=7h
	leftsubnet=0.0.0.0/0
	auto=add

conn started
	right=192.0.2.4
	auto=start

conn ignored
	right=192.0.2.9
"""
NEW = "\nconn new\n\tright=192.0.2.11\n\tleftsubnet=10.111.0.0/24\n\tauto=ondemand\n"

#: An edit of CONFIG (old text, new text) and the plan for it: marks and names.
EDITS = {
    "nothing": ("", "", []),
    "a comment": ("conn routed\n", "# conn x\nconn routed  # y\n", []),
    "the order of sections": ("conn ignored\n\tright=192.0.2.9\n", "conn ignored\n\tright=192.0.2.99\n", []),
    "a default": ("ikelifetime=8h", "ikelifetime=7h", ["~ routed", "~ several", "~ rw", "~ started"]),
    "a value written differently": ("ikelifetime=8h", "ikelifetime=480m", []),
    "networks": ("rightsubnet=10.2.0.0/16", "rightsubnet=10.22.0.0/16", ["~ routed"]),
    "one network more": ("10.3.0.0/24}", "10.3.0.0/24,10.4.0.0/24}", ["~ several"]),
    "one network less": (",10.3.0.0/24}", "}", ["~ several"]),
    "the peer": ("right=192.0.2.4", "right=192.0.2.44", ["~ started"]),
    "an ID": ("right=192.0.2.4", "right=192.0.2.4\n\trightid=@peer", ["~ started"]),
    "algorithms": ("right=192.0.2.2", "right=192.0.2.2\n\tike=aes256-sha2_256;dh19", ["~ routed"]),
    "ESP algorithms": ("right=192.0.2.2", "right=192.0.2.2\n\tesp=aes_gcm256-null", ["~ routed"]),
    "another pool": ("10.77.0.1-10.77.0.9", "10.78.0.1-10.78.0.9", ["~ rw"]),
    "a larger pool": ("10.77.0.1-10.77.0.9", "10.77.0.1-10.77.0.99", ["~ rw"]),
    "MTU": ("right=192.0.2.3", "right=192.0.2.3\n\tmtu=1300", ["~ several"]),
    "transport mode": ("right=192.0.2.4", "right=192.0.2.4\n\ttype=transport", ["~ started"]),
    "a mark": ("right=192.0.2.4", "right=192.0.2.4\n\tmark=5/0xff", ["~ started"]),
    "a script": ("right=192.0.2.4", "right=192.0.2.4\n\tleftupdown=/bin/true", ["~ started"]),
    "no rekeying": ("right=192.0.2.4", "right=192.0.2.4\n\trekey=no", ["~ started"]),
    "no PFS": ("right=192.0.2.4", "right=192.0.2.4\n\tpfs=no", ["~ started"]),
    "dead peer detection": ("right=192.0.2.4", "right=192.0.2.4\n\tdpddelay=10\n\tdpdtimeout=60", ["~ started"]),
    "another authentication": ("right=192.0.2.4", "right=192.0.2.4\n\tauthby=null", ["~ started"]),
    "a margin": ("right=192.0.2.4", "right=192.0.2.4\n\trekeymargin=5m", ["~ started"]),
    "a protocol": ("right=192.0.2.2", "right=192.0.2.2\n\tleftprotoport=tcp/80", ["~ routed"]),
    "a priority": ("right=192.0.2.4", "right=192.0.2.4\n\tpriority=77", ["~ started"]),
    "NFLOG": ("right=192.0.2.3", "right=192.0.2.3\n\tnflog=5", ["~ several"]),
    "certificates": ("right=192.0.2.4", "right=192.0.2.4\n\tleftsendcert=never", ["~ started"]),
    "a note": ("right=192.0.2.4", "right=192.0.2.4\n\tx-note=any text", []),
    "blanks between networks": ("10.1.0.0/24,10.3.0.0/24", "10.1.0.0/24 10.3.0.0/24", []),
    "a section removed": ("conn started\n\tright=192.0.2.4\n\tauto=start\n", "", []),
    "a section split by also=": ("\tright=192.0.2.4\n\tauto=start\n",
                                 "\tauto=start\n\talso=rest\nconn rest\n\tright=192.0.2.4\n", []),
    "a reqid": ("right=192.0.2.4", "right=192.0.2.4\n\treqid=77", ["~ started"]),
    "a new connection": ("conn ignored\n", NEW.lstrip() + "conn ignored\n", ["+ new"]),
    "a connection that was ignored": ("right=192.0.2.9\n", "right=192.0.2.9\n\tauto=add\n", ["+ ignored"]),
    "a connection renamed": ("conn rw\n", "conn roadwarriors\n", ["+ roadwarriors"]),
    "auto=add that becomes ondemand": ("rightsubnet=10.9.0.0/16\n\tauto=add", "rightsubnet=10.9.0.0/16\n\tauto=route",
                                       ["~ several"]),
    "also= and an include": ("conn started\n\tright=192.0.2.4\n", "conn started\n\talso=moved\n",
                             ["~ started"]),
}
MOVED = "conn moved\n\tright=192.0.2.4\n\tikelifetime=6h\n"


def serials(machine: Machine) -> dict[str, str]:
    """The serial number of each connection: a replaced connection gets a new one."""
    status = machine.run([Pluto.WHACK, "--status"]).check().stdout
    return dict(re.findall(r'^(?:000 )?"([^"]+)":.* conn serial: \$(\d+)', status, re.MULTILINE))


@pytest.fixture
def running(gateway: Machine, pluto: Callable[..., Pluto]) -> Machine:
    gateway.address("192.0.2.1/24")
    gateway.ip("route", "add", "default", "via", "192.0.2.2")
    gateway.write("/etc/ipsec.d/moved.conf", MOVED)
    pluto(gateway, config=CONFIG, secrets=': PSK "k1k2k3k4k5k6k7k8"\n')
    return gateway


def steps(text: str) -> list[str]:
    """Marks and names of the steps of a plan."""
    return [line.partition(":")[0] for line in text.splitlines() if line[:2] in ("+ ", "~ ", "- ", "! ")]


def test_the_plan_for_each_edit_and_its_application(running: Machine) -> None:
    running.ipsec("reload").check()  # from here on, the keywords that the status does not show are known
    for edit, (old, new, expected) in EDITS.items():
        text = CONFIG.replace(old, new) if old else CONFIG
        running.write("/etc/ipsec.conf", text + ("include /etc/ipsec.d/moved.conf\n" if "moved" in new else ""))
        before = serials(running)
        dry = running.ipsec("reload", "--dry-run").check()
        assert steps(dry.stdout) == expected, edit
        assert serials(running) == before, edit  # neither changed nor left behind
        applied = running.ipsec("reload").check()
        assert steps(applied.stdout) == expected, edit
        after = serials(running)
        changed = {name for name in after if before.get(name) != after[name]}
        assert {name.partition("/")[0] for name in changed} == {step[2:] for step in expected
                                                                if edit != "auto=add that becomes ondemand"}, edit
        running.write("/etc/ipsec.conf", CONFIG)
        running.ipsec("reload", "--prune").check()
        if edit.startswith("auto="):
            running.ipsec("unroute", "several").check()


def test_a_change_that_the_status_does_not_show_is_unknown_at_first(running: Machine) -> None:
    running.write("/etc/ipsec.conf", CONFIG.replace("right=192.0.2.4", "right=192.0.2.4\n\treqid=77"))
    result = running.ipsec("reload").check()
    assert ("? started: pluto's status does not show reqid; "
            "if you changed a value there, run: ipsec replace") in result.stdout
    assert steps(running.ipsec("reload").check().stdout) == []


def test_connections_of_others_are_kept_and_prune_deletes_them(running: Machine) -> None:
    other = ["--name", "other", "--encrypt", "--psk", "--host", "192.0.2.1", "--to", "--host", "192.0.2.7"]
    running.run([Pluto.WHACK, *other]).check()
    result = running.ipsec("reload").check()
    assert steps(result.stdout) == [] and "  other: not in /etc/ipsec.conf; kept (--prune deletes it)" in result.stdout
    assert "other" in serials(running)
    assert steps(running.ipsec("reload", "--prune").check().stdout) == ["- other"]
    assert "other" not in serials(running)


@pytest.mark.parametrize("how", ["libreswan's whack", "native"])
def test_a_new_connection_is_routed_as_auto_says(running: Machine, how: str) -> None:
    running.write("/etc/ipsec.conf", CONFIG + NEW)
    running.ipsec("reload", env={"IPSEC_WHACK": "native" if how == "native" else None}).check()
    assert "src 10.111.0.0/24" in running.ip("xfrm", "policy").stdout


def test_a_file_with_an_error_changes_nothing(running: Machine) -> None:
    before = serials(running)
    running.write("/etc/ipsec.conf", CONFIG.replace("8h", "7h") + "conn broken\n\tbogus=1\n")
    assert running.ipsec("reload").status != 0
    running.write("/etc/ipsec.conf", CONFIG.replace("8h", "7h"))
    running.write("/etc/ipsec.secrets", ': PSK "without an end\n', 0o600)
    result = running.ipsec("reload").check(1)
    assert "nothing was changed" in result.stderr and "without an end" not in result.stderr
    assert serials(running) == before


def test_a_definition_that_pluto_refuses_leaves_the_old_one(running: Machine) -> None:
    before = serials(running)
    running.write("/etc/ipsec.conf", CONFIG.replace("right=192.0.2.4", "right=192.0.2.4\n\tleftcert=nosuch"))
    result = running.ipsec("reload")
    if "! started" in result.stdout:  # 4.3 loads a connection without its certificate
        assert result.status == 1 and serials(running)["started"] == before["started"]
    else:
        assert steps(result.stdout) == ["~ started"]


def test_copies_that_a_killed_reload_left_are_deleted(running: Machine) -> None:
    running.write("/tmp/copy.conf", "include /etc/ipsec.conf\nconn ipsec.reload.rw\n\talso=rw\n")
    running.run(["/usr/libexec/ipsec/addconn", "--config", "/tmp/copy.conf", "ipsec.reload.rw"]).check()
    assert "ipsec.reload.rw" in serials(running)
    assert steps(running.ipsec("reload").check().stdout) == []
    assert "ipsec.reload.rw" not in serials(running)


def test_without_pluto(gateway: Machine) -> None:
    gateway.write("/etc/ipsec.conf", CONFIG)
    gateway.ipsec("reload").check(33)


# --- a tunnel that does not change, while others do ------------------------------------------------------------------

TUNNELS = """config setup
\tlogfile=/var/log/pluto.log

conn %default
\tleft=192.0.2.1
\tleftid=@west
\tright=192.0.2.2
\trightid=@east
\tauthby=secret

conn tunnel
\tleftsubnet=10.1.0.0/24
\trightsubnet=10.2.0.0/24
\tauto=add

conn owner
\tleftsubnet=10.1.99.0/24
\trightsubnet=10.2.99.0/24
\tikelifetime=8h
\tauto=add
"""
#: A reload while a ping runs.  It waits for ten replies before and after, however long they take.
RELOAD_UNDER_PING = """
replies() { grep -c icmp_seq= /var/log/ping; }
ten_more() {
    wanted=$(($(replies) + 10))
    for second in $(seq 100); do
        [ "$(replies)" -ge $wanted ] && return
        sleep 1
    done
}
ping -i 0.01 -I 10.1.0.1 10.2.0.1 >/var/log/ping &
ping=$!
ten_more
cp /etc/ipsec.changed /etc/ipsec.conf
"$@"
status=$?
ten_more
kill -INT $ping
wait $ping
exit $status
"""


#: The number of connections that change.  A kernel without ESP of its own is slow: try 50 by hand.
OTHERS = int(os.environ.get("RELOAD_OTHERS", "10"))


def others(lifetime: str) -> str:
    """Connections with trap policies, to the peer of the tunnel and to hosts that do not answer.

    Two of them run libreswan's updown script, which takes seconds in this kernel.
    """
    return "".join(f"\nconn other-{number}\n\tright=192.0.2.{2 + number % 10}\n\tleftsubnet=10.1.{number}.0/24\n"
                   f"\trightsubnet=10.9.{number}.0/24\n\tikelifetime={lifetime}\n\tauto=ondemand\n"
                   + ("" if number <= 2 else "\tleftupdown=/bin/true\n")
                   for number in range(1, OTHERS + 1))


def lost(log: str) -> list[int]:
    """The numbers of the pings without a reply, up to the last reply: the ping is killed while it waits for one."""
    replied = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", log)}
    return [number for number in range(1, max(replied)) if number not in replied]


def spis(text: str) -> set[str]:
    """The SPIs in the output of `ip xfrm state`; a state without one is a request to pluto."""
    return set(re.findall(r"spi (0x[0-9a-f]{8})", text)) - {"0x00000000"}


@pytest.mark.timeout(1100)
def test_an_unchanged_tunnel_loses_no_packet(gateways: Gateways) -> None:
    """Other connections are replaced while a ping crosses the tunnel.  Then the one is to which its IKE
    SA belongs: the plan says that this interrupts the tunnel, and the tunnel comes up again."""
    for name in NAMES:
        gateways.write(name, "ipsec.secrets", '@west @east : PSK "k1k2k3k4k5k6k7k8"\n', 0o600)
    gateways.make_databases()
    gateways.write("east", "ipsec.conf", TUNNELS)
    gateways.write("west", "ipsec.conf", TUNNELS + others("8h"))
    gateways.write("west", "ipsec.changed", TUNNELS + others("7h"))
    gateways.write("west", "ipsec.owner", TUNNELS.replace("8h", "6h") + others("7h"))
    for name in ("east", "west"):
        gateways.ipsec(f"{name}-start", name, "start")
    gateways.ipsec("owner-up", "west", "up", "owner")
    gateways.ipsec("tunnel-up", "west", "up", "tunnel")
    gateways.step("before", "west", ["ip", "xfrm", "state"])
    reload = [gateways.machine.python, PYZ, "reload", "--native"]  # without libreswan's whack: fewer slow processes
    gateways.step("reload", "west", ["sh", "-c", RELOAD_UNDER_PING, "sh", *reload])
    gateways.step("after", "west", ["ip", "xfrm", "state"])
    gateways.step("copy", "west", ["cp", "/etc/ipsec.owner", "/etc/ipsec.conf"])
    gateways.step("dry", "west", [*reload, "--dry-run"])
    gateways.step("owner-reload", "west", reload)
    gateways.step("ping", "west", ["ping", "-c", "1", "-w", "60", "-I", "10.1.0.1", "10.2.0.1"])
    results = gateways.run(timeout=1000)

    assert {name: result.status for name, result in results.items()} == dict.fromkeys(results, 0)
    assert results["reload"].stdout.endswith(f"\n0 added, {OTHERS} replaced, 0 deleted, 2 unchanged, 0 kept\n")
    log = gateways.machine.read("/gateways/west/log/ping")
    assert log.count("icmp_seq=") >= 20 and lost(log) == []
    assert len(spis(results["before"].stdout)) == 4
    assert spis(results["after"].stdout) == spis(results["before"].stdout)
    for plan in ("dry", "owner-reload"):
        assert re.search("^~ owner: .*; interrupts tunnel on the same IKE SA$", results[plan].stdout, re.MULTILINE)
