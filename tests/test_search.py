"""Search of a real index: the evaluation's scores, the order of ties, re-ranked candidates, and errors of bad input."""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import video_search.search
from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from modules.modeling import CLIP4Clip
from modules.tokenization_clip import END_TOKEN, START_TOKEN, SimpleTokenizer
from scripts import index as index_script
from scripts import search as search_script
from tests.helpers.launch import REPOSITORY
from tests.helpers.tiny_run import write_tiny_run
from video_search import VideoSearch
from video_search.search import DEFAULT_CANDIDATES

TEXT = "a red circle moves to the left and then a blue square"
VIDEOS = 9
WORDS, FRAMES = 16, 3
HEADS = ("meanP", "seqTransf", "tightTransf", "ti", "wti")


def flags_of(folder: Path, sim_header: str) -> dict:
    return {
        "pretrained_clip_name": str(folder / "clip.pt"), "sim_header": sim_header, "max_words": WORDS,
        "max_frames": FRAMES, "cross_num_hidden_layers": 1, "feature_framerate": 1, "slice_framepos": 2,
    }  # fmt: skip


def make_index(folder: Path, sim_header: str, videos: Path, index: Path) -> Path:
    """Index `videos` by the checkpoint of this head."""
    flags = flags_of(folder, sim_header) | {"init_model": str(folder / f"{sim_header}.bin"), "num_workers": "0"}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    index_script.main([str(videos), "--index", str(index), *arguments])
    return index


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """`videos/` of 9 files, two of them the same, with a checkpoint of random weights and an index of every head."""
    folder = write_tiny_run(tmp_path_factory.mktemp("search"), train_videos=VIDEOS - 2, test_videos=1)
    (folder / "videos" / "holiday").mkdir(parents=True)
    originals = sorted((folder / "data" / "videos").glob("*.mp4"))
    for number, file in enumerate(originals):
        shutil.copyfile(file, folder / "videos" / ("holiday" if number % 2 else "") / file.name)
    shutil.copyfile(originals[3], folder / "videos" / "a copy.mp4")
    for seed, sim_header in enumerate(HEADS):
        torch.manual_seed(seed)
        model = CLIP4Clip.from_pretrained("cross-base", task_config=Namespace(**flags_of(folder, sim_header)))
        torch.save(model.state_dict(), folder / f"{sim_header}.bin")
        make_index(folder, sim_header, folder / "videos", folder / sim_header)
    return folder


@pytest.fixture(scope="module")
def searches(made) -> dict[str, VideoSearch]:
    return {sim_header: VideoSearch.open(made / sim_header) for sim_header in HEADS}


@torch.no_grad()
def evaluation_score(folder: Path, sim_header: str, text: str, file: Path) -> float:
    """What an evaluation gives this pair, divided by its scale."""
    state = torch.load(folder / f"{sim_header}.bin", weights_only=True)
    flags = Namespace(**flags_of(folder, sim_header))
    model = CLIP4Clip.from_pretrained("cross-base", state, task_config=flags).eval()
    tokenizer = SimpleTokenizer()
    tokens = [START_TOKEN, *tokenizer.tokenize(text)[: WORDS - 2], END_TOKEN]
    ids, text_mask = torch.zeros(1, WORDS, dtype=torch.long), torch.zeros(1, WORDS, dtype=torch.long)
    ids[0, : len(tokens)] = torch.tensor(tokenizer.convert_tokens_to_ids(tokens))
    text_mask[0, : len(tokens)] = 1
    read = RawVideoExtractor(1, model.input_resolution).read_frames(file, FRAMES, 2)
    video, video_mask = torch.zeros(1, FRAMES, *read.shape[1:], dtype=torch.uint8), torch.zeros(1, FRAMES)
    video[0, : len(read)], video_mask[0, : len(read)] = torch.from_numpy(read), 1
    outputs = model.get_sequence_visual_output(ids, torch.zeros_like(ids), text_mask, video, video_mask.long())
    (logits,) = model.get_similarity_logits(*outputs, text_mask, video_mask.long())
    return logits.item() / model.score_scale


