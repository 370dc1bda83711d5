"""The readers beside the real programs of each release: what they load, what they refuse, what they print."""

from __future__ import annotations

import base64
import os
import random
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
    "autos without a value": ("conn %default\n\tauto=start\nconn a\n\tauto=\n\tleft=192.0.2.1\n\tright=192.0.2.99\n"
                              "conn b\n\tauto=add\n\tauto=\n\tleft=192.0.2.1\n\tright=192.0.2.99\n", True),
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


#: Values for the comparison with addconn: of every kind, misspelt ones, numbers and suffixes.
VALUES = ("yes no y n true false on off 0 1 2 -1 10 100 65535 65536 70000 4294967296 99999999999999999999 0x10 "
          "010 1.5 1.5h 10s 10m 10d 10ms 10us 10seconds 1y 5x 10% 100% % %forever %any %none %defaultroute none "
          "auto YES Yes NO never permit propose insist always force ikev1 ikev2 ike ipv4 v6 ignore add ondemand "
          "route start up keep hold clear restart restart_by_peer disabled trap tunnel transport passthrough "
          "reject drop secret rsasig ecdsa null eaponly tls sendifasked alwayssend crypto packet either both "
          "rfc cisco file pam hard soft issuer all esp ah default busy unlimited enabled get post fallback "
          "accept banana 10Mi 1KiB 10M all,crypt no-crypt").split() + [
              "", '""', '" "', ",", '"a b"', '"yes "', '"1"', "{add}"]
#: The pairs that addconn refuses and the built-in reader takes, and why.
KNOWN = {
    "seccomp": "depends on how libreswan was built",
    "hostaddrfamily": "4.3 aborts for a number that is no address family",
    "retransmit-interval": "a number up to 4.6, so that nothing is no error there",
    "dpddelay": "4.3 refuses it in config setup even if it ignores its value", "dpdtimeout": "as dpddelay",
    "ikelifetime": "as dpddelay", "keylife": "as dpddelay", "lifetime": "as dpddelay", "rekeymargin": "as dpddelay",
    "retransmit-timeout": "as dpddelay", "salifetime": "as dpddelay",
    "leftecdsakey": "5.2 aborts for an empty value", "leftpubkey": "as leftecdsakey",
    "leftrsasigkey": "as leftecdsakey",
}
SAMPLE = 1500


def pairs() -> list[tuple[bool, str, str]]:
    """Return every keyword (in config setup or not) with every value, and every keyword in the wrong section."""
    known = {setup: [key for key in ipsec.vocabulary(setup) if not key.startswith("right")] for setup in (True, False)}
    return [(setup, key, value) for setup in known for key in known[setup] for value in VALUES if key != "left"] + [
        (setup, key, "yes") for setup in known for key in known[not setup] if key != "left"]


@pytest.mark.timeout(300 if os.environ.get("CONFIG_SAMPLE") != "0" else 7200)
def test_what_addconn_takes_is_no_error(gateway: Machine, release: str) -> None:
    """A sample of all keywords with all values: what addconn takes is never fatal for the built-in reader; the other
    way round only KNOWN is.  CONFIG_SEED chooses another sample, CONFIG_SAMPLE=0 tries all pairs."""
    seed, size = int(os.environ.get("CONFIG_SEED", "14")), int(os.environ.get("CONFIG_SAMPLE", SAMPLE))
    chosen = random.Random(seed).sample(pairs(), size) if size else pairs()
    texts = []
    for setup, key, value in chosen:
        conn = "conn a\n\tleft=192.0.2.1\n\tright=192.0.2.2\n"
        conn += "" if key == "authby" else "\tauthby=secret\n"
        texts.append(f"config setup\n\t{key}={value}\n{conn}" if setup else f"{conn}\t{key}={value}\n")
    for number, text in enumerate(texts):
        gateway.write(f"/etc/many/{number}", text)
    loop = (f"for n in $(seq 0 {len(texts) - 1}); do {ADDCONN} --config /etc/many/$n --checkconfig >/dev/null 2>&1; "
            "echo $?; done")
    statuses = gateway.run(["sh", "-c", loop], timeout=1800).check().stdout.split()
    host = ipsec.Host({})
    host.version = {"bullseye": "4.3", "bookworm": "4.10", "trixie": "5.2"}[release]
    refused, taken = [], []
    for (setup, key, value), text, status in zip(chosen, texts, statuses):
        config = ipsec.Config(host, "c", text)
        fatal = any(problem.fatal for problem in config.problems)
        if fatal and status == "0":
            refused.append((setup, key, value, *map(str, config.problems)))
        if not fatal and status != "0":
            taken.append((setup, key, value))
    print(f"{release}: {len(chosen)} pairs, taken by addconn and fatal here: {len(refused)}, the other way round: "
          f"{len(taken)}")
    assert len(statuses) == len(chosen)
    assert refused == []
    assert [pair for pair in taken if pair[1] not in KNOWN] == []
    assert size or len(taken) <= len(chosen) * 0.005


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


