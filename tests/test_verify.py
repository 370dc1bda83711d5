"""Checks of verify for what no host here can be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ipsec import CHECKS, Host, Patient, Trouble, findings


@pytest.mark.parametrize(("pluto", "kernel", "policy", "found"), [
    ({"fips mode": "disabled;"}, "0", "", []),
    ({"fips mode": "enabled;"}, "1", "FIPS", []),
    ({"fips mode": "disabled;"}, "1", "FIPS", ["MISMATCH"]),
    ({"fips mode": "enabled;"}, "0", "", ["MISMATCH"]),
    ({}, "1", "DEFAULT", ["MISMATCH"]),
])
def test_fips_mode_of_kernel_policy_and_pluto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pluto: dict[str, str],
                                              kernel: str, policy: str, found: list[str]) -> None:
    host = Host(conf=str(tmp_path / "ipsec.conf"))
    values = {"/proc/sys/crypto/fips_enabled": kernel, "/etc/crypto-policies/config": policy}
    monkeypatch.setattr(host, "value", lambda name, default="": values.get(name, default))
    patient = Patient(host, 1.0)
    patient.pid = 1
    monkeypatch.setattr(patient, "status", lambda: [f"{name}={value}" for name, value in pluto.items()])
    troubles: list[Trouble] = list(CHECKS["fips"].function(patient))
    assert [word for _, word, _, _ in troubles] == found


def test_the_firewall_is_checked_for_every_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient(Host(), 1.0)
    tunnels = [SimpleNamespace(device=device, peer=peer, family=family) for device, peer, family in
               (("eth0", "192.0.2.1", "ipv4"), ("eth1", "2001:db8::1", "ipv6"), ("eth2", "192.0.2.2", "ipv4"))]
    monkeypatch.setattr(Patient, "conns", [])
    monkeypatch.setattr(Patient, "tunnels", tunnels)
    asked: list[tuple[str, str, str]] = []
    monkeypatch.setattr(patient, "blocks", lambda hook, **packet: asked.append(
        (packet["in"], packet["family"], packet["proto"].split()[0])) or "")
    assert list(CHECKS["firewall"].function(patient)) == []
    for tunnel in tunnels:
        for protocol in ("udp", "esp", "icmp" if tunnel.family == "ipv4" else "icmpv6"):
            assert (tunnel.device, tunnel.family, protocol) in asked


def test_what_mends_a_mounted_disk_is_done_on_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text("config setup\n\tauto=banana\n")
    found = {one.check: one for one in findings(Host({}, root=str(tmp_path)), 1.0, ("config", "nss"))}
    assert found["config"].mend == f"chroot {tmp_path} vi +2 /etc/ipsec.conf"
    assert found["nss"].mend == f"chroot {tmp_path} ipsec checknss"
