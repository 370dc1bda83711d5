"""What a machine cannot give is skipped, and one line says so; where nothing may skip, a skip is a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ground import host

TOP = Path(__file__).resolve().parent.parent

TESTS = """
import pytest
from tests.ground import summary
from tests.ground.host import Unavailable

def test_passes():
    pass

@pytest.mark.skip(reason="no moon")
def test_skips():
    pass

@pytest.mark.skip(reason="no moon")
def test_skips_too():
    pass

@pytest.mark.xfail(reason="not yet")
def test_fails():
    assert False

@pytest.fixture
def rocket(request):
    summary.used(request.node, "moon base")
    raise Unavailable("no rocket (buy one)")

def test_flies(rocket):
    pass
"""

MODULE = 'import pytest\npytest.skip("no sun", allow_module_level=True)\n'

#: The last line's counts, if nothing may skip and if it may.
STRICT = "1 failed, 1 passed, 4 errors in"
LENIENT = "1 passed, 4 skipped, 1 xfailed in"

#: Run pytest as another user: the question for the user's number has another answer.
AS_USER = "import os, sys; os.geteuid = lambda: 1000; import pytest; sys.exit(pytest.main())"

#: Run pytest on another distribution.
ON_UBUNTU = ("import os, sys; os.geteuid = lambda: 0; from tests.ground import host; "
             "host.distribution = lambda: 'ubuntu'; import pytest; sys.exit(pytest.main())")


def run(*arguments: str, ci: bool = False, start: str = "", rights: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the status and the output of a run of pytest."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    python = [sys.executable, *(["-c", start] if start else ["-m", "pytest"])]
    ran = subprocess.run([*rights, *python, "-p", "no:cacheprovider", "-rs", *arguments], cwd=TOP, env=environment,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         timeout=300, check=False)
    return ran.returncode, ran.stdout


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_none.py").write_text(MODULE)
    return ["-p", "tests.conftest", f"--rootdir={tmp_path}", "--continue-on-collection-errors", str(tmp_path)]


@pytest.mark.parametrize("words, ci, start", [((), True, ""), ((), True, AS_USER), (("--no-skips",), False, "")])
def test_where_nothing_may_skip_a_skip_is_a_failure(suite: list[str], words: tuple[str, ...], ci: bool,
                                                    start: str) -> None:
    status, output = run(*suite, *words, ci=ci, start=start)
    assert status == 1 and STRICT in output, output
    for reason in ("no moon", "not yet", "no sun", "no rocket (buy one)"):
        assert f"nothing may skip here: {reason}" in output
    assert "\nskipped: " not in output


@pytest.mark.parametrize("start", ["", AS_USER])
@pytest.mark.parametrize("words", [(), ("-n", "2")])
def test_elsewhere_one_line_says_what_was_skipped(suite: list[str], start: str, words: tuple[str, ...]) -> None:
    """As root, too."""
    status, output = run(*suite, *words, start=start)
    assert LENIENT in output, output
    (line,) = (line for line in output.splitlines() if line.startswith("skipped: "))
    for part in ("2 tests of test_some.py: no moon", "1 test of test_none.py: no sun",
                 "1 test of test_some.py: no rocket (buy one)"):
        assert part in line
    assert re.search(r"^  moon base +1 skipped$", output, re.M)
    assert status == 0


@pytest.mark.parametrize("start, reason", [
    (AS_USER, "the proving ground needs root (run `sudo python3 build.py test`)"),
    (ON_UBUNTU, "the proving ground needs Debian, whose mirror its roots come from; this is ubuntu (run it in a "
                "container of debian:12, started with `docker run --privileged`)"),
])
def test_without_its_needs_the_ground_is_skipped(start: str, reason: str) -> None:
    status, output = run("tests/system", start=start)
    assert re.search(rf"\nskipped: \d+ tests of tests/system: {re.escape(reason)}\n", output), output
    assert re.search(r"\n=+ \d+ skipped in ", output) and status == 0, output


def test_root_without_rights_skips_the_ground() -> None:
    """Docker's default capabilities: no namespaces can be made."""
    reason = host.missing() if os.geteuid() != 0 or host.refused("--mount") else None
    rights = () if reason else host.DOCKER
    status, output = run("tests/system/test_look.py", rights=rights)
    assert status == 0 and output.count("\nskipped: ") == 1, output
    assert "(in a container, start that with `docker run --privileged`)" in output or reason


HANGING = """
import time
import pytest
from tests.ground import roots

def fetch(target):
    time.sleep(4)
    target.mkdir()

@pytest.mark.timeout(3)
def test_a_root_is_built():
    roots.keep("moon", "recipe", fetch)

@pytest.mark.timeout(3)
def test_hangs():
    roots.keep("moon", "recipe", fetch)
    while True:
        time.sleep(1)
"""


def test_a_test_that_hangs_fails_and_the_time_in_which_a_root_is_built_does_not_count(
        suite: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(HANGING)
    (tmp_path / "test_none.py").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, output = run(*suite, "-n", "2")
    assert status == 1 and "1 failed, 1 passed in" in output, output
    assert "Timeout (>3.0s) from pytest-timeout" in output
