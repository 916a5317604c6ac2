"""README.md and docs/: flags are the parser's, links and the file tree match the repository, commands are accepted.

Commands that need a data set are parsed; `RUN_BY` names the test that runs each of the others.
"""

import ast
import fnmatch
import importlib
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest

from engine.arguments import build_parser, get_args
from scripts.flag_tables import FIRST_LINE, LAST_LINE, flag_tables, put_into
from tests.conftest import REPOSITORY

FILES = [
    REPOSITORY / "README.md", REPOSITORY / "SECURITY.md", *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "benchmarks" / "README.md", REPOSITORY / "benchmarks" / "RELIABILITY.md",
]  # fmt: skip
PAGES = {str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8") for file in FILES}

# script -> the test file that runs it, and the name by which it is called there
RUN_BY = {
    "scripts.check_data": ("test_check_data.py", "check_data"),
    "scripts.compare_runs": ("test_compare_runs.py", "compare_runs"),
    "scripts.compress_videos": ("test_compress_videos.py", "compress_videos"),
    "scripts.embed": ("test_embed.py", "embed"),
    "scripts.index": ("test_video_index.py", "index"),
    "scripts.report": ("test_report.py", "report"),
    "scripts.search": ("test_search.py", "search"),
    "scripts.serve": ("test_serve.py", "scripts.serve"),
    "scripts.show_wti": ("test_show_wti.py", "show_wti"),
}


def blocks(language: str) -> list[str]:
    return [block for page in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)]


def commands(program: str = "") -> list[str]:
    """Return the commands of all bash blocks that contain `program`, each on one line and without its comment."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    found = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines]
    return [command for command in found if command and program in command]


def flags_in(command: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--\w+", command))


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)}


# ---- the pages


def test_the_readme_is_short_and_leads_to_every_page():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 200
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#\s]+)\)", readme))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / unquote(path) if path else REPOSITORY / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_flags_are_those_of_the_parser():
    page = PAGES["docs/flags.md"]
    assert put_into(page, flag_tables(build_parser())) == page, (
        "run python -m scripts.flag_tables --write docs/flags.md"
    )


def test_put_into_changes_what_is_between_the_marker_lines():
    text = f"a\n{FIRST_LINE}\nold\n{LAST_LINE}\nb\n"
    assert put_into(text, "new") == f"a\n{FIRST_LINE}\n\nnew\n{LAST_LINE}\nb\n"
    with pytest.raises(ValueError, match="no lines"):
        put_into("a", "new")


# ---- the file tree


def tree_entries(tree: str) -> list[str]:
    """Return the paths in a tree that indents the content of a folder by two spaces; folders end with a slash."""
    folders: list[str] = []
    entries = []
    for line in filter(str.strip, tree.splitlines()):
        name = line.split()[0]
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        entries.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return entries


def covers(entry: str, file: str, entries: list[str]) -> bool:
    """Whether an entry names the file: exactly, by a pattern, or by a folder whose content is not listed."""
    if not entry.endswith("/"):
        return fnmatch.fnmatchcase(file, entry) and file.count("/") == entry.count("/")
    is_listed = any(other.startswith(entry) and other != entry for other in entries)
    return file.startswith(entry) and (not is_listed or entry == "tests/" or PurePosixPath(file).name == "__init__.py")


def test_tree_entries_by_eye():
    tree = "a.py   x\nb/\n  c.py\n  d/\n    e_*.py  y\n  f.py\ng/\n"
    entries = tree_entries(tree)
    assert entries == ["a.py", "b/", "b/c.py", "b/d/", "b/d/e_*.py", "b/f.py", "g/"]
    covered = [file for file in ("a.py", "b/z.py", "b/__init__.py", "b/d/e_1.py", "b/d/z.py", "g/h/i.md") if
               any(covers(entry, file, entries) for entry in entries)]  # fmt: skip
    assert covered == ["a.py", "b/__init__.py", "b/d/e_1.py", "g/h/i.md"]


def test_the_file_tree_has_every_file_and_no_other():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("the repository is not a git checkout")
    files = [file for file in listed.stdout.splitlines() if not file.startswith(".") and (REPOSITORY / file).exists()]
    tree = re.search(r"## Files\n.*?```\n(.*?)```", PAGES["docs/architecture.md"], re.S)[1]
    entries = tree_entries(tree)
    missing = [file for file in files if not any(covers(entry, file, entries) for entry in entries)]
    assert not missing, "add these to the tree in docs/architecture.md"
    absent = [entry for entry in entries if not any(fnmatch.fnmatchcase(file, f"{entry}*") for file in files)]
    assert not absent, "remove these from the tree in docs/architecture.md"


# ---- commands


@pytest.mark.parametrize("command", commands("main_task_retrieval.py"))
def test_runs_are_accepted(command):
    words = shlex.split(command.split("main_task_retrieval.py", 1)[1].rstrip("'"))
    if "..." in words:
        known = {string for action in build_parser()._actions for string in action.option_strings}
        assert flags_in(command.split("main_task_retrieval.py")[1]) <= known
    else:
        assert get_args(words).output_dir


@pytest.mark.parametrize("command", commands("-m scripts."))
def test_scripts_know_the_flags_and_have_a_test(command, capsys):
    name = re.search(r"-m (scripts\.\w+)", command)[1]
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    known = flags_in(re.sub(r"[,\[\]]", " ", capsys.readouterr().out))
    assert flags_in(command.split(name, 1)[1]) <= known
    file, called = RUN_BY[name]
    assert called in (REPOSITORY / "tests" / file).read_text(encoding="utf-8")


def test_shell_scripts_exist():
    scripts = re.findall(r"\./((?:scripts|benchmarks)/[\w/]+\.sh)", "\n".join(PAGES.values()))
    assert len(scripts) > 5
    for script in scripts:
        assert (REPOSITORY / script).is_file(), script


def test_one_interpreter_in_all_commands():
    assert "source .venv/bin/activate" in PAGES["README.md"]
    assert not commands(".venv/bin/python")


def test_git_ignores_what_the_commands_write():
    text = "\n".join(blocks("bash"))
    written = set(re.findall(r"(?:--output|--output_dir|--index|cat >) ([\w./]+)", text))
    assert {"runs/index", "ckpts/msrvtt_wti", "clips.csv"} <= written
    for path in written:
        finished = subprocess.run(["git", "check-ignore", "-q", path], cwd=REPOSITORY)
        if finished.returncode == 128:
            pytest.skip("the repository is not a git checkout")
        assert finished.returncode == 0, path


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_import_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_path_in_the_pages_exists():
    """Paths of files of this repository, such as `tests/golden/`, named in the text."""
    paths = re.findall(
        r"`((?:benchmarks|dataloaders|docs|engine|modules|scripts|tests|video_search)/[\w./]+)(?:::\w+)?`",
        "\n".join(PAGES.values()),
    )
    assert len(paths) >= 5
    for path in paths:
        if Path(path).suffix != ".pt":
            assert (REPOSITORY / path).exists(), path
