"""A chart of cumulative distributions, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.tracking.loss_curve import BOTTOM, GRID, HEIGHT, LEFT, OPENING, RIGHT, TOP, WIDTH, ticks

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

    parts = [*OPENING]
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
