# SPDX-License-Identifier: GPL-2.0-or-later
"""`ipsec metrics`: Prometheus' text format, labels that join, counters that only grow."""
from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipsec
from tests.ground.listener import Listener

CONNECTIONS = """000 pluto_version=5.2, pluto_vendorid=x
000 "hq": 10.1.0.0/24===192.0.2.1[@west]...192.0.2.2[@east]===10.2.0.0/24; routed-tunnel; my_ip=unset;
000 "hq":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+UP;
000 "hq":   our idtype: ID_FQDN; our id=@west; their idtype: ID_DER_ASN1_DN; their id=CN="a\\b"
000 "hq":   routing: routed-tunnel; established IKE SA: #1; established Child SA: #{serial};
000 "off": 10.1.0.0/24===192.0.2.1...192.0.2.9===10.9.0.0/24; unrouted; my_ip=unset;
000 "off":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
000 "off":   routing: unrouted;
000 "rw": 192.0.2.1[@west]...%any[@rw]; unrouted; my_ip=unset;
000 "rw":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
000 "rw"[1]: 192.0.2.1[@west]...198.51.100.7[@rw]; routed-tunnel; my_ip=unset;
000 "rw"[1]:   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
000 "rw"[1]:   our idtype: ID_FQDN; our id=@west; their idtype: ID_FQDN; their id=@rw
000 "rw"[1]:   routing: routed-tunnel; established IKE SA: #3; established Child SA: #4;
000 #1: "hq":500 ESTABLISHED_IKE_SA (established IKE SA); REKEY in 28167s; newest; idle;
"""
STATE = '000 #{0}: "hq":500 ESTABLISHED_CHILD_SA (established Child SA); REKEY in 9s; IKE SA #1; idle;\n'
TRAFFIC = '006 #{}: "hq", type=ESP, add_time=1700000000, inBytes={}, outBytes={}, id=\'@east\'\n'
RW = '006 #4: "rw"[1] 198.51.100.7, username=ann, type=ESP, add_time=1700000000, inBytes=5, outBytes=6, id=\'@rw\'\n'


