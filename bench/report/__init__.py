"""A benchmark as JSON, Markdown, HTML and text."""
