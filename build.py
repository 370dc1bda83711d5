#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build, test, check and measure ipsec.pyz.

    python3 build.py                 build ./ipsec.pyz, for all the Pythons that are found
    python3 build.py --for 3.11      the same, small: fast on the named Pythons only
    python3 build.py test [ARG...]   build, then run the tests (pytest's arguments)
    python3 build.py check           lint: ruff, mypy --strict, the manual pages
    python3 build.py bench [ROW...]  measure, against the original where there is one
    python3 build.py clean           remove what the other verbs made

Standard library only.  What is needed besides is pinned by version and hash in vendor/*.txt, fetched once into
vendor/wheels, and installed into .venv.

How a start goes:

1. The interpreter runs the archive's __main__.py (MAIN).  An interpreter that is too old gets one line and status 1.
2. MAIN leaves in sys.path nothing but the standard library and the archive.
3. It executes the front: sections 1, 2, 10 and 12 of ipsec.py, compiled for this interpreter (bytecode/TAG.front).
4. ipsec.main() reads the command line and calls load_rest(COMMAND), which is LOADER here.
5. LOADER reads bytecode/TAG.rest: an index, and one compressed block of bytecode for each subsection of ipsec.py.
6. The index gives for each command the blocks that it needs.  LOADER executes these, in the order of the file.
7. The builder derives the index from names: a block needs the blocks that bind the global names its code uses.
8. Without bytecode for this interpreter the same index (bytecode/source) gives line numbers of ipsec.py, and MAIN
   and LOADER compile only these lines.
"""
from __future__ import annotations
import __future__

import argparse
import ast
import dis
import glob
import hashlib
import marshal
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Callable

TOP = Path(__file__).resolve().parent
VENDOR = TOP / "vendor"
WHEELS = VENDOR / "wheels"
VENV = TOP / ".venv"
ARCHIVE = TOP / "ipsec.pyz"
SOURCE = TOP / "ipsec.py"
SIZE_LIMIT, SMALL_LIMIT = 1_800_000, 650_000  # bytes, with bytecode for all of TARGETS and for one interpreter

# The kernel passes all that follows the interpreter as one argument.  The path is absolute, and -I and -S keep PATH,
# PYTHON* variables and site-packages out: a user who runs the archive by its name may be root.
INTERPRETER = "/usr/bin/python3 -IS"

# The archive holds bytecode for those of these interpreters that are found
TARGETS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

# Date of all entries of the archive: that of the sources does not matter, the zip format begins in 1980
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))

# The sections of ipsec.py that every start loads.  Each subsection of the others is a block of its own.
FRONT = (1, 2, 10, 12)

FORMAT = 2  # the version of marshal's format that all interpreters can read

# The archive's __main__.py.  Every start compiles it, so it is short.  Its syntax is that of Python 2.7 too, so that an
# old interpreter can say that it is too old.  It is stored, not compressed: zlib may be a module of the library, and
# must come from a clean path.  (With a hostile PYTHONPATH the interpreter's own start is hostile; hence -I above.)
MAIN = '''\
import os
import sys

if sys.version_info < (3, 9):
    newer = ""
    for place in ("/usr/bin", "/usr/local/bin", "/usr/libexec"):
        for minor in range(9, 30):
            path = "%s/python3.%d" % (place, minor)
            newer = path if os.access(path, os.X_OK) else newer
        path = os.path.realpath(place + "/platform-python")
        if path[-3:-1] == ".1" or path.endswith(".9"):  # platform-python3.9, python3.11
            newer = newer or path
    sys.stderr.write("ipsec needs Python 3.9 or later; this is %d.%d.%d (%s)%s\\n" % (
        sys.version_info[:3] + (sys.executable, newer and "; run it with " + newer)))
    sys.exit(1)

import gc
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads

loader = __loader__
if not os.path.isabs(loader.archive):  # the program may change directory, and import something after that
    loader = type(loader)(os.path.abspath(loader.archive))
archive = loader.archive
# only the standard library and the archive: nothing of PYTHONPATH, site-packages or the current directory
library = os.path.dirname(os.__file__)
version = "%d.%d" % sys.version_info[:2]
mine = {library, library + "/lib-dynload",
        "%s/python%s.zip" % (os.path.dirname(library), version.replace(".", "")),
        "%s/%s/python%s/lib-dynload" % (sys.base_exec_prefix, sys.platlibdir, version)}
sys.path[:] = [path for path in sys.path if path in mine] + [archive, archive + "/site-packages"]
sys.dont_write_bytecode = True
try:
    front = loader.get_data("%s/bytecode/%s.front" % (archive, sys.implementation.cache_tag))
except OSError:
    front = b""
module = type(sys)("ipsec")
module.__file__ = archive + "/ipsec.py"
module.__loader__ = loader
sys.modules["ipsec"] = module
gc.disable()  # nothing that is loaded here will ever be garbage
if front[:4] == MAGIC_NUMBER:
    exec(loads(memoryview(front)[4:]), module.__dict__)
else:
    source = loader.get_data(archive + "/ipsec.py").decode().split("\\n")
    parts = loads(loader.get_data(archive + "/bytecode/source"))[0]
    text = ["" for line in source]  # the lines keep their numbers
    for first, last in parts:
        text[first:last] = source[first:last]
    exec(compile("\\n".join(text), "ipsec.py", "exec", 0, True, 2), module.__dict__)
    exec(compile(loader.get_data(archive + "/loader.py"), "loader.py", "exec", 0, True, 2), module.__dict__)
gc.freeze()
gc.enable()
module.main()
'''

# In the archive this takes the place of ipsec.py's load_rest().  `index` gives the blocks of each command as the bits
# of a number; a block is compressed bytecode or, without bytecode for this interpreter, a range of lines.
LOADER = '''\
def load_rest(name="", done=[0]):
    import gc
    from _frozen_importlib_external import MAGIC_NUMBER
    from marshal import loads
    gc.disable()
    place = __loader__.archive
    try:
        data = __loader__.get_data(f"{place}/bytecode/{sys.implementation.cache_tag}.rest")
    except OSError:
        data = b""
    if data[:4] == MAGIC_NUMBER:
        from zlib import decompress
        index, *blocks = loads(memoryview(data)[4:])
    else:
        _, index, *blocks = loads(__loader__.get_data(f"{place}/bytecode/source"))
        source = __loader__.get_data(f"{place}/ipsec.py").decode().split("\\n")
    wanted = index.get(name, -1) & ~done[0]
    done[0] |= wanted
    for number, block in enumerate(blocks):
        if wanted >> number & 1:
            if isinstance(block, bytes):
                code = loads(decompress(block))
            else:
                text = "\\n" * block[0] + "\\n".join(source[block[0]:block[1]])
                code = compile(text, "ipsec.py", "exec", %d, True, 2)
            exec(code, globals())
    gc.freeze()
    gc.enable()
'''.replace("%d", str(__future__.annotations.compiler_flag))


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


def stop(text: str) -> SystemExit:
    """The end, with one line on standard error."""
    return SystemExit(f"build.py: {text}")


def call(argv: Sequence[str | Path], **options: object) -> None:
    """Run a program that must succeed."""
    words = [str(word) for word in argv]
    status = subprocess.run(words, cwd=TOP, check=False, stdin=subprocess.DEVNULL, **options).returncode  # type: ignore[call-overload]
    if status:
        raise stop(f"{Path(words[0]).name} {' '.join(words[1:4])} ... ended with status {status}")


# --- what is pinned: wheels and .venv -------------------------------------------------------------------------------

def pinned(lock: str) -> dict[str, set[str]]:
    """The hashes that a lock file allows, by requirement (`name==version`)."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in (VENDOR / lock).read_text().splitlines():
        if match := re.match(r"[\w.-]+==[\w.]+", line):
            name = match[0]
        found.setdefault(name, set()).update(re.findall(r"sha256:([0-9a-f]{64})", line))
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheels(lock: str) -> list[Path]:
    """The wheels in vendor/wheels that the lock file allows."""
    allowed = set().union(*pinned(lock).values())
    return sorted(path for path in WHEELS.glob("*.whl") if digest(path) in allowed)


PIP_OPTIONS = ("-qq", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:")


def install(lock: str, probe: str) -> None:
    """Have in .venv what a lock file pins, from vendor/wheels, fetched there first when a wheel is not yet there.

    `probe` is a program of it: a stamp beside it tells which lock file it came from.
    """
    stamp = VENV / f"{lock}.stamp"
    state = digest(VENDOR / lock)
    if stamp.exists() and stamp.read_text() == state and (VENV / "bin" / probe).exists():
        return
    python = venv_python()
    WHEELS.mkdir(exist_ok=True)
    offline: list[str | Path] = [python, "-m", "pip", "install", *PIP_OPTIONS, "-r", VENDOR / lock, "--no-index",
                                 "--find-links", WHEELS]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.run([str(word) for word in offline], cwd=TOP, check=False, **quiet).returncode:  # type: ignore[call-overload]
        say(f"fetching what vendor/{lock} pins")
        call([python, "-m", "pip", "download", *PIP_OPTIONS, "-r", VENDOR / lock, "-d", WHEELS])
        call(offline)
    stamp.write_text(state)


def venv_python() -> Path:
    """The interpreter of .venv, made when it is not there."""
    python = VENV / "bin" / "python"
    if not (python.exists() and subprocess.run([str(python), "-c", "import pip"], check=False).returncode == 0):
        shutil.rmtree(VENV, ignore_errors=True)
        call([maker_of_venvs(), "-m", "venv", VENV])
    return python


def maker_of_venvs() -> str:
    """An interpreter that can make a venv with pip: this one, another, or (root on Debian) one installed for it."""
    def able(python: str) -> bool:
        words = [python, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 9))"]
        return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0

    for python in (sys.executable, *(str(path) for path in interpreters().values())):
        if able(python):
            return python
    if os.geteuid() == 0 and shutil.which("apt-get"):
        apt_install("python3-venv")
        if able("/usr/bin/python3"):
            return "/usr/bin/python3"
    raise stop("no Python 3.9 or later here can make a venv; install python3-venv (Debian) or python3-pip")


def apt_install(*packages: str) -> None:
    """Install Debian packages without questions."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "-q", "update"], env=environment, stdout=subprocess.DEVNULL)
    call(["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages], env=environment,
         stdout=subprocess.DEVNULL)


# --- bytecode -------------------------------------------------------------------------------------------------------

def interpreters() -> dict[str, Path]:
    """The CPythons of TARGETS that are found here, by version: in PATH, in /usr and /opt, in pyenv.

    Of each the newest, whatever the order of PATH: compilers of one version may differ in details.
    """
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin",
              *glob.glob("/opt/python*/bin"), *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin")))]
    ask = ("import sys; v = sys.version_info; "
           "print('%d.%d' % v[:2], v[2], sys.implementation.cache_tag, v[3]) if v >= (3, 9) else None")
    found: dict[str, tuple[int, Path]] = {}
    for place in dict.fromkeys(filter(os.path.isabs, places)):
        for name in ("python3", *(f"python{version}" for version in TARGETS)):
            path = Path(place, name)
            if not path.exists() or "shims" in path.parts:
                continue
            asked = subprocess.run([str(path), "-ISc", ask], capture_output=True, text=True, check=False)
            answer = asked.stdout.split()
            if len(answer) != 4 or answer[0] not in TARGETS or answer[2:] != [tag_of(answer[0]), "final"]:
                continue
            if answer[0] not in found or int(answer[1]) > found[answer[0]][0]:
                found[answer[0]] = int(answer[1]), path
    return {version: found[version][1] for version in TARGETS if version in found}


