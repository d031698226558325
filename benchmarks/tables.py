"""Tables of the benchmarks, laid out for a terminal or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Cell:
    """A text of a table, stressed where it is the best of its line or above zero."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table before it is laid out: what its lines are, and the name and cells of each."""

    title: str
    first: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]


def number_cell(value: float | None, form: str, best: float | None = None) -> Cell:
    """Show a number, a dash for none, bold where it equals the best to two decimals."""
    if value is None:
        return Cell("–")
    return Cell(with_minus(format(value, form)), best is not None and round(value, 2) == best)


def gain_cell(value: float) -> Cell:
    """Show a difference in dB with its sign, bold where it is a gain."""
    shown = round(value, 2) + 0.0  # no negative zero
    return Cell(with_minus(f"{shown:+.2f}"), shown > 0)


def with_minus(number: str) -> str:
    """Put a minus sign in the place of a hyphen."""
    return number.replace("-", "−")


def to_rich(grid: Grid) -> Table:
    """Lay a grid out for a terminal."""
    table = Table(title=grid.title)
    table.add_column(grid.first)
    for column in grid.columns:
        table.add_column(column, justify="right")
    for name, cells in grid.lines:
        texts = (f"[bold green]{cell.text}[/]" if cell.bold else cell.text for cell in cells)
        table.add_row(name, *texts)
    return table


def to_markdown(grid: Grid) -> str:
    """Lay a grid out as a Markdown table under a heading."""
    lines = [
        f"### {grid.title}",
        "",
        "| " + " | ".join([grid.first, *grid.columns]) + " |",
        "|---" + "|--:" * len(grid.columns) + "|",
    ]
    for name, cells in grid.lines:
        texts = [f"**{cell.text}**" if cell.bold else cell.text for cell in cells]
        lines.append("| " + " | ".join([name, *texts]) + " |")
    return "\n".join(lines) + "\n"
