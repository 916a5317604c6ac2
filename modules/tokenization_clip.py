"""CLIP's byte-pair tokenizer: an adapter over open_clip's, which ships the vocabulary and the merges."""

import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"

# CLIP's split into contractions, words, single digits and runs of other signs (Radford et al., 2021), without the
# special tokens: text that spells one is split like any other text, so that a caption cannot end itself early
_SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@cache
def open_clip_tokenizer() -> ModuleType:
    """Return open_clip's tokenizer module, without its package unless something has imported that already.

    The package imports torchvision and timm, which takes a second or two in every process.
    """
    name = "open_clip.tokenizer"
    if name in sys.modules:
        return sys.modules[name]
    folders = importlib.util.find_spec("open_clip").submodule_search_locations
    spec = PathFinder.find_spec(name, folders)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def open_clip_bpe():
    """Return open_clip's tokenizer of OpenAI's vocabulary; reading the merges takes a quarter of a second."""
    return open_clip_tokenizer().SimpleTokenizer()


class SimpleTokenizer:
    """Lower-cased byte-pair tokens of CLIP's vocabulary, under CLIP4Clip's names for the special tokens.

    Attributes:
        encoder: token -> id; `vocab` is the same dictionary.
        decoder: id -> token.
        vocab_size: 49408 with the special tokens, of which START_TOKEN is 49406 and END_TOKEN 49407.
    """

    def __init__(self):
        # open_clip's tokenizer imports torch; `--help` and the readers do without it.
        import regex

        self._open_clip = open_clip_bpe()
        self._split = regex.compile(_SPLIT_PATTERN, regex.IGNORECASE)
        special = {self._open_clip.sot_token_id: START_TOKEN, self._open_clip.eot_token_id: END_TOKEN}
        self.decoder: dict[int, str] = {**self._open_clip.decoder, **special}
        self.encoder: dict[str, int] = {token: token_id for token_id, token in self.decoder.items()}
        self.vocab = self.encoder
        self.vocab_size = len(self.encoder)

    def __reduce__(self):
        # Made anew in a worker that is not forked: the module of open_clip's functions is not importable by its name.
        return type(self), ()

    def tokenize(self, text: str) -> list[str]:
        """Return the byte-pair tokens of the cleaned text, with "</w>" at the end of a word; never a special token.

        Cleaning repairs mojibake, resolves HTML entities, merges white space and lower-cases. Nothing is cut or padded.

        Raises: TypeError if `text` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, got {type(text).__name__}")
        tokens: list[str] = []
        for word in self._split.findall(self._open_clip.clean_fn(text)):
            # the merges are written in printable characters, one for each of the 256 bytes
            printable = "".join(self._open_clip.byte_encoder[byte] for byte in word.encode("utf-8"))
            tokens.extend(self._open_clip.bpe(printable).split(" "))
        return tokens

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return one id per token, special tokens included.

        Raises: ValueError for tokens outside the vocabulary; TypeError for one string instead of a list.
        """
        if isinstance(tokens, str):
            raise TypeError("tokens must be a list of str, got one str; tokenize() makes the list")
        tokens = list(tokens)
        unknown = [token for token in tokens if token not in self.encoder]
        if unknown:
            raise ValueError(f"not in CLIP's vocabulary: {', '.join(map(repr, unknown[:5]))}")
        return [self.encoder[token] for token in tokens]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `tokenize(text)`, without start and end token."""
        return self.convert_tokens_to_ids(self.tokenize(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the cleaned text with one space after each word; special tokens are written out.

        A character that is cut in the middle becomes U+FFFD.

        Raises: ValueError for ids outside the vocabulary.
        """
        ids = [int(token_id) for token_id in ids]
        unknown = [token_id for token_id in ids if token_id not in self.decoder]
        if unknown:
            raise ValueError(f"not in CLIP's vocabulary of {self.vocab_size} tokens: ids {unknown[:5]}")
        printable = "".join(self.decoder[token_id] for token_id in ids)
        text = bytes(self._open_clip.byte_decoder[character] for character in printable)
        return text.decode("utf-8", errors="replace").replace("</w>", " ")
