"""Nothing secret leaves in a report: by place, by value, in every syntax, in pieces; ordinary text stays as it is."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ipsec

from .test_config import host_at

CANARY = "cAnArY-7f3d9"

#: Entries as pluto loads them, as it refuses them, and as people leave them behind, with what must still be seen.
ENTRIES = [
    ('"@west" "@east" : PSK "{}"', '"@west" "@east" : PSK "[redacted]"'),
    ("@w @e : PSK 0x{hex}", "@w @e : PSK 0x[redacted 12 bytes]"),
    ("@w @e : PSK 0s{base64}", "@w @e : PSK 0s[redacted 12 bytes]"),
    ("@w @e : PSK 0t{}", "@w @e : PSK 0t[redacted]"),
    ("@w @e : PSK 0tblanks and {}", "@w @e : PSK 0t[redacted]"),
    ("@u : PSK '{}'", "@u : PSK '[redacted]'"),
    ("@u : PSK\n 0x{hex}", "@u : PSK\n 0x[redacted 12 bytes]"),
    ('@u\n\t: PSK\n\t"{}" # new', '@u\n\t: PSK\n\t"[redacted]" #[redacted comment]'),
    ("#@old : PSK 0x{hex}", "#@old : PSK 0x[redacted 12 bytes]"),
    ('# @old 192.0.2.1: psk "{}"', '# @old 192.0.2.1: psk "[redacted]"'),
    ('@a : PSK "x" # old "{}"', '@a : PSK "[redacted]" #[redacted comment]'),
    ("# the password was {}", "#[redacted comment]"),
    ('@a : PSK "0s{base64}"', '@a : PSK "[redacted]"'),
    ('%any: PSK "{}"', '%any: PSK "[redacted]"'),
    ('"C=US, O=Example, CN=gw": PSK "{}"', '"C=US, O=Example, CN=gw": PSK "[redacted]"'),
    (': PPKS "id" "{}"', ': PPKS "id" "[redacted]"'),
    (': PPKS "id" 0x{hex}', ': PPKS "id" 0x[redacted 12 bytes]'),
    (': PPKS "{}"', ': PPKS "[redacted]"'),
    ('@user : XAUTH "{}"', '@user : XAUTH "[redacted]"'),
    (': RSA key.pem "{}"', ': RSA [redacted] "[redacted]"'),
    (': PIN "token" "{}"', ': PIN "[redacted]" "[redacted]"'),
    (": PIN %smartcard {}", ": PIN [redacted] [redacted]"),
    ("@a : PSK {}", "@a : PSK [redacted]"),
    ("@a : XAUTH {}", "@a : XAUTH [redacted]"),
    ("@a : PSK `{}`", "@a : PSK `[redacted]`"),
    (": ECDSA {{ PrivateKey: 0x{hex} }}", ": ECDSA { PrivateKey: 0x[redacted 12 bytes] }"),
    (": RSA\t{{\n\t# RSA 2192 bits\n\tModulus: 0x00\n\tPrivateExponent: 0x{hex}\n\t}}",
     ": RSA\t{\n\t#[redacted comment]\n\tModulus: 0x[redacted 1 bytes]\n\tPrivateExponent: 0x[redacted 12 bytes]\n\t}"),
    ('@a : PSK "{}', '@a : PSK "[redacted]'),
    ("@a : PSK '{}\n@b : PSK \"x\"", "@a : PSK '[redacted]\n@b : PSK \"[redacted]\""),
    ('@a @b PSK "{}"', '[redacted] [redacted] [redacted] "[redacted]"'),
    ('@a @b:PSK "{}"', '[redacted] [redacted] "[redacted]"'),
    ('@a @b :PSK "{}"', '[redacted] [redacted] [redacted] "[redacted]"'),
    ('@a PSK "{}" : PSK "x"', '@a [redacted] "[redacted]" : PSK "[redacted]"'),
    (': "{}"', ': "[redacted]"'),
    (": {}", ": [redacted]"),
    ('@a : PSK"{}"', '@a : [redacted]'),
    ("@a : PSK 0x{hex}zz", "@a : PSK 0x[redacted, malformed]"),
    ("include /etc/ipsec.d/*.secrets\n@a : PSK \"{}\"", "include /etc/ipsec.d/*.secrets\n@a : PSK \"[redacted]\""),
    ("include {} {}", "include [redacted] [redacted]"),
    ('@a : PSK "x"\0{}', '@a : PSK "[redacted]"#[redacted comment]'),
    ("\t{}", "\t[redacted]"),
]


def spelt(entry: str) -> str:
    return entry.format(*[CANARY] * 99, hex=CANARY.encode().hex(), base64=base64.b64encode(CANARY.encode()).decode())


#: Every way to write the canary that a report could hold.
FORMS = [CANARY, CANARY.encode().hex(), CANARY.encode().hex().upper(), base64.b64encode(CANARY.encode()).decode()]


@pytest.mark.parametrize("entry, shown", ENTRIES)
def test_an_entry_is_shown_without_its_secret(entry: str, shown: str) -> None:
    if "'[redacted]\n" in shown:
        shown = shown.replace("'[redacted]\n", '"[redacted]\n')  # all unterminated strings look alike
    assert "\n".join(ipsec.censor_secrets(spelt(entry).split("\n"))) == shown


#: Where the canary is a remark, or a part of what pluto takes for the secret.
UNKNOWABLE = ("# the password was {}", "include {} {}", '@a : PSK "x"\0{}', "@w @e : PSK 0tblanks and {}",
              "@a : PSK 0x{hex}zz")


@pytest.mark.parametrize("entry", [entry for entry, _ in ENTRIES if entry not in UNKNOWABLE])
def test_a_secret_seen_once_is_masked_everywhere(entry: str) -> None:
    redactor = ipsec.Redactor()
    redactor.learn_file(spelt(entry).split("\n"))
    written = next(form for form in FORMS if form in spelt(entry))
    shown = redactor.text(f"Nov 23 pluto[1]: x{written}y {written} and {written}\n")
    assert written not in shown and "Nov 23 pluto[1]: x[redacted]y" in shown


@pytest.mark.parametrize("secret", ["0x" + CANARY.encode().hex(), "0s" + base64.b64encode(CANARY.encode()).decode(),
                                    "0t" + CANARY, CANARY])
def test_a_secret_is_masked_in_all_its_encodings(secret: str) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(secret)
    hexed = CANARY.encode().hex()
    for text in (*FORMS, hexed.upper(), ":".join(hexed[i:i + 2] for i in range(0, len(hexed), 2)),
                 "|   63 41 6e 41  72 59 2d 37  66 33 64 39               cAnArY-7f3d9"):
        masked = redactor.text(f"before {text} after")
        assert text[:8] not in masked and text[-8:] not in masked and "[redacted]" in masked


@given(st.lists(st.sampled_from(["  ", " ", ":", "| ", "|  ", "0a", "FF", "7", "x", "beef", "\t", "1b 2c", "-"]),
                max_size=14))
def test_the_quick_look_for_a_hex_dump_overlooks_none(parts: list[str]) -> None:
    line = "".join(parts)
    rows = {row for row in (ipsec.SHORT_ROW, ipsec.BYTES_ROW, ipsec.PAIRS_ROW) if re.search(row, line)}
    assert rows <= set(ipsec.rows_in(line))


def test_a_secret_is_masked_in_the_rows_of_a_hex_dump() -> None:
    secret = bytes(range(65, 65 + 37))
    redactor = ipsec.Redactor()
    redactor.learn("0x" + secret.hex())
    rows = [secret[i:i + 16] for i in range(0, len(secret), 16)]
    hexed = ["  ".join(row[i:i + 4].hex(" ") for i in range(0, len(row), 4)) for row in rows]
    dump = "".join(f"Nov 23 06:00:00 gw pluto[1]: |   {digits:52}   {row.decode()}\n"
                   for digits, row in zip(hexed, rows))
    masked = redactor.text(dump)
    assert masked.count("[redacted]") == 3
    assert "41 42" not in masked and "ABC" not in masked and "61 62" not in masked and "`abc" not in masked
    assert redactor.text("|   00 01 02 03\n") == "|   00 01 02 03\n"


@pytest.mark.parametrize("written", [
    "Kana%20rien%26Eins%5C%21", "Kana\\x20rien\\x26Eins\\x5c\\x21", "Kana rien&amp;Eins\\!",
    "Kana\\ rien\\&Eins\\\\\\!", "Kana rien\\u0026Eins\\!", "0x4b61 6e61 2072 6965 6e26 4569 6e73 5c21",
    "Kana\\040rien\\046Eins\\134\\041",
])
def test_a_secret_is_masked_in_other_spellings(written: str) -> None:
    redactor = ipsec.Redactor()
    redactor.learn("Kana rien&Eins\\!")
    assert redactor.text(f"before {written} after").startswith("before ")
    assert "rien" not in redactor.text(written) and "6965" not in redactor.text(written)


@pytest.mark.parametrize("secret", ['qu"ote\\d s3cret', "it's a s3cret", "tab\ts3cret!", "\x01ctl s3cret",
                                    "ünïcode-s3cret", "\U0001f511-s3cret"])
def test_a_secret_is_masked_as_programs_escape_it(secret: str) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(secret)
    octal = "".join(c if " " <= c <= "~" and c != "\\" else "".join(f"\\{b:03o}" for b in c.encode()) for c in secret)
    for text in (secret, json.dumps(secret), ipsec.printable(secret), octal, secret.replace("'", "'\\''"),
                 secret.encode().hex(), json.dumps(secret, ensure_ascii=False)):
        assert "s3cret" not in redactor.clean(f"x {text} y") and "[redacted]" in redactor.clean(f"x {text} y")


def test_a_short_or_everyday_secret_leaves_a_report() -> None:
    redactor = ipsec.Redactor()
    for secret in ("a", "ab", "abc", "secret", "ipsec", "abcd", "500", "12345", ""):
        redactor.learn(secret)
    redactor.learn("0tsecret")
    redactor.learn("0x61")
    text = "authby=secret /etc/ipsec.conf abc abcde xabcd port 500 4500 1123456"
    assert redactor.text(text) == text
    assert redactor.text("pass abcd, 12345.") == "pass [redacted], [redacted]."
    redactor.learn("0x616263")
    assert redactor.text("abc PSK=0x616263") == "abc PSK=[redacted]"
    assert redactor.text(': PSK "ab"\n--psk abc\n') == ": PSK [redacted]\n--psk [redacted]\n"


@pytest.mark.parametrize("line, shown", [
    ('action(type="ommysql" uid="log" pwd="{}")', 'action(type="ommysql" uid="log" pwd=[redacted])'),
    ("S root 12 whack --name c --xauthname u --xauthpass {} {} --initiate",
     "S root 12 whack --name c --xauthname u --xauthpass [redacted] --initiate"),
    ("ipsec newhostkey --password={} --keytype rsa", "ipsec newhostkey --password=[redacted] --keytype rsa"),
    ("pk12util -i a.p12 -W {} -d sql:/etc", "pk12util -i a.p12 -W [redacted] -d sql:/etc"),
    ("certutil -P {} -L", "certutil -P [redacted] -L"),
    ("pk12util -K {} -d sql:/etc -W {}", "pk12util -K [redacted] -d sql:/etc -W [redacted]"),
    ("sshpass -p {} ssh gw", "sshpass -p [redacted] ssh gw"),
    ("curl -s -u me:{} https://gw", "curl -s -u me:[redacted] https://gw"),
    ("Authorization: Bearer {}", "Authorization: Bearer [redacted]"),
    ("NSS Certificate DB:{}", "NSS Certificate DB:[redacted]"),
    ("env DB_PASS={} AWS_SECRET_ACCESS_KEY={}", "env DB_PASS=[redacted] AWS_SECRET_ACCESS_KEY=[redacted]"),
    ("a -----BEGIN PRIVATE KEY-----\\n{}\\n-----END PRIVATE KEY-----\\n b\nnext",
     "a -----BEGIN PRIVATE KEY-----[redacted]-----END PRIVATE KEY-----\\n b\nnext"),
    ("KEY=-----BEGIN EC PRIVATE KEY----- {} -----END EC PRIVATE KEY----- x\n-----BEGIN PRIVATE KEY-----\n{}\n",
     "KEY=-----BEGIN EC PRIVATE KEY-----[redacted]-----END EC PRIVATE KEY----- x\n-----BEGIN PRIVATE KEY-----\n"
     "[redacted]\n"),
    ("openssl pkcs12 -passin pass:{} -in x", "openssl pkcs12 -passin [redacted] -in x"),
    ("curl https://user:{}@example.com/", "curl https://user:[redacted]@example.com/"),
    ('003 "/etc/ipsec.secrets" line 1: PSK data malformed (bad base): {}',
     '003 "/etc/ipsec.secrets" line 1: PSK data malformed (bad base): [redacted]'),
    ('"/etc/ipsec.secrets" line 4: RSA data malformed (x (y)): {}',
     '"/etc/ipsec.secrets" line 4: RSA data malformed (x (y)): [redacted]'),
    ('"/etc/ipsec.secrets" line 2: WARNING: ignored unrecognized keyword: {}',
     '"/etc/ipsec.secrets" line 2: WARNING: ignored unrecognized keyword: [redacted]'),
    ('ERROR "/etc/ipsec.secrets" line 3: index "{}" illegal (non-DNS-name) character in name',
     'ERROR "/etc/ipsec.secrets" line 3: index [redacted]'),
    ("| lex shift: '{}'", "| lex shift: '[redacted]"),
    ("| XAUTH: failure user(u:c) pass {} vs {}", "| XAUTH: failure user(u:c) pass [redacted]"),
    ("sh -c echo '@a : PSK \"{}\"' >> /etc/ipsec.secrets", "sh -c echo '@a : PSK [redacted]"),
    ('x : PPKS "id" "{}" y', 'x : PPKS "id" [redacted]'), (': PPKS "{}"', ": PPKS [redacted]"),
    ("export IPSEC_SECRET={} x", "export IPSEC_SECRET=[redacted] x"), ("env VPN_PSK: {}", "env VPN_PSK: [redacted]"),
    ("password = with blanks {}", "password = [redacted]"),
    ('-A INPUT -m comment --comment "psk is {}" -j ACCEPT', "-A INPUT -m comment --comment [redacted] -j ACCEPT"),
    ('-A INPUT -m comment --comment "a - psk - {}" -j ACCEPT', "-A INPUT -m comment --comment [redacted] -j ACCEPT"),
    ('-A INPUT -j LOG --log-prefix "key {} "', "-A INPUT -j LOG --log-prefix [redacted]"),
    ("ACCEPT all -- 0.0.0.0/0 0.0.0.0/0 /* psk is {} */ mark match 1",
     "ACCEPT all -- 0.0.0.0/0 0.0.0.0/0 /* [redacted] */ mark match 1"),
    ('\t\tudp dport 500 log prefix "secret {}" accept comment "the psk: {}"',
     "\t\tudp dport 500 log prefix [redacted] accept comment [redacted]"),
    ('\tmodecfgbanner="the password is {}"', "\tmodecfgbanner=[redacted]"),
    ("| We are sending 'hi {}' as banner", "| We are sending '[redacted]' as banner"),
    ('"a":   banner:hi {};', '"a":   banner:[redacted];'), ('"a": modecfg info: banner:hi {}, cat:unset;',
                                                            '"a": modecfg info: banner:[redacted], cat:unset;'),
    ('"a": oriented; my_updown=/usr/local/bin/up --x {} y;', '"a": oriented; my_updown=/usr/local/bin/up [redacted];'),
    ('"a": my_updown=ipsec _updown {};', '"a": my_updown=ipsec _updown [redacted];'),
    ('| kernel: running updown command "/usr/local/bin/up {}" for verb prepare ',
     '| kernel: running updown command "/usr/local/bin/up [redacted]" for verb prepare '),
    ("| executing up-client: PLUTO_VERB='up-client' SPI_OUT=0x0 /bin/up {} 2>&1",
     "| executing up-client: PLUTO_VERB='up-client' SPI_OUT=0x0 /bin/up [redacted]"),
    ("\tauth-trunc hmac(sha1) 0x0123456789abcdef{hex} 96", "\tauth-trunc hmac(sha1) 0x[redacted 20 bytes] 96"),
    ("\taead rfc4106(gcm(aes)) 0x{hex} 128", "\taead rfc4106(gcm(aes)) 0x[redacted 12 bytes] 128"),
    ("\tenc cbc(aes) 0x{hex}", "\tenc cbc(aes) 0x[redacted 12 bytes]"),
    ("\tE: aes-cbc  63416e41 72592d37 66336439", "\tE: aes-cbc  [redacted]"),
    ("road:$6$salt$63416e4172592d37:conn", "road:$6$[redacted]:conn"),
    # ipsec redact: mails, NetworkManager's files, manifests of Kubernetes, the journal in JSON
    ("leftpsk={}", "leftpsk=[redacted]"), ("\t# leftpsk={}", "\t# leftpsk=[redacted]"),
    ("pskvalue={}", "pskvalue=[redacted]"), ("private-key={}=", "private-key=[redacted]"),
    ("wep-key0={}", "wep-key0=[redacted]"), ("The password of the web UI is {}&a here",
                                             "The password of the web UI is [redacted] here"),
    ('{{"MESSAGE" : [112,115,107,32], "_PID":"1"}}', '{"MESSAGE" : [[redacted]], "_PID":"1"}'),
    ('{{"_CMDLINE":"mysql -uroot -p{}","_PID":"1"}}', '{"_CMDLINE":"[redacted]","_PID":"1"}'),
    # complaints of addconn 4.10 and 5.2 about lines of ipsec.conf
    ("/etc/ipsec.conf:13: syntax error [{}]", "/etc/ipsec.conf:13: syntax error [[redacted]]"),
    ("a.conf:7: syntax error, unexpected STRING [{}]", "a.conf:7: syntax error, unexpected STRING [[redacted]]"),
    ("/etc/ipsec.conf:13: unrecognized keyword '{}'", "/etc/ipsec.conf:13: unrecognized keyword '[redacted]'"),
    ("unrecognized 'config setup' keyword '{}'", "unrecognized 'config setup' keyword '[redacted]'"),
    ("a.conf:3: warning: X- style comment ignored: x-note={} b",
     "a.conf:3: warning: X- style comment ignored: x-note=[redacted]"),
])
def test_an_unknown_secret_is_known_by_its_place(line: str, shown: str) -> None:
    redactor = ipsec.Redactor()
    assert redactor.text(spelt(line)) == shown
    assert redactor.text(shown) == shown  # a second pass finds nothing


@pytest.mark.parametrize("arguments, secret, is_masked", [
    ("--token hunter2", "hunter2", True), ("--api-key=hunter2", "hunter2", True), ("Zz9Kq7Wm1", "Zz9Kq7Wm1", True),
    ("--token 'hunter2'", "hunter2", True), ("-c 'curl --token hunter2 x'", "hunter2", True),
    ("TOKEN='two words' up", "two words", True), ("'Zz9Kq7Wm1'", "Zz9Kq7Wm1", True),
    ("password hunter2", "hunter2", True), ("--route yes eth0.100", "eth0.100", False),
    ("10.1.0.0/16 customer-a", "customer-a", False), ("/etc/ipsec.d/Hook1a2b3c", "Hook1a2b3c", False),
])
def test_arguments_of_updown_scripts_are_masked_in_what_the_script_prints(
        tmp_path: Path, arguments: str, secret: str, is_masked: bool) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text(f'conn a\n\tleft=192.0.2.1\n\tleftupdown="/bin/up {arguments}"\n')
    line = f'"a": up-client output: failed with {secret}'
    shown = ipsec.redactor_of(ipsec.Host(root=str(tmp_path))).text(line)
    assert shown == (line.replace(secret, "[redacted]") if is_masked else line)


ORDINARY = """config setup
	logfile=/var/log/pluto.log
	virtual-private=%v4:10.0.0.0/8,%v4:!10.1.0.0/16
