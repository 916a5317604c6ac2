"""Text of others on the terminal: control characters, line ends, and encodings that lack its characters."""

import io
import json
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from modules.standard_streams import CONTROLS, TerminalStream, open_standard_streams, printable
from scripts import index as index_script
from scripts import search as search_script
from tests.helpers.launch import run_python
from tests.helpers.search_cases import write_checkpoint
from tests.test_rawvideo_util import write_clip

NAMES = ("z.mp4  at 0:01\n  1. 0.999  forged.mp4", "\x1b]0;title\x07.mp4", "日本 🎀.mp4", "\u202egpj.mp4", "café.mp4")


@given(st.text(st.characters()))
def test_printable_text_is_one_line_that_any_terminal_shows(text):
    shown = printable(text)
    assert not CONTROLS.search(shown) and not {"\n", "\r", "\t"} & set(shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("name", ["a b.mp4", "👩‍🚀 한국어 עברית.mp4", "back\\slash", "100%"])
def test_ordinary_names_stay(name):
    assert printable(name) == name


def test_progress_bars_move_and_names_do_not():
    inner = io.StringIO()
    stream = TerminalStream(inner)
    with tqdm(total=2, file=stream, ascii=True) as outer, tqdm(total=2, file=stream, ascii=True) as nested:
        nested.set_description("\x1b[2J")
        nested.update()
        outer.update()
    assert "\r" in inner.getvalue() and "\x1b[A" in inner.getvalue() and "\x1b[2J" not in inner.getvalue()
    assert r"\x1b[2J" in inner.getvalue()
    inner = io.StringIO()
    stream = TerminalStream(inner)
    print("a\rb\x1b[A", "c\n\td", file=stream)
    stream.writelines(["\x9b1m", "x\r"])
    assert inner.getvalue() == "a\\rb\\x1b[A c\n\td\n\\x9b1mx\r"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_every_encoding_takes_every_character(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    for _ in range(2):  # twice, as where one command calls another
        open_standard_streams()
    print(*NAMES, "\udce9", flush=True)
    shown = written.getvalue().decode(encoding)
    assert ("🎀" in shown) == (encoding == "utf-8") and ("é" in shown) == (encoding != "ascii")
    assert "\x1b" not in shown and r"\udce9" in shown


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    flags = write_checkpoint(folder, "meanP", max_frames=2)
    (folder / "v").mkdir()
    write_clip(folder / "clip.mp4", 2, 1)
    for name in NAMES:
        shutil.copy(folder / "clip.mp4", folder / "v" / name)
    (folder / "v" / "junk\n\x1b[2J.mp4").write_text("junk")
    model = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    index_script.main([str(folder / "v"), "--index", str(folder / "i"), "--num_workers", "0", *model])
    return folder / "i"


def test_an_index_and_a_search_show_names_safely(index, capsys):
    index_script.main([str(index.parent / "v"), "--index", str(index), "--num_workers", "0", "--retry_bad"])
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(r"unreadable: junk\n\x1b[2J.mp4: ")
    search_script.main(["a red circle", "--index", str(index)])
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.lstrip()[:2] in ("1.", "2.", "3.", "4.", "5.")]) == 5
    assert r"z.mp4  at 0:01\n  1. 0.999  forged.mp4  at " in out and "日本 🎀.mp4" in out
    assert not any(ord(character) < 32 and character != "\n" for character in out) and "\u202e" not in out


def test_json_has_the_real_names(index, capsys):
    search_script.main(["a red circle", "--index", str(index), "--json"])
    assert {hit["path"] for hit in json.loads(capsys.readouterr().out)["hits"]} == set(NAMES)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)  # fmt: skip
def test_a_search_where_the_terminal_is_not_utf8(index, environment):
    run = run_python("-m", "scripts.search", "a", "--index", index, **environment)
    assert run.returncode == 0, run.stderr
    assert r"\U0001f380.mp4" in run.stdout
