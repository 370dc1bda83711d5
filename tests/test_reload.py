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
    before, after = (loaded(text).definition(section, in_use=in_use) for text in (old, new))
    return ipsec.changed_fields(before, after)


def test_use_is_no_change() -> None:
    assert difference(USED, ADDED) == ""
    assert loaded(USED).routed and loaded(USED).is_up
    assert not loaded(ADDED).routed and not loaded(ADDED).is_up


@pytest.mark.parametrize("before, after, text", [
    ("10.2.0.0/16", "10.3.0.0/16", "becomes 10.1.0.0/16===192.0.2.1...192.0.2.2===10.3.0.0/16"),
    ("+PFS", "", "policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS becomes policy: IKEv2+PSK+ENCRYPT+TUNNEL"),
    ("their id=192.0.2.2", "their id=@b", "their id=192.0.2.2 becomes their id=@b"),
    ("my_ip=unset", "my_ip=10.9.9.9", "my_ip=unset becomes my_ip=10.9.9.9"),
    (":   conn serial", ":   nat-traversal: encaps:yes;\n:   conn serial", "the numbers of settings differ"),
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
    text = ipsec.changed_fields(old.definition(section, in_use=False), new.definition(section, in_use=False))
    assert text == "2 pairs of networks become 1"


#: Status lines of Child SAs that use IKE SA #1, which belongs to `owner`.
STATES = {
    "4.3": '#{}: "{}":500 STATE_V2_ESTABLISHED_CHILD_SA (IPsec SA established); EVENT_SA_REKEY in 9s; isakmp#1; idle;',
    "4.10": '#{}: "{}":500 STATE_V2_ESTABLISHED_CHILD_SA (established Child SA); REKEY in 9s; IKE SA #1; idle;',
    "5.2": '#{}: "{}":500 ESTABLISHED_CHILD_SA (established Child SA); REKEY in 9s; newest; IKE SA #1; idle;',
    "IKEv1": '#{}: "{}":500 STATE_QUICK_I2 (IPsec SA established); REPLACE in 9s; newest; isakmp#1; idle;',
}
OWNER = '#1: "owner":500 ESTABLISHED_IKE_SA (established IKE SA); REKEY in 9s; REPLACE in 9s; newest; idle;'


@pytest.mark.parametrize("form", STATES)
def test_tunnels_on_an_ike_sa_that_ends_are_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [OWNER, STATES[form].format(2, "owner"), STATES[form].format(3, "tunnel"),
             STATES[form].format(4, "several/1x0"),
             STATES[form].format(5, "rw").replace('"rw":500', '"rw"[1] 192.0.2.9:500'),
             STATES[form].format(6, "changed")]
    monkeypatch.setattr(ipsec, "pluto_status", lambda host, timeout: iter(lines))
    reload = ipsec.Reload.__new__(ipsec.Reload)
    reload.host, reload.timeout = ipsec.Host({}), 1.0
    changed = ipsec.Step("~", "changed", "another address pool", loads=True)
    replaced, deleted = ipsec.Step("~", "owner", "x", loads=True), ipsec.Step("-", "owner", "x")
    only_started = ipsec.Step("~", "owner", "auto=start is set, but the connection is down", "start")
    others = {} if form == "IKEv1" else {"owner": {"tunnel": True, "several": True, "rw": False}}
    assert reload.interrupted([replaced, changed]) == reload.interrupted([deleted, changed]) == others
    assert reload.interrupted([changed]) == reload.interrupted([only_started]) == {}


@pytest.mark.parametrize(("name", "parts"), [("a/1x0", ("a", "1x0")), ("a/b/1x2", ("a/b", "1x2")), ("a", ("a", "")),
                                             ("a/b", ("a/b", "")), ("a/x", ("a/x", "")), ("a/1x", ("a/1x", "")),
                                             ("1x2", ("1x2", ""))])
def test_the_part_of_a_name(name: str, parts: tuple[str, str]) -> None:
    assert ipsec.split_part(name) == parts


def test_only_the_usual_steps_are_always_counted() -> None:
    assert ipsec.step_counts([]) == "0 added, 0 replaced, 0 deleted"
    steps = [ipsec.Step(mark, "a", "") for mark in "+~~!?"]
    assert ipsec.step_counts(steps) == "1 added, 2 replaced, 0 deleted, 1 refused, 1 unknown"


def test_a_connection_that_addconn_refuses_with_status_0_is_refused(monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """As 4.3, 4.10 and 5.2 do for a bad subnet or an unknown word in authby=."""
    ran = ipsec.Ran(0, b"", b"connection authby= value is unknown\n\nconn a did not load properly\n")
    reload = object.__new__(ipsec.Reload)
    reload.host = ipsec.Host({})
    monkeypatch.setattr(reload, "load", lambda *_: ran)
    assert not reload.apply(ipsec.Step("+", "a", "auto=add", "add", loads=True))
    assert "authby= value is unknown" in capsys.readouterr().err
    assert ipsec.addconn_refuses(ran, "a") and not ipsec.addconn_refuses(ran, "b")
    reload.refused = {"a"}
    monkeypatch.setattr(reload, "loads_without_pool", lambda _: False)
    for name, who in (("a", "addconn finds an error"), ("b", "pluto refuses")):
        step = reload.compare(ipsec.Conn(ipsec.Section(name, "c", 1, [])), loaded(ADDED), None)
        assert step is not None and step.mark == "!" and step.text.startswith(who)


def test_a_connection_that_pluto_does_not_delete_is_told(monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    reload = object.__new__(ipsec.Reload)
    reload.host = ipsec.Host({})
    for status in (0, 33):
        monkeypatch.setattr(reload, "whack", lambda *_, status=status: ipsec.Ran(status, b"", b"pluto is gone\n"))
        assert reload.apply(ipsec.Step("-", "a", "not in ipsec.conf")) is (status == 0)
    assert "pluto is gone" in capsys.readouterr().err


def test_a_copy_without_its_pool_has_only_keywords_of_every_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libreswan up to 4.7 knows salifetime= and not ipsec-lifetime=, the name of the same setting in later releases."""
    reload = object.__new__(ipsec.Reload)
    copies: list[str] = []

    def load_copies(lines: list[str], names: list[str]) -> dict[str, ipsec.Loaded]:
        copies.extend(lines)
        return {names[0]: loaded(ADDED)}

    monkeypatch.setattr(reload, "load_copies", load_copies)
    assert not reload.loads_without_pool(conn(ikev2="yes")) and not copies
    assert reload.loads_without_pool(conn(**{"leftaddresspool": "10.9.0.0/24", "ipsec-lifetime": "1h", "mark": "1"}))
    assert copies[1:] == ["\tsalifetime=1h", "\tmark=1"]


def test_the_help_says_what_a_dry_run_prints() -> None:
    assert "print the plan, but change no connection" in " ".join(ipsec.describe(ipsec.COMMANDS["reload"]).split())
