"""Formats: a summary as Markdown, LaTeX, CSV or HTML."""

import csv
import html
import io
import math
from collections.abc import Callable, Sequence

from vprompt.bench import suite
from vprompt.bench.summary import Interval, Spread, Summary
from vprompt.core.errors import VPromptError
from vprompt.core.plain import in_cell, in_markdown

Emphasis = Callable[[str, int], str]


def render(summary: Summary, style: str) -> str:
    """Return the table as `md`, `latex`, `csv` or `html`."""
    known = {"md": markdown, "latex": latex, "csv": tidy_csv, "html": html_table}
    if style not in known:
        raise VPromptError(f"No format called {style!r}. There are: {', '.join(known)}.")
    return known[style](summary)


def markdown(summary: Summary) -> str:
    """Return a Markdown table with a caption: the best in bold, the second underlined."""

    def emphasise(text: str, place: int) -> str:
        return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(place, text)

    heads, body = _body(summary, emphasise, "±")
    lines = [f"## {in_markdown(summary.title)}", "", caption(summary), ""]
    lines += [_pipe([in_markdown(head) for head in heads]), "|---" * len(heads) + "|"]
    lines += [_pipe([in_markdown(row[0]), *row[1:]]) for row in body]
    return "\n".join(lines) + "\n"


