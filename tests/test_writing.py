"""Files that are written: whole or not at all, also after kill -9, and never where somebody else's link leads.

The attacks are made by another user, in a directory that everybody can write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ipsec

from .ground.host import refused

MALLORY = 61234
BARF = ("barf", "--section", "version", "--output")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /tmp, which another user reaches."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


def mallory(directory: Path, script: str) -> None:
    """Run shell commands as another user."""
    subprocess.run(["setpriv", f"--reuid={MALLORY}", f"--regid={MALLORY}", "--clear-groups", "sh", "-ec", script],
                   cwd=directory, check=True)


def ipsec_run(pyz: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, pyz, *words], timeout=120, capture_output=True, text=True, check=False)


# What another user plants, the name that root writes to, the part of the message
ATTACKS = (
    ("ln -s precious link", "link", "a link of user 61234 is not followed"),
    ("ln -s new link", "link", "a link of user 61234 is not followed"),
    ("ln -s . away", "away/precious", "a link of user 61234 is not followed"),
    ("ln -s /proc/self/cwd/precious link", "link", "a link of user 61234 is not followed"),
    ("ln -s /dev/null link", "link", "a link of user 61234 is not followed"),
    ("ln -s link2 link; ln -s precious link2", "link", "a link of user 61234 is not followed"),
    ("echo hers >file", "rootlink", "it belongs to user 61234"),
    ("mkfifo file", "rootlink", "it belongs to user 61234"),
    ("mkfifo file", "file", "it belongs to user 61234"),
)


@ROOT_ONLY
@pytest.mark.parametrize("script, name, message", ATTACKS)
def test_nothing_of_another_user_leads_a_write_away(pyz: Path, shared: Path, script: str, name: str,
                                                    message: str) -> None:
    (shared / "precious").write_text("precious\n")
    (shared / "rootlink").symlink_to("file")
    mallory(shared, script)
    before = sorted(os.listdir(shared))
    with pytest.raises(OSError, match=message):
        ipsec.Host({}).replace(str(shared / name), "report\n")
    result = ipsec_run(pyz, *BARF, shared / name)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1) and message in result.stderr
    assert (sorted(os.listdir(shared)), (shared / "precious").read_text()) == (before, "precious\n")


@ROOT_ONLY
def test_a_file_or_hard_link_of_another_user_is_replaced_and_not_written_to(pyz: Path, shared: Path) -> None:
    mallory(shared, "echo hers >report; ln report kept; ln -s precious .report.ipsec")
    (shared / "precious").write_text("precious\n")
    result = ipsec_run(pyz, *BARF, shared / "report")
    info = (shared / "report").stat()
    assert (result.returncode, info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0, 0o600)
    assert (shared / "kept").read_text() == "hers\n" and (shared / "precious").read_text() == "precious\n"
    assert sorted(os.listdir(shared)) == ["kept", "precious", "report"]


@ROOT_ONLY
def test_the_file_of_a_service_behind_a_link_of_root_keeps_its_owner(shared: Path) -> None:
    """As /etc/resolv.conf, a link to a file of systemd-resolved; not through a link of another user."""
    (shared / "stub").write_text("old\n")
    os.chown(shared / "stub", MALLORY, MALLORY)
    (shared / "resolv.conf").symlink_to("stub")
    ipsec.Host({}).replace(str(shared / "resolv.conf"), "new\n", of_service=True)
    info = (shared / "stub").stat()
    assert ((shared / "stub").read_text(), info.st_uid, info.st_mode & 0o777) == ("new\n", MALLORY, 0o644)
    os.lchown(shared / "resolv.conf", MALLORY, MALLORY)
    with pytest.raises(PermissionError, match="is not followed"):
        ipsec.Host({}).replace(str(shared / "resolv.conf"), "newer\n", of_service=True)


def test_links_of_the_caller_are_followed(shared: Path) -> None:
    (shared / "real").mkdir()
    (shared / "dir").symlink_to("real/../real")
    (shared / "link").symlink_to(shared / "dir" / "file")
    host = ipsec.Host({})
    for text in ("new\n", "newer\n"):
        host.replace(str(shared / "link"), text)
        assert (shared / "real" / "file").read_text() == text and (shared / "link").is_symlink()
    assert sorted(os.listdir(shared / "real")) == ["file"]


def test_a_name_that_leads_nowhere_is_told(shared: Path) -> None:
    (shared / "loop").symlink_to("loop")
    for name in ("loop", "none/file", "", "loop/.."):
        with pytest.raises(OSError) as caught:
            ipsec.Host({}).replace(f"{shared}/{name}", "")
        assert caught.value.filename == f"{shared}/{name}"


def test_standard_output_by_name_is_written_to_where_it_stands(pyz: Path, shared: Path) -> None:
    words = shlex.join([sys.executable, str(pyz), *BARF])
    piped = subprocess.run(["sh", "-c", f"{words} /dev/stdout | cat"], capture_output=True, text=True, check=True)
    subprocess.run(["sh", "-c", f"(echo before; {words} /proc/self/fd/1; echo after) >out"], cwd=shared, check=True)
    lines = (shared / "out").read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("before", "after", len(piped.stdout.splitlines()) + 2)
    assert "Libreswan " in piped.stdout and piped.stdout.splitlines()[2:] == lines[3:-1]


@ROOT_ONLY
def test_a_mounted_file_is_rewritten_in_place(pyz: Path, shared: Path) -> None:
    """As in a container, whose engine mounts /etc/resolv.conf; also if the rest of the disk is read-only."""
    if reason := refused("--mount"):
        pytest.skip(reason)
    words = shlex.join([sys.executable, str(pyz), *BARF, "disk/file"])
    script = ("mkdir disk; mount -t tmpfs none disk; touch disk/file; mount --bind outside disk/file; $1; "
              f"{words}; ls -A disk; cat disk/file")
    for extra in ("true", "mount -o remount,ro disk"):
        (shared / "outside").write_text("old\n" * 10000)
        number = (shared / "outside").stat().st_ino
        result = subprocess.run(["unshare", "--mount", "sh", "-ec", script.replace("$1", extra)], cwd=shared,
                                capture_output=True, text=True, check=True)
        (shared / "disk").rmdir()
        assert result.stdout == "file\n" + (shared / "outside").read_text()
        assert "Libreswan " in result.stdout and "old" not in result.stdout
        assert (shared / "outside").stat().st_ino == number


# One file system after the other, and one that has no files without a name (as NFS and FAT)
PLAIN = "import os, sys, ipsec\nhost, name = ipsec.Host({}), sys.argv[1]\n"
NAMED = PLAIN + """
def without(path, flags, *more, real=os.open, **options):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(95, "not supported")
    return real(path, flags, *more, **options)
