"""verify on real hosts: nothing to complain of on healthy ones, and what is broken is found."""

from __future__ import annotations

import json
import signal
from typing import Callable

import pytest

from ..ground.machine import Machine
from ..ground.pluto import Pluto

CONFIG = "config setup\nconn fine\n\tauto=add\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauthby=secret\n"
SECRETS = '192.0.2.1 192.0.2.2 : PSK "a pre-shared key"\n'
WORDS = {"rp_filter": "ENABLED", "redirects": "NOT DISABLED", "larval": "NOT ENABLED", "config": "PARSE ERROR",
         "secrets": "PARSE ERROR", "stopped": "FAILED", "nss": "MISSING"}


def failing(machine: Machine) -> dict[str, str]:
    """The findings that are not OK: word by text."""
    result = machine.ipsec("verify", "--json", "--timeout", "3")
    found = json.loads(result.stdout)
    assert result.status == sum(finding["level"] == "FAIL" for finding in found)
    assert all(bool(finding["why"]) == bool(finding["mend"]) == (finding["level"] != "OK") for finding in found)
    return {finding["text"].strip(): finding["word"] for finding in found if finding["level"] != "OK"}


@pytest.fixture
def healthy(gateway: Machine, pluto: Callable[..., Pluto]) -> Pluto:
    gateway.address("192.0.2.1/24")
    return pluto(gateway, CONFIG, SECRETS)


def test_healthy_hosts_have_no_findings(healthy: Pluto) -> None:
    assert failing(healthy.machine) == {}
    result = healthy.machine.ipsec("verify")
    assert (result.status, result.stderr) == (0, "")
    assert "Checking that pluto is running                    \t[OK]" in result.stdout.splitlines()
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("what", list(WORDS))
def test_what_is_broken_is_found(root: Callable[..., Machine], pluto: Callable[..., Pluto], what: str) -> None:
    machine = root("bookworm")
    machine.address("192.0.2.1/24")
    daemon = pluto(machine, CONFIG, SECRETS)

    def write(name: str, value: str) -> None:
        machine.run(["sh", "-c", f"echo {value} > /proc/sys/net/{name}"]).check()

    if what == "rp_filter":
        write("ipv4/conf/eth0/rp_filter", "1")
    elif what == "redirects":
        write("ipv4/ip_forward", "1")
        write("ipv4/conf/eth0/send_redirects", "1")
        write("ipv4/conf/eth0/accept_redirects", "0")
    elif what == "larval":
        write("core/xfrm_larval_drop", "0")
    elif what == "config":
        machine.write("/etc/ipsec.conf", CONFIG + "\tauto=banana\n")
    elif what == "secrets":
        machine.write("/etc/ipsec.secrets", ': PSK "unterminated\n', 0o600)
    elif what == "nss":
        machine.run(["rm", "/var/lib/ipsec/nss/key4.db"]).check()
    else:
        machine.signal(daemon.pid, signal.SIGSTOP)
    try:
        assert set(failing(machine).values()) == {WORDS[what]}
    finally:
        daemon.stop(signal.SIGKILL)
