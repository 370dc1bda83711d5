"""The proving ground without rights: a root that can't be built, how long programs may run, what tests inherit."""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ground import host, roots
from tests.ground.host import NotBegun, Problem, Unavailable
from tests.ground.roots import Recipe, Store, keep

TOP = Path(__file__).resolve().parent.parent

#: Another process of the same test run asks for the root that could not be built.
AGAIN = """
import sys
from tests.ground.roots import keep, failures
from tests.ground.host import Unavailable
def build(target):
    raise SystemExit("tried again")
try:
    keep("moon", "recipe", build)
except Unavailable as reason:
    print(reason, failures)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roots, "failures", {})
    monkeypatch.setattr(roots, "made", [])
    yield host.cache()


def run_in_threads(target: Callable[[], None], count: int) -> None:
    """Run `count` threads at the same time, and wait for them."""
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_a_build_that_fails_is_tried_once(cache: Path) -> None:
    """By one thread while another asks for the same root, and by another process of this run; the next run tries."""
    tried = []

    def build(target: Path) -> None:
        tried.append(target)
        raise Problem("status 100\n--- stderr\nI: running\nE: no such archive\nE: it failed")

    errors = []

    def ask() -> None:
        try:
            keep("moon", "recipe", build)
        except Unavailable as reason:
            errors.append(reason)  # as a future does, the list keeps the exception and its frames

    run_in_threads(ask, 3)
    assert [str(error) for error in errors] == ["moon can't be built"] * 3 and len(tried) == 1
    assert roots.failures == {"moon": "E: no such archive"}
    environment = {**os.environ, "IPSEC_TESTS_RUN": roots.RUN}
    other = subprocess.run([sys.executable, "-c", AGAIN], cwd=TOP, env=environment, capture_output=True, text=True,
                           timeout=60, check=True)
    assert other.stdout == "moon can't be built {'moon': 'E: no such archive'}\n"
    later = subprocess.run([sys.executable, "-c", AGAIN], cwd=TOP, env={**environment, "IPSEC_TESTS_RUN": "later"},
                           capture_output=True, text=True, timeout=60, check=False)
    assert later.stderr == "tried again\n"


def test_what_is_done_once_is_done_once_by_all_threads() -> None:
    """Two builders prepare the machine at the same time: the second waits for the first, and fails as it does."""
    calls, begun = [], threading.Event()

    def work() -> None:
        calls.append(1)
        begun.wait(0.5)  # a second call would end this wait
        raise Problem("E: no network")

    def ask() -> None:
        if calls:
            begun.set()
        with pytest.raises(Problem, match="no network"):
            prepare()

    prepare = host.once(work)
    run_in_threads(ask, 4)
    assert calls == [1]


def test_a_root_on_another_that_fails_has_the_reason_of_that(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def bootstrap(recipe: Recipe, target: Path) -> None:
        tried.append(recipe.suite)
        raise Problem("E: no network")

    monkeypatch.setattr(roots, "bootstrap", bootstrap)
    monkeypatch.setattr(host, "prepare", lambda: None)
    store = Store()
    store.prefetch(["trixie", "trixie-systemd"])
    for name in ("trixie", "trixie-systemd", "trixie"):
        with pytest.raises(Unavailable, match="^trixie can't be built$"):
            store.layers(name)
    store.stop()
    assert tried == ["trixie"] and roots.failures == {"trixie": "E: no network"}


def test_a_root_in_the_cache_needs_the_programs_of_this_host_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> None:
        raise Problem("E: no network")

    monkeypatch.setattr(roots, "bootstrap", lambda recipe, target: target.mkdir())
    monkeypatch.setattr(host, "prepare", lambda: None)
    assert Store().layers("trixie") and [made.built for made in roots.made] == [True]
    monkeypatch.setattr(host, "prepare", prepare)
    with pytest.raises(Unavailable, match="^trixie can't be built$"):
        Store().layers("trixie")
    assert roots.failures == {"trixie": "E: no network"}


def test_what_was_built_is_kept(cache: Path) -> None:
    def build(target: Path) -> None:
        target.mkdir()
        (target / "file").write_text("text")

    for _ in range(2):
        assert (cache / keep("moon", "recipe", build).layer / "file").read_text() == "text"
    assert [made.built for made in roots.made] == [True, False]


def test_a_program_may_run_as_long_as_it_was_told() -> None:
    with pytest.raises(Problem, match="no end after"):
        host.run(["sleep", "1000"], timeout=0.2)
    with pytest.raises(NotBegun, match="no end after"):
        host.run(["sleep", "1000"], timeout=1000, begun=lambda: False, begun_within=0.2)
    assert host.run(["sleep", "0.5"], timeout=1000, begun=lambda: True, begun_within=0.1).status == 0
    assert host.run(["true"], timeout=1000, begun=lambda: False, begun_within=1000).status == 0


#: Says what a program inherits from a test.
TELL = """
import json, locale, os, resource, signal, time
print(json.dumps({
    "ignored": [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN and n not in (13, 25)],
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "umask": os.umask(0),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
    "odd": sorted(set(os.environ) & {"TZ", "LANG", "LC_TIME", "PYTHONPATH", "IPSEC_CONFS", "HOME"}),
    "locale": os.environ.get("LC_ALL")}))
