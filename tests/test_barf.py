"""The report's machinery: order, timeouts, children, sinks, logs.  What is in the report is tried in tests/system."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

import ipsec
from ipsec import ReportSection
from tests.ground.host import DOCKER
from tests.ground.machine import alive, wait_for

Body = Callable[[ipsec.Report], Iterator[str]]


def says(*pieces: str) -> Body:
    return lambda report: iter(pieces)


def hangs(report: ipsec.Report) -> Iterator[str]:
    yield "before\n"
    time.sleep(3600)


def hangs_with_child(report: ipsec.Report) -> Iterator[str]:
    marker = report.host.env["MARKER"]
    yield report.host.run(["/bin/sh", "-c", f'echo $$ > "{marker}"; exec sleep 3600'], timeout=None).text


def raises(error: BaseException) -> Body:
    def body(report: ipsec.Report) -> Iterator[str]:
        yield "some text without line end"
        raise error
    return body


def report(*words: str, **env: str) -> ipsec.Report:
    return ipsec.Report(ipsec.Host(env), ipsec.COMMANDS["barf"].parse(words))


def run(sections: list[ReportSection], *words: str, **env: str) -> tuple[str, dict[str, list[str]]]:
    text: list[str] = []
    ended = ipsec.run_report(report(*words, **env), sections, ipsec.TextSink(text.append))
    return "".join(text).split("\n", 2)[2], ended


def shown_progress(report: ipsec.Report, capsys: pytest.CaptureFixture[str]) -> list[str]:
    sections = [ReportSection("a", "", lambda report: iter([])), ReportSection("b", "", lambda report: iter([]))]
    ipsec.run_report(report, sections, ipsec.TextSink(lambda text: None))
    return [re.sub(r", \d+ s:", ", N s:", line.rstrip()) for line in capsys.readouterr().err.split("\r")]


def test_progress_names_the_section_and_no_command(monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """barf and look share this line.  It is removed at the end."""
    monkeypatch.setattr(ipsec, "is_terminal", lambda stream: stream is sys.stderr)
    wanted = ["", "section 1 of 2, N s: a", "section 2 of 2, N s: b", "", ""]
    assert shown_progress(report(), capsys) == wanted
    monkeypatch.setattr(ipsec, "is_terminal", lambda stream: True)
    assert shown_progress(report(), capsys) == [""]  # the report itself is on the terminal
    to_file = report()
    to_file.in_file = True
    assert shown_progress(to_file, capsys) == wanted


def test_the_last_line_on_a_terminal_sums_up_a_report_that_is_redirected(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It names the file if the shell has redirected standard output to one."""
    monkeypatch.setattr(ipsec, "is_terminal", lambda stream: stream is sys.stderr)
    entry = ipsec.COMMANDS["barf"]
    entry.function(ipsec.Host({}), entry.parse(["--section", "ipsec/directory"]))
    sys.stdout.flush()
    written = capfd.readouterr()
    name = os.readlink("/proc/self/fd/1")  # pytest captures standard output in a file
    assert written.err.split("\r")[-1] == (f"ipsec: barf: wrote {name}, {len(written.out)} bytes; "
                                            "0 values masked, 0 lines of other programs left out\n")
    monkeypatch.setattr(ipsec.os.path, "isfile", lambda name: False)
    assert ipsec.Host.stdout_name() == "the report"
    monkeypatch.setattr(ipsec, "is_terminal", lambda stream: True)
    entry.function(ipsec.Host({}), entry.parse(["--section", "ipsec/directory"]))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", ["barf", "metrics"])
def test_an_empty_name_of_the_output_is_a_usage_error(command: str) -> None:
    entry = ipsec.COMMANDS[command]
    with pytest.raises(ipsec.Failure, match="--output is empty") as caught:
        entry.function(ipsec.Host({}), entry.parse(["--output", ""]))
    assert caught.value.status == ipsec.USAGE


