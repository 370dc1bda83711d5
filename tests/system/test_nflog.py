"""checknflog, stopnflog and sniff on the real thing: each way of making rules, and what the kernel then holds.

The ways: iptables of both flavours, and nf_tables spoken to directly on a host without iptables. Rules are counted in
what iptables-save and nft show of the kernel, never in what ipsec.pyz says. A tunnel in a kernel with ESP shows that
the packets really arrive on the group.
"""

from __future__ import annotations

import random
import time
from typing import Callable

import pytest

from ..ground.gateways import NAMES, Gateways
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.uml import kernel

WAYS = ("nft", "legacy", "netlink")
CONFIG = "config setup\n\tnflog-all={}\n"
ENABLED = "nflog ipsec capture enabled on nflog:{}\n"
DISABLED = "nflog ipsec capture disabled\n"
FOREIGN = ("INPUT -p tcp -m tcp --dport 22 -j NFLOG --nflog-prefix all-ipsec2 --nflog-group 50",
           "OUTPUT -m policy --dir out --pol ipsec -j NFLOG --nflog-prefix mine --nflog-group 50",
           "FORWARD -p udp -j ACCEPT")
#: The rules of one set: in, out and both ways through, and once for each family where iptables makes them.
ONE_SET = {"nft": 8, "legacy": 8, "netlink": 4}


class Firewalled:
    """A host whose rules are made in one way."""

    def __init__(self, machine: Machine, way: str) -> None:
        self.machine, self.way = machine, way
        if way == "netlink":
            machine.run(["sh", "-c", "rm /usr/sbin/ip*tables*"]).check()
        else:
            for name in ("iptables", "ip6tables"):
                machine.run(["update-alternatives", "--set", name, f"/usr/sbin/{name}-{way}"]).check()
        self.config(50)

    def config(self, group: object) -> None:
        """Write an ipsec.conf with this nflog-all=, or another text."""
        self.machine.write("/etc/ipsec.conf", group if isinstance(group, str) else CONFIG.format(group))

    def rules(self) -> list[str]:
        """All NFLOG rules, as the kernel has them."""
        if self.way == "netlink":
            shown = self.machine.run(["nft", "list", "ruleset"]).check().stdout
            return sorted(line.strip() for line in shown.splitlines() if " log " in line)
        shown = "".join(self.machine.run([program]).check().stdout for program in ("iptables-save", "ip6tables-save"))
        return sorted(line for line in shown.splitlines() if "NFLOG" in line)

    def count(self, group: int) -> int:
        """How many rules of ours there are for the group."""
        end = (f'"all-ipsec" group {group}' if self.way == "netlink" else
               f"--nflog-prefix all-ipsec --nflog-group {group}")
        return sum(line.partition(" comment ")[0].endswith(end) for line in self.rules())


@pytest.fixture(params=WAYS)
def firewalled(request: pytest.FixtureRequest, root: Callable[..., Machine]) -> Firewalled:
    """A host for each way of making rules."""
    return Firewalled(root("bookworm"), request.param)


@pytest.mark.timeout(900)
def test_one_two_and_a_hundred_runs_and_twenty_at_once_leave_one_set(firewalled: Firewalled) -> None:
    machine, one = firewalled.machine, ONE_SET[firewalled.way]
    counts = []
    for runs in (1, 1, 98):
        loop = f"for run in $(seq {runs}); do {machine.python} {PYZ} checknflog || exit 1; done"
        assert machine.run(["sh", "-c", loop], timeout=600).check().stdout == ENABLED.format(50) * runs
        counts.append(firewalled.count(50))
    machine.ipsec("stopnflog").check()
    assert firewalled.rules() == []
    at_once = f"for run in $(seq 20); do {machine.python} {PYZ} checknflog & done; wait"
    assert machine.run(["sh", "-c", at_once], timeout=600).check().stdout == ENABLED.format(50) * 20
    counts.append(firewalled.count(50))
    print(f"{firewalled.way}: rules after 1, 2, 100 runs and after 20 at once: {counts}")
    assert counts == [one] * 4
    assert len(firewalled.rules()) == one


