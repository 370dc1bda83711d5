"""whack, auto, status and the words of 5.x against real plutos: through libreswan's whack and without it."""

from __future__ import annotations

import json
import re
import signal
from typing import Callable

import pytest

from ..ground.gateways import NAMES, Gateways
from ..ground.host import Result
from ..ground.machine import Machine, wait_for
from ..ground.pluto import Pluto

CONFIG = """config setup
conn west-east
	left=127.0.0.1
	right=192.0.2.9
	leftsubnet=10.0.0.0/24
	rightsubnet=10.1.0.0/16
	leftid=@west
	rightid=@east
	authby=secret
	auto=add
conn spare
	left=127.0.0.1
	right=192.0.2.8
	authby=secret
	auto=ignore
"""
TUNNEL = """config setup
conn tunnel
	left=192.0.2.1
	right=192.0.2.2
	leftid=@west
	rightid=@east
	leftsubnet=10.1.0.0/24
	rightsubnet=10.2.0.0/24
	authby=secret
	auto=add
"""
SECRETS = ': PSK "not-to-be-seen"\n'
VERSIONS = {"bullseye": "4.3", "bookworm": "4.10", "trixie": "5.2"}


class Gateway:
    """A machine with pluto on it, and ipsec.pyz asked with compiled whack there or not."""

    def __init__(self, machine: Machine, pluto: Pluto, release: str, native: bool) -> None:
        self.machine, self.pluto, self.version = machine, pluto, VERSIONS[release]
        self.env = {"IPSEC_WHACK": "native"} if native else {}

    def __call__(self, *words: str, status: int = 0) -> str:
        """What ipsec.pyz says (both outputs), after its status was checked."""
        result: Result = self.machine.ipsec(*words, env=self.env)
        assert result.status == status, (words, result)
        assert "not-to-be-seen" not in result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture(params=[False, True], ids=["compiled", "native"])
def ipsec(request: pytest.FixtureRequest, gateway: Machine, release: str, pluto: Callable[..., Pluto]) -> Gateway:
    return Gateway(gateway, pluto(gateway, CONFIG, SECRETS), release, request.param)


def test_every_word_of_every_generation(ipsec: Gateway) -> None:
    """Each does what it says on this pluto; none ends it."""
    new = ipsec.version >= "5"
    assert f"pluto_version={ipsec.version}" in ipsec("status")
    assert "not found" in ipsec("add", "nosuch", status=21)
    ipsec("add", "spare")
    assert '"spare"' in ipsec("status")
    assert '"spare"' in ipsec("connectionstatus", "spare")
    assert '"west-east"' not in ipsec("connectionstatus", "spare")
    assert ("Total" if new else '"spare"') in ipsec("briefconnectionstatus")
    ipsec("replace", "spare")
    ipsec("auto", "--replace", "spare")
    ipsec("ondemand", "spare")
    ipsec("unroute", "spare")
    ipsec("--route", "spare")
    ipsec("auto", "--unroute", "spare")
    for operation in ("up", "route", "unroute"):
        assert "nosuch" in ipsec(operation, "nosuch", status=25 if "route" in operation and not new else 21)
    for words in (["down", "nosuch"], ["delete", "nosuch"], ["auto", "--down", "nosuch"], ["terminate", "nosuch"],
                  ["auto", "--delete", "nosuch"], ["--delete", "nosuch"]):
        assert "nosuch" in ipsec(*words, status=21)
    ipsec("auto", "--asynchronous", "--up", "west-east")
    assert "#" in wait_for(lambda: ipsec("showstates"), "a state")
    assert '"west-east"' in ipsec("--statestatus")
    ipsec("down", "west-east")
    ipsec("delete", "west-east")
    assert '"west-east"' not in ipsec("status")
    ipsec("auto", "--start", "--asynchronous", "west-east")
    ipsec("--async", "up", "west-east")
    ipsec("auto", "west-east", "delete")
    for words in (["listen"], ["auto", "--ready"], ["--rereadgroups"], ["rereadsecrets"], ["secrets"], ["rereadcerts"],
                  ["rereadall"], ["fetchcrls"], ["crls"], ["auto", "--fetchcrls"], ["purgeocsp"], ["trafficstatus"],
                  ["traffic"], ["briefstatus"], ["globalstatus"], ["fips"], ["shuntstatus"], ["addresspoolstatus"],
                  ["listall", "--utc"], ["--utc", "listpubkeys"], ["listcerts"], ["listcacerts"], ["listcrls"],
                  ["listpsks"], ["checkpubkeys"], ["auto", "--utc", "--listall"], ["auto", "--status"],
                  ["whack", "--listen"], ["whack", "--debug", "all"], ["whack", "--debug", "none"],
                  ["whack", "--ddos-busy"], ["whack", "--purgeocsp"], ["whack", "--clearstats"]):
        ipsec(*words)
    ipsec("whack", "--deletestate", "4711", status=21)
    ipsec("redirect", "--redirect-to", "192.0.2.7")
    assert ipsec("checkconfig") == ""
    assert "obsoleted" in ipsec("auto", "--rereadcrls", status=1)
    ipsec("unlisten")
    assert ipsec.pluto.running
    ipsec("whack", "--shutdown")
    wait_for(lambda: not ipsec.pluto.running, "the end of pluto")
    assert "Pluto is not running" in ipsec("status", status=33)


