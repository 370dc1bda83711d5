"""The archive: what is in it, that it is reproducible, that it starts clean and leaves nothing behind, everywhere."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import build

TOP = Path(build.__file__).parent
PYTHON = sys.executable


def run(*argv: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"check": False, "timeout": 600, **options}
    return subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          **settings)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, pyz: Path) -> Path:
    """A copy of the sources with the fetched wheels and the builder's .venv made elsewhere."""
    copy = tmp_path_factory.mktemp("elsewhere") / "deeper" / "copy"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "ipsec.pyz", ".*_cache"))
    return copy


@pytest.fixture
def alone() -> list[str]:
    """Words that run a program in a network namespace of its own, with no interface but loopback."""
    if os.geteuid() == 0:
        return ["unshare", "--net"]
    return ["unshare", "--user", "--net", "--map-root-user"]


def test_second_build_is_identical_and_needs_no_network(checkout: Path, pyz: Path, alone: list[str]) -> None:
    """Another directory, umask, locale, time zone and hash seed; the same interpreters are found."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    result = run(*alone, "sh", "-c", 'umask 077; exec "$0" build.py', PYTHON, cwd=checkout, env=environment)
    assert result.returncode == 0, result.stderr
    assert (checkout / "ipsec.pyz").read_bytes() == pyz.read_bytes()


def test_size_and_shiv_info(pyz: Path) -> None:
    assert pyz.stat().st_size <= 1_000_000
    told = run(build.VENV / "bin/shiv-info", "--json", pyz, check=True)
    about = json.loads(told.stdout)
    assert about["entry_point"] == "ipsec:main" and about["shiv_version"] == build.version_of("shiv")
    assert about["hashes"] == {wheel.name: build.digest(wheel) for wheel in build.wheels("embedded.txt")}


def test_no_third_party_file_is_edited(pyz: Path) -> None:
    """Every file of pyroute2 in the archive has the hash that its wheel's RECORD gives."""
    (wheel,) = build.wheels("embedded.txt")
    with zipfile.ZipFile(wheel) as source:
        record = next(name for name in source.namelist() if name.endswith(".dist-info/RECORD"))
        known = {name: digest for name, digest, _ in csv.reader(source.read(record).decode().splitlines())}
    with zipfile.ZipFile(pyz) as archive:
        embedded = [name for name in archive.namelist() if name.startswith("site-packages/")]
        for name in embedded:
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert known[name.removeprefix("site-packages/")] == f"sha256={digest}", name
    assert bool(embedded) == bool(build.embedded_modules(build.SOURCE))


def test_only_what_can_be_imported_is_embedded(pyz: Path) -> None:
    """Each file of pyroute2 in the archive is loaded when the modules that ipsec.py names are imported from it."""
    names = build.embedded_modules(build.SOURCE)
    if not names:
        return
    loaded = run(PYTHON, "-ISBc", build.TRACE, f"{pyz}/site-packages", *names, check=True).stdout.splitlines()
    loaded = [name for name in loaded if "ipsec.pyz/" in name]
    with zipfile.ZipFile(pyz) as archive:
        embedded = {name for name in archive.namelist() if name.startswith("site-packages/")}
    assert {name.partition("ipsec.pyz/")[2] for name in loaded} == embedded


