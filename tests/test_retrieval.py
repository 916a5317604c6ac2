"""Encoding once and scoring in blocks gives what scoring everything at once gives."""

import pytest
import torch

from modules import retrieval
from modules.retrieval import encode_texts, encode_videos, similarity_of_split
from tests.test_modeling import HEADS, tiny_batch, tiny_model

CPU = torch.device("cpu")


def batches(*tensors: torch.Tensor, size: int) -> list[tuple[torch.Tensor, ...]]:
    """As a loader gives them, with the pair axis."""
    return list(zip(*(tensor.unsqueeze(1).split(size) for tensor in tensors), strict=True))


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("texts_per_block", [0.01, 0.5, 1, 3, 100])
def test_blocks_and_batches_change_nothing(monkeypatch, head, agg_module, batch_size, texts_per_block):
    model = tiny_model(head, agg_module).eval()
    monkeypatch.setattr(retrieval, "FLOATS_PER_BLOCK", int(texts_per_block * 5 * model.floats_per_pair))
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(8)
    videos = 5  # as many texts as videos is a special case
    similarity = similarity_of_split(
        model,
        batches(input_ids, input_mask, segment_ids, size=batch_size),
        batches(video[:videos], video_mask[:videos], size=batch_size),
        CPU,
    )
    with torch.no_grad():
        features = model.get_sequence_output(input_ids), model.get_visual_output(video[:videos], video_mask[:videos])
        (expected,) = model.get_similarity_logits(*features, input_mask, video_mask[:videos])
    assert similarity.shape == (8, 5)
    assert torch.allclose(similarity, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["meanP", "wti", "tightTransf"])
def test_a_rank_without_a_share_gives_no_rows(head):
    model = tiny_model(head).eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch()
    texts, videos = encode_texts(model, [], CPU), encode_videos(model, [], CPU)
    full_texts = encode_texts(model, batches(input_ids, input_mask, segment_ids, size=5), CPU)
    full_videos = encode_videos(model, batches(video, video_mask, size=5), CPU)
    for empty, full in ((texts, full_texts), (videos, full_videos)):
        assert empty.vectors.shape == (0, *full.vectors.shape[1:])
        assert empty.mask.shape == (0, *full.mask.shape[1:])
        assert (empty.vectors.dtype, empty.mask.dtype) == (full.vectors.dtype, full.mask.dtype)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model\.eval"):
        similarity_of_split(tiny_model("wti").train(), [], [], CPU)
