"""Planted secrets (ground/canaries.py), and remarks of firewall rules: a report shows none."""

from __future__ import annotations

from pathlib import Path

import pytest

import ipsec
from tests.ground import canaries


def report_of(root: Path, sink: type[ipsec.TextSink] = ipsec.TextSink) -> str:
    """Return the report of the system below `root`."""
    host = ipsec.Host({}, root=str(root))
    pieces: list[str] = []
    ipsec.run_report(ipsec.Report(host, ipsec.COMMANDS["barf"].parse([])), ipsec.report_sections(host),
                     sink(pieces.append))
    return "".join(pieces)


def test_the_canaries_are_many() -> None:
    planted = [*canaries.canaries_of_files(), *canaries.live_canaries()]
    assert len(planted) >= 800 and len({canary.secret for canary in planted}) == len(planted)
    text = "".join(canaries.files(canaries.canaries_of_files()).values())
    assert len(canaries.leaked(text, canaries.canaries_of_files())) == len(canaries.canaries_of_files())


@pytest.mark.parametrize("sink", [ipsec.TextSink, ipsec.JsonSink])
@pytest.mark.parametrize("own_log", [True, False], ids=["logfile", "syslog"])
def test_no_canary_leaves(tmp_path: Path, sink: type[ipsec.TextSink], own_log: bool) -> None:
    planted = canaries.canaries_of_files()
    canaries.plant(tmp_path, planted, own_log)
    text = report_of(tmp_path, sink)
    assert canaries.leaked(text, planted) == []
    # the report still tells what an expert asks for
    for shown in ("conn gw", "left=192.0.2.1", "leftupdown=", "/usr/local/bin/up (2 arguments)",
                  "nameserver 192.0.2.53", "10.0.0.0/8", "VPN_IPSEC_PSK=[redacted]", "x-psk=[redacted]",
                  "# [comment]", "Starting Pluto"):
        assert shown in text or shown.replace('"', '\\"') in text


@pytest.mark.parametrize("remark", ["allow IKE from the branch office", "cali: policy 12", "eth0 to vpn2", "NAT-T",
                                    "10.0.0.0/8", "2001:db8::1/64", "::ffff:192.0.2.1", "00:16:3e:12:34:56",
                                    "Internet Key Exchange (IKE) Protocol Daemon for IPsec", "!fw3"])
def test_a_harmless_remark_is_shown(remark: str) -> None:
    assert ipsec.shown_remark(remark) == remark


@pytest.mark.parametrize("remark", ["psk is hunter", "Tr0ub4dor&3", "site a: xK9fQ2mm", "the key is new",
                                    "d41d8cd9:8f00b204:e9800998:ecf8427e",
                                    "abc123def456", "old pin 1234", "deadbeefcafe0123", "correctHorseBattery"])
def test_a_remark_that_may_hold_a_secret_is_not_shown(remark: str) -> None:
    assert ipsec.shown_remark(remark) == ipsec.REDACTED


def test_a_long_number_in_a_message_of_a_script_is_not_shown() -> None:
    text = "process 4194304 ended after 12.345678s, code=exited status=1/FAILURE, 83749283"
    assert ipsec.shown_words(text) == text.replace("83749283", ipsec.REDACTED)


@pytest.mark.parametrize("line", [
    "-A INPUT -p esp -m comment --comment {0} -j ACCEPT", "ip protocol esp accept comment {0}",
    "LOG  all  --  0.0.0.0/0  0.0.0.0/0  /* psk is X */ LOG flags 0 level 4 prefix {0}",
    "-j NFLOG --nflog-prefix {0} -m x", "-A INPUT -m string --string {0} --algo bm -j DROP",
    "-m string --hex-string {0} --algo bm", "DROP  6  --  0.0.0.0/0  0.0.0.0/0  STRING match  {0} ALGO name bm",
])
def test_a_remark_of_a_rule_takes_nothing_else_of_it(line: str) -> None:
    masked = ipsec.Redactor().text(line.format('"psk is hunter2"'))
    assert "hunter2" not in masked and "psk is X" not in masked
    assert masked == line.format("[redacted]").replace("psk is X", "[redacted]")


