"""The commands `runtime ask`, `chat`, `info` and `doctor`."""
