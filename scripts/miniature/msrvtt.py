"""A learnable miniature of MSR-VTT: mp4 files of moving shapes, with annotations in MSR-VTT's form.

    python -m scripts.make_mini_msrvtt --output data/mini_msrvtt

    data/mini_msrvtt/
      videos/video0.mp4 ...  two to four shapes one after the other, and empty seconds
      MSRVTT_data.json       {"info", "videos", "sentences"}: several captions for every video
      MSRVTT_train.csv       video_id
      MSRVTT_test.csv        key,vid_key,video_id,sentence: one caption per held-out video
      segments.json          the content: {video_id: [{start, end, colour, shape, motion}]}, null for empty segments
      settings.json          the settings it was made with; the same command then writes nothing

Every segment lasts whole seconds, so that one frame per second samples all of them. No training video shows all
coloured shapes of a test video, and no test caption fits two test videos: the task needs generalization and each query
has one answer.
"""

import csv
import itertools
import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from scripts.miniature.moving_shapes import COLOURS, ROUND_SHAPES, SHAPES, Segment, draw_frames, write_video

# Increased when the same settings give other data, so that folders of an earlier format are not reused.
FORMAT = 2
# After so many rejected candidates in a row, no further test video is expected to exist.
REJECTIONS_IN_A_ROW = 1000

# words of the captions for each motion that `scripts.miniature.moving_shapes` draws
MOTIONS = {
    "left": ("moves to the left", "slides left", "drifts to the left side"),
    "right": ("moves to the right", "slides right", "drifts to the right side"),
    "up": ("rises", "moves up", "floats upwards"),
    "down": ("falls", "moves down", "sinks downwards"),
    "grows": ("grows", "gets bigger and bigger"),
    "shrinks": ("shrinks", "gets smaller and smaller"),
    "spins": ("spins", "turns around itself"),
    "still": ("stays still", "does not move at all"),
}
OPENINGS = ("", "", "a clip where ", "in this video ", "you can see that ", "a short film in which ", "here ")
JOINTS = (" and then ", ", after that ", ", then ", " followed by a scene where ", ", a moment later ", " before ")
CLOSINGS = ("", "", "", " on the screen", " in the video", " while nothing else happens", " in front of a plain wall")
LIST_OPENINGS = ("", "there is ", "you can see ", "a video of ", "someone shows ", "an animation with ")
LIST_JOINTS = (" and ", ", ", " and also ", " followed by ")
ADJECTIVES = ("", "", "", "big ", "bright ")


@dataclass(frozen=True)
class Video:
    """A video to be drawn: its segments in order, and its captions."""

    video_id: str
    segments: tuple[Segment, ...]
    captions: tuple[str, ...]

    @property
    def content(self) -> frozenset[tuple[str, str]]:
        """Return the (colour, shape) pairs in the video, without their order."""
        return frozenset((segment.colour, segment.shape) for segment in self.segments if segment.colour)


