"""The reading order of ipsec.py, the names in it, and the map in CONTRIBUTING.md, compared with the source."""
from __future__ import annotations
import __future__

import ast
import dis
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import ipsec

SOURCE = Path(__file__).resolve().parent.parent / "ipsec.py"
TEXT = SOURCE.read_text()
TREE = ast.parse(TEXT)


def places() -> list[tuple[int, int, str]]:
    """Return (section, number of the subsection, its title up to a colon) of every line of ipsec.py.

    Numbers count from 0 at the top of the file, and from 0 in each section, whose own part has no title.
    """
    section, subsection, title = 0, 0, ""
    result = []
    for line in TEXT.splitlines():
        if banner := re.match(r"# (\d+)\. ", line):
            section, subsection, title = int(banner[1]), 0, ""
        elif line.startswith("# --- "):
            subsection, title = subsection + 1, line.strip("# -").split(":")[0]
        result.append((section, subsection, title))
    return result


PLACES = places()


def bound_names(statement: ast.stmt) -> list[str]:
    """Return the global names that a top-level statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign):
        return [ast.unparse(statement.target)]
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.If):
        return [name for inner in (*statement.body, *statement.orelse) for name in bound_names(inner)]
    return []


def used_names(code: CodeType) -> Iterator[str]:
    """Yield the global names that a code object uses, and those that the code objects within it use."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from used_names(constant)


@functools.cache
def names_in(statement: ast.stmt) -> set[str]:
    """Return the global names that a statement uses, except in annotations, which are strings at run time."""
    code = compile(ast.Module([statement], []), "ipsec.py", "exec", dont_inherit=True,
                   flags=__future__.annotations.compiler_flag)
    return set(used_names(code))


def loaded_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the global names that a statement uses through load_part("NAME")."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_part":
            (name,) = node.args
            if isinstance(name, ast.Constant):
                yield name.value


def test_a_statement_uses_only_names_of_its_own_or_earlier_subsections() -> None:
    """The file can be read from top to bottom.  The two exceptions are those that its first lines name."""
    place_of_name: dict[str, tuple[int, int, str]] = {}
    for statement in TREE.body:
        for name in bound_names(statement):
            place_of_name.setdefault(name, PLACES[statement.lineno - 1])
    backward, exceptions = [], set()
    for statement in TREE.body:
        place = PLACES[statement.lineno - 1]
        for name in names_in(statement):
            if place_of_name.get(name, place) > place:
                backward.append(f"line {statement.lineno} uses {name} of section {place_of_name[name][0]}")
        exceptions.update(name for name in loaded_names(statement) if place_of_name[name] > place)
    assert backward == [] and exceptions == {"findings", "report_summary"}