class Gateway:
    """A control socket that answers as pluto, with the IPsec SAs that the test gives: serial number, bytes in, out."""

    def __init__(self, directory: Path) -> None:
        self.sas = [(2, 3000, 1000)]
        self.details = ""  # more status lines of these SAs
        self.host = ipsec.Host({}, ctlsocket=str(directory / "pluto.ctl"), nssdir=str(directory),
                               conf="/nonexistent")
        self.listener = Listener(self.host.ctlsocket, self._answer)

    def _answer(self, link: socket.socket) -> None:
        text = RW + "".join(TRAFFIC.format(*sa) for sa in self.sas)
        if link.recv(16384) == ipsec.basic_message(ipsec.BASIC_STATUS):
            text = CONNECTIONS.format(serial=self.sas[-1][0]) + "".join(STATE.format(*sa) for sa in self.sas)
            text += self.details
        link.sendall(text.encode())

    def metrics(self, state: bool = True) -> str:
        """Return what `ipsec metrics` prints."""
        name = os.path.join(os.path.dirname(self.host.ctlsocket), "metrics.state") if state else ""
        return ipsec.metrics_text(ipsec.metric_families(self.host, 30, name))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.listener.close()


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of each series by name and labels; the text must be in the format, each series once."""
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if comment := re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line):
            if comment[1] == "TYPE":
                assert comment[2] not in kinds
                kinds[comment[2]] = comment[3]
            continue
        sample = re.fullmatch(r'([a-z_]+)(?:\{((?:[a-z_0-9]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (-?\d+)', line)
        assert sample, line
        labels = frozenset(re.findall(r'([a-z_0-9]+)="((?:[^"\\]|\\.)*)"', sample[2] or ""))
        assert (sample[1], labels) not in values, line
        assert list(kinds)[-1] == sample[1] and kinds[sample[1]] in ("gauge", "counter")
        assert sample[1].endswith("_total") == (kinds[sample[1]] == "counter")
        values[sample[1], labels] = float(sample[3])
    return values


def value(text: str, name: str, **labels: str) -> float | None:
    """Return the value of the only series of that name that has the labels; None if there is none."""
    values = [number for (family, pairs), number in series(text).items()
              if family == name and set(labels.items()) <= pairs]
    assert len(values) < 2
    return values[0] if values else None


def test_all_families_of_connections_have_the_same_labels(gateway: Gateway) -> None:
    text = gateway.metrics()
    for name, labels in series(text):
        if name.startswith("ipsec_connection_") and name != "ipsec_connection_info":
            assert {key for key, _ in labels} == {"connection", "instance", "remote"}
    assert value(text, "ipsec_connection_up", connection="hq", instance="", remote="192.0.2.2") == 1
    assert value(text, "ipsec_connection_up", connection="off") == 0
    assert value(text, "ipsec_connection_wanted", connection="off") == 0
    assert value(text, "ipsec_connection_up", connection="rw") == 1  # the instance; the template has no series
    assert value(text, "ipsec_connection_info", connection="rw", instance="[1]", username="ann", remote_id="@rw") == 1
    assert value(text, "ipsec_connection_info", connection="hq", remote_id='CN=\\"a\\\\b\\"') == 1
    assert value(text, "ipsec_connection_in_bytes_total", connection="off") is None
    assert value(text, "ipsec_pluto_start_time_seconds") == int(os.stat(gateway.host.ctlsocket).st_mtime)


def test_a_sum_counts_nothing_twice(gateway: Gateway) -> None:
    text = gateway.metrics()
    sums = {name: sum(number for (family, _), number in series(text).items() if family == name)
            for name in ("ipsec_connections", "ipsec_ike_sas", "ipsec_child_sas")}
    assert sums == {"ipsec_connections": 4, "ipsec_ike_sas": 1, "ipsec_child_sas": 1}


@pytest.mark.parametrize("state", [True, False])
def test_a_rekey_changes_no_series_and_loses_no_bytes(gateway: Gateway, state: bool,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # ipsec_connection_idle_seconds stays the same
    before = gateway.metrics(state)
    gateway.sas = [(2, 3500, 1000), (5, 10, 20)]  # both SAs live for a moment
    during = gateway.metrics(state)
    assert value(during, "ipsec_connection_in_bytes_total", connection="hq") == 3510
    assert value(during, "ipsec_connection_child_sas", connection="hq") == 2
    gateway.sas = [(5, 100, 200)]
    after = gateway.metrics(state)
    assert value(after, "ipsec_connection_in_bytes_total", connection="hq") == (3600 if state else 100)
    assert value(after, "ipsec_connection_out_bytes_total", connection="hq") == (1200 if state else 200)
    labels = [{key for key in series(text) if "bytes" in key[0] or "up" in key[0]} for text in (before, during, after)]
    assert labels[0] == labels[1] == labels[2]
    assert gateway.metrics(state) == gateway.metrics(state)  # and is not counted again


def test_only_a_tunnel_that_is_up_has_the_time_when_it_was_set_up(gateway: Gateway) -> None:
    """The row of a tunnel that is down can have the time of its failure."""
    tunnels = ipsec.MeteredTunnels(gateway.host, 30)
    for row in tunnels.rows:
        row.since = 1700000000
    families = {name: rows for name, _, _, rows in
                ipsec.tunnel_families(tunnels, ipsec.Ledger(gateway.host, "", 0), {}, 1700000100)}
    times = families["ipsec_connection_established_time_seconds"]
    assert [labels["connection"] for labels, _ in times] == ["hq", "rw"]


def test_counters_do_not_begin_again_at_4_gib(gateway: Gateway) -> None:
    """Up to 4.15, trafficstatus has the bytes modulo 2^32; `ipsec tunnels` shows the same number as the metrics."""
    gateway.sas = [(2, 7, 6 << 20)]
    gateway.details = ('000 #2: "hq" esp.1234abcd@192.0.2.2 esp.2234abcd@192.0.2.1 Traffic: ESPin=8192MB ESPout=6MB! '
                       'ESPmax=0B \n')
    assert value(gateway.metrics(), "ipsec_connection_in_bytes_total", connection="hq") == (2 << 32) + 7
    assert value(gateway.metrics(), "ipsec_connection_out_bytes_total", connection="hq") == 6 << 20
    row, = (row for row in ipsec.Tunnels(gateway.host, 30).rows if row.name == "hq")
    assert (row.bytes_in, row.bytes_out) == ((2 << 32) + 7, 6 << 20)


def test_another_pluto_and_a_spoilt_file_start_from_zero(gateway: Gateway) -> None:
    gateway.metrics()
    kept = Path(gateway.host.ctlsocket).with_name("metrics.state")
    gateway.sas = [(9, 1, 1)]
    kept.write_text(kept.read_text().replace("live\t2", "live\tx"))
    assert value(gateway.metrics(), "ipsec_connection_in_bytes_total", connection="hq") == 1
    os.utime(gateway.host.ctlsocket, (7, 7))
    gateway.sas = [(2, 4, 4)]
    assert value(gateway.metrics(), "ipsec_connection_in_bytes_total", connection="hq") == 4


def test_where_nothing_can_be_kept_the_live_sas_count(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    text = ipsec.metrics_text(ipsec.metric_families(gateway.host, 30, "/nonexistent/metrics.state"))
    assert value(text, "ipsec_connection_in_bytes_total", connection="hq") == 3000
    assert "/nonexistent/metrics.state: No such file" in capsys.readouterr().err


def test_a_certificate_that_can_t_be_parsed_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(der: bytes) -> ipsec.Parsed:
        if der != b"good":
            raise ValueError
        return ipsec.Parsed("CN=gw", "CN=ca", 0, 1800000000, False)

    certificates = [ipsec.Certificate(name, name.encode(), ",,", True) for name in ("bad", "good")]
    monkeypatch.setattr(ipsec, "parse_certificate", parsed)
    monkeypatch.setattr(ipsec.NssDatabase, "check", lambda base: None)
    monkeypatch.setattr(ipsec.NssDatabase, "certificates", lambda base: certificates)
    labels = {"nickname": "good", "subject": "CN=gw", "ca": "no"}
    assert ipsec.certificate_expiry(ipsec.Host({}, root=str(tmp_path))) == [(labels, 1800000000)]


def test_no_pluto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = ipsec.Host({}, ctlsocket=str(tmp_path / "none"), nssdir=str(tmp_path))
    text = ipsec.metrics_text(ipsec.metric_families(host, 30, ""))
    assert value(text, "ipsec_up") == 0 and "Pluto is not running" in capsys.readouterr().err
    assert not [name for name, _ in series(text) if name.startswith("ipsec_connection")]