@pytest.mark.parametrize("sim_header", HEADS)
def test_scores_are_those_of_the_evaluation(made, searches, sim_header):
    results = searches[sim_header].text(TEXT, top=100)
    assert results.scanned == len(results.hits) == VIDEOS
    found = [hit.score for hit in results.hits]
    assert found == sorted(found, reverse=True)
    for hit in results.hits[::4]:
        expected = evaluation_score(made, sim_header, TEXT, made / "videos" / hit.path)
        assert hit.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sim_header", HEADS)
def test_equal_scores_are_in_the_order_of_paths(searches, sim_header):
    hits = searches[sim_header].text(TEXT, top=100).hits
    scores = {hit.path: hit.score for hit in hits}
    (twin,) = (path for path, score in scores.items() if score == scores["a copy.mp4"] and path != "a copy.mp4")
    paths = list(scores)
    assert paths.index(twin) == paths.index("a copy.mp4") + 1
    best = [hit.path for hit in searches[sim_header].text(TEXT, top=paths.index(twin)).hits]
    assert best == paths[: paths.index(twin)]


@pytest.mark.parametrize("sim_header", ["meanP", "wti", "tightTransf"])
def test_shortlist_keeps_scores_and_scans_less(searches, sim_header):
    everything = {hit.path: hit.score for hit in searches[sim_header].text(TEXT, top=100).hits}
    listed = searches[sim_header].text(TEXT, top=2, shortlist=4)
    assert (len(listed.hits), listed.scanned) == (2, 4)
    for hit in listed.hits:
        assert hit.score == pytest.approx(everything[hit.path], abs=1e-6)
    all_listed = searches[sim_header].text(TEXT, top=100, shortlist=1000)
    assert [hit.path for hit in all_listed.hits] == list(everything)


class FarStore:
    """A store that can give candidates only, as one on another machine."""

    def __init__(self, store):
        self.settings, self.fingerprint, self.folder = store.settings, store.fingerprint, store.folder
        self._store, self.counts = store, []

    def scan(self):
        return None

    def candidates(self, query, count):
        self.counts.append(count)
        return self._store.candidates(query, count)


def test_a_store_that_cannot_be_scanned_gives_a_shortlist(searches):
    near = searches["wti"]
    far = FarStore(near.store)
    search = VideoSearch(far, near.encoder)
    assert [hit.path for hit in search.text(TEXT).hits] == [hit.path for hit in near.text(TEXT).hits]
    search.text(TEXT, top=DEFAULT_CANDIDATES + 5)
    search.text(TEXT, top=3, shortlist=6)
    assert far.counts == [DEFAULT_CANDIDATES, DEFAULT_CANDIDATES + 5, 6]


@pytest.mark.parametrize("sim_header", HEADS)
def test_a_video_is_most_like_itself(made, searches, sim_header):
    search = searches[sim_header]
    results = search.video(made / "videos" / "a copy.mp4", top=3)
    assert results.query.is_video
    assert results.hits[0].score == pytest.approx(1, abs=1e-5)
    assert results.hits[0].path == "a copy.mp4"
    assert [hit.words for hit in results.hits] == [(), (), ()]
    assert ("cannot read an example video" in results.notice) == (sim_header == "tightTransf")
    others = search.similar("a copy.mp4", top=2)
    assert [hit.path for hit in others.hits] == [hit.path for hit in results.hits[1:]]
    assert "a copy.mp4" not in [hit.path for hit in search.similar("a copy.mp4", top=100).hits]
    listed = [hit.path for hit in search.similar("a copy.mp4", shortlist=2).hits]
    assert len(listed) == 2 and "a copy.mp4" not in listed