conn west-east
	authby=secret
	leftid="C=US, O=Example, CN=west"
	leftrsasigkey=0sAwEAAbzL0123456789abcdefghijklmnopqrstuv
	ppk=insist
	mark=0x1234/0xffffffff
include /etc/ipsec.d/*.conf
000 "west-east":   policy: IKEv2+PSK+ENCRYPT+TUNNEL+PFS+IKE_FRAG_ALLOW+ESN_NO+ESN_YES;
000 "west-east":   our auth:secret, their auth:secret, our autheap:none, their autheap:none;
000 "west-east":   xauth us:none, xauth them:none,  my_username=[any]; their_username=[any]
000 "west-east":   modecfg policy:push, dns:unset, domains:unset, banner:unset, cat:unset;
000 "west-east":     oriented; my_ip=unset; their_ip=unset; my_updown=ipsec _updown;
| kernel: running updown command "ipsec _updown" for verb prepare
000 secretsfile=/etc/ipsec.secrets, ipsecdir=/etc/ipsec.d, ppk=no
pluto[12]: loading secrets from "/etc/ipsec.secrets"
pluto[12]: NSS DB directory: sql:/var/lib/ipsec/nss, FIPS Mode: OFF
src 192.0.2.1 dst 192.0.2.2\n\tproto esp spi 0x0000abcd reqid 16389 mode tunnel\n\treplay-window 0 flag af-unspec
\tanti-replay context: seq 0x0, oseq 0x0, bitmap 0x00000000
default via 192.0.2.1 dev eth0 proto dhcp src 192.0.2.9 metric 100
ls: cannot access '/etc/ipsec.d/passwd': No such file or directory
-rw------- 1 root root  86 Nov 23 06:41 /etc/ipsec.d/nsspassword
00:11:22:33:44:55 06:58:17 12:ab:34:cd:56:ef:78:90:12:34
passwd: files systemd
| complete_dh_shared_secret: 3 helpers
loaded PSK secret: @a
-A INPUT -m comment --comment "let monkey in" -j TARGET
-A INPUT -j LOG --log-prefix "keyexchange " -j LOG
ACCEPT all -- 0.0.0.0/0 0.0.0.0/0 /* compass */
name         : authenc(hmac(sha1),cbc(aes))
selftest     : passed
"""


def test_ordinary_text_stays_as_it_is() -> None:
    redactor = ipsec.Redactor()
    redactor.learn_file(spelt("\n".join(entry for entry, _ in ENTRIES)).split("\n"))
    assert redactor.clean(ORDINARY) == ORDINARY
    assert redactor.clean(ORDINARY, bulk=True) == ORDINARY


def test_the_lines_of_a_private_key_are_masked_across_pieces() -> None:
    text = f"a\n-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n{CANARY}\n-----END RSA PRIVATE KEY-----\nb\n"
    shown = "a\n-----BEGIN RSA PRIVATE KEY-----\n[redacted]\n[redacted]\n-----END RSA PRIVATE KEY-----\nb\n"
    redactor = ipsec.Redactor()
    assert redactor.text(text) == shown
    assert "".join(redactor.stream(line.encode() for line in text.splitlines(keepends=True))) == shown
    assert redactor.text("unrelated\n") == "unrelated\n"


@pytest.mark.parametrize("size", range(1, 40))
def test_a_secret_across_pieces_is_masked(size: int) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(CANARY)
    data = f"line\npluto: {CANARY} {CANARY}\nlast {CANARY}".encode()
    pieces = [data[i:i + size] for i in range(0, len(data), size)]
    assert "".join(redactor.stream(pieces)) == "line\npluto: [redacted] [redacted]\nlast [redacted]"


@pytest.mark.parametrize("place", [ipsec.LONGEST_LINE // 2, ipsec.LONGEST_LINE, 2 * ipsec.LONGEST_LINE])
def test_no_part_of_a_secret_shows_where_a_long_line_is_cut(place: int) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(CANARY)
    for start in range(place - len(CANARY), place + 1):
        line = ("x" * start + CANARY).ljust(3 * ipsec.LONGEST_LINE, "y").encode()
        shown = "".join(redactor.stream(line[i:i + 5000] for i in range(0, len(line), 5000)))
        assert "cA" not in shown and "d9" not in shown and len(shown) < ipsec.LONGEST_LINE


def test_thousands_of_secrets_are_masked() -> None:
    redactor = ipsec.Redactor()
    secrets = [f"s3cret:{n}-{n * 7919 % 100003}" for n in range(3000)]
    for secret in secrets:
        redactor.learn(secret)
    shown = redactor.text("\n".join(f"x {secret} 0x{secret.encode().hex()} y {secret.encode().hex(' ')}"
                                   for secret in secrets))
    assert set(shown.split("\n")) == {"x [redacted] 0x[redacted] y [redacted]"}


def test_secrets_are_shown_on_demand_without_control_characters() -> None:
    redactor = ipsec.Redactor(show_secrets=True)
    redactor.learn(CANARY)
    assert redactor.clean(f"{CANARY}\x1b[2J --password x\n") == f"{CANARY}\\x1b[2J --password x\n"


WORD = st.text(st.sampled_from("abz019 \t:#\"'`{}\\=@%./\0"), max_size=12)
KEYWORDS = ["PSK", "psk", "XAUTH", "PPKS", "RSA", "PIN", ":", "include", "@id", "%any", "#", "\n", "\n ", '"', "'", " "]


@given(st.lists(st.one_of(st.sampled_from(KEYWORDS), WORD), max_size=12), st.sampled_from(FORMS), st.data())
@settings(max_examples=400, deadline=None)
def test_a_secret_behind_its_keyword_never_shows(junk: list[str], form: str, data: st.DataObject) -> None:
    """Random junk, then a well-formed entry on a line of its own: the canary in it must go."""
    entry = data.draw(st.sampled_from(['@i : PSK "{}"', "@i : PSK '{}'", '@i: XAUTH "{}"', "%any : PSK 0t{}",
                                       ': PPKS "id" "{}"', "@i : PSK {}", "@i : PSK\n\t{}"])).format(form)
    text = " ".join(junk) + "\n" + entry + "\n" + " ".join(reversed(junk))
    assert form not in "\n".join(ipsec.censor_secrets(text.split("\n")))
    redactor = ipsec.Redactor()
    redactor.learn_file(text.split("\n"))
    assert form not in redactor.text(text + f"\nlog: {form}.")


@given(st.text(max_size=200))
@example("include")
@example(":")
@example("\0#")
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_and_keeps_its_lines(text: str) -> None:
    lines = text.split("\n")
    censored = list(ipsec.censor_secrets(lines))
    assert len(censored) == len(lines)
    redactor = ipsec.Redactor()
    redactor.learn_file(lines)
    assert redactor.clean(text).count("\n") == text.count("\n")
    again = "".join(redactor.stream([text.encode("utf-8", "surrogatepass")]))
    assert again.count("\n") == text.count("\n")


@given(st.lists(st.sampled_from(["10.0.0.1", "dev", "eth0", "metric", "via", "proto", "static", "\n", "esp", "spi",
                                 "#12:", "tunnel", "->", "(ok)", "ESTABLISHED", "=", "[", "]", "{", "}"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_text_without_secrets_stays_as_it_is(words: list[str]) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(CANARY)
    redactor.learn("0x0123456789abcdef")
    text = " ".join(words)
    assert redactor.clean(text) == text


def test_a_hosts_secrets_are_gathered_from_everywhere(tmp_path: Path) -> None:
    secrets = {name: f"{CANARY}-{name}" for name in
               "main include glob loose other nss bare hash second".split()}
    host = host_at(tmp_path, {
        "etc/ipsec.conf": "config setup\n\tsecretsfile=/opt/keys\n\tnssdir=sql:/opt/nss\n",
        "etc/ipsec.secrets": f'@a : PSK "{secrets["main"]}"\ninclude ipsec.d/more/*.sec\ninclude /etc/one.secret\n',
        "etc/ipsec.d/more/a.sec": f"@b : PSK '{secrets['glob']}'\n",
        "etc/one.secret": f': XAUTH "{secrets["include"]}"\n',
        "etc/ipsec.d/loose.secrets": f'@c : PSK "{secrets["loose"]}"\n',
        "opt/keys": f'@d : PSK "{secrets["other"]}"\n',
        "etc/ipsec.d/nsspassword": f"NSS Certificate DB:{secrets['nss']}\nother token:{secrets['second']}\n",
        "opt/nss/nsspassword": secrets["bare"],
        "etc/ipsec.d/passwd": f"# users\nroad:{secrets['hash']}:conn\n",
    })
    redactor = ipsec.redactor_of(host)
    assert redactor.text(" ".join(secrets.values())) == " ".join(["[redacted]"] * len(secrets))
    assert ipsec.nss_passwords(host) == {"NSS Certificate DB": secrets["nss"], "other token": secrets["second"]}
    given = ipsec.Host({"IPSEC_NSSDIR": "sql:/opt/nss"}, root=host.root)
    given.conf = "/etc/none"
    assert (given.nssdir, ipsec.redactor_of(given).text(secrets["bare"])) == ("/opt/nss", "[redacted]")
    files, problems = ipsec.secret_files(host, "/etc/ipsec.secrets")
    assert files == ["/etc/ipsec.secrets", "/etc/ipsec.d/more/a.sec", "/etc/one.secret"] and problems == []


def test_a_problem_of_a_secrets_file_has_its_place_and_no_secret(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.secrets": spelt(
        '@ok : PSK "{}"\n@a : PSK "{}\n@b PSK "{}"\n: {}\n@c : PSK\n@d : PSK {}\ninclude /etc/loop\ninclude /etc/none\n'
        '@e : PSK "{}" {}\n: PPKS "{}"\n'), "etc/loop": "include /etc/loop\n"})
    _, problems = ipsec.secret_files(host, "/etc/ipsec.secrets")
    shown = [str(problem) for problem in problems]
    assert CANARY not in "".join(shown)
    assert [text.partition(": ")[0] for text in shown] == [
        *(f"/etc/ipsec.secrets:{line}" for line in (2, 3, 4, 5, 6)), "/etc/loop:1",
        *(f"/etc/ipsec.secrets:{line}" for line in (8, 9, 10))]
    assert "unterminated string" in shown[0] and "loop" in shown[5] and "no such file" in shown[6]


def test_an_entry_of_an_ignored_kind_has_advice_only_if_it_is_a_private_key(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.secrets": ': RSA host.key\n@a : EAP "x"\n'})
    _, problems = ipsec.secret_files(host, "/etc/ipsec.secrets")
    assert [(problem.text, problem.fatal) for problem in problems] == [
        ("libreswan ignores entries with RSA; private keys belong in the NSS database", False),
        ("libreswan ignores entries with EAP", False)]


def test_a_secrets_file_that_is_no_file_is_a_problem_at_once(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/x": ""})
    os.mkfifo(tmp_path / "etc/ipsec.secrets")
    files, problems = ipsec.secret_files(host, host.secrets)
    assert files == [] and "not a regular file" in problems[0].text
    assert ipsec.redactor_of(host).text("x") == "x"


@pytest.mark.parametrize("line", [
    '1.2.3.4:PSK"{}"', '@a : NTLM "{}"', "@a : EAP '{}'", ': RSA host.key "{}"', ': PIN %smartcard "{}"',
    "PrivateExponent: 0x{}", "  Prime1: 0s{}", "| sk_ei: {hex}", "| SK_d_ss: {hex}"])
def test_a_secret_is_masked_by_its_place(line: str) -> None:
    hexed = " ".join(f"{byte:02x}" for byte in CANARY.encode())
    shown = ipsec.Redactor().text(line.format(CANARY, hex=hexed) + "\n")
    assert "[redacted" in shown and CANARY not in shown and hexed[:8] not in shown


@pytest.mark.parametrize("entry, shown", [
    ("@a : PSK 0sczNjcmV0QUFBQWJiYmI", "@a : PSK 0s[redacted, malformed]"),
    ("@a : PSK 0sczNjcmV0QUFBQWJiYmI=", "@a : PSK 0s[redacted 14 bytes]"),
    ("@a : PSK 0sczNjcmV0QUFBQWJiYmJ=", "@a : PSK 0s[redacted, malformed]"),
    ("@a : PSK 0sczNj_cmV0", "@a : PSK 0s[redacted, malformed]"),
])
def test_base64_that_pluto_refuses_has_no_length(entry: str, shown: str) -> None:
    """Cut off, with unused bits that are not 0, with a separator; masked it is all the same, by value, too."""
    assert list(ipsec.censor_secrets([entry])) == [shown]
    redactor = ipsec.Redactor()
    redactor.learn_file([entry])
    assert entry.split()[-1][2:] not in redactor.clean(f"log: {entry.split()[-1]} {entry.split()[-1][2:]}")


@pytest.mark.parametrize(("key", "length"), [
    ("0sYWJjZGVmZ2g=", 8), ("0sYWJjZGVmZ2g", None), ("0sYWJjZGVmZw==", 7), ("0sYWJjZGVmZw=", None),
    ("0sYWJjZGVmZ2hp", 9), ("0sYWJjZGVmZ2hpa", None), ("0sYWJjZGVmZ2hpaR==", None), ("0s=YWJj", None),
    ("0sYWJj=ZGVm", None), ("0sYWJjZGVm====", None), ("0sYWJj_ZGVm", None), ("0s", None), ("0x", None),
    ("0x616263646", None),
    ("0x6162_6364", 4), ("0x61_62_63", 3), ("0x_61626364", None), ("0x61626364_", None), ("0x6162__6364", None),
    ("0x616_26364", None)])
def test_a_key_is_one_if_pluto_loads_it(key: str, length: int | None) -> None:
    """As 4.3, 4.10 and 5.2 do; a key that pluto refuses is masked all the same."""
    token = ipsec.secret_tokens(key)[0][0]
    data = token.data()
    assert (data if data is None else len(data)) == length
    if length is None and len(key) > 6:
        redactor = ipsec.Redactor()
        redactor.learn_file([f"@a : PSK {key}"])
        assert key[2:] not in redactor.text(f"it is {key[2:]}, or {key}")


def test_a_date_or_a_mac_address_hides_no_dump() -> None:
    redactor = ipsec.Redactor()
    redactor.learn(CANARY)
    row = CANARY.encode().hex(" ")
    for before in ("Nov 25 23:00:01.123: ", "00:11:22:33:44:55 > ", "Nov 10 10:10:10 gw pluto[1]: | key "):
        masked = redactor.text(f"{before}{row}  {CANARY}\nnext")
        assert masked == f"{before}[redacted]\nnext"


@pytest.mark.parametrize("offset", range(6))
@pytest.mark.parametrize("behind", ["", "x", "xy", "xyz"])
def test_a_secret_within_longer_base64_is_masked(offset: int, behind: str) -> None:
    redactor = ipsec.Redactor()
    redactor.learn(CANARY)
    encoded = base64.b64encode(f"{'u' * offset}{CANARY}{behind}".encode()).decode()
    assert "[redacted]" in redactor.text(f"Authentication: {encoded}")


def test_a_secret_in_base64_that_is_wrapped_is_masked() -> None:
    secret = "".join(f"part{number}-of-it." for number in range(9))
    redactor = ipsec.Redactor()
    redactor.learn(secret)
    encoded = base64.b64encode(f"user:{secret}:x".encode()).decode()
    for width in (16, 40, 64, 76):
        wrapped = "\n".join(encoded[start:start + width] for start in range(0, len(encoded), width))
        masked = redactor.text(f"a b\n{wrapped}\nc d")
        assert masked.startswith("a b\n[redacted]\n") and masked.endswith("\nc d") and encoded[20:30] not in masked


def test_a_quoted_word_of_a_remark_is_no_secret() -> None:
    redactor = ipsec.Redactor()
    redactor.learn_file(['# the key for "west-east"', '# the old password was "hunter22"', '# psk "another-one"'])
    assert redactor.text('conn "west-east" hunter22 another-one') == 'conn "west-east" [redacted] [redacted]'


@pytest.mark.parametrize("name", ["_secretcensor", "secretcensor"])
def test_the_file_of_secrets_is_printed_without_them(name: str, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secrets").write_text('@a @b : PSK "SwordfishForTheOffice"\n')
    entry = ipsec.COMMANDS[name]
    assert entry.function(ipsec.Host({}), entry.parse([str(tmp_path / "secrets")])) == 0
    assert capsys.readouterr().out == '@a @b : PSK "[redacted]"\n'


@pytest.mark.parametrize(("name", "status"), [("_keycensor", 1), ("keycensor", 1), ("redact", 0)])
def test_a_file_with_secrets_that_is_not_read_is_named(name: str, status: int, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "secrets").write_text(f'include {tmp_path}/more\n: PSK "SwordfishForTheOffice"\n')
    (tmp_path / "conf").write_text(f"config setup\n\tsecretsfile={tmp_path}/secrets\n")
    (tmp_path / "text").write_text("hello SwordfishForTheOffice\n")
    host = ipsec.Host({}, conf=str(tmp_path / "conf"))
    entry = ipsec.find_command(name)
    assert entry is not None
    assert entry.function(host, entry.parse([str(tmp_path / "text")])) == status
    printed = capsys.readouterr()
    assert printed.out == "hello [redacted]\n"
    assert f'can\'t read "{tmp_path}/more"' in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("size", [100_000, 131_072, 140_000, 400_000])
@pytest.mark.parametrize("chunk", [1 << 12, 1 << 16, 1 << 20])
def test_no_part_of_a_secret_shows_at_the_cut_of_a_long_line(size: int, chunk: int) -> None:
    """Even if masking removes most of the line."""
    redactor = ipsec.Redactor()
    secret = "Tr0ub4dorAndTheThree"
    redactor.learn(secret * 50)
    for shift in range(0, 1000, 90):
        data = (b"x" * shift + secret.encode() * 50 + b" ") * (size // 1000) + b"\nnext line\n"
        chunks = [data[place:place + chunk] for place in range(0, len(data), chunk)]
        text = "".join(redactor.stream(chunks))
        assert "ub4dor" not in text and text.endswith("\nnext line\n")


def test_cookies_of_l2tp_sessions_are_masked() -> None:
    text = "Session 1 in tunnel 2\n  cookie 0123456789abcdef\n  peer cookie fedcba98\n"
    assert ipsec.Redactor().text(text) == "Session 1 in tunnel 2\n  cookie [redacted]\n  peer cookie [redacted]\n"