def test_order_is_that_of_the_table_whoever_is_first() -> None:
    ended_first = threading.Event()

    def late(report: ipsec.Report) -> Iterator[str]:
        assert ended_first.wait(60)
        yield "late\n"

    def early(report: ipsec.Report) -> Iterator[str]:
        yield "side\n"
        ended_first.set()

    text, ended = run([ReportSection("a", "cmd a", late, slow=True), ReportSection("b", "", says("quick\n")),
                       ReportSection("c", "", early, slow=True)], "--timeout", "60")
    assert text == ("+ _________________________ a\n+ cmd a\nlate\n+ _________________________ b\nquick\n"
                    "+ _________________________ c\nside\n")
    assert ended == {"ok": ["a", "b", "c"]}


def test_what_hangs_is_cut_and_the_report_goes_on() -> None:
    text, ended = run([ReportSection("stuck", "", hangs, slow=True), ReportSection("next", "", says("fine\n"))],
                      "--timeout", "2")
    assert "before\ntimed out after 2 s" in text
    assert text.endswith("next\nfine\n")
    assert ended == {"timeout": ["stuck"], "ok": ["next"]}


def test_what_a_cut_section_runs_ends_with_the_report(tmp_path: Path) -> None:
    marker = tmp_path / "pid"

    def waits_for_it(report: ipsec.Report) -> Iterator[str]:
        while not marker.exists() or not marker.read_text().strip():
            time.sleep(0.01)
        yield "it runs\n"

    sections = [ReportSection("first", "", waits_for_it), ReportSection("stuck", "", hangs_with_child, slow=True)]
    text, ended = run(sections, "--timeout", "3", MARKER=str(marker))
    assert ended == {"ok": ["first"], "timeout": ["stuck"]}
    pid = int(marker.read_text())
    wait_for(lambda: not alive(pid), "the end of sleep")


def test_time_that_we_spend_writing_is_not_the_sections() -> None:
    """A child that fills its pipe while the reader is slow is not timed out."""
    text = "x" * 1023 + "\n"
    seen = []

    def slow_reader(piece: str) -> None:
        time.sleep(0.05)
        seen.append(piece)

    section = ReportSection("much", "", lambda report: iter([text] * 8192), slow=True)
    ended = ipsec.run_report(report("--timeout", "2"), [section], ipsec.TextSink(slow_reader))
    assert ended == {"ok": ["much"]}
    assert sum(len(piece) for piece in seen if piece.startswith("x")) == 8192 * 1024


@pytest.mark.parametrize("how", [{}, {"slow": True}, {"apart": True}])
@pytest.mark.parametrize("error, outcome, line", [
    (ipsec.Missing("nft: no such program on this host"), "absent", "nft: no such program on this host"),
    (FileNotFoundError(2, "No such file or directory", "/x"), "absent", "/x: No such file or directory"),
    (PermissionError(1, "Operation not permitted"), "denied", "denied: Operation not permitted"),
    (ipsec.Denied("nft ended with status 1"), "denied", "denied: nft ended with status 1"),
    (ipsec.NoPluto("no right", ipsec.NOT_ALLOWED), "denied", "denied: ipsec whack: no right (run as root)"),
    (ipsec.NoPluto("not running", silent=True), "absent", "ipsec whack: not running"),
    (ipsec.NoPluto("pluto took half of the message"), "failed", "ipsec whack: pluto took half of the message"),
    (ipsec.Failure("it broke", hint="mend it"), "failed", "it broke (mend it)"),
    (OSError(5, "Input/output error", "/dev/x"), "failed", "/dev/x: Input/output error"),
    (OSError(93, "Protocol not supported", "the kernel's IPsec (XFRM)"), "absent",
     "the kernel's IPsec (XFRM): Protocol not supported"),
    (KeyError("CANARY"), "failed", f"internal error: KeyError; {ipsec.REPORT_IT}"),
])
def test_errors_become_a_line_of_their_section(how: dict[str, bool], error: Exception, outcome: str, line: str) -> None:
    text, ended = run([ReportSection("bad", "", raises(error), **how), ReportSection("good", "", says("fine"))])
    assert text.splitlines() == ["+ _________________________ bad", "some text without line end", line,
                                 "+ _________________________ good", "fine"]
    assert ended == {outcome: ["bad"], "ok": ["good"]}


