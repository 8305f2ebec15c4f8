"""What goes with the files of an export: what Ollama needs, the model card, the upload."""
