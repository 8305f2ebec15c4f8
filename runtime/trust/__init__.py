"""Whether a model's file can be trusted: its manifest, or a trial in a child process."""
