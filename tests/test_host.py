"""The one door to the outside: paths below a root, programs, timeouts, what children inherit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Callable

import pytest
from pytest_subprocess import FakeProcess

import ipsec
from tests.ground.machine import alive, wait_for
from tests.test_config import host_at


@pytest.fixture
def below(tmp_path: Path) -> ipsec.Host:
    for name in ("etc", "usr/bin", "var/link"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/file").write_text("inside\n")
    return ipsec.Host({}, root=str(tmp_path))


@pytest.mark.parametrize("name, target", [
    ("/a", "/etc/file"), ("/a", "etc/file"), ("/a", "../../../../etc/file"), ("/var/link/a", "../../etc/file"),
    ("/var/link/a", "/usr/bin/../../etc/./file"),
])
def test_links_resolve_inside_the_root(below: ipsec.Host, name: str, target: str) -> None:
    os.symlink(target, below.root + name)
    assert below.read(name) == "inside\n"


def test_a_link_chain_through_directories(below: ipsec.Host) -> None:
    os.symlink("/usr", f"{below.root}/u")
    os.symlink("/u/bin/../../etc", f"{below.root}/e")
    assert below.read("/e/file") == "inside\n"
    assert below.glob("/e/f*") == ["/e/file"]


def test_a_link_loop_is_an_error_that_names_it(below: ipsec.Host) -> None:
    os.symlink("/b", f"{below.root}/a")
    os.symlink("/a", f"{below.root}/b")
    with pytest.raises(OSError, match="/a"):
        below.read("/a")
    assert not below.exists("/a")


def test_errors_name_the_file_as_the_user_knows_it(below: ipsec.Host) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        below.read("/etc/none")
    assert caught.value.filename == "/etc/none"


def test_what_is_no_regular_file_is_refused_at_once(below: ipsec.Host) -> None:
    os.mkfifo(f"{below.root}/fifo")
    with pytest.raises(OSError, match="not a regular file"):
        below.read("/fifo")
    with pytest.raises(IsADirectoryError):
        below.read("/etc")


def test_what_is_no_regular_file_is_not_even_opened(below: ipsec.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a device can have an effect: a watchdog starts, a tape rewinds."""
    def opened(path: str, *_: object, **__: object) -> int:
        raise AssertionError(f"{path} was opened")

    os.mkfifo(f"{below.root}/fifo")
    os.symlink("fifo", f"{below.root}/link")
    monkeypatch.setattr(os, "open", opened)
    for host, names in ((below, ("/fifo", "/link")), (ipsec.Host({}), ("/dev/null", "/dev/tty"))):
        for name in names:
            with pytest.raises(OSError, match="not a regular file"):
                host.read(name)


def test_lines_of_a_large_file(below: ipsec.Host) -> None:
    Path(f"{below.root}/big").write_bytes(b"".join(b"%d \xff\n" % n for n in range(30000)) + b"last")
    lines = list(below.lines("/big"))
    assert (len(lines), lines[-1], ipsec.encode(lines[29999])) == (30001, "last", b"29999 \xff")


def test_glob_is_that_of_the_shell(below: ipsec.Host) -> None:
    for name in ("b.conf", "a.conf", ".hidden.conf", "c.txt"):
        Path(f"{below.root}/etc/{name}").touch()
    assert below.glob("/etc/*.conf") == ["/etc/a.conf", "/etc/b.conf"]
    assert below.glob("/e*/[bc].*") == ["/etc/b.conf", "/etc/c.txt"]
    assert below.glob("/etc/none") == below.glob("/none/*") == []


