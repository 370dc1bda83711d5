"""What we send to pluto, byte for byte, and what we make of its answers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ipsec
from tests.ground.listener import Listener

DATA = Path(__file__).parent / "data" / "whack"
LP64 = ipsec.Abi(8, 8, 8, "little")
I386 = ipsec.Abi(4, 4, 4, "little")
ARM = ipsec.Abi(4, 4, 8, "little")  # its ABI aligns 64-bit integers to 8
ARM_2038 = ipsec.Abi(4, 8, 8, "little")  # …and with the time_t of Debian 13
ABIS = (LP64, I386, ARM, ARM_2038)


def load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DATA / name).read_text())
    return value


LAYOUTS = load("layouts.json")
FACTS = load("releases.json")
GOLDEN = {path.stem: load(f"golden/{path.name}") for path in sorted((DATA / "golden").iterdir())}
LABELLED = {"3.27", "4.3", "4.10", "5.2"}  # those whose golden whack was built with labelled IPsec

# Our names of whack.h's members
RENAMED = {"terminate": "down", "check_pub_keys": "checkpubkeys", "clear_stats": "clearstats",
           "show_states": "showstates", "deletestate.state_nr": "deletestateno", "initiate.remote_host": "remote_host",
           "global_redirect.kind": "global_redirect", "global_redirect.to": "global_redirect_to",
           "active_redirect.to": "redirect_to", "listen.ike_socket_bufsize": "ike_buf_size",
           "listen.ike_socket_errqueue_toggle": "ike_sock_err_toggle", "listen.ike_socket_errqueue": "ike_sock_err",
           "ddos.mode": "ddos", "debugging.set": "debug.set", "debugging.clr": "debug.clr",
           "debug.debugging.set": "debug.set", "debug.debugging.clr": "debug.clr", "list.list": "list_pubkeys",
           "crash.peer.ip.is_set": "crash_peer.is_set", "crash.peer.ip.version": "crash_peer.version",
           "crash.peer.bytes.byte": "crash_peer.bytes", "crash_peer.u.v4.sin_family": "crash_peer.family",
           "crash_peer.u.v4.sin_addr.s_addr": "crash_peer.inet", "crash_peer.is_address": "crash_peer.is_set",
           **{f"active_redirect_{side}.u.{theirs}": f"active_redirect_{side}.{member}" for side in ("gw", "peer")
              for theirs, member in (("v4.sin_family", "family"), ("v4.sin_addr.s_addr", "inet"),
                                     ("v6.sin6_addr.__in6_u.__u6_addr8", "inet6"))},
           "crash_peer.bytes.byte": "crash_peer.bytes", "crash_peer.ip.is_set": "crash_peer.is_set",
           "crash_peer.ip.version": "crash_peer.version", "left.xauth_username": "username",
           "end[0].xauth_username": "username", "end[0].xauthusername": "username"}


def ours(member: str) -> str:
    """Our name of a member of struct whack_message."""
    name = member.removeprefix("basic.").removeprefix("whack.").removeprefix("whack_")
    return RENAMED.get(name, name.replace("_status", "status"))


@pytest.mark.parametrize("release", ipsec.RELEASES)
def test_every_member_is_where_the_compiler_puts_it(release: str) -> None:
    layout = next(value for value in LAYOUTS.values() if release in value["releases"])
    for number, abi in enumerate(ABIS):
        made = ipsec.Layout(ipsec.version_key(release), abi)
        expected = {ours(name): (row[number], row[4] if number == 0 else row[5])
                    for name, row in layout["members"].items()}
        unknown = set(made.members) - set(expected) - {"list_psks", "list_certs", "list_cacerts", "list_crls",
                                                       "list_events"}
        assert not unknown
        for name, place in made.members.items():
            if not name.startswith("list_"):
                assert place == expected[name], name
        assert made.size == layout["pool"][number]


def test_this_host_is_laid_out_as_its_compiler_does_it() -> None:
    abi = ipsec.host_abi()
    assert abi == ipsec.Abi(struct.calcsize("@P"), 8, struct.calcsize("@bq") - 8, sys.byteorder)
    for letters in ("bq", "bw", "hi", "bqbw", "ibibq"):
        offset = 0
        for letter in letters:
            size, alignment = abi.unit(letter)
            offset = -(-offset // alignment) * alignment + size
        assert offset == struct.calcsize("@" + letters.replace("w", "P"))


def test_big_endian_hosts_get_their_byte_order() -> None:
    little, big = (message("4.10", "--deletestate", "258", abi=ipsec.Abi(8, 8, 8, order))
                   for order in ("little", "big"))
    offset, size = ipsec.Layout((4, 10), LP64).members["deletestateno"]
    assert int.from_bytes(little[offset:offset + size], "little") == 258
    assert int.from_bytes(big[offset:offset + size], "big") == 258
    assert big[:4] == little[:4][::-1] and len(big) == len(little)


def pluto(version: str, **options: bool) -> ipsec.Pluto:
    return ipsec.Pluto(version, **options)


def message(version: str, *words: str, abi: ipsec.Abi = LP64, **options: bool) -> bytes:
    """What we would send to a pluto of that version for a command line of whack's."""
    request = ipsec.Request(pluto(version, **options), abi)
    own = {option.partition("=")[0] for option in ipsec.WHACK_OWN_OPTIONS}
    for name, value in ipsec.whack_words(words, ipsec.refusal_status(ipsec.version_key(version))):
        if name not in own:
            request.option(name, value)
    request.check()
    return request.pack()


