#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build, test, check, measure and release ipsec.pyz.

    python3 build.py                   build ./ipsec.pyz for all Pythons that this host has
    python3 build.py --for 3.11,3.13   build a smaller file, which starts fast only on these Pythons
    python3 build.py test [ARG...]     build, then run pytest with these arguments
    python3 build.py check             run ruff and mypy --strict, and lint the manual pages and the workflows
    python3 build.py bench [ROW...]    measure the times of this program and of libreswan's own command
    python3 build.py release           write dist/: the archive, manual pages, completions, checksums
    python3 build.py clean             remove the results of the other verbs, but not the fetched wheels

build.py itself needs only the standard library.  The files vendor/*.txt pin all other packages by version and
hash.  build.py downloads them once into vendor/wheels.  The build unpacks its packages in a temporary
directory.  The tools of test, check and bench are installed in .venv.

These are the steps when the archive starts:

1. Python runs __main__.py (MAIN below).  If Python is too old, too_old.py (TOO_OLD) exits with status 1.
2. MAIN removes everything from sys.path except the standard library and the archive.
3. MAIN runs the front, which is sections 1, 2, 10 and 12 of ipsec.py, as bytecode (bytecode/TAG.front).
4. ipsec.main() reads the command line and calls load_rest(COMMAND) of ipsec.py.
5. load_rest() reads bytecode/TAG.blocks: an index, and one block for each other (sub)section of ipsec.py.  A
   block is compressed bytecode (see compressed()) or, if its title is in COMPILED_LATE, the offsets of its text
   in ipsec.py, which load_rest() compiles.
6. The index says which blocks each command needs.  load_rest() runs them in the order of ipsec.py.  If a
   command rarely needs a block, its code calls load_part(NAME) to load the block.
7. An interpreter without bytecode in the archive compiles the front and the needed blocks from ipsec.py.

needs() makes the index at build time: a block needs all blocks that define a global name which its code uses.
"""
from __future__ import annotations
import __future__

import argparse
import ast
import dis
import errno
import fcntl
import functools
import glob
import hashlib
import io
import marshal
import os
import re
import signal
import subprocess
import sys
import time
import tokenize
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Callable, TypeVar

if sys.version_info < (3, 9):  # older versions than 3.8 can't parse this file
    sys.exit(f"build.py needs Python 3.9 or later; this is {sys.version.split()[0]} ({sys.executable})")
try:
    import gzip
    import shutil
    import tarfile
    import tempfile
    import zipfile
    from concurrent.futures import ThreadPoolExecutor
except ImportError as error:  # python3-minimal of Debian has only a part of the standard library
    sys.exit(f"build.py: this Python lacks the module {error.name}, which is a part of the standard library; "
             "on Debian and Ubuntu, type as root: apt-get install python3-venv")

Result = TypeVar("Result")

TOP = Path(__file__).resolve().parent
VENDOR = TOP / "vendor"
WHEELS = VENDOR / "wheels"
VENV = TOP / ".venv"
DIST = TOP / "dist"
ARCHIVE = TOP / "ipsec.pyz"
SOURCE = TOP / "ipsec.py"

# The largest size of the archive in bytes: for several interpreters, and for one.  If the archive is larger,
# build() says so.
SIZE_LIMIT, SIZE_LIMIT_OF_ONE = 1_800_000, 650_000

# The first line of the archive.  The kernel passes all text after the interpreter as one argument.  Root may
# run the archive by its name.  So for security, the path is absolute, and -I and -S exclude PYTHON*
# variables, the user's modules and site-packages.
INTERPRETER = "/usr/bin/python3 -IS"

# The archive has bytecode for each of these interpreters that is found on this host
TARGETS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

# The date of all entries of the archive, in seconds since 1970.  The zip format has dates from 1980 to 2107; an
# earlier or later date becomes the first or last of these.  The default is the first.
DATE = os.environ.get("SOURCE_DATE_EPOCH") or "0"
if not DATE.isdecimal():
    sys.exit(f"build.py: SOURCE_DATE_EPOCH={DATE!r} is not a number of seconds")
EPOCH = min(max(int(DATE), 315532800), 4354819198)

# The sections of ipsec.py that every start runs.  Each (sub)section of the other sections is a block.
FRONT = (1, 2, 10, 12)

# The titles of the blocks that have no bytecode in the archive.  Each run of a command that needs such a
# block compiles it, which takes 1 to 10 ms on a fast host.  This is acceptable, because these commands run
# rarely or take much longer.  Bytecode for six interpreters would take 5 to 110 kB for each block.
COMPILED_LATE = (
    "PKCS#12 and PEM", "keys as ipsec_showhostkey(8) writes them", "free text", "logs", "reports", "causes", "barf",
    "look and show", "diagnosis (why)", "tunnels", "metrics", "the summary of barf", "configuration",
    "reload", "NSS", "manual and completion")

# An archive for one or two interpreters has no bytecode for these blocks either.  The first two blocks are for
# `verify`, `barf`, `man`, `completion`, and commands that say why a connection is down.  The others are for
# `reload`, and for commands that start or stop the service, which take much longer.  Compiling the blocks of a
# command takes about 8 ms.
COMPILED_LATE_IF_SMALL = ("what the rules do with a packet", "diagnosis", "init systems", "the direct start and stop",
                          "setup")

# A version of marshal's format that all interpreters read, and in which equal constants have equal bytes.  (Since
# version 3, the bytes of an object depend on the objects before it.)
FORMAT = 2

# zlib uses only this number of bytes at the end of a dictionary; ipsec.py has the same constant
WINDOW = 32768

# In an archive for more than two interpreters, a block is divided into parts of about this number of bytes of
# source.  Each part is compressed separately, with the dictionary that compressed() describes.  zlib finds only
# text in the last 32 KiB, so the later code of a long block would not profit from the dictionary.
PART = 12000

# The archive's __main__.py.  Every start compiles it, so it is short.  Python 2.7 must be able to parse it.
# It is stored without compression, because Python would import zlib to unpack it.  At that time, sys.path may
# still have a hostile directory, from which zlib could come.  (Python itself imports modules before that; -I
# in the shebang protects these imports.)
MAIN = f'''\
import sys
if sys.version_info < (3, 9):
    import too_old
    too_old.stop()
import gc
import os
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads

loader = __loader__
if not os.path.isabs(loader.archive):  # the program may change directory before it imports something
    loader = type(loader)(os.path.abspath(loader.archive))
archive = loader.archive
library = os.path.dirname(os.__file__)
version = "%d.%d" % sys.version_info[:2]
allowed = [library, library + "/lib-dynload",
           "%s/python%s.zip" % (os.path.dirname(library), version.replace(".", "")),
           "%s/%s/python%s/lib-dynload" % (sys.base_exec_prefix, sys.platlibdir, version)]
sys.path[:] = [path for path in sys.path if path in allowed] + [archive, archive + "/site-packages"]
sys.dont_write_bytecode = True
module = sys.modules["ipsec"] = type(sys)("ipsec")
module.__file__ = archive + "/ipsec.py"
module.__loader__ = loader
blocks = archive + "/bytecode/" + sys.implementation.cache_tag
try:
    front = loader.get_data(blocks + ".front")
except OSError:
    front = b""
gc.disable()  # nothing that is loaded here becomes garbage
if front[:4] == MAGIC_NUMBER:
    exec(loads(memoryview(front)[4:]), module.__dict__)
else:
    blocks = archive + "/bytecode/source"
    source = loader.get_data(module.__file__)
    for line, start, end in loads(loader.get_data(blocks + ".front")):
        text = b"\\n" * line + source[start:end]
        code = compile(text, "ipsec.py", "exec", {__future__.annotations.compiler_flag}, True, 2)
        exec(code, module.__dict__)
gc.freeze()
gc.enable()
module.FRONT = front
module.BLOCKS = blocks + ".blocks"
module.main()
'''

# The archive's too_old.py, for Python 2.7 and 3.0 to 3.8
TOO_OLD = '''\
import glob
import os
import re
import sys


def newest():
    """Return the path of the newest Python 3.9 or later in the system's directories, or an empty string."""
    paths = {}
    for pattern in ("/usr/bin/python3*", "/usr/local/bin/python3*", "/usr/libexec/platform-python*",
                    "/opt/*/bin/python3*", "/opt/rh/*/root/usr/bin/python3*"):
        for path in glob.glob(pattern):
            version = re.search(r"python3[.](\\d+)$", os.path.realpath(path))
            if version and int(version.group(1)) >= 9 and os.access(path, os.X_OK):
                paths.setdefault(int(version.group(1)), path)
    return paths[max(paths)] if paths else ""


def stop():
    """Say in one line that this interpreter is too old, and exit."""
    path = newest()
    sys.stderr.write("ipsec needs Python 3.9 or later; this is %d.%d.%d (%s)%s\\n" % (
        sys.version_info[:3] + (sys.executable, "; run it with " + path if path else "")))
    sys.exit(1)
'''


def say(text: str) -> None:
    """Print a line of progress and flush it.  Raises SystemExit if that fails."""
    try:
        print(text, flush=True)
    except OSError as error:
        sys.stdout = None  # otherwise, Python would print another error when it exits
        raise stop(f"standard output: {error.strerror}") from None


def stop(text: str) -> SystemExit:
    """Return the exception that ends the program with one line on standard error and status 1."""
    return SystemExit(f"build.py: {text}")


def call(argv: Sequence[str | Path], **options: object) -> None:
    """Run a program in the checkout.  Raises SystemExit if it fails."""
    words = [str(word) for word in argv]
    status = subprocess.run(words, cwd=TOP, check=False, stdin=subprocess.DEVNULL,
                            **options).returncode  # type: ignore[call-overload]
    if status:
        raise stop(f"{Path(words[0]).name} {' '.join(words[1:4])} ... ended with status {status}")


def at_once(function: Callable[[Path], Result], pythons: Iterable[Path]) -> list[Result]:
    """Call a function that runs an interpreter, for several interpreters at the same time.

    Return the results in the order of the interpreters.  Raises the exception of the first call that fails.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, pythons))


# --- pinned packages: wheels and .venv ----------------------------------------------------------------------

@contextmanager
def alone() -> Iterator[None]:
    """Hold a lock in the context, so that only one process at a time changes vendor/wheels and .venv."""
    descriptor = os.open(VENDOR, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def pinned(lock: str) -> dict[str, set[str]]:
    """Return a dictionary from each requirement of a lock file (`name==version`) to its SHA-256 hashes."""
    hashes: dict[str, set[str]] = {}
    name = ""
    for line in (VENDOR / lock).read_text().splitlines():
        if match := re.match(r"[\w.-]+==[\w.]+", line):
            name = match[0]
        hashes.setdefault(name, set()).update(re.findall(r"sha256:([0-9a-f]{64})", line))
    return hashes


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheels(lock: str) -> list[Path]:
    """Return the sorted paths of the wheels in vendor/wheels whose hashes are in the lock file."""
    allowed = set().union(*pinned(lock).values())
    return sorted(path for path in WHEELS.glob("*.whl") if digest(path) in allowed)


PIP_OPTIONS = ("-q", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:")


def run_pip(*words: str | Path) -> str:
    """Run pip in .venv.  Return an empty string if pip succeeds, otherwise the reason of the failure."""
    python = VENV / "bin" / "python"
    environment = dict(os.environ)
    borrowed = VENV / "pip-from"
    if borrowed.exists():
        environment["PYTHONPATH"] = borrowed.read_text()
    argv = [str(word) for word in (python, "-m", "pip", *words)]
    result = subprocess.run(argv, cwd=TOP, check=False, env=environment, stdin=subprocess.DEVNULL,
                            capture_output=True, text=True)
    # Without a network, pip's error says only that no version matches; the warnings before it name the cause
    return "" if result.returncode == 0 else reason_of(result, r"\[Errno -?\d+\] ([^'\")]+)", r"^ERROR: (.*)")


def reason_of(result: subprocess.CompletedProcess[str], *patterns: str) -> str:
    """Return the reason why a program failed, in one line.

    The reason is the last match of the first pattern that matches the program's error output, or the last line
    of its output.
    """
    for pattern in patterns:
        reasons = re.findall(pattern, result.stderr, re.M)
        if reasons:
            return str(reasons[-1])
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return lines[-1] if lines else f"status {result.returncode}"


def fetch(locks: Sequence[str], what: str) -> None:
    """Download into vendor/wheels the wheels that the lock files pin.

    `what` names the wheels in messages.  Raises SystemExit if the download fails, or if this host has no pip.
    """
    make_venv()
    say(f"fetching {what}")
    WHEELS.mkdir(exist_ok=True)
    pins = [f"--requirement={VENDOR / lock}" for lock in locks]
    error = run_pip("download", *PIP_OPTIONS, "--retries", "2", *pins, "-d", WHEELS)
    if error:
        raise stop(f"can't fetch {what}: {error} (build.py needs the network once; without a network, "
                   "copy vendor/wheels from a checkout that was built)")


def install(lock: str) -> None:
    """Install into .venv the packages that a lock file pins, unless this was done before.

    They are installed again if the lock file has changed, if the checkout has been moved, or if .venv has
    another version of Python, for example after an upgrade of the host.  Raises SystemExit if the packages
    can't be installed.
    """
    stamp = VENV / f"{lock}.stamp"
    with alone():
        if stamp.exists() and stamp.read_text() == state_of_venv(lock):
            return
        make_venv()
        words = ("install", *PIP_OPTIONS, "--ignore-installed", "-r", VENDOR / lock, "--no-index",
                 "--find-links", WHEELS)
        if run_pip(*words):
            fetch([lock], f"the packages of vendor/{lock}")
            error = run_pip(*words)
            if error:
                raise stop(f"can't install the packages of vendor/{lock}: {error}")
        stamp.write_text(state_of_venv(lock))


def state_of_venv(lock: str) -> str:
    """Return a text that changes with the lock file, the path of .venv, or the version of its Python.

    The text is empty if .venv has no Python.
    """
    python = VENV / "bin" / "python"
    if not python.exists():
        return ""
    words = [str(python), "-c", "import sys; print(sys.prefix, sys.version)"]
    answer = subprocess.run(words, check=False, capture_output=True, text=True).stdout
    return f"{digest(VENDOR / lock)} {answer}"


def make_venv() -> None:
    """Create .venv if it does not exist or can't run pip.

    Raises SystemExit if this host has no pip, or if .venv can't be created.  If ensurepip is missing (Debian
    without python3-venv), .venv uses the pip of an interpreter of this host.
    """
    if (VENV / "bin/python").exists() and not run_pip("--version"):
        return
    python, path = find_pip()
    shutil.rmtree(VENV, ignore_errors=True)
    commands = [[python, "-m", "venv", "--without-pip", str(VENV)]]
    if not path:  # without --without-pip, venv would run ensurepip, but would not say why ensurepip fails
        commands.append([str(VENV / "bin/python"), "-I", "-m", "ensurepip"])
    for words in commands:
        result = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            raise stop(f"can't create {VENV}: {reason_of(result, '^E(?:rror|RROR): (.*)')}")
    if path:
        (VENV / "pip-from").write_text(path)


# A program for an interpreter.  It prints an empty line if a venv of the interpreter will have pip, otherwise
# the directory from which pip can be imported.  It exits with status 1 if the interpreter lacks venv or pip.
PROBE = """
import os, sys, venv
try:
    import ensurepip
    print()
except ImportError:
    import pip
    print(os.path.dirname(os.path.dirname(pip.__file__)))
"""

# For each package manager, the command that installs the missing module: ensurepip on Debian (python3-venv), pip on
# other systems
PIP_PACKAGES = {"apt-get": "apt-get install python3-venv", "dnf": "dnf install python3-pip",
                "apk": "apk add py3-pip", "zypper": "zypper install python3-pip",
                "pacman": "pacman -S python-pip"}


def find_pip() -> tuple[str, str]:
    """Return the path of an interpreter that can create a venv, and the directory of its pip.

    The directory is an empty string if the venv will have a pip of its own.  If no interpreter can create a
    venv, and root runs build.py on a host with apt-get, the function installs python3-venv and tries again.
    If there is still none, it raises SystemExit, with the command that the user should type.
    """
    for attempt in range(2):
        for python in (sys.executable, *map(str, interpreters().values())):
            result = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return python, result.stdout.strip()
        if attempt == 0 and os.geteuid() == 0 and shutil.which("apt-get"):
            reason = "to fetch the packages of vendor/*.txt; no Python on this host has both venv and pip"
            apt_install("python3-venv", reason)

    command = "python3 -m ensurepip"
    for program, words in PIP_PACKAGES.items():
        if shutil.which(program):
            command = words
            break
    sudo = "" if os.geteuid() == 0 else "sudo "
    raise stop(f"no Python 3.9 or later on this host has both venv and pip; type: {sudo}{command}")


def apt_install(package: str, reason: str) -> None:
    """Print the reason, then install a Debian package without questions.  Raises SystemExit if that fails."""
    say(f"installing the package {package} with apt-get, {reason}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    cause = ""  # without a network, `apt-get update` succeeds and prints why it fetched nothing
    for words in (["update"], ["-y", "--no-install-recommends", "install", package]):
        result = subprocess.run(["apt-get", "-q", *words], env=environment, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, check=False)
        if result.returncode:
            raise stop(f"can't install {package}: apt-get: {reason_of(result)}{cause}")
        failures = re.findall(r"^W: Failed to fetch \S+ +(.*)", result.stderr, re.M)
        cause = f" ({failures[-1]})" if failures else ""


# --- bytecode -----------------------------------------------------------------------------------------------

def interpreters() -> dict[str, Path]:
    """Return a dictionary from versions of TARGETS to paths of CPythons, found in PATH, /usr, /opt and pyenv.

    If several CPythons have the same version, such as 3.11, the newest patch release is taken, because patch
    releases can differ in their bytecode.  So the bytecode does not depend on the order of PATH.
    """
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin",
              *glob.glob("/opt/python*/bin"),
              *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin")))]
    names = ("python3", *(f"python{version}" for version in TARGETS))
    newest: dict[str, tuple[int, Path]] = {}
    for place in dict.fromkeys(filter(os.path.isabs, places)):
        for path in (Path(place, name) for name in names):
            if not os.access(path, os.X_OK) or "shims" in path.parts:
                continue
            version, micro = release_of(path.resolve())
            if version in TARGETS and (version not in newest or micro > newest[version][0]):
                newest[version] = micro, path
    return {version: newest[version][1] for version in TARGETS if version in newest}


