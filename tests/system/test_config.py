"""The readers beside the real programs of each release: what they load, what they refuse, what they print."""

from __future__ import annotations

import base64
import re
from typing import Callable

import pytest

import ipsec

from ..ground.machine import Machine
from ..ground.pluto import Pluto

ADDCONN = "/usr/libexec/ipsec/addconn"

#: Configurations and whether every release loads them.
CONFIGS = {
    "empty": ("", True),
    "comments": ("# a\nversion 2.0\n\n  # b\nconfig setup\n\tlogtime=no\n\n\nconn a # c d\n\tleft=1.2.3.4 # e f\n",
                 True),
    "values": ('conn a\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tleftid="C=US, CN=x"\n\trightid=@b\n\tauto=add\n'
               "\tleftsubnets={10.0.0.0/8 10.1.0.0/16}\n\tikelifetime=8h\n\trekeyfuzz=100%\n\tauthby=secret\n", True),
    "also": ("conn %default\n\tikelifetime=1h\nconn a\n\talso=b\n\tauto=route\n\tleft=192.0.2.1\nconn b\n\talso=c\n"
             "\tright=192.0.2.2\nconn c\n\tpfs=no\n", True),
    "autos": ("".join(f"conn {auto}\n\tleft=192.0.2.1\n\tright=192.0.2.99\n\tauto={auto}\n"
                      for auto in ("ignore", "add", "route", "ondemand", "start", "up", "keep")), True),
    "setup": ('config setup\n\tnflog-all=50\n\tlogfile=/var/log/p.log\n\tmyvendorid="a b"\n\tuniqueids=no\n'
              "\tvirtual-private=%v4:10.0.0.0/8\n\tlogappend=no\n\tprotostack=xfrm\n", True),
    "quote in the middle": ('conn a\n\tleftid=a"b\n', True),
    "apostrophes": ("conn a\n\tleftid='a'\n", True),
    "no such also": ("conn a\n\talso=b\n", True),
    "include of nothing": ("include /etc/none/*.conf\nconn a\n", True),
    "include": ("include /etc/ipsec.d/t/*.conf\nconn last\n\tauto=add\n", True),
    "comment glued": ("conn a\n\tleft=1.2.3.4 #word\n", False),
    "behind quotes": ('conn a\n\tleftid="a b"c\n', False),
    "blank in apostrophes": ("conn a\n\tleftid='a b'\n", False),
    "blank": ("conn a\n\tleftid=a b\n", False),
    "left margin": ("conn a\nleft=1.2.3.4\n", False),
    "no section": ("\tleft=1.2.3.4\n", False),
    "junk": ("foo\n", False),
    "two names": ("conn a b\n", False),
    "no name": ("conn\n", False),
    "unknown keyword": ("conn a\n\tbogus=1\n", False),
    "no value": ("conn a\n\tleftid\n", False),
}
LISTS = ("--listall", "--listadd", "--listroute", "--liststart", "--listignore", "--liststack")


@pytest.fixture
def bare(gateway: Machine) -> Machine:
    """A gateway where ours finds no program of libreswan; the real ones are at their place."""
    gateway.path("/empty").mkdir()
    for name in "ab":
        gateway.write(f"/etc/ipsec.d/t/{name}.conf", f"conn {name}\n\tleft=192.0.2.1\n\tright=192.0.2.2\n\tauto=up\n")
    return gateway


def ours(machine: Machine, *words: str) -> tuple[int, str, str]:
    result = machine.ipsec(*words, env={"IPSEC_EXECDIR": "/empty"})
    return result.status, result.stdout, result.stderr


def test_ours_loads_and_lists_what_the_real_addconn_does(bare: Machine, release: str) -> None:
    wrong = []
    for name, (text, loads) in CONFIGS.items():
        bare.write("/etc/t.conf", text)
        real = bare.run([ADDCONN, "--config", "/etc/t.conf", "--checkconfig"])
        assert (real.status == 0) == loads, f"{name}: the fact itself: {real}"
        status, out, err = ours(bare, "addconn", "--config", "/etc/t.conf", "--checkconfig")
        if (status == 0) != loads or out or "Traceback" in err:
            wrong.append((name, str(status), err))
        if loads:
            # without protostack= each generation has another name for the one stack there is
            for option in LISTS if "protostack" in text else LISTS[:-1]:
                listed = bare.run([ADDCONN, "--config", "/etc/t.conf", option]).stdout
                if ours(bare, "addconn", "--config", "/etc/t.conf", option)[1] != listed:
                    wrong.append((name, option, listed))
    assert not wrong


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^export (\w+)='(.*)'$", text, re.MULTILINE))


def test_the_settings_are_those_of_the_real_addconn(bare: Machine) -> None:
    bare.write("/etc/t.conf", CONFIGS["setup"][0])
    real = variables(bare.run([ADDCONN, "--config", "/etc/t.conf", "--configsetup"]).check().stdout)
    mine = variables(ours(bare, "addconn", "--config", "/etc/t.conf", "--configsetup")[1])
    #: numbers that stand for words, times in a unit that differs by release, what that build has no support for
    coded = {"ikev1_policy", "plutodebug", "debug", "ocsp_method", "ddos_mode", "seccomp"}
    shared = {key for key in set(real) & set(mine) if key not in coded}
    assert {key: mine[key] for key in shared} == {key: real[key] for key in shared}
    assert set(mine) <= set(real)
    assert set(real) - set(mine) <= coded | {"ikev1_secctx_attr_type", "dnssec_rootkey_file", "shuntlifetime",
                                             "ocsp_timeout", "ocsp_cache_min_age", "ocsp_cache_max_age"}
    assert shared > {"nflog_all", "logfile", "myvendorid", "uniqueids", "virtual_private", "logappend", "logtime",
                     "nssdir", "secretsfile", "ipsecdir", "configfile", "ctlsocket", "crl_strict", "dumpdir"}


