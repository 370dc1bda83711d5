"""The readers of section 5, fed with messages of real kernels (tests/data/kernel, kept by system/test_kernel.py)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipsec

DATA = Path(__file__).parent / "data" / "kernel"
HEADER = struct.Struct("=IHHII")
LINKS = {1: "lo", 2: "v1", 3: "v0", 4: "br0"}
KINDS = {"states": (18, lambda host: ipsec.XfrmText(host).states()),
         "policies": (21, lambda host: ipsec.XfrmText(host).policies()),
         "routes": (26, lambda host: ipsec.RouteText(host).routes()),
         "rules": (34, lambda host: ipsec.RouteText(host).rules()),
         "addresses": (22, lambda host: ipsec.LinkText(host).addresses()),
         "links": (18, lambda host: ipsec.LinkText(host).addresses())}


class Link:
    """A netlink socket whose kernel answers each dump with recorded messages, or with what `replies` has ready."""

    def __init__(self, host: Kernel) -> None:
        self.host = host
        self.queue: list[bytes | OSError] = []

    def close(self) -> None:
        self.queue.clear()

    def send(self, data: bytes) -> None:
        _, kind, _, sequence, _ = HEADER.unpack_from(data)
        self.host.sent.append(data[16:])
        self.queue += self.host.replies or self.host.answers(kind, sequence, data[16:17])

    def recv(self, size: int) -> bytes:
        reply = self.queue.pop(0)
        if isinstance(reply, OSError):
            raise reply
        assert len(reply) <= size
        return reply


class Kernel(ipsec.Host):
    """A host with such a kernel and nothing else: no files, no names."""

    def __init__(self, **messages: list[bytes]) -> None:
        super().__init__({})
        self.messages = {KINDS[name][0]: bodies for name, bodies in messages.items()}
        self.replies: list[bytes | OSError] = []
        self.sent: list[bytes] = []
        self.warnings: list[str] = []

    def answers(self, kind: int, sequence: int, first: bytes) -> list[bytes]:
        bodies = [body for body in self.messages.get(kind, []) if kind != 34 or body[:1] == first]
        return [*self.datagrams(bodies, sequence), message(3, bytes(4), 2, sequence)]

    def datagrams(self, bodies: list[bytes], sequence: int) -> Iterator[bytes]:
        for start in range(0, len(bodies), 3):
            yield b"".join(message(16, body, 2, sequence) for body in bodies[start:start + 3])

    def netlink(self, family: int) -> Any:
        return Link(self)

    def lines(self, name: str) -> Iterator[str]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)

    def glob(self, pattern: str) -> list[str]:
        return []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def message(kind: int, body: bytes, flags: int = 2, sequence: int = 1) -> bytes:
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def golden(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (DATA / f"{name}.hex").read_text().splitlines()]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The links and the time zone where the messages were kept."""
    monkeypatch.setattr(ipsec, "link_names", lambda: LINKS)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", ["states", "policies", "routes", "rules"])
def test_text_is_that_of_iproute2(name: str) -> None:
    text = "".join(KINDS[name][1](Kernel(**{name: golden(name)})))
    wanted = (DATA / f"{name}.txt").read_text()
    if name == "states":
        wanted = ipsec.Redactor().text(wanted)
        assert "redacted" in wanted
    assert text.partition("IPv6:\n")[0] == wanted


def test_addresses_are_those_of_iproute2() -> None:
    """Among them a temporary IPv6 address, a secondary IPv4 address, a bridge's port, an alternative name."""
    text = "".join(ipsec.LinkText(Kernel(addresses=golden("addresses"), links=golden("links"))).addresses())
    wanted = (DATA / "addresses.txt").read_text()
    assert " temporary dynamic " in wanted and " secondary " in wanted
    assert text == wanted


def link(*attributes: bytes, flags: int = 0x1043, kind: int = 1) -> str:
    """The text of one interface with these attributes."""
    body = struct.pack("=BxHiII", 0, kind, 7, flags, 0) + b"".join(attributes)
    return "".join(ipsec.LinkText(Kernel(links=[body])).addresses())