def local_names(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Return the names that a function binds: parameters, assignments, loop variables, exceptions."""
    names = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    for node in ast.walk(function):
        if isinstance(node, ast.Global):
            names.difference_update(node.names)
    return names


@pytest.mark.parametrize("source", ["ipsec.py", "build.py"])
def test_no_local_name_shadows_a_global_one(source: str) -> None:
    """A name means the same thing wherever it stands."""
    tree = ast.parse(SOURCE.with_name(source).read_text())
    global_names = {name for statement in tree.body for name in bound_names(statement)}
    shadows = [f"line {function.lineno}: {', '.join(sorted(local_names(function) & global_names))}"
               for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.Lambda))
               and local_names(function) & global_names]
    assert shadows == []


CONTRIBUTING = (SOURCE.parent / "CONTRIBUTING.md").read_text()
TESTS = SOURCE.parent / "tests"
# The rows of the table in CONTRIBUTING.md: part, what it is for, tests, system tests
MAP = [[cell.strip() for cell in row.split("|")[1:5]]
       for row in CONTRIBUTING.partition("| part of `ipsec.py` |")[2].partition("\n\n")[0].splitlines()[2:]]


def users_of_sections() -> dict[int, list[tuple[int, int, str]]]:
    """Return the later sections and parts that use a name of each section, in the order of the file."""
    section_of_name: dict[str, int] = {}
    for statement in TREE.body:
        section_of_name.update(dict.fromkeys(bound_names(statement), PLACES[statement.lineno - 1][0]))
    users: dict[int, list[tuple[int, int, str]]] = {section: [] for section in range(13)}
    for statement in TREE.body:
        user = PLACES[statement.lineno - 1]
        for name in names_in(statement) | set(loaded_names(statement)):
            section = section_of_name.get(name, user[0])
            if section < user[0] and user not in users[section]:
                users[section].append(user)
    return users


def users_text(section: int, users: list[tuple[int, int, str]]) -> str:
    """Return the users of a section as its banner must name them."""
    numbers = sorted({user[0] for user in users})
    if numbers == [*range(section + 1, 13)]:
        return "all later sections"
    *firsts, last = [str(number) for number in numbers if number != 11] or [""]
    parts = f"these parts of section 11: {'; '.join(part for number, _, part in users if number == 11)}"
    if firsts:
        return f"sections {', '.join(firsts)} and {last}, and by {parts}"
    return f"section {last}, and by {parts}" if last else parts


def test_each_section_says_who_uses_it() -> None:
    """The registry has the functions of the commands, so no section uses names of sections 11 and 12."""
    banners = re.findall(r"^# =+\n((?:# \d+\. |#[^=]).*(?:\n#(?! =).*)*)\n# =+$", TEXT, re.M)
    assert len(banners) == 12
    users = users_of_sections()
    for section, banner in enumerate(banners, 1):
        wanted = f"Used by {users_text(section, users[section])}." if section < 11 else "Used by"
        assert wanted in banner.replace("\n# ", " "), f"the banner of section {section} must say: {wanted}"


def test_the_map_names_each_part_and_each_test() -> None:
    """CONTRIBUTING.md's table: the parts are the banners of ipsec.py up to a colon, the tests are files that exist."""
    parts = {part for row in MAP for part in row[0].split("; ")}
    banners = {banner.split(":")[0] for banner in re.findall(r"^# (?:--- )?(\d+\. .*|(?<=--- ).*?) *-*$", TEXT, re.M)}
    assert banners - parts == set(), "ipsec.py has parts that the table in CONTRIBUTING.md lacks"
    for column, directory in ((2, TESTS), (3, TESTS / "system")):
        named = {f"test_{name}.py" for row in MAP for name in row[column].split(", ") if name}
        assert named == {path.name for path in directory.glob("test_*.py")}, f"CONTRIBUTING.md: {directory}"


def test_the_map_names_the_tests_without_counterpart() -> None:
    unit, system = ({path.stem.removeprefix("test_") for path in directory.glob("test_*.py")}
                    for directory in (TESTS, TESTS / "system"))
    sentence = CONTRIBUTING.partition("These files have no counterpart")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == unit ^ system


def test_what_the_map_says_to_change_exists() -> None:
    """The names in the table of things to add are defined in the program, the builder or the tests."""
    table = CONTRIBUTING.partition("| to add |")[2].partition("\n\n")[0]
    names = set(re.findall(r"`([A-Z_]{4,}|[a-z_]+(?=\(\)`))", table))
    paths = (SOURCE, SOURCE.with_name("build.py"), TESTS / "bench.py", TESTS / "ground/roots.py")
    statements = [statement for path in paths for statement in ast.parse(path.read_text()).body]
    bound = {name for statement in statements for name in bound_names(statement)}
    assert {"ROOTS", "report_sections"} < names <= bound


def test_the_map_names_each_command_and_its_tests() -> None:
    """Each command and alias is in the row of its part, and a test file of this row contains the name."""
    row_of_command = {name: row for row in MAP for name in re.findall("`(.*?)`", row[1])}
    assert set(row_of_command) == set(ipsec.COMMANDS)
    for name, entry in ipsec.COMMANDS.items():
        parts, _, unit, system = row_of_command[name]
        assert PLACES[entry.function.__code__.co_firstlineno - 1][2] in parts.split("; "), name
        files = [*(TESTS / f"test_{test}.py" for test in unit.split(", ")),
                 *(TESTS / f"system/test_{test}.py" for test in system.split(", "))]
        word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
        assert any(word.search(file.read_text()) for file in files), f"no test file of its row contains {name}"


def test_no_file_of_any_size_is_read_as_a_whole() -> None:
    """Only with a limit, from the kernel, or what a log has grown by since `before`."""
    whole = [line.strip() for line in TEXT.splitlines() if re.search(r"join\(.*\.chunks\(", line)]
    assert [line for line in whole if not re.search(r"limit=|\"/proc/|before\)", line)] == []


def test_only_the_host_asks_the_file_system() -> None:
    """Section 2 bounds what may never answer.  Section 7 has asked it before it changes a database."""
    asks = re.compile(r"os\.path\.(?:exists|isdir|isfile|realpath|lexists)\(|os\.(?:listdir|scandir|readlink)\(")
    lines = [(number, line.strip()) for number, line in enumerate(TEXT.splitlines(), 1)
             if asks.search(line) and PLACES[number - 1][0] not in (2, 7)]
    assert lines == []