def tag_of(version: str) -> str:
    """sys.implementation.cache_tag of a CPython."""
    return f"cpython-{version.replace('.', '')}"


# Compiled without what nothing reads at run time: docstrings, assertions, annotations of functions, line tables (an
# internal error names its function and the line where that begins).  Sets in the code keep the order of their hashes,
# so PYTHONHASHSEED is fixed; -I would ignore that variable.
COMPILE = """
import __future__, ast, importlib.util, marshal, sys, zlib

def bare(code):
    consts = tuple(bare(const) if isinstance(const, type(code)) else const for const in code.co_consts)
    table = "co_linetable" if hasattr(code, "co_linetable") else "co_lnotab"
    names = {"co_qualname": ""} if hasattr(code, "co_qualname") else {}
    return code.replace(co_consts=consts, co_filename="", **{table: b""}, **names)

def compiled(statements):
    flags = __future__.annotations.compiler_flag
    return marshal.dumps(bare(compile(ast.Module(statements, []), "ipsec.py", "exec", flags=flags, dont_inherit=True,
                                      optimize=2)))

source, loader = sys.argv[1:3]
front, index, *blocks = marshal.loads(bytes.fromhex(sys.argv[3]))
tree = ast.parse(open(source, encoding="utf-8").read())
for node in ast.walk(tree):
    if isinstance(node, ast.arg):
        node.annotation = None
    elif isinstance(node, ast.FunctionDef):
        node.returns = None

def within(first, last):
    # not the docstring, nor the import from __future__, which would take 0.1 ms
    return [statement for statement in tree.body[2:] if first < statement.lineno <= last]

statements = [statement for lines in front for statement in within(*lines)]
magic = importlib.util.MAGIC_NUMBER
rest = [index, *(zlib.compress(compiled(within(*lines)), 9) for lines in blocks)]
marshal.dump([magic + compiled(statements + ast.parse(loader).body), magic + marshal.dumps(rest, 2)],
             sys.stdout.buffer, 2)
"""