@pytest.mark.parametrize("attributes, flags, words", [
    ([], 0x1003, "7: : <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 0 "),
    ([ipsec.attribute(5, 0)], 0x1043, "7: @NONE: <"),
    ([ipsec.attribute(5, 9), ipsec.attribute(37, 1)], 0x1043, "7: @if9: <"),
    ([ipsec.attribute(5, 9), ipsec.attribute(37, 1)], 0x1043, " link-netnsid 1\n"),
    ([ipsec.attribute(5, 9), ipsec.attribute(37, 0xFFFFFFFF)], 0x1043, " link-netnsid unknown\n"),
    ([ipsec.attribute(5, 2)], 0x1043, "7: @v1: <BROADCAST,MULTICAST,UP,M-DOWN> "),
    ([ipsec.attribute(43, ipsec.attribute(2, b"\2"), ipsec.attribute(4, 31))], 0x1043, "xdpgeneric/id:31 "),
    ([ipsec.attribute(43, ipsec.attribute(2, b"\7"))], 0x1043, "xdp[7] "),
    ([ipsec.attribute(16, b"\x09")], 0x1043, "state 9 "),
    ([ipsec.attribute(10, 4)], 0x1043, "master br0 "),
    ([ipsec.attribute(1, b"\2\0\0\0\0\1"), ipsec.attribute(54, b"\2\0\0\0\0\2")], 0x1043,
     "link/ether 02:00:00:00:00:01 permaddr 02:00:00:00:00:02\n"),
    ([ipsec.attribute(39, b"\1")], 0x1043, " protodown on \n"),
])
def test_properties_of_a_link(attributes: list[bytes], flags: int, words: str) -> None:
    """As iproute2's ipaddress.c prints them; not all can be made on every kernel."""
    assert words in link(*attributes, flags=flags)


def test_the_hardware_address_of_a_tunnel_is_an_ip_address() -> None:
    text = link(ipsec.attribute(1, bytes((192, 0, 2, 1))), ipsec.attribute(2, bytes((192, 0, 2, 2))), kind=768,
                flags=0x51)
    assert "link/ipip 192.0.2.1 peer 192.0.2.2\n" in text


def tunnel(kind: str, *data: bytes) -> str:
    info = ipsec.attribute(18, ipsec.attribute(1, kind), ipsec.attribute(2, *data))
    counters = ipsec.attribute(23, struct.pack("=24Q", *range(1, 25)))
    body = struct.pack("=BxHiII", 0, 768, 7, 1, 0) + ipsec.attribute(3, "t0") + info + counters
    return "".join(ipsec.LinkText(Kernel(links=[body])).tunnels())


@pytest.mark.parametrize("kind, data, words", [
    ("vti", [ipsec.attribute(4, bytes((192, 0, 2, 1))), ipsec.attribute(2, b"\0\0\0\5"),
             ipsec.attribute(3, b"\0\0\0\6")], "remote any local 192.0.2.1 ikey 5 okey 6"),
    ("gre", [ipsec.attribute(1, 3), ipsec.attribute(7, bytes((192, 0, 2, 2)))], "remote 192.0.2.2 local any dev v0"),
    ("xfrm", [ipsec.attribute(1, 2), ipsec.attribute(2, 0x77)], "if_id 0x77 dev v1"),
    ("ip6tnl", [ipsec.attribute(2, bytes(15) + b"\1")], "remote any local ::1"),
])
def test_tunnels(kind: str, data: list[bytes], words: str) -> None:
    assert tunnel(kind, *data) == (f"t0: {kind} {words}\n    RX: packets 1 bytes 3 errors 5\n"
                                   "    TX: packets 2 bytes 4 errors 6\n")
    assert tunnel("bridge") == ""


def rule(*attributes: bytes, header: bytes = bytes((2, 0, 0, 0, 77, 0, 0, 1)), flags: int = 0) -> str:
    """The text of one IPv4 rule."""
    body = header + struct.pack("=I", flags) + b"".join(attributes)
    return ipsec.RouteText(Kernel()).rule_text(body, 0, len(body))


@pytest.mark.parametrize("attributes, words", [
    ([ipsec.attribute(12, (5).to_bytes(8, "big"))], "from all tun_id 5 lookup 77"),
    ([ipsec.attribute(23, struct.pack("=HH", 80, 80))], "from all sport 80 lookup 77"),
    ([ipsec.attribute(24, struct.pack("=HH", 80, 90)), ipsec.attribute(29, b"\xff\xff")],
     "from all dport 80-90 lookup 77"),
    ([ipsec.attribute(24, struct.pack("=HH", 80, 80)), ipsec.attribute(29, b"\xf0\xff")],
     "from all dport 80/0xfff0 lookup 77"),
    ([ipsec.attribute(25, b"\x2e")], "from all dscp 0x2e lookup 77"),
    ([ipsec.attribute(26, b"\0\0\0\5"), ipsec.attribute(27, b"\0\0\0\x0f")], "from all flowlabel 0x5/0xf lookup 77"),
    ([ipsec.attribute(99, b"\1\2")], "from all attribute 99 0x0102 lookup 77"),  # not known, but it is a condition
    ([ipsec.attribute(10, 0), ipsec.attribute(16, 0xFF)], "from all fwmark 0/0xff lookup 77"),
])
def test_a_rule_shows_all_its_conditions(attributes: list[bytes], words: str) -> None:
    """A rule that lacks one would look as if it were for all traffic."""
    assert rule(*attributes) == f"0:\t{words}\n"


