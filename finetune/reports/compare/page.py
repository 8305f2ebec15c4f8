"""`finetune compare --out`: writes the comparison as files."""

from pathlib import Path
from typing import Any

from finetune.reports.compare.charts import curves_svg, run_keys, training_curves, validation_curves, write_picture
from finetune.reports.compare.table import Comparison
from finetune.reports.compare.text import render_csv, render_markdown
from gladstone.artifacts import check_writable, write_text
from gladstone.report.html import render_template

FILES = ("compare.html", "compare.md", "compare.csv", "compare.png")


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write FILES into the folder, each atomically. Raises ArtifactError if the folder is not writable."""
    check_writable(folder)
    write_text(folder / "compare.md", render_markdown(comparison))
    write_text(folder / "compare.csv", render_csv(comparison))
    write_picture(folder / "compare.png", comparison.runs)
    write_text(folder / "compare.html", render_page(comparison))


def render_page(comparison: Comparison) -> str:
    """HTML with inline styles and curves; texts are escaped, and a content security policy forbids every request."""
    from markupsafe import Markup

    drawn = {
        "Training loss, running mean": training_curves(comparison.runs),
        "Validation loss": validation_curves(comparison.runs),
    }
    curves: list[tuple[str, Any]] = [
        (title, Markup(svg))  # noqa: S704 - made by finetune.reports.compare.charts of numbers alone
        for title, svg in ((title, curves_svg(title, lines)) for title, lines in drawn.items())
        if svg
    ]
    keys = [Markup(key) for key in run_keys(len(comparison.runs))]  # noqa: S704 - made of the page's own colours
    return render_template("finetune", "compare.html", comparison=comparison, curves=curves, keys=keys)
