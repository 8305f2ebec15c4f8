"""Self-contained HTML pages from Jinja templates in a package. Jinja escapes every inserted text."""

from typing import Any


def render_template(package: str, name: str, **values: Any) -> str:
    """Render `templates/NAME` of a package, which may extend `page.html` of this one.

    A variable that the template names and `values` lacks is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("gladstone")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name).render(**values)
