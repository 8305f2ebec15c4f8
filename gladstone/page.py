"""Self-contained pages from Jinja templates that lie in a package. Every text passes Jinja's autoescape."""

from importlib import resources
from typing import Any


def render_template(package: str, name: str, **values: Any) -> str:
    """The template `templates/NAME` of a package with these values; one that it names and does not get is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)
