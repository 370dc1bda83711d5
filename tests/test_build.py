"""The archive: what is in it, that it is reproducible, that it starts clean and leaves nothing behind, everywhere."""

from __future__ import annotations

import ast
import base64
import csv
import errno
import glob
import hashlib
import json
import marshal
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import build
from ipsec import VERSION, WINDOW
from tests.ground import host

TOP = Path(build.__file__).parent
PYTHON = sys.executable


def run(*argv: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"check": False, "timeout": 600, **options}
    return subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          **settings)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, pyz: Path) -> Path:
    """A copy of the sources, git's files and the fetched wheels elsewhere, without .venv."""
    copy = tmp_path_factory.mktemp("elsewhere") / "deeper" / "copy"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".venv", "__pycache__", "ipsec.pyz", ".*_cache", "dist"))
    return copy


@pytest.fixture
def alone() -> list[str]:
    """Words that run a program in a network namespace of its own, with no interface but loopback."""
    return namespaces("--net")


def namespaces(*kinds: str) -> list[str]:
    """Return words that run a program as root in namespaces of its own; the test is skipped if none can be made."""
    words = [*kinds, *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    reason = host.refused(*words)
    if reason:
        pytest.skip(reason)
    return ["unshare", *words]


def test_second_build_is_identical_and_needs_no_network(checkout: Path, pyz: Path, alone: list[str]) -> None:
    """Another directory, umask, locale, time zone and hash seed; the same interpreters are found."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    result = run(*alone, "sh", "-c", 'umask 077; exec "$0" build.py', PYTHON, cwd=checkout, env=environment)
    assert result.returncode == 0, result.stderr
    assert (checkout / "ipsec.pyz").read_bytes() == pyz.read_bytes()


def test_size_and_what_shiv_says(pyz: Path) -> None:
    assert pyz.stat().st_size <= build.SIZE_LIMIT == 1_800_000
    with zipfile.ZipFile(pyz) as archive:
        settings = json.loads(archive.read("environment.json"))
    assert settings["entry_point"] == "ipsec:main" and settings["shiv_version"] == build.version_of("shiv")
    assert settings["hashes"] == {wheel.name: build.digest(wheel) for wheel in build.wheels("embedded.txt")}


def test_only_names_and_contents_count(pyz: Path) -> None:
    """Nothing of the disk that built it is in the archive: order, dates, modes; and nothing that extracts it."""
    with zipfile.ZipFile(pyz) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert pyz.stat().st_mode & 0o777 == 0o755
    assert not any(entry.filename.startswith("_bootstrap") for entry in entries)


# What a program does that uses pyroute2: it adds, lists and deletes in a namespace of its own
USES_PYROUTE2 = '''
@command("linkup", summary="none")
def linkup(host: Host, args: Args) -> int:
    iproute = pyroute2_module("pyroute2.iproute", "linkup")
    with iproute.IPRoute() as ip:
        lo = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=lo, state="up")
        ip.addr("add", index=lo, address="192.0.2.7", prefixlen=32)
        ip.route("add", dst="198.51.100.0/24", oif=lo)
        print(*(route.get_attr("RTA_DST") for route in ip.get_routes(family=2, table=254)))
    return OK
'''


@pytest.fixture(scope="module")
def routing(checkout: Path) -> Path:
    """An archive whose program uses more of pyroute2 than ipsec.py does."""
    source = checkout / "ipsec.py"
    text = source.read_text()
    banner = text.index("# 12. Dispatch")
    source.write_text(text[:text.rindex("# ====", 0, banner)] + USES_PYROUTE2 + text[text.rindex("# ====", 0, banner):])
    try:
        # without build.py's limit of the size: where one interpreter is found, this program is larger
        # and for one interpreter only; the others compile what they need
        make = ("import build, pathlib; version, python = next(iter(build.interpreters().items())); "
                "build.make_archive(pathlib.Path('routing.pyz'), {version: python})")
        run(PYTHON, "-c", make, cwd=checkout, check=True)
        return Path(shutil.move(checkout / "routing.pyz", checkout.parent))
    finally:
        source.write_text(text)


def test_pyroute2_works_from_the_archive(routing: Path, alone: list[str]) -> None:
    for python in build.interpreters().values():
        result = run(*alone, python, routing, "linkup")
        assert (result.returncode, result.stdout) == (0, "198.51.100.0\n"), (python, result.stderr)


def test_no_third_party_file_is_edited(routing: Path) -> None:
    """Every file of pyroute2 in the archive has the hash that its wheel's RECORD gives."""
    (wheel,) = build.wheels("embedded.txt")
    with zipfile.ZipFile(wheel) as source:
        record = next(name for name in source.namelist() if name.endswith(".dist-info/RECORD"))
        known = {name: digest for name, digest, _ in csv.reader(source.read(record).decode().splitlines())}
    with zipfile.ZipFile(routing) as archive:
        embedded = [name for name in archive.namelist() if name.startswith("site-packages/")]
        licences = [name for name in known if ".dist-info/licenses/" in name]
        assert licences and set(embedded) >= {f"site-packages/{name}" for name in licences}
        for name in embedded:
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert known[name.removeprefix("site-packages/")] == f"sha256={digest}", name
    assert embedded


def loaded_from(archive: Path, names: list[str]) -> set[str]:
    """The files of the archive that some interpreter loads when it imports these modules from it."""
    words = ["-ISBc", build.TRACE, f"{archive}/site-packages", *names]
    paths: set[str] = set()
    for python in build.interpreters().values():
        paths.update(run(python, *words, check=True).stdout.split())
    return {path.partition(f"{archive.name}/")[2] for path in paths if f"{archive.name}/" in path}


def test_only_what_can_be_imported_is_embedded(routing: Path, pyz: Path) -> None:
    """Each file of pyroute2 in the archive is loaded when the modules that the program names are imported from it."""
    names = build.embedded_modules(build.SOURCE)
    for archive, wanted in ((routing, [*names, "pyroute2.iproute"]), (pyz, names)):
        with zipfile.ZipFile(archive) as packed:
            embedded = {name for name in packed.namelist() if name.startswith("site-packages/pyroute2/")}
        assert embedded == (loaded_from(archive, wanted) if wanted else set())


def members(*tags: str) -> set[str]:
    """The names of the members of bytecode/ for these tags."""
    return {"bytecode/common.blocks", *(f"bytecode/{tag}.{part}" for tag in tags for part in ("front", "blocks"))}


def test_bytecode_for_every_interpreter_found(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        packed = {name for name in archive.namelist() if name.startswith("bytecode/")}
    interpreters = build.interpreters()
    tags = map(build.tag_of, interpreters)
    assert packed == members("source", *tags)
    wanted = run(PYTHON, "ipsec.py", "help", cwd=TOP, check=True).stdout
    for python in interpreters.values():
        assert run(python, pyz, "help", check=True).stdout == wanted


def test_a_small_archive_is_for_the_interpreters_that_are_named(checkout: Path) -> None:
    version = next(iter(build.interpreters()))
    result = run(PYTHON, "build.py", "--for", version, cwd=checkout, check=True)
    assert f"starts fast on Python {version}\nipsec.pyz starts more slowly on " in result.stdout
    with zipfile.ZipFile(checkout / "ipsec.pyz") as archive:
        packed = {name for name in archive.namelist() if name.startswith("bytecode/")}
    assert packed == members("source", build.tag_of(version))
    assert (checkout / "ipsec.pyz").stat().st_size <= build.SIZE_LIMIT_OF_ONE == 650_000
    result = run(PYTHON, "build.py", "--for", "3.8", cwd=checkout)
    assert (result.returncode, result.stderr.startswith("build.py: --for 3.8: ")) == (1, True)


def without_bytecode(archive: Path, target: Path, kept: bytes | None = None) -> Path:
    """Copy an archive without its bytecode, or with the magic number `kept` in its place."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            if not entry.filename.startswith("bytecode/cpython"):
                copy.writestr(entry, source.read(entry))
            elif kept is not None:
                copy.writestr(entry, kept + source.read(entry)[4:])
    return target


# A user without an entry in the user database may have no home
OLD = [path for path in map(Path, sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python"))))
       if path.parts[-3].startswith(("2.7.", "3.6.", "3.7.", "3.8."))]


def test_an_old_python_is_told_what_is_needed(pyz: Path) -> None:
    """One line, status 1, no traceback: with a real old interpreter where there is one, and by its syntax."""
    for python in OLD:
        result = run(python, pyz, "barf")
        version = python.parts[-3]
        line = f"ipsec needs Python 3.9 or later; this is {version} ("
        assert (result.returncode, result.stdout) == (1, ""), version
        assert result.stderr.startswith(line) and result.stderr.count("\n") == 1, result.stderr
    for text in (build.MAIN, build.TOO_OLD):
        ast.parse(text, feature_version=(3, 4))


def test_the_builder_names_the_python_that_it_needs(checkout: Path) -> None:
    ast.parse(Path(build.__file__).read_text(), feature_version=(3, 8))
    for python in OLD:
        if python.parts[-3].startswith("3.8."):
            result = run(python, "build.py", cwd=checkout)
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith("build.py needs Python 3.9 or later; this is 3.8."), result.stderr
            assert result.stderr.count("\n") == 1


def test_a_newer_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    """The newest that can be run, by its own path: RHEL's platform-python is one, and one that is too old is none."""
    for name, mode in (("python3.6", 0o755), ("python3.9", 0o755), ("python3.30", 0o644)):
        (tmp_path / name).touch(mode)
    for name, target in (("python3", "python3.6"), ("platform-python", "python3.9")):
        (tmp_path / name).symlink_to(target)
    module: dict[str, Any] = {}
    exec(build.TOO_OLD, module)
    real = glob.glob
    monkeypatch.setattr(glob, "glob", lambda pattern: real(f"{tmp_path}/{os.path.basename(pattern)}"))
    assert module["newest"]() in (f"{tmp_path}/python3.9", f"{tmp_path}/platform-python")
    with pytest.raises(SystemExit) as ending:
        module["stop"]()
    assert ending.value.code == 1
    assert re.fullmatch(r"ipsec needs Python 3.9 or later; this is [0-9.]+ \(/.*\); run it with /.*\n",
                        capsys.readouterr().err)
    (tmp_path / "python3.9").unlink()
    assert module["newest"]() == ""


def test_newest_of_each_version_is_taken_whatever_the_order_of_path(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    for place, patch in (("old", 2), ("new", 11), ("middle", 4), ("odd", 99)):
        python = tmp_path / place / "python3"
        python.parent.mkdir()
        level = "candidate" if place == "odd" else "final"
        python.write_text(f"#!/bin/sh\necho 3.14 {patch} cpython-314 {level}\n")
        python.chmod(0o755)
    for order in (("old", "new", "middle", "odd"), ("odd", "new", "middle", "old")):
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / place) for place in order))
        monkeypatch.setenv("HOME", str(tmp_path))
        assert build.interpreters()["3.14"] == tmp_path / "new" / "python3"


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
    print("source" if module.run.__code__.co_filename else "bytecode")
