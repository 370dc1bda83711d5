"""`ipsec metrics` beside what the kernel counted: IKEv2, IKEv1, a road warrior; 3 KB, megabytes, after a rekey."""

from __future__ import annotations

import re

from ..ground.gateways import NAMES, NO_UPDOWN, SETUP, Gateways, conn, road_warrior
from ..ground.host import Result
from ..ground.machine import PYZ
from ..test_metrics import series, value

LAPTOP = road_warrior("@east2", "10.2.2.0/24")
CONNS = (conn("hq", "auto=add", *NO_UPDOWN)
         + conn("old", "ikev2=no", "auto=add", *NO_UPDOWN, west="@west1", east="@east1",
                networks=("10.1.1.0/24", "10.2.1.0/24")))
#: Source and destination of the packets of each tunnel
ENDS = {"hq": ("10.1.0.1", "10.2.0.1"), "old": ("10.1.1.1", "10.2.1.1"), "rw": ("10.9.0.1", "10.2.2.1")}
#: The number of pings of 60,000 bytes through each tunnel: 30 MB, and 3 MB
FLOOD = {"hq": 525, "old": 55, "rw": 55}
#: Make a new IPsec SA for hq, and wait until the old one is gone from pluto of both ends
REKEY = """
serial() {{ {ipsec} trafficstatus | sed -n 's/.*#\\([0-9]*\\): "hq".*/\\1/p'; }}
old=$(serial)
{ipsec} whack --name hq {option}
until [ "$(serial)" ] && ! serial | grep -qx "$old"; do sleep 0.2; done
"""


def kernel_bytes(text: str) -> dict[int, int]:
    """Return the bytes of each state by SPI, from `ip -s xfrm state`."""
    blocks = re.split(r"^src ", text, flags=re.MULTILINE)[1:]
    return {int(re.findall(r"spi 0x([0-9a-f]+)", block)[0], 16):
            int(re.findall(r"lifetime current:\s+(\d+)\(bytes\)", block)[0]) for block in blocks}


def sa_bytes(states: str, kernel_states: str, connection: str) -> dict[str, int]:
    """Return what the kernel counted for the connection, in and out, from `showstates` and `ip -s xfrm state`."""
    kernel = kernel_bytes(kernel_states)
    line, = (line for line in states.splitlines() if re.search(rf'#\d+: "{connection}".* esp\.', line))
    return {way: kernel[int(spi, 16)] for way, spi in zip(("out", "in"), re.findall(r"esp\.([0-9a-f]+)@", line))}


def look(gateways: Gateways, when: str) -> None:
    """Ask both gateways for the metrics, and for the bytes and states to which the test compares them."""
    for name in NAMES:
        gateways.ipsec(f"{when}-{name}-metrics", name, "metrics")
        gateways.step(f"{when}-{name}-kernel", name, ["ip", "-s", "xfrm", "state"])
        gateways.ipsec(f"{when}-{name}-traffic", name, "trafficstatus")
        gateways.ipsec(f"{when}-{name}-states", name, "showstates")


def check_bytes(results: dict[str, Result], name: str, tunnel: str) -> None:
    """Compare the metrics of a tunnel on one gateway to the kernel's bytes; a rekey only adds to those before it."""
    connection = "laptop" if name == "west" and tunnel == "rw" else tunnel
    before: dict[str, int] = {}
    for when in ("3K", "flood", "rekeyed"):
        text = results[f"{when}-{name}-metrics"].stdout
        truth = sa_bytes(results[f"{when}-{name}-states"].stdout, results[f"{when}-{name}-kernel"].stdout, connection)
        if when == "rekeyed" and tunnel == "hq":
            assert set(truth.values()) == {3000}
            truth = {way: count + before[way] for way, count in truth.items()}
        for way in ("out", "in"):
            count = value(text, f"ipsec_connection_{way}_bytes_total", connection=connection)
            assert count == truth[way] >= (3000 if when == "3K" else FLOOD[tunnel] * 60000)
        assert value(text, "ipsec_connection_up", connection=connection) == 1
        assert value(text, "ipsec_connection_child_sas", connection=connection) == 1
        before = truth


def test_bytes_are_those_that_the_kernel_counted(gateways: Gateways, release: str) -> None:
    setup = SETUP if release == "bullseye" else f"{SETUP}\tikev1-policy=accept\n"
    gateways.start({name: setup + CONNS + LAPTOP[name] for name in NAMES})
    for name in NAMES:
        for place in (1, 2):
            network = f"10.{1 + (name == 'east')}.{place}.1/24"
            gateways.step(f"{name}-{place}", name, ["ip", "address", "add", network, "dev", "lo"])
    for name in ("hq", "old", "laptop"):
        gateways.ipsec(f"up-{name}", "west", "up", name)
    gateways.step("lease", "west", ["ip", "address", "replace", "10.9.0.1/32", "dev", "lo"])

    for tunnel, (source, target) in ENDS.items():
        gateways.step(f"ping-{tunnel}", "west", ["ping", "-c", "3", "-w", "60", "-s", "972", "-I", source, target])
    look(gateways, "3K")
    for tunnel, (source, target) in ENDS.items():
        words = ["ping", "-f", "-q", "-c", str(FLOOD[tunnel]), "-w", "300", "-s", "60000", "-I", source, target]
        gateways.step(f"flood-{tunnel}", "west", words)
    look(gateways, "flood")
    ipsec = f"{gateways.machine.python} {PYZ}"
    option = "--rekey-child" if release == "trixie" else "--rekey-ipsec"
    gateways.step("rekey", "west", ["timeout", "60", "sh", "-c", REKEY.format(ipsec=ipsec, option=option)])
    gateways.step("ping-rekeyed", "west", ["ping", "-c", "3", "-w", "60", "-s", "972", "-I", *ENDS["hq"]])
    look(gateways, "rekeyed")
    for name in NAMES:
        gateways.ipsec(f"{name}-tunnels", name, "tunnels")
    results = gateways.run()

    for name in NAMES:
        first, *others = ({key for key in series(results[f"{when}-{name}-metrics"].stdout)
                           if "connection" in key[0] and "idle" not in key[0]} for when in ("3K", "flood", "rekeyed"))
        assert others == [first, first]  # nothing comes, goes or changes by a rekey
        for tunnel in ENDS:
            check_bytes(results, name, tunnel)
        table = results[f"{name}-tunnels"]
        assert table.status == 0 and "3 up" in table.stdout and " down" not in table.stdout