@dataclass(frozen=True)
class Settings:
    """The settings that decide the data set; sizes in pixels, lengths in seconds."""

    train_videos: int = 600
    test_videos: int = 100
    captions_per_video: int = 6
    width: int = 64
    height: int = 64
    seconds_per_segment: int = 1
    max_segments: int = 3
    fps: int = 8
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError that names the first value that is not valid."""
        for name in ("train_videos", "test_videos", "captions_per_video", "seconds_per_segment"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_segments not in (2, 3, 4):
            raise ValueError(f"max_segments must be 2, 3 or 4, not {self.max_segments}")
        for name in ("width", "height"):
            if getattr(self, name) < 16 or getattr(self, name) % 2:
                raise ValueError(f"{name} must be even and at least 16 pixels, not {getattr(self, name)}")
        if self.fps < 1:
            raise ValueError(f"fps must be at least 1, not {self.fps}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")


def describe(segments: list[Segment], choose: random.Random) -> str:
    """Return one caption that names colour and shape of each of these segments, in their order."""
    phrases = [f"a {choose.choice(ADJECTIVES)}{segment.colour} {segment.shape}" for segment in segments]
    if choose.random() < 0.4:
        joint = choose.choice(LIST_JOINTS)
        return choose.choice(LIST_OPENINGS) + joint.join(phrases) + choose.choice(CLOSINGS)
    actions = [
        f"{phrase} {choose.choice(MOTIONS[segment.motion])}" for phrase, segment in zip(phrases, segments, strict=True)
    ]
    caption = choose.choice(OPENINGS) + actions[0]
    for action in actions[1:]:
        caption += choose.choice(JOINTS) + action
    return caption + choose.choice(CLOSINGS)


def draw_captions(segments: tuple[Segment, ...], count: int, choose: random.Random) -> tuple[str, ...]:
    """Return captions of one video: the first names every shape, a third of the others only some."""
    shown = [segment for segment in segments if segment.colour]
    captions = []
    for index in range(count):
        named = shown
        if index > 0 and choose.random() < 1 / 3:
            size = choose.randint(1, len(shown) - 1)
            named = [shown[place] for place in sorted(choose.sample(range(len(shown)), size))]
        captions.append(describe(named, choose))
    return tuple(captions)


def draw_segments(settings: Settings, choose: random.Random) -> tuple[Segment, ...]:
    """Return 2 to `max_segments` shapes of different colours and at least one empty segment.

    There are at most `max_segments` + 1 segments in all.
    """
    shown = []
    for colour in choose.sample(list(COLOURS), choose.randint(2, settings.max_segments)):
        shape = choose.choice(list(SHAPES))
        # a spinning circle or ring looks like one that stays still
        motions = [motion for motion in MOTIONS if not (motion == "spins" and shape in ROUND_SHAPES)]
        shown.append((colour, shape, choose.choice(motions)))
    pieces = list(shown)
    for _ in range(choose.randint(1, settings.max_segments + 1 - len(shown))):
        pieces.insert(choose.randint(0, len(pieces)), (None, None, None))
    segments, start = [], 0
    for colour, shape, motion in pieces:
        end = start + choose.randint(1, settings.seconds_per_segment)
        segments.append(Segment(start, end, colour, shape, motion))
        start = end
    return tuple(segments)


def content_words(video: Video) -> set[str]:
    """Return the words for colours, shapes and motions in the captions of a video."""
    motion_words = " ".join(itertools.chain.from_iterable(MOTIONS.values())).split()
    said = set(re.findall(r"[a-z]+", " ".join(video.captions)))
    return said & {*COLOURS, *SHAPES, *motion_words}


def plan_videos(settings: Settings) -> tuple[list[Video], list[Video]]:
    """Return training videos and test videos.

    A test video is accepted if no training video shows all its coloured shapes, if its set of coloured shapes neither
    contains nor is contained in that of another test video, and if its words for colours, shapes and motions all occur
    in training.

    Raises:
        ValueError: the settings do not allow that many test videos.
    """
    choose = random.Random(settings.seed)

    def draw(index: int) -> Video:
        segments = draw_segments(settings, choose)
        return Video(f"video{index}", segments, draw_captions(segments, settings.captions_per_video, choose))

    train = [draw(index) for index in range(settings.train_videos)]
    words = set().union(*map(content_words, train))
    train_contents = {video.content for video in train}
    test: dict[frozenset, Video] = {}
    rejected = 0
    while len(test) < settings.test_videos and rejected < REJECTIONS_IN_A_ROW:
        video = draw(settings.train_videos + len(test))
        known = content_words(video) <= words
        content = video.content
        seen = any(content <= other for other in train_contents)
        alike = any(content <= other or other <= content for other in test)
        if known and not seen and not alike:
            test[content] = video
            rejected = 0
        else:
            rejected += 1
    if len(test) == settings.test_videos:
        return train, list(test.values())
    raise ValueError(
        f"test_videos {settings.test_videos} is too many for train_videos {settings.train_videos}: only "
        f"{len(test)} differ from each other and from training in the words that training uses"
    )


def write_annotations(output: Path, train: list[Video], test: list[Video]) -> None:
    """Write the json and both csv files in MSR-VTT's form, and the content of each video to segments.json."""
    videos, sentences = [], []
    for index, video in enumerate(train + test):
        videos.append(
            {
                "video_id": video.video_id,
                "category": index % 20,
                "url": "",
                "start time": 0.0,
                "end time": float(video.segments[-1].end),
                "split": "train" if index < len(train) else "test",
                "id": index,
            }
        )
        for caption in video.captions:
            sentences.append({"caption": caption, "video_id": video.video_id, "sen_id": len(sentences)})
    info = {"description": "A miniature of MSR-VTT made of moving shapes", "version": str(FORMAT)}
    write_json(output / "MSRVTT_data.json", {"info": info, "videos": videos, "sentences": sentences})
    write_json(
        output / "segments.json",
        {video.video_id: [asdict(segment) for segment in video.segments] for video in train + test},
    )
    with (output / "MSRVTT_train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("video_id",), *((video.video_id,) for video in train)])
    with (output / "MSRVTT_test.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", "vid_key", "video_id", "sentence"))
        for index, video in enumerate(test):
            number = video.video_id.removeprefix("video")
            writer.writerow((f"ret{index}", f"msr{number}", video.video_id, video.captions[0]))


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class MiniMsrvtt:
    """The paths of a miniature."""

    videos: Path
    data: Path
    train_csv: Path
    test_csv: Path
    segments: Path


