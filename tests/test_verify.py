"""Checks of verify for what no host here can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec import CHECKS, Host, Patient, Trouble


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
