"""Walking through a folder: what is a video, what is passed over, and what cannot be looked at."""

import os
import shutil

import av
import numpy as np
import pytest

from dataloaders.video_files import (
    BROKEN_LINK,
    EXCLUDED,
    HIDDEN,
    MAIN_EXTENSIONS,
    NOT_A_VIDEO,
    OTHER_EXTENSIONS,
    SPECIAL,
    VIDEO_EXTENSIONS,
    describe_passed_over,
    is_left_out,
    looks_like_video,
    split_videos,
    walk_folder,
)
from tests.helpers.reader_cases import touch

CONTAINERS = {
    "mp4": ("mp4", "mpeg4"), "mov": ("mov", "mpeg4"), "mkv": ("matroska", "mpeg4"), "webm": ("webm", "libvpx"),
    "avi": ("avi", "mpeg4"), "mpg": ("mpeg", "mpeg1video"), "vob": ("vob", "mpeg2video"),
    "ts": ("mpegts", "mpeg2video"),
    "m2ts": ("mpegts", "mpeg2video"), "flv": ("flv", "flv1"), "wmv": ("asf", "wmv2"), "gif": ("gif", "gif"),
    "ogv": ("ogg", "libvpx"), "y4m": ("yuv4mpegpipe", "wrapped_avframe"), "nut": ("nut", "mpeg4"),
    "ivf": ("ivf", "libvpx"), "mxf": ("mxf", "mpeg2video"), "rm": ("rm", "rv10"), "m1v": ("mpeg1video", "mpeg1video"),
}  # fmt: skip


