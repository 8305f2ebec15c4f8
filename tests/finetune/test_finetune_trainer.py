import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from finetune.config.row_limits import RowLimits
from finetune.config.schema import Recipe
from finetune.model import trainable as parts
from finetune.model.load import load_trainable
from finetune.model.loss import PackedForward, PaddedForward
from finetune.model.trainable import Trainable, save_adapter
from finetune.monitor.metrics_log import StepStats
from finetune.tokens.examples import IGNORED, Example, TokenizedExample, common_prefix_length
from finetune.tokens.labeller import tokenize_all
from finetune.train.evaluation import measure_loss
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.errors import DataError, UnsupportedError
from gladstone.formats import read_conversations
from gladstone.models.base_model import Base, resolve_base
from gladstone.models.tokenizer import FolderTokenizer
from tests.finetune.looped import train
from tests.tiny_models import tiny_recipe, write_rows_file

PAD = 2
MakeRecipe = Callable[..., Recipe]
Load = Callable[[Recipe], Trainable]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return resolve_base(str(tiny_base), Silent())


@pytest.fixture
def recipe(tiny_base: Path) -> MakeRecipe:
    """A recipe of the tiny model: `recipe(lora={...}, training={...})`."""
    return lambda **sections: Recipe.model_validate(tiny_recipe(tiny_base, Path("rows.jsonl"), **sections))


@pytest.fixture(scope="module")
def examples(
    tmp_path_factory: pytest.TempPathFactory, template: ChatTemplate, tokenizer: FolderTokenizer
) -> tuple[Example, ...]:
    rows = [
        {"question": f"Question {number}?", "answer": " ".join(["word"] * (1 + number * number)) + "."}
        for number in range(8)
    ]
    path = write_rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    return tokenize_all(read_conversations(path, "qa"), template, tokenizer, RowLimits(512)).examples


def run(trainable: Trainable, examples: tuple[Example, ...], recipe: Recipe, work: Path) -> list[StepStats]:
    return train(trainable, examples, recipe, work).history.steps


@pytest.fixture
def load(base: Base, examples: tuple[Example, ...]) -> Load:
    return lambda recipe: load_trainable(base, recipe, PAD, examples)


def test_a_padded_batch_is_padded_on_the_right_and_padding_is_not_scored(load: Load, recipe: MakeRecipe) -> None:
    rows = [TokenizedExample((5, 6, 7), (IGNORED, 6, 7)), TokenizedExample((8,), (8,))]
    batch = PaddedForward(load(recipe()).model, PAD, encoder_decoder=False).batch(rows)
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch.tensors["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch.tensors["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.target_tokens, batch.tokens, batch.computed_tokens) == (2, 4, 6)


def test_a_packed_batch_has_no_padding_and_scores_no_row_by_the_one_before(load: Load, recipe: MakeRecipe) -> None:
    rows = [TokenizedExample((5, 6, 7), (IGNORED, 6, 7)), TokenizedExample((8, 9), (8, 9))]
    batch = PackedForward(load(recipe()).model).batch(rows)
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 8]]  # nothing is predicted from the last of each row
    assert batch.tensors["position_ids"].tolist() == [[0, 1, 0]]
    assert batch.tensors["borders"].tolist() == [0, 2, 3]
    assert batch.tensors["scored"].tolist() == [0, 1, 2]
    assert batch.tensors["targets"].tolist() == [6, 7, 9]
    assert (batch.target_tokens, batch.tokens, batch.computed_tokens) == (3, 5, 3)


