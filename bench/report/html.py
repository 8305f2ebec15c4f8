"""The report as one self-contained HTML page. Jinja's autoescape escapes every text: model output is untrusted."""

from typing import Any

from bench.metrics.answer_form import FORM
from bench.report.markdown import measured_rows
from bench.report.plots import COLOURS, decode_plot, perplexity_plot, scores_plot, size_plot
from bench.report.tables import NO_FIGURE, all_tables
from bench.results import BETTER, CUT, HIGHER, LOWER, NOT_COMPARABLE, SAME, TOO_FEW, WORSE, ModelReport, Report
from gladstone.chat.messages import NO_MEDICAL_ADVICE
from gladstone.report.html import render_template

OPEN_ANSWERS = 5
TONES = {BETTER: "good", WORSE: "bad", HIGHER: "plain", LOWER: "plain"}
TONES |= dict.fromkeys((SAME, TOO_FEW, NOT_COMPARABLE), "even")


def render_page(report: Report) -> str:
    """HTML with inline styles and plots; its content security policy forbids every request."""
    return render_template(
        "bench",
        "report.html",
        report=report,
        measured=measured_rows(report),
        tables=all_tables(report),
        plots=_plots(report),
        answers=[_answer_card(report, number) for number in range(report.answered)],
        open_answers=OPEN_ANSWERS,
        tones=TONES,
        colours=COLOURS,
        advice=NO_MEDICAL_ADVICE,
    )


def _plots(report: Report) -> dict[str, list[tuple[str, Any]]]:
    """Caption and SVG of each plot, by the title of its table."""
    from markupsafe import Markup

    def drawn(caption: str, svg: str) -> tuple[str, Any]:
        return caption, Markup(svg)  # noqa: S704 - made by bench.report.plots, which escapes its labels

    plots = {
        "Quality": [
            drawn(
                f"Perplexity of {report.scored_description}, 95 % interval. Lower is better.", perplexity_plot(report)
            ),
        ]
    }
    if any(info.higher_is_better and info.name in row.results for row in report.models for info in report.metrics):
        plots["Quality"].append(drawn("Scores of the answers, 95 % interval. Higher is better.", scores_plot(report)))
    if len({row.model.size_bytes for row in report.models}) > 1:
        caption = "File size against perplexity. Smaller and lower is better."
        plots["Quality"].append(drawn(caption, size_plot(report)))
    if report.models[0].speed:
        caption = "Decode speed in tokens per second: a dot per round, a bar at the median."
        plots["Speed and memory"] = [drawn(caption, decode_plot(report))]
    return plots


def _answer_card(report: Report, number: int) -> dict[str, Any]:
    item = report.items[number]
    columns = []
    for place, row in enumerate(report.models):
        answer = row.measured.answers[number]
        shown = [info for info in report.metrics if info.name in ("rougeL", "token_f1")]
        scores = " · ".join(f"{info.title} {_score(row, info.name, number)}" for info in shown)
        if FORM in row.scores:
            scores = f"{'in the form' if row.scores[FORM][number].value else 'not in the form'} · {scores}"
        cut = answer.stop_reason in CUT
        columns.append(
            {
                "label": row.model.label,
                "colour": place % COLOURS,
                "text": answer.shown,
                "reasoning": answer.reasoning,
                "note": f"{scores} · {answer.generated_tokens} tokens",
                "cut": cut,
            }
        )
    return {"item": item, "number": number + 1, "columns": columns}


def _score(row: ModelReport, name: str, number: int) -> str:
    value = row.scores[name][number].value
    return NO_FIGURE if value is None or name in row.unseen else f"{value:.2f}"