def test_groups_change_and_rules_go_whatever_the_configuration_says(firewalled: Firewalled) -> None:
    machine, one = firewalled.machine, ONE_SET[firewalled.way]
    machine.ipsec("checknflog").check()
    firewalled.config(60)
    assert machine.ipsec("checknflog").check().stdout == (
        "deleting rules with old nflog group 50\n" + ENABLED.format(60))
    assert (firewalled.count(50), firewalled.count(60)) == (0, one)
    firewalled.config(0)  # ipsec.conf(5): no logging
    assert machine.ipsec("checknflog").check().stdout == "deleting rules with old nflog group 60\n" + DISABLED
    assert firewalled.rules() == []
    firewalled.config(61)
    machine.ipsec("checknflog").check()
    firewalled.config("not even a configuration\n")
    machine.ipsec("stopnflog").check()
    assert firewalled.rules() == []
    assert machine.ipsec("stopnflog").check().stdout == ""


#: What is wrong elsewhere in a configuration: a value, a syntax error, a value that only 5.2 takes.
ELSEWHERE = ("\tauto=banana\n", "\tleftid=a b\n", "\tikepad=auto\n", "\trekeymargin=10seconds\n",
             "\tbogus=1\n", "nonsense\n")


@pytest.mark.parametrize("wrong", ELSEWHERE)
def test_only_its_own_keywords_matter(root: Callable[..., Machine], wrong: str) -> None:
    firewalled = Firewalled(root("bookworm"), "netlink")
    firewalled.config("config setup\n\tnflog-all=51\nconn a\n\tleft=127.0.0.1\n\tright=192.0.2.9\n\tnflog=7\n" + wrong)
    result = firewalled.machine.ipsec("checknflog", "--strict").check()
    assert (result.stdout, result.stderr) == (
        ENABLED.format(51) + 'nflog capture of connection "a" enabled on nflog:7\n', "")
    assert (firewalled.count(51), len(firewalled.rules())) == (4, 8)


GOOD = "conn good\n\tleft=127.0.0.1\n\tright=192.0.2.9\n\tnflog=7\n"


@pytest.mark.parametrize("text, place, groups", [
    (f"config setup\n\tnflog-all=70000\n{GOOD}", '/etc/ipsec.conf:2: nflog-all="70000" is not', [7]),
    (f"config setup\n\tnflog-all=banana\n{GOOD}", '/etc/ipsec.conf:2: nflog-all="banana" is not', [7]),
    (f"config setup\n\tnflog-all=50 60\n{GOOD}", "/etc/ipsec.conf:2: syntax error", [7]),
    (f"config setup\n\tnflog-all=50\nconn bad\n\tleft=127.0.0.1\n\tright=192.0.2.8\n\tnflog=x\n{GOOD}",
     '/etc/ipsec.conf:6: nflog="x" is not', [7, 50]),
    (f"config setup\n\tnflog-all=50\n{GOOD}include /etc/secret\n", "/etc/ipsec.conf:7: can't load", [7, 50]),
])
def test_an_invalid_value_is_a_complaint_and_no_rule_for_it_alone(
        root: Callable[..., Machine], text: str, place: str, groups: list[int]) -> None:
    firewalled = Firewalled(root("bookworm"), "netlink")
    firewalled.machine.path("/etc/secret").mkdir()
    firewalled.config(text)
    for words, status in ((["checknflog"], 0), (["--checknflog"], 0), (["checknflog", "--strict"], 1)):
        result = firewalled.machine.ipsec(*words)
        assert (result.status, result.stderr.count("\n")) == (status, 1)
        assert result.stderr.startswith(f"ipsec: nflog: {place}")
        assert sorted({int(line.partition("group ")[2].split()[0]) for line in firewalled.rules()}) == groups