@pytest.mark.parametrize("kind, value, words", [
    (12, 1, "features ecn "), (12, 3, "features ecn 0x3 "), (12, 2, "features 0x2 "), (4, 24000, "rtt 3s "),
    (5, 400, "rttvar 100ms "), (13, 5, "rto_min 5ms "), (10, 0xFFFFFFFF, ""), (10, 64, "hoplimit 64 ")])
def test_metrics_of_a_route(kind: int, value: int, words: str) -> None:
    """As iproute2's iproute.c prints them."""
    body = struct.pack("=8BI", 2, 32, 0, 0, 254, 3, 0, 1, 0) + ipsec.attribute(1, bytes((10, 0, 0, 1)))
    body += ipsec.attribute(8, ipsec.attribute(kind, value))
    assert ipsec.RouteText(Kernel()).route_text(body, 0, len(body)) == f"10.0.0.1 {words}\n"


@pytest.mark.parametrize("kind, data, words", [
    (1, [ipsec.attribute(1, (16 << 12).to_bytes(4, "big")), ipsec.attribute(2, b"\x40")], "encap mpls  16 ttl 64"),
    (10, [ipsec.attribute(1, 5), ipsec.attribute(2, 3)], "encap xfrm if_id 5 link_dev v0"),
    (5, [], "encap seg6")])
def test_encapsulations_of_a_route(kind: int, data: list[bytes], words: str) -> None:
    body = struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + ipsec.attribute(21, ipsec.u16(kind))
    body += ipsec.attribute(22, *data)
    assert ipsec.RouteText(Kernel()).route_text(body, 0, len(body)) == f"default  {words} \n"


def test_keys_are_told_only_when_asked_for() -> None:
    host = Kernel(states=golden("states"))
    assert "".join(ipsec.XfrmText(host, show_keys=True).states()) == (DATA / "states.txt").read_text()
    hidden = "".join(ipsec.XfrmText(host).states()) + "".join(map(repr, ipsec.XfrmData(host).states_data()))
    for number in range(13):
        assert f"{0xA0 + number:02x}" * 8 not in hidden


@pytest.mark.parametrize("place", [25, 57], ids=["queue length", "mtu"])
def test_a_number_that_is_longer_than_any_is_cut(place: int) -> None:
    """Python refuses to print an integer of 1,400 bytes."""
    assert ipsec.unsigned(b"\0" * 7 + b"\1" + b"\2" * 5000, "big") == 1
    body = bytearray(golden("links")[0])
    body[place] = 8  # the length of an attribute grows by 2,048 bytes, to the end of the message
    assert "".join(KINDS["links"][1](Kernel(links=[bytes(body)])))


@given(st.data())
def test_no_message_stops_the_report(data: st.DataObject) -> None:
    """Cut anywhere, or with any bytes changed: some text comes, and what is whole comes with it."""
    name = data.draw(st.sampled_from(sorted(KINDS)))
    bodies = golden(name)
    at = data.draw(st.integers(0, len(bodies) - 1))
    body = bytearray(bodies[at])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=6)):
        body[place] = value
    bodies[at] = bytes(body[:data.draw(st.integers(0, len(body)) | st.just(len(body)))])
    host = Kernel(**{name: bodies})
    "".join(KINDS[name][1](host))
    if name in ("states", "policies"):
        records = ipsec.XfrmData(host)
        assert len(list(records.states_data()) + list(records.policies_data())) >= len(bodies) - 1
        "".join(ipsec.XfrmText(host, stats=False).states())
        "".join(ipsec.XfrmText(host, stats=False).policies())


def failing(*replies: bytes | OSError) -> Kernel:
    host = Kernel()
    host.replies = list(replies)
    return host


