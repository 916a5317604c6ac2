"""Evaluation cannot peek: which pairs are true enters after the scores; and what is logged and written."""

import json
import logging
from argparse import Namespace

import numpy as np
import pytest
import torch

import util
from dataloaders.annotations import Annotations, Caption
from dataloaders.data_dataloaders import DATALOADER_DICT, VideoLoader, evaluation_loader, evaluation_loaders
from dataloaders.retrieval_dataset import RetrievalDataset
from engine.evaluation import Evaluator, Gallery, Scoring, eval_epoch, evaluate_split, post_process
from engine.record import RunRecord
from engine.run import Run
from engine.run_files import read_ranks
from engine.training import evaluate_epoch, evaluate_picked
from main_task_retrieval import get_args
from modules.post_processing import dual_softmax, querybank_normalize
from tests.test_modeling import tiny_model
from tests.test_retrieval_dataset import WordTokenizer

PROCESS = util.Process(torch.device("cpu"))
# 7 texts of 5 videos: neither as many nor in the same order
CAPTIONS = [Caption(f"v{video}", str(word)) for word, video in zip(range(3, 10), (3, 0, 3, 1, 4, 2, 0), strict=True)]


class NoiseExtractor:
    """Frames of noise that depend on the path alone."""

    size = 16

    def read_frames(self, path, max_frames, **_):
        return np.random.default_rng(path).integers(0, 256, (max_frames, 3, 16, 16), dtype=np.uint8)


class SmallIds(WordTokenizer):
    """Ids that a small vocabulary has; the end token is the largest."""

    def convert_tokens_to_ids(self, tokens):
        return [{"<|startoftext|>": 20, "<|endoftext|>": 21}.get(token) or int(token) for token in tokens]


def loader_of(captions: list[Caption], model) -> VideoLoader:
    paths = {caption.video_id: int(caption.video_id[1:]) for caption in captions}
    dataset = RetrievalDataset(
        Annotations(captions, paths), SmallIds(), NoiseExtractor(), model.config.max_words, model.config.max_frames
    )
    return evaluation_loader(dataset, batch_size=3)


def flags(output_dir, *more: str) -> Namespace:
    return get_args(["--do_eval", "--output_dir", str(output_dir), *more])


def evaluate_and_write(args: Namespace, model, loader: VideoLoader, bank: VideoLoader | None = None) -> None:
    """Evaluate, and write the files as a run does."""
    evaluation = evaluate_split(model, loader, PROCESS, Scoring.from_flags(args), bank)
    Run(args.output_dir, PROCESS, RunRecord.from_flags(args)).add_evaluation(evaluation, None, None)


def evaluate(folder, captions, *more: str, head="wti", bank=None) -> dict:
    """metrics.json of an evaluation with the tiny model."""
    folder.mkdir()
    args, model = flags(folder, *more), tiny_model(head)
    bank = None if bank is None else loader_of(bank, model)
    evaluate_and_write(args, model, loader_of(captions, model), bank)
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("head", ["wti", "meanP", "seqTransf", "tightTransf"])
@pytest.mark.parametrize("more", [(), ("--post_process", "dsl"), ("--post_process", "qb_norm")])
def test_permuted_texts_and_gallery_give_the_same_metrics(tmp_path, head, more):
    bank = [Caption("v9", str(word)) for word in range(10, 16)] if "qb_norm" in more else None
    expected = evaluate(tmp_path / "given", CAPTIONS, *more, head=head, bank=bank)
    assert (expected["text_to_video"]["queries"], expected["text_to_video"]["gallery"]) == (7, 5)
    assert expected["video_to_text"]["queries"] == expected["video_to_text"]["gallery"] == 5
    assert expected["text_to_video"]["MnR"] > 1  # a model that has learned nothing does not look perfect
    shuffled = [CAPTIONS[row] for row in (5, 2, 6, 0, 4, 3, 1)]
    found = evaluate(tmp_path / "shuffled", shuffled, *more, head=head, bank=bank)
    for key in ("text_to_video", "video_to_text", "post_processed", "protocol"):
        assert found[key] == expected[key]
    for direction in ("text-to-video", "video-to-text"):
        assert read_ranks(tmp_path / "shuffled", direction) == read_ranks(tmp_path / "given", direction)


