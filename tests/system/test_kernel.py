"""What the kernel holds, as we tell it and as iproute2 does: byte for byte, over tables of all that either can make.

States need ESP and AH and so a kernel of their own (user-mode-linux); the rest is made in a network namespace here.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from ..ground.host import Result
from ..ground.machine import Machine, wait_for
from ..ground.pluto import Pluto

TOP = Path(__file__).resolve().parent.parent.parent

#: Prints, in the machine, one kind of text as section 5 gives it; `raw` keeps the kernel's own messages beside it.
OURS = """
import sys
sys.path.insert(0, "/root")
import ipsec
host = ipsec.Host()
kind, stats = sys.argv[1], "-s" in sys.argv
texts = {"states": lambda: ipsec.XfrmText(host, stats=stats).states(),
         "policies": lambda: ipsec.XfrmText(host, stats=stats).policies(),
         "keys": lambda: ipsec.XfrmText(host, stats=stats, show_keys=True).states(),
         "addresses": lambda: ipsec.LinkText(host).addresses(), "routes": lambda: ipsec.RouteText(host).routes(),
         "rules": lambda: ipsec.RouteText(host).rules(), "tunnels": lambda: ipsec.LinkText(host).tunnels()}
if kind == "flush":
    print(ipsec.flush_leftovers(host))
elif kind == "raw":
    family, message, size, file = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    with open(file, "w") as out:
        for buffer, start, end in ipsec.dump(host, family, message, bytes(size)):
            out.write(buffer[start:end].hex() + "\\n")
else:
    sys.stdout.write("".join(texts[kind]()))