Lines = tuple[int, int]  # a range of lines of ipsec.py, counted from 0, as a slice has it


def parted(source: Path) -> tuple[list[Lines], list[Lines]]:
    """Return the ranges of lines of the front, and those of the blocks: one for each subsection of other sections."""
    text = source.read_text().splitlines()
    starts = [(0, FRONT[0])]
    section = FRONT[0]
    for number, line in enumerate(text):
        if banner := re.match(r"# (\d+)\. ", line):
            section = int(banner[1])
            starts.append((number - 1, section))  # the ruler stands above it
        elif line.startswith("# --- "):
            starts.append((number, section))
    ends = [start for start, _ in starts[1:]] + [len(text)]
    ranges = [((start, end), section) for (start, section), end in zip(starts, ends)]
    return ([lines for lines, section in ranges if section in FRONT],
            [lines for lines, section in ranges if section not in FRONT])


def globals_of(code: CodeType) -> Iterator[str]:
    """Yield the global names that a code object uses, and those that the code objects within it use."""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname in ("LOAD_NAME", "STORE_NAME"):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from globals_of(inner)


def command_lines(source: Path) -> dict[str, int]:
    """Return for each name of a command the line, counted from 1, at which its function begins.

    The program is imported for it: some commands are registered in a loop.
    """
    script = ("import runpy, sys; commands = runpy.run_path(sys.argv[1], run_name='ipsec')['COMMANDS']; "
              "print(*(f'{name} {entry.function.__code__.co_firstlineno}' for name, entry in commands.items()), "
              "sep='\\n')")
    asked = subprocess.run([sys.executable, "-ISBc", script, str(source)], check=True, capture_output=True, text=True)
    return {name: int(line) for name, line in (row.split() for row in asked.stdout.splitlines())}


