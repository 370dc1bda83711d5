"""_updown against the original: the same environment in two networks, and what the kernel holds after each verb.

The original is _updown.xfrm of libreswan 4.10 with bash, iproute2 and iptables; ours runs on the same host, and on the
smallest one (python3-minimal, neither `ip` nor iptables). Each case is a network of its own that is set up, then sees
one verb after the other; addresses, routes, rules, links, neighbours, firewall, sysctls, resolv.conf and exit statuses
are compared after each. Where the original is known to do harm the case says what is expected instead.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple

import pytest

from ..ground.host import Result
from ..ground.machine import PYZ, Machine
from ..test_updown import ALL, GATEWAY, LOOPBACK, SOURCE, XFRMI

ORIGINAL = ["/bin/bash", "/usr/libexec/ipsec/_updown.xfrm"]
OURS = ["/usr/bin/python3", PYZ, "_updown"]

V4 = {
    "PLUTO_CONNECTION": "west-east", "PLUTO_CONNECTION_TYPE": "tunnel", "PLUTO_CONN_KIND": "CK_PERMANENT",
    "PLUTO_STACK": "xfrm", "PLUTO_CONN_ADDRFAMILY": "ipv4", "PLUTO_INTERFACE": "eth0", "PLUTO_VIRT_INTERFACE": "NULL",
    "PLUTO_ME": "192.0.2.1", "PLUTO_PEER": "192.0.2.2", "PLUTO_NEXT_HOP": "192.0.2.2",
    "PLUTO_MY_CLIENT": "10.1.0.0/24", "PLUTO_MY_CLIENT_NET": "10.1.0.0", "PLUTO_MY_CLIENT_MASK": "255.255.255.0",
    "PLUTO_PEER_CLIENT": "10.2.0.0/24", "PLUTO_PEER_CLIENT_NET": "10.2.0.0", "PLUTO_PEER_CLIENT_MASK": "255.255.255.0",
    "PLUTO_IS_PEER_CISCO": "0", "PLUTO_CFG_CLIENT": "0", "PLUTO_CFG_SERVER": "0", "PLUTO_NM_CONFIGURED": "0",
    "PLUTO_XFRMI_ROUTE": "", "PLUTO_ADDTIME": "0", "PLUTO_SA_REQID": "16389", "VTI_IFACE": "", "VTI_ROUTING": "no",
    "VTI_SHARED": "no", "SPI_IN": "0x1", "SPI_OUT": "0x2",
}
V6 = {
    **V4, "PLUTO_CONN_ADDRFAMILY": "ipv6", "PLUTO_ME": "2001:db8::1", "PLUTO_PEER": "2001:db8::2",
    "PLUTO_NEXT_HOP": "2001:db8::2", "PLUTO_MY_CLIENT": "2001:db8:1::/64", "PLUTO_MY_CLIENT_NET": "2001:db8:1::",
    "PLUTO_PEER_CLIENT": "2001:db8:2::/64", "PLUTO_PEER_CLIENT_NET": "2001:db8:2::",
}
ALL_V6 = {"PLUTO_PEER_CLIENT": "::/0", "PLUTO_PEER_CLIENT_NET": "::"}
HOST = {"PLUTO_MY_CLIENT": "192.0.2.1/32", "PLUTO_MY_CLIENT_NET": "192.0.2.1", "PLUTO_PEER_CLIENT": "192.0.2.2/32",
        "PLUTO_PEER_CLIENT_NET": "192.0.2.2"}
NEIGHBOUR = {"PLUTO_PEER_CLIENT": "10.1.0.77/32", "PLUTO_PEER_CLIENT_NET": "10.1.0.77"}
MARK = {"PLUTO_XFRMI_FWMARK": "1/0xffffffff"}
DNS = {"PLUTO_CFG_CLIENT": "1", "PLUTO_PEER_DNS_INFO": "10.2.0.53 10.2.0.54"}
DOMAINS = {**DNS, "PLUTO_PEER_DOMAIN_INFO": "example.com corp.example"}
RESOLV = "/etc/resolv.conf"

CLIENT = ("prepare-client", "route-client", "up-client", "down-client", "unroute-client")
HOSTS = ("prepare-host", "route-host", "up-host", "down-host", "unroute-host")
CLIENT_V6 = tuple(f"{verb}-v6" for verb in CLIENT)
HOSTS_V6 = tuple(f"{verb}-v6" for verb in HOSTS)
TWICE = ("route-client", "up-client", "route-client", "up-client", "down-client", "down-client", "unroute-client",
         "unroute-client")


class Case(NamedTuple):
    """An environment, the verbs that it sees, words for _updown, shell lines that prepare the network."""

    name: str
    env: Mapping[str, str]
    verbs: Sequence[str] = CLIENT
    words: Sequence[str] = ()
    setup: str = ""
    firewall: bool = False  #: needs iptables on the host


CASES = [
    Case("plain", V4),
    Case("route yes", V4, words=["--route", "yes"]),
    Case("route yes, next hop", {**V4, **GATEWAY}, words=["--route", "yes"]),
    Case("route no", {**V4, "PLUTO_MTU": "1400"}, words=["--route", "no"]),
    Case("custom", V4, words=["custom", "--route", "y"]),
    Case("iproute words", V4, words=["--route", "yes", "--iproute", "table 77 advmss 1200"]),
    Case("iproute arguments", {**V4, "IPROUTEARGS": "initcwnd 20"}, words=["--route", "yes"]),
    Case("source", {**V4, **SOURCE}),
    Case("source, next hop", {**V4, **SOURCE, **GATEWAY}),
    Case("source that is ours", {**V4, "PLUTO_MY_SOURCEIP": "10.1.0.1"}),
    Case("source, mobike", {**V4, **SOURCE, "PLUTO_MOBIKE_EVENT": "yes"}),
    Case("source, twice", {**V4, **SOURCE}, TWICE),
    Case("source still in use", {**V4, **SOURCE},
         setup="ip address add 10.1.0.9/32 dev lo scope 50; ip route add 10.9.0.0/16 dev eth0 src 10.1.0.9"),
    Case("source added by others", {**V4, **SOURCE}, setup="ip address add 10.1.0.9/24 dev eth1"),
    Case("mtu", {**V4, "PLUTO_MTU": "1400"}),
    Case("mtu and metric", {**V4, **GATEWAY, "PLUTO_MTU": "1400", "PLUTO_METRIC": "55"}),
    Case("metric", {**V4, "PLUTO_METRIC": "55"}, words=["--route", "yes"]),
    Case("no way to the peer's net", V4, setup="ip route add unreachable 10.2.0.0/16"),
    Case("no default route", V4, setup="ip route del default"),
    Case("default route", {**V4, **ALL, **SOURCE}),
    Case("default route, next hop", {**V4, **ALL, **SOURCE, **GATEWAY}),
    Case("default route twice", {**V4, **ALL, **SOURCE}, TWICE),
    Case("host to host", {**V4, **HOST}, HOSTS),
    Case("host to host, routed", {**V4, **HOST, **GATEWAY, "PLUTO_MTU": "1300"}, HOSTS),
    Case("proxy ARP", {**V4, **NEIGHBOUR}),
    Case("proxy ARP, next hop", {**V4, **NEIGHBOUR, **GATEWAY}),
    Case("proxy ARP, routed", {**V4, **NEIGHBOUR, **GATEWAY}, words=["--route", "yes"]),
    Case("a host behind a gateway", {**V4, "PLUTO_PEER_CLIENT": "10.7.0.7/32", "PLUTO_PEER_CLIENT_NET": "10.7.0.7"}),
    Case("opportunistic", {**V4, "PLUTO_PEER_CLIENT": "0.0.0.0/32", "PLUTO_PEER_CLIENT_NET": "0.0.0.0"}),
    Case("point to point", {**V4, **GATEWAY, **SOURCE, "PLUTO_INTERFACE": "ppp0"}),
    Case("alias of an interface", {**V4, **GATEWAY, "PLUTO_INTERFACE": "eth0:1"}, words=["--route", "yes"]),
    Case("left on lo", {**V4, **LOOPBACK}, words=["--route", "yes"], setup="ip address add 203.0.113.9/32 dev lo"),
    Case("left on lo, next hop, source", {**V4, **LOOPBACK, **GATEWAY, **SOURCE},
         setup="ip address add 203.0.113.9/32 dev lo"),
    Case("cisco", {**V4, **SOURCE, "PLUTO_IS_PEER_CISCO": "1"}),
    Case("cisco, all of it", {**V4, **SOURCE, **ALL, **GATEWAY, "PLUTO_IS_PEER_CISCO": "1"}),
    Case("xfrm interface", {**V4, **XFRMI}),
    Case("xfrm interface, source", {**V4, **XFRMI, **SOURCE}),
    Case("xfrm interface, mark", {**V4, **XFRMI, **MARK, **GATEWAY}),
    Case("xfrm interface, all", {**V4, **XFRMI, **MARK, **ALL}),
    Case("xfrm interface, same nets", {**V4, **XFRMI, "PLUTO_PEER_CLIENT": "10.1.0.0/24"}),
    Case("nflog", {**V4, "NFLOG": "7"}, firewall=True),
    Case("nflog, all", {**V4, **ALL, "NFLOG": "7"}, firewall=True),
    Case("nflog, host to host", {**V4, **HOST, "NFLOG": "8"}, HOSTS, firewall=True),
    Case("nflog beside others", {**V4, "NFLOG": "7"}, firewall=True,
         setup="iptables -A INPUT -p tcp --dport 22 -j ACCEPT; iptables -A INPUT -j NFLOG --nflog-prefix mine"),
    Case("address translation", {**V4, "CAT": "YES", "PLUTO_MY_CLIENT": "10.8.0.1/32",
                                 "PLUTO_MY_CLIENT_NET": "10.8.0.1"}, firewall=True),
    Case("name servers", {**V4, **DNS, **SOURCE}),
    Case("name servers and domains", {**V4, **DOMAINS}),
    Case("domains, domain before", {**V4, **DOMAINS},
         setup=f"printf 'domain old.example # why\\nnameserver 9.9.9.9 # quad\\n' >{RESOLV}"),
    Case("domains twice", {**V4, **DOMAINS}, TWICE),
    Case("domains, search before", {**V4, **DOMAINS},
         setup=f"printf 'search example.com other.example\\nnameserver 10.2.0.54\\nnameserver 1.1.1.1\\n' >{RESOLV}"),
    Case("no resolv.conf", {**V4, **DOMAINS}, setup=f"umount {RESOLV}; rm -f {RESOLV}"),
    Case("NetworkManager", {**V4, **DOMAINS, "PLUTO_NM_CONFIGURED": "1"}),
    Case("no mode config", {**V4, **DOMAINS, "PLUTO_CFG_CLIENT": "0"}),
    Case("unknown family", {**V4, "PLUTO_CONN_ADDRFAMILY": "ipx"}),
    Case("unknown verb", V4, ["sideways-client", ""]),
    Case("vti without marks", {**V4, "VTI_IFACE": "vti0", "VTI_ROUTING": "yes"}),
    Case("v6", V6, CLIENT_V6),
    Case("v6, routed", V6, CLIENT_V6, ["--route", "yes"]),
    Case("v6, source", {**V6, "PLUTO_MY_SOURCEIP": "2001:db8:1::9"}, CLIENT_V6),
    Case("v6, mtu and metric", {**V6, "PLUTO_MTU": "1400", "PLUTO_METRIC": "55", "PLUTO_NEXT_HOP": "2001:db8::fe"},
         CLIENT_V6),
    Case("v6, all", {**V6, **ALL_V6, "PLUTO_MY_SOURCEIP": "2001:db8:1::9"}, CLIENT_V6),
    Case("v6, host to host", {**V6, "PLUTO_MTU": "1300", "PLUTO_MY_CLIENT": "2001:db8::1/128",
                              "PLUTO_MY_CLIENT_NET": "2001:db8::1", "PLUTO_PEER_CLIENT": "2001:db8::2/128",
                              "PLUTO_PEER_CLIENT_NET": "2001:db8::2"}, HOSTS_V6),
    Case("v6, proxy", {**V6, "PLUTO_PEER_CLIENT": "2001:db8:1::77/128", "PLUTO_PEER_CLIENT_NET": "2001:db8:1::77"},
         CLIENT_V6),
    Case("v6, xfrm interface", {**V6, **XFRMI}, CLIENT_V6),
    Case("v6, xfrm interface, mark", {**V6, **XFRMI, **MARK, "PLUTO_NEXT_HOP": "2001:db8::fe"}, CLIENT_V6),
    Case("v6, name servers", {**V6, **DOMAINS}, CLIENT_V6),
    Case("v6, unreachable", V6, CLIENT_V6, setup="ip route add unreachable 2001:db8:2::/48"),
]

#: A network: eth0 to the peer with a gateway, eth1 to our client's net, a point-to-point link, an interface for XFRM.
NETWORK = f"""
mount -t sysfs sysfs /sys
mkdir -p /run/pluto
rm -f /run/pluto/*
touch {RESOLV} /tmp/resolv
umount {RESOLV} 2>/dev/null
printf 'nameserver 192.0.2.53\\n' >{RESOLV}
ip -batch - <<'END'
link add eth0 address 02:00:00:00:00:00 type veth peer name far0 address 02:00:00:00:01:00
link add eth1 address 02:00:00:00:00:01 type veth peer name far1 address 02:00:00:00:01:01
link add ipsec1 address 02:00:00:00:00:0a type veth peer name far2 address 02:00:00:00:01:02
tuntap add ppp0 mode tun
END
for device in eth0 eth1; do
    echo 0 >/proc/sys/net/ipv6/conf/$device/accept_dad
done
for device in lo eth0 far0 eth1 far1 ipsec1 far2 ppp0; do
    echo 1 >/proc/sys/net/ipv6/conf/$device/addr_gen_mode
done
ip -batch - <<'END'
address add 192.0.2.1/24 dev eth0
address add 2001:db8::1/64 dev eth0 nodad
address add 10.1.0.1/24 dev eth1
address add 2001:db8:1::1/64 dev eth1 nodad
address add 192.0.2.33 peer 192.0.2.34 dev ppp0
link set lo up
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
link set ipsec1 up
link set far2 up
link set ppp0 up
route add default via 192.0.2.254
route add default via 2001:db8::fe
END
"""
STATE = f"""
{{ ip -oneline -force -batch - <<'END'
address
route show table all
rule
link
neigh show proxy
END
ip -6 -oneline -force -batch - <<'END'
route show table all
rule
neigh show proxy
END
}} | sed 's/valid_lft.*//; s/state .*mode/mode/; s/,LOWER_UP//; s/,NO-CARRIER//; s/<NO-CARRIER,/</'
cat {RESOLV}
"""
FIREWALL = "{ iptables-save; ip6tables-save; } | grep -v '^[#:]'\n"


def script(cases: Sequence[Case], updown: Sequence[str], state: str) -> str:
    """The shell script that runs the cases, each in a network of its own, and shows what is there after each verb."""
    lines = []
    for case in cases:
        steps = [NETWORK, case.setup]
        for verb in case.verbs:
            env = " ".join(f"{name}={shlex.quote(value)}" for name, value in case.env.items())
            command = shlex.join([*updown, *case.words])
            steps.append(f"env PLUTO_VERB={shlex.quote(verb)} {env} {command} </dev/null >/tmp/said 2>&1\n"
                         f"echo '=== {verb}' status $?\nsed 's/^/said: /' /tmp/said\n{state}")
        lines.append(f"echo '##### {case.name}'\nunshare --net --mount sh -c {shlex.quote(chr(10).join(steps))} 2>&1")
    return "\n".join(lines)


class Lines(list):  # type: ignore[type-arg]
    """The lines that a case left; `said` is what _updown wrote, which is not compared."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []


def results(output: Result) -> dict[str, Lines]:
    """What each case left."""
    by_case: dict[str, Lines] = {}
    for line in output.stdout.splitlines():
        if line.startswith("##### "):
            by_case[line[6:]] = lines = Lines()
        elif line.startswith("said: "):
            lines.said.append(line[6:])
        else:
            lines.append(line.rstrip())
    return by_case


def run(machine: Machine, cases: Sequence[Case], updown: Sequence[str], state: str) -> dict[str, Lines]:
    machine.write("/tmp/cases", script(cases, updown, state))
    return results(machine.run(["/bin/sh", "/tmp/cases"], timeout=600))


#: Where ours does what the original means to: `ip -6 route get` has a word more than its awk expects, so that it finds
#: no interface to answer for a neighbour on. These lines are there in our network, and nothing else differs.
BETTER = {"v6, proxy": {"2001:db8:1::77 dev eth0 metric 1024 pref medium", "2001:db8:1::77 dev eth1 proxy"}}


#: Where libreswan's script leaves its route to a client and its proxy entry behind, because the route hides the
#: interface of the entry from the script. Ours removes both.
CLIENTS = {"proxy ARP": "10.1.0.77", "proxy ARP, next hop": "10.1.0.77", "proxy ARP, routed": "10.1.0.77",
           "v6, proxy": "2001:db8:1::77"}