def test_patterns_of_includes_are_those_of_addconn(gateway: Machine) -> None:
    """addconn expands them with glob(3): a backslash makes a wildcard an ordinary character."""
    for name in ("ab", "a*", "a1", "a[1]", r"a\b", "x"):
        gateway.write(f"/etc/p/{name}.conf", f'conn "{name}"\n\tleft=192.0.2.1\n\tauto=add\n')
    wrong = []
    for pattern in (r"a\*", r"a\b", r"a\[1\]", "a[1]", r"a\\b", r"\x", r"[\*ax]*", r"no\*", "a[!1]*", "a[^1]*",
                    "[[:alpha:]]", "a[[:punct:]]", "[]x]", "[", "?"):
        gateway.write("/etc/t.conf", f"include /etc/p/{pattern}.conf\nconn z\n\tauto=add\n")
        real = gateway.run([ADDCONN, "--config", "/etc/t.conf", "--listall"]).stdout
        if ours(gateway, "addconn", "--config", "/etc/t.conf", "--listall")[1] != real:
            wrong.append((pattern, real))
    assert not wrong


LOADED_OR_NOT = """config setup

conn fine
\tleft=192.0.2.1
\tright=192.0.2.2
\tauthby=secret
\tconnalias=goodone

conn badike
\tleft=192.0.2.1
\tright=192.0.2.2
\tauthby=secret
\tike=banana

conn badauth
\tleft=192.0.2.1
\tright=192.0.2.2
\tauthby=banana
"""


def test_a_connection_that_is_not_loaded_has_its_cause(gateway: Machine, pluto: Callable[..., Pluto],
                                                       release: str) -> None:
    """No such name, no pluto, refused by addconn, refused by pluto: each is told by its name and has a status."""
    gateway.write("/etc/ipsec.conf", LOADED_OR_NOT)
    down = gateway.ipsec("add", "fine")
    assert down.status == 33 and down.stderr.endswith("add: pluto is not running (start it with: ipsec start)\n")
    daemon = pluto(gateway, LOADED_OR_NOT)
    assert gateway.ipsec("add", "fine").status == 0 and daemon.running
    for name, meant in (("fien", "fine"), ("goodnoe", "goodone")):
        for words in (["add", name], ["down", name], ["delete", name], ["route", name], ["auto", "--add", name]):
            result = gateway.ipsec(*words)
            assert result.status in (21, 25) and f"did you mean {meant}?" in result.stderr, words
            assert "pluto refuse" not in result.stderr
    refused = gateway.ipsec("add", "badauth")
    assert refused.status == 1 and "badauth did not load properly" in refused.stderr
    assert "authby= value is unknown" in refused.stderr and "log" not in refused.stderr
    by_pluto = gateway.ipsec("add", "badike")
    assert by_pluto.status == (56 if release == "trixie" else 36)
    told = "banana" in by_pluto.stdout
    assert told == (release == "trixie") and ("ipsec barf --section plog" in by_pluto.stderr) != told
    assert "did you mean" not in gateway.ipsec("route", "fine").stderr
    gateway.ipsec("delete", "fine").check()
    for words in (["down", "fine"], ["delete", "fine"]):
        again = gateway.ipsec(*words)
        assert again.status == 21 and "did you mean" not in again.stderr
        assert ("load it with: ipsec add fine" in again.stderr) == (release != "trixie")


CANARY = "cAnArY-7f3d9"
FORMS = [CANARY, CANARY.encode().hex(), base64.b64encode(CANARY.encode()).decode()]
#: Entries of ipsec.secrets that all releases load, that 4.10 and later load, that all refuse.
LOADED = [
    '@a : PSK "{}"', "@a : PSK '{}'", "@a : PSK 0x{hex}", "@a: PSK 0t{}", "@a : PSK 0tblanks and {}",
    "@a : PSK\n\t0x{hex}", "@a : psk 0s{base64}", '@a : XAUTH "{}"', '%any : PSK "{}" # note', ': PPKS "id" "{}"',
    '192.0.2.1 2001:db8::1 : PSK "{}"', '"C=US, O=Example" : PSK "{}"', '@a\n :\n PSK\n "{}"', "@a : PSK 0X{hex}",
    "@a : PSK 0S{base64}", "@a : PSK 0x61_{hex}",
    '@a : PSK "0s{base64}"', ': PSK "{}"', '@a %any:\tPSK\t"{}"', ': PPKS "id" 0x{hex}',
]
LOADED_LATELY = ['@a : "PSK" "{}"', '@a ":" PSK "{}"', "@a : PSK 0T{}"]
REFUSED = [
    "@a : PSK 0sczNjcmV0QUFBQWJiYmI", "@a : PSK 0sczNjcmV0QUFBQWJiYmJ=", "@a : PSK 0sczNj_cmV0", "@a : PSK 0x616",
    "@a : PSK {}", "@a : PSK `{}`", "@a : PSK", "@a : {}", "@a", '@a @b PSK "{}"', "@a : PSK 0xzz", ': PPKS "{}"',
    ': PPKS bare "{}"', '@a : PSK "{}', '@a : PSK "{}" "{}"', "@a : PSK 0x{hex} {}", '@a:PSK "{}"', '@a :PSK "{}"',
    '@a : PSK"{}"', "@a : PSK 0x", "include a {}", "include", "@a : PSK 0x61_", "@a : PSK 0x6_162", "@a : PSK 0x61__62",
]


