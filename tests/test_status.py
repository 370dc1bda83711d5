# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader of status text: every form of line, of every release, becomes data or stays in `unparsed`."""
from __future__ import annotations

from typing import Any

import pytest

import ipsec


def only(line: str, kind: str) -> dict[str, Any]:
    """The one entry of a kind that a line makes."""
    data = ipsec.StatusReader().read([line])
    assert data["unparsed"] == []
    entry, = data[kind]
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize(("line", "wanted"), [
    ('#7: "site":500 STATE_QUICK_R2 (IPsec SA established); EVENT_SA_REPLACE in 90s; newest IPSEC; eroute owner; '
     'isakmp#6; idle; import:not set',
     {"type": "child", "port": 500, "ike_sa": 6, "newest": True, "owner": True, "events": {"replace": 90}}),
    ('#8: "site":500 STATE_V2_IPSEC_I (IPsec SA established); EVENT_SA_REPLACE in  80s; isakmp#0; idle',
     {"type": "child", "ike_sa": None, "newest": False, "events": {"replace": 80}}),
    ('#4: "rw"[2] 198.51.100.7:4500 STATE_V2_ESTABLISHED_CHILD_SA (established Child SA); REKEY in 5s; newest; '
     'IKE SA #3; idle;', {"type": "child", "instance": "[2]", "remote": "198.51.100.7", "port": 4500, "ike_sa": 3}),
    ('#3: "rw"[2] 2001:db8::7:TCP/4500 established IKE SA; NAT_KEEPALIVE in 9s; REKEY in 60s; newest; idle;',
     {"type": "ike", "remote": "2001:db8::7", "port": 4500, "transport": "TCP", "state": None,
      "description": "established IKE SA", "events": {"nat_keepalive": 9, "rekey": 60}}),
    ('#2: "old":500 IPsec SA established; REPLACE in 60s; newest; eroute owner; ISAKMP SA #1; idle;',
     {"type": "child", "established": True, "ike_sa": 1}),
    ('#2: "c":500 REKEY_IKE_I1 (sent CREATE_CHILD_SA request to rekey IKE SA); idle;',
     {"type": "ike", "established": False}),
    ('#9: "c"[1][3] 198.51.100.7:500 sent CREATE_CHILD_SA request for new IPsec SA; RETRANSMIT in -1s; idle;',
     {"type": "child", "instance": "[1][3]", "events": {"retransmit": -1}}),
])
def test_states_of_every_generation(line: str, wanted: dict[str, Any]) -> None:
    state = only(line, "states")
    assert {key: state[key] for key in wanted} == wanted


@pytest.mark.parametrize(("middle", "instance", "remote", "clients"), [
    ("", "", None, (None, None)), ("[1] 198.51.100.7", "[1]", "198.51.100.7", (None, None)),
    ("[1] ...198.51.100.7", "[1]", "198.51.100.7", (None, None)),
    ("[1] 10.9.0.1/32=== ...2001:db8::7", "[1]", "2001:db8::7", ("10.9.0.1/32", None)),
    ("[3] ...198.51.100.7==={10.9.0.1/32}", "[3]", "198.51.100.7", (None, "10.9.0.1/32")),
])
@pytest.mark.parametrize("ending", ["", ", id='CN=a, O=b'", ", id='@x', lease=10.9.0.1/32,2001:db8::/128"])
def test_traffic_of_instances(middle: str, instance: str, remote: str | None, clients: tuple[str | None, str | None],
                              ending: str) -> None:
    line = f'#2: "private#10.0.0.0/8"{middle}, type=ESP, add_time=1700000000, inBytes=5000, outBytes=0{ending}'
    entry = only(line, "traffic")
    assert (entry["connection"], entry["instance"], entry["remote"]) == ("private#10.0.0.0/8", instance, remote)
    assert (entry.get("local_client"), entry.get("remote_client")) == clients
    assert (entry["bytes_in"], entry["bytes_out"], entry["added"]) == (5000, 0, 1700000000)
    assert entry["bytes_max"] is None


def test_rounded_bytes_are_about_and_trafficstatus_has_them_exactly() -> None:
    line = '#2: "c" esp.1234abcd@192.0.2.2 esp.2234abcd@192.0.2.1 Traffic: AHin=4KB ESPin=4KB ESPout=12B! ESPmax=2^63B'
    state = only(line, "states")
    assert (state["bytes_in"], state["bytes_in_about"], state["bytes_out"]) == (None, 4096, 12)
    assert "bytes_out_about" not in state and len(state["spis"]) == 2
    exact = {2: {"bytes_in": 4200, "bytes_out": 12, "bytes_max": None, "added": 1700000000}}
    state, = ipsec.StatusReader(exact=exact).read([line])["states"]
    assert (state["bytes_in"], state["since"]) == (4200, 1700000000) and "bytes_in_about" not in state


