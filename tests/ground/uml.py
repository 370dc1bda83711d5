"""A Linux kernel of its own for a machine: Debian's user-mode-linux, an ordinary process here, with all of XFRM.

It boots on the files of a running Machine (hostfs), or from an initramfs with nothing else, in a few seconds; a script
runs there as root and its outputs, its status and the files it leaves are seen through the machine. Starting a program
costs 30 ms there: it is no place to measure speed.
"""

from __future__ import annotations

import functools
import shlex
import time
from pathlib import Path

from . import host
from .host import Problem, Result
from .machine import ENVIRONMENT, PYZ, Machine

#: Loaded before the script: what a gateway's kernel has.
MODULES = ("xfrm_user", "esp4", "esp6", "ah4", "ip_vti", "af_key", "veth")

#: How often a kernel is started at most until its first process runs.
BOOTS = 3

#: Where user-mode-linux keeps its modules, below it a directory for each version.
LIBRARY = Path("/usr/lib/uml/modules")

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
{mounts}
echo {hostname} >/proc/sys/kernel/hostname
for module in {modules}; do modprobe $module || echo "no module $module" >&2; done
ip link set lo up
/uml/script </dev/null >/uml/stdout 2>/uml/stderr
echo $? >/uml/status
sync
echo o >/proc/sysrq-trigger
sleep 1000
"""


@functools.cache
def version() -> str:
    """The kernel's version."""
    host.prepare()
    return host.run(["linux.uml", "--version"]).check().stdout.strip()


def init(machine: Machine, path: str, mount: str) -> None:
    """Write the program of the first process to `path` of the machine; `mount` is what it mounts besides modules."""
    modules = f"/lib/modules/{version()}"
    machine.path(modules).mkdir(parents=True, exist_ok=True)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items())
    mounts = f"mount -t hostfs none {modules} -o {LIBRARY}/{version()}\n{mount}"
    text = INIT.format(exports=exports, mounts=mounts, modules=" ".join(MODULES), hostname=machine.name)
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
    init(machine, "/init", f"mount -t hostfs none /uml -o {machine.path('/uml')}")
    pack = f"(find . -xdev ! -path './uml/*'; echo .{PYZ}) | cpio -o -H newc >/uml/initramfs"
    machine.run(["sh", "-c", pack]).check()
    return _start(machine, script, memory, timeout, f"initrd={machine.path('/uml/initramfs')}")


def _start(machine: Machine, script: str, memory: str, timeout: float, *arguments: str) -> Result:
    machine.write("/uml/script", script, 0o755)
    for name in ("status", "stdout", "stderr"):
        machine.path(f"/uml/{name}").unlink(missing_ok=True)
    # Random addresses would make holes in its memory, whose bookkeeping takes a small one all it has.
    kernel = ["setarch", "--addr-no-randomize", "linux.uml", *arguments, f"mem={memory}", f"umid={machine.name}",
              f"uml_dir={machine.path('/uml')}", "con=null", "con0=null,fd:2", "con1=fd:0,fd:1", "quiet"]
    began = time.monotonic()
    for attempt in range(BOOTS):
        try:
            console = host.run(host.contained(kernel, "--net"), env={"PATH": host.PATH},
                               timeout=timeout if attempt == BOOTS - 1 else min(timeout, 120))
            break
        except Problem:
            # now and then this kernel stops for good on its way to the first process, so before anything of ours ran
            if machine.path("/uml/stdout").exists() or attempt == BOOTS - 1:
                raise
    seconds = time.monotonic() - began
    if not machine.path("/uml/status").exists():
        raise Problem(f"the script did not end\n--- console\n{console.stdout}{console.stderr}")
    return Result(int(machine.read("/uml/status")), machine.read("/uml/stdout"), machine.read("/uml/stderr"), seconds)
