"""Tiny random models that give embeddings, in torch and as GGUF: BERT, an embedding decoder, T5, and what gives none.

The export refuses BERT, so llama.cpp's own converter is called, in one process for all of them.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.convert.llamacpp_converter import converter_folder
from gladstone.commands.progress import Silent
from tests.families import corpus, write_family

# pre-tokenizer: that of a vocabulary which the converter has never seen; BERT's own is none
CHILD = """
import json, sys
from pathlib import Path
import gguf, torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

for job in json.load(sys.stdin):
    folder = Path(job["folder"])
    hparams = ModelBase.load_hparams(folder, False)
    known = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    class Made(known):
        model_arch = known.model_arch

        def get_vocab_base_pre(self, tokenizer):
            return "qwen2"

        def set_gguf_parameters(self):
            super().set_gguf_parameters()
            if job["ranks"]:
                self.gguf_writer.add_pooling_type(gguf.PoolingType.RANK)

    with torch.inference_mode():
        Made(folder, gguf.LlamaFileType.ALL_F32, Path(job["out"]), hparams=hparams).write()
"""
POOLING_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
POSITIONS = 900


@dataclass(frozen=True)
class Made:
    """One model twice, and its tokenizer."""

    torch: Any
    tokenizer: Any
    gguf: Path

    def hidden_states(self, text: str) -> Any:
        """What the last layer says of each token (T, D), the text's special tokens taken as text."""
        import torch

        ids = self.tokenizer(text, return_tensors="pt", split_special_tokens=True).input_ids
        with torch.no_grad():
            return self.torch(input_ids=ids).last_hidden_state[0].numpy()


def make_all(folder: Path) -> dict[str, Made]:
    """`bert-mean` and `bert-cls` name their pooling, `bert` none, `decoder` the last token's; `t5`; two that refuse."""
    models = {"bert": _write_bert(folder / "bert"), "decoder": _write_decoder(folder / "decoder")}
    models["t5"] = _write_t5(folder / "t5")
    for name in ("mean", "cls"):
        shutil.copytree(folder / "bert", folder / f"bert-{name}")
        _name_pooling(folder / f"bert-{name}", name)
        models[f"bert-{name}"] = models["bert"]
    shutil.copytree(folder / "bert", folder / "reranker")
    models["reranker"] = models["bert"]
    models["classifier"] = _write_bert(folder / "classifier", labels=("bad", "good", "unsure"))
    _convert(folder, list(models))
    return {name: Made(model, _tokenizer(folder / name), folder / f"{name}.gguf") for name, model in models.items()}


def _convert(folder: Path, names: list[str]) -> None:
    jobs = [
        {"folder": str(folder / name), "out": str(folder / f"{name}.gguf"), "ranks": name == "reranker"}
        for name in names
    ]
    converter = converter_folder(Silent())
    paths = os.pathsep.join([str(converter / "gguf-py"), str(converter)])
    subprocess.run(
        [sys.executable, "-P", "-c", CHILD], input=json.dumps(jobs), text=True, check=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _write_bert(folder: Path, labels: tuple[str, ...] = ()) -> Any:
    import transformers
    from tokenizers import BertWordPieceTokenizer

    folder.mkdir(parents=True)
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(corpus(), vocab_size=800, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": POSITIONS, "initializer_range": 0.3,
    }  # fmt: skip
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    config = transformers.BertConfig(**sizes, **named)
    if labels:
        return _save(transformers.BertForSequenceClassification, config, folder)
    model = _save(transformers.BertModel, config, folder)
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = _gelu()
    return model


def _gelu() -> Any:
    """llama.cpp's activation, a table of the approximation by tanh in 16 bits, without which vectors differ by 0.002."""
    import torch

    class Gelu(torch.nn.Module):  # type: ignore[misc]
        def forward(self, values: Any) -> Any:
            return torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()

    return Gelu()


def _save(kind: Any, config: Any, folder: Path) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def _write_decoder(folder: Path) -> Any:
    """As Qwen3-Embedding: the end token behind each text, whose vector is the text's."""
    from transformers import AutoModel

    write_family("qwen3", folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    end = "<|im_end|>"
    number = next(each["id"] for each in data["added_tokens"] if each["content"] == end)
    last = {"SpecialToken": {"id": end, "type_id": 0}}
    one, two = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [one, last],
        "pair": [one, last, two, last],
        "special_tokens": {end: {"id": end, "ids": [number], "tokens": [end]}},
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    _name_pooling(folder, "last")
    return AutoModel.from_pretrained(folder, local_files_only=True).eval()


def _write_t5(folder: Path) -> Any:
    from transformers import T5EncoderModel

    write_family("flan-t5", folder)
    return T5EncoderModel.from_pretrained(folder, local_files_only=True).eval()


def _name_pooling(folder: Path, pooling: str) -> None:
    """As sentence-transformers writes it."""
    (folder / "1_Pooling").mkdir()
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    modes = {key: name == pooling for name, key in POOLING_KEYS.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes), encoding="utf-8")
