"""The registry, the help and the manual pages say the same."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ipsec

MAN = Path(__file__).resolve().parent.parent / "man"
# options that only keep old command lines working
KEPT = ("ignored", "accepted", "obsolete", "of old releases", "same as ipsec ", "the same as ")
COMMANDS = {entry.name: entry for entry in ipsec.COMMANDS.values()}
PAGES = {path.stem.removeprefix("ipsec_"): path.read_text() for path in MAN.glob("ipsec_*.8")}


def plain(page: str) -> str:
    """The text of a page without the marks of mdoc: options as they are typed."""
    return re.sub(r"\bFl -", "--", page).replace("\\-", "-")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_tells_every_option_of_its_command(name: str) -> None:
    text = plain(PAGES[name])
    for option in COMMANDS[name].options or ():
        if option.help.startswith(KEPT):
            continue
        assert any(re.search(rf"{re.escape(word)}\b", text) for word in option.names.split()), (name, option.names)


def test_the_main_page_names_every_command_that_has_a_page_and_every_global_option() -> None:
    page = (MAN / "ipsec.8").read_text()
    for name in PAGES:
        assert f".Xr ipsec_{name} 8" in page, name
    for option in ipsec.GLOBAL_OPTIONS:
        assert option.key in plain(page), option.key


def test_every_command_has_a_summary_that_is_no_sentence() -> None:
    for entry in COMMANDS.values():
        assert entry.summary and not entry.summary.endswith("."), entry.name
        assert len(entry.summary) <= 100, entry.name


def test_the_page_of_verify_names_every_check() -> None:
    page = PAGES["verify"]
    assert re.findall(r"^\.It Cm (\S+)$", page, re.MULTILINE) == list(ipsec.CHECKS)


def test_the_main_page_names_every_command() -> None:
    words = (MAN / "ipsec.8").read_text().split()
    for entry in COMMANDS.values():
        assert entry.hidden or entry.name in words, entry.name


@pytest.mark.parametrize("page", sorted(MAN.glob("*.8")), ids=lambda path: path.stem)
def test_a_page_as_text_fits_80_columns_and_leaves_no_marks(page: Path) -> None:
    source = page.read_text()
    text = ipsec.manual_text(source)
    literal = {ipsec.mdoc_text(line[4:], "ipsec") for line in source.splitlines() if line.startswith(".Dl ")}
    for line in text.splitlines():
        assert len(line) <= 79 or line.strip() in literal, line
        assert not re.search(r"^\.|\\[&ef-]|\b(Fl|Ar|Op|Pq|Ql|Xr|Ns|Cm|Va|Pa) ", line), line
    assert text.startswith(page.stem.upper() + "(8)\n\nNAME\n")


def test_a_macro_of_the_name_keeps_the_name_before_a_mark() -> None:
    """As mandoc does; the name was lost."""
    assert ipsec.mdoc_text("Nm .", "ipsec") == "ipsec."
    assert ipsec.mdoc_text("Nm , or", "ipsec") == "ipsec, or"
    assert ipsec.mdoc_text("Nm ipsec up .", "ipsec") == "ipsec up."


def test_man_shows_the_page_on_which_a_command_stands() -> None:
    for name, title in (("verify", "VERIFY"), ("initnss", "CHECKNSS"), ("up", "AUTO"), ("initiate", "AUTO"),
                        ("sniff", "CHECKNFLOG"),
                        ("showhostkey", "NEWHOSTKEY"), ("keycensor", "_SECRETCENSOR"), ("metrics", "STATUS")):
        page = ipsec.page_of(name, COMMANDS.get(name) or ipsec.COMMANDS[name])
        assert f".Dt IPSEC_{title} 8" in page.decode(), name
    with pytest.raises(OSError):
        ipsec.page_of("pluto", None)


@pytest.mark.parametrize("name", sorted(name for name, entry in COMMANDS.items() if not entry.hidden))
def test_help_fits_80_columns(name: str) -> None:
    for line in ipsec.describe(COMMANDS[name]).splitlines():
        assert len(line) <= 80 or line.startswith(("Usage:", "Also written:")), line


def test_examples_are_command_lines_that_the_command_accepts() -> None:
    lines = {entry.name: [re.split(r" {2,}", line)[0] for line in entry.examples.splitlines() if line[:1] != " "]
             for entry in COMMANDS.values() if entry.examples}
    assert {"up", "import", "barf", "verify", "why"} <= set(lines)
    for name, examples in lines.items():
        for example in examples:
            program, *words = shlex.split(example)
            words = words[ipsec.count_leading(words):]
            assert (program, words[0]) == ("ipsec", name), example
            COMMANDS[name].parse(words[1:])


Complete = Callable[..., list[str]]


@pytest.fixture
def host(tmp_path: Path) -> ipsec.Host:
    """A host with three connections, one of them with a space in its name."""
    (tmp_path / "ipsec.conf").write_text("config setup\n\nconn tunnel\n\tauto=add\nconn \"two words\"\n\nconn a:b\n")
    return ipsec.Host({"IPSEC_EXECDIR": str(tmp_path)}, conf=str(tmp_path / "ipsec.conf"))


@pytest.fixture
def complete(host: ipsec.Host) -> Complete:
    """complete(words…): what is offered in place of the last word."""
    return lambda *words: ipsec.completions(host, words)


def test_completion_knows_the_registry(complete: Complete) -> None:
    for entry in COMMANDS.values():
        assert (entry.name in complete("")) == (not entry.hidden), entry.name
        offered = complete(entry.name, "-")
        for option in entry.options or ():
            assert set(option.names.split()) <= set(offered), (entry.name, option.names)
    assert {option.key for option in ipsec.GLOBAL_OPTIONS} <= set(complete("-"))
    assert complete("help", "chec") == sorted(name for name in complete("") if name.startswith("chec"))


def test_completion_knows_the_connections(complete: Complete) -> None:
    assert complete("up", "") == ["a:b", "tunnel", "two words"]
    assert complete("auto", "--up", "t") == ["tunnel", "two words"]
    assert complete("--config", "x", "down", "tu") == ["tunnel"]
    for words in ("why", "tunnels", "start", "connectionstatus", "whack --name", "readwriteconf --conn"):
        assert complete(*words.split(), "tu") == ["tunnel"], words


def test_completion_knows_the_values_of_arguments_and_options(complete: Complete) -> None:
    assert complete("--config", "") == [] == complete("barf", "--output", "")
    assert complete("verify", "rp_") == ["rp_filter"]
    assert complete("completion", "") == sorted(ipsec.COMPLETIONS)
    assert complete("verify", "--explain=rp_") == ["--explain=rp_filter"]
    assert complete("barf", "--section", "ipsec/c") == ["ipsec/conf"]
    assert complete("barf", "--section=host") == ["--section=hostname/fqdn", "--section=hostname/ipaddress"]
    assert complete("start", "--init", "s") == ["s6", "systemd", "sysvinit"]
    assert complete("stop", "--init=no") == ["--init=none"]
    assert complete("newhostkey", "--keytype", "") == ["ecdsa", "rsa"]
    assert complete("verify", "--root", "") == [] == complete("verify", "--timeout", "")
    assert complete("setup", "st") == ["start", "status", "stop"]


def test_completion_of_a_line_is_quoted_for_the_shell(host: ipsec.Host) -> None:
    assert ipsec.line_completions(host, "ipsec up tw") == ["two\\ words"]
    assert ipsec.line_completions(host, "ipsec up 'tw") == ["two words"]
    assert ipsec.line_completions(host, "ipsec up two\\ w") == ["two\\ words"]
    assert ipsec.line_completions(host, "ipsec up a:") == ["b"]
    assert ipsec.line_completions(host, "ipsec up ") == ["a:b", "tunnel", "two\\ words"]
    assert ipsec.line_completions(host, "ipsec start --init=sy") == ["systemd", "sysvinit"]


def test_completion_needs_no_correct_ipsec_conf(complete: Complete, tmp_path: Path) -> None:
    for broken in ("conn x\n\tauto=add\ninclude /\0\n", "\xff\n"):
        (tmp_path / "ipsec.conf").write_text(broken)
        assert isinstance(complete("up", ""), list)
    (tmp_path / "ipsec.conf").unlink()
    assert complete("up", "") == []


@pytest.mark.parametrize("name", ["up", "start", "directory", "nsslist", "showstates", "stopnflog"])
def test_the_archive_shows_the_page_that_the_plain_file_shows(pyz: Path, name: str) -> None:
    """Whichever commands the archive has loaded."""
    shown = [subprocess.run([sys.executable, program, "man", name], capture_output=True, text=True, check=True).stdout
             for program in (pyz, Path(ipsec.__file__))]
    assert shown[0] == shown[1] != ""