@pytest.mark.parametrize("release", ipsec.RELEASES)
def test_what_whack_always_sends_and_its_numbers(release: str) -> None:
    facts = FACTS[release]
    layout = ipsec.Layout(ipsec.version_key(release), LP64)
    assert sorted(layout.always) == sorted(tuple(row) for row in facts["defaults"])
    sent = message(release, "--globalstatus")
    assert int.from_bytes(sent[:4], "little") == facts["magic"]
    if facts["slots"]:
        assert sent[layout.size:].count(0) == facts["slots"]
    for name, value in facts["debug"].items():
        request = ipsec.Request(pluto(release), LP64)
        request.option("debug", name)
        assert request._get("debug.clr" if name == "none" else "debug.set") == value, name
    for kind, seccomp in (("commands", False), ("commands with seccomp", True)):
        if kind in facts:
            commands = ipsec.Request(pluto(release, seccomp=seccomp), LP64).commands
            assert {name: number + 1 for number, name in enumerate(commands)} == {
                name: number for name, number in facts[kind].items() if name != "unused"}


# What whack sends and we don't: definitions of connections and keys, acquiring, impairing, debugging by a name that the
# release has not; and 5.x options for testing
NOT_OURS = ("name-connalias-host-add", "keyid-", "oppo", "impair-", "magic-", "opt-ctl",
            "opt-run")


