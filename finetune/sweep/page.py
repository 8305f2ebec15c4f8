"""The table of trials as one self-contained HTML page. Jinja's autoescape escapes every text."""

from finetune.sweep.plots import curves_plot, field_plots, losses_plot
from finetune.sweep.results import Table
from finetune.sweep.table import LOSSES, cells, columns, heading, reasons, short_names, verdict
from gladstone.report.html import render_template


def render_page(table: Table) -> str:
    """HTML with inline styles and plots; its content security policy forbids every request."""
    from markupsafe import Markup

    settings = ", ".join(["number", *short_names(table.fields)])
    plots = [
        (f"Lowest validation loss of each trial: {settings}. Lower is better.", losses_plot(table)),
        ("Validation loss during training, labelled with the numbers of the trials.", curves_plot(table)),
    ]
    return render_template(
        "finetune",
        "sweep.html",
        heading=heading(table),
        verdict=verdict(table),
        columns=columns(table),
        rows=[(row is table.best, row.state, cells(table, row)) for row in table.rows],
        notes=table.notes,
        reasons=reasons(table),
        losses=LOSSES,
        plots=[(caption, Markup(svg)) for caption, svg in plots if svg],  # noqa: S704 - made by plots, which escapes
        fields=[(title, Markup(svg)) for title, svg in field_plots(table)],  # noqa: S704 - the same
    )
