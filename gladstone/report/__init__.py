"""Parts of reports: pages, charts, tables, durations, and text that is safe on a terminal."""
