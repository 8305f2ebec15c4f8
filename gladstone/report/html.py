"""Self-contained HTML pages from Jinja templates in a package. Jinja escapes every inserted text."""

from importlib import resources
from typing import Any


def render_template(package: str, name: str, **values: Any) -> str:
    """Render `templates/NAME` of a package. A variable that the template names and `values` lacks is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)