@functools.lru_cache(maxsize=None)
def release_of(python: Path) -> tuple[str, int]:
    """Return the version of a CPython in two parts, for example `3.11` and 7 for CPython 3.11.7.

    The first part is an empty string if `python` can't be run, or is not a final release of CPython 3.9 or
    later.
    """
    ask = ("import sys; v = sys.version_info; "
           "print('%d.%d' % v[:2], v[2], sys.implementation.cache_tag, v[3]) if v >= (3, 9) else None")
    try:
        result = subprocess.run([str(python), "-ISc", ask], capture_output=True, text=True, check=False)
    except OSError:
        return "", 0
    answer = result.stdout.split()
    if len(answer) != 4:
        return "", 0
    version, micro, tag, level = answer
    if (tag, level) != (tag_of(version), "final"):
        return "", 0
    return version, int(micro)


def chosen_interpreters(versions: str) -> dict[str, Path]:
    """Return interpreters() for a list of versions such as `3.11,3.13`, or for all versions if it is empty.

    Raises SystemExit if an interpreter of the list is not found.
    """
    present = interpreters()
    if not versions:
        return present
    for version in versions.split(","):
        if version not in present:
            raise stop(f"--for {version}: this host does not have this CPython "
                       f"(found: {', '.join(present) or 'none'})")
    return {version: path for version, path in present.items() if version in versions.split(",")}


