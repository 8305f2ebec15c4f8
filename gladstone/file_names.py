"""Names of the files in a model's or an adapter's folder, as transformers and PEFT write them."""

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE_MODEL = "tokenizer.model"
SENTENCEPIECE = (SENTENCEPIECE_MODEL, "spiece.model")  # T5 has the second
VOCABULARIES = (TOKENIZER, *SENTENCEPIECE)  # one of them is enough to load a tokenizer
CHAT_TEMPLATE = "chat_template.jinja"
OLD_CHAT_TEMPLATE = "chat_template.json"
# all files of a tokenizer; copied unchanged, since save_pretrained does not write all of them back
TOKENIZER_FILES = (
    TOKENIZER, TOKENIZER_CONFIG, *SENTENCEPIECE, "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", CHAT_TEMPLATE,
)  # fmt: skip

WEIGHTS = "model.safetensors"  # of a model that is not divided into shards
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS_INDEX = "pytorch_model.bin.index.json"
WEIGHTS_PATTERN, PICKLED_WEIGHTS_PATTERN = "*.safetensors", "pytorch_model*.bin"

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, PICKLED_ADAPTER_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
