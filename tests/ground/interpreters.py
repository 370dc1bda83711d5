"""Every CPython that the project promises to run on: Debian's own in their roots, the others from this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import build

from . import host
from .host import Problem
from .roots import ROOTS


def debian(version: str) -> str | None:
    """Return the name of the root whose Debian ships this version, or None."""
    return next((name for name, recipe in ROOTS.items() if recipe.python == version), None)


@functools.cache
def installed() -> dict[str, Path]:
    """Return the interpreters of this machine by version."""
    return build.interpreters()


def promised() -> list[str]:
    """Return the versions to test: those that a Debian release or this machine has. The summary names the others."""
    return [version for version in build.TARGETS if debian(version) or version in installed()]


def find(version: str) -> tuple[str, Sequence[tuple[str, str, bool]], str]:
    """Return the root for this version, what to mount there, and its path there. Raises Problem if there is none."""
    root = debian(version)
    if root:
        return root, [], "/usr/bin/python3"
    if version not in installed():
        raise Problem(f"no CPython {version} on this machine, and no Debian release here that ships it")
    path = str(installed()[version])
    prefix = host.run([path, "-c", "import sys; print(sys.base_prefix)"]).check().stdout.strip()
    return "bookworm", [(prefix, prefix, True)], path
