"""`ipsec tunnels` on two gateways with tunnels of every kind: healthy, half broken, a road warrior, a trap."""

from __future__ import annotations

import json
from typing import Any

from ..ground.gateways import NAMES, NO_UPDOWN, SETUP, Gateways, conn, road_warrior

Tunnel = dict[str, Any]  # a row of `ipsec tunnels --json`
NETWORKS = ("10.1.1.0/24", "10.2.1.0/24")
LAPTOP = road_warrior("@east", "10.2.0.0/24")
HQ = conn("hq", "auto=add", *NO_UPDOWN)
CONFIGS = {
    # without auto=start: `up` would begin a second negotiation, whose first SAs the peer would keep at the end
    "west": SETUP + HQ + conn("old", "ikev2=no", "auto=start", *NO_UPDOWN, networks=NETWORKS) + """
conn nobody
\tauthby=secret
\tleft=192.0.2.1
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.77
\trightsubnet=10.77.0.0/24
\tauto=start

conn trap
\tauthby=secret
\tleft=192.0.2.1
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.78
\trightsubnet=10.78.0.0/24
\tauto=route

conn elsewhere
\tauthby=secret
\tleft=198.51.100.1
\tright=198.51.100.2
\tauto=add
""" + LAPTOP["west"],
    "east": SETUP + HQ + conn("old", "ikev2=no", "auto=add", *NO_UPDOWN, networks=NETWORKS) + LAPTOP["east"]}


def test_tunnels_of_every_kind(gateways: Gateways) -> None:
    """Each line says what is so, within 80 columns; the status tells whether something that should be up is not."""
    for name in NAMES:
        gateways.ipsec(f"{name}-without", name, "tunnels")
    gateways.start(CONFIGS)
    gateways.ipsec("old-up", "west", "up", "old")
    gateways.ipsec("hq-up", "west", "up", "hq")
    gateways.ipsec("laptop-up", "west", "up", "laptop")
    gateways.step("ping", "west", ["ping", "-c", "3", "-w", "60", "-s", "972", "-I", "10.1.0.1", "10.2.0.1"])
    for name in NAMES:
        gateways.ipsec(f"{name}-table", name, "tunnels")
        gateways.ipsec(f"{name}-json", name, "tunnels", "--json")
        gateways.ipsec(f"{name}-hq", name, "sa", "hq")
    gateways.step("west-log", "west", ["cat", "/var/log/pluto.log"])
    gateways.ipsec("west-none", "west", "tunnels", "hp")
    gateways.ipsec("west-shutdown", "west", "whack", "--native", "--shutdown")
    for name in NAMES:  # pluto ends its tunnels, and tells the peer
        gateways.step(f"{name}-gone", name, ["timeout", "60", "sh", "-c",
                                             "while ip xfrm state | grep -q 192.0.2.1; do sleep 0.2; done"])
    gateways.ipsec("east-stop", "east", "stop")
    results = gateways.run()

    for name in NAMES:
        assert results[f"{name}-without"].status == 33
        assert max(map(len, results[f"{name}-table"].stdout.splitlines())) <= 80
    has_old = "ikev1-policy" not in results["west-log"].stdout
    west, east = (tunnels_of(results[f"{name}-json"].stdout) for name in NAMES)
    check_tunnels(west, east, has_old)
    assert (results["west-table"].status, results["east-table"].status) == (1, 0)
    assert "3000 bytes in, 3000 bytes out" in results["west-hq"].stdout
    assert results["west-none"].status == 21
    assert [results[step].status for step in ("west-shutdown", "west-gone", "east-gone")] == [0, 0, 0]


def check_tunnels(west: dict[str, Tunnel], east: dict[str, Tunnel], has_old: bool) -> None:
    """Each tunnel of both gateways is what the steps made of it; `has_old` if this release still has IKEv1."""
    assert {name: row["state"] for name, row in west.items()} == {
        "hq": "up", "laptop": "ready", "laptop[1]": "up", "nobody": west["nobody"]["state"], "trap": "routed",
        "elsewhere": "idle", "old": "up" if has_old else "down"}
    assert west["nobody"]["state"] in ("connecting", "down") and west["nobody"]["wanted"]
    assert west["elsewhere"]["problem"] == "no local address"
    assert (east["rw[1]"]["state"], east["rw"]["state"], east["rw"]["peers"]) == ("up", "ready", 1)
    assert east["rw[1]"]["remote_networks"] == ["10.9.0.1/32"] and east["rw[1]"]["remote_id"] == "@laptop"
    for tunnels in (west, east):
        hq = tunnels["hq"]
        assert (hq["bytes_in"], hq["bytes_out"], hq["ike_version"], hq["marks"]) == (3000, 3000, 2, [])
        assert hq["rekey_in"] > 0 and hq["since"] > 0
    if has_old:
        assert west["old"]["ike_version"] == east["old"]["ike_version"] == 1


def tunnels_of(text: str) -> dict[str, Tunnel]:
    """Return the tunnels of the JSON document by name and instance."""
    return {f"{row['name']}{row['instance']}": row for row in json.loads(text)["tunnels"]}
