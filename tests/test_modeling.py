"""The model against the numbers of the two reference implementations, and where they say nothing, against its rules."""

from types import SimpleNamespace

import pytest
import torch

from modules.configuration import (
    AGGREGATING_HEADERS,
    SIM_HEADERS,
    CLIP4ClipConfig,
)
from modules.modeling import CLIP4Clip
from scripts.miniature.tiny_clip import tiny_clip_state_dict
from tests.helpers.golden_cases import load_case, load_inputs

TIGHT_HEADERS, TOKEN_HEADERS = ("tightTransf", "xti"), ("ti", "wti")
GOLDEN_CASES = (
    "meanP", "meanP_3d", "seqLSTM", "seqTransf", "tightTransf",
    "wti", "wti_arch1", "wti_arch3", "ti", "wti_seqTransf", "wti_seqLSTM", "dp", "xti",
    "wti_cdcr2", "wti_cdcr3", "wti_seqTransf_cdcr3", "ti_cdcr2", "dp_seqTransf_cdcr1",
)  # fmt: skip
HEADS = [(head, "none") for head in SIM_HEADERS] + [
    (head, agg) for head in AGGREGATING_HEADERS for agg in ("seqLSTM", "seqTransf")
]


@pytest.fixture(params=GOLDEN_CASES)
def case(request, golden_parity):
    return load_case(golden_parity, request.param)


@pytest.fixture
def inputs(golden_parity):
    return load_inputs(golden_parity)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


def test_golden_outputs(case, inputs):
    input_ids, segment_ids, input_mask, video, video_mask = inputs
    model = case.model().eval()
    with torch.no_grad():
        sequence_output, visual_output = model.get_sequence_visual_output(
            input_ids, segment_ids, input_mask, video, video_mask
        )
        (logits,) = model.get_similarity_logits(sequence_output, visual_output, input_mask, video_mask)
        aggregated = model.aggregate_frames(visual_output, video_mask)
    if case.peer == "CLIP4Clip":
        assert_close(sequence_output, case.outputs["sequence_output"])
        assert_close(visual_output, case.outputs["visual_output"])
    else:
        if model.head.encodes_tokens:
            assert_close(sequence_output, case.outputs["text_feat"])
        assert_close(aggregated, case.outputs["video_feat"])
    if case.name.startswith("dp"):  # DRL leaves the scale out in evaluation; CLIP4Clip, whose head this is, keeps it
        logits = logits / model.clip.logit_scale.exp()
    assert_close(logits, case.outputs["eval_logits"])


def test_golden_loss_and_gradients(case, inputs):
    model = case.model().train()
    loss = model(*inputs)
    assert loss.item() == pytest.approx(case.outputs["train_loss"].item(), abs=1e-5)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == case.gradient_norms.keys()
    # a bias before a softmax has gradient 0 but for rounding, hence the absolute part
    assert norms == pytest.approx(case.gradient_norms, rel=1e-4, abs=1e-7)


def test_forward_is_none_in_evaluation(golden_parity, inputs):
    assert load_case(golden_parity, "wti").model().eval()(*inputs) is None


def test_pair_axis_is_optional(golden_parity, inputs):
    model = load_case(golden_parity, "wti_seqTransf").model().train()
    with_axis = model(*inputs)
    without_axis = model(*(tensor.squeeze(1) for tensor in inputs))
    *_, video, video_mask = inputs
    shaped = model.get_visual_output(video.reshape(-1, 3, 24, 24), video_mask.squeeze(1), shaped=True, video_frame=5)
    assert torch.equal(shaped, model.get_visual_output(video, video_mask))
    assert torch.equal(with_axis, without_axis)


def tiny_task(head: str, agg_module: str = "none", **flags) -> SimpleNamespace:
    return SimpleNamespace(
        sim_header=head, agg_module=agg_module, max_words=7, max_frames=4, cross_num_hidden_layers=2, **flags
    )


def tiny_model(head: str, agg_module: str = "none", embed_dim: int = 48, text_width: int = 32, **flags) -> CLIP4Clip:
    """A random model whose widths are none of CLIP's; vocabulary of 50."""
    torch.manual_seed(0)
    weights = tiny_clip_state_dict(
        embed_dim=embed_dim, vision_width=40, vision_layers=1, patch_size=8, image_size=16, text_width=text_width,
        text_layers=1, context_length=12, seed=0,
    )  # fmt: skip
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:50]
    state_dict = {f"clip.{key}": value for key, value in weights.items()}
    return CLIP4Clip.from_pretrained(
        "cross-base", state_dict=state_dict, task_config=tiny_task(head, agg_module, **flags)
    )


