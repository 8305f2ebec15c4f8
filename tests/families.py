"""Tiny random models of the architectures that recipes name, each with a real tokenizer of its own kind.

Tokenizers are trained here on the embedded rows: sentencepiece BPE with byte fallback (Llama 2, Mistral, Gemma),
sentencepiece unigram (T5), and byte-level BPE with the pre-tokenizer of GPT-2, Llama 3 or Qwen.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.data import Source
from finetune.data.sources import source_file
from tests.gladstone import chat_templates as templates

WIDTH, LAYERS, HEADS = 64, 2, 4
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Family:
    """How a model of this kind is made: its tokenizer, its template, its architecture."""

    kind: str  # of the tokenizer: 'spm', 'unigram' or a split pattern of byte-level BPE
    architecture: str
    template: str | None
    special: tuple[str, ...]
    bos: str | None = None
    eos: str = "</s>"
    pad: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    adds_bos: bool = True
    space_in_front: bool = True  # sentencepiece's dummy prefix


LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = {"num_key_value_heads": 2}

FAMILIES = {
    "mistral": Family("spm", "Mistral", templates.MISTRAL, ("<unk>", "<s>", "</s>"), "<s>", settings=LLAMA),
    "tinyllama": Family("spm", "Llama", templates.ZEPHYR, ("<unk>", "<s>", "</s>"), "<s>", pad="</s>", settings=LLAMA),
    "flan-t5": Family("unigram", "T5", None, ("<pad>", "</s>", "<unk>"), pad="<pad>"),
    "distilgpt2": Family(GPT2_SPLIT, "GPT2", None, ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", adds_bos=False),
    "deepseek-r1": Family(
        LLAMA3_SPLIT, "Llama", templates.DEEPSEEK_R1, DEEPSEEK_SPECIAL, *DEEPSEEK_SPECIAL[:2], settings=LLAMA
    ),
    "qwen2": Family(
        QWEN_SPLIT, "Qwen2", templates.REASONING_FIELD, CHATML_SPECIAL, None, "<|im_end|>", "<|endoftext|>",
        settings=LLAMA, adds_bos=False,
    ),
    "qwen3": Family(
        QWEN_SPLIT, "Qwen3", templates.REASONING_FIELD, CHATML_SPECIAL, None, "<|im_end|>", "<|endoftext|>",
        settings=LLAMA | {"head_dim": 16}, adds_bos=False,
    ),
    "gemma3": Family(
        "spm", "Gemma3", templates.GEMMA, ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>", "<end_of_turn>", "<pad>", settings=LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}, space_in_front=False,
    ),
    "llama3": Family(LLAMA3_SPLIT, "Llama", templates.LLAMA_3, LLAMA3_SPECIAL, "<|begin_of_text|>", "<|eot_id|>", settings=LLAMA),
    "phi4": Family(
        LLAMA3_SPLIT, "Phi3", templates.PHI_4_MINI, ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>", "<|end|>", "<|endoftext|>", settings=LLAMA, adds_bos=False,
    ),
    "smollm3": Family(
        LLAMA3_SPLIT, "SmolLM3", templates.REASONING_FIELD, ("<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
        None, "<|im_end|>", "<|end_of_text|>", settings=LLAMA, adds_bos=False,
    ),
}  # fmt: skip


def write_family(name: str, folder: Path) -> Path:
    """A complete model folder of a family, as the Hub would hold it."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(family, folder)
    _write_model(family, folder)
    return folder


def corpus() -> list[str]:
    """The texts of the embedded rows."""
    path = source_file(Source(path="sample:flashcards"))
    return [text for line in path.read_text(encoding="utf-8").splitlines() for text in json.loads(line).values()]


def write_tokenizer(family: Family, folder: Path) -> None:
    """tokenizer.json, its configuration, and sentencepiece's own model where the family has one."""
    from transformers import PreTrainedTokenizerFast

    made = {"spm": _sentencepiece_bpe, "unigram": _sentencepiece_unigram}.get(family.kind, _byte_level_bpe)(
        family, folder
    )
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad, "unk_token": _unknown(family)}
    extra = [each for each in family.special if each not in named.values()]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{key: value for key, value in named.items() if value},
        additional_special_tokens=extra,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = family.template
    wrapped.save_pretrained(folder)