def shown_bytes(count: int) -> str:
    """Return a number of bytes as pluto's status shows it, rounded down."""
    if count < 1 << 10:
        return f"{count}B"
    if count < 1 << 20:
        return f"{count >> 10}KB"
    return f"{count >> 20}MB"


def test_bytes_above_4_gib_are_complete() -> None:
    """Up to 4.15, trafficstatus has the bytes modulo 2^32."""
    line = '#2: "c" esp.1234abcd@192.0.2.2 esp.2234abcd@192.0.2.1 Traffic: ESPin={} ESPout=0B ESPmax=0B'
    for count in (0, 700, 1 << 20, (1 << 32) - 1, 1 << 32, (1 << 32) + 5, (7 << 32) - 1, (3 << 32) + (1 << 31) + 7):
        for low in (count, count & 0xffffffff):  # 5.x, earlier
            exact = {2: {"bytes_in": low, "bytes_out": 0, "bytes_max": None, "added": 1700000000}}
            state, = ipsec.StatusReader(exact=exact).read([line.format(shown_bytes(count))])["states"]
            assert (state["bytes_in"], state["bytes_out"], state["bytes_max"]) == (count, 0, None)
    assert ipsec.whole_count(5000, 4096) == 5000 and ipsec.whole_count(None, 4096) is None
    assert ipsec.whole_count(1 << 33, 1 << 20) == 1 << 33  # the SA carried bytes after the status was read


@pytest.mark.parametrize(("ending", "username", "peer", "lease"), [
    (", id='O=a', lease=b'", None, "O=a', lease=b", None),
    (", id='O=a', lease=b', lease=10.9.0.1/32", None, "O=a', lease=b", "10.9.0.1/32"),
    (", id='a, type=b'", None, "a, type=b", None), (", lease=10.9.0.1/32,2001:db8::1/128", "ann", None,
                                                    "10.9.0.1/32,2001:db8::1/128"),
    ("", "smith, ann", None, None), (", lease=10.9.0.1/32", "x', type=AH, id='y", None, "10.9.0.1/32")])
def test_names_that_a_peer_can_choose(ending: str, username: str | None, peer: str | None, lease: str | None) -> None:
    user = f", username={username}" if username else ""
    entry = only(f'#2: "c"{user}, type=ESP, add_time=5, inBytes=7, outBytes=8, maxBytes=0B{ending}', "traffic")
    assert (entry["username"], entry["id"], entry["lease"], entry["type"]) == (username, peer, lease, "ESP")
    assert (entry["bytes_in"], entry["bytes_out"], entry["bytes_max"], entry["added"]) == (7, 8, None, 5)


def test_an_sa_without_esp_has_no_time() -> None:
    """Pluto prints the time of ESP, which is 0 for AH and IPCOMP."""
    traffic = only("#2: \"c\", type=AH, add_time=0, inBytes=84, outBytes=84, id='@e'", "traffic")
    assert traffic["added"] is None
    lines = ['"c": 192.0.2.1...192.0.2.2; routed-tunnel;', '"c":   established Child SA: #2;']
    connection, = ipsec.StatusReader(exact={2: traffic}).read(lines)["connections"]
    assert (connection["up"], connection["since"]) == (True, None)


@pytest.mark.parametrize(("line", "wanted"), [
    ("global periodic timer EVENT_CHECK_CRLS is scheduled for 3600 (in 3500.123 seconds)", ("EVENT_CHECK_CRLS", 3500)),
    ("global periodic timer EVENT_SD_WATCHDOG is scheduled for 1795765260 (in 1795765096.863496 seconds)",
     ("EVENT_SD_WATCHDOG", None)),
    ("signal event handler PLUTO_SIGCHLD", ("PLUTO_SIGCHLD",)),
    ("event PLUTO_CTL is not timer based", ("PLUTO_CTL",)),
    ("event netlink messages is not timer based", ("netlink messages",)),
    ("event EVENT_REINIT_SECRET is schd: 3600 (in 3500s)", ("EVENT_REINIT_SECRET", 3500)),
    ('event EVENT_SA_REPLACE is schd: 90 (in 70s) "hq"[1] 192.0.2.7  #3', ("EVENT_SA_REPLACE", 70, "hq", 3)),
    ('event REKEYschd: 90 (in -2s) "a is b"  #3', ("REKEY", -2, "a is b", 3)),
    ('event REKEY schd: 90s (in 70s) "private#10.0.0.0/8"[1] ...192.0.2.7 #12: ', ("REKEY", 70, "private#10.0.0.0/8",
                                                                                 12))])