"""

#: Start the tests' conftest in odd surroundings, and a program from there.
ODD = """
import os, resource, signal, subprocess, sys
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGCHLD"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGALRM])
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
os.environ.update(TZ="Asia/Kathmandu", LANG="tr_TR.UTF-8", LC_TIME="de_DE", PYTHONPATH="/nowhere", HOME="/nonexistent",
                  IPSEC_CONFS="/nowhere")
import tests.conftest
print(subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True, check=True).stdout)
os.kill(os.getpid(), signal.SIGHUP)
print("alive")
"""


def test_what_the_tests_inherit_does_not_reach_their_programs() -> None:
    """As below nohup(1), in the background of a shell, in a service; the test run itself stays deaf to SIGHUP."""
    ran = subprocess.run([sys.executable, "-c", ODD, TELL], cwd=TOP, capture_output=True, text=True, timeout=60,
                         check=True)
    inherited, alive = ran.stdout.split("\n", 1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 1024 if most == resource.RLIM_INFINITY else min(1024, most)
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    assert json.loads(inherited) == {"ignored": [], "blocked": [], "umask": 0o022, "files": files, "size": size,
                                     "odd": [], "locale": "C.UTF-8"}
    assert alive.split() == ["alive"]


def test_signals_reach_programs_of_the_tests() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(["sleep", "1000"])
        process.send_signal(number)
        assert process.wait(60) == -number


def test_root_keeps_nothing_in_the_home_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sudo can keep HOME. Below a directory that another user can change, root would run none of the programs."""
    alice = tmp_path / "alice"
    alice.mkdir()
    if os.geteuid() == 0:
        os.chown(alice, 1000, 1000)
    root = pwd.struct_passwd(("root", "x", 0, 0, "", str(tmp_path / "root"), "/bin/sh"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(alice))
    monkeypatch.setattr(pwd, "getpwuid", lambda number: root)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert host.cache() == tmp_path / "root/.cache/ipsec-tests"
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert host.cache() == alice / ".cache/ipsec-tests"


@pytest.mark.parametrize("name, kept", [("tmp", True), ("a-directory-with-a-long-name", False), ("two words", False)])
def test_a_directory_for_temporary_files_that_cannot_hold_the_tests_is_not_used(name: str, kept: bool) -> None:
    """A socket's path has at most 107 bytes, and the tests' scripts name files without quotes."""
    script = ("import tempfile; tempfile.gettempdir(); from tests.ground import surroundings; surroundings.settle(); "
              "print(tempfile.gettempdir())")
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        directory = Path(scratch, name)
        directory.mkdir()
        ran = subprocess.run([sys.executable, "-c", script], cwd=TOP, env={**os.environ, "TMPDIR": str(directory)},
                             capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == f"{directory if kept else '/tmp'}\n"