def needs(source: Path) -> dict[str, int]:
    """Return for each name of a command the blocks that it needs, as the bits of a number.

    A command needs its own block; a block needs those that bind the global names its code uses.
    """
    _, blocks = parted(source)
    binds: dict[str, set[int]] = {}
    uses: list[set[str]] = [set() for _ in blocks]
    for statement in ast.parse(source.read_text()).body:
        numbers = [number for number, (first, last) in enumerate(blocks) if first < statement.lineno <= last]
        if not numbers:
            continue
        (number,) = numbers
        code = compile(ast.Module([statement], []), source.name, "exec", dont_inherit=True,
                       flags=__future__.annotations.compiler_flag)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "STORE_NAME":
                binds.setdefault(instruction.argval, set()).add(number)
        uses[number].update(globals_of(code))
    needed_by = {}
    for name, line in command_lines(source).items():
        needed: set[int] = set()
        new = {number for number, (first, last) in enumerate(blocks) if first < line <= last}
        while new:
            needed |= new
            new = {other for block in new for used in uses[block] for other in binds.get(used, ())} - needed
        needed_by[name] = sum(1 << block for block in needed)
    return needed_by


def compiled(python: Path, source: Path, layout: bytes) -> list[bytes]:
    """Return the front and the rest as one interpreter compiles them, each with its magic number.

    `layout` is the content of bytecode/source.
    """
    words = [str(python), "-s", "-S", "-X", "no_debug_ranges", "-c", COMPILE, str(source), LOADER, layout.hex()]
    data = subprocess.run(words, env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"}, check=True,
                          stdout=subprocess.PIPE).stdout
    return marshal.loads(data)  # type: ignore[no-any-return]