def test_statuses_are_the_same_with_and_without_whack(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    """Text and status of our whack are those of libreswan's."""
    pluto(gateway, CONFIG, SECRETS)
    for words in (["--status"], ["--trafficstatus"], ["--globalstatus"], ["--shuntstatus"], ["--listall"],
                  ["--name", "nosuch", "--initiate"], ["--name", "nosuch", "--route"], ["--fipsstatus"], ["--listpsks"],
                  ["--name", "west-east", "--unroute"], ["--briefstatus"],
                  ["--deletestate", "4711"], ["--listen"], ["--rereadsecrets"], ["--initiate"], []):
        theirs = gateway.run(["/usr/libexec/ipsec/whack", *words])
        ours = gateway.ipsec("whack", *words, env={"IPSEC_WHACK": "native"})
        assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), words


def test_json_of_every_command(ipsec: Gateway) -> None:
    for words in (["status"], ["trafficstatus"], ["briefstatus"], ["connectionstatus"], ["showstates"], ["shuntstatus"],
                  ["listall"], ["listcerts"], ["listpubkeys"], ["globalstatus"], ["fipsstatus"], ["listcrls"]):
        data = json.loads(ipsec(*words, "--json"))
        assert data["schema"] == 2 and data["unparsed"] == [], (words, data["unparsed"])
        names = [connection["name"] for connection in data["connections"]]
        assert names == (["west-east"] if words[0] in ("status", "connectionstatus") else [])
    assert json.loads(ipsec("listall", "--json"))["lists"]["Public Keys"] == []
    ipsec("metrics", "--output", "/run/ipsec.prom")
    text = ipsec.machine.read("/run/ipsec.prom")
    assert text == ipsec("metrics")
    assert f'ipsec_pluto_info{{version="{ipsec.version}"}} 1\n' in text
    assert 'ipsec_connections{state="idle"} 1\n' in text
    assert [path.name for path in ipsec.machine.path("/run").glob("*prom*")] == ["ipsec.prom"]


def test_a_stopped_pluto_is_a_clear_line_and_no_hang(ipsec: Gateway) -> None:
    ipsec.machine.signal(ipsec.pluto.pid, signal.SIGSTOP)
    for words in (["status"], ["trafficstatus"], ["listall"], ["status", "--json"], ["briefconnectionstatus"]):
        assert "did not" in ipsec(*words, "--timeout", "0.5", status=33)
    ipsec.machine.signal(ipsec.pluto.pid, signal.SIGCONT)
    ipsec("status")


def test_not_root_is_told_so(ipsec: Gateway) -> None:
    result = ipsec.machine.ipsec("status", user=65534, env=ipsec.env)
    assert result.status == 33 and "no right to communicate with pluto" in result.stderr


@pytest.mark.parametrize("name", ["a b", "*", "--ctlsocket", "x--ctlsocketfoo", "$(id)", "ü", "a'b"])
def test_a_name_is_a_name(root: Callable[..., Machine], pluto: Callable[..., Pluto], name: str) -> None:
    machine = root("bookworm")
    for release in ({}, {"IPSEC_WHACK": "native"}):
        shown = machine.ipsec("auto", "--showonly", "--up", "--", name, env=release).check().stdout
        assert machine.run(["sh", "-c", f"set -- {shown}\nprintf '%s\\n' \"$6\""]).stdout == f"{name}\n"


