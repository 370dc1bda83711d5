"""ipsec.conf as libreswan reads it: the lexer's corners, what takes precedence, includes; every error has its place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ipsec


def parse(text: str, name: str = "c") -> ipsec.Config:
    config = ipsec.Config(ipsec.Host({}), name, text)
    config.conns()
    return config


def host_at(tmp_path: Path, files: dict[str, str]) -> ipsec.Host:
    """Write the files below tmp_path, and return a host whose root is tmp_path."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return ipsec.Host({}, root=str(tmp_path))


@pytest.mark.parametrize("written, value", [
    ("1.2.3.4", "1.2.3.4"), (" \t1.2.3.4 \t", "1.2.3.4"), ("1.2.3.4 # why", "1.2.3.4"), ("1.2.3.4\t#=x", "1.2.3.4"),
    ('"a b"', "a b"), ('"a b" # c "d', "a b"), ("{a b}", "a b"), ("{ 1.0.0.0/8 } #x y", " 1.0.0.0/8 "),
    ("a#b", "a#b"), ("a'b", "a'b"), ('"ab"c', '"ab"c'), ('a"b', 'a"b'), ("{a}b", "{a}b"), ('""', ""), ("", ""),
    ("#x", "#x"), ("C=US", "C=US"), ("'a'", "'a'"), ("{a{b}", "a{b"),
])
def test_a_value_is_read_as_the_lexer_reads_it(written: str, value: str) -> None:
    config = parse(f"conn x\n\tleftid={written}\n")
    assert config.problems == []
    assert config.conns()[0].get("leftid") == value


@pytest.mark.parametrize("text, problem", [
    ("conn a\n\tleft=1.2.3.4 #word\n", "c:2: syntax error after the value of left"),
    ('conn a\n\tleftid="a b"c\n', "c:2: syntax error after the value of leftid"),
    ("conn a\n\tleftid='a b'\n", "c:2: syntax error"),
    ("conn a\n\tleftid={a b}c\n", "c:2: syntax error"),
    ("conn a\n\tleftid= # x\n", "c:2: syntax error after the value of leftid"),
    ("conn a\n\tleftid\n", 'c:2: syntax error: "leftid" is not keyword=value'),
    ("conn a\n\tleft id=x\n", 'c:2: syntax error: "left" is not keyword=value'),
    ("conn a\nleft=1.2.3.4\n", 'c:2: "left" does not begin a section; a setting must be indented'),
    ("foo\n", 'c:1: this does not begin a section'),
    ("conn a\n\t@east : PSK \"hunter2\"\n", "c:2: syntax error: this is not keyword=value"),
    ("hunter2\n", "c:1: this does not begin a section; use conn, config setup or include"),
    ("\t: PSK \"hunter2\"\n", "c:1: this is indented, but is in no section"),
    ("\tleft=1.2.3.4\n", 'c:1: "left" is indented, but is in no section'),
    ("conn\n", "c:1: conn must be followed by one name"), ("conn a b\n", "c:1: conn must be followed by one name"),
    ("config\n", "c:1: config must be followed by the word setup"),
    ("config startup\n", "c:1: config must be followed by the word setup"),
    ("include\n", "c:1: include must be followed by one value"),
    ("conn a\n\tbogus=1\n", 'c:2: unknown keyword "bogus"'),
    ("config setup\n\tauto=add\n", "c:2: keyword auto is not valid in config setup"),
    ("conn a\n\tauto=banana\n", 'c:2: auto="banana" is not one of ignore, add, ondemand'),
    ("conn a\n\tikev2=banana\n", 'c:2: ikev2="banana" is not one of'),
    ("conn a\n\tpfs=banana\n", 'c:2: pfs="banana" is not one of yes, no'),
    ("conn a\n\tpfs=\n", 'c:2: pfs="" has no value'), ("conn a\nversion 2\n", "c:2: version must come before"),
    ('config setup\n\tplutodebug="all banana"\n', "c:2: plutodebug"),
    ("config setup\n\tuniqueids=perhaps\n", "c:2: uniqueids"),
])
def test_a_config_error_has_its_place_and_is_an_error(text: str, problem: str) -> None:
    config = parse(text)
    assert [str(found)[:len(problem)] for found in config.problems] == [problem]
    assert config.problems[0].fatal
    with pytest.raises(ipsec.ConfigError, match="^c:"):
        config.check()