def tiny_batch(size: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    input_mask = (torch.arange(7) < torch.tensor([3, 7, 4, 5, 3, 6, 2, 7])[:size, None]).long()
    input_ids = torch.randint(1, 48, (size, 7), generator=generator) * input_mask
    input_ids[torch.arange(size), input_mask.sum(1) - 1] = 49  # the end token is the largest id
    video_mask = (torch.arange(4) < torch.tensor([4, 1, 3, 4, 2, 4, 3, 1])[:size, None]).long()
    video = torch.randint(0, 256, (size, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return input_ids, torch.zeros_like(input_ids), input_mask, video, video_mask


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
@pytest.mark.parametrize("linear_patch", ["2d", "3d"])
def test_any_width_trains(head, agg_module, linear_patch):
    model = tiny_model(head, agg_module, linear_patch=linear_patch).train()
    model(*tiny_batch()).backward()
    untouched = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert untouched == ({"clip.logit_scale"} if head == "tightTransf" else set())


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
@pytest.mark.parametrize("padding", ["zero", "exclude"])
@pytest.mark.parametrize("empty", [[0], [2, 4], [0, 1, 2, 3, 4]], ids=["one", "some", "all"])
@pytest.mark.parametrize("side", ["text", "video", "both"])
def test_nothing_valid_stays_finite(head, agg_module, padding, empty, side):
    model = tiny_model(head, agg_module, wti_padding=padding).train()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch()
    if side != "video":
        input_ids[empty], input_mask[empty] = 0, 0
    if side != "text":
        video[empty], video_mask[empty] = 0, 0
    loss = model(input_ids, segment_ids, input_mask, video, video_mask)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        features = model.get_sequence_visual_output(input_ids, segment_ids, input_mask, video, video_mask)
        (logits,) = model.get_similarity_logits(*features, input_mask, video_mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
def test_padded_frames_decide_nothing_but_zero_padding(head, agg_module):
    """The pixels of a padded frame change no logit."""
    model = tiny_model(head, agg_module).eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch()
    scribbled = torch.where(video_mask[:, :, None, None, None].bool(), video, 255 - video)
    logits = []
    with torch.no_grad():
        for frames in (video, scribbled):
            features = model.get_sequence_visual_output(input_ids, segment_ids, input_mask, frames, video_mask)
            logits.append(model.get_similarity_logits(*features, input_mask, video_mask)[0])
    assert (video != scribbled).any()
    assert_close(logits[0], logits[1], 1e-6 * logits[0].abs().max().item())


@pytest.mark.parametrize(("head", "agg_module"), HEADS)
def test_a_pair_scores_the_same_in_any_company(head, agg_module):
    """Batch mates change no score: one pair at a time gives the matrix of the whole batch."""
    model = tiny_model(head, agg_module).eval()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(3)
    with torch.no_grad():
        texts, frames = model.get_sequence_visual_output(input_ids, segment_ids, input_mask, video, video_mask)
        (together,) = model.get_similarity_logits(texts, frames, input_mask, video_mask)
        for a in range(3):
            for b in range(3):
                one_text = model.get_sequence_output(input_ids[a : a + 1])
                one_video = model.get_visual_output(video[b : b + 1], video_mask[b : b + 1])
                (alone,) = model.get_similarity_logits(
                    one_text, one_video, input_mask[a : a + 1], video_mask[b : b + 1]
                )
                assert alone.item() == pytest.approx(together[a, b].item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("head", SIM_HEADERS)
def test_logit_scale(head):
    """Pooled heads are scaled always, token heads in training only, the cross encoder never."""
    model = tiny_model(head)
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch()
    with torch.no_grad():
        features = model.eval().get_sequence_visual_output(input_ids, segment_ids, input_mask, video, video_mask)
        logits = {}
        for training in (True, False):
            model.train(training)
            if head in TIGHT_HEADERS:
                model.cross.embeddings.dropout.p = 0.0
            for scale in (1.0, 10.0):
                model.clip.logit_scale.fill_(scale).log_()
                (logits[training, scale],) = model.get_similarity_logits(*features, input_mask, video_mask)
    factors = {"tightTransf": (1, 1), "ti": (10, 1), "wti": (10, 1), "xti": (10, 1)}.get(head, (10, 10))
    for training, factor in zip((True, False), factors, strict=True):
        assert_close(logits[training, 10.0], factor * logits[training, 1.0], 1e-4)
    if head in TOKEN_HEADERS:
        assert logits[False, 10.0].abs().max() <= 1


def test_uint8_frames_are_normalised_and_floats_are_not():
    model = tiny_model("meanP")
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    # (1 - mean) / std of CLIP's published statistics, by hand
    expected = torch.tensor([1.930336, 2.074884, 2.145897]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert_close(model.normalize_frames(white), expected)
    assert model.normalize_frames(expected) is expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"sim_header": "maxP"}, ["maxP", "meanP", "wti"]),
        ({"linear_patch": "4d"}, ["4d", "2d", "3d"]),
        ({"sim_header": "wti", "agg_module": "meanP"}, ["meanP", "seqTransf"]),
        ({"sim_header": "wti", "wti_arch": 4}, ["4", "1, 2, 3"]),
        ({"sim_header": "wti", "wti_padding": "minus"}, ["minus", "exclude"]),
        ({"sim_header": "seqLSTM", "agg_module": "seqLSTM"}, ["agg_module", "ti, wti, xti"]),
        ({"sim_header": "wti", "cdcr": 4}, ["4", "0, 1, 2, 3"]),
        ({"sim_header": "xti", "cdcr": 1}, ["xti", "meanP", "wti"]),
        ({"cdcr": 1, "cdcr_lambda": -1.0}, ["cdcr_lambda", "-1.0"]),
        ({"max_frames": 0}, ["max_frames", "0"]),
        ({"max_words": 1}, ["max_words", "1"]),
        ({"cross_num_hidden_layers": 0}, ["cross_num_hidden_layers"]),
    ],
)
def test_config_names_what_is_wrong(flags, words):
    with pytest.raises(ValueError) as error:
        CLIP4ClipConfig(**flags)
    assert all(word in str(error.value) for word in words)


def test_config_takes_defaults_for_what_is_missing():
    config = CLIP4ClipConfig.from_namespace(
        SimpleNamespace(
            pretrained_clip_name="ViT-B/16", max_words=32, max_frames=12, sim_header="wti", lr=1, agg_module=None
        )
    )
    assert (config.linear_patch, config.cross_num_hidden_layers, config.agg_module) == ("2d", 4, "none")
    assert (config.wti_arch, config.wti_padding) == (2, "zero")


@pytest.mark.parametrize(
    ("head", "flags", "words"),
    [
        ("seqTransf", {"max_frames": 13}, ["max_frames 13", "12"]),
        ("tightTransf", {"max_frames": 12}, ["max_frames 12", "13", "12"]),
        ("meanP", {"max_words": 13}, ["max_words 13", "12"]),
    ],
)
def test_lengths_beyond_the_weights(golden_parity, head, flags, words):
    state_dict = dict(load_case(golden_parity, "meanP").state_dict)
    state_dict["clip.positional_embedding"] = state_dict["clip.positional_embedding"][:12]
    task = SimpleNamespace(**{"sim_header": head, "max_words": 9, "max_frames": 5, **flags})
    with pytest.raises(ValueError) as error:
        CLIP4Clip.from_pretrained("cross-base", state_dict=state_dict, task_config=task)
    assert all(word in str(error.value) for word in words)


def test_unknown_cross_model():
    with pytest.raises(ValueError, match="cross-large.*cross-base"):
        CLIP4Clip.from_pretrained("cross-large", task_config=SimpleNamespace())


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize(("head", "agg_module"), [pair for pair in HEADS if pair[0] not in TIGHT_HEADERS])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("empty", [False, True])
def test_decorrelation_stays_finite(head, agg_module, mode, size, empty):
    """For a batch of one, for equal features, and beside a text and a video with nothing valid."""
    model = tiny_model(head, agg_module, cdcr=mode, wti_padding="exclude").train()
    input_ids, segment_ids, input_mask, video, video_mask = tiny_batch(size)
    video[:] = 128  # every frame of every video is the same
    if empty:
        input_ids[0], input_mask[0], video_mask[-1] = 0, 0, 0
    loss = model(input_ids, segment_ids, input_mask, video, video_mask)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
