"""A table of words: tidy CSV, Markdown and LaTeX."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from moe.figures.layout import latex


def code(word: str) -> str:
    """A token as it may stand in a Markdown table: blanks and control characters are seen, nothing is markup."""
    shown = word if word.isprintable() else word.encode("unicode_escape").decode("ascii")  # which leaves blanks
    shown = shown.replace(" ", "␣").replace("|", r"\|")
    fence = "``" if "`" in shown else "`"
    room = " " if fence == "``" else ""
    return f"{fence}{room}{shown}{room}{fence}"


@dataclass
class Listing:
    """`rows` of words under `heads`, and the tidy numbers that they come from."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    data: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write as the suffix of `path` says: .csv, .md or .tex."""
        if Path(path).suffix == ".csv":
            self.data.to_csv(path, index=False)
            return
        writer = {".md": self.markdown, ".tex": self.latex}[Path(path).suffix]
        Path(path).write_text(writer(), encoding="utf-8")

    def markdown(self) -> str:
        table = [self.heads, ["---"] * len(self.heads), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in table)
        return f"# {self.title}\n\n{body}\n\n" + "\n\n".join(filter(None, self.notes)) + "\n"

    def latex(self) -> str:
        """A `table` environment; needs booktabs."""
        width = f"{0.9 / max(1, len(self.heads) - 1):.2f}"
        columns = "l" + (r"p{" + width + r"\textwidth}") * (len(self.heads) - 1)
        lines = [" & ".join(map(latex, row)) + r" \\" for row in self.rows]
        caption = " ".join(filter(None, [self.title + ".", *self.notes]))
        return "\n".join(
            ["% needs the package booktabs", r"\begin{table}", r"\centering", r"\caption{" + latex(caption) + "}"]
            + [r"\begin{tabular}{" + columns + "}", r"\toprule", " & ".join(map(latex, self.heads)) + r" \\"]
            + [r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
        )