@pytest.mark.parametrize("text, problem", [
    ("conn a\n\tuniqueids=yes\n", "c:2: keyword uniqueids is not valid in a conn"),
    ("conn a\n\tforceencaps=yes\n", "c:2: obsolete keyword forceencaps"),
    ("config setup\n\tinterfaces=%defaultroute\n", "c:2: obsolete keyword interfaces"),
    ("conn a\n\talso=b\n", 'c:2: conn a: also= names "b", but there is no conn with this name'),
    ("conn a\n\tleftid=@a\n\tleftid=@b\n", "c:3: duplicate key leftid in conn a (first in c:2)"),
    ("conn %default\n\talso=b\nconn b\n", "c:2: also= is not valid in conn %default"),
    ("conn a\n\tsubnet=10.0.0.0/8\n", "c:2: subnet needs left or right"),
    ("conn a\n\tmtu=abc\n", 'c:2: mtu="abc" is not a number'),
    ("conn a\n\tikelifetime=3x\n", 'c:2: ikelifetime="3x" is not a duration'),
    ("conn a\n\trekeyfuzz=ten\n", 'c:2: rekeyfuzz="ten" is not a percent'),
    ("config setup\n\tnflog-all=banana\n", 'c:2: nflog-all="banana" is not a number'),
    ("config setup\n\tnflog-all=70000\n", 'c:2: nflog-all="70000" is not within 0-65535'),
    ("config setup\n\tnflog-all=%forever\n", "c:2: nflog-all"),
    ("config setup\n\tlogip=no\nconfig setup\n\tlogip=yes\n", "c:3: a second config setup"),
    ("include /no/such/file\n", "c:1: could not open include filename"),
])
def test_what_libreswan_only_warns_of_is_no_error(text: str, problem: str) -> None:
    config = parse(text)
    assert [str(found)[:len(problem)] for found in config.problems] == [problem]
    assert config.check() is config


@pytest.mark.parametrize("text", [
    "version 2.0\n\n# c\n  # c\nconfig setup\n   \n\tlogtime=no\n\nconn a\n\n\n\tleft=%any\n",
    "config setup\n\tplutodebug=\"all,tmi,no-crypt\"\n\tplutodebug=none\n\tnhelpers=-1\n\tshuntlifetime=15m\n",
    "config setup\n\tvirtual_private=%v4:10.0.0.0/8\n\tplutostderrlog=/x\n\tcrl_strict=yes\n\tstrictcrlpolicy=no\n",
    "conn a\n\tauto=ROUTE\n\tLEFT=1.2.3.4\n\tkeyingtries=%forever\n\trekeyfuzz=100%\n\tikelifetime=1.5h\n",
    "conn a\n\tx-my-comment=any \"thing {\n\tike_frag=yes\n\tremote_peer_type=cisco\n\tipsec-interface=7\n",
    "conn a\n\tauto=start\n\tauto=start\n\talso=a\n\tlifetime=8h\n\tmtu=\n\tipsec-max-bytes=2GiB\n",
    "conn a\n\tleft=1.2.3.4\n\tright=5.6.7.8", "include /no/such/*.conf\n", "", "\n\n",
])
def test_what_libreswan_takes_is_no_problem(text: str) -> None:
    assert parse(text).problems == []


def test_settings_come_from_the_conn_then_also_then_default() -> None:
    config = parse("""conn %default
	ikelifetime=1h
	authby=rsasig
	leftsubnets=10.9.0.0/16
conn a
	also="b c"
	leftid=@a
	auto=route
	connalias=one
	leftsubnets={10.0.0.0/8}
conn b
	also="d a"
	keyexchange=ikev2
	connalias=two
conn c
	rightid=@c
	leftsubnets=10.1.0.0/16
conn d
	pfs=no
	salifetime=2h
conn %default
	ikelifetime=3h
""")
    assert config.problems == []
    conn = config.conn("a")
    assert conn is not None and [c.name for c in config.conns()] == ["a", "b", "c", "d"]
    assert conn.alsos == ["b", "c", "d"] and not conn.broken and conn.auto == "ondemand"
    assert {key: conn.get(key) for key in conn.settings} == {
        "leftid": "@a", "auto": "route", "connalias": "one two", "rightid": "@c", "keyexchange": "ikev2", "pfs": "no",
        "leftsubnets": "10.9.0.0/16 10.0.0.0/8 10.1.0.0/16", "ipsec-lifetime": "2h", "ikelifetime": "3h",
        "authby": "rsasig"}
    assert (conn.settings["pfs"].file, conn.settings["pfs"].line) == ("c", 19)
    assert config.conn("two") is conn and config.conn("three") is None


