"""Checks of verify for what no host here can be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import ipsec
from ipsec import (
    CHECKS,
    Certificate,
    Conn,
    Facts,
    Finding,
    Host,
    Parsed,
    Section,
    Trouble,
    bare_nickname,
    certificates_by_nickname,
    comparable_id,
    findings,
    has_secret,
    is_bad_private,
    is_behind,
    is_dropped_id,
    verify_lines,
)

from .ground.machine import alive, wait_for


@pytest.mark.parametrize(("pluto", "kernel", "policy", "expected"), [
    ({"fips mode": "disabled;"}, "0", "", []),
    ({"fips mode": "enabled;"}, "1", "FIPS", []),
    ({"fips mode": "disabled;"}, "1", "FIPS", ["MISMATCH"]),
    ({"fips mode": "enabled;"}, "0", "", ["MISMATCH"]),
    ({}, "1", "DEFAULT", ["MISMATCH"]),
])
def test_fips_mode_of_kernel_policy_and_pluto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pluto: dict[str, str],
                                              kernel: str, policy: str, expected: list[str]) -> None:
    host = Host(conf=str(tmp_path / "ipsec.conf"))
    values = {"/proc/sys/crypto/fips_enabled": kernel, "/etc/crypto-policies/config": policy}
    monkeypatch.setattr(host, "value", lambda name, default="": values.get(name, default))
    facts = Facts(host, 1.0)
    facts.pid = 1
    monkeypatch.setattr(facts, "status", lambda: [f"{name}={value}" for name, value in pluto.items()])
    troubles: list[Trouble] = list(CHECKS["fips"].function(facts))
    assert [word for _, word, _, _ in troubles] == expected


@pytest.mark.parametrize("version, text, lacks, expected", [
    ("4.10", "ikev2=no", "hmac(sha1)", "FAIL"), ("5.2", "ikev2=off", "hmac(sha1)", "WARN"),
    ("4.10", "ikev2=no", "rfc4106(gcm(aes))", None), ("5.2", "keyexchange=ikev2", "hmac(sha1)", None),
    ("5.2", "keyexchange=ikev1", "hmac(sha1)", "WARN"), ("4.10", "pfs=yes", "rfc4106(gcm(aes))", "WARN"),
    ("3.32", "ikev2=permit", "hmac(sha1)", "FAIL"), ("3.32", "ikev2=insist", "hmac(sha1)", None),
    ("4.10", "phase2=ah", "cbc(aes)", None), ("4.10", "phase2=ah", "hmac(sha512)", "WARN"),
    ("4.10", "phase2=ah\n\tikev2=never", "hmac(sha1)", "FAIL"),
    ("4.10", "esp=aes_gcm256-null", "ecb(cipher_null)", None), ("4.10", "esp=null-sha1", "ecb(cipher_null)", "FAIL"),
    ("4.10", "esp=aesctr-sha2", "rfc3686(ctr(aes))", "FAIL"), ("4.10", "esp=aesctr-sha2", "cbc(aes)", None),
    ("4.10", "esp=chacha20poly1305", "rfc7539esp(chacha20,poly1305)", "FAIL"),
    ("4.10", "esp=aes-sha512", "hmac(sha512)", "FAIL"), ("4.10", "esp=aes-sha2_256", "hmac(sha512)", None),
])
def test_the_algorithms_are_those_that_libreswan_proposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          version: str, text: str, lacks: str,
                                                          expected: str | None) -> None:
    """IKEv1 and AH have proposals of their own, and some algorithms have several spellings (algparse)."""
    host = Host({}, conf=str(tmp_path / "ipsec.conf"))
    host.version = version
    Path(host.conf).write_text(f"conn a\n\tauto=add\n\t{text}\n")
    facts = Facts(host, 1.0)
    monkeypatch.setattr(facts, "crypto", lambda: {name for _, name, _, _ in ipsec.KERNEL_ALGORITHMS if name != lacks})
    monkeypatch.setattr(facts, "kernel_has", lambda option, module: False)
    levels = [level for level, _, _, _ in CHECKS["algorithms"].function(facts)]
    assert levels == ([expected] if expected else [])


@pytest.mark.parametrize("version, text, needed", [
    ("4.10", "compress=y", True), ("5.2", "compress=1", True), ("5.2", "compress=ON", True),
    ("4.3", "compress=no", False), ("5.2", "compress=0", False), ("5.2", "ipsec-interface=off", False),
    ("4.10", "ipsec-interface=off", True),
    ("5.2", "ipsec-interface=no", False), ("5.2", "ipsec-interface=y", True), ("4.10", "phase2=ah", True),
])
def test_words_for_yes_and_no_are_those_of_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str,
                                                       text: str, needed: bool) -> None:
    host = Host({}, conf=str(tmp_path / "ipsec.conf"))
    host.version = version
    Path(host.conf).write_text(f"conn a\n\tauto=add\n\t{text}\n")
    facts = Facts(host, 1.0)
    monkeypatch.setattr(facts, "kernel_has", lambda option, module: module in ("esp4", "esp6"))
    assert [level for level, _, _, _ in CHECKS["esp"].function(facts)] == ["FAIL"] * needed


def test_names_that_are_not_listed_are_counted() -> None:
    assert ipsec.few(["a", "b"], "conn ") == "conn a, conn b"
    assert ipsec.few([*"abcdefg"]) == "a, b, c, d, e and 2 more"


def test_the_firewall_is_checked_for_every_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts(Host(), 1.0)
    conn = Conn(Section("fine", "ipsec.conf", 1, []))
    tunnels = [SimpleNamespace(device=device, peer=peer, family=family, conn=conn, address="")
               for device, peer, family in (
                   ("eth0", "192.0.2.1", "ipv4"), ("eth1", "2001:db8::1", "ipv6"), ("eth2", "192.0.2.2", "ipv4"))]
    monkeypatch.setattr(Facts, "conns", [conn])
    monkeypatch.setattr(Facts, "tunnels", tunnels)
    asked: list[tuple[str, str, str, str]] = []

    def insert_command(hooks: str, *_: object, **packet: str) -> str:
        device = packet.get("in") or packet["out"]
        asked.append((hooks, device, packet["family"], packet["proto"].split()[0]))
        return ""

    monkeypatch.setattr(facts, "undecided_chain", lambda *_, **__: "")
    monkeypatch.setattr(facts, "insert_command", insert_command)
    assert list(CHECKS["firewall"].function(facts)) == []
    for tunnel in tunnels:
        for hooks in ("prerouting input", "output postrouting"):
            for protocol in ("udp", "esp"):
                assert (hooks, tunnel.device, tunnel.family, protocol) in asked
        icmp = "icmp" if tunnel.family == "ipv4" else "icmpv6"
        assert ("prerouting input", tunnel.device, tunnel.family, icmp) in asked


@pytest.mark.parametrize("peer, answers", [
    ("%any", True), ("%any6", True), ("0.0.0.0", True), ("::", True), ("192.0.2.1", False), ("gw.example", False)])
def test_a_peer_with_any_address_can_send_the_first_packet(peer: str, answers: bool) -> None:
    text = f"conn rw\n\tleft=%defaultroute\n\tright={peer}\n\tauto=start\n"
    roles = ipsec.roles_of(ipsec.Config(Host({}), "ipsec.conf", text=text).conns())
    assert (roles.answers, roles.waits, roles.begins) == (answers, answers, True)


def test_a_program_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """addconn waits for DNS, say; and one that can't be run at all is one check that is not made."""
    addconn, file = tmp_path / "addconn", tmp_path / "ipsec.conf"
    addconn.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 3600\n")
    addconn.chmod(0o755)
    file.write_text("config setup\n")
    host = Host({"IPSEC_EXECDIR": str(tmp_path)}, conf=str(file))
    monkeypatch.setattr(Host, "superuser", True)
    facts = Facts(host, 60.0)
    facts.ask_addconn()
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "addconn")
    facts.close()
    assert not alive(int((tmp_path / "pid").read_text())) and not host.children
    (finding,) = findings(host, 0.1, ("config",))
    assert (finding.level, finding.why) == ("SKIP", "the installed addconn --checkconfig did not end within 0.1 s")
    addconn.write_text("no program")
    (finding,) = findings(host, 60.0, ("config",))
    assert (finding.level, finding.why) == ("SKIP", f"{addconn}: Exec format error")


def test_what_mends_a_mounted_disk_is_done_on_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text("config setup\n\tauto=banana\n")
    by_check = {one.check: one for one in findings(Host({}, root=str(tmp_path)), 1.0, ("config", "nss"))}
    assert by_check["config"].mend == f"chroot {tmp_path} vi +2 /etc/ipsec.conf"
    assert by_check["nss"].mend == (f"chroot {tmp_path} sh -c 'mkdir -p -m 700 /var/lib/ipsec/nss && ipsec initnss "
                                    "--nssdir /var/lib/ipsec/nss'")


