"""Looking up video files, and the errors of a split that cannot be read."""

from dataclasses import FrozenInstanceError

import pytest

from dataloaders.annotations import Annotations, Caption, MissingVideosError, find_videos, locate_captions, require_path
from tests.helpers.reader_cases import touch


def test_a_caption_is_frozen_and_spans_the_whole_video_by_default():
    caption = Caption("video7", "a man sings")
    assert (caption.start, caption.end) == (None, None)
    with pytest.raises(FrozenInstanceError):
        caption.text = "a woman sings"


def test_videos_are_found_by_stem_at_any_depth_in_any_case_and_container(tmp_path):
    touch(tmp_path, "video1.mp4", "deep/er/video2.WebM", "deep/a.b.avi", "deep/video3.mp4.txt", "video3.MKV", "4.jpg")
    found = find_videos(["video3", "video1", "a.b", "video2"], tmp_path)
    assert list(found) == ["video3", "video1", "a.b", "video2"]
    assert found["video2"] == tmp_path / "deep/er/video2.WebM"
    assert found["video3"] == tmp_path / "video3.MKV"
    with pytest.raises(MissingVideosError):
        find_videos(["4"], tmp_path)


def test_videos_are_found_by_name_whatever_the_extension(tmp_path):
    touch(tmp_path, "x/clip.mov", "x/clip.odd")
    assert find_videos(["clip.odd"], tmp_path, by_name=True) == {"clip.odd": tmp_path / "x/clip.odd"}


def test_missing_videos_are_counted_and_the_first_five_named(tmp_path):
    touch(tmp_path, "video3.mp4")
    with pytest.raises(MissingVideosError) as error:
        find_videos([f"video{number}" for number in range(8)], str(tmp_path))
    assert "7 of 8 videos" in str(error.value)
    assert "video0, video1, video2, video4, video5, ..." in str(error.value)
    assert "video6" not in str(error.value)
    assert str(tmp_path) in str(error.value) and "--features_path" in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    assert list(error.value.missing) == [f"video{number}" for number in (0, 1, 2, 4, 5, 6, 7)]
    assert error.value.found == {"video3": tmp_path / "video3.mp4"}


def test_two_files_of_one_wanted_video_are_an_error_and_of_others_are_not(tmp_path):
    touch(tmp_path, "raw/video1.avi", "compressed/video1.mp4", "video2.mp4")
    assert find_videos(["video2"], tmp_path) == {"video2": tmp_path / "video2.mp4"}
    with pytest.raises(ValueError, match=r"1 of 2 videos .*compressed/video1\.mp4 and .*raw/video1\.avi"):
        find_videos(["video1", "video2"], tmp_path)