def test_rules_of_a_file_that_cannot_be_read_stay(root: Callable[..., Machine]) -> None:
    firewalled = Firewalled(root("bookworm"), "netlink")
    machine = firewalled.machine
    machine.write("/etc/more", GOOD)
    firewalled.config("config setup\n\tnflog-all=50\ninclude /etc/more\n")
    machine.ipsec("checknflog", "--strict").check()
    assert len(firewalled.rules()) == 8
    machine.path("/etc/more").unlink()
    machine.path("/etc/more").mkdir()
    firewalled.config("config setup\n\tnflog-all=51\ninclude /etc/more\n")
    assert "stay" in machine.ipsec("checknflog", "--strict").check(1).stderr
    assert (firewalled.count(51), len(firewalled.rules())) == (4, 8)
    machine.path("/etc/ipsec.conf").unlink()
    assert "no rule is changed" in machine.ipsec("checknflog").check().stderr
    assert len(firewalled.rules()) == 8


def test_a_complaint_and_nothing_changed_when_it_cannot_be_done(firewalled: Firewalled) -> None:
    machine = firewalled.machine
    machine.ipsec("checknflog").check()
    before = firewalled.rules()
    firewalled.config(51)
    for words, status in ((["checknflog"], 0), (["checknflog", "--strict"], 1), (["stopnflog"], 1)):
        result = machine.ipsec(*words, user=65534)
        assert result.status == status and "run it as root" in result.stderr and not result.stdout
        assert "nflog: " in result.stderr or words == ["stopnflog"]
    for words in (["checknflog", "--help"], ["stopnflog", "--help"]):
        assert machine.ipsec(*words).check().stdout.startswith("Usage: ")
    assert machine.ipsec("checknflog", "now").status == 2
    assert firewalled.rules() == before


def test_the_word_in_other_values_means_nothing(firewalled: Firewalled) -> None:
    firewalled.config('config setup\n\tmyvendorid="nflog rocks"\n')
    assert firewalled.machine.ipsec("checknflog").check().stdout == DISABLED
    firewalled.machine.write("/etc/other.conf", CONFIG.format(9))
    firewalled.machine.ipsec("checknflog", env={"IPSEC_CONF": "/etc/other.conf"}).check()
    assert firewalled.count(9) == ONE_SET[firewalled.way]


def test_half_a_set_and_rules_of_others(firewalled: Firewalled) -> None:
    """What is missing comes back, what is there too often goes, what is not ours stays."""
    machine, one = firewalled.machine, ONE_SET[firewalled.way]
    if firewalled.way == "netlink":
        machine.ipsec("checknflog").check()
        machine.run(["nft", "add", "rule", "inet", "ipsec-log", "INPUT", "tcp", "dport", "22", "log", "prefix",
                     '"mine"', "group", "50"]).check()
        machine.run(["nft", "flush", "chain", "inet", "ipsec-log", "OUTPUT"]).check()
        machine.run(["nft", "add", "rule", "inet", "ipsec-log", "FORWARD", "log", "prefix", '"all-ipsec"', "group",
                     "50"]).check()
        foreign = 1
    else:
        for program in ("iptables", "ip6tables"):
            for rule in FOREIGN:
                machine.run([program, "-A", *rule.split()]).check()
        machine.ipsec("checknflog").check()
        machine.run(["ip6tables", "-D", "OUTPUT", "1"]).check()
        machine.run(["iptables", "-A", "INPUT", "-j", "NFLOG", "--nflog-prefix", "all-ipsec", "--nflog-group",
                     "50"]).check()
        foreign = 4
    machine.ipsec("checknflog").check()
    assert firewalled.count(50) == one
    assert len(firewalled.rules()) == one + foreign
    machine.ipsec("stopnflog").check()
    left = firewalled.rules()
    assert len(left) == foreign and not any("all-ipsec " in line or '"all-ipsec"' in line for line in left)


@pytest.mark.parametrize("way", ["nft", "legacy"])
def test_a_set_of_the_original_is_taken_over(root: Callable[..., Machine], way: str) -> None:
    firewalled = Firewalled(root("bookworm"), way)
    firewalled.machine.run(["/usr/sbin/ipsec", "checknflog"]).check()
    assert firewalled.count(50) == 2
    firewalled.config(60)
    firewalled.machine.ipsec("checknflog").check()
    assert (firewalled.count(50), firewalled.count(60), len(firewalled.rules())) == (0, 8, 8)


