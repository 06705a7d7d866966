"""A chart of cumulative distributions, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
INK, GRID = "#333333", "#e4e4e4"
FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#1f5fa8", "#d1495b", "#4b8b3b", "#8a5fa8")


def cumulative_chart(series: Mapping[str, Sequence[float]], label: str) -> str:
    """Return an SVG chart of the share of values at or below each value, one line per series with at least one value.

    Raises `ValueError` without any value.
    """
    shown = {name: sorted(values) for name, values in series.items() if values}
    if not shown:
        raise ValueError("there are no values to draw")
    low, high = min(values[0] for values in shown.values()), max(values[-1] for values in shown.values())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT} fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="{GRID}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for tick in ticks(low, high):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    for index, (name, values) in enumerate(shown.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [(low, 0.0)]
        for rank, value in enumerate(values):
            points += [(value, rank / len(values)), (value, (rank + 1) / len(values))]
        path = " ".join(f"{x(value):.1f},{y(share):.1f}" for value, share in [*points, (high, 1.0)])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 12}" y="{TOP + 16 + 18 * index}" fill="{colour}">{name} ({len(values)})</text>')
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Return about 3 to 8 round numbers within the span, spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