"""

STATES = """\
src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1 reqid 16385 mode tunnel replay-window 32 \
auth-trunc hmac(sha256) 0x{32} 128 enc cbc(aes) 0x{16}
src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x2 reqid 16385 mode tunnel flag af-unspec replay-window 128 \
aead rfc4106(gcm(aes)) 0x{20} 128 encap espinudp 4500 4500 0.0.0.0
src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x3 reqid 1 mode transport flag esn replay-window 100 replay-oseq 9 \
aead rfc4106(gcm(aes)) 0x{36} 96 sel src 2001:db8::1/128 dst 2001:db8::2/128 proto tcp sport 7 dport 8
src 192.0.2.3 dst 192.0.2.4 proto ah spi 0x4 seq 17 mode transport auth hmac(sha1) 0x{20} \
limit byte-soft 1000 limit byte-hard 2000 limit packet-hard 5 limit time-soft 300 limit time-use-hard 99
src 192.0.2.3 dst 192.0.2.5 proto esp spi 0x5 mode beet flag noecn decap-dscp nopmtudisc wildrecv icmp align4 \
extra-flag dont-encap-dscp oseq-may-wrap auth-trunc hmac(md5) 0x{16} 96 enc cbc(des3_ede) 0x{24} \
mark 0x1234 mask 0xffff
src 192.0.2.3 dst 192.0.2.6 proto esp spi 0x6 mode tunnel auth-trunc digest_null 0x 0 enc cbc(aes) 0x{32} tfcpad 9 \
output-mark 0x20 mask 0xff if_id 0x77
src 192.0.2.3 dst 192.0.2.7 proto esp spi 0x7 mode tunnel auth hmac(sha1) 0x{20} enc ecb(cipher_null) 0x \
mark 0 mask 0xff output-mark 0x20
src 192.0.2.3 dst 192.0.2.8 proto comp spi 0x8 mode transport comp deflate
src 192.0.2.3 dst 192.0.2.9 proto esp spi 0x9 mode tunnel enc cbc(aes) 0x{16} encap espinudp-nonike 500 500 9.9.9.9
src 2001:db8::3 dst 2001:db8::4 proto ah spi 0xa mode tunnel auth-trunc hmac(sha512) 0x{64} 256 if_id 0
src 2001:db8::1 dst 2001:db8::2 proto route2 mode ro coa 2001:db8::77
src 2001:db8::1 dst 2001:db8::3 proto hao mode ro coa 2001:db8::78 sel src 2001:db8::1 dst 2001:db8::3 proto 135
src 2001:db8::5 dst 2001:db8::6 proto esp spi 0xb mode tunnel enc cbc(aes) 0x{16} encap espinudp 4500 4501 2001:db8::7
"""


NETWORK = """\
link set lo up
link add v0 type veth peer name v1
link set v0 addrgenmode none up
link set v1 addrgenmode none mtu 1400 txqueuelen 77 up
link set v0 mtu 1400
link set v1 group 7
link property add dev v0 altname an-alternative-name
addr add 192.0.2.1/24 dev v0
addr add 192.0.2.5/24 brd + dev v0 metric 7 noprefixroute
addr add 10.9.9.1 peer 10.9.9.2/32 dev v1 label v1:x scope link
addr add 2001:db8::1/64 dev v0 nodad
addr add 2001:db8:1::5/64 dev v0 nodad valid_lft 5000000 preferred_lft 4000000
link add br0 type bridge
link set v1 master br0
route add 10.0.0.0/8 via 192.0.2.2
route add default via 192.0.2.254
route add blackhole 10.66.0.0/16
route add unreachable 10.67.0.0/16 metric 5
route add prohibit 10.68.0.0/16
route add throw 10.69.0.0/16 table 77
route add 10.70.0.0/16 nexthop via 192.0.2.2 weight 2 nexthop via 192.0.2.3 dev v0 weight 1
route add 10.71.0.0/16 via 192.0.2.2 src 192.0.2.1 mtu lock 1300 advmss 1200 rtt 3s rto_min 5 initcwnd 10 table 100 \
proto bgp metric 9 congctl cubic features ecn
route add 10.72.0.0/16 via inet6 fe80::1 dev v0
route add 10.73.0.0/16 via 9.9.9.9 dev v0 onlink tos 0x10 realm 5
nexthop add id 5 via 192.0.2.2 dev v0
route add 10.74.0.0/16 nhid 5
route add 10.75.0.0/16 encap ip id 7 dst 1.2.3.4 dev v0
route add local 10.76.0.1 dev lo table 300
route add multicast 239.0.0.0/8 dev v0
-6 route add 2001:db8:2::/48 via fe80::2 dev v0 metric 20 expires 999999
-6 route add 2001:db8:3::/48 nexthop via fe80::2 dev v0 nexthop via fe80::3 dev v0 weight 4
-6 route add unreachable 2001:db8:4::/48
-6 route add default via fe80::9 dev v0 pref high
-6 route add 2001:db8:5::/64 from 2001:db8:6::/64 dev v0
rule add from 10.0.0.0/8 lookup 100 prio 100
rule add to 1.2.3.4 fwmark 0x10/0xff table 77
rule add iif v0 oif gone lookup main suppress_prefixlength 0
rule add not fwmark 5 blackhole
rule add ipproto tcp sport 500 dport 100-200 uidrange 0-99 prohibit
rule add prio 50 goto 100
rule add prio 10 goto 32000
rule add prio 5 tos 0x10 table main
rule add prio 7 iif gone unreachable
rule add prio 8 table 9 suppress_ifgroup 4
rule add prio 9 realms 3/4 table 9
rule add prio 11 tun_id 5 table 77
-6 rule add from 2001:db8::/32 lookup 200
-6 rule add l3mdev
"""

POLICIES = """\
src 10.1.0.0/24 dst 10.2.0.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 16385 mode tunnel
src 10.2.0.0/24 dst 10.1.0.0/24 dir in priority 2080718 tmpl src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x1234 \
reqid 16385 mode tunnel level use tmpl proto comp reqid 7 mode transport
src 10.2.0.0/24 dst 10.1.0.0/24 dir fwd mark 0x10 mask 0xff if_id 7 tmpl src 192.0.2.2 dst 192.0.2.1 proto ah reqid 3 \
mode beet
src 10.3.0.1/32 dst 10.4.0.0/16 proto tcp sport 500 dport 4500 dir out action block priority 77 flag localok icmp
src 10.3.0.1/32 dst 10.5.0.0/16 dev v0 proto gre key 0x12345 dir out ptype sub
src 2001:db8::/32 dst ::/0 proto ipv6-icmp type 135 code 0 dir in priority 1
src 2001:db8::/32 dst 2001:db8:9::/48 proto esp dir out limit byte-soft 100 limit packet-hard 1000 \
limit time-hard 100000 limit time-use-soft 90000 tmpl src 2001:db8::1 dst 2001:db8::2 proto esp mode ro
src 2001:db8::/32 dst 2001:db8:9::/48 proto 135 type 5 dir fwd tmpl src 2001:db8::1 dst 2001:db8::2 proto route2 \
mode ro tmpl src 2001:db8::1 dst 2001:db8::2 proto hao mode in_trigger
src 10.6.0.0/24 dst 10.7.0.0/24 proto sctp dport 9 dir in
src 10.6.0.0/24 dst 10.7.0.0/24 proto 253 dir in mark 0 mask 0xff
"""


# The remaining lifetime of an address or route.  The kernel counts it down between the two readings.
COUNTDOWN = re.compile(r"\b(\d{4,})sec\b")


def test_policies_and_network_are_those_of_iproute2(gateway: Machine) -> None:
    """Byte for byte; iproute2 before 6.3 does not tell by what an address was made."""
    prepare(gateway)
    lines = [f"ip {line}" for line in NETWORK.splitlines()]
    lines += [f"ip xfrm policy add {line}" for line in POLICIES.splitlines()]
    gateway.run(["sh", "-ec", "\n".join(lines)]).check()

    def texts(kind: str, *commands: str) -> None:
        theirs = "".join(gateway.run(command.split()).check().stdout for command in commands)
        ours = gateway.run(["python3", "/root/ours.py", *kind.split()]).check().stdout.replace("IPv6:\n", "")
        assert theirs.count("\n") > 10
        if " proto kernel_" not in theirs and kind == "addresses":
            ours = re.sub(r" proto kernel_\w+", "", ours)
        same(*(COUNTDOWN.sub("…sec", text) for text in (theirs, ours)))
        for before, after in zip(COUNTDOWN.findall(theirs), COUNTDOWN.findall(ours)):
            assert 0 <= int(before) - int(after) <= 600

    texts("policies -s", "ip -s xfrm policy")
    texts("policies", "ip xfrm policy")
    texts("addresses", "ip addr list")
    texts("routes", "ip route list table all")
    texts("rules", "ip rule list", "ip -6 rule list")
    keep(gateway, "policies", 6, 21, 64, "ip -s xfrm policy")
    keep(gateway, "routes", 0, 26, 12, "ip route list table all")
    keep(gateway, "rules", 0, 34, 12, "ip rule list")
    keep(gateway, "links", 0, 18, 16, "ip addr list")
    keep(gateway, "addresses", 0, 22, 8, "ip addr list")


def keep(machine: Machine, name: str, family: int, message: int, size: int, command: str) -> None:
    """How tests/data/kernel was made: KERNEL_GOLDEN=directory, from the last release's run."""
    if directory := os.environ.get("KERNEL_GOLDEN"):
        raw = ["python3", "/root/ours.py", "raw", str(family), str(message), str(size), "/root/raw"]
        machine.run(raw).check()
        Path(directory, f"{name}.hex").write_text(machine.read("/root/raw"))
        Path(directory, f"{name}.txt").write_text(machine.run(command.split()).check().stdout)