def read(host: Kernel) -> int:
    return sum(1 for _ in ipsec.policy_messages(host))


def test_the_kernels_refusal_names_what_was_asked_for() -> None:
    with pytest.raises(PermissionError) as caught:
        read(failing(message(2, struct.pack("=i", -errno.EPERM) + bytes(16))))
    assert "XFRM" in caught.value.filename and caught.value.strerror == os.strerror(errno.EPERM)
    with pytest.raises(OSError, match="Operation not supported"):
        read(failing(message(3, struct.pack("=i", -errno.EOPNOTSUPP))))  # an error at the end of a dump


def test_a_silent_kernel_is_not_waited_for() -> None:
    with pytest.raises(ipsec.TimedOut):
        read(failing(socket.timeout("timed out")))


@pytest.mark.parametrize("replies, count", [
    ([message(20, bytes(168), 0x12), message(3, bytes(4))], 1),  # NLM_F_DUMP_INTR
    ([OSError(errno.ENOBUFS, "No buffer space available"), message(20, bytes(168)), message(3, bytes(4))], 1)])
def test_a_table_that_changes_is_said_to(replies: list[bytes | OSError], count: int) -> None:
    host = failing(*replies)
    assert read(host) == count
    assert len(host.warnings) == 1 and "changed" in host.warnings[0]


def test_messages_of_another_request_are_left_out() -> None:
    assert read(failing(message(20, bytes(168), 2, 9), message(3, bytes(4), 2, 9), message(20, bytes(168)),
                        message(3, bytes(4)))) == 1


@pytest.mark.parametrize("cut", [HEADER.pack(200, 20, 2, 1, 0), HEADER.pack(3, 20, 2, 1, 0)])
def test_a_reply_that_is_cut_is_an_error(cut: bytes) -> None:
    with pytest.raises(OSError, match="the kernel's reply is truncated"):
        read(failing(cut))


def policy(**changes: Any) -> ipsec.Policy:
    fields: dict[str, Any] = {"direction": "out", "socket": False, "action": "allow", "policy_index": 9, "priority": 0,
                              "kind": "main", "mark": 0, "mask": 0, "if_id": 0, "templates": ()}
    selector = ipsec.Selector(changes.pop("source", "10.1.0.0/24"), changes.pop("destination", "10.2.0.0/16"),
                              changes.pop("protocol", 0), changes.pop("port", None), None, "", 0)
    return ipsec.Policy(selector, **{**fields, **changes})


def template(reqid: int, source: str = "0.0.0.0", mode: str = "transport") -> tuple[ipsec.Template, ...]:
    return (ipsec.Template(source, "0.0.0.0", "esp", 0, reqid, mode, False),)


@pytest.mark.parametrize("theirs, kernel_policy", [
    (False, policy()),
    (False, policy(action="block")),
    (False, policy(action="block", priority=2000000)),
    (False, policy(templates=template(0))),
    (False, policy(templates=template(1, "192.0.2.1", "tunnel"), priority=1757391)),
    (False, policy(priority=1)),
    (False, policy(socket=True, templates=template(16385))),
    (True, policy(templates=template(16385, "192.0.2.1", "tunnel"))),
    (True, policy(templates=template(77, "192.0.2.1", "tunnel"))),  # a reqid of the configuration
    (True, policy(action="block", templates=template(0))),
    (True, policy(source="::/0", destination="::/0", protocol=58, port=135, priority=1)),
    # as pluto 3.29, 4.3 and 4.10 number a static connection between these networks
    (True, policy(priority=1048575 - (24 << 8 | 16))),
    (True, policy(priority=2097151 - (24 << 9 | 16 << 1 | 1))),
    (True, policy(action="block", priority=((1 << 2 | 2) << 1 | 1) << 17 | 104 << 9 | 112 << 1 | 1))])
def test_pluto_s_policies_are_told_from_others(theirs: bool, kernel_policy: ipsec.Policy) -> None:
    assert ipsec.is_plutos_policy(kernel_policy, {77}) is theirs


