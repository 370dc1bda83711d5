"""Checks of verify for what no host here can be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import ipsec
from ipsec import CHECKS, Conn, Host, Patient, Section, Trouble, comparable_id, findings, has_secret

from .ground.machine import alive, wait_for


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
    conn = Conn(Section("fine", "ipsec.conf", 1, []))
    tunnels = [SimpleNamespace(device=device, peer=peer, family=family, conn=conn) for device, peer, family in
               (("eth0", "192.0.2.1", "ipv4"), ("eth1", "2001:db8::1", "ipv6"), ("eth2", "192.0.2.2", "ipv4"))]
    monkeypatch.setattr(Patient, "conns", [conn])
    monkeypatch.setattr(Patient, "tunnels", tunnels)
    asked: list[tuple[str, str, str, str]] = []
    monkeypatch.setattr(patient, "blocks", lambda hooks, *_, **packet: asked.append(
        (hooks, packet.get("in") or packet["out"], packet["family"], packet["proto"].split()[0])) or "")
    assert list(CHECKS["firewall"].function(patient)) == []
    for tunnel in tunnels:
        for hooks in ("prerouting input", "output postrouting"):
            for protocol in ("udp", "esp"):
                assert (hooks, tunnel.device, tunnel.family, protocol) in asked
        icmp = "icmp" if tunnel.family == "ipv4" else "icmpv6"
        assert ("prerouting input", tunnel.device, tunnel.family, icmp) in asked


def test_a_program_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """addconn waits for DNS, say; and one that can't be run at all is one check that is not made."""
    addconn, file = tmp_path / "addconn", tmp_path / "ipsec.conf"
    addconn.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 3600\n")
    addconn.chmod(0o755)
    file.write_text("config setup\n")
    host = Host({"IPSEC_EXECDIR": str(tmp_path)}, conf=str(file))
    monkeypatch.setattr(Host, "superuser", True)
    patient = Patient(host, 60.0)
    patient.ask_addconn()
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "addconn")
    patient.close()
    assert not alive(int((tmp_path / "pid").read_text())) and not host.children
    (found,) = findings(host, 0.1, ("config",))
    assert (found.level, found.why) == ("SKIP", "the installed addconn --checkconfig did not end within 0.1 s")
    addconn.write_text("no program")
    (found,) = findings(host, 60.0, ("config",))
    assert (found.level, found.why) == ("SKIP", f"{addconn}: Exec format error")


def test_what_mends_a_mounted_disk_is_done_on_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text("config setup\n\tauto=banana\n")
    found = {one.check: one for one in findings(Host({}, root=str(tmp_path)), 1.0, ("config", "nss"))}
    assert found["config"].mend == f"chroot {tmp_path} vi +2 /etc/ipsec.conf"
    assert found["nss"].mend == (f"chroot {tmp_path} sh -c 'mkdir -p -m 700 /var/lib/ipsec/nss && ipsec initnss "
                                 "--nssdir /var/lib/ipsec/nss'")


@pytest.mark.parametrize(("ids", "taken"), [
    ("", True), ("192.0.2.1", True), ("192.0.2.2", False), ("192.0.2.1 192.0.2.2", True),
    ("192.0.2.1 192.0.2.9", False), ("192.0.2.1 %any", True), ("192.0.2.2 %any", True), ("%any", True),
    ("%any 0.0.0.0", True), ("@west @east", False), ("192.0.2.1 192.0.2.2 192.0.2.9", True),
    ("192.0.2.1 192.0.2.2 %any", False), ("192.0.2.1 peer.example", None), ("peer.example", None),
    ("west 192.0.2.2", True), ("192.0.2.1 C=CH", None),
])
def test_a_secret_is_taken_as_pluto_takes_it(ids: str, taken: bool | None) -> None:
    """By the IDs of its record; None when DNS, or a reading of names, decides (secrets.c of 4.10)."""
    names = {"west": "192.0.2.1"}
    keys = [comparable_id(word, names) for word in ids.split()]
    assert has_secret(keys, "192.0.2.1/32", "192.0.2.2/32") is taken


