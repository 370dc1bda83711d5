"""--root DIR: reports on a mounted disk touch nothing outside it, and write nowhere."""

from __future__ import annotations

import re
from typing import Callable

import pytest

from ..ground.machine import PYZ, Machine

#: What any start of the interpreter, the C library or the program itself may read
#: (barf looks where journalctl is)
OF_THE_INTERPRETER = re.compile(r"""(/usr|/usr/local)?/s?bin|/usr/(bin|lib|local/lib)(/.*)?|/lib(64)?/.*
                                |/etc/(ld\.so\.\w+|localtime|python3.*)
                                |/usr/share/zoneinfo.*|/usr/pyvenv\.cfg|/dev/(null|urandom)|/root|/|/proc/self/(fd|mountinfo)
                                |/proc/sys/vm/overcommit_memory|/proc/filesystems|/usr/local/sbin(/ipsec\.pyz)?
                                |pyvenv\.cfg|python3|ipsec|""", re.VERBOSE)

CHANGING = ("connect bind sendto sendmsg socket unlink rename mkdir rmdir chmod utimensat symlink link truncate mknod "
            "chown").split()

INSIDE = ["conn absolute-inside", "conn climbing-inside", "conn through-inside"]


@pytest.fixture
def rescue(root: Callable[..., Machine]) -> Machine:
    """A rescue system with the sick one at /sysroot.  In both are files under the same names, reached by links that
    are absolute, that climb, and that go through a directory that is a link itself."""
    machine = root("bookworm-shells")
    machine.run(["sh", "-ec", """
        mkdir -p /sysroot/var/lib /sysroot/var/log /sysroot/usr/libexec
        cp -a /etc /sysroot/etc
        cp -a /usr/libexec/ipsec /sysroot/usr/libexec/ipsec
        mkdir -p /var/lib/ipsec/nss
        certutil -N -d sql:/var/lib/ipsec/nss --empty-password
        openssl req -x509 -newkey rsa:2048 -nodes -keyout /run/key -out /run/pem -subj /CN=inside
        cp -a /var/lib/ipsec /sysroot/var/lib/ipsec
        certutil -A -d sql:/sysroot/var/lib/ipsec/nss -n inside -t CT,, -i /run/pem
        echo "Nov 23 10:00:00 gw pluto[1]: Starting Pluto inside" >/sysroot/var/log/auth.log
        for where in /sysroot ""; do
            name=$(test $where && echo inside || echo outside)
            mkdir -p $where/srv/conf
            for kind in absolute climbing through; do
                printf 'conn %s-%s\n\tleft=192.0.2.1\n\tright=192.0.2.2\n' $kind $name >$where/srv/conf/$kind
            done
            printf '@%s : PSK "SecretOf%s"\n' $name $name >$where/srv/conf/secret
        done
        printf 'config setup\ninclude /etc/ipsec.d/*.conf\n' >/sysroot/etc/ipsec.conf
        printf 'include /etc/ipsec.d/*.secrets\n' >/sysroot/etc/ipsec.secrets
        ln -s /srv/conf/absolute /sysroot/etc/ipsec.d/absolute.conf
        ln -s ../../../../../../srv/conf/climbing /sysroot/etc/ipsec.d/climbing.conf
        ln -s /srv/conf /sysroot/etc/conf
        ln -s /etc/conf/through /sysroot/etc/ipsec.d/through.conf
        ln -s /srv/conf/secret /sysroot/etc/ipsec.d/it.secrets
    """]).check()
    return machine


