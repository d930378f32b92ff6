"""Figures of ReLU routing's sparsity, read from every step's row of metrics.csv (ReMoE, figures 3 and 4)."""

import numpy as np

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.records import all_steps, records, target_sparsity
from moe.figures.reported import find, load, parse_match, stems
from moe.figures.stages import stage_bounds
from moe.figures.step_metrics import EXCLUDED_STEPS, sparsities
from moe.figures.style import BLACK, BLUE, GREEN, RED, Picture, counts, line, panels
from moe.figures.titles import headline

STAGE_SHADES = {"I": "#fbe3d3", "II": "#fdf3dc", "III": "#e6f1ea"}


def one_run(spec, runs) -> dict:
    """The run of a kind that shows one. Errors: ValueError naming the row if its query selects another number."""
    if len(runs) != 1:
        where = f"{spec['paper']}/{spec['figure']}"
        raise ValueError(f"{where}: kind {spec['kind']} shows one run, its query selects {len(runs)}.")
    return runs[0]


def sparsity(spec, runs, *, scale, reported, results) -> Picture:
    """Sparsity of every single step, neither averaged nor sampled, and its mean and std (figure 3)."""
    run = one_run(spec, runs)
    target = target_sparsity(run)
    data = all_steps(run)[list(dict.fromkeys(["run", "seed", "step", text(spec, "x"), "sparsity"]))]
    moments = [_moments(sparsities(record)) for record in records(run)]
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    printed = [find(pages, match, run, f"sparsity_{m}") for m in ("mean", "std")]
    figure, _ = panels(2, 1, width=7.2, height=4.6, sharex=True)
    whole, close = figure.axes
    for axis in (whole, close):
        for position, (_, each) in enumerate(data.groupby("seed")):
            x, y = each[text(spec, "x")].to_numpy(), each["sparsity"].to_numpy()
            line(axis, x, y, color=RED, linewidth=0.7, alpha=1 if position == 0 else 0.35)
        axis.axhline(target, color=BLACK, linestyle="--", linewidth=0.9)
    whole.set(ylabel="sparsity", ylim=(min(0.45, data["sparsity"].min() - 0.02), 1.0))
    whole.set_title("(a) every step")
    whole.set_xlim(data[text(spec, "x")].min(), data[text(spec, "x")].max())
    counts(close)
    late = data[data.groupby("seed").cumcount() >= EXCLUDED_STEPS]["sparsity"]
    reach = max(0.02, 1.15 * float((late - target).abs().max()) if len(late) else 0.02)
    close.set(xlabel=text(spec, "x"), ylabel="sparsity", ylim=(target - reach, target + reach))
    close.set_title(f"(b) the same, close to 1 − k/E = {target:g} (dashed)")
    note = _sparsity_note(moments, printed)
    if (data.groupby("seed")["step"].diff() > 1).any():
        note += " Published results keep the first steps of a long training and evenly spaced ones of the rest."
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [note, text(spec, "caption")])


def _moments(series) -> tuple[float, float] | None:
    late = series[EXCLUDED_STEPS:]
    return (float(late.mean()), float(late.std())) if len(late) else None


def _sparsity_note(moments: list, printed: list) -> str:
    paper = f"; the paper: mean {printed[0].text}, std {printed[1].text}" if all(printed) else ""
    if None in moments:
        return f"Too short for a mean from step {EXCLUDED_STEPS} on{paper}."
    mean, half = mean_interval(m for m, _ in moments)
    std = np.mean([s for _, s in moments])
    over = "" if half is None else f" ± {half:.4f} (95 % over {len(moments)} seeds)"
    one = " (one seed)" if half is None else ""
    return f"From step {EXCLUDED_STEPS} on: mean {mean:.4f}{over}, std {std:.4f}{one}{paper}."


