"""How every figure looks, and how it is saved: the same bytes from the same numbers."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed, none is looked for

import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402
import pandas as pd  # noqa: E402
import seaborn as sns  # noqa: E402
from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

# Okabe and Ito's colours, told apart by colour-blind readers; a router keeps its colour in every figure.
BLACK, ORANGE, SKY, GREEN = "#222222", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#B8A200", "#0072B2", "#D55E00", "#CC79A7"
PALETTE = [BLUE, RED, GREEN, ORANGE, PINK, SKY, YELLOW, BLACK]
ROUTER_COLOURS = {
    "none": BLACK,
    "topk": BLUE,
    "relu": RED,
    "hash": GREEN,
    "lory": ORANGE,
    "sparsemixer-v2": PINK,
    "expert-choice": SKY,
    "smoe": BLUE,
    "rmoe": RED,
}
COLOURS = 256  # of a PNG
MANY_POINTS = 20_000  # a longer line is drawn as pixels also in an SVG

sns.set_theme(
    context="paper",
    style="ticks",
    rc={
        "axes.grid": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "figure.dpi": 100,
        "font.family": "DejaVu Sans",
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "savefig.dpi": 200,
        "svg.fonttype": "path",
        "svg.hashsalt": "rerouted",  # element ids that do not change from draw to draw
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    },
)


@dataclass
class Picture:
    """A matplotlib figure, the data that it draws, its title and the sentences under it."""

    figure: plt.Figure
    data: pd.DataFrame
    headline: str
    title: str
    notes: list[str] = field(default_factory=list)
    finished: bool = False

    def write(self, path: Path) -> None:
        """Write as the suffix of `path` says: .svg, .png, or .csv with the data drawn."""
        path = Path(path)
        if path.suffix == ".csv":
            self.data.to_csv(path, index=False, float_format="%.6g")  # a picture shows no more
            return
        self._finish()
        title = f"{self.headline}: {self.title}"
        if path.suffix == ".png":
            self._write_pixels(path, title)
        else:
            self.figure.savefig(path, metadata={"Date": None, "Creator": None, "Title": title})

    def _write_pixels(self, path: Path, title: str) -> None:
        """A PNG with a palette: a third of the size, which counts where results are kept under version control."""
        text = PngInfo()
        text.add_text("Title", title)
        with BytesIO() as drawn:
            self.figure.savefig(drawn, format="png")
            pixels = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        pixels.save(path, optimize=True, pnginfo=text)

    def close(self) -> None:
        """Give the memory of the picture back."""
        plt.close(self.figure)

    def _finish(self) -> None:
        """Title above, notes below: once, whatever is written first."""
        if self.finished:
            return
        width, height = self.figure.get_size_inches()
        lines = _wrapped(self.notes, int(width * 17))
        top, bottom = 0.46 / height, (0.10 + 0.145 * len(lines)) / height
        self.figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - top - bottom))
        left = 0.1 / width
        self.figure.text(left, 1 - 0.06 / height, self.title, va="top", size=11, weight="bold")
        self.figure.text(left, 1 - 0.27 / height, self.headline, va="top", size=8.5, color="#555555")
        self.figure.text(left, 0.06 / height, "\n".join(lines), va="bottom", size=7.5, color="#444444")
        self._place()
        self.finished = True

    def _place(self) -> None:
        """Lay the panels out for good, with positions of six digits.

        The solver's last digits depend on where its variables lie in memory, and an SVG's ids on all digits.
        """
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axis in self.figure.axes:
            axis.set_position([round(edge, 6) for edge in axis.get_position(original=True).bounds])


def _wrapped(notes: list[str], letters: int) -> list[str]:
    import textwrap

    return [line for note in notes if note for line in textwrap.wrap(note, letters)]


def panels(rows: int = 1, columns: int = 1, *, width: float = 7.2, height: float = 3.6, **options):
    """Figure and axes [rows, columns], sizes in inches without title and notes; spines as in print."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    sns.despine(figure)
    return figure, axes


def line(axis, x, y, **options):
    """A line; a very long one as pixels, so that the SVG stays small."""
    return axis.plot(x, y, rasterized=len(x) > MANY_POINTS, **options)[0]


def short(value: float, position=None) -> str:
    """A count on an axis: 250k, 1.5M, 30B, as the papers write tokens."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def counts(*axes) -> None:
    """Few, short labels on the x axes, which count steps or tokens."""
    for axis in axes:
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter(short)


def colours(runs: list[dict]) -> list[str]:
    """A colour a run: its router's own, for the first run of it; the others take what is left of the palette."""
    taken, chosen = set(), []
    own = {ROUTER_COLOURS.get(str(run.get("router"))) for run in runs}
    rest = [ink for ink in PALETTE if ink not in own] or PALETTE
    for run in runs:
        ink = ROUTER_COLOURS.get(str(run.get("router")))
        if ink is None or ink in taken:
            ink = rest[sum(c in rest for c in chosen) % len(rest)]
        taken.add(ink)
        chosen.append(ink)
    return chosen
