"""`python -m finetune`, as torchrun and `accelerate launch` start it."""

from finetune.cli import main

main()
