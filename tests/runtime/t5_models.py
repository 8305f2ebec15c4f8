"""Tiny random encoder–decoder models: in torch, and as GGUF from the export's own converter."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.convert.convert import Conversion, convert
from gladstone.commands.progress import Silent
from runtime.sampling.beam_search import Beams
from tests.families import FAMILIES, write_tokenizer

VOCABULARY = 900
END, START = 1, 0
SIZES = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_decoder_layers": 2,
    "num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How the model is built. `end_bias` is about the end token's logit, so that texts end at some time."""

    model: str
    feed_forward: str
    own_head: bool
    end_bias: float
    depth: float  # how much more than at random attention counts beside the token that was read last


KINDS = {
    "t5": Kind("T5", "relu", own_head=False, end_bias=4.2, depth=6),  # T5 of 2019: tied, scaled
    "flan-t5": Kind("T5", "gated-gelu", own_head=True, end_bias=3.5, depth=6),  # T5 v1.1: a head of its own, unscaled
    "umt5": Kind("UMT5", "gated-gelu", own_head=False, end_bias=4.2, depth=6),  # a position bias in every layer
}


@dataclass(frozen=True)
class Made:
    """One model twice."""

    kind: Kind
    torch: Any
    gguf: Path


def make(name: str, folder: Path, tokenizer: Path | None = None) -> Made:
    """The model in `folder`, and its GGUF of 32-bit floats beside it; a tokenizer's folder saves training one."""
    kind = KINDS[name]
    if tokenizer is None:
        folder.mkdir(parents=True)
        write_tokenizer(FAMILIES["flan-t5"], folder)
    else:
        shutil.copytree(tokenizer, folder)
    model = _build(kind)
    model.save_pretrained(folder)
    path = folder.with_suffix(".gguf")
    convert(Conversion(name, folder, folder), path, Silent(), "f32")
    return Made(kind, model, path)


def _build(kind: Kind) -> Any:
    import torch
    import transformers

    config = getattr(transformers, f"{kind.model}Config")(
        **SIZES,
        feed_forward_proj=kind.feed_forward,
        tie_word_embeddings=not kind.own_head,
        attn_implementation="eager",  # with sdpa, UMT5's decoder of transformers 5.17 sees the tokens to come
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind.model}ForConditionalGeneration")(config).eval()
        if kind.own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, SIZES["d_model"]) * 0.15)
        _liven(model, kind)
    return model


def _liven(model: Any, kind: Kind) -> None:
    """Without it a tied model says again and again what it read last, and never comes to an end."""
    for name, weight in model.named_parameters():
        if name.endswith(".o.weight"):
            weight.mul_(kind.depth)
    _favour_the_end(model, kind)


def _favour_the_end(model: Any, kind: Kind) -> None:
    """Turn the end token's row of the head towards the decoder's average state."""
    import torch

    texts, answers = torch.randint(2, model.config.vocab_size, (2, 16, 24))
    states = model(input_ids=texts, decoder_input_ids=answers, output_hidden_states=True).decoder_hidden_states[-1]
    mean = states.reshape(-1, states.shape[-1]).mean(0)
    scale = 1 if kind.own_head else model.config.d_model**0.5
    model.lm_head.weight[END] = model.lm_head.weight[END] * 0.1 + mean / mean.square().sum() * kind.end_bias * scale


def tiny_torch(seed: int) -> Any:
    """A T5 of 64 tokens in torch alone, which ends texts sooner or later."""
    import torch
    import transformers

    sizes = SIZES | {"vocab_size": 64, "d_model": 32, "d_ff": 64}
    config = transformers.T5Config(**sizes, feed_forward_proj="relu")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(config).eval()
        _liven(model, Kind("T5", "relu", own_head=False, end_bias=3.0, depth=6))
    return model


def generated_beams(
    model: Any, prompt: list[int], beams: Beams, max_tokens: int, **more: Any
) -> list[tuple[tuple[int, ...], float]]:
    """All texts that transformers returns, without the start token and what fills them up, and their scores."""
    import torch

    found = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        num_beams=beams.count,
        num_return_sequences=beams.count,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        no_repeat_ngram_size=beams.no_repeat_ngram,
        repetition_penalty=beams.repetition_penalty,
        max_new_tokens=max_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    ends = set(more.get("eos_token_id", [END]))
    texts = []
    for row in found.sequences[:, 1:].tolist():
        end = next((at for at, token in enumerate(row) if token in ends), len(row))
        texts.append(tuple(row[: end + 1]))
    return list(zip(texts, found.sequences_scores.tolist(), strict=True))