"""
    return run(python, "-I", "-c", script, check=True).stdout.split()[-1]


def test_bytecode_is_used_and_foreign_bytecode_is_not(pyz: Path, tmp_path: Path) -> None:
    assert origin(PYTHON, pyz) == "bytecode"
    for number, kept in enumerate((None, b"\0\0\r\n")):
        changed = without_bytecode(pyz, tmp_path / f"{number}.pyz", kept)
        assert origin(PYTHON, changed) == "source", kept


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


def test_what_unpacks_the_archive_is_the_library_s_own(pyz: Path, tmp_path: Path) -> None:
    """zlib is a file of the library in most interpreters, and is needed to read the archive.  (-S: the site's .pth
    files may import what they like, before anything of ours runs.)"""
    (tmp_path / "zlib.py").write_text(HOSTILE.format(mark=str(tmp_path / "mark")))
    (tmp_path / "gc.py").write_text(HOSTILE.format(mark=str(tmp_path / "mark")))
    for python in build.interpreters().values():
        result = run(python, "-S", pyz, "help", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
        assert result.returncode == 0 and not (tmp_path / "mark").exists(), (python, result.stderr)


def test_it_can_be_started_in_every_way(pyz: Path, tmp_path: Path) -> None:
    wanted = run(PYTHON, pyz, "--directory", check=True).stdout
    link = tmp_path / "ipsec"
    link.symlink_to(pyz)
    ways: list[Callable[[], subprocess.CompletedProcess[str]]] = [
        lambda: run(PYTHON, "-I", pyz, "--directory"), lambda: run(PYTHON, "-I", "-S", pyz, "--directory"),
        lambda: run(PYTHON, link, "--directory"), lambda: run(PYTHON, "-X", "utf8", pyz, "--directory"),
        lambda: run(PYTHON, pyz, "--directory", env={}),
        lambda: run(PYTHON, pyz.name, "--directory", cwd=pyz.parent), lambda: run(PYTHON, pyz, "--directory", cwd="/"),
        lambda: run("sh", "-c", '"$0" "$1" --directory <&-', PYTHON, pyz)]
    if os.access("/usr/bin/python3", os.X_OK):
        ways += [lambda: run(pyz, "--directory"), lambda: run(link, "--directory")]
    for number, way in enumerate(ways):
        result = way()
        assert (result.returncode, result.stdout) == (0, wanted), (number, result.stderr)


def test_nothing_can_be_written_and_nothing_needs_to_be(pyz: Path, tmp_path: Path) -> None:
    """Every mount read-only, no HOME, no environment at all: it runs; and where it could write, it has not."""
    script = """
