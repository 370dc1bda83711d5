"""look and show: beside libreswan's own, on what a tunnel leaves in the kernel."""

from __future__ import annotations

import json
import re
from typing import Callable

import pytest

from ..ground.gateways import Gateways
from ..ground.machine import PYZ, Machine
from .test_gateways import bring_up

#: What the original says of packets from 10.1.0.1 to these, and we
DESTINATIONS = {
    "10.2.0.1": ("using reqid", "using reqid"),
    "10.2.0.9": ("using reqid", "would not be encrypted: dropped (policy 10.1.0.0/24 <=> 10.2.0.9/32)"),
    "192.0.2.2": ("would not be encrypted", "would not be encrypted: no IPsec policy matches"),
    "10.3.0.1": ("would not be encrypted", "would not be encrypted: dropped (policy 10.1.0.0/24 <=> 10.3.0.0/24)"),
    "127.0.0.1": ("would not be encrypted", "would not be encrypted: the destination is an address of this host"),
}


def comparable(look: str) -> list[str]:
    """What look prints without the host and date, without keys, and without the firewall of 4.3's look: its kernel has
    no tables then, and it lists none."""
    first, *lines = look.splitlines()
    assert first.startswith("west ")
    text = re.sub(r"0x([0-9a-f]{40,})", lambda key: f"0x[redacted {len(key[1]) // 2} bytes]", "\n".join(lines))
    return re.sub(r"(?s)IPSEC mangle TABLES\n.*(?=ROUTING TABLES)", "", text).split("\n")


def test_as_the_originals_with_a_tunnel_up(gateways: Gateways, release: str) -> None:
    """Line by line, with policies of two families, of a protocol and one that drops; 5.2 has neither of the two."""
    bring_up(gateways)
    gateways.step("more", "west", ["sh", "-ec", """
        for to in 10.3.0.0/24 10.2.0.9/32; do
            ip xfrm policy add src 10.1.0.0/24 dst $to dir out action block priority 7
        done
        ip xfrm policy add src fd00:1::/64 dst fd00:2::/64 proto ipv6-icmp type 128 dir out priority 3
        ip -6 route add fd00:2::/64 dev eth0 metric 77
        openssl req -x509 -newkey rsa:2048 -nodes -keyout /run/key -out /run/pem -subj /CN=west 2>/dev/null
        certutil -A -d sql:/var/lib/ipsec/nss -n 'a CA' -t CT,, -i /run/pem"""])
    original = release != "trixie"
    for whose, argv in (("their", ["/usr/sbin/ipsec"]), ("our", [gateways.machine.python, PYZ]))[not original:]:
        gateways.step(f"{whose}-look", "west", [*argv, "look"])
        gateways.step(f"{whose}-show", "west", [*argv, "show"])
        for address in DESTINATIONS:
            gateways.step(f"{whose}-show-{address}", "west", [*argv, "show", "--source", "10.1.0.1", address])
    gateways.ipsec("json", "west", "look", "--json")
    results = gateways.run()
    assert results["more"].status == results["our-look"].status == results["our-show"].status == 0
    look = results["our-look"].stdout
    assert look.count("aead rfc4106(gcm(aes)) 0x[redacted 36 bytes] 128") == 2 and "a CA" in look
    if original:
        assert comparable(look) == comparable(results["their-look"].stdout)
        assert results["our-show"].stdout == results["their-show"].stdout != ""
    for address, (theirs, ours) in DESTINATIONS.items():
        assert not original or theirs in results[f"their-show-{address}"].stdout
        assert ours in results[f"our-show-{address}"].stdout
        assert results[f"our-show-{address}"].status == ("using" not in ours)
    assert results["our-show-10.2.0.1"].stdout == results["our-show"].stdout
    told = {section["section"]: section for section in json.loads(results["json"].stdout)["sections"]}
    spis = re.findall(r"spi 0x([0-9a-f]+)", look)
    assert [int(spi, 16) for spi in spis] == [state["spi"] for state in told["state"]["data"]]
    assert not re.search("[0-9a-f]{40}", results["json"].stdout)
    policies = look[look.index("XFRM policy:"):]  # the text of a state may name its direction, too
    assert len(told["policy"]["data"]) == policies.count("\tdir ") and told["nss"]["data"][0]["nickname"] == "a CA"