def test_one_set_altogether_when_the_flavour_changes(root: Callable[..., Machine]) -> None:
    firewalled = Firewalled(root("bookworm"), "legacy")
    machine = firewalled.machine
    machine.ipsec("checknflog").check()
    assert firewalled.count(50) == 8
    for name in ("iptables", "ip6tables"):
        machine.run(["update-alternatives", "--set", name, f"/usr/sbin/{name}-nft"]).check()
    firewalled.config(51)
    assert machine.ipsec("checknflog").check().stdout == (
        "deleting rules with old nflog group 50\n" + ENABLED.format(51))
    assert firewalled.count(51) == 8
    legacy = machine.run(["iptables-legacy-save"]).stdout + machine.run(["ip6tables-legacy-save"]).stdout
    assert "NFLOG" not in legacy


KILLS = 50


@pytest.mark.timeout(900)
def test_kill_9_leaves_a_whole_set_or_none(firewalled: Firewalled) -> None:
    """At any moment of stopnflog and checknflog; what was started for them may go on for a moment."""
    machine, one = firewalled.machine, ONE_SET[firewalled.way]
    settled = "while grep -qs tables-rest /proc/[0-9]*/comm; do sleep 0.01; done"
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    counts = dict.fromkeys((0, one), 0)
    machine.ipsec("checknflog").check()
    began = time.monotonic()
    machine.ipsec("stopnflog").check()
    length = time.monotonic() - began
    for step in range(KILLS):
        word = ("stopnflog", "checknflog")[step % 2]
        machine.ipsec(("stopnflog", "checknflog")[(step + 1) % 2]).check()
        seconds = chance.uniform(length / 5, length * 1.1)
        machine.run(["sh", "-c", f"timeout -s KILL {seconds:.3f} {machine.python} {PYZ} {word}; {settled}"])
        rules = firewalled.rules()
        assert len(rules) in (0, one), (seed, step, rules)
        counts[len(rules)] += 1
    print(f"{firewalled.way}: {KILLS} times kill -9 within {length:.2f} s, seed {seed}: rules {counts}")


@pytest.mark.parametrize("way", ["nft", "legacy"])
def test_when_one_family_fails_the_other_is_as_before(root: Callable[..., Machine], way: str) -> None:
    firewalled = Firewalled(root("bookworm"), way)
    machine = firewalled.machine
    machine.ipsec("checknflog").check()
    before = firewalled.rules()
    machine.run(["rm", "/usr/sbin/ip6tables-restore"]).check()
    machine.write("/usr/sbin/ip6tables-restore", "#!/bin/sh\necho 'no more room' >&2\nexit 4\n", 0o755)
    firewalled.config(60)
    result = machine.ipsec("checknflog", "--strict")
    assert (result.status, result.stdout) == (1, "") and "no more room" in result.stderr
    assert firewalled.rules() == before
    assert machine.ipsec("stopnflog").status == 1
    assert firewalled.rules() == before


def test_it_waits_for_others_at_the_tables(root: Callable[..., Machine]) -> None:
    firewalled = Firewalled(root("bookworm"), "legacy")
    machine = firewalled.machine
    busy = ("flock /run/xtables.lock sh -c 'touch /run/held; sleep 3' & until [ -e /run/held ]; do sleep 0.1; done; "
            f"{machine.python} {PYZ} checknflog; wait")
    assert machine.run(["sh", "-c", busy]).check().stdout == ENABLED.format(50)
    assert firewalled.count(50) == 8


#: Pluto would run libreswan's `ipsec`, which these roots have, for a connection without leftupdown=.
CONNS = f"""config setup

conn fixed
\tleftupdown="/usr/bin/python3 {PYZ} _updown"
\tleft=192.0.2.1
\tleftsubnets=10.1.0.0/24,10.3.0.0/24
\tright=192.0.2.2
\tnflog=7
\tauto=add

conn six
\tright=2001:db8::1
\tleft=2001:db8::2
\trightsubnet=2001:db8:1::/64
\tleftsubnet=2001:db8:2::/64
\tnflog=8
\tauto=add

conn later
\tleft=%defaultroute
\tright=192.0.2.3
\tnflog=9
\tauto=add
"""


