"""Losses are computed without a KV cache, which nobody would read; sampling keeps its own."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from finetune.model.loss import PaddedForward
from finetune.tokens.examples import Example, PairExample, TokenizedExample
from tests.families import write_family

KINDS = {"llama3": "AutoModelForCausalLM", "distilgpt2": "AutoModelForCausalLM", "flan-t5": "AutoModelForSeq2SeqLM"}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("family", KINDS)
def test_a_loss_keeps_no_cache(family: str, training: bool, tmp_path: Path) -> None:
    import torch

    model = getattr(transformers, KINDS[family]).from_pretrained(write_family(family, tmp_path / family))
    model.train(training)
    pairs = family == "flan-t5"
    ids = tuple(range(8, 40))
    rows: list[Example] = [PairExample(ids, ids[:9]) if pairs else TokenizedExample(ids, (-100,) * 20 + ids[20:])]
    kept: list[Any] = []
    model.register_forward_hook(lambda _module, _inputs, output: kept.append(output.get("past_key_values")))
    forward = PaddedForward(model, 0, encoder_decoder=pairs)
    with torch.set_grad_enabled(training):
        loss = forward.loss(forward.batch(rows), 1)
    assert kept == [None]
    assert loss.isfinite()
    model.eval()
    asked = torch.tensor([ids])
    made = [model.generate(asked, max_new_tokens=4, do_sample=False, use_cache=use).tolist() for use in (True, False)]
    assert made[0] == made[1]
    assert any(each is not None for each in kept[1:])