def test_config_setup_is_asked_by_keyword() -> None:
    config = parse('config setup\n\tnflog-all=50\n\tlogtime=off\n\tlogfile="/a b"\n')
    assert config.number("nflog-all") == 50 and config.number("seedbits") is None
    assert config.number("nhelpers", -1) == -1
    assert config.setup("logfile") == "/a b" and config.setup("protostack", "xfrm") == "xfrm"
    setting = config.setup_at("nflog-all")
    assert setting is not None and setting.line == 2 and config.setup_at("logip") is None


def test_included_files_are_read_in_order_and_named(tmp_path: Path) -> None:
    host = host_at(tmp_path, {
        "etc/ipsec.conf": "include /etc/ipsec.d/*.conf\ninclude /etc/x/{p,q}\nconn last\n",
        "etc/ipsec.d/b.conf": "conn b\n", "etc/ipsec.d/a.conf": "conn a\n\tauto=banana\ninclude /etc/ipsec.d/sub/c\n",
        "etc/ipsec.d/sub/c": "conn c", "etc/ipsec.d/.hidden.conf": "conn no\n",
        "etc/x/p": "conn p\n", "etc/x/q": "conn q\n",
    })
    config = ipsec.Config(host)
    assert [conn.name for conn in config.conns()] == ["a", "c", "b", "p", "q", "last"]
    assert config.files == ["/etc/ipsec.conf", "/etc/ipsec.d/a.conf", "/etc/ipsec.d/sub/c", "/etc/ipsec.d/b.conf",
                            "/etc/x/p", "/etc/x/q"]
    assert [str(problem).partition(": ")[0] for problem in config.problems] == ["/etc/ipsec.d/a.conf:2"]


def test_includes_that_libreswan_does_not_follow_are_told_of(tmp_path: Path) -> None:
    """No release looks beside the file; 5.x does not expand braces."""
    host = host_at(tmp_path, {"etc/ipsec.conf": "include ipsec.d/*.conf\ninclude /etc/ipsec.d/{a,b}.conf\n",
                              "etc/ipsec.d/a.conf": "conn a\n", "etc/ipsec.d/b.conf": "conn b\n"})
    for version, names, told in (("4.10", ["a", "b"], [1]), ("5.2", [], [1, 2]), (None, ["a", "b"], [1])):
        host.version = version
        config = ipsec.Config(host)
        assert [conn.name for conn in config.conns()] == names
        assert [(problem.line, problem.fatal, problem.key) for problem in config.problems] == [
            (line, False, "include") for line in told]
        assert all("is not read" in problem.text for problem in config.problems)


def test_an_included_file_ends_the_section_before_it(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "conn a\ninclude /etc/b\n\tleft=%any\n", "etc/b": "\tright=%any\n"})
    problems = ipsec.Config(host).problems
    assert [(problem.file, problem.line) for problem in problems] == [("/etc/b", 1), ("/etc/ipsec.conf", 3)]


def test_a_loop_of_includes_ends(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "include /etc/b\nconn a\n", "etc/b": "include /etc/ipsec.conf\n"})
    config = ipsec.Config(host)
    assert [str(problem) for problem in config.problems] == [
        '/etc/b:1: include "/etc/ipsec.conf" is a loop: /etc/ipsec.conf is already being read']
    assert [conn.name for conn in config.conns()] == ["a"] and not config.problems[0].fatal


def test_what_editors_of_other_systems_add_is_told_of_once(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "\ufeffconn a\r\n\tauto=add\r\n\tleft=%any\r\n"})
    config = ipsec.Config(host)
    assert [(problem.line, problem.text.partition(", ")[0], problem.fatal) for problem in config.problems] == [
        (1, "the file begins with a byte order mark", True), (1, "the line ends in CR LF", False),
        (2, "the line ends in CR LF", True)]
    (conn,) = config.conns()
    assert (conn.name, conn.auto, conn.get("left")) == ("a", "add", "%any")


def test_a_cr_is_an_error_only_where_libreswan_reads_it_as_part_of_a_word(tmp_path: Path) -> None:
    """As 4.3, 4.10 and 5.2 read it: in comments it has no effect, in texts it belongs to the text."""
    host = host_at(tmp_path, {"etc/ipsec.conf": "# a\r\nconn a\n\t# b\r\n\tleft=%any # c\r\n\tright=peer\n"})
    config = ipsec.Config(host)
    assert (config.problems, config.conns()[0].get("left")) == ([], "%any")
    host = host_at(tmp_path, {"etc/ipsec.conf": "include /etc/b.conf # c\r\n", "etc/b.conf": "conn a\n\tbogus=1\n"})
    assert [(problem.file, problem.line) for problem in ipsec.Config(host).problems] == [("/etc/b.conf", 2)]
    host = host_at(tmp_path, {"etc/ipsec.conf": "conn a\r\n\tleft=%any\r\nconn b\n\talso=a\r\n"})
    host.version = "5.2"
    config = ipsec.Config(host)
    assert [conn.get("left") for conn in config.conns()] == ["%any\r", "%any\r"]
    assert [(problem.line, problem.fatal, problem.script) for problem in config.problems] == [(1, False, r"s/\r$//")]