def test_a_shared_prefix_is_packed_once(load: Load, recipe: MakeRecipe) -> None:
    rows = [
        TokenizedExample((5, 6, 7, 8, 1), (IGNORED, IGNORED, IGNORED, 8, 1)),
        TokenizedExample((5, 6, 9, 1, 4, 4), (IGNORED, IGNORED, IGNORED, 1, IGNORED, IGNORED)),
    ]
    batch = PackedForward(load(recipe()).model).batch(rows)
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch.tensors["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert batch.tensors["borders"].tolist() == [2, 4, 5]
    assert batch.tensors["scored"].tolist() == [2, 3, 4]
    assert batch.tensors["targets"].tolist() == [8, 1, 1]
    assert (batch.target_tokens, batch.tokens, batch.computed_tokens) == (3, 11, 5)
    assert PackedForward(load(recipe(lora={"dropout": 0.1})).model).batch(rows).computed_tokens == 7


def test_the_last_token_of_a_shared_prefix_predicts_the_next_token_of_every_row(load: Load, recipe: MakeRecipe) -> None:
    rows = [TokenizedExample((5, 6, each, 1), (IGNORED, IGNORED, each, 1)) for each in (7, 8)]
    batch = PackedForward(load(recipe()).model).batch(rows)
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert batch.tensors["scored"].tolist() == [1, 2, 1, 3]
    assert batch.tensors["targets"].tolist() == [7, 1, 8, 1]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([((1, 2, 3, 4), 3)], 0),
        ([((1, 2, 3, 4), 2), ((1, 2, 5, 4), 2)], 2),
        ([((1, 2, 3, 4), 3), ((1, 2, 3, 4), 3)], 2),
        ([((1, 2, 3, 4), 1), ((1, 2, 3, 4), 3)], 1),
        ([((1, 2, 3, 4), 3), ((7, 2, 3, 4), 3)], 0),
        ([((1, 2), 1), ((1, 2, 3), 1)], 0),
        ([((1, 2, 3, 4, 5), 4), ((1, 2, 3, 4, 5), 4), ((1, 2, 8, 4, 5), 4)], 2),
        ([((1, 2, 3), 3), ((1, 2, 3), 3)], 0),  # nothing is scored
    ],
)
def test_a_shared_prefix_is_unscored_and_leaves_every_row_a_needed_token(
    rows: list[tuple[tuple[int, ...], int]], shared: int
) -> None:
    examples = [TokenizedExample(ids, (IGNORED,) * begin + ids[begin:]) for ids, begin in rows]
    assert common_prefix_length(examples) == shared


def test_gradients_of_rows_with_a_shared_prefix_equal_those_of_padded_rows(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...]
) -> None:
    import torch

    trainable = load(recipe(lora={"init": "gaussian"}))
    trainable.model.float()  # where the processor has bfloat16 the model is held in it
    for parameter in trainable.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    assert isinstance(trainable.forward, PackedForward)
    assert common_prefix_length(examples) > 5
    found = []
    for padded in (False, True):
        forward = PaddedForward(trainable.model, PAD, encoder_decoder=False) if padded else trainable.forward
        with trainable.forward.generation_mode() if padded else nullcontext():
            batch = forward.batch(examples)
            loss = forward.loss(batch, batch.target_tokens)
            trainable.model.zero_grad()
            loss.backward()
        found.append({n: p.grad.clone() for n, p in trainable.model.named_parameters() if p.grad is not None})
    packed, wanted = found
    assert packed.keys() == wanted.keys()
    for name, gradient in packed.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-6 * float(wanted[name].abs().max() + 1)), name


def test_the_measured_loss_is_the_cross_entropy_of_the_answers_row_by_row(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...]
) -> None:
    import torch

    trainable = load(recipe())
    trainable.model.float()  # as above
    measured = measure_loss(trainable, examples)
    nats, tokens = 0.0, 0
    trainable.model.eval()
    for example in examples:
        with torch.no_grad(), trainable.forward.generation_mode():
            logits = trainable.model(torch.tensor([example.input_ids])).logits[0].double()
        log_p = logits.log_softmax(-1)
        for position, label in enumerate(example.labels[1:]):
            if label != IGNORED:
                nats -= float(log_p[position, label])
                tokens += 1
    assert tokens == sum(example.target_tokens for example in examples)
    assert measured == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_the_first_logged_loss_is_the_mean_over_all_tokens_of_the_step(
    load: Load,
    recipe: MakeRecipe,
    examples: tuple[Example, ...],
    tmp_path: Path,
    batch_size: int,
    accumulation: int,
) -> None:
    training = {"batch_size": batch_size, "accumulation": accumulation, "max_steps": 1, "learning_rate": 1e-9}
    chosen = recipe(training=training)
    trainable = load(chosen)
    expected = measure_loss(trainable, examples)
    of_rows = [measure_loss(trainable, (example,)) for example in examples]
    (stats,) = run(trainable, examples, chosen, tmp_path)
    assert stats.loss_nats_per_token == pytest.approx(expected, abs=2e-3)
    # the rows differ enough to tell a mean over tokens from a mean over rows
    assert abs(sum(of_rows) / len(of_rows) - expected) > 0.02


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_a_step_counts_its_tokens_and_its_padding(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...], tmp_path: Path, padded: bool
) -> None:
    chosen = recipe(training={"batch_size": 8, "max_steps": 1})
    trainable = load(chosen)
    if padded:
        trainable = dataclasses.replace(trainable, forward=PaddedForward(trainable.model, PAD, encoder_decoder=False))
        trainable.model.get_base_model().set_attn_implementation("sdpa")
    (stats,) = run(trainable, examples, chosen, tmp_path)
    lengths = [len(example.input_ids) for example in examples]
    assert stats.tokens == sum(lengths)
    assert stats.target_tokens == sum(example.target_tokens for example in examples)
    assert stats.padding_share == pytest.approx(1 - sum(lengths) / (8 * max(lengths)) if padded else 0)
    assert stats.step_s > 0