def test_a_packet_takes_the_policy_of_the_best_priority() -> None:
    records = ipsec.XfrmData(Kernel(policies=golden("policies")))
    policies = [records.policies_for(ipsec.Flow("10.3.0.1", "10.4.9.9", protocol, 500, 4500))[-1]
                for protocol in (6, 17, 0)]
    assert [policy and policy.action for policy in policies] == ["block", None, None]
    tunnel = records.policies_for(ipsec.Flow("10.1.0.200", "10.2.0.1"))[-1]
    assert tunnel and [(one.protocol, one.reqid, one.mode) for one in tunnel.templates] == [("esp", 16385, "tunnel")]
    assert records.policies_for(ipsec.Flow("10.1.1.1", "10.2.0.1")) == [None]
    inward = ipsec.Flow("10.2.0.1", "10.1.0.1")
    assert records.policies_for(inward, direction="fwd") == [None]  # it has a mark and an interface
    assert records.policies_for(inward, direction="fwd", mark=0x10, if_id=7)[-1] is not None
    six = records.policies_for(ipsec.Flow("2001:db8::1", "2001:db8:9::1", 50))[-1]
    assert six and six.templates[0].mode == "ro"


class Records(ipsec.XfrmData):
    """Policies as the kernel lists them, the newest first, and states."""

    def __init__(self, *policies: ipsec.Policy, states: list[ipsec.State] | None = None) -> None:
        self.policies_data = lambda: iter(policies)  # type: ignore[method-assign]
        self.states_data = lambda: iter(states or [])  # type: ignore[method-assign]


def test_of_one_priority_the_oldest_policy_counts_and_what_is_not_known_of_a_packet_is_told() -> None:
    old, new = policy(action="block", priority=5), policy(priority=5)
    ping, better, worse = (policy(protocol=1, priority=number) for number in (5, 4, 6))
    packet = ipsec.Flow("10.1.0.5", "10.2.3.4")
    tcp, icmp = (ipsec.Flow("10.1.0.5", "10.2.3.4", protocol) for protocol in (6, 1))
    assert Records(new, old).policies_for(packet) == [old]
    assert Records(ping, new, worse, better).policies_for(packet) == [better, new]
    assert Records(worse, better).policies_for(packet) == [better, worse, None]
    assert Records(better, new).policies_for(tcp) == [new]
    assert Records(better, new).policies_for(icmp) == [better]
    assert Records(policy(socket=True), policy(direction="in"), policy(kind="sub")).policies_for(packet) == [None]


def test_icmp_type_0_is_a_type_and_not_an_unknown_one() -> None:
    reply, any_other = policy(protocol=1, port=0, action="block"), policy(priority=1)
    unknown = ipsec.Flow("10.1.0.5", "10.2.3.4", 1)
    echo_reply, echo = (ipsec.Flow("10.1.0.5", "10.2.3.4", 1, kind) for kind in (0, 8))
    assert Records(any_other, reply).policies_for(unknown) == [reply, any_other]
    assert Records(any_other, reply).policies_for(echo_reply) == [reply]
    assert Records(any_other, reply).policies_for(echo) == [any_other]


def state(reqid: int, spi: int = 1, protocol: str = "esp", destination: str = "192.0.2.2") -> ipsec.State:
    none = ipsec.Selector("0.0.0.0/0", "0.0.0.0/0", 0, None, None, "", 0)
    return ipsec.State("192.0.2.1", destination, protocol, spi, reqid, "tunnel", 0, 0, 0, none, (), (), "", 0, 0, 0, 0,
                       0, "", "")


def asked(*protocols: str, optional: bool = False) -> ipsec.Policy:
    return policy(templates=tuple(ipsec.Template("192.0.2.1", "192.0.2.2", protocol, 0, 7, "tunnel", optional)
                                  for protocol in protocols))


@pytest.mark.parametrize("fate, kernel_policy, states", [
    ("clear", None, []),
    ("clear", policy(), []),
    ("block", policy(action="block"), []),
    ("hold", asked("esp"), []),
    ("hold", asked("esp"), [state(8), state(7, protocol="ah"), state(7, destination="192.0.2.3")]),
    ("hold", asked("esp"), [state(7, spi=0)]),  # one that pluto is asked for
    ("encrypt", asked("esp"), [state(7)]),
    ("encrypt", asked("comp", "esp"), [state(7)]),  # what does not get smaller is not compressed
    ("hold", asked("esp", "ah"), [state(7)]),
    ("authenticate", asked("ah"), [state(7, protocol="ah")]),
    ("clear", asked("esp", optional=True), [])])
def test_what_a_policy_does_to_a_packet(fate: str, kernel_policy: ipsec.Policy | None,
                                        states: list[ipsec.State]) -> None:
    assert Records(states=states).fate(kernel_policy, "10.2.3.4") == fate