@pytest.mark.parametrize("release, end, first, wrong", [
    ("4.10", "", "conn b\n", True), ("4.10", " # note", "conn b\n", True), ("4.10", "\n", "conn b\n", False),
    ("4.10", "", "# note\nconn b\n", False), ("4.10", "", "\nconn b\n", False), ("5.2", "", "conn b\n", False)])
def test_an_include_line_needs_a_newline_up_to_4_15(tmp_path: Path, release: str, end: str, first: str,
                                                    wrong: bool) -> None:
    """Seen with 4.3 and 4.10: the section of the included file is a syntax error, unless a comment precedes it."""
    host = host_at(tmp_path, {"etc/ipsec.conf": f"conn a\n\ninclude /etc/b.conf{end}", "etc/b.conf": first})
    host.version = release
    assert [(problem.line, problem.fatal, problem.script) for problem in ipsec.Config(host).problems] == (
        [(3, True, "$a\\")] if wrong else [])


def test_an_include_line_that_includes_nothing_needs_no_newline(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "include /d/a.conf\ninclude local.conf", "d/a.conf": "conn b\n"})
    host.version = "4.10"
    assert [problem.fatal for problem in ipsec.Config(host).problems] == [False]


@pytest.mark.parametrize("release, broken", [("4.3", True), ("4.10", True), ("5.2", False)])
def test_networks_of_one_end_only(release: str, broken: bool) -> None:
    """Up to 4.15 such a connection is not loaded, and 4.10 says nothing about it."""
    host = ipsec.Host({})
    host.version = release
    (conn,) = ipsec.Config(host, "c", "conn a\n\tleftsubnets=10.1.0.0/16\n\tright=%any\n").conns()
    assert bool(conn.broken) is broken
    (conn,) = ipsec.Config(host, "c", "conn a\n\tleftsubnets=10.1.0.0/16\n\trightsubnet=10.2.0.0/16\n").conns()
    assert not conn.broken


@pytest.mark.parametrize("release, broken", [("4.10", [True, True]), ("5.2", [False, True]), ("", [True, True])])
def test_two_values_of_a_keyword(release: str, broken: list[bool]) -> None:
    """Libreswan 5 uses the first of two values in one section, but refuses a second value from also=."""
    host = ipsec.Host({})
    host.version = release or None
    text = "conn a\n\tmtu=1400\n\tmtu=1300\nconn b\n\tmtu=1400\n\talso=c\nconn c\n\tmtu=1300\n"
    config = ipsec.Config(host, "c", text)
    assert [bool(conn.broken) for conn in config.conns()[:2]] == broken
    assert [problem.line for problem in config.problems] == [3, 8]
    assert [conn.get("mtu") for conn in config.conns()] == ["1400", "1400", "1300"]


@pytest.mark.parametrize("release, leftid", [("4.10", "@d"), ("5.2", "")])
def test_a_line_without_a_value_has_no_effect(release: str, leftid: str) -> None:
    """Libreswan 5 reads only a text without a value as an empty text."""
    host = ipsec.Host({})
    host.version = release
    text = "conn a\n\tauto=\n\tmtu=\n\tleftid=\nconn b\n\tauto=add\n\tauto=\nconn %default\n\tauto=start\n\tleftid=@d\n"
    config = ipsec.Config(host, "c", text)
    assert [(conn.auto, conn.broken) for conn in config.conns()] == [("start", None), ("add", None)]
    assert (config.conns()[0].get("mtu", "none"), config.conns()[0].get("leftid")) == ("none", leftid)
    assert config.problems == []


def test_known_words_are_in_lower_case() -> None:
    conn = parse("conn a\n\ttype=PassThrough\n").conns()[0]
    assert conn.get("type") == "passthrough" and ipsec.is_shunt(conn)


def test_what_is_printed_has_spellings_of_every_release() -> None:
    text = 'conn "12"\n\tkeylife=1h\n\tpolicy-label=x\n\tikelifetime=2h\n'
    printed = list(ipsec.config_lines(ipsec.Config(ipsec.Host({}), "c", text), setup=False))
    assert printed == ['conn "12"', "\tsalifetime=1h", "\tpolicy-label=x", "\tikelifetime=2h"]