def tag_of(version: str) -> str:
    """Return the value that sys.implementation.cache_tag has in a CPython of this version."""
    return f"cpython-{version.replace('.', '')}"


# A program for each interpreter.  From standard input, it reads the number of a marshal format (0 for the
# newest that it has), and the texts of the front and of the parts of blocks.  It compiles the texts.  It
# leaves out docstrings, assertions, annotations of functions, names of local variables and line tables,
# because they would make every start slower.  (Therefore, an internal error shows only the first line of its
# function.)  It writes two lists: the bytecode of each text, and the constants and names of each part.  The
# order of a set in the bytecode depends on hashes, so the caller sets PYTHONHASHSEED, and does not use -I,
# which would ignore this variable.
COMPILE = """
import __future__, ast, importlib.util, inspect, marshal, sys

def bare(code):
    consts = tuple(bare(const) if isinstance(const, type(code)) else const for const in code.co_consts)
    table = "co_linetable" if hasattr(code, "co_linetable") else "co_lnotab"
    names = {"co_qualname": ""} if hasattr(code, "co_qualname") else {}
    if code.co_flags & inspect.CO_NEWLOCALS:
        stars = [flag for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS) if code.co_flags & flag]
        count = code.co_argcount + code.co_kwonlyargcount + len(stars)
        others = range(len(code.co_varnames) - count)
        names["co_varnames"] = code.co_varnames[:count] + tuple(chr(161 + number) for number in others)
    return code.replace(co_consts=consts, co_filename="", **{table: b""}, **names)

def compiled(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.Slice) and sys.version_info >= (3, 14):
            # x[1:] would have a constant slice, which format 2 can't hold; x[+1:] has none, and takes as long
            given = [name for name in ("lower", "upper", "step") if getattr(node, name)]
            if all(isinstance(getattr(node, name), ast.Constant) for name in given):
                name = given[0] if given else "lower"
                bound = getattr(node, name) or ast.Constant(0)
                setattr(node, name, ast.UnaryOp(ast.UAdd(), bound))
    # running the import of __future__ would take 0.1 ms
    tree.body = [statement for statement in tree.body if getattr(statement, "module", "") != "__future__"]
    flags = __future__.annotations.compiler_flag
    return bare(compile(ast.fix_missing_locations(tree), "ipsec.py", "exec", flags, True, 2))

def constants(code):
    for const in code.co_consts:
        if isinstance(const, type(code)):
            yield from constants(const)
        elif isinstance(const, (str, bytes, tuple)):
            yield marshal.dumps(const, 2)
    yield marshal.dumps(code.co_names, 2)

form, texts = marshal.load(sys.stdin.buffer)
front, *parts = map(compiled, texts)
dumped = (marshal.dumps(part, form or marshal.version) for part in parts)
bytecode = [importlib.util.MAGIC_NUMBER + marshal.dumps(front), *dumped]
common = [b"".join(dict.fromkeys(constants(part))) for part in parts]
marshal.dump([bytecode, common], sys.stdout.buffer, 2)
"""

