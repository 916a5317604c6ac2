"""LSMDC: six fields between tabs, and clip ids full of dots."""

from functools import partial

import pytest

from dataloaders.annotations import Caption, MissingVideosError
from dataloaders.dataloader_lsmdc_retrieval import FILE_NAMES, read_split
from tests.helpers.reader_cases import calls_of, data_set

UGLY_TRUTH = "3086_UGLY_TRUTH_00.23.23.000-00.23.28.886"
PIANIST = "0017_Pianist_00.23.28.872-00.23.34.843"


def row(clip: str, sentence: str) -> str:
    times = clip.rpartition("_")[2].split("-")
    return "\t".join([clip, *times, *times, sentence]) + "\n"


@pytest.fixture
def args(tmp_path):
    rows = row(UGLY_TRUTH, 'SOMEONE says "no", then\u2028leaves.') + row(PIANIST, " He plays. ")
    return data_set(
        tmp_path, dict.fromkeys(FILE_NAMES.values(), rows), [f"3086_UGLY_TRUTH/{UGLY_TRUTH}.avi", f"{PIANIST}.mp4"]
    )


@pytest.mark.parametrize("subset", FILE_NAMES)
def test_clips_by_id_and_sentences_as_they_stand(args, tmp_path, subset):
    annotations = read_split(args, subset)
    assert annotations.captions == [
        Caption(UGLY_TRUTH, 'SOMEONE says "no", then\u2028leaves.'),
        Caption(PIANIST, "He plays."),
    ]
    assert annotations.video_paths[UGLY_TRUTH] == tmp_path / "videos" / "3086_UGLY_TRUTH" / f"{UGLY_TRUTH}.avi"


def test_two_clips_that_differ_behind_the_last_dot_are_two(args, tmp_path):
    other = UGLY_TRUTH.replace("28.886", "28.887")
    (tmp_path / FILE_NAMES["test"]).write_text(row(UGLY_TRUTH, "a") + row(other, "b"))
    with pytest.raises(MissingVideosError, match=f"1 of 2 .*{other}"):
        read_split(args, "test")


@pytest.mark.parametrize("subset", FILE_NAMES)
def test_a_clip_that_a_copy_lacks_is_an_error_in_every_split(args, tmp_path, subset):
    (tmp_path / "videos" / f"{PIANIST}.mp4").unlink()
    with pytest.raises(MissingVideosError, match=PIANIST):
        read_split(args, subset)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (row(UGLY_TRUTH, "a") + f"\n{PIANIST}\ttoo few\n", ["line 3", "2 fields", "sentence"]),
        (row(UGLY_TRUTH, "a\tb"), ["line 1", "7 fields"]),
        (row(UGLY_TRUTH, " "), ["without text", UGLY_TRUTH]),
        (row("../" + UGLY_TRUTH, "a"), ["no file inside", f"../{UGLY_TRUTH}"]),
        (row(UGLY_TRUTH, "a").encode() + "é".encode("latin-1"), ["line 2", "UTF-8"]),
        ("", ["empty"]),
    ],
)
def test_bad_rows_name_file_and_line_or_clip(args, tmp_path, content, words):
    path = tmp_path / FILE_NAMES["test"]
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError) as error:
        read_split(args, "test")
    assert all(word in str(error.value) for word in words)
    assert str(path) in str(error.value) or "../" in str(error.value)


def test_counts_of_the_real_file(real_annotations, tmp_path):
    rows = (real_annotations / "lsmdc" / FILE_NAMES["test"]).read_text().split("\n")
    args = data_set(tmp_path, {}, [f"{line.split()[0]}.avi" for line in rows if line])
    args.data_path = str(real_annotations / "lsmdc")
    annotations = read_split(args, "test")
    assert (len(annotations.video_paths), len(annotations.captions)) == (1000, 1000)
    assert annotations.captions[0] == Caption(UGLY_TRUTH, "SOMEONE stands below, hands on her hips.")


def test_the_work_of_a_training_split_grows_with_its_clips(tmp_path):
    """The published one has 101,079 clips, about a hundred in the folder of each film."""
    calls = []
    for count in (1000, 4000):
        folder = tmp_path / str(count)
        clips = [f"{number // 100:04}_FILM_00.{number % 100:02}.01.000-00.00.02.000" for number in range(count)]
        content = {FILE_NAMES["train"]: "".join(row(clip, "SOMEONE walks.") for clip in clips)}
        folder.mkdir()
        args = data_set(folder, content, [f"{clip[:9]}/{clip}.avi" for clip in clips])
        calls.append(calls_of(partial(read_split, args, "train")))
        assert len(read_split(args, "train").captions) == count
    assert calls[1] < 4.1 * calls[0]
