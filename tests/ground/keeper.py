"""Hold one machine: make its namespaces and mounts, then be its first process. This file is run, never imported.

    python3 -I -S keeper.py      standard input: a line of JSON, the fields of `machine.Spec`

The parent stays outside: it writes the number of the first process to stdout once the machine is ready, waits for that
process and ends with its status. The kernel kills the parent when the test process dies; the first process and all
processes of the machine die with it. The first process collects orphans, or becomes the init system of the machine when
another line comes on standard input.

System calls go through ctypes: Python has unshare(2) since 3.12, and neither mount(2) nor pivot_root(2). Facts:
mount(2), unshare(2), pivot_root(2), prctl(2); device numbers: Documentation/admin-guide/devices.txt of Linux.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import signal
import stat
import sys
from typing import Any, Dict

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # unistd.h; glibc has no wrapper

CHANGES = 9  # file descriptor of the directory with the machine's changes; machine.py uses it

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

Spec = Dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError if it does not return 0."""
    values = [value.encode() if isinstance(value, str) else value for value in arguments]
    if getattr(libc, name)(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    call("mount", source, target, kind or None, flags, options or None)


def bind(source: str, target: str, readonly: bool = False) -> None:
    """Mount the file or directory `source` on `target`, which is made if it is missing."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, flags=MS_BIND)
    if readonly:
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def mount_root(spec: Spec) -> str:
    """Mount the overlay of the layers, topmost first, below the cache directory, and return its path.

    Changes are kept in memory, or in the directory that the spec names."""
    os.chdir(spec["cache"])  # names of layers below it are short, and need no quoting
    mount("ground", "mnt", "tmpfs", MS_NOSUID, "mode=755")
    os.mkdir("mnt/root")
    upper, work = spec["upper"] or ["mnt/upper", "mnt/work"]
    for directory in (upper, work):
        os.makedirs(directory, exist_ok=True)
    os.dup2(os.open(upper, os.O_RDONLY), CHANGES, inheritable=False)  # machine.py reads it through /proc
    mount("overlay", "mnt/root", "overlay", 0, f"lowerdir={':'.join(spec['layers'])},upperdir={upper},workdir={work}")
    return os.path.abspath("mnt/root")


def mount_inside(root: str, spec: Spec) -> None:
    """Mount /proc, /sys, /dev and /run of the machine. Of /proc/sys only net is writable: it is the machine's."""
    for name in ("proc", "sys", "dev", "run"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if spec["network"]:
        bind(f"{root}/proc/sys", f"{root}/proc/sys")
        bind(f"{root}/proc/sys/net", f"{root}/proc/sys/net")
        mount("none", f"{root}/proc/sys", flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount("sysfs", f"{root}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if spec["cgroup"]:
        mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if spec["run"]:
        mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        os.mkdir(f"{root}/run/lock")
        os.chmod(f"{root}/run/lock", 0o1777)

    mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755")
    devices = dict(DEVICES)
    if os.path.exists("/dev/net/tun"):
        os.mkdir(f"{root}/dev/net")
        devices["net/tun"] = (10, 200)
    for name, (major, minor) in devices.items():
        os.mknod(f"{root}/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(f"{root}/dev/{name}", 0o666)
    for name in ("pts", "shm"):
        os.mkdir(f"{root}/dev/{name}")
    mount("devpts", f"{root}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    links = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
             "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
    for name, target in links.items():
        os.symlink(target, f"{root}/dev/{name}")
    os.close(os.open(f"{root}/dev/console", os.O_CREAT | os.O_WRONLY, 0o600))


def enter(root: str, spec: Spec) -> None:
    """Make `root` the root directory and remove all mounts of the host that the tests run on."""
    for source, target, readonly in spec["binds"]:
        bind(source, root + target, readonly)
    for path in spec["drop"]:
        shutil.rmtree(root + path)
    if spec["readonly"]:
        for path in (f"{root}/dev/shm", f"{root}/dev", root):
            mount("none", path, flags=MS_REMOUNT | MS_RDONLY)
    os.chdir(root)
    if libc.syscall(PIVOT_ROOT[platform.machine()], b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    call("umount2", ".", MNT_DETACH)
    os.chdir("/")
    call("sethostname", spec["hostname"], len(spec["hostname"]))


def main() -> int:
    spec = json.loads(os.read(0, 1 << 20))
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    kinds = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    if spec["network"]:
        kinds |= CLONE_NEWNET
    if spec["cgroup"]:
        with open(f"{spec['cgroup']}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
        kinds |= CLONE_NEWCGROUP
    call("unshare", kinds)
    reader, writer = os.pipe()  # the child writes a byte when the machine is ready
    child = os.fork()
    if child:
        os.close(writer)
        if os.read(reader, 1):
            print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(reader)
    os.setsid()
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    root = mount_root(spec)
    mount_inside(root, spec)
    enter(root, spec)
    os.write(writer, b"+")
    os.close(writer)
    if spec["init"]:
        os.read(0, 1)
        console = os.open("/dev/console", os.O_WRONLY | os.O_APPEND)
        for number in (1, 2):
            os.dup2(console, number)
        os.execve(spec["init"][0], spec["init"], spec["environment"])
    null = os.open("/dev/null", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:  # the first process inherits orphans and has to collect them
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            continue


if __name__ == "__main__":
    sys.exit(main())