def test_an_empty_name_and_wrong_words_are_refused(root: Callable[..., Machine]) -> None:
    machine = root("bookworm")
    for words in (["up", ""], ["up"], ["up", "a", "b"], ["auto"], ["auto", "--up"], ["auto", "--up", "--down", "a"],
                  ["auto", "--bogus"], ["status", "trafficstatus"], ["redirect"], ["add"], ["--utc", "up", "a"],
                  ["--dry-run", "version"], ["auto", "--config"], ["add", "--auto=never", "a"]):
        result = machine.ipsec(*words)
        assert result.status == 2 and len(result.stderr.splitlines()) == 1, (words, result)
    assert machine.ipsec("up", "--help").check().stdout.startswith("Usage: ipsec up")


def test_open_vswitchs_calls(ipsec: Gateway) -> None:
    """As ovs-monitor-ipsec 3.1 and 3.5 make them, with what they look for in the answers."""
    ipsec.machine.write("/run/ovs.conf", CONFIG)
    files = ["--ctlsocket", ipsec.pluto.ctl, "--config", "/run/ovs.conf"]
    version = ipsec("--version")
    assert version.startswith(f"Libreswan {ipsec.version} ")
    for before in (["auto", *files], files[2:] + files[:2]):
        ipsec(*before, "--rereadsecrets")
        assert "west-east" in ipsec("status", "--ctlsocket", ipsec.pluto.ctl)
        ipsec(*before, "--start", "--asynchronous", "west-east")
        shown = ipsec("status", "--ctlsocket", ipsec.pluto.ctl)
        assert re.search(r'"(west-east)": \d+.*(===|\.\.\.).*', shown) and re.search(r'#\d+: .*"(west-east)".*', shown)
        ipsec(*before, "--add", "spare")
        ipsec(*before, "--up", "--asynchronous", "west-east")
        ipsec(*before, "--delete", "spare")
        ipsec(*before, "--delete", "west-east")
        ipsec(*before, "--add", "west-east")
        assert "nosuch" in ipsec(*before, "--start", "--asynchronous", "nosuch", status=21)


def test_network_managers_calls(ipsec: Gateway) -> None:
    """As NetworkManager-libreswan makes them, the connection on standard input."""
    name = "6a3ad2b2-6a34-4a3e-93a8-5a1cb1bb9e8d"
    connection = CONFIG.split("conn spare")[0].replace("conn west-east", f"conn {name}").replace("config setup\n", "")
    assert ipsec("auto", "--status").count("\n") > 50
    ipsec("auto", "--ready")
    loaded = ipsec.machine.ipsec("auto", "--replace", "--config", "-", name, input=connection, env=ipsec.env)
    assert loaded.status == 0, loaded
    assert f'"{name}"' in ipsec("auto", "--status")
    ipsec("auto", "--up", "--asynchronous", name)
    ipsec("auto", "--delete", name)
    assert f'"{name}"' not in ipsec("status")


def test_another_socket_by_option_wherever_it_stands(root: Callable[..., Machine],
                                                     pluto: Callable[..., Pluto]) -> None:
    machine = root("bookworm")
    other = pluto(machine, CONFIG, SECRETS, rundir="/run/other")
    for native in ([], ["--native"]):
        for words in (["--rundir", "/run/other", *native, "auto", "--status"],
                      ["--ctlsocket", other.ctl, *native, "status"], [*native, "status", "--ctlsocket", other.ctl],
                      [*native, "auto", "--status", "--ctlsocket", other.ctl],
                      ["--ctlsocket", "/nowhere", *native, "status", "--ctlsocket", other.ctl]):
            assert "west-east" in machine.ipsec(*words).check().stdout, words
        assert machine.ipsec("status", *native).status == 33