def bytecode(source: Path, found: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the archive's members below bytecode/, compiled by these interpreters."""
    front, blocks = parted(source)
    layout = marshal.dumps([front, needs(source), *blocks], FORMAT)
    yield "bytecode/source", layout
    yield "loader.py", LOADER.encode()
    for version, python in found.items():
        front_code, rest = compiled(python, source, layout)
        yield f"bytecode/{tag_of(version)}.front", front_code
        yield f"bytecode/{tag_of(version)}.rest", rest


def say_interpreters(taken: Collection[str]) -> None:
    """Print for which interpreters there is bytecode, and for which there is none."""
    others = [version for version in TARGETS if version not in taken]
    text = f"starts fast on Python {', '.join(taken) or '(none)'}"
    if others:
        text += f"; slower on {', '.join(others)}: install them here to include them"
    say(text)


# --- the archive ----------------------------------------------------------------------------------------------------

def embedded_modules(source: Path) -> list[str]:
    """The modules of pyroute2 that ipsec.py names."""
    constants = (node.value for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Constant))
    return sorted({name for name in constants if isinstance(name, str) and re.fullmatch(r"pyroute2(\.\w+)+", name)})


# Imports the named modules as ipsec.pyroute2_module() does, and tells the files that this loads
TRACE = """
import importlib, sys, types
library, *names = sys.argv[1:]
package = sys.modules["pyroute2"] = types.ModuleType("pyroute2")
package.__path__ = [library + "/pyroute2"]
for name in names:
    importlib.import_module(name)
print(*(module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)), sep="\\n")
"""


def embed(library: Path, names: Sequence[str], target: Path) -> None:
    """Copy from the unpacked wheel the files that importing the modules loads, in any interpreter here."""
    for python in interpreters().values():
        loaded = subprocess.run([str(python), "-ISBc", TRACE, str(library), *names], capture_output=True, text=True,
                                check=True).stdout.splitlines()
        for path in map(Path, loaded):
            if library in path.parents:
                place = target / path.relative_to(library)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def wanted_interpreters(versions: str) -> dict[str, Path]:
    """Return the interpreters of a list such as `3.11,3.13`, or all that are found if it is empty.

    Raises SystemExit if one is not found.
    """
    all_found = interpreters()
    if not versions:
        return all_found
    for version in versions.split(","):
        if version not in all_found:
            raise stop(f"--for {version}: no CPython {version} is installed here (found: {', '.join(all_found)})")
    return {version: path for version, path in all_found.items() if version in versions.split(",")}


