"""RawVideoExtractor.read_frames_with_times: the seconds of frames whose numbers can be read off them."""

from fractions import Fraction

import numpy as np
import pytest

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from tests.helpers.numbered_videos import BITS, steady, write_numbered

NTSC = Fraction(30000, 1001)
SIDE = 120


@pytest.fixture(scope="module", params=["mpeg4", "libx264"])  # one is read in order, one by its packets
def clip(request, tmp_path_factory):
    """100 frames at 29.97 per second; whole seconds of 29 frames start at 0, 29, 58, 87."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_numbered(path, steady(100, NTSC), rate=NTSC, width=SIDE, height=SIDE, codec=request.param)


def numbers(frames: np.ndarray) -> list[int]:
    """What the bars of `numbered_picture` say, frame by frame."""
    centres = [int((bit + 0.5) * SIDE / BITS) for bit in range(BITS)]
    rows = frames[:, :, SIDE // 2, centres].mean(axis=1) > 128
    return [sum(1 << bit for bit in range(BITS) if row[bit]) for row in rows]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"max_frames": 12}, [0, 29, 58, 87]),
        ({"max_frames": 3}, [0, 29, 87]),
        ({"max_frames": 2, "slice_framepos": 0}, [0, 29]),
        ({"max_frames": 2, "slice_framepos": 1}, [58, 87]),
        ({"max_frames": 12, "start_time": 1.5, "end_time": 2}, [29, 58]),
    ],
)
def test_seconds_are_numbers_by_the_true_rate(clip, flags, expected):
    frames, seconds = RawVideoExtractor(1, SIDE).read_frames_with_times(clip, **flags)
    assert numbers(frames) == expected
    assert (frames.dtype, seconds.dtype, seconds.shape) == (np.uint8, np.float64, (len(expected),))
    np.testing.assert_allclose(seconds, [number * 1001 / 30000 for number in expected], rtol=1e-9)
    np.testing.assert_array_equal(frames, RawVideoExtractor(1, SIDE).read_frames(clip, **flags))


def test_two_frames_a_second(clip):
    _, seconds = RawVideoExtractor(2, SIDE).read_frames_with_times(clip, 4, slice_framepos=0)
    np.testing.assert_allclose(seconds, [0, 14 * 1001 / 30000, 29 * 1001 / 30000, 43 * 1001 / 30000], rtol=1e-9)


def test_errors_are_those_of_read_frames(clip, tmp_path):
    extractor = RawVideoExtractor(1, SIDE)
    with pytest.raises(ValueError, match="slice_framepos must be one of 0, 1, 2; got 3"):
        extractor.read_frames_with_times(clip, 12, 3)
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"):
        extractor.read_frames_with_times(clip, 0)
    with pytest.raises(VideoReadError, match="no frame at or after second 60"):
        extractor.read_frames_with_times(clip, 12, start_time=60)
    with pytest.raises(VideoReadError, match="nowhere.mp4"):
        extractor.read_frames_with_times(tmp_path / "nowhere.mp4", 12)
