"""show without a network: the fate of packets, and how it is told; look's order of policies."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import Any

import pytest

import ipsec

from .test_kernel import Kernel, asked, golden, policy, state


class Answers(ipsec.PacketFates):
    """What show says on a host with these policies and states: eth0 leads everywhere but to 10.66.0.0/16."""

    def __init__(self, *policies: ipsec.Policy, states: Sequence[ipsec.State] = (), kind: str = "",
                 **query: Any) -> None:
        fields = {"source": "", "protocol": 0, "source_port": None, "destination_port": None,
                  "mark": 0, **query}
        super().__init__(Kernel(), ipsec.PacketQuery(**fields))
        self.data.policies_data = lambda: iter(policies)  # type: ignore[method-assign]
        self.data.states_data = lambda: iter(states)  # type: ignore[method-assign]
        self.routing.lookup = self.lookup  # type: ignore[method-assign]
        self.routing.addresses = lambda: [("192.0.2.1", 24, 0, 2), ("10.1.0.7", 24, 0, 3)]  # type: ignore[method-assign]
        fields_of_kind = {2: b"\7\0\0\0", 3: b"\0\0\0\6"}
        self.routing.link = lambda device: (1, fields_of_kind, kind)  # type: ignore[method-assign]

    @staticmethod
    def lookup(address: str, source: str = "", mark: int = 0) -> ipsec.Route:
        if address.startswith("10.66.") or source == "10.9.0.1":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return ipsec.Route(address == "192.0.2.1", f"{address}/32", "", "eth0", "192.0.2.1")


@pytest.fixture(autouse=True)
def no_sysctl(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values: dict[str, str] = {}
    monkeypatch.setattr(ipsec, "read_sysctl", lambda host, name: values.get(name, ""))
    monkeypatch.setattr(ipsec, "link_names", dict)
    return values


UP = [state(7)]


@pytest.mark.parametrize("fates, destination, fate, why", [
    (Answers(), "10.66.0.1", "unroutable", "there is no route to the destination"),
    (Answers(), "192.0.2.1", "clear", "the destination is an address of this host"),
    (Answers(), "10.2.0.1", "clear", "no IPsec policy matches"),
    (Answers(asked("esp"), states=UP, source="10.1.0.1"), "10.2.0.1", "encrypt",
     "encrypted (policy 10.1.0.0/24 <=> 10.2.0.0/16 using reqid 7)"),
    (Answers(asked("esp"), source="10.1.0.1"), "10.2.0.1", "hold",
     "not sent until pluto has set up the tunnel (policy 10.1.0.0/24 <=> 10.2.0.0/16 using reqid 7)"),
    (Answers(policy(action="block"), source="10.1.0.1"), "10.2.0.1", "block",
     "dropped (policy 10.1.0.0/24 <=> 10.2.0.0/16)"),
    (Answers(kind="xfrm"), "10.2.0.1", "block", "no IPsec policy matches, and eth0 drops such packets"),
    (Answers(policy(if_id=7, templates=asked("esp").templates), states=UP, kind="xfrm", source="10.1.0.1"), "10.2.0.1",
     "encrypt", "encrypted (policy 10.1.0.0/24 <=> 10.2.0.0/16 if_id 0x7 using reqid 7)"),
    (Answers(policy(mark=6, mask=0xFF, templates=asked("esp").templates), states=UP, kind="vti", source="10.1.0.1"),
     "10.2.0.1", "encrypt", "encrypted (policy 10.1.0.0/24 <=> 10.2.0.0/16 mark 0x6/0xff using reqid 7)"),
])
def test_the_fate_of_packets(fates: Answers, destination: str, fate: str, why: str) -> None:
    result = fates.fate(destination)
    assert (result["fate"], result["why"]) == (fate, why)


def test_a_source_behind_this_host_needs_no_route_of_its_own() -> None:
    assert Answers(source="10.9.0.1").fate("10.2.0.1")["device"] == "eth0"


def test_disable_xfrm_is_named(no_sysctl: dict[str, str]) -> None:
    no_sysctl["net.ipv4.conf.eth0.disable_xfrm"] = "1"
    assert Answers(asked("esp"), states=UP).fate("10.2.0.1")["why"] == "disable_xfrm is set on eth0"


@pytest.mark.parametrize(("release", "fate"), [("5.10.0-28-amd64", "encrypt"), ("5.11.0", "clear"), ("6.1.0", "clear")])
def test_disable_xfrm_of_all_counts_since_5_11(no_sysctl: dict[str, str], monkeypatch: pytest.MonkeyPatch, release: str,
                                               fate: str) -> None:
    monkeypatch.setattr(ipsec.Host, "kernel_release", lambda host: release)
    no_sysctl["net.ipv4.conf.all.disable_xfrm"] = "1"
    assert Answers(asked("esp"), states=UP, source="10.1.0.1").fate("10.2.0.1")["fate"] == fate


def test_policies_that_take_only_some_of_the_packets_are_exceptions() -> None:
    fates = Answers(policy(priority=9), policy(protocol=6, action="block"), source="10.1.0.1")
    assert [(other["fate"], other["policy"].selector.protocol) for other in fates.fate("10.2.0.1")["exceptions"]] == [
        ("block", 6)]


def test_networks_whose_packets_go_through_a_tunnel() -> None:
    """An address of this host in the network, else its first one; not those whose policy does not encrypt."""
    templates = asked("esp").templates
    fates = Answers(policy(templates=templates), policy(source="10.9.0.0/30", templates=templates),
                    policy(source="10.8.0.8/32", templates=templates), policy(source="10.7.0.0/24"),
                    policy(source="10.5.0.0/24", destination="10.3.0.0/16", templates=templates), states=UP)
    assert [*fates.protected_sources("10.2.0.1")] == [
        ("10.1.0.0/24", "10.1.0.7"), ("10.8.0.8/32", "10.8.0.8"), ("10.9.0.0/30", "10.9.0.1")]
    assert ipsec.first_address("2001:db8::/64") == "2001:db8::1"


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fates: Answers,
          *words: str) -> tuple[int, str]:
    """The status and the output of show with these words."""
    monkeypatch.setattr(ipsec, "PacketFates", lambda host, query: fates)
    entry = ipsec.find_command("show")
    assert entry is not None
    status = entry.function(Kernel(), entry.parse(list(words)))
    return status, capsys.readouterr().out


def test_what_show_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel = asked("esp")
    fates = Answers(tunnel, policy(protocol=6, action="block"), states=UP)
    assert shown(monkeypatch, capsys, fates) == (0, "10.1.0.0/24 <=> 10.2.0.0/16 using reqid 7\n")
    status, text = shown(monkeypatch, capsys, fates, "--debug", "--mark", "5", "10.2.0.1")
    assert status == 1 and text.splitlines() == [
        "checking destination 10.2.0.1: 10.2.0.1 by eth0",
        "Packet with source address 192.0.2.1 to destination 10.2.0.1 would not be encrypted: no IPsec policy matches",
        "    packets from 10.1.0.0/24 go through a tunnel: ipsec show --source 10.1.0.7 --mark 5 10.2.0.1"]
    sent = Answers(tunnel, policy(protocol=6, action="block"), states=UP, source="10.1.0.7")
    assert shown(monkeypatch, capsys, sent, "10.2.0.1") == (
        0, "10.1.0.0/24 <=> 10.2.0.0/16 using reqid 7\n"
        "    some packets are dropped (policy 10.1.0.0/24 <=> 10.2.0.0/16 proto tcp)\n")
    status, text = shown(monkeypatch, capsys, sent, "--json", "10.2.0.1")
    assert (status, json.loads(text)[0]["policy"]["templates"][0]["reqid"]) == (0, 7)
    assert json.loads(shown(monkeypatch, capsys, sent, "--json")[1])[0]["direction"] == "out"


def test_who_may_not_ask_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fates = Answers()

    def refuse() -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    fates.data.policies_data = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(ipsec.Failure, match="run as root") as caught:
        shown(monkeypatch, capsys, fates)
    assert caught.value.status == 4


def test_look_sorts_policies_as_libreswan_did() -> None:
    report = ipsec.Report(Kernel(policies=golden("policies")), ipsec.Args())
    texts = [text.split(" dst")[0] for text in "".join(ipsec.sorted_policies(report)).split("src ") if " dst" in text]
    families = [":" in text for text in texts if not text.startswith(("192.0.2", "2001:db8::1 ", "2001:db8::2 "))]
    assert families == sorted(families) and len(families) > 8


@pytest.mark.parametrize(("version", "names", "listed"), [
    ("iptables v1.8.9 (nf_tables)", "", ["iptables filter"]),
    ("iptables v1.8.9 (legacy)", "", []),
    ("iptables v1.4.21", "", []),
    ("iptables v1.4.21", "mangle\nfilter\n", ["iptables mangle", "ip6tables mangle", "iptables filter"]),
])
def test_look_makes_no_table_of_iptables_legacy(version: str, names: str, listed: list[str]) -> None:
    """iptables before 1.8 names no kind; it is the legacy one."""
    asked_for = []

    class Filtered(Kernel):
        def run(self, argv: Sequence[str], *_: Any, **__: Any) -> ipsec.Ran:
            if "-V" in argv:
                return ipsec.Ran(0, f"{version}\n".encode(), b"")
            asked_for.append(f"{argv[0]} {argv[3]}")
            return ipsec.Ran(0, b"", b"")

        def stream(self, argv: Sequence[str], *_: Any, **__: Any) -> Any:
            asked_for.append(f"{argv[0]} {argv[3]}")
            return iter(())

        def value(self, name: str) -> str:
            return names

    host = Filtered()
    assert "".join(ipsec.iptables_lists(ipsec.Report(host, ipsec.Args()))) == "iptables filter TABLE\n"
    assert asked_for == listed