@pytest.mark.parametrize("four_bit", [False, True], ids=["LoRA", "QLoRA"])
def test_twenty_steps_reduce_the_loss_and_touch_only_the_adapter(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...], tmp_path: Path, four_bit: bool
) -> None:
    import torch

    chosen = recipe(base={"load_in_4bit": four_bit}, training={"max_steps": 20, "learning_rate": 1e-2})
    trainable = load(chosen)
    parameters = dict(trainable.model.named_parameters())
    frozen = {name: value.detach().clone() for name, value in parameters.items() if not value.requires_grad}
    before = measure_loss(trainable, examples)
    steps = run(trainable, examples, chosen, tmp_path)
    after = measure_loss(trainable, examples)
    assert [stats.step for stats in steps] == list(range(1, 21))
    assert after < before - 1
    assert after == pytest.approx(steps[-1].loss_nats_per_token, abs=1.5)
    now = dict(trainable.model.named_parameters())
    trained = {name: value for name, value in now.items() if value.requires_grad}
    assert trained
    assert all(".lora_" in name and value.dtype == torch.float32 for name, value in trained.items())
    assert frozen.keys() == now.keys() - trained.keys()
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())


def test_the_saved_adapter_names_the_base_as_the_recipe_does(load: Load, recipe: MakeRecipe, tmp_path: Path) -> None:
    chosen = recipe(lora={"rank": 4, "alpha": 8, "rslora": True, "targets": ["q_proj", "down_proj"]})
    save_adapter(load(chosen), "owner/model", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/model"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_target_that_the_model_lacks_is_refused_with_those_it_has(load: Load, recipe: MakeRecipe) -> None:
    with pytest.raises(UnsupportedError, match=r"lora\.targets: .* has no layers called c_attn; .*down_proj.*q_proj"):
        load(recipe(lora={"targets": ["q_proj", "c_attn"]}))


def test_activations_are_recomputed_only_where_memory_demands_it(load: Load, recipe: MakeRecipe) -> None:
    model = load(recipe()).model
    for wish, tokens, expected in (
        ("auto", 100, False),
        ("auto", 10**10, True),
        ("on", 100, True),
        ("off", 10**10, False),
    ):
        chosen = recipe(training={"gradient_checkpointing": wish})
        assert parts.needs_checkpointing(model, chosen, tokens) is expected, (wish, tokens)


def test_recomputing_activations_does_not_change_the_loss(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    losses = []
    for wish in ("on", "off"):
        chosen = recipe(training={"gradient_checkpointing": wish, "max_steps": 3, "batch_size": 8})
        trainable = load(chosen)
        assert trainable.checkpointing is (wish == "on")
        losses.append([stats.loss_nats_per_token for stats in run(trainable, examples, chosen, tmp_path / wish)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_loss_that_is_not_finite_stops_the_training(
    load: Load, recipe: MakeRecipe, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    chosen = recipe(training={"learning_rate": 1e30, "max_steps": 4})
    with pytest.raises(DataError, match=r"the loss of step 2 is (nan|inf): lower training\.learning_rate"):
        run(load(chosen), examples, chosen, tmp_path)


def test_a_step_without_a_scored_token_is_an_error(load: Load, recipe: MakeRecipe, tmp_path: Path) -> None:
    chosen = recipe(training={"max_steps": 1, "batch_size": 2})
    nothing = (TokenizedExample((5, 6, 7), (IGNORED,) * 3),) * 2
    with pytest.raises(DataError, match="step 1 has no scored token"):
        run(load(chosen), nothing, chosen, tmp_path)
