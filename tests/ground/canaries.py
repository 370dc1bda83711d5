"""Planted secrets: more than 300, each at a place where administrators leave them and in one of many forms.

No canary is in ipsec.secrets, so that none is known by its value: what masks it is its place or its form.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Callable, NamedTuple


class Canary(NamedTuple):
    """A secret, the place where it is planted, and the line that holds it."""

    place: str
    secret: str
    line: str


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


Form = Callable[[str], str]
WRITTEN: tuple[Form, ...] = (plain, hexed, base64_of)

#: Command lines that name ipsec or pluto, which is what put them into a report
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
)
PLUTO_WORDS = (
    "| ESP enckey: 0x{}", "| our keymat: {}", "| SK_ai: {}", "| PSK: {}", "| preshared key={}", "| unwrapped: {}",
    "| sk_pi={}", "| prf key {}", "| peer keymat {}", "| ESP encrypt key {}",
)
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

FILES: dict[str, tuple[tuple[str, ...], tuple[Form, ...]]] = {
    "unit": (UNIT, WRITTEN), "default": (SETTINGS, WRITTEN), "initscript": (SETTINGS, WRITTEN),
    "shared log": (SHARED_LOG, WRITTEN), "pluto bytes": (PLUTO_BYTES, (dump_row, pairs)),
    "pluto words": (PLUTO_WORDS, (hexed, base64_of)), "conf": (CONF, WRITTEN), "include": (CONF, (plain,)),
    "rsyslog": (RSYSLOG, (plain, base64_of)), "resolv": (RESOLV, (plain, hexed)), "policy": (POLICY, (plain, hexed)),
    "os-release": (OTHERS, (plain,)), "selinux": (OTHERS, (plain,)), "crypto-policies": (OTHERS, (plain,)),
}
LIVE: dict[str, tuple[tuple[str, ...], tuple[Form, ...]]] = {
    "process": (PROCESSES, (plain, hexed)), "iptables comment": (FIREWALL, (plain,)),
    "iptables prefix": (FIREWALL[:2], (plain,)), "nft comment": (FIREWALL, (plain,)),
    "nft set comment": (FIREWALL[:3], (plain,)), "nft prefix": (FIREWALL[:2], (plain,)),
}
#: Where the lines of a place go; @ stands for all of them
PATHS = {
    "unit": ("/etc/systemd/system/ipsec.service.d/env.conf", "[Service]\n@"),
    "default": ("/etc/default/pluto", "@"), "initscript": ("/etc/init.d/ipsec", "#!/bin/sh\n@"),
    "shared log": ("/var/log/auth.log", "Nov 25 23:59:01 gw pluto[9]: Starting Pluto subsystem\n@"),
    "pluto": ("/var/log/pluto.log", "Nov 25 23:59:01: Starting Pluto subsystem\n@"),
    "conf": ("/etc/ipsec.conf", "config setup\n\tlogfile=/var/log/pluto.log\ninclude /etc/ipsec.d/more.conf\n"
             "conn gw\n\tleft=192.0.2.1\n\tright=192.0.2.2\n@"),
    "include": ("/etc/ipsec.d/more.conf", "conn more\n\tleft=192.0.2.1\n@"), "rsyslog": ("/etc/rsyslog.conf", "@"),
    "resolv": ("/etc/resolv.conf", "nameserver 192.0.2.53\n@"),
    "policy": ("/etc/ipsec.d/policies/private", "10.0.0.0/8\n@"),
    "os-release": ("/etc/os-release", "ID=debian\n@"), "selinux": ("/etc/selinux/config", "SELINUX=disabled\n@"),
    "crypto-policies": ("/etc/crypto-policies/config", "DEFAULT\n@"),
}


def planted(places: dict[str, tuple[tuple[str, ...], tuple[Form, ...]]], first: int = 1) -> list[Canary]:
    """Return a canary for each template of the places in each of their forms, numbered from `first`."""
    canaries = []
    for place, (templates, forms) in places.items():
        for template in templates:
            for form in forms:
                secret = secret_of(first + len(canaries))
                canaries.append(Canary(place, secret, template.format(form(secret))))
    return canaries


def canaries_of_files() -> list[Canary]:
    return planted(FILES)


def live_canaries() -> list[Canary]:
    return planted(LIVE, 1001)


def files(canaries: Iterable[Canary]) -> dict[str, str]:
    """Return the text of each file in which the canaries stand, by path."""
    lines: dict[str, list[str]] = {}
    for canary in canaries:
        place = canary.place.removesuffix(" bytes").removesuffix(" words")
        line = canary.line
        if place == "shared log":
            line = f"Nov 25 23:59:02 gw {line}"
        elif place in ("conf", "include"):
            line = f"\t{line}"
        lines.setdefault(place, []).append(f"{line}\n")
    return {path: frame.replace("@", "".join(lines[place])) for place, (path, frame) in PATHS.items()}


def leaked(text: str, canaries: Iterable[Canary]) -> list[Canary]:
    """Return the canaries of which the text shows all or the first or last eight letters, in any of the forms."""
    folded = text.lower()
    bare = folded.translate({32: None, 58: None, 9: None})
    out = []
    for canary in canaries:
        data = canary.secret.encode()
        encoded = base64.b64encode(data).decode().rstrip("=")
        parts = (canary.secret[:8], canary.secret[-8:])
        if (any(part.lower() in folded for part in parts) or data[:8].hex() in bare or data[-8:].hex() in bare
                or encoded[:10] in text):
            out.append(canary)
    return out


def by_place(canaries: Iterable[Canary]) -> dict[str, int]:
    """Return how many of the canaries each place has."""
    counts: dict[str, int] = {}
    for canary in canaries:
        counts[canary.place] = counts.get(canary.place, 0) + 1
    return counts
