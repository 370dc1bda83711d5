"""Keys and certificates with the real NSS 3.61, 3.87 and 3.110, beside libreswan's own programs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest

from ..ground.machine import PYZ, Machine

DB = "/var/lib/ipsec/nss"
CANARY = "cAnArY:pass word"
#: How many times a command is killed in each release; IPSEC_TEST_KILLS for more.
KILLS = int(os.environ.get("IPSEC_TEST_KILLS", "20"))
OPENSSL = """[req]
distinguished_name=dn
[dn]
[ca]
basicConstraints=critical,CA:TRUE
[ee]
basicConstraints=CA:FALSE
"""


def issue(machine: Machine, name: str, subject: str, kind: str = "ca") -> str:
    """A certificate of its own CA, /pki/NAME.pem with /pki/NAME.key; the path of the first."""
    machine.write("/pki/openssl.cnf", OPENSSL)
    machine.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                 f"/pki/{name}.key", "-out", f"/pki/{name}.pem", "-subj", subject, "-days", "20", "-config",
                 "/pki/openssl.cnf", "-extensions", kind]).check()
    return f"/pki/{name}.pem"


def pkcs12(machine: Machine, password: str = "p12 secret", name: str = "host") -> str:
    """A PKCS#12 file of an end entity's certificate and key, and a CA; the path."""
    issue(machine, "ee", "/CN=host", "ee")
    issue(machine, "ca", "/CN=The  CA")
    machine.write("/pki/password", f"{password}\n")
    machine.run(["openssl", "pkcs12", "-export", "-in", "/pki/ee.pem", "-inkey", "/pki/ee.key", "-certfile",
                 "/pki/ca.pem", "-name", name, "-passout", "file:/pki/password", "-out", "/pki/host.p12"]).check()
    return "/pki/host.p12"


def add(machine: Machine, nickname: str, trust: str, pem: str, *more: str) -> None:
    machine.run(["certutil", "-A", "-d", f"sql:{DB}", "-n", nickname, "-t", trust, "-i", pem, *more]).check()


def trusts(machine: Machine) -> list[tuple[str, str]]:
    """(nickname, trust) of all certificates, as certutil tells them."""
    lines = machine.run(["certutil", "-L", "-d", f"sql:{DB}"]).check().stdout.splitlines()[4:]
    cut = [line.rstrip().rpartition(" ") for line in lines if line.strip()]
    return [(nickname.rstrip(), trust) for nickname, _, trust in cut]


def content(machine: Machine) -> dict[str, bytes]:
    """Everything in the database's directory."""
    return {path.name: path.read_bytes() for path in machine.path(DB).iterdir()}


@pytest.fixture
def fresh(gateway: Machine) -> Machine:
    """A gateway of each release with an empty directory for the database."""
    gateway.run(["rm", "-rf", DB, "/etc/ipsec.d"])
    gateway.run(["mkdir", "-p", "-m", "700", DB, "/etc/ipsec.d", "/pki"]).check()
    return gateway


@pytest.fixture
def base(fresh: Machine) -> Machine:
    """A gateway of each release with an empty database."""
    fresh.ipsec("initnss").check()
    return fresh


def test_create_and_again(fresh: Machine) -> None:
    made = fresh.ipsec("initnss")
    assert (made.status, made.stderr) == (0, "")
    assert sorted(content(fresh)) == ["cert9.db", "key4.db", "pkcs11.txt"]
    assert {path.stat().st_mode & 0o777 for path in fresh.path(DB).iterdir()} == {0o600}
    assert f"sql:{DB}'" in fresh.read(f"{DB}/pkcs11.txt")
    before = content(fresh)
    again = fresh.ipsec("initnss", "-d", DB)
    assert again.status == 42
    assert again.stderr.splitlines() == ["ipsec: NSS database already initialised - aborted",
                                         f"To wipe the old NSS database, issue: rm {DB}/*.db"]
    assert fresh.ipsec("--checknss", "--nssdir", DB).status == 0
    old = fresh.ipsec("checknss", "--configdir", f"sql:{DB}")
    assert old.status == 0 and "obsoleted" in old.stderr
    assert content(fresh) == before
    fresh.run(["certutil", "-K", "-d", f"sql:{DB}"])


