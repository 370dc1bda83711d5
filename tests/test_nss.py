"""Section 7 without NSS's tools: DER, trust, the texts of keys, what is put in place and what is swept away."""

from __future__ import annotations

import calendar
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

import ipsec
from ipsec import Failure, Host, NssDatabase, der, der_items, parse_certificate, trust_text


def name(text: bytes) -> bytes:
    return der(0x30, der(0x31, der(0x30, der(6, b"\x55\x04\x03"), der(12, text))))


def certificate(subject: bytes, is_ca: bool | None, number: int = 1, until: bytes = b"491231235959Z",
                key: bytes = b"\x2a\x03", names: bytes = b"") -> bytes:
    """A version 3 certificate; `is_ca` None: without basic constraints. `key` is the algorithm of its key, `names` the
    content of subjectAltName."""
    extension = b"" if is_ca is None else der(
        0x30, der(6, b"\x55\x1d\x13"), der(1, b"\xff"), der(4, der(0x30, der(1, b"\xff") if is_ca else b"")))
    if names:
        extension += der(0x30, der(6, b"\x55\x1d\x11"), der(4, der(0x30, names)))
    tbs = der(0x30, der(0xa0, der(2, b"\2")), der(2, bytes((number,))), der(0x30, der(6, b"\x2a\x03")), name(subject),
              der(0x30, der(0x17, b"200101000000Z"), der(0x17, until)), name(subject),
              der(0x30, der(0x30, der(6, key)), der(3, b"\0\1")), der(0xa3, der(0x30, extension)))
    return der(0x30, tbs, der(0x30, der(6, b"\x2a\x03")), der(3, b"\0\1"))


def test_certificate() -> None:
    parsed = parse_certificate(certificate("Ünï  code".encode(), True))
    assert (parsed.subject, parsed.is_ca, parsed.expires) == ("CN=Ünï  code", True, 2524607999)
    assert not parse_certificate(certificate(b"This Is a CA trap", False)).is_ca
    assert not parse_certificate(certificate(b"Is a CA", None)).is_ca


@pytest.mark.parametrize("year,expires", [(b"500101000000Z", -631152000), (b"700101000000Z", 0)])
def test_two_digit_years(year: bytes, expires: int) -> None:
    assert parse_certificate(certificate(b"x", True, until=year)).expires == expires


def test_time_of_a_certificate_is_that_of_the_calendar() -> None:
    chance = random.Random(1)
    for seconds in [0, 951782400, 951868799, 4102444800, *(chance.randrange(-10**10, 2 * 10**11) for _ in range(2000))]:
        moment = time.gmtime(seconds)
        if 0 < moment.tm_year < 10000:
            text = f"{moment.tm_year:04}{moment.tm_mon:02}{moment.tm_mday:02}{time.strftime('%H%M%S', moment)}Z"
            assert ipsec.der_time(text, False) == calendar.timegm(moment) == seconds
    with pytest.raises(ValueError):
        ipsec.der_time("20261301000000Z", False)


def test_cut_certificates_are_errors() -> None:
    whole = certificate(b"x", True)
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            parse_certificate(whole[:length])
        with pytest.raises(ValueError):
            ipsec.key_and_names(whole[:length])


NAMES = der(0x82, b"gw.example.org") + der(0x81, b"a@example.org") + der(0x87, bytes((192, 0, 2, 1))) + der(
    0x87, bytes.fromhex("20010db8000000000000000000000001")) + der(0xa4, name(b"x"))


def test_the_kind_of_key_and_the_names_of_a_certificate() -> None:
    for number, kind in (("2a864886f70d010101", "RSA"), ("2a864886f70d01010a", "RSA"), ("2a8648ce3d0201", "ECDSA"),
                         ("2b6570", "")):
        assert ipsec.key_and_names(certificate(b"x", True, key=bytes.fromhex(number), names=NAMES)) == (
            kind, ["@gw.example.org", "a@example.org", "192.0.2.1", "2001:db8::1"])
        assert ipsec.key_and_names(certificate(b"x", None, key=bytes.fromhex(number))) == (kind, [])


@pytest.mark.parametrize("parse", [parse_certificate, ipsec.key_and_names])
def test_changed_certificates_never_crash(parse: Callable[[bytes], object]) -> None:
    whole = certificate(b"x", True, names=NAMES)
    for place in range(len(whole)):
        for value in (0, 0x7f, 0x80, 0x84, 0xff):
            try:
                parse(whole[:place] + bytes((value,)) + whole[place + 1:])
            except ValueError:
                continue


def test_long_elements() -> None:
    for size in (0, 127, 128, 255, 256, 70000):
        data = der(4, b"x" * size)
        assert [end - start for _, start, end in der_items(data)] == [size]


@pytest.mark.parametrize("values,text", [
    ((2, 2, 2, 2), "CT,C,C"), ((10, 10, 10, 10), "p,p,p"), ((11, 11, 3, 3), "c,,"), ((3, 3, 2, 10), ",C,p"),
    ((1, 1, 1, 1), "P,P,P"), ((2, 3, 3, 3), "C,,"), ((3, 2, 3, 3), "T,,"),
    ((2, 11, 3, 3), "C,,"), ((11, 2, 3, 3), "T,,"), ((2, 1, 3, 3), "CP,,"), ((1, 2, 3, 3), "TP,,"),
    ((10, 2, 3, 3), "pT,,")])
