"""Draws docs/drawings/*.svg: `python docs/drawings.py`. Narrow, to be readable on a phone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

FOLDER = Path(__file__).parent / "drawings"
WIDTH = 4.8  # inches: a phone's width at the size the text is set in
INK, GREY, PALE = "#222222", "#666666", "#eeeeee"
COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2"]
READ, WRITE, COMPUTE, WAIT = "#4c78a8", "#f58518", "#54a24b", "#d9d9d9"

# Text stays text: the files are small, and a narrower font of the reader's leaves room.
matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "fastnorm", "svg.fonttype": "none"})


def canvas(height: float, width: float = 100.0) -> tuple[Figure, Axes]:
    """A figure whose coordinates are hundredths of its width, y downwards."""
    figure = Figure(figsize=(WIDTH, WIDTH * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, w: float, h: float, colour: str, label: str = "", **style: str
) -> None:
    axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="white", linewidth=1))
    text = style.get("text", "white")
    axes.text(x + w / 2, y + h / 2, label, ha="center", va="center", color=text, fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.3)
    )


def note(axes: Axes, x: float, y: float, text: str, **style: str) -> None:
    axes.text(
        x, y, text, ha=style.get("ha", "left"), va="center", color=style.get("colour", INK),
        weight=style.get("weight", "normal"),
    )  # fmt: skip


def sets() -> Figure:
    """Which cells (n, c) share statistics, for four samples of six channels."""
    N, C = 4, 6
    figure, axes = canvas(92)
    panels = [
        ("batch, switchable's third", lambda n, c: c),
        ("instance", lambda n, c: n * C + c),
        ("group, C / G = 3", lambda n, c: 2 * n + c // 3),
        ("group with G = 1 (layer)", lambda n, c: n),
    ]
    for panel, (title, set_of) in enumerate(panels):
        left, top = 8 + 49 * (panel % 2), 8 + 41 * (panel // 2)
        note(axes, left, top - 4, title, weight="bold")
        for n in range(N):
            for c in range(C):
                colour = COLOURS[set_of(n, c) % len(COLOURS)]
                if title == "instance":  # neighbours differ along both axes
                    colour = COLOURS[(c + 2 * n) % len(COLOURS)]
                box(axes, left + 6.3 * c, top + 6 * n, 6.3, 6, colour)
        note(axes, left + 19, top + 27, "channels c →", ha="center", colour=GREY)
        axes.text(
            left - 3, top + 12, "samples n", rotation=90, ha="center", va="center", color=GREY
        )
    note(axes, 5, 83, "A cell is an instance (n, c), S positions.")
    note(axes, 5, 88, "Neighbours of one colour are one set.")
    return figure


def stages() -> Figure:
    """moments, merge, apply, with what flows between them."""
    figure, axes = canvas(92)
    rows = [
        (4, READ, "moments", "reads x once"),
        (34, COMPUTE, "merge", "the only part that\ndiffers between norms"),
        (64, WRITE, "apply", "reads x, writes y"),
    ]
    for y, colour, label, what in rows:
        box(axes, 26, y, 28, 12, colour, label)
        note(axes, 58, y + 6, what)
    between = [
        (16, "forward: (count, mean, M2) of x", "backward: (∑g, ∑g(x − mean))"),
        (46, "forward: y = act(a (x − mean) + b)", "backward: dx = p g + q (x − mean) + r"),
    ]
    for y, forward, backward in between:
        arrow(axes, (40, y), (40, y + 18), INK)
        note(axes, 42, y + 6, forward, colour=GREY)
        note(axes, 42, y + 11, backward, colour=GREY)
    box(axes, 2, 4, 15, 72, PALE, "x\n(N, C, S)\n\nback-\nward\ndy too", text=INK)
    arrow(axes, (17, 10), (26, 10), READ)
    arrow(axes, (17, 70), (26, 70), READ)
    arrow(axes, (40, 76), (40, 84), WRITE)
    note(axes, 40, 87.5, "y, backward dx", ha="center")
    return figure


def lane(
    axes: Axes, y: float, label: str, spans: Sequence[tuple[float, float, str, str]], h: float = 6
) -> None:
    """A program's line in time: (start, end, colour, what)."""
    note(axes, 2, y + h / 2, label)
    for start, end, colour, what in spans:
        text = INK if colour in (WAIT, PALE) else "white"
        box(axes, start, y, end - start, h, colour, what, text=text)


