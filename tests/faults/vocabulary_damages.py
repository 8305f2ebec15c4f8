"""Kinds of damage to the vocabulary and the template of a GGUF, entered among the others of `damages`."""

import random
import struct

from tests.faults.damages import ODD_FRACTIONS, damage, value_of
from tests.gladstone.gguf_files import ARRAY, BOOL, I32, STRING, U32, Array, Gguf

TOKENIZER = "tokenizer.ggml."
TOKENIZERS = (
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "plamo2",
    "none",
    "no_vocab",
    "whitespace",
    "gemma4",
    "test",
    "x",
    "",
)


@damage("a token twice")
def _token_twice(file: Gguf, draw: random.Random) -> bytes:
    tokens = value_of(file, f"{TOKENIZER}tokens").values
    one, two = draw.sample(range(len(tokens)), 2)
    tokens[one] = draw.choice([tokens[two], tokens[two] + "\0", tokens[two] + "\0x", f"[EMPTY_{two}]"])
    if tokens[one].startswith("[EMPTY_"):
        tokens[two] = ""
    return file.content()


@damage("texts of tokens")
def _token_texts(file: Gguf, draw: random.Random) -> bytes:
    tokens = value_of(file, f"{TOKENIZER}tokens").values
    strange = [
        "",
        "\0",
        "\udcff\udcfe",
        "\udced\udca0\udc80",
        "x" * 500_000,
        "<0xZZ>",
        "<0x>",
        "\n",
        " ",
        "�",
        "\U0010ffff",
    ]
    for number in draw.sample(range(len(tokens)), draw.choice([1, 2, 20])):
        tokens[number] = draw.choice(strange) + (str(number) if draw.random() < 0.5 else "")
    return file.content()


@damage("lengths of the vocabulary's lists")
def _list_lengths(file: Gguf, draw: random.Random) -> bytes:
    names = [name for name in ("tokens", "token_type", "scores", "merges") if value_of(file, TOKENIZER + name)]
    values = value_of(file, TOKENIZER + draw.choice(names)).values
    choice = draw.randrange(3)
    if choice == 0:
        del values[draw.randrange(len(values)) :]
    elif choice == 1:
        values.extend([f"{item}{number}" if isinstance(item, str) else item for number, item in enumerate(values[:5])])
    else:
        values.clear()
    return file.content()


@damage("types and scores of tokens")
def _token_types(file: Gguf, draw: random.Random) -> bytes:
    scores = value_of(file, f"{TOKENIZER}scores")
    if scores is not None and draw.random() < 0.5:
        odd = draw.choice(ODD_FRACTIONS)
        scores.values[:] = [odd if draw.random() < 0.5 else score for score in scores.values]
        return file.content()
    types = value_of(file, f"{TOKENIZER}token_type").values
    kind = draw.choice([-1, 0, 2, 3, 4, 5, 6, 7, 255, 2**31 - 1, -(2**31)])
    types[:] = [kind if draw.random() < draw.choice([0.01, 0.5, 1]) else old for old in types]
    return file.content()


@damage("merges")
def _merges(file: Gguf, draw: random.Random) -> bytes:
    merges = value_of(file, f"{TOKENIZER}merges")
    odd = ["", " ", "  ", "ab", "a ", " b", "a b c", "zz yy", "\0 \0", "x" * 100_000 + " y", "\udcff \udcfe"]
    if merges is None:
        file.set(f"{TOKENIZER}merges", ARRAY, Array(STRING, [draw.choice(odd)]))
        file.set(f"{TOKENIZER}model", STRING, "gpt2")
    else:
        merges.values[draw.randrange(len(merges.values))] = draw.choice(odd)
    return file.content()


@damage("ids of tokens")
def _ids(file: Gguf, draw: random.Random) -> bytes:
    count = len(value_of(file, f"{TOKENIZER}tokens").values)
    name = draw.choice(["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_sep"])
    value = draw.choice([count, count + 1, 2**31 - 1, 2**31, 2**32 - 1])
    choice = draw.randrange(4)
    if choice == 0:
        ids = [0, draw.choice([count, -1, 2**31 - 1])]
        file.set(TOKENIZER + draw.choice(["suppress_tokens", "eos_token_ids"]), ARRAY, Array(I32, ids))
    elif choice == 1:
        file.set(f"{TOKENIZER}{name}_token_id", I32, -1)
    elif choice == 2 and value_of(file, "t5.decoder_start_token_id") is not None:
        file.set("t5.decoder_start_token_id", U32, value)
    else:
        file.set(f"{TOKENIZER}{name}_token_id", U32, value)
    return file.content()


@damage("rules that rewrite characters")
def _charsmap(file: Gguf, draw: random.Random) -> bytes:
    rules = value_of(file, f"{TOKENIZER}precompiled_charsmap")
    if rules is None:
        return _merges(file, draw)
    raw = bytearray(rules.values)
    used = [at for at, byte in enumerate(raw) if byte]
    choice = draw.randrange(4)
    if choice == 0:
        raw[:4] = struct.pack("<I", draw.choice([0, 1, 5, len(raw), len(raw) - 4, len(raw) - 5, 2**31, 2**32 - 1]))
    elif choice == 1:
        del raw[draw.randrange(len(raw)) :]
    else:
        for _ in range(draw.choice([1, 3])):
            raw[draw.choice(used)] ^= 1 << draw.randrange(8)
    rules.values[:] = list(raw)
    return file.content()


@damage("template")
def _template(file: Gguf, draw: random.Random) -> bytes:
    odd = [
        "\udcff",
        "{% for",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{%" * 5000,
        "(" * 3000,
        "",
        "{{ raise_exception('x\ny') }}",
    ]
    if draw.random() < 0.2:
        file.set("tokenizer.chat_template", U32, 5)
    elif draw.random() < 0.2:
        file.set("tokenizer.chat_template", ARRAY, Array(STRING, ["{{ 1 }}"]))
    else:
        file.set("tokenizer.chat_template", STRING, draw.choice(odd))
    return file.content()


@damage("another tokenizer")
def _tokenizer(file: Gguf, draw: random.Random) -> bytes:
    file.set(f"{TOKENIZER}model", STRING, draw.choice(TOKENIZERS))
    if draw.random() < 0.5:
        file.set(f"{TOKENIZER}pre", STRING, draw.choice(["default", "llama-bpe", "qwen2", "gpt-2", "kimi-k2", "x", ""]))
    for name in ("add_bos_token", "add_eos_token", "add_sep_token"):
        if draw.random() < 0.4:
            file.set(TOKENIZER + name, BOOL, draw.randrange(2))
    return file.content()