@pytest.mark.parametrize(("kind", "good", "bad"), [
    ("duration", "8h 90 1.5h 30s .5d 500ms 10us 2w", "h 1x 5mm 1..5h 1.h -3 ²"),
    ("percent", "0% 100%", "% -1 10%% 50"), ("size", "0 10 10Mi 10MiB 7b", "Mi 10M 1iB x"),
    ("number", "0 -1 %forever", "1.5 - 123456789012345678901 x"), ("0-65535", "0 65535", "-1 65536 %forever"),
])
def test_values_are_of_their_kind(kind: str, good: str, bad: str) -> None:
    assert [value for value in good.split() if ipsec.number_problem(kind, value)] == []
    assert [value for value in bad.split() if not ipsec.number_problem(kind, value)] == []


@pytest.mark.parametrize("line, verdicts", [
    # fatal for: an unknown release, 3.29, 4.3, 4.10, 5.2, 5.4
    ("ikepad=auto", "accept refuse refuse refuse accept accept"),
    ("ikepad=1", "accept refuse refuse refuse ignore ignore"),
    ("pfs=YES", "accept refuse refuse refuse accept accept"),
    ("ikev2=y", "accept refuse refuse refuse accept accept"),
    ("ikev2=1", "ignore ignore ignore ignore ignore ignore"),
    ('ikev2="1"', "refuse refuse refuse refuse ignore ignore"),
    ("auto=keep", "accept refuse accept accept accept accept"),
    ("auto=banana", "refuse refuse refuse refuse ignore ignore"),
    ("auto=add:x", "refuse refuse refuse accept ignore ignore"),
    ("leftauth=ecdsa", "accept refuse refuse accept accept accept"),
    ("rekeymargin=10seconds", "ignore ignore ignore ignore ignore ignore"),
    ("rekeymargin=", "refuse refuse refuse refuse ignore ignore"),
    ("rekeyfuzz=50", "refuse refuse refuse refuse ignore ignore"),
    ("mtu=abc", "ignore ignore ignore ignore ignore ignore"),
    ("dpdaction=hold", "accept accept accept accept ignore ignore"),
    ("forceencaps=yes", "ignore ignore ignore ignore refuse refuse"),
    ("ike_frag=yes", "accept accept refuse refuse refuse refuse"),
    ("ike-frag=yes", "accept accept refuse refuse refuse refuse"),
    ("iptfs=yes", "accept refuse refuse refuse accept accept"),
    ("subnet=10.0.0.0/8", "ignore ignore ignore ignore ignore refuse"),
    ("uniqueids=yes", "ignore ignore ignore ignore ignore refuse"),
    ("nocrsend=yes", "ignore ignore refuse refuse refuse refuse"),
    ("x-note", "accept refuse refuse refuse accept accept"),
    ("X_note=", "accept refuse refuse refuse accept accept"),
    ("x-note b=c", "accept accept accept accept accept accept"),
    ("x-note=a b", "accept accept accept accept accept accept"),
    ("x-note b", "accept refuse refuse refuse accept accept"),
    ("auto=add\r", "refuse refuse refuse refuse ignore ignore"),
    ("pfs=no\r", "refuse refuse refuse refuse ignore ignore"),
    ("ikelifetime=8h\r", "ignore ignore ignore ignore ignore ignore"),
    ("leftid=@a\r", "ignore ignore ignore ignore ignore ignore"),
    ('leftid="a b"\r', "refuse refuse refuse refuse refuse refuse"),
    ("\r", "refuse refuse refuse refuse refuse refuse"),
    ("pfs=yes\nconfig setup\r", "refuse refuse refuse refuse refuse refuse"),
    ("pfs=yes\nconn 12", "accept refuse refuse refuse accept accept"),
    ('pfs=yes\nconn "12"', "accept accept accept accept accept accept"),
    ("pfs=yes\ninclude /etc/no*.ne /etc/b.conf", "ignore ignore ignore ignore refuse refuse"),
    ("pfs=yes\ninclude /etc/no*.ne left=a", "refuse refuse refuse refuse refuse refuse"),
    ("pfs=yes\nconfig setup\n\tlogtime=no\nconfig setup\n\tauto=add", "ignore ignore ignore ignore ignore refuse"),
])
def test_the_installed_release_decides(line: str, verdicts: str) -> None:
    """Which releases take a line, ignore it with a warning, or refuse the file (seen with 4.3, 4.10 and 5.2)."""
    outcomes = []
    for release in ("", "3.29", "4.3", "4.10", "5.2", "5.4"):
        host = ipsec.Host({})
        host.version = release or None
        config = ipsec.Config(host, "c", f"conn a\n\t{line}\n")
        if not config.problems:
            outcomes.append("accept")
        elif any(problem.fatal for problem in config.problems):
            outcomes.append("refuse")
        else:
            outcomes.append("ignore")
    assert " ".join(outcomes) == verdicts