def undone(name: str, lines: Sequence[str]) -> list[str]:
    """The lines that libreswan's script left in a case, without what it should have removed at the end."""
    last = max((number for number, line in enumerate(lines) if line.startswith("=== ")), default=0)
    client = CLIENTS.get(name, "no client")
    return [line for number, line in enumerate(lines) if number < last or client not in line]


def compare(cases: Sequence[Case], theirs: Callable[[Sequence[Case]], dict[str, Lines]],
            ours: Callable[[Sequence[Case]], dict[str, Lines]]) -> None:
    """Run the cases both ways. The original races against the kernel, which makes a new IPv6 address usable only in an
    instant: what differs is tried again."""
    different: list[str] = []
    left = list(cases)
    for _ in range(5):
        different = differences(theirs(left), ours(left))
        left = [case for case in left if any(text.startswith(f"{case.name}: ") for text in different)]
        if not left:
            break
    verbs = sum(len(case.verbs) for case in cases)
    print(f"_updown: {len(cases) - len(left)} of {len(cases)} cases equal, {verbs} verbs")
    assert not left, "\n".join(different)


def differences(theirs: Mapping[str, Lines], ours: Mapping[str, Lines]) -> list[str]:
    """For each case that differs, its name, the lines that only one of the two has, and what ours said."""
    assert list(theirs) == list(ours)
    reports = []
    for name, lines in ours.items():
        better = BETTER.get(name, set())
        assert better <= set(lines)
        expected = undone(name, theirs[name])
        assert name not in CLIENTS or undone(name, lines) == list(lines), lines
        if expected != [line for line in lines if line not in better]:
            reports.append(f"{name}: theirs {[line for line in expected if line not in lines]}\n"
                           f"  ours {[line for line in lines if line not in theirs[name]]}\n  it said {lines.said}")
    return reports


