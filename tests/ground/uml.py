"""A Linux kernel of its own for a machine: Debian's user-mode-linux, an ordinary process here, with all of XFRM.

It boots on the files of a running Machine (hostfs), or from an initramfs with nothing else, in a few seconds; a script
runs there as root and its outputs, its status and the files it leaves are seen through the machine. Starting a program
costs 30 ms there: it is no place to measure speed.
"""

from __future__ import annotations

import functools
import shlex
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from . import host
from .host import Problem, Result
from .machine import ENVIRONMENT, PYZ, Machine, cache
from .roots import keep

#: Loaded before the script: what a gateway's kernel has.
MODULES = ("xfrm_user", "esp4", "esp6", "ah4", "ip_vti", "af_key", "veth")

#: How often a kernel is started at most until its first process runs.
BOOTS = 3

#: Where Debian's user-mode-linux keeps its modules, below it a directory for each version.
LIBRARY = "usr/lib/uml/modules"

#: The suite whose user-mode-linux is taken if this machine's own does not boot. Kernels up to 6.12 can't hold the
#: registers of processors with AMX (11 kB each) and die before their first process.
NEWER_SUITE = "sid"

#: The first process. In /uml lies the script, and what it leaves; with an initramfs that is a directory of the machine.
INIT = """#!/bin/sh
unset root rootfstype rootflags mem umid uml_dir con con0 con1  # what the kernel did not know it passes on
{exports}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
share() {{  # TARGET DIRECTORY: mount a directory of the machine that runs this kernel; kernels differ in the option
    mount -t hostfs none "$1" -o "hostfs=$2" 2>/dev/null && [ -n "$(ls "$1")" ] || mount -t hostfs none "$1" -o "$2"
}}
{mounts}
echo {hostname} >/proc/sys/kernel/hostname
share {directory} {library}
if [ -e {directory}/modules.dep ]; then
    for module in {modules}; do modprobe $module || echo "no module $module" >&2; done
else
    echo "no modules in {directory}" >/uml/stderr
    echo o >/proc/sysrq-trigger
    sleep 1000
fi
ip link set lo up
/uml/script </dev/null >/uml/stdout 2>/uml/stderr
echo $? >/uml/status
sync
echo o >/proc/sysrq-trigger
sleep 1000
"""


class Kernel(NamedTuple):
    """A user-mode-linux that boots on this machine: its program, its version, the directory of its modules."""

    program: str
    version: str
    modules: Path


def kernel_below(directory: Path) -> Kernel:
    """Return the kernel of a user-mode-linux package that is installed, or unpacked, at `directory`."""
    program = str(directory / "usr/bin/linux.uml")
    version = host.run([program, "--version"]).check().stdout.strip()
    return Kernel(program, version, directory / LIBRARY / version)


def alone(argv: list[str]) -> list[str]:
    """Return words that run a kernel in a network of its own, below a shell: abort() does not end a first process."""
    return host.contained(["sh", "-c", '"$@"; exit $?', "sh", *argv], "--net")


def boots(candidate: Kernel) -> bool:
    """Return whether a kernel starts its first process here."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        (root / "dev").mkdir(parents=True)
        (root / "sh").write_bytes(host.busybox().read_bytes())
        (root / "init").write_text("#!/sh\necho started; echo o >/proc/sysrq-trigger; sleep 1; poweroff -f\n")
        for name in ("sh", "init"):
            (root / name).chmod(0o755)
        argv = ["setarch", "--addr-no-randomize", candidate.program, "root=/dev/root", "rootfstype=hostfs",
                f"rootflags={root}", "rw", "init=/init", "mem=128M", f"uml_dir={scratch}", "con=null", "con0=null,fd:2",
                "con1=fd:0,fd:1", "quiet"]
        try:
            ran = host.run(alone(argv), env={"PATH": host.PATH}, timeout=60)
        except Problem:
            return False
        return "started" in ran.stdout + ran.stderr


def fetch_newer(target: Path) -> None:
    """Unpack the user-mode-linux of NEWER_SUITE at `target`, with the C library that it needs."""
    host.install("patchelf")
    lists, packages = target.with_name("lists"), target.with_name("packages")
    for directory in (target, lists / "partial", packages):
        directory.mkdir(parents=True)
    sources = target.with_name("sources.list")
    sources.write_text("\n".join(host.mirror().sources(NEWER_SUITE, ())) + "\n")
    settings = target.with_name("apt.conf")
    settings.write_text("\n".join([
        *host.apt_options(), f'Dir::Etc::sourcelist "{sources}";', 'Dir::Etc::sourceparts "-";',
        f'Dir::State::lists "{lists}";', 'Dir::State::status "/dev/null";', 'APT::Sandbox::User "root";\n']))
    env = {"PATH": host.PATH, "APT_CONFIG": str(settings)}
    host.run(["apt-get", "-q", "update"], env=env, timeout=900).check()
    host.run(["sh", "-c", 'cd "$0" && apt-get -q download user-mode-linux libc6', str(packages)], env=env,
             timeout=900).check()
    for package in packages.glob("*.deb"):
        host.run(["dpkg-deb", "--extract", str(package), str(target)]).check()
    # The final place of the files is beside `target`: the cache renames it.
    place = target.parent.with_name(target.parent.name.removesuffix(".building"))
    loader = next(target.glob("usr/lib*/**/ld-linux*.so.*")).relative_to(target)
    host.run(["patchelf", "--set-interpreter", str(place / loader), "--set-rpath", str((place / loader).parent),
              str(target / "usr/bin/linux.uml")]).check()


@functools.cache
def kernel() -> Kernel:
    """Return a kernel that boots here: this machine's own, or the newer one. Raises Problem if neither boots."""
    host.prepare()
    own = kernel_below(Path("/"))
    if boots(own):
        return own
    newer = kernel_below(cache() / keep("user-mode-linux", NEWER_SUITE, fetch_newer).layer)
    if boots(newer):
        return newer
    raise Problem(f"user-mode-linux does not boot on this machine, neither {own.version} nor {newer.version}")


