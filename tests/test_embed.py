"""python -m scripts.embed: the arrays that it writes, and the errors of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import embed
from scripts.miniature.msrvtt import write_mini_msrvtt
from tests.helpers.launch import run_python
from tests.helpers.search_cases import write_checkpoint
from video_search.encoder import Encoder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    return write_mini_msrvtt(folder, train_videos=3, test_videos=1, captions_per_video=1).videos


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "wti")


def as_arguments(flags: dict) -> list[str]:
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def test_videos_in_files_and_folders(videos, flags, tmp_path):
    (tmp_path / "letter.mp4").write_text("Dear Sir")
    files = sorted(videos.glob("*.mp4"))
    places = [files[2], tmp_path / "letter.mp4", videos]
    rows = [files[2], files[0], files[1], files[3]]
    output = tmp_path / "videos.npz"
    run = run_python("-m", "scripts.embed", "--videos", *places, "--output", output, "--num_workers", "2",
                     *as_arguments(flags))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "letter.mp4" in run.stderr
    encoder = Encoder.load(**flags)
    with np.load(output) as arrays:
        assert arrays["names"].tolist() == [str(file) for file in rows]
        assert set(arrays) == {"names", "pooled", "counts", "vectors", "weights", "floors", "seconds", "settings"}
        assert json.loads(str(arrays["settings"])) == encoder.settings
        ends = np.cumsum(arrays["counts"])
        expected = dict(encoder.videos(files, processes=0))
        for row, file in enumerate(rows):
            part = slice(ends[row] - arrays["counts"][row], ends[row])
            video = expected[file]
            for name, array in (("vectors", video.frames), ("weights", video.weights), ("seconds", video.seconds)):
                np.testing.assert_allclose(arrays[name][part], array, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(arrays["pooled"][row], video.pooled[0], rtol=1e-4, atol=1e-6)
            assert arrays["floors"][row] == video.floors[0]


def test_texts_line_by_line(flags, tmp_path, capsys):
    texts = ["a red circle", "zwei grüne Dreiecke 🎈", "a red circle"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    output = tmp_path / "texts.npz"
    embed.main(["--texts", str(tmp_path / "texts.txt"), "--output", str(output), *as_arguments(flags)])
    assert capsys.readouterr().out.startswith(f"{output}: 3 rows, ")
    encoder = Encoder.load(**flags)
    with np.load(output) as arrays:
        assert set(arrays) == {"names", "pooled", "counts", "vectors", "weights", "floors", "tokens", "settings"}
        assert arrays["names"].tolist() == texts
        ends = np.cumsum(arrays["counts"])
        for row, text in enumerate(texts):
            query, part = encoder.text(text), slice(ends[row] - arrays["counts"][row], ends[row])
            np.testing.assert_allclose(arrays["vectors"][part], query.vectors, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(arrays["weights"][part], query.weights, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(arrays["pooled"][row], query.pooled, rtol=1e-4, atol=1e-6)
            assert arrays["tokens"][part].tolist() == list(query.names)


def test_a_file_that_cannot_be_written_stays_as_it_was(flags, tmp_path, monkeypatch):
    texts, output = tmp_path / "texts.txt", tmp_path / "out.npz"
    texts.write_text("a circle\n")
    output.write_text("of last week")

    def fail(file, **_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(SystemExit, match="embed: .*out.npz cannot be written.*No space left"):
        embed.main(["--texts", str(texts), "--output", str(output), *as_arguments(flags)])
    assert output.read_text() == "of last week"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.npz", "texts.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "letter.mp4"], "none of 1 videos could be read"),
        (["--videos", "nothing.mp4"], "no such file: nothing.mp4 .--videos."),
        (["--videos", "empty"], "no video below"),
        (["--texts", "nothing.txt"], "no such file: nothing.txt .--texts."),
        (["--texts", "gap.txt"], "gap.txt: line 2 is empty"),
        (["--texts", "empty.txt"], "empty.txt is empty"),
        (["--texts", "letter.mp4", "--output", "x.csv"], "must end in .npz"),
        (["--texts", "letter.mp4", "--output", "no/folder/x.npz"], "the folder no/folder does not exist"),
        (["--texts", "letter.mp4", "--num_workers", "-1"], "--num_workers -1"),
    ],
)
def test_bad_input_is_one_line(flags, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.mp4").write_text("Dear Sir")
    (tmp_path / "gap.txt").write_text("one\n\nthree\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=message) as error:
        embed.main(["--num_workers", "0", "--output", "out.npz", *as_arguments(flags), *arguments])
    assert str(error.value).startswith("embed: ")
    assert "\n" not in str(error.value)
    assert not Path("out.npz").exists()
