"""The benchmark: `python3 build.py bench [ROW...]`.  Most figures are ratios to libreswan's own command.

To add a row, write a function that yields `Figure`s, and put it into ROWS.  `ours` and `theirs`, the commands of this
program and of libreswan, run in turn, so that other load of the machine slows both.  The figures are medians.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from build import SIZE_LIMIT

from .ground.machine import PYZ, Machine, wait_for
from .ground.pluto import Pluto
from .ground.roots import Store

TOP = Path(__file__).resolve().parent.parent
ARCHIVE = TOP / "ipsec.pyz"
PYTHON = "/usr/bin/python3"
RUNS = 21

# A program that runs both commands in turn, in the machine if there is one.  It prints the median time of each in
# seconds, and the peak memory of `ours` in KiB.
DRIVER = """
import json, os, resource, statistics, sys, time
ours, theirs, runs = json.loads(sys.argv[1])
null = os.open("/dev/null", os.O_RDWR)
def once(argv):
    start = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)])
    os.waitpid(pid, 0)
    return time.perf_counter() - start
once(ours)  # these two runs fill the caches
once(theirs)
our_times, their_times = [], []
for _ in range(runs):
    our_times.append(once(ours))
    their_times.append(once(theirs))
pid = os.fork()
if not pid:  # in this process, RUSAGE_CHILDREN counts only `ours`
    once(ours)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([statistics.median(our_times), statistics.median(their_times), peak]), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


class Figure(NamedTuple):
    """One line of the result.  `made_of` are the two times of a ratio."""

    what: str
    value: float
    limit: float
    made_of: str = ""


def medians(ours: Sequence[str], theirs: Sequence[str], machine: Machine | None = None,
            runs: int = RUNS) -> tuple[float, float, float]:
    """Return the median times of `ours` and of `theirs` in seconds, and the peak memory of `ours` in MiB."""
    words = [PYTHON, "-c", DRIVER, json.dumps([list(ours), list(theirs), runs])]
    if machine:
        out = machine.run(words, timeout=1800).check().stdout
    else:
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    mine, other, peak = json.loads(out)
    return mine, other, peak / 1024


def ratio(what: str, limit: float, mine: float, other: float) -> Figure:
    """Return the figure mine / other; both are in seconds."""
    return Figure(what, mine / other, limit, f"{mine * 1000:.1f} ms / {other * 1000:.1f} ms")


@contextmanager
def gateway() -> Iterator[Machine]:
    """Yield a bookworm host (libreswan 4.10) with an address and a running pluto."""
    with Machine("bookworm", Store().layers("bookworm"), ARCHIVE) as machine:
        machine.address("192.0.2.1/24")
        with Pluto(machine):
            yield machine


def start() -> Iterator[Figure]:
    """The time that every command takes to start, and the size of the archive."""
    mine, other, _ = medians([PYTHON, str(ARCHIVE), "--directory"], [PYTHON, "-c", "pass"], runs=101)
    yield ratio("ipsec.pyz --directory : python3 -c pass", 1.5, mine, other)
    yield Figure("size of ipsec.pyz, bytes", ARCHIVE.stat().st_size, SIZE_LIMIT)


def barf() -> Iterator[Figure]:
    """The report against that of libreswan 4.10: on an idle host, and with many policies and routes."""
    ours, theirs = [PYTHON, PYZ, "barf"], ["ipsec", "barf"]
    with gateway() as machine:
        mine, other, _ = medians(ours, theirs, machine)
        yield ratio("barf : ipsec barf 4.10, idle", 0.6, mine, other)
        machine.fill(routes=100_000, policies=30_000)
        mine, other, peak = medians(ours, theirs, machine)
        yield ratio("barf : ipsec barf 4.10, 30,000 policies and 100,000 routes", 2, mine, other)
        yield Figure("peak memory of that run, MiB", peak, 64)


@contextmanager
def crowded(count: int) -> Iterator[Machine]:
    """Yield a bookworm host whose pluto has loaded `count` connections."""
    connections = "".join(f"conn c{n}\n\tleft=192.0.2.1\n\tright=198.51.{n >> 8}.{n & 255}\n\tauthby=secret\n"
                          f"\tleftsubnet=10.{n >> 8}.{n & 255}.0/24\n\tauto=add\n" for n in range(count))
    with Machine("bookworm", Store().layers("bookworm"), ARCHIVE) as machine:
        machine.address("192.0.2.1/24")
        with Pluto(machine, f"config setup\n{connections}", listening=False):
            loaded = f"loaded {count},"
            wait_for(lambda: loaded in machine.run([Pluto.WHACK, "--status"]).stdout, loaded, 900)
            yield machine


