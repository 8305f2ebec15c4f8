"""`finetune compare`: runs side by side, finished or under way."""