def _unknown(family: Family) -> str | None:
    return "<unk>" if "<unk>" in family.special else None


def _sentencepiece(family: Family, folder: Path, **options: Any) -> Any:
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=made, minloglevel=2, num_threads=1, **options
    )
    name = "spiece.model" if family.kind == "unigram" else "tokenizer.model"
    (folder / name).write_bytes(made.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def _sentencepiece_bpe(family: Family, folder: Path) -> Any:
    """As the Hub's tokenizer.json of Llama 2: the pieces, the merges that they imply, a space in front of a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    special = family.special
    gemma = "<bos>" in special
    named = {"bos_piece": "<bos>", "eos_piece": "<eos>", "pad_id": 3} if gemma else {}
    symbols = [each for each in special if each not in ("<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>")]
    processor = _sentencepiece(
        family, folder, model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=1.0,
        user_defined_symbols=symbols, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, add_dummy_prefix=family.space_in_front, **named,
    )  # fmt: skip
    pieces = {processor.id_to_piece(index): index for index in range(processor.vocab_size())}
    merges = []
    for piece, index in pieces.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(index, pair) for pair in splits if all(part in pieces for part in pair)]
    tokenizer = Tokenizer(
        models.BPE(pieces, [pair for _, pair in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prefix = [normalizers.Prepend("▁")] if family.space_in_front else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if family.space_in_front else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _with_special(tokenizer, family)


def _sentencepiece_unigram(family: Family, folder: Path) -> Any:
    """As T5's: unigram pieces with their scores, `</s>` behind every text."""
    from sentencepiece import sentencepiece_model_pb2 as protocol
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    processor = _sentencepiece(
        family, folder, model_type="unigram", vocab_size=900, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )  # fmt: skip
    pieces = [(processor.id_to_piece(index), processor.get_score(index)) for index in range(processor.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    proto: Any = protocol.ModelProto.FromString((folder / "spiece.model").read_bytes())  # type: ignore[attr-defined]
    tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer = _with_special(tokenizer, family)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [end])
    return tokenizer


def _byte_level_bpe(family: Family, _folder: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if family.kind == QWEN_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(family.kind), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    return _with_special(tokenizer, family)


def _with_special(tokenizer: Any, family: Family) -> Any:
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in family.special])
    if family.bos and family.adds_bos:
        first = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{family.bos}:0 $A:0", f"{family.bos}:0 $A:0 $B:1", [first]
        )
    return tokenizer


def _write_model(family: Family, folder: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    make: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
        "T5": lambda: (
            "T5ForConditionalGeneration",
            {"d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS,
             "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
             "dropout_rate": 0.0},
        ),
        "GPT2": lambda: (
            "GPT2LMHeadModel",
            {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 1024, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        ),
    }  # fmt: skip
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    } | family.settings  # fmt: skip
    model_name, settings = make.get(family.architecture, lambda: (f"{family.architecture}ForCausalLM", sizes))()
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(family.architecture, f"{family.architecture}Config")
    config = getattr(transformers, config_name)(**ids, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_name)(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # which begin as 0, so that nobody would miss them
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)


def recipe_families() -> dict[str, str]:
    """Which family stands in for the base of each recipe."""
    return {
        "medbot-mistral-7b": "mistral",
        "flan-t5-medical": "flan-t5",
        "tinyllama-qlora": "tinyllama",
        "distilgpt2-pubmedqa": "distilgpt2",
        "deepseek-r1-cot": "deepseek-r1",
        "qwen3-0.6b": "qwen3",
        "qwen3-1.7b": "qwen3",
        "qwen3-4b": "qwen3",
        "gemma-3-270m": "gemma3",
        "gemma-3-1b": "gemma3",
        "llama-3.2-1b": "llama3",
        "llama-3.2-3b": "llama3",
        "phi-4-mini": "phi4",
        "smollm3-3b": "smollm3",
    }


def names() -> Sequence[str]:
    """All families."""
    return tuple(FAMILIES)
