"""A head is one class and one line of `HEADS`: a toy head trains, evaluates and searches without any other change."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modules.checkpoint import fitting_flags
from modules.configuration import CLIP4ClipConfig
from modules.heads import HEADS, Head, fitting_heads
from modules.retrieval import similarity_of_split
from tests.test_modeling import tiny_batch, tiny_model
from video_search.scoring import scores
from video_search.vectors import Query, VideoVectors

CPU = torch.device("cpu")


class FirstFrameHead(Head):
    """Cosine of the sentence vector and the first frame."""

    def similarity(self, model, texts, frames, text_mask, video_mask):
        return F.normalize(texts.squeeze(1), dim=-1) @ F.normalize(frames[:, 0], dim=-1).T

    def index_videos(self, model, frames, mask):
        packed, _ = super().index_videos(model, frames, mask)
        return packed, F.normalize(frames[:, 0], dim=-1)


@pytest.fixture
def toy(monkeypatch):
    """The model of a head that only this test knows, and a batch."""
    monkeypatch.setitem(HEADS, "firstP", FirstFrameHead("firstP", aggregation="none"))
    return tiny_model("firstP"), tiny_batch()


def cosines_of_first_frames(model, batch) -> np.ndarray:
    """Pair by pair, from what the encoders return."""
    input_ids, _, input_mask, video, video_mask = batch
    with torch.no_grad():
        sentences = model.get_sequence_output(input_ids, None, input_mask)[:, 0].double().numpy()
        frames = model.get_visual_output(video, video_mask)[:, 0].double().numpy()
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in frames] for a in sentences]
    return np.array(cosine)


def test_a_new_head_trains(toy):
    model, batch = toy
    logits = torch.from_numpy(cosines_of_first_frames(model, batch)) / 0.07  # the logit scale that CLIP starts with
    expected = -(logits.log_softmax(dim=1).diagonal().mean() + logits.log_softmax(dim=0).diagonal().mean()) / 2
    loss = model.train()(*batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_new_head_evaluates_and_searches(toy):
    model, batch = toy[0].eval(), toy[1]
    input_ids, segment_ids, input_mask, video, video_mask = batch
    expected = cosines_of_first_frames(model, batch)
    texts, videos = [(input_ids, input_mask, segment_ids)], [(video, video_mask)]
    np.testing.assert_allclose(similarity_of_split(model, texts, videos, CPU), expected, atol=1e-6)

    with torch.no_grad():
        packed, sentences = model.head.index_texts(model, model.get_sequence_output(input_ids), input_mask)
        indexed, pooled = model.head.index_videos(model, model.get_visual_output(video, video_mask), video_mask)
    vectors = (part.numpy() for part in (indexed.vectors, indexed.weights, torch.zeros(len(indexed.vectors))))
    store = VideoVectors(*vectors, indexed.counts.numpy(), indexed.floor.numpy(), pooled.numpy())
    for row, sentence in enumerate(sentences.numpy()):
        query = Query(packed.vectors[row : row + 1].numpy(), np.ones(1), sentence, -np.inf, ("text",))
        np.testing.assert_allclose(scores(query, store, SimpleNamespace(head=model.head)), expected[row], atol=1e-6)


def test_a_new_head_is_a_choice_of_the_flags(toy):
    assert fitting_flags(toy[0].state_dict()) == [
        "--sim_header meanP", "--sim_header ti --agg_module none", "--sim_header firstP",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="maxP.*wti, firstP"):
        CLIP4ClipConfig(sim_header="maxP")
    with pytest.raises(ValueError, match="firstP fixes its own aggregation"):
        CLIP4ClipConfig(sim_header="firstP", agg_module="seqLSTM")


@pytest.mark.parametrize(
    ("keys", "heads"),
    [
        ([], ["meanP", "ti --agg_module none"]),
        (["lstm_visual.bias_hh_l0"], ["seqLSTM", "ti --agg_module seqLSTM"]),
        (["transformerClip.resblocks.0.ln_1.bias"], ["seqTransf", "ti --agg_module seqTransf"]),
        (["cross.pooler.dense.bias", "similarity_dense.weight"], ["tightTransf", "xti --agg_module none"]),
        (["similarity_dense.weight", "transformerClip.resblocks.0.ln_1.bias"], ["xti --agg_module seqTransf"]),
        (["text_weight_fc.weight"], ["wti --agg_module none --wti_arch 1"]),
        (["text_weight_fc.0.weight", "text_weight_fc.2.weight"], ["wti --agg_module none --wti_arch 2"]),
        (["text_weight_fc.0.weight", "text_weight_fc.4.weight"], ["wti --agg_module none --wti_arch 3"]),
    ],
)
def test_heads_that_fit_the_keys_of_a_checkpoint(keys, heads):
    assert fitting_heads(["clip.logit_scale", "frame_position_embeddings.weight", *keys]) == heads