@pytest.mark.parametrize("release, line, outcome", [
    ("5.2", "pfs=maybe", "and is ignored"), ("5.2", "mtu=abc", "and is ignored"), ("5.4", "", ""),
    ("5.2", "dpddelay=5x", "so it is ignored or the connection is not loaded"),
    ("5.4", "mtu=abc", "so it is ignored or the connection is not loaded"), ("5.2", "ikepad=1", "and is ignored")])
def test_an_invalid_value_in_libreswan_5(release: str, line: str, outcome: str) -> None:
    """pluto 5.2 refuses a connection with an invalid dpddelay=, and 5.4 (extract.c) with most invalid values."""
    host = ipsec.Host({})
    host.version = release
    problems = ipsec.Config(host, "c", f"config setup\n\tlogtime=maybe\nconn a\n\t{line}\n").problems
    outcomes = ["and is ignored", outcome] if line else ["and is ignored"]
    assert [problem.text.rpartition(", ")[2] for problem in problems] == outcomes


@pytest.mark.parametrize("line", ["leftinterface-ip=192.0.2.9/24", "labeled-ipsec=banana"])
def test_a_keyword_that_some_releases_ignore(line: str) -> None:
    """kt_obsolete in keywords.c of 3.30 and 3.31."""
    host = ipsec.Host({})
    host.version = "3.31"
    keyword = line.partition("=")[0]
    assert [str(problem) for problem in ipsec.Config(host, "c", f"conn a\n\t{line}\n").problems] == [
        f"c:2: obsolete keyword {keyword} is ignored"]


def test_a_keyword_of_other_releases_is_named() -> None:
    host = ipsec.Host({})
    host.version = "4.10-2+deb12u1"
    problems = ipsec.Config(host, "c", "config setup\n\tnat_traversal=yes\n\toe=off\n").problems
    assert [str(problem) for problem in problems] == [
        f"c:{line}: libreswan 4.10 has no keyword {word}; it exists only in 3.25 to 3.32" for line, word in
        ((2, "nat_traversal"), (3, "oe"))]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "include /etc/fifo\nconn a\n"})
    os.mkfifo(tmp_path / "etc/fifo")
    config = ipsec.Config(host)
    assert [str(problem) for problem in config.problems] == [
        '/etc/ipsec.conf:1: can\'t load "/etc/fifo": not a regular file']
    assert config.conn("a") and config.files == ["/etc/ipsec.conf"]


def test_a_missing_configuration_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ipsec.ConfigError, match='^/etc/ipsec.conf: can\'t load "/etc/ipsec.conf": No such file'):
        ipsec.Config(host_at(tmp_path, {})).check()


def test_ten_thousand_connections_are_read_once_each() -> None:
    text = "".join(f"conn c{n}\n\tleft=10.0.{n // 250}.{n % 250}\n\talso=base\n\tauto=add\n" for n in range(10000))
    config = parse(f"{text}conn base\n\tright=%any\n")
    assert len(config.conns()) == 10001 and config.problems == []
    assert all(conn.get("right") == "%any" for conn in config.conns())


VALUES = {"leftid": ["@a", "C=US, CN=x", "%fromcert", "a b", "a'b", "{x"], "pfs": ["yes", "no"],
          "rightsubnets": ["10.0.0.0/8", "10.0.0.0/8 10.1.0.0/16"], "ikelifetime": ["8h", "300"],
          "also": ["a", "b", "c"], "connalias": ["one", "two three"], "x-note": ["a # b", "c"],
          "auto": ["add", "route", "start", "ignore"]}
Pairs = list[tuple[str, str]]
SETTINGS = st.lists(st.sampled_from([(key, value) for key, values in VALUES.items() for value in values]), max_size=6,
                    unique_by=lambda pair: pair[0])


@given(st.lists(SETTINGS, min_size=3, max_size=3), SETTINGS)
@settings(max_examples=200, deadline=None)
def test_what_is_printed_reads_back_as_the_same(conns: list[Pairs], default: Pairs) -> None:
    def section(name: str, pairs: Pairs) -> str:
        return f"conn {name}\n" + "".join(
            f"\t{key}={value if key == 'x-note' else ipsec.quoted_value(value)}\n" for key, value in pairs)

    def resolved(config: ipsec.Config) -> list[tuple[str, dict[str, str]]]:
        return [(conn.name, {key: conn.get(key) for key in conn.settings}) for conn in config.conns()]

    default = [pair for pair in default if pair[0] != "also"]
    first = parse("config setup\n\tnflog-all=50\n" + section("%default", default) + "".join(map(section, "abc", conns)))
    again = parse("\n".join(ipsec.config_lines(first)))
    assert again.problems == []
    assert again.number("nflog-all") == 50
    assert resolved(again) == resolved(first)


