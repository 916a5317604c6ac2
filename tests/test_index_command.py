"""python -m scripts.index, as a user starts it."""

import csv
import re
import shutil

import pytest

from scripts import index as index_script
from tests.helpers.damaged_videos import damage, write_seconds
from tests.helpers.launch import run_python
from tests.helpers.search_cases import (
    write_checkpoint,
)
from video_search.encoder import Encoder
from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter


def test_real_videos(tmp_path, real_clips, capsys):
    flags = write_checkpoint(tmp_path, "wti", max_frames=3)
    index, folder = tmp_path / "index", tmp_path / "videos"
    shutil.copytree(real_clips / "broken", folder / "broken")
    for name in ("048_terminal_portrait_rotated.mov", "049_quicktime_logo.3gp", "068_mini_cooper_road.mp4"):
        shutil.copy2(real_clips / "videos" / name, folder)
    model = [text for name, value in flags.items() for text in (f"--{name}", value)]
    run = run_python("-m", "scripts.index", folder, "--index", index, *model, "--num_workers", "2")
    assert run.returncode == 0, run.stderr
    store = IndexReader.open(index)
    assert {file.name for file in folder.glob("*.*")} <= set(store.paths)
    with (index / "bad_videos.csv").open(newline="", encoding="utf-8") as file:
        bad = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert bad == {path: state.reason for path, state in store.files().items() if state.reason}
    assert {"broken/047_WrongFile.mp4", "broken/319_empty.flv"} <= set(bad)
    shown = run.stdout.splitlines()
    assert sum(line.startswith("unreadable: ") for line in shown) == min(len(bad), 20)
    assert shown[-1].startswith(
        f"{len(store)} videos: {len(store)} new, 0 changed, 0 removed, 0 unchanged; {len(bad)} unreadable files; "
        f"{len(store.vectors.frames)} frames encoded"
    )

    index_script.main([str(folder), "--index", str(index), "--num_workers", "0"])  # with the flags of the index
    assert f"0 new, 0 changed, 0 removed, {len(store)} unchanged" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="index: .*max_frames 3 of the index, 2 here"):
        index_script.main([str(folder), "--index", str(index), "--max_frames", "2"])


def test_damaged_videos_are_indexed_and_listed_until_they_are_replaced(tmp_path, capsys):
    flags = write_checkpoint(tmp_path, "wti", max_frames=12)
    index, folder = tmp_path / "index", tmp_path / "videos"
    folder.mkdir()
    whole = write_seconds(folder / "whole.avi", "mpeg4")
    damaged = folder / "damaged.avi"
    shutil.copy(whole, damaged)
    damage(damaged, frame=9 * 10, kept=0)
    model = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    for added in (2, 0):  # the second run reads no video
        index_script.main([str(folder), "--index", str(index), *model, "--num_workers", "0"])
        out = capsys.readouterr().out
        assert re.search(r"^damaged: damaged.avi: 1 frame (could not be decoded|decoded with errors)$", out, re.M)
        assert f"2 videos: {added} new" in out and "1 damaged videos are indexed without what is lost" in out
        with (index / "damaged_videos.csv").open(newline="", encoding="utf-8") as file:
            assert [row["path"] for row in csv.DictReader(file)] == ["damaged.avi"]
    encoder = Encoder.load(**flags)
    assert re.search("is damaged: 1 frame", encoder.video_query(damaged).notice)
    assert encoder.video_query(whole).notice == ""
    shutil.copy(whole, damaged)
    index_script.main([str(folder), "--index", str(index), *model, "--num_workers", "0"])
    assert "damaged" not in capsys.readouterr().out
    assert not (index / "damaged_videos.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "index: nothing is not a folder"),
        ([".", "--num_workers", "-1"], "index: --num_workers -1"),
        ([".", "--store", "qdrant"], "index: --store qdrant needs --url"),
        ([".", "--init_model", "nothing.bin"], "index: --init_model: no file at .*/nothing.bin"),
        ([".", "--max_frames", "0"], "index: --max_frames 0 must be at least 1"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    flags = write_checkpoint(tmp_path, "meanP")
    if "--init_model" not in arguments:
        arguments = ["--pretrained_clip_name", flags["pretrained_clip_name"], *arguments]
    with pytest.raises(SystemExit, match=message) as error:
        index_script.main([*arguments, "--index", str(tmp_path / "index")])
    assert "\n" not in str(error.value)


def test_an_interruption_names_the_way_to_continue(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_script.Encoder, "load", interrupt)
    with pytest.raises(SystemExit, match="interrupted; the same command continues"):
        index_script.main([str(tmp_path), "--index", str(tmp_path / "index")])
    IndexWriter.open(tmp_path / "index").close()  # nobody holds it