@pytest.mark.parametrize("words, outcome", [
    ("Could not fetch rule set: Permission denied (you must be root)", "denied"),
    ("Operation not permitted (you must be root)\nnetlink: Error", "denied"),
    ("No journal files were opened due to insufficient permissions.", "denied"),
    ("syntax error", "failed"),
])
def test_a_program_that_is_refused_a_right_is_denied(words: str, outcome: str) -> None:
    script = f"echo some rules; echo '{words}' >&2; exit 4"
    text, ended = run([ReportSection("rules", "", ipsec.program_output("sh", "-c", script))])
    assert ended == {outcome: ["rules"]}
    denied = "denied: " if outcome == "denied" else ""
    assert text == (f"+ _________________________ rules\nsome rules\n{words}\n{denied}sh ended with status 4\n")


def test_a_program_that_succeeds_is_not_denied() -> None:
    body = ipsec.program_output("sh", "-c", "echo Permission denied")
    assert run([ReportSection("rules", "", body)])[1] == {"ok": ["rules"]}


#: Lists nf_tables through pyroute2 from the archive, on a host without nft.
NFT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/site-packages"]
import ipsec
ipsec.load_rest()
host = ipsec.Host({})
host.which = lambda name: None
sys.argv[1:] = []
report = ipsec.Report(host, ipsec.COMMANDS["barf"].parse([]))
section = ipsec.ReportSection("nftables", "", ipsec.nft_ruleset)
print(ipsec.run_report(report, [section], ipsec.TextSink(lambda text: print(text, end=""))))
"""


def test_the_kernel_refuses_to_list_nf_tables(pyz: Path) -> None:
    """NetlinkError of pyroute2 is no OSError; as an ordinary user, or as root without CAP_NET_ADMIN."""
    rights = DOCKER if os.geteuid() == 0 else ()
    result = subprocess.run([*rights, sys.executable, "-c", NFT, pyz], capture_output=True, text=True, timeout=120,
                            check=True)
    assert "denied: nf_tables: Operation not permitted\n{'denied': ['nftables']}\n" in result.stdout


@pytest.mark.parametrize("error, outcome, line", [
    ("NetlinkError(1)", "denied", "denied: nf_tables: Operation not permitted"),
    ("NetlinkError(95, 'x')", "failed", "nf_tables: Operation not supported"),
    ("NetlinkDumpInterrupted()", "failed",
     "nf_tables: the rules changed while the kernel listed them (try again)"),
    ("NetlinkDataDecodeError(ValueError('secret'))", "failed", "nf_tables: pyroute2 can't decode the kernel's answer"),
])
def test_no_error_of_pyroute2_is_internal(pyz: Path, error: str, outcome: str, line: str) -> None:
    """The kernel gives only the first of them on demand."""
    script = NFT.replace("section = ", f"""
def fail(nftables):
    import pyroute2.netlink.exceptions as errors
    raise errors.{error}
    yield
