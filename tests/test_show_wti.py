"""scripts/show_wti and its drawing: real processes, real videos, and pictures that are measured."""

import itertools
import json
import re
import xml.etree.ElementTree
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from dataloaders.rawvideo_util import RawVideoExtractor
from modules.explanation import Explanation, explain
from modules.modeling import CLIP4Clip
from modules.tokenization_clip import SimpleTokenizer
from scripts.miniature.moving_shapes import Segment, draw_frames, write_video
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from scripts.show_wti import __main__ as show_wti
from scripts.show_wti.drawing import DOTS_PER_INCH, FRAME_COLOUR, WORD_COLOUR, draw_explanation, drawable
from scripts.show_wti.encoding import load_model
from tests.helpers.clip_cases import with_prefix
from tests.helpers.launch import run_python

FLAGS = {
    "sim_header": "wti", "agg_module": "seqTransf", "max_words": 16, "max_frames": 5, "cross_num_hidden_layers": 1,
    "slice_framepos": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of random weights with its flags, and a video: red circle, nothing, blue star, a second each."""
    folder = tmp_path_factory.mktemp("wti")
    weights = tiny_clip_state_dict(
        embed_dim=32, vision_width=32, vision_layers=1, patch_size=16, image_size=32, text_width=32, text_layers=1
    )
    torch.save(weights, folder / "clip.pt")
    flags = {**FLAGS, "pretrained_clip_name": str(folder / "clip.pt")}
    (folder / "flags.json").write_text(json.dumps({**flags, "epochs": 5, "precision": "clip_fp16"}))
    torch.manual_seed(0)
    model = CLIP4Clip.from_pretrained("cross-base", task_config=Namespace(**flags))
    for name in ("text_weight_fc", "video_weight_fc"):
        for layer in getattr(model, name):
            if isinstance(layer, torch.nn.Linear):  # from weights that are all alike to some that are not
                torch.nn.init.normal_(layer.weight)
    torch.save(model.state_dict(), folder / "pytorch_model.bin.0")
    segments = [Segment(0, 1, "red", "circle", "left"), Segment(1, 2), Segment(2, 3, "blue", "star", "still")]
    write_video(folder / "video.mp4", draw_frames(segments, (64, 64), 8, (0, 0)), (64, 64), 8)
    return folder


def arguments(folder: Path, text: str, output: Path, *flags: str) -> list[str]:
    return [
        "--init_model", str(folder / "pytorch_model.bin.0"), "--video", str(folder / "video.mp4"), "--text", text,
        "--output", str(output), *flags,
    ]  # fmt: skip


# ---- the command -------------------------------------------------------------------------------------------------


def test_tables_and_pictures(folder, tmp_path, capsys):
    show_wti.main(arguments(folder, "A red circle, then a blue star", tmp_path / "wti.png"))
    printed = capsys.readouterr()
    words, frames = printed.out.split("\n\n")[:2]
    rows = [line.split() for line in words.splitlines()[1:]]
    assert [row[0] for row in rows] == ["[start]", "a", "red", "circle", ",", "then", "a", "blue", "star", "[end]"]
    assert [line.split()[0] for line in frames.splitlines()[1:]] == ["0.0", "1.0", "2.0"]
    for table in (words, frames):
        weights = [float(weight) for weight in re.findall(r"([\d.]+)%", table)]
        assert sum(weights) == pytest.approx(100, abs=0.5)
        assert max(weights) > 1.1 * min(weights)
    assert printed.err == ""
    with Image.open(tmp_path / "wti.png") as picture:
        assert min(picture.size) > 500
        assert np.asarray(picture.convert("RGB")).std() > 10  # it is not blank
    drawing = xml.etree.ElementTree.parse(tmp_path / "wti.svg")
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}image"))) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["wti.png", "wti.svg"]


def test_the_score_is_that_of_an_evaluation(folder, tmp_path, capsys):
    text = "a red circle and a blue star"
    show_wti.main(arguments(folder, text, tmp_path / "wti.svg"))
    [score] = re.findall(r"score ([-\d.]+)", capsys.readouterr().out)
    model, _ = load_model(str(folder / "pytorch_model.bin.0"), {})
    ids, mask = torch.zeros(2, 1, 16, dtype=torch.int64)
    ids[0, :9] = torch.tensor([49406, *SimpleTokenizer().encode(text), 49407])
    mask[0, :9] = 1
    video = torch.zeros(1, 5, 3, 32, 32, dtype=torch.uint8)
    video[0, :3] = torch.from_numpy(RawVideoExtractor(1, 32).read_frames(folder / "video.mp4", 5))
    video_mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        features = model.get_sequence_visual_output(ids, None, mask, video, video_mask)
        [expected] = model.get_similarity_logits(*features, mask, video_mask)
    assert float(score) == pytest.approx(expected.item(), abs=1e-4)


def test_recorded_flags_given_flags_and_defaults(folder, tmp_path):
    checkpoint = folder / "pytorch_model.bin.0"
    _, flags = load_model(str(checkpoint), {"max_frames": 2})
    assert (flags.max_frames, flags.max_words, flags.agg_module) == (2, 16, "seqTransf")
    assert (flags.feature_framerate, flags.wti_arch, flags.precision) == (1, 2, "fp32")
    alone = tmp_path / "pytorch_model.bin.0"
    alone.symlink_to(checkpoint)  # without a record beside it
    given = {**FLAGS, "pretrained_clip_name": str(folder / "clip.pt")}
    del given["max_words"]
    model, flags = load_model(str(alone), given)
    assert (flags.max_words, model.config.max_words) == (32, 32)  # as an index has it
    assert flags.frame_sampling == "time"
    assert not model.training


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [({}, {}, "published"), ({"frame_sampling": "time"}, {}, "time"), ({}, {"frame_sampling": "time"}, "time")],
)
def test_frames_are_sampled_as_in_the_training(folder, tmp_path, recorded, given, expected):
    (tmp_path / "pytorch_model.bin.0").symlink_to(folder / "pytorch_model.bin.0")
    flags = json.loads((folder / "flags.json").read_text())
    (tmp_path / "flags.json").write_text(json.dumps({**flags, **recorded}))
    _, flags = load_model(str(tmp_path / "pytorch_model.bin.0"), given)
    assert flags.frame_sampling == expected


def test_a_text_that_is_cut_says_what_was_left_out(folder, tmp_path, capsys):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen zzyzx road"
    show_wti.main(arguments(folder, text, tmp_path / "wti.png"))
    printed = capsys.readouterr()
    assert printed.err == "show_wti: --max_words 16 cuts the text; left out: zzyzx road\n"
    assert "fourteen" in printed.out and "zzyzx" not in printed.out


def test_any_text_without_a_display(folder, tmp_path):
    """A process of its own, as a user starts it; a font for these signs is nowhere."""
    text = "日本語 🪿🎥 \u200d $x^2$ a \\frac 100% 'quoted' العربية"
    flags = ["--max_words", "77", "--agg_module", "none", "--sim_header", "ti", "--max_frames", "3"]
    weights = torch.load(folder / "clip.pt", weights_only=True)
    torch.save(with_prefix("clip.", weights), tmp_path / "ti.bin")
    run = run_python(
        "-m", "scripts.show_wti", "--init_model", tmp_path / "ti.bin", "--video", folder / "video.mp4", "--text", text,
        "--output", tmp_path / "any.png", "--pretrained_clip_name", folder / "clip.pt", *flags,
        DISPLAY="", WAYLAND_DISPLAY="", MPLBACKEND="", PYTHONIOENCODING="utf-8",
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert "日本語" in run.stdout and "🪿🎥" in run.stdout
    xml.etree.ElementTree.parse(tmp_path / "any.svg")
    assert (tmp_path / "any.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_model", "/nowhere.bin"], "--init_model: no file at /nowhere.bin"),
        (["--video", "nowhere.mp4"], "nowhere.mp4: No such file or directory"),
        (["--video", __file__], f"{__file__}: FFmpeg finds no video in it"),
        (["--text", " \n"], "--text has no words"),
        (["--sim_header", "meanP"], "--sim_header meanP does not compare words with frames; choose from ti, wti"),
        (["--wti_arch", "3"], "--wti_arch|lacks text_weight_fc.4.weight"),
        (["--output", "no/such/folder/wti.png"], "No such file or directory: 'no/such/folder/wti.png'"),
    ],
)
def test_an_error_is_one_line(folder, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        show_wti.main([*arguments(folder, "a red circle", tmp_path / "wti.png"), *flags])
    line = str(stop.value)  # which the interpreter prints on stderr, with exit code 1
    assert line.startswith("show_wti: ") and "\n" not in line
    assert re.search("|".join(map(re.escape, message.split("|"))), line), line
    assert list(tmp_path.iterdir()) == []


def test_flags_have_the_choices_of_training(folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        show_wti.main([*arguments(folder, "a red circle", tmp_path / "wti.png"), "--slice_framepos", "7"])
    assert "--slice_framepos: invalid choice: 7 (choose from 0, 1, 2)" in capsys.readouterr().err


def test_the_starting_weights_may_be_gone(folder, tmp_path, capsys):
    """A checkpoint holds all of CLIP: what flags.json says of another file is not needed."""
    (tmp_path / "pytorch_model.bin.0").symlink_to(folder / "pytorch_model.bin.0")
    flags = json.loads((folder / "flags.json").read_text())
    (tmp_path / "flags.json").write_text(json.dumps({**flags, "pretrained_clip_name": "/gone/clip.pt"}))
    video = ["--video", str(folder / "video.mp4"), "--text", "a red circle", "--output", str(tmp_path / "wti.png")]
    tables = []
    for checkpoint in (folder, tmp_path):
        show_wti.main(["--init_model", str(checkpoint / "pytorch_model.bin.0"), *video])
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "7"])
def test_a_damaged_record_is_named(folder, tmp_path, content):
    (tmp_path / "pytorch_model.bin.0").symlink_to(folder / "pytorch_model.bin.0")
    (tmp_path / "flags.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'flags.json'} (is not valid JSON: |holds a (list|int), not)"):
        load_model(str(tmp_path / "pytorch_model.bin.0"), {})


def test_other_pictures_are_an_argument_error(folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        show_wti.main(arguments(folder, "a circle", tmp_path / "wti.gif"))
    assert "wti.gif must end in .png or .svg" in capsys.readouterr().err


# ---- the drawing -------------------------------------------------------------------------------------------------


def made_up(words: int, frames: int) -> Explanation:
    generator = torch.Generator().manual_seed(words * 100 + frames)
    vectors = torch.nn.functional.normalize(torch.randn(words + frames, 8, generator=generator), dim=1)
    weights = (2 * torch.randn(words + frames, generator=generator)).split([words, frames])
    return explain(vectors[:words], weights[0].softmax(0), vectors[words:], weights[1].softmax(0))


def drawn(words: list[str], explanation: Explanation) -> Figure:
    count = len(explanation.video_weights)
    pictures = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
    figure = draw_explanation(words, pictures, 1.5 * np.arange(count), explanation)
    FigureCanvasAgg(figure).draw()
    return figure


def drawn_boxes(figure: Figure) -> list[tuple[float, ...]]:
    """(left, bottom, right, top) in dots of every text, picture and bar."""
    [axes] = figure.axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [item.get_window_extent().extents for item in (*axes.texts, *axes.images, *bars)]


@pytest.mark.parametrize(("words", "frames"), [(1, 1), (3, 12), (77, 64), (77, 1), (4, 64), (30, 4)])
def test_nothing_overlaps_nor_leaves_the_page(words, frames):
    vocabulary = itertools.cycle(["W" * 60, "a", "gymnast", "gjpqy|", "日本", "$x$", "[end]"])
    figure = drawn(list(itertools.islice(vocabulary, words)), made_up(words, frames))
    boxes = np.array(drawn_boxes(figure))
    # word, bar and number of each word; picture, second, bar and number of each frame; the header
    assert len(boxes) == 3 * words + 4 * frames + 5
    width, height = figure.get_size_inches() * DOTS_PER_INCH
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    left, bottom, right, top = boxes.T
    slack = 0.5  # dots; antialiased edges touch
    across = np.minimum(right[:, None], right) - np.maximum(left[:, None], left) > slack
    along = np.minimum(top[:, None], top) - np.maximum(bottom[:, None], bottom) > slack
    assert np.argwhere(np.triu(across & along, k=1)).tolist() == []


@pytest.fixture(scope="module")
def by_hand() -> Explanation:
    """Two words, two frames; the first word looks at the second frame, the second one at the first."""
    return Explanation(
        cosines=torch.zeros(2, 2),
        text_weights=torch.tensor([0.8, 0.2]),
        video_weights=torch.tensor([0.25, 0.75]),
        best_frame=torch.tensor([1, 0]),
        best_word=torch.tensor([0, 0]),
        word_parts=torch.tensor([0.4, 0.1]),
        frame_parts=torch.tensor([-0.1, 0.2]),
    )


def test_bars_are_as_long_as_the_weights(by_hand):
    [axes] = drawn(["red", "circle"], by_hand).axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    lengths = {}
    for bar in bars:
        lengths.setdefault(to_hex(bar.get_facecolor()), []).append(abs(bar.get_width()))
    assert lengths.keys() == {WORD_COLOUR, FRAME_COLOUR}
    assert lengths[WORD_COLOUR][1] / lengths[WORD_COLOUR][0] == pytest.approx(0.2 / 0.8)
    assert lengths[FRAME_COLOUR][0] / lengths[FRAME_COLOUR][1] == pytest.approx(0.25 / 0.75)
    assert [text.get_text() for text in axes.texts if "%" in text.get_text()] == ["80.0%", "20.0%", "25.0%", "75.0%"]
    assert "score 0.600" in [text.get_text() for text in axes.texts]
    # the dotted lines: half of all, where both words, or both frames, would weigh the same
    ends = {colour: next(b for b in bars if to_hex(b.get_facecolor()) == colour) for colour in lengths}
    dotted = [collection.get_segments()[0][0][0] for collection in axes.collections]
    assert abs(dotted[0] - ends[WORD_COLOUR].get_x()) / lengths[WORD_COLOUR][0] == pytest.approx(0.5 / 0.8)
    assert abs(dotted[1] - ends[FRAME_COLOUR].get_x()) / lengths[FRAME_COLOUR][0] == pytest.approx(0.5 / 0.25)


def test_lines_join_best_matches_and_widen_with_their_part(by_hand):
    [axes] = drawn(["red", "circle"], by_hand).axes
    lines = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    word_heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    rows_of_words = np.array([word_heights["red"], word_heights["circle"]])
    rows_of_frames = np.array([np.mean(image.get_extent()[2:]) for image in axes.images])
    joined, widths = [], {}
    for line in lines:
        start, *_, end = line.get_path().vertices[:, 1]
        match = int(abs(rows_of_words - start).argmin()), int(abs(rows_of_frames - end).argmin())
        joined.append((to_hex(line.get_edgecolor()), *match))
        widths[joined[-1]] = line.get_linewidth()
    word_lines = [(WORD_COLOUR, 0, 1), (WORD_COLOUR, 1, 0)]
    frame_lines = [(FRAME_COLOUR, 0, 0), (FRAME_COLOUR, 0, 1)]
    assert joined == word_lines + frame_lines
    # parts 0.4, 0.1, -0.1, 0.2 of at most 0.4; what takes away is drawn as what adds nothing
    thinnest = widths[frame_lines[0]]
    grown = [(widths[line] - thinnest) / (widths[word_lines[0]] - thinnest) for line in joined]
    assert grown == pytest.approx([1, 0.25, 0, 0.5])
    assert lines[0].get_alpha() > lines[3].get_alpha() > lines[1].get_alpha() > lines[2].get_alpha()


def test_a_score_of_nothing_is_drawn():
    nothing = explain(torch.zeros(2, 4), torch.full((2,), 0.5), torch.zeros(3, 4), torch.full((3,), 1 / 3))
    assert "score 0.000" in [text.get_text() for text in drawn(["a", "b"], nothing).axes[0].texts]


@pytest.mark.filterwarnings("error")
def test_what_no_font_draws():
    assert drawable("日a\x01") == "□a□"
    assert drawable("naïve $x$") == "naïve $x$"
    assert drawable("a" * 32) == "a" * 32
    assert drawable("a" * 33) == "a" * 31 + "…"
    drawn(["日本", "\\frac", "$^$"], made_up(3, 2))