BANNER = re.compile(r"# (\d+\. |--- )")


def without_prose(source: bytes) -> bytes:
    """Return a Python source without docstrings, comments and most annotations, and with short indents.

    The result keeps banners, the comments in the first three lines, and the annotations that
    annotation_nodes() does not return.  Each line keeps its number.
    """
    lines = without_annotations(source).decode().splitlines(keepends=True)
    tokens = list(tokenize.tokenize(io.BytesIO("".join(lines).encode()).readline))
    begins = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
    # the first lines of docstrings that are the whole body of a class or function; "" replaces them
    needed = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and len(node.body) == 1:
            needed.add(node.body[0].lineno)

    for before, token, after in reversed(list(zip(tokens, tokens[1:], tokens[2:]))):
        (first, left), (last, right) = token.start, token.end
        if token.type == tokenize.STRING and before.type in begins and after.type == tokenize.NEWLINE:
            replacement = lines[first - 1][:left] + '""\n' if first in needed else "\n"
            lines[first - 1:last] = [replacement, *["\n"] * (last - first)]
        elif token.type == tokenize.COMMENT and not (left == 0 and BANNER.match(token.string)) and first > 3:
            lines[first - 1] = lines[first - 1][:left].rstrip() + lines[last - 1][right:]
    return without_indents("".join(lines).encode())


def without_indents(source: bytes) -> bytes:
    """Return a Python source with one blank for each level of indentation.

    Continuation lines begin at the left edge.  Lines that begin within a string are not changed.  Each line
    keeps its number.
    """
    lines = source.decode().splitlines(keepends=True)
    level, is_start = 0, True
    indents: dict[int, int] = {}  # The level of each line that begins a statement.
    kept: set[int] = set()  # The lines that begin within a string.
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        (first, _), (last, _) = token.start, token.end
        kept.update(range(first + 1, last + 1))
        if token.type == tokenize.INDENT:
            level += 1
        elif token.type == tokenize.DEDENT:
            level -= 1
        elif token.type == tokenize.NEWLINE:
            is_start = True
        elif is_start and token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.ENCODING):
            indents[first] = level
            is_start = False

    for number, line in enumerate(lines, 1):
        if number not in kept:
            lines[number - 1] = " " * indents.get(number, 0) + line.lstrip(" ")
    return "".join(lines).encode()


