# SPDX-License-Identifier: GPL-2.0-or-later
"""`ipsec tunnels`: what a status says of the tunnels, as a table of any width, and again and again."""
from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipsec
from tests.ground.listener import Listener

STATUS = """000 pluto_version=5.2, pluto_vendorid=x
000 Connection list:
000 "dead": 10.1.0.0/24===192.0.2.1...192.0.2.7===10.7.0.0/24; unrouted; my_ip=unset;
000 "dead":   host: oriented; local: 192.0.2.1; remote: 192.0.2.7;
000 "dead":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+UP;
000 "dead":   routing: unrouted;
000 "hq": 10.1.0.0/24===192.0.2.1[@west]...192.0.2.2[@east]===10.2.0.0/24; routed-tunnel; my_ip=unset;
000 "hq": 10.1.0.0/24===192.0.2.1[@west]...192.0.2.2[@east]===10.3.0.0/24; routed-tunnel; my_ip=unset;
000 "hq":   host: oriented; local: 192.0.2.1; remote: 192.0.2.2; established IKE SA: #1;
000 "hq":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+UP+MOBIKE;
000 "hq":   our idtype: ID_FQDN; our id=@west; their idtype: ID_FQDN; their id=@east
000 "hq":   routing: routed-tunnel; owner: Child SA #2; established IKE SA: #1; established Child SA: #2;
000 "hq":   IKEv2 algorithm newest: AES_GCM_16_256-HMAC_SHA2_512-DH19
000 "hq":   ESP algorithm newest: AES_GCM_16_256-NONE; pfsgroup=<Phase1>
000 "rw": 192.0.2.1[@west]...%any[@rw]; unrouted; my_ip=unset;
000 "rw":   host: oriented; local: 192.0.2.1; remote: %any;
000 "rw":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
000 "rw"[1]: 192.0.2.1[@west]...198.51.100.7[@rw]; routed-tunnel; my_ip=unset;
000 "rw"[1]:   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS;
000 "rw"[1]:   routing: routed-tunnel; established IKE SA: #3; established Child SA: #4;
000 "trap": 192.0.2.1...192.0.2.9; routed-ondemand; my_ip=unset;
000 "trap":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+ROUTE;
000 #1: "hq":4500 ESTABLISHED_IKE_SA (established IKE SA); REKEY in 28167s; REPLACE in 28798s; newest; idle;
000 #2: "hq":4500 ESTABLISHED_CHILD_SA (established Child SA); REKEY in 7260s; REPLACE in 28798s; newest; eroute owner; IKE SA #1; idle;
000 #4: "rw"[1] 198.51.100.7:TCP/4500 ESTABLISHED_CHILD_SA (established Child SA); EXPIRE in 60s; newest; IKE SA #3; idle;
000 #5: "dead":500 PARENT_I1 (sent IKE_SA_INIT request); RETRANSMIT in 9s; idle;
"""  # noqa: E501
TRAFFIC = """006 #2: "hq", type=ESP, add_time=1700000000, inBytes=3000, outBytes=31457280, maxBytes=2^63B, id='@east'
006 #4: "rw"[1] 198.51.100.7, username=ann, type=ESP, add_time=1700000000, inBytes=5, outBytes=0, id='@rw'
"""


@pytest.fixture
def pluto(tmp_path: Path) -> Iterator[str]:
    """The control socket of a pluto with these tunnels."""
    def answer(link: socket.socket) -> None:
        is_status = link.recv(16384) == ipsec.basic_message(ipsec.BASIC_STATUS)
        link.sendall((STATUS if is_status else TRAFFIC).encode())

    path = str(tmp_path / "pluto.ctl")
    listener = Listener(path, answer)
    yield path
    listener.close()


