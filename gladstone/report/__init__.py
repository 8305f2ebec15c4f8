"""What reports are made of: pages, charts, tables, durations, text that is safe on a terminal."""