def test_trusts(base: Machine) -> None:
    """Nicknames are data, basic constraints decide, distrust and other usages stay."""
    cases = [("Double  Space CA", ",,", "CT,,"), ("-dash CA", ",,", "CT,,"), ('quo"te\\ * $(x) `y`', ",,", "CT,,"),
             ("Ünï cöde", ",,", "CT,,"), ("with:colon", ",,", "CT,,"), (" lead", ",,", "CT,,"),
             ("N" * 70, ",,", "CT,,"), ("distrusted", "p,p,p", "p,p,p"), ("other usages", ",C,C", "CT,C,C"),
             ("mail distrusted", "C,p,", "CT,p,"), ("right", "CT,C,C", "CT,C,C"), ("trap", ",,", ",,"),
             ("none", "c,,", "CT,,")]
    for number, (nickname, trust, _) in enumerate(cases):
        trap = nickname == "trap"
        add(base, nickname, trust, issue(base, f"c{number}", "/O=This Is a CA trap" if trap else f"/CN={number}",
                                         "ee" if trap else "ca"))
    # two certificates of one name: a CA that was renewed
    for number, trust in enumerate((",C,", "p,,")):
        add(base, "twice", trust, issue(base, f"twice{number}", "/CN=twice"))
    done = base.ipsec("checknss", "--settrusts")
    assert (done.status, done.stderr) == (0, "")
    listed = json.loads(base.ipsec("nsslist", "--json").check().stdout)
    assert [(one["nickname"], one["trust"]) for one in listed] == [
        *((nickname, after) for nickname, _, after in cases), ("twice", "CT,C,"), ("twice", "p,,")]
    # certutil sees the same
    assert [trust for _, trust in trusts(base)] == [one["trust"] for one in listed]
    said = [line.removeprefix("correcting trust bits for ") for line in done.stdout.splitlines()]
    assert said == [nickname for nickname, before, after in cases if before != after] + ["twice"]
    assert base.ipsec("checknss", "--settrusts").stdout == ""


@pytest.mark.parametrize("form", ["{}", "NSS Certificate DB:{}"])
def test_password(fresh: Machine, form: str) -> None:
    fresh.write("/pki/db", f"{CANARY}\n", 0o600)
    fresh.ipsec("initnss", "--password-file", "/pki/db").check()
    for number in range(3):
        add(fresh, f"ca {number}", ",,", issue(fresh, f"c{number}", f"/CN={number}"), "-f", "/pki/db")
    p12 = pkcs12(fresh)
    for wrong in (None, form.format("wrong") + "\n"):
        if wrong:
            fresh.write("/etc/ipsec.d/nsspassword", wrong, 0o600)
        for words in (["checknss", "--settrusts"], ["import", "--password-file", "/pki/password", p12],
                      ["newhostkey"]):
            refused = fresh.ipsec(*words)
            assert refused.status == 4, words
            assert "password" in refused.stderr and len(refused.stderr.splitlines()) == 1, words
    if ":" in CANARY and form == "{}":
        fresh.run(["rm", "/etc/ipsec.d/nsspassword"])
        options = ["--password-file", "/pki/db"], ["--nss-password-file", "/pki/db"]
    else:
        fresh.write("/etc/ipsec.d/nsspassword", form.format(CANARY) + "\n", 0o600)
        options = [], []
    assert len(fresh.ipsec("checknss", "--settrusts", *options[0]).check().stdout.splitlines()) == 3
    fresh.ipsec("import", "--password-file", "/pki/password", *options[1], p12).check()
    fresh.ipsec("newhostkey", "--bits", "2192", *options[0]).check()
    keys = fresh.run(["certutil", "-K", "-d", f"sql:{DB}", "-f", "/pki/db"]).check().stdout
    assert len([line for line in keys.splitlines() if line.startswith("<")]) == 2
    if form != "{}":
        assert "rsa" in fresh.ipsec("certutil", "-K").check().stdout


