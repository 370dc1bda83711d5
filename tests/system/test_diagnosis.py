"""Why a connection is down, between two real plutos of each release; up's status, time-out and Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from typing import Callable

import pytest

from ..ground.host import Result
from ..ground.machine import PYZ, Machine, wait_for
from ..ground.pluto import Pluto

SECRET, OTHER = "SwordfishOfWestAndEast", "AnotherFishThatIsNotTheSame"
OLD = {"bullseye": True, "bookworm": True, "trixie": False}


def config(**words: str) -> str:
    """Return an ipsec.conf with the connection `tunnel`, and with templates that pluto says nothing of."""
    conn = {"left": "192.0.2.1", "leftid": "@west", "leftsubnet": "10.1.0.0/24", "right": "192.0.2.2",
            "rightid": "@east", "rightsubnet": "10.2.0.0/24", "authby": "secret", "ikev2": "insist",
            "retransmit-timeout": "3s", "auto": "add", **words}
    lines = "".join(f"\t{key}={value}\n" for key, value in conn.items())
    return (f"config setup\n\tlogfile=/var/log/pluto.log\nconn tunnel\n{lines}"
            "conn template\n\tleft=192.0.2.1\n\tright=%any\n\tauthby=secret\n\tauto=add\n")


class Pair:
    """West and east with a wire between them, and a pluto on each once `start` was called."""

    def __init__(self, west: Machine, east: Machine, pluto: Callable[..., Pluto]) -> None:
        self.west, self.east, self._pluto = west, east, pluto
        west.link(east, "192.0.2.1/24", "192.0.2.2/24")

    def start(self, west: str = "", east: str = "", *, key: str = SECRET) -> None:
        """Start both plutos; `key` is the pre-shared key of the one in the east."""
        for machine, text, secret in ((self.east, east, key), (self.west, west, SECRET)):
            self._pluto(machine, text or config(), f': PSK "{secret}"\n')


@pytest.fixture
def pair(root: Callable[..., Machine], release: str, pluto: Callable[..., Pluto]) -> Pair:
    return Pair(root(release), root(release), pluto)


def states(machine: Machine) -> str:
    """Return the states that pluto has of the connection."""
    lines = machine.run([Pluto.WHACK, "--status"]).stdout.replace("000 ", "").splitlines(True)
    return "".join(line for line in lines if line.startswith("#") and '"tunnel"' in line)


def check_two_lines(result: Result, words: str) -> None:
    """Check that a command failed and ended with the cause, which has the words, and the next step."""
    assert result.status not in (0, 124), result
    first, second = result.stderr.splitlines()[-2:]
    assert first.startswith('"tunnel" is ') and words in first, result
    assert second.startswith("    check ") and "; run: " in second, result
    assert SECRET not in result.stdout + result.stderr and OTHER not in result.stdout + result.stderr


@pytest.mark.parametrize("whack", ["compiled", "native"])
def test_another_key(pair: Pair, whack: str) -> None:
    """This end is told that it was refused, and nothing more; the other end knows why."""
    pair.start(key=OTHER)
    check_two_lines(pair.west.ipsec("up", "tunnel", env={"IPSEC_WHACK": whack}), "AUTHENTICATION_FAILED")
    here, there = pair.west.ipsec("why", "tunnel"), pair.east.ipsec("why", "tunnel")
    assert here.status == there.status == 1
    assert "another pre-shared key (PSK), another ID (leftid=)" in here.stdout and "tried: " in here.stdout
    assert "the pre-shared keys (PSK) of the two ends differ" in there.stdout.splitlines()[0]
    found, = json.loads(pair.east.ipsec("why", "--json", "tunnel").stdout)
    assert (found["state"], found["cause"], found["level"]) == ("down", "psk-differs", "FAIL") and found["evidence"]
    failed = pair.west.ipsec("verify", "up")
    assert failed.status == 1 and "AUTHENTICATION_FAILED" in failed.stdout and "ipsec why tunnel" in failed.stdout


@pytest.mark.parametrize(("west", "words"), [
    ({"rightid": "@other"}, "sent an ID that differs from rightid="),
    ({"ike": "aes256-sha2_512;modp3072"}, "NO_PROPOSAL_CHOSEN"),
    ({"esp": "aes256-sha2_512"}, "NO_PROPOSAL_CHOSEN"), ({"rightsubnet": "10.9.0.0/24"}, "TS_UNACCEPTABLE"),
    ({"right": "198.51.100.9"}, "no route to the peer"),
    ({"left": "198.51.100.1", "right": "198.51.100.2"}, "neither left= nor right="), ({"auto": "ignore"}, "auto=")])
def test_other_causes(pair: Pair, release: str, west: dict[str, str], words: str) -> None:
    """Whack's own status is 0 for some of them."""
    if release == "bullseye" and "ID" in words:
        words = "the peer answered the first message"  # 4.3 answers the second one only if its kernel has ESP
    pair.start(config(**west), config(ike="aes128-sha1;modp2048", esp="aes128-sha1") if "NO_" in words else "")
    check_two_lines(pair.west.ipsec("up", "tunnel"), words)
    told = pair.west.ipsec("why", "tunnel")
    assert told.status == 1 and words in told.stdout.splitlines()[0]