@pytest.mark.parametrize(("one", "other", "same"), [
    ("@West.", "@west", True), ("u@Host", "U@host", True), ("@west", "west@", False),
    ("2001:db8::1", "2001:db8:0::01", True), ("@#4142", "@[AB]", True),
    ("@[ab]", "@[AB]", False), ("10.0.0.1", "10.0.0.2", False),
    ("Gate", "10.0.0.7", True),
])
def test_ids_are_the_same_as_pluto_sees_it(one: str, other: str, same: bool) -> None:
    names = {"gate": "10.0.0.7"}
    assert (comparable_id(one, names) == comparable_id(other, names)) is same


STATUS = """"rw": 10.1.0.0/24===192.0.2.1...192.0.2.2===0.0.0.0/0; unrouted; eroute owner: #0
"rw":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"rw":   newest IKE SA: #0; newest IPsec SA: #0; conn serial: $1;
"rw"[1]: 10.1.0.0/24===192.0.2.1...192.0.2.2===10.9.0.0/24; erouted; eroute owner: #2
"rw"[1]:     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"rw"[1]:   newest IKE SA: #1; newest IPsec SA: #2; conn serial: $2;
"net/24": 192.0.2.1...192.0.2.2; unrouted; eroute owner: #0
"net/24":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"two/1x1": 10.1.0.0/24===192.0.2.1...192.0.2.2===10.2.0.0/24; unrouted; eroute owner: #0
"two/1x1":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"two/1x2": 10.1.0.0/24===192.0.2.1...192.0.2.2===10.3.0.0/24; unrouted; eroute owner: #0
"two/1x2":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;"""


