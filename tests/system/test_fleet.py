"""The README's recipe for many gateways: Ansible's script module runs ipsec.pyz on each of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

import build

from ..ground.host import Problem, cache
from ..ground.machine import Machine
from ..ground.pluto import Pluto
from ..ground.roots import RELEASES, keep

ANSIBLE = "ansible-core>=2.15,<2.23"

# In the place of ssh: becomes the command in the machine that is named
SSH = """#!/usr/bin/python3
import json, os, sys
machines = json.loads({machines!r})
argv = next(machines[word] for word in sys.argv if word in machines)
os.execvp(argv[0], [*argv, sys.argv[-1]])
"""


def install(target: Path) -> None:
    error = build.run_pip("-q", "--disable-pip-version-check", "install", "--target", target, ANSIBLE)
    if error:
        raise Problem(f"can't fetch {ANSIBLE}: {error}")


@pytest.fixture
def library() -> Path:
    return cache() / keep("ansible", (ANSIBLE, sys.version_info[:2]), install).layer


def test_readme_recipe(root: Callable[..., Machine], pluto: Callable[..., Pluto], library: Path, tmp_path: Path,
                       pyz: Path) -> None:
    machines = {}
    for release in RELEASES:
        machine = root(release)
        machine.address("192.0.2.1/24")
        pluto(machine)
        machines[release] = machine
    before = {name: set(machine.changes()) for name, machine in machines.items()}
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(machines=json.dumps(
        {name: machine._argv(["sh", "-c"]) for name, machine in machines.items()})))
    ssh.chmod(0o755)
    (tmp_path / "hosts").write_text("[gateways]\n" + "".join(f"{name}\n" for name in machines))
    shutil.copy(pyz, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(library), "HOME": str(tmp_path), "ANSIBLE_SSH_EXECUTABLE": str(ssh),
                   "ANSIBLE_SSH_TRANSFER_METHOD": "piped", "ANSIBLE_HOST_KEY_CHECKING": "0"}
    for command in ("barf", "verify"):
        words = ["-i", "hosts", "gateways", "-m", "script", "-a", f"ipsec.pyz {command} --json", "--tree",
                 f"reports/{command}"]
        ran = subprocess.run([sys.executable, "-m", "ansible", "adhoc", *words], cwd=tmp_path, env=environment,
                             capture_output=True, text=True, check=False)
        for name in machines:
            report = json.loads((tmp_path / "reports" / command / name).read_text())
            told = json.loads(report["stdout"])
            if command == "barf":
                assert (report["rc"], told["host"]) == (0, name), ran.stderr
                assert "ip-xfrm-policy" in [section["section"] for section in told["sections"]]
            else:
                assert report["rc"] == sum(finding["level"] == "FAIL" for finding in told)
                assert "OK" in [finding["level"] for finding in told if finding["check"] == "pluto"]
    for name, machine in machines.items():
        left = {path for path in set(machine.changes()) - before[name] if "ipsec" in path}
        assert left == set(), name
