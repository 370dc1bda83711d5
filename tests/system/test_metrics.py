"""`ipsec metrics` beside what the kernel counted: IKEv2, IKEv1, a road warrior; 3 KB, 30 MB, after a rekey."""

from __future__ import annotations

import re

from ..ground.gateways import NAMES, Gateways
from ..ground.machine import PYZ
from ..test_metrics import series, value

CONFIG = """config setup
\tlogfile=/var/log/pluto.log
{setup}
conn %default
\tauthby=secret
\tauto=add

conn hq
\tleft=192.0.2.1
\tleftid=@west
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.2
\trightid=@east
\trightsubnet=10.2.0.0/24

conn old
\tikev2=no
\tleft=192.0.2.1
\tleftid=@west1
\tleftsubnet=10.1.1.0/24
\tright=192.0.2.2
\trightid=@east1
\trightsubnet=10.2.1.0/24
"""
LAPTOP = """
conn laptop
\tleft=192.0.2.1
\tleftid=@laptop
\tleftmodecfgclient=yes
\tleftsubnet=0.0.0.0/0
\tright=192.0.2.2
\trightid=@east2
\trightsubnet=10.2.2.0/24
\tnarrowing=yes
"""
POOL = """
conn rw
\tleft=192.0.2.2
\tleftid=@east2
\tleftsubnet=10.2.2.0/24
\tleftmodecfgserver=yes
\tright=%any
\trightid=@laptop
\trightaddresspool=10.9.0.1-10.9.0.99
\trightmodecfgclient=yes
\tnarrowing=yes
"""
#: Source and destination of the packets of each tunnel
ENDS = {"hq": ("10.1.0.1", "10.2.0.1"), "old": ("10.1.1.1", "10.2.1.1"), "rw": ("10.9.0.1", "10.2.2.1")}
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


def test_bytes_are_those_that_the_kernel_counted(gateways: Gateways, release: str) -> None:
    setup = "\tikev1-policy=accept\n" if release == "bookworm" or release == "trixie" else ""
    for name in NAMES:
        gateways.write(name, "ipsec.conf", CONFIG.format(setup=setup) + (LAPTOP if name == "west" else POOL))
        gateways.write(name, "ipsec.secrets", ': PSK "SwordfishForTheTunnel"\n', 0o600)
        gateways.ipsec(f"{name}-initnss", name, "initnss")
        gateways.ipsec(f"{name}-start", name, "start")
        for place in (1, 2):
            network = f"10.{1 + (name == 'east')}.{place}.1/24"
            gateways.step(f"{name}-{place}", name, ["ip", "address", "add", network, "dev", "lo"])
    for name in ("hq", "old", "laptop"):
        gateways.ipsec(f"up-{name}", "west", "up", name)
    gateways.step("lease", "west", ["ip", "address", "replace", "10.9.0.1/32", "dev", "lo"])

    def look(when: str) -> None:
        for name in NAMES:
            gateways.ipsec(f"{when}-{name}-metrics", name, "metrics")
            gateways.step(f"{when}-{name}-kernel", name, ["ip", "-s", "xfrm", "state"])
            gateways.ipsec(f"{when}-{name}-traffic", name, "trafficstatus")
            gateways.ipsec(f"{when}-{name}-states", name, "showstates")

    for tunnel, (source, target) in ENDS.items():
        gateways.step(f"ping-{tunnel}", "west", ["ping", "-c", "3", "-w", "60", "-s", "972", "-I", source, target])
    look("3K")
    for tunnel, (source, target) in ENDS.items():
        gateways.step(f"flood-{tunnel}", "west", ["ping", "-f", "-q", "-c", "525", "-w", "300", "-s", "60000",
                                                  "-I", source, target])
    look("30M")
    ipsec = f"{gateways.machine.python} {PYZ}"
    option = "--rekey-child" if release == "trixie" else "--rekey-ipsec"
    gateways.step("rekey", "west", ["timeout", "60", "sh", "-c", REKEY.format(ipsec=ipsec, option=option)])
    gateways.step("ping-rekeyed", "west", ["ping", "-c", "3", "-w", "60", "-s", "972", "-I", *ENDS["hq"]])
    look("rekeyed")
    results = gateways.run()

    before: dict[tuple[str, ...], int] = {}
    names: dict[str, set[object]] = {}
    for when in ("3K", "30M", "rekeyed"):
        for name in NAMES:
            text = results[f"{when}-{name}-metrics"].stdout
            labels = {key for key in series(text) if "connection" in key[0] and "idle" not in key[0]}
            assert names.setdefault(name, labels) == labels  # nothing comes, goes or changes by a rekey
            kernel = kernel_bytes(results[f"{when}-{name}-kernel"].stdout)
            for tunnel in ENDS:
                conn = "laptop" if name == "west" and tunnel == "rw" else tunnel
                line, = (line for line in results[f"{when}-{name}-states"].stdout.splitlines()
                         if re.search(rf'#\d+: "{conn}".* esp\.', line))
                for way, spi in zip(("out", "in"), re.findall(r"esp\.([0-9a-f]+)@", line)):
                    truth = kernel[int(spi, 16)]
                    if when == "rekeyed" and tunnel == "hq":
                        assert truth == 3000
                        truth += before[name, tunnel, way]
                    count = value(text, f"ipsec_connection_{way}_bytes_total", connection=conn)
                    assert count == truth >= {"3K": 3000}.get(when, 30 << 20)
                    before[name, tunnel, way] = truth
                assert value(text, "ipsec_connection_up", connection=conn) == 1
                assert value(text, "ipsec_connection_child_sas", connection=conn) == 1