def without_annotations(source: bytes) -> bytes:
    """Return a Python source without the annotations that annotation_nodes() returns."""
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))

    kept, at = [], 0
    for node in annotation_nodes(source):
        start = begins[node.lineno - 1] + node.col_offset
        end = begins[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        before = re.sub(rb"\s*(:|->)\s*$", b"", source[at:start])
        kept += [before, b"\n" * source.count(b"\n", at + len(before), end)]  # each line keeps its number
        at = end
    return b"".join([*kept, source[at:]])


def annotation_nodes(source: bytes) -> list[ast.expr]:
    """Return the annotations that can be removed, in the order of the source.

    These are the annotations of parameters and results of functions, and of variables that get a value.
    Annotations of variables in the body of a class are not returned, because they define the fields of a
    record.
    """
    fields: set[ast.stmt] = set()
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):  # yields a class before the statements of its body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.append(node.returns)
        elif isinstance(node, ast.arg):
            nodes.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            fields.update(node.body)
        elif isinstance(node, ast.AnnAssign) and node.value and node not in fields:
            nodes.append(node.annotation)
    return sorted((node for node in nodes if node), key=lambda node: (node.lineno, node.col_offset))


# A piece of ipsec.py: the number of lines before it, its start and its end in bytes
Piece = tuple[int, int, int]


def parted(text: bytes) -> tuple[list[Piece], list[Piece]]:
    """Return two lists of (sub)sections of ipsec.py: those of the front, and the blocks."""
    pieces: list[tuple[int, Piece]] = []  # with the number of the section
    section, line, start, end = FRONT[0], 0, 0, 0
    for number, content in enumerate(text.splitlines(keepends=True)):
        banner = re.match(rb"# (\d+)\. ", content)
        if banner or content.startswith(b"# --- "):
            pieces.append((section, (line, start, end)))
            section, line, start = int(banner[1]) if banner else section, number, end
        end += len(content)
    pieces.append((section, (line, start, end)))
    front = [piece for section, piece in pieces if section in FRONT]
    blocks = [piece for section, piece in pieces if section not in FRONT]
    return front, blocks


def parts_of(text: bytes, piece: Piece) -> list[Piece]:
    """Divide a (sub)section into parts of about PART bytes, and return them.  No statement is divided."""
    line, start, end = piece
    lines = text[start:end].splitlines(keepends=True)
    parts: list[Piece] = []
    begin = 0
    for statement in ast.parse(text[start:end]).body:
        nodes = [statement, *getattr(statement, "decorator_list", ())]
        first = min(node.lineno for node in nodes) - 1
        length = len(b"".join(lines[begin:first]))
        if length >= PART:
            parts.append((line + begin, start, start + length))
            begin, start = first, start + length
    return [*parts, (line + begin, start, end)]


def title_of(text: bytes, piece: Piece) -> str:
    """Return the title of a (sub)section, which is the text of its banner before a colon."""
    banner = text[piece[1]:piece[2]].decode().partition("\n")[0]
    return re.sub(r"^# (--- )?|:.*| -+$", "", banner)


def text_of(text: bytes, pieces: Sequence[Piece]) -> bytes:
    """Return the text of pieces of ipsec.py.

    All other lines before the end of the last piece are empty, so that each line keeps its number.
    """
    result = b""
    for line, start, end in pieces:
        result += b"\n" * (line - result.count(b"\n")) + text[start:end]
    return result


def compiled(text: bytes, pieces: Sequence[Piece]) -> CodeType:
    """Compile pieces of ipsec.py with the interpreter that runs build.py."""
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(text_of(text, pieces), "ipsec.py", "exec", flags, dont_inherit=True)
    return code


