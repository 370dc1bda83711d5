#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build, test, check and measure ipsec.pyz.

    python3 build.py                 build ./ipsec.pyz
    python3 build.py test [ARG...]   build, then run the tests (pytest's arguments)
    python3 build.py check           lint: ruff, mypy --strict, the manual pages
    python3 build.py bench [ROW...]  measure, against the original where there is one
    python3 build.py clean           remove what the other verbs made

Standard library only.  What is needed besides is pinned by version and hash in vendor/*.txt, fetched once into
vendor/wheels, and installed into .venv.

How the archive starts (bytecode and sys.path) is in MAIN and LOADER below; what is loaded for a command, in needs().
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
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Callable

TOP = Path(__file__).resolve().parent
VENDOR = TOP / "vendor"
WHEELS = VENDOR / "wheels"
VENV = TOP / ".venv"
ARCHIVE = TOP / "ipsec.pyz"
SOURCE = TOP / "ipsec.py"
SIZE_LIMIT = 1_000_000

# The kernel passes what follows the interpreter as one argument.  Absolute and isolated: whoever runs the archive by
# its name may be root, and neither PATH nor PYTHON* variables shall decide what that runs.
INTERPRETER = "/usr/bin/python3 -I"

# Bytecode goes into the archive for these, as far as they are found
TARGETS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
# Of the rest, see LOADER, one interpreter's is kept whole; of the others what differs from that of an earlier one in
# this table, which is half as much, and of 3.10 a quarter: each has to inflate those that it is built on.
BUILT_ON = {"3.11": "", "3.12": "3.11", "3.13": "3.11", "3.14": "3.13", "3.9": "3.11", "3.10": "3.9"}
# The first that are left out when SIZE_LIMIT does not allow all
SPARED = ("3.10", "3.12")

# Date of all entries of the archive: that of the sources does not matter, the zip format begins in 1980
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))

# The sections of ipsec.py that its dispatch needs: they are loaded at every start, of the others what a command needs
FRONT = (1, 2, 10, 12)

# Of marshal, what all interpreters can read
FORMAT = 2

# What differs is compressed in pieces of some 8,000 bytes, with 24,000 of what it differs from as the dictionary: both
# are to be in zlib's window of 32 KiB
PIECE, DICTIONARY = 8_000, 24_000

# Of what these need of the rest there are blocks of its own: when a block has anything for a command, all is inflated
BLOCKS_FOR = ("verify", "barf", "look", "_updown")

# The archive's __main__.py.  Every start compiles it, so it is short; the loader of the rest is in the bytecode.
# It is stored, not compressed: zlib may be a module of the library too, and is to come from a clean path.
# (Nobody can clean what ran before: with a hostile PYTHONPATH the interpreter's own start is hostile.  Hence -I above.)
MAIN = '''\
import gc
import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads

loader = __loader__
if not os.path.isabs(loader.archive):  # the program may change directory, and import something after that
    loader = type(loader)(os.path.abspath(loader.archive))
archive = loader.archive
# only the standard library and the archive: nothing of PYTHONPATH, site-packages or the current directory
library = os.path.dirname(os.__file__)
version = "%d.%d" % sys.version_info[:2]
mine = {library, library + "/lib-dynload", f"{os.path.dirname(library)}/python{version.replace('.', '')}.zip",
        f"{sys.base_exec_prefix}/{sys.platlibdir}/python{version}/lib-dynload"}
sys.path[:] = [*(path for path in sys.path if path in mine), archive, archive + "/site-packages"]
sys.dont_write_bytecode = True
try:
    front = loader.get_data(f"{archive}/bytecode/{sys.implementation.cache_tag}.front")
except OSError:
    front = b""
if front[:4] == MAGIC_NUMBER:
    module = type(sys)("ipsec")
    module.__file__ = archive + "/ipsec.py"
    module.__loader__ = loader
    sys.modules["ipsec"] = module
    gc.disable()  # nothing that is loaded here will ever be garbage
    exec(loads(memoryview(front)[4:]), module.__dict__)
    gc.freeze()
    gc.enable()
else:
    import ipsec as module
module.main()
'''

# In the archive this takes the place of ipsec.py's load_rest().  The first file of the rest begins with what each
# command needs of it, see needs(); then come the blocks, each compressed by itself: the bytecode of some statements.
# Each other file turns the blocks of the one before it, piece by piece, into those of another interpreter.
LOADER = '''\
def load_rest(name="", done=[0]):
    import gc
    from marshal import loads
    from zlib import decompress, decompressobj
    gc.disable()
    (index, *blocks), *others = [loads(__loader__.get_data(f"{{__loader__.archive}}/bytecode/{{tag}}.rest"))
                                 for tag in {tags}]
    needs, members = loads(decompress(index))
    wanted = needs.get(name, -1) & ~done[0]
    done[0] |= wanted
    found = []
    for place, numbers in enumerate(members):
        if any(wanted >> number & 1 for number in numbers):
            data = decompress(blocks[place])
            for other in others:
                data = b"".join([decompressobj(zdict=data[start:start + {size}]).decompress(piece)
                                 for start, piece in other[place]])
            found += [(number, code) for number, code in zip(numbers, loads(data)) if wanted >> number & 1]
    for number, code in sorted(found):
        exec(loads(code), globals())
    gc.freeze()
    gc.enable()
'''


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


# Compiled without what nothing reads at run time and every start would pay for: docstrings, assertions, the annotations
# of functions, the tables of line numbers (an internal error names its function and where that begins).  Sets in the
# code keep the order of their hashes, so that is fixed; -I would ignore the variable that does it.
COMPILE = """
import __future__, ast, importlib.util, marshal, sys

def bare(code):
    consts = tuple(bare(each) if isinstance(each, type(code)) else each for each in code.co_consts)
    table = "co_linetable" if hasattr(code, "co_linetable") else "co_lnotab"
    names = {"co_qualname": ""} if hasattr(code, "co_qualname") else {}
    return code.replace(co_consts=consts, co_filename="", **{table: b""}, **names)

def dump(value):
    # as version 2 of marshal's format, which has no references: so the interpreters' dumps are more alike.  It does
    # not know slices, which are constants since 3.14.
    if isinstance(value, tuple):
        return b"(" + len(value).to_bytes(4, "little") + b"".join(map(dump, value))
    if isinstance(value, slice):
        return b":" + b"".join(map(dump, (value.start, value.stop, value.step)))
    data = marshal.dumps(value.replace(co_consts=()) if isinstance(value, type(dump.__code__)) else value, 2)
    if isinstance(value, type(dump.__code__)):
        # some numbers and the bytecode come first
        place = 1 + 4 * (5 if hasattr(value, "co_exceptiontable") else 6) + len(marshal.dumps(value.co_code, 2))
        data = data[:place] + dump(value.co_consts) + data[place + len(marshal.dumps((), 2)):]
    return data

def compiled(body):
    flags = __future__.annotations.compiler_flag
    return bare(compile(ast.Module(body, []), "ipsec.py", "exec", flags=flags, dont_inherit=True, optimize=2))

source, loader, *front = sys.argv[1:]
tree = ast.parse(open(source, encoding="utf-8").read())
for node in ast.walk(tree):
    if isinstance(node, ast.arg):
        node.annotation = None
    elif isinstance(node, ast.FunctionDef):
        node.returns = None
first, rest = [], []
for statement in tree.body[2:]:  # compiled() has __future__: importing it would take 0.1 ms
    (first if str(statement.lineno) in front else rest).append(statement)
marshal.dump([importlib.util.MAGIC_NUMBER + marshal.dumps(compiled(first + ast.parse(loader).body)),
              *(dump(compiled([statement])) for statement in rest)], sys.stdout.buffer)
"""


def parted(source: Path) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The statements of the program: those of the sections in FRONT, and the rest."""
    text = source.read_text()
    section, sections = FRONT[0], []
    for line in text.splitlines():
        if banner := re.match(r"# (\d+)\. ", line):
            section = int(banner[1])
        sections.append(section in FRONT)
    _, _, *body = ast.parse(text).body  # without the docstring and the import from __future__
    return ([statement for statement in body if sections[statement.lineno - 1]],
            [statement for statement in body if not sections[statement.lineno - 1]])


def globals_of(code: CodeType) -> Iterator[str]:
    """The global names that a code object uses, and those within it."""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from globals_of(inner)


def needs(source: Path) -> dict[str, int]:
    """Which statements of the rest a command needs, as the bits of a number, by each name of the command.

    A statement needs those that bind the names it uses, and those that add to a table, list or set that it binds (as
    a decorator does).  To see who adds to what, the program is loaded here, statement by statement.  What the front
    uses of the rest does not count: it calls load_rest() before.
    """
    front, rest = parted(source)
    module: dict[str, Any] = {"__name__": "ipsec", "__annotations__": {}}
    commands: dict[str, int] = {}
    binds: dict[str, set[int]] = {}
    uses: dict[int, set[str]] = {}
    added: dict[int, set[int]] = {}
    for statement in sorted([*front, *rest], key=lambda statement: statement.lineno):
        before, before_commands = dict(module), set(module.get("COMMANDS", ()))
        sizes = {name: len(value) for name, value in before.items() if isinstance(value, (dict, list, set))}
        code = compile(ast.Module([statement], []), source.name, "exec", dont_inherit=True, optimize=2,
                       flags=__future__.annotations.compiler_flag)
        exec(code, module)
        if statement in front:
            continue
        number = rest.index(statement)
        uses[number] = set(globals_of(code))
        commands.update((name, number) for name in module.get("COMMANDS", ()) if name not in before_commands)
        for name, value in module.items():
            if name not in before or value is not before[name]:
                binds.setdefault(name, set()).add(number)
            elif name in sizes and len(value) > sizes[name]:
                for owner in binds.get(name, ()):
                    added.setdefault(owner, set()).add(number)
    found = {}
    for name, number in commands.items():
        needed, new = set(), {number}
        while new:
            needed |= new
            new = {other for one in new for other in added.get(one, set()).union(
                *(binds.get(used, set()) for used in uses[one]))} - needed
        found[name] = sum(1 << one for one in needed)
    return found


def compiled(python: Path, source: Path, loader: str) -> list[bytes]:
    """The source compiled by one interpreter: what is loaded at the start, with its magic number, then the rest."""
    front = [str(statement.lineno) for statement in parted(source)[0]]
    words = [str(python), "-s", "-S", "-X", "no_debug_ranges", "-c", COMPILE, str(source), loader, *front]
    data = subprocess.run(words, env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"}, check=True,
                          stdout=subprocess.PIPE).stdout
    return marshal.loads(data)  # type: ignore[no-any-return]


def lineage(version: str, found: Collection[str]) -> list[str]:
    """The interpreter whose rest is kept whole, and those whose differences lead from there to the version's."""
    base = BUILT_ON[version]
    while base and base not in found:
        base = BUILT_ON[base]
    return [*(lineage(base, found) if base else ()), version]


def bytecode(source: Path, found: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """The source compiled by these interpreters: names in the archive, and contents."""
    needed = needs(source)
    members: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(parted(source)[1])):
        members.setdefault(tuple(needed[name] >> number & 1 for name in BLOCKS_FOR), []).append(number)
    rests = {}
    for version, python in found.items():
        tags = tuple(map(tag_of, lineage(version, found)))
        front, *rests[version] = compiled(python, source, LOADER.format(tags=tags, size=DICTIONARY))
        yield f"bytecode/{tag_of(version)}.front", front
    for version, rest in rests.items():
        blocks = [[rest[number] for number in numbers] for numbers in members.values()]
        *_, base = ["", *lineage(version, found)[:-1]]
        content = ([list(differences([rests[base][number] for number in numbers], block))
                    for numbers, block in zip(members.values(), blocks)] if base else
                   [packed((needed, list(members.values()))), *map(packed, blocks)])
        yield f"bytecode/{tag_of(version)}.rest", marshal.dumps(content, FORMAT)


def differences(base: Sequence[bytes], block: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """The block in pieces, each compressed with what the base has at that place as dictionary; where that begins."""
    known = marshal.dumps(list(base), FORMAT)
    piece = marshal.dumps([None] * len(block), FORMAT)[:-len(block)]  # the head of the list
    begin = end = len(piece)
    for before, code in zip([*base, b""], [*block, None]):
        if code is None or len(piece) > PIECE:
            start = max(0, min((begin + end - DICTIONARY) // 2, len(known) - DICTIONARY))
            deflate = zlib.compressobj(9, memLevel=9, zdict=known[start:start + DICTIONARY])
            yield start, deflate.compress(piece) + deflate.flush()
            begin, piece = end, b""
        if code is not None:
            piece += marshal.dumps(code, FORMAT)
            end += len(marshal.dumps(before, FORMAT))


def packed(value: Any) -> bytes:
    """A value as all interpreters can read it, compressed."""
    deflate = zlib.compressobj(9, memLevel=9)
    return deflate.compress(marshal.dumps(value, FORMAT)) + deflate.flush()


def say_interpreters(taken: Collection[str]) -> None:
    """Tell for which interpreters there is bytecode."""
    found = interpreters()
    for version in TARGETS:
        if version in taken:
            say(f"bytecode for CPython {version} by {found[version]}")
        else:
            say(f"{'no room for bytecode of' if version in found else 'no'} CPython {version}: from the source there")


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


def make_archive(target: Path) -> None:
    """Write the archive.  Runs in .venv, where shiv is."""
    with tempfile.TemporaryDirectory() as scratch:
        packages, library = Path(scratch, "packages"), Path(scratch, "library")
        packages.mkdir()
        for wheel in wheels("embedded.txt"):
            zipfile.ZipFile(wheel).extractall(library)
        if names := embedded_modules(SOURCE):
            embed(library, names, packages)
        found = interpreters()
        for spared in ("", *SPARED):
            found.pop(spared, None)
            pack(target, packages, dict(own_files(found)), Path(scratch, "packed"))
            if target.stat().st_size <= SIZE_LIMIT:
                break
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
                stored = name == "__main__.py" or name.endswith(".rest")  # the latter is compressed in itself
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
    """Write ./ipsec.pyz, whole or not at all."""
    install("builder.txt", "shiv-info")
    if len(wheels("embedded.txt")) < len(pinned("embedded.txt")):
        say("fetching what vendor/embedded.txt pins")
        call([venv_python(), "-m", "pip", "download", *PIP_OPTIONS, "-r", VENDOR / "embedded.txt", "-d", WHEELS])
    aside = ARCHIVE.with_name(f".{ARCHIVE.name}.{os.getpid()}")
    try:
        # PYTHONHASHSEED, locale and the like of the caller do not reach it
        call([venv_python(), "-I", __file__, "archive", aside])
        smoke(aside)
        size = aside.stat().st_size
        if size > SIZE_LIMIT:
            raise stop(f"ipsec.pyz would have {size} bytes, more than {SIZE_LIMIT}")
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
    "archive": lambda arguments: make_archive(Path(arguments[0])),  # build's own, inside .venv
}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", default="build", choices=VERBS, metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")
    words = parser.parse_args()
    VERBS[words.verb](words.arguments)


if __name__ == "__main__":
    main()
