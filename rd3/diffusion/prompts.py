"""Prompts and their tokens: small CLIP tokenizers, and the check that a tokenizer knows every word; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rd3.errors import BadValue

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

NEGATIVE = "cartoon, anime, painting"
"""The negative prompt of D4M, whose characters local tokenizers know as well."""
_START, _END, _LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


def local_tokenizer(texts: Iterable[str], length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are the characters of ``texts`` (case is ignored), alone or at the end of a word.

    ``length``: tokens of a prompt, with those of its start and end.
    """
    from transformers import CLIPTokenizer

    backend = CLIPTokenizer(vocab={_START: 0, _END: 1}, merges=[]).backend_tokenizer
    characters: set[str] = set()
    for text in texts:
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        characters |= {character for piece, _place in pieces for character in piece}
    tokens = [*sorted(characters), *sorted(character + _LAST for character in characters), _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of each prompt, padded to the tokenizer's length.

    Raises :class:`BadValue` for a prompt with a word that the tokenizer does not know, or that is too long for it.
    """
    # Unknown characters would become the end token, and longer prompts be cut, with no more than a line in a log.
    for prompt in prompts:
        for word in prompt.split():
            if tokenizer.unk_token_id in _plain(tokenizer, word):
                raise BadValue(
                    f"The tokenizer of the text-to-image model does not know {word!r} in the prompt {prompt!r}.",
                    "use words that the model was trained with",
                )
        # Start and end of a prompt take two tokens.
        tokens, most = len(_plain(tokenizer, prompt)), tokenizer.model_max_length - 2
        if tokens > most:
            fact = f"The prompt {prompt!r} has {tokens} tokens, the text-to-image model reads {most}."
            raise BadValue(fact, "shorten the prompt")
    rows: list[list[int]] = tokenizer(list(prompts), padding="max_length").input_ids
    return rows


def _plain(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """The tokens of a text alone, without those of start and end."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