def latex(summary: Summary) -> str:
    """Return a LaTeX table for booktabs: the best in bold, the second underlined."""

    def emphasise(text: str, place: int) -> str:
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(place, text)

    heads, body = _body(summary, emphasise, r"$\pm$")
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(summary.title)}. {_tex(caption(summary))}}}",
        r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}",
        r"\toprule",
        " & ".join(_tex(head) for head in heads) + r" \\",
        r"\midrule",
    ]
    before = summary.rows[0].group
    for row, cells in zip(summary.rows, body, strict=True):
        lines += [r"\midrule"] if row.group != before else []
        before = row.group
        lines.append(" & ".join([_tex(cells[0]), *cells[1:]]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def html_table(summary: Summary) -> str:
    """Return an HTML table, a rule between groups of methods: the best bold, the second underlined.

    A page may make it sortable: every column but the first starts with a number or has none.
    """

    def emphasise(text: str, place: int) -> str:
        return {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(place, text)

    heads, body = _body(summary, emphasise, "\N{PLUS-MINUS SIGN}")
    first, *rest = [html.escape(head) for head in heads]
    lines = ['<table class="sortable">', f'<thead><tr><th scope="col">{first}</th>']
    lines += [f'<th scope="col" class="number">{head}</th>' for head in rest]
    lines += ["</tr></thead>", "<tbody>"]
    before = summary.rows[0].group
    for row, (_, *cells) in zip(summary.rows, body, strict=True):
        mark = ' class="group"' if row.group != before else ""
        before = row.group
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{html.escape(row.method)}</th>{numbers}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def tidy_csv(summary: Summary) -> str:
    """Return one line per run with its seed, then one per cell and per mean, with `mean` as seed.

    The names of the means are those of the published anchors: `natural`, `mean_groups`, `mean_19`.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ["method", "task", "seed", "accuracy", "std", "n", "parameters", "head_parameters"]
    writer.writerow([*heads, "seconds", "id"])
    for run in summary.runs:
        facts = [run["method"], run["task"], run["seed"], f"{run['accuracy']:.4f}", "", 1]
        cost = [int(run["parameters"]), int(run["head_parameters"]), run["seconds"]]
        writer.writerow([in_cell(each) for each in (*facts, *cost, run["id"])])
    for row in summary.rows:
        means = {
            **{task: row.cells.get(task) for task in summary.tasks},
            **{group: row.groups.get(group) for group in summary.group_names},
            "mean_groups": row.mean_of_groups,
            f"mean_{len(summary.tasks)}": row.mean,
        }
        for name, spread in means.items():
            if spread is not None:
                std = "" if math.isnan(spread.std) else f"{spread.std:.4f}"
                facts = [row.method, name, "mean", f"{spread.mean:.4f}", std, spread.n]
                writer.writerow([*map(in_cell, facts), "", "", "", ""])
    return out.getvalue()


def _body(
    summary: Summary, emphasise: Emphasis, plus_minus: str
) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows; every column of accuracies has its best and second marked."""
    tasks = summary.tasks
    columns: list[tuple[str, list[Spread | None]]] = [
        (suite.label_of(task), [row.cells.get(task) for row in summary.rows]) for task in tasks
    ]
    for group in summary.group_names:
        columns.append((group.capitalize(), [row.groups.get(group) for row in summary.rows]))
    if any(row.mean_of_groups for row in summary.rows):
        columns.append(("mean of groups", [row.mean_of_groups for row in summary.rows]))
    columns.append((f"mean ({len(tasks)})", [row.mean for row in summary.rows]))
    runs = max(spread.n for row in summary.rows for spread in row.cells.values())
    cells = [_column(column, emphasise, plus_minus, runs) for _, column in columns]
    heads = ["method", *(head for head, _ in columns), "rank"]
    extra = [[_number(row.rank, 2)] for row in summary.rows]
    if summary.baseline is not None:
        heads += [f"over {summary.baseline}, runs", "same, tasks"]
        for line, row in zip(extra, summary.rows, strict=True):
            line += [_interval(row.over_runs), _interval(row.over_tasks)]
    heads += ["trained", "head", "s"]
    for line, row in zip(extra, summary.rows, strict=True):
        line += [_count(row.parameters), _count(row.head_parameters), f"{row.seconds:.0f}"]
    return heads, [
        [row.method, *(column[index] for column in cells), *extra[index]]
        for index, row in enumerate(summary.rows)
    ]


def _column(
    column: Sequence[Spread | None], emphasise: Emphasis, plus_minus: str, runs: int
) -> list[str]:
    # Marked by what is printed: two methods that print the same number are equally good.
    printed = [None if spread is None else round(spread.mean, 1) for spread in column]
    ranking = sorted({value for value in printed if value is not None}, reverse=True)
    cells = []
    for spread, value in zip(column, printed, strict=True):
        if spread is None or value is None:
            cells.append("-")
            continue
        text = emphasise(f"{value:.1f}", ranking.index(value) + 1)
        if not math.isnan(spread.std):
            text += f" {plus_minus} {spread.std:.1f}"
        cells.append(text if spread.n == runs else f"{text} (n={spread.n})")
    return cells


def caption(summary: Summary) -> str:
    """Say how the numbers of a table are to be read, and where its runs are not alike."""
    runs = max(spread.n for row in summary.rows for spread in row.cells.values())
    words = [
        f"Test accuracy in %, mean and sample standard deviation (ddof 1) of n = {runs} seeds."
    ]
    words.append("A mean's deviation is that of the seeds' means.")
    words.append("Bold: best, underlined: second, by the printed number.")
    if summary.baseline is not None:
        words.append(
            f"Over {summary.baseline}: paired difference with its 95 % t-interval, over the runs "
            "(task, seed) and, wider and safer for other tasks, over the tasks' means."
        )
    words.append("Trained: parameters, the head apart; mean over tasks. s: mean seconds of a run.")
    words += summary.notes
    if summary.missing:
        words.append(f"{summary.missing} runs are not finished.")
    return " ".join(words)


def _interval(found: Interval | None) -> str:
    if found is None:
        return ""
    if math.isnan(found.low):
        return f"{found.mean:+.1f}"
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def _count(number: float) -> str:
    return f"{number / 1000:,.1f}k"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
        **{sign: f"\\{sign}" for sign in "_%&#{}$"},
    }
)


def _tex(text: str) -> str:
    """Return text as LaTeX prints it, sign by sign."""
    return text.translate(_TEX)