def test_groups_of_connections(firewalled: Firewalled) -> None:
    machine = firewalled.machine
    machine.address("192.0.2.1/24")
    machine.ip("address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    firewalled.config(CONNS)
    for _ in range(2):
        assert machine.ipsec("checknflog").check().stdout == (
            DISABLED + 'nflog capture of connection "fixed" enabled on nflog:7\n'
            'nflog capture of connection "six" enabled on nflog:8\n'
            'nflog capture of connection "later" on nflog:9 begins when the connection is routed\n')
        rules = firewalled.rules()
        groups = [int(line.partition("group ")[2].split()[0]) for line in rules]
        assert sorted(groups) == [7] * 8 + [8] * 4
    ours, theirs = ("saddr {}", "daddr {}") if firewalled.way == "netlink" else ("-s {}", "-d {}")
    assert sum(ours.format("192.0.2.2") in line and theirs.format("10.3.0.0/24") in line for line in rules) == 2
    assert sum(ours.format("2001:db8:1::/64") in line for line in rules) == 2
    firewalled.config(CONNS.replace("nflog=8", "nflog=88"))
    assert 'deleting rules of connection "six" with old nflog group 8\n' in machine.ipsec("checknflog").check().stdout
    firewalled.config("config setup\n")
    machine.ipsec("stopnflog").check()
    assert firewalled.rules() == []


def test_a_connection_that_is_routed(firewalled: Firewalled) -> None:
    """_updown: one pair of rules for each pair of nets, however often it is routed; none beside checknflog's."""
    machine = firewalled.machine
    machine.address("192.0.2.1/24")
    first = {"PLUTO_STACK": "xfrm", "PLUTO_CONN_ADDRFAMILY": "ipv4", "PLUTO_CONNECTION": "fixed", "NFLOG": "7",
             "PLUTO_MY_CLIENT": "10.1.0.0/24", "PLUTO_MY_CLIENT_NET": "10.1.0.0", "PLUTO_PEER_CLIENT": "192.0.2.2/32",
             "PLUTO_PEER_CLIENT_NET": "192.0.2.2", "PLUTO_ME": "192.0.2.1", "PLUTO_PEER": "192.0.2.2",
             "PLUTO_INTERFACE": "eth0", "PLUTO_NEXT_HOP": "192.0.2.2"}
    second = {**first, "PLUTO_MY_CLIENT": "10.3.0.0/24", "PLUTO_MY_CLIENT_NET": "10.3.0.0"}
    six = {**first, "PLUTO_CONN_ADDRFAMILY": "ipv6", "PLUTO_MY_CLIENT": "2001:db8::/64", "PLUTO_PEER_CLIENT": "::/0",
           "PLUTO_PEER_CLIENT_NET": "::", "PLUTO_MY_CLIENT_NET": "2001:db8::"}

    def verb(name: str, env: dict[str, str]) -> int:
        result = machine.ipsec("_updown", env={**env, "PLUTO_VERB": name}).check()
        assert not result.stderr
        return len(firewalled.rules())

    assert [verb(*each) for each in (("route-client", first), ("route-client", first), ("route-client", second),
                                     ("route-client-v6", six), ("down-client", first))] == [2, 2, 4, 6, 4]
    machine.ipsec("stopnflog").check()
    assert len(firewalled.rules()) == 4  # not checknflog's
    assert [verb("down-client", second), verb("down-client-v6", six), verb("down-client", six)] == [2, 0, 0]
    firewalled.config(CONNS)
    machine.ipsec("checknflog").check()
    before = firewalled.rules()
    verb("route-client", first)
    verb("down-client", first)
    assert firewalled.rules() == before


CLIENT = {"PLUTO_VERSION": "2.0", "PLUTO_STACK": "xfrm", "PLUTO_CONN_ADDRFAMILY": "ipv4", "PLUTO_CLIENT_FAMILY": "ipv4",
          "PLUTO_CONNECTION": "fixed", "NFLOG": "7", "PLUTO_SA_REQID": "16389", "PLUTO_SA_TYPE": "ESP",
          "PLUTO_MY_CLIENT": "10.1.0.0/24", "PLUTO_MY_CLIENT_NET": "10.1.0.0", "PLUTO_MY_CLIENT_MASK": "255.255.255.0",
          "PLUTO_PEER_CLIENT": "192.0.2.2/32", "PLUTO_PEER_CLIENT_NET": "192.0.2.2",
          "PLUTO_PEER_CLIENT_MASK": "255.255.255.255", "PLUTO_ME": "192.0.2.1", "PLUTO_PEER": "192.0.2.2",
          "PLUTO_INTERFACE": "eth0", "PLUTO_NEXT_HOP": "192.0.2.2"}


def places(machine: Machine, group: int = 7) -> list[str]:
    """Return the chain of each IPv4 rule for a group, for the client 10.1.0.0/24, of iptables and of nf_tables."""
    saved = machine.run(["iptables-save"]).check().stdout.splitlines()
    chains = [line.split()[1] for line in saved if f"--nflog-group {group}" in line and "10.1.0.0/24" in line]
    chain = ""
    for line in machine.run(["nft", "list", "table", "inet", "ipsec-log"]).stdout.splitlines():
        if line.split()[:1] == ["chain"]:
            chain = line.split()[1].upper()
        elif f"group {group}" in line and "10.1.0.0/24" in line:
            chains.append(chain)
    return sorted(chains)


WHOLE = ["FORWARD", "FORWARD", "INPUT", "OUTPUT"]


@pytest.mark.parametrize("release", ["bullseye", "bookworm", "trixie"])
@pytest.mark.parametrize("updown", ["", "/usr/libexec/ipsec/_updown", "copy"])
def test_once_with_libreswan_s_updown(root: Callable[..., Machine], release: str, updown: str) -> None:
    """Start is this program's and _updown is libreswan's: the two make one set of rules."""
    machine = root(release)
    machine.address("192.0.2.1/24")
    if updown == "copy":
        updown = "/etc/updown"
        machine.write(updown, machine.read("/usr/libexec/ipsec/_updown.xfrm"), 0o755)
    setting = f"leftupdown={updown}" if updown else ""
    machine.write("/etc/ipsec.conf", CONNS.replace(f'leftupdown="/usr/bin/python3 {PYZ} _updown"', setting))
    run = [updown] if updown else ["/usr/sbin/ipsec", "_updown"]
    assert 'connection "fixed" enabled on nflog:7' in machine.ipsec("checknflog", "--strict").check().stdout
    assert places(machine) == ["FORWARD", "FORWARD"]
    machine.run(run, env={**CLIENT, "PLUTO_VERB": "route-client"})
    assert places(machine) == WHOLE
    machine.ipsec("checknflog", "--strict").check()
    assert places(machine) == WHOLE
    machine.run(run, env={**CLIENT, "PLUTO_VERB": "down-client"})
    assert places(machine) == ["FORWARD", "FORWARD"] or release == "trixie"  # 5.2 deletes only one of its rules
    machine.ipsec("stopnflog").check()
    assert "FORWARD" not in places(machine)


@pytest.mark.parametrize("release", ["bullseye", "bookworm", "trixie"])
def test_once_with_this_program_s_updown(root: Callable[..., Machine], release: str) -> None:
    """Libreswan's checknflog makes no rules for nflog=; _updown and then this program's checknflog do."""
    machine = root(release)
    machine.address("192.0.2.1/24")
    machine.write("/etc/ipsec.conf", CONNS)
    machine.run(["/usr/sbin/ipsec", "checknflog"])
    assert places(machine) == []
    for _ in range(2):
        machine.ipsec("_updown", env={**CLIENT, "PLUTO_VERB": "route-client"}).check()
        assert places(machine) == ["INPUT", "OUTPUT"]
    for words, env in ((["checknflog", "--strict"], {}), (["_updown"], {**CLIENT, "PLUTO_VERB": "route-client"})):
        machine.ipsec(*words, env=env).check()
        assert places(machine) == WHOLE
    machine.ipsec("_updown", env={**CLIENT, "PLUTO_VERB": "down-client"}).check()
    assert places(machine) == WHOLE  # as before the connection was up
    machine.ipsec("stopnflog").check()
    assert places(machine) == []


@pytest.mark.parametrize("release, prefixes", [
    ("bullseye", {"all-ipsec"}), ("bookworm", {"all-ipsec"}), ("trixie", {"all-ipsec-input", "all-ipsec-output"})])
def test_prefixes_are_those_of_the_release(root: Callable[..., Machine], release: str, prefixes: set[str]) -> None:
    """And a change from one form to the other leaves one set."""
    machine = root(release)
    machine.write("/etc/ipsec.conf", CONFIG.format(50))
    for program in ("iptables", "ip6tables"):
        for prefix in ("all-ipsec", "all-ipsec-input"):
            machine.run([program, "-A", "INPUT", "-j", "NFLOG", "--nflog-prefix", prefix, "--nflog-group",
                         "50"]).check()
    machine.run(["/usr/sbin/ipsec", "checknflog"])
    assert machine.ipsec("checknflog", "--strict").check().stdout == ENABLED.format(50)
    saved = machine.run(["iptables-save"]).check().stdout.split()
    assert {saved[index + 1] for index, word in enumerate(saved) if word == "--nflog-prefix"} == prefixes
    assert saved.count("--nflog-prefix") == 4
    assert "group 50" not in machine.run(["nft", "list", "table", "inet", "ipsec-log"]).stdout


def test_sniff(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    machine.write("/etc/ipsec.conf", "config setup\n")
    result = machine.ipsec("sniff")
    assert result.status == 1 and "no NFLOG group is configured" in result.stderr and "nflog-all=" in result.stderr
    machine.write("/etc/ipsec.conf", CONNS.replace("config setup\n", CONFIG.format(50)))
    machine.path("/usr/bin/tcpdump").unlink()
    machine.write("/usr/bin/tcpdump", '#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 7\n', 0o755)
    result = machine.ipsec("sniff", "-c", "1", "src net 10.0.0.0/8")
    assert (result.status, result.stdout.split("\n")[:-1]) == (
        7, ["<-n>", "<-i>", "<nflog:50,7,8,9>", "<-c>", "<1>", "<src net 10.0.0.0/8>"])
    machine.path("/usr/bin/tcpdump").unlink()
    result = machine.ipsec("sniff")
    assert result.status == 127 and "install tcpdump" in result.stderr


#: A program that is left running until what it listens to has come.
LISTEN = ("tcpdump -n -l -c {count} -i nflog:{group} >/var/log/{group}.txt 2>/var/log/{group}.err & "
          "until grep -q listening /var/log/{group}.err; do sleep 0.2; done")


def test_what_a_rule_matches_arrives_on_the_group(firewalled: Firewalled) -> None:
    """No packet can be IPsec's here: the rules, turned to match all others, deliver those of a ping, both families."""
    machine = firewalled.machine
    machine.ipsec("checknflog").check()
    turn = ("(echo flush ruleset; nft list ruleset | sed 's/ipsec exists/ipsec missing/') >/run/rules; "
            "nft -f /run/rules" if firewalled.way == "netlink" else
            "for program in iptables ip6tables; do "
            "$program-save | sed 's/--pol ipsec/--pol none/' >/run/rules; $program-restore /run/rules; done")
    machine.run(["sh", "-c", turn]).check()
    machine.run(["sh", "-c", LISTEN.format(count=8, group=50) + "; ping -c 1 127.0.0.1 && ping -c 1 ::1"]).check()
    wait_for(lambda: machine.read("/var/log/50.txt").count("\n") == 8, "eight packets on the group")
    seen = machine.read("/var/log/50.txt")
    assert seen.count("127.0.0.1 > 127.0.0.1: ICMP echo") == 4 and seen.count("::1 > ::1: ICMP6, echo") == 4


TUNNEL = f"""config setup
\tlogfile=/var/log/pluto.log
\tnflog-all=50

conn tunnel
\tleft=192.0.2.1
\tleftid=@west
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.2
\trightid=@east
\trightsubnet=10.2.0.0/24
\tauthby=secret
\tleftupdown="/usr/bin/python3 {PYZ} _updown --route yes"
\trightupdown="/usr/bin/python3 {PYZ} _updown --route yes"
\tleftsourceip=10.1.0.9
\tnflog=7
"""


def prepare(gateways: Gateways, name: str, can_log: bool) -> None:
    """Start pluto on a gateway; if the kernel can log packets, make the NFLOG rules and listen to both groups first."""
    for program in ("iptables", "ip6tables") if can_log else ():
        gateways.step(f"{name}-{program}", name, ["update-alternatives", "--set", program,
                                                  f"/usr/sbin/{program}-legacy"])
    gateways.write(name, "ipsec.conf", TUNNEL if can_log else TUNNEL.replace("\tnflog=7\n", ""))
    gateways.write(name, "ipsec.secrets", '@west @east : PSK "CaptureThePackets"\n', 0o600)
    gateways.step(f"{name}-nss", name, ["certutil", "-N", "-d", "sql:/var/lib/ipsec/nss", "--empty-password"])
    gateways.ipsec(f"{name}-check", name, "checknflog", "--strict")
    for group in (50, 7) if can_log else ():
        gateways.step(f"{name}-{group}", name, ["sh", "-c", LISTEN.format(count=6, group=group)])
    gateways.step(f"{name}-rules", name, ["iptables-save"])
    gateways.ipsec(f"{name}-start", name, "pluto", "--config", "/etc/ipsec.conf")
    gateways.ipsec(f"{name}-add", name, "addconn", "tunnel")


def check_pings(log: str) -> None:
    """Three pings and their answers are in what tcpdump wrote."""
    lines = log.splitlines()
    assert sum("10.1.0.9 > 10.2.0.1: ICMP echo request" in line for line in lines) == 3
    assert sum("10.2.0.1 > 10.1.0.9: ICMP echo reply" in line for line in lines) == 3


@pytest.mark.parametrize("release", ["bookworm"])
def test_packets_of_a_tunnel_arrive_on_the_group(gateways: Gateways) -> None:
    """Pluto runs our _updown; three pings and their answers are seen in clear at both ends, on the group for all and on
    the connection's. The kernel with ESP has only the older flavour of iptables, or (user-mode-linux 7.2) no packet
    filter at all: there checknflog says so, and the tunnel comes up without the group."""
    can_log = kernel().has_packet_filter
    for name in NAMES:
        prepare(gateways, name, can_log)
    for name in NAMES:
        gateways.ipsec(f"{name}-listen", name, "whack", "--listen")
    gateways.ipsec("up", "west", "whack", "--name", "tunnel", "--initiate")
    gateways.step("route", "west", ["ip", "route", "get", "10.2.0.1"])
    gateways.step("ping", "west", ["ping", "-c", "3", "-w", "60", "10.2.0.1"])
    done = "for try in $(seq 100); do pgrep -x tcpdump || exit 0; sleep 0.2; done; exit 1"
    for name in NAMES if can_log else ():
        gateways.step(f"{name}-seen", name, ["sh", "-c", done])
        gateways.ipsec(f"{name}-stop", name, "stopnflog")
        gateways.step(f"{name}-after", name, ["iptables-save"])
    gateways.ipsec("delete", "west", "whack", "--name", "tunnel", "--delete")
    gateways.step("left", "west", ["sh", "-c", "ip route show 10.2.0.0/24; ip address show to 10.1.0.9"])
    results = gateways.run()
    refused = [] if can_log else [results.pop(f"{name}-check") for name in NAMES]
    assert {name: result for name, result in results.items() if result.status} == {}
    assert "src 10.1.0.9" in results["route"].stdout and results["left"].stdout == ""
    for result in refused:
        assert result.status == 1 and "failed (" in result.stderr and result.stderr.count("\n") == 1
    for name in NAMES if can_log else ():
        for group in (50, 7):
            check_pings(gateways.machine.read(f"/gateways/{name}/log/{group}.txt"))
        assert "all-ipsec" in results[f"{name}-rules"].stdout
        assert "all-ipsec" not in results[f"{name}-after"].stdout