set -e
mount --make-rprivate /
for place in $(cut -d " " -f 2 /proc/self/mounts | sort -u); do
    mount -o remount,bind,ro "$place" 2>/dev/null || :
done
for place in /tmp /dev/shm /run /var/tmp "$(dirname "$1")"; do
    mkdir "$place/written" 2>/dev/null && exit 99
done
exec env -i "$0" "$1" barf --section version --section nftables --section uptime
"""
    copy = TOP / "ipsec.pyz"
    result = run(*namespaces("--mount"), "sh", "-c", script, PYTHON, copy)
    assert result.returncode == 0, result.stderr
    assert "Libreswan" in result.stdout and "load average" in result.stdout
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/bin:/bin"}
    run(PYTHON, pyz, "barf", env=environment, cwd=home, check=True)
    assert os.listdir(home) == []


def import_script(archive: Path) -> str:
    """Return Python lines that import `ipsec` from the archive as `module`; the command that they run does not exit."""
    return f"""
import os, runpy, sys
os._exit = lambda status: None
sys.path.insert(0, {str(archive)!r})
sys.argv = ["ipsec", "--directory"]
runpy.run_path({str(archive)!r}, run_name="__main__")
module = sys.modules["ipsec"]
"""


def loaded_for(python: str | Path, archive: Path, name: str, part: str = "") -> list[str]:
    """Return the functions and classes that are there once a command is loaded, and then a part, in their order."""
    script = import_script(archive) + f"""
