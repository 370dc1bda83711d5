"""Requests to rtnetlink and nf_tables as bytes, compared with those of iproute2 (tests/data/kernel/requests.txt)."""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import Any

import pytest

import ipsec

from .test_kernel import HEADER, Kernel, Link, message

#: Lines `COMMAND: TYPE FLAGS BODY`: what iproute2 6.1 sends for `ip COMMAND`, kept by strace; v0 is interface 3
REQUESTS = (Path(__file__).parent / "data/kernel/requests.txt").read_text().splitlines()


class Recorder(Kernel):
    """A kernel that keeps the requests (type, flags, body) and acknowledges them after the `answer`."""

    def __init__(self, *answer: bytes, error: int = 0) -> None:
        super().__init__()
        self.answer = answer
        self.error = error
        self.requests: list[tuple[int, int, bytes]] = []

    def netlink(self, family: int) -> Any:
        return RecordingLink(self)


class RecordingLink(Link):
    def send(self, data: bytes) -> None:
        assert isinstance(self.host, Recorder)
        start = 0
        while start < len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
            self.host.requests.append((kind, flags, data[start + 16:start + length]))
            start += (length + 3) & ~3
            self.queue += [message(16, body, 2, sequence) for body in self.host.answer]
            if flags & 0x300 == 0x300:
                self.queue.append(message(3, bytes(4), 2, sequence))
            elif flags & 4:
                self.queue.append(message(2, struct.pack("=i", -self.host.error) + bytes(16), 0, sequence))


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface v0 has number 3."""
    monkeypatch.setattr(ipsec.Routing, "index", staticmethod(lambda device, default=None: {"v0": 3}[device]))


def request(words: list[str], host: Recorder) -> None:
    """Make the request that `ip WORDS` makes."""
    routing = ipsec.Routing(host)
    kind, action, *args = words
    values = dict(zip(args[1::2], args[2::2])) if kind == "addr" else dict(zip(args[::2], args[1::2]))
    if kind == "route":
        routing.change_route(action, args[0], args[1:])
    elif kind == "addr":
        scope = values.get("scope", "0")
        routing.change_address(action == "add", args[0], values["dev"], 0 if scope == "global" else int(scope))
    elif kind == "neigh":
        routing.change_proxy(action == "add", values["proxy"], values["dev"])
    elif kind == "rule":
        routing.change_rule(action == "add", values["to"], values["fwmark"], int(values["lookup"]), int(values["prio"]))
    elif words == ["link", "set", "v0", "up"]:
        routing.bring_up("v0")
    else:
        assert words[:5] == ["link", "add", "vti9", "type", "vti"]
        routing.add_vti("vti9", "192.0.2.1", "192.0.2.2", 21, 22)


def parsed(kind: int, body: bytes) -> tuple[bytes, list[tuple[int, Any]]]:
    """The structure at the start of a body, and its attributes in a fixed order; nested ones are parsed, too."""
    size = {20: 8, 21: 8, 16: 16}.get(kind, 12)

    def listed(data: bytes, nested: tuple[int, ...]) -> list[tuple[int, Any]]:
        return sorted((name, listed(value, nested[1:]) if name in nested[:1] else value)
                      for name, value in ipsec.each_attribute(data))

    # RTA_METRICS; IFLA_LINKINFO and in it IFLA_INFO_DATA
    return body[:size], listed(body[size:], {24: (8,), 16: (18, 2)}.get(kind, ()))


@pytest.mark.parametrize("line", REQUESTS)
def test_requests_are_those_of_iproute2(line: str) -> None:
    """Type, flags, structure and attributes; only the order of the attributes is free."""
    command, _, request_text = line.rpartition(": ")
    kind, flags, body = request_text.split()
    host = Recorder()
    request(command.split(), host)
    assert [(kind_sent, flags_sent) for kind_sent, flags_sent, _ in host.requests] == [(int(kind), int(flags, 0))]
    sent, wanted = parsed(int(kind), host.requests[0][2]), parsed(int(kind), bytes.fromhex(body))
    if "type vti" in command:  # iproute2 adds an empty IFLA_VTI_FWMARK
        dict(dict(wanted[1])[18])[2].remove((6, bytes(4)))
    assert sent == wanted


def test_the_kernels_refusal_has_its_errno() -> None:
    with pytest.raises(OSError, match="File exists") as caught:
        ipsec.Routing(Recorder(error=errno.EEXIST)).change_address(True, "10.1.0.9/32", "v0")
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("words, complaint", [
    (["via"], '"via" needs a value'), (["onlink", "dev"], '"dev" needs a value'),
    (["nexthop", "x"], "not supported in a route"),
    (["mtu", "lock"], "not supported in a route"), (["scope", "village"], "not supported in a route"),
    (["table", "main"], "not supported in a route"),
    (["proto", "256"], "not supported in a route"), (["scope", "256"], "not supported in a route"),
    (["mtu", "4294967296"], "not supported in a route"), (["metric", "4294967296"], "not supported in a route"),
    (["table", "²"], "not supported in a route"),
])
def test_words_that_are_none_of_a_route(words: list[str], complaint: str) -> None:
    host = Recorder()
    with pytest.raises(OSError, match=complaint) as caught:
        ipsec.Routing(host).change_route("add", "10.2.0.0/24", words)
    assert caught.value.errno == errno.EINVAL and host.requests == []


def test_lookup() -> None:
    body = struct.pack("=8BI", 2, 32, 0, 0, 254, 0, 0, 1, 0) + ipsec.attribute(1, bytes((10, 2, 0, 1)))
    body += ipsec.attribute(5, bytes((192, 0, 2, 254))) + ipsec.attribute(4, 0)
    body += ipsec.attribute(7, bytes((10, 1, 0, 9)))
    host = Recorder(body)
    assert ipsec.Routing(host).lookup("10.2.0.1", "10.1.0.9", 7) == ipsec.Route(
        False, "10.2.0.1/32", "192.0.2.254", "", "10.1.0.9")
    assert host.requests == [(26, 5, struct.pack("=8BI", 2, 32, 32, 0, 0, 0, 0, 0, 0) + ipsec.attribute(
        1, bytes((10, 2, 0, 1))) + ipsec.attribute(2, bytes((10, 1, 0, 9))) + ipsec.attribute(16, 7))]


def test_routes_are_those_of_the_main_table() -> None:
    def route(table: int, flags: int, last: int) -> bytes:
        return struct.pack("=8BI", 2, 24, 0, 0, table, 0, 0, 1, flags) + ipsec.attribute(1, bytes((10, 2, last, 0)))

    host = Recorder(route(254, 0, 1), route(254, 0x200, 2), route(100, 0, 3),
                    struct.pack("=8BI", 10, 0, 0, 0, 254, 0, 0, 2, 0))
    assert [(route.destination, route.local) for route in ipsec.Routing(host).routes(4)] == [
        ("10.2.1.0/24", False), ("::/0", True)]


def test_addresses_and_links() -> None:
    local = struct.pack("=4BI", 2, 32, 0, 50, 1) + ipsec.attribute(2, bytes((10, 1, 0, 9)))
    peer = struct.pack("=4BI", 10, 64, 0, 0, 3) + ipsec.attribute(1, bytes(15) + b"\1")
    assert ipsec.Routing(Recorder(local, peer, struct.pack("=4BI", 2, 8, 0, 0, 1))).addresses() == [
        ("10.1.0.9", 32, 50, 1), ("::1", 64, 0, 3)]
    info = ipsec.attribute(18, ipsec.attribute(1, "vti"), ipsec.attribute(2, ipsec.attribute(4, bytes(4))))
    assert ipsec.Routing(Recorder(struct.pack("=BxHiII", 0, 1, 3, 0x11, 0) + info)).link("v0") == (
        0x11, {4: bytes(4)}, "vti")


def kept_rule(chain: str, comment: str, handle: int, table: str = "ipsec-cat") -> bytes:
    """A rule as the kernel lists it."""
    data = comment.encode() + b"\0"
    return bytes((2, 0, 0, 0)) + b"".join((
        ipsec.attribute(1, table), ipsec.attribute(2, chain), ipsec.attribute(3, handle.to_bytes(8, "big")),
        ipsec.attribute(4, ipsec.nft_meta(25)), ipsec.attribute(7, bytes((0, len(data))) + data)))


def test_a_table_of_nf_tables_is_changed_in_one_batch() -> None:
    host = Recorder(kept_rule("POSTROUTING", "mine", 5), kept_rule("POSTROUTING", "theirs", 6),
                    kept_rule("POSTROUTING", "x", 7, "other"))
    table = ipsec.NftTable(host, "ipsec-cat", 2, ipsec.CAT_CHAINS)
    rules = table.rules()
    assert [(rule.comment, rule.handle) for rule in rules] == [("mine", 5), ("theirs", 6)]
    assert [name for name, _ in rules[0].each_expression()] == ["meta"]
    host.answer = ()
    host.requests.clear()
    table.change(rules[:1], [ipsec.NftRule("PREROUTING", ipsec.nft_nat(1, "192.0.2.1"), "new")])
    assert [kind & 0xFF for kind, _, _ in host.requests] == [0x10, 8, 0, 3, 6, 0x11]
    deleted, chain, added = (ipsec.attributes(host.requests[index][2], 4) for index in (1, 3, 4))
    assert deleted[3] == (5).to_bytes(8, "big") and chain[7] == b"nat\0"
    assert ipsec.attributes(chain[4]) == {1: bytes(4), 2: (-100 % (1 << 32)).to_bytes(4, "big")}
    assert added[7] == b"\0\4new\0"


def test_a_table_that_would_be_empty_goes() -> None:
    host = Recorder(kept_rule("POSTROUTING", "mine", 5))
    table = ipsec.NftTable(host, "ipsec-cat", 2, ipsec.CAT_CHAINS)
    table.change(table.rules(), ())
    assert [kind & 0xFF for kind, _, _ in host.requests[-3:]] == [0x10, 2, 0x11]


def test_expressions_of_a_rule() -> None:
    """A network of 20 bits at its place in the header, and the address that replaces the packet's."""
    steps = ipsec.NftRule("x", ipsec.nft_net("destination", "10.1.16.0/20") + ipsec.nft_nat(0, "10.8.0.1"))
    names, parts = zip(*steps.each_expression())
    assert names == ("payload", "bitwise", "cmp", "immediate", "nat")
    assert parts[0][3] == (16).to_bytes(4, "big") and ipsec.attributes(parts[1][4])[1] == bytes((255, 255, 240, 0))
    assert ipsec.attributes(parts[2][3])[1] == bytes((10, 1, 16, 0))
    assert ipsec.attributes(parts[3][2])[1] == bytes((10, 8, 0, 1))
    assert parts[4][1] == bytes(4) and parts[4][2] == (2).to_bytes(4, "big")
    six = ipsec.NftRule("x", ipsec.nft_net("source", "2001:db8::/32"))
    assert next(six.each_expression())[1][3] == (8).to_bytes(4, "big")
