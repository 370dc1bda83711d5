"""Run a Linux kernel for a machine: Debian's user-mode-linux, an ordinary process on this host, with all of XFRM.

The kernel boots on the files of a running Machine (hostfs), or from an initramfs alone, in a few seconds. A script runs
there as root; its outputs, its status and the files that it leaves are read through the machine. Starting a program
takes 30 ms there, so this is no place to measure speed.
"""

from __future__ import annotations

import functools
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple

from . import host
from .host import NotBegun, Problem, Result, Unavailable, cache
from .machine import ENVIRONMENT, PYZ, Machine
from .roots import keep

#: The modules that are loaded before the script; the kernel of a gateway has them.
MODULES = ("xfrm_user", "esp4", "esp6", "ah4", "ip_vti", "af_key", "veth")

#: The largest number of attempts to start a kernel.
BOOTS = 3

#: Where Debian's user-mode-linux keeps its modules, below it a directory for each version.
LIBRARY = "usr/lib/uml/modules"

#: The suite whose user-mode-linux is used if that of this host does not boot. Linux up to 6.12 can't store the
#: registers of processors with AMX (11 kB for each process) and dies before its first process.
NEWER_SUITE = "sid"

#: Seconds in which a kernel starts the script on a loaded host; it needs two or three.
BOOT_SECONDS = 120

#: The first process. /uml holds the script and its results; with an initramfs, /uml is a directory of the machine.
INIT = """#!/bin/sh
unset root rootfstype rootflags mem umid uml_dir con con0 con1  # the kernel passes on every option it does not know
{exports}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
stop() {{  # MESSAGE: end the kernel; the message is on its console and with the results
    echo "$1" | tee /dev/console >/uml/problem
    sync
    echo o >/proc/sysrq-trigger
    sleep 1000
}}
share() {{  # DIRECTORY TARGET FILE: mount a directory of the host, which holds FILE. Kernels up to 6.10 take the bare
          # name of the directory as the option; later ones take `hostfs=` and mount the host's root without it.
          # Old kernels refuse each option of a new mount(8), but also mount the host's root without an option.
    for option in "hostfs=$1" "$1"; do
        mount -t hostfs none "$2" -o "$option" 2>/dev/null || continue
        [ -e "$2/$3" ] && return
        umount "$2"
    done
    mount -t hostfs none "$2" && [ -e "$2$1/$3" ] && mount --bind "$2$1" "$2"
}}
{mounts}
echo {hostname} >/proc/sys/kernel/hostname
share {library} {directory} modules.dep || stop "no modules: {library} of the host can't be mounted"
for module in {modules}; do modprobe $module || stop "no module $module in {library} of the host"; done
ip link set lo up
/uml/script </dev/null >/uml/stdout 2>/uml/stderr
echo $? >/uml/status
sync
echo o >/proc/sysrq-trigger
sleep 1000
"""


class Kernel(NamedTuple):
    """A user-mode-linux: its program, its version, the directory of its modules."""

    program: str
    version: str
    modules: Path

    @property
    def has_packet_filter(self) -> bool:
        """Whether it has iptables' filter table; Debian's 7.2 has neither that nor a family of nf_tables."""
        return any(self.modules.glob("kernel/net/ipv4/netfilter/iptable_filter.ko*"))


def kernel_below(directory: Path) -> Kernel:
    """Return the kernel of a user-mode-linux package that is installed or unpacked at `directory`."""
    program = str(directory / "usr/bin/linux.uml")
    version = host.run([program, "--version"]).check().stdout.strip()
    return Kernel(program, version, directory / LIBRARY / version)


