"""What of pluto's status defines a connection, and what changes while it is used."""

from __future__ import annotations

import pytest

import ipsec

SECTION = ipsec.Section("a", "/etc/ipsec.conf", 1, [])
ADDED = """: 10.1.0.0/16===192.0.2.1...192.0.2.2===10.2.0.0/16; unrouted; my_ip=unset; their_ip=unset;
:   host: oriented; local: 192.0.2.1; remote: 192.0.2.2;
:   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
:   our idtype: ID_IPV4_ADDR; our id=192.0.2.1; their idtype: ID_IPV4_ADDR; their id=192.0.2.2;
:   routing: unrouted;
:   conn serial: $6;
"""
USED = """: 10.1.0.0/16===192.0.2.1...192.0.2.2===10.2.0.0/16; routed-tunnel; my_ip=unset; their_ip=unset;
:   host: oriented; local: 192.0.2.1; remote: 192.0.2.2; established IKE SA: #1;
:   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+UP+ROUTE;
:   our idtype: ID_IPV4_ADDR; our id=192.0.2.1; their idtype: ID_IPV4_ADDR; their id=192.0.2.2;
:   routing: routed-tunnel; owner: Child SA #2; established IKE SA: #1; established Child SA: #2;
:   conn serial: $1;
:   IKEv2 algorithm newest: AES_GCM_16_256-HMAC_SHA2_512-DH19
:   ESP algorithm newest: AES_GCM_16_256-NONE; pfsgroup=<Phase1>
"""


def loaded(text: str) -> ipsec.Loaded:
    connection = ipsec.Loaded()
    for line in text.splitlines():
        connection.add("", line)
    return connection


def conn(**settings: str) -> ipsec.Conn:
    connection = ipsec.Conn(SECTION)
    for key, value in settings.items():
        connection.settings[key] = ipsec.Setting(key, value, "/etc/ipsec.conf", 1)
    return connection


def difference(old: str, new: str, in_use: bool = True, **settings: str) -> str:
    section = conn(**settings)
    return ipsec.changed_fields(loaded(old).definition(section, in_use), loaded(new).definition(section, in_use))


def test_use_is_no_change() -> None:
    assert difference(USED, ADDED) == ""
    assert loaded(USED).routed and loaded(USED).is_up
    assert not loaded(ADDED).routed and not loaded(ADDED).is_up


@pytest.mark.parametrize("before, after, text", [
    ("10.2.0.0/16", "10.3.0.0/16", "becomes 10.1.0.0/16===192.0.2.1...192.0.2.2===10.3.0.0/16"),
    ("+PFS", "", "policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS becomes policy: IKEv2+PSK+ENCRYPT+TUNNEL"),
    ("their id=192.0.2.2", "their id=@b", "their id=192.0.2.2 becomes their id=@b"),
    ("my_ip=unset", "my_ip=10.9.9.9", "my_ip=unset becomes my_ip=10.9.9.9"),
    (":   conn serial", ":   nat-traversal: encaps:yes;\n:   conn serial", "its settings differ"),
])
def test_a_new_definition_is_a_change(before: str, after: str, text: str) -> None:
    assert text in difference(USED, ADDED.replace(before, after))


def test_what_a_peer_sets_is_no_change() -> None:
    leased = USED.replace("10.1.0.0/16===", "10.77.0.5/32===").replace("my_ip=unset", "my_ip=10.77.0.5")
    assert difference(leased, ADDED) != ""
    assert difference(leased, ADDED, leftmodecfgclient="yes") == ""
    assert difference(leased, ADDED, in_use=False, leftmodecfgclient="yes") != ""
    named = USED.replace("their id=192.0.2.2", "their id=CN=peer").replace("their idtype: ID_IPV4_ADDR",
                                                                           "their idtype: ID_DER_ASN1_DN")
    assert difference(named, ADDED) != "" and difference(named, ADDED, rightid="%fromcert") == ""


def test_parts_of_leftsubnets_are_counted() -> None:
    section = conn()
    old, new = ipsec.Loaded(), ipsec.Loaded()
    for part in ("1x1", "2x1"):
        old.add(part, ": 10.1.0.0/16...; unrouted")
    new.add("1x1", ": 10.1.0.0/16...; unrouted")
    text = ipsec.changed_fields(old.definition(section, False), new.definition(section, False))
    assert text == "2 pairs of networks become 1"