def test_moments_and_words_of_a_hit(searches):
    hit = searches["wti"].text("a red circle", top=1).hits[0]
    assert [word.text for word in hit.words] == ["[start]", "a", "red", "circle", "[end]"]
    assert sum(word.share for word in hit.words) == pytest.approx(hit.score, abs=1e-5)
    assert sum(moment.weight for moment in hit.moments) == pytest.approx(1, abs=1e-5)
    assert {word.second for word in hit.words} <= {moment.second for moment in hit.moments}
    sentence = searches["meanP"].text("a red circle", top=1).hits[0]
    without = {
        word: next(found.score for found in searches["meanP"].text(rest, top=100).hits if found.path == sentence.path)
        for word, rest in (("a", "red circle"), ("red", "a circle"), ("circle", "a red"))
    }
    shares = {word.text: word.share for word in sentence.words}
    assert shares == {word: pytest.approx(sentence.score - score, abs=1e-5) for word, score in without.items()}


def example_of(text: str) -> str:
    """The lines of code from the import of VideoSearch to the first line that is indented less."""
    lines = text[text.index("from video_search import VideoSearch") :].splitlines()
    indent = re.search(r"^( *)from video_search import VideoSearch", text, re.MULTILINE)[1]
    kept = [lines[0]]
    for line in lines[1:]:
        if (line.strip() and not line.startswith(indent)) or line.startswith(("```", '"""')):
            break
        kept.append(line.removeprefix(indent))
    return "\n".join(kept)


@pytest.mark.parametrize("where", ["docstring", "docs/search.md"])
def test_the_example_works_as_written(made, tmp_path, monkeypatch, capsys, where):
    text = video_search.search.__doc__ if where == "docstring" else (REPOSITORY / where).read_text(encoding="utf-8")
    example = example_of(text)
    assert len([line for line in example.splitlines() if line]) <= 5
    shutil.copytree(made / "wti", tmp_path / "runs" / "index")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, where, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(re.match(r"-?\d\.\d+ .*\.mp4 ", line) for line in lines)


def test_a_cross_encoder_over_many_videos_gives_a_notice(searches, monkeypatch):
    monkeypatch.setattr(video_search.search, "MANY_PAIRS", VIDEOS - 1)
    assert "--shortlist" in searches["tightTransf"].text(TEXT).notice
    assert searches["tightTransf"].text(TEXT, shortlist=3).notice == ""
    assert searches["wti"].text(TEXT).notice == ""


def files_of(index: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(index.iterdir())}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty"),
        (" \n", {}, "empty"),
        ("word " * 5000, {}, "20,000|20000"),
        (TEXT, {"top": 0}, "top 0"),
        (TEXT, {"shortlist": 0}, "shortlist 0"),
    ],
)
def test_bad_queries(made, searches, text, options, message):
    before = files_of(made / "wti")
    with pytest.raises(ValueError, match=message):
        searches["wti"].text(text, **options)
    if options:
        with pytest.raises(ValueError, match=message):
            searches["wti"].similar("a copy.mp4", **options)
    assert files_of(made / "wti") == before


@pytest.mark.parametrize("sim_header", ["meanP", "wti"])
def test_odd_queries_find_something(searches, sim_header):
    for text in ("🔴🎈", "<|endoftext|>", "ein roter Kreis; DROP TABLE videos", "红色的圆", "\x00"):
        results = searches[sim_header].text(text, top=2)
        assert np.isfinite([hit.score for hit in results.hits]).all()
    long = searches[sim_header].text("red " * 4000, top=1)
    assert len(long.hits[0].words) <= WORDS
    assert long.notice


def test_examples_that_are_no_videos(made, searches, tmp_path):
    (tmp_path / "letter.mp4").write_text("Dear Sir")
    for path in (tmp_path / "letter.mp4", tmp_path / "nothing.mp4"):
        with pytest.raises((VideoReadError, OSError), match=path.name):
            searches["wti"].video(path)
    with pytest.raises(ValueError, match="no video 'nothing.mp4'"):
        searches["wti"].similar("nothing.mp4")