def used_names(code: CodeType) -> Iterator[str]:
    """Yield the global names that a code object and those within it use."""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            yield str(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from used_names(inner)


def bound_names(code: CodeType) -> Iterator[str]:
    """Yield the global names that the code of a module binds."""
    return (str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_NAME")


def commands_in(text: bytes) -> Iterator[str]:
    """Yield the names and aliases of the commands that a block registers.

    A block registers commands with the decorator @command("NAME ALIAS...", ...), and with top-level calls of
    functions such as request_command("NAME ALIAS...", ...).  The names are the words of the first argument.
    """
    for statement in ast.parse(text).body:
        calls = [*getattr(statement, "decorator_list", ()), getattr(statement, "value", None)]
        for node in calls:
            if isinstance(node, ast.Call) and re.fullmatch(r"(\w+_)?command", ast.unparse(node.func)):
                yield from str(ast.literal_eval(node.args[0])).split()


def needs(text: bytes) -> dict[str, int]:
    """Return the index, which says for each command which blocks it needs.

    The index maps the name of a command to a number.  Bit N of the number is set if the command needs block N.
    A command needs its own block.  A block needs all blocks that define global names which its code uses.
    For each call load_part("NAME"), the index has the key `:NAME`, for the block that defines NAME and the
    blocks that this block needs.

    Raises SystemExit if the front uses a name of a block, or if a block uses a name of a later block, because
    the used block might not be loaded.
    """
    front, blocks = parted(text)
    codes = [compiled(text, [piece]) for piece in blocks]
    binders: dict[str, int] = {}
    for number, code in enumerate(codes):
        binders.update(dict.fromkeys(bound_names(code), number))
    for name in set(used_names(compiled(text, front))).intersection(binders):
        raise stop(f"sections {FRONT} of ipsec.py use {name}, but the section that defines it is loaded later")

    needed: list[int] = []
    index: dict[str, int] = {}
    for number, code in enumerate(codes):
        bits = 1 << number
        for name in set(used_names(code)).intersection(binders):
            if binders[name] > number:
                raise stop(f"ipsec.py uses {name} in a section before the one that defines it")
            if binders[name] < number:
                bits |= needed[binders[name]]
        needed.append(bits)
        _, start, end = blocks[number]
        index.update(dict.fromkeys(commands_in(text[start:end]), bits))

    parts = re.findall(rb'\bload_part\("(\w+)"\)', text)
    index.update((f":{name}", needed[binders[name]]) for name in map(bytes.decode, parts))
    return index


def late_titles(pythons: Collection[str]) -> tuple[str, ...]:
    """Return the titles of the blocks without bytecode in an archive for these interpreters."""
    return COMPILED_LATE if len(pythons) > 2 else COMPILED_LATE + COMPILED_LATE_IF_SMALL


def bytecode(text: bytes, pythons: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the archive's members below bytecode/."""
    front, blocks = parted(text)
    index = needs(text)
    yield "bytecode/source.front", marshal.dumps(front, FORMAT)
    yield "bytecode/source.blocks", marshal.dumps([index, *blocks], FORMAT)

    # with only one or two interpreters, separate constants would make the archive larger
    several = len(pythons) > 2
    late = late_titles(pythons)
    parts: dict[Piece, list[Piece]] = {}
    for piece in blocks:
        if title_of(text, piece) not in late:
            parts[piece] = parts_of(text, piece) if several else [piece]
    texts = [text_of(text, front)]
    for pieces in parts.values():
        texts += [text_of(text, [part]) for part in pieces]

    # 0 is the newest format of each interpreter, which is smaller.  Several interpreters use one format, because
    # equal constants then have equal bytes in their bytecode, so that all of them can share common.blocks.
    request = marshal.dumps((FORMAT if several else 0, texts), FORMAT)

    def compiled_by(python: Path) -> bytes:
        result = subprocess.run([str(python), "-s", "-S", "-c", COMPILE], env={"PYTHONHASHSEED": "0"},
                                input=request, stdout=subprocess.PIPE, check=True)
        return result.stdout

    common: list[bytes] = []
    for version, output in zip(pythons, at_once(compiled_by, pythons.values())):
        (front_code, *codes), constants = marshal.loads(output)
        if not common:
            common = constants if several else [b"" for _ in constants]
            content = gathered(blocks, parts, [compressed(part) for part in common])
            yield "bytecode/common.blocks", marshal.dumps(content, FORMAT)
        packed = [compressed(code, front_code + part) for code, part in zip(codes, common)]
        content = gathered(blocks, parts, packed)
        yield f"bytecode/{tag_of(version)}.front", front_code
        yield f"bytecode/{tag_of(version)}.blocks", marshal.dumps([index, *content], FORMAT)


def gathered(blocks: Sequence[Piece], parts: Mapping[Piece, Sequence[Piece]],
             packed: Sequence[bytes]) -> list[object]:
    """Return a list with one item for each block.

    The item is the list of the block's compressed parts.  If the block has no bytecode, the item is the block
    itself.
    """
    result: list[object] = []
    done = 0
    for block in blocks:
        if block in parts:
            count = len(parts[block])
            result.append(packed[done:done + count])
            done += count
        else:
            result.append(block)
    return result


def compressed(data: bytes, dictionary: bytes = b"") -> bytes:
    """Compress data with zlib, and return the result.

    The dictionary of a part is the front, because the front and the part have many names in common.  In an
    archive for more than two interpreters, the constants and names of the part follow the front.  They are in
    bytecode/common.blocks, because most of them are the same for all interpreters.  zlib uses the last 32 KiB
    of a dictionary.
    """
    # Negative wbits leave out zlib's header.  With a header, each start would compute a checksum of the
    # dictionary.
    deflate = zlib.compressobj(9, wbits=-15, memLevel=9, zdict=dictionary[-WINDOW:])
    return deflate.compress(data) + deflate.flush()


def say_interpreters(taken: Collection[str]) -> None:
    """Print for which interpreters the archive has bytecode, and for which it does not."""
    missing = [version for version in TARGETS if version not in taken]
    present = interpreters()
    ways = []
    if not present.keys() >= set(missing):
        ways.append("install these versions on this host")
    if len(taken) < len(present):
        ways.append("build without --for")
    if taken:
        say(f"ipsec.pyz starts fast on Python {', '.join(taken)}")
    if missing:
        say(f"ipsec.pyz starts more slowly on Python {', '.join(missing)}; to change this, {' and '.join(ways)}")


# --- the archive --------------------------------------------------------------------------------------------

def embedded_modules(source: Path) -> list[str]:
    """Return the sorted names of the modules of pyroute2 that are string constants in ipsec.py."""
    nodes = ast.walk(ast.parse(source.read_text()))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(text for text in texts if re.fullmatch(r"pyroute2(\.\w+)+", text))


# A program for each interpreter.  It imports the named modules in the same way as ipsec.pyroute2_module(),
# and prints the files of all loaded modules.
TRACE = """
import importlib, sys, types
library, *names = sys.argv[1:]
package = sys.modules["pyroute2"] = types.ModuleType("pyroute2")
package.__path__ = [library + "/pyroute2"]
for name in names:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def embed(library: Path, names: Sequence[str], target: Path) -> None:
    """Copy files of the unpacked wheel in `library` to `target`.

    They are the licences, and the files that are loaded when an interpreter of this host imports the modules
    `names`.  If this host has none of TARGETS, this Python imports the modules.  An interpreter that can't
    import the modules, such as Debian's python3-minimal, is ignored.  Raises SystemExit if no interpreter can
    import them.
    """
    def trace(python: Path) -> subprocess.CompletedProcess[str]:
        words = [str(python), "-ISBc", TRACE, str(library), *names]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    files = set(library.glob("*.dist-info/licenses/*"))
    traces = at_once(trace, list(interpreters().values()) or [Path(sys.executable)])
    good_traces = [result for result in traces if result.returncode == 0]
    if not good_traces:
        raise stop(f"no Python on this host can import parts of pyroute2: {reason_of(traces[0])}")
    for result in good_traces:
        paths = map(Path, result.stdout.splitlines())
        files.update(path for path in paths if library in path.parents)
    for path in files:
        place = target / path.relative_to(library)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def git(*words: str) -> str:
    """Run git in the checkout and return its output, or an empty string if git fails."""
    if not (TOP / ".git").exists() or not shutil.which("git"):
        return ""
    # Git refuses a checkout that belongs to another user, for example if root builds.  safe.directory permits
    # it; a user who runs build.py trusts the checkout.
    argv = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP)]
    # In a hook of git, variables such as GIT_DIR can name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run([*argv, *words], env=environment, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def commit_line() -> str:
    """Return a line with the commit of the checkout and its date; both are `unknown` without git."""
    commit = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= with changes") or "unknown"
    date = git("log", "-1", "--format=%cs") or "unknown date"
    return f"commit {commit}, {date}"


def about(library: Path) -> str:
    """Return the lines that `ipsec version --verbose` prints about the commit and the embedded packages."""
    lines = [commit_line()]
    for metadata in sorted(library.glob("*.dist-info/METADATA")):
        fields = dict(re.findall(r"^(Name|Version|License-Expression): (.*)$", metadata.read_text(), re.M))
        lines.append(f"embeds parts of {fields['Name']} {fields['Version']}, {fields['License-Expression']}, "
                     "unchanged")
    return "".join(f"{line}\n" for line in lines)


def own_files(pythons: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the project's own files in the archive, except about.txt."""
    yield "__main__.py", MAIN.encode()
    yield "too_old.py", TOO_OLD.encode()
    source = without_prose(SOURCE.read_bytes())
    yield "ipsec.py", source
    yield "LICENSE", (TOP / "LICENSE").read_bytes()
    yield from bytecode(source, pythons)
    pages = sorted((TOP / "man").glob("*.[1-8]"))
    without_comments = {page.name: re.sub(rb'(?m)^\.\\".*\n', b"", page.read_bytes()) for page in pages}
    yield "man.pages", marshal.dumps(without_comments, FORMAT)


def make_archive(target: Path, pythons: Mapping[str, Path]) -> None:
    """Write the archive to `target`, with bytecode for these interpreters."""
    with tempfile.TemporaryDirectory() as scratch:
        packages, library, tools = (Path(scratch, name) for name in ("packages", "library", "tools"))
        packages.mkdir()
        for lock, place in (("embedded.txt", library), ("builder.txt", tools)):
            for wheel in wheels(lock):
                zipfile.ZipFile(wheel).extractall(place)
        embed(library, embedded_modules(SOURCE), packages)
        own = {**dict(own_files(pythons)), "about.txt": about(library).encode()}
        write_zip(target, {**shiv_entries(packages, tools, own), **own})


def shiv_entries(packages: Path, tools: Path, own: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return a dictionary from names to contents of the files that shiv packs.

    They are the files of the packages, and shiv's environment.json and __main__.py; make_archive() replaces this
    __main__.py.  shiv itself is unpacked in `tools`.  Its bootstrap is left out, because it only extracts
    archives, and this archive is never extracted.
    """
    sys.path.insert(0, str(tools))
    from shiv import builder  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from shiv.bootstrap import environment  # type: ignore[import-untyped,import-not-found,unused-ignore]
    del sys.path[0]

    build_id = hashlib.sha256()
    files = [path for path in packages.rglob("*") if path.is_file()]
    contents = {str(path.relative_to(packages)): path.read_bytes() for path in files}
    for name, data in [*sorted(contents.items()), *sorted(own.items())]:
        build_id.update(name.encode() + b"\0" + data)
    date = time.strftime(builder.BUILD_AT_TIMESTAMP_FORMAT, time.gmtime(EPOCH))
    settings = environment.Environment(
        built_at=date, build_id=build_id.hexdigest(), shiv_version=version_of("shiv"),
        entry_point="ipsec:main", compile_pyc=False, no_modify=True, reproducible=True,
        hashes={wheel.name: digest(wheel) for wheel in wheels("embedded.txt")})

    packed = tools / "packed.zip"
    builder.create_archive([packages], packed, INTERPRETER, "ipsec:main", settings, compressed=False)
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.startswith("_bootstrap/")}


def write_zip(target: Path, entries: Mapping[str, bytes]) -> None:
    """Write the entries as a zip file.

    The bytes of the file depend only on the names and contents of the entries, on EPOCH, and on the version
    of zlib.
    """
    with open(target, "wb") as file:
        file.write(f"#!{INTERPRETER}\n".encode())
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name, time.gmtime(EPOCH)[:6])
                entry.create_system = 3  # Unix
                entry.external_attr = 0o100644 << 16  # the mode of the file
                entry.compress_type = zipfile.ZIP_DEFLATED
                if name == "__main__.py" or name.endswith(".blocks"):  # the blocks are already compressed
                    entry.compress_type = zipfile.ZIP_STORED
                archive.writestr(entry, entries[name], compresslevel=9)
    target.chmod(0o755)


def smoke(archive: Path) -> None:
    """Run two commands of the archive with every interpreter.

    Raises SystemExit if a command fails, for example because the interpreter can't load a block of `help`.
    """
    def run(python: Path) -> None:
        for words in (["--directory"], ["help"]):
            call([python, archive, *words], stdout=subprocess.DEVNULL)

    at_once(run, interpreters().values())


def version_of(package: str) -> str:
    """Return the version of a package that vendor/builder.txt pins."""
    return next(name.partition("==")[2] for name in pinned("builder.txt") if name.startswith(f"{package}=="))


def build(arguments: Sequence[str] = ()) -> None:
    """Build ./ipsec.pyz, and replace the old file in one step.

    With `--for VERSION,...`, the archive has bytecode for these interpreters only.
    """
    if arguments and (len(arguments) != 2 or arguments[0] != "--for"):
        raise stop("usage: build.py [--for VERSION[,VERSION...]]")
    pythons = chosen_interpreters(arguments[1] if arguments else "")
    with alone():
        fetch_missing("builder.txt", "embedded.txt")

    aside = ARCHIVE.with_name(f".{ARCHIVE.name}.{os.getpid()}")
    try:
        make_archive(aside, pythons)
        smoke(aside)
        size = aside.stat().st_size
        os.replace(aside, ARCHIVE)
    finally:
        aside.unlink(missing_ok=True)

    say_interpreters(pythons)
    limit = SIZE_LIMIT if len(pythons) > 1 else SIZE_LIMIT_OF_ONE
    excess = f", more than the limit of {limit}" if size > limit else ""
    say(f"ipsec.pyz: {size} bytes{excess}")


def fetch_missing(*locks: str) -> None:
    """Download the wheels of each lock file if vendor/wheels does not have all of them.

    Raises SystemExit if a download fails.
    """
    missing = [lock for lock in locks if len(wheels(lock)) < len(pinned(lock))]
    names: list[str] = []
    for lock in missing:
        names += pinned(lock)
    if missing:
        fetch(missing, " and ".join(name.replace("==", " ") for name in names))


def release(arguments: Sequence[str]) -> None:
    """Write dist/: the archive, a tar of manual pages and completions, BUILD-INFO and SHA256SUMS.

    Raises SystemExit if this is not a git checkout, if it has uncommitted changes, if CHANGELOG.md has no
    heading for the version, or if the commit has tags, but not the tag of the version.
    """
    version = re.findall(r'^VERSION = "(.*)"$', SOURCE.read_text(), re.M)[0]
    commit = git("rev-parse", "HEAD")
    if not commit:
        raise stop("release: this is not a git checkout, or git is not installed")
    changes = [line.split(None, 1)[1] for line in git("status", "--porcelain").splitlines()]
    if changes:
        raise stop(f"release: the checkout has uncommitted changes: {', '.join(changes)}")
    tags = git("tag", "--points-at", "HEAD").split()
    if tags and f"v{version}" not in tags:
        raise stop(f"release: the commit has the tag {tags[0]}, but the version in ipsec.py is {version}")
    if not re.search(rf"^## {re.escape(version)}\b", (TOP / "CHANGELOG.md").read_text(), re.M):
        raise stop("release: CHANGELOG.md has no heading for this version: "
                   f"write ## {version} above its changes")

    build()
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    shutil.copy(ARCHIVE, DIST)
    write_tar(DIST / f"ipsec-{version}-share.tar.gz")
    (DIST / "BUILD-INFO").write_text("".join(f"{line}\n" for line in build_info(version)))
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(DIST.iterdir()))
    (DIST / "SHA256SUMS").write_text(sums)
    say(f"dist/: {', '.join(sorted(path.name for path in DIST.iterdir()))}")


def build_info(version: str) -> Iterator[str]:
    """Yield the lines of BUILD-INFO.

    They name everything on which the bytes of a release depend: the commit, interpreters, zlib, wheels, and the
    date of the entries.
    """
    yield f"ipsec {version}, commit {git('log', '-1', '--format=%H, %cs')}"
    yield f"zlib {zlib.ZLIB_RUNTIME_VERSION} of Python {sys.version}"
    for python in interpreters().values():
        words = [str(python), "-ISc", "import sys; print(sys.version)"]
        answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        yield f"bytecode by Python {answer.strip()}"
    for wheel in [*wheels("builder.txt"), *wheels("embedded.txt")]:
        yield f"{digest(wheel)}  {wheel.name}"
    yield f"SOURCE_DATE_EPOCH={EPOCH}"


COMPLETION_FILES = {"bash": "bash-completion/completions/ipsec", "zsh": "zsh/site-functions/_ipsec",
                    "fish": "fish/vendor_completions.d/ipsec.fish"}


def write_tar(target: Path) -> None:
    """Write a compressed tar of the manual pages and completions; their paths are relative to /usr/local."""
    pages = (TOP / "man").glob("*.[1-8]")
    files = {f"share/man/man{page.suffix[1:]}/{page.name}": page.read_bytes() for page in pages}
    for shell, name in COMPLETION_FILES.items():
        words = [sys.executable, str(ARCHIVE), "completion", shell]
        files[f"share/{name}"] = subprocess.run(words, capture_output=True, check=True).stdout

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(files[name]), EPOCH, 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    target.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


# --- the developer's verbs ----------------------------------------------------------------------------------

def test(arguments: Sequence[str]) -> None:
    """Build, then run pytest with the arguments and exit with its status.

    Without arguments, run all tests in parallel.
    """
    build()
    install("developer.txt")
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    # Two tests for each processor run at the same time, because many tests only wait for something
    several = ["-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal"]
    words = [str(VENV / "bin/python"), "-m", "pytest", *(arguments or several)]
    result = subprocess.run(words, cwd=TOP, env=environment, check=False, stdin=subprocess.DEVNULL)
    raise SystemExit(result.returncode)


def check(arguments: Sequence[str]) -> None:
    """Lint the program, the builder, the tests, the manual and the workflows."""
    install("developer.txt")
    call([VENV / "bin/ruff", "check", "ipsec.py", "build.py", "tests"])
    call([VENV / "bin/mypy", "--strict", "ipsec.py", "build.py"])
    check_manual()
    install("workflows.txt")
    call([VENV / "bin/check-jsonschema", "--builtin-schema", "vendor.github-workflows", "--quiet",
          *sorted((TOP / ".github/workflows").glob("*.yml"))])


def check_manual() -> None:
    """Lint the manual pages with mandoc or groff.

    If root runs build.py on a host with apt-get, a missing mandoc is installed first.  Raises SystemExit if a
    page has an error or a warning, or if neither program is installed.
    """
    pages = sorted(map(str, (TOP / "man").glob("*.[1-8]")))
    if not shutil.which("mandoc") and os.geteuid() == 0 and shutil.which("apt-get"):
        apt_install("mandoc", "to check the manual pages")
    if shutil.which("mandoc"):
        call(["mandoc", "-T", "lint", "-W", "warning", *pages])
    elif shutil.which("groff"):
        for page in pages:
            words = ["groff", "-mdoc", "-ww", "-Tascii", "-z", page]
            lint = subprocess.run(words, capture_output=True, text=True, check=True)
            if lint.stderr:
                raise stop(lint.stderr)
    else:
        raise stop("check: the check of the manual pages needs mandoc or groff; install one of them")


def bench(arguments: Sequence[str]) -> None:
    """Build, then run the benchmark, whose rows are in tests/bench.py."""
    build()
    install("developer.txt")
    call([VENV / "bin/python", "-m", "tests.bench", *arguments])


def clean(arguments: Sequence[str]) -> None:
    """Remove the results of the other verbs, but not the fetched wheels."""
    caches = (TOP / name for name in (".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"))
    for path in (VENV, DIST, *caches):
        shutil.rmtree(path, ignore_errors=True)
    for path in (ARCHIVE, *TOP.glob(f".{ARCHIVE.name}.*")):  # a build that was killed leaves the second kind
        path.unlink(missing_ok=True)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "build": build, "test": test, "check": check, "bench": bench, "release": release, "clean": clean}


def main() -> None:
    """Run the verb of the command line; the default is `build`.

    Raises SystemExit if the verb or a program fails, if a file can't be read or written, or if the user types
    Ctrl-C.
    """
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    parser.add_argument("verb", nargs="?", default="build", choices=VERBS, metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")
    argv = sys.argv[1:]
    if argv[:1] == ["--for"]:
        argv.insert(0, "build")
    words = parser.parse_args(argv)
    if words.arguments and words.verb in ("check", "release", "clean"):
        parser.error(f"{words.verb} has no arguments")

    try:
        VERBS[words.verb](words.arguments)
    except OSError as error:
        reason = str(error.strerror or error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # such an error has no file name
            reason += f" (below {TOP} or {tempfile.gettempdir()})"
        raise stop(f"{error.filename}: {reason}" if error.filename else reason) from None
    except subprocess.CalledProcessError as error:  # stderr is None if the program has already printed its error
        reason = (error.stderr or "").strip().rpartition("\n")[2]
        text = f"{error.cmd[0]} ended with status {error.returncode}"
        raise stop(f"{text}: {reason}" if reason else text) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    # With SIGTERM, the builder ends by an exception, so it removes its temporary files
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main()