@pytest.mark.parametrize("line", [
    "# the monkey, keyexchange and keyboard", "| complete_dh_shared_secret: computing", "passwd: files systemd",
    'pluto[9]: loaded PSK secret: @a @b', "-A INPUT -m comment --comment \"from the branch office\" -j ACCEPT",
    "hosts: files dns", "| found connection west-east", "Nov 25 23:00:01 gw pluto[9]: | #1 is idle",
    'pluto[9]: "west" #1: initiated IKEv2 connection', "|  spi 0x12345678 from 00:11:22:33:44:55",
    "| ckaid: 0123456789abcdef0123456789abcdef01234567", "| dnssec-rootkey-file=/usr/share/dns/root.key",
    "|  AES_XCBC symkey() +57 /programs/pluto/crypt_xcbc.c", "| public key: AwEAAbzL0123456789abcdef",
    "| emitting 64 raw bytes of PSK auth into IKEv2 Authentication Payload",
    "| cipher_context_create() AES_GCM_16 decrypt use wire IV symkey 0x552adc7a90, salt: ",
    "| PRF chunk interface PRF HMAC_MD5 init key hunk 0x552ad366c0 (length 16)",
    "| struct dh_local_secret: newref @0x44001600(0->1) (calc_dh_local_secret() +84 programs/pluto/crypt_dh.c)",
    "| id type added to secret(0x552ad8b390) SECRET_PSK: @west",
    "/etc/ipsec.conf:13: unrecognized keyword 'leftpsk'", "/etc/ipsec.conf:13: syntax error [leftpsk]",
    "XAUTH_PASS: <set to the key 'a' in secret 'b'>", "The PSK is wrong, and the password is for 192.0.2.1.",
    "pskvalue-flags=0", "key-mgmt=wpa-psk", '{"_CMDLINE":"/usr/libexec/ipsec/pluto --nofork"}',
    'verify: FAIL psk: /etc/ipsec.secrets has no PSK for "@west" and "@east" of conn west-east',
])
def test_a_report_changes_nothing_but_secrets(line: str) -> None:
    assert ipsec.Redactor().text(line) == line


@pytest.mark.parametrize("line", ["| PSK: abcdefghijklmnop", "| psk is aBcdefGhijkl", "| our keymat 0x0123456789abcdef",
                                  "SECRET_PSK: abcdefghijkl", "| prf key abcdefghijk1"])
def test_a_word_after_the_name_of_a_key_is_masked(line: str) -> None:
    head, blank, _ = line.rpartition(" ")
    assert ipsec.Redactor().text(line) == f"{head}{blank}[redacted]"


@pytest.mark.parametrize("line, shown", [
    ("Nov 25 23:59:01 gw kernel: [ 12.3] hunter2x IN=eth0 OUT= SRC=192.0.2.9 PROTO=ESP",
     "Nov 25 23:59:01 gw kernel: [ 12.3] [redacted] IN=eth0 OUT= SRC=192.0.2.9 PROTO=ESP"),
    ("Nov 25 23:59:01 gw kernel: drop: IN=eth0 OUT= PROTO=UDP DPT=4500",
     "Nov 25 23:59:01 gw kernel: drop: IN=eth0 OUT= PROTO=UDP DPT=4500"),
    ("Nov 25 23:59:01 gw kernel: traps: pluto[9] trap", "Nov 25 23:59:01 gw kernel: traps: pluto[9] trap"),
    ("Nov 25 23:59:01 gw kernel: pluto is a planet", None),
    ("Nov 25 23:59:01 gw kernel: hunter2x IN=eth0 OUT= PROTO=TCP DPT=22", None),
])
def test_of_the_kernels_lines_those_about_ipsec_are_shown_without_log_prefix(line: str, shown: str | None) -> None:
    assert list(ipsec.LogFilter().lines([line])) == ([shown] if shown else [])


@pytest.mark.parametrize("line", [
    "ExecStartPre=/usr/libexec/ipsec/addconn --config /etc/ipsec.conf --checkconfig",
    "ExecStartPre=/usr/libexec/ipsec/_stackmanager start", "ExecStartPre=/usr/sbin/ipsec --checknss",
    "ExecStartPre=/usr/sbin/ipsec --checknflog", "ExecStopPost=/usr/sbin/ipsec --stopnflog",
    "ExecStart=/usr/libexec/ipsec/pluto --leak-detective --config /etc/ipsec.conf --nofork",
    "ExecStop=/usr/libexec/ipsec/whack --shutdown", "Description=Internet Key Exchange (IKE) Protocol Daemon for IPsec",
])
def test_a_line_of_the_packaged_unit_stays(line: str) -> None:
    assert ipsec.shown_unit_line(line) == line


@pytest.mark.parametrize("line, shown", [
    ("\tleft=", "\tleft="), ("\tleft= \x0c", "\tleft="), ("\tleft = 192.0.2.1", "\tleft=192.0.2.1"),
    ("=", "[redacted]=[redacted]"),
    ("\tesp=aes # hunter2x", "\tesp=aes"), ("\tleftpsk=", "\tleftpsk=[redacted]"), ("conn", "[redacted]"),
])
def test_a_line_of_ipsec_conf_without_a_value_or_with_more(line: str, shown: str) -> None:
    assert ipsec.shown_conf_line(line).rstrip() == shown