ipsec.nft_objects = fail
section = """)
    result = subprocess.run([sys.executable, "-c", script, pyz], capture_output=True, text=True, timeout=120,
                            check=True)
    assert result.stdout.endswith(f"{line}\n{{'{outcome}': ['nftables']}}\n"), result.stdout


@pytest.mark.parametrize("denied, capabilities, message", [
    (["nftables"], "ffffffffffffffff", "1 section denied: nftables"),
    (["nftables", "iptables"], "00000000a80425fb",
     "2 sections need more rights than root has here: start the container with --cap-add NET_ADMIN"),
    (["nftables", "klog"], "00000000a80425fb", "2 sections need more rights than root has here: "
     "start the container with --cap-add NET_ADMIN --cap-add SYSLOG"),
    (["klog"], "00000000a80435fb",
     "1 section needs more rights than root has here: start the container with --cap-add SYSLOG"),
])
def test_root_is_told_which_capabilities_are_missing(monkeypatch: pytest.MonkeyPatch, denied: list[str],
                                                     capabilities: str, message: str) -> None:
    host = ipsec.Host({})
    monkeypatch.setattr(ipsec.Host, "superuser", True)
    monkeypatch.setattr(host, "lines", lambda name: iter(["Name:\tx", f"CapEff:\t{capabilities}"]))
    assert ipsec.missing_rights(host, denied) == message


def test_a_child_that_dies_is_a_failed_section() -> None:
    def dies(report: ipsec.Report) -> Iterator[str]:
        yield "last words\n"
        os.kill(os.getpid(), 9)

    text, ended = run([ReportSection("dead", "", dies, apart=True)])
    assert "last words" in text
    assert ended == {"failed": ["dead"]}


def test_text_is_made_safe_in_both_ways() -> None:
    for how in ({}, {"slow": True}, {"apart": True}):
        section = ReportSection("x", "", says("esc\x1b]0;title\x07 nul\x00 --xauthpass hunter2hunter2\n"), **how)
        text, _ = run([section])
        assert "\x1b" not in text and "\x00" not in text and "hunter2" not in text


def test_masked_values_are_counted_in_every_section() -> None:
    shared = report()
    sections = [ReportSection(str(how), "", says("--xauthpass hunter2hunter2\n"), **how)
                for how in ({}, {"slow": True}, {"apart": True}, {"apart": True, "slow": True})]
    sections.append(ReportSection("key", "", says("0x[redacted 16 bytes]\n")))  # masked where it was read
    ipsec.run_report(shared, sections, ipsec.TextSink(shared.counting(lambda text: None)))
    assert shared.masked == len(sections) == 5 and shared.ending().startswith("5 values masked, ")


def test_json_is_one_document() -> None:
    text: list[str] = []
    sections = [ReportSection("a", "cmd", says('quote " and\n', "ünïcode\n")), ReportSection("b", "", hangs, slow=True)]
    ipsec.run_report(report("--timeout", "2"), sections, ipsec.JsonSink(text.append))
    document = json.loads("".join(text))
    first, second = document["sections"]
    assert (first["section"], first["command"], first["status"]) == ("a", "cmd", "ok")
    assert first["text"] == 'quote " and\nünïcode\n'
    assert (second["status"], second["text"].splitlines()[0]) == ("timeout", "before")
    assert second["duration"] >= 2
    assert document["host"] == os.uname().nodename


@pytest.mark.parametrize("name", ["report.txt", "report.txt.gz"])
def test_output_is_whole_private_and_compressed_on_demand(pyz: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.write_text("old")
    target.chmod(0o644)
    result = subprocess.run([sys.executable, pyz, "barf", "--section", "version", "--output", target], timeout=120,
                            capture_output=True, check=True)
    assert (result.stdout, target.stat().st_mode & 0o777, os.listdir(tmp_path)) == (b"", 0o600, [name])
    data = target.read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    assert "+ _________________________ version\n+ ipsec --version\nLibreswan " in text


def test_output_that_fails_leaves_what_was(pyz: Path, tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    result = subprocess.run([sys.executable, pyz, "barf", "--section", "version", "--output", target], timeout=120,
                            capture_output=True, check=False)
    assert result.returncode == 1 and str(target).encode() in result.stderr and result.stderr.count(b"\n") == 1
    assert os.listdir(tmp_path) == ["directory"]
    result = subprocess.run([sys.executable, pyz, "barf", "--output", tmp_path / "no" / "such"], timeout=120,
                            capture_output=True, check=False)
    assert result.returncode == 1 and b"/no/such" in result.stderr


def test_output_to_what_is_no_file_leaves_it_there(pyz: Path, tmp_path: Path) -> None:
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in (pipe, link):
        subprocess.run([sys.executable, pyz, "barf", "--section", "version", "--output", target], timeout=120,
                       check=True)
    assert b"Libreswan" in os.read(reader, 10000)
    os.close(reader)
    assert pipe.is_fifo() and link.is_symlink() and "Libreswan" in file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(pyz: Path, tmp_path: Path, number: int) -> None:
    """Neither the file that was begun nor the program that a section runs."""
    marker, execdir = tmp_path / "pid", tmp_path / "libexec"
    execdir.mkdir()
    (execdir / "whack").write_text(f'#!/bin/sh\necho $$ > "{marker}"\nexec sleep 3600\n')
    (execdir / "whack").chmod(0o755)
    process = subprocess.Popen([sys.executable, pyz, "barf", "--output", tmp_path / "report"],
                               env={"IPSEC_EXECDIR": str(execdir), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                               stderr=subprocess.PIPE)
    wait_for(lambda: marker.exists() and marker.read_text().strip(), "a program that hangs")
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == -number
    wait_for(lambda: not alive(int(marker.read_text())), "the end of sleep")
    assert sorted(os.listdir(tmp_path)) == ["libexec", "pid"]


def test_what_came_before_an_error_is_shown() -> None:
    def broken() -> Iterator[str]:
        yield "first"
        raise ipsec.TimedOut("it fell silent")

    text, ended = run([ReportSection("status", "", lambda report: ipsec.text_of_lines(broken()))])
    assert "first\nit fell silent" in text and ended == {"timeout": ["status"]}


def test_a_log_that_is_cut_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "etc/pluto.log"
    log.parent.mkdir()
    line = f"{'x' * 1000} end\n"
    log.write_text("Starting Pluto\n" + line * (2 * ipsec.LOG_TAIL // len(line)))
    text = "".join(ipsec.log_text(ipsec.Report(ipsec.Host({}, root=str(tmp_path)), ipsec.COMMANDS["barf"].parse([])),
                                  "/etc/pluto.log"))
    assert text.startswith("... ") and {part + "\n" for part in text.splitlines()[1:]} == {line}


def test_a_masked_unit_hides_no_other_file(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "ipsec.service").symlink_to("/dev/null")
    (tmp_path / "dev").mkdir()
    os.mkfifo(tmp_path / "dev/null")
    (tmp_path / "etc/default").mkdir()
    (tmp_path / "etc/default/pluto").write_text("PLUTO_OPTIONS=--nofork\n")
    host = ipsec.Host({}, root=str(tmp_path))
    text = "".join(ipsec.service_files(ipsec.Report(host, ipsec.COMMANDS["barf"].parse([]))))
    assert "/etc/systemd/system/ipsec.service" in text and 'PLUTO_OPTIONS="--nofork"' in text


def test_a_package_that_was_removed_is_not_shown(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text("".join(f"Package: {name}\nStatus: {state}\nPriority: optional\nVersion: {version}\n\n"
                              for name, state, version in (
                                  ("libreswan", "deinstall ok config-files", "4.3-1"),
                                  ("iptables", "install ok installed", "1.8.9-2"),
                                  ("nftables", "hold ok installed", "1.0.6-2"))))
    report_ = ipsec.Report(ipsec.Host({}, root=str(tmp_path)), ipsec.COMMANDS["barf"].parse([]))
    assert list(ipsec.packages(report_)) == ["iptables 1.8.9-2\n", "nftables 1.0.6-2\n"]


def test_log_begins_at_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "var/log/auth.log"
    log.parent.mkdir(parents=True)
    noise = "Nov  1 00:00:00 gw cron: nothing of interest here\n" * 40000  # over two megabytes: several blocks
    log.write_text("Nov  1 00:00:00 gw ipsec__plutorun: Starting Pluto old\n" + noise
                   + "Nov  2 10:00:00 gw ipsec__plutorun: Starting Pluto new\n" + noise
                   + "Nov  2 11:00:00 gw pluto[77]: the message\nNov  2 11:00:01 gw sshd: not ours\n")
    report_ = ipsec.Report(ipsec.Host({}, root=str(tmp_path)), ipsec.COMMANDS["barf"].parse([]))
    text = "".join(ipsec.pluto_log(report_)).splitlines()
    assert text[0] == "==> /var/log/auth.log <=="
    assert [line[16:] for line in text[1:]] == ["gw ipsec__plutorun: Starting Pluto new", "gw pluto[77]: the message"]


def test_logfile_of_the_configuration_comes_first(tmp_path: Path) -> None:
    for name, text in (("etc/ipsec.conf", "config setup\n\tlogfile=/var/log/my.log\n"),
                       ("var/log/my.log", "".join(f"Nov  2 10:00:00.{n:06}: line {n}\n" for n in range(2000)))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = ipsec.Host({}, root=str(tmp_path))
    text = "".join(ipsec.pluto_log(ipsec.Report(host, ipsec.COMMANDS["barf"].parse([]))))
    assert text.startswith("==> /var/log/my.log <==\n") and text.count("\n") == 2001
    text = "".join(ipsec.pluto_log(ipsec.Report(host, ipsec.COMMANDS["barf"].parse(["--short"]))))
    assert text.count("\n") == 501 and text.endswith("line 1999\n")


def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    log = tmp_path / "var/log/auth.log"
    log.parent.mkdir(parents=True)
    now = time.time()
    stamps = [time.strftime(form, time.localtime(now - age)) for age in (7200, 1800)
              for form in ("%b %e %H:%M:%S", "%Y-%m-%dT%H:%M:%S.000000+00:00")]
    log.write_text("".join(f"{stamp} gw pluto[1]: Starting Pluto {n}\n" for n, stamp in enumerate(stamps)))
    host = ipsec.Host({}, root=str(tmp_path))
    text = "".join(ipsec.pluto_log(ipsec.Report(host, ipsec.COMMANDS["barf"].parse(["--since", "1 hour ago"]))))
    assert [line[-1] for line in text.splitlines()[1:]] == ["2", "3"]


def test_no_log_at_all_is_one_line(tmp_path: Path) -> None:
    host = ipsec.Host({}, root=str(tmp_path))
    with pytest.raises(ipsec.Missing, match="no messages of pluto"):
        list(ipsec.pluto_log(ipsec.Report(host, ipsec.COMMANDS["barf"].parse([]))))


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("5 minutes ago", 300), ("24 hours ago", 86400),
                                           ("2d", 172800), ("3 m", 180), ("2 months ago", 5184000),
                                           ("1 year", 31536000), ("10 mins ago", 600)])
def test_since_counts_back(text: str, seconds: int) -> None:
    before = time.time()
    when = ipsec.parse_since(text)
    assert before - seconds <= when <= time.time() - seconds


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "2026-11-25 25:99", "2026-11-25 24:00", "yesterday",
                                  "5 lightyears", "\u00b2d", "9" * 5000 + "d", "2026-11-25 06:72", "2026-11-25x06:12"])
def test_since_takes_no_other_words(text: str) -> None:
    with pytest.raises(ipsec.Failure, match="not a time"):
        ipsec.parse_since(text)


def test_since_takes_a_date() -> None:
    assert ipsec.parse_since("2026-11-23") == time.mktime((2026, 11, 23, 0, 0, 0, 0, 0, -1))
    assert ipsec.parse_since("2026-11-23 06:12") == time.mktime((2026, 11, 23, 6, 12, 0, 0, 0, -1))
    assert ipsec.parse_since("2026-11-23T06:12:09") == time.mktime((2026, 11, 23, 6, 12, 9, 0, 0, -1))


def test_without_threads_and_processes_the_sections_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a section that may block for ever is left out, with a line."""
    def refuse(*words: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ipsec._thread, "start_new_thread", refuse)
    part = ipsec.ReportSection
    text: list[str] = []
    report = ipsec.Report(ipsec.Host({}), ipsec.Args())
    ended = ipsec.run_report(report, [
        part("one", "", lambda report: iter(["here\n"]), slow=True),
        part("two", "", lambda report: iter(["never\n"]), slow=True, blocks=True),
        part("three", "", lambda report: iter(["there\n"]), slow=True)], ipsec.TextSink(text.append))
    shown = "".join(text)
    assert ended == {"ok": ["one", "three"], "failed": ["two"]}
    assert "here\n" in shown and "there\n" in shown and "never" not in shown
    assert "left out: this section may block" in shown
    assert report.program_timeout == report.timeout


