"""Completion in real shells, and the manual pages through man and mandoc, on a terminal."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Callable

import pytest

from ..ground.machine import Machine

CONFIG = """config setup

conn tunnel-one
\tauto=ignore
conn "two words"
\tauto=ignore
conn o'dd$name:x
\tauto=ignore
"""

# Types keys into a program on a terminal of 100 columns, each row when the screen shows what it waits for; prints all
# that the program wrote
TYPIST = """
import fcntl, json, os, pty, select, struct, sys, termios, time
argv, rows = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if not pid:
    os.execvp(argv[0], argv)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
seen, start, end = b"", 0, time.monotonic() + 60
for wanted, keys in [*rows, ["", ""]]:
    while wanted.encode() not in seen[start:] or not wanted:
        if not select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
            sys.exit(f"no {wanted!r} in {seen!r}")
        try:
            data = os.read(terminal, 4096)
        except OSError:
            data = b""
        if not data:
            break
        seen += data
    start = seen.index(wanted.encode(), start) + len(wanted)
    os.write(terminal, keys.encode())
sys.stdout.buffer.write(seen)
"""

SHELLS = {
    "bash": (["bash", "--norc", "-i"], "PS1=re''ady\\>; . <(ipsec.pyz completion bash); "
                                      "show() { printf '[%s]' \"$@\"; echo; }"),
    "zsh": (["zsh", "-f", "-i"], "PS1=re''ady\\>; autoload -U compinit; compinit -u -D; "
                                 ". =(ipsec.pyz completion zsh); show() { printf '[%s]' \"$@\"; echo; }"),
}


@pytest.fixture
def shells(root: Callable[..., Machine]) -> Machine:
    machine = root("bookworm-shells")
    machine.write("/etc/ipsec.conf", CONFIG)
    return machine


def typed(machine: Machine, argv: list[str], rows: list[tuple[str, str]]) -> str:
    words = ["python3", "-c", TYPIST, json.dumps([argv, rows])]
    return machine.run(words, env={"TERM": "xterm", "MANPAGER": "cat", "PAGER": "cat", "HOME": "/root"}).check().stdout


CASES = [("ipsec.pyz --dire", "[--directory]"), ("ipsec.pyz checknf", "[checknflog]"),
         ("ipsec.pyz barf --list-s", "[barf][--list-sections]"), ("ipsec.pyz up tunn", "[up][tunnel-one]"),
         ("ipsec.pyz auto --up two", "[auto][--up][two words]"), ("ipsec.pyz down o", "[down][o'dd$name:x]"),
         ("ipsec.pyz barf --section hostname/f", "[barf][--section][hostname/fqdn]"),
         ("ipsec.pyz barf --section=hostname/f", "[barf][--section=hostname/fqdn]"),
         ("ipsec.pyz start --init sysv", "[start][--init][sysvinit]"),
         ("ipsec.pyz verify rp_", "[verify][rp_filter]"), ("ipsec.pyz why tunn", "[why][tunnel-one]"),
         ("ipsec.pyz down o\\'dd\\$name:", "[down][o'dd$name:x]"), ("ipsec.pyz help newh", "[help][newhostkey]"),
         ("ipsec.pyz --config /etc/ipsec.c", "[--config][/etc/ipsec.conf]")]


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_tab_completes(shells: Machine, shell: str) -> None:
    """The line that Tab made becomes the arguments of a function (^A goes to its start), so what counts is what the
    shell reads."""
    argv, setup = SHELLS[shell]
    rows = [("#", f"{setup}\n")]
    for line, wanted in CASES:
        rows += [("ready>", f"{line}\t\x01show \n"), (f"[ipsec.pyz]{wanted}", "")]
    out = typed(shells, argv, [*rows, ("ready>", "exit\n")])
    for _, wanted in CASES:
        assert f"[ipsec.pyz]{wanted}" in out, (wanted, out)


def test_fish_completes(shells: Machine) -> None:
    for line, wanted in CASES:
        done = shells.run(["fish", "-c", "ipsec.pyz completion fish | source; complete -C $argv[1]", line]).check()
        last = wanted.rstrip("]").rpartition("[")[2]
        assert last in done.stdout.splitlines(), (line, done)


def words_of(text: str) -> list[str]:
    return re.sub(r"[\"'‘’“”–-]", "", re.sub(".\b", "", text)).split()


def test_pages(shells: Machine) -> None:
    """Our text has all the words that mandoc's has; on a terminal man shows the page, and mandoc where there is no
    man."""
    for page in sorted((Path(__file__).resolve().parents[2] / "man").glob("*.8")):
        shells.write("/run/page", page.read_bytes())
        theirs = words_of(shells.run(["mandoc", "-T", "utf8", "/run/page"]).check().stdout)
        ours = words_of(shells.ipsec("man", *page.stem.split("_", 1)[1:]).check().stdout)
        changes = [op for op in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
                   if op[0] != "equal"]
        kept = [(kind, theirs[c:d]) for kind, _, _, c, d in changes if "Manual" not in theirs[c:d]
                and "Debian" not in theirs[c:d]]
        assert kept == [], page.name
    for gone in ((), ("/usr/bin/man",), ("/usr/bin/mandoc",)):
        for name in gone:
            shells.run(["mv", name, f"{name}.away"]).check()
        shown = typed(shells, ["ipsec.pyz", "man", "status"], [])
        assert {"IPSEC_STATUS(8)", "briefstatus"} <= set(words_of(shown)), shown


def test_a_command_without_page(shells: Machine) -> None:
    assert "ipsec_auto - " in shells.ipsec("man", "up").check().stdout  # the page on which the command stands
    assert "Usage: ipsec directory" in shells.ipsec("man", "directory").check().stdout
    assert shells.ipsec("man", "pluto").status == 1
    unknown = shells.ipsec("man", "barff")
    assert unknown.status == 1 and "did you mean barf?" in unknown.stderr
    assert shells.ipsec("completion", "tcsh").status == 2