def test_another_model_than_the_index_was_made_with(made, tmp_path):
    with pytest.raises(ValueError, match="sim_header.*'wti'.*'ti'"):
        VideoSearch.open(made / "wti", str(made / "ti.bin"), sim_header="ti")
    with pytest.raises(ValueError, match="max_frames.*3.*2"):
        VideoSearch.open(made / "wti", max_frames=2)
    state = torch.load(made / "wti.bin", weights_only=True)
    torch.save({**state, "clip.logit_scale": state["clip.logit_scale"] + 1}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="weights"):
        VideoSearch.open(made / "wti", str(tmp_path / "other.bin"))


def test_the_checkpoint_has_moved(made, searches, tmp_path):
    shutil.copyfile(made / "clip.pt", tmp_path / "clip.pt")
    shutil.copyfile(made / "wti.bin", tmp_path / "wti.bin")
    make_index(tmp_path, "wti", made / "videos", tmp_path / "index")
    (tmp_path / "wti.bin").rename(tmp_path / "moved.bin")
    with pytest.raises((OSError, ValueError), match="wti.bin"):
        VideoSearch.open(tmp_path / "index")
    moved = VideoSearch.open(tmp_path / "index", str(tmp_path / "moved.bin"))
    assert moved.text(TEXT).hits == searches["wti"].text(TEXT).hits


def test_indexes_that_are_not_there_or_cut_short(made, tmp_path):
    with pytest.raises((OSError, ValueError), match="nowhere"):
        VideoSearch.open(tmp_path / "nowhere")
    shutil.copytree(made / "wti", tmp_path / "cut")
    frames = next(file for file in (tmp_path / "cut").iterdir() if file.name.startswith("frames"))
    frames.write_bytes(frames.read_bytes()[:-100])
    before = files_of(tmp_path / "cut")
    with pytest.raises(ValueError, match="cut short"):
        VideoSearch.open(tmp_path / "cut")
    assert files_of(tmp_path / "cut") == before


def test_command_for_people(made, capsys):
    search_script.main([TEXT, "--index", str(made / "wti"), "--top", "2"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert re.match(r"  1\. 0\.\d{3}  .*\.mp4  at 0:0\d, 0:0\d", lines[0])
    assert re.search(r"red -?\d+ %, circle -?\d+ %.*\[sentence\] -?\d+ %", lines[1])
    assert re.match(rf"{VIDEOS} videos scored in \d+\.\d\d s", lines[4])
    assert len(lines) == 5
    assert printed.err == ""


def test_command_for_programs(made, searches, capsys):
    video = made / "videos" / "a copy.mp4"
    search_script.main(["--video", str(video), "--index", str(made / "wti"), "--json", "--shortlist", "4"])
    found = json.loads(capsys.readouterr().out)
    assert (found["query"], found["is_video"], found["scanned"]) == (str(video), True, 4)
    first = found["hits"][0]
    assert (first["path"], first["file"]) == ("a copy.mp4", str(video.resolve()))
    expected = searches["wti"].video(video, shortlist=4).hits[0]
    assert first["score"] == pytest.approx(expected.score)
    assert [moment["second"] for moment in first["moments"]] == [moment.second for moment in expected.moments]


def test_command_where_the_videos_have_gone(made, tmp_path, capsys):
    shutil.copytree(made / "videos", tmp_path / "videos")
    make_index(made, "wti", tmp_path / "videos", tmp_path / "index")
    capsys.readouterr()
    (tmp_path / "videos").rename(tmp_path / "elsewhere")
    search_script.main([TEXT, "--index", str(tmp_path / "index")])
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "is missing" in printed.err
    assert "--moved" in printed.err
    assert f"{VIDEOS} videos scored" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--index", "{made}/wti"], "empty"),
        ([TEXT, "--index", "{made}/nothing"], "nothing"),
        (["--video", "{made}/clip.pt", "--index", "{made}/wti"], "clip.pt"),
        ([TEXT, "--index", "{made}/wti", "--init_model", "{made}/nothing.bin"], "nothing.bin"),
    ],
)
def test_command_says_what_is_wrong_in_a_line(made, arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        search_script.main([argument.format(made=made) for argument in arguments])
    assert str(error.value).startswith("search: ")
    assert "\n" not in str(error.value)
