"""The front door, from the built ipsec.pyz: what is run with which words, in which environment, with which status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ipsec

SHOW = """#!/bin/sh
printf '<%s>' "$@"
printf '\\n%s\\n' "$IPSEC_EXECDIR|$IPSEC_CONF|$IPSEC_RUNDIR|$CTLSOCKET|$IPSEC_VERSION|$PATH"
"""
WHACK = "#!/bin/sh\necho 'Libreswan 4.10'\n"


class Door:
    """ipsec.pyz with an exec directory of its own."""

    def __init__(self, pyz: Path, execdir: Path) -> None:
        self.argv: list[str | bytes] = [sys.executable, str(pyz)]
        self.execdir = execdir
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "IPSEC_EXECDIR": str(execdir)}

    def add(self, name: str, text: str, mode: int = 0o755) -> None:
        (self.execdir / name).write_text(text)
        (self.execdir / name).chmod(mode)

    def __call__(self, *words: str | bytes, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*self.argv, *words], env={**self.env, **env}, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=60, check=False)

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.argv, *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **options)


@pytest.fixture
def door(pyz: Path, tmp_path: Path) -> Door:
    execdir = tmp_path / "libexec"
    execdir.mkdir()
    return Door(pyz, execdir)


def one_line(result: subprocess.CompletedProcess[bytes], status: int) -> str:
    """The one line of complaint of a command that must fail with the status."""
    assert result.returncode == status, result
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ipsec"), lines
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("words", [
    ("",), ("a b", "  ", "*"), ("--", "-x", "--help"), (b"\xff\xfe\x80", "ü".encode()), ("new\nline", "$HOME", "`id`"),
    ("--help",), ("--ctlsocket", "x"),
])
def test_arguments_arrive_byte_for_byte(door: Door, words: tuple[str | bytes, ...]) -> None:
    door.add("told", SHOW)
    result = door("told", *words)
    wanted = b"".join(b"<" + os.fsencode(word) + b">" for word in words)
    assert (result.returncode, result.stdout.split(b"\n|")[0].startswith(wanted)) == (0, True), result


@pytest.mark.parametrize("status", [0, 1, 2, 33, 42, 126, 255])
def test_status_of_a_program_is_ours(door: Door, status: int) -> None:
    door.add("leave", f"#!/bin/sh\nexit {status}\n")
    assert door("leave").returncode == status


def test_signals_are_as_a_program_expects(door: Door) -> None:
    door.add("signals", f"#!{sys.executable}\nimport os\n"
             "print(next(l for l in open('/proc/self/status') if l.startswith('SigIgn')))\n")
    # Python itself ignores SIGPIPE and SIGXFSZ at its start: what it inherited is what a shell shows
    door.add("shell", "#!/bin/sh\ngrep SigIgn /proc/$$/status\n")
    direct = subprocess.run(["/bin/sh", "-c", "grep SigIgn /proc/$$/status"], capture_output=True, check=True,
                            restore_signals=True)
    assert door("shell").stdout == direct.stdout
    door.add("killed", "#!/bin/sh\nkill -TERM $$\n")
    assert door("killed").returncode == -signal.SIGTERM


def test_environment_is_honoured_and_exported(door: Door) -> None:
    door.add("told", SHOW)
    door.add("whack", WHACK)
    default = door("told").stdout.decode().splitlines()[1].split("|")
    assert default[:5] == [str(door.execdir), "/etc/ipsec.conf", "/run/pluto", "/run/pluto/pluto.ctl", "4.10"]
    assert default[5].startswith("/usr/sbin:")
    env = {"IPSEC_CONF": "/c", "IPSEC_RUNDIR": "/r", "IPSEC_SBINDIR": "/s"}
    assert door("told", **env).stdout.decode().splitlines()[1].split("|")[1:6] == ["/c", "/r", "/r/pluto.ctl", "4.10",
                                                                                  "/s:/usr/sbin:/usr/bin:/sbin:/bin"]
    # an option is stronger than the environment; an empty variable counts as unset
    words = ["--config", "/c2", "--rundir=/r2", "--ctlsocket", "/x", "told"]
    assert door(*words, **env).stdout.decode().splitlines()[1].split("|")[1:4] == ["/c2", "/r2", "/x"]
    assert door("told", IPSEC_CONF="").stdout.decode().splitlines()[1].split("|")[1] == "/etc/ipsec.conf"


def test_no_argument_is_a_usage_error(door: Door) -> None:
    result = door()
    assert result.returncode == 2
    assert result.stderr.decode().startswith("Usage: ipsec {command} [argument] ...\n")
    assert door("--rundir", "/x").returncode == 2  # an option, but no command


@pytest.mark.parametrize("word", ["--help", "help", "-h"])
def test_help_lists_each_command_once_in_two_columns(door: Door, word: str) -> None:
    for name in ("zzz", "showhostkey", "barf", "_updown", "old.old", "old.orig", "edit~", "asn1check", "ipsec"):
        door.add(name, "#!/bin/sh\n")
    door.add("README", "not a program", 0o644)
    result = door(word)
    assert (result.returncode, result.stderr) == (0, b"")
    table = [line for line in result.stdout.decode().splitlines() if line.startswith("\t")]
    names = [name for line in table for name in line.split()]
    assert all(len(line.split()) == 2 for line in table[:-1])
    assert names == sorted(set(names))
    assert {"zzz", "showhostkey", "barf", "version"} <= set(names)
    assert not {"_updown", "old.old", "old.orig", "edit~", "asn1check", "ipsec", "README"} & set(names)
    assert all(len(line.expandtabs()) <= 80 for line in result.stdout.decode().splitlines())


def test_every_command_explains_itself(door: Door) -> None:
    import ipsec

    for name in sorted({entry.name for entry in ipsec.COMMANDS.values() if entry.options is not None}):
        by_help, by_option = door("help", name), door(name, "--help")
        assert by_help.returncode == by_option.returncode == 0, name
        assert by_help.stdout == by_option.stdout, name
        lines = by_help.stdout.decode().splitlines()
        assert lines[0].startswith(f"Usage: ipsec {name}")
        assert max(map(len, lines)) <= 80, name


def test_help_of_what_is_not_ours(door: Door) -> None:
    door.add("showhostkey", "#!/bin/sh\nexit 9\n")
    assert b"showhostkey" in door("help", "showhostkey").stdout
    assert "nosuch" in one_line(door("help", "nosuch"), 1)


def test_directory_and_its_default(door: Door, tmp_path: Path) -> None:
    assert door("--directory").stdout == os.fsencode(door.execdir) + b"\n"
    usual = ["/usr/libexec/ipsec", "/usr/lib/ipsec", "/usr/local/libexec/ipsec", "/usr/local/lib/ipsec",
             "/usr/lib64/ipsec"]
    for made in (None, *reversed(usual)):
        if made:
            (tmp_path / "root" / made[1:]).mkdir(parents=True)
        result = door("--root", str(tmp_path if made is None else tmp_path / "root"), "--directory", IPSEC_EXECDIR="")
        assert result.stdout.decode() == f"{made or usual[0]}\n"


@pytest.mark.parametrize("word", ["--version", "version", "--versioncode"])
def test_version_line(door: Door, word: str) -> None:
    release = os.uname().release
    kernel = f"{release} netkey" if Path("/proc/sys/net/core/xfrm_acq_expires").exists() else \
        "(no kernel code presently loaded)"
    assert door(word).stdout.decode() == f"Libreswan (none) (U(none)/K{kernel})\n"
    door.add("whack", WHACK)
    assert door(word).stdout.decode() == f"Libreswan 4.10 (U4.10/K{kernel})\n"
    # without programs the version is read from the script that libreswan installs
    (door.execdir / "whack").unlink()
    door.add("ipsec", 'export IPSEC_VERSION="5.2"\n')
    assert door(word, IPSEC_SBINDIR=str(door.execdir)).stdout.decode().startswith("Libreswan 5.2 (U5.2/K")


def test_a_broken_helper_does_not_break_the_version(door: Door) -> None:
    door.add("whack", "not executable by any kernel")
    door.add("addconn", "#!/nonexistent/interpreter\n")
    assert door("--version").stdout.startswith(b"Libreswan (none) ")


@pytest.mark.parametrize("name", sorted({entry.name for entry in ipsec.COMMANDS.values() if not entry.rescue}))
def test_a_mounted_disk_is_only_read(tmp_path: Path, name: str) -> None:
    """With --root a command that changes something, or asks pluto, is refused before it does anything."""
    with pytest.raises(ipsec.Failure, match="is not a running system, so it is only read") as caught:
        ipsec.dispatch(["--root", str(tmp_path), name])
    assert caught.value.status == ipsec.USAGE and caught.value.hint == f"chroot {tmp_path} ipsec {name}"
    assert os.listdir(tmp_path) == []


def test_output_that_is_closed_is_an_error(door: Door) -> None:
    for words in (["help"], ["barf", "--section", "version"], ["look", "route"]):
        result = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *map(os.fsdecode, door.argv), *words], env=door.env,
                                stderr=subprocess.PIPE, timeout=60, check=False)
        assert (result.returncode, result.stderr) == (1, b"ipsec: standard output: Bad file descriptor\n"), words
    result = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *map(os.fsdecode, door.argv), "barf", "--section",
                             "version"], env=door.env, stdout=subprocess.PIPE, timeout=60, check=False)
    assert result.returncode == 0 and b"Libreswan" in result.stdout


def test_global_options_may_be_among_the_words_of_a_built_in_command(door: Door, tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ipsec.conf").write_text("config setup\n\tuniqueids=no\n")
    before = door("--root", root, "readwriteconf")
    assert (before.returncode, b"uniqueids=no" in before.stdout) == (0, True)
    for words in (["readwriteconf", "--root", root], ["readwriteconf", f"--root={root}"]):
        assert door(*words).stdout == before.stdout
    assert "only read" in one_line(door("up", "--root", root, "c"), 2)
    assert "/no-such-7f3" in one_line(door("look", "--root", "/no-such-7f3"), 2)
    assert "--root is empty" in one_line(door("look", "--root="), 2)
    assert "unexpected argument" in one_line(door("version", "--", "--root"), 2)


def test_words_of_another_program_s_grammar_are_left_alone(door: Door) -> None:
    door.add("whack", WHACK)
    door.add("foreign", "#!/bin/sh\necho \"$@\"\n")
    assert door("foreign", "--root", "/").stdout == b"--root /\n"


@pytest.mark.parametrize("words", [["--config", "{}"], ["--config={}"]])
def test_no_program_gets_a_configuration_that_it_might_never_finish_reading(door: Door, words: list[str],
                                                                            tmp_path: Path) -> None:
    door.add("addconn", "#!/bin/sh\necho ran\n")
    os.mkfifo(tmp_path / "fifo")
    line = one_line(door("addconn", *[word.format(tmp_path / "fifo") for word in words]), 3)
    assert "not a regular file" in line


@pytest.mark.parametrize("words, status, says", [
    (["--rundir"], 2, "--rundir needs a value"),
    (["--ctlsocket"], 2, "--ctlsocket needs a value"),
    (["--config"], 2, "--config needs a value"),
    (["--bogus"], 2, 'unknown option "--bogus"'),
    (["--verison"], 2, "did you mean --version?"),
    (["--root", "/no-such-7f3", "version"], 2, "/no-such-7f3"),
    (["--root", "", "version"], 2, "--root is empty"),
    (["nosuch"], 1, 'unknown IPsec command "nosuch"'),
    (["versoin"], 1, "did you mean version?"),
    (["../../../bin/sh", "-c", "echo SHELL"], 1, "a path is never run"),
    (["./whack"], 1, "a path is never run"),
    (["."], 1, "not a command name"),
    ([".."], 1, "not a command name"),
    ([""], 1, "not a command name"),
    (["esc\x1b[31mape"], 1, r'"esc\x1b[31mape"'),
    (["version", "surplus"], 2, 'unexpected argument "surplus"'),
    (["version", "--bogus"], 2, 'unknown option "--bogus"'),
    (["version", "--verbose=yes"], 2, "--verbose takes no value"),
    (["barf", "--timeout", "soon"], 2, "--timeout"),
    (["barf", "--since", "whenever"], 2, "--since"),
    (["barf", "--section", "nosuch"], 2, "no section"),
])
def test_one_clear_line(door: Door, words: list[str], status: int, says: str) -> None:
    door.add("whack", WHACK)
    assert says in one_line(door(*words), status)


def test_what_cannot_be_executed_is_126(door: Door) -> None:
    door.add("broken", "#!/nonexistent/interpreter\n")
    line = one_line(door("broken"), 127)
    assert "broken" in line
    door.add("garbage", "\x01\x02 no program at all")
    assert "garbage" in one_line(door("garbage"), 126)


def test_a_directory_or_plain_file_is_no_command(door: Door) -> None:
    (door.execdir / "subdir").mkdir()
    door.add("plain", "text", 0o644)
    one_line(door("subdir"), 1)
    one_line(door("plain"), 1)


def test_closed_pipe_is_141_and_silent(door: Door) -> None:
    shell = 'trap "" 0; "$@" | :; exit "${PIPESTATUS[0]}"'
    result = subprocess.run(["bash", "-c", shell, "bash", *map(os.fsdecode, door.argv), "barf"], env=door.env,
                            capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (141, b"")


def test_interrupt_is_130_and_silent(door: Door, tmp_path: Path) -> None:
    started = tmp_path / "started"
    door.add("whack", f"#!/bin/sh\n: > {started}\nexec sleep 300\n")
    # a shell has what it starts in the background ignore the signal, and these tests may be such
    process = door.popen("version", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not started.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")


def test_output_that_cannot_be_written_is_an_error(door: Door) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*door.argv, "--version"], env=door.env, stdout=full, stderr=subprocess.PIPE,
                                timeout=60, check=False)
    assert (result.returncode, result.stderr) == (1, b"ipsec: standard output: No space left on device\n")


def test_closed_descriptors_are_survived(door: Door) -> None:
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = f'exec "$@" {closing}'
        result = subprocess.run(["sh", "-c", command, "sh", *map(os.fsdecode, door.argv), "--directory"], env=door.env,
                                capture_output=True, timeout=60, check=False)
        assert result.returncode in (0, 1), (closing, result)
        assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("word, meant", [
    ("report", "barf"), ("dump", "barf"), ("debug", "barf"), ("logs", "barf"),
    ("check", "verify"), ("doctor", "verify"),
    ("diagnose", "why"), ("statusall", "tunnels"), ("list", "tunnels"), ("update", "reload"),
])
def test_a_synonym_names_the_command_and_runs_nothing(word: str, meant: str) -> None:
    failure = ipsec.unknown_command(ipsec.Host({}), word)
    assert failure.status == 1 and failure.hint == f"use: ipsec {meant}"


def test_the_hint_for_pluto_names_this_hosts_package_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec.Host, "executable", lambda self, name: name.endswith("/dnf"))
    assert ipsec.unknown_command(ipsec.Host({}), "pluto").hint == "dnf install libreswan"


@pytest.mark.parametrize("word, meant", [
    ("satrt", "did you mean start?"), ("stattus", "did you mean status?"), ("verfy", "did you mean verify?"),
    ("stopp", "did you mean stop?"), ("reloda", "did you mean reload?"),
])
def test_a_misspelt_word_leads_to_a_command(word: str, meant: str) -> None:
    assert ipsec.unknown_command(ipsec.Host({}), word).hint == meant


@pytest.mark.parametrize("word", ["stat", "restate", "ad", "delet-status", "routes", "imports-list", "resolved"])
def test_a_word_that_is_no_slip_leads_to_no_change(word: str) -> None:
    hint = ipsec.unknown_command(ipsec.Host({}), word).hint
    offered = hint.removeprefix("did you mean ").rstrip("?")
    assert offered not in ipsec.CHANGING or ipsec.is_slip(word, offered)


@pytest.mark.parametrize("word", ["rsasig", "ecdsasig", "checknf"])
def test_a_command_that_makes_keys_or_rules_is_not_suggested_for_a_similar_word(word: str) -> None:
    hint = ipsec.unknown_command(ipsec.Host({}), word).hint
    assert not any(name in hint for name in ("rsasigkey", "ecdsasigkey", "checknflog", "newhostkey")), hint


def test_help_for_a_person_has_groups_and_every_command() -> None:
    ipsec.load_rest()
    names = [entry.name for entry in ipsec.COMMANDS.values() if not entry.hidden]
    lines = list(ipsec.grouped_commands([*names, "of-libreswan"]))
    words = " ".join(lines).split()
    assert "tunnels:" in lines and "diagnose:" in lines and set(names) <= set(words) and "of-libreswan" in words
    assert all(len(line) <= 100 for line in lines)
    grouped = [name for _, group in ipsec.HELP_GROUPS for name in group.split()]
    assert set(grouped) <= set(ipsec.COMMANDS)


def test_help_for_programs_keeps_its_two_columns() -> None:
    names = ["auto", "barf", "connectionstatus"]
    assert list(ipsec.command_columns(names)) == ["\tauto\t\t\tbarf\t", "\tconnectionstatus\t"]
    text = "\n".join(ipsec.command_columns(["addresspoolstatus", *names]))
    assert all(f"\t{name}\t" in text for name in names)  # in each column