@pytest.mark.parametrize("pattern, names", [
    (r"a\*", ["a*"]), (r"a\[1\]", ["a[1]"]), (r"\a\1", ["a1"]), (r"a\\b", [r"a\b"]), (r"\*", []),
    ("a[!1]", ["a*", "a^"]),
    ("a[^1]", ["a*", "a^"]), ("a[1^]", ["a1", "a^"]), ("a[[:digit:]]", ["a1"]), ("a[^[:alnum:]]", ["a*", "a^"]),
    ("a[[:punct:]]", ["a*", "a^"]), ("a[[]1]", ["a[1]"]), ("[]a]1", ["a1"]), ("a[0-9]", ["a1"]), ("a[z-a]", []),
    ("a[", []), (r"a[\*]", ["a*"]), (r"\.h", [".h"]), (r"[.]h", []), ("?h", []),
])
def test_glob_knows_the_patterns_of_glob(below: ipsec.Host, pattern: str, names: list[str]) -> None:
    Path(f"{below.root}/p").mkdir()
    for name in ("a*", "a1", "a[1]", r"a\b", "a^", ".h"):
        Path(f"{below.root}/p/{name}").touch()
    assert below.glob(f"/p/{pattern}") == below.glob(rf"/\p/{pattern}") == [f"/p/{name}" for name in names]


def program(directory: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_system_directories_come_before_path(tmp_path: Path) -> None:
    program(tmp_path, "sh")
    unique = program(tmp_path, "only-here-7f3")
    host = ipsec.Host({"PATH": f"{tmp_path}:/bin"})
    assert host.which("sh") != str(tmp_path / "sh")
    assert host.which("only-here-7f3") == str(unique)


@pytest.mark.parametrize("path", ["", ".", "relative", ":", "::/nonexistent"])
def test_relative_entries_of_path_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    program(tmp_path, "only-here-7f3")
    (tmp_path / "relative").mkdir()
    program(tmp_path / "relative", "only-here-7f3")
    monkeypatch.chdir(tmp_path)
    assert ipsec.Host({"PATH": path}).which("only-here-7f3") is None


@pytest.fixture
def roots_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a program, and the right of root; skipped where another user than root runs the tests."""
    if os.geteuid() != 0:
        pytest.skip("only root has directories that only root can write")
    for name in ("bin", "up/bin", "links"):
        (tmp_path / name).mkdir(parents=True)
        program(tmp_path / name, "only-here-7f3")
    return tmp_path


def sticky(path: Path) -> str:
    path.chmod(0o1777)
    return "/"


# What is done to the directory in which bin, up/bin and links lie; the path that is given; where others can write
OPENED: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda top: (top / "bin").chmod(0o777), "bin", "bin"),
    (lambda top: (top / "bin").chmod(0o775), "bin", "bin"),
    (lambda top: sticky(top / "up"), "up/bin", "up"),
    (lambda top: os.chown(top / "up/bin", 61234, 0), "up/bin", "up/bin"),
    (lambda top: os.chown(top / "up", 61234, 0), "up/bin", "up"),
    (lambda top: ((top / "links/way").symlink_to("../bin"), (top / "links").chmod(0o777)), "links/way", "links"),
    (lambda top: ((top / "way").symlink_to("up/bin"), (top / "up").chmod(0o757)), "way", "up"),
    (lambda top: (top / "up").chmod(0o777), "up/../bin", "up"),
]


@pytest.mark.parametrize("change, given, place", OPENED)
def test_root_runs_nothing_from_where_others_can_write(roots_own: Path, change: Callable[[Path], object], given: str,
                                                       place: str) -> None:
    path = f"{roots_own}/{given}"
    assert ipsec.Host({"PATH": f"{roots_own}/bin"}).which("only-here-7f3")
    change(roots_own)
    assert ipsec.Host({"PATH": path}).which("only-here-7f3") is None
    for variable in ("IPSEC_EXECDIR", "IPSEC_SBINDIR"):
        with pytest.raises(ipsec.Failure, match=f"^{variable}=.*other than root can write to {roots_own}/{place},"):
            ipsec.Host({variable: path})


def test_root_takes_directories_of_its_own(roots_own: Path) -> None:
    (roots_own / "way").symlink_to("up/../bin")
    for path in ("bin", "up/bin", "way", "none/such", "bin/only-here-7f3"):
        host = ipsec.Host({"IPSEC_EXECDIR": f"{roots_own}/{path}", "IPSEC_SBINDIR": f"{roots_own}/{path}"})
        assert host.execdir == host.sbindir == f"{roots_own}/{path}"
    with pytest.raises(ipsec.Failure, match="IPSEC_EXECDIR=.*not an absolute path"):
        ipsec.Host({"IPSEC_EXECDIR": "bin"})


def test_the_attack_of_another_user_through_tmp(pyz: Path) -> None:
    """A program that another user put under a name that root's environment still has."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)
        script = 'mkdir -m 755 lib; printf "#!/bin/sh\nid -u >%s\n" "$PWD/id" >lib/whack; chmod 755 lib/whack'
        subprocess.run(["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", "sh", "-ec", script],
                       cwd=directory, check=True)
        for variable in ("IPSEC_EXECDIR", "IPSEC_SBINDIR"):
            for words in (["--version"], ["barf"], ["whack", "--status"], ["verify"], ["--help"]):
                result = subprocess.run([sys.executable, pyz, *words], env={variable: f"{directory}/lib"}, timeout=60,
                                        capture_output=True, text=True, check=False)
                assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
                reason = "users other than root can write to /tmp"
                assert result.stderr.startswith(f'ipsec: {variable}="{directory}/lib": {reason}')
        assert os.listdir(directory) == ["lib"]


def test_run_gives_status_and_both_outputs() -> None:
    host = ipsec.Host()
    ran = host.run(["sh", "-c", "echo out; echo one >&2; echo two >&2; exit 7"])
    assert (ran.status, ran.text, ran.complaint) == (7, "out\n", "two")
    assert host.run(["sh", "-c", "kill -9 $$"]).status == 137
    assert host.run(["cat"], stdin=b"given").out == b"given"
    assert host.run(["sh", "-c", "cat; echo $LC_ALL"]).text == "C\n"


def test_run_ends_what_takes_too_long_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    for timeout in (1, 10, 100):  # on a loaded host the shell needs its time to say which child it has
        with pytest.raises(ipsec.TimedOut, match=f"sh did not end within {timeout} s"):
            ipsec.Host().run(["sh", "-c", f"sleep 3600 & echo $! > {marker}; wait"], timeout=timeout)
        if marker.exists() and marker.read_text().strip():
            break
    pid = int(marker.read_text())
    wait_for(lambda: not alive(pid), "the end of sleep")


def test_programs_together_get_the_end_when_all_have_the_rest(tmp_path: Path) -> None:
    """More data than an ordinary pipe holds, for programs that read only when they are told to."""
    host = ipsec.Host({})
    data = b"x" * 300_000 + b"\n"
    go = tmp_path / "go"
    first = ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; tail -n 1"]
    second = ["sh", "-c", f"read line; read last; touch {go}; echo $last; exit 3"]
    assert host.run_together([(first, data, b"one\n"), (second, data, b"two\n")], 60) == [
        ipsec.Ran(0, b"one\n", b""), ipsec.Ran(3, b"two\n", b"")]


def test_programs_together_are_not_begun_if_one_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ipsec.Missing, match="no-such-7f3"):
        ipsec.Host({}).run_together([(["touch", str(tmp_path / "x")], b"", b""), (["no-such-7f3"], b"", b"")], 60)
    assert os.listdir(tmp_path) == []


