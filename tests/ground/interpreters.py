"""Every CPython the project promises to run on: Debian's own in its root, the others as installed on this machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import build

from . import host
from .host import Problem
from .roots import ROOTS


def debian(version: str) -> str | None:
    """The root whose Debian ships this version."""
    return next((name for name, recipe in ROOTS.items() if recipe.python == version), None)


@functools.cache
def installed() -> dict[str, Path]:
    """The interpreters of this machine, by version."""
    return build.interpreters()


def promised() -> list[str]:
    """The versions to test: in CI all, elsewhere those that can be had."""
    everywhere = os.environ.get("CI") == "true"
    return [version for version in build.TARGETS if everywhere or debian(version) or version in installed()]


def find(version: str) -> tuple[str, Sequence[tuple[str, str, bool]], str]:
    """The root to run this version in, what to mount there for it, its path there. Problem when there is none."""
    root = debian(version)
    if root:
        return root, [], "/usr/bin/python3"
    if version not in installed():
        raise Problem(f"no CPython {version} on this machine, and no Debian release here that ships it")
    path = str(installed()[version])
    prefix = host.run([path, "-c", "import sys; print(sys.base_prefix)"]).check().stdout.strip()
    return "bookworm", [(prefix, prefix, True)], path