@pytest.mark.parametrize(("words", "status", "shown"), [
    (["barf"], 0, [*INSIDE, "@inside", "Starting Pluto inside"]),
    (["barf", "--json"], 0, ["conn absolute-inside", "Starting Pluto inside"]),
    (["verify"], 0, ["Checking"]),
    (["look"], 0, ["inside", "CT,,"]),
    (["nsslist"], 0, ["inside"]),
    (["readwriteconf"], 0, INSIDE),
    (["show"], 2, []),
], ids=["barf", "json", "verify", "look", "nsslist", "readwriteconf", "show"])
def test_nothing_outside_is_touched(rescue: Machine, words: list[str], status: int, shown: list[str]) -> None:
    trace = ["strace", "-f", "-qq", "-z", "-e", "trace=%file,%network,%process", "-o", "/run/trace"]
    result = rescue.run([*trace, rescue.python, PYZ, "--root", "/sysroot", *words], timeout=300)
    assert result.status == status, result.stderr
    assert [text for text in shown if text not in result.stdout] == []
    assert "-outside" not in result.stdout and "SecretOf" not in result.stdout + result.stderr
    touched, written = set(), []
    for line in rescue.read("/run/trace").splitlines():
        call, _, arguments = line.split(None, 1)[1].partition("(")
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
        touched.update(names[:1] if call in ("execve", "readlink") else names)  # not the arguments, what the link says
        if call in CHANGING or re.search(r"O_(WRONLY|RDWR|CREAT)", arguments):
            written.append(line)
    assert [line for line in written if "/dev/null" not in line] == []
    assert sorted(name for name in touched if not name.startswith("/sysroot") and
                  not OF_THE_INTERPRETER.fullmatch(name)) == []
    assert any(name.startswith("/sysroot/") for name in touched) or status == 2, "nothing was traced"


#: A stand-in for journalctl: it prints the files that it is given, and those of a directory.
JOURNALCTL = """#!/bin/sh
for word in "$@"; do
    case $word in
    --file=*) cat "${word#--file=}" ;;
    /*) cat "$word"/* "$word"/*/* ;;
    esac
done
"""


@pytest.mark.parametrize("words", [["barf"], ["barf", "--json"], ["verify"], ["look"], ["nsslist"], ["readwriteconf"]],
                         ids=" ".join)
def test_devices_are_not_opened_and_links_of_the_journal_not_followed(rescue: Machine, words: list[str]) -> None:
    rescue.write("/usr/bin/journalctl", JOURNALCTL)
    rescue.run(["sh", "-ec", """
        chmod 755 /usr/bin/journalctl
        journal=/sysroot/var/log/journal/0123456789abcdef0123456789abcdef
        mkdir -p $journal /srv/journal /sysroot/srv
        echo "Nov 23 10:00:00 gw pluto[1]: message inside" >$journal/system.journal
        echo "Nov 23 10:00:00 gw pluto[1]: message other-inside" >/sysroot/srv/other.journal
        echo "Nov 23 10:00:00 gw pluto[1]: message -outside" >/srv/other.journal
        cp /srv/other.journal /srv/journal/a.journal
        ln -s /srv/other.journal $journal/user-1.journal
        ln -s ../../../../../srv/other.journal $journal/user-2.journal
        ln -s /srv/journal /sysroot/var/log/journal/linked
        mknod $journal/device.journal c 1 5
        mkfifo $journal/pipe.journal
        for name in etc/ipsec.d/device.conf etc/ipsec.d/device.secrets var/log/secure etc/ipsec.d/policies/device \
            etc/default/pluto var/lib/ipsec/nss/device.db; do
            mkdir -p $(dirname /sysroot/$name); rm -f /sysroot/$name; mknod /sysroot/$name c 1 5
        done
        rm /sysroot/var/lib/ipsec/nss/pkcs11.txt; mknod /sysroot/var/lib/ipsec/nss/pkcs11.txt c 1 5
    """]).check()
    trace = ["strace", "-f", "-y", "-qq", "-z", "-e", "trace=open,openat", "-o", "/run/trace"]
    result = rescue.run([*trace, rescue.python, PYZ, "--root", "/sysroot", *words], timeout=300)
    assert "-outside" not in result.stdout
    if words[0] == "barf":
        assert "message inside" in result.stdout and "message other-inside" in result.stdout
    lines = [line for line in rescue.read("/run/trace").splitlines() if "/sysroot/" in line and "O_PATH" not in line]
    assert lines and [line for line in lines if "<char" in line or "device" in line or "pipe.journal" in line] == []


def test_a_rescue_system_without_journalctl_says_so(rescue: Machine) -> None:
    rescue.run(["sh", "-c", "rm -f /usr/bin/journalctl /bin/journalctl; mkdir -p /sysroot/var/log/journal"]).check()
    shown = rescue.run([rescue.python, PYZ, "--root", "/sysroot", "barf"], timeout=300).stdout
    assert "/var/log/journal: the journal is not shown, because this rescue system has no journalctl" in shown