@pytest.mark.parametrize(("files", "commands"), [
    (["etc/ipsec.d/cert9.db"], ["checknss --nssdir /var/lib/ipsec/nss"]),
    (["var/lib/ipsec/nss/cert8.db"], ["checknss --nssdir /var/lib/ipsec/nss"]),
    (["etc/ipsec.d/cert8.db"], ["checknss --nssdir /etc/ipsec.d", "checknss --nssdir /var/lib/ipsec/nss"]),
    (["etc/ipsec.d/cert8.db", "etc/ipsec.d/cert9.db"], ["checknss --nssdir /var/lib/ipsec/nss"]),
    (["etc/ipsec.d/secmod.db"], ["initnss --nssdir /var/lib/ipsec/nss"]),
])
def test_an_old_database_is_converted_before_it_is_moved(tmp_path: Path, files: list[str],
                                                         commands: list[str]) -> None:
    """checknss refuses to convert and move a database in one run."""
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (finding,) = findings(Host({}, root=str(tmp_path)), 1.0, ("nss",))
    steps = ["mkdir -p -m 700 /var/lib/ipsec/nss", *(f"ipsec {command}" for command in commands)]
    assert finding.mend == f"chroot {tmp_path} sh -c '{' && '.join(steps)}'"


def test_an_old_database_that_only_root_can_see_is_not_hidden_by_a_new_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/ipsec.d").mkdir(parents=True)

    def listdir(host: Host, name: str) -> list[str]:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Host, "listdir", listdir)
    (finding,) = findings(Host({}, root=str(tmp_path)), 1.0, ("nss",))
    assert (finding.level, finding.word) == ("FAIL", "MISSING")
    assert finding.mend.endswith("&& ipsec checknss --nssdir /var/lib/ipsec/nss'")