def test_links_are_followed_and_cycles_and_second_ways_to_a_folder_end(tmp_path):
    touch(tmp_path, "elsewhere/video1.mp4", "videos/video2.mp4")
    videos = tmp_path / "videos"
    (videos / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (videos / "linked_again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (videos / "cycle").symlink_to(videos, target_is_directory=True)
    (videos / "video3.mp4").symlink_to(tmp_path / "gone.mp4")
    assert set(find_videos(["video1", "video2"], videos)) == {"video1", "video2"}
    with pytest.raises(MissingVideosError, match="1 of 1"):
        find_videos(["video3"], videos)


@pytest.mark.parametrize("folder", ["absent", "file.txt", "", None])
def test_a_folder_that_is_none_names_its_path_and_flag(tmp_path, folder):
    touch(tmp_path, "file.txt")
    path = tmp_path / folder if folder else folder
    with pytest.raises(FileNotFoundError, match="--features_path") as error:
        find_videos(["video1"], path)
    assert not folder or str(path) in str(error.value)


def test_a_missing_file_names_its_path_and_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.csv \(--train_csv\)"):
        require_path(tmp_path / "absent.csv", "--train_csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        require_path(tmp_path, "--train_csv")
    touch(tmp_path, "here.csv")
    assert require_path(str(tmp_path / "here.csv"), "--train_csv") == tmp_path / "here.csv"


def test_captions_keep_their_order_and_each_video_is_counted_once(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4")
    captions = [Caption("b", "one"), Caption("a", "two"), Caption("b", "three")]
    annotations = locate_captions(captions, tmp_path, source="test.csv", flag="--val_csv")
    assert annotations == Annotations(captions, {"b": tmp_path / "b.mp4", "a": tmp_path / "a.mp4"})
    assert annotations.count_line() == "2 videos, 3 captions"


def test_an_empty_split_names_file_and_flag(tmp_path):
    with pytest.raises(ValueError, match=r"empty: test\.csv \(--val_csv\)"):
        locate_captions([], tmp_path, source="test.csv", flag="--val_csv")


@pytest.mark.parametrize("video_id", ["", "..", "../video1", "a/../../video1", "/video1", "..\\video1"])
@pytest.mark.parametrize("by_name", [True, False])
def test_an_id_that_leaves_the_folder_is_an_error_even_if_the_file_exists(tmp_path, video_id, by_name):
    touch(tmp_path, "video1", "video1.mp4", "videos/video2.mp4")
    with pytest.raises(ValueError, match="names no file inside") as error:
        find_videos(["video2", video_id], tmp_path / "videos", by_name=by_name)
    assert repr(video_id) in str(error.value)


def test_by_name_falls_back_to_the_stem_and_paths_are_taken_as_they_stand(tmp_path):
    touch(tmp_path, "x/clip.mp4", "y/clip.mp4", "z/holiday.part1.mkv", "z/holiday.avi", "..dots.mp4")
    found = find_videos(["x/clip.mp4", "holiday.part1", "holiday.MOV", "holiday.", "..dots"], tmp_path, by_name=True)
    assert [str(path.relative_to(tmp_path)) for path in found.values()] == [
        "x/clip.mp4", "z/holiday.part1.mkv", "z/holiday.avi", "z/holiday.avi", "..dots.mp4",
    ]  # fmt: skip
    for video_id in ("holiday.part2", "x/clip", "x"):
        with pytest.raises(MissingVideosError):
            find_videos([video_id], tmp_path, by_name=True)
    for video_id in ("clip", "clip.mp4", "clip.mov"):
        with pytest.raises(ValueError, match="more than one file"):
            find_videos([video_id], tmp_path, by_name=True)


def test_a_prefix_may_stand_before_the_name(tmp_path):
    touch(tmp_path, "v_a.mp4", "b.mp4")
    assert [path.name for path in find_videos(["a", "b"], tmp_path, prefix="v_").values()] == ["v_a.mp4", "b.mp4"]
    with pytest.raises(MissingVideosError):
        find_videos(["a"], tmp_path)


@pytest.mark.parametrize("text", ["", " \n", "\u3000"])
def test_a_caption_without_text_is_an_error(tmp_path, text):
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(ValueError, match=r"test\.csv \(--val_csv\): captions without text, of 1 videos: b"):
        locate_captions([Caption("a", "one"), Caption("b", text)], tmp_path, source="test.csv", flag="--val_csv")


@pytest.mark.parametrize(
    ("start", "end", "good"),
    [(0, 0, True), (2.5, 3, True), (None, 3, True), (2, None, True), (3, 2.5, False), (-1, 2, False), (None, -1, False),
     (float("nan"), 2, False), (1, float("nan"), False), (float("inf"), None, False)],
)  # fmt: skip
def test_a_time_span_goes_forward_from_zero(tmp_path, start, end, good):
    touch(tmp_path, "a.mp4")
    captions = [Caption("a", "one", start, end)]
    if good:
        assert locate_captions(captions, tmp_path, source="test.csv", flag="--val_csv").captions == captions
    else:
        with pytest.raises(ValueError, match=rf"test\.csv \(--val_csv\), video a: .* not {start} to {end} seconds"):
            locate_captions(captions, tmp_path, source="test.csv", flag="--val_csv")


def test_notes_are_part_of_the_count_line(tmp_path):
    touch(tmp_path, "a.mp4")
    captions = [Caption("a.mp4", "one"), Caption("a", "two")]
    annotations = locate_captions(captions, tmp_path, source="x", flag="y", by_name=True, notes=("3 left out",))
    assert annotations.count_line() == ("2 videos, 2 captions, 3 left out, 1 share the file of another video")


def test_a_caption_that_no_file_can_hold_is_an_error_that_can_be_printed(tmp_path):
    touch(tmp_path, "video1.mp4")
    captions = [Caption("video1", "half a pair: \ud83d")]
    with pytest.raises(ValueError, match="surrogate.*'video1'") as error:
        locate_captions(captions, tmp_path, source="captions.json", flag="--data_path")
    str(error.value).encode()