def test_a_wrong_pairing_changes_the_ranks_and_not_the_scores(tmp_path):
    """The scores of the top are those of the videos' contents: swapping who is true leaves them where they were."""
    model = tiny_model("wti")
    swapped = [
        Caption("v4" if c.video_id == "v3" else "v3" if c.video_id == "v4" else c.video_id, c.text) for c in CAPTIONS
    ]
    rows = []
    for name, captions in (("given", CAPTIONS), ("swapped", swapped)):
        (tmp_path / name).mkdir()
        args = flags(tmp_path / name)
        evaluate_and_write(args, model, loader_of(captions, model))
        lines = (tmp_path / name / "ranks.csv").read_text().splitlines()
        rows.append([line.split(",") for line in lines if line.startswith("text-to-video")])
    tops = [[dict(zip(row[4::2], map(float, row[5::2]), strict=True)) for row in way] for way in rows]
    for first, second in zip(*tops, strict=True):
        assert first == pytest.approx(second)
    assert [row[3] for row in rows[0]] != [row[3] for row in rows[1]]


def test_several_captions_and_the_names_of_moments(tmp_path):
    model = tiny_model("meanP")
    moments = [Caption("v1", "3", 0, 2), Caption("v1", "4", 2, 5), Caption("v2", "5"), Caption("v2", "6")]
    loader = loader_of(moments, model)
    assert loader.dataset.item_names() == ["v1@0-2", "v1@2-5", "v2"]
    args = flags(tmp_path)
    evaluate_and_write(args, model, loader)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert eval_epoch(args, model, loader, PROCESS) == content["text_to_video"]["R1"]
    assert content["protocol"]["captions_per_video"] == "several"
    assert (content["text_to_video"]["queries"], content["video_to_text"]["queries"]) == (4, 3)
    assert ("5", "v2", 0) in read_ranks(tmp_path, "text-to-video")


def test_a_bank_is_encoded_behind_the_captions_by_all_ranks():
    model = tiny_model("wti")
    loader, bank = loader_of(CAPTIONS, model), loader_of([Caption("v9", "11"), Caption("v9", "12")], model)
    for world_size in (1, 2, 4):
        loaders = [evaluation_loaders(loader, rank, world_size, bank) for rank in range(world_size)]
        ids = [int(row[0, 1]) for texts, _ in loaders for batch in texts for row in batch[0]]
        assert ids == [3, 4, 5, 6, 7, 8, 9, 11, 12]
        assert sum(len(videos.dataset) for _, videos in loaders) == 5


def test_raw_numbers_are_the_same_and_come_first(tmp_path, caplog):
    bank = [Caption("v9", str(word)) for word in range(10, 16)]
    with caplog.at_level(logging.INFO):
        contents = {
            method: evaluate(tmp_path / method, CAPTIONS, "--post_process", method, bank=bank)
            for method in ("none", "dsl", "qb_norm")
        }
    assert contents["none"]["post_processed"] is None
    for method in ("dsl", "qb_norm"):
        for key in ("text_to_video", "video_to_text"):
            assert contents[method][key] == contents["none"][key]
        assert (tmp_path / method / "ranks.csv").read_bytes() == (tmp_path / "none" / "ranks.csv").read_bytes()
        assert (tmp_path / method / f"ranks_{method}.csv").is_file()
    assert contents["dsl"]["post_processed"]["temperature"] == 100.0
    assert "single query does not satisfy" in contents["dsl"]["post_processed"]["assumes"]
    assert contents["qb_norm"]["post_processed"]["beta"] == 20.0
    assert contents["qb_norm"]["post_processed"]["bank_captions"] == 6
    assert "video_to_text" in contents["dsl"]["post_processed"]
    assert "video_to_text" not in contents["qb_norm"]["post_processed"]
    lines = [message for message in caplog.messages if ">>>" in message or "assumes" in message]
    starts = ["\t>>>  R@1: ", "\t>>>  V2T$R@1: "]
    dsl = ["Post-processed by dsl, which assumes: all test", "\t>>>  dsl: R@1: ", "\t>>>  dsl: V2T$R@1: "]
    qb_norm = ["Post-processed by qb_norm, which assumes: a bank", "\t>>>  qb_norm: R@1: "]
    expected = [*starts, *starts, *dsl, *starts, *qb_norm]
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_processing_works_on_cosines_in_the_right_direction():
    """Queries of video-to-text are the videos: its softmax runs over them, for each text."""
    similarity = np.random.default_rng(0).uniform(-1, 1, (4, 3))
    names = Gallery(["a", "b", "c", "d"], ["x", "y", "z"], np.array([0, 1, 2, 2]), np.ones(3, dtype=bool))
    args = Namespace(post_process="dsl", dsl_temperature=5.0)
    _, (texts, videos) = post_process(args, names, similarity, similarity[:0])
    np.testing.assert_allclose(texts.top_scores.max(axis=1), dual_softmax(similarity, 5.0).max(axis=1))
    shares = np.exp(5 * similarity) / np.exp(5 * similarity).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(videos.top_scores[0].max(), max((similarity * shares)[text, 0] for text in range(4)))
    args = Namespace(post_process="qb_norm", qb_norm_beta=20.0)
    _, (texts,) = post_process(args, names, similarity, similarity[:2])
    expected = querybank_normalize(similarity, similarity[:2])
    np.testing.assert_allclose(texts.top_scores.max(axis=1), expected.max(axis=1))