def test_fips(fresh: Machine) -> None:
    """A database in FIPS mode: its token has another name, keys need the password."""
    fresh.write("/pki/db", "Fips-Password1!\n", 0o600)
    fresh.ipsec("initnss", "--password-file", "/pki/db").check()
    add(fresh, "a", ",,", issue(fresh, "a", "/CN=a"), "-f", "/pki/db")
    add(fresh, "b", ",,", issue(fresh, "b", "/CN=b"), "-f", "/pki/db")
    switched = fresh.ipsec("modutil", "-fips", "true", "-force")
    assert "FIPS mode enabled" in switched.stdout + switched.stderr
    fresh.write("/etc/ipsec.d/nsspassword", "NSS FIPS 140-2 Certificate DB:Fips-Password1!\n", 0o600)
    assert len(fresh.ipsec("checknss", "--settrusts").check().stdout.splitlines()) == 2
    fresh.ipsec("newhostkey", "--keytype", "ecdsa").check()


def test_import(base: Machine) -> None:
    p12 = pkcs12(base)
    add(base, "bystander", ",,", issue(base, "by", "/CN=by"))
    base.write("/pki/wrong", "no\n")
    whole = base.path(p12).read_bytes()
    base.write("/pki/cut.p12", whole[:300])
    base.write("/pki/bent.p12", whole[:100] + bytes(200) + whole[300:])
    base.write("/pki/text", "hello\n")
    base.write("/pki/empty", "")
    before = content(base)
    with_password = ["import", "--password-file", "/pki/password"]
    for status, words in ((10, [*with_password, "/pki/none"]), (11, [*with_password, "/pki/text"]),
                          (11, [*with_password, "/pki/empty"]), (12, [*with_password, "/pki/cut.p12"]),
                          (13, ["import", "--password-file", "/pki/wrong", p12]), (13, ["import", p12]),
                          (1, [*with_password, "--nssdir", "/typo", p12]), (2, ["import"]),
                          (2, [*with_password, p12, p12])):
        refused = base.ipsec(*words)
        assert refused.status == status, (words, refused)
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert base.ipsec(*with_password, "/pki/bent.p12").status in (11, 12, 13)
    assert content(base) == before
    done = base.ipsec(*with_password, "--name", "-my  host", p12)
    assert (done.status, done.stdout.splitlines()[0]) == (0, 'imported "-my  host"'), done
    listed = {one["nickname"]: one for one in json.loads(base.ipsec("nsslist", "--json").check().stdout)}
    assert listed["bystander"]["trust"] == ",,"
    assert listed["-my  host"]["has_key"] and not listed["-my  host"]["is_ca"]
    ca = next(one for one in listed.values() if one["subject"] == "CN=The  CA")
    assert ca["trust"] == "CT,,"
    after = content(base)
    assert base.ipsec(*with_password, p12).status == 14
    assert content(base) == after


def test_import_pem(base: Machine) -> None:
    pem = issue(base, "h", "/CN=pem")
    base.run(["sh", "-ec", "cd /pki; openssl req -newkey rsa:2048 -nodes -keyout e.key -out e.csr -subj /CN=e; openssl "
              f"x509 -req -in e.csr -CA {pem} -CAkey h.key -CAcreateserial -out e.pem"]).check()
    lone = base.ipsec("import", "/pki/e.pem")  # NSS would keep it without a nickname, and nothing could name it
    assert lone.status == 12 and "has no private key" in lone.stderr
    assert json.loads(base.ipsec("nsslist", "--json").check().stdout) == []
    ca = issue(base, "ca", "/CN=lone CA")
    assert base.ipsec("import", "--name", "other CA", ca).check().stdout == 'imported "other CA"\n'
    listed = json.loads(base.ipsec("nsslist", "--json").check().stdout)
    assert [(one["nickname"], one["trust"]) for one in listed] == [("other CA", "CT,,")]
    base.run(["certutil", "-D", "-d", f"sql:{DB}", "-n", "other CA"]).check()
    assert base.ipsec("import", "--name", "pem host", pem, "/pki/h.key").check().stdout == 'imported "pem host"\n'
    assert json.loads(base.ipsec("nsslist", "--json").check().stdout)[0]["has_key"]
    base.run(["rm", "/usr/bin/openssl"])
    refused = base.ipsec("import", pem)
    assert refused.status == 127 and "openssl" in refused.stderr


