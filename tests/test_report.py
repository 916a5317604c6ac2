"""The report: its numbers by hand, the frames it shows, and a page that loads nothing and believes no text."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_task_retrieval
from dataloaders.annotations import Annotations, Caption
from dataloaders.retrieval_dataset import RetrievalDataset
from dataloaders.unreadable import UnreadableVideos
from engine.arguments import get_args
from engine.evaluation import Evaluation
from engine.record import RunRecord
from engine.run_files import Ranking, read_metrics
from modules.checkpoint import model_path
from scripts.report.__main__ import main
from scripts.report.data import Frames, Run, bins, histogram, read_runs, worst_queries
from scripts.report.plots import COLOURS, colour, curves_plot, histogram_plot
from tests.helpers.numbered_videos import BITS, steady, write_numbered
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_resume import command

TOP = ",".join(f"top{place},score{place}" for place in range(1, 6))
VOID = {"meta", "img", "br", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, text, and whether every element is closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(*arguments) -> Page:
    main([str(argument) for argument in arguments])
    runs = [Path(argument) for argument in arguments]
    output = runs[runs.index(Path("--output")) + 1] if Path("--output") in runs else runs[0] / "report.html"
    return Page(output)


def write_run(folder: Path, similarity, captions: list[Caption], paths: dict) -> Path:
    """What an evaluation with the similarity (texts, videos) leaves in the folder."""
    folder.mkdir(parents=True)
    dataset = RetrievalDataset(Annotations(captions, paths), tokenizer=None, extractor=None, max_words=4, max_frames=4)
    names, similarity = dataset.item_names(), np.array(similarity, dtype=float)
    texts = [caption.text for caption in captions]
    to_video = Ranking.of("text-to-video", similarity, dataset.video_index, texts, names)
    to_text = Ranking.of("video-to-text", similarity.T, np.arange(len(names)), names, names)
    record = RunRecord.from_flags(get_args(["--do_eval", "--output_dir", str(folder), "--seed", "7"]))
    evaluation = Evaluation(
        "test", [to_video, to_text], [], None, UnreadableVideos("test", "fail", len(paths)), dataset, 1.0
    )
    record.add(evaluation, None, None)
    record.list_gallery(dataset)
    return folder


def run_of(folder: Path, lines: list[dict], metrics: dict | None = None) -> Run:
    return Run(folder, folder.name, metrics or {"protocol": {"epoch_picked_on": "test"}, "history": []}, lines, {})


# Numbers


def test_curves_of_lines_by_hand(tmp_path):
    """Two log lines in the first epoch and one in the second, of which a number was not finite."""
    lines = [
        {"kind": "step", "epoch": 0, "step": 2, "loss": 3.5, "learning_rates": [0.25], "gradient_norm": 9.0},
        {"kind": "step", "epoch": 0, "step": 4, "loss": None, "learning_rates": [0.5, 2.0], "gradient_norm": 8.0},
        {"kind": "epoch", "epoch": 0, "step": 5, "loss": 3.0},
        {"kind": "evaluation", "epoch": 0, "step": 5, "split": "test", "text_to_video": {"R1": 10.0, "R5": 50.0}},
        {"kind": "evaluation", "epoch": 7, "step": None, "split": "test", "text_to_video": {"R1": 99.0, "R5": 99.0}},
        {"kind": "step", "epoch": 1, "step": 6, "loss": 2.5, "learning_rates": [0.25, 1.0], "gradient_norm": 7.0},
    ]
    run = run_of(tmp_path, lines)
    [(steps, losses)] = run.step_curves("loss")
    assert steps == [2, 4, 6] and losses[::2] == [3.5, 2.5] and np.isnan(losses[1])
    assert run.step_curves("gradient_norm") == [([2, 4, 6], [9.0, 8.0, 7.0])]
    assert run.step_curves("learning_rates") == [([2, 4, 6], [0.25, 2.0, 1.0]), ([2, 4, 6], [0.25, 0.5, 0.25])]
    assert run.epoch_losses() == ([5], [3.0])
    assert run.recalls("text_to_video", "R5") == ([0], [50.0])


def test_a_training_without_lines_has_the_recalls_of_its_history(tmp_path):
    history = [
        {"split": "holdout", "epoch": 0, "video_to_text": {"R1": 10.0}},
        {"split": "holdout", "epoch": 1, "video_to_text": {"R1": 20.0}},
        {"split": "test", "epoch": 1, "video_to_text": {"R1": 15.0}},
    ]
    trained = run_of(tmp_path, [], {"protocol": {"epoch_picked_on": "holdout"}, "history": history})
    assert trained.recalls("video_to_text", "R1") == ([0, 1], [10.0, 20.0])
    assert trained.step_curves("loss") == []
    evaluated = run_of(tmp_path, [], {"protocol": {"epoch_picked_on": None}, "history": history})
    assert evaluated.recalls("video_to_text", "R1") == ([], [])


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (1, [(1, 1)]), (2, [(1, 1), (2, 5)]), (5, [(1, 1), (2, 5)]), (6, [(1, 1), (2, 5), (6, 10)]),
        (1000, [(1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, 500), (501, 1000)]),
    ],
)  # fmt: skip
def test_bins_hold_all_ranks(highest, expected):
    assert bins(highest) == expected
    assert bins(20000)[-2:] == [(5001, 10000), (10001, 20000)]


def test_histogram_is_in_percent():
    assert histogram([1, 1, 2, 5, 6, 10, 11, 3], bins(11)) == [25.0, 37.5, 25.0, 12.5]


def test_worst_queries_by_hand(tmp_path):
    """Six videos; the texts rank theirs 1st, 6th, 2nd and 6th."""
    videos = [f"v{number}" for number in range(6)]
    captions = [Caption("v0", "right"), Caption("v1", "last"), Caption("v2", "second"), Caption("v3", "last too")]
    captions += [Caption("v4", "right"), Caption("v5", "right")]
    similarity = np.eye(6)
    similarity[1] = [0.5, -1, 0.25, 0, 0.125, 0.0625]
    similarity[2] = [2, 0, 1, 0.5, 0.25, 0.125]
    similarity[3] = [0.5, 0.25, 0.125, -9, 0, 1]
    folder = write_run(tmp_path / "run", similarity, captions, dict.fromkeys(videos, "absent.mp4"))
    first, second, third = worst_queries(folder, 12)
    assert [(miss.text, miss.true_video, miss.rank) for miss in (first, second, third)] == [
        ("last", "v1", 6), ("last too", "v3", 6), ("second", "v2", 2),
    ]  # fmt: skip
    assert (first.preferred, second.preferred, third.preferred) == ("v0", "v5", "v0")
    assert first.scores == {"v0": 0.5, "v2": 0.25, "v4": 0.125, "v5": 0.0625, "v3": 0.0}
    assert third.scores["v2"] == 1.0
    assert worst_queries(folder, 1) == [first]
    page = report(folder)
    captions_shown = re.findall(r"(?:true|preferred): v\d, score [a-z ]*-?[\d.]+", page.text)
    assert captions_shown[:2] == ["true: v1, score at most 0.000", "preferred: v0, score 0.500"]
    assert captions_shown[4:] == ["true: v2, score 1.000", "preferred: v0, score 2.000"]
    assert page.text.count("rank 6") == 2 and page.text.count("rank 2") == 1


def test_the_gallery_names_items_as_ranks_do(tmp_path):
    captions = [Caption("v1", "a", 1.0, 2.5), Caption("v1", "b", 3.0, 4.0), Caption("v2", "c")]
    paths = {"v1": "videos/a.mp4", "v2": tmp_path / "b, c.mp4"}
    folder = write_run(tmp_path / "run", np.eye(3), captions, paths)
    assert (folder / "gallery.csv").read_text().splitlines() == [
        "video,path,start,end",
        f"v1@1.0-2.5,{Path.cwd() / 'videos/a.mp4'},1.0,2.5",
        f"v1@3.0-4.0,{Path.cwd() / 'videos/a.mp4'},3.0,4.0",
        f'v2,"{tmp_path / "b, c.mp4"}",,',
    ]


# Frames


def numbers_of(pictures: list[bytes]) -> list[int]:
    """What the frames of a numbered video show."""
    numbers = []
    for picture in pictures:
        image = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert image.shape == (96, 96)
        bars = image[48, [int((bit + 0.5) * 96 / BITS) for bit in range(BITS)]]
        numbers.append(sum(1 << bit for bit in range(BITS) if bars[bit] > 128))
    return numbers


def test_frames_are_spread_over_the_video_or_its_span(tmp_path):
    """40 frames, 8 a second; the span is seconds 2 and 3, and the one that begins at its end."""
    video = write_numbered(tmp_path / "long.mp4", steady(40, 8), rate=8, width=160, height=160)
    short = write_numbered(tmp_path / "short.mp4", steady(2, 8), rate=8, width=160, height=160)
    captions = [Caption("v1", "a"), Caption("v1", "b", 2.0, 3.0), Caption("v2", "c")]
    folder = write_run(tmp_path / "run", np.eye(3), captions, {"v1": video, "v2": short})
    frames = Frames(folder)
    # a sample every second frame: 0, 2 ... 38; of these 20 the places 0, 6, 12 and 19
    assert numbers_of(frames.of("v1@None-None")) == [0, 12, 24, 38]
    # samples 16 to 30: of these 8 the places 0, 2, 4 and 7
    assert numbers_of(frames.of("v1@2.0-3.0")) == [16, 20, 24, 30]
    assert numbers_of(frames.of("v2")) == [0]


def test_a_video_without_frames_is_a_reason(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"no video" * 99)
    captions = [Caption("v1", "a"), Caption("v2", "b"), Caption("v3", "c")]
    paths = {"v1": tmp_path / "absent.mp4", "v2": tmp_path / "noise.mp4", "v3": tmp_path}
    folder = write_run(tmp_path / "run", [[0, 1, 0], [1, 0, 0], [1, 0, 0.5]], captions, paths)
    page = report(folder)
    assert page.text.count("no frames: ") == 6
    assert "absent.mp4" in page.text and "noise.mp4" in page.text
    gallery = folder / "gallery.csv"
    gallery.write_text("video,path,start,end\nv1,a.mp4,late,\n")
    assert "could not convert string to float: 'late'" in Frames(folder).of("v1")
    assert Frames(folder).of("v2") == f"{gallery} does not list v2"
    for content in (b"video,path,start,end\nv1\n", b"path,start,end\na,b,c\n", b"\xff\xfe\x00", b""):
        gallery.write_bytes(content)
        assert report(folder).text.count("no frames: ") == 6
    gallery.unlink()
    assert "No such file or directory" in report(folder).text


# Plots


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """The points of the curves in an SVG, the y axis downwards."""
    lines = re.findall(r'<path d="([^"]+)" clip-path[^>]*stroke: #(?!808080|b0b0b0)[0-9a-f]{6}', svg)
    return [[tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", line)] for line in lines]


def test_a_plot_shows_the_points_of_every_run():
    svg = curves_plot("name", [[([0, 10, 20], [1.0, 3.0, 2.0])], [], [([0, 20], [1.0, 1.0])]], "step")
    first, second = points_of(svg)
    (x0, low), (x1, top), (x2, middle) = first
    assert x1 - x0 == pytest.approx(x2 - x1) and low - top == pytest.approx(2 * (middle - top))
    assert second == [pytest.approx((x0, low)), pytest.approx((x2, low))]
    assert svg.index(COLOURS[0]) < svg.index(COLOURS[2]) and COLOURS[1] not in svg
    assert "step" in svg and "currentColor" in svg and "http" not in svg and "<style" not in svg


def test_a_histogram_shows_a_bar_for_every_run():
    svg = histogram_plot("name", [(1, 1), (2, 5)], [[25.0, 75.0], [100.0, 0.0]])
    assert [svg.count(colour) for colour in COLOURS[:3]] == [2, 2, 0]
    assert [
        re.sub(" ", "", text) for text in re.findall(r">([\d–]+)</text>", svg) if text in ("25", "75", "100", "2–5")
    ]


def test_colours_of_many_runs_differ():
    assert len({colour(number) for number in range(40)}) == 40
    assert all(re.fullmatch("#[0-9a-f]{6}", colour(number)) for number in range(40))


# The page


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A training on the miniature, and an evaluation of it."""
    folder = write_tiny_run(tmp_path_factory.mktemp("mini"))
    output = folder / "$x_1$ <b>trained"
    main_task_retrieval.main(command(folder, output, "--sim_header", "wti"))
    evaluation = ["--do_eval", "--init_model", str(model_path(output, 1)), "--sim_header", "wti", *data_flags(folder)]
    more = ["--post_process", "dsl", "--output_dir", str(folder / "evaluated")]
    main_task_retrieval.main([*evaluation, *more])
    return output, folder / "evaluated"


