"""Every family from its recipe's rows to an answer: train, export, prove, and the runtime's tokens against torch's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.build import ExportOptions
from export.original.model import SourceOptions
from export.pipeline import export_gguf
from export.proof.comparison import TIE_LOGITS
from export.proof.divergence import log_softmax
from export.proof.reference import Reference
from gladstone.chat.messages import Message
from gladstone.commands.progress import Silent
from gladstone.errors import UnsupportedError
from runtime.engine import Engine
from runtime.sampling.sampler import Sampling
from runtime.text.prompt import scored_tokens
from tests.export.tiny_runs import trained_by
from tests.families import FAMILIES, write_family
from tests.tiny_models import tiny_recipe, write_rows_file

ANSWER_TOKENS = 64
TARGETS = {"flan-t5": ["q", "v"], "distilgpt2": ["c_attn", "c_proj"], "phi4": ["qkv_proj", "o_proj", "down_proj"]}
TEMPLATES = {"flan-t5": "template:flan-t5-medical", "distilgpt2": "template:question-answer"}
STEPS = 20


def families() -> Iterator[Any]:
    """Those that differ in kind always, the others with the long tests."""
    for name in FAMILIES:
        different = name in ("flan-t5", "distilgpt2", "qwen2")
        yield name if different else pytest.param(name, marks=pytest.mark.long)


@pytest.fixture(scope="module", params=families())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 20 steps and its F16 file."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    recipe = tiny_recipe(write_family(name, folder / "base"), write_rows_file(folder / "rows.jsonl"))
    recipe["training"] |= {"max_steps": STEPS, "evaluations": 1}
    recipe["lora"] |= {"targets": TARGETS[name]} if name in TARGETS else {}
    recipe["base"] |= {"chat_template": TEMPLATES[name]} if name in TEMPLATES else {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    from click.testing import CliRunner

    from finetune.cli import main

    result = CliRunner().invoke(main, ["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    made = export_gguf(folder / "run", SourceOptions(), ExportOptions(("f16", "q8_0")), None, Silent())
    return folder / "run", made.files["tiny-f16.gguf"]


@pytest.mark.slow
def test_the_proof_is_clean(exported: tuple[Path, Path]) -> None:
    proof = json.loads((exported[1].parent / "proof.json").read_text())
    assert proof["passed"] is True
    checks = {point["name"]: point for point in proof["models"]["tiny"]}
    assert checks["greedy answers"]["measured"]["different"] == 0


@pytest.mark.slow
def test_the_runtime_answers_as_torch_does(exported: tuple[Path, Path]) -> None:
    run_folder, path = exported
    trained = trained_by(run_folder)
    reference = Reference(trained)
    question = next(row for row in trained.rows)
    with Engine(path) as engine:
        tokens = engine.prompt_tokens(question.prompt)
        assert tokens == trained.prompt(question, 0)
        completion = engine.complete(tokens, Sampling(max_tokens=ANSWER_TOKENS, logprobs=0))
    assert completion.logprobs is not None
    answer = [chosen.token for chosen in completion.logprobs]
    logits = reference.logits([tokens], [answer])[0][-len(answer) :]
    for token, scores in zip(answer, logits, strict=True):
        assert scores.max() - scores[token] <= TIE_LOGITS


@pytest.mark.slow
def test_a_question_of_a_user_is_answered(exported: tuple[Path, Path]) -> None:
    with Engine(exported[1]) as engine:
        tokens = engine.prompt_tokens([Message("user", "What does the heart mainly do?")])
        first = engine.complete(tokens, Sampling(max_tokens=ANSWER_TOKENS))
        again = engine.complete(tokens, Sampling(max_tokens=ANSWER_TOKENS))
    assert first.text == again.text
    assert first.stop_reason in ("end", "length")


@pytest.mark.slow
def test_an_answer_is_scored_as_torch_scores_it(exported: tuple[Path, Path]) -> None:
    run_folder, path = exported
    trained = trained_by(run_folder)
    row = next(iter(trained.rows))
    with Engine(path) as engine:
        found = engine.answer_loss(row.messages)
        prompt, answer = scored_tokens(engine.model, engine.template, row.messages)
    scores = log_softmax(Reference(trained).logits([prompt], [answer])[0])[-len(answer) :]
    expected = -sum(row[token] for row, token in zip(scores, answer, strict=True))
    assert found.tokens == len(answer)
    assert found.nats == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ngram", [0, 3])
def test_beams_are_those_of_transformers(exported: tuple[Path, Path], ngram: int) -> None:
    import torch

    run_folder, path = exported
    trained = trained_by(run_folder)
    row = next(iter(trained.rows))
    with Engine(path) as engine:
        tokens = engine.prompt_tokens(row.prompt)
        sampling = Sampling(max_tokens=24, beams=4, no_repeat_ngram=ngram)
        if not trained.seq2seq:
            with pytest.raises(UnsupportedError, match="has no encoder: beams"):
                engine.complete(tokens, sampling)
            return
        found = engine.complete(tokens, sampling)
        written = (
            Reference(trained)
            ._model.generate(
                input_ids=torch.tensor([tokens]),
                num_beams=4,
                max_new_tokens=24,
                no_repeat_ngram_size=ngram,
                do_sample=False,
            )[0]
            .tolist()
        )
        ends = [at for at, token in enumerate(written) if engine.model.ends_generation(token)]
        answer = written[1 : ends[0] if ends else None]
        expected = b"".join(engine.model.piece(token) for token in answer).decode("utf-8", "replace")
    assert found.text == expected
    assert found.stop_reason == ("end" if ends else "length")