def test_keys(base: Machine) -> None:
    """Ours, where libreswan's showhostkey is missing, prints what libreswan's prints."""
    real = "/usr/libexec/ipsec/showhostkey"
    base.ipsec("newhostkey", "--keytype", "rsa", "--bits", "2192", "--seeddev", "/dev/urandom").check()
    for curve in ("secp256r1", "secp384r1", "secp521r1"):
        base.ipsec("newhostkey", "--keytype", "ecdsa", "--curve", curve).check()
    base.run(["/usr/libexec/ipsec/rsasigkey", "--nssdir", DB, "2192"]).check()
    native = {"IPSEC_EXECDIR": "/none"}
    listed = base.ipsec("showhostkey", "--list", env=native).check().stdout
    assert len(listed.splitlines()) == 5
    compared = 0
    theirs = [line.split("ckaid: ")[1] for line in base.run([real, "--nssdir", DB, "--list"]).check().stdout.split("\n")
              if line]
    ours = [line.split("ckaid: ")[1] for line in listed.splitlines() if len(theirs) == 5 or " RSA " in line]
    assert sorted(theirs) == sorted(ours)  # 4.3 lists no ECDSA key, and in another order
    for ckaid in theirs:
        for words in (["--left"], ["--right"], ["--ipseckey"], ["--pem"], ["--ipseckey", "--gateway", "192.0.2.1"]):
            wanted = base.run([real, "--nssdir", DB, *words, "--ckaid", ckaid])
            if wanted.status == 0:  # 4.3 has no --pem
                compared += 1
                assert base.ipsec("showhostkey", *words, "--ckaid", ckaid, env=native).stdout == wanted.stdout
    assert compared >= 8
    assert base.ipsec("showhostkey", "--left", "--ckaid", "00ff", env=native).status == 20


def test_wrappers(base: Machine) -> None:
    assert base.ipsec("certutil", "-L").status == 0
    assert base.ipsec("crlutil", "-L").status == 0
    assert "NSS Internal PKCS #11 Module" in base.ipsec("modutil", "-list").check().stdout
    pem = issue(base, "h", "/CN=h")
    base.ipsec("import", "--name", "h", pem, "/pki/h.key").check()
    base.write("/pki/w", "x\n")
    base.ipsec("pk12util", "-o", "/pki/out.p12", "-n", "h", "-w", "/pki/w").check()
    assert base.path("/pki/out.p12").stat().st_size
    checked = base.ipsec("vfychain", "-a", pem)
    assert "Chain is" in checked.stdout + checked.stderr, checked
    for words in (["certutil", "-L", "-d", "/x"], ["modutil", "-dbdir", "/x"], ["pk12util", "--nssdir", "/x"]):
        assert base.ipsec(*words).status == 2


def test_no_tools(fresh: Machine) -> None:
    fresh.run(["rm", "/usr/bin/certutil", "/usr/bin/pk12util"])
    for words in (["initnss"], ["certutil", "-L"]):
        refused = fresh.ipsec(*words)
        assert refused.status == 127 and "install the package libnss3-tools" in refused.stderr
    assert content(fresh) == {}


def test_rescue(base: Machine) -> None:
    """A database on a disk that is mounted, without NSS's tools."""
    add(base, "a", "CT,,", issue(base, "a", "/CN=a"))
    base.run(["rm", "/usr/bin/certutil"])
    base.run(["mkdir", "-p", "/sysroot/var/lib/ipsec"]).check()
    base.run(["cp", "-r", DB, "/sysroot/var/lib/ipsec/nss"]).check()
    told = base.ipsec("--root", "/sysroot", "nsslist").check().stdout
    assert told.splitlines()[0] == "a" and "EXPIRES SOON" in told and "CT,, (CA)" in told
    assert base.ipsec("--root", "/sysroot", "checknss").status == 2