def test_events(line: str, wanted: tuple[object, ...]) -> None:
    data = ipsec.StatusReader().read(["it is now: 1234 seconds since monotonic epoch", line])
    entry, = data["lists"]["events"]
    assert entry["text"] == line.strip() and data["unparsed"] == []
    assert tuple(entry[key] for key in ("event", "in", "connection", "serial") if key in entry) == wanted


@pytest.mark.parametrize("line", [
    '#2: "c", [...]', "#2: \"c\", type=ESP, add_time=5, id='cut", '#2: "c" --- cut ---', "#²: x", '#2: "c", type=ESP,'])
def test_a_cut_line_makes_no_entry(line: str) -> None:
    data = ipsec.StatusReader().read([line])
    assert data["unparsed"] == [line] and not data["states"] and not data["traffic"]


def test_ends_of_a_connection() -> None:
    text = ('"c": 10.1.0.0/24/UDP/53===192.0.2.1:4500[O=a;b...c]---192.0.2.9...%any[@x]==={10.9.0.1-10.9.0.99}; '
            'unrouted; my_ip=unset;')
    entry = only(text, "connections")
    assert entry["local"] == {"host": "192.0.2.1", "subnet": "10.1.0.0/24", "id": None, "auth": None, "port": 4500,
                              "protoport": "UDP/53"}
    assert (entry["remote"]["host"], entry["remote"]["subnet"]) == ("%any", None)
    assert (entry["remote"]["pool"], entry["routing"], entry["up"]) == ("10.9.0.1-10.9.0.99", "unrouted", False)


def test_a_template_is_up_when_an_instance_is() -> None:
    lines = ['"rw": 192.0.2.1[@e]...%any[@w]; unrouted; my_ip=unset;', '"rw":   established Child SA: #0;',
             '"rw"[1]: 192.0.2.1[@e]...198.51.100.7[@w]; routed-tunnel; my_ip=unset;',
             '"rw"[1]:   established ISAKMP SA: #1; established IPsec SA: #2;',
             '"z": 192.0.2.1...192.0.2.2; unrouted; my_ip=unset;']
    template, instance, other = ipsec.StatusReader(exact={2: {"added": 9}}).read(lines)["connections"]
    assert (template["up"], template["since"], instance["ike_sa"], other["up"]) == (True, 9, 1, False)
    assert template["instances"] == [{"instance": "[1]", "remote": "198.51.100.7", "up": True}]


@pytest.mark.parametrize(("line", "wanted"), [
    ("interface lo/lo ::1", ("lo", "::1", None, "UDP")),
    ("interface eth0/eth0 192.0.2.1@500", ("eth0", "192.0.2.1", 500, "UDP")),
    ("interface eth0/eth0 2001:db8::1@500", ("eth0", "2001:db8::1", 500, "UDP")),
    ("interface eth0 TCP [2001:db8::1]:4500", ("eth0", "2001:db8::1", 4500, "TCP")),
    ("interface eth0 [2001:db8::1]:UDP/4500 (NAT)", ("eth0", "2001:db8::1", 4500, "UDP")),
])
def test_interfaces(line: str, wanted: tuple[str, str, int | None, str]) -> None:
    entry = only(line, "interfaces")
    assert (entry["name"], entry["address"], entry["port"], entry["protocol"]) == wanted


def test_values_that_hold_separators() -> None:
    lines = ['"c": [2001:db8::1]:4500[@a]...192.0.2.2; unrouted; my_ip=unset;',
             '"c": [2001:db8::1]:4500[@a]...192.0.2.2===10.3.0.0/24; unrouted; my_ip=unset;',
             '"c":   CAs: \'C=CA, O=x; y\'...\'%any\'',
             '"c":   modecfg info: us:server, them:none, modecfg policy:push, dns:192.0.2.53, 2001:db8::53, '
             'domains:a.example, b.example, cat:unset;',
             '"c":   our idtype: ID_DER_ASN1_DN; our id=C=CA, O=a; b...c; their idtype: %any; their id=%fromcert']
    connection, = ipsec.StatusReader().read(lines)["connections"]
    assert connection["local"]["port"] == 4500 and connection["local"]["id"] == "C=CA, O=a; b...c"
    assert connection["selectors"] == [(None, None), (None, "10.3.0.0/24")]
    assert {key: connection["options"][key] for key in ("cas", "modecfg_us", "modecfg_them", "dns", "domains")} == {
        "cas": "'C=CA, O=x; y'...'%any'", "modecfg_us": "server", "modecfg_them": "none",
        "dns": "192.0.2.53, 2001:db8::53", "domains": "a.example, b.example"}
    assert connection["remote"]["id"] == "%fromcert"