def make_archive(target: Path, versions: str) -> None:
    """Write the archive with bytecode for these interpreters.  Runs in .venv, where shiv is."""
    with tempfile.TemporaryDirectory() as scratch:
        packages, library = Path(scratch, "packages"), Path(scratch, "library")
        packages.mkdir()
        for wheel in wheels("embedded.txt"):
            zipfile.ZipFile(wheel).extractall(library)
        if names := embedded_modules(SOURCE):
            embed(library, names, packages)
        found = wanted_interpreters(versions)
        pack(target, packages, dict(own_files(found)), Path(scratch, "packed"))
    say_interpreters(found)


def pack(target: Path, packages: Path, own: dict[str, bytes], shiv_archive: Path) -> None:
    """Have shiv pack what is embedded, and write that with what is ours; shiv's archive goes to `shiv_archive`."""
    from shiv import builder  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from shiv.bootstrap import environment  # type: ignore[import-untyped,import-not-found,unused-ignore]
    build_id = hashlib.sha256()
    for path in sorted(packages.rglob("*.py")):
        build_id.update(str(path.relative_to(packages)).encode() + b"\0" + path.read_bytes())
    for name, data in sorted(own.items()):
        build_id.update(name.encode() + b"\0" + data)
    date = time.strftime(builder.BUILD_AT_TIMESTAMP_FORMAT, time.gmtime(EPOCH))
    about = environment.Environment(built_at=date, build_id=build_id.hexdigest(), shiv_version=version_of("shiv"),
                                    entry_point="ipsec:main", compile_pyc=False, no_modify=True, reproducible=True,
                                    hashes={wheel.name: digest(wheel) for wheel in wheels("embedded.txt")})
    builder.create_archive([packages], shiv_archive, INTERPRETER, "ipsec:main", about, compressed=False)
    with zipfile.ZipFile(shiv_archive) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    write_zip(target, {**entries, **own})


def write_zip(target: Path, entries: dict[str, bytes]) -> None:
    """Write shiv's entries and ours so that nothing but names and contents counts.

    shiv's bootstrap stays out: all it does is to extract.  shiv writes it in the order and with the modes of the disk.
    """
    names = (name for name in entries if not name.startswith("_bootstrap/"))
    with open(target, "wb") as file:
        file.write(f"#!{INTERPRETER}\n".encode())
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(names):
                entry = zipfile.ZipInfo(name, time.gmtime(EPOCH)[:6])
                entry.create_system = 3  # Unix: the modes count
                entry.external_attr = 0o100644 << 16
                stored = name == "__main__.py" or name.endswith(".rest")  # a .rest holds compressed blocks
                entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                archive.writestr(entry, entries[name], compresslevel=9)
    target.chmod(0o755)