def test_programs_together_go_on_without_this_one(tmp_path: Path) -> None:
    """Once they have the end of their input, kill -9 of this process stops none of them, and Ctrl-C waits for them."""
    child = "cat >$0.part; mv $0.part $0.read; while [ ! -e go ]; do sleep 0.01; done; mv $0.read $0"
    script = (f"import ipsec; host, words = ipsec.Host({{}}), ['sh', '-c', {child!r}]\n"
              "host.run_together([([*words, name], b'a', b'b') for name in 'xy'], 60)")
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE,
                                   env={**os.environ, "PYTHONPATH": str(Path(ipsec.__file__).parent)})
        wait_for(lambda: sorted(os.listdir(tmp_path)) == ["x.read", "y.read"], "two programs that have read all")
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.communicate(timeout=60)
        (tmp_path / "go").touch()
        process.communicate(timeout=60)
        assert process.returncode == -number
        wait_for(lambda: sorted(os.listdir(tmp_path)) == ["go", "x", "y"], "both results")
        assert (tmp_path / "x").read_text() == (tmp_path / "y").read_text() == "ab"
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_missing_program_is_named_with_the_way_out() -> None:
    with pytest.raises(ipsec.Missing, match=r"certutil-7f3: no such program on this host \(install it\)") as caught:
        ipsec.Host().run(["certutil-7f3"], hint="install it")
    assert caught.value.status == 127


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    garbage = program(tmp_path, "garbage", "\x7fELF no")
    with pytest.raises(ipsec.Failure, match="garbage: Exec format error") as caught:
        ipsec.Host().run([str(garbage)])
    assert caught.value.status == 126