def test_a_bad_byte_in_a_path_costs_one_section(pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "ipsec.conf").write_bytes(b"config setup\n\tlogfile=/var/log/a\0b\n\tsecretsfile=/s\0\xff\n")
    sections = ["--section", "plog", "--section", "ipsec/secrets", "--section", "date"]
    ran = subprocess.run([sys.executable, pyz, "--config", tmp_path / "ipsec.conf", "barf", *sections],
                         capture_output=True, text=True, errors="replace")
    assert "internal error" not in ran.stdout and "NUL byte" in ran.stdout
    assert "\n+ date\n" in ran.stdout


class NoLog(ipsec.Diagnoser):
    """Finds no log of pluto."""

    def log(self) -> list[ipsec.LogLine]:
        raise ipsec.Missing("no log")


def test_the_lines_about_pluto_know_of_plutos_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "find_pluto", lambda host: None)
    monkeypatch.setattr(ipsec, "plutos", lambda host: [])
    signs: list[str] = []
    monkeypatch.setattr(ipsec, "signs_of_pluto", lambda host: signs)

    def lines() -> set[str]:
        diagnoser = NoLog(ipsec.Host(), 1.0)
        return {next(ipsec.listeners(report())).rstrip("\n"), ipsec.pluto_summary(report(), diagnoser)}

    assert lines() == {"pluto: not running"}
    sign = "UDP port 500 is in use by a process that this process can't see"
    signs.append(sign)
    assert lines() == {f"pluto: no process is visible, but {sign}"}
    monkeypatch.setattr(ipsec, "plutos", lambda host: [os.getpid()])
    assert all(line.startswith(f"pluto: process {os.getpid()}") for line in lines())