def version() -> str:
    """Return the kernel's version."""
    return kernel().version


def init(machine: Machine, path: str, mount: str) -> None:
    """Write the program of the first process to `path` of the machine; `mount` is what it mounts besides modules."""
    modules = f"/lib/modules/{version()}"
    machine.path(modules).mkdir(parents=True, exist_ok=True)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items())
    text = INIT.format(exports=exports, mounts=mount, modules=" ".join(MODULES), hostname=machine.name,
                       directory=modules, library=kernel().modules)
    machine.write(path, text, 0o755)


def boot(machine: Machine, script: str, *, memory: str = "512M", timeout: float = 180) -> Result:
    """Boot on the machine's files and run `script` (any text with a #! line) there; return its Result.

    The files it writes are the machine's: read them with `machine.read`. /run is empty and in memory. Raises Problem
    with the kernel's console when the script does not come to its end.
    """
    init(machine, "/uml/init", "mount -t tmpfs tmpfs /run")
    return _start(machine, script, memory, timeout, "root=/dev/root", "rootfstype=hostfs",
                  f"rootflags={machine.path('/')}", "rw", "init=/uml/init")


def boot_initramfs(machine: Machine, script: str, *, memory: str = "160M", timeout: float = 180) -> Result:
    """As `boot`, but from a copy of all the machine's files in memory, with no other root: an initramfs.

    Only /uml is the machine's own; leave files there to see them afterwards.
    """
    init(machine, "/init", f"share /uml {machine.path('/uml')}")
    pack = f"(find . -xdev ! -path './uml/*'; echo .{PYZ}) | cpio -o -H newc >/uml/initramfs"
    machine.run(["sh", "-c", pack]).check()
    return _start(machine, script, memory, timeout, f"initrd={machine.path('/uml/initramfs')}")


def _start(machine: Machine, script: str, memory: str, timeout: float, *arguments: str) -> Result:
    machine.write("/uml/script", script, 0o755)
    for name in ("status", "stdout", "stderr"):
        machine.path(f"/uml/{name}").unlink(missing_ok=True)
    # Random addresses would make holes in its memory, whose bookkeeping takes a small one all it has.
    argv = ["setarch", "--addr-no-randomize", kernel().program, *arguments, f"mem={memory}", f"umid={machine.name}",
            f"uml_dir={machine.path('/uml')}", "con=null", "con0=null,fd:2", "con1=fd:0,fd:1", "quiet"]
    began = time.monotonic()
    for attempt in range(BOOTS):
        try:
            console = host.run(alone(argv), env={"PATH": host.PATH},
                               timeout=timeout if attempt == BOOTS - 1 else min(timeout, 120))
            break
        except Problem:
            # now and then this kernel stops for good on its way to the first process, so before anything of ours ran
            if machine.path("/uml/stdout").exists() or attempt == BOOTS - 1:
                raise
    seconds = time.monotonic() - began
    if not machine.path("/uml/status").exists():
        printed = machine.path("/uml/stderr")
        ended = printed.read_text() if printed.exists() else ""
        raise Problem(f"the script did not end\n{ended}--- console\n{console.stdout}{console.stderr}")
    return Result(int(machine.read("/uml/status")), machine.read("/uml/stdout"), machine.read("/uml/stderr"), seconds)
