"""Secrets in command lines and in remarks of real firewall rules: no report and no listing shows them."""

from __future__ import annotations

import os

from ..ground import canaries
from ..ground.machine import Machine


def test_no_canary_leaves(gateway: Machine) -> None:
    """In the report, and in what look lists, as text and as JSON."""
    planted = [*canaries.canaries_of_files(), *canaries.live_canaries()]
    gateway.address("192.0.2.1/24")
    for path, text in canaries.files(planted[:len(canaries.canaries_of_files())]).items():
        gateway.run(["mkdir", "-p", os.path.dirname(path)]).check()
        gateway.write(path, text)
    gateway.run(["mkfifo", "/run/nobody-writes"]).check()
    chain, sets = [], []
    for number, canary in enumerate(canaries.live_canaries()):
        if canary.place == "process":
            program, *words = canary.line.split(" ")
            gateway.run(["mkdir", "-p", f"/x/{number}"]).check()
            gateway.write(f"/x/{number}/{program}", "#!/bin/sh\nread word </run/nobody-writes\n", 0o755)
            gateway.spawn([f"/x/{number}/{program}", *words], "/x.log")
        elif canary.place == "iptables comment":
            gateway.run(["iptables", "-A", "INPUT", "-p", "esp", "-m", "comment", "--comment", canary.line,
                         "-j", "ACCEPT"]).check()
        elif canary.place == "iptables prefix":
            gateway.run(["iptables", "-A", "INPUT", "-p", "esp", "-j", "LOG", "--log-prefix", canary.line]).check()
        elif canary.place == "nft set comment":
            sets.append(f'set s{number} {{ type ipv4_addr; comment "{canary.line}"; '
                        f'elements = {{ 192.0.2.{number} comment "{canary.line}" }} }}')
        elif canary.place == "nft comment":
            chain.append(f'ip protocol esp accept comment "{canary.line}"')
        else:
            chain.append(f'ip protocol esp log prefix "{canary.line}"')
    hook = "chain c { type filter hook input priority 0;\n"
    rules = "table inet canary {\n" + "\n".join([*sets, hook, *chain]) + "\n}\n}\n"
    gateway.run(["nft", "-f", "-"], input=rules).check()
    words = ["state", "policy", "nftables", "iptables", "route"]
    for command in (["barf"], ["barf", "--json"], ["look", *words], ["look", "--json", *words]):
        result = gateway.ipsec(*command, timeout=300)
        assert canaries.leaked(result.stdout + result.stderr, planted) == []
        assert "-j ACCEPT" in result.stdout or "ip protocol esp accept" in result.stdout