def test_bytecode_for_every_interpreter_found(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        packed = {name for name in archive.namelist() if name.startswith("bytecode/")}
    found = build.interpreters()
    assert packed == {f"bytecode/cpython-{version.replace('.', '')}.{part}" for version in found
                      for part in ("front", "rest")}
    for python in found.values():
        asked = run(python, pyz, "version", "--verbose", check=True)
        assert f"({python})" in asked.stdout or "Python " in asked.stdout


def origin(python: str | Path, archive: Path) -> str:
    """How the module came to run: `bytecode` or `source`."""
    script = f"""
import os, runpy, sys
os._exit = lambda status: sys.exit(status)
sys.argv = ["ipsec", "--directory"]
sys.path.insert(0, {str(archive)!r})
try:
    runpy.run_path({str(archive)!r}, run_name="__main__")
finally:
    module = sys.modules["ipsec"]
    print("source" if getattr(module, "__spec__", None) else "bytecode")
"""
    return run(python, "-I", "-c", script, check=True).stdout.split()[-1]


def test_bytecode_is_used_and_foreign_bytecode_is_not(pyz: Path, tmp_path: Path) -> None:
    assert origin(PYTHON, pyz) == "bytecode"
    changed = tmp_path / "ipsec.pyz"
    for how in ("gone", "of another magic number"):
        with zipfile.ZipFile(pyz) as source, zipfile.ZipFile(changed, "w") as target:
            for entry in source.infolist():
                if not entry.filename.startswith("bytecode/"):
                    target.writestr(entry, source.read(entry))
                elif how != "gone":
                    target.writestr(entry, b"\x00\x00\r\n" + source.read(entry)[4:])
        assert origin(PYTHON, changed) == "source", how


HOSTILE = "open({mark!r}, 'a').write(__name__ + '\\n'); raise SystemExit('hostile module ' + __name__)\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory of modules that nobody wants to import."""
    directory = tmp_path / "hostile"
    text = HOSTILE.format(mark=str(tmp_path / "mark"))
    for name in ("socket", "subprocess", "struct", "json", "ipsec", "start", "select", "fnmatch", "codecs_", "signal",
                 "textwrap", "difflib"):
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text(text)
    for name in ("pyroute2", "bytecode", "_bootstrap"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(text)
    return directory


@pytest.mark.parametrize("words", [["--help"], ["barf", "--section", "hostname/fqdn", "--section", "uptime"],
                                   ["barf", "--json", "--section", "iptables"], ["nosuchcommand"]])
def test_hostile_modules_are_not_imported(pyz: Path, hostile: Path, tmp_path: Path, words: list[str]) -> None:
    shutil.copy(pyz, hostile / "ipsec.pyz")
    environment = {"PYTHONPATH": f"{hostile}:", "PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "",
                   "PYTHONSTARTUP": str(hostile / "socket.py")}
    result = run(PYTHON, "ipsec.pyz", *words, cwd=hostile, env=environment)
    assert "hostile" not in result.stderr and not (tmp_path / "mark").exists()
    assert result.returncode == (1 if words == ["nosuchcommand"] else 0)


def test_it_can_be_started_in_every_way(pyz: Path, tmp_path: Path) -> None:
    wanted = run(PYTHON, pyz, "--directory", check=True).stdout
    link = tmp_path / "ipsec"
    link.symlink_to(pyz)
    ways: list[Callable[[], subprocess.CompletedProcess[str]]] = [
        lambda: run(PYTHON, "-I", pyz, "--directory"), lambda: run(PYTHON, "-I", "-S", pyz, "--directory"),
        lambda: run(PYTHON, link, "--directory"), lambda: run(PYTHON, "-X", "utf8", pyz, "--directory"),
        lambda: run(PYTHON, pyz, "--directory", env={}), lambda: run(PYTHON, pyz, "--directory", cwd="/"),
        lambda: run("sh", "-c", '"$0" "$1" --directory <&-', PYTHON, pyz)]
    if os.access("/usr/bin/python3", os.X_OK):
        ways += [lambda: run(pyz, "--directory"), lambda: run(link, "--directory")]
    for number, way in enumerate(ways):
        result = way()
        assert (result.returncode, result.stdout) == (0, wanted), (number, result.stderr)


def test_nothing_can_be_written_and_nothing_needs_to_be(pyz: Path, tmp_path: Path, alone: list[str]) -> None:
    """Every mount read-only, no HOME, no environment at all: it runs; and where it could write, it has not."""
    script = """
set -e
mount --make-rprivate /
mount -o remount,bind,ro /
for place in /tmp /dev/shm /run /var/tmp; do mount -t tmpfs -o ro none "$place" 2>/dev/null || :; done
mkdir -p /tmp/x 2>/dev/null && exit 99
exec env -i "$0" "$1" barf --section version --section nftables --section uptime
"""
    copy = TOP / "ipsec.pyz"
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    result = run(*words, "sh", "-c", script, PYTHON, copy)
    assert result.returncode == 0, result.stderr
    assert "Libreswan" in result.stdout and "load average" in result.stdout
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/bin:/bin"}
    run(PYTHON, pyz, "barf", env=environment, cwd=home, check=True)
    assert os.listdir(home) == []