def own_files(found: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """What is ours in the archive, with bytecode by these interpreters: name and content."""
    yield "__main__.py", MAIN.encode()
    yield "ipsec.py", SOURCE.read_bytes()
    yield from bytecode(SOURCE, found)
    yield from ((f"man/{page.name}", page.read_bytes()) for page in sorted((TOP / "man").glob("*.[1-8]")))


def smoke(archive: Path) -> None:
    """Run the archive with every interpreter: what is loaded at the start, and the rest, must load."""
    for python in interpreters().values():
        for words in (["--directory"], ["help"]):
            call([python, archive, *words], stdout=subprocess.DEVNULL)


def version_of(package: str) -> str:
    """The version that the lock file of the builder pins."""
    return next(name.partition("==")[2] for name in pinned("builder.txt") if name.startswith(f"{package}=="))


def build(arguments: Sequence[str] = ()) -> None:
    """Write ./ipsec.pyz, whole or not at all.  With `--for 3.11,3.13`, bytecode for these interpreters only."""
    if arguments and (arguments[0] != "--for" or len(arguments) != 2):
        raise stop("usage: build.py [build --for VERSION[,VERSION...]]")
    versions = arguments[1] if arguments else ""
    install("builder.txt", "shiv-info")
    if len(wheels("embedded.txt")) < len(pinned("embedded.txt")):
        say("fetching what vendor/embedded.txt pins")
        call([venv_python(), "-m", "pip", "download", *PIP_OPTIONS, "-r", VENDOR / "embedded.txt", "-d", WHEELS])
    aside = ARCHIVE.with_name(f".{ARCHIVE.name}.{os.getpid()}")
    try:
        # PYTHONHASHSEED, locale and the like of the caller do not reach it
        call([venv_python(), "-I", __file__, "archive", aside, versions])
        smoke(aside)
        size = aside.stat().st_size
        limit = SMALL_LIMIT if versions and "," not in versions else SIZE_LIMIT
        if size > limit:
            raise stop(f"ipsec.pyz would have {size} bytes, more than {limit}")
        os.replace(aside, ARCHIVE)
    finally:
        aside.unlink(missing_ok=True)
    say(f"ipsec.pyz: {size} bytes")


# --- the developer's verbs ------------------------------------------------------------------------------------------

def test(arguments: Sequence[str]) -> None:
    """Build, then run pytest with the arguments; without any, all tests, several at a time."""
    build()
    install("developer.txt", "pytest")
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    several = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal"]  # they wait more than they compute
    words = [str(VENV / "bin/python"), "-m", "pytest", *(arguments or several)]
    raise SystemExit(subprocess.run(words, cwd=TOP, env=environment, check=False, stdin=subprocess.DEVNULL).returncode)


def check(arguments: Sequence[str]) -> None:
    """Lint the program, the builder, the tests and the manual."""
    install("developer.txt", "ruff")
    call([VENV / "bin/ruff", "check", "."])
    call([VENV / "bin/mypy", "--strict", "ipsec.py", "build.py"])
    pages = sorted(map(str, (TOP / "man").glob("*.[1-8]")))
    if not shutil.which("mandoc") and os.geteuid() == 0 and shutil.which("apt-get"):
        apt_install("mandoc")
    if shutil.which("mandoc"):
        call(["mandoc", "-T", "lint", "-W", "warning", *pages])
    elif shutil.which("groff"):
        for page in pages:
            lint = subprocess.run(["groff", "-mdoc", "-ww", "-Tascii", "-z", page], capture_output=True, text=True,
                                  check=True)
            if lint.stderr:
                raise stop(lint.stderr)
    else:
        raise stop("neither mandoc nor groff is here to check the manual pages: install one")


def clean(arguments: Sequence[str]) -> None:
    """Remove what the other verbs made, but for the fetched wheels."""
    for path in (VENV, *(TOP / name for name in (".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"))):
        shutil.rmtree(path, ignore_errors=True)
    ARCHIVE.unlink(missing_ok=True)


def bench(arguments: Sequence[str]) -> None:
    """Measure; the rows are in tests/bench.py."""
    build()
    install("developer.txt", "pytest")
    call([VENV / "bin/python", "-m", "tests.bench", *arguments])


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "build": build, "test": test, "check": check, "bench": bench, "clean": clean,
    "archive": lambda arguments: make_archive(Path(arguments[0]), arguments[1]),  # build's own, inside .venv
}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", default="build", choices=VERBS, metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")
    argv = sys.argv[1:]
    words = parser.parse_args(["build", *argv] if argv[:1] == ["--for"] else argv)
    VERBS[words.verb](words.arguments)


if __name__ == "__main__":
    main()