module.load_rest({name!r})
assert {name!r} in module.COMMANDS, "not registered"
assert not {part!r} or module.load_part({part!r}) is vars(module)[{part!r}]
print(*(name for name, value in vars(module).items() if getattr(value, "__module__", "") == "ipsec"))
"""
    return run(python, "-I", "-c", script, check=True).stdout.splitlines()[-1].split()


def test_a_command_loads_the_blocks_that_it_needs(pyz: Path, tmp_path: Path) -> None:
    """And no others; the same ones from bytecode and from the source."""
    loaded = loaded_for(PYTHON, pyz, "nsslist")
    assert "NssDatabase" in loaded
    assert not {"Updown", "find_service", "verify_command"} & set(loaded)
    assert loaded_for(PYTHON, without_bytecode(pyz, tmp_path / "ipsec.pyz"), "nsslist") == loaded


def test_threads_that_load_the_same_code_run_each_block_once(pyz: Path) -> None:
    """Sections of a report load parts in their threads.  A second run would define the tables of causes again."""
    script = import_script(pyz) + """
import collections, threading
runs = collections.Counter()
other = threading.Thread(target=module.load_rest, args=["barf"])

def run(code, space):
    if not other.ident:
        other.start()
        other.join(1)
    runs[code.co_names] += 1
    exec(code, space)

module.exec = run
module.load_rest("barf")
other.join()
print(max(runs.values()), len(runs) > 5)
"""
    assert run(PYTHON, "-I", "-c", script, check=True).stdout.splitlines()[-1] == "1 True"


@pytest.mark.parametrize("name", ["status", "up", "_updown", "tunnels", "metrics"])
def test_what_programs_call_often_loads_little(pyz: Path, tmp_path: Path, name: str) -> None:
    """The search for causes is loaded when a tunnel fails, not before."""
    slow = without_bytecode(pyz, tmp_path / "ipsec.pyz")
    causes = {"verify_command", "why_command", "look_command"}
    for archive in (pyz, slow):
        assert not causes & set(loaded_for(PYTHON, archive, name))
        assert {"Diagnoser", "why_command"} <= set(loaded_for(PYTHON, archive, name, "Diagnoser"))


def test_the_index_has_every_command_and_its_blocks_bind_what_they_use() -> None:
    """The index comes from the text; the names that are really registered come from running it."""
    names = run(PYTHON, "-c", "import ipsec; print(*ipsec.COMMANDS)", cwd=TOP, check=True).stdout.split()
    text = build.SOURCE.read_bytes()
    front, blocks = build.parted(text)
    index = build.needs(text)
    in_front = set(build.commands_in(build.text_of(text, front)))
    parts = {name for name in index if name.startswith(":")}
    assert (set(index) | in_front) - parts == set(names) and not set(index) & in_front
    codes = [build.compiled(text, [piece]) for piece in blocks]
    bound = [set(build.bound_names(code)) for code in codes]
    all_bound = set().union(*bound)
    used = [all_bound.intersection(build.used_names(code)) for code in codes]
    for name, bits in index.items():
        loaded = [number for number in range(len(blocks)) if bits >> number & 1]
        there = set().union(*(bound[number] for number in loaded))
        assert set().union(*(used[number] for number in loaded)) <= there, name
        assert name not in parts or name[1:] in there


def test_blocks_fill_no_table_of_another_block() -> None:
    """A block that a command does not need can't change what the command finds: tables grow in their own block only."""
    text = build.SOURCE.read_bytes()
    front, blocks = build.parted(text)
    module: dict[str, Any] = {"__name__": "ipsec"}
    exec(build.compiled(text, front), module)
    for piece in blocks:
        before = {name: len(value) for name, value in module.items()
                  if isinstance(value, (dict, list, set)) and name != "COMMANDS" and not name.startswith("__")}
        exec(build.compiled(text, [piece]), module)
        assert before == {name: len(module[name]) for name in before}, f"the block at line {piece[0] + 1}"