def tiers() -> Figure:
    """What the programs of each tier do, in time."""
    figure, axes = canvas(132)
    note(axes, 2, 4, "one program", weight="bold")
    note(axes, 2, 9.5, "a set fits one program's registers: 1 launch, x read once", colour=GREY)
    for i in range(3):
        y = 14 + 7 * i
        lane(axes, y, f"set {i}", [(18, 38, READ, "read x"), (38, 58, COMPUTE, "statistics"),
                                   (58, 78, WRITE, "write y")])  # fmt: skip

    note(axes, 2, 42, "cluster", weight="bold")
    note(axes, 2, 47.5, "programs hold a set together: 1 launch, x read once", colour=GREY)
    for i, arrival in enumerate((50, 43, 54)):
        y = 52 + 7 * i
        lane(axes, y, f"part {i}", [
            (18, 36, READ, "read"), (36, arrival, COMPUTE, ""), (arrival, 56, WAIT, ""),
            (56, 72, COMPUTE, "merge"), (72, 90, WRITE, "write y"),
        ])  # fmt: skip
    axes.plot([56, 56], [50.5, 74.5], color=INK, linewidth=1.3)
    note(axes, 56, 77, "barrier: each waits for all", ha="center")

    note(axes, 2, 87, "streaming", weight="bold")
    note(axes, 2, 92.5, "any size: 2 launches, x read twice", colour=GREY)
    for i, end in enumerate((38, 33, 43)):
        y = 97 + 7 * i
        spans = [(18, end, READ, "read"), (62, 76, READ, "read"), (76, 92, WRITE, "write y")]
        if i == 2:
            spans.insert(1, (43, 57, COMPUTE, "merge"))
        lane(axes, y, f"part {i}", spans)
    axes.plot([59.5, 59.5], [95.5, 119.5], color=GREY, linewidth=1, linestyle=":")
    note(axes, 38, 122.5, "the last to arrive merges", ha="center")
    note(axes, 77, 122.5, "second launch", ha="center")
    note(axes, 2, 129, "Time runs to the right; lengths are not to scale.", colour=GREY)
    return figure


def tickets() -> Figure:
    """How the last of several programs is found without any waiting."""
    figure, axes = canvas(76)
    note(axes, 2, 4, "each program of a unit", weight="bold")
    steps = (
        (9, GREY, "stores", "its (count, mean, M2) into its own slot of a table"),
        (17, GREY, "adds 1", "to the unit's counter and sees the number before"),
        (25, GREY, "leaves", "unless it saw members − 1: then it is the last"),
        (43, COMPUTE, "loads", "all slots, in the order of the table"),
        (51, COMPUTE, "merges", "them: the same order, the same bits each time"),
        (59, COMPUTE, "resets", "the counter to 0 for the next launch"),
    )
    for y, colour, what, detail in steps:
        box(axes, 2, y, 15, 6.5, colour, what)
        note(axes, 20, y + 3.3, detail)
    note(axes, 2, 38, "the last one", weight="bold")
    note(axes, 2, 72, "Which program is last changes from run to run; the result does not.")
    return figure


def rows() -> Figure:
    """The row engine: forward by rows, backward's parameter gradients by columns."""
    figure, axes = canvas(104)
    note(axes, 2, 4, "forward: a program takes whole rows", weight="bold")
    for row in range(6):
        colour = COLOURS[row // 2]
        box(axes, 12, 8 + 5 * row, 56, 5, colour, "mean, rstd  →  y" if row % 2 == 0 else "")
    note(axes, 70, 13, "program 0")
    note(axes, 70, 23, "program 1")
    note(axes, 70, 33, "program 2")
    axes.text(8, 23, "R rows", rotation=90, ha="center", va="center", color=GREY)
    note(axes, 40, 41, "L elements", ha="center", colour=GREY)

    note(axes, 2, 50, "backward: dx by rows, and a partial sum each", weight="bold")
    for program in range(2):
        for turn in range(3):
            y = 54 + 4.5 * (2 * turn + program)
            box(axes, 12, y, 56, 4.5, COLOURS[program], "dx" if turn == 0 else "")
    note(axes, 70, 58, "program 0 and 1,")
    note(axes, 70, 63, "in turns")
    for program in range(2):
        box(axes, 12, 85 + 4.5 * program, 56, 4.5, COLOURS[program], "∑ g x̂ and ∑ g of its rows")
    note(axes, 70, 89.5, "partial sums")
    arrow(axes, (40, 94.5), (40, 99), INK)
    note(axes, 40, 101.5, "second launch: dγ, dβ in fixed order", ha="center")
    return figure


def main() -> None:
    for draw in (sets, stages, tiers, tickets, rows):
        path = FOLDER / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