@pytest.fixture
def bookworm(root: Callable[..., Machine]) -> Machine:
    """A host with an address, not more."""
    machine = root("bookworm")
    machine.address("192.0.2.1/24")
    return machine


def test_parts_by_name(bookworm: Machine) -> None:
    bookworm.ip("xfrm", "policy", "add", "src", "10.1.0.0/24", "dst", "10.2.0.0/24", "dir", "out", "action", "block")
    titles = {"state": "XFRM state:", "policy": "XFRM policy:", "route": "ROUTING TABLES",
              "nftables": "nft list ruleset", "iptables": "IPSEC mangle TABLES", "nss": "NSS_CERTIFICATES"}
    assert bookworm.ipsec("initnss").status == 0
    for word, title in titles.items():
        result = bookworm.ipsec("look", word)
        assert (result.status, result.stderr) == (0, ""), word
        assert [other for other in titles.values() if f"{other}\n" in result.stdout] == [title], word
    result = bookworm.ipsec("look", "route", "policy")  # in look's order
    assert result.stdout.index("XFRM done\n") < result.stdout.index("192.0.2.0/24 dev eth0 proto kernel scope link src")
    result = bookworm.ipsec("look", "routes")
    assert (result.status, result.stdout) == (2, "") and 'unknown word "routes"' in result.stderr


def test_what_could_not_be_shown_is_told(bookworm: Machine) -> None:
    """A firewall program that hangs, none at all, no database, and somebody who may not ask."""
    bookworm.run(["ln", "-sf", "/run/hangs", "/usr/sbin/iptables"]).check()
    version = "[ $1 != -V ] || { echo 'iptables v1.8.9 (nf_tables)'; exit; }\n"
    for first, seen in ((version, "Chain INPUT\ntimed out after 3 s"), ("", "iptables did not end within 1.5 s")):
        bookworm.write("/run/hangs", f"#!/bin/sh\n{first}echo Chain INPUT\nsleep 600 & wait\n", 0o755)
        result = bookworm.ipsec("look", "iptables", "route", "--timeout", "3")
        assert result.status == 1 and "iptables" in result.stderr and result.stderr.count("\n") == 1
        assert seen in result.stdout and "ROUTING TABLES" in result.stdout
        assert bookworm.processes("sleep") == []
    bookworm.run(["rm", "/usr/sbin/iptables", "/usr/sbin/nft"]).check()
    result = bookworm.ipsec("look")
    assert result.status == 1 and "nss" in result.stderr and "in the kernel's own form" in result.stdout
    assert "iptables filter TABLE" not in result.stdout
    bookworm.run(["sh", "-ec", "mkdir -p /var/lib/ipsec/nss; mkfifo /var/lib/ipsec/nss/cert9.db"]).check()
    result = bookworm.ipsec("look", "nss")
    assert result.status == 1 and "cert9.db: not a regular file" in result.stdout
    result = bookworm.ipsec("look", "policy", user=65534)
    assert result.status == 1 and "policy" in result.stderr and "Operation not permitted" in result.stdout