@pytest.mark.parametrize("address, prefix, inside", [
    ("10.1.0.1", "10.1.0.0/24", True), ("10.1.1.1", "10.1.0.0/24", False), ("10.1.1.1", "0.0.0.0/0", True),
    ("::1", "0.0.0.0/0", False), ("10.1.1.1", "::/0", False), ("2001:db8::1", "2001:db8::/127", True),
    ("2001:db8::2", "2001:db8::/127", False), ("10.0.0.1", "10.0.0.1/32", True)])
def test_within(address: str, prefix: str, inside: bool) -> None:
    assert ipsec.within(address, prefix) is inside


def test_states_as_data() -> None:
    states = {state.spi: state for state in ipsec.XfrmData(Kernel(states=golden("states"))).states_data() if state.spi}
    assert states[1].algorithms == (("auth", "hmac(sha256)", 256), ("enc", "cbc(aes)", 128))
    assert (states[1].protocol, states[1].mode, states[1].reqid, states[1].replay_window) == (
        "esp", "tunnel", 16385, 32)
    assert states[2].encapsulation == "espinudp" and states[2].algorithms == (("aead", "rfc4106(gcm(aes))", 160),)
    assert (states[3].selector.source == "2001:db8::1/128" and states[3].replay_window == 100
            and "esn" in states[3].flags)
    assert (states[5].mark, states[5].mask, states[6].if_id) == (0x1234, 0xFFFF, 0x77)


def counted(make: Callable[[ipsec.Host], Iterator[str]], host: Kernel) -> int:
    return sum(piece.count("\n") for piece in make(host))


def test_many_routes_are_told_with_few_pieces_of_text() -> None:
    route = next(body for body in golden("routes") if body[1] == 8)
    bodies = [route[:24] + n.to_bytes(4, "big") + route[28:] for n in range(30000)]
    host = Kernel(routes=bodies)
    assert counted(KINDS["routes"][1], host) == 30000
    assert max(map(len, KINDS["routes"][1](host))) < 2 * ipsec.TEXT_PIECE


def test_what_proc_says(tmp_path: Path) -> None:
    for name, text in {"proc/sys/net/ipv4/conf/eth0.5/rp_filter": "2\n", "sys/module/xfrm_user/version": "1\n",
                       "proc/crypto": "name         : sha1\ndriver       : sha1-ssse3\ntype         : shash\n\n"
                                      "name         : rfc4106(gcm(aes))\ntype         : aead\n\n"
                                      "name         : sha1\ntype         : ahash\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = ipsec.Host({}, root=str(tmp_path))
    assert ipsec.read_sysctl(host, "net.ipv4.conf.eth0/5.rp_filter") == "2"
    assert ipsec.read_sysctl(host, "net.ipv4.nothing") == ""
    assert ipsec.has_module(host, "nothing", "xfrm-user") and not ipsec.has_module(host, "nothing")
    assert ipsec.Facts(host, 1.0).crypto() == {"sha1": "shash", "rfc4106(gcm(aes))": "aead"}


class Processes(Kernel):
    """/proc as an ordinary user sees it: names of processes by PID; None is the name that hidepid=1 hides."""

    def __init__(self, names: dict[int, str | None]) -> None:
        super().__init__()
        self.names = names

    def listdir(self, name: str) -> list[str]:
        return ["uptime", *map(str, self.names)]

    def read(self, name: str) -> str:
        pid = int(name.split("/")[2])
        if pid not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        if self.names[pid] is None:
            raise PermissionError(errno.EPERM, "Operation not permitted", name)
        return f"{pid} ({self.names[pid]}) S 1 1 1 0\n"

    def readlink(self, name: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    def stat(self, name: str, *, follow: bool = True) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", name)


def test_a_process_that_proc_hides_is_no_pluto_in_the_list_but_may_be_the_one_of_the_pid_file() -> None:
    host = Processes({1: None, 7: "pluto", 8: "charon", 9: None})
    assert ipsec.plutos(host) == [7]
    assert [ipsec.is_pluto(host, pid) for pid in (7, 8, 9, 10)] == [True, False, True, False]


def test_a_process_that_proc_hides_may_be_a_pluto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed or removed then: the list of signs is not empty."""
    monkeypatch.setattr(Processes, "exists", lambda host, name: True)
    hidden = "/proc hides the names of some processes, one of which may be pluto"
    assert list(ipsec.process_signs(Processes({1: "init", 9: None}))) == [hidden]
    assert list(ipsec.process_signs(Processes({1: "init", 8: "charon"}))) == []