def run_kernel(kernel: Kernel, arguments: Sequence[str], memory: str, timeout: float,
               begun: Callable[[], bool] | None = None) -> Result:
    """Run a kernel until it ends; both outputs are its console. Raises Problem after `timeout` seconds, and NotBegun
    if `begun` does not return true within BOOT_SECONDS.

    Address randomization is off, because it would make holes in the kernel's memory, whose tables would fill a small
    memory. The kernel is not process 1 of its namespace: process 1 ignores the signal with which the kernel ends itself
    after a panic.
    """
    argv = ["sh", "-c", '"$@"; exit "$?"', "sh", "setarch", "--addr-no-randomize", kernel.program, *arguments,
            f"mem={memory}", "con=null", "con0=null,fd:2", "con1=fd:0,fd:1", "panic=-1", "quiet"]
    return host.run(host.contained(argv, "--net"), env={"PATH": host.PATH}, timeout=timeout, begun=begun,
                    begun_within=BOOT_SECONDS)


def boots(kernel: Kernel) -> bool:
    """Return whether a kernel starts its first process on this host."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        (root / "dev").mkdir(parents=True)
        (root / "busybox").write_bytes(host.busybox().read_bytes())
        (root / "init").write_text("#!/busybox sh\necho started\n/busybox poweroff -f\n")
        for name in ("busybox", "init"):
            (root / name).chmod(0o755)
        arguments = ["root=/dev/root", "rootfstype=hostfs", f"rootflags={root}", "rw", "init=/init",
                     f"uml_dir={scratch}"]
        for _ in range(BOOTS):
            try:
                console = run_kernel(kernel, arguments, "128M", 30)
            except Problem:
                continue
            if "started" in console.stdout + console.stderr:
                return True
        return False


def fetch_newer(target: Path) -> None:
    """Unpack the user-mode-linux of NEWER_SUITE at `target`, with the C library that it needs."""
    host.install("patchelf")
    lists, packages = target.with_name("lists"), target.with_name("packages")
    for directory in (target, lists / "partial", packages):
        directory.mkdir(parents=True)
    sources, settings = target.with_name("sources.list"), target.with_name("apt.conf")
    sources.write_text("\n".join(host.mirror().sources(NEWER_SUITE, ())) + "\n")
    own = {"Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "-", "Dir::State::lists": lists,
           "Dir::State::status": "/dev/null", "APT::Sandbox::User": "root"}
    settings.write_text("\n".join([*host.apt_options(), *(f'{name} "{value}";' for name, value in own.items())]))
    apt = ["apt-get", "-q", "-c", str(settings)]
    host.run([*apt, "update"], timeout=900).check()
    host.run([*apt, "download", "user-mode-linux", "libc6"], cwd=str(packages), timeout=900).check()
    for package in packages.glob("*.deb"):
        host.run(["dpkg-deb", "--extract", str(package), str(target)]).check()
    # The cache moves the files from `target` to a place beside the directory that is being built.
    place = target.parent.with_name(target.parent.name.removesuffix(".building"))
    loader = next(target.glob("usr/lib*/**/ld-linux*.so.*")).relative_to(target)
    host.run(["patchelf", "--set-interpreter", str(place / loader), "--set-rpath", str((place / loader).parent),
              str(target / "usr/bin/linux.uml")]).check()


@functools.cache
def _kernel_or_reason() -> Kernel | str:
    """Return a kernel that boots here, or the reason why there is none."""
    tried = []
    for find in (installed, newer):
        try:
            candidate = find()
        except Problem as problem:
            tried.append(problem.line)
            continue
        if boots(candidate):
            return candidate
        tried.append(f"Linux {candidate.version} does not boot on this machine")
    return f"user-mode-linux: {', '.join(tried)}"


def installed() -> Kernel:
    """Return the user-mode-linux of this host, installed if it is missing. Raises Problem."""
    host.prepare()
    host.install("user-mode-linux")
    return kernel_below(Path("/"))


def newer() -> Kernel:
    """Return the user-mode-linux of NEWER_SUITE, from the cache. Raises Problem."""
    # fetch_newer() writes the path of the cache into the program, so the path is a part of the recipe
    return kernel_below(cache() / keep("user-mode-linux", (NEWER_SUITE, str(cache())), fetch_newer).layer)


def kernel() -> Kernel:
    """Return a kernel that boots here: this host's own, or a newer one. Raises Unavailable if neither boots."""
    answer = _kernel_or_reason()
    if isinstance(answer, str):
        raise Unavailable(answer)
    return answer