def test_move(base: Machine) -> None:
    """From ipsec.d to the default of 4.0, across file systems; a second instance takes nothing."""
    add(base, "moved", "CT,,", issue(base, "a", "/CN=a"))
    base.run(["sh", "-c", f"mv {DB}/* /etc/ipsec.d/"]).check()
    base.run(["mkdir", "-m", "700", "/second"]).check()
    base.ipsec("checknss", "--nssdir", "/second").check()
    assert base.path("/etc/ipsec.d/key4.db").exists()
    base.run(["mount", "-t", "tmpfs", "none", DB]).check()
    base.ipsec("checknss").check()
    assert trusts(base) == [("moved", "CT,,")]
    assert list(base.path("/etc/ipsec.d").iterdir()) == []


def test_nssdir_of_the_configuration(fresh: Machine) -> None:
    """The commands make, fill and show the database that pluto opens; the default one stays empty."""
    fresh.write("/etc/ipsec.conf", "config setup\n\tnssdir=/elsewhere\n")
    fresh.run(["mkdir", "-m", "700", "/elsewhere"]).check()
    before = content(fresh)
    fresh.ipsec("checknss").check()
    fresh.ipsec("newhostkey").check()
    listed = fresh.ipsec("showhostkey", "--list").check().stdout
    assert listed.count("ckaid: ") == 1
    fresh.ipsec("start").check()
    assert "/elsewhere" in fresh.ipsec("status").stdout
    assert "sql:/elsewhere" in fresh.ipsec("barf").stdout
    fresh.ipsec("stop").check()
    assert content(fresh) == before


def test_berkeley(fresh: Machine) -> None:
    """An old database, with a password: migrated where certutil still reads it, an error with the way out elsewhere."""
    fresh.write("/pki/db", f"{CANARY}\n", 0o600)
    fresh.write("/etc/ipsec.d/nsspassword", f"NSS Certificate DB:{CANARY}\n", 0o600)
    made = fresh.run(["certutil", "-N", "-d", f"dbm:{DB}", "-f", "/pki/db"])
    if made.status or "cert8.db" not in content(fresh):
        for file in content(fresh):
            fresh.path(f"{DB}/{file}").unlink()
        for file in ("cert8.db", "key3.db", "secmod.db"):
            fresh.write(f"{DB}/{file}", b"\0\x06\x15\x61" + bytes(65532))
        refused = fresh.ipsec("checknss")
        assert refused.status == 4 and "upgrade-merge" in refused.stderr
        print("this NSS reads no Berkeley DB")
        return
    fresh.run(["certutil", "-A", "-d", f"dbm:{DB}", "-n", "old", "-t", ",,", "-i", issue(fresh, "o", "/CN=old"), "-f",
               "/pki/db"]).check()
    fresh.ipsec("checknss", "--settrusts").check()
    assert trusts(fresh) == [("old", "CT,,")]
    assert sorted(content(fresh)) == ["cert8.db", "cert9.db", "key3.db", "key4.db", "pkcs11.txt", "secmod.db"]
    assert CANARY.encode() not in b"".join(content(fresh).values())
    assert list(fresh.path("/tmp").iterdir()) == []


def test_hard_places(fresh: Machine) -> None:
    """A directory that is missing, no directory, full or read-only: one line, nothing left behind."""
    fresh.write("/file", "")
    fresh.run(["ln", "-s", "/nowhere", "/dangling"]).check()
    for bad in ("/missing", "/file", "/dangling"):
        for name in ("initnss", "checknss"):
            refused = fresh.ipsec(name, "--nssdir", bad)
            assert refused.status == 1 and len(refused.stderr.splitlines()) == 1, refused
    fresh.run(["mkdir", "/small", "/readonly"]).check()
    fresh.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", "/small"]).check()
    full = fresh.ipsec("initnss", "--nssdir", "/small")
    assert full.status == 4 and len(full.stderr.splitlines()) == 1, full
    assert list(fresh.path("/small").iterdir()) == []
    fresh.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/readonly"]).check()
    assert fresh.ipsec("initnss", "--nssdir", "/readonly").status in (1, 4)