def test_the_source_in_the_archive_lacks_prose_and_annotations_only(pyz: Path) -> None:
    """All lines are there, with their numbers and the banners; the bytecode is that of the whole source."""
    whole = build.SOURCE.read_bytes()
    bare = build.without_prose(whole)
    with zipfile.ZipFile(pyz) as archive:
        assert archive.read("ipsec.py") == bare
    assert len(bare.splitlines()) == len(whole.splitlines()) and len(bare) < 0.9 * len(whole)
    assert b"SPDX-License-Identifier" in bare
    assert [line for line in bare.splitlines() if build.BANNER.match(line.decode())] == [
        line for line in whole.splitlines() if build.BANNER.match(line.decode())]
    assert ast.dump(ast.parse(bare)) == ast.dump(Bare().visit(ast.parse(whole)))


class Bare(ast.NodeTransformer):
    """Takes docstrings and annotations away, except the annotations of fields; `""` stands in an empty body."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [field if isinstance(field, ast.AnnAssign) else self.visit(field) for field in node.body]
        return self.without_docstring(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.without_docstring(self.generic_visit(node))

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self.without_docstring(self.generic_visit(node))

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value) if node.value else node

    def without_docstring(self, node: ast.AST) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Expr(ast.Constant(""))]
        return node


def test_blocks_without_bytecode_are_those_of_commands_that_can_wait(pyz: Path) -> None:
    text = build.without_prose(build.SOURCE.read_bytes())
    pieces = build.parted(text)[1]
    with zipfile.ZipFile(pyz) as archive:
        for version in build.interpreters():
            index, *blocks = marshal.loads(archive.read(f"bytecode/{build.tag_of(version)}.blocks"))
            titles = {number: build.title_of(text, pieces[number]) for number, block in enumerate(blocks)
                      if not isinstance(block, list)}
            assert sorted(titles.values()) == sorted(build.late_titles(build.interpreters()))
            for name in ("status", "up", "down", "start", "_updown", "verify", "checknflog", "whack"):
                late = {title for number, title in titles.items() if index[name] >> number & 1}
                assert late <= (set(build.COMPILED_LATE_IF_SMALL) if name in ("verify", "start") else set()), name


def test_the_parts_of_a_block_are_its_text() -> None:
    """Each part begins with a statement, is on the line that it has in the file, and is about as long as PART."""
    text = build.without_prose(build.SOURCE.read_bytes())
    for piece in build.parted(text)[1]:
        parts = build.parts_of(text, piece)
        assert b"".join(text[start:end] for _, start, end in parts) == text[piece[1]:piece[2]]
        for number, (line, start, end) in enumerate(parts):
            assert text[:start].count(b"\n") == line
            if number:
                first = ast.parse(text[start:end]).body[0]
                assert min(node.lineno for node in (first, *getattr(first, "decorator_list", ()))) == 1
            assert number == len(parts) - 1 or end - start >= build.PART


def test_both_ends_use_the_same_window() -> None:
    assert build.WINDOW == WINDOW


def test_a_name_that_is_loaded_later_stops_the_build() -> None:
    text = build.SOURCE.read_text()
    later = text.replace("# 6. Whack\n", "# 6. Whack\n\nLATER = 1\n")
    for banner, message in (("# 2. Host\n", "use LATER, but the section that defines it is loaded later"),
                            ("# 4. Configuration\n", "uses LATER in a section before the one that defines it")):
        with pytest.raises(SystemExit, match=message):
            build.needs(later.replace(banner, f"{banner}\n\nEARLY = LATER\n").encode())


def test_the_archive_says_what_it_is_made_of(pyz: Path) -> None:
    """Its commit, what is embedded in which version and with which licence; the texts of both licences are in it."""
    lines = run(PYTHON, pyz, "version", "--verbose", check=True).stdout.splitlines()
    embedded = [f"embeds parts of {name.replace('==', ' ')}, " for name in build.pinned("embedded.txt")]
    assert lines[1:3] == [f"ipsec.pyz {VERSION}, GPL-2.0-or-later", build.commit_line()]
    assert len(embedded) == 1 and lines[3] == f"{embedded[0]}GPL-2.0-or-later OR Apache-2.0, unchanged"
    plain = run(PYTHON, "ipsec.py", "version", "--verbose", cwd=TOP, check=True).stdout.splitlines()
    assert plain[1:3] == [lines[1], "commit unknown, unknown date"]
    with zipfile.ZipFile(pyz) as archive:
        assert archive.read("LICENSE") == (TOP / "LICENSE").read_bytes()
        texts = [archive.read(name) for name in archive.namelist() if ".dist-info/licenses/" in name]
    assert any(b"GNU GENERAL PUBLIC LICENSE" in text for text in texts)
    assert any(b"Apache License" in text for text in texts)


def test_every_source_file_names_its_licence() -> None:
    for path in (build.SOURCE, TOP / "build.py"):
        assert "# SPDX-License-Identifier: GPL-2.0-or-later" in path.read_text().splitlines()[:3], path


@pytest.fixture
def repository(checkout: Path) -> Callable[..., str]:
    """Runs git in the copy of the checkout, whose files are committed in a new repository."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def git(*words: str) -> str:
        owner = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
        return run("git", *owner, *words, cwd=checkout, check=True).stdout

    shutil.rmtree(checkout / ".git", ignore_errors=True)
    git("init", "-q")
    git("add", "--all")
    git("commit", "-q", "-m", "all files")
    return git


