"""A chart of training and validation loss over steps, as SVG."""

from __future__ import annotations

import math

Points = list[tuple[int, float]]
"""Steps and values of a curve."""

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
RAW, SMOOTH, VALIDATION, INK, GRID = "#b9cfe8", "#1f5fa8", "#d1495b", "#333333", "#e4e4e4"
FONT = 'font-family="sans-serif" font-size="12"'
OPENING = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT} fill="{INK}">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
)
"""The first lines of a chart: its size, font and background."""
MAX_POINTS = 2000
"""Most points of a drawn line: more than twice the chart's width in pixels would not show."""


def loss_curve(train: Points, validation: Points) -> str:
    """Return an SVG chart of the training loss (pale) with its running mean (strong), and of the validation loss.

    Raises `ValueError` without any point.
    """
    points = train + validation
    if not points:
        raise ValueError("no step has been recorded, so there is no loss to draw")
    last_step = max(step for step, _ in points)
    low, high = _span([loss for _, loss in points if math.isfinite(loss)])
    smooth = running_mean(train)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    def line(series: Points, colour: str, width: float) -> str:
        stride = -(-len(series) // MAX_POINTS)
        shown = [*series[::stride], *([series[-1]] if (len(series) - 1) % stride else [])]
        path = " ".join(
            f"{x(step):.1f},{y(min(max(loss, low), high)):.1f}" for step, loss in shown if math.isfinite(loss)
        )
        return (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'
        )

    parts = [*OPENING]
    for tick in ticks(low, high):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(0, last_step):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    axes = f"{LEFT},{TOP} {LEFT},{HEIGHT - BOTTOM} {WIDTH - RIGHT},{HEIGHT - BOTTOM}"
    parts.append(f'<polyline points="{axes}" fill="none" stroke="{INK}"/>')
    if train:
        parts += [line(train, RAW, 1), line(smooth, SMOOTH, 2)]
    if validation:
        parts.append(line(validation, VALIDATION, 2))
        parts += [
            f'<circle cx="{x(step):.1f}" cy="{y(min(max(loss, low), high)):.1f}" r="3" fill="{VALIDATION}"/>'
            for step, loss in validation
        ]
    for row, (name, colour) in enumerate(
        (("training loss, running mean", SMOOTH), ("validation loss", VALIDATION))[: 1 + bool(validation)]
    ):
        parts.append(f'<rect x="{WIDTH - 220}" y="{TOP + 6 + 18 * row}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - 200}" y="{TOP + 12 + 18 * row}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def running_mean(points: Points) -> Points:
    """Return the mean at each step over a window that ends there: a fiftieth of the run, but at least 5 steps."""
    window = max(5, len(points) // 50)
    total, result = 0.0, []
    for index, (step, loss) in enumerate(points):
        total += loss - (points[index - window][1] if index >= window else 0.0)
        result.append((step, total / min(index + 1, window)))
    return result


def ticks(low: float, high: float) -> list[float]:
    """Return about 3 to 8 round numbers within the span, spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _span(losses: list[float]) -> tuple[float, float]:
    """Return the range of the axis, from 0, the loss to reach, to just above the highest one without the
    top hundredth.
    """
    ordered = sorted(losses) or [1.0]
    return 0.0, max(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1.05, 1e-9)
