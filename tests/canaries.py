"""Secrets planted where administrators leave them: a made-up host whose files hold more than 300 of them.

Each secret is a word of its own, so that a leak names its place and its form.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

#: Ways to write a secret in free text.
FORMS = {
    "bare": "{}", "prose": "the psk for the branch is {}", "assignment": "BRANCH_PSK={}", "colon": "key: {}",
    "quoted": 'set it to "{}" there', "option": "--branch-psk {}", "short option": "-p {}", "url": "https://u:{}@h/x",
    "json": '{{"psk": "{}"}}', "other name": "FOOBAR={}", "base64": "QUJD{base64}", "last word": "now it is {}",
}
#: Places: a file, and the line of it that holds the form.
LINES = {
    "comment of ipsec.conf": ("/etc/ipsec.conf", "# {}"),
    "comment behind a setting": ("/etc/ipsec.conf", "\tpfs=yes # {}"),
    "unknown keyword": ("/etc/ipsec.conf", "\tleftpsk={}"),
    "x- keyword": ("/etc/ipsec.conf", "\tx-psk={}"),
    "arguments of updown=": ("/etc/ipsec.conf", "\tleftupdown=\"/usr/local/bin/up.sh {}\""),
    "banner": ("/etc/ipsec.conf", "\tmodecfgbanner=\"{}\""),
    "comment of an included file": ("/etc/ipsec.d/branch.conf", "# {}"),
    "policy group": ("/etc/ipsec.d/policies/private", "10.0.0.0/8 # {}"),
    "line of a policy group": ("/etc/ipsec.d/policies/clear", "{}"),
    "Environment= of a drop-in": ("/etc/systemd/system/ipsec.service.d/env.conf", "Environment=\"X={}\""),
    "ExecStartPre= of a drop-in": ("/etc/systemd/system/ipsec.service.d/pre.conf", "ExecStartPre=/usr/bin/notify {}"),
    "comment of a drop-in": ("/etc/systemd/system/ipsec.service.d/remark.conf", "# {}"),
    "unknown directive of a unit": ("/etc/systemd/system/ipsec.service.d/x.conf", "X-Branch={}"),
    "default file": ("/etc/default/ipsec", "export {}"),
    "sysconfig": ("/etc/sysconfig/pluto", "{}"),
    "init script": ("/etc/init.d/ipsec", "curl {}"),
    "run script": ("/etc/sv/ipsec/run", "exec 2>&1; notify {}"),
    "rsyslog": ("/etc/rsyslog.conf", 'action(type="omhttp" uid="u" pwd="{}")'),
    "comment of rsyslog": ("/etc/rsyslog.conf", "# {}"),
    "syslog-ng": ("/etc/syslog-ng/syslog-ng.conf", "destination d {{ http(url(\"x\") password(\"{}\")); }};"),
    "resolv.conf": ("/etc/resolv.conf", "# {}"),
    "options of resolv.conf": ("/etc/resolv.conf", "x-token {}"),
    "release file": ("/etc/branch-release", "{}"),
    "os-release": ("/etc/os-release", "BRANCH=\"{}\""),
    "crypto-policies": ("/etc/crypto-policies/config", "{}"),
    "sudo in the system log": ("/var/log/auth.log", "{stamp} gw sudo: root : COMMAND=/usr/bin/x {}"),
    "another program in the system log": ("/var/log/auth.log", "{stamp} gw backup[7]: pluto {}"),
    "script in the system log": ("/var/log/auth.log", "{stamp} gw cron[9]: (root) CMD (ipsec {})"),
    "kern.debug": ("/var/log/kern.debug", "{stamp} gw app: {}"),
}
#: Lines of pluto's own log, for a secret of 32 bytes: {dump}, {hex}, {row}, {ascii}.
DUMPS = {
    "ESP key of 4.10": "| ESP enckey:  {dump}", "ESP key of 5.x": "| ESP encrypt key: {dump}",
    "keymat": "| our keymat  {dump}",
    "peer keymat": "| peer keymat  {dump}", "unwrapped": "| unwrapped: {dump}", "row": "|   {row}   {ascii}",
    "hex": "| sk_d chunk: {hex}", "label without space": "| key:{dump}", "row without a bar": "  {row}   {ascii}",
    "integrity": "| ESP authkey: {dump}", "nonce": "| Ni  {dump}", "secret": "| calculated secret {hex}",
    "key after prose": "| key-offset: 0, key-size: 32 key {dump}",
}
STAMPS = ("Nov 25 23:00:01.123456: ", "Nov  5 03:00:01: ", "2026-11-25T23:00:01.123456+00:00 gw pluto[7]: ",
          "Nov 25 23:00:01 gw pluto[7]: ", "")


def word(place: str, form: str) -> str:
    """The secret of a place and a form: letters and digits as people choose them."""
    return "Cn" + base64.b32encode(hashlib.sha256(f"{place}/{form}".encode()).digest())[:14].decode()


def key(place: str, form: str) -> bytes:
    """A key of 32 bytes for a place and a form."""
    return hashlib.sha256(f"key {place}/{form}".encode()).digest()


def plant(top: Path, logfile: bool = True) -> dict[str, list[str]]:
    """Write the files below `top`; return for each secret the texts that betray it.

    `logfile`: pluto has a log of its own; otherwise a report shows the system's log.
    """
    files: dict[str, list[str]] = {
        "/etc/ipsec.conf": ["config setup", *(["\tlogfile=/var/log/pluto.log"] if logfile else []),
                            "include /etc/ipsec.d/*.conf", "conn branch", "\tleft=192.0.2.1", "\tright=192.0.2.2",
                            "\tauto=add"],
        "/etc/systemd/system/ipsec.service": ["[Service]", "ExecStart=/usr/libexec/ipsec/pluto --nofork"],
        "/var/log/pluto.log": [f"{time.strftime('%b %d %H:%M:%S')}: Starting Pluto (Libreswan Version 4.10)"],
        "/var/log/auth.log": [f"{time.strftime('%b %d %H:%M:%S')} gw pluto[7]: Starting Pluto (Libreswan 4.10)"],
    }
    secrets: dict[str, list[str]] = {}
    for place, (file, line) in LINES.items():
        for form, text in FORMS.items():
            if file == "/etc/ipsec.conf" and "keyword" in place and '"' in text:
                continue  # two quotes within one value
            secret = word(place, form)
            encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
            text = text.format(secret, base64=encoded)
            stamp = time.strftime("%b %d %H:%M:%S")
            files.setdefault(file, []).append(line.replace("{stamp}", stamp).format(text))
            secrets[f"{place}, {form}"] = [encoded if "base64" in form else secret]
    for place, line in DUMPS.items():
        for stamp in STAMPS:
            data = key(place, stamp)
            rows = [" ".join(f"{byte:02x}" for byte in data[start:start + 16]) for start in (0, 16)]
            ascii_rows = ["".join(chr(byte) if 32 < byte < 127 else "." for byte in data[start:start + 16])
                          for start in (0, 16)]
            for row, text in zip(rows, ascii_rows):
                files["/var/log/pluto.log"].append(stamp + line.format(dump=row, hex=row.replace(" ", ""), row=row,
                                                                       ascii=text))
            secrets[f"{place} after {stamp!r}"] = [part for row in rows
                                                   for part in (row[:23], row[24:], row.replace(" ", ""))]
    for name, lines in files.items():
        path = top / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return secrets


def leaks(secrets: dict[str, list[str]], text: str) -> Iterator[str]:
    """The secrets that a text betrays, by place and form."""
    for name, parts in secrets.items():
        if any(part in text for part in parts):
            yield name