def test_a_read_only_database(base: Machine) -> None:
    """checknss has nothing to do with a complete database; to change it fails."""
    base.run(["mount", "--bind", DB, DB]).check()
    base.run(["mount", "-o", "remount,bind,ro", DB]).check()
    before = content(base)
    for words in (["checknss"], ["checknss", "--settrusts"]):
        result = base.ipsec(*words)
        assert (result.status, result.stdout, result.stderr) == (0, "", "")
    base.run(["mount", "-o", "remount,bind,rw", DB]).check()
    add(base, "ca", ",,", issue(base, "ro", "/CN=ro"))
    base.run(["mount", "-o", "remount,bind,ro", DB]).check()
    assert base.ipsec("checknss").status == 0
    refused = base.ipsec("checknss", "--settrusts")
    assert refused.status == 1 and len(refused.stderr.splitlines()) == 1, refused
    base.run(["umount", DB]).check()
    assert content(base).keys() == before.keys()


def test_the_default_directory_is_made(fresh: Machine) -> None:
    """With all the directories gone, and the one of 3.x there."""
    for name, status in (("checknss", 0), ("initnss", 0)):
        fresh.run(["rm", "-rf", "/var/lib/ipsec"]).check()
        assert fresh.ipsec(name).status == status
        assert {fresh.path(path).stat().st_mode & 0o777 for path in ("/var/lib/ipsec", DB)} == {0o700}
        assert sorted(content(fresh)) == ["cert9.db", "key4.db", "pkcs11.txt"]
        assert not list(fresh.path("/etc/ipsec.d").iterdir())


def test_full_disk_at_import(base: Machine) -> None:
    p12 = pkcs12(base)
    base.run(["mkdir", "/small"]).check()
    base.run(["mount", "-t", "tmpfs", "-o", "size=140k", "none", "/small"]).check()
    base.run(["sh", "-c", f"cp {DB}/* /small/"]).check()
    before = {path.name: path.read_bytes() for path in base.path("/small").iterdir()}
    full = base.ipsec("import", "--nssdir", "/small", "--password-file", "/pki/password", p12)
    assert full.status != 0 and len(full.stderr.splitlines()) == 1, full
    assert {path.name: path.read_bytes() for path in base.path("/small").iterdir()} == before
    assert "No space" in full.stderr
    # only what can fail for lack of space is put down to it
    other = base.ipsec("import", "--nssdir", "/small", "--password-file", "/etc/hostname", p12)
    assert other.status != 0 and "No space" not in other.stderr and "password" in other.stderr, other


def test_many_at_once(fresh: Machine) -> None:
    """Only one makes the database, and nobody loops."""
    script = (f"for i in 1 2 3 4 5 6; do python3 {PYZ} initnss & p=\"$p $!\"; done; "
              "for x in $p; do wait $x; echo $?; done")
    told = fresh.run(["sh", "-c", script], timeout=120).check().stdout.splitlines()
    assert sorted(line for line in told if line.isdigit()) == ["0", "42", "42", "42", "42", "42"]
    assert sorted(content(fresh)) == ["cert9.db", "key4.db", "pkcs11.txt"]


def sound(machine: Machine) -> None:
    """The database is whole: the tools open it, and nothing of ours lies beside it."""
    machine.run(["certutil", "-L", "-d", f"sql:{DB}"]).check()
    assert sorted(content(machine)) == ["cert9.db", "key4.db", "pkcs11.txt"]
    for file in ("cert9.db", "key4.db"):
        checked = machine.run(["python3", "-c", "import sqlite3, sys\nfor row in sqlite3.connect(sys.argv[1]).execute("
                               "'pragma integrity_check'): print(row[0])", f"{DB}/{file}"]).check().stdout
        assert checked == "ok\n", file


def killed(machine: Machine, words: list[str], seconds: float) -> None:
    """Run ipsec and kill -9 it after that time. A tool of NSS that runs for it then goes on, without its parent."""
    machine.run(["timeout", "-s", "KILL", f"{seconds:.3f}", "python3", PYZ, *words])


@pytest.mark.parametrize("stray", ["ln -s /srv/precious .nss-commit", "mkdir .nss-commit", "echo x >.nss-commit",
                                   "ln -s /srv/precious .nss-build.1.ab"])