def write_container(path, file_format, codec):
    options = {"mpegts_m2ts_mode": "1"} if path.suffix == ".m2ts" else {}
    with av.open(str(path), "w", format=file_format, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
        for value in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * value, np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        output.mux(stream.encode())


@pytest.mark.parametrize("extension", CONTAINERS)
def test_containers_are_known_by_their_content(tmp_path, extension):
    write_container(tmp_path / f"clip.{extension}", *CONTAINERS[extension])
    os.rename(tmp_path / f"clip.{extension}", tmp_path / "content.addressed")
    assert looks_like_video(tmp_path / "content.addressed")
    assert f".{extension}" in VIDEO_EXTENSIONS


@pytest.mark.parametrize(
    "content",
    [b"", b"GG", b"notes of 2019", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff\xe0" + bytes(99),
     b"RIFF\0\0\0\0WAVEfmt ",
     b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypheic", b"\0\0\0\x1cftypM4A ", b"ID3\x03", b"fLaC",
     b"PK\x03\x04", bytes(400)],
)  # fmt: skip
def test_pictures_sound_and_text_are_none(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert not looks_like_video(tmp_path / "file")


def test_a_file_that_cannot_be_opened_is_none(tmp_path):
    assert not looks_like_video(tmp_path / "gone")


def test_extensions_are_lower_case_and_in_one_list():
    assert len(set(VIDEO_EXTENSIONS)) == len(VIDEO_EXTENSIONS)
    assert not set(VIDEO_EXTENSIONS) & set(OTHER_EXTENSIONS)
    assert all(name == name.lower() and name.startswith(".") for name in (*VIDEO_EXTENSIONS, *OTHER_EXTENSIONS))
    # those of FFmpeg's demuxers of films; raw pixels without a size, subtitles, sound and pictures are not in the list
    demuxers = (
        "mov",
        "matroska",
        "mpegts",
        "avi",
        "asf",
        "flv",
        "nut",
        "yuv4mpegpipe",
        "gif",
        "m4v",
        "vc1",
        "dv",
        "mxf",
    )
    known = {extension for name in demuxers for extension in av.format.ContainerFormat(name, "r").extensions}
    other = {"m4a", "m4b", "ism", "isma", "psp", "mka", "mks", "avif", "heic", "heif"}
    assert {f".{name}" for name in known - other} <= set(VIDEO_EXTENSIONS)


def test_what_is_not_part_of_a_collection_is_left_out(tmp_path):
    touch(
        tmp_path, "a.mp4", "deep/b.MKV", "deep/er/c.mod", "._a.mp4", ".hidden/x.mp4", ".Trashes/501/a.mp4",
        "@eaDir/a.mp4/S.mp4", "#recycle/a.mp4", "$RECYCLE.BIN/a.mp4", "System Volume Information/a.mp4",
        "deep/.ipynb_checkpoints/b-checkpoint.mp4", "deep/.git/a.mp4", "__MACOSX/a.mp4", "lost+found/a.mp4",
        "notes.txt", "cover.jpg", "cover", "proxies/a.mp4", "deep/x.proxy.mp4", "a.mp4.part",
    )  # fmt: skip
    (tmp_path / "odd.name").write_bytes(b"GIF89a" + bytes(9))
    (tmp_path / "gone.mp4").symlink_to("nothing.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    walk = walk_folder(tmp_path, ["proxies", "deep/*.proxy.*"])
    assert list(split_videos(walk)) == ["a.mp4", "deep/b.MKV", "deep/er/c.mod", "odd.name"]
    hidden = {
        "._a.mp4", ".hidden", ".Trashes", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information",
        "deep/.ipynb_checkpoints", "deep/.git", "__MACOSX", "lost+found",
    }  # fmt: skip
    assert walk.passed_over == (
        dict.fromkeys(hidden, HIDDEN) | {"gone.mp4": BROKEN_LINK, "pipe.mp4": SPECIAL}
        | dict.fromkeys(("notes.txt", "cover.jpg", "cover", "a.mp4.part"), NOT_A_VIDEO)
        | dict.fromkeys(("proxies", "deep/x.proxy.mp4"), EXCLUDED)
    )  # fmt: skip
    assert walk.folders == {"": True, "deep": True, "deep/er": True, "folder.mp4": False}
    assert walk.errors == {}
    line = describe_passed_over(walk.passed_over)
    assert line.startswith(
        "passed over: 11 hidden or of the system (#recycle, $RECYCLE.BIN, .Trashes, ...), 2 excluded"
    )
    assert is_left_out("deep/.git/x/a.mp4") and is_left_out("a/b/c.mp4", ["a/b"]) and not is_left_out("a/b.mp4", ["b"])


def test_a_folder_inside_a_hidden_one_may_be_searched(tmp_path):
    touch(tmp_path, ".cache/videos/a.mp4")
    assert list(walk_folder(tmp_path / ".cache" / "videos").files) == ["a.mp4"]


def test_a_folder_behind_several_links_has_the_same_path_every_time(tmp_path):
    touch(tmp_path, "elsewhere/b.mp4", "videos/z/a.mp4")
    videos = tmp_path / "videos"
    (videos / "a").symlink_to("z", target_is_directory=True)
    for name in ("n", "m"):
        (videos / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (videos / "z" / "cycle").symlink_to(videos, target_is_directory=True)
    walk = walk_folder(videos)
    assert set(walk.files) == {"z/a.mp4", "m/b.mp4"}
    assert walk.aliases == {"a", "n", "z/cycle"}


def test_entries_that_cannot_be_looked_at_end_nothing(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "shut/b.mp4", "stale/c.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    scandir = os.scandir

    def scan(path):
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", path)
        if os.path.basename(path) == "stale":
            raise OSError(116, "Stale file handle")  # without a file name, as some file systems give it
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    walk = walk_folder(tmp_path)
    assert list(walk.files) == ["a.mp4"]
    assert {path: error.strerror for path, error in walk.errors.items()} == {
        "loop.mp4": "Too many levels of symbolic links", "shut": "Permission denied", "stale": "Stale file handle",
    }  # fmt: skip
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        walk_folder(tmp_path)


def test_main_extensions_are_those_of_films():
    assert {".mp4", ".avi", ".webm"} <= set(MAIN_EXTENSIONS) and ".lrv" not in MAIN_EXTENSIONS