def test_a_release(checkout: Path, repository: Callable[..., str], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be right before a release, what is in it, and that the same sources give it again.

    PATH and HOME lead to few interpreters, which makes the archive quickly.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(Path(PYTHON).resolve())
    monkeypatch.setenv("PATH", f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))

    def refusal() -> str:
        result = run(PYTHON, "build.py", "release", cwd=checkout)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result
        assert not (checkout / "dist").exists()
        return result.stderr

    changes = checkout / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## {VERSION}", "## Earlier").replace("## Unreleased", "## 9.9"))
    assert refusal() == "build.py: release: the checkout has uncommitted changes: CHANGELOG.md\n"
    repository("commit", "-q", "-a", "-m", "another version")
    assert f"CHANGELOG.md has no heading for this version: write ## {VERSION}" in refusal()
    changes.write_text(changes.read_text().replace("## 9.9", f"## {VERSION}"))
    repository("commit", "-q", "-a", "-m", "this version")
    repository("tag", "v9.9")
    assert f"the commit has the tag v9.9, but the version in ipsec.py is {VERSION}" in refusal()
    repository("tag", f"v{VERSION}")
    released = []
    for _ in range(2):
        run(PYTHON, "build.py", "release", cwd=checkout, check=True)
        released.append({path.name: path.read_bytes() for path in (checkout / "dist").iterdir()})
    assert released[0] == released[1]
    share = f"ipsec-{VERSION}-share.tar.gz"
    assert set(released[0]) == {"ipsec.pyz", share, "BUILD-INFO", "SHA256SUMS"}
    assert run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=checkout / "dist").returncode == 0
    commit = repository("log", "-1", "--format=%H, %cs").strip()
    about = released[0]["BUILD-INFO"].decode()
    assert about.startswith(f"ipsec {VERSION}, commit {commit}\nzlib ")
    assert re.findall(r"^bytecode by Python (3\.\d+)", about, re.M) == list(build.interpreters())
    verbose = run(PYTHON, "dist/ipsec.pyz", "version", "--verbose", cwd=checkout, check=True).stdout
    assert f"\ncommit {commit}\n" in verbose
    with tarfile.open(checkout / "dist" / share) as packed:
        names = packed.getnames()
    pages = [f"share/man/man{page.suffix[1:]}/{page.name}" for page in (TOP / "man").glob("*.[1-8]")]
    assert set(names) == {*pages, "share/bash-completion/completions/ipsec", "share/zsh/site-functions/_ipsec",
                          "share/fish/vendor_completions.d/ipsec.fish"}


def test_a_release_needs_git(checkout: Path, tmp_path: Path) -> None:
    for name in ("build.py", "ipsec.py", "CHANGELOG.md"):
        shutil.copy(checkout / name, tmp_path)
    result = run(PYTHON, "build.py", "release", cwd=tmp_path)
    reason = "release: this is not a git checkout, or git is not installed"
    assert (result.returncode, result.stderr) == (1, f"build.py: {reason}\n")