os.open = without
"""
REPLACING = """
sys.stdout.write("ready\\n"); sys.stdout.flush()
while True:
    host.replace(name, "a" * 50000)
    host.replace(name, "b" * 60000)
"""
CREATING = """
sys.stdout.write("ready\\n"); sys.stdout.flush()
number = 0
while True:
    number += 1
    file = ipsec.OutputFile(ipsec.Host(), f"{name}.{number}")
    for _ in range(50):
        file.write("a" * 1000)
    file.commit()
"""
TRIALS = 100


def kill_at_random(script: str, target: Path) -> None:
    """Run a script and kill it (SIGKILL) some milliseconds after it has begun to write."""
    process = subprocess.Popen([sys.executable, "-c", script, target], stdout=subprocess.PIPE,
                               cwd=Path(ipsec.__file__).parent)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(random.random() * 0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize("script", [PLAIN, NAMED], ids=["unnamed", "named"])
def test_kill_9_leaves_the_old_file_or_the_new_and_at_most_one_other(shared: Path, script: str) -> None:
    target, others = shared / "file", 0
    target.write_text("a" * 50000)
    for _ in range(TRIALS):
        kill_at_random(script + REPLACING, target)
        assert target.read_text() in ("a" * 50000, "b" * 60000)
        names = sorted(os.listdir(shared))
        assert names in (["file"], [".file.ipsec", "file"])
        others += len(names) - 1
        if random.random() < 0.5:  # else the next trial begins with what this one left
            ipsec.Host({}).replace(str(target), "a" * 50000)
            assert os.listdir(shared) == ["file"]
    print(f"{TRIALS} times kill -9: {others} times one other file")


def test_kill_9_leaves_nothing_of_a_new_file(shared: Path) -> None:
    done = 0
    for _ in range(TRIALS):
        kill_at_random(PLAIN + CREATING, shared / "file")
        for name in os.listdir(shared):
            assert (shared / name).read_text() == "a" * 50000
            (shared / name).unlink()
            done += 1
    print(f"{TRIALS} times kill -9: {done} whole files, no other")


@pytest.mark.parametrize("script", [PLAIN, NAMED], ids=["unnamed", "named"])
def test_many_at_once_leave_one_whole_file(shared: Path, script: str) -> None:
    target = shared / "file"
    text = "for n in range(100): host.replace(name, sys.argv[2] * 50000)"
    runs = [subprocess.Popen([sys.executable, "-c", script + text, target, letter], stderr=subprocess.PIPE,
                             cwd=Path(ipsec.__file__).parent) for letter in "abcd"]
    assert [run.communicate(timeout=120)[1] for run in runs] == [b""] * 4
    assert target.read_text() in [letter * 50000 for letter in "abcd"] and os.listdir(shared) == ["file"]


@pytest.mark.parametrize("removes_first", [True, False])
def test_a_new_file_that_another_run_takes_for_a_left_one(shared: Path, monkeypatch: pytest.MonkeyPatch,
                                                          removes_first: bool) -> None:
    """Between making the file and locking it, another run locks it, and removes it before or after our try to lock."""
    def opened(path: str, flags: int, *more: int, real: Callable[..., int] = os.open, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", opened)
    work = shared / ".file.ipsec"
    real, tries, others = ipsec.lock_at_once, [], []

    def lock(fd: int) -> bool:
        tries.append(fd)
        if len(tries) == 1:
            others.append(open(work))
            fcntl.flock(others[0], fcntl.LOCK_EX)
        if len(tries) == (1 if removes_first else 2):
            work.unlink()
        locked = real(fd)
        if not work.exists():
            others[0].close()
        return locked

    monkeypatch.setattr(ipsec, "lock_at_once", lock)
    ipsec.Host({}).replace(str(shared / "file"), "text")
    assert len(tries) > 1 and os.listdir(shared) == ["file"] and (shared / "file").read_text() == "text"


@ROOT_ONLY
def test_a_lock_of_another_user_stops_nobody_for_ever(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import fcntl, time; f = open('.file.ipsec', 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(99)"
    blocker = subprocess.Popen(["setpriv", f"--reuid={MALLORY}", f"--regid={MALLORY}", "--clear-groups",
                                "/usr/bin/python3", "-c", script], cwd=shared, stdout=subprocess.PIPE)
    assert blocker.stdout is not None and blocker.stdout.readline()
    try:
        clock = iter(range(0, 10000, 3))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        ipsec.Host({}).replace(str(shared / "file"), "text")
        assert os.listdir(shared) == ["file"]
    finally:
        blocker.kill()
        blocker.communicate()


def test_only_a_pipe_has_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the same error for a pipe without a reader and for a socket."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket")
        for name, reason in (("pipe", "nobody reads from this pipe"), ("socket", os.strerror(errno.ENXIO))):
            with pytest.raises(OSError, match=reason) as caught:
                ipsec.Host({}).replace(str(tmp_path / name), "text")
            assert caught.value.errno == errno.ENXIO and caught.value.filename == str(tmp_path / name)


def test_a_run_that_lives_is_told(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(shared / ".file.ipsec", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        clock = iter(range(0, 10000, 3))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        with pytest.raises(OSError, match="another run of ipsec is writing it"):
            ipsec.Host({}).replace(str(shared / "file"), "text")
    assert os.listdir(shared) == [".file.ipsec"]
    ipsec.Host({}).replace(str(shared / "file"), "text")
    assert os.listdir(shared) == ["file"]