def test_trust(values: tuple[int, ...], text: str) -> None:
    """The texts are those of certutil -L, for example for a certificate that was made with -t C,, or -t PT,,."""
    assert trust_text([(0xce534350 + value).to_bytes(4, "big") for value in values]) == text


@pytest.mark.parametrize("data, password", [
    (b"", ""), (b"one\ntwo\n", "one"), (b"one\r\n", "one"), ("a\fb\x1c\u2028c\n".encode(), "a\fb\x1c\u2028c")])
def test_only_a_line_feed_ends_a_password(tmp_path: Path, data: bytes, password: str) -> None:
    (tmp_path / "password").write_bytes(data)
    assert ipsec.password_of_file(Host({}), f"{tmp_path}/password") == password


def test_no_trust_value() -> None:
    assert trust_text([None] * 4) == ",,"


@pytest.mark.parametrize("system,package", [
    ("ID=debian", "libnss3-tools"), ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"", "libnss3-tools"),
    ("ID=fedora", "nss-tools"), ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", "nss-tools"),
    ("ID=opensuse-leap", "mozilla-nss-tools"), ("ID=alpine", "nss-tools"), ("ID=arch", "nss"),
    ("ID=openwrt", "nss-utils"), ("ID=other", "NSS's tools")])
def test_package(tmp_path: Path, system: str, package: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(system + "\n")
    assert package in ipsec.nss_tools_hint(Host(root=str(tmp_path)))


def test_password_file_for_tools(tmp_path: Path) -> None:
    """Both forms of nsspassword; the password may have a colon."""
    host = Host({"IPSEC_CONFDDIR": str(tmp_path)})
    for text, want in (("NSS Certificate DB:a:b\nhsm:1234\n", "a:b"), ("plain\n", "plain")):
        (tmp_path / "nsspassword").write_text(text)
        base = NssDatabase(host, str(tmp_path))
        assert base.password == want
        assert base.secret().decode().splitlines()[-1] == want
        assert f"NSS FIPS 140-2 Certificate DB:{want}" in base.secret().decode()
    (tmp_path / "nsspassword").write_text("NSS Certificate DB:x\nhsm:1234\n")
    assert b"hsm:1234\n" in NssDatabase(host, str(tmp_path)).secret()


def database(path: Path, mark: str) -> None:
    """A stand-in for a database, whole."""
    path.mkdir(exist_ok=True)
    for file, table in (("cert9.db", "nssPublic"), ("key4.db", "nssPrivate")):
        base = sqlite3.connect(path / file)
        base.execute(f"CREATE TABLE {table} (id PRIMARY KEY, a0, a3)")
        base.execute(f"INSERT INTO {table} VALUES (1, x'00000009', ?)", (mark,))
        base.commit()
        base.close()
    (path / "pkcs11.txt").write_text(mark)


def marks(path: Path) -> set[str]:
    contents = {(path / "pkcs11.txt").read_text()}
    for file, table in (("cert9.db", "nssPublic"), ("key4.db", "nssPrivate")):
        base = sqlite3.connect(path / file)
        contents.update(row[0] for row in base.execute(f"SELECT a3 FROM {table}"))
        base.close()
    return contents


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_killed_commit_is_finished(tmp_path: Path, done: int) -> None:
    """Whatever part of a commit was put in place before we were killed, the next command does the rest."""
    database(tmp_path / "db", "old")
    database(tmp_path / "db" / ipsec.NSS_COMMIT, "new")
    for file in ipsec.NSS_FILES[:done]:
        os.rename(tmp_path / "db" / ipsec.NSS_COMMIT / file, tmp_path / "db" / file)
    with NssDatabase(Host({}), str(tmp_path / "db")).lock():
        assert marks(tmp_path / "db") == {"new"}
    assert sorted(os.listdir(tmp_path / "db")) == sorted(ipsec.NSS_FILES)


def test_open_database_sees_the_change(tmp_path: Path) -> None:
    """A pluto that runs keeps its database open: the file is changed, not replaced."""
    database(tmp_path / "db", "old")
    reader = sqlite3.connect(tmp_path / "db/cert9.db")
    assert list(reader.execute("SELECT a3 FROM nssPublic")) == [("old",)]
    base = NssDatabase(Host({}), str(tmp_path / "db"))
    with base.lock():
        base.build(lambda path: database(Path(path), "new"))
    assert list(reader.execute("SELECT a3 FROM nssPublic")) == [("new",)]
    reader.close()


def test_locked_database_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program keeps a transaction open: the change fails in limited time, and the next command finishes it."""
    monkeypatch.setattr(ipsec, "SNAPSHOT_TIME", 0.01)
    database(tmp_path / "db", "old")
    other = sqlite3.connect(tmp_path / "db/cert9.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    base = NssDatabase(Host({}), str(tmp_path / "db"))
    with base.lock(), pytest.raises(Failure, match="another program has locked the database") as caught:
        base.build(lambda path: database(Path(path), "new"))
    assert caught.value.hint == "the next command for this database finishes the change"
    with pytest.raises(OSError):
        ipsec.snapshot(str(tmp_path / "db/cert9.db"), str(tmp_path / "copy"))
    assert list(other.execute("SELECT a3 FROM nssPublic")) == [("old",)]
    other.close()
    with base.lock():
        assert marks(tmp_path / "db") == {"new"}


def test_killed_build_is_removed(tmp_path: Path) -> None:
    database(tmp_path / "db", "old")
    database(tmp_path / "db/.nss-build.12.ab", "half")
    with NssDatabase(Host({}), str(tmp_path / "db")).lock():
        assert marks(tmp_path / "db") == {"old"}
    assert sorted(os.listdir(tmp_path / "db")) == sorted(ipsec.NSS_FILES)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody can write, with a database of root's and one beside it that is precious."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    for place in ("db", "precious"):
        (path / place).mkdir()
        database(path / place, "old")
    (path / "db").chmod(0o777)
    (path / "precious").chmod(0o755)
    yield path
    shutil.rmtree(path)


# What another user puts beside a database
STRAYS = {
    "a link to a directory": "ln -s ../precious {0}",
    "a link to nothing": "ln -s nowhere {0}",
    "a file": "echo x >{0}",
    "a pipe": "mkfifo {0}",
    "a directory": "mkdir {0}; cp ../precious/* {0}; echo evil >{0}/pkcs11.txt",
    "a directory of links": "mkdir {0}; for f in cert9.db key4.db pkcs11.txt; do ln -s ../../precious/$f {0}/; done",
    "an empty directory": "mkdir {0}",
}


@pytest.mark.parametrize("sticky", [0, 0o1000], ids=["", "sticky"])
@pytest.mark.parametrize("place", [".nss-commit", ".nss-build.1.ab"])
@pytest.mark.parametrize("stray", STRAYS)
def test_what_another_user_puts_there_is_not_followed_and_in_nobodys_way(shared: Path, stray: str, place: str,
                                                                         sticky: int) -> None:
    (shared / "db").chmod(0o777 | sticky)
    subprocess.run(["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "sh", "-ec",
                    STRAYS[stray].format(place)], cwd=shared / "db", check=True)
    planted = os.lstat(shared / "db" / place).st_ino
    inside = sorted((shared / "db" / place).glob("*"))
    for mark in ("new", "newer"):
        base = NssDatabase(Host({}), str(shared / "db"))
        with base.lock():
            base.build(lambda path, mark=mark: database(Path(path), mark))
        assert marks(shared / "db") == {mark} and marks(shared / "precious") == {"old"}
    (kept,) = [path for path in (shared / "db").iterdir() if path.lstat().st_ino == planted]
    assert kept.name == place or kept.name.startswith(ipsec.NSS_STRAY)
    assert [path.name for path in inside] == sorted(path.name for path in kept.glob("*"))
    assert sorted(os.listdir(shared / "db")) == sorted((*ipsec.NSS_FILES, kept.name))


@pytest.mark.parametrize("name", ipsec.NSS_FILES[1:])
def test_a_link_of_another_user_in_place_of_a_file_is_replaced(shared: Path, name: str) -> None:
    subprocess.run(["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "sh", "-ec",
                    f"rm -f {name}; ln -s ../precious/{name} {name}"], cwd=shared / "db", check=True)
    base = NssDatabase(Host({}), str(shared / "db"))
    with base.lock():
        base.build(lambda path: database(Path(path), "new"))
    assert marks(shared / "db") == {"new"} and marks(shared / "precious") == {"old"}
    assert not (shared / "db" / name).is_symlink()


MODULES = {
    "a link": ("as_other", "rm -f pkcs11.txt; ln -s ../precious/pkcs11.txt pkcs11.txt", "it belongs to user 61234"),
    "a file": ("as_other", "rm -f pkcs11.txt; echo evil >pkcs11.txt", "it belongs to user 61234"),
    "a file of root behind root's link": ("as_root", "mv pkcs11.txt x; ln -s x pkcs11.txt", ""),
    "a file that all can write": ("as_root", "chmod 666 pkcs11.txt", "every user can change the file"),
    "no file": ("as_root", "rm pkcs11.txt", ""),
}


@pytest.mark.parametrize("kind", MODULES)
def test_root_does_not_use_modules_that_another_user_chose(shared: Path, kind: str) -> None:
    who, script, problem = MODULES[kind]
    other = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"] if who == "as_other" else []
    subprocess.run([*other, "sh", "-ec", script], cwd=shared / "db", check=True)
    base = NssDatabase(Host({}), str(shared / "db"))
    if not problem:
        with base.lock():
            return
    for change in (base.lock, lambda: base.tool("certutil", "-L")):
        pattern = f"/db/pkcs11.txt: {problem}.*libraries that NSS would load as root"
        with pytest.raises(Failure, match=pattern) as caught:
            change()
        assert "\n" not in str(caught.value)
    assert (shared / "db").stat().st_mode & 0o7777 == 0o777
    NssDatabase(Host({}, root=str(shared)), "/db").check_modules()  # a mounted disk is only read, without NSS's tools


def test_nobody_else_can_exchange_anything_during_a_change(shared: Path) -> None:
    """In a directory that every user may write to, without the sticky bit; afterwards its mode is as before."""
    tried = []

    def work(path: str) -> None:
        for script in ("mv .nss-build.* gone", "rm -f cert9.db", "mv cert9.db x", ": >cert9.db-journal"):
            tried.append(subprocess.run(["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "sh", "-ec",
                                         script], cwd=shared / "db", stderr=subprocess.DEVNULL).returncode)
        database(Path(path), "new")

    base = NssDatabase(Host({}), str(shared / "db"))
    with base.lock():
        base.build(work)
    assert all(tried) and len(tried) == 4 and marks(shared / "db") == {"new"}
    assert (shared / "db").stat().st_mode & 0o7777 == 0o777
    with pytest.raises(InterruptedError), base.lock():
        raise InterruptedError
    assert (shared / "db").stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize("mode", [0o700, 0o770, 0o1777])
def test_other_directories_keep_their_mode(shared: Path, mode: int) -> None:
    (shared / "db").chmod(mode)
    with NssDatabase(Host({}), str(shared / "db")).lock():
        assert (shared / "db").stat().st_mode & 0o7777 == mode


def test_a_build_that_another_user_exchanges_is_not_put_in_place(shared: Path) -> None:
    os.chown(shared / "db", 61234, 61234)  # the owner of the directory can do that at any time

    def work(path: str) -> None:
        database(Path(path), "new")
        script = "for b in .nss-build.*; do mv $b gone; mkdir $b; cp ../precious/* $b; done"
        subprocess.run(["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "sh", "-ec", script],
                       cwd=shared / "db", check=True)

    base = NssDatabase(Host({}), str(shared / "db"))
    with base.lock(), pytest.raises(Failure, match="another user replaced"):
        base.build(work)
    for place in ("db", "precious"):
        assert marks(shared / place) == {"old"}


def test_another_user_than_root_leaves_the_commit_of_root(shared: Path) -> None:
    database(shared / "db/.nss-commit", "new")
    (shared / "db/.nss-commit").chmod(0o700)
    os.seteuid(61234)
    try:
        with pytest.raises(Failure, match="a killed command of root left this directory .run this command as root"):
            NssDatabase(Host({}), str(shared / "db")).lock()
    finally:
        os.seteuid(0)
    with NssDatabase(Host({}), str(shared / "db")).lock():
        assert marks(shared / "db") == {"new"}


def test_failed_build_changes_nothing(tmp_path: Path) -> None:
    database(tmp_path / "db", "old")
    base = NssDatabase(Host({}), str(tmp_path / "db"))

    def work(path: str) -> None:
        (Path(path) / "cert9.db").write_text("half")
        raise OSError(28, "No space left on device")

    with base.lock(), pytest.raises(Failure, match="No space") as caught:
        base.build(work)
    assert caught.value.status == ipsec.NSS_FAILURE
    assert marks(tmp_path / "db") == {"old"}
    assert sorted(os.listdir(tmp_path / "db")) == sorted(ipsec.NSS_FILES)


def test_other_program_wrote_meanwhile(tmp_path: Path) -> None:
    database(tmp_path / "db", "old")
    base = NssDatabase(Host({}), str(tmp_path / "db"))

    def work(path: str) -> None:
        database(Path(path), "new")
        (tmp_path / "db/pkcs11.txt").write_text("foreign")

    with base.lock(), pytest.raises(Failure, match="another program changed the database at the same time"):
        base.build(work)
    assert marks(tmp_path / "db") == {"old", "foreign"}


@pytest.mark.parametrize("damage,told", [
    (lambda p: (p / "key4.db").unlink(), "key4.db: No such file"), (lambda p: (p / "cert9.db").write_bytes(b""), "not"),
    (lambda p: (p / "key4.db").write_bytes(b"x" * 9000), "not an NSS database"),
    (lambda p: (p / "cert9.db").write_bytes(b"SQLite format 3\0" + b"x" * 9000), "cert9.db")])
def test_broken_database(tmp_path: Path, damage: object, told: str) -> None:
    database(tmp_path / "db", "old")
    damage(tmp_path / "db")  # type: ignore[operator]
    with pytest.raises(Failure, match=told) as caught:
        ipsec.check_database(NssDatabase(Host({}), str(tmp_path / "db")))
    assert caught.value.status == ipsec.NSS_FAILURE
    assert "\n" not in str(caught.value)


def test_directories_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for bad in ("missing", "file", "dangling"):
        with pytest.raises(Failure, match="missing or permission denied") as caught:
            ipsec.check_database(NssDatabase(Host({}), str(tmp_path / bad)))
        assert caught.value.status == ipsec.ERROR
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_second_instance_takes_nothing(tmp_path: Path) -> None:
    """checknss --nssdir of a second instance leaves the main database where it is."""
    database(tmp_path / "etc", "main")
    database(tmp_path / "second", "second")
    ipsec.check_database(NssDatabase(Host({"IPSEC_CONFDDIR": str(tmp_path / "etc")}), str(tmp_path / "second")))
    assert marks(tmp_path / "etc") == {"main"}
    assert marks(tmp_path / "second") == {"second"}


def test_move_is_finished_when_killed_before_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "DEFAULT_NSSDIRS", (str(tmp_path / "new"), str(tmp_path / "old")))
    database(tmp_path / "old", "one")
    (tmp_path / "new").mkdir()
    host = Host({"IPSEC_CONFDDIR": str(tmp_path / "old")})
    base = NssDatabase(host, str(tmp_path / "new"))
    monkeypatch.setattr(ipsec, "remove_database", lambda base: None)
    ipsec.check_database(base)
    assert marks(tmp_path / "old") == marks(tmp_path / "new") == {"one"}
    monkeypatch.undo()
    monkeypatch.setattr(ipsec, "DEFAULT_NSSDIRS", (str(tmp_path / "new"), str(tmp_path / "old")))
    ipsec.check_database(base)
    assert os.listdir(tmp_path / "old") == []
    assert marks(tmp_path / "new") == {"one"}


def test_an_old_file_that_stays_after_a_move_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "DEFAULT_NSSDIRS", (str(tmp_path / "new"), str(tmp_path / "old")))
    database(tmp_path / "old", "one")
    (tmp_path / "new").mkdir()

    def remove(host: Host, name: str) -> None:
        raise OSError(1, "Operation not permitted", name)

    monkeypatch.setattr(Host, "remove", remove)
    with pytest.raises(Failure, match="old: Operation not permitted") as caught:
        ipsec.check_database(NssDatabase(Host({"IPSEC_CONFDDIR": str(tmp_path / "old")}), str(tmp_path / "new")))
    assert "was moved" in caught.value.hint and caught.value.status == ipsec.NSS_FAILURE
    assert marks(tmp_path / "new") == {"one"}


def test_the_damage_that_sqlite_finds_is_said(tmp_path: Path) -> None:
    """Also damage that SQLite describes in one line, without a line that names the database."""
    base = sqlite3.connect(tmp_path / "cert9.db")
    base.executescript("CREATE TABLE nssPublic (id, a0, a3); INSERT INTO nssPublic VALUES (1, x'01', NULL)")
    nss = NssDatabase(Host({}), str(tmp_path))
    assert nss.damage("cert9.db") == ""
    base.executescript("PRAGMA writable_schema=1; UPDATE sqlite_master SET sql = "
                       "'CREATE TABLE nssPublic (id, a0, a3 NOT NULL)'; PRAGMA writable_schema=0")
    base.close()
    assert nss.damage("cert9.db") == "is damaged: NULL value in nssPublic.a3"


@pytest.mark.parametrize("flags, is_full", [(0, True), (os.ST_RDONLY, False)])
def test_a_disk_that_is_only_read_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int,
                                                     is_full: bool) -> None:
    """A read-only image, such as squashfs, has no free blocks."""
    values = os.statvfs(tmp_path)
    without_room = os.statvfs_result((*values[:3], 0, 0, *values[5:8], flags, *values[9:]))
    monkeypatch.setattr(os, "statvfs", lambda path: without_room)
    assert NssDatabase(Host({}), str(tmp_path)).is_full(str(tmp_path)) == is_full


@pytest.mark.parametrize("words,told", [
    (["newhostkey", "--keytype", "rsa", "--curve", "x"], "mutually exclusive"),
    (["newhostkey", "--keytype", "ecdsa", "--bits", "3"], "mutually exclusive"),
    (["newhostkey", "junk"], "unexpected argument"), (["initnss", "--nssdir"], "needs a value"),
    (["--dry-run", "initnss"], "--dry-run is not an option of `ipsec initnss`"), (["import"], "is missing"),
    (["certutil", "-L", "-d", "x"], "not accepted"), (["modutil", "-list", "-dbdir", "x"], "not accepted")])
def test_wrong_words(words: list[str], told: str) -> None:
    with pytest.raises(Failure, match=told) as caught:
        ipsec.dispatch(words)
    assert caught.value.status == ipsec.USAGE


def test_what_cannot_be_read_is_not_called_broken(tmp_path: Path) -> None:
    """Nobody is told to wipe what only root may read, or what is not there."""
    base = NssDatabase(Host({}), str(tmp_path))
    with pytest.raises(Failure, match="No such file") as caught:
        base.check()
    assert caught.value.hint == "ipsec initnss creates a new database"
    assert base.broken("key4.db", PermissionError(13, "Permission denied")).hint == "run it as root"


@pytest.mark.parametrize(("name", "words", "given"), [
    ("certutil", ["-F", "-n", "x"], True), ("certutil", ["-K"], True), ("certutil", ["-L", "-f", "x"], False),
    ("pk12util", ["-o", "x"], True), ("pk12util", ["-K", "x"], False)])
def test_the_password_goes_to_the_tool_that_was_given_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                                           words: list[str], given: bool) -> None:
    (tmp_path / "nsspassword").write_text("NSS Certificate DB:hunter2\n")
    monkeypatch.setattr(Host, "resolve", lambda self, program, hint="": program)
    seen: list[str] = []
    monkeypatch.setattr(Host, "exec", lambda self, path, argv, **more: seen.extend(argv))
    entry = ipsec.COMMANDS[name]
    entry.function(Host({"IPSEC_CONFDDIR": str(tmp_path)}), entry.parse(words))
    assert any(word.startswith("/proc/self/fd/") for word in seen) == given and "hunter2" not in str(seen)


def test_smallest_host_takes_a_database_by_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sqlite3 nor certutil: pluto must start all the same."""
    database(tmp_path / "db", "old")
    for module in ("sqlite3", "_sqlite3"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(Host, "which", lambda self, program: None)
    with pytest.raises(ipsec.Missing):
        NssDatabase(Host({}), str(tmp_path / "db")).keys()
    ipsec.check_database(NssDatabase(Host({}), str(tmp_path / "db")))
    (tmp_path / "db/key4.db").write_text("none")
    with pytest.raises(Failure, match="not an NSS database"):
        ipsec.check_database(NssDatabase(Host({}), str(tmp_path / "db")))


@pytest.mark.parametrize(("version", "exists", "directory"), [
    ("3.32", "var/lib/ipsec/nss", "/etc/ipsec.d"), ("3.25", "", "/etc/ipsec.d"),
    ("4.0", "etc/ipsec.d", "/var/lib/ipsec/nss"), ("5.2", "", "/var/lib/ipsec/nss"),
    ("", "etc/ipsec.d", "/var/lib/ipsec/nss"),
])
def test_the_release_decides_where_the_database_is(tmp_path: Path, version: str, exists: str, directory: str) -> None:
    """The directories that happen to exist do not decide."""
    (tmp_path / "root" / exists).mkdir(parents=True)
    (tmp_path / "root/usr/sbin").mkdir(parents=True)
    (tmp_path / "root/usr/sbin/ipsec").write_text(f'#!/bin/sh\nexport IPSEC_VERSION="{version}"\n' if version else "")
    assert Host({}, root=str(tmp_path / "root")).nssdir == directory
    whack = tmp_path / "whack"
    whack.write_text(f"#!/bin/sh\necho Libreswan {version}\n")
    whack.chmod(0o755)
    env = {"IPSEC_EXECDIR": str(tmp_path), "IPSEC_SBINDIR": str(tmp_path)}
    assert Host(env).nssdir == directory
    assert Host({**env, "IPSEC_NSSDIR": "/elsewhere"}).nssdir == "/elsewhere"


def test_nssdir_of_the_configuration_is_where_the_database_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text("include /etc/more\n")
    (tmp_path / "etc/more").write_text("config setup\n\tnssdir=sql:/etc/pluto/nss\n")
    host = Host({}, root=str(tmp_path))
    assert NssDatabase(host).directory == "/etc/pluto/nss"
    assert NssDatabase(host, "/second").directory == "/second"
    assert NssDatabase(Host({"IPSEC_NSSDIR": "/given"}, root=str(tmp_path))).directory == "/given"
    assert NssDatabase(Host({}, root=str(tmp_path), nssdir="/given")).directory == "/given"
    NssDatabase(host).make_directory()  # makes no directory of the configuration, whose name may be misspelt
    with pytest.raises(Failure, match="/etc/pluto/nss"):
        NssDatabase(host).lock()
    assert not (tmp_path / "etc/pluto").exists()


def test_a_configuration_on_standard_input_is_left_for_the_program_that_reads_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host({}, root=str(tmp_path))
    host.conf = "-"
    monkeypatch.setattr(host, "stdin", lambda limit: pytest.fail("standard input was read"))
    monkeypatch.setattr(ipsec.MOUNTS, "that_may_hang", lambda: frozenset({str(tmp_path)}))
    ipsec.check_configuration(host)
    assert NssDatabase(host).directory == host.nssdir


@pytest.mark.parametrize("name", ["{}/none", "{}/none/", "sql:{}/none"])
def test_a_directory_that_an_option_names_must_exist(tmp_path: Path, name: str) -> None:
    (tmp_path / "ipsec.conf").write_text("")
    host = Host({}, nssdir=name.format(tmp_path))
    host.conf = str(tmp_path / "ipsec.conf")
    with pytest.raises(Failure, match=f'destination directory "{tmp_path}/none" is missing'):
        ipsec.check_nss(host)
    host = Host({})
    host.conf = str(tmp_path / "ipsec.conf")
    (tmp_path / "ipsec.conf").write_text(f"config setup\n\tnssdir={tmp_path}/none\n")
    ipsec.check_nss(host)  # pluto reports it


def test_ipsecdir_of_the_configuration_is_where_the_password_is(tmp_path: Path) -> None:
    for name, password in (("ipsec.d", "wrong"), ("other", "right")):
        (tmp_path / "etc" / name).mkdir(parents=True)
        (tmp_path / "etc" / name / "nsspassword").write_text(f"NSS Certificate DB:{password}\n")
    assert NssDatabase(Host({}, root=str(tmp_path))).password == "wrong"
    (tmp_path / "etc/ipsec.conf").write_text("config setup\n\tipsecdir=/etc/other\n")
    host = Host({}, root=str(tmp_path))
    assert NssDatabase(host).password == "right" and ipsec.password_file(host) == "/etc/other/nsspassword"


@pytest.mark.parametrize(("code", "directory"), [
    (b"... /etc/ipsec.d /var/lib/ipsec/nss ...", "/var/lib/ipsec/nss"), (b"... /etc/ipsec.d ...", "/etc/ipsec.d")])
def test_a_pluto_that_was_built_for_the_old_directory(tmp_path: Path, code: bytes, directory: str) -> None:
    for name in ("whack", "pluto"):
        (tmp_path / name).write_bytes(b"\x7fELF" + bytes(1 << 17) + code)
    assert Host({"IPSEC_EXECDIR": str(tmp_path)}).nssdir == directory


def test_a_missing_default_directory_is_made_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = str(tmp_path / "lib/ipsec/nss")
    monkeypatch.setattr(ipsec, "DEFAULT_NSSDIRS", (default, "/etc/ipsec.d"))
    host = Host({"IPSEC_EXECDIR": str(tmp_path), "IPSEC_SBINDIR": str(tmp_path)})
    NssDatabase(host, str(tmp_path / "misspelt")).make_directory()
    assert os.listdir(tmp_path) == []
    for _ in range(2):
        NssDatabase(host).make_directory()
    directories = default, f"{tmp_path}/lib/ipsec", f"{tmp_path}/lib"
    assert [os.stat(name).st_mode & 0o777 for name in directories] == [0o700] * 3
    named = Host({"IPSEC_NSSDIR": str(tmp_path / "named")})
    NssDatabase(named).make_directory()
    assert not (tmp_path / "named").exists()


@pytest.mark.parametrize(("message", "code", "status", "hint"), [
    ("pk12util: PKCS12 decode not verified: SEC_ERROR_BAD_PASSWORD", "SEC_ERROR_BAD_PASSWORD", 13, "--password-file"),
    ("pk12util: PKCS12 decoding failed: SEC_ERROR_BAD_DER", "SEC_ERROR_BAD_DER", 12, "copy the file again"),
    ("pk12util: failed: SEC_ERROR_PKCS12_UNSUPPORTED_MAC_ALGORITHM", "SEC_ERROR_PKCS12_UNSUPPORTED_MAC_ALGORITHM", 11,
     "-macalg"),
    ("pk12util: failed: SEC_ERROR_PKCS12_DUPLICATE_DATA", "SEC_ERROR_PKCS12_DUPLICATE_DATA", 14, ""),
    ("pk12util: failed: SEC_ERROR_NO_MEMORY", "SEC_ERROR_NO_MEMORY", 4, "the database is unchanged"),
    ("pk12util: killed", "", 4, "the database is unchanged"),
])
def test_a_file_is_corrupt_only_if_nss_says_so(message: str, code: str, status: int, hint: str) -> None:
    failure = ipsec.import_failure("x.p12", ipsec.NssTool(message, code))
    assert failure.status == status and hint in failure.hint
    assert ("corrupt" in failure.message) == (status == 12)


@pytest.mark.parametrize(("size", "status", "message"), [
    ("3192", 1, "not a multiple of 16"), ("2048", 2, "not a valid RSA key size"), ("x", 2, "not a valid RSA key size"),
    pytest.param("1" * 5000, 2, "not a valid RSA key size", id="5000 digits")])
def test_sizes_of_rsa_keys(size: str, status: int, message: str) -> None:
    for words in (["newhostkey", "--bits", size], ["rsasigkey", size]):
        entry = ipsec.COMMANDS[words[0]]
        with pytest.raises(Failure, match=message) as caught:
            entry.function(Host({}), entry.parse(words[1:]))
        assert caught.value.status == status


def test_an_ecdsa_key_needs_a_curve_that_pluto_has() -> None:
    entry = ipsec.COMMANDS["ecdsasigkey"]
    with pytest.raises(Failure, match="brainpool") as caught:
        entry.function(Host({}), entry.parse(["brainpoolP256r1"]))
    assert caught.value.status == ipsec.USAGE


def test_the_hint_without_libreswan(tmp_path: Path) -> None:
    env = {"IPSEC_EXECDIR": str(tmp_path), "IPSEC_RUNDIR": str(tmp_path)}
    with pytest.raises(ipsec.NoPluto) as caught:
        ipsec.Conversation(Host(env), 1.0)
    assert caught.value.hint.startswith("libreswan is not installed (") and "install libreswan" in caught.value.hint
    (tmp_path / "pluto").write_text("")
    with pytest.raises(ipsec.NoPluto) as caught:
        ipsec.Conversation(Host(env), 1.0)
    assert caught.value.hint == "start it with: ipsec start"


ENDLESS = "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more) "


@pytest.mark.parametrize("made, told", [
    (f"CREATE VIEW nssPublic AS {ENDLESS} SELECT n AS id, x'00' AS a0 FROM more WHERE n < 0", "not read within 0.2 s"),
    (f"CREATE VIEW nssPublic AS {ENDLESS} SELECT n AS id, x'00' AS a0 FROM more", "more than 100000 objects"),
    ("CREATE VIEW nssPublic AS SELECT 1 AS id, zeroblob(900000000) AS a0", "too large"),
    ("CREATE TABLE nssPublic (id, a0, a3); INSERT INTO nssPublic VALUES (1, x'00000001', 7)", "a value that"),
    ("CREATE TABLE nssPublic (id, a0, a3); INSERT INTO nssPublic VALUES (1, x'01', CAST(x'ff' AS TEXT))",
     "a value that"),
], ids=["computes", "rows", "blob", "number", "text"])
def test_what_is_no_table_of_nss_is_a_broken_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str,
                                                      told: str) -> None:
    """One line, bounded in time and memory."""
    base = sqlite3.connect(tmp_path / "cert9.db")
    base.executescript(made)
    base.close()
    monkeypatch.setattr(ipsec, "NSS_READ_TIME", 0.2 if "0.2" in told else 60.0)
    columns = ("a0", "a3") if "a3" in made else ("a0",)
    question = f"SELECT {', '.join(columns)} FROM nssPublic"
    nss = NssDatabase(Host({}), str(tmp_path))
    with pytest.raises(ipsec.BrokenDatabase) as caught:
        nss.rows("cert9.db", "nssPublic", columns) if "a3" in made else nss._ask("cert9.db", question)
    assert told in caught.value.message and "\n" not in caught.value.message


def test_a_database_that_is_read_slowly_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sqlite3.connect(tmp_path / "cert9.db")
    base.execute("CREATE TABLE nssPublic (id, a0)")
    base.executemany("INSERT INTO nssPublic VALUES (?, x'00')", ((number,) for number in range(20_000)))
    base.commit()
    base.close()
    monkeypatch.setattr(ipsec, "NSS_READ_TIME", 0.0)
    with pytest.raises(ipsec.SlowDatabase) as caught:
        NssDatabase(Host({}), str(tmp_path)).damage("cert9.db")
    assert "rm " not in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["cert9.db", "key4.db"])
