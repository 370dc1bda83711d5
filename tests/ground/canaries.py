"""Planted secrets (canaries), at the places where administrators leave secrets, in many forms.

No canary is in ipsec.secrets, so the redaction does not know its value, and must recognise it by its place or its form.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, NamedTuple


class Canary(NamedTuple):
    """A secret, the place where it is planted, and the line that holds it."""

    place: str
    secret: str
    line: str


Form = Callable[[str], str]


class Place(NamedTuple):
    """A place for secrets: the path of its file, and the templates of its lines, each planted in each form.

    Without a path, a test plants the line itself: as a process or a rule of the firewall.
    """

    path: str
    templates: Sequence[str]
    forms: Sequence[Form]


def secret_of(number: int) -> str:
    """Return twelve letters and digits that no other number has, and that no report has by chance."""
    return "Vq" + base64.b32encode(hashlib.sha256(str(number).encode()).digest()).decode()[:10]


def dump_row(secret: str) -> str:
    """Return the secret as pluto dumps bytes: pairs in groups of four, then as ASCII."""
    data = secret.encode()
    groups = "  ".join(data[i:i + 4].hex(" ") for i in range(0, len(data), 4))
    return f"{groups:<52}   {secret}"


def pairs(secret: str) -> str:
    return secret.encode().hex(" ")


def plain(secret: str) -> str:
    return secret


def hexed(secret: str) -> str:
    return secret.encode().hex()


def base64_of(secret: str) -> str:
    return base64.b64encode(secret.encode()).decode()


WRITTEN: tuple[Form, ...] = (plain, hexed, base64_of)
#: Ways to write a secret in a sentence or a setting
UNQUOTED: tuple[Form, ...] = (
    "the psk for the branch is {}".format, "BRANCH_PSK={}".format, "key: {}".format, "--branch-psk {}".format,
    "-p {}".format, "https://u:{}@h/x".format, "FOOBAR={}".format, "now it is {}".format,
    lambda secret: f"QUJD{base64_of(secret).rstrip('=')}")
WORDED: tuple[Form, ...] = (*UNQUOTED, 'set it to "{}" there'.format, '{{"psk": "{}"}}'.format)
#: The starts of lines in logs that pluto writes: its own file with and without fractions of a second, syslog, journal
STAMPS = ("Nov 25 23:00:01.123456: ", "Nov  5 03:00:01: ", "2026-11-25T23:00:01.123456+00:00 gw pluto[7]: ",
          "Nov 25 23:00:01 gw pluto[7]: ", "")

#: Command lines that name ipsec or pluto, and therefore appear in a report
PROCESSES = (
    "docker run -e VPN_IPSEC_PSK={} hwdsl2/ipsec-vpn-server", "docker run -e IPSEC_TOKEN={} image",
    "curl -H X-Vault:{} https://vault/ipsec", "mysql -uipsec -p{} radius", "java -Dipsec.key={} -jar gw.jar",
    "openssl enc -k {} -in ipsec.conf", "expect -c {} pluto", "wget --header=X:{} http://pluto/",
    "logger ipsec started with {}", "python3 provision.py --ipsec {}", "ipsec whack --name c --xauthpass {}",
    "ipsec whack --unknown {} --initiate", "pluto --nofork --frob {}", "vault kv put ipsec/a value={}",
    "redis-cli -a {} get ipsec", "ldapsearch -w {} -b ou=ipsec", "radtest bob {} ipsec 0 x", "nmcli con add ipsec {}",
    "env LD={} ipsec start", "swanctl --ipsec {}", "su -c ipsec-{}", "socat - OPENSSL:pluto,pass={}",
)
#: Lines of a unit's drop-in
UNIT = (
    "Environment=VPN_IPSEC_PSK={}", "Environment=VPN_TOKEN={}", 'Environment="A=b" "DBLOGIN={}"',
    "ExecStartPre=/usr/bin/curl -H X:{} https://vault", "ExecStartPost=/bin/sh -c 'echo {}'", "# was {}",
    "Description=gateway {}", "SetCredential=psk:{}", "X-Note={}", "ExecStartPre=/usr/sbin/ipsec frob {}",
    "PassEnvironment={}", "StandardInputText={}",
)
#: Lines of /etc/default/pluto and of an init script
SETTINGS = (
    "IPSEC_PSK='{}'", "export DB={}", "VAULT={}", "# the old one: {}", 'PLUTO_OPTIONS="--frob {}"', "L2TP_SECRET={}",
    "curl -d {} https://vault", "echo {} > /etc/ipsec.secrets", "VPN_USERS={}", "TOKEN=\"{}\"",
)
#: Lines of a log that is not pluto's alone
SHARED_LOG = (
    "sudo: root : COMMAND=/usr/bin/ovs-vsctl set interface tun0 options:psk={} pluto",
    "sudo: root : COMMAND=/usr/bin/vault write ipsec/pluto v={}", "sshd[9]: Failed password for {} from pluto",
    "CRON[9]: (root) CMD (/usr/local/bin/pluto-check {})", "dockerd[9]: pluto env X={}", "root: pluto is now {}",
    "pluto[9]: export IPSEC_SECRET={}", "pluto[9]: env VPN_PSK: {}", "pluto[9]: | ESP enckey: {}",
    "pluto[9]: | our keymat {}", "pluto[9]: | psk is {}", "audit[9]: proctitle={} pluto", "su[9]: pluto {}",
    "ansible-command[9]: pluto _raw_params={}", "kernel: pluto {}",
)
#: Lines of pluto's own log, whose secrets stand as bytes
PLUTO_BYTES = (
    "| ESP enckey:  {}", "| ESP encrypt key:  {}", "| ESP authkey:  {}", "| our  keymat  {}", "| peer keymat  {}",
    "| unwrapped:  {}", "|   {}", "| SKEYSEED:  {}", "| g^ir {}", "Nov 25 23:00:01 gw pluto[9]: |   {}",
    "Nov 05 23:00:01.123456: |   {}", "Nov 25 23:00:01.123456: | raw:  {}", "| from 00:11:22:33:44:55 |   {}",
    "2026-11-25T23:00:01 gw pluto[9]: | wire:  {}", "| nonce {}",
    *(f"{stamp}{label}" for stamp in STAMPS for label in (
        "| ESP enckey:  {}", "| ESP encrypt key: {}", "| our keymat  {}", "| peer keymat  {}", "| unwrapped: {}",
        "|   {}", "| key:{}", "  {}", "| ESP authkey: {}", "| Ni  {}", "| key-offset: 0, key-size: 32 key {}")),
)
PLUTO_WORDS = (
    "| ESP enckey: 0x{}", "| our keymat: {}", "| SK_ai: {}", "| PSK: {}", "| preshared key={}", "| unwrapped: {}",
    "| sk_pi={}", "| prf key {}", "| peer keymat {}", "| ESP encrypt key {}",
)
#: Words of ipsec.conf and ipsec.secrets that addconn and pluto repeat, and the output of programs
COMPLAINTS = (
    "addconn: FATAL ERROR: ipsec addconn: /etc/ipsec.conf:13: unrecognized keyword '{}'",
    "cannot load config '/etc/ipsec.conf': /etc/ipsec.conf:13: syntax error [{}]",
    "addconn: ipsec addconn: /etc/ipsec.conf:13: warning: X- style comment ignored: x-psk={}",
    '"/etc/ipsec.secrets" line 1: PSK data malformed (input does not begin with format prefix): {}',
    'ERROR "/etc/ipsec.secrets" line 1: index "{}" not a numeric IPv4 address and name lookup failed',
    "| XAUTH: failure user(u:c) pass {} vs x", "fetching CRL from http://u:{}@ca.example.com/x.crl failed",
    '"a" #1: up-client output: + TOKEN={}', '"a" #1: up-client output: curl -u bob:{} https://x',
    '"a"[2] 192.0.2.9 #1: down-client output: the psk is {}',
)
PLUTO_NUMBERS = [f"{stamp}{label}" for stamp in STAMPS for label in ("| sk_d chunk: {}", "| calculated secret {}")]
#: Lines of ipsec.conf, in a connection
CONF = (
    "leftpsk={}", "x-psk={}", "x-note={}", "# the key is {}", "# {}", "rightsecretword={}", "left_token={}",
    'leftupdown="/usr/local/bin/up --token {}"', 'modecfgbanner="welcome {}"', "frobnicate={}", "x_key={}",
    'leftupdown="ipsec _updown {}"', "xauthpassword={}", 'x-api="a {}"', "also-key={}", "leftsendword={}",
)
RSYSLOG = (
    '*.* action(type="omelasticsearch" uid="u" apikey="{}")', "$ActionUser {}", "# {}", "*.* @@log.example.com;{}",
    '$template t,"{}"', 'action(type="omhttp" httpheadervalue="{}")', "*.* :ommysql:db,log,u,{}",
)
RESOLV = ("# set by vpn {}", "; {}", "options frob:{}", "x-token {}")
POLICY = ("# {}", "10.1.0.0/16 # {}", "{}")
OTHERS = ("# {}", "X_TOKEN={}", "BUG_REPORT_URL=https://u:{}@example.com/")
FIREWALL = ("psk is {}", "{}", "for site {}", "pass {}", "old key {}")

DROPINS = "/etc/systemd/system/ipsec.service.d"
PLACES: dict[str, Place] = {
    "unit": Place(f"{DROPINS}/env.conf", UNIT, WRITTEN),
    "quoted variable of a unit": Place(f"{DROPINS}/env.conf", ('Environment="X={}"',), UNQUOTED),
    "program of a unit": Place(f"{DROPINS}/pre.conf", ("ExecStartPre=/usr/bin/notify {}",), WORDED),
    "comment of a unit": Place(f"{DROPINS}/remark.conf", ("# {}",), WORDED),
    "unknown directive of a unit": Place(f"{DROPINS}/x.conf", ("X-Branch={}",), WORDED),
    "default": Place("/etc/default/pluto", SETTINGS, WRITTEN),
    "variable of a default file": Place("/etc/default/ipsec", ("export {}",), WORDED),
    "sysconfig": Place("/etc/sysconfig/pluto", ("{}",), WORDED),
    "init script": Place("/etc/init.d/ipsec", SETTINGS, WRITTEN),
    "command of an init script": Place("/etc/init.d/ipsec", ("curl {}",), WORDED),
    "run script": Place("/etc/sv/ipsec/run", ("exec 2>&1; notify {}",), WORDED),
    "shared log": Place("/var/log/auth.log", [f"Nov 25 23:59:02 gw {line}" for line in SHARED_LOG], WRITTEN),
    "programs in the shared log": Place("/var/log/auth.log", (
        "Nov 25 23:59:02 gw sudo: root : COMMAND=/usr/bin/x {}", "Nov 25 23:59:02 gw backup[7]: pluto {}",
        "Nov 25 23:59:02 gw cron[9]: (root) CMD (ipsec {})"), WORDED),
    "kern.debug": Place("/var/log/kern.debug", ("Nov 25 23:59:02 gw app: {}",), WORDED),
    "bytes in pluto's log": Place("/var/log/pluto.log", PLUTO_BYTES, (dump_row, pairs)),
    "words in pluto's log": Place("/var/log/pluto.log", PLUTO_WORDS, (hexed, base64_of)),
    "numbers in pluto's log": Place("/var/log/pluto.log", PLUTO_NUMBERS, (hexed,)),
    "conf": Place("/etc/ipsec.conf", [f"\t{line}" for line in CONF], WRITTEN),
    "remark in conf": Place("/etc/ipsec.conf", ("# {}", "\tpfs=yes # {}"), WORDED),
    "keyword of conf": Place("/etc/ipsec.conf", (
        "\tleftpsk={}", "\tx-psk={}", '\tleftupdown="/usr/local/bin/up.sh {}"', '\tmodecfgbanner="{}"'), UNQUOTED),
    "include": Place("/etc/ipsec.d/more.conf", [f"\t{line}" for line in CONF], (plain,)),
    "remark of an include": Place("/etc/ipsec.d/more.conf", ("# {}",), WORDED),
    "policy": Place("/etc/ipsec.d/policies/private", POLICY, (plain, hexed)),
    "remark of a policy": Place("/etc/ipsec.d/policies/private", ("10.0.0.0/8 # {}",), WORDED),
    "line of a policy": Place("/etc/ipsec.d/policies/clear", ("{}",), WORDED),
    "rsyslog": Place("/etc/rsyslog.conf", RSYSLOG, (plain, base64_of)),
    "remark or action of rsyslog": Place("/etc/rsyslog.conf", (
        'action(type="omhttp" uid="u" pwd="{}")', "# {}"), WORDED),
    "syslog-ng": Place("/etc/syslog-ng/syslog-ng.conf", (
        'destination d {{ http(url("x") password("{}")); }};',), WORDED),
    "resolv": Place("/etc/resolv.conf", RESOLV, (plain, hexed)),
    "remark of resolv": Place("/etc/resolv.conf", ("# {}", "x-token {}"), WORDED),
    "os-release": Place("/etc/os-release", OTHERS, (plain,)),
    "name of os-release": Place("/etc/os-release", ('BRANCH="{}"',), UNQUOTED),
    "release file": Place("/etc/branch-release", ("{}",), WORDED),
    "selinux": Place("/etc/selinux/config", OTHERS, (plain,)),
    "crypto-policies": Place("/etc/crypto-policies/config", (*OTHERS, "{}"), (plain, *WORDED)),
    "complaints in pluto's log": Place("/var/log/pluto.log", COMPLAINTS, (plain,)),
}
LIVE: dict[str, Place] = {
    "process": Place("", PROCESSES, (plain, hexed)), "iptables comment": Place("", FIREWALL, (plain,)),
    "iptables prefix": Place("", FIREWALL[:2], (plain,)), "nft comment": Place("", FIREWALL, (plain,)),
    "nft set comment": Place("", FIREWALL[:3], (plain,)), "nft prefix": Place("", FIREWALL[:2], (plain,)),
}
#: The texts of files around the planted lines, for which @ stands. Other files have only the planted lines
FRAMES = {
    f"{DROPINS}/env.conf": "[Service]\n@", "/etc/systemd/system/ipsec.service": (
        "[Service]\nExecStart=/usr/libexec/ipsec/pluto --nofork\n@"),
    "/etc/init.d/ipsec": "#!/bin/sh\n@",
    "/var/log/auth.log": "Nov 25 23:59:01 gw pluto[9]: Starting Pluto subsystem\n@",
    "/var/log/pluto.log": "Nov 25 23:59:01: Starting Pluto subsystem\n@",
    "/etc/ipsec.conf": "config setup\n\tlogfile=/var/log/pluto.log\ninclude /etc/ipsec.d/*.conf\n"
                       "conn gw\n\tleft=192.0.2.1\n\tright=192.0.2.2\n@",
    "/etc/ipsec.d/more.conf": "conn more\n\tleft=192.0.2.1\n@", "/etc/resolv.conf": "nameserver 192.0.2.53\n@",
    "/etc/ipsec.d/policies/private": "10.0.0.0/8\n@", "/etc/os-release": "ID=debian\n@",
    "/etc/selinux/config": "SELINUX=disabled\n@", "/etc/crypto-policies/config": "DEFAULT\n@",
}


def planted(places: dict[str, Place], first: int = 1) -> list[Canary]:
    """Return a canary for each template of the places in each of its forms, numbered from `first`."""
    canaries = []
    for name, place in places.items():
        for template in place.templates:
            for form in place.forms:
                secret = secret_of(first + len(canaries))
                canaries.append(Canary(name, secret, template.format(form(secret))))
    return canaries


def canaries_of_files() -> list[Canary]:
    return planted(PLACES)


def live_canaries() -> list[Canary]:
    return planted(LIVE, 10001)


def files(canaries: Iterable[Canary], own_log: bool = True) -> dict[str, str]:
    """Return the text of each file in which the canaries stand, by path; without `own_log`, pluto logs to syslog."""
    lines: dict[str, list[str]] = {path: [] for path in FRAMES}
    for canary in canaries:
        lines.setdefault(PLACES[canary.place].path, []).append(f"{canary.line}\n")
    texts = {path: FRAMES.get(path, "@").replace("@", "".join(lines[path]), 1) for path in lines}
    if not own_log:
        texts["/etc/ipsec.conf"] = texts["/etc/ipsec.conf"].replace("\tlogfile=/var/log/pluto.log\n", "")
    return texts


def plant(top: Path, canaries: Iterable[Canary], own_log: bool = True) -> None:
    """Write the files in which the canaries stand below `top`."""
    for path, text in files(canaries, own_log).items():
        (top / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (top / path[1:]).write_text(text)


def leaked(text: str, canaries: Iterable[Canary]) -> list[Canary]:
    """Return the canaries whose first or last eight characters are in the text, as they are or in hexadecimal, or
    whose first ten characters of base64 are in it."""
    folded = text.lower()
    digits = folded.translate({32: None, 58: None, 9: None})  # pairs in hexadecimal without blanks, colons and tabs
    shown = []
    for canary in canaries:
        ends = (canary.secret[:8], canary.secret[-8:])
        is_plain = any(end.lower() in folded for end in ends)
        is_hexed = any(hexed(end) in digits for end in ends)
        if is_plain or is_hexed or base64_of(canary.secret)[:10] in text:
            shown.append(canary)
    return shown


def by_place(canaries: Iterable[Canary]) -> dict[str, int]:
    """Return how many of the canaries each place has."""
    counts: dict[str, int] = {}
    for canary in canaries:
        counts[canary.place] = counts.get(canary.place, 0) + 1
    return counts
