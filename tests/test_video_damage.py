"""Damaged videos: frames behind the damage are read, and losses are counted; a clip's grey level is its second."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dataloaders.frame_cache import FrameCache
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.video_damage import record_damage
from dataloaders.video_decoding import VideoReader
from tests.helpers.damaged_videos import FPS, SECONDS, STEP, damage, picture, write_seconds


def read_seconds(path: Path) -> list[int]:
    """The seconds that the grey levels of the sampled frames stand for."""
    frames = RawVideoExtractor(1, 32).read_frames(path, 100)
    return [round(int(frame[0, 24, 16]) / STEP) for frame in frames]


FORMS = {
    "h264.mp4": ({"codec": "libx264"}, 5),
    "mpeg4.avi": ({"codec": "mpeg4"}, 0),
    "hevc.mkv": ({"codec": "libx265", "x265-params": "log-level=none:bframes=0"}, 6),
}


@pytest.mark.parametrize("name", FORMS)
def test_reading_goes_on_behind_a_damaged_frame_and_counts_it(tmp_path, name):
    form, kept = FORMS[name]
    path = write_seconds(tmp_path / name, **form)
    with record_damage() as notes:
        assert read_seconds(path) == list(range(SECONDS))
    assert notes == []
    damage(path, frame=9 * FPS, kept=kept)
    with record_damage() as notes:
        seconds = read_seconds(path)
    assert seconds[:9] == list(range(9)) and seconds[-9:] == list(range(11, SECONDS))
    (note,) = notes
    assert "could not be decoded" in note or "decoded with errors" in note


@pytest.mark.parametrize("name", FORMS)
def test_all_frames_have_their_times_also_those_at_the_end(tmp_path, name):
    with VideoReader(write_seconds(tmp_path / name, **FORMS[name][0])) as video:
        times = [frame.time for frame in video.read_in_order()]
    assert times == pytest.approx([number / FPS for number in range(FPS * SECONDS)], abs=0.2)


def test_the_note_counts_frames_by_hand(tmp_path):
    """Without references between frames, each damaged packet is one frame."""
    path = write_seconds(tmp_path / "intra.mp4", "libx264", **{"x264-params": "keyint=1"})
    for frame in (15, 90, 91):
        damage(path, frame)
    with VideoReader(path) as video:
        assert sum(1 for _ in video.read_in_order()) == FPS * SECONDS - 3
        assert video.damage() == ["3 frames could not be decoded"]


def test_a_video_that_is_shorter_than_its_header_says_is_noted(tmp_path):
    content = write_seconds(tmp_path / "whole.mkv", "libx264").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: len(content) // 2])
    with record_damage() as notes:
        seconds = read_seconds(path)
    assert 7 < len(seconds) < 14
    (note,) = notes
    assert f"not {SECONDS}.0 as its header says" in note


def test_a_span_before_the_end_is_whole_where_the_video_is_cut(tmp_path):
    content = write_seconds(tmp_path / "whole.mkv", "libx264").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: len(content) // 2])
    with record_damage() as notes:
        assert len(RawVideoExtractor(1, 32).read_frames(path, 100, start_time=1, end_time=3)) == 3
    assert notes == []


def test_nested_records_receive_the_note_and_closed_ones_do_not(tmp_path):
    path = damage(write_seconds(tmp_path / "a.avi", "mpeg4"), 90, kept=0)
    with record_damage() as outer:
        with record_damage() as inner:
            read_seconds(path)
        assert len(inner) == len(outer) == 1
        read_seconds(path)
    assert len(inner) == len(outer) == 1  # the same note once
    read_seconds(path)
    assert len(outer) == 1


def test_the_frame_cache_does_not_hide_a_damage(tmp_path):
    path = damage(write_seconds(tmp_path / "a.avi", "mpeg4"), 90, kept=0)
    cache = FrameCache(tmp_path / "cache", RawVideoExtractor(1, 32))
    for _ in range(2):
        with record_damage() as notes:
            cache.read_frames(path, 12)
        assert len(notes) == 1
    assert (cache.hits, cache.misses) == (0, 2)


# Which stream is the film


def add_cover(container, disposition: int = 0):
    """A stream for one picture, larger than the film."""
    stream = container.add_stream("mjpeg", rate=1)
    stream.width = stream.height = 96
    stream.pix_fmt, stream.disposition = "yuvj420p", disposition
    return stream


def write_cover(container, stream) -> None:
    frame = av.VideoFrame.from_ndarray(picture(3, 96, 96), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1)
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def test_a_picture_before_the_film_is_not_the_film(tmp_path):
    film = write_seconds(tmp_path / "film.mp4", "libx264")
    path = tmp_path / "thumbnail.mkv"
    with av.open(str(film)) as source, av.open(str(path), "w") as container:
        cover = add_cover(container)
        stream = container.add_stream_from_template(source.streams.video[0])
        write_cover(container, cover)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams.video] == ["mjpeg", "h264"]
    assert read_seconds(path) == list(range(SECONDS))


def test_a_song_with_a_cover_has_no_film(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = add_cover(container, av.stream.Disposition.attached_pic)
        write_cover(container, cover)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(VideoReadError, match="an attached picture"):
        read_seconds(path)


def test_a_sound_that_begins_behind_the_header_is_no_error(tmp_path):
    path = tmp_path / "lecture.flv"
    noise = np.random.default_rng(0).integers(0, 255, (5, 240, 320, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        film = container.add_stream("flv1", rate=25)
        film.width, film.height, film.pix_fmt = 320, 240, "yuv420p"
        film.bit_rate = 8_000_000
        sound = container.add_stream("libmp3lame", rate=44100)
        samples = 12 * 44100
        for number in range(400):
            frame = av.VideoFrame.from_ndarray(noise[number % 5], format="rgb24")
            frame.pts = number
            container.mux(film.encode(frame))
            while number >= 300 and samples / 44100 < number / 25:
                silence = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
                silence.sample_rate, silence.pts = 44100, samples
                samples += 1152
                container.mux(sound.encode(silence))
        for stream in (film, sound):
            container.mux(stream.encode())
    with record_damage() as notes:
        assert len(RawVideoExtractor(1, 32).read_frames(path, 100)) == 16
    assert notes == []


# What is opened


def scripts_that_name(film: str) -> dict[str, str]:
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    return {
        "concat.mp4": f"ffconcat version 1.0\nfile {film}\n",
        "hls.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{film}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "sdp.mp4": sdp,
        "text.txt": "a film\n" * 100,
    }


@pytest.mark.parametrize("name", scripts_that_name(""))
def test_a_script_under_the_name_of_a_video_opens_no_other_file(tmp_path, name):
    film = write_seconds(tmp_path / "film.ts", "libx264")
    path = tmp_path / name
    path.write_text(scripts_that_name(film.name)[name])
    with pytest.raises(VideoReadError) as caught:
        read_seconds(path)
    assert caught.value.path == path and caught.value.reason


def test_a_name_with_a_pattern_is_no_image_sequence(tmp_path):
    for number in range(3):
        (tmp_path / f"frame{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    pattern = tmp_path / "frame%d.png"
    pattern.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(VideoReadError, match="its format is not opened"):
        read_seconds(pattern)


def test_the_limit_of_pixels_is_named_and_is_no_damage(tmp_path):
    path = tmp_path / "huge.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8184, 4800, "yuv420p"
        frame = av.VideoFrame(8184, 4800, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoReadError, match="8184x4800 pixels; at most 37748736 are decoded"):
        read_seconds(path)