def test_what_ours_prints_the_real_one_loads_as_the_same(bare: Machine) -> None:
    for name, (text, loads) in CONFIGS.items():
        if loads and "also=b\n" not in text[-8:]:
            bare.write("/etc/t.conf", text)
            status, out, _ = ours(bare, "readwriteconf", "--config", "/etc/t.conf")
            assert status == 0, name
            bare.write("/etc/u.conf", out)
            read = [bare.run([ADDCONN, "--config", f"/etc/{file}.conf", "--listall"]).check() for file in "tu"]
            assert read[0].stdout == read[1].stdout, name
            assert not read[1].stderr, f"{name}: {read[1].stderr}"


def test_the_real_program_runs_where_it_is(gateway: Machine) -> None:
    gateway.write("/etc/t.conf", "conn a\n\tauto=banana\n")
    real = gateway.run([ADDCONN, "--config", "/etc/t.conf", "--checkconfig"])
    through = gateway.ipsec("--config", "/etc/t.conf", "addconn", "--checkconfig")
    assert (through.status, through.stderr) == (real.status, real.stderr)
    assert "auto" in through.stderr and "built-in" not in through.stderr


CANARY = "cAnArY-7f3d9"
FORMS = [CANARY, CANARY.encode().hex(), base64.b64encode(CANARY.encode()).decode()]
#: Entries of ipsec.secrets that all releases load, that 4.10 and later load, that all refuse.
LOADED = [
    '@a : PSK "{}"', "@a : PSK '{}'", "@a : PSK 0x{hex}", "@a: PSK 0t{}", "@a : PSK 0tblanks and {}",
    "@a : PSK\n\t0x{hex}", "@a : psk 0s{base64}", '@a : XAUTH "{}"', '%any : PSK "{}" # note', ': PPKS "id" "{}"',
    '192.0.2.1 2001:db8::1 : PSK "{}"', '"C=US, O=Example" : PSK "{}"', '@a\n :\n PSK\n "{}"', "@a : PSK 0X{hex}",
    "@a : PSK 0S{base64}", '@a : PSK "0s{base64}"', ': PSK "{}"', '@a %any:\tPSK\t"{}"', ': PPKS "id" 0x{hex}',
]
LOADED_LATELY = ['@a : "PSK" "{}"', '@a ":" PSK "{}"', "@a : PSK 0T{}"]
REFUSED = [
    "@a : PSK {}", "@a : PSK `{}`", "@a : PSK", "@a : {}", "@a", '@a @b PSK "{}"', "@a : PSK 0xzz", ': PPKS "{}"',
    ': PPKS bare "{}"', '@a : PSK "{}', '@a : PSK "{}" "{}"', "@a : PSK 0x{hex} {}", '@a:PSK "{}"', '@a :PSK "{}"',
    '@a : PSK"{}"', "@a : PSK 0x", "include a {}", "include",
]


def test_ours_takes_for_a_secret_what_pluto_loads(gateway: Machine, pluto: Callable[..., Pluto], release: str) -> None:
    """What pluto says of each entry, ours says too; both its words and the file come out without the secret."""
    daemon = pluto(gateway)
    said, wrong = "", []
    cases = [(entry, True) for entry in (*LOADED, *(LOADED_LATELY if release != "bullseye" else ()))]
    for entry, loads in [*cases, *((entry, False) for entry in REFUSED)]:
        text = entry.format(*[CANARY] * 9, hex=FORMS[1], base64=FORMS[2]) + "\n"
        gateway.write("/etc/ipsec.secrets", text, 0o600)
        answer = gateway.run(["ipsec", "whack", "--rereadsecrets"]).stdout
        said += answer
        complaint = re.search(r'^(\d+ )?"/etc/ipsec.secrets" line \d+:|unterminated|expected', answer, re.MULTILINE)
        assert daemon.running and "loading secrets" in answer, entry
        if (complaint is None) != loads:
            wrong.append(("fact", entry, answer))
        records = [record for record, _ in ipsec.secret_records(text.split("\n")) if record.tokens]
        if (len(records) == 1 and not records[0].problem) != loads:
            wrong.append(("ours", entry, records[0].problem))
        shown = gateway.ipsec("_secretcensor", "/etc/ipsec.secrets").check().stdout
        if any(form in shown for form in FORMS):
            wrong.append(("shown", entry, shown))
    assert not wrong
    masked = gateway.ipsec("_keycensor", input=said + daemon.output).check().stdout
    assert CANARY in said and not any(form in masked for form in FORMS)
    assert masked.count("\n") == (said + daemon.output).count("\n")


def test_plutos_own_words_stay_as_they_are(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    """A status and a log without a secret in them pass unchanged, though secrets are known."""
    daemon = pluto(gateway, "config setup\nconn a\n\tleft=127.0.0.1\n\tright=192.0.2.2\n\tauthby=secret\n\tauto=add\n",
                   f'@b : PSK "{CANARY}"\n')
    text = gateway.run(["ipsec", "whack", "--status"]).check().stdout + daemon.output
    assert gateway.ipsec("_keycensor", input=text).check().stdout == text