@pytest.mark.parametrize(("side", "wanted"), [
    ("192.0.2.1:4500[@a]:17/1701", ("192.0.2.1", 4500, "17/1701")),  # 3.x with leftikeport= and leftprotoport=
    ("192.0.2.1:4500:17/1701", ("192.0.2.1", 4500, "17/1701")),
    ("192.0.2.1<a.example>:4500[C=x]y, +XS]:17/%any", ("192.0.2.1", 4500, "17/%any")),
    ("192.0.2.1:4500<a.example>[@a]", ("192.0.2.1", 4500, "")), ("%dns<a.example>", ("%dns", None, "")),
    ("[2001:db8::1]:4500<a.example>[@a:b]", ("2001:db8::1", 4500, "")),  # 4.x and 5.x
    ("2001:db8::1<a.example>[@a]", ("2001:db8::1", None, "")), ("2001:db8::1:17/0", ("2001:db8::1", None, "17/0")),
    ("2001:db8::1", ("2001:db8::1", None, "")), ("<address>[@a]", ("", None, "")), ("", ("", None, ""))])
def test_hosts_with_port_name_and_protocol(side: str, wanted: tuple[str, int | None, str]) -> None:
    assert ipsec.split_host(side) == wanted


@pytest.mark.parametrize(("line", "name", "value"), [
    ("virtual_private (%priv):", "virtual_private", ""),  # early 3.x
    ("- allowed subnets: 10.0.0.0/8, 172.16.0.0/12", "allowed_subnets", "10.0.0.0/8, 172.16.0.0/12"),
    ("- allowed subnet: 10.0.0.0/8", "allowed_subnets", "10.0.0.0/8"),
    ("- excluded subnet: 10.1.0.0/16", "excluded_subnets", "10.1.0.0/16")])
def test_networks_of_virtual_private(line: str, name: str, value: str) -> None:
    data = ipsec.StatusReader().read([line])
    assert (data["settings"], data["unparsed"]) == ({name: value}, [])


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("text", [
    "10.1.0.0/24===192.0.2.1[@west]", "192.0.2.1", "192.0.2.1[C=a===b]", "192.0.2.1[@a]:17/1701", "192.0.2.1[a]b]",
    "0.0.0.0/0===192.0.2.1[@a]---192.0.2.9", "10.0.0.0/8:UDP/53===192.0.2.1", "%any", "192.0.2.1[@e]===10.2.0.0/24",
    "192.0.2.1[@e]==={10.9.0.1/32}", "192.0.2.1:4500[@a]", "10.1.0.0/24,10.2.0.0/24===192.0.2.1", ""])
