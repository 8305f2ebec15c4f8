"""Every recipe on a tiny model of its base's architecture, with a tokenizer of its base's kind."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.config.load import DEFAULT_RECIPE, EMBEDDED_RECIPES, load_recipe, recipe_names, recipe_text
from finetune.config.schema import Recipe
from finetune.estimate.recipe_table import training_bytes
from finetune.model.load import load_trainable
from finetune.model.trainable import save_adapter
from finetune.tokens.examples import IGNORED, Example, TokenizedExample
from finetune.tokens.labeller import tokenize_all
from finetune.tokens.tokenize import tokenize_conversation
from finetune.train.evaluation import measure_loss
from gladstone.artifacts import check_files, read_manifest
from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.models.base_model import Base, resolve_base
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer
from tests.families import FAMILIES, recipe_families, write_family
from tests.finetune.looped import train
from tests.tiny_models import medical_rows, write_rows_file

REASONED = ("deepseek-r1", "qwen3", "smollm3", "llama3", "gemma3", "phi4", "tinyllama", "mistral")


@dataclass(frozen=True)
class Tiny:
    """A tiny base, its tokenizer, and what the recipe makes of them."""

    base: Base
    tokenizer: FolderTokenizer
    template: ChatTemplate


FindTiny = Callable[[str, str | None], Tiny]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FindTiny:
    """A family's model, made once; with a recipe's own template where it has one."""
    root = tmp_path_factory.mktemp("families")

    def find(family: str, template: str | None = None) -> Tiny:
        folder = root / family
        if not folder.exists():
            write_family(family, folder)
        tokenizer = load_tokenizer(folder)
        return Tiny(resolve_base(str(folder), Silent()), tokenizer, tokenizer.template(template))

    return find


def of_recipe(name: str, tiny: FindTiny) -> tuple[Recipe, Tiny]:
    recipe = load_recipe(name, [])
    family = recipe_families()[name]
    return recipe, tiny(family, recipe.own_template())


def rows() -> list[Conversation]:
    return [
        Conversation((Message("user", row["question"]), Message("assistant", row["answer"])), f"rows.jsonl:{line}")
        for line, row in enumerate(medical_rows(), 1)
    ]


def test_every_recipe_with_a_base_on_the_hub_has_a_family() -> None:
    assert {*recipe_families(), DEFAULT_RECIPE, *EMBEDDED_RECIPES} == set(recipe_names())


@pytest.mark.parametrize("name", recipe_families())
def test_settings_fit_the_base_as_its_table_says_and_the_table_fits_the_architecture(name: str, tiny: FindTiny) -> None:
    import transformers

    recipe, made = of_recipe(name, tiny)
    facts = recipe.hub
    assert facts is not None
    config = json.loads((made.base.folder / "config.json").read_text())
    assert config["architectures"] == [facts.architecture]
    kind = transformers.AutoModelForSeq2SeqLM if made.base.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(made.base.folder, local_files_only=True)
    linear = {
        path.rpartition(".")[2] for path, each in model.named_modules() if type(each).__name__ in ("Linear", "Conv1D")
    }
    assert linear - {"lm_head"} == set(facts.linear)
    assert set(recipe.lora.targets) <= linear
    assert recipe.base.max_tokens <= facts.context_tokens
    assert facts.vocabulary * facts.width < facts.parameters
    assert 1e9 < training_bytes(recipe, facts) < 16e9


PADDED = {"flan-t5-medical"}  # an encoder's attention is another one


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_families())
def test_twenty_steps_of_a_recipe_reduce_the_loss_and_leave_an_adapter(
    name: str, tiny: FindTiny, tmp_path: Path
) -> None:
    recipe, made = of_recipe(name, tiny)
    recipe = faster(recipe)
    pairs = made.base.is_encoder_decoder
    examples = tokenize_all(rows(), made.template, made.tokenizer, recipe.limits, pairs=pairs).examples
    trainable = load_trainable(made.base, recipe, made.tokenizer.padding_id, examples)
    assert trainable.forward.padded is (name in PADDED)
    before = measure_loss(trainable, examples)
    assert len(train(trainable, examples, recipe, tmp_path / "work").history.steps) == 20
    assert measure_loss(trainable, examples) < before - 0.05
    save_adapter(trainable, recipe.base.model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.base.model
    assert (config["r"], config["lora_alpha"]) == (recipe.lora.rank, recipe.lora.alpha)
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if pairs else "CAUSAL_LM")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def faster(recipe: Recipe) -> Recipe:
    """The recipe with its own adapter and limits, but twenty quick steps on a processor."""
    changes: dict[str, Any] = {
        "learning_rate": 1e-2, "max_steps": 20, "batch_size": 4, "accumulation": 1, "optimizer": "adamw_torch",
        "warmup_share": 0.0, "gradient_checkpointing": "off",
    }  # fmt: skip
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def scored(example: Example, tokenizer: FolderTokenizer) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize("family", REASONED)
def test_labels_cover_reasoning_answer_and_end_of_turn(family: str, tiny: FindTiny) -> None:
    made = tiny(family, None)
    turns = (
        Message("user", "What is it?"),
        Message("assistant", "An organ.", "Earlier thought."),
        Message("user", "Which one?"),
        Message("assistant", "The liver.", "It makes bile."),
    )
    *earlier, example = tokenize_conversation(Conversation(turns, "x:1"), made.template, made.tokenizer)
    text = scored(example, made.tokenizer)
    end = {"mistral": "</s>", "tinyllama": "</s>", "deepseek-r1": "<｜end▁of▁sentence｜>", "gemma3": "<end_of_turn>"}
    opening = "" if family == "deepseek-r1" else "<think>\n"
    wanted = f"{opening}It makes bile.\n</think>\n\nThe liver.{end.get(family, made.tokenizer.hf.eos_token)}"
    assert text.endswith(wanted)
    if family in (
        "deepseek-r1",
        "qwen3",
        "smollm3",
    ):  # these drop earlier thoughts: each answer is an example of its own
        assert text == wanted
        assert "Earlier thought." not in made.tokenizer.decode(list(example.input_ids))
        assert "Earlier thought.\n</think>\n\nAn organ." in scored(earlier[0], made.tokenizer)
    assert len(earlier) == (family in ("deepseek-r1", "qwen3", "smollm3"))
    assert made.tokenizer.eos_id in example.labels


def one(made: Tiny, turns: tuple[Message, ...]) -> TokenizedExample:
    return tokenize_conversation(Conversation(turns, "x:1"), made.template, made.tokenizer)[0]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("flan-t5", "distilgpt2", "deepseek-r1")])
@pytest.mark.parametrize("answer", ["The liver makes bile.", "5 mg; Größe — 心臓", "- one\n- two"])
def test_tokens_equal_those_that_transformers_gives_the_whole_text(family: str, answer: str, tiny: FindTiny) -> None:
    made = tiny(family, None)
    turns = [("user", "What does it do?"), ("assistant", answer), ("user", "And then?"), ("assistant", "Nothing.")]
    expected = made.tokenizer.hf.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], tokenize=True, return_dict=False
    )
    example = one(made, tuple(Message(role, text) for role, text in turns))
    bos = made.tokenizer.bos_id  # what the template does not write, the tokenizer puts in front of every text
    assert list(example.input_ids) == (expected if bos is None or expected[0] == bos else [bos, *expected])


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].kind in ("spm", "unigram")])
@pytest.mark.parametrize("text", ["The liver makes bile.", "5 mg twice", "x", " two  spaces", "naïve Größe"])
def test_the_tokenizers_of_the_families_are_sentencepieces_own(family: str, text: str, tiny: FindTiny) -> None:
    import sentencepiece

    folder = tiny(family, "{{ messages }}").base.folder
    path = folder / ("spiece.model" if family == "flan-t5" else "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if family == "flan-t5" and ("  " in text or not text.isascii()):
        pytest.skip("T5's normalisation is its own")
    assert load_tokenizer(folder).encode(text) == processor.encode(text)


def test_pairs_have_the_question_on_one_side_and_the_answer_on_the_other(tiny: FindTiny) -> None:
    recipe, made = of_recipe("flan-t5-medical", tiny)
    example = tokenize_all(rows()[:1], made.template, made.tokenizer, recipe.limits, pairs=True).examples[0]
    decode = made.tokenizer.decode
    assert decode(list(example.input_ids)) == "Answer this medical question: What does the heart mainly do?</s>"
    assert decode(list(example.labels)) == "The heart keeps the body's inner balance.</s>"
    assert example.target_tokens == len(example.labels)


@pytest.mark.parametrize(
    ("policy", "wanted"), [("drop", (0, 40, 0)), ("cut", (40, 0, 40)), ("cut prompt", (40, 0, 40))]
)
def test_long_pairs_are_dropped_or_cut(policy: str, wanted: tuple[int, int, int], tiny: FindTiny) -> None:
    recipe, made = of_recipe("flan-t5-medical", tiny)
    base = recipe.base.model_copy(update={"max_tokens": 8, "max_target_tokens": 100, "long_rows": policy})
    limits = recipe.model_copy(update={"base": base}).limits
    if policy == "drop":
        from gladstone.errors import DataError

        with pytest.raises(DataError, match="all 40 rows have more than 8 tokens"):
            tokenize_all(rows(), made.template, made.tokenizer, limits, pairs=True)
        return
    found = tokenize_all(rows(), made.template, made.tokenizer, limits, pairs=True)
    assert (len(found.examples), found.too_long, found.cut) == wanted
    assert {len(example.input_ids) for example in found.examples} == {8}
    assert {example.input_ids[-1] for example in found.examples} == {made.tokenizer.eos_id}


def run_recipe(name: str, made: Tiny, data: Path, out: Path, *overrides: str) -> Any:
    from click.testing import CliRunner

    from finetune.cli import main

    settings = [
        f"base.model={made.base.folder}", "training.max_steps=2", "training.optimizer=adamw_torch",
        "training.evaluations=1", *overrides,
    ]  # fmt: skip
    arguments = ["run", name, "--data", str(data), "--out", str(out)]
    for setting in settings:
        arguments += ["--set", setting]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.slow
def test_an_encoder_and_decoder_runs_behind_the_same_command(tiny: FindTiny, tmp_path: Path) -> None:
    _, made = of_recipe("flan-t5-medical", tiny)
    data = write_rows_file(tmp_path / "rows.jsonl")
    result = run_recipe("flan-t5-medical", made, data, tmp_path / "out", "data.test=5", "data.validation=5")
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "out")
    check_files(tmp_path / "out", manifest)
    assert manifest.facts["rows"] == {"train": 30, "validation": 5, "test": 5}
    assert (tmp_path / "out" / "tokenizer" / "spiece.model").is_file()
    assert "Answer this medical question: " in (tmp_path / "out" / "chat_template.jinja").read_text()


@pytest.mark.slow
def test_a_model_without_a_template_gets_one_that_is_stored_with_the_adapter(tiny: FindTiny, tmp_path: Path) -> None:
    recipe, made = of_recipe("distilgpt2-pubmedqa", tiny)
    assert load_tokenizer(made.base.folder).template_source is None
    result = run_recipe("distilgpt2-pubmedqa", made, write_rows_file(tmp_path / "rows.jsonl"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    stored = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert stored.template_source == recipe.own_template()
    assert read_manifest(tmp_path / "out").template_sha256 == stored.template().sha256


@pytest.mark.slow
def test_reasoning_within_a_budget_is_trained_where_the_prompt_opens_it(tiny: FindTiny, tmp_path: Path) -> None:
    _, made = of_recipe("deepseek-r1-cot", tiny)
    rows = [
        {"Question": row["question"], "Complex_CoT": "One thought. " * 30, "Response": row["answer"]}
        for row in medical_rows()
    ]
    data = write_rows_file(tmp_path / "rows.jsonl", rows)
    budget = ("data.reasoning={max_tokens: 20}", "data.duplicates.similarity=null")
    result = run_recipe("deepseek-r1-cot", made, data, tmp_path / "out", *budget)
    assert result.exit_code == 0, result.output
    facts = read_manifest(tmp_path / "out").facts
    assert facts["reasoning_cut"] == {"train": 32, "validation": 4, "test": 4}
    assert "40 with their reasoning cut" in result.output
    assert facts["formats"] == ["reasoning"]


def test_recipes_are_listed_with_base_memory_and_rows_and_shown_as_they_are() -> None:
    from click.testing import CliRunner

    from finetune.cli import main

    listed = CliRunner().invoke(main, ["recipes"]).output
    assert re.search(
        r"medbot-mistral-7b\n    .*\n    base mistralai/\S+, about [\d.]+ GB of GPU memory, 33,955 rows", listed
    )
    shown = CliRunner().invoke(main, ["recipes", "show", "phi-4-mini"])
    assert shown.output == recipe_text("phi-4-mini")
    unknown = CliRunner().invoke(main, ["recipes", "show", "phi"])
    assert unknown.exit_code == 1
    assert "no recipe 'phi'" in unknown.output


def test_reasoning_that_a_tokenizer_cannot_mark_is_refused(tiny: FindTiny) -> None:
    from gladstone.errors import DataError

    recipe, made = of_recipe("flan-t5-medical", tiny)
    row = Conversation((Message("user", "Why?"), Message("assistant", "So.", "Because.")), "x:1")
    with pytest.raises(DataError, match=r"x:1: the tokenizer has no '<think>'.*data\.reasoning=drop"):
        tokenize_all([row], made.template, made.tokenizer, recipe.limits, pairs=True)


@pytest.mark.parametrize("name", ["distilgpt2-pubmedqa", "medbot-mistral-7b"])
def test_labels_cover_reasoning_in_the_templates_that_come_along(name: str, tiny: FindTiny) -> None:
    _, made = of_recipe(name, tiny)
    example = one(made, (Message("user", "Which one?"), Message("assistant", "The liver.", "It makes bile.")))
    end = made.tokenizer.hf.eos_token
    assert scored(example, made.tokenizer).strip() == f"<think>\nIt makes bile.\n</think>\n\nThe liver.{end}"