PLUTO = """config setup
conn tunnel
    left=192.0.2.1
    right=192.0.2.2
    authby=secret
    leftsubnet=10.1.0.0/24
    rightsubnet=10.2.0.0/16
    auto=ondemand
conn ports
    left=192.0.2.1
    right=192.0.2.3
    authby=secret
    type=transport
    leftprotoport=tcp/22
    rightprotoport=tcp
    reqid=77
    auto=ondemand
conn pass
    left=192.0.2.1
    right=192.0.2.2
    authby=never
    type=passthrough
    leftsubnet=10.1.0.0/24
    rightsubnet=10.2.9.0/24
    auto=ondemand
conn drop
    left=192.0.2.1
    right=192.0.2.4
    authby=never
    type=drop
    auto=ondemand
"""
FOREIGN = """\
src 10.1.0.0/24 dst 198.51.100.0/24 dir out action block priority 0
src 10.1.0.0/24 dst 203.0.113.0/24 dir out priority 1048576 tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 1 \
mode tunnel
src 10.9.0.0/24 dst 10.1.0.0/24 dir in action block priority 2000000
src 10.9.0.0/24 dst 10.1.0.0/24 dir fwd mark 1 priority 1
"""


def test_only_what_pluto_left_is_flushed(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    """A pluto that was killed leaves its policies behind; those of others stay, and nothing goes while one runs."""
    prepare(gateway)
    gateway.address("192.0.2.1/24")
    daemon = pluto(gateway, PLUTO)
    for line in FOREIGN.splitlines():
        gateway.ip("xfrm", "policy", "add", *line.split())

    def made() -> str:
        return gateway.run(["ip", "xfrm", "policy", "list", "nosock"]).stdout

    wait_for(lambda: all(f"dst {target} " in made() for target in ("10.2.0.0/16", "192.0.2.3/32", "10.2.9.0/24",
                                                                 "192.0.2.4/32")), "pluto's policies")
    before = made()
    foreign = before[:before.index("\nsrc ", before.index("dst 198.51.100.0/24")) + 1]  # the last made comes first
    assert foreign.count("\nsrc ") == 3 and "action block" in foreign
    assert gateway.run(["python3", "/root/ours.py", "flush"]).check().stdout == "False\n"
    assert made() == before
    gateway.signal(daemon.pid, signal.SIGKILL)
    wait_for(lambda: not gateway.processes("pluto"), "pluto's end")
    assert len(made()) > len(foreign)  # they are left
    assert gateway.run(["python3", "/root/ours.py", "flush"]).check().stdout == "True\n"
    assert made() == foreign, made()
    assert gateway.run(["python3", "/root/ours.py", "flush"]).check().stdout == "True\n"
    assert made() == foreign


TUNNELS = """\
g1 mode gre local 192.0.2.1 remote 192.0.2.2 key 7 dev lo
v1 mode vti local 192.0.2.1 remote 192.0.2.2 ikey 5 okey 6
i1 mode ipip local 192.0.2.1
s1 mode sit remote 192.0.2.2
"""


def expected(text: str) -> str:
    """What iproute2 says, without the keys: the form that `ipsec _keycensor` makes of it."""
    return re.sub(r"^(\t(?:auth|auth-trunc|enc|aead|comp) \S+ 0x)([0-9a-f]+)",
                  lambda found: f"{found[1]}[redacted {len(found[2]) // 2} bytes]", text, flags=re.MULTILINE)


def same(theirs: str, ours: str) -> None:
    assert theirs == ours, "\n".join(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), "ip", "ours"))


