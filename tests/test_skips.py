"""Where everything can run nothing may skip, and where it cannot the tests say in one line what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent

TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skip(reason="no moon")
def test_skips():
    pass

@pytest.mark.xfail(reason="not yet")
def test_fails():
    assert False
"""

MODULE = 'import pytest\npytest.skip("no sun", allow_module_level=True)\n'

#: The last line's counts, when nothing may skip and when it may.
STRICT = "1 failed, 1 passed, 2 errors in"
LENIENT = "1 passed, 2 skipped, 1 xfailed in"

#: Run pytest as another user would, or as root on another distribution: what the rule asks is answered otherwise.
AS_USER = "import os, sys; os.geteuid = lambda: 1000; import pytest; sys.exit(pytest.main())"


def run(*arguments: str, ci: bool = False, user: bool = False) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    start = ["-c", AS_USER] if user else ["-m", "pytest"]
    argv = [sys.executable, *start, "-p", "no:cacheprovider", "-rs", *arguments]
    return subprocess.run(argv, cwd=TOP, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=300, check=False).stdout


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_none.py").write_text(MODULE)
    return ["-p", "tests.conftest", f"--rootdir={tmp_path}", "--continue-on-collection-errors", str(tmp_path)]


@pytest.mark.parametrize("user", [False, True])
def test_in_ci_a_skip_is_a_failure(suite: list[str], user: bool) -> None:
    output = run(*suite, ci=True, user=user)
    assert STRICT in output, output
    for reason in ("no moon", "not yet", "no sun"):
        assert f"nothing may skip here: {reason}" in output


def test_as_root_on_debian_a_skip_is_a_failure(suite: list[str]) -> None:
    here = os.geteuid() == 0 and Path("/etc/debian_version").exists()
    assert (STRICT if here else LENIENT) in run(*suite)


def test_elsewhere_a_skip_is_a_skip(suite: list[str]) -> None:
    assert LENIENT in run(*suite, user=True)


def test_without_root_the_real_systems_say_what_is_missing() -> None:
    output = run("tests/system", user=True)
    assert re.search(r"real systems: none; .* needs root", output), output
    reasons = {line.partition(": ")[2] for line in output.splitlines() if line.startswith("SKIPPED")}
    assert len(reasons) == 1 and "needs root" in reasons.pop(), output
    assert re.search(r"\n=+ \d+ skipped in ", output), output