def test_strays_of_another_user(fresh: Machine, stray: str) -> None:
    """In a directory that everybody can write, they neither lead a command away nor stop it."""
    fresh.run(["sh", "-ec", f"mkdir -p /srv/precious {DB}; chmod 777 {DB}; echo x >/srv/precious/key4.db; "
               f"cd {DB}; setpriv --reuid=61234 --regid=61234 --clear-groups sh -ec '{stray}'"]).check()
    fresh.ipsec("checknss").check()
    fresh.ipsec("newhostkey", "--keytype", "ecdsa").check()
    fresh.run(["certutil", "-K", "-d", f"sql:{DB}"]).check()
    assert fresh.run(["cat", "/srv/precious/key4.db"]).check().stdout == "x\n"
    assert len(fresh.run(["ls", "-A", DB]).check().stdout.split()) == 4


def test_killed(fresh: Machine) -> None:
    """kill -9 at any moment of create, import, move, settrusts and newhostkey: the next checknss finds a whole
    database, old or new."""
    p12 = pkcs12(fresh)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)

    def timed(words: list[str]) -> float:
        start = time.monotonic()
        fresh.ipsec(*words).check()
        return time.monotonic() - start

    imports = ["import", "--password-file", "/pki/password", p12]
    commands = {"create": ["checknss"], "import": imports, "trust": ["checknss", "--settrusts"],
                "key": ["newhostkey", "--keytype", "ecdsa"], "move": ["checknss"]}
    length = {kind: timed(commands[kind]) for kind in ("create", "import", "trust", "key")}
    fresh.run(["sh", "-c", f"mv {DB}/* /etc/ipsec.d/"]).check()
    length["move"] = timed(["checknss"])
    for step in range(KILLS):
        kind = list(commands)[step % len(commands)]
        fresh.run(["sh", "-c", f"rm -rf {DB}/* {DB}/.nss* /etc/ipsec.d/* /etc/ipsec.d/.nss*"])
        if kind != "create":
            fresh.ipsec("checknss").check()
        if kind in ("move", "trust"):
            fresh.ipsec(*imports).check()
        if kind == "move":
            fresh.run(["sh", "-c", f"mv {DB}/* /etc/ipsec.d/"]).check()
        if kind == "trust":
            fresh.run(["certutil", "-M", "-d", f"sql:{DB}", "-n", "The  CA", "-t", ",,"]).check()
        killed(fresh, commands[kind], chance.uniform(0.02, length[kind] * 1.1))
        fresh.ipsec("checknss").check()
        sound(fresh)
        names = [nickname for nickname, _ in trusts(fresh)]
        if kind == "move":
            assert len(names) == 2 and list(fresh.path("/etc/ipsec.d").iterdir()) == []
        if kind == "import":
            assert len(names) in (0, 2)
        if kind == "trust":
            fresh.ipsec("checknss", "--settrusts").check()
            assert dict(trusts(fresh))["The  CA"] == "CT,,"
        if kind == "key":
            keys = fresh.run(["certutil", "-K", "-d", f"sql:{DB}"]).stdout.splitlines()
            assert len([line for line in keys if line.startswith("<")]) in (0, 1)


@contextlib.contextmanager
def watching(secret: str) -> Iterator[list[str]]:
    """Look for the secret in the arguments and environment of every process until the end of the block."""
    leaks: list[str] = []
    rounds = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() or not rounds[0]:
            for process in Path("/proc").glob("[0-9]*"):
                for kind in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        if secret.encode() in (process / kind).read_bytes():
                            leaks.append(str(process / kind))
            rounds[0] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield leaks
    finally:
        stop.set()
        thread.join()


def test_password_is_nowhere(fresh: Machine) -> None:
    """Not in arguments, environment, temporary files or output, of whatever is run."""
    fresh.write("/etc/ipsec.d/nsspassword", f"NSS Certificate DB:{CANARY}\n", 0o600)
    fresh.write("/pki/db", f"{CANARY}\n", 0o600)
    p12 = pkcs12(fresh, CANARY)
    outputs = []
    with watching(CANARY) as leaks:
        for words in (["initnss", "--password-file", "/pki/db"], ["checknss", "--settrusts"], ["newhostkey"],
                      ["import", "--password-file", "/pki/password", p12], ["certutil", "-K"], ["nsslist"],
                      ["newhostkey", "--keytype", "ecdsa"]):
            result = fresh.ipsec(*words).check()
            outputs.append(result.stdout + result.stderr)
    assert leaks == []
    assert CANARY not in "".join(outputs)
    searched = fresh.run(["grep", "-rlF", CANARY, "/tmp", "/var/tmp", "/run", "/var/lib/ipsec", "/etc", "/root"]).stdout
    assert searched.split() == ["/etc/ipsec.d/nsspassword"]


