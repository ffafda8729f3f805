"""The section "How sharp" of a model card."""

from ..reporting import markdown
from ..reporting.markdown import Markdown, code
from .report import Portrait, Report, table
from .verdict import outcome


def card_section(report: Report, portrait: Portrait) -> Markdown:
    """Render the section for one model of a report, compared with the others.

    Args:
        report: The report with all models.
        portrait: The card's model, which is shown first.

    Returns:
        Markdown, from a second-level heading on.
    """
    shown = [portrait, *(other for other in report.portraits if other is not portrait)]
    names = ["this model", *(other.name for other in shown[1:])]
    error = f"top-1 error, % of {report.eval_examples} images, {report.eval_split} split"
    rows = [["measure", *names], [error, *(f"{model.error:.2f}" for model in shown)]]
    rows += [[row.label, *row.shown] for row in table(shown)]
    if len(names) == 2:
        words = ["flatter", "-", *(outcome(row, names) for row in table(shown))]
        rows = [[*row, word] for row, word in zip(rows, words, strict=True)]
    return markdown.render(
        "how_sharp.md",
        report=report,
        setup=portrait.sharpness.setup,
        split=code(report.split),
        measures=markdown.table(rows),
        command=code(report.command),
    )
