"""The source of an export: a run of finetune, a PEFT adapter, or a model folder."""