def test_the_summary_has_the_last_message_of_a_pluto_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec, "visible_pluto", lambda host: None)
    monkeypatch.setattr(ipsec, "signs_of_pluto", lambda host: [])
    diagnoser = ipsec.Diagnoser(ipsec.Host(), 1.0)
    lines = [ipsec.LogLine(0.0, "Starting Pluto"), ipsec.LogLine(None, "FATAL: no NSS database")]
    monkeypatch.setattr(diagnoser, "log", lambda: lines)
    assert ipsec.pluto_summary(report(), diagnoser) == (
        "pluto: not running; the last line of pluto's log: FATAL: no NSS database")


def test_the_summary_of_verify_counts_and_does_not_repeat() -> None:
    verdicts = [ipsec.Finding("a", "A"), ipsec.Finding("b", "B", "SKIP", why="x", cause="pluto"),
                ipsec.Finding("c", "C", "WARN", why="c is odd"), ipsec.Finding("pluto", "P", "FAIL", why="down"),
                ipsec.Finding("up", "U", "FAIL", why="conn one should be up"),
                ipsec.Finding("up", "U", "FAIL", why="conn two should be up")]
    assert list(ipsec.verify_summary(verdicts, ["one"], 5)) == [
        "verify: 3 FAIL, 1 WARN, 1 not checked, 1 ok", "verify: FAIL up: conn two should be up",
        "verify: WARN c: c is odd"]
    assert list(ipsec.verify_summary(verdicts, [], 1))[1:] == [
        "verify: FAIL up: conn one should be up", "verify: 2 more problems; see ipsec_verify"]