def test_pluto_does_not_run(root: Callable[..., Machine], release: str) -> None:
    machine = root(release)
    machine.write("/etc/ipsec.conf", config())
    result = machine.ipsec("up", "tunnel")
    check_two_lines(result, "pluto is not running on this host")
    assert result.status == 33 and machine.ipsec("why").status == 1


def test_a_firewall_here(pair: Pair) -> None:
    """The log has no reason, the rules of this host have it."""
    pair.start()
    rule = "type filter hook input priority 0;\nudp sport 500 drop"
    pair.west.write("/run/rules", f"table ip t {{\nchain c {{\n{rule}\n}}\n}}\n")
    pair.west.run(["nft", "-f", "/run/rules"]).check()
    check_two_lines(pair.west.ipsec("up", "tunnel"), "firewall rule of this host")


@pytest.mark.parametrize("whack", ["compiled", "native"])
def test_a_time_limit(pair: Pair, whack: str) -> None:
    """After it pluto no longer tries, but for --keep-trying; --once gives up where pluto would go on."""
    pair.start(config(**{"retransmit-timeout": "60s"}))
    pair.east.run(["ip", "link", "set", "eth0", "down"]).check()
    env = {"IPSEC_WHACK": whack}
    began = time.monotonic()
    check_two_lines(pair.west.ipsec("up", "--timeout", "2", "tunnel", env=env), "tunnel")
    assert time.monotonic() - began < 40 and not states(pair.west)
    check_two_lines(pair.west.ipsec("up", "--timeout", "2", "--keep-trying", "tunnel", env=env), "tunnel")
    assert states(pair.west)


def test_one_attempt(pair: Pair) -> None:
    pair.start(key=OTHER)
    check_two_lines(pair.west.ipsec("up", "--once", "tunnel"), "AUTHENTICATION_FAILED")
    assert not states(pair.west)
    policy = pair.west.run([Pluto.WHACK, "--status"]).stdout
    assert "+UP" not in policy and "AUTHENTICATION_FAILED" in pair.west.ipsec("why", "tunnel").stdout


@pytest.mark.parametrize("whack", ["compiled", "native"])
def test_ctrl_c_takes_it_down(pair: Pair, whack: str) -> None:
    pair.start(config(**{"retransmit-timeout": "60s"}))
    pair.east.run(["ip", "link", "set", "eth0", "down"]).check()
    argv = ["env", f"IPSEC_WHACK={whack}", pair.west.python, PYZ, "up", "tunnel"]
    process = pair.west.spawn(argv, "/var/log/up")
    wait_for(lambda: states(pair.west), "an attempt")
    for pid in pair.west.processes("python3"):
        pair.west.signal(pid, signal.SIGINT)
    wait_for(lambda: process.poll() is not None, "the end of up")
    assert not states(pair.west)


@pytest.mark.parametrize("whack", ["compiled", "native"])
def test_down_and_delete_of_what_pluto_says_nothing_of(pair: Pair, release: str, whack: str) -> None:
    """Up to 4.15 silence is no error if pluto has the connection."""
    pair.start()
    env = {"IPSEC_WHACK": whack}
    assert pair.west.ipsec("down", "template", env=env).status == 0
    assert pair.west.ipsec("delete", "template", env=env).status == 0
    unknown = pair.west.ipsec("down", "template", env=env)
    assert unknown.status == 21 and (not OLD[release] or "no connection named" in unknown.stderr)
