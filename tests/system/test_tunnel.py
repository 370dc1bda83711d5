"""Two gateways of each release, in a kernel with ESP: ipsec.pyz alone sets up the tunnel, and a ping crosses it."""

from __future__ import annotations

from ..ground.gateways import NAMES, Gateways

#: What no report may show. Letters only, so that no quoting or encoding could hide it from the search.
SECRET = "SwordfishForTheTunnel"

CONFIG = """config setup
\tlogfile=/var/log/pluto.log

conn tunnel
\tleft=192.0.2.1
\tleftid=@west
\tleftsubnet=10.1.0.0/24
\tright=192.0.2.2
\trightid=@east
\trightsubnet=10.2.0.0/24
\tauthby=secret
"""


def test_a_ping_crosses_a_tunnel_set_up_by_ipsec_pyz(gateways: Gateways) -> None:
    for name in NAMES:
        gateways.write(name, "ipsec.conf", CONFIG)
        gateways.write(name, "ipsec.secrets", f'@west @east : PSK "{SECRET}"\n', 0o600)
        gateways.step(f"{name}-nss", name, ["certutil", "-N", "-d", "sql:/var/lib/ipsec/nss", "--empty-password"])
        gateways.ipsec(f"{name}-start", name, "pluto", "--config", "/etc/ipsec.conf")
        gateways.ipsec(f"{name}-add", name, "addconn", "tunnel")
    for name in NAMES:
        gateways.ipsec(f"{name}-listen", name, "whack", "--listen")
    gateways.ipsec("up", "west", "whack", "--name", "tunnel", "--initiate")
    gateways.step("ping", "west", ["ping", "-c", "3", "-w", "60", "-I", "10.1.0.1", "10.2.0.1"])
    for name in NAMES:
        gateways.ipsec(f"{name}-traffic", name, "whack", "--trafficstatus")
    gateways.step("state", "west", ["ip", "xfrm", "state"])
    results = gateways.run()
    assert {name: result.status for name, result in results.items()} == dict.fromkeys(results, 0)
    assert "3 received" in results["ping"].stdout
    for name in NAMES:
        traffic = results[f"{name}-traffic"].stdout
        assert "type=ESP" in traffic and "inBytes=252, outBytes=252" in traffic  # three pings of 84 bytes