@pytest.mark.parametrize("version", GOLDEN)
def test_messages_are_those_of_the_real_whack(version: str) -> None:
    compared = 0
    for name, case in GOLDEN[version].items():
        if "refused" in case or name.startswith(NOT_OURS):
            continue
        if version == "3.27" and {"base", "cpu-usage", "tmi"} & set(case["argv"]):
            continue  # names that 3.27 does not know: it sends an empty request, we refuse
        if version == "5.2" and name == "leave-state-shutdown":
            continue  # in this order 5.2 sets whack_shutdown too, and pluto does not leave the state
        expected = bytearray(case["length"])
        for offset, run in case["runs"]:
            expected[offset:offset + len(run) // 2] = bytes.fromhex(run)
        for offset in case.get("unstable", []):
            expected[offset] = 0
        assert message(version, *case["argv"], labelled=version in LABELLED) == expected, (name, case["argv"])
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("version", GOLDEN)
def test_what_the_real_whack_refuses_we_refuse(version: str) -> None:
    for name, case in GOLDEN[version].items():
        if "refused" not in case or name.startswith(("opt-ctl", "magic-", "oppo", "name-connalias", "impair-")):
            continue
        if name == "crash6":
            continue  # has a test of its own
        with pytest.raises(ipsec.Failure) as failure:
            message(version, *case["argv"])
        assert failure.value.status == case["refused"]


@pytest.mark.parametrize("version", ["4.10", "5.2", "5.4"])
@pytest.mark.parametrize("words", [
    ["--name", "c", "--redirect-to", ""], ["--deletestate", "x"], ["--deletestate", "-1"], ["--crash", "nowhere"],
    ["--global-redirect", "perhaps"], ["--ike-socket-bufsize", "99999999999999999999"], ["--debug", "nonsense"],
    ["--name", "x" * 5000, "--route"], ["--name", "a\0b", "--route"], ["--impair", "none"], ["--listen", "--initiate"],
    ["status"], ["--ddns=now"], ["--name"], ["--"], ["--list"]])
def test_what_makes_no_request_is_one_clear_line(version: str, words: list[str]) -> None:
    if words[1:2] == ["c"] and version != "5.4":
        assert message(version, *words)
        return
    if words == ["--name", "c", "--redirect-to", ""]:
        assert message(version, *words)
        return
    with pytest.raises(ipsec.Failure) as failure:
        message(version, *words)
    is_combination = words[0] == "--listen" or "--route" in words  # of options that are right one by one
    is_value = words[0] in ("--deletestate", "--crash", "--ike-socket-bufsize")  # that optarg.c of 5.2 reads
    is_error = version == "5.4" and not is_combination or version == "5.2" and is_value
    assert failure.value.status == (1 if is_error else 33)
    assert "\n" not in str(failure.value)


def test_an_option_that_5_4_has_removed_is_a_usage_error() -> None:
    with pytest.raises(ipsec.Failure, match="does not know --rereadcrls") as failure:
        message("5.4", "--rereadcrls")
    assert failure.value.status == 1  # as in optarg_fatal(); 5.0 to 5.3.2 only warn, and then have no request


@pytest.mark.parametrize("option", ["--debug", "--no-debug"])
def test_an_unknown_flag_is_named_with_its_option(option: str) -> None:
    with pytest.raises(ipsec.Failure, match=f"whack: {option} \"nonsense\": unknown flag"):
        message("5.2", option, "nonsense")


def test_several_flags_in_one_option() -> None:
    """The forms that lmod_arg() of libreswan takes."""
    for version in ("4.0", "4.10", "5.2"):
        both = message(version, "--debug", "base", "--debug", "crypt")
        for value in ("base+crypt", "base,crypt", "+base, crypt"):
            assert message(version, "--debug", value) == both
        assert message(version, "--debug", "no-base") == message(version, "--no-debug", "base")
    with pytest.raises(ipsec.Failure, match='--debug "nonsense": unknown flag'):
        message("5.2", "--debug", "base+nonsense")


@pytest.mark.parametrize(("version", "status"), [("5.1", 33), ("5.2", 1), ("5.3", 1)])
def test_the_status_of_an_invalid_value(version: str, status: int) -> None:
    for words in (["--deletestate", "#12"], ["--crash", "east.example."]):
        with pytest.raises(ipsec.Failure) as failure:
            message(version, *words)
        assert failure.value.status == status
    with pytest.raises(ipsec.Failure) as failure:
        message("5.2", "--global-redirect", "1")
    assert failure.value.status == 33


def test_a_message_that_ends_pluto_is_refused() -> None:
    for words in (["--ddns"], ["--redirect-to", "192.0.2.1"]):
        with pytest.raises(ipsec.Failure):
            message("5.4", *words)


def test_options_may_be_abbreviated_and_values_look_like_options() -> None:
    assert ipsec.whack_words(["--name", "--ctlsocket", "--init", "--remote=--x"]) == [
        ("name", "--ctlsocket"), ("initiate", ""), ("remote-host", "--x")]
    with pytest.raises(ipsec.Failure, match="ambiguous"):
        ipsec.whack_words(["--reread"])


STATUS = "000 using kernel interface: xfrm\n000 pluto_version={}, pluto_vendorid=x\n000 nat-traversal=yes\n000 rest\n"


class FakePluto:
    """Listens where pluto would and says what the test wants it to: `answer` to what is no question for the status."""

    def __init__(self, path: Path, version: str, answer: Sequence[bytes] = (), *, hold: bool = False) -> None:
        self.host = ipsec.Host({}, ctlsocket=str(path))
        self.seen: list[bytes] = []
        self.back: list[bytes] = []
        self.version, self.answer, self.hold = version, list(answer), hold
        kind = socket.SOCK_SEQPACKET if version == "5.4" else socket.SOCK_STREAM
        self.listener = Listener(str(path), self._answer, kind)

    def _answer(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            link.settimeout(30)
            self.seen.append(link.recv(16384))
            if self.seen[-1] == ipsec.basic_message(ipsec.BASIC_STATUS) and self.version:
                for line in STATUS.format(self.version).splitlines(keepends=True):
                    link.send(line.encode())
                return
            for part in self.answer:
                link.send(part)
                if part.endswith((b"?\n", b" prompt for u:\n", b" prompt for p:\n")):
                    self.back.append(link.recv(1024))
            if self.hold:
                link.recv(1)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., FakePluto]]:
    """listening(version, answer…): a FakePluto."""
    made: list[FakePluto] = []

    def make(version: str, answer: Sequence[bytes] = (), **options: bool) -> FakePluto:
        made.append(FakePluto(tmp_path / f"pluto{len(made)}.ctl", version, answer, **options))
        return made[-1]

    yield make
    for pluto in made:
        pluto.listener.close()


@pytest.mark.parametrize("version", ["5.5", "5.2-17-gabc-dirty"])
def test_an_unknown_release_is_asked_by_its_own_whack(listening: Callable[..., FakePluto], tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str], version: str) -> None:
    """--json of every command works: the text is read by its form."""
    pluto = listening(version)
    whack = tmp_path / "whack"
    whack.write_text("#!/bin/sh\ncase \"$*\" in\n*--trafficstatus) echo '#2: \"c\", type=ESP, add_time=7, inBytes=5, "
                     "outBytes=6';;\n*--showstates) echo '000 #2: \"c\":500 established Child SA; REKEY in 9s; newest;"
                     " IKE SA #1;';;\n*--listall) echo 'List of Public Keys:'; echo ' '; echo key;;\nesac\n")
    whack.chmod(0o755)
    pluto.host.execdir = str(tmp_path)
    for word, kind in (("trafficstatus", "traffic"), ("showstates", "states"), ("listall", "lists")):
        args = ipsec.Args()
        args.options["--json"] = [""]
        assert ipsec.WhackRunner(pluto.host, args).ask(f"--{word}") == 0
        data = json.loads(capsys.readouterr().out)
        assert data[kind] and not data["unparsed"]
    assert len(data["states"]) == 0


