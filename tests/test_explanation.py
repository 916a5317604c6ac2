"""modules/explanation.py: parts of scores against the reference's numbers, a slow loop and hand-worked cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.configuration import SIM_HEADERS
from modules.explanation import Explanation, explain, merge_tokens, whole_words
from modules.heads import check_explainable
from modules.token_interaction import PackedTokens, pack_tokens
from tests.helpers.golden_cases import load_case, load_inputs
from tests.test_token_interaction import first_channel, random_features, slow_interaction, weights_of
from tests.test_tokenization_clip import ANY_TEXT
from tests.test_tokenization_clip import tokenizer as tokenizer  # a fixture


def explain_packed(text: PackedTokens, video: PackedTokens) -> Explanation:
    return explain(
        text.vectors, text.weights, video.vectors, video.weights, text.floor.item(), video.floor.item()
    )  # fmt: skip


# ---- the parts of a score ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wti", "wti_arch1", "wti_arch3", "ti", "wti_seqTransf"])
def test_parts_sum_to_the_reference_s_score(golden_parity, name):
    case = load_case(golden_parity, name)
    model = case.model()
    _, _, text_mask, _, video_mask = load_inputs(golden_parity)
    text_mask, video_mask = text_mask.squeeze(1), video_mask.squeeze(1)
    networks = getattr(model, "text_weight_fc", None), getattr(model, "video_weight_fc", None)
    scores = np.empty((len(text_mask), len(video_mask)))
    with torch.no_grad():
        for a in range(len(text_mask)):
            text = pack_tokens(case.outputs["text_feat"][[a]], text_mask[[a]], networks[0])
            for b in range(len(video_mask)):
                video = pack_tokens(case.outputs["video_feat"][[b]], video_mask[[b]], networks[1])
                scores[a, b] = explain_packed(text, video).score
    np.testing.assert_allclose(scores, case.outputs["eval_logits"], atol=1e-5)
    assert (text_mask == 0).any() and (video_mask == 0).any()  # so that padding has its say


@settings(deadline=None, max_examples=100)
@given(
    words=st.integers(1, 5), frames=st.integers(1, 5), padding=st.sampled_from(["zero", "exclude"]),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_parts_sum_to_the_slow_loop_s_score(words, frames, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    text, text_mask = random_features(generator, 1, words)
    video, video_mask = random_features(generator, 1, frames)
    weights = weights_of(text, text_mask), weights_of(video, video_mask)
    expected = slow_interaction(text, video, text_mask, video_mask, *weights, padding)
    parts = explain_packed(
        pack_tokens(text, text_mask, first_channel, padding), pack_tokens(video, video_mask, first_channel, padding)
    )
    assert parts.score == pytest.approx(expected.item(), abs=1e-6)


def test_hand_worked_parts():
    """Words east and north; frames east, and a 3-4-5 triangle between south and west."""
    words, frames = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [-0.6, -0.8]])
    text_weights, video_weights = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    parts = explain(words, text_weights, frames, video_weights)
    np.testing.assert_allclose(parts.cosines, [[1.0, -0.6], [0.0, -0.8]], rtol=1e-6)
    assert parts.best_frame.tolist() == [0, 0]
    assert parts.best_word.tolist() == [0, 0]
    np.testing.assert_allclose(parts.word_parts, [0.375, 0.0], rtol=1e-6)
    np.testing.assert_allclose(parts.frame_parts, [0.25, -0.15], rtol=1e-6)
    assert parts.score == pytest.approx(0.475)
    # padded words count as cosine 0, which the second frame prefers to -0.6
    np.testing.assert_allclose(
        explain(words, text_weights, frames, video_weights, text_floor=0.0).frame_parts, [0.25, 0]
    )
    # padded frames: a word that points away from all frames adds nothing, instead of taking away
    away = explain(-words[:1], torch.ones(1), frames[:1], torch.ones(1), video_floor=0.0)
    assert (away.word_parts.item(), away.frame_parts.item()) == (0.0, -0.5)


def test_parts_of_whole_words_by_hand():
    """Tokens a, skate|boarder: the second word's halves are added up, and the heavier one tells its frame."""
    tokens = Explanation(
        cosines=torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.4, 0.8]]),
        text_weights=torch.tensor([0.5, 0.125, 0.375]),
        video_weights=torch.tensor([0.5, 0.5]),
        best_frame=torch.tensor([1, 0, 1]),
        best_word=torch.tensor([1, 2]),
        word_parts=torch.tensor([0.05, 0.05625, 0.15]),
        frame_parts=torch.tensor([0.225, 0.2]),
    )
    words = merge_tokens(tokens, [("a", [0]), ("skateboarder", [1, 2])])
    np.testing.assert_allclose(words.cosines, [[0.1, 0.2], [0.9, 0.8]], rtol=1e-6)
    assert words.text_weights.tolist() == [0.5, 0.5]
    assert words.best_frame.tolist() == [1, 1]
    assert words.best_word.tolist() == [1, 1]
    np.testing.assert_allclose(words.word_parts, [0.05, 0.20625], rtol=1e-6)
    assert words.score == pytest.approx(tokens.score)
    assert words.frame_parts is tokens.frame_parts and words.video_weights is tokens.video_weights


def test_only_token_heads_can_be_explained():
    for head in SIM_HEADERS:
        if head in ("ti", "wti"):
            check_explainable(head)
        else:
            with pytest.raises(ValueError, match=f"--sim_header {head} does not compare words with frames.* ti, wti$"):
                check_explainable(head)


# ---- words -------------------------------------------------------------------------------------------------------


def test_words_by_eye(tokenizer):
    tokens = ["<|startoftext|>", *tokenizer.tokenize("A skateboarder's 🪿, naïve 日本!"), "<|endoftext|>"]
    assert [word for word, _ in whole_words(tokens)] == [
        "[start]", "a", "skateboarder", "'s", "🪿,", "naïve", "日本", "!", "[end]",
    ]  # fmt: skip
    assert whole_words(tokens)[2] == ("skateboarder", [2, 3])
    assert whole_words([]) == []


def test_a_word_that_the_end_token_cuts_off(tokenizer):
    skate, goose = tokenizer.tokenize("skateboarder")[0], tokenizer.tokenize("🪿")[0]
    assert whole_words([skate, "<|endoftext|>"]) == [("skate", [0]), ("[end]", [1])]
    assert whole_words([goose, "<|endoftext|>"]) == [("\ufffd", [0]), ("[end]", [1])]  # half of its bytes


def test_a_text_that_spells_a_special_token_is_not_one(tokenizer):
    words = [word for word, _ in whole_words(tokenizer.tokenize("<|endoftext|> </w>"))]
    assert words == ["<|", "endoftext", "|>", "</", "w", ">"]


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_no_token_is_lost(tokenizer, text):
    tokens = tokenizer.tokenize(text)
    words = whole_words(["<|startoftext|>", *tokens, "<|endoftext|>"])
    assert [place for _, places in words for place in places] == list(range(len(tokens) + 2))
    # the tokenizer's own decoder, which knows nothing of words' places
    expected = "".join(tokenizer.decode(tokenizer.encode(text)).split(" "))
    assert "".join(word for word, _ in words[1:-1]) == expected
    assert len(words) == 2 + sum(token.endswith("</w>") for token in tokens)