@pytest.mark.parametrize(("words", "status", "error"), [
    (["nosuch.invalid"], 1, "give an IP address"),
    (["--source", "10.1.0.1", "::1"], 1, "of different IP families"),
    (["--source", "10.1.0.1"], 2, "specifying a destination is required"),
    (["--source", "10.1.0", "192.0.2.9"], 2, "--source must be an IP address, not 10.1.0"),
    (["--protocol", "tpc", "192.0.2.9"], 2, "--protocol must be a number or a name in /etc/protocols, not tpc"),
    (["--protocol", "256", "192.0.2.9"], 2, "--protocol must be a number from 0 to 255, not 256"),
    (["--mark", "red", "192.0.2.9"], 2, "--mark must be a number from 0 to 4294967295, not red"),
    (["--mark", "0x100000000", "192.0.2.9"], 2, "--mark must be a number from 0 to 4294967295, not 0x100000000"),
    (["--mark", "0x_1", "192.0.2.9"], 2, "not 0x_1"),
    (["--source-port", "99999", "192.0.2.9"], 2, "--source-port must be a number from 0 to 65535, not 99999"),
    (["--destination-port", "-1", "192.0.2.9"], 2, "--destination-port must be a number from 0 to 65535, not -1"),
    (["--destination-port", "\u0663", "192.0.2.9"], 2, "--destination-port must be a number"),
])
def test_what_show_is_asked_wrongly(bookworm: Machine, words: list[str], status: int, error: str) -> None:
    result = bookworm.ipsec("show", *words)
    assert (result.status, result.stdout) == (status, "") and error in result.stderr and result.stderr.count("\n") == 1


def test_show_names_the_networks_that_a_tunnel_serves(bookworm: Machine) -> None:
    """Asked on the gateway, packets come from its outer address, which the tunnel is not for."""
    bookworm.address("10.1.0.7/24", "lan0")
    bookworm.ip("route", "add", "default", "via", "192.0.2.254")
    for network in ("10.1.0.0/24", "10.9.0.0/30"):
        bookworm.ip("xfrm", "policy", "add", "src", network, "dst", "10.2.0.0/16", "dir", "out", "tmpl", "src",
                    "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "reqid", "16389", "mode", "tunnel")
    result = bookworm.ipsec("show", "--protocol", "udp", "10.2.0.9")
    assert result.status == 1
    assert result.stdout.splitlines() == [
        "Packet with source address 192.0.2.1 to destination 10.2.0.9 would not be encrypted: no IPsec policy matches",
        "    packets from 10.1.0.0/24 go through a tunnel: ipsec show --source 10.1.0.7 --protocol udp 10.2.0.9",
        "    packets from 10.9.0.0/30 go through a tunnel: ipsec show --source 10.9.0.1 --protocol udp 10.2.0.9"]
    found = json.loads(bookworm.ipsec("show", "--json", "10.2.0.9").stdout)
    assert found[0]["protected_sources"][0] == {"network": "10.1.0.0/24", "source": "10.1.0.7"}
    assert "go through" not in bookworm.ipsec("show", "192.0.2.2").stdout
    assert "using reqid 16389" in bookworm.ipsec("show", "--source", "10.1.0.7", "10.2.0.9").stdout


def test_show_knows_protocol_ports_and_who_may_ask(bookworm: Machine) -> None:
    for narrow in (["proto", "6", "dport", "22"], ["proto", "1", "type", "8"]):  # names need /etc/protocols
        bookworm.ip("xfrm", "policy", "add", "src", "192.0.2.0/24", "dst", "192.0.2.9", *narrow, "dir", "out",
                    "priority", "1", "action", "block")
    plain = bookworm.ipsec("show", "192.0.2.9")
    assert plain.status == 1 and plain.stdout.splitlines()[0].endswith("no IPsec policy matches")
    assert [line.split()[:4] for line in plain.stdout.splitlines()[1:]] == [["some", "packets", "are", "dropped"]] * 2
    for words, dropped in (("-p tcp --destination-port 22", True), ("-p udp", False), ("-p icmp --source-port 8", True),
                           ("-p 6 --destination-port 23", False)):
        assert ("dropped (policy" in bookworm.ipsec("show", *words.split(), "192.0.2.9").stdout) == dropped, words
    found = json.loads(bookworm.ipsec("show", "--json", "-p", "tcp", "--destination-port", "22", "192.0.2.9").stdout)
    assert [(one["fate"], one["source"], one["device"]) for one in found] == [("block", "192.0.2.1", "eth0")]
    result = bookworm.ipsec("show", "192.0.2.9", user=65534)
    assert result.status == 4 and "run as root" in result.stderr
