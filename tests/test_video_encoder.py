"""Vectors of texts and videos against the model's own, each alone and with all padding; and where flags come from."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataloaders.rawvideo_util import RawVideoExtractor, VideoReadError
from dataloaders.worker_pool import ProcessDied
from modules.modeling import CLIP4Clip
from modules.tokenization_clip import END_TOKEN, START_TOKEN
from scripts.miniature.msrvtt import write_mini_msrvtt
from tests.helpers.clip_cases import task as model_flags
from tests.helpers.clip_cases import tiny_clip, with_prefix
from tests.helpers.search_cases import write_checkpoint
from video_search import encoder as encoder_module
from video_search import reading
from video_search.encoder import Encoder
from video_search.reading import UnreadableFile
from video_search.vectors import VideoVectors

TOKEN_HEADS = [("ti", "none"), ("wti", "none"), ("wti", "seqTransf")]
POOLED_HEADS = [("meanP", "none"), ("seqLSTM", "none"), ("seqTransf", "none")]
TIGHT_HEADS = [("tightTransf", "none"), ("xti", "seqLSTM")]
TEXTS = ["a red circle", "blue " * 10, "ein grünes Dreieck 🎈 bewegt sich nach rechts"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Real videos of several lengths."""
    mini = write_mini_msrvtt(tmp_path_factory.mktemp("mini"), train_videos=6, test_videos=2, captions_per_video=1)
    return sorted(mini.videos.glob("*.mp4"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def load(folder: Path, head: tuple[str, str], **flags) -> Encoder:
    return Encoder.load(**write_checkpoint(folder, *head, **flags))


def slow_videos(encoder: Encoder, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Aggregated frames (1,V,D) and mask (1,V) of one video, padded to max_frames as an evaluation does."""
    size, length = encoder.model.input_resolution, encoder.config.max_frames
    frames = RawVideoExtractor(1, size).read_frames(file, length, 2)
    video, mask = torch.zeros(1, length, 3, size, size, dtype=torch.uint8), torch.zeros(1, length, dtype=torch.long)
    video[0, : len(frames)], mask[0, : len(frames)] = torch.from_numpy(frames), 1
    with torch.no_grad():
        return encoder.model.aggregate_frames(encoder.model.get_visual_output(video, mask), mask), mask


def slow_text(encoder: Encoder, text: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Sentence (1,1,D) or words (1,T,D), mask (1,T), and the tokens."""
    length = encoder.config.max_words
    tokens = [START_TOKEN, *encoder.tokenizer.tokenize(text)[: length - 2], END_TOKEN]
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.long)
    ids[0, : len(tokens)] = torch.tensor(encoder.tokenizer.convert_tokens_to_ids(tokens))
    mask[0, : len(tokens)] = 1
    with torch.no_grad():
        return encoder.model.get_sequence_output(ids, None, mask), mask, tokens


def check_close(found, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("head", TOKEN_HEADS)
@pytest.mark.parametrize("padding", ["zero", "exclude"])
@torch.no_grad()
def test_videos_of_token_heads(folder, files, head, padding):
    encoder = load(folder, head, wti_padding=padding)
    seen = set()
    for file, found in encoder.videos(files, processes=0):
        frames, mask = slow_videos(encoder, file)
        count = int(mask.sum())
        _, weights = encoder.head.token_weights(encoder.model, frames, frames, mask, mask)
        unit = F.normalize(frames[0, :count], dim=-1)
        check_close(found.frames, unit)
        check_close(found.weights, weights[0, :count])
        check_close(found.pooled[0], F.normalize((unit * weights[0, :count, None]).sum(dim=0), dim=0))
        has_padding = count < encoder.config.max_frames
        assert found.floors.tolist() == [0 if padding == "zero" and has_padding else -math.inf]
        assert found.counts.tolist() == [count]
        seen.add(has_padding)
    assert seen == {True, False}


@pytest.mark.parametrize("head", POOLED_HEADS + TIGHT_HEADS)
@torch.no_grad()
def test_videos_of_other_heads(folder, files, head):
    encoder = load(folder, head)
    for file, found in encoder.videos(files, processes=0):
        frames, mask = slow_videos(encoder, file)
        count = int(mask.sum())
        unit = F.normalize(frames[0, :count], dim=-1)
        check_close(found.frames, frames[0, :count] if head in TIGHT_HEADS else unit)
        check_close(found.weights, torch.full((count,), 1 / count))
        check_close(found.pooled[0], F.normalize(unit.mean(dim=0), dim=0))
        assert found.floors.tolist() == [-math.inf]


@pytest.mark.parametrize("head", [("meanP", "none"), ("wti", "seqTransf")])
def test_patches_of_three_frames_see_the_padding_of_an_evaluation(folder, files, head):
    encoder = load(folder, head, linear_patch="3d", max_frames=6)
    torch.manual_seed(1)
    kernel = encoder.model.clip.visual.conv2.weight
    kernel.data = torch.randn_like(kernel) * 0.05  # a fresh one sees the middle frame alone
    for file, found in encoder.videos(files, processes=0):
        frames, mask = slow_videos(encoder, file)
        check_close(found.frames, F.normalize(frames[mask.bool()], dim=-1))


@pytest.mark.parametrize("head", TOKEN_HEADS)
@pytest.mark.parametrize("padding", ["zero", "exclude"])
@torch.no_grad()
def test_texts_of_token_heads(folder, head, padding):
    encoder = load(folder, head, wti_padding=padding)
    for text, query in zip(TEXTS, encoder.texts(TEXTS), strict=True):
        words, mask, tokens = slow_text(encoder, text)
        weights, _ = encoder.head.token_weights(encoder.model, words, words, mask, mask)
        unit = F.normalize(words[0, : len(tokens)], dim=-1)
        check_close(query.vectors, unit)
        check_close(query.weights, weights[0, : len(tokens)])
        check_close(query.pooled, F.normalize((unit * weights[0, : len(tokens), None]).sum(dim=0), dim=0))
        assert query.names == tuple(tokens)
        assert query.floor == (0 if padding == "zero" and len(tokens) < encoder.config.max_words else -math.inf)
        assert not query.is_video


@pytest.mark.parametrize("head", POOLED_HEADS + TIGHT_HEADS)
def test_texts_of_other_heads(folder, head):
    encoder = load(folder, head)
    for text, query in zip(TEXTS, encoder.texts(TEXTS), strict=True):
        sentence, _, _ = slow_text(encoder, text)
        unit = F.normalize(sentence[0], dim=-1)
        check_close(query.vectors, sentence[0] if head in TIGHT_HEADS else unit)
        check_close(query.pooled, unit[0])
        assert (query.weights.tolist(), query.floor, query.names) == ([1], -math.inf, (text,))


@pytest.mark.parametrize("head", TIGHT_HEADS)
@torch.no_grad()
def test_cross_scores_are_those_of_each_pair(folder, files, head):
    encoder = load(folder, head)
    videos = VideoVectors.concatenate([found for _, found in encoder.videos(files, processes=0)])
    scores = encoder.cross_scores(encoder.text(TEXTS[0]), videos)
    sentence, text_mask, _ = slow_text(encoder, TEXTS[0])
    expected = [encoder.model.score(sentence, *slow_videos(encoder, file)[:1], text_mask, slow_videos(encoder, file)[1])
                for file in files]  # fmt: skip
    check_close(scores, torch.cat(expected)[:, 0])
    assert np.ptp(scores) > 1e-3


def test_the_batch_changes_nothing(folder, files, monkeypatch):
    encoder = load(folder, ("wti", "seqTransf"))
    together = dict(encoder.videos(files, processes=0))
    monkeypatch.setattr(encoder_module, "FRAMES_AT_ONCE", 1)
    each_alone = list(encoder.videos(files[::-1], processes=0))
    assert [file for file, _ in each_alone] == files[::-1]
    for file, alone in each_alone:
        for name, array in vars(alone).items():
            np.testing.assert_allclose(getattr(together[file], name), array, rtol=1e-4, atol=1e-6)
    texts = [f"{text} {number}" for number in range(30) for text in TEXTS]  # more than go at once
    for text, query in zip(texts, encoder.texts(texts), strict=True):
        alone = encoder.text(text)
        assert alone.names == query.names
        np.testing.assert_allclose(query.vectors, alone.vectors, rtol=1e-4, atol=1e-6)


def test_processes_give_the_same_and_bad_files_their_reason(folder, files, tmp_path):
    encoder = load(folder, ("wti", "none"))
    (tmp_path / "letter.mp4").write_text("Dear Sir")
    paths = [*files, tmp_path / "letter.mp4", tmp_path / "nothing.mp4"]
    here, beside = dict(encoder.videos(paths, processes=0)), dict(encoder.videos(paths, processes=2))
    assert set(here) == set(beside) == set(paths)
    for path in paths[-2:]:
        assert isinstance(here[path], UnreadableFile)
        assert here[path] == beside[path]
        assert here[path].path == str(path)
        assert here[path].reason
        assert here[path].is_transient == (path.name == "nothing.mp4")
    for file in files:
        np.testing.assert_allclose(here[file].frames, beside[file].frames, rtol=1e-4, atol=1e-6)
    assert dict(encoder.videos([], processes=2)) == {}


def test_a_crashing_decoder_is_an_unreadable_file(folder, files, monkeypatch):
    def run_tasks(function, tasks, processes, preload):
        for task in tasks:
            yield task, ProcessDied("killed by SIGSEGV") if task == files[1] else function(task)

    monkeypatch.setattr(reading, "run_tasks", run_tasks)
    results = dict(load(folder, ("meanP", "none")).videos(files[:3], processes=2))
    assert results[files[1]] == UnreadableFile(str(files[1]), "the process that read it was killed by SIGSEGV")
    assert [isinstance(results[file], VideoVectors) for file in files[:3]] == [True, False, True]


@pytest.mark.parametrize("head", [("wti", "none"), ("meanP", "none"), ("tightTransf", "none")])
def test_a_video_as_a_query(folder, files, head, tmp_path):
    encoder = load(folder, head)
    ((_, video),) = encoder.videos(files[:1], processes=0)
    query = encoder.video_query(files[0])
    np.testing.assert_array_equal(query.vectors, video.frames)
    np.testing.assert_array_equal(query.weights, video.weights)
    np.testing.assert_array_equal(query.pooled, video.pooled[0])
    assert (query.floor, query.is_video) == (video.floors[0], True)
    assert query.names[:2] == ("0.0 s", "1.0 s")
    assert len(query.names) == len(video.seconds)
    with pytest.raises(VideoReadError, match="nothing.mp4"):
        encoder.video_query(tmp_path / "nothing.mp4")


def test_texts_that_are_none(folder):
    encoder = load(folder, ("wti", "none"))
    for text, message in (("", "empty"), (" \t\n", "empty"), ("a" * 20_001, "20001 characters"), ("\udce9", "UTF-8")):
        with pytest.raises(ValueError, match=message):
            encoder.text(text)
    assert encoder.texts([]) == []
    # 10 tokens have room beside the start and the end token of 12
    assert encoder.text("red " * 10).notice == ""
    assert encoder.text("red " * 11).notice == "only the first 10 of the text's 11 tokens are read (--max_words 12)"
    cut = encoder.text("red " * 4000)
    assert len(cut.names) == 12
    np.testing.assert_array_equal(cut.vectors, encoder.text("red " * 10).vectors)


# Where flags come from


def test_which_flag_wins(tmp_path):
    flags = write_checkpoint(tmp_path, "ti")
    init_model, clip = flags["init_model"], flags["pretrained_clip_name"]
    (tmp_path / "flags.json").write_text(
        json.dumps({
            "pretrained_clip_name": clip, "sim_header": "ti", "max_words": 9, "max_frames": 4, "precision": "clip_fp16",
            "feature_framerate": 2, "lr": 1e-4, "agg_module": None,
        })
    )  # fmt: skip
    of_training = Encoder.load(init_model)
    assert of_training.settings == {
        "init_model": init_model, "pretrained_clip_name": clip, "sim_header": "ti", "agg_module": "none", "wti_arch": 2,
        "wti_padding": "zero", "linear_patch": "2d", "cross_num_hidden_layers": 4, "max_words": 9, "max_frames": 4,
        "feature_framerate": 2, "slice_framepos": 2, "frame_sampling": "time", "precision": "fp32",
    }  # fmt: skip
    of_index = Encoder.load(init_model, {**of_training.settings, "max_words": 8, "max_frames": 3})
    assert (of_index.config.max_words, of_index.config.max_frames) == (8, 3)
    given = Encoder.load(init_model, of_index.settings, max_words=7, max_frames=None)
    assert (given.config.max_words, given.config.max_frames) == (7, 3)
    again = Encoder.load(settings=json.loads(json.dumps(given.settings)))
    assert (again.settings, again.fingerprint) == (given.settings, given.fingerprint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "flags.json is not valid JSON"),
        ("[]", "flags.json holds a list, not the flags of a run"),
        ('{"max_frames": "4"}', "flags.json: max_frames is '4', not of type int"),
        ('{"sim_header": "best"}', "flags.json: sim_header is 'best'; choose from meanP"),
    ],
)
def test_flags_of_a_training_that_are_damaged(tmp_path, content, message):
    init_model = write_checkpoint(tmp_path, "ti")["init_model"]
    (tmp_path / "flags.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Encoder.load(init_model)


def test_checkpoints_that_do_not_fit(tmp_path):
    flags = write_checkpoint(tmp_path, "wti")
    clip = {"pretrained_clip_name": flags["pretrained_clip_name"]}
    with pytest.raises(ValueError, match=r"also holds text_weight_fc.*what fits: --sim_header wti"):
        Encoder.load(flags["init_model"], **clip)  # foreign: no flags.json says what it is
    with pytest.raises(ValueError, match="lacks text_weight_fc"):
        Encoder.load(write_checkpoint(tmp_path, "meanP")["init_model"], **{**clip, "sim_header": "wti"})
    with pytest.raises(ValueError, match="never trained"):
        Encoder.load(sim_header="wti", **clip)
    assert Encoder.load(sim_header="ti", **clip).settings["init_model"] == ""
    with pytest.raises(FileNotFoundError, match="--init_model: no file at .*/nothing.bin$"):
        Encoder.load("nothing.bin")
    with pytest.raises(FileNotFoundError, match="nothing.bin; the index was made with it: give its present place"):
        Encoder.load(settings={"init_model": "/nothing.bin"})
    with pytest.raises(TypeError, match="unknown flags of an encoder: max_frame; choose from init_model"):
        Encoder.load(max_frame=3)


def test_a_checkpoint_without_its_clip_file(tmp_path):
    flags = write_checkpoint(tmp_path, "wti", max_frames=3)
    fingerprint = Encoder.load(**flags).fingerprint
    other = tmp_path / "other machine"
    other.mkdir()
    shutil.copyfile(flags["init_model"], other / "model.bin")
    (other / "flags.json").write_text(json.dumps({**flags, "pretrained_clip_name": "/gone/clip.pt"}))
    assert Encoder.load(other / "model.bin").fingerprint == fingerprint
    assert Encoder.load(other / "model.bin", pretrained_clip_name="/away/clip.pt").fingerprint == fingerprint
    with pytest.raises(ValueError, match="'ViT-B-33' is unknown"):  # not a name of a file
        Encoder.load(other / "model.bin", pretrained_clip_name="ViT-B-33")
    with pytest.raises(ValueError, match="'/gone/clip.pt' is unknown"):  # needed, since no checkpoint holds a CLIP
        Encoder.load(pretrained_clip_name="/gone/clip.pt")


def test_the_fingerprint(tmp_path):
    from safetensors.torch import save_file

    flags = write_checkpoint(tmp_path, "wti")
    fingerprint = Encoder.load(**flags).fingerprint
    state = torch.load(flags["init_model"], weights_only=True)
    save_file(state, tmp_path / "same.safetensors")
    torch.save({f"module.{name}": weight for name, weight in reversed(state.items())}, tmp_path / "same.bin")
    for same in ({"init_model": str(tmp_path / "same.safetensors")}, {"init_model": str(tmp_path / "same.bin")},
                 {"max_words": 7}):  # fmt: skip
        assert Encoder.load(**{**flags, **same}).fingerprint == fingerprint
    nudged = {**state, "video_weight_fc.0.bias": state["video_weight_fc.0.bias"] + 1e-6}
    torch.save(nudged, tmp_path / "other.bin")
    others = [
        {"init_model": str(tmp_path / "other.bin")}, {"max_frames": 3}, {"slice_framepos": 0}, {"feature_framerate": 2},
        {"wti_padding": "exclude"}, {"precision": "bf16"}, {"frame_sampling": "published"},
    ]  # fmt: skip
    prints = {fingerprint, *(Encoder.load(**{**flags, **other}).fingerprint for other in others)}
    assert len(prints) == 1 + len(others)


@pytest.mark.parametrize(
    ("head", "flags", "expected"),
    [
        ("wti", {"agg_module": "seqTransf"}, "779331a784991821137f9da9efe23f247b1b3549721b1274da0e6001174bd8fd"),
        (
            "wti",
            {"agg_module": "seqTransf", "max_frames": 4, "slice_framepos": 0, "max_words": 9},
            "b27dd957aa4226f6fb7610fee1c3431875203b68a537de43a5e9c22c3ae946dd",
        ),
        ("meanP", {"linear_patch": "3d"}, "292af0afbe08a028244d543341c9b110d682c2ed5d2b34e1061f471f7078a2e9"),
    ],
)
def test_the_fingerprint_stays(tmp_path, head, flags, expected):
    """Computed at commit 4c10ad0: an index made by an earlier version is opened, not made again."""
    clip = with_prefix("clip.", tiny_clip(vocabulary_size=49408, context_length=34))
    model = CLIP4Clip.from_pretrained("cross-base", clip, task_config=model_flags(head, **flags))
    exact = {
        name: (torch.arange(weight.numel()) % 17 - 8).reshape(weight.shape) / 16
        for name, weight in model.state_dict().items()
    }
    torch.save(exact, tmp_path / "model.bin")
    settings = {"sim_header": head, **flags}  # an older index records no --frame_sampling
    assert Encoder.load(tmp_path / "model.bin", settings).fingerprint == expected


@pytest.mark.parametrize("precision", ["clip_fp16", "bf16"])
def test_lower_precision_is_close(folder, files, precision):
    exact, rounded = (load(folder, ("wti", "none"), precision=name) for name in ("fp32", precision))
    (_, expected), (_, found) = next(exact.videos(files[:1], 0)), next(rounded.videos(files[:1], 0))
    assert found.frames.dtype == np.float32
    assert 0 < np.abs(found.frames - expected.frames).max() < 0.05
    assert 0 < np.abs(rounded.text("red").vectors - exact.text("red").vectors).max() < 0.05


def test_weights_that_are_not_finite_are_refused(tmp_path):
    flags = write_checkpoint(tmp_path, "meanP")
    weights = torch.load(flags["init_model"])
    weights["clip.ln_final.weight"][0] = math.nan
    torch.save(weights, flags["init_model"])
    with pytest.raises(ValueError, match="meanP-none-2d.bin: 1 weights are not finite.*: clip.ln_final.weight"):
        Encoder.load(**flags)


def test_vectors_that_are_not_finite_name_their_video_or_text(tmp_path, files, monkeypatch):
    """As of half precision, whose numbers end at 65,504."""
    encoder = load(tmp_path, ("meanP", "none"))
    for name in ("get_visual_output", "get_sequence_output"):
        encode = getattr(encoder.model, name)
        monkeypatch.setattr(encoder.model, name, lambda *inputs, encode=encode: encode(*inputs) * math.inf)
    with pytest.raises(ValueError, match=f"the vectors of '{files[0]}' are not finite: use --precision fp32"):
        next(encoder.videos(files, processes=0))
    with pytest.raises(ValueError, match="the vectors of the example video are not finite"):
        encoder.video_query(files[0])
    with pytest.raises(ValueError, match="the vectors of 'a red circle' are not finite"):
        encoder.text("a red circle")