def run(pluto: str, *words: str, conf: str = "/nonexistent", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ipsec tunnels` with the words."""
    return subprocess.run([sys.executable, ipsec.__file__, "--config", conf, "tunnels", "--ctlsocket", pluto, *words],
                          env={"PATH": "/usr/bin", **env}, capture_output=True, text=True, timeout=60)


def test_json_has_what_the_status_says(pluto: str) -> None:
    result = run(pluto, "--json")
    tunnels = {f"{row['name']}{row['instance']}": row for row in json.loads(result.stdout)["tunnels"]}
    assert result.returncode == 1  # "dead" should be up
    assert {name: row["state"] for name, row in tunnels.items()} == {
        "dead": "connecting", "hq": "up", "rw": "ready", "rw[1]": "up", "trap": "routed"}
    hq, rw = tunnels["hq"], tunnels["rw[1]"]
    assert (hq["bytes_in"], hq["bytes_out"], hq["since"], hq["rekey_in"]) == (3000, 31457280, 1700000000, 7260)
    assert (hq["local_networks"], hq["remote_networks"]) == (["10.1.0.0/24"], ["10.2.0.0/24", "10.3.0.0/24"])
    assert (hq["marks"], hq["remote_id"], hq["ike_version"]) == (["MOBIKE", "NAT-T"], "@east", 2)
    assert (hq["ipsec_algorithm"], hq["ike_algorithm"]) == ("AES_GCM_16_256", "AES_GCM_16_256-HMAC_SHA2_512-DH19")
    assert (rw["marks"], rw["username"], rw["rekey_in"], rw["ends_in"]) == (["TCP"], "ann", None, 60)
    assert tunnels["dead"]["problem"] == "sent IKE_SA_INIT request" and tunnels["dead"]["bytes_in"] is None
    assert tunnels["rw"]["peers"] == 1


@pytest.mark.parametrize("columns", [72, 80, 100, 200])
def test_the_table_fits_any_width(pluto: str, columns: int) -> None:
    result = run(pluto, COLUMNS=str(columns))
    assert max(map(len, result.stdout.splitlines())) <= columns and "\x1b" not in result.stdout
    assert "5 tunnels: 2 up, 1 connecting that should be up, 1 routed, 1 ready" in result.stdout
    assert ("@east  IKEv2" in re.search("^hq.*$", result.stdout, re.M)[0]) == (columns == 200)  # type: ignore[index]
    assert {"2.9K", "30M", "2h01m", "end 1m"} <= set(re.split("  +|\n", result.stdout))


@pytest.mark.parametrize("columns", ["", "0", "x", pytest.param("1" * 5000, id="5000 digits")])
def test_a_bad_number_of_columns_is_ignored(columns: str) -> None:
    host = ipsec.Host({"COLUMNS": columns})
    assert host.columns == host.terminal_size()[0]


def test_a_wide_table_is_as_wide_as_its_text() -> None:
    """The numbers stay beside the networks; the notes are the last column, and continue below it."""
    rows = [ipsec.TunnelRow("hq"), ipsec.TunnelRow("away")]
    for row in rows:
        row.local_networks, row.remote_networks, row.remote_id = ["10.1.0.0/24"], ["10.2.0.0/24"], "CN=gateway"
    rows[0].marks = ["mark"] * 30
    heading, hq, more, *_, away, _ = ipsec.TunnelTable(200, 0).lines(rows)
    assert heading.index("IN") < 60
    assert hq.index("CN=gateway") == away.index("CN=gateway") == more.index("mark") < 80
    assert max(map(len, (hq, more))) <= 200


def test_a_long_name_takes_no_room_from_the_networks() -> None:
    rows = [ipsec.TunnelRow("hq"), ipsec.TunnelRow("branch-office-with-a-long-name")]
    heading, _, name, *_ = ipsec.TunnelTable(80, 0).lines(rows)
    assert heading.startswith("NAME  STATE") and name == "branch-office-with-a-long-name"


def test_notes_about_what_fails_are_not_dimmed() -> None:
    row = ipsec.TunnelRow("hq")
    row.state, row.wanted, row.problem = "down", True, "no local address"
    assert "  no local address" in ipsec.TunnelTable(80, 0, colour=True).lines([row])
    row.wanted = False
    assert "\x1b[2m  no local address\x1b[0m" in ipsec.TunnelTable(80, 0, colour=True).lines([row])


def test_one_connection_or_instance(pluto: str) -> None:
    result = run(pluto, "rw[1]")
    assert result.returncode == 0 and result.stdout.startswith("rw[1]\n") and "ann" in result.stdout
    assert "hq" not in result.stdout and "#4" in result.stdout
    assert run(pluto, "hp").returncode == 21


def test_what_should_be_loaded_and_is_not_is_down(pluto: str, tmp_path: Path) -> None:
    (tmp_path / "ipsec.conf").write_text("conn hq\n\tauto=start\nconn new\n\tauto=start\nconn old\n\tauto=add\n")
    result = run(pluto, "--json", conf=str(tmp_path / "ipsec.conf"))
    missing, = (row for row in json.loads(result.stdout)["tunnels"] if row["problem"] == "not loaded")
    assert (missing["name"], missing["state"], missing["wanted"]) == ("new", "down", True)


def test_no_pluto(tmp_path: Path) -> None:
    result = run(str(tmp_path / "pluto.ctl"))
    assert result.returncode == 33 and "Pluto is not running" in result.stderr and not result.stdout


class Terminal:
    """`ipsec tunnels --watch` on a terminal of its own."""

    def __init__(self, pluto: str, **env: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, ipsec.__file__, "--config", "/nonexistent", "tunnels",
                                       "--watch", "0.1", "--ctlsocket", pluto],
                      {"TERM": "xterm", "COVERAGE_PROCESS_START": "", **env})
        self.output = ""

    def wait_for(self, text: str, count: int = 1) -> None:
        """Read until the text has come that often, or the end."""
        while self.output.count(text) < count and select.select([self.fd], [], [], 60)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return
            self.output += data.decode()

    def press(self, key: str) -> int:
        """Press a key, and return the exit status."""
        os.write(self.fd, key.encode())
        self.wait_for("\x00")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_watch_redraws_until_a_key_and_restores_the_terminal(pluto: str, key: str) -> None:
    terminal = Terminal(pluto)
    terminal.wait_for("5 tunnels", 3)
    assert terminal.press(key) == 1
    assert terminal.output.startswith("\x1b[?1049h\x1b[?25l") and terminal.output.endswith("\x1b[?25h\x1b[?1049l")
    assert "\x1b[32mUP" in terminal.output and "\x1b[2J" not in terminal.output


def test_no_color(pluto: str) -> None:
    terminal = Terminal(pluto, NO_COLOR="1")
    terminal.wait_for("5 tunnels")
    assert terminal.press("q") == 1
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.output)


def test_watch_without_a_terminal_appends_and_ends_with_its_reader(pluto: str) -> None:
    with subprocess.Popen([sys.executable, ipsec.__file__, "--config", "/nonexistent", "tunnels", "--watch=0.1",
                           "--ctlsocket", pluto], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as watch:
        assert watch.stdout
        seen = 0
        while seen < 2:
            seen += watch.stdout.readline().startswith("5 tunnels")
        watch.stdout.close()
        assert watch.wait(60) == -13
