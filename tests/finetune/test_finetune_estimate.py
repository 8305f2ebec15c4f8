import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner

from finetune.cli import main
from finetune.config.load import load_recipe, recipe_names
from finetune.config.schema import Recipe
from finetune.estimate import estimate as estimates
from finetune.estimate import timing
from finetune.estimate.estimate import estimate
from finetune.estimate.recipe_table import training_bytes
from finetune.estimate.timing import Line, Rates
from finetune.model.load import load_trainable
from finetune.sizing.devices import DEVICES, find_device
from finetune.sizing.fit_to_memory import Scenario, assess, fit, single_options
from finetune.sizing.memory import ComputeSetting, MicroBatchShape, adapter_parameters, block_bytes, estimate_memory
from finetune.sizing.model_shape import Shape, shape_of_base, shape_of_config, shape_of_facts
from finetune.sizing.step_plan import Plan, Row, make_plan, micro_batch_shape, rows_of
from finetune.tokens.examples import PairExample, TokenizedExample
from gladstone.commands.progress import Silent
from gladstone.errors import ConfigError, UnsupportedError
from gladstone.models.base_model import resolve_base
from gladstone.models.embedded_model import EMBEDDED
from gladstone.models.tokenizer import load_tokenizer
from tests.families import write_family
from tests.tiny_models import write_model, write_rows_file

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip
ROWS = {
    "train": [Row(length, 0, length // 2) for length in range(40, 240)],
    "validation": [Row(100, 0, 50)] * 10,
    "test": [Row(100, 0, 50)] * 10,
}


def recipe(*overrides: str) -> Recipe:
    plain = ["base.load_in_4bit=false", "training.gradient_checkpointing=off", "training.batch_size=8"]
    plain.append("training.max_steps=null")
    return load_recipe("smollm2-135m-medical", [*plain, *overrides])


def case(*overrides: str, limit: float = 1e12, **setting: Any) -> Scenario:
    return Scenario(shape_of_config(SMOLLM2), recipe(*overrides), ComputeSetting(**setting), ROWS, limit)


def peak(*overrides: str, **setting: Any) -> int:
    given = case(*overrides, **setting)
    plan = make_plan(given.recipe, ROWS, padded=given.setting.padded)
    return estimate_memory(given.shape, given.recipe, given.setting, plan.largest, plan.evaluated).peak


def test_the_shape_of_a_folder_has_the_weights_that_its_files_have() -> None:
    shape, largest = shape_of_base(resolve_base(EMBEDDED, Silent()))
    assert shape.parameters == 134_515_008
    assert shape.embedding + shape.linear_weights == pytest.approx(shape.parameters, rel=0.001)
    assert largest == pytest.approx(2 * shape.parameters, rel=0.01)


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name, []).hub])
def test_facts_of_the_hub_give_a_shape_of_as_many_weights(name: str) -> None:
    facts = load_recipe(name, []).hub
    assert facts is not None
    shape = shape_of_facts(facts)
    counted = shape.embedding + shape.linear_weights
    assert counted == pytest.approx(facts.parameters, rel=0.08)
    assert {each.name for each in shape.linears} == set(facts.linear)


def test_a_config_without_sizes_is_refused_by_the_field_that_it_lacks() -> None:
    with pytest.raises(UnsupportedError, match="hidden_size"):
        shape_of_config({"model_type": "mamba"})


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in KEPT:
        write_family(name, folder / name)
    return folder