def description() -> str:
    """Return the kernel's version, or why there is no kernel, for the summary."""
    answer = _kernel_or_reason()
    if isinstance(answer, str):
        return answer
    return f"Linux {answer.version}{'' if answer.has_packet_filter else ', without packet filter'}"


def version() -> str:
    """Return the kernel's version. Raises Unavailable."""
    return kernel().version


def init(machine: Machine, path: str, mount: str, library: Path | None = None) -> None:
    """Write the program of the first process to `path` of the machine; `mount` are its mounts besides the modules.

    `library` is the directory of the modules on this host, by default the kernel's own.
    """
    modules = f"/lib/modules/{version()}"
    machine.path(modules).mkdir(parents=True, exist_ok=True)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items())
    text = INIT.format(exports=exports, mounts=mount, modules=" ".join(MODULES), hostname=machine.name,
                       directory=modules, library=library or kernel().modules)
    machine.write(path, text, 0o755)


def boot(machine: Machine, script: str, *, memory: str = "512M", timeout: float = 180,
         library: Path | None = None) -> Result:
    """Boot on the machine's files and run `script` (any text with a #! line) there; return its Result.

    The files that it writes are the machine's: read them with `machine.read`. /run is empty and in memory. Raises
    Problem with the kernel's console if the script does not come to its end within `timeout` seconds.
    """
    init(machine, "/uml/init", "mount -t tmpfs tmpfs /run", library)
    return _start(machine, script, memory, timeout, "root=/dev/root", "rootfstype=hostfs",
                  f"rootflags={machine.path('/')}", "rw", "init=/uml/init")


def boot_initramfs(machine: Machine, script: str, *, memory: str = "160M", timeout: float = 180) -> Result:
    """Do the same as boot(), but on an initramfs: a copy of all files of the machine in memory.

    Only /uml is the directory of the machine itself; files that the script writes there can be read afterwards.
    """
    machine.write("/uml/mounted", "")
    init(machine, "/init", f"share {machine.path('/uml')} /uml mounted || stop 'no /uml'")
    pack = f"(find . -xdev ! -path './uml/*'; echo .{PYZ}) | cpio -o -H newc >/uml/initramfs"
    machine.run(["sh", "-c", pack]).check()
    return _start(machine, script, memory, timeout, f"initrd={machine.path('/uml/initramfs')}")


def _start(machine: Machine, script: str, memory: str, timeout: float, *arguments: str) -> Result:
    """Start the kernel, and return the script's Result.

    Sometimes this kernel hangs before its first process runs.  Then it is started again, at most BOOTS times in all.
    """
    machine.write("/uml/script", script, 0o755)
    for name in ("status", "stdout", "stderr", "problem"):
        machine.path(f"/uml/{name}").unlink(missing_ok=True)
    words = [*arguments, f"umid={machine.name}", f"uml_dir={machine.path('/uml')}"]

    def begun() -> bool:
        return machine.path("/uml/stdout").exists() or machine.path("/uml/problem").exists()

    for attempt in range(1, BOOTS + 1):
        began = time.monotonic()
        try:
            console = run_kernel(kernel(), words, memory, timeout, begun)
        except NotBegun:
            if attempt == BOOTS:
                raise
            continue
        if begun():
            break
    seconds = time.monotonic() - began
    if not machine.path("/uml/status").exists():
        problem = machine.path("/uml/problem")
        reason = problem.read_text().strip() if problem.exists() else "the script did not end"
        raise Problem(f"{reason}\n--- console\n{console.stdout}{console.stderr}")
    return Result(int(machine.read("/uml/status")), machine.read("/uml/stdout"), machine.read("/uml/stderr"), seconds)