def test_without_a_network_one_line_says_what_could_not_be_fetched(checkout: Path, alone: list[str],
                                                                        tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("wheels", ".venv", ".git"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    result = run(*alone, PYTHON, "build.py", cwd=copy, env={**environment, "PIP_CONFIG_FILE": os.devnull})
    pins = [*build.pinned("builder.txt"), *build.pinned("embedded.txt")]
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    names = " and ".join(pins).replace("==", " ")
    assert result.stderr.startswith(f"build.py: can't fetch {names}: Temporary failure in name resolution (")


def test_what_cannot_be_written_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ARCHIVE", Path("/proc/ipsec.pyz"))
    monkeypatch.setattr(build, "make_archive", lambda target, pythons: target.write_bytes(b""))
    monkeypatch.setattr(sys, "argv", ["build.py"])
    with pytest.raises(SystemExit, match=r"^build\.py: /proc/\.ipsec\.pyz\.[0-9]+: No such file or directory$"):
        build.main()


def test_a_full_disk_under_the_output_is_named_in_one_line() -> None:
    result = run("sh", "-c", 'exec "$0" -c "import build; build.say(str())" >/dev/full', PYTHON, cwd=TOP)
    assert (result.returncode, result.stderr) == (1, "build.py: standard output: No space left on device\n")


def test_a_venv_that_cannot_be_created_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "VENV", Path("/proc/nowhere/.venv"))
    monkeypatch.setattr(build, "find_pip", lambda: (PYTHON, "/nowhere"))
    with pytest.raises(SystemExit, match=r"^build\.py: can't create /proc/nowhere/\.venv: .*No such file"):
        build.make_venv()


def test_the_reason_why_pip_cannot_be_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """venv says only that ensurepip failed; and no half a venv is left."""
    monkeypatch.setattr(build, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(build, "find_pip", lambda: (PYTHON, ""))
    real = subprocess.run

    def full_disk(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "ensurepip" in words:
            text = "ERROR: Could not install: [Errno 28] No space left on device\n  a traceback\n"
            return subprocess.CompletedProcess(words, 1, "", text)
        return real(words, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "run", full_disk)
    with pytest.raises(SystemExit, match=r"\.venv: Could not install: \[Errno 28\] No space left on device$"):
        build.make_venv()
    assert os.listdir(tmp_path) == []


def test_check_reads_the_project_s_own_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the directory root/, for example, which the README's recipe of an initramfs makes in the checkout."""
    calls: list[list[str]] = []
    monkeypatch.setattr(build, "call", lambda words, **options: calls.append([str(word) for word in words]))
    monkeypatch.setattr(build, "install", lambda lock: None)
    monkeypatch.setattr(build, "check_manual", lambda: None)
    build.check([])
    (ruff,) = [words for words in calls if words[0].endswith("/ruff")]
    program = Path(PYTHON).with_name("ruff")
    (tmp_path / "tests").mkdir()
    for name in ("ipsec.py", "build.py", "tests/test_one.py"):
        (tmp_path / name).touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/foreign.py").write_text("import os, sys\n")
    assert run(program, *ruff[1:], "--isolated", cwd=tmp_path).returncode == 0
    (tmp_path / "tests/test_one.py").write_text("import os, sys\n")
    assert run(program, *ruff[1:], "--isolated", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("given, year", [("", 1980), ("0", 1980), ("1700000000", 2023), ("99999999999", 2107)])
def test_the_date_of_the_entries_is_one_that_a_zip_file_can_have(given: str, year: int) -> None:
    script = "import build, time, zipfile; zipfile.ZipInfo('', time.gmtime(build.EPOCH)[:6]); print(build.EPOCH)"
    result = run(PYTHON, "-c", script, cwd=TOP, env={**os.environ, "SOURCE_DATE_EPOCH": given}, check=True)
    assert time.gmtime(int(result.stdout)).tm_year == year


def test_a_date_that_is_no_number_stops_the_build() -> None:
    result = run(PYTHON, "build.py", cwd=TOP, env={**os.environ, "SOURCE_DATE_EPOCH": "today"})
    line = "build.py: SOURCE_DATE_EPOCH='today' is not a number of seconds\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)


@pytest.mark.parametrize("verb", ["check", "release", "clean"])
def test_arguments_that_a_verb_does_not_have_are_refused(verb: str) -> None:
    result = run(PYTHON, "build.py", verb, "word", cwd=TOP)
    assert result.returncode == 2 and result.stderr.endswith(f"build.py: error: {verb} has no arguments\n")


def test_a_program_that_fails_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sh", "-c", "echo one >&2; echo two >&2; exit 3"]

    def fail(arguments: Sequence[str]) -> None:
        subprocess.run(words, check=True, stderr=subprocess.PIPE, text=True)

    monkeypatch.setitem(build.VERBS, "clean", fail)
    monkeypatch.setattr(sys, "argv", ["build.py", "clean"])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert str(ended.value) == "build.py: sh ended with status 3: two"


def test_a_full_disk_is_named_by_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(arguments: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(build.VERBS, "clean", fill)
    monkeypatch.setattr(sys, "argv", ["build.py", "clean"])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert str(ended.value) == f"build.py: No space left on device (below {TOP} or {tempfile.gettempdir()})"


def test_packages_are_installed_again_for_another_place_or_python(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A moved checkout, whose scripts name the old place, and an upgraded Python, which has another lib directory."""
    run_pip = Mock(return_value="")
    monkeypatch.setattr(build, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(build, "run_pip", run_pip)
    monkeypatch.setattr(build, "find_pip", lambda: (PYTHON, "/nowhere"))

    def installs() -> int:
        build.install("developer.txt")
        verbs = [call.args[0] for call in run_pip.call_args_list]
        run_pip.reset_mock()
        return verbs.count("install")

    assert [installs(), installs()] == [1, 0]
    monkeypatch.setattr(build, "VENV", (tmp_path / ".venv").rename(tmp_path / "moved"))
    assert [installs(), installs()] == [1, 0]
    link = tmp_path / "moved/bin/python"
    link.unlink()
    link.write_text("#!/bin/sh\necho another version\n")
    link.chmod(0o755)
    assert [installs(), installs()] == [1, 0]
    link.unlink()
    assert [installs(), installs()] == [1, 0]


def test_a_python_without_the_whole_library_is_told_what_is_missing(tmp_path: Path) -> None:
    """Debian's python3-minimal lacks these modules; there, the builder can't run and says so in one line."""
    for name in ("gzip", "shutil", "zipfile"):
        script = f"import sys; sys.modules[{name!r}] = None; import build"
        result = run(PYTHON, "-c", script, cwd=TOP)
        line = f"build.py: this Python lacks the module {name}, which is a part of the standard library; "
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert result.stderr.startswith(line)


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_python_that_cannot_be_run_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Without the right to execute it, and in a format that the kernel does not know."""
    wanted = build.interpreters()
    (tmp_path / "python3").write_bytes(b"\x7fELF, but not for this processor")
    (tmp_path / "python3").chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert build.interpreters() == wanted


def test_an_interpreter_that_cannot_import_pyroute2_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python3-minimal beside a whole Python; but if none can import it, the build stops."""
    package = tmp_path / "library/pyroute2"
    package.mkdir(parents=True)
    (package / "one.py").touch()
    (package / "two.py").write_text("import nosuchmodule\n")
    minimal = tmp_path / "minimal"
    minimal.write_text("#!/bin/sh\nexit 1\n")
    minimal.chmod(0o755)
    monkeypatch.setattr(build, "interpreters", lambda: {"3.9": minimal, "3.10": Path(PYTHON)})
    build.embed(tmp_path / "library", ["pyroute2.one"], tmp_path / "target")
    assert os.listdir(tmp_path / "target/pyroute2") == ["one.py"]
    monkeypatch.setattr(build, "interpreters", dict)
    build.embed(tmp_path / "library", ["pyroute2.one"], tmp_path / "by this Python")
    assert os.listdir(tmp_path / "by this Python/pyroute2") == ["one.py"]
    monkeypatch.setattr(build, "interpreters", lambda: {"3.10": Path(PYTHON)})
    with pytest.raises(SystemExit, match="can import parts of pyroute2: .*No module named 'nosuchmodule'"):
        build.embed(tmp_path / "library", ["pyroute2.two"], tmp_path / "target")


def test_a_killed_build_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    """The signal comes while an interpreter compiles; and `clean` removes what SIGKILL left."""
    for name in ("bin", "scratch"):
        (tmp_path / name).mkdir()
    python = tmp_path / "bin/python3"
    python.write_text(f"""#!/bin/sh
case $* in *cache_tag*) echo 3.14 99 cpython-314 final; exit;; *COMPILE*|*marshal.load*) ;; *) exec {PYTHON} "$@";; esac
echo begun >{tmp_path}/begun
while [ ! -e {tmp_path}/go ]; do sleep 0.1; done
""")
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "scratch")}
    process = subprocess.Popen([PYTHON, "build.py"], cwd=checkout, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    (tmp_path / "go").touch()
    output = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert os.listdir(tmp_path / "scratch") == [] and list(checkout.glob(".ipsec.pyz.*")) == []
    (checkout / ".ipsec.pyz.1").touch()
    run(PYTHON, "build.py", "clean", cwd=checkout, check=True)
    assert list(checkout.glob(".ipsec.pyz.*")) == []


def test_the_commit_is_that_of_the_checkout_in_a_hook_of_git_too(monkeypatch: pytest.MonkeyPatch) -> None:
    line = build.commit_line()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert build.commit_line() == line


def test_ctrl_c_ends_the_builder_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: Sequence[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(build.VERBS, "clean", interrupt)
    monkeypatch.setattr(sys, "argv", ["build.py", "clean"])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 130


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH, on a machine whose interpreters have neither venv nor pip."""
    monkeypatch.setattr(build, "PROBE", "raise ImportError")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("user, program, words", [
    (1000, "apt-get", "sudo apt-get install python3-venv"), (1000, "dnf", "sudo dnf install python3-pip"),
    (0, "dnf", "dnf install python3-pip"), (0, "apk", "apk add py3-pip"), (0, "", "python3 -m ensurepip")])
def test_without_venv_and_pip_one_line_says_what_to_type(bare: Path, monkeypatch: pytest.MonkeyPatch, user: int,
                                                         program: str, words: str) -> None:
    if program:
        (bare / program).touch(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(SystemExit) as ending:
        build.find_pip()
    assert str(ending.value) == f"build.py: no Python 3.9 or later on this host has both venv and pip; type: {words}"


def test_root_is_told_before_a_package_is_installed(bare: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    (bare / "apt-get").write_text(f"""#!/bin/sh
echo "$*" >>{bare}/log
[ "$2" = update ] || {{ echo E: none >&2; exit 100; }}
echo "W: Failed to fetch http://mirror.invalid/InRelease  Temporary failure resolving 'mirror.invalid'" >&2
""")
    (bare / "apt-get").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SystemExit) as ending:
        build.find_pip()
    cause = "Temporary failure resolving 'mirror.invalid'"
    assert str(ending.value) == f"build.py: can't install python3-venv: apt-get: E: none ({cause})"
    assert capsys.readouterr().out == ("installing the package python3-venv with apt-get, to fetch the packages of "
                                       "vendor/*.txt; no Python on this host has both venv and pip\n")
    assert (bare / "log").read_text() == "-q update\n-q -y --no-install-recommends install python3-venv\n"