@pytest.mark.parametrize(("ids", "taken"), [
    ("", True), ("192.0.2.1", True), ("192.0.2.2", False), ("192.0.2.1 192.0.2.2", True),
    ("192.0.2.1 192.0.2.9", False), ("192.0.2.1 %any", True), ("192.0.2.2 %any", True), ("%any", True),
    ("%any 0.0.0.0", True), ("@west @east", False), ("192.0.2.1 192.0.2.2 192.0.2.9", True),
    ("192.0.2.1 192.0.2.2 %any", False), ("192.0.2.1 peer.example", None), ("peer.example", None),
    ("west 192.0.2.2", True), ("192.0.2.1 C=CH", None), ("192.0.2.9 %any", True), ("192.0.2.8 192.0.2.9 %any", True),
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
"1x2": 192.0.2.1...192.0.2.2; unrouted; eroute owner: #0
"1x2":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"two/1x1": 10.1.0.0/24===192.0.2.1...192.0.2.2===10.2.0.0/24; unrouted; eroute owner: #0
"two/1x1":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"two/1x2": 10.1.0.0/24===192.0.2.1...192.0.2.2===10.3.0.0/24; unrouted; eroute owner: #0
"two/1x2":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;"""


def test_what_pluto_has_is_compared_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is up counts; pairs of subnets are one connection; `/24` and `1x2` are no pairs."""
    file = tmp_path / "ipsec.conf"
    ends = "\tleft=192.0.2.1\n\tright=192.0.2.2\n"
    file.write_text(
        f"conn rw\n\tauto=start\n\tnarrowing=yes\n\tleftsubnet=10.1.0.0/24\n\trightsubnet=0.0.0.0/0\n{ends}"
        f"conn net/24\n\tauto=add\n{ends}"
        f"conn 1x2\n\tauto=add\n{ends}"
        f"conn two\n\tauto=add\n\tleftsubnet=10.1.0.0/24\n\trightsubnets={{10.2.0.0/24,10.3.0.0/24}}\n{ends}")
    facts = Facts(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(facts, "status", STATUS.splitlines)
    tunnels = [SimpleNamespace(conn=conn, here="left") for conn in facts.config.conns()]
    monkeypatch.setattr(Facts, "tunnels", tunnels)
    assert list(CHECKS["loaded"].function(facts)) == []
    other = STATUS.replace("SA: #2", "SA: #0").replace("10.3.0.0", "10.4.0.0")
    facts = Facts(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(facts, "status", other.splitlines)
    assert [trouble[1] for trouble in CHECKS["loaded"].function(facts)] == ["CHANGED"]


def test_a_broken_connection_is_checked_if_pluto_has_loaded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pluto 4.10 loads it at its start without the missing section."""
    conf = "conn {}\n\tauto=add\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\talso=missing\n"
    facts = facts_of(tmp_path, monkeypatch, conf.format("rw") + conf.format("gone"), status=STATUS)
    assert all(conn.broken for conn in facts.config.conns())
    assert [conn.name for conn in facts.conns] == ["rw"]


def test_a_connection_that_should_be_up_and_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto=start and pluto's own policy say which; the log says since when and why."""
    file, log = tmp_path / "ipsec.conf", tmp_path / "pluto.log"
    file.write_text(f"config setup\n\tlogfile={log}\nconn rw\n\tauto=start\n\tleft=192.0.2.1\n\tright=192.0.2.2\n")
    log.write_text('Nov 23 06:12:08.000000: "rw" #1: initiating IKEv2 connection\n'
                   'Nov 23 06:12:09.000000: "rw" #1: authentication failed: no PSK found for \'@rw\'\n')

    def check_up(status: str) -> list[Trouble]:
        facts = Facts(Host({}, conf=str(file)), 1.0)
        monkeypatch.setattr(facts, "status", status.splitlines)
        return list(CHECKS["up"].function(facts))

    assert check_up(STATUS) == []
    down = STATUS.replace("SA: #2", "SA: #0").replace("; erouted", "; unrouted")
    (level, word, why, mend), = check_up(down)
    assert (level, word, mend) == ("FAIL", "DOWN", "ipsec why rw")
    assert why.startswith("conn rw should be up, but has no IPsec SA; tried at ")
    assert "06:12:09: this host has no pre-shared key (PSK)" in why
    log.unlink()
    (level, _, why, _), = check_up(down)
    assert level == "WARN" and "the cause is unknown" in why
    file.write_text(file.read_text().replace("auto=start", "auto=add"))
    log.write_text('Nov 23 06:12:08.000000: "two/1x1" #1: initiating IKEv2 connection\n'
                   'Nov 23 06:12:09.000000: "two/1x1" #1: authentication failed: no PSK found for \'@rw\'\n')
    (level, word, why, _), = check_up(down)
    assert (level, word) == ("WARN", "FAILED") and why.startswith("the last attempt of conn two failed; tried at ")
    log.write_text('Nov 23 06:12:08.000000: "two/1x1" #1: received Delete SA payload: delete IKE SA\n')
    assert check_up(down) == []
    policy = '"two/1x1":   policy: IKEv2+PSK+UP;\n"two/1x2": 10.1'
    wanted = STATUS.replace('"two/1x2": 10.1', policy, 1)
    (_, _, why, _), = check_up(wanted)
    assert why.startswith("conn two should be up, but has no IPsec SA; ")
    (_, _, why, _), = check_up(wanted + '\n"two/1x2":   newest IKE SA: #1; newest IPsec SA: #3; conn serial: $5;')
    assert why.startswith("conn two should be up, but lacks the IPsec SA of some of its networks; ")


@pytest.mark.parametrize("complaint", [
    "cannot load config '{}': {}:2: syntax error [nat_traversal]",
    "FATAL ERROR: ipsec addconn: {}:2: unrecognized keyword 'nat_traversal'",
    "ERROR: {}: 2: keyword nat_traversal, invalid value: hunter22",
])
def test_of_what_addconn_refuses_place_and_keyword_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            complaint: str) -> None:
    """In the words of 4.3, 5.2 and 4.10; nothing else, as the rest may be a secret."""
    file = tmp_path / "ipsec.conf"
    file.write_text("config setup\n")
    facts = Facts(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(facts, "addconn_answer", lambda: (True, ["a warning", complaint.format(file, file)]))
    (trouble,) = CHECKS["config"].function(facts)
    assert trouble[2] == f"{file}:2: the installed addconn refuses nat_traversal, see ipsec addconn --checkconfig"
    assert trouble[3] == f"vi +2 {file}"
    monkeypatch.setattr(facts, "addconn_answer", lambda: (True, [f"{file}:7: syntax error [hunter22]"]))
    (trouble,) = CHECKS["config"].function(facts)
    assert "hunter22" not in trouble[2] and trouble[2].startswith(f"{file}:7: ")


def test_the_line_number_belongs_to_the_included_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, included = tmp_path / "ipsec.conf", tmp_path / "tunnels.conf"
    file.write_text(f"include {included}\n")
    included.write_text("conn a\n\tleft=192.0.2.1\n")
    facts = Facts(Host({}, conf=str(file)), 1.0)
    monkeypatch.setattr(facts, "addconn_answer", lambda: (
        True, [f"cannot load config '{file}': {included}:2: syntax error [left]"]))
    (trouble,) = CHECKS["config"].function(facts)
    assert trouble[2].startswith(f"{included}:2: ") and trouble[3] == f"vi +2 {included}"


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
    facts = Facts(Host({}, conf=str(file)), 1.0)
    facts.has_loaded = lambda conn: True  # type: ignore[method-assign]
    troubles = list(ipsec.addconn_complaints(facts, [line.format(file=file)] * 2))
    assert [trouble[0] for trouble in troubles] == ["FAIL" if "bad subnet" in line else "WARN"]
    assert f": {sentence.format(file=file)}; see ipsec addconn --checkconfig" in troubles[0][2]


def test_a_quoted_value_is_hidden_also_if_the_name_of_the_configuration_is_relative(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ipsec --config ipsec.conf verify`: a word without a slash is in no directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ipsec.conf").write_text("conn a\n\tleft=192.0.2.1\n")
    line = "cannot load config 'ipsec.conf': conn 'a' has 'hunter22'"
    assert ipsec.addconn_sentence(ipsec.Config(Host({}), "ipsec.conf"), line) == line.replace("hunter22", "…")


BLOCKS = """while loading 'a': bad subnet leftsubnet=10.1.0.1 [no / in subnet specification]
while loading 'b': bad subnet leftsubnet=10.1.0.1 [no / in subnet specification]
connection authby= value is unknown
while loading 'c': bad subnet leftsubnet=10.1.0.1 [no / in subnet specification]
connection authby= value is unknown
connection authby= value is unknown
duplicate key 'left' in conn d while processing def d
while loading 'd': bad subnet leftsubnet=10.1.0.1 [no / in subnet specification]
connection authby= value is unknown
connection authby= value is unknown
duplicate key 'left' in conn d while processing def d
addconn, in config '/etc/ipsec.conf', bad subnet leftsubnet=10.1.0.1 [no / in subnet specification]
connection authby= value is unknown
connection authby= value is unknown
duplicate key 'left' in conn d while processing def d"""


@pytest.mark.parametrize(("output", "owners"), [
    (BLOCKS, ["a", "b", "c", "d"]),
    ("ipsec addconn: connection authby= value is unknown\n" * 2, ["b"]),
    ("ERROR: ipsec addconn: bad leftprotoport=foo/1 [first digit invalid]", ["d"]),
    ("ipsec addconn: something is odd", [""]),
])
def test_a_complaint_of_addconn_belongs_to_a_connection(output: str, owners: list[str]) -> None:
    """In the words of 4.3 and 4.10, which repeat all complaints, and of 5.2, which names no connection."""
    config = ipsec.Config(Host({}), "/etc/ipsec.conf",
                          "conn a\n\tleftsubnet=10.1.0.1\n\tauthby=secret,rsa-sha2_512\nconn b\n\tauthby=psk\n"
                          "conn c\n\tauthby=secret|null\nconn d\n\tleft=%any\n\tleftprotoport=foo/1\n")
    complaints = ipsec.named_complaints(config, output.splitlines())
    assert [conn.name if conn else "" for conn, _ in complaints] == owners


LISTS = '''"a": 10.1.0.0/16===192.0.2.1...192.0.2.2===10.9.0.0/24; unrouted; my_ip=unset; their_ip=unset;
"a": 10.2.0.0/16===192.0.2.1...192.0.2.2===10.9.0.0/24; unrouted; my_ip=unset; their_ip=unset;
"a":   host: oriented; local: 192.0.2.1; remote: 192.0.2.2;
"a":   conn serial: $2;'''


@pytest.mark.parametrize(("networks", "is_old", "expected"), [
    ("10.1.0.0/16,10.2.0.0/16", True, []), ("10.2.0.0/16", True, ["DIFFERENT"]), ("10.2.0.0/16", False, ["CHANGED"])])
def test_a_list_of_networks_is_compared_with_all_of_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 networks: str, is_old: bool,
                                                                 expected: list[str]) -> None:
    """In the words of 5.2.  A file that is older than pluto has not changed: pluto reads it otherwise."""
    conf = (f"conn a\n\tleft=192.0.2.1\n\tleftsubnet={networks}\n\tright=192.0.2.2\n\trightsubnet=10.9.0.0/24\n"
            "\tauto=add\n")
    facts = facts_of(tmp_path, monkeypatch, conf, status=LISTS)
    monkeypatch.setattr(facts, "has_changed", lambda file: not is_old)
    assert words(facts, "loaded") == expected


@pytest.mark.parametrize(("settings", "output", "reason"), [
    ("left=192.0.2.1", "", "the connection has no right="),
    ("auto=add", "", "the connection has no left= and no right="),
    ("left=192.0.2.1\n\tright=192.0.2.2\n\tauthby=psk", "ipsec addconn: connection authby= value is unknown",
     "the installed addconn refuses the connection: connection authby= value is unknown"),
    ("left=192.0.2.1\n\tright=192.0.2.2", "", "pluto refused the connection, or nobody asked pluto to load it"),
])
def test_why_a_connection_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, output: str,
                                        reason: str) -> None:
    facts = facts_of(tmp_path, monkeypatch, f"conn a\n\tauto=add\n\t{settings}\n", status='"b": 1...2; unrouted')
    monkeypatch.setattr(facts, "addconn_answer", lambda: (False, output.splitlines()))
    (trouble,) = CHECKS["loaded"].function(facts)
    assert trouble[2].endswith(f": {reason}")


@pytest.mark.parametrize(("line", "reason"), [
    ('"a": failed to add connection: IKE DH algorithm \'modp2048!\' is not recognized',
     "pluto refused the connection: IKE DH algorithm 'modp2048!' is not recognized"),
    ('"a": failed to add connection: leftsubnet=hunter22 invalid, hunter22 invalid, non-decimal digit in number',
     "pluto refused the connection: leftsubnet= invalid, … invalid, non-decimal digit in number"),
    ('"a": failed to add connection: left certificate \'hunter22\' not found in the NSS database',
     "pluto refused the connection: left certificate '…' not found in the NSS database"),
    ("addconn: ERROR: ipsec addconn: bad leftprotoport=foo/1 [first digit invalid]",
     "the installed addconn refuses the connection: bad leftprotoport= [first digit invalid]"),
    ("addconn: ipsec addconn: /etc/ipsec.conf:3: warning: invalid, keyword ignored: leftprotoport=foo/1",
     "pluto refused the connection, or nobody asked pluto to load it"),
    ('"b": failed to add connection: x', "pluto refused the connection, or nobody asked pluto to load it"),
])
def test_the_reason_in_the_log_is_told_without_what_may_be_a_secret(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str) -> None:
    facts = facts_of(tmp_path, monkeypatch, f"{CONN.format(right='192.0.2.2')}\tike=aes-sha2-modp2048!\n"
                         "\tleftprotoport=foo/1\n", status='"b": 1...2; unrouted')
    log = [ipsec.LogLine(None, line)]
    monkeypatch.setattr(ipsec, "read_pluto_log", lambda *_: log)
    monkeypatch.setattr(facts, "addconn_answer", lambda: (False, []))
    (trouble,) = CHECKS["loaded"].function(facts)
    assert trouble[2].endswith(f": {reason}")


def test_errors_and_missing_files_of_the_secrets_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(tmp_path, monkeypatch, CONN.format(right="192.0.2.2"), 'include none.secrets\n: PSK ""\n')
    assert [trouble[:3] for trouble in CHECKS["secrets"].function(facts)] == [
        ("FAIL", "PARSE ERROR", f"{tmp_path}/ipsec.secrets:2: the key is empty; pluto aborts when it uses the key"),
        ("WARN", "NOT LOADED", f'{tmp_path}/ipsec.secrets:1: "none.secrets": no such file')]


@pytest.mark.parametrize(("entry", "is_ignored"), [
    (": RSA key.pem", True), (': RSA key.pem "x"', True), (': P12 a.p12 "x"', True), ('u@x : EAP "x"', True),
    (': ECDSA key.pem', True), (': PIN tok "x"', True), (': RSA {\n\tModulus: 0x01\n\t}', False),
    ('@a : XAUTH "x"', False), (': PPKS "id" "x"', False), (': PSK "x"', False), ("# note", False)])
def test_entries_that_libreswan_ignores(tmp_path: Path, entry: str, is_ignored: bool) -> None:
    """As old guides and strongSwan write them; seen with 4.3, 4.10 and 5.2.  Raw RSA keys were read up to 4.4."""
    (tmp_path / "ipsec.secrets").write_text(f"{entry}\n")
    for version in ("4.4", "4.5"):
        host = Host({})
        host.version = version
        problems = ipsec.secret_files(host, str(tmp_path / "ipsec.secrets"))[1]
        is_raw = "{" in entry and version == "4.5"
        assert [problem.fatal for problem in problems] == ([False] if is_ignored or is_raw else [])


def test_addconn_decides_whether_a_configuration_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ipsec.conf"
    file.write_text("conn a\n\tnew-keyword=yes\n")
    facts = Facts(Host({}, conf=str(file)), 1.0)
    for answer, level in (((None, []), "FAIL"), ((True, ["x"]), "FAIL"), ((False, []), "WARN")):
        monkeypatch.setattr(facts, "addconn_answer", lambda answer=answer: answer)
        (trouble,) = CHECKS["config"].function(facts)
        assert trouble[0] == level and f"{file}:2: unknown keyword" in trouble[2]


def facts_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conf: str, secrets: str = "", status: str = "",
             here: str = "left") -> Facts:
    """Facts of a host with this configuration, whose pluto answers with the status, or not at all without one; each
    connection has this host at the side `here`."""
    (tmp_path / "ipsec.conf").write_text(conf)
    (tmp_path / "ipsec.secrets").write_text(secrets)
    (tmp_path / "ipsec.secrets").chmod(0o600)
    env = {"IPSEC_CONFDDIR": str(tmp_path), "IPSEC_RUNDIR": str(tmp_path), "IPSEC_EXECDIR": str(tmp_path),
           "IPSEC_NSSDIR": str(tmp_path / "nss")}
    facts = Facts(Host(env, conf=str(tmp_path / "ipsec.conf")), 1.0)

    def answer() -> list[str]:
        if not status:
            raise ipsec.NoPluto("no pluto")
        return status.splitlines()

    monkeypatch.setattr(facts, "status", answer)
    monkeypatch.setattr(facts, "pid", None)
    monkeypatch.setattr(facts, "pluto_signs", list)  # not those of a pluto on the machine that runs the tests
    tunnels = [SimpleNamespace(conn=conn, here=here) for conn in facts.config.conns()]
    monkeypatch.setattr(Facts, "tunnels", tunnels)
    return facts


def words(facts: Facts, check: str) -> list[str]:
    return [word for _, word, _, _ in CHECKS[check].function(facts)]


def test_no_secret_is_missed_in_a_file_that_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = "conn c\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauthby=secret\n\tauto=start\n"
    facts = facts_of(tmp_path, monkeypatch, conf, f"include {tmp_path}/more\n")
    (tmp_path / "more").mkdir()
    with pytest.raises(ipsec.NotChecked, match=f"can't read \"{tmp_path}/more\": Is a directory"):
        words(facts, "psk")


def test_an_addconn_that_hangs_hides_no_connection_that_is_not_loaded(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> None:
        raise ipsec.TimedOut("addconn did not end")

    facts = facts_of(tmp_path, monkeypatch, "conn c\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauto=add\n")
    monkeypatch.setattr(facts, "addconn_answer", hang)
    assert ipsec.not_loaded_reason(facts, facts.config.conns()[0]).startswith("pluto refused the connection, or nobody")


CONN = "conn a\n\tleft=192.0.2.1\n\tright={right}\n\tauthby=secret\n\tauto=add\n"


@pytest.mark.parametrize(("right", "secrets", "expected"), [
    ("192.0.2.2", '192.0.2.1 192.0.2.2 : PSK "k1k2k3k4"', []),
    ("192.0.2.2", '192.0.2.1 192.0.2.3 : PSK "k1k2k3k4"', ["NO SECRET"]),
    ("192.0.2.2", '192.0.2.0/24 : PSK "k1k2k3k4"', ["FOR ANYBODY"]),
    ("192.0.2.2", '192.0.2.1 192.0.2.0/24 : PSK "k1k2k3k4"', ["ID IGNORED"]),
    ("192.0.2.2", '192.0.2.9 192.0.2.0/24 : PSK "k1k2k3k4"', ["ID IGNORED", "NO SECRET"]),
    ("192.0.2.2", '192.0.2.1 peer.example : PSK "k1k2k3k4"', ["UNKNOWN"]),
    ("peer.example", '192.0.2.1 192.0.2.2 : PSK "k1k2k3k4"', ["UNKNOWN"]),
    ("%any", '192.0.2.1 %any : PSK "k1k2k3k4"', []), ("%any", '192.0.2.1 @peer : PSK "k1k2k3k4"', []),
    ("%any", ': PSK "k1k2k3k4"', []), ("%any", '192.0.2.9 @peer : PSK "k1k2k3k4"', ["NO SECRET"]),
    ("192.0.2.2", "", ["NO SECRET"]),
    # pluto loads the entries after one with an error, after a missing include, and of two equal ones uses the first
    ("192.0.2.2", '@x : PSK bare\n@y : PSK "open\n192.0.2.1 : PSK "k1k2k3k4"', []),
    ("192.0.2.2", 'include none.secrets\n192.0.2.1 : PSK "k1k2k3k4"', []),
    ("192.0.2.2", '192.0.2.1 192.0.2.2 : PSK bare', ["NO SECRET"]),
    ("192.0.2.2", '192.0.2.1 @x : PSK "k1"\n@x 192.0.2.1 : PSK "k2"\n: PSK "k3"', ["NOT USED"]),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\n192.0.2.1 : PSK "k1"', []),
    ("192.0.2.2", '192.0.2.1 : PSK ""', ["NO SECRET"]),
    # pluto drops a name that DNS does not resolve, and an entry without IDs is for anybody
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\nalice : PSK "k2"', ["UNKNOWN"]),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\nalice bob : XAUTH "k2"', ["UNKNOWN"]),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\n@alice : XAUTH "k2"', []),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\n@q q : PSK "k2"\nC=CH : PSK "k3"\n%any : PSK "k4"', []),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\n0.0.0.0 : PSK "k2"', []),
    ("192.0.2.2", '192.0.2.1 : PSK "k1"\n192.0.2.0/24 : XAUTH "k2"', ["FOR ANYBODY"]),
    ("192.0.2.2", 'alice : XAUTH "k1"', ["UNKNOWN", "NO SECRET"]),
])
def test_psk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, secrets: str, expected: list[str]) -> None:
    facts = facts_of(tmp_path, monkeypatch, CONN.format(right=right), secrets)
    assert words(facts, "psk") == expected


def test_an_id_that_may_be_a_secret_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = '192.0.2.0/24 : PSK "k1k2k3k4"\nhunter22! : PSK "k1k2k3k4"\n'
    facts = facts_of(tmp_path, monkeypatch, CONN.format(right="192.0.2.2"), secrets)
    network, other = list(CHECKS["psk"].function(facts))
    assert network[2].startswith(f"{tmp_path}/ipsec.secrets:1: ") and '"192.0.2.0/24"' in network[2]
    assert other[2].startswith(f"{tmp_path}/ipsec.secrets:2: ") and "hunter22" not in other[2]


@pytest.mark.parametrize(("text", "dropped"), [
    ("192.0.2.0/24", True), ("300.1.1.1", True), ("1.2.3", False), ("a!b", True), ("*", True), ("%anyx", True),
    ("@#zz", True), ("@#0x4142", False), ("2001:db8::zz", True), ("2001:db8::/32", True), ("fe80::1%eth0", False),
    ("%any", False), ("west", False), ("user@host", False), ("@west/24", False), ("C=CH", False), ("a,b", True),
    ("192.0.2.1", False), ("2001:db8::1", False), ("0.0.0.0", False),
])
def test_ids_that_pluto_drops(text: str, dropped: bool) -> None:
    """As 4.3, 4.10 and 5.2 do; of names DNS decides."""
    assert is_dropped_id(text) is dropped


@pytest.mark.parametrize(("entry", "bad"), [
    ("%v4:10.0.0.0/8", False), ("%v4:!10.1.0.0/16", False), ("%v6:fd00::/8", False), ("10.0.0.0/8", False),
    ("%v4:172.16.0.0/33", True), ("%v4:10.0.0.1/8", True), ("%v4:fd00::/8", True), ("", True), ("%v4:example/8", True),
    ("%v4:10/8", False), ("%v6:fd00::1/8", True),
    ("%v4:10.0.0.1", True), ("%v4:10.0.0.0/255.0.0.0", False), ("10.0.0.1/255.0.0.0", True),
    ("10.0.0.0/255.0.255.0", True), ("0.0.0.0/0.0.0.0", False), ("10.0.0.1/255.255.255.255", False),
    ("fd00::/255.0.0.0", True), ("%v4:10/255.0.0.0", False)])
def test_entries_of_virtual_private(entry: str, bad: bool) -> None:
    assert is_bad_private(entry, (5, 1)) is bad
    assert is_bad_private(entry, (5, 2)) is (bad and entry != "%v4:10.0.0.1")


@pytest.mark.parametrize(("subnet", "level"), [("10.2.0.0/24", "WARN"), ("vhost:%priv", "FAIL")])
def test_one_bad_entry_of_virtual_private_drops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subnet: str,
                                                    level: str) -> None:
    conf = "config setup\n\tvirtual-private=%v4:10.0.0.0/8,%v4:172.16.0.0/33\n" + CONN.format(right="%any")
    facts = facts_of(tmp_path, monkeypatch, f"{conf}\trightsubnet={subnet}\n")
    (trouble,) = CHECKS["virtual_private"].function(facts)
    assert trouble[0] == level and '"%v4:172.16.0.0/33"' in trouble[2] and ":2: " in trouble[2]


def test_pluto_decides_on_virtual_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = "config setup\n\tvirtual-private=%v4:10/8\n" + CONN.format(right="%any")
    for status, expected in (("pluto_version=5.2, x=y\n- allowed subnet: 10.0.0.0/8", []),
                             ("pluto_version=5.2, x=y\nvirtual-private (%priv):", ["NONE LOADED"])):
        facts = facts_of(tmp_path, monkeypatch, conf, status=status)
        (tmp_path / "pluto.pid").write_text("1")
        os.utime(tmp_path / "ipsec.conf", (0, 0))  # older than pluto's start
        assert words(facts, "virtual_private") == expected


@pytest.mark.parametrize(("second", "expected"), [
    ("conn b\n\talso=x\n\tright=192.0.2.3\n", ["OVERLAP"]), ("conn b\n\talso=x\n\tright=192.0.2.2\n", []),
    ("conn b\n\talso=x\n\tright=192.0.2.3\n\toverlapip=yes\n", []),
    ("conn b\n\talso=x\n\tright=192.0.2.3\n\tmark=5\n", []),
    ("conn b\n\talso=x\n\tright=192.0.2.3\n\tauto=add\n\tmark=5\nconn c\n\talso=x\n\tright=192.0.2.4\n\tmark=5\n",
     ["OVERLAP"]),
    ("conn b\n\talso=x\n\tright=192.0.2.3\n\tauto=add\n\tmark=-1\nconn c\n\talso=x\n\tright=192.0.2.4\n\tmark=-1\n",
     []),
    ("conn b\n\tleft=192.0.2.1\n\tleftsubnet=10.1.0.9/24\n\tright=192.0.2.3\n\trightsubnet=10.2.0.7/24\n", ["OVERLAP"]),
    ("conn b\n\tleft=192.0.2.1\n\tleftsubnet=10.1.0.0/24\n\tright=192.0.2.3\n\trightsubnet=10.3.0.0/24\n", []),
    ("conn a\n\talso=x\n\tright=192.0.2.2\n", ["TWICE"]),
    ("conn b\n\talso=x\n\tright=192.0.2.3\n\tauto=ignore\n", []),
])
def test_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, expected: list[str]) -> None:
    conf = ("conn x\n\tleft=192.0.2.1\n\tleftsubnet=10.1.0.0/24\n\trightsubnet=10.2.0.0/24\n"
            f"conn a\n\talso=x\n\tright=192.0.2.2\n\tauto=add\n{second}")
    if not second.endswith("auto=ignore\n"):
        conf += "\tauto=add\n"
    assert words(facts_of(tmp_path, monkeypatch, conf), "overlap") == expected


def stub_certificates(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str, int, int, bool, bool]) -> None:
    """Let the database have certificates: nickname, subject, issuer, begin and end in days from now, CA, key."""
    now = int(time.time())
    parsed = {str(place).encode(): Parsed(subject, issuer, now + begin * 86400, now + end * 86400, is_ca)
              for place, (_, subject, issuer, begin, end, is_ca, _) in enumerate(rows)}
    certificates = [Certificate(row[0], str(place).encode(), ",,", row[6]) for place, row in enumerate(rows)]
    base = SimpleNamespace(certificates=lambda: certificates, keys=list)
    monkeypatch.setattr(Facts, "database", lambda self: base)
    monkeypatch.setattr(Facts, "needs_database", True)
    monkeypatch.setattr(ipsec, "parse_certificate", lambda der: parsed[der])


GATE = ("gw", "CN=gw", "CN=ca", -10, 300, False, True)
AUTHORITY = ("ca", "CN=ca", "CN=ca", -10, 3000, True, False)


@pytest.mark.parametrize(("kind", "lines", "expected"), [
    ("RSA", "", []), ("ECDSA", "", ["KEY TYPE"]), ("ECDSA", "authby=rsasig,ecdsa", ["KEY TYPE"]),
    ("ECDSA", "authby=ecdsa", []), ("RSA", "authby=ecdsa-sha2_256", ["KEY TYPE"]), ("RSA", "authby=rsa-sha2", []),
    ("ECDSA", "leftauth=ecdsa", []), ("ECDSA", "authby=null", []), ("", "authby=ecdsa", []),
    ("RSA", "leftid=@gw.example.org", []), ("RSA", "leftid=@GW.example.org.", []), ("RSA", "leftid=@www.lab", []),
    ("RSA", "leftid=@gw2.example.org", ["ID"]), ("RSA", "leftid=192.0.2.1", []), ("RSA", "leftid=192.0.2.9", ["ID"]),
    ("RSA", "leftid=2001:db8:0::1", []), ("RSA", "leftid=a@example.org", []), ("RSA", "leftid=b@example.org", ["ID"]),
    ("RSA", "leftid=%fromcert", []), ('RSA', 'leftid="O=Lab, CN=x"', []), ("RSA", "leftid=@[key]", []),
    ("RSA", "leftid=host.without.at", []), ("RSA", "leftid=@x\n\tauthby=null", []),
])
def test_the_certificate_of_this_end_fits_authby_and_its_id(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lines: str, expected: list[str]) -> None:
    stub_certificates(monkeypatch, GATE, AUTHORITY)
    names = ["@gw.example.org", "@*.lab", "192.0.2.1", "2001:db8::1", "a@example.org"]
    monkeypatch.setattr(ipsec, "key_and_names", lambda der: (kind, names))
    conf = f"conn x\n\tauto=add\n\tright=192.0.2.2\n\tleft=192.0.2.1\n\tleftcert=gw\n\t{lines}\n"
    facts = facts_of(tmp_path, monkeypatch, conf)
    monkeypatch.setattr(Facts, "sides", {"x": "left"})
    assert words(facts, "certificates") == expected


@pytest.mark.parametrize(("name", "rows", "expected"), [
    ("gw", [GATE, AUTHORITY], []), ("nosuch", [AUTHORITY], ["MISSING"]), ("gw", [GATE], ["NO CA"]),
    ("gw", [("gw", "CN=gw", "CN=ca", -10, -1, False, True), AUTHORITY], ["EXPIRED"]),
    ("gw", [("gw", "CN=gw", "CN=ca", 1, 300, False, True), AUTHORITY], ["NOT YET VALID"]),
    ("gw", [("gw", "CN=gw", "CN=ca", -10, 5, False, True), AUTHORITY], ["EXPIRES SOON"]),
    ("gw", [("gw", "CN=gw", "CN=ca", -10, 300, False, False), AUTHORITY], ["NO KEY"]),
    ("gw", [GATE, ("ca", "CN=ca", "CN=ca", -99, -1, True, False)], ["EXPIRED"]),
    # one nickname: pluto gets the valid one, whichever stands first
    ("gw", [("gw", "CN=gw", "CN=ca", -99, -1, False, True), GATE, AUTHORITY], []),
    ("gw", [GATE, ("gw", "CN=gw", "CN=ca", -99, -1, False, True), AUTHORITY], []),
    ("gw", [("gw", "CN=gw", "CN=ca", -99, -1, False, True), ("gw", "CN=gw", "CN=ca", -99, -9, False, True), AUTHORITY],
     ["EXPIRED"]),
    # of a CA that was renewed, the newer one counts
    ("gw", [GATE, ("ca", "CN=ca", "CN=ca", -99, -1, True, False), AUTHORITY], []),
    # NSS takes the part before a colon for a token
    ("vpn: a", [("vpn: a", "CN=gw", "CN=ca", -10, 300, False, True), AUTHORITY], ["MISSING"]),
    ("NSS Certificate DB:vpn: a", [("vpn: a", "CN=gw", "CN=ca", -10, 300, False, True), AUTHORITY], []),
    ("NSS Certificate DB:gw", [GATE, AUTHORITY], []), ("smartcard:gw", [GATE, AUTHORITY], ["UNKNOWN"]),
])
def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                      rows: list[tuple[str, str, str, int, int, bool, bool]], expected: list[str]) -> None:
    conf = CONN.format(right="192.0.2.2") + f'\tleftcert="{name}"\n'
    facts = facts_of(tmp_path, monkeypatch, conf)
    stub_certificates(monkeypatch, *rows)
    assert words(facts, "certificates") == expected


def test_the_name_for_a_nickname_with_a_colon_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(tmp_path, monkeypatch, CONN.format(right="192.0.2.2") + '\tleftcert="vpn: a"\n')
    stub_certificates(monkeypatch, ("vpn: a", "CN=gw", "CN=ca", -10, 300, False, True), AUTHORITY)
    (trouble,) = CHECKS["certificates"].function(facts)
    assert '"NSS Certificate DB:vpn: a"' in trouble[2]
    assert bare_nickname("NSS FIPS 140-2 Certificate DB:a:b") == "a:b" and bare_nickname("card:a") == ""


def test_a_certificate_that_can_t_be_parsed_is_the_last_choice() -> None:
    groups = certificates_by_nickname([Certificate("gw", b"none", ",,", True)])
    assert groups["gw"].chosen()[0] is None and groups["gw"].has_key


@pytest.mark.parametrize("setting, needed", [
    ("leftcert=gw", True), ("leftckaid=00", True), ("rightrsasigkey=0sAA==", True), ("leftecdsakey=0sAA==", True),
    ("lefteddsakey=0sAA==", True), ("rightpubkey=0sAA==", True), ("authby=secret", False)])
def test_a_connection_that_names_a_key_needs_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          setting: str, needed: bool) -> None:
    host = Host({}, conf=str(tmp_path / "ipsec.conf"))
    host.version = "5.4"
    Path(host.conf).write_text(f"conn a\n\tauto=add\n\t{setting}\n")
    monkeypatch.setattr(ipsec.NssDatabase, "has_certificates", lambda self: False)
    assert Facts(host, 1.0).needs_database is needed


@pytest.mark.parametrize("check", ["forwarding", "peers", "firewall", "forward_rules", "nat", "loaded", "certificates",
                                   "psk", "host_keys", "overlap", "mtu"])
def test_without_connections_there_is_nothing_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       check: str) -> None:
    """A connection that is not loaded is none; one that pluto has loaded is."""
    facts = facts_of(tmp_path, monkeypatch, "conn a\n\tleft=192.0.2.1\n\tright=192.0.2.2\n", status="nothing")
    monkeypatch.setattr(Facts, "database", lambda self: SimpleNamespace(certificates=list, keys=list))
    monkeypatch.setattr(Facts, "needs_database", False)
    with pytest.raises(ipsec.NotChecked) as caught:
        list(CHECKS[check].function(facts))
    assert caught.value.cause == "connections"


def test_a_connection_has_changed_if_a_file_of_its_settings_has(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    more = tmp_path / "more.conf"
    more.write_text("conn more\n\tikelifetime=1h\n")
    conf = f"include {more}\nconn net/24\n\tleft=192.0.2.1\n\tright=192.0.2.3\n\talso=more\n"
    facts = facts_of(tmp_path, monkeypatch, conf, status=STATUS)
    (tmp_path / "pluto.pid").write_text("1\n")
    os.utime(tmp_path / "ipsec.conf", (1, 1))
    (conn,) = [conn for conn in facts.config.conns() if conn.name == "net/24"]
    os.utime(more, (1, 1))
    assert facts.has_loaded(conn)
    os.utime(more, (1 << 33, 1 << 33))
    assert not facts.has_loaded(conn)


def test_a_connection_without_auto_that_pluto_has_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = "conn net/24\n\tleft=192.0.2.1\n\tright=192.0.2.3\n\tauthby=secret\n"
    facts = facts_of(tmp_path, monkeypatch, conf, '@x : PSK "k1k2k3k4"', STATUS)
    assert [conn.name for conn in facts.conns] == ["net/24"]
    assert words(facts, "psk") == ["NO SECRET"] and words(facts, "loaded") == ["CHANGED"]


@pytest.mark.parametrize(("check", "cause"), [("nss_health", "database"), ("certificates", "database"),
                                              ("loaded", "pluto"), ("up", "pluto"), ("versions", "pluto")])
def test_what_is_missing_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, cause: str) -> None:
    facts = facts_of(tmp_path, monkeypatch, CONN.format(right="192.0.2.2"))
    with pytest.raises(ipsec.NotChecked) as caught:
        list(CHECKS[check].function(facts))
    assert caught.value.cause == cause


def test_without_a_configuration_nothing_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(tmp_path, monkeypatch, "")
    (tmp_path / "ipsec.conf").unlink()
    facts.config = ipsec.Config(facts.host)
    for check in ("obsolete", "virtual_private", "psk", "overlap", "forwarding", "firewall"):
        with pytest.raises(ipsec.NotChecked) as caught:
            list(CHECKS[check].function(facts))
        assert caught.value.cause == "configuration", check


@pytest.mark.parametrize(("text", "mode", "expected"), [
    ("# only a comment\ninclude /etc/ipsec.d/*.secrets\n", 0o644, []), ("", 0o644, []),
    ('@a : PSK "k1k2k3k4"\n', 0o644, ["OPEN"]), ("# comment\n", 0o666, ["OPEN"]), ('@a : PSK "x"\n', 0o600, []),
])
def test_who_can_read_the_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int,
                                  expected: list[str]) -> None:
    facts = facts_of(tmp_path, monkeypatch, "config setup\n", text)
    monkeypatch.setattr(Host, "superuser", False)
    (tmp_path / "ipsec.secrets").chmod(mode)
    (tmp_path / "ipsec.conf").chmod(0o644)
    assert words(facts, "secret_modes") == expected


@pytest.mark.parametrize(("net", "behind"), [
    ("10.1.0.0/24", False), ("10.1.0.1", False), ("192.0.2.1/32", False), ("10.2.0.0/24", True), ("0.0.0.0/0", True)])
def test_a_network_in_this_host_is_not_forwarded(net: str, behind: bool) -> None:
    assert is_behind(net, {"127.0.0.1": 1, "10.1.0.1": 1, "192.0.2.1": 2}) is behind


def test_one_cause_is_one_line() -> None:
    all_findings = [
        Finding("installed", "Installed"), Finding("pluto", "Pluto", "FAIL", "FAILED", "no pluto", "ipsec start"),
        *(Finding(name, name, "SKIP", "UNKNOWN", "no pluto", "", "pluto") for name in ("udp500", "loaded")),
        Finding("psk", "PSK", "SKIP", "UNKNOWN", "denied", "sudo ipsec verify psk", "root"),
        Finding("esp", "ESP", "SKIP", "UNKNOWN", "nothing tells", "modprobe esp4"),
        Finding("mtu", "MTU", "WARN", "SMALL", "too small", "ip link")]
    lines = list(verify_lines(all_findings))
    assert lines[1:] == [
        f"{'Installed':<50}\t[OK]", f"{'Pluto':<50}\tFAIL [FAILED]", "  no pluto; fix: ipsec start",
        f"{'ESP':<50}\tSKIP [UNKNOWN]", "  not checked: nothing tells; fix: modprobe esp4",
        f"{'MTU':<50}\tWARN [SMALL]", "  too small; fix: ip link", "",
        "2 more checks need pluto (udp500, loaded)", "1 check needs root: sudo ipsec verify (psk)",
        "1 failed, 1 warning, 4 not checked, 1 ok"]
    assert list(verify_lines(all_findings[4:5], is_whole=False))[-2] == (
        "1 check needs root: sudo ipsec verify psk (psk)")
    assert list(verify_lines([], ["xfrm", "esp"]))[-2:] == [
        "2 checks need the running system, and can't run under --root (xfrm, esp)",
        "0 failed, 0 warnings, 2 not checked, 0 ok"]


def test_a_value_or_an_error_is_remembered() -> None:
    class Counter:
        calls = 0

        @ipsec.once
        def value(self) -> int:
            self.calls += 1
            return self.calls

        @ipsec.once
        def error(self) -> int:
            self.calls += 1
            raise OSError(self.calls)

    counter = Counter()
    assert counter.value() == counter.value() == 1
    for _ in range(2):
        with pytest.raises(OSError, match="2"):
            counter.error()


def test_each_check_explains_itself() -> None:
    for check in CHECKS.values():
        text = ipsec.explain(check)
        assert text.startswith(f"{check.name}: ") and max(map(len, text.splitlines())) < 80
        assert all(f"\n{title}" in text for title in ("Checks ", "Why it matters ", "Fix "))


@pytest.mark.parametrize("check", ["pluto", "udp500", "udp4500"])
def test_a_pluto_whose_process_is_not_visible_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         check: str) -> None:
    """Without any sign of a pluto, it is down; with a sign, whether it runs is not known."""
    monkeypatch.setattr(ipsec, "plutos", lambda host: [])
    monkeypatch.setattr(Facts, "sockets", lambda facts: [
        (ipsec.Socket("udp", "0.0.0.0", port, 1), False) for port in (500, 4500)])
    host = Host({"IPSEC_RUNDIR": str(tmp_path)}, conf=str(tmp_path / "ipsec.conf"))
    monkeypatch.setattr(Host, "superuser", True)
    monkeypatch.setattr(ipsec, "signs_of_pluto", lambda host: [])
    (finding,) = findings(host, 1.0, [check])
    assert finding.level == "FAIL"
    monkeypatch.setattr(ipsec, "signs_of_pluto", lambda host: ["UDP port 500 is in use by another process"])
    (finding,) = findings(host, 1.0, [check])
    assert (finding.level, finding.cause) == ("SKIP", "process") and "UDP port 500 is in use" in finding.why
    monkeypatch.setattr(Host, "superuser", False)
    (finding,) = findings(host, 1.0, [check])
    assert (finding.level, finding.cause) == ("SKIP", "root")


@pytest.mark.parametrize(("sysctls", "expected"), [
    ({"all/forwarding": "1", "eth0/forwarding": "0", "eth1/forwarding": "0"}, []),
    ({"all/forwarding": "0", "eth0/forwarding": "1", "eth1/forwarding": "1"}, ["FAIL forwarding is off"]),
    ({"all/forwarding": "0", "eth0/force_forwarding": "1", "eth1/force_forwarding": "1"}, []),
    ({"all/forwarding": "0", "eth0/force_forwarding": "1", "eth1/force_forwarding": "0"},
     ["FAIL forwarding is off for packets that arrive on eth1"]),
    ({"eth0/forwarding": "1", "eth1/forwarding": "1"}, ["SKIP"]),
])
def test_ipv6_is_forwarded_as_the_sysctl_of_all_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     sysctls: dict[str, str], expected: list[str]) -> None:
    """Seen with Linux 6.18: the values of the interfaces do not count, except force_forwarding."""
    for name, value in sysctls.items():
        file = tmp_path / "proc/sys/net/ipv6/conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    facts = Facts(Host({}, root=str(tmp_path)), 1.0)
    monkeypatch.setattr(facts, "device_to", lambda net: "eth1")
    tunnel = SimpleNamespace(conn=Conn(Section("six", "ipsec.conf", 1, [])), behind=["fd00:1::/64"], inner="eth0")
    troubles: list[Trouble] = list(ipsec.forwarding_troubles(
        facts, [tunnel], "ipv6", "net.ipv6.conf.all.forwarding"))  # type: ignore[list-item]
    texts = [f"{level} {why.partition(', but ')[2]}".strip() for level, _, why, _ in troubles]
    assert texts == expected
    assert {fix for level, _, _, fix in troubles if level == "FAIL"} <= {"sysctl -w net.ipv6.conf.all.forwarding=1"}


@pytest.mark.parametrize(("release", "level"), [("4.19.0", "WARN"), ("5.11.0-rc1", "FAIL"), ("6.1.0", "FAIL")])
def test_disable_xfrm_counts_for_all_interfaces(system: System, monkeypatch: pytest.MonkeyPatch, release: str,
                                                level: str) -> None:
    monkeypatch.setattr(Host, "kernel_release", lambda host: release)
    system.files["proc/sys/net/ipv4/conf/all/disable_xfrm"] = "1\n"
    assert system.levels()["xfrm"] == {level}


@pytest.mark.parametrize(("value", "known"), [
    ("c0ffee", True), ("C0FF_EE", True), ("c0ff", False), ("c0:ff:ee", False), ("c0ffee00", False),
])
def test_a_ckaid_is_compared_as_pluto_compares_it(value: str, known: bool) -> None:
    key = ipsec.HostKey("RSA", bytes.fromhex("c0ffee"), b"\x01", b"\x03")
    assert ipsec.has_private_key([key], [], "leftckaid", value) is known


@pytest.mark.parametrize(("sockets", "expected"), [
    ([("192.0.2.1", True), ("127.0.0.1", True)], []),
    ([("::1", True)], []),
    ([("192.0.2.1", True), ("192.0.2.2", False)], []),
    ([("::1", True), ("0.0.0.0", False)], ["pluto has no socket for peers on port 4500; another program uses this port "
                                           "of 0.0.0.0"]),
    ([], ["pluto has no socket for peers on port 4500"]),
])
def test_pluto_listens_for_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sockets: list[tuple[str, bool]],
                                 expected: list[str]) -> None:
    """If another program has bound port 4500 of 0.0.0.0, pluto 4.10 and 5.2 still bind ::1."""
    facts = Facts(Host({}, conf=str(tmp_path / "ipsec.conf")), 1.0)
    facts.pid = 1
    monkeypatch.setattr(facts, "sockets", lambda: [(ipsec.Socket("udp", address, 4500, 1), own)
                                                   for address, own in sockets])
    monkeypatch.setattr(facts, "pluto_setting", lambda name: "5.2")
    assert [why for _, _, why, _ in ipsec.port_troubles(facts, 4500)] == expected


# --- a system in a directory: all checks are OK, and then one source after another is taken away ---

SYSTEM_CONF = """config setup
\tvirtual-private=%v4:10.0.0.0/8
include /etc/crypto-policies/back-ends/libreswan.config
include /etc/ipsec.d/tunnels.conf
"""
SYSTEM_CONN = """conn fine
\tauto=start
\tleft=192.0.2.1
\tleftsubnet=10.1.0.0/24
\tleftcert=gw
\tleftckaid=c0ffee
\tright=192.0.2.2
\trightsubnet=10.2.0.0/24
\tauthby=secret
"""
SYSTEM_STATUS = """pluto_version=5.2, pluto_vendorid=OE
nssdir=/var/lib/ipsec/nss, dumpdir=/run/pluto
fips mode=disabled;
- allowed subnet: 10.0.0.0/8
"fine": 10.1.0.0/24===192.0.2.1...192.0.2.2===10.2.0.0/24; erouted; eroute owner: #2
"fine":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
"fine":   newest IKE SA: #1; newest IPsec SA: #2; conn serial: $1;"""
SYSCTLS = {"net/ipv4/ip_forward": "1", "net/ipv4/ip_no_pmtu_disc": "0", "net/core/xfrm_larval_drop": "1",
           "kernel/random/entropy_avail": "256", "crypto/fips_enabled": "0",
           **{f"net/ipv4/conf/{name}/{option}": value for name in ("all", "eth0", "eth1") for option, value in (
               ("send_redirects", "0"), ("accept_redirects", "0"), ("rp_filter", "0"), ("forwarding", "1"),
               ("disable_xfrm", "0"))}}
CRYPTO = ("rfc4106(gcm(aes))", "cbc(aes)", "hmac(sha256)", "hmac(sha512)")
PLUTO_PID, PLUTO_SOCKETS = 77, ("1001", "1002")
DROPS = """table inet f {{
\tchain {hook} {{
\t\ttype {kind} hook {hook} priority filter; policy accept;
\t\t{rule}
\t}}
}}
"""


class System:
    """A fake system below a directory.  `files` are written there; the other attributes stand for what has no
    file: pluto's answer, the kernel's answers by netlink, and the contents of the NSS database."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.pluto: str | Exception = SYSTEM_STATUS
        self.netlink: Exception | None = None
        self.firewall: str | Exception = ""
        self.pid: int | None = PLUTO_PID
        self.denied: tuple[str, ...] = ()  # files that only root may read
        self.missing_tools = False
        execdir, nssdir = "usr/libexec/ipsec", "var/lib/ipsec/nss"
        self.files = {
            "etc/ipsec.conf": SYSTEM_CONF, "etc/ipsec.d/tunnels.conf": SYSTEM_CONN, "etc/hosts": "",
            "etc/ipsec.secrets": '192.0.2.1 192.0.2.2 : PSK "k1k2k3k4k5"\n', f"{execdir}/pluto": "#!/bin/sh\n",
            f"{execdir}/addconn": "#!/bin/sh\n",
            f"{nssdir}/cert9.db": "SQLite format 3\0" + "\0" * 84, f"{nssdir}/key4.db": "SQLite format 3\0" + "\0" * 84,
            "etc/crypto-policies/config": "DEFAULT\n", "etc/crypto-policies/back-ends/libreswan.config": "",
            "run/pluto/pluto.pid": f"{PLUTO_PID}\n", "sys/fs/selinux/enforce": "0\n", "sys/module/esp4/version": "",
            "proc/crypto": "".join(f"name         : {name}\ntype         : aead\n\n" for name in CRYPTO),
            f"proc/{PLUTO_PID}/net/udp": "  sl  local_address\n" + "".join(
                f"   0: 00000000:{port} 00000000:0000 07 0:0 00:0 0 0 0 {inode} 2\n"
                for port, inode in zip(("01F4", "1194"), PLUTO_SOCKETS)),
            "proc/self/status": "CapEff:\t000001ffffffffff\n",
            **{f"proc/sys/{name}": f"{value}\n" for name, value in SYSCTLS.items()}}

    def remove(self, *names: str) -> None:
        for name in names:
            self.files = {file: text for file, text in self.files.items()
                          if file != name and not file.startswith(f"{name}/")}

    def levels(self) -> dict[str, set[str]]:
        """Return the levels that each check gives."""
        for name, text in self.files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
            (self.root / name).chmod(0o600)
        for name in ("usr/libexec/ipsec/pluto", "usr/libexec/ipsec/addconn", "var/lib/ipsec/nss"):
            if (self.root / name).exists():
                (self.root / name).chmod(0o700)
        if self.pid:
            (self.root / f"proc/{PLUTO_PID}/fd").mkdir(parents=True)
            for number, inode in enumerate(PLUTO_SOCKETS):
                (self.root / f"proc/{PLUTO_PID}/fd/{number}").symlink_to(f"socket:[{inode}]")
            (self.root / f"proc/{PLUTO_PID}/exe").symlink_to(self.root / "usr/libexec/ipsec/pluto")
        self._patch()
        levels: dict[str, set[str]] = {}
        for finding in findings(Host({}, root=str(self.root)), 1.0):
            levels.setdefault(finding.check, set()).add(finding.level)
        assert list(levels) == list(CHECKS)
        return levels

    def _patch(self) -> None:
        def patch(name: str, value: object) -> None:
            self.monkeypatch.setattr(f"ipsec.{name}", value)

        def status(*_: object) -> list[str]:
            if isinstance(self.pluto, Exception):
                raise self.pluto
            return self.pluto.splitlines()

        def asks_kernel(answer: object) -> object:
            def ask(*_: object, **__: object) -> object:
                if self.netlink:
                    raise self.netlink
                return answer
            return ask

        def tables(*_: object) -> list[ipsec.Table]:
            if isinstance(self.firewall, Exception):
                raise self.firewall
            return list(ipsec.NftReader({}).tables(self.firewall))

        read = Host.lines

        def lines(host: Host, name: str) -> object:
            if name.lstrip("/") in self.denied:
                raise PermissionError(13, "Permission denied", name)
            return read(host, name)

        now = int(time.time())
        certificates = [Certificate("gw", b"0", ",,", True), Certificate("ca", b"1", ",,", False)]
        parsed = [Parsed("CN=gw", "CN=ca", now - 9, now + 99 * 86400, False),
                  Parsed("CN=ca", "CN=ca", now - 9, now + 99 * 86400, True)]
        patch("Host.live", True)
        patch("Host.lines", lines)
        patch("Host.has_xfrm", lambda host: True)
        patch("Host.which", lambda host, name: "" if self.missing_tools else f"/usr/bin/{name}")
        patch("Host.superuser", os.geteuid() == 0 and not self.denied and not isinstance(self.netlink, PermissionError))
        patch("pluto_status", status)
        patch("find_pluto", lambda host: self.pid)
        patch("plutos", lambda host: [])
        patch("policy_messages", asks_kernel([]))
        patch("link_names", lambda: {1: "lo", 2: "eth0", 3: "eth1"})
        patch("Routing.addresses", asks_kernel([("192.0.2.1", 24, 0, 2), ("10.1.0.1", 24, 0, 3)]))
        patch("Routing.lookup", lambda routing, address, *_: asks_kernel(ipsec.Route(
            False, address, "", "eth1" if address.startswith("10.1.") else "eth0", "192.0.2.1"))())
        patch("dump", asks_kernel([(ipsec.attribute(ipsec.IFLA_IFNAME, b"eth0\0") + ipsec.attribute(
            ipsec.IFLA_MTU, (1500).to_bytes(4, "little")), -ipsec.IFINFOMSG_SIZE, 20)]))
        patch("Facts.ask_addconn", lambda facts: None)
        patch("Routing.link", asks_kernel((ipsec.IFF_UP | ipsec.IFF_RUNNING, {}, "")))
        patch("filter_tables", tables)
        patch("parse_certificate", lambda der: parsed[int(der)])
        patch("NssDatabase.has_certificates", lambda base: True)
        patch("NssDatabase.certificates", lambda base: certificates)
        patch("NssDatabase.keys", lambda base: [ipsec.HostKey("RSA", bytes.fromhex("c0ffee"), b"\x01", b"\x03")])
        patch("NssDatabase.damage", lambda base, name: "")
        patch("NssDatabase.tool", lambda base, *_: None)
        patch("need", lambda name, why: SimpleNamespace(
            CDLL=lambda _: SimpleNamespace(adjtimex=lambda _: 0), create_string_buffer=bytes))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


NEEDS_CONNS = {"forwarding", "peers", "mtu", "firewall", "forward_rules", "nat", "loaded", "psk", "certificates",
               "host_keys", "overlap", "up"}
NEEDS_CONFIG = NEEDS_CONNS | {"config", "obsolete", "virtual_private"}
NEEDS_PLUTO = {"pluto", "udp500", "udp4500", "loaded", "up", "versions", "fips", "peers"}
NEEDS_FIREWALL = {"firewall", "forward_rules", "nat"}
NEEDS_ADDRESSES = {"forwarding", "peers", "mtu", "firewall", "forward_rules", "nat", "loaded", "certificates", "psk",
                   "host_keys", "xfrm"}
NO_RIGHT = PermissionError(1, "Operation not permitted")
UNKNOWN_RULE = DROPS.format(hook="{hook}", kind="filter", rule="meta cgroup 7 drop")

#: What is taken away, and the checks that depend on it
SOURCES: dict[str, tuple[Callable[[System], object], set[str]]] = {
    "no pluto": (lambda it: (setattr(it, "pluto", ipsec.NoPluto("pluto is not running")), setattr(it, "pid", None)),
                 NEEDS_PLUTO),
    "a pluto that hangs": (lambda it: setattr(it, "pluto", ipsec.TimedOut("no answer")),
                           NEEDS_PLUTO - {"udp500", "udp4500", "versions"}),
    "a pluto that this user may not ask": (
        lambda it: (setattr(it, "pluto", ipsec.NoPluto("refused", hint=ipsec.NOT_ALLOWED)),
                    setattr(it, "denied", ("x",))), {"pluto", "loaded", "up", "peers", "fips"}),
    "a pluto in another PID namespace": (lambda it: setattr(it, "pid", None),
                                         {"pluto", "udp500", "udp4500", "versions"}),
    "no configuration": (lambda it: it.remove("etc/ipsec.conf"), NEEDS_CONFIG | {"crypto_policy"}),
    "a configuration that only root may read": (lambda it: setattr(it, "denied", ("etc/ipsec.conf",)),
                                                NEEDS_CONFIG | {"crypto_policy"}),
    "an included file that only root may read": (lambda it: setattr(it, "denied", ("etc/ipsec.d/tunnels.conf",)),
                                                 NEEDS_CONFIG | {"crypto_policy"}),
    "no connection": (lambda it: it.remove("etc/ipsec.d/tunnels.conf"), NEEDS_CONNS - {"certificates", "up"}),
    "no end on this host": (lambda it: it.files.update({"etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace(
        "=192.0.2.1", "=198.51.100.1")}), {"forwarding", "peers", "mtu", "forward_rules", "nat", "host_keys"}),
    "a second connection whose end is unknown": (lambda it: it.files.update({
        "etc/ipsec.d/tunnels.conf": SYSTEM_CONN + SYSTEM_CONN.replace("fine", "other").replace(
            "192.0.2.1", "gw.example").replace("10.2.", "10.3.")}),
        {"forwarding", "peers", "mtu", "forward_rules", "nat", "host_keys"}),
    "no secrets file": (lambda it: it.remove("etc/ipsec.secrets"), {"secrets", "psk"}),
    "a secrets file that only root may read": (lambda it: setattr(it, "denied", ("etc/ipsec.secrets",)),
                                               {"secrets", "psk", "secret_modes"}),
    "an included secrets file that only root may read": (lambda it: (it.files.update({
        "etc/ipsec.secrets": "include /etc/ipsec.d/*.secrets\n", "etc/ipsec.d/a.secrets": ""}),
        setattr(it, "denied", ("etc/ipsec.d/a.secrets",))), {"secrets", "psk", "secret_modes"}),
    "no NSS database": (lambda it: it.remove("var/lib/ipsec/nss"), {"nss", "nss_health", "certificates", "host_keys"}),
    "no key database": (lambda it: it.remove("var/lib/ipsec/nss/key4.db"),
                        {"nss", "nss_health", "certificates", "host_keys"}),
    "no list of sockets": (lambda it: it.remove(f"proc/{PLUTO_PID}/net"), {"udp500", "udp4500"}),
    "no certutil, and no pluto": (lambda it: (setattr(it, "missing_tools", True), setattr(
        it, "pluto", ipsec.NoPluto("no pluto")), setattr(it, "pid", None)), NEEDS_PLUTO | {"nss_health"}),
    "no right to ask the kernel": (lambda it: (setattr(it, "netlink", NO_RIGHT), setattr(it, "firewall", NO_RIGHT)),
                                   NEEDS_ADDRESSES | NEEDS_FIREWALL),
    "no nft": (lambda it: setattr(it, "firewall", ipsec.Missing("nft is not installed")), NEEDS_FIREWALL),
    "a condition that nobody can evaluate (input)": (
        lambda it: setattr(it, "firewall", UNKNOWN_RULE.replace("{hook}", "input")), {"firewall"}),
    "a condition that nobody can evaluate (output)": (
        lambda it: setattr(it, "firewall", UNKNOWN_RULE.replace("{hook}", "output")), {"firewall"}),
    "a condition that nobody can evaluate (forward)": (
        lambda it: setattr(it, "firewall", UNKNOWN_RULE.replace("{hook}", "forward")), {"forward_rules"}),
    "a condition that nobody can evaluate (NAT)": (lambda it: setattr(it, "firewall", DROPS.format(
        hook="postrouting", kind="nat", rule="meta mark 7 masquerade")), {"nat"}),
    "an unknown source of DNAT": (lambda it: setattr(it, "firewall", DROPS.format(
        hook="prerouting", kind="nat", rule="ip saddr @all dnat to 10.9.9.9")), {"firewall", "forward_rules"}),
    "no /proc/crypto": (lambda it: it.remove("proc/crypto"), {"algorithms"}),
    "an algorithm that nobody knows": (lambda it: it.files.update({
        "etc/ipsec.d/tunnels.conf": SYSTEM_CONN + "\tesp=serpent256-sha2_256\n"}), {"algorithms"}),
    "no list of modules": (lambda it: it.remove("sys/module"), {"esp"}),
    "no /proc/sys": (lambda it: it.remove("proc/sys"), {
        "xfrm", "send_redirects", "accept_redirects", "larval_drop", "rp_filter", "forwarding", "mtu", "entropy",
        "fips"}),
    "no net.ipv4.conf": (lambda it: it.remove("proc/sys/net/ipv4/conf"), {
        "xfrm", "send_redirects", "accept_redirects", "rp_filter", "forwarding"}),
    "no sysctls of an interface": (lambda it: (it.remove("proc/sys/net/ipv4/conf/eth0"), it.files.update({
        "proc/sys/net/ipv4/conf/eth0/tag": "0\n"})), {
            "xfrm", "send_redirects", "accept_redirects", "rp_filter", "forwarding"}),
    "no ip_forward": (lambda it: it.remove("proc/sys/net/ipv4/ip_forward"), {"send_redirects", "accept_redirects"}),
    "no number of bits of entropy": (lambda it: it.files.update({"proc/sys/kernel/random/entropy_avail": ""}),
                                     {"entropy"}),
    "no /sys": (lambda it: it.remove("sys"), {"selinux", "esp"}),
    "no audit log": (lambda it: it.files.update({"sys/fs/selinux/enforce": "1\n"}), {"selinux"}),
    "no crypto-policy": (lambda it: it.remove("etc/crypto-policies"), {"crypto_policy"}),
    "no virtual-private=": (lambda it: it.files.update({
        "etc/ipsec.conf": SYSTEM_CONF.replace("\tvirtual-private=%v4:10.0.0.0/8\n", "")}), {"virtual_private"}),
    "no network behind this host": (lambda it: it.files.update({"etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace(
        "\tleftsubnet=10.1.0.0/24\n", "")}), {"forwarding", "forward_rules"}),
    "no certificate, no key, no PSK": (lambda it: (it.files.update({
        "etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace("secret", "null").replace("\tleftcert=gw\n", "").replace(
            "\tleftckaid=c0ffee\n", ""), "etc/ipsec.secrets": ""})), {"psk", "host_keys"}),
    "no connection that should be up, and no log": (lambda it: (it.files.update({
        "etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace("auto=start", "auto=add")}), setattr(
            it, "pluto", SYSTEM_STATUS.replace("SA: #2", "SA: #0").replace("erouted", "unrouted"))), {"up"}),
    "a peer with any address": (lambda it: it.files.update({"etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace(
        "192.0.2.2", "%any")}), {"peers", "mtu"}),
    "a peer with a host name": (lambda it: it.files.update({"etc/ipsec.d/tunnels.conf": SYSTEM_CONN.replace(
        "192.0.2.2", "peer.example")}), {"peers", "mtu", "psk"}),
}


def test_a_system_without_faults(system: System) -> None:
    assert {check: levels for check, levels in system.levels().items() if levels != {"OK"}} == {}


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_ok_without_what_it_depends_on(system: System, source: str) -> None:
    """A check whose source is missing, unreadable, unknown or empty is SKIP (or FAIL, if that is the fault)."""
    take_away, dependent = SOURCES[source]
    take_away(system)
    levels = system.levels()
    assert {check for check in dependent if "OK" in levels[check]} == set()