@pytest.mark.parametrize(("name", "option"), [
    ("listevents", "--listevents"), ("statestatus", "--showstates"), ("ready", "--listen"),
    ("rereadgroups", "--listen")])
def test_a_command_sends_its_request(listening: Callable[..., FakePluto], name: str, option: str) -> None:
    fake = listening("5.2")
    entry = ipsec.COMMANDS[name]
    assert entry.function(fake.host, entry.parse(["--native"])) == 0
    assert fake.seen[1:] == [message("5.2", option, abi=ipsec.host_abi())]


@pytest.mark.parametrize("version", ipsec.RELEASES)
def test_nothing_of_a_version_is_sent_before_the_version_is_known(
        listening: Callable[..., FakePluto], version: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake = listening(version)
    assert ipsec.native_whack(fake.host, ["--listall"]) == 0
    assert fake.seen[0] == ipsec.basic_message(ipsec.BASIC_STATUS)
    assert fake.seen[1] == message(version, "--listall", abi=ipsec.host_abi())
    assert len(fake.seen) == 2


@pytest.mark.parametrize("version", ["5.5", "5.2.1", "4.16", "4.10rc1", "3.24", "", "6.0", "5.2-17-gabcdef", "9" * 50])
def test_a_pluto_of_an_unknown_version_gets_basic_messages_only(listening: Callable[..., FakePluto],
                                                                version: str) -> None:
    fake = listening(version, [b"000 nothing\n"])
    for words in (["--listall"], ["--name", "c", "--initiate"], ["--status", "--listen"]):
        with pytest.raises(ipsec.Failure, match="3.25 to 5.4"):
            ipsec.native_whack(fake.host, words)
    assert ipsec.native_whack(fake.host, ["--status"]) == 0
    assert ipsec.native_whack(fake.host, ["--shutdown"]) == 0
    basic = {ipsec.basic_message(ipsec.BASIC_STATUS), ipsec.shutdown_message(version)}
    assert set(fake.seen) <= basic


def test_no_message_of_ours_ends_a_pluto_that_it_was_not_made_for_unless_the_version_lied() -> None:
    """The hazard itself, so that nobody takes the probe for a formality."""
    sent = message("5.2", "--addresspoolstatus")
    offset, _ = ipsec.Layout((4, 10), LP64).members["shutdown"]
    assert sent[offset] == 1
    status = ipsec.basic_message(ipsec.BASIC_STATUS)
    for release in ipsec.RELEASES:
        assert status[ipsec.Layout(ipsec.version_key(release), LP64).members["shutdown"][0]] == 0


@pytest.mark.parametrize("release", ipsec.RELEASES)
def test_a_basic_message_touches_what_it_is_for_and_nothing_else(release: str) -> None:
    """Each byte against every member that it hits: byte 16 is whack_leave_state in 4.2 to 4.15."""
    members = next(value["members"] for value in LAYOUTS.values() if release in value["releases"])
    for text, wanted in ((ipsec.basic_message(ipsec.BASIC_STATUS), "status"),
                         (ipsec.shutdown_message(release), "shutdown"),
                         (ipsec.shutdown_message(f"{release}-17-gabc"), "shutdown")):
        places = [place for place in range(4, len(text)) if text[place]]
        assert len(text) >= 17 and len(places) == 1
        for number in range(len(ABIS)):
            hit = {ours(name) for name, row in members.items()
                   if row[number] <= places[0] < row[number] + row[4 if number == 0 else 5]}
            assert hit == {wanted}
    unknown = ipsec.shutdown_message("")
    for name, row in members.items():
        if ours(name) in ("leave_state", "status"):
            assert unknown[row[0]] == 0


@pytest.mark.parametrize("version", ["4.2", "4.3", "4.4", "4.10", "5.0", "5.4"])
def test_shutdown_asks_first_and_sends_one_byte(listening: Callable[..., FakePluto], version: str) -> None:
    fake = listening(version)
    assert ipsec.native_whack(fake.host, ["--shutdown"]) == 0
    ipsec.pluto_shutdown(fake.host, 60.0)
    assert fake.seen == [ipsec.basic_message(ipsec.BASIC_STATUS), *2 * [ipsec.shutdown_message(version)]]


@pytest.mark.parametrize(("version", "numbers"), [("4.10", (4, 6)), ("5.3.2", (4, 6)), ("5.4", (1, 2))])
def test_the_numbers_of_ip_versions_are_those_of_the_release(version: str, numbers: tuple[int, int]) -> None:
    offset, size = ipsec.Layout(ipsec.version_key(version), LP64).members["crash_peer.version"]
    for address, number in zip(("192.0.2.7", "2001:db8::7"), numbers):
        sent = message(version, "--crash", address)
        assert int.from_bytes(sent[offset:offset + size], "little") == number


def test_words_of_an_option_are_no_numbers_of_another() -> None:
    for words in (["--deletestate", "yes"], ["--global-redirect", "1"], ["--ike-socket-errqueue", "auto"],
                  ["--ddos-mode", "yes"], ["--ike-socket-bufsize", "65536"], ["--ike-socket-bufsize", "100"]):
        with pytest.raises(ipsec.Failure) as failure:
            message("5.3", *words)
        assert failure.value.status == 1
    assert message("5.3", "--ddos-mode", "busy") == message("5.3", "--ddos-busy")
    assert message("5.3", "--ike-socket-bufsize", "8Ki") == message("5.3", "--ike-socket-bufsize", "8192")


@pytest.mark.parametrize(("release", "is_request"), [("4.2", False), ("5.0", False), ("5.1", True), ("5.3", True)])
def test_leave_state_alone(release: str, is_request: bool) -> None:
    if is_request:
        assert message(release, "--leave-state")
        return
    with pytest.raises(ipsec.Failure, match="no action") as failure:
        message(release, "--leave-state")
    assert failure.value.status == 33


def test_a_request_without_a_name_that_would_end_pluto_is_made_for_each_connection(
        listening: Callable[..., FakePluto], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = listening("5.4", [b"000 done\n"])
    monkeypatch.setattr(ipsec, "loaded_names", lambda *_: ["a", "b"])
    assert ipsec.native_whack(fake.host, ["--ddns"]) == 0
    assert fake.seen[1:] == [message("5.4", "--name", name, "--ddns") for name in "ab"]


def test_a_listen_that_fails_is_no_question() -> None:
    questions = [name for name in ("status", "listall", "showstates", "checkpubkeys", "listen", "initiate")
                 if ipsec.is_question(name)]
    assert questions == ["status", "listall", "showstates", "checkpubkeys"]


def test_redirect_of_3x_with_addresses_of_both_families() -> None:
    for version, member in (("3.28", "inet6"), ("3.32", "bytes")):
        offset, size = ipsec.Layout(ipsec.version_key(version), LP64).members[f"active_redirect_gw.{member}"]
        sent = message(version, "--redirect", "--name", "c", "--gateway", "2001:db8::3")
        assert sent[offset:offset + size] == socket.inet_pton(socket.AF_INET6, "2001:db8::3")


REPLIES = load("replies.json")
# Where we are stricter than whack: a reply that breaks off is an error, also in the middle of a line; a NUL is shown
STRICTER = ("unterminated", "unterminated_after_line", "embedded_nul", "control_bytes", "high_bytes", "crlf", "hex",
            "negative", "plus", "leading_space", "empty_line", "empty_lines", "no_code", "no_code_then_ok",
            "err_then_010", "code_tab", "code_no_space", "code_text_nospace")


def taken(version: str, lines: Sequence[bytes], **options: bool) -> tuple[int, str]:
    """Exit status and output that whack of that version makes of the lines."""
    replies = ipsec.Replies(ipsec.version_key(version), **options)
    shown = [text for text in map(replies.take, lines) if text is not None]
    return replies.status, "".join(f"{text}\n" for text in shown)


@pytest.mark.parametrize("version", REPLIES)
def test_replies_are_taken_as_whack_takes_them(version: str) -> None:
    compared = 0
    for name, case in REPLIES[version]["sequences"].items():
        if name in STRICTER or not case["sent"].replace("|", "").endswith("\n"):
            continue
        lines = case["sent"].replace("|", "").encode("latin-1").split(b"\n")[:-1]
        assert taken(version, lines) == (case["status"], case["out"]), name
        compared += 1
    for kind, options in (("each_code_text", {}), ("each_code_text_async", {"asynchronous": True}),
                          ("each_code_empty_text", {}), ("each_code_status", {"lenient": True})):
        text = "" if "empty" in kind else "text"
        for codes, status, shown in REPLIES[version]["codes"][kind]:
            first, _, last = codes.partition("-")
            for code in range(int(first), int(last or first) + 1):
                if {10, 11, 40, 41} & {code} and status not in (0, "=code"):
                    continue  # a prompt without an answer
                expected = code if status == "=code" else status
                assert taken(version, [f"{code:03} {text}".encode()], **options) == (
                    expected, shown.replace("NNN", f"{code:03}")), (kind, code)
                compared += 1
    assert compared > 1000


@pytest.mark.parametrize("version", REPLIES)
def test_prompts_are_answered_with_what_was_given(listening: Callable[..., FakePluto], version: str, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pw\n")
    user, password = (b"041", b"040") if version < "5" else (b"011", b"010")
    fake = listening(version, [user + b" username prompt for u:\n", password + b" password prompt for p:\n",
                               b"000 done\n"])
    words = ["--name", "c1", "--initiate", "--xauthname", "bob"]
    assert ipsec.native_whack(fake.host, [*words, "--xauthpass", "pw"]) == 0
    assert ipsec.native_whack(fake.host, [*words, "--xauthpass-file", str(secret)]) == 0
    assert fake.back == [b"bob\0", b"pw\0"] * 2
    assert capsys.readouterr().out == REPLIES[version]["prompts"]["both_given"]["out"] * 2
    with pytest.raises(ipsec.Failure, match="longer than"):
        ipsec.native_whack(fake.host, [*words[:4], "b" * 128])


def test_prompts_on_a_terminal_do_not_show_the_password(listening: Callable[..., FakePluto]) -> None:
    fake = listening("4.10", [b"041 username prompt for u:\n", b"040 password prompt for p:\n",
                              b'004 "c1" #2: IPsec SA established tunnel mode\n'])
    child, terminal = pty.fork()
    if child == 0:
        os._exit(ipsec.run(["--ctlsocket", fake.host.ctlsocket, "--native", "up", "c1"]))
    seen = b""
    for answer, prompt in ((b"alice\n", b"user name: "), (b"geheim\n", b"password: ")):
        while prompt not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, answer)
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 1024):
            seen += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fake.back == [b"alice\0", b"geheim\0"] and b"alice" in seen and b"geheim" not in seen
    os.close(terminal)


def up_on_a_terminal(fake: FakePluto, *words: str, wait_for: bytes = b"", **env: str) -> tuple[bytes, int]:
    """Run `ipsec up c1` on a terminal; return its output and its exit status.  Ctrl-C follows `wait_for`."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, ipsec.__file__, "--config", "/nonexistent", "--ctlsocket",
                                   fake.host.ctlsocket, "--native", "up", "c1", *words], {"TERM": "xterm", **env})
    output = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 1024):
            output += piece
            if wait_for and wait_for in output:
                os.write(terminal, b"\x03")
                wait_for = b""
    os.close(terminal)
    return output, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


NEGOTIATION = (b'181 "c1" #1: initiating IKEv2 connection\n181 "c1" #1: sent IKE_SA_INIT request\n'
               b'010 "c1" #1: STATE_V2_PARENT_I1: retransmission; will wait 0.5 seconds for response\n')


@pytest.mark.parametrize("colour", [True, False])
def test_up_shows_on_a_terminal_what_pluto_waits_for(listening: Callable[..., FakePluto], colour: bool) -> None:
    fake = listening("4.10", [NEGOTIATION], hold=True)
    output, status = up_on_a_terminal(fake, "--timeout", "3", **({} if colour else {"NO_COLOR": "1"}))
    assert b"c1 (1 s): waiting for the peer's first answer; the request is repeated" in output
    assert (b"\x1b[2m" in output) == colour and status
    assert re.fullmatch(rb"[^\x1b]*", re.sub(rb"\r[^\n]*?\x1b\[K", b"", output))  # erased at the end, and nothing else


def test_ctrl_c_erases_the_progress_line(listening: Callable[..., FakePluto]) -> None:
    fake = listening("4.10", [NEGOTIATION], hold=True)
    output, status = up_on_a_terminal(fake, wait_for=b"waiting for")
    assert b"\r\x1b[K" in output.partition(b"waiting for")[2] and status == -2


@pytest.mark.parametrize("env", [{}, {"TERM": "dumb"}])
def test_up_has_no_progress_line_on_a_pipe_or_a_dumb_terminal(listening: Callable[..., FakePluto],
                                                              env: dict[str, str]) -> None:
    fake = listening("4.10", [NEGOTIATION], hold=True)
    if env:
        output, _ = up_on_a_terminal(fake, "--timeout", "3", **env)
    else:
        output = subprocess.run([sys.executable, ipsec.__file__, "--ctlsocket", fake.host.ctlsocket, "--native", "up",
                                 "c1", "--timeout", "3"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    assert b"retransmission" in output and b"waiting for" not in output and b"\x1b" not in output


def test_no_terminal_no_prompt(listening: Callable[..., FakePluto]) -> None:
    fake = listening("4.10", [b"041 username prompt for u:\n"])
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        status = 1
        try:
            ipsec.native_whack(fake.host, ["--name", "c1", "--initiate"])
        except ipsec.Failure as failure:
            status = failure.status if "no terminal" in str(failure) else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 33


def test_a_pluto_that_does_not_answer_is_not_waited_for_for_ever(listening: Callable[..., FakePluto]) -> None:
    fake = listening("", [b"000 half"], hold=True)
    with pytest.raises(ipsec.TimedOut, match="did not answer") as failure:
        ipsec.native_whack(fake.host, ["--status"], timeout=0.2)
    assert failure.value.status == 33


def test_a_pluto_whose_queue_of_callers_is_full(tmp_path: Path) -> None:
    name = str(tmp_path / "full.ctl")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as callers:
        listener.bind(name)
        listener.listen(0)
        for _ in range(2):
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(name)
        with pytest.raises(ipsec.TimedOut, match="did not answer"):
            ipsec.native_whack(ipsec.Host({}, ctlsocket=name), ["--status"], timeout=0.3)


def test_pluto_that_is_not_there(tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(ipsec.NoPluto) as failure:
            ipsec.native_whack(ipsec.Host({}, ctlsocket=name), ["--status"])
        assert failure.value.status == 33
        return str(failure.value)

    assert 'Pluto is not running (no "' in refusal(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "Connection refused" in refusal(str(tmp_path / "file"))
    assert "connect() for" in refusal("/" + "x" * 200)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    assert "Connection refused" in refusal(str(tmp_path / "stale"))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"000 x\n", b"021 \n", b"040", b"\n", b"\0\n", b"-1 x\n",
                                                         b"99999999999 x\n", b"010 \n", b"041 \n"]), max_size=12))
def test_any_reply_ends_in_a_status_or_one_line(parts: list[bytes]) -> None:
    for version in ((3, 25), (4, 10), (5, 2)):
        replies = ipsec.Replies(version)
        try:
            for line in b"".join(parts).split(b"\n"):
                shown = replies.take(line)
                assert shown is None or "\n" not in shown
        except ipsec.NoPluto as failure:
            assert failure.status == 33 and "\n" not in str(failure)
        assert 0 <= replies.status < 100


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.sampled_from(["", "4.10"]))
def test_any_bytes_from_pluto_over_the_socket(tmp_path_factory: pytest.TempPathFactory, data: bytes,
                                              version: str) -> None:
    fake = FakePluto(tmp_path_factory.mktemp("ctl") / "s", version, [data] if data else [])
    try:
        status = ipsec.native_whack(fake.host, ["--status"] if not version else ["--listen"], timeout=20)
    except ipsec.Failure as failure:
        status = failure.status
        assert "\n" not in str(failure)
    finally:
        fake.listener.close()
    assert 0 <= status < 100


def test_a_reply_without_end_is_given_up(listening: Callable[..., FakePluto]) -> None:
    fake = listening("", [b"x" * 65536] * 40, hold=True)
    with pytest.raises(ipsec.NoPluto, match="too long"):
        ipsec.native_whack(fake.host, ["--status"])


TEXTS = {path.stem: path.read_text() for path in sorted((DATA / "status").iterdir())}


def uncoded(text: str) -> list[str]:
    return [ipsec.split_code(line.encode())[1] if line[:3].isdigit() else line for line in text.splitlines()]


@pytest.mark.parametrize("version", ["4.3", "4.10", "5.2"])
def test_the_status_of_a_real_tunnel_is_the_same_data_from_every_release(version: str) -> None:
    data = ipsec.StatusReader().read(uncoded(TEXTS[f"{version}.status"]))
    assert data["unparsed"] == [] and data["settings"]["pluto_version"] == version
    connection, = data["connections"]
    assert connection["local"] == {"host": "192.0.2.1", "subnet": "10.1.0.0/24", "id": "@west", "auth": "secret"}
    assert connection["remote"] == {"host": "192.0.2.2", "subnet": "10.2.0.0/24", "id": "@east", "auth": "secret"}
    assert (connection["ike_sa"], connection["child_sa"], connection["oriented"]) == (1, 2, True)
    assert connection["lifetimes"] == {"ike": 28800, "ipsec": 28800, "rekey_margin": 540}
    assert {"IKEv2", "PSK", "TUNNEL"} <= set(connection["policy"]) and connection["interface"] == "eth0"
    ike, child = data["states"]
    assert (ike["type"], child["type"], child["ike_sa"], child["newest"]) == ("ike", "child", 1, True)
    assert (child["bytes_in"], child["bytes_out"], ike["port"]) == (168, 168, 500)
    assert [(spi["direction"], spi["address"]) for spi in child["spis"]] == [("out", "192.0.2.2"), ("in", "192.0.2.1")]
    assert all(len(spi["spi"]) == 10 for spi in child["spis"]) and child["events"]["rekey"] > 27000
    assert data["totals"]["connections"] == {"loaded": 1, "active": 1}
    assert data["totals"]["ike_sas"]["authenticated"] == data["totals"]["ipsec_sas"]["total"] == 1
    assert {"name": "eth0", "address": "192.0.2.1", "port": 500, "protocol": "UDP"} in data["interfaces"]
    assert {row["kind"] for row in data["algorithms"]} >= {"ESP encrypt", "AH/ESP auth", "IKE encrypt", "IKE PRF"}
    traffic, = ipsec.StatusReader().read(uncoded(TEXTS[f"{version}.trafficstatus"]))["traffic"]
    assert (traffic["connection"], traffic["id"], traffic["bytes_in"]) == ("tunnel", "@east", 168)
    lists = ipsec.StatusReader().read(uncoded(TEXTS[f"{version}.listall"]))["lists"]
    assert {"Public Keys", "X.509 CA Certificates", "CRLs"} <= set(lists)
    counters = ipsec.StatusReader().read(uncoded(TEXTS[f"{version}.globalstatus"]))
    assert counters["counters"]["current.states.all"] == 2 and counters["unparsed"] == []


def test_what_the_reader_does_not_know_is_kept() -> None:
    lines = ["something new", '"c":   no idea', "#x: what", '"unfinished', "#1: nonsense", "interface", "a: b"]
    assert ipsec.StatusReader().read(lines)["unparsed"] == lines


LINES = [line for text in TEXTS.values() for line in uncoded(text)]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_status_loses_no_line_and_makes_json(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.sampled_from(LINES), max_size=12))
    for index in data.draw(st.lists(st.integers(0, 11), max_size=6)):
        if index < len(lines):
            line = lines[index]
            cut = data.draw(st.integers(0, len(line)))
            lines[index] = line[:cut] + data.draw(st.text(max_size=5)) + line[cut + data.draw(st.integers(0, 4)):]
    result = ipsec.StatusReader().read(lines)
    json.dumps(result)
    for connection in result["connections"]:
        ipsec.TunnelTable(80, 0.0).lines([ipsec.tunnel_of(connection)])
    assert set(result["unparsed"]) <= set(lines)


def test_libreswans_whack_gets_the_socket_unless_the_caller_names_one(pyz: Path, tmp_path: Path) -> None:
    whack = tmp_path / "whack"
    whack.write_text("#!/bin/sh\n[ $1 = --version ] && echo 'Libreswan 4.10' || printf '<%s>' \"$@\"\n")
    whack.chmod(0o755)

    def argv(*words: str) -> str:
        result = subprocess.run([sys.executable, str(pyz), *words], env={"IPSEC_EXECDIR": str(tmp_path)}, timeout=60,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                check="--up" not in words and "up" not in words)  # no pluto: nothing comes up
        return result.stdout.decode().replace("</run/pluto/pluto.ctl>", "<CTL>")

    assert argv("whack", "--status") == "<--ctlsocket><CTL><--status>"
    assert argv("whack", "--name", "x--ctlsocketfoo", "--initiate") == (
        "<--ctlsocket><CTL><--name><x--ctlsocketfoo><--initiate>")
    assert argv("whack", "--name", "--ctlsocket", "--initiate").startswith("<--ctlsocket><CTL><--name><--ctlsocket>")
    assert argv("whack", "--status", "--ctlsocket", "/x") == "<--status><--ctlsocket></x>"
    assert argv("whack", "--ctlsocket=/x", "--status") == "<--ctlsocket=/x><--status>"
    assert argv("--async", "up", "a b") == "<--ctlsocket><CTL><--asynchronous><--name><a b><--initiate>"
    assert argv("--asynchronous=no", "up", "*") == "<--ctlsocket><CTL><--name><*><--initiate>"
    assert argv("auto", "--up", "c", "--remote-host", "::1") == (
        "<--ctlsocket><CTL><--name><c><--initiate><--remote-host><::1>")
    assert argv("auto", "--utc", "--listall") == "<--ctlsocket><CTL><--utc><--listall>"
    assert argv("auto", "--ctlsocket", "/y", "--status") == "<--ctlsocket></y><--status>"
    assert argv("down", "c") == "<--ctlsocket><CTL><--name><c><--terminate>"


@pytest.mark.parametrize("words, shown", [
    (["-n", "whack", "--status"], "ipsec whack --ctlsocket /run/pluto/pluto.ctl --status\n"),
    (["-n", "--ctlsocket", "/run/x y", "whack", "--name", "a", "--initiate"],
     "ipsec whack --ctlsocket '/run/x y' --name a --initiate\n"),
    (["--dry-run", "whack", "--ctlsocket", "/z", "--status"], "ipsec whack --ctlsocket /z --status\n"),
])
def test_whack_only_shown(words: list[str], shown: str, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPSEC_RUNDIR", raising=False)
    assert ipsec.dispatch(words) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("version, request_words", [
    ("4.3", "--listall --purgeocsp"), ("4.15", "--listall --purgeocsp"), ("5.2", "--purgeocsp"), (None, "--purgeocsp")])
def test_auto_purgeocsp_lists_first_with_old_releases(version: str | None, request_words: str,
                                                      capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """As the auto scripts of 3.x and 4.x."""
    monkeypatch.setattr(ipsec.Host, "libreswan_version", lambda host: version)
    assert ipsec.dispatch(["auto", "--showonly", "--purgeocsp"]) == 0
    assert capsys.readouterr().out.endswith(f" {request_words}\n")


def test_help_names_the_pages_as_libreswan_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs and people look for this line."""
    assert ipsec.dispatch(["--help"]) == 0
    assert "See also: man ipsec <command> or ipsec <command> --help\n" in capsys.readouterr().out