@pytest.mark.parametrize("head", ["meanP", "seqLSTM", "seqTransf", "ti", "wti"])
def test_scores_over_the_scale_are_cosines(head):
    model = tiny_model(head).eval()
    with torch.no_grad():
        model.clip.logit_scale.fill_(3.0)
        vectors = torch.ones(1, model.config.max_words if model.head.encodes_tokens else 1, model.clip.embed_dim)
        frames = torch.ones(1, model.config.max_frames, model.clip.embed_dim)
        score = model.score(vectors, frames, torch.ones(1, vectors.shape[1]), torch.ones(1, frames.shape[1]))
    assert score.item() / model.score_scale == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("method", ["dsl", "qb_norm"])
def test_the_scale_of_a_pooled_head_changes_no_processed_score(tmp_path, method):
    model, scores = tiny_model("meanP"), []
    bank = loader_of([Caption("v9", str(word)) for word in range(10, 16)], model)
    for scale in (0.0, 2.0):
        folder = tmp_path / str(scale)
        folder.mkdir()
        args = flags(folder, "--post_process", method)
        torch.nn.init.constant_(model.clip.logit_scale, scale)
        evaluate_and_write(args, model, loader_of(CAPTIONS, model), bank)
        lines = (folder / f"ranks_{method}.csv").read_text().splitlines()[1:]
        scores.append([float(line.split(",")[5]) for line in lines])
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("is_main", [True, False])
def test_other_ranks_write_nothing(tmp_path, monkeypatch, is_main):
    """All of a training's evaluations; the process has the whole split either way, so that only its rank decides."""
    model, folder = tiny_model("meanP"), tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(util.Process, "is_main", is_main)
    loader = loader_of(CAPTIONS, model)
    monkeypatch.setitem(DATALOADER_DICT, "msrvtt", {"test": lambda *_, **__: (loader, len(CAPTIONS)), "val": None})
    monkeypatch.setattr("engine.training.load_checkpoint", lambda *_: None)
    args = get_args(["--do_train", "--output_dir", str(folder), "--holdout", "5"])
    evaluator = Evaluator.from_flags(args, model, None, PROCESS)
    run = Run(folder, PROCESS, RunRecord.from_flags(args, holdout=evaluator.holdout) if is_main else None)
    assert list(folder.iterdir()) == []
    run.begin()
    evaluate_epoch(evaluator, run, folder / "pytorch_model.bin.0")
    evaluate_picked(evaluator, run)
    written = {"gallery.csv", "holdout.txt", "metrics.json", "metrics.jsonl", "ranks.csv"} if is_main else set()
    assert {path.name for path in folder.iterdir()} == written
    score = eval_epoch(args, model, loader, PROCESS)
    assert (score is not None) == is_main
    assert {path.name for path in folder.iterdir()} == written