@pytest.mark.parametrize("made", [
    f"CREATE VIEW metaData AS {ENDLESS} SELECT n AS id, x'00' AS item1 FROM more",
    f"CREATE VIEW endless AS {ENDLESS} SELECT n FROM more; CREATE TRIGGER slow AFTER INSERT ON {{table}} "
    "BEGIN SELECT count(*) FROM endless; END",
], ids=["view", "trigger"])
def test_a_view_or_trigger_that_only_the_tools_of_nss_would_run(tmp_path: Path, name: str, made: str) -> None:
    """They would run for ever: the file is named before."""
    database(tmp_path, "x")
    nss = NssDatabase(Host({}), str(tmp_path))
    assert not nss.contains(name, b"CREATE VIEW ", b"CREATE TRIGGER ")
    base = sqlite3.connect(tmp_path / name)
    base.executescript(made.format(table="nssPublic" if name == "cert9.db" else "nssPrivate"))
    base.close()
    assert nss.contains(name, b"CREATE VIEW ", b"CREATE TRIGGER ")  # the question of verify
    assert nss.damage(name).startswith("is damaged: it contains a ")
    with pytest.raises(ipsec.BrokenDatabase, match=f"/{name}: it contains a (view|trigger), which NSS does not write"):
        nss.check()


def test_a_database_of_8_gib_is_not_read(tmp_path: Path) -> None:
    database(tmp_path, "x")
    with open(tmp_path / "cert9.db", "r+b") as stream:
        stream.truncate(8 << 30)
    with pytest.raises(Failure, match="larger than 256 MiB, not read"):
        NssDatabase(Host({}), str(tmp_path)).certificates()