@given(st.text(max_size=200) | st.text(st.sampled_from("conn setupig inlude=\"{}#\t\n %also-1"), max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read(text: str) -> None:
    config = parse(text.replace("include", "inklude"))
    lines = text.count("\n") + 1
    assert all(1 <= problem.line <= lines for problem in config.problems)


def test_a_configuration_comes_from_standard_input(pyz: Path) -> None:
    ran = subprocess.run([sys.executable, str(pyz), "readwriteconf", "--config", "-", "--nosetup"], env={},
                         input=b"conn a\n\talso=b\nconn b\n\tleft=%any\n", capture_output=True, check=True)
    assert ran.stdout == b"conn a\n\t#also = b\n\tleft=%any\nconn b\n\tleft=%any\n"
    ran = subprocess.run([sys.executable, str(pyz), "addconn", "--config", "-", "--checkconfig"], env={},
                         input=b"conn a\n\tauto=banana\n", capture_output=True, check=False)
    assert ran.returncode == 3
    assert ran.stderr.splitlines()[-1].startswith(b'ipsec addconn: cannot load config "-": -:2: auto=')


def test_every_alias_names_a_keyword() -> None:
    known = {**ipsec.keywords(True), **ipsec.keywords(False)}
    assert [name for name in ipsec.ALIASES.values() if name not in known and f"left{name}" not in known] == []


def command(host: ipsec.Host, capsys: pytest.CaptureFixture[str], name: str, *words: str) -> tuple[int, str, str]:
    entry = ipsec.COMMANDS[name]
    status = entry.function(host, entry.parse(list(words)))
    host.flush()
    return status, *capsys.readouterr()


def test_addconn_lists_and_checks_without_libreswan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": "config setup\n\tmyvendorid=\"a'$(touch /x)'b\"\nconn a\n\tauto=route\n"
                                                "conn b\n\tauto=up\nconn c\n\tauto=add\nconn d\n"})
    listed = {name: command(host, capsys, "addconn", name)[1] for name in ipsec.ADDCONN_LISTS}
    assert listed == {"--listall": "a b c d \n", "--listadd": "c ", "--listroute": "a b ", "--liststart": "b ",
                      "--listignore": "d \n"}
    status, out, err = command(host, capsys, "addconn", "--checkconfig")
    assert (status, out) == (0, "") and "built-in reader" in err
    assert command(host, capsys, "addconn", "--liststack")[1] == "xfrm\n"
    lines = command(host, capsys, "addconn", "--configsetup")[1].splitlines()
    assert "export myvendorid='a'\\''$(touch /x)'\\''b'" in lines
    assert "export logtime='yes'" in lines and "export crl_strict='no'" in lines
    with pytest.raises(ipsec.Missing, match="needs libreswan's own program"):
        command(host, capsys, "addconn", "a")
    with pytest.raises(ipsec.Failure, match="nothing to do"):
        command(host, capsys, "addconn")
    (tmp_path / "etc/ipsec.conf").write_text("conn a\n\tauto=banana\n")
    with pytest.raises(ipsec.ConfigError, match="/etc/ipsec.conf:2: auto") as caught:
        command(host, capsys, "addconn", "--checkconfig")
    assert caught.value.status == 3


@pytest.mark.parametrize("value, bad", [
    ("%v4:10.0.0.0/8,%v4:!10.1.0.0/16,%v6:fd00::/8,%v6:!fd00:1::/32,192.168.0.0/16", []), ("", []),
    ("%v4:10.0.0.0/255.0.0.0", []), ("%v4:192.168.97.024,%v4:10.0.0.0/8", ["%v4:192.168.97.024"]),
    ("%v4:10.0.0.0/33", ["%v4:10.0.0.0/33"]),
    ("%/0.1.0.0/16,10/0.1.0.0/16", ["%/0.1.0.0/16", "10/0.1.0.0/16"]),
    ("%priv", ["%priv"]), ("%v4:10.0.0.0/8,", [""]),
])
def test_networks_of_virtual_private(value: str, bad: list[str]) -> None:
    config = parse(f'config setup\n\tvirtual_private="{value}"\n')
    assert ipsec.bad_private_nets(value, None) == bad
    assert [problem.fatal for problem in config.problems] == [False] * bool(bad)
    assert config.setup("virtual-private") == value


