"""Counts the tokens of rows with a model's vocabulary, before any weights are loaded. Runs in a child process."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from bench.measure.prompts import PromptEncoder, PromptSettings, make_prompt_encoder
from bench.results import Item
from gladstone.errors import DataError
from gladstone.gguf.header import read_model, summarize_model
from gladstone.llamacpp.model import Model
from runtime.loading import plan_context
from runtime.text.prompt import load_template

SHOWN = 3  # tokens at the start and at the end of an answer
CONTROL = "\x01"  # stands for any control token where answers are compared


@dataclass(frozen=True)
class TokenCountJob:
    """Items to count with the vocabulary of a model."""

    model: Path
    items: tuple[Item, ...]
    frame: PromptSettings


@dataclass(frozen=True)
class ContextLimits:
    """The context size that this machine allows for the model, and the one that the model was trained for."""

    context_tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class RowTokens:
    """The token counts of a row, and what identifies the tokens of its answer.

    `pieces` is a hash of the answer's tokens as texts, with all control tokens equal; `begins` and `ends` are the first
    and last tokens. `refused` is the reason why the template cannot render the row, '' if it can.
    """

    needed: int = 0
    prompt: int = 0
    pieces: str = ""
    begins: str = ""
    ends: str = ""
    refused: str = ""


def count_tokens(job: TokenCountJob) -> Iterator[ContextLimits | RowTokens]:
    """Yield the context limits, then each row's counts. Raises ConfigError for an impossible context size."""
    headers = read_model(job.model)
    yield ContextLimits(plan_context(headers, job.frame.engine_options(None)), summarize_model(headers).context_tokens)
    with ExitStack() as stack:
        model = stack.enter_context(Model(job.model, vocab_only=True, headers=headers))
        template = None
        if not job.frame.raw:
            template = stack.enter_context(closing(load_template(model, chosen=job.frame.chat_template)))
        encoder = make_prompt_encoder(model, template, job.frame)
        for item in job.items:
            yield _row_tokens(encoder, item)


def _row_tokens(encoder: PromptEncoder, item: Item) -> RowTokens:
    try:
        prompt, answer = encoder.scored(item)
    except DataError as error:
        return RowTokens(refused=str(error))
    if not prompt or not answer:
        return RowTokens(refused="its prompt or its answer has no tokens, so there is nothing to score.")
    pieces = [encoder.model.piece(token, special=True) for token in answer]
    compared = [
        CONTROL.encode() if encoder.model.is_control(token) else piece
        for token, piece in zip(answer, pieces, strict=True)
    ]
    return RowTokens(
        needed=encoder.needs(item, prompt, answer),
        prompt=len(prompt),
        pieces=hashlib.sha256(b"\0".join(compared)).hexdigest(),
        begins=_text(pieces[:SHOWN]),
        ends=_text(pieces[-SHOWN:]),
    )


def _text(pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode("utf-8", "replace")