def test_what_pluto_has_is_compared_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is up counts, pairs of subnets are one connection, and `/24` in a name is no such pair."""
    file = tmp_path / "ipsec.conf"
    ends = "\tleft=192.0.2.1\n\tright=192.0.2.2\n"
    file.write_text(
        f"conn rw\n\tauto=start\n\tnarrowing=yes\n\tleftsubnet=10.1.0.0/24\n\trightsubnet=0.0.0.0/0\n{ends}"
        f"conn net/24\n\tauto=add\n{ends}"
        f"conn two\n\tauto=add\n\tleftsubnet=10.1.0.0/24\n\trightsubnets={{10.2.0.0/24,10.3.0.0/24}}\n{ends}")
    patient = Patient(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(patient, "status", STATUS.splitlines)
    tunnels = [SimpleNamespace(conn=conn, here="left") for conn in patient.config.conns()]
    monkeypatch.setattr(Patient, "tunnels", tunnels)
    assert list(CHECKS["loaded"].function(patient)) == []
    other = STATUS.replace("SA: #2", "SA: #0").replace("10.3.0.0", "10.4.0.0")
    monkeypatch.setattr(patient, "status", other.splitlines)
    assert [trouble[1] for trouble in CHECKS["loaded"].function(patient)] == ["CHANGED"]


def test_a_connection_that_should_be_up_and_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto=start and pluto's own policy say which; the log says since when and why."""
    file, log = tmp_path / "ipsec.conf", tmp_path / "pluto.log"
    file.write_text(f"config setup\n\tlogfile={log}\nconn rw\n\tauto=start\n\tleft=192.0.2.1\n\tright=192.0.2.2\n")
    log.write_text('Nov 23 06:12:08.000000: "rw" #1: initiating IKEv2 connection\n'
                   'Nov 23 06:12:09.000000: "rw" #1: authentication failed: no PSK found for \'@rw\'\n')
    patient = Patient(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(patient, "status", STATUS.splitlines)
    assert list(CHECKS["up"].function(patient)) == []
    down = STATUS.replace("SA: #2", "SA: #0").replace("; erouted", "; unrouted")
    monkeypatch.setattr(patient, "status", down.splitlines)
    (level, word, why, mend), = CHECKS["up"].function(patient)
    assert (level, word, mend) == ("FAIL", "DOWN", "ipsec why rw") and "06:12:09: no pre-shared key (PSK)" in why
    log.unlink()
    (level, _, why, _), = CHECKS["up"].function(patient)
    assert level == "WARN" and "why is not known" in why
    policy = '"two/1x1":   policy: IKEv2+PSK+UP;\n"two/1x2": 10.1'
    monkeypatch.setattr(patient, "status", STATUS.replace('"two/1x2": 10.1', policy, 1).splitlines)
    assert [trouble[2].split()[1] for trouble in CHECKS["up"].function(patient)] == ["two"]


@pytest.mark.parametrize("said", [
    "cannot load config '{}': {}:2: syntax error [nat_traversal]",
    "FATAL ERROR: ipsec addconn: {}:2: unrecognized keyword 'nat_traversal'",
    "ERROR: {}: 2: keyword nat_traversal, invalid value: hunter22",
])
def test_of_what_addconn_refuses_place_and_keyword_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            said: str) -> None:
    """In the words of 4.3, 5.2 and 4.10; nothing else, as the rest may be a secret."""
    file = tmp_path / "ipsec.conf"
    file.write_text("config setup\n")
    patient = Patient(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(patient, "addconn_answer", lambda: (True, ["a warning", said.format(file, file)]))
    (trouble,) = CHECKS["config"].function(patient)
    assert trouble[2] == f"{file}:2: the installed addconn refuses nat_traversal, see ipsec addconn --checkconfig"
    assert trouble[3] == f"vi +2 {file}"
    monkeypatch.setattr(patient, "addconn_answer", lambda: (True, [f"{file}:7: syntax error [hunter22]"]))
    (trouble,) = CHECKS["config"].function(patient)
    assert "hunter22" not in trouble[2] and trouble[2].startswith(f"{file}:7: ")


@pytest.mark.parametrize("line, sentence", [
    ("ipsec addconn: connection authby= value is unknown", "connection authby= value is unknown"),
    ("problem with include filename 'ipsec.d': No such file or directory",
     "problem with include filename '…': No such file or directory"),
    ("while loading 'a': bad subnet leftsubnet=hunter22/33 [non-contiguous or otherwise erroneous mask]",
     "bad subnet leftsubnet= [non-contiguous or otherwise erroneous mask]"),
    ("addconn, in config '{file}', ignoring: connection authby= value is unknown",
     "connection authby= value is unknown"),
    ("ipsec addconn: {file}:9: warning: invalid, keyword ignored: leftauth=hunter22",
     "{file}:9: warning: invalid, keyword ignored: leftauth"),
    ("ERROR: {file}: 6: keyword type, invalid value: hunter22", "{file}: 6: keyword type, invalid value:"),
    ('ipsec addconn: duration "hunter22" has "hunter22', 'duration "…" has …'),
])
def test_a_complaint_of_addconn_is_shown_without_what_may_be_a_secret(tmp_path: Path, line: str,
                                                                      sentence: str) -> None:
    file = tmp_path / "ipsec.conf"
    file.write_text("conn a\n\tleft=192.0.2.1\n")
    patient = Patient(Host({}, conf=str(file)), 1.0)
    patient.has_loaded = lambda conn: True  # type: ignore[method-assign]
    troubles = list(ipsec.addconn_complaints(patient, [line.format(file=file)] * 2))
    assert [trouble[0] for trouble in troubles] == ["FAIL" if "bad subnet" in line else "WARN"]
    assert f": {sentence.format(file=file)}; see ipsec addconn --checkconfig" in troubles[0][2]


def test_addconn_decides_whether_a_configuration_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ipsec.conf"
    file.write_text("conn a\n\tnew-keyword=yes\n")
    patient = Patient(Host({}, conf=str(file)), 1.0)
    for answer, level in (((None, []), "FAIL"), ((True, ["x"]), "FAIL"), ((False, []), "WARN")):
        monkeypatch.setattr(patient, "addconn_answer", lambda answer=answer: answer)
        (trouble,) = CHECKS["config"].function(patient)
        assert trouble[0] == level and f"{file}:2: unknown keyword" in trouble[2]
