"""The README keeps its word: its flags are the parser's, its links and files exist, its commands are understood.

Commands that need a data set are parsed; `RUN_BY` names the test that runs each of the others for real.
"""

import importlib
import re
import shlex
from urllib.parse import unquote

import pytest

from engine.arguments import build_parser, get_args
from scripts.flag_tables import FIRST_LINE, LAST_LINE, flag_tables, put_into
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

# script -> the test file that runs it, and the name that it is called by there
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


def commands() -> list[str]:
    """The commands of all bash blocks, each in one line and without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+# .*", "", line).strip() for line in lines) if line]


def of(program: str) -> list[str]:
    return [command for command in commands() if program in command]


def flags_in(command: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--\w+", command))


def test_the_flags_are_those_of_the_parser():
    assert put_into(README, flag_tables(build_parser())) == README, "python -m scripts.flag_tables --write README.md"


def test_put_into_changes_what_is_between_the_marker_lines():
    text = f"a\n{FIRST_LINE}\nold\n{LAST_LINE}\nb\n"
    assert put_into(text, "new") == f"a\n{FIRST_LINE}\n\nnew\n{LAST_LINE}\nb\n"
    with pytest.raises(ValueError, match="no lines"):
        put_into("a", "new")


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (REPOSITORY / unquote(target)).exists(), target


def test_the_file_tree_names_files_that_exist():
    tree = re.search(r"## Files\n\n```\n(.*?)```", README, re.S)[1]
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            assert (REPOSITORY / name).exists(), name
        elif line.startswith("  ") and not line.startswith("   ") and "{" not in name:
            assert (REPOSITORY / folder / name.rstrip(",")).exists(), folder + name


@pytest.mark.parametrize("command", of("main_task_retrieval.py"))
def test_runs_are_understood(command):
    words = shlex.split(command.split("main_task_retrieval.py", 1)[1].rstrip("'"))
    if "..." in words:
        known = {string for action in build_parser()._actions for string in action.option_strings}
        assert flags_in(command.split("main_task_retrieval.py")[1]) <= known
    else:
        assert get_args(words).output_dir


@pytest.mark.parametrize("command", of("-m scripts."))
def test_scripts_know_the_flags_and_have_a_test(command, capsys):
    name = re.search(r"-m (scripts\.\w+)", command)[1]
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--help"])
    known = flags_in(re.sub(r"[,\[\]]", " ", capsys.readouterr().out))
    assert flags_in(command.split(name, 1)[1]) <= known
    file, called = RUN_BY[name]
    assert called in (REPOSITORY / "tests" / file).read_text(encoding="utf-8")


def test_shell_scripts_exist():
    for script in re.findall(r"\./(?:scripts|benchmarks)/\w+\.sh", "\n".join(commands())):
        assert (REPOSITORY / script).is_file(), script
