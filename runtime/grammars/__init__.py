"""Answers held to a form: JSON schema, regular expression, GBNF."""
