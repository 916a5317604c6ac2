"""Encoding once and scoring in blocks gives what scoring everything at once gives."""

import pytest
import torch

from modules import heads
from modules.retrieval import encode_texts, encode_videos, score_in_blocks, similarity_of_split
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
    monkeypatch.setattr(heads, "BLOCK_BYTES", int(texts_per_block * 5 * 4 * model.head.floats_per_pair(model)))
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
        assert type(empty) is type(full)
        assert [tensor.shape for tensor in empty] == [(0, *tensor.shape[1:]) for tensor in full]
        assert [tensor.dtype for tensor in empty] == [tensor.dtype for tensor in full]
    assert score_in_blocks(model, texts, full_videos).shape == (0, 5)


@pytest.mark.parametrize("head", ["ti", "wti"])
@pytest.mark.parametrize("padding", ["zero", "exclude"])
def test_token_heads_keep_valid_tokens_alone(head, padding):
    model = tiny_model(head, wti_padding=padding).eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(8)
    texts = encode_texts(model, batches(input_ids, input_mask, segment_ids, size=3), CPU)
    videos = encode_videos(model, batches(video, video_mask, size=3), CPU, torch.bfloat16)
    for packed, mask, dtype in ((texts, input_mask, torch.float32), (videos, video_mask, torch.bfloat16)):
        assert packed.counts.tolist() == mask.sum(dim=1).tolist()
        assert packed.vectors.shape == (mask.sum(), 48)
        assert packed.vectors.dtype == dtype
        assert (packed.floor == 0).tolist() == [padding == "zero" and not row.all() for row in mask]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("head", ["ti", "wti"])
def test_shards_of_the_texts_score_the_same(head, ranks):
    """Rows of ranks that hold other texts, with other lengths, are those of one process."""
    model = tiny_model(head, wti_padding="exclude").eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(8)
    videos = encode_videos(model, batches(video, video_mask, size=8), CPU)
    shards = [
        encode_texts(model, batches(*(tensor[rows] for tensor in (input_ids, input_mask, segment_ids)), size=8), CPU)
        for rows in torch.arange(8).tensor_split(ranks)
    ]
    whole = encode_texts(model, batches(input_ids, input_mask, segment_ids, size=8), CPU)
    sharded = torch.cat([score_in_blocks(model, shard, videos) for shard in shards])
    assert torch.allclose(sharded, score_in_blocks(model, whole, videos), rtol=0, atol=5e-7)


def test_half_precision_of_the_token_heads():
    model = tiny_model("wti").eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(8)
    texts, videos = batches(input_ids, input_mask, segment_ids, size=8), batches(video, video_mask, size=8)
    exact = similarity_of_split(model, texts, videos, CPU)
    rounded = similarity_of_split(model, texts, videos, CPU, torch.bfloat16)
    assert 1e-6 < (exact - rounded).abs().max() < 2**-7


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model\.eval"):
        similarity_of_split(tiny_model("wti").train(), [], [], CPU)
