"""No view shows a secret that an administrator left in a file; what is harmless stays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ipsec

from .ground import canaries


@pytest.mark.parametrize("own_log", [True, False], ids=["a log of its own", "the system's log"])
def test_no_canary_leaves(pyz: Path, tmp_path: Path, own_log: bool) -> None:
    planted = canaries.canaries_of_files()
    canaries.plant(tmp_path, planted, own_log)
    for words in (["barf"], ["barf", "--json"], ["look"], ["look", "--json"], ["verify"], ["verify", "--json"]):
        result = subprocess.run([sys.executable, pyz, "--root", tmp_path, *words], capture_output=True, text=True)
        assert "192.0.2.1" in result.stdout or words[0] != "barf"
        assert canaries.leaked(result.stdout + result.stderr, planted) == [], words


@pytest.mark.parametrize("words, shown", [
    ("/usr/libexec/ipsec/pluto --config /etc/ipsec.conf --nofork", None),
    ("pluto --nofork --nssdir=/n --psk=x", "pluto --nofork --nssdir=/n -[redacted]=[redacted]"),
    ("ipsec whack --name a --xauthpass x --initiate", "ipsec whack --name a -[redacted] [redacted] --initiate"),
    ("python3 -I /usr/sbin/ipsec.pyz barf", None), ("sh /usr/sbin/ipsec setup start", None),
    ("/usr/bin/curl -u a:b ipsec", "/usr/bin/curl (3 arguments)"), ("vi", "vi (0 arguments)"),
    ("sh -c ipsec", "sh (2 arguments)"), ("grep ipsec", "grep (1 argument)"),
    ("whack --name=a x --name b x", "whack --name=a [redacted] --name b [redacted]"),
    ("pluto --nofork x", "pluto --nofork [redacted]"), ("sh (38 arguments)", None), ("sh (1 argument)", None),
])
def test_arguments_of_programs(words: str, shown: str | None) -> None:
    assert ipsec.shown_arguments(words.split()) == (words if shown is None else shown)


@pytest.mark.parametrize("line, shown", [
    ("conn a # b", "conn a"), ("config setup", None), ("include /etc/ipsec.d/*.conf", None),
    ("\tleft=192.0.2.1 # x", "\tleft=192.0.2.1"), ('\tleftid="C=US, CN=x"', None),
    ("\tleftsubnets={10.0.0.0/8 10.1.0.0/16}", None),
    ("\tleftpsk=abc", "\tleftpsk=[redacted]"), ("\tx_Key9=abc", "\t[redacted]=[redacted]"),
    ("\tgarbage", "\t[redacted]"),
    ('\tleftupdown="ipsec _updown --route yes --x y"',
     '\tleftupdown="ipsec _updown --route yes -[redacted] [redacted]"'),
    ("\tleftupdown=/usr/bin/x", None), ("\tleftupdown=A=b", "\tleftupdown=A=[redacted] (0 arguments)"),
    ("\tauto=start", None),
    ("\tmodecfgbanner=hello", "\tmodecfgbanner=[redacted]"), ("\talso=b", None),
])
def test_lines_of_ipsec_conf(line: str, shown: str | None) -> None:
    assert ipsec.shown_conf_line(line) == (line if shown is None else shown)


@pytest.mark.parametrize("line, shown", [
    ("[Service]", None), ("Type=notify", None), ("ExecStart=/usr/libexec/ipsec/pluto --nofork", None),
    ("ExecStartPre=-/usr/bin/notify a b", "ExecStartPre=/usr/bin/notify (2 arguments)"),
    ('Environment="A=b" C=d', "Environment=A=[redacted] C=[redacted]"), ("X-Y=z", "X-Y=[redacted]"),
    ("EnvironmentFile=-/etc/sysconfig/pluto", None), ("rest of a value", "[redacted]"),
    ("PassEnvironment=A B_C d1", "PassEnvironment=A B_C [redacted]"),
    ("UnsetEnvironment=A B=c", "UnsetEnvironment=A B"),
])
def test_lines_of_a_unit(line: str, shown: str | None) -> None:
    assert ipsec.shown_unit_line(line) == (line if shown is None else shown)


@pytest.mark.parametrize("line, shown", [
    ("IPSEC_CONF=/etc/ipsec.conf # x y", "IPSEC_CONF=/etc/ipsec.conf"), ("ENABLED='yes' # it's x", "ENABLED=yes"),
    ('export DEBUG="a b"', "DEBUG=a b"),
    ('OPTIONS="--nofork --x y" # --x', 'OPTIONS="--nofork -[redacted] [redacted]"'),
    ("PSK=x", "PSK=[redacted]"), ("garbage", "[redacted]"), ("DEBUG=hunter2x9y", "DEBUG=[redacted]"),
    ("OPTIONS='--uniqueids x'", 'OPTIONS="--uniqueids [redacted]"'),
])
def test_lines_of_settings(line: str, shown: str) -> None:
    assert ipsec.shown_setting(line) == shown


@pytest.mark.parametrize("line, shown", [
    ("nameserver 192.0.2.53 # x y", "nameserver 192.0.2.53"),
    ("search a.example b.example;x", "search a.example b.example"),
    ("options ndots:2 rotate x", "options ndots:2 rotate [redacted]"), ("garbage", "[redacted]"),
])
def test_lines_of_resolv_conf(line: str, shown: str) -> None:
    assert ipsec.shown_resolver_line(line) == shown


@pytest.mark.parametrize("line, shown", [
    ('HOME_URL="https://www.debian.org/"', None), ("PRETTY_NAME=Debian 12", None),
    ("HOME_URL=https://u:Tr0ub4dor@x.example/", "HOME_URL=[redacted]"), ("X_URL=https://x/?t=1", "X_URL=[redacted]"),
])
def test_lines_of_os_release(line: str, shown: str | None) -> None:
    assert ipsec.shown_release_line(line) == (line if shown is None else shown)


@pytest.mark.parametrize("line, shown", [
    ("authpriv.* /var/log/secure", None), ("*.info;mail.none -/var/log/messages", None), ("*.* @@192.0.2.9:514", None),
    ("$IncludeConfig /etc/rsyslog.d/*.conf", None), ('action(type="x" pwd="y")', "action [redacted]"),
])
def test_lines_of_rsyslog(line: str, shown: str | None) -> None:
    assert ipsec.shown_syslog_line(line) == (line if shown is None else shown)


@pytest.mark.parametrize("line", [
    'Nov 25 23:00:01: "a" #1: initiating IKEv2 connection', "Nov 25 23:00:01: | ike spi 0x0123456789abcdef",
    'Nov 25 23:00:01.123: "a" #2: IPsec SA established tunnel mode {ESP=>0x1a2b3c4d <0x5e6f7081 DPD=active}',
    "Nov 25 23:00:01: | processing payload 12 of 20", "Nov 25 23:00:01: 10.1.0.1 00:11:22:33:44:55",
    'Nov 25 23:00:01: loaded private key matching CKAID 0123456789abcdef0123456789abcdef01234567',
    "Nov 25 23:00:01: | CKAID 0123456789abcdef0123456789abcdef01234567",
    "Nov 25 23:00:01 gw pluto[12]: Starting Pluto", "Nov 25 23:00:01 gw kernel: [1.2] xfrm: x",
    "2026-11-25T23:00:01.1+00:00 gw systemd[1]: Started ipsec.service", "no time stamp at all",
    "Nov 25 23:00:01: |    length: 440 (00 00 01 b8)", "Nov 25 23:00:01: |    start port: 0 (00 00)",
    "Nov 25 23:00:01: |    initiator SPI: 55 06 58 71  d5 72 81 9a", "Nov 25 23:00:01: | local spis: 5a aa 34 a0",
    "Nov 25 23:00:01: | IP start: 0a 01 00 00", "Nov 25 23:00:01: | reading fd 14 returned EOF",
    "Nov 25 23:00:01: | setup callback for interface lo 127.0.0.1:4500 fd 20 on UDP",
    "Nov 25 23:00:01: | ipsec-max-bytes: hard-limit=9223372036854775808", "Nov 25 23:00:01: | reading fd 14",
    "Nov 25 23:00:01: | NSS: Local DH MODP2048 secret (pointer): 0x44002a70",
])
def test_useful_lines_of_a_log_stay(line: str) -> None:
    assert list(ipsec.LogFilter().lines([line])) == [line]


@pytest.mark.parametrize("line, shown", [
    ("Nov 25 23:00:01: |   31 32 33 34  35   12345", "Nov 25 23:00:01: | [redacted 5 bytes]"),
    ("Nov 25 23:00:01: |   9a", "Nov 25 23:00:01: | [redacted 1 byte]"),
    ("| ESP enckey:  31 32 33 34", "| ESP enckey:  [redacted 4 bytes]"),
    ("Nov 25 23:00:01: |      4f 45 [OE]", "Nov 25 23:00:01: |      [redacted 2 bytes]"),
    ('| raw_key: input "0x7C 5C B2 40 1B"', '| raw_key: input "0x[redacted 4 bytes]'),
    ("| our keymat: 55 06 58 71  d5 72 81 9a", "| our keymat: [redacted 8 bytes]"),
    ("| our SPI: 55 06 58 71  d5 72 81 9a  55", "| our SPI: [redacted 9 bytes]"),
    ("Nov 10 10:10:10 gw pluto[1]: | a  31 32 33", "Nov 10 10:10:10 gw pluto[1]: | a  [redacted 3 bytes]"),
    ("| sk: 0123456789abcdef0123456789abcdef", "| sk: [redacted 16 bytes]"),
])
def test_rows_of_dumps_are_masked(line: str, shown: str) -> None:
    assert list(ipsec.LogFilter().lines([line])) == [shown]


@pytest.mark.parametrize("pieces", [
    ('"/etc/ip', 'sec.d/a.secrets" line 1: PSK data malformed (no prefix): hunter2'),
    ('"/etc/ipsec.d/a.secrets" line 1: PSK data malformed (no prefix): hun', "ter2"),
    ("ERROR ", '"/etc/ipsec.d/a.secrets" line 1: index "hunter2" not a numeric IPv4 address'),
    ('ERROR "/etc/a.secrets" line 1: in', 'dex "hun', 'ter2" not a numeric IPv4 address'),
    ('"/etc/a.secrets" line 1: WARNING: ignored unrecognized keyword: ', "hunter2"),
])
def test_messages_of_addconn_that_pluto_cuts_are_masked(pieces: tuple[str, ...]) -> None:
    for stamp in ("Nov 26 21:22:03.651867: addconn: ", "Nov 26 21:22:03 gw pluto[7]: addconn: ", "addconn: "):
        around = [f'{stamp}loading secrets from "/etc/a.secrets"', f'{stamp}"a": added IKEv2 connection']
        log = [around[0], *(f"{stamp}{piece}" for piece in pieces), *around]
        shown = ipsec.Redactor().text("\n".join(ipsec.LogFilter().lines(log))).split("\n")
        assert [shown[0], *shown[2:]] == [around[0], *around]
        assert shown[1].startswith(stamp) and "[redacted" in shown[1]
        assert not {"hun", "ter2", "hunter2"} & set(re.findall(r"\w+", shown[1]))


@pytest.mark.parametrize("width", [80, 79, 7])
def test_the_command_of_an_updown_script_is_shown_without_its_arguments(width: int) -> None:
    """Pluto logs it in rows of 80 characters."""
    shown = "PLUTO_VERB='up-client' PLUTO_ME='192.0.2.1' VTI_SHARED='no' SPI_IN=0x0 SPI_OUT=0x0 /usr/local/bin/up"
    for arguments in (" --token hunter2", " hunter2;x 'a b'", ""):
        command = shown + arguments
        log = [f"Nov 26 21:30:13.565007: | popen cmd is {len(command)} chars long"]
        log += [f"Nov 26 21:30:13.565007: | cmd({place:4d}):{command[place:place + width]}:"
                for place in range(0, len(command), width)]
        log *= 2
        text = ipsec.Redactor().text("\n".join(ipsec.LogFilter().lines(log)))
        line = f"Nov 26 21:30:13.565007: | cmd(   0):{shown}{' [redacted]' if arguments else ''}:"
        assert text.split("\n") == [log[0], line] * 2


@pytest.mark.parametrize("message", [
    '"/etc/a.secrets" line 1: XAUTH data malformed (input does not begin with format prefix): hunter2',
    'ERROR "/etc/a.secrets" line 1: index "hunter2" not a numeric IPv4 address',
    '"/etc/a.secrets" line 1: WARNING: ignored unrecognized keyword: hunter2',
])
def test_a_message_of_addconn_may_be_cut_anywhere(message: str) -> None:
    """The journal drops a blank at the end of a line."""
    for place in range(1, len(message)):
        pieces = (message[:place], message[place:])
        log = [f"Nov 26 21:22:03 gw pluto[7]: addconn: {piece}".rstrip() for piece in pieces]
        text = ipsec.Redactor().text("\n".join(ipsec.LogFilter().lines(log)))
        assert "[redacted" in text and not re.search("hunter|unter2|hunt|ter2", text), text


@pytest.mark.parametrize("line", ['addconn: "/etc/x', "| cmd(  80):{}:".format("x" * 80)])
def test_pieces_are_joined_up_to_a_limit(line: str) -> None:
    """Else the time to join them grows with the square of their number."""
    joined = list(ipsec.joined_pieces([line] * 5000))
    assert 1 < len(joined) < 100 and max(map(len, joined)) < 2 * ipsec.LONGEST_MESSAGE


def test_whole_messages_of_addconn_stay() -> None:
    texts = ['"a": added IKEv2 connection', "listening for IKE messages", "Kernel supports NIC esp-hw-offload",
             "adding interface eth0 192.0.2.1:UDP/500", '"a": oriented IKEv2 connection (local: left=192.0.2.1)',
             'loading secrets from "/etc/ipsec.secrets"', "unterminated string", "expected record boundary in key",
             '"/etc/a.secrets" line 1: unexpected end of id list', 'no secrets filename matched "/etc/a"',
             '"a"[1] 192.0.2.2 #1: initiating IKEv2 connection', "some other message", "and another"]
    lines = [f"Nov 26 21:22:03.651812: addconn: {text}" for text in texts]
    assert list(ipsec.LogFilter().lines(lines)) == lines


STAMPED = ("<86>Nov 25 23:59:02 gw {0}[7]: ", "<13>1 2026-11-25T23:59:02.1Z gw {0} 7 - - ", "Nov 25 23:59:02 {0}[7]: ",
           "2026 Nov 25 23:59:02 gw {0}[7]: ", "Nov 25 2026 23:59:02 gw {0}[7]: ", "Nov 25 23:59:02.123 gw {0}[7]: ",
           "[1732575542] gw {0}[7]: ", "1732575542.1 gw {0}[7]: ", "Nov 25 23:59:02 UTC gw {0}[7]: ",
           "Wed Nov 25 23:59:02 2026 auth.info {0}[7]: ", "Nov 25 23:59:02 gw auth.info {0}[7]: ",
           "25 Nov 23:59:02 gw {0}[7]: ", "2026/11/25 23:59:02 gw {0}[7]: ", "2026-11-25T23:59:02+01:00 gw {0}[7]: ",
           "Nov  5 23:59:02 2001:db8::1 /usr/sbin/{0}[7]: ", "{0}[7]: ", "nov 25 23:59:02 gw {0}: ")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stamp", STAMPED)
def test_the_program_is_found_in_every_form_of_a_log(stamp: str, shared: bool) -> None:
    message = '"west" #1: initiating IKEv2 connection'
    pluto, sudo = f"{stamp.format('pluto')}{message}", f"{stamp.format('sudo')}COMMAND=/usr/sbin/ipsec pluto: hunter2"
    assert list(ipsec.LogFilter().lines([pluto, sudo], shared=shared)) == [pluto]


@pytest.mark.parametrize("line", ["    continued pluto[7]: x", "-- Boot of pluto --", "garbage", "gw sudo: pluto x",
                                  "message repeated 2 times: [ pluto x]"])
def test_in_a_shared_log_a_line_of_unknown_origin_is_left_out(line: str) -> None:
    log = ipsec.LogFilter()
    assert list(log.lines([line], shared=True)) == [] and log.left_out == 1
    assert list(log.lines([line])) == [line]


@pytest.mark.parametrize("message, shown", [
    ("systemd[1]: Started ipsec.service - Internet Key Exchange (IKE) Protocol Daemon for IPsec.", None),
    ("systemd[1]: ipsec.service: Main process exited, code=exited, status=203/EXEC", None),
    ("systemd[1]: ipsec.service: Failed with result 'exit-code'.", None),
    ("systemd[1]: ipsec.service: Consumed 1.234s CPU time.", None),
    ("systemd[1]: ipsec.service: Scheduled restart job, restart counter is at 5.", None),
    ("systemd[1]: ipsec.service: Failed at step EXEC spawning /usr/libexec/ipsec/pluto: No such file", None),
    ("systemd[1]: Started ipsec Tr0ub4dor.", "systemd[1]: Started ipsec [redacted]"),
    ("systemd[1]: Started the psk is hunter, ipsec.", "systemd[1]: [redacted]"),
    ("systemd[1]: /etc/systemd/system/ipsec.service:3: Failed to parse Restart=, ignoring: hunter",
     "systemd[1]: /etc/systemd/system/ipsec.service:3: Failed to parse Restart=, ignoring: [redacted]"),
    ("ipsec[7]: started by hand", None), ("ipsec[7]: started with Tr0ub4dor", "ipsec[7]: started with [redacted]"),
    ("ipsec: the new PSK is hunter", "ipsec: [redacted]"), ("_updown[7]: X=hunter", "_updown[7]: [redacted]"),
    ('pluto[7]: "a" #1: up-client output: RTNETLINK answers: File exists', None),
    ('pluto[7]: "a" #1: up-client output: + X=hunter',
     'pluto[7]: "a" #1: up-client output: + X=[redacted] (0 arguments)'),
    ('pluto[7]: "a" #1: up-client output: + curl -u a:hunter',
     'pluto[7]: "a" #1: up-client output: + curl (2 arguments)'),
    ('pluto[7]: "a" #1: up-client output: export X=hunter', 'pluto[7]: "a" #1: up-client output: export [redacted]'),
    ("pluto[7]: | psk is Tr0ub4dor", "pluto[7]: | psk is [redacted]"),
    ("pluto[7]: | x QUJDREVGR0hJSktMTU5P", "pluto[7]: | x [redacted]"),
    ("pluto[7]: loaded private key with keyid AwEAAbzL0", None),
    ("kernel: [ 1.1] Command line: x=hunter xfrm", ""),
    ("pluto[7]: | key submitted (process() +84 /programs/pluto/ikev2_parent.c)", None),
    ('pluto[7]: | "a": policy of PSK: IKEv2+PSK+ENCRYPT+TUNNEL+IKE_FRAG_ALLOW;', None),
])
def test_free_text_in_a_log(message: str, shown: str | None) -> None:
    stamp = "Nov 25 23:59:02 gw "
    expected = [] if shown == "" else [stamp + (shown or message)]
    assert list(ipsec.LogFilter().lines([stamp + message], shared=True)) == expected


def test_lines_of_other_programs_are_counted() -> None:
    log = ipsec.LogFilter()
    lines = ["Nov 25 23:00:01 gw sudo: COMMAND=/usr/sbin/ipsec", "Nov 25 23:00:01 gw pluto[1]: x",
             "Nov 25 23:00:01 gw kernel: usb 1-1: new device"]
    assert list(log.lines(lines)) == lines[1:2] and log.left_out == 2


def test_no_name_in_a_table_is_cut_at_a_hyphen() -> None:
    """Tables of names are wrapped text: a name cut at a line end would not be known any more."""
    tables = (ipsec.SHOWN_VALUES, ipsec.PLUTO_OPTION_NAMES, ipsec.COMMAND_WORDS, ipsec.RELEASE_FILES,
              ipsec.LOGGED_DAEMONS, ipsec.LOGGED_SCRIPTS, ipsec.UNIT_DIRECTIVES)
    for table in tables:
        assert [name for name in table if name.startswith("-") or name.endswith("-")] == []


@pytest.mark.parametrize("line, shown", [
    ("gw kernel: [ 12.3] psk is abcdefgh IN=eth0 OUT= PROTO=ESP",
     "gw kernel: [ 12.3] [redacted] IN=eth0 OUT= PROTO=ESP"),
    ("[ 12.3] secret word IN=eth0 OUT= PROTO=ESP", "[ 12.3] [redacted] IN=eth0 OUT= PROTO=ESP"),
    ("gw kernel: secret word IN=eth0 OUT= PROTO=ESP", "gw kernel: [redacted] IN=eth0 OUT= PROTO=ESP"),
    ("secret word IN=eth0 OUT= PROTO=ESP", "[redacted] IN=eth0 OUT= PROTO=ESP"),
    ("[ 12.3] IN=eth0 OUT= PROTO=ESP", None),
])
def test_prefixes_of_firewall_rules_in_the_kernel_s_log(line: str, shown: str | None) -> None:
    assert ipsec.without_log_prefix(line) == (line if shown is None else shown)


def words_of_pluto(top: Path) -> ipsec.PlutoWords:
    """Return the vocabulary of a host whose pluto has a few texts."""
    program = top / "usr/libexec/ipsec/pluto"
    program.parent.mkdir(parents=True)
    texts = ("initiating IKEv2 connection", "Peer ID is %s: '%s'", "certificate %s failed verification", "xfrm=%s",
             "addconn: ", "adding interface", "secret", "pluto", "AES_CBC", "HMAC_SHA2", "sent IKE_SA_INIT request to",
             "using auth", "User %s: login", "kernel support code on %s")
    program.write_bytes(b"\x7fELF\0" + b"\0".join(text.encode() for text in texts) + b"\0")
    config = ipsec.Config(ipsec.Host(root=str(top)), "x", text="conn branch\n\tleftid=@west\n\tx-psk=swordfish\n")
    return ipsec.PlutoWords(ipsec.Host(root=str(top)), config)


@pytest.mark.parametrize("message, shown", [
    ('"branch"[2] 192.0.2.9 #1: initiating IKEv2 connection to 192.0.2.1:500', None),
    ('"unheard-of" #1: sent IKE_SA_INIT request to 2001:db8::1', None),
    ("Peer ID is ID_FQDN: '@unheard-of'", None), ("Peer ID is ID_KEY_ID: 'any name'", None),
    ("certificate C=DE, O=Any Company, CN=gw.example.org failed verification", None),
    ("adding interface enp0s31f6 10.0.0.1:500", None), ("User jane: login", None), ("sent to gw.example.org", None),
    ("ESP=>0xfe3f0bdf <0x9f24bc7e xfrm=AES_CBC_256-HMAC_SHA2_512_256", None), ("No such file or directory", None),
    ("using kernel support code on #1 SMP PREEMPT_DYNAMIC Debian", None),
    ("swordfish", "[redacted]"), ("| secret swordfish", "| secret [redacted]"),
    ("secret: 47110815", "secret: [redacted]"),
    ("using auth Tr0ub4dor&3", "using auth [redacted]"), ('using "Summer44"', 'using "[redacted]"'),
    ("sent qX7vlM2kP9", "sent [redacted]"), ("sent correct-horse", "sent [redacted]"),
])
def test_only_words_that_pluto_knows_are_shown_of_its_messages(tmp_path: Path, message: str, shown: str | None) -> None:
    log = ipsec.LogFilter(words_of_pluto(tmp_path))
    for stamp in ("Nov 25 23:00:01.123456: ", "Nov 25 23:00:01 gw pluto[7]: ", ""):
        assert list(log.lines([stamp + message])) == [stamp + (message if shown is None else shown)]


def test_names_are_shown_in_later_messages_too(tmp_path: Path) -> None:
    log = ipsec.LogFilter(words_of_pluto(tmp_path))
    lines = [f"Nov 25 23:00:01: {text}" for text in ('"some" #1: sent', '"other" #1: sent', 'sent "some" to "other"')]
    assert list(log.lines(lines)) == lines


def test_without_pluto_only_words_like_passwords_are_masked(tmp_path: Path) -> None:
    host = ipsec.Host(root=str(tmp_path))
    log = ipsec.LogFilter(ipsec.PlutoWords(host, ipsec.Config(host, "x", text="")))
    lines = ["Nov 25 23:00:01: got NZnxq73adQT9skk", "Nov 25 23:00:01: any words AES_GCM_16_256 0x1a2b3c4d"]
    assert list(log.lines(lines)) == ["Nov 25 23:00:01: got [redacted]", lines[1]]


def test_words_that_pluto_cuts_in_output_of_addconn_stay(tmp_path: Path) -> None:
    lines = [f'Nov 25 23:00:01: addconn: "branch": {part}' for part in ("initia", "IKEv2 connec", "swordf")]
    shown = [*lines[:2], lines[2].replace("swordf", "[redacted]")]
    assert list(ipsec.LogFilter(words_of_pluto(tmp_path)).lines(lines)) == shown


@pytest.mark.parametrize("data", [
    "53 65 63 72 65 74", "53:65:63:72:65:74:53:65:63", "5365 6372 6574 5365 63", "53656372 65743132 53",
    "%53%65%63%72%65%74", r"\x53\x65\x63\x72\x65\x74", r"\123\145\143\162"])
def test_bytes_in_every_form_are_masked(data: str) -> None:
    for text in ("Nov 25 23:00:01: | {}", 'Nov 25 23:00:01: "a" #1: got {}', "Nov 25 23:00:01 gw pluto[1]: {}"):
        line, = ipsec.LogFilter().lines([text.format(data)])
        assert "[redacted" in line and data[:8] not in line
    kept = "Nov 25 23:00:01 gw kernel: IN=eth0 OUT= MAC=52:54:00:12:34:56:52:54:00:ab:cd:ef:08:00 PROTO=ESP"
    assert list(ipsec.LogFilter().lines([kept])) == [kept]


@pytest.mark.parametrize("lines, shown", [
    (["conn a # hunter2", "\tleftpsk=hunter2", "\tike=aes # hunter2", "# hunter2", "\thunter2"],
     ["conn a", "\tleftpsk=[redacted]", "\tike=aes", "# [comment]", "\t[redacted]"]),
    (["VPN=hunter2", "PRETTY_NAME=Debian", "PLUTO_ME='192.0.2.1'"],
     ["VPN=[redacted]", "PRETTY_NAME=Debian", "PLUTO_ME='192.0.2.1'"]),
    (["[Service]", "ExecStartPre=/bin/x hunter2", "X-Y=z", "Type=notify"],
     ["[Service]", "ExecStartPre=/bin/x (1 argument)", "X-Y=[redacted]", "Type=notify"]),
    (["root  12  0.0  0.1  8 4 ?  Ss  Nov25  0:00 vault hunter2"],
     ["root  12  0.0  0.1  8 4 ?  Ss  Nov25  0:00 vault (1 argument)"]),
    (["# Generated by iptables-save v1.8.9", "#1: \"a\":500 STATE_MAIN_I4"], None),
    (["src 10.1.0.0/24 dst 10.2.0.0/24", "", "\tdir out priority 1"], None),
    (["*.* @@u:hunter2@h", "$ActionUser hunter2", "options hunter2", "nameserver 10.0.0.1 # hunter2"],
     ["[redacted] [redacted]", "[redacted] [redacted]", "options [redacted]", "nameserver 10.0.0.1"]),
    (["10.1.0.0/24 # hunter2", "x Tr0ub4dor&3", "Fri Nov 27 11:52:36 UTC 2026", "config setup options:"],
     ["10.1.0.0/24 # [comment]", "x [redacted]", "Fri Nov 27 11:52:36 UTC 2026", "config setup options:"]),
    (["\t 00000000 00000000 00000000 00000003", "max_bytes: 2^63B; x: 100%", "000000006056f922 t netif_rx"], None),
    (["    link/tunnel6 :: brd :: permaddr 9e:7f:6e:5d:d5:40:00:00:00:00:00:00"], None),
    (["drwxr-xr-x 3 0 0 40 2026-11-27 11:41 6.1", "CN=gw, O=Any", "IN=eth0 OUT= PROTO=ESP", "gw.a /x"], None),
])
def test_redact_knows_lines_by_their_form(lines: list[str], shown: list[str] | None) -> None:
    assert list(ipsec.AnyText().lines(lines)) == (lines if shown is None else shown)


def test_a_variable_before_a_count_of_arguments_is_masked() -> None:
    """A value of a shell variable is masked also if the line looks like the result of shown_arguments()."""
    assert ipsec.shown_arguments(["PASSWORD=hunter2", "(3", "arguments)"]) == "PASSWORD=[redacted] (3 arguments)"