def stages(spec, runs, *, scale, reported, results) -> Picture:
    """The three stages (figure 4): (a) sparsity and λ, (b) LM loss, L_reg and λ·L_reg.

    Left the first steps, right all the others. L_reg = router_loss / λ, as λ·L_reg is what is added.
    """
    run = one_run(spec, runs)
    x = text(spec, "x")
    frame = all_steps(run)
    frame["l_reg"] = frame["router_loss"] / frame["l1_lambda"]
    data = frame[["run", "seed", x, "loss", "l_reg", "router_loss", "sparsity", "l1_lambda"]].rename(
        columns={"router_loss": "lambda_l_reg"}
    )
    shown = data[data["seed"] == data["seed"].iloc[0]].reset_index(drop=True)
    second, third = stage_bounds(shown["sparsity"], target_sparsity(run))
    split = min(len(shown), max(20, 2 * (third or len(shown) // 4)))
    figure, axes = panels(2, 2, width=7.2, height=5.4, sharey="row", sharex="col", width_ratios=[1.25, 1])
    for column, part in enumerate((shown[:split], shown[split:])):
        last = column == 1
        if part.empty:
            axes[0, column].set_axis_off()
            axes[1, column].set_axis_off()
            continue
        _shade(axes[:, column], shown[x].to_numpy(), second, third, part[x].to_numpy())
        _sparsity_and_lambda(axes[0, column], part, x, run, shown["l1_lambda"], last or split == len(shown))
        _losses(axes[1, column], part, x, legend=not last)
        axes[1, column].set_xlabel(x)
        axes[0, column].set_title("(a) sparsity and λ: the first steps" if not last else "(a) the rest")
        axes[1, column].set_title("(b) losses: the first steps" if not last else "(b) the rest")
    counted = len(records(run))
    notes = [
        _stage_note(second, third, shown[x].to_numpy()),
        "One seed." if counted == 1 else f"Seed {shown['seed'][0]} of {counted}; the CSV has all.",
        text(spec, "caption"),
    ]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _stage_note(second: int, third: int | None, steps) -> str:
    if third is None:
        return f"Stage I lasts {second} steps; the sparsity does not settle in {len(steps)} steps."
    lasts = f"Stage I lasts {second} steps, stage II {third - second}"
    return f"{lasts}, stage III from step {steps[third]} on."


def _shade(axes, steps, second, third, inside) -> None:
    """Colour the stages behind the lines, and name those wide enough to be named."""
    edges = [0, second, len(steps) if third is None else third, len(steps)]
    for name, start, end in zip(["I", "II", "III"], edges[:-1], edges[1:], strict=True):
        low = max(float(inside[0]), float(steps[min(start, len(steps) - 1)]))
        high = min(float(inside[-1]), float(steps[min(end, len(steps) - 1)]))
        if end <= start or high <= low:
            continue
        for axis in axes:
            axis.axvspan(low, high, color=STAGE_SHADES[name], linewidth=0, zorder=0)
        if (high - low) > 0.04 * (inside[-1] - inside[0]):
            place = {"transform": axes[0].get_xaxis_transform(), "size": 8, "color": "#444444"}
            axes[0].text((low + high) / 2, 0.03, name, ha="center", va="bottom", **place)
    for axis in axes:
        axis.set_xlim(inside[0], inside[-1])
        counts(axis)


def _sparsity_and_lambda(axis, part, x, run, all_lambda, named: bool) -> None:
    line(axis, part[x].to_numpy(), part["sparsity"].to_numpy(), color=RED, linewidth=1)
    axis.axhline(target_sparsity(run), color=BLACK, linestyle="--", linewidth=0.8)
    axis.set_ylim(0, 1)
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("sparsity", color=RED)
    twin = axis.twinx()
    line(twin, part[x].to_numpy(), part["l1_lambda"].to_numpy(), color=BLUE, linewidth=1)
    twin.set_yscale("log")
    twin.set_ylim(all_lambda.min() / 3, all_lambda.max() * 3)
    twin.minorticks_off()
    twin.grid(False)
    twin.spines["top"].set_visible(False)
    if named:
        twin.set_ylabel("λ", color=BLUE)
    else:
        twin.tick_params(right=False, labelright=False)
        twin.spines["right"].set_visible(False)


def _losses(axis, part, x, legend: bool) -> None:
    for column, name, ink in (
        ("loss", "language-modelling loss", BLACK),
        ("l_reg", r"$L_\mathrm{reg}$", GREEN),
        ("lambda_l_reg", r"$\lambda \cdot L_\mathrm{reg}$", BLUE),
    ):
        y = part[column].where(part[column] > 0).to_numpy()
        line(axis, part[x].to_numpy(), y, color=ink, label=name, linewidth=1)
    axis.set_yscale("log")
    if legend:
        axis.legend(loc="lower right")
        axis.set_ylabel("loss (log scale)")