def prepare(machine: Machine) -> None:
    machine.write("/root/ours.py", OURS)
    machine.write("/root/ipsec.py", (TOP / "ipsec.py").read_text())


def commands(release: str) -> list[str]:
    """The table as commands of iproute2, each key of a byte of its own."""
    lines = STATES.splitlines()
    if release == "bullseye":  # 5.10 can't set it
        lines = [line.replace(" tfcpad 9", "") for line in lines]

    def fill(number: int, line: str) -> str:
        return re.sub(r"\{(\d+)\}", lambda found: f"{0xA0 + number:02x}" * int(found[1]), line)

    filled = [fill(number, line) for number, line in enumerate(lines)]
    return ["ip xfrm state add " + re.sub(r"(\S*\(\S*\)|(?<= )0x(?= |$))", r"'\1'", line).replace("'0x'", "''")
            for line in filled]


def test_states_are_those_of_iproute2_without_the_keys(release: str, root: Callable[..., Machine],
                                                       uml: Callable[..., Result]) -> None:
    """Over a table of all attributes that such a kernel takes, byte for byte."""
    machine = root(release)
    prepare(machine)
    adds = commands(release)
    script = ["#!/bin/sh", "for m in ah6 ipcomp ipcomp6 mip6 ip_gre ipip sit ip6_tunnel; do modprobe $m; done", *adds,
              *(f"ip tunnel add {line}" for line in TUNNELS.splitlines()),
              "ip -6 tunnel add t6 mode ip6ip6 local 2001:db8::1 remote 2001:db8::2",
              "python3 /root/ours.py tunnels >/root/tunnels",
              "ip -s xfrm state >/root/theirs.s", "ip xfrm state >/root/theirs",
              "python3 /root/ours.py states -s >/root/ours.s", "python3 /root/ours.py states >/root/ours",
              "python3 /root/ours.py keys -s >/root/ours.keys", "python3 /root/ours.py raw 6 18 24 /root/raw",
              "python3 /root/ours.py flush", "ip xfrm state >/root/left"]
    result = uml(machine, "\n".join(script) + "\n")
    no_espintcp = "Error: Unsupported encapsulation type for ESP.\n"  # user-mode-linux 7.2 is built without
    refused = result.stderr.count(no_espintcp)
    assert result.stderr == no_espintcp * refused and refused <= 1
    assert machine.read("/root/theirs").count("src ") >= len(adds) - refused
    same(expected(machine.read("/root/theirs.s")), machine.read("/root/ours.s"))
    same(expected(machine.read("/root/theirs")), machine.read("/root/ours"))
    same(machine.read("/root/theirs.s"), machine.read("/root/ours.keys"))
    tunnels = re.sub(r"\n +(RX|TX): packets \d+ bytes \d+ errors \d+(?=\n)", r" \1", machine.read("/root/tunnels"))
    for line in ("g1: gre remote 192.0.2.2 local 192.0.2.1 ikey 7 okey 7 dev lo RX TX", "t6: ip6tnl remote 2001:db8::2 "
                 "local 2001:db8::1 RX TX", "v1: vti remote 192.0.2.2 local 192.0.2.1 ikey 5 okey 6 RX TX",
                 "i1: ipip remote any local 192.0.2.1 RX TX", "s1: sit remote 192.0.2.2 local any RX TX"):
        assert f"\n{line}\n" in tunnels
    # no pluto runs there: those with its reqids were its own
    assert result.stdout == "True\n"
    assert "reqid 16385" in machine.read("/root/theirs") and "reqid 16385" not in machine.read("/root/left")
    assert machine.read("/root/left").count("\tproto ") == machine.read("/root/theirs").count("\tproto ") - 2
    if directory := os.environ.get("KERNEL_GOLDEN"):
        for kind, name in (("hex", "raw"), ("txt", "theirs.s")):
            Path(directory, f"states.{kind}").write_text(machine.read(f"/root/{name}"))