def write_mini_msrvtt(output: Path | str, *, progress: bool = False, **settings: int) -> MiniMsrvtt:
    """Write the miniature to `output` (see `Settings` for the keywords) and return its paths.

    A folder that was completed with the same settings is left unchanged; an interrupted one is written again.

    Raises:
        ValueError: a setting is not valid.
        FileExistsError: the folder has other content.
    """
    chosen = Settings(**settings)
    chosen.check()
    output = Path(output)
    paths = MiniMsrvtt(
        videos=output / "videos",
        data=output / "MSRVTT_data.json",
        train_csv=output / "MSRVTT_train.csv",
        test_csv=output / "MSRVTT_test.csv",
        segments=output / "segments.json",
    )
    record = {"format": FORMAT, **asdict(chosen)}
    train, test = plan_videos(chosen)
    claim_folder(output, record)
    files = {video.video_id: paths.videos / f"{video.video_id}.mp4" for video in train + test}
    # annotations are written last: if they exist, the videos are complete
    annotations = (paths.data, paths.train_csv, paths.test_csv, paths.segments)
    if all(path.is_file() for path in itertools.chain(annotations, files.values())):
        return paths
    paths.videos.mkdir(exist_ok=True)
    size = (chosen.width, chosen.height)
    for video in tqdm(train + test, desc=f"videos to {paths.videos}", unit="video", disable=not progress):
        seed = (chosen.seed, int(video.video_id.removeprefix("video")))
        frames = draw_frames(video.segments, size, chosen.fps, seed)
        write_video(files[video.video_id], frames, size, chosen.fps)
    write_annotations(output, train, test)
    return paths


def claim_folder(output: Path, record: dict) -> None:
    """Write the settings to an empty folder, or check that an existing one was made with the same settings."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, not a folder")
    settings_file = output / "settings.json"
    if settings_file.is_file():
        found = json.loads(settings_file.read_text(encoding="utf-8"))
        if found != record:
            raise FileExistsError(
                f"{output} was made with other settings: {found}, not {record}; choose another folder"
            )
    elif output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty and was not made by this script; choose another folder")
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_json(settings_file, record)