def test_ours_takes_for_a_secret_what_pluto_loads(gateway: Machine, pluto: Callable[..., Pluto], release: str) -> None:
    """What pluto says of each entry, ours says too; both its words and the file come out without the secret."""
    daemon = pluto(gateway)
    replies, wrong = "", []
    cases = [(entry, True) for entry in (*LOADED, *(LOADED_LATELY if release != "bullseye" else ()))]
    for entry, loads in [*cases, *((entry, False) for entry in REFUSED)]:
        text = entry.format(*[CANARY] * 9, hex=FORMS[1], base64=FORMS[2]) + "\n"
        gateway.write("/etc/ipsec.secrets", text, 0o600)
        answer = gateway.run(["ipsec", "whack", "--rereadsecrets"]).stdout
        replies += answer
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
    masked = gateway.ipsec("_keycensor", input=replies + daemon.output).check().stdout
    assert CANARY in replies and not any(form in masked for form in FORMS)
    assert masked.count("\n") == (replies + daemon.output).count("\n")


def test_plutos_own_words_stay_as_they_are(gateway: Machine, pluto: Callable[..., Pluto]) -> None:
    """A status and a log without a secret in them pass unchanged, though secrets are known."""
    daemon = pluto(gateway, "config setup\nconn a\n\tleft=127.0.0.1\n\tright=192.0.2.2\n\tauthby=secret\n\tauto=add\n",
                   f'@b : PSK "{CANARY}"\n')
    text = gateway.run(["ipsec", "whack", "--status"]).check().stdout + daemon.output
    assert gateway.ipsec("_keycensor", input=text).check().stdout == text


#: Configurations about which the releases differ, and whether each of them loads the file.
ALL = {"bullseye": True, "bookworm": True, "trixie": True}
LATELY = {"bullseye": False, "bookworm": False, "trixie": True}
EARLY = {"bullseye": True, "bookworm": True, "trixie": False}
NONE = dict.fromkeys(ALL, False)
DIFFERENT = {
    "a comment keyword alone": ("conn a\n\tx-note\n", LATELY),
    "a comment keyword without a value": ("conn a\n\tX_note=\n", LATELY),
    "two words after x-": ("conn a\n\tx-note b\n", LATELY),
    "x- and a keyword": ("conn a\n\tx-note b=c\n", ALL),
    "a second config setup": ("config setup\n\tlogtime=no\nconfig setup\n\tauto=add\n", ALL),
    "a first config setup": ("config setup\n\tauto=add\n", LATELY),
    "CR LF after comments": ("# a\r\nconn a\n\t# b\r\n\tleft=192.0.2.1 # c\r\n", ALL),
    "CR LF after texts": ("conn a\r\n\tleft=192.0.2.1\r\n\tikelifetime=8h\r\n", ALL),
    "CR LF after a known word": ("conn a\n\tauto=add\r\n", LATELY),
    "CR LF after yes": ("conn a\n\tpfs=yes\r\n", LATELY),
    "CR LF after quotes with a blank": ('conn a\n\tleftid="a b"\r\n', NONE),
    "CR LF alone": ("conn a\n\t\r\n", NONE),
    "CR LF after config setup": ("config setup\r\n", NONE),
    "a number as a name": ("conn 12\n", LATELY),
    "separators for a word": ('conn a\n\tauto=" , "\n\ttype=:\n\tphase2={ }\n', ALL),
    "a colon for flags": ('config setup\n\tplutodebug=":"\n', LATELY),
    "a comma for flags": ('config setup\n\tplutodebug=","\n', ALL),
    "%forever as a name": ("conn %forever\n", LATELY),
    "a name that begins with #": ("conn #x\n", ALL),
    "# as a name": ("conn #\nconn #x=\n", ALL),
    "# as a file": ("include #x\n", ALL),
    "a name that begins with #, and a word": ("conn #x y\n", NONE),
    "# after a name": ("conn a #x\n", NONE),
    "a quoted number as a name": ('conn "12"\n', ALL),
    "two patterns": ("include /etc/no*.ne /etc/b.conf\n", EARLY),
    "a pattern and a setting": ("include /etc/no*.ne left=a\n", NONE),
}


def test_what_the_releases_read_differently(gateway: Machine, release: str) -> None:
    host = ipsec.Host({})
    host.version = {"bullseye": "4.3", "bookworm": "4.10", "trixie": "5.2"}[release]
    if release == "trixie":
        assert [conn.name for conn in ipsec.Config(host, "c", "conn %forever\nconn \"%forever\"\n").conns()] == [
            "0", "%forever"]
    for name, (text, loads) in DIFFERENT.items():
        gateway.write("/etc/t.conf", text)
        real = gateway.run([ADDCONN, "--config", "/etc/t.conf", "--checkconfig"])
        assert (real.status == 0) == loads[release], f"{name}: the fact itself: {real}"
        fatal = any(problem.fatal for problem in ipsec.Config(host, "c", text).problems)
        assert fatal != loads[release], name