def assert_loads_nothing(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "//" not in (value or "") or name == "src"
            assert name not in ("src", "href") or value.startswith(("data:image/jpeg;base64,", "#"))


def test_report_of_a_training_and_its_evaluation(trained, tmp_path, capsys):
    output = tmp_path / "both.html"
    page = report(*trained, "--output", output)
    assert capsys.readouterr().out == f"{output}\n"
    assert_loads_nothing(page)
    assert "http://" not in output.read_text() and "https://" not in output.read_text()
    content = read_metrics(trained[0])
    for key in ("text_to_video", "video_to_text"):
        for name in ("R1", "R5", "R10"):
            low, high = content[key]["intervals_95"][name]
            assert f"{content[key][name]:.1f}{low:.1f} to {high:.1f}" in page.text
    assert "$x_1$ <b>trained" in page.text and "evaluated + dsl" in page.text and "dsl assumes: " in page.text
    assert content["configuration_sha256"][:12] in page.text and content["configuration_sha256"][:13] not in page.text
    assert "evaluated is an evaluation alone and has no curves." in page.text
    assert [plot["aria-label"] for plot in page.of("svg")] == [
        "loss", "learning_rates", "gradient_norm", "clips_per_second",
        *(f"{key} {name}" for key in ("text_to_video", "video_to_text") for name in ("R1", "R5", "R10")),
        "ranks text-to-video", "ranks video-to-text",
    ]  # fmt: skip
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = [attributes["href"][1:] for attributes in page.of("use")]
    assert used and set(used) <= set(names)
    misses = [len(worst_queries(folder, 12)) for folder in trained]
    pictures = [attributes["src"].partition(",")[2] for attributes in page.of("img")]
    assert sum(misses) * 2 <= len(pictures) <= sum(misses) * 8
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (96, 96)


def test_the_gallery_has_the_size_that_is_asked_for(trained):
    run = trained[0]
    assert report(run, "--gallery", "2").text.count("preferred: ") == 2
    page = report(run, "--gallery", "0")
    assert "preferred" not in page.text and page.of("img") == []
    with pytest.raises(SystemExit):
        main([str(run), "--gallery", "-1"])


def test_no_text_is_markup(tmp_path):
    """Captions, ids, paths, flags and folder names may hold anything."""
    attack = "<script>alert(1)</script>\"'><img src=x onerror=y>&amp;"
    captions = [Caption(f'v"><i>{number}', f"{attack} {number}") for number in range(2)]
    paths = {caption.video_id: "/" + attack for caption in captions}
    folder = write_run(tmp_path / "<script>run$\\", [[0, 1], [1, 0]], captions, paths)
    (folder / "flags.json").write_text(json.dumps({"init_model": attack, attack: 1}))
    page = report(folder)
    assert_loads_nothing(page)
    assert page.of("img") == [] and page.of("i") == []
    assert page.text.count(f"{attack} 0") == 1 and 'true: v"><i>1' in page.text and "<script>run$\\" in page.text
    assert page.of("meta")[1]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_run_without_errors_says_so(tmp_path):
    captions = [Caption("v1", "a"), Caption("v2", "b")]
    page = report(write_run(tmp_path / "run", np.eye(2), captions, {"v1": "a", "v2": "b"}))
    assert "Every text finds its video first." in page.text and "No run has a flags.json." in page.text


def test_names_are_told_apart_and_flags_that_differ_come_first(tmp_path):
    captions, paths = [Caption("v1", "a"), Caption("v2", "b")], {"v1": "a", "v2": "b"}
    folders = [write_run(tmp_path / name / "run", np.eye(2), captions, paths) for name in ("one", "two")]
    for number, folder in enumerate(folders):
        (folder / "flags.json").write_text(json.dumps({"a": 1, "z": number}))
    assert [run.name for run in read_runs(folders)] == list(map(str, folders))
    page = report(*folders)
    rows = [attributes for attributes in page.of("tr") if attributes.get("class") == "differs"]
    assert len(rows) == 1 and page.text.index("z01") < page.text.index("a11")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", None), ("metrics.json", "{}"), ("ranks.csv", None), ("flags.json", "[]"), ("flags.json", "{"),
        ("ranks.csv", "direction,query\n"), ("ranks.csv", "direction,query,true_video,rank\ntext-to-video,a,b,1\n"),
        ("ranks.csv", "direction,query,true_video,rank\ntext-to-video,a,b,2\nvideo-to-text,b,b,1\n"),
        ("ranks.csv", f"direction,query,true_video,rank,{TOP}\ntext-to-video,a,b,2,,,,,,,,,,\nvideo-to-text,b,b,1\n"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_named(tmp_path, file, content):
    captions = [Caption("v1", "a"), Caption("v2", "b")]
    folder = write_run(tmp_path / "run", np.eye(2), captions, {"v1": "a", "v2": "b"})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(SystemExit, match=rf"report: .*{folder}.*{file}|report: {folder}/{file} is missing"):
        main([str(folder)])
    assert not (folder / "report.html").exists()