def status() -> Iterator[Figure]:
    """The status of many connections, as text and as a table, against libreswan 4.10's whack."""
    for count, runs in ((1_000, RUNS), (10_000, 3)):
        with crowded(count) as machine:
            theirs = [Pluto.WHACK, "--status"]
            bare, whack, _ = medians([PYTHON, "-c", "pass"], theirs, machine, runs)
            for words, memory in ((["--native", "status"], 32), (["tunnels"], 64)):
                name = " ".join(words).replace("--", "")
                mine, _, peak = medians([PYTHON, PYZ, *words], theirs, machine, runs)
                yield ratio(f"{name}, {count} connections : bare start + 1.5 x whack", 1, mine, bare + 1.5 * whack)
                yield Figure("peak memory of that run, MiB", peak, memory)
            _, _, peak = medians([PYTHON, PYZ, "--native", "status", "--json"], theirs, machine, 1)
            yield Figure("peak memory as JSON, MiB", peak, 32)


def canaries() -> Iterator[Figure]:
    """Planted secrets: the number of output lines of barf that show one, and the files that barf wrote."""
    from .system import test_barf as planted
    with Machine("bookworm", Store().layers("bookworm"), ARCHIVE) as machine:
        planted.plant(machine)
        with Pluto(machine, planted.CONFIG, planted.SECRETS):
            before = machine.changes()
            reports = [machine.ipsec("barf"), machine.ipsec("barf", "--json")]
            leaks = planted.leaks("".join(report.stdout + report.stderr for report in reports))
            size = sum(len(report.stdout) for report in reports)
            yield Figure("lines of output with a planted secret", len(leaks), 0, f"{size} bytes read")
            yield Figure("files that barf made or changed", len(set(machine.changes()) - set(before)), 0)


def authorities(machine: Machine, count: int = 200) -> None:
    """Put the certificates of `count` CAs into the machine's NSS database, and save a copy of it as /pki/before."""
    machine.run(["sh", "-ec", f"""mkdir /pki; cd /pki; openssl ecparam -name prime256v1 -genkey -out key
        for n in $(seq {count}); do openssl req -x509 -new -key key -subj "/CN=ca $n" -out "$n.pem"
        certutil -A -d sql:/var/lib/ipsec/nss -n "ca $n" -t ,, -i "$n.pem"; done
        cp -a /var/lib/ipsec/nss before"""], timeout=600).check()


def trusts() -> Iterator[Figure]:
    """`checknss --settrusts` on a database with 200 CAs, restored before each run."""
    with Machine("bookworm", Store().layers("bookworm"), ARCHIVE) as machine:
        machine.ipsec("initnss").check()
        authorities(machine)
        again = "cp -a /pki/before/. /var/lib/ipsec/nss && exec "
        mine, other, _ = medians(["sh", "-c", f"{again}{PYTHON} {PYZ} checknss --settrusts"],
                                 ["sh", "-c", f"{again}ipsec checknss --settrusts"], machine, 3)
        yield ratio("checknss --settrusts : the same of 4.10, 200 CAs", 0.3, mine, other)


def verify() -> Iterator[Figure]:
    """All checks against those of libreswan 4.10's verify, which makes half as many."""
    with gateway() as machine:
        mine, other, _ = medians([PYTHON, PYZ, "verify"], ["ipsec", "verify"], machine)
        yield ratio("verify : ipsec verify 4.10", 0.5, mine, other)


def look() -> Iterator[Figure]:
    """The short report against that of libreswan 4.10: on an idle host, and with 200 CAs in the database."""
    ours, theirs = [PYTHON, PYZ, "look"], ["ipsec", "look"]
    with gateway() as machine:
        mine, other, _ = medians(ours, theirs, machine)
        yield ratio("look : ipsec look 4.10, idle", 0.5, mine, other)
        authorities(machine)
        mine, other, _ = medians(ours, theirs, machine)
        yield ratio("look : ipsec look 4.10, 200 CAs", 0.5, mine, other)


ROWS: dict[str, Callable[[], Iterator[Figure]]] = {"start": start, "barf": barf, "canaries": canaries,
                                                "status": status, "trusts": trusts, "verify": verify, "look": look}


def main() -> None:
    """Measure the rows of the command line, or all rows; exit with status 1 if a value is above its limit."""
    missed = 0
    for name in sys.argv[1:] or ROWS:
        if name not in ROWS:
            sys.exit(f"bench: no row {name}; there are {', '.join(ROWS)}")
        for figure in ROWS[name]():
            word = "ok"
            if figure.value > figure.limit:
                word = "MISS"
                missed += 1
            print(f"{word:<4} {figure.what:<62} {figure.value:>10.3g} (limit {figure.limit:g})  "
                  f"{figure.made_of}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
