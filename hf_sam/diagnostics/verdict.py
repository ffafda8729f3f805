"""The verdict which of two models is flatter, by the measures whose intervals do not overlap."""

from collections.abc import Sequence

from .report import Measure, Report, table


def outcome(row: Measure, names: Sequence[str]) -> str:
    """Return the name of the model that is flatter by a row of the table, or equal or unclear."""
    if row.counted_as is None:
        return "-"
    if row.flatter is not None:
        return names[row.flatter]
    return "equal" if row.is_equal else "unclear"


def verdict(report: Report) -> str:
    """Return a sentence on which of two models is flatter, and by which measures."""
    if len(report.portraits) < 2:
        return "One model: a number says little without another one beside it (--compare)."
    names = [portrait.name for portrait in report.portraits]
    rows = [row for row in table(report.portraits) if row.counted_as is not None]
    measures = list(dict.fromkeys(row.counted_as for row in rows))
    by_measure = {m: [row for row in rows if row.counted_as == m] for m in measures}
    won: tuple[list[str], list[str]] = ([], [])
    unclear = []
    for measure, of_one in by_measure.items():
        (winner, *others) = {row.flatter for row in of_one}
        if winner is not None and not others:
            won[winner].append(str(measure))
        elif not all(row.is_equal for row in of_one):
            unclear.append(str(measure))
    return _sentence(names, won, unclear, len(measures))


def _sentence(
    names: Sequence[str], won: tuple[list[str], list[str]], unclear: list[str], measures: int
) -> str:
    ahead, behind = (0, 1) if len(won[0]) >= len(won[1]) else (1, 0)
    if not won[ahead]:
        if not unclear:
            return f"{names[0]} and {names[1]} are equally flat by all {measures} measures."
        text = f"Neither {names[0]} nor {names[1]} is flatter by any of {measures} measures."
    elif len(won[0]) == len(won[1]):
        text = f"{names[0]} is flatter by: {'; '.join(won[0])}. "
        text += f"{names[1]} is, by: {'; '.join(won[1])}."
    else:
        text = f"{names[ahead]} is flatter than {names[behind]} by {len(won[ahead])} of {measures} "
        text += "measures" + (f", but not by: {'; '.join(won[behind])}." if won[behind] else ".")
    if unclear:
        text += f" Unclear, within the intervals of the measures: {'; '.join(unclear)}."
    return text