@pytest.mark.parametrize("release", ["bullseye", "bookworm"])
def test_the_kernel_is_left_as_by_the_original(root: Callable[..., Machine], release: str) -> None:
    theirs, ours = root(release), root(release)
    compare(CASES, lambda cases: run(theirs, cases, ORIGINAL, STATE + FIREWALL),
            lambda cases: run(ours, cases, OURS, STATE + FIREWALL))


VTI = {"VTI_IFACE": "vti9", "VTI_ROUTING": "yes", "CONNMARK_IN": "21/0xffffff", "CONNMARK_OUT": "22/0xffffff"}
VTI_CASES = [
    Case("vti", {**V4, **VTI, **SOURCE}),
    Case("vti, no routing", {**V4, **VTI, "VTI_ROUTING": "no", "VTI_IP": "10.66.0.1/30"}),
    Case("vti, shared", {**V4, **VTI, **SOURCE, "VTI_SHARED": "yes"}, ["up-client", "up-client", "down-client"]),
    Case("vti, instance, route there before", {**V4, **VTI, **SOURCE, "PLUTO_CONN_KIND": "CK_INSTANCE"}, CLIENT[:4],
         setup="ip route add 10.2.0.0/24 via 192.0.2.77"),
]
VTI_STATE = """
ip -o address | sed 's/valid_lft.*//'
ip route show table all
ip -o -d link show type vti | sed 's/minmtu.*maxmtu [0-9]*//'
cat /proc/sys/net/ipv4/conf/vti9/disable_policy /proc/sys/net/ipv4/conf/vti9/rp_filter
cat /proc/sys/net/ipv4/conf/vti9/forwarding
"""


