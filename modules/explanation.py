"""Explanations of token-wise scores: which frame each word matches, and how much each of them adds.

`token_interaction` gives one number for a text of T words and a video of V frames, width D; `explain` takes that number
apart. Pure functions of tensors; only the heads `ti` and `wti` score words by frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from modules.tokenization_clip import END_TOKEN, START_TOKEN, open_clip_tokenizer

START_WORD, END_WORD = "[start]", "[end]"
SPECIAL_WORDS = {START_TOKEN: START_WORD, END_TOKEN: END_WORD}
WORD_END = "</w>"


@dataclass(frozen=True)
class Explanation:
    """The parts of one score. If several frames (words) tie for a word's (frame's) largest cosine, the first counts."""

    cosines: torch.Tensor  # (T,V)
    text_weights: torch.Tensor  # (T,) sum to 1
    video_weights: torch.Tensor  # (V,) sum to 1
    best_frame: torch.Tensor  # (T,) int64, the frame that each word matches best
    best_word: torch.Tensor  # (V,) int64, the word that each frame matches best
    word_parts: torch.Tensor  # (T,) share of each word in the score: half of its weight times its largest cosine
    frame_parts: torch.Tensor  # (V,) share of each frame, likewise

    @property
    def score(self) -> float:
        """The score of `token_interaction`, in [-1, 1]: the sum of all parts."""
        return (self.word_parts.sum() + self.frame_parts.sum()).item()


def explain(
    words: torch.Tensor,
    text_weights: torch.Tensor,
    frames: torch.Tensor,
    video_weights: torch.Tensor,
    text_floor: float = -math.inf,
    video_floor: float = -math.inf,
) -> Explanation:
    """Split the score of one text, unit vectors (T,D) and weights (T,), with one video, (V,D) and (V,), into its parts.

    All are valid tokens, as in `PackedTokens`, and so are the floors: 0 if dropped padding has cosine 0, which bounds
    the maxima of the other side from below, else -inf.

    >>> one_word, frames = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    >>> parts = explain(one_word, torch.ones(1), frames, torch.tensor([0.5, 0.5]))
    >>> parts.best_frame.tolist(), parts.best_word.tolist()
    ([0], [0, 0])
    >>> [round(part, 2) for part in (*parts.word_parts.tolist(), *parts.frame_parts.tolist(), parts.score)]
    [0.3, 0.15, 0.0, 0.45]
    """
    cosines = words @ frames.T
    highest_of_word, best_frame = cosines.max(dim=1)
    highest_of_frame, best_word = cosines.max(dim=0)
    return Explanation(
        cosines,
        text_weights,
        video_weights,
        best_frame,
        best_word,
        text_weights * highest_of_word.clamp(min=video_floor) / 2,
        video_weights * highest_of_frame.clamp(min=text_floor) / 2,
    )


def merge_tokens(explanation: Explanation, words: Sequence[tuple[str, list[int]]]) -> Explanation:
    """Merge the tokens of an explanation into their `whole_words`, so that T is the number of words.

    A word has the sum of its tokens' weights and parts, the best frame of the token with the largest part, and for each
    frame the largest cosine of its tokens.
    """
    word_of_token = torch.empty_like(explanation.best_frame)
    for word, (_, places) in enumerate(words):
        word_of_token[places] = word
    leading = [places[explanation.word_parts[places].argmax()] for _, places in words]

    def sum_over_tokens(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(words)).index_add(0, word_of_token, values)

    return replace(
        explanation,
        cosines=torch.stack([explanation.cosines[places].amax(dim=0) for _, places in words]),
        text_weights=sum_over_tokens(explanation.text_weights),
        best_frame=explanation.best_frame[leading],
        best_word=word_of_token[explanation.best_word],
        word_parts=sum_over_tokens(explanation.word_parts),
    )


def whole_words(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Group tokens into words as a person reads them, in order, each with the places of its tokens.

    `tokens` are those of `SimpleTokenizer`, start and end token included or not; these two become "[start]" and
    "[end]". A word that the end token cuts off is a word too; half a character reads as U+FFFD.

    >>> whole_words(["<|startoftext|>", "a</w>", "skate", "boarder</w>", "<|endoftext|>"])
    [('[start]', [0]), ('a', [1]), ('skateboarder', [2, 3]), ('[end]', [4])]
    """
    words: list[tuple[str, list[int]]] = []
    is_word_open = False
    for place, token in enumerate(tokens):
        is_special = token in SPECIAL_WORDS
        if is_special or not is_word_open:
            words.append((token, [place]))
        else:
            text, places = words[-1]
            words[-1] = (text + token, [*places, place])
        is_word_open = not is_special and not token.endswith(WORD_END)
    return [(decode_word(text), places) for text, places in words]


def decode_word(word: str) -> str:
    """Decode one word, whose characters stand for the bytes of UTF-8."""
    if word in SPECIAL_WORDS:
        return SPECIAL_WORDS[word]
    byte_of = character_bytes()
    return bytes(byte_of[character] for character in word.removesuffix(WORD_END)).decode("utf-8", errors="replace")


@cache
def character_bytes() -> dict[str, int]:
    """Return the byte that each character of CLIP's vocabulary stands for."""
    return {character: byte for byte, character in open_clip_tokenizer().bytes_to_unicode().items()}
