"""Looking up video files, and the errors of a split that cannot be read."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from dataloaders.annotations import Annotations, Caption, MissingVideosError, find_videos, locate_captions, require_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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
    assert annotations.count_line() == "2 videos, 3 captions, 0 missing files"


def test_an_empty_split_names_file_and_flag(tmp_path):
    with pytest.raises(ValueError, match=r"empty: test\.csv \(--val_csv\)"):
        locate_captions([], tmp_path, source="test.csv", flag="--val_csv")
