"""Free flights, bounces and collisions in the tracks of a clip, fitted in world units and seconds.

Shape suffixes: T frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.arrays import BoolArray, Float64Array
from training.evaluation.metric import Clip
from training.evaluation.tracker import BodyTrack, ClipTracks

TOUCH = 1.15
"""Two shapes may touch if their centres are nearer than this many sums of their radii."""
MIN_FLIGHT_FRAMES = 5
"""Frames by which an acceleration can be fitted with an idea of the error."""
MIN_BOUNCE_FRAMES = 3
"""Frames on each side of a bounce, of which the acceleration is shared."""
MIN_LINE_FRAMES = 2
"""Frames on each side of a collision."""
MAX_RESIDUAL = 0.02
"""Largest root mean square of a fit's residuals in world units: above it, something else happened in between."""
WALL_MARGIN = 0.06
"""A shape this near to a wall may have touched it."""


@dataclass(frozen=True)
class Flight:
    """A free flight of a body: frames `start` to `end` (exclusive) without a contact, and its fitted acceleration."""

    start: int
    end: int
    acceleration: float
    information: float
    """Inverse variance of the acceleration for errors of position of 1."""


@dataclass(frozen=True)
class Bounce:
    """A bounce off the floor: speeds just before and after it."""

    speed_before: float
    speed_after: float


@dataclass(frozen=True)
class Collision:
    """Masses (squared radii) and velocities (x, y) of two bodies before and after a collision."""

    masses: tuple[float, float]
    before: Float64Array
    """Velocities `[2 bodies, 2]`."""
    after: Float64Array


def flights(tracks: ClipTracks, body: BodyTrack) -> Iterator[Flight]:
    """Yield the free flights of a body that are long enough and follow a parabola."""
    y_T = tracks.world_xy(body)[:, 1]
    for start, end in _free_runs(tracks, body):
        if end - start < MIN_FLIGHT_FRAMES:
            continue
        time_T = np.arange(start, end) / tracks.fps
        (half, _, _), residual = _polynomial(time_T, y_T[start:end], 2)
        if residual <= MAX_RESIDUAL:
            yield Flight(start, end, 2 * half, _information(time_T))


def bounces(tracks: ClipTracks, body: BodyTrack) -> Iterator[Bounce]:
    """Yield the bounces of a body off the floor: two flights with one acceleration that meet between two frames."""
    y_T = tracks.world_xy(body)[:, 1]
    for (start_a, end_a), (start_b, end_b) in itertools.pairwise(_free_runs(tracks, body)):
        if min(end_a - start_a, end_b - start_b) < MIN_BOUNCE_FRAMES or start_b - end_a > 1:
            continue
        frames = np.r_[start_a:end_a, start_b:end_b]
        if len(frames) < 2 * MIN_BOUNCE_FRAMES + 1:
            continue
        time = frames / tracks.fps
        is_b = frames >= start_b
        # y = ya + va t + g t²/2 before, yb + vb t + g t²/2 after: the difference of the two is linear in t.
        design = np.stack([~is_b, ~is_b * time, is_b, is_b * time, time**2 / 2], axis=1).astype(float)
        (ya, va, yb, vb, g), *_ = np.linalg.lstsq(design, y_T[frames], rcond=None)
        residual = float(np.sqrt(np.mean((design @ [ya, va, yb, vb, g] - y_T[frames]) ** 2)))
        if residual > MAX_RESIDUAL or va == vb:
            continue
        meets = (yb - ya) / (va - vb)
        before, after = va + g * meets, vb + g * meets
        if end_a - 1.5 <= meets * tracks.fps <= start_b + 0.5 and before > 0.3 and after < 0:
            yield Bounce(float(before), float(-after))


def collisions(tracks: ClipTracks) -> Iterator[Collision]:
    """Yield the collisions of two bodies that fly straight before and after."""
    for pair, frame, _ in _meetings(tracks):
        before = [_straight(tracks, body, frame, -1) for body in pair]
        after = [_straight(tracks, body, frame, 1) for body in pair]
        if any(velocity is None for velocity in (*before, *after)):
            continue
        a, b = pair
        yield Collision((_reach(tracks, a) ** 2, _reach(tracks, b) ** 2), np.array(before), np.array(after))


def judged_collisions(clip: Clip) -> Iterator[Collision]:
    """Yield the collisions of a clip whose caption says that shapes fly without weight, and whose camera is seen."""
    tracks = clip.tracks
    if tracks is None or clip.expected is None or clip.expected.action not in ("collide", "glide"):
        return
    if tracks.camera.is_seen:
        yield from collisions(tracks)


def near_approaches(tracks: ClipTracks) -> Iterator[float]:
    """Yield for each near approach of two bodies the smallest distance of centres over the sum of radii."""
    for _, _, nearness in _meetings(tracks):
        yield nearness