def test_the_short_way_for_usual_ends_gives_the_same(text: str, is_remote: bool,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    short = ipsec.read_end(text, is_remote=is_remote)
    monkeypatch.setattr(ipsec, "plain_end", lambda *_, **__: None)
    assert ipsec.read_end(text, is_remote=is_remote) == short


@pytest.mark.parametrize(("line", "wanted"), [
    ('#3: "c":4500(tcp) STATE_V2_ESTABLISHED_IKE_SA (established IKE SA); REKEY in 9s; newest; idle;',
     {"port": 4500, "transport": "TCP", "type": "ike"}),
    ('#3: "rw"[1] 2001:db8::7:4500(tcp) established IKE SA; newest; idle;',
     {"port": 4500, "transport": "TCP", "remote": "2001:db8::7"}),
    ('#4: "rw"[1] 2001:db8::7 used 5s ago; esp.1234abcd@2001:db8::7 esp.2234abcd@2001:db8::1 Traffic: ESPin=5B '
     'ESPout=6B ESPmax=0B username=ann smith',
     {"remote": "2001:db8::7", "bytes_in": 5, "bytes_out": 6, "bytes_max": None, "username": "ann smith"}),
])
def test_states_over_tcp_and_with_the_time_of_their_last_use(line: str, wanted: dict[str, Any]) -> None:
    state = only(line, "states")
    assert {key: state[key] for key in wanted} == wanted


@pytest.mark.parametrize(("text", "wanted"), [
    ('Child SA for "c"', ("c", "", None, None)), ('Phase 2 for "c" replacing #3', ("c", "", None, 3)),
    ('Child SA for "rw"[2] 2001:db8::7 replacing #0', ("rw", "[2]", "2001:db8::7", None))])
def test_pending_negotiations(text: str, wanted: tuple[str, str, str | None, int | None]) -> None:
    entry = only(f"#1: pending {text}", "pending")
    assert (entry["connection"], entry["instance"], entry["remote"], entry["replacing"]) == wanted
    assert (entry["ike_sa"], entry["kind"]) == (1, text.partition(" for ")[0])


def test_connections_are_passed_on_before_their_states() -> None:
    """Otherwise the SAs of the last connection in the status, with all its instances, have no row in `tunnels`."""
    lines = ['"rw": 192.0.2.1...%any; unrouted;', '"rw"[1]: 192.0.2.1...198.51.100.7; routed-tunnel;',
             '#1: "rw"[1] 198.51.100.7:4500 established IKE SA; newest; idle;',
             '#2: "rw"[1] 198.51.100.7:4500 established Child SA; newest; IKE SA #1; idle;']
    seen: list[object] = []
    ipsec.StatusReader({"connections": lambda entry: seen.append(entry["instance"]),
                        "states": lambda entry: seen.append(entry["serial"])}).read(lines)
    assert seen == ["", "[1]", 1, 2]


def test_connections_in_short() -> None:
    lines = ['10.1.0.0/24 <==> 10.2.0.0/24\tfrom 192.0.2.1 to 192.0.2.2 (84B/1KiB)\t"hq", reqid=16389',
             '10.1.0.0/24 <==> 10.3.0.0/24\tfrom 192.0.2.1 to 192.0.2.2 (84B/1KiB)\t"hq", reqid=16389',
             '192.0.2.1 <==> 10.9.0.1/32\tfrom 192.0.2.1 to 198.51.100.7 (0B/0B)\t"rw"[1] 198.51.100.7, reqid=16393',
             "# Total IPsec connections: loaded 3, active 2"]
    data = ipsec.StatusReader().read(lines)
    hq, rw = data["connections"]
    assert data["unparsed"] == [] and data["settings"] == {}
    assert data["totals"] == {"connections": {"loaded": 3, "active": 2}}
    assert hq["selectors"] == [("10.1.0.0/24", "10.2.0.0/24"), ("10.1.0.0/24", "10.3.0.0/24")]
    assert (hq["bytes_in"], hq["bytes_out"], hq["bytes_out_about"], hq["up"]) == (84, None, 1024, None)
    assert (rw["instance"], rw["local"]["subnet"], rw["remote"]["host"]) == ("[1]", None, "198.51.100.7")
    assert (rw["remote"]["subnet"], rw["options"], rw["bytes_in"]) == ("10.9.0.1/32", {"reqid": "16393"}, 0)


def test_values_of_new_options() -> None:
    entry = only('#2: "c", type=ESP(nic-offload=packet), add_time=7, inBytes=5', "traffic")
    assert (entry["type"], entry["bytes_in"], entry["bytes_out"]) == ("ESP", 5, None)
    lines = ['"c": 192.0.2.1...192.0.2.2; unrouted; my_ip=unset;', '"c":   banner:Hello; all: welcome, a=b;']
    connection, = ipsec.StatusReader().read(lines)["connections"]
    assert connection["options"]["banner"] == "Hello; all: welcome, a=b"
    assert ipsec.StatusReader().read(["=what, no key"])["unparsed"] == ["=what, no key"]


@pytest.mark.parametrize("spi", ["", "%", "f57706b00x", "123456789", "²"])
def test_a_garbled_spi_is_left_out(spi: str) -> None:
    lines = ['#2: "c":500 STATE_V2_ESTABLISHED_CHILD_SA (established Child SA); REPLACE in 60s; IKE SA #1; idle;',
             f'#2: "c" esp.{spi}@192.0.2.2 esp.2234abcd@192.0.2.1 Traffic: ESPin=0B ESPout=0B']
    (state,) = ipsec.StatusReader().read(lines)["states"]
    assert [entry["spi"] for entry in state["spis"]] == ["0x2234abcd"]


def test_details_of_a_connection_after_its_end_are_unparsed() -> None:
    """A garbled first line of the next connection ends this one."""
    first = '"c": 192.0.2.1...192.0.2.2; unrouted; eroute owner: #0'
    detail = '"c":   oriented; my_ip=unset; their_ip=unset;'
    reader = ipsec.StatusReader()
    assert reader.read([first, detail])["unparsed"] == []
    reader.finish()
    assert reader.read([detail])["unparsed"] == [detail]
