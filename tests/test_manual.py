"""The registry, the help and the manual pages say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ipsec

MAN = Path(__file__).resolve().parent.parent / "man"
# options that only keep old command lines working
KEPT = ("ignored", "accepted", "obsolete", "of old releases", "as ipsec ", "the same as ")
COMMANDS = {entry.name: entry for entry in ipsec.COMMANDS.values()}
PAGES = {path.stem.removeprefix("ipsec_"): path.read_text() for path in MAN.glob("ipsec_*.8")}


def plain(page: str) -> str:
    """The text of a page without the marks of mdoc: options as they are typed."""
    return re.sub(r"\bFl -", "--", page).replace("\\-", "-")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_tells_every_option_of_its_command(name: str) -> None:
    text = plain(PAGES[name])
    for option in COMMANDS[name].options or ():
        if option.help.startswith(KEPT):
            continue
        assert any(re.search(rf"{re.escape(word)}\b", text) for word in option.names.split()), (name, option.names)


def test_the_main_page_names_every_command_that_has_a_page_and_every_global_option() -> None:
    page = (MAN / "ipsec.8").read_text()
    for name in PAGES:
        assert f".Xr ipsec_{name} 8" in page, name
    for option in ipsec.GLOBAL_OPTIONS:
        assert option.key in plain(page), option.key


def test_every_command_has_a_summary_that_is_no_sentence() -> None:
    for entry in COMMANDS.values():
        assert entry.summary and not entry.summary.endswith("."), entry.name
        assert len(entry.summary) <= 100, entry.name


def test_the_page_of_verify_names_every_check() -> None:
    page = PAGES["verify"]
    assert re.findall(r"^\.It Cm (\S+)$", page, re.MULTILINE) == list(ipsec.CHECKS)