def test_a_program_that_fails_in_a_stream(fp: FakeProcess) -> None:
    """No memory for a child: the error names the program (not to be had on demand from a real host)."""
    path = ipsec.Host().which("sh")
    assert path

    def refuse(process: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    fp.register([path, "-c", "true"], callback=refuse)
    with pytest.raises((ipsec.Failure, OSError), match="Cannot allocate memory"):
        ipsec.Host().run(["sh", "-c", "true"])


@pytest.mark.parametrize("text, version", [
    ("Libreswan 4.10", "4.10"), ("Libreswan v5.2-12-gabc (XFRM)", "5.2-12-gabc"),
    ("Linux Libreswan U3.29/K(none)", "3.29"),
    ("Libreswan (none)", None), ("strongSwan 5.9", None), ("", None), ("Libreswan", None),
])
def test_version_of_what_programs_say(text: str, version: str | None) -> None:
    assert ipsec.version_in(text) == version


def test_a_missing_module_is_one_line() -> None:
    with pytest.raises(ipsec.Missing, match="--json needs Python's module no_such_7f3"):
        ipsec.need("no_such_7f3", "--json")


def test_writing_keeps_the_file_and_names_it_in_errors(below: ipsec.Host) -> None:
    number = os.stat(f"{below.root}/etc/file").st_ino
    below.write("/etc/file", "new\n")
    assert below.read("/etc/file") == "new\n" and os.stat(f"{below.root}/etc/file").st_ino == number
    with pytest.raises(OSError) as caught:
        below.write("/nowhere/file", "")
    assert caught.value.filename == "/nowhere/file"
    below.remove("/etc/file")
    below.remove("/etc/file")
    assert not below.exists("/etc/file")
    with pytest.raises(OSError) as caught:
        below.remove("/etc")
    assert caught.value.filename == "/etc"


def test_a_link_is_read_as_written(below: ipsec.Host) -> None:
    os.symlink("/else/where", f"{below.root}/etc/link")
    assert below.readlink("/etc/link") == "/else/where"


def test_one_at_a_time_in_a_directory(below: ipsec.Host) -> None:
    with below.lock("/run/x"), pytest.raises(ipsec.TimedOut, match="/run/x is in use"):
        below.lock("/run/x", timeout=0.2)
    with below.lock("/run/x", timeout=0.2):
        assert below.isdir("/run/x")


def test_a_lock_that_the_file_system_lacks_is_an_error_that_names_it(below: ipsec.Host,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="can't be locked: No locks available") as error:
        below.lock("/run/x")
    assert error.value.filename == "/run/x"


def test_a_called_program_shares_our_output(capfd: pytest.CaptureFixture[str]) -> None:
    host = ipsec.Host({})
    assert host.call(["sh", "-c", "echo out; echo err >&2; exit 7"]) == 7
    assert capfd.readouterr() == ("out\n", "err\n")
    assert host.call(["sh", "-c", "echo out; kill -KILL $$"], quiet=True) == 128 + 9
    assert capfd.readouterr() == ("", "")


def test_a_spawned_program_is_left_to_itself() -> None:
    host = ipsec.Host({})
    child = host.spawn(["sleep", "1000"], None)
    assert child.poll() is None and os.getsid(child.pid) == child.pid
    host.signal(child.pid, "SIGSTOP", "SIGTERM", "SIGCONT")
    assert child.wait(60) == -15
    host.signal(child.pid, "SIGTERM")


@pytest.mark.parametrize("files, version", [
    ({"usr/sbin/ipsec": 'export IPSEC_VERSION="5.2"\n'}, "5.2"),
    ({"usr/libexec/ipsec/whack": "\x7fELF\0Libreswan %s\0OE-Libreswan-4.3\0Libreswan 4.3\0more"}, "4.3"),
    ({"var/lib/dpkg/status": "Package: libreswan-dbg\nVersion: 1\n\nPackage: libreswan\nStatus: x\n"
                             "Version: 1:4.10-2+deb12u1\n\n"}, "4.10"),
    ({"lib/apk/db/installed": "P:libreswan\nV:5.2-r0\n\n"}, "5.2"),
    ({"usr/sbin/ipsec": "PK\x03\x04 this program"}, None),
])
def test_the_release_on_a_disk(tmp_path: Path, files: dict[str, str], version: str | None) -> None:
    """From the script, the programs, or the list of packages, whichever is there."""
    assert host_at(tmp_path, files).libreswan_version() == version


def sparse(path: Path, size: int = 8 << 30) -> None:
    with open(path, "wb") as stream:
        stream.truncate(size)


def test_a_file_beyond_the_bound_is_not_read(below: ipsec.Host) -> None:
    """Neither as a whole nor by line, and before its first byte."""
    sparse(Path(below.root, "etc/huge"))
    for read in (below.read, lambda name: list(below.lines(name))):
        with pytest.raises(OSError, match="/etc/huge") as caught:
            read("/etc/huge")
        assert caught.value.strerror == "larger than 32 MiB, not read"
    sparse(Path(below.root, "etc/line"), ipsec.TEXT_LINE + ipsec.READ_CHUNK + 1)
    with pytest.raises(OSError, match="/etc/line") as caught:
        list(below.lines("/etc/line"))
    assert caught.value.strerror == "a line is longer than 8 MiB, so the rest of the file is not read"


def test_lines_of_pieces_of_any_size() -> None:
    data = b"one\n\ntwo" + b"x" * 200_000 + b"\nthree"
    for size in (1 << 16, 7, len(data)):
        pieces = (data[i:i + size] for i in range(0, len(data), size))
        assert list(ipsec.split_lines(pieces)) == data.decode().split("\n")
    assert list(ipsec.split_lines([b"a\n", b"b\n"])) == ["a", "b"]


def test_a_pattern_looks_into_so_many_directories(below: ipsec.Host) -> None:
    for i in range(40):
        for j in range(30):
            Path(below.root, f"many/{i}/{j}").mkdir(parents=True)
    assert len(below.glob("/many/*/1")) == 40
    with pytest.raises(OSError, match="more than 1000 directories"):
        below.glob("/many/*/*/*")


def test_a_nul_byte_in_a_path_is_an_error_that_names_it(below: ipsec.Host) -> None:
    for ask in (below.read, below.stat, below.listdir, below.check_readable):
        with pytest.raises(OSError, match="NUL byte"):
            ask("/etc/fi\0le")
    assert not below.exists("/etc/fi\0le") and not below.isdir("/e\0tc")
    with pytest.raises(ipsec.Failure, match="NUL byte"):
        ipsec.Host({}).run(["true", "a\0b"])


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> ipsec.Mounts:
    table = ipsec.Mounts()
    monkeypatch.setattr(ipsec, "MOUNTS", table)
    return table


def test_no_thread_takes_mounts_that_are_being_read_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = ipsec.Mounts()  # not MOUNTS, which a thread of an earlier test can still read
    is_reading, gate = threading.Event(), threading.Event()

    def read_table() -> frozenset[str]:
        if threading.current_thread() is other:
            is_reading.set()
            gate.wait(60)
        return frozenset({"/silent"})

    monkeypatch.setattr(ipsec, "mounts_that_may_hang", read_table)
    other = threading.Thread(target=mounts.that_may_hang)
    other.start()
    assert is_reading.wait(60)
    assert mounts.that_may_hang() == {"/silent"}
    gate.set()
    other.join()


def test_a_silent_file_system_is_asked_once(tmp_path: Path, mounts: ipsec.Mounts,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a link; others are read in the meantime."""
    silent, asked = tmp_path / "silent", []
    silent.mkdir()
    (tmp_path / "link").symlink_to("silent/x")
    (tmp_path / "file").write_text("fine\n")
    monkeypatch.setattr(ipsec, "mounts_that_may_hang", lambda: frozenset({str(silent)}))
    gate = ipsec._thread.allocate_lock()
    gate.acquire()

    def hang(path: str, *words: object, **options: object) -> int:
        asked.append(path)
        gate.acquire()
        raise OSError

    host = ipsec.Host({})
    host.patience = 0.05
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", hang)
        with pytest.raises(TimeoutError) as caught:
            host.stat(f"{tmp_path}/link")
    assert caught.value.strerror == f"no answer within 0.05 s from the file system on {silent}"
    for ask in (host.read, host.exists, host.listdir, host.isdir, host.lexists, host.check_readable):
        with pytest.raises(TimeoutError, match="does not answer"):
            ask(f"{silent}/y/z")
    assert not host.executable(f"{silent}/program")
    assert host.read(f"{tmp_path}/file") == "fine\n"
    assert asked == [f"{tmp_path}/link"] and mounts.silent[str(silent)][1] == f"{tmp_path}/link"
    gate.release()


def test_what_is_asked_about_a_name_itself_reaches_the_file_system_that_is_mounted_there(
        tmp_path: Path, mounts: ipsec.Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to it is not followed, unless a slash follows."""
    silent, gate = tmp_path / "silent", ipsec._thread.allocate_lock()
    silent.mkdir()
    (tmp_path / "link").symlink_to("silent")
    monkeypatch.setattr(ipsec, "mounts_that_may_hang", lambda: frozenset({str(silent)}))
    gate.acquire()

    def slow(work: Callable[..., object]) -> Callable[..., object]:
        def hang(path: str, *words: object, **options: object) -> object:
            if path.startswith((str(silent), f"{tmp_path}/link/")):
                gate.acquire()
            return work(path, *words, **options)
        return hang

    monkeypatch.setattr(os, "lstat", slow(os.lstat))
    monkeypatch.setattr(os, "readlink", slow(os.readlink))
    for top, root in ((str(tmp_path), ""), ("", str(tmp_path))):
        for name in ("silent", "link/"):
            for question in ("lexists", "readlink", "stat"):
                host = ipsec.Host({}, root=root)
                host.patience = 0.05
                mounts.silent.clear()
                with pytest.raises(TimeoutError):
                    getattr(host, question)(f"{top}/{name}", **({"follow": False} if question == "stat" else {}))
        mounts.silent.clear()
        assert host.lexists(f"{top}/link") and host.readlink(f"{top}/link") == "silent"
        assert host.stat(f"{top}/link", follow=False) and not mounts.silent
    gate.release()


def test_without_a_thread_a_file_system_that_may_hang_is_not_read(tmp_path: Path, mounts: ipsec.Mounts,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise RuntimeError("can't start new thread")

    (tmp_path / "file").write_text("fine\n")
    monkeypatch.setattr(ipsec._thread, "start_new_thread", refuse)
    host = ipsec.Host({})
    assert host.read(f"{tmp_path}/file") == "fine\n"
    mounts._read = 0.0
    monkeypatch.setattr(ipsec, "mounts_that_may_hang", lambda: frozenset({str(tmp_path)}))
    with pytest.raises(OSError, match="the thread that would wait"):
        host.read(f"{tmp_path}/file")


@pytest.mark.parametrize("name, real, stop", [
    ("/a/b", "/a/b", ""), ("/a/../b/./c", "/b/c", ""), ("/stop", "/stop", "/stop"), ("/x/../stop/y", "/stop", "/stop"),
    ("/stop/../a", "/stop", "/stop"), ("/stopped", "/stopped", ""),
])
def test_the_way_to_a_path_ends_at_a_stop(name: str, real: str, stop: str) -> None:
    assert ipsec.resolve_links(name, "", {"/stop"}) == (real, stop)


def test_control_characters_are_shown_escaped() -> None:
    raw = b"a\x1b]0;t\x07b\x9bc\xc2\x9bd\x00\r\x7f\t\xe2\x80\xaee\xff\n"
    assert ipsec.printable(ipsec.decode(raw)) == "a\\x1b]0;t\\x07b\\x9bc\\x9bd\\x00\\x0d\\x7f\t\\u202ee\\xff\n"
    assert ipsec.printable("ünïcode 漢字 \t\n") == "ünïcode 漢字 \t\n"
    assert ipsec.quote("a\x1bb") == '"a\\x1bb"' and ipsec.quote("漢字 ") == '"漢字 "'
