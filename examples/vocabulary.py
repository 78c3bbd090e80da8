"""Conversion of captions to padded word numbers."""

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[^\W_]+")
_CHARACTER = re.compile(r"[^\W_]")


def split_words(caption: str) -> list[str]:
    """Return the lower-case runs of letters and digits of any script."""
    return _WORD.findall(caption.lower())


def split_characters(caption: str) -> list[str]:
    """Return the lower-case letters and digits one by one, for scripts without spaces."""
    return _CHARACTER.findall(caption.lower())


TOKENIZERS = {"words": split_words, "characters": split_characters}


class Vocabulary:
    """Numbers for the words of the training captions.

    Args:
        captions: the training captions.
        min_count: words that occur less often become the unknown word.
        tokenizer: ``"words"``, or ``"characters"`` for captions without spaces between words.

    Raises:
        ValueError: ``min_count`` is below 1, ``tokenizer`` is unknown, or no word is left.
    """

    def __init__(
        self, captions: Iterable[str], *, min_count: int = 1, tokenizer: str = "words"
    ) -> None:
        if min_count < 1:
            raise ValueError(f"Vocabulary: min_count must be at least 1, got {min_count}")
        if tokenizer not in TOKENIZERS:
            known = " or ".join(map(repr, TOKENIZERS))
            raise ValueError(f"Vocabulary: tokenizer must be {known}, got {tokenizer!r}")
        self.split = TOKENIZERS[tokenizer]
        counts = Counter(word for caption in captions for word in self.split(caption))
        kept = sorted(word for word, count in counts.items() if count >= min_count)
        if not kept:
            remedy = "; for captions without spaces, use --tokenizer characters"
            raise ValueError(
                f"Vocabulary: none of the {len(counts)} different {tokenizer} in the training "
                f"captions occurs {min_count} times{remedy if tokenizer == 'words' else ''}"
            )
        self.numbers = {word: number for number, word in enumerate(kept, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        """Return the number of rows of an embedding, including padding and the unknown word."""
        return len(self.numbers) + UNKNOWN + 1

    def encode(self, captions: list[str]) -> Tensor:
        """Convert captions to one padded array.

        Args:
            captions: M captions; a caption without a word becomes a single unknown word.

        Returns:
            int64 ``[M, L]``, where L is the number of words of the longest caption. Rows are padded
            with `PADDING` on the right.
        """
        rows = [
            [self.numbers.get(word, UNKNOWN) for word in self.split(caption)] or [UNKNOWN]
            for caption in captions
        ]
        words = torch.full((len(rows), max(map(len, rows))), PADDING)
        for row, numbers in zip(words, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return words