def test_what_includes_too_much_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Braces and wildcards without end, and files that include each other."""
    group = "{" + ",".join("0123456789") + "}"
    for i in range(40):
        for j in range(30):
            (tmp_path / f"many/{i}/{j}").mkdir(parents=True)
    for pattern, why in ((f"/etc/{group * 7}", "expands to more than 1000 patterns"),
                         (f"/etc/{'{a}' * 900}", "expands to more than 1000 patterns"),
                         ("/many/*/*/*.conf", "looks into more than 1000 directories")):
        host = host_at(tmp_path, {"etc/ipsec.conf": f"include {pattern}\n"})
        (problem,) = ipsec.Config(host).problems
        assert problem.fatal and why in problem.text and len(problem.text) < 400
    files = {f"etc/d/{i}.conf": "include /etc/d/*.conf\n" for i in range(12)}
    host = host_at(tmp_path, {"etc/ipsec.conf": "include /etc/d/*.conf\n", **files})
    assert ipsec.FILES_LIMIT == 20_000
    monkeypatch.setattr(ipsec, "FILES_LIMIT", 500)  # reading 20,000 files takes seconds
    config = ipsec.Config(host)
    assert len(config.files) <= 500 and config.unread
    assert any("more than 500 files" in problem.text for problem in config.problems)


def test_files_that_addconn_would_read_for_ever_are_told_from_others(tmp_path: Path) -> None:
    """The mark is set where the file is opened; the name of a file does not count."""
    marks = {"fifo": [True], "huge": [True], "missing MiB, not read": [False], "regular": []}  # of the problems
    os.mkfifo(tmp_path / "fifo")
    for name, size in (("huge", 8 << 30), ("regular", 0)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    for name, expected in marks.items():
        config = ipsec.Config(host_at(tmp_path, {"etc/ipsec.conf": f'include "/{name}"\n'}))
        assert [problem.is_endless for problem in config.problems] == expected
        if expected == [True]:
            with pytest.raises(ipsec.Failure, match=f'/{name}": '):
                ipsec.check_includes(config)
        else:
            ipsec.check_includes(config)


def test_a_file_of_the_kernel_that_waits_for_more_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as /proc/kmsg, which is a regular file; this program opens it so that it does not wait."""
    host = host_at(tmp_path, {"etc/ipsec.conf": ""})
    monkeypatch.setattr(host, "lines", Mock(side_effect=BlockingIOError(errno.EAGAIN, "wait")))
    with pytest.raises(ipsec.Failure, match="/etc/ipsec.conf: can't load"):
        ipsec.check_includes(ipsec.Config(host))


def test_secrets_that_include_each_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "FILES_LIMIT", 500)
    files = {f"etc/d/{i}.secrets": "include /etc/d/*.secrets\n" for i in range(12)}
    host = host_at(tmp_path, {"etc/ipsec.secrets": "include /etc/d/*.secrets\n", **files})
    read, problems = ipsec.secret_files(host, "/etc/ipsec.secrets")
    assert len(read) == 500
    assert [problem.text for problem in problems if "more than 500 files" in problem.text]


def test_a_huge_configuration_is_one_problem(tmp_path: Path) -> None:
    host = host_at(tmp_path, {"etc/ipsec.conf": ""})
    with open(tmp_path / "etc/ipsec.conf", "wb") as stream:
        stream.truncate(8 << 30)
    (problem,) = ipsec.Config(host).problems
    assert "larger than 32 MiB" in problem.text


def test_no_value_at_all() -> None:
    assert ipsec.split_value("") == ("", "")


def test_the_patterns_of_all_includes_together_search_a_bounded_number_of_directories(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that include each other would search the same directories again and again."""
    monkeypatch.setattr(ipsec, "FILES_LIMIT", 300)
    (tmp_path / "etc").mkdir()
    lines = "include /*/*/*/*.conf\ninclude /etc/ipsec.secrets\n" * 5
    for name in ("ipsec.secrets", "ipsec.conf"):
        (tmp_path / "etc" / name).write_text(lines)
    for number in range(40):
        (tmp_path / str(number) / "a").mkdir(parents=True)
    host = ipsec.Host({}, root=str(tmp_path))
    listdir = Mock(wraps=host.listdir)
    monkeypatch.setattr(host, "listdir", listdir)
    _, problems = ipsec.secret_files(host, "/etc/ipsec.secrets")
    assert any("more than 300 directories" in str(problem) for problem in problems) and listdir.call_count < 450
    listdir.reset_mock()
    config = ipsec.Config(host)
    assert config.unread and any("300 directories" in str(problem) for problem in config.problems)
    assert listdir.call_count < 450