@pytest.mark.parametrize("modulus, exponent", [("00", "010001"), ("c1", "0000"), ("c1", "")])
def test_an_rsa_key_without_its_numbers_is_a_broken_database(tmp_path: Path, modulus: str, exponent: str) -> None:
    base = sqlite3.connect(tmp_path / "key4.db")
    base.executescript("CREATE TABLE nssPrivate (id, a0, a100, a102, a120, a122); INSERT INTO nssPrivate VALUES "
                       f"(1, x'00000003', x'00000000', x'01', x'{modulus}', x'{exponent}')")
    base.close()
    with pytest.raises(ipsec.BrokenDatabase, match="without a modulus or an exponent"):
        NssDatabase(Host({}), str(tmp_path)).keys()


@pytest.mark.parametrize(("gateway", "precedence", "numbers"), [
    ("", "10", "10 0 2 ."), ("192.0.2.1", "0", "0 1 2 192.0.2.1"), ("2001:db8::1", "255", "255 2 2 2001:db8::1")])
def test_the_type_of_the_gateway_in_an_ipseckey_record(gateway: str, precedence: str, numbers: str) -> None:
    key = ipsec.HostKey("RSA", b"\1\2", b"\xc0" * 256, b"\1\0\1")
    assert f" IPSECKEY  {numbers} " in ipsec.ipseckey_record(key, gateway, precedence, False)


@pytest.mark.parametrize(("gateway", "precedence"), [
    ("gw.example.com", "10"), ("192.0.2", "10"), ("", "256"), ("", "-1"), ("", "high")])
def test_an_ipseckey_record_that_dns_would_refuse(gateway: str, precedence: str) -> None:
    key = ipsec.HostKey("RSA", b"\1\2", b"\xc0" * 256, b"\1\0\1")
    with pytest.raises(ipsec.Failure) as caught:
        ipsec.ipseckey_record(key, gateway, precedence, False)
    assert caught.value.status == ipsec.USAGE