KEPT = {"llama3": (), "qwen3": (), "gemma3": (), "phi4": (), "distilgpt2": (), "flan-t5": ()}
TARGETS = {
    "distilgpt2": "[c_attn, c_proj]",
    "flan-t5": "[q, k, v, o, wi_0, wi_1, wo]",
    "phi4": "[qkv_proj, o_proj, gate_up_proj, down_proj]",
}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What Unsloth loads decoders in; it asks the processor once, and remembers the answer."""
    from finetune.model.decoder import import_unsloth

    import_unsloth()
    from unsloth_zoo.cpu.runtime import cpu_bf16_supported

    monkeypatch.setenv("UNSLOTH_CPU_BF16", str(int(request.param == "bfloat16")))
    cpu_bf16_supported.cache_clear()
    yield request.param
    cpu_bf16_supported.cache_clear()  # asked again when the variable is what it was


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all", "few"])
@pytest.mark.parametrize("family", KEPT)
def test_what_blocks_keep_is_what_autograd_keeps(family: str, targets: str, dtype: str, families: Path) -> None:
    base = resolve_base(str(families / family), Silent())
    names = TARGETS.get(family, "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]")
    if targets == "few":
        names = {"distilgpt2": "[c_attn]", "flan-t5": "[q, v]", "phi4": "[qkv_proj]"}.get(family, "[q_proj, v_proj]")
    chosen = recipe(f"lora.targets={names}")
    ids = tuple(range(8, 208))
    example = PairExample(ids, ids[:90]) if base.is_encoder_decoder else TokenizedExample(ids, (-100,) * 199 + ids[-1:])
    pad_id = load_tokenizer(base.folder).padding_id
    other = replace(example, input_ids=ids[::-1])  # so that the two share no beginning
    trainable = load_trainable(base, chosen, pad_id, [example, other])
    assert trainable.dtype == ("float32" if base.is_encoder_decoder else dtype)
    shape, _ = shape_of_base(base)
    batch = micro_batch_shape(rows_of([example, other], chosen.lora), padded=trainable.forward.padded)
    kept = saved_bytes(trainable, [example, other], shape)
    setting = ComputeSetting(4 if trainable.dtype == "float32" else 2, padded=trainable.forward.padded)
    assert block_bytes(shape, chosen.lora, setting, batch) == pytest.approx(kept, rel=0.08)


def saved_bytes(trainable: Any, examples: list[Any], shape: Shape) -> int:
    """What autograd keeps of the blocks: not the weights, not what has the vocabulary's width, not T5's bias."""
    import torch

    own = {each.untyped_storage().data_ptr() for each in trainable.model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Any) -> Any:
        alive.append(tensor)
        place = tensor.untyped_storage()
        scores = tensor.dim() == 4 and tensor.shape[0] == 1 and tensor.shape[3] > shape.width
        if place.data_ptr() not in own and tensor.shape[-1:] != (shape.vocabulary,) and not scores:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    batch = trainable.forward.batch(examples)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), trainable.autocast():
        trainable.forward.loss(batch, batch.target_tokens)
    return sum(kept.values())


def test_adapters_have_the_weights_that_peft_makes(tmp_path: Path) -> None:
    base = resolve_base(str(write_model(tmp_path / "base")), Silent())
    shape, _ = shape_of_base(base)
    for more in ((), ("lora.dora=true",), ("lora.targets=[q_proj, down_proj]", "lora.rank=4")):
        chosen = recipe(*more)
        model = load_trainable(base, chosen, 2, [TokenizedExample((5, 6, 7), (5, 6, 7))] * 2).model
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        assert adapter_parameters(shape, chosen.lora) == trained, more


def test_memory_grows_with_what_needs_it_and_shrinks_with_what_saves_it() -> None:
    plain = peak()
    assert peak("training.batch_size=16") > plain > peak("training.batch_size=4")
    assert peak("lora.rank=64") > plain
    assert peak("lora.dropout=0.1") > plain
    assert peak("lora.dora=true") > plain
    assert peak("lora.targets=[q_proj]") < plain
    assert peak("training.batch_tokens=500") < plain
    assert peak("base.load_in_4bit=true", "training.batch_size=2") < peak("training.batch_size=2")
    assert peak(recomputes=True) < plain
    assert peak(dtype_bytes=2) < plain
    assert peak(padded=True) > plain
    assert peak("training.optimizer=adamw_8bit") < plain
    assert peak(process_bytes=10**9) == plain + 10**9


def test_the_plan_is_the_one_that_the_loop_makes() -> None:
    plan = make_plan(
        recipe("training.batch_size=4", "training.accumulation=3", "training.epochs=2"), ROWS, padded=False
    )
    assert (plan.steps, plan.steps_per_epoch) == (34, 17)
    assert sum(batch.rows for batch in plan.training) == 2 * 200
    assert sum(batch.total for batch in plan.training) == 2 * sum(row.tokens for row in ROWS["train"])
    assert plan.largest.total <= 4 * 239
    padded = make_plan(recipe("training.batch_size=4"), ROWS, padded=True)
    assert sum(batch.total for batch in padded.training) > sum(row.tokens for row in ROWS["train"])


def test_what_rows_share_is_planned_once_unless_dropout_parts_them() -> None:
    rows = [TokenizedExample((1, 2, 3, end, 9), (-100, -100, -100, end, 9)) for end in (4, 5, 6)]
    assert rows_of(rows, recipe().lora) == [Row(5, 0, 2, 3, 1)] * 3
    assert rows_of(rows, recipe("lora.dropout=0.1").lora) == [Row(5, 0, 2, 0, 1)] * 3
    assert micro_batch_shape(rows_of(rows, recipe().lora), padded=False) == MicroBatchShape(6, 0, 3, 6)
    assert micro_batch_shape(rows_of(rows, recipe().lora), padded=True) == MicroBatchShape(15, 0, 3, 6)


def test_time_is_that_of_every_micro_batch_and_of_the_evaluations() -> None:
    plan = Plan(
        4,
        2,
        (MicroBatchShape(100), MicroBatchShape(50), MicroBatchShape(100), MicroBatchShape(50)),
        2,
        (MicroBatchShape(40),),
        (MicroBatchShape(30),),
        3,
        300.0,
        8,
        2.0,
    )
    taken = timing.times(plan, Rates(Line(1.0, 0.1), Line(0.5, 0.01), 2.0))
    assert taken.training_s == pytest.approx(2 * (4 + 30 + 2 * 2))
    assert taken.epoch_s == pytest.approx(4 + 30 + 2 * 2)
    assert taken.evaluation_s == pytest.approx(3 * (0.5 + 0.4) + 2 * (0.5 + 0.3))


@pytest.mark.parametrize("limit", [2.5e9, 1.5e9, 0.9e9, 0.65e9])
def test_what_fits_keeps_the_effective_batch_and_lies_below_the_limit(limit: float) -> None:
    given = case(limit=limit)
    option = fit(given)
    assert option.changes
    training = option.recipe.training
    assert training.batch_size * training.accumulation == 8
    assert option.memory.peak <= limit
    assert [line.partition("=")[0] for line in option.set_lines] == [f"--set {name}" for name in option.changes]


def test_what_costs_least_is_changed_first() -> None:
    # one after another, as memory gets less
    seen = [set(fit(case(limit=limit)).changes) for limit in (2.5e9, 0.95e9, 0.66e9)]
    assert seen[0] == {"training.batch_size", "training.accumulation"}
    assert "base.max_tokens" not in seen[1]
    assert seen[2] >= {"base.load_in_4bit"} or "training.gradient_checkpointing" in seen[2]


def test_the_set_lines_make_the_recipe_that_fits() -> None:
    option = fit(case(limit=0.65e9))
    assert recipe(*(line.removeprefix("--set ") for line in option.set_lines)) == option.recipe


def test_a_budget_of_tokens_is_halved_and_never_below_the_longest_row() -> None:
    option = fit(case("training.batch_tokens=3000", limit=1.5e9))
    assert option.recipe.training.batch_size == 8
    assert 239 <= (option.recipe.training.batch_tokens or 0) < 3000


def test_what_fits_as_it_is_is_not_changed() -> None:
    assert fit(case()).changes == {}


def test_rows_that_are_lost_are_counted() -> None:
    options = single_options(case())
    shorter = next(option for option in options if "base.max_tokens" in option.changes)
    most = shorter.recipe.base.max_tokens
    assert shorter.lost_rows == sum(row.input_tokens > most for row in ROWS["train"]) > 0
    assert [next(iter(option.changes)) for option in options] == [
        "training.batch_size", "training.gradient_checkpointing", "base.max_tokens",
    ]  # fmt: skip  # of so small a model 4-bit weights save less than their coming and going takes


def test_nothing_that_fits_is_an_error_with_the_smallest_peak() -> None:
    with pytest.raises(UnsupportedError, match=r"smallest possible peak is \d+\.\d MB .*100\.0 MB are"):
        fit(case(limit=1e8))


def test_recipe_tables_use_the_same_model() -> None:
    chosen = load_recipe("llama-3.2-1b", [])
    assert chosen.hub is not None
    setting = ComputeSetting(dtype_bytes=2, on_gpu=True, padded=True, recomputes=True, capability=(8, 0))
    tokens = chosen.training.batch_size * chosen.base.max_tokens
    batch = MicroBatchShape(tokens, 0, chosen.training.batch_size, tokens)
    found = estimate_memory(shape_of_facts(chosen.hub), chosen, setting, batch, MicroBatchShape(0))
    assert training_bytes(chosen, chosen.hub) == found.peak


def test_a_device_that_is_not_here_is_computed_and_says_so(tmp_path: Path) -> None:
    rows = write_rows_file(tmp_path / "rows.jsonl")
    arguments = ["estimate", "llama-3.2-1b", "--data", str(rows), "--device", "T4"]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    assert "on NVIDIA T4" in told.stdout
    assert "computed, not measured" in told.stdout
    assert "its shape comes from the recipe's facts" in told.stdout
    data = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert data["limit_bytes"] == DEVICES["t4"].memory_bytes
    assert data["fits"] is (data["memory_bytes"]["peak"] <= 0.95 * data["limit_bytes"])
    assert data["time_is"] == "computed"


def test_a_large_recipe_on_a_small_device_is_made_to_fit(tmp_path: Path) -> None:
    rows = write_rows_file(tmp_path / "rows.jsonl")
    wide = ["--set", "base.load_in_4bit=false", "--device", "8gb", "--data", str(rows)]
    told = CliRunner().invoke(main, ["estimate", "llama-3.2-3b", *wide])
    assert "DOES NOT FIT" in told.stdout
    assert "base.load_in_4bit=true" in told.stdout
    fitted = CliRunner().invoke(main, ["estimate", "llama-3.2-3b", *wide, "--fit"])
    assert fitted.exit_code == 0, fitted.output
    assert "changed   --set base.load_in_4bit=true" in fitted.stdout
    assert "DOES NOT FIT" not in fitted.stdout


def test_an_unknown_device_lists_those_that_are_known() -> None:
    told = CliRunner().invoke(main, ["estimate", "--device", "t5"])
    assert told.exit_code == 1
    assert "--device t5: unknown; known: auto, cuda, cpu, t4, p100, v100, l4" in told.stderr
    with pytest.raises(ConfigError, match="known: auto, cuda, cpu, t4"):
        find_device("")


def test_a_base_about_which_nothing_is_known_is_refused() -> None:
    unknown = load_recipe("smollm2-135m-medical", ["base.model=someone/model"])
    with pytest.raises(ConfigError, match=r"base\.model: someone/model .* no `hub:` facts"):
        estimate(unknown.model_copy(update={"hub": None}), Silent(), "t4")


def test_this_machine_is_measured_on_a_few_layers_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "BUDGET_S", 0.5)
    base, rows = write_model(tmp_path / "base"), write_rows_file(tmp_path / "rows.jsonl")
    chosen = load_recipe("smollm2-135m-medical", [f"base.model={base}", "base.load_in_4bit=false"], (str(rows), "qa"))
    found = estimate(chosen, Silent())
    assert found.measured
    assert found.fits
    assert found.times is not None
    assert found.times.total_s > found.times.evaluation_s > 0
    assert found.plan.steps == chosen.training.total_steps(found.plan.steps_per_epoch) == 4
    assert (found.plan.rows_trained, found.plan.epochs) == (32, 1)


def test_a_base_with_fewer_layers_is_loaded_by_links_alone(tmp_path: Path) -> None:
    base = resolve_base(str(write_model(tmp_path / "base")), Silent())
    (tmp_path / "short").mkdir()
    short = timing._with_layers(base, tmp_path / "short", 1)
    assert json.loads((short.folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert (short.folder / "model.safetensors").is_symlink()
    assert len(transformers.AutoModelForCausalLM.from_pretrained(short.folder).model.layers) == 1


@pytest.mark.long
@pytest.mark.slow
def test_the_peak_of_a_run_is_the_estimated_one(tmp_path: Path) -> None:
    rows = Path("finetune/samples")
    assert rows.is_dir()
    settings = [
        "base.load_in_4bit=false", "training.batch_size=4", "training.max_steps=3", "training.evaluations=1",
        "training.gradient_checkpointing=off", "data.max_rows=80", "data.test=8", "data.validation=8",
    ]  # fmt: skip
    common = ["smollm2-135m-medical", *(part for each in settings for part in ("--set", each))]
    told = json.loads(finetune("estimate", *common, "--json").splitlines()[-1])
    finetune("run", *common, "--out", str(tmp_path / "run"))
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["facts"]
    assert told["memory_bytes"]["peak"] == pytest.approx(facts["peak_memory_bytes"], rel=0.25)


def finetune(*arguments: str) -> str:
    code = "from finetune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_that_are_cut_are_not_lost() -> None:
    rows = ROWS | {"train": [Row(length, 0, length // 2) for length in range(40, 4000, 20)]}
    smallest = ("training.batch_size=1", "training.accumulation=8", "base.load_in_4bit=true",
                "training.gradient_checkpointing=on")  # fmt: skip
    given = replace(case(*smallest, "base.long_rows=cut"), rows=rows)
    option = fit(replace(given, limit_bytes=0.9 * assess(given)[1].peak))
    assert list(option.changes) == ["base.max_tokens"]
    assert option.lost_rows == 0
    assert len(option.rows["train"]) == len(rows["train"])
