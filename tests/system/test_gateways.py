"""Two gateways of each release, in a kernel with ESP: ipsec.pyz alone sets up the tunnel, and a ping crosses it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..ground.gateways import NAMES, SETUP, Gateways, conn

#: What no report may show. Letters only, so that no quoting or encoding could hide it from the search.
SECRET = "SwordfishForTheTunnel"

CONFIG = SETUP + conn("tunnel")


#: What an expert needs of each section of a report, from public bug reports: patterns for lines of the section.
NEEDS = json.loads((Path(__file__).parent.parent / "data" / "expert_needs.json").read_text())


def missing_needs(report: str) -> list[str]:
    """Return the needs of an expert that the report of a gateway with a tunnel does not meet."""
    texts = dict(part.partition("\n")[::2] for part in report.split("+ _________________________ ")[1:])
    return [f"{row['section']}: {pattern}" for row in NEEDS for pattern in row["patterns"]
            if not re.search(pattern, texts.get(row["section"], ""), re.MULTILINE)]


def bring_up(gateways: Gateways) -> None:
    """The steps of an admin on both sides, from nothing to a tunnel."""
    gateways.start(dict.fromkeys(NAMES, CONFIG), f'@west @east : PSK "{SECRET}"\n')
    for name in NAMES:
        gateways.ipsec(f"{name}-add", name, "auto", "--add", "tunnel")
    gateways.ipsec("west-up", "west", "auto", "--up", "tunnel")


def test_a_ping_crosses_a_tunnel_set_up_by_ipsec_pyz(gateways: Gateways) -> None:
    """Start to stop as an admin does it, on both sides; every report sees the tunnel and none shows a key."""
    bring_up(gateways)
    gateways.step("ping", "west", ["ping", "-c", "3", "-w", "60", "-I", "10.1.0.1", "10.2.0.1"])
    for name in NAMES:
        gateways.step(f"{name}-keys", name, ["ip", "xfrm", "state"])
        gateways.ipsec(f"{name}-traffic", name, "--trafficstatus")
        gateways.ipsec(f"{name}-status", name, "auto", "--status")
    gateways.ipsec("west-barf", "west", "barf", "--timeout", "60")
    gateways.ipsec("west-down", "west", "auto", "--down", "tunnel")
    for name in NAMES:
        gateways.ipsec(f"{name}-stop", name, "stop")
        gateways.step(f"{name}-gone", name, ["sh", "-c", "! pgrep -x pluto && ip xfrm policy && ip xfrm state"])
    results = gateways.run()

    assert {name: result.status for name, result in results.items()} == dict.fromkeys(results, 0)
    assert "3 received" in results["ping"].stdout
    assert missing_needs(results["west-barf"].stdout) == []
    for name in NAMES:
        traffic = results[f"{name}-traffic"].stdout
        assert "type=ESP" in traffic and "inBytes=252, outBytes=252" in traffic  # three pings of 84 bytes
        keys = re.findall(r"0x([0-9a-f]{40,})", results[f"{name}-keys"].stdout)
        assert len(keys) == 2
        for step, result in results.items():
            if step.startswith(name) and not step.endswith("-keys"):
                for secret in (SECRET, *keys):
                    assert secret not in result.stdout + result.stderr, step
        assert results[f"{name}-gone"].stdout == ""
    barf = results["west-barf"].stdout
    for seen in ("Starting Pluto", "conn tunnel", *re.findall(r"spi (0x[0-9a-f]{8}) ", results["west-keys"].stdout)):
        assert seen in barf