def _meetings(tracks: ClipTracks) -> Iterator[tuple[tuple[BodyTrack, BodyTrack], int, float]]:
    """Yield each near approach of two bodies: both, the frame, and the distance of centres over the sum of radii."""
    for a, b in itertools.combinations(tracks.bodies, 2):
        distance_T = np.hypot(*(tracks.world_xy(a) - tracks.world_xy(b)).T)
        touch = _reach(tracks, a) + _reach(tracks, b)
        if np.isfinite(distance_T).any() and np.isfinite(touch):
            for frame in _near_approaches(distance_T, TOUCH * touch):
                yield (a, b), frame, float(distance_T[frame] / touch)


def _reach(tracks: ClipTracks, body: BodyTrack) -> float:
    """Return the median radius of a body in world units; NaN if it was never whole."""
    radius_T = tracks.world_radius(body)
    return float(np.nanmedian(radius_T)) if np.isfinite(radius_T).any() else float("nan")


def _near_approaches(distance_T: Float64Array, limit: float) -> list[int]:
    """Return the frames at which a distance is a local minimum below a limit."""
    filled_T = np.where(np.isfinite(distance_T), distance_T, np.inf)
    padded = np.r_[np.inf, filled_T, np.inf]
    is_minimum_T = (padded[1:-1] < padded[:-2]) & (padded[1:-1] <= padded[2:]) & (filled_T < limit)
    return [int(frame) for frame in np.flatnonzero(is_minimum_T)]


def _straight(tracks: ClipTracks, body: BodyTrack, frame: int, side: int) -> Float64Array | None:
    """Return the velocity of a body in the frames before (side -1) or after a collision; None if it is not straight."""
    xy_T2, walls = tracks.world_xy(body), touches_wall(tracks, body)
    nearest = range(frame - 1, -1, -1) if side < 0 else range(frame + 1, tracks.n_frames)
    kept: list[int] = []
    for index in nearest:
        if not np.isfinite(xy_T2[index]).all() or len(kept) == MIN_LINE_FRAMES + 2:
            break
        if walls[index]:
            break
        kept.append(index)
    if len(kept) < MIN_LINE_FRAMES:
        return None
    time = np.array(kept) / tracks.fps
    velocity = []
    for axis in range(2):
        (slope, _), residual = _polynomial(time, xy_T2[kept, axis], 1)
        if residual > MAX_RESIDUAL / 2:
            return None
        velocity.append(slope)
    return np.array(velocity)


def touches_wall(tracks: ClipTracks, body: BodyTrack) -> BoolArray:
    """Return the frames in which a body may touch a wall; at a panning camera the side walls' positions are unknown."""
    xy_T2, reach = tracks.world_xy(body), _reach(tracks, body)
    near_T = np.abs(xy_T2[:, 1]) > tracks.room.half_y - reach - WALL_MARGIN
    if tracks.camera.pan == 0:
        near_T |= np.abs(xy_T2[:, 0]) > tracks.room.half_x - reach - WALL_MARGIN
    return np.asarray(near_T, bool)


def _free_runs(tracks: ClipTracks, body: BodyTrack) -> list[tuple[int, int]]:
    """Return the spans of frames in which a body has a position, turns nowhere from falling to rising, and is alone."""
    y_T = tracks.world_xy(body)[:, 1]
    free_T = np.isfinite(y_T)
    padded = np.r_[np.nan, y_T, np.nan]
    with np.errstate(invalid="ignore"):
        lowest_T = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    contact_T = np.zeros(tracks.n_frames, bool)
    for other in tracks.bodies:
        if other is not body:
            distance_T = np.hypot(*(tracks.world_xy(body) - tracks.world_xy(other)).T)
            with np.errstate(invalid="ignore"):
                contact_T |= distance_T < TOUCH * (_reach(tracks, body) + _reach(tracks, other))
    free_T &= ~lowest_T & ~contact_T
    edges = np.diff(np.r_[0, free_T.astype(int), 0])
    return list(zip(np.flatnonzero(edges > 0).tolist(), np.flatnonzero(edges < 0).tolist(), strict=True))


def _polynomial(time: Float64Array, values: Float64Array, degree: int) -> tuple[Sequence[float], float]:
    """Return coefficients, the highest first, and the root mean square of the residuals."""
    centred = time - time.mean()
    coefficients = np.polyfit(centred, values, degree)
    residual = float(np.sqrt(np.mean((np.polyval(coefficients, centred) - values) ** 2)))
    return coefficients.tolist(), residual


def _information(time: Float64Array) -> float:
    """Return the inverse variance of twice the quadratic coefficient of a fit, for errors of 1."""
    design = np.vander(time - time.mean(), 3)
    return float(1 / (4 * np.linalg.inv(design.T @ design)[0, 0]))
