"""A table as tidy CSV, Markdown and LaTeX (booktabs)."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

COLUMNS = [
    "row",
    "column",
    "unit",
    "reported",
    "measured",
    "difference",
    "seeds",
    "interval",
    "printed",
    "note",
]
LINES = {"reported": "paper", "measured": "ours", "difference": "difference"}
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "†": r"\textsuperscript{\dag}",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "⁻": r"$^{-}$",
    "³": r"$^{3}$",
    "₀": r"$_{0}$",
    "␣": r"\textvisiblespace{}",
    "`": r"\textasciigrave{}",
    "¾": r"$\frac{3}{4}$",
    "≥": r"$\geq$",
}


def latex(words: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(LATEX.get(letter, letter) for letter in words)


@dataclass
class Table:
    """A table of numbers that may be printed, measured, or both.

    rows     names of the rows, in order
    columns  name -> (header, decimals), in order; a cell of another column stands in the CSV alone
    cells    tidy records with the keys COLUMNS; `reported`, `measured`, `difference`, `interval` are
             floats or None, `text` is the number as the paper printed it
    corner   what the row names are
    caption, notes  sentences that stand under the table
    """

    title: str
    corner: str
    rows: list[str]
    columns: dict[str, tuple[str, int]]
    cells: list[dict]
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write as the suffix of `path` says: .csv, .md or .tex."""
        writers = {".csv": self.csv, ".md": self.markdown, ".tex": self.latex}
        Path(path).write_text(writers[Path(path).suffix](), encoding="utf-8")

    def csv(self) -> str:
        """One line a cell; an interval of a single seed is the words "one seed"."""
        frame = pd.DataFrame(self.cells, columns=[*COLUMNS, "text"]).astype(object)
        frame["seeds"] = frame["seeds"].astype("Int64")
        frame["interval"] = [_interval(cell) for cell in self.cells]
        frame["reported"] = [cell["text"] for cell in self.cells]
        return frame[COLUMNS].to_csv(index=False)

    def lines(self) -> list[list[list[str]]]:
        """For each row its lines (paper, ours, difference), each a list of words; empty ones left out."""
        cell = {(c["row"], c["column"]): c for c in self.cells}
        blocks = []
        for row in self.rows:
            block = []
            for kind, name in LINES.items():
                words = [_word(cell.get((row, column)), kind, self.columns[column][1]) for column in self.columns]
                if any(words) or kind == "measured":
                    block.append(["" if block else row, name, *words])
            blocks.append(block)
        return blocks

    def markdown(self) -> str:
        heads = [self.corner, "", *(header for header, _ in self.columns.values())]
        table = [heads, ["---", "---", *["---:"] * len(self.columns)]]
        for block in self.lines():
            table += [[f"**{line[0]}**" if line[0] else "", *line[1:]] for line in block]
        body = "\n".join("| " + " | ".join(line) + " |" for line in table)
        below = "\n\n".join(filter(None, [self.caption, *self.notes]))
        return f"# {self.title}\n\n{body}\n\n{below}\n"

    def latex(self) -> str:
        """A `table` environment; needs booktabs, and graphicx where the table is wide."""
        heads = [self.corner, "", *(header for header, _ in self.columns.values())]
        blocks = ["\n".join(" & ".join(map(latex, line)) + r" \\" for line in block) for block in self.lines()]
        tabular = [
            r"\begin{tabular}{ll" + "r" * len(self.columns) + "}",
            r"\toprule",
            " & ".join(map(latex, heads)) + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        if len(self.columns) > 7:
            tabular = [r"\resizebox{\textwidth}{!}{%", *tabular, "}"]
        caption = " ".join(filter(None, [self.title + ".", self.caption, *self.notes]))
        return "\n".join(
            [
                "% needs the packages booktabs and graphicx",
                r"\begin{table}",
                r"\centering",
                r"\caption{" + latex(caption) + "}",
                *tabular,
                r"\end{table}",
                "",
            ]
        )


def _interval(cell: dict):
    if cell["measured"] is None:
        return None
    return "one seed" if cell["seeds"] == 1 else cell["interval"]


def _word(cell: dict | None, kind: str, decimals: int) -> str:
    if cell is None or cell[kind] is None:
        return ""
    if kind == "reported":
        return cell["text"]
    number = signed if kind == "difference" else plain
    word = number(cell[kind], decimals)
    if kind == "measured" and cell["interval"] is not None:
        word += f" ± {plain(cell['interval'], decimals)}"
    return word


def plain(value: float, decimals: int) -> str:
    """A number with a true minus sign."""
    return f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """The same with its sign always there, but for what rounds to zero."""
    word = f"{value:+.{decimals}f}"
    return (word if float(word) else word[1:]).replace("-", "−")
