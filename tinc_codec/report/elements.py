"""Pieces of HTML: sections, figures, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Figure", "figure", "section", "table"]


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows in words.

    Attributes
    ----------
    uri : str
        A data URI.
    alternative : str
        For those who do not see it.
    caption : str
    width : float
        Of the page's, at most 1.
    """

    uri: str
    alternative: str
    caption: str
    width: float = 1.0


def section(parts: Iterable[str]) -> str:
    """Wrap parts of a page."""
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def figure(content: Figure) -> str:
    """Write a picture with its caption."""
    style = f' style="width:{100 * content.width:.4g}%"' if content.width < 1 else ""
    return (
        f'<figure><img src="{content.uri}" alt="{escape(content.alternative)}"{style}>'
        f"<figcaption>{escape(content.caption)}</figcaption></figure>"
    )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    ours: int | None = None,
) -> str:
    """Write a table; cells are HTML, the first of each row is its heading."""

    def kind(column: int) -> str:
        return ' class="number"' if column in numbers else ""

    head = "".join(
        f'<th scope="col"{kind(column)}>{escape(heading)}</th>'
        for column, heading in enumerate(headings)
    )
    body = ""
    for number, row in enumerate(rows):
        cells = f'<th scope="row">{row[0]}</th>'
        for column, cell in enumerate(row[1:], 1):
            cells += f"<td{kind(column)}>{cell}</td>"
        body += f'<tr class="ours">{cells}</tr>' if number == ours else f"<tr>{cells}</tr>"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