@pytest.mark.timeout(900)
def test_vti_interfaces_are_made_as_by_the_original(root: Callable[..., Machine], uml: Callable[..., Result]) -> None:
    """In a kernel that has them. `ip tunnel` uses an ioctl, which also bounds the mtu that may be set."""
    machine = root("bookworm")
    both = ["#!/bin/sh"]
    for updown in (ORIGINAL, OURS):
        both += [f"echo '@@@@@'\n{script(VTI_CASES, updown, VTI_STATE)}"]
    machine.write("/sbin/ipsec-cases", "\n".join(both), 0o755)
    output = uml(machine, "#!/bin/sh\nexec sh /sbin/ipsec-cases\n", timeout=600).check()
    theirs, ours = (results(output._replace(stdout=part)) for part in output.stdout.split("@@@@@\n")[1:])
    assert sum("vti remote 192.0.2.2 local 192.0.2.1" in line for line in ours["vti"])
    compare(VTI_CASES, lambda cases: theirs, lambda cases: ours)


def test_the_same_without_ip_and_with_the_least_python(root: Callable[..., Machine],
                                                       minimal: Callable[..., Machine]) -> None:
    """Busybox, python3-minimal and pluto, and not even busybox's `ip`: cases one after the other in one network."""
    names = ("route yes, next hop", "source, next hop", "mtu and metric", "default route", "proxy ARP",
             "v6, mtu and metric", "name servers and domains")
    cases = [case for case in CASES if case.name in names]
    assert len(cases) == len(names)
    seen = []
    for machine, updown in ((root("bookworm"), ORIGINAL), (minimal("bookworm"), OURS)):
        if updown is OURS:
            machine.run(["/bin/busybox", "rm", "-f", "/sbin/ip", "/usr/sbin/ip", "/bin/ip", "/usr/bin/ip"]).check()
        for number in (0, 1):
            machine.ip("link", "add", f"eth{number}", "address", f"02:00:00:00:00:0{number}", "type", "veth", "peer",
                       "name", f"far{number}")
            machine.ip("address", "add", f"{('192.0.2.1', '10.1.0.1')[number]}/24", "dev", f"eth{number}")
            for name in ("eth", "far"):
                machine.ip("link", "set", f"{name}{number}", "addrgenmode", "none")
                machine.ip("link", "set", f"{name}{number}", "up")
        machine.ip("address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        machine.write(RESOLV, "nameserver 192.0.2.53\n")
        machine.path("/run/pluto").mkdir(exist_ok=True)
        states, gone = [], "no client"
        for case in cases:
            for verb in case.verbs:
                result = machine.run([*updown, *case.words], env={**case.env, "PLUTO_VERB": verb})
                state = "".join(machine.ip(*words.split()).stdout for words in (
                    "-o address", "route show table all", "-6 route show table all", "rule", "neigh show proxy"))
                if case.name in CLIENTS and verb == case.verbs[-1]:
                    gone = CLIENTS[case.name]
                assert updown is ORIGINAL or gone not in state
                states.append((case.name, verb, result.status, [
                    line.partition("valid_lft")[0].rstrip() for line in state.splitlines()
                    if "fe80" not in line and gone not in line], machine.read(RESOLV)))
        seen.append(states)
    assert seen[0] == seen[1]


LO_5_4 = {**V4, **LOOPBACK, "PLUTO_CLIENT_FAMILY": "ipv4", "PLUTO_DNS_RESOLVER": "file"}


def test_a_route_never_leads_to_lo(root: Callable[..., Machine]) -> None:
    """The script of 5.4 routes to PLUTO_INTERFACE; with left= on lo no packet that is routed there reaches IPsec."""
    case = Case("5.4", LO_5_4, ["route-client", "unroute-client"], ["--route", "yes"],
                setup="ip address add 203.0.113.9/32 dev lo")
    for env, device in ((LO_5_4, "eth0"), ({**LO_5_4, "PLUTO_INTERFACE": "eth1"}, "eth1")):
        lines = run(root("trixie"), [case._replace(env=env)], OURS, "ip -4 route\n")["5.4"]
        assert f"10.2.0.0/24 dev {device} scope link" in lines
    assert [line for line in lines[lines.index("=== unroute-client status 0"):] if "10.2" in line] == []


def test_address_translation_without_iptables(root: Callable[..., Machine]) -> None:
    """The same through nf_tables: made twice it is there once, and nothing is left behind, nor touched of others."""
    machine = root("trixie")
    machine.run(["sh", "-c", "rm -f /usr/sbin/*tables* /sbin/*tables*"]).check()
    env = {**V4, "CAT": "YES", "PLUTO_MY_CLIENT": "10.8.0.1/32", "PLUTO_MY_CLIENT_NET": "10.8.0.1",
           "PLUTO_CLIENT_FAMILY": "ipv4"}
    cases = [Case(name, {**env, "PLUTO_PEER_CLIENT": f"{name}.0/24", "PLUTO_PEER_CLIENT_NET": f"{name}.0"}, verbs)
             for name, verbs in (("10.2.0", ["up-client", "up-client", "down-client", "down-client"]),)]
    lines = run(machine, cases, OURS, "nft list ruleset\n")["10.2.0"]
    assert not lines.said, lines.said
    parts = "\n".join(lines).split("=== ")
    for made in parts[1:3]:
        assert "status 0" in made and made.count("snat to 10.8.0.1") == made.count("dnat to 192.0.2.1") == 1, made
        assert "ip daddr 10.2.0.0/24" in made and "ip saddr 10.2.0.0/24 ip daddr 10.8.0.1" in made, made
        assert "type nat hook postrouting priority srcnat" in made and "type nat hook prerouting" in made, made
    assert [part.split() for part in parts[3:]] == [["down-client", "status", "0"]] * 2


def test_resolv_conf_comes_back_after_a_restart_of_the_host(root: Callable[..., Machine]) -> None:
    """/run is empty then; a start of the service, or the next time that the connection goes down, gives it back."""
    machine = root("trixie")
    env = {**V4, **DOMAINS, "PLUTO_CLIENT_FAMILY": "ipv4"}
    for way_back in (["_updown"], ["_stackmanager", "start"]):
        machine.write(RESOLV, "nameserver 192.0.2.53\n")
        machine.path("/run/pluto").mkdir(parents=True, exist_ok=True)
        machine.ipsec("_updown", env={**env, "PLUTO_VERB": "up-client"}).check()
        assert "nameserver 10.2.0.53" in machine.read(RESOLV)
        machine.run(["sh", "-c", "rm -rf /run/pluto"]).check()
        machine.ipsec(*way_back, env={**env, "PLUTO_VERB": "down-client"})
        assert machine.read(RESOLV) == "nameserver 192.0.2.53\n", way_back
        assert machine.run(["sh", "-c", "ls /etc/resolv.conf* /run/pluto/*resolv*"]).stdout.split() == [RESOLV]


def test_the_kernel_is_left_as_by_the_script_of_5(root: Callable[..., Machine]) -> None:
    """Libreswan 5 names the client's family apart, keeps its own addresses on interfaces, halves ::/0 evenly."""
    cases = [case._replace(env={**case.env, "PLUTO_CLIENT_FAMILY": case.env["PLUTO_CONN_ADDRFAMILY"]})
             for case in CASES if not case.firewall]
    cases += [
        Case("v6 in v4", {**V6, "PLUTO_CONN_ADDRFAMILY": "ipv4", "PLUTO_CLIENT_FAMILY": "ipv6", "PLUTO_ME": "192.0.2.1",
                          "PLUTO_PEER": "192.0.2.2", "PLUTO_NEXT_HOP": "192.0.2.254"}, CLIENT_V6, ["--route", "yes"]),
        Case("v4 in v6", {**V4, "PLUTO_CONN_ADDRFAMILY": "ipv6", "PLUTO_CLIENT_FAMILY": "ipv4",
                          "PLUTO_ME": "2001:db8::1", "PLUTO_PEER": "2001:db8::2",
                          "PLUTO_NEXT_HOP": "2001:db8::fe", **SOURCE}),
    ]
    theirs, ours = root("trixie"), root("trixie")
    compare(cases, lambda left: run(theirs, left, ORIGINAL, STATE), lambda left: run(ours, left, OURS, STATE))