def test_a_host_without_whack_and_addconn(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    machine = root("bookworm")
    pluto(machine, CONFIG, SECRETS)
    for program in ("whack", "addconn"):
        machine.path(f"/usr/libexec/ipsec/{program}").unlink()
    assert "west-east" in machine.ipsec("status").check().stdout
    assert machine.ipsec("route", "west-east").check()
    result = machine.ipsec("add", "spare")
    assert result.status == 127 and "addconn" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("whack", ["compiled", "native"])
def test_a_load_that_fails_in_silence(root: Callable[..., Machine], release: str, pluto: Callable[..., Pluto],
                                      whack: str) -> None:
    """addconn 4.10 sends pluto nothing, and pluto 4.3 aborts, but addconn exits with 0.  5.2 loads the connection."""
    machine = root(release)
    parts = ("conn parts\n\tleft=127.0.0.1\n\tright=192.0.2.8\n\tauthby=secret\n"
             "\trightsubnets={10.5.0.0/24 10.6.0.0/24}\n")
    pairs = parts.replace("parts", "pairs") + "\tleftsubnet=10.4.0.0/24\n\tconnalias=several\n"
    pluto(machine, CONFIG.replace("\tauto=ignore", "\tauto=ignore\n\tconnalias=other") + parts + pairs, SECRETS)
    env = {"IPSEC_WHACK": whack}
    for name in ("spare", "other", "pairs", "several"):
        assert machine.ipsec("add", name, env=env).check().stderr == "", name
    for name in ("spare", "other"):
        machine.ipsec("auto", "--replace", "--config", "-", name, env=env,
                      input=machine.read("/etc/ipsec.conf")).check()
    result = machine.ipsec("add", "parts", env=env)
    assert result.status == {"bullseye": 33, "bookworm": 1, "trixie": 0}[release], result
    if release != "trixie":
        told, = result.stderr.splitlines()
        assert told.startswith("ipsec: add: pluto ") and "rightsubnets= without leftsubnet=" in told


def test_a_tunnel_up_and_down(root: Callable[..., Machine], release: str) -> None:
    """In a kernel that has ESP: brought up, used, seen as data, taken down, natively."""
    west = Gateways(root(release))
    for name in NAMES:
        west.write(name, "ipsec.conf", TUNNEL)
        west.write(name, "ipsec.secrets", '@west @east : PSK "not-to-be-seen"\n', 0o600)
        west.step(f"nss-{name}", name, ["certutil", "-N", "-d", "sql:/var/lib/ipsec/nss", "--empty-password"])
        west.step(f"start-{name}", name, ["sh", "-c", """
            for module in xfrm_user esp4 esp6 ah4 af_key; do modprobe $module; done
            mkdir -p /run/pluto
            /usr/libexec/ipsec/pluto --config /etc/ipsec.conf --logfile /var/log/pluto.log
            until /usr/libexec/ipsec/whack --status 2>/dev/null | grep -q '"tunnel"'; do sleep 0.2; done"""])
    west.ipsec("up", "west", "--native", "up", "tunnel")
    west.step("ping", "west", ["ping", "-c", "2", "-I", "10.1.0.1", "10.2.0.1"])
    west.ipsec("status", "west", "status", "--json")
    west.ipsec("traffic", "west", "trafficstatus", "tunnel", "--json")
    west.ipsec("metrics", "west", "metrics")
    west.ipsec("down", "west", "--native", "down", "tunnel")
    west.ipsec("after", "west", "--native", "showstates")
    left = west.run()
    assert left["up"].check() and "established" in left["up"].stdout and left["ping"].check()
    data = json.loads(left["status"].check().stdout)
    child, = (state for state in data["states"] if state["type"] == "child")
    assert data["unparsed"] == [] and (child["bytes_in"], child["bytes_out"]) == (168, 168)
    assert data["connections"][0]["child_sa"] == child["serial"]
    assert json.loads(left["traffic"].stdout)["traffic"][0]["bytes_in"] == 168
    assert 'out_bytes_total{connection="tunnel",instance="",remote="192.0.2.2"} 168\n' in left["metrics"].stdout
    assert left["down"].check() and "Child" not in left["after"].check().stdout


def test_a_python_without_json(root: Callable[..., Machine], pluto: Callable[..., Pluto]) -> None:
    """As python3-minimal is in Debian 11 and 12."""
    machine = root("bookworm")
    pluto(machine, CONFIG, SECRETS)
    where = machine.run([machine.python, "-c", "import json; print(json.__path__[0])"]).check().stdout.strip()
    machine.run(["mv", where, "/root"]).check()
    result = machine.ipsec("status", "--json")
    assert result.status == 1 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "json" in result.stderr
    assert "west-east" in machine.ipsec("--native", "status").check().stdout
