"""Text from runs in Markdown, LaTeX and CSV: it appears as it is, and nothing in it is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vmr_zoo.utils.text import one_line

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{\char34}"},
    # After the end of a row LaTeX reads * and [ as arguments.
    **{"*": "{*}", "[": "{[}", "]": "{]}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}"},
    **{"±": r"$\pm$", "≈": r"$\approx$", "…": r"\dots{}"},
    **{"†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}"},
}

_FORMULA = "=+-@＝＋－＠"
"""A spreadsheet evaluates a cell that starts with one of these."""


def markdown(text: str) -> str:
    r"""Escapes text for a cell of a Markdown table, or a line of Markdown.

    >>> markdown("a|b *c* <img> bm_detr $x$")
    'a\\|b \\*c\\* &lt;img&gt; bm_detr \\$x\\$'
    """
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|*`~\[\]$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word it has no meaning
    return re.sub(r"^(\s*)([#+-])(?=\s|#)", r"\1\\\2", text)


def markdown_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: int | None = None,
    escaped: bool = False,
) -> str:
    """Returns a Markdown table, without padding: it changes only where its cells do.

    Args:
        columns: their titles.
        rows: their cells.
        right: columns from this one on are aligned at the right; None: none.
        escaped: whether titles and cells are Markdown; else they are escaped.
    """
    titles, *cells = (tuple(row if escaped else map(markdown, row)) for row in (columns, *rows))
    left = len(titles) if right is None else right
    rule = ["---:" if number >= left else "---" for number in range(len(titles))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *cells))


def latex(text: str) -> str:
    r"""Escapes text for a cell or a caption.

    >>> latex(r"\input{x} 50_a^2")
    '\\textbackslash{}input\\{x\\} 50\\_a\\textasciicircum{}2'
    """
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


def csv_cell(value: object) -> object:
    """Keeps a spreadsheet from evaluating text; numbers, also as text, stay numbers.

    >>> [csv_cell(cell) for cell in ("=1+1", "-2.5", "a", 3.0, "-", " @x")]
    ["'=1+1", '-2.5', 'a', 3.0, '-', "' @x"]
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    risky = text[:1] and (text[0] in _FORMULA or value[0] in "\t\r\n")
    if not risky or len(text) == 1:
        return value
    try:
        float(text)
    except ValueError:
        return f"'{value}"
    return value