def test_immutable(base: Machine) -> None:
    p12 = pkcs12(base)
    if base.run(["chattr", "+i", f"{DB}/cert9.db"]).status:  # the file system of the test has no such flag
        base.run(["mount", "--bind", f"{DB}/cert9.db", f"{DB}/cert9.db"]).check()
        base.run(["mount", "-o", "remount,bind,ro", f"{DB}/cert9.db"]).check()
    before = content(base)
    refused = base.ipsec("import", "--password-file", "/pki/password", p12)
    assert refused.status == 4 and len(refused.stderr.splitlines()) == 1, refused
    assert content(base) == before


def test_the_command_that_is_named_removes_a_journal_that_a_killed_program_left(base: Machine) -> None:
    script = ("import os, sqlite3; c = sqlite3.connect(os.sys.argv[1], isolation_level=None); "
              "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN'); c.execute('CREATE TABLE x (y)'); "
              "c.execute('INSERT INTO x VALUES (zeroblob(100000))'); os._exit(0)")
    base.run(["python3", "-c", script, f"{DB}/cert9.db"]).check()
    assert base.path(f"{DB}/cert9.db-journal").exists()
    broken = base.ipsec("nsslist")
    assert broken.status == 4 and broken.stderr.count("\n") == 1
    command = broken.stderr.rpartition(" run ")[2].strip(" ()\n").split()
    assert command[0] == "certutil"
    base.run(command).check()
    assert not base.path(f"{DB}/cert9.db-journal").exists() and base.ipsec("nsslist").status == 0


def test_without_sqlite(base: Machine) -> None:
    """Where Python lacks sqlite3, certutil is asked, certificate by certificate."""
    cases = {"Ünï  cöde": ("", "CT,,"), "N" * 70: (",C,", "CT,C,"), "trap": ("", ",,"), "no": ("p,,", "p,,")}
    for number, (nickname, (trust, _)) in enumerate(cases.items()):
        add(base, nickname, trust or ",,", issue(base, f"c{number}", "/O=Is a CA" if nickname == "trap" else
                                                 f"/CN={number}", "ee" if nickname == "trap" else "ca"))
    base.run(["sh", "-ec", "mkdir /aside; mv /usr/lib/python3*/lib-dynload/_sqlite3.* /aside"]).check()
    assert "needs Python's module _sqlite3" in base.ipsec("newhostkey").stderr
    done = base.ipsec("checknss", "--settrusts")
    assert (done.status, len(done.stdout.splitlines())) == (0, 2), done
    assert dict(trusts(base)) == {nickname: after for nickname, (_, after) in cases.items()}
    told = json.loads(base.ipsec("nsslist", "--json").check().stdout)
    assert {one["nickname"]: one["trust"] for one in told} == dict(trusts(base))
    base.ipsec("import", "--password-file", "/pki/password", pkcs12(base)).check()
    base.run(["sh", "-ec", "mv /aside/* /usr/lib/python3*/lib-dynload"]).check()
    sound(base)


def test_a_full_disk_is_called_that(gateway: Machine) -> None:
    """initnss leaves nothing behind."""
    fill = "mkdir -p /mnt/full && mount -t tmpfs -o size=64k full /mnt/full && python3 /usr/sbin/ipsec.pyz"
    ran = gateway.run(["unshare", "-m", "sh", "-c", fill.replace("/usr/sbin/ipsec.pyz", PYZ)
                       + " --nssdir /mnt/full initnss; echo status $?; ls -A /mnt/full"])
    assert "status 4" in ran.stdout and ran.stdout.rstrip().endswith("status 4"), ran.stdout
    assert ran.stderr == "ipsec: /mnt/full: No space left on device (the database is unchanged)\n"
