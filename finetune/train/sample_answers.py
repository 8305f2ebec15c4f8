"""Answers to fixed prompts during training, and their scores against the rows' own answers.

Names torch, rouge_score, sacrebleu. Decoding is greedy: two answers differ only by what was learnt between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.model.trainable import Trainable
from finetune.tokens.examples import IGNORED, Example, PairExample


@dataclass(frozen=True)
class Prompt:
    """A validation row: its prompt as tokens and as text, its last answer, and the token that ends it."""

    ids: tuple[int, ...]
    text: str
    reference: str
    end_id: int


def prompts_of(examples: Sequence[Example], count: int, decode: Callable[[list[int]], str]) -> list[Prompt]:
    """Return the prompts of the first `count` rows that have one; plain text has none."""
    return [made for made in (_prompt(example, decode) for example in examples) if made][:count]


def _prompt(example: Example, decode: Callable[[list[int]], str]) -> Prompt | None:
    if isinstance(example, PairExample):
        asked, answer = list(example.input_ids), list(example.labels)
    else:
        scored = [at for at, label in enumerate(example.labels) if label != IGNORED]
        if not scored:
            return None
        end = scored[-1] + 1
        begin = max((at + 1 for at, label in enumerate(example.labels[:end]) if label == IGNORED), default=0)
        asked, answer = list(example.input_ids[:begin]), list(example.labels[begin:end])
    if len(asked) < 2:
        return None
    return Prompt(tuple(asked), decode(asked).strip(), decode(answer[:-1]).strip(), answer[-1])


def answer(trainable: Trainable, prompt: Prompt, most_tokens: int, decode: Callable[[list[int]], str]) -> str:
    """Generate an answer, without the token that ends it; leaves the model in training mode."""
    import torch

    model = trainable.model
    model.eval()
    try:
        with torch.no_grad(), trainable.forward.generation_mode(), trainable.uncompiled(), trainable.autocast():
            ids = torch.tensor([prompt.ids], device=model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=most_tokens,
                eos_token_id=prompt.end_id,
                pad_token_id=prompt.end_id,
                use_cache=True,
            )[0].tolist()
    finally:
        trainable.train()
    written = output[1:] if model.config.is_encoder_decoder else output[len(prompt.ids) :]
    return decode([token for token in written if token != prompt.end_id]).strip()


def scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-L (mean F1, with stemming) and corpus BLEU, both in [0, 1]."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [
        scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(answers, references, strict=True)
    ]
    bleu = BLEU(effective_order=True).corpus_score(list(answers), [list(references)]).score
    return {"rougeL": sum(rouge) / len(rouge), "bleu": bleu / 100}
