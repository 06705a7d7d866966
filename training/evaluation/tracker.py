"""Tracks of the shapes in a clip of a drawn world: where each is in each frame, without learned weights.

Colours of the palette separate shapes from the background (`segmentation`), moments give kind, centre and size of a
whole shape, and a fit of its outline those of one that is partly covered (`shapes`). The background's stripes give the
camera (`camera`), by which positions are in world units. Shape suffixes: T frames, H rows, W columns.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from cluster.arrays import BoolArray, Float64Array, Pixels
from training.evaluation.camera import UNSEEN, CameraPath, Room, find_camera
from training.evaluation.segmentation import ColourParts, Part, find_background, find_parts
from training.evaluation.shapes import (
    SYMMETRY,
    KindGuess,
    Measure,
    ShapeFit,
    check_kinds,
    fit,
    guess_kind,
    measure,
    pixel_centres,
    render,
    shape_of,
    unit_area,
)
from training.evaluation.truth import World

BORDER_PX = 2
"""A part this near to the frame's edge or to another part may be cut off."""
MIN_WHOLE_FRAMES = 2
"""A kind is told by moments if the shape is whole in as many frames, else by fits to its most visible frames."""
MIN_SEEN_SHARE = 0.75
MIN_WHOLE_SHARE = 0.25
"""A track must be seen in the first share of the frames, or be whole in the second."""
MAX_MISFIT = 0.55
"""Largest share of a shape's coverage that its kind may leave unexplained. It is at most 0.18 for drawn shapes, 0.24 in
the median after the autoencoder `causal` (0.53 for a tenth of them), and 0.61 in the median for the formless blobs of a
model that was trained for three minutes (0.46 at least)."""
MIN_SPIN_FRAMES = 4
MIN_FITTED_SHARE = 0.3
"""Smallest visible share of a shape whose fitted position counts."""
GOOD_FIT_ERROR = 0.006
MAX_FIT_ERROR = 0.06
"""Mean squared errors of the coverage: of a fit that needs no second start, and the largest of one that counts."""


@dataclass(frozen=True, eq=False)
class BodyTrack:
    """A shape over all frames, in pixels. Values of frames in which it was not found are NaN."""

    colour: str
    kind: str | None
    """None if the shape looks like none of the world's kinds."""
    spin: float
    """Radians per second; NaN for circles, and for shapes that are whole in fewer than `MIN_SPIN_FRAMES` frames."""
    x_T: Float64Array
    y_T: Float64Array
    radius_T: Float64Array
    """Radius from the area of whole shapes; NaN in other frames."""
    angle_T: Float64Array
    """Radians, reduced to the kind's symmetry; NaN where it cannot be seen."""
    visible_T: Float64Array
    """Visible share of the shape: 1 if whole, 0 if not found."""
    rgb_T3: Float64Array
    """Colour in the middle of the visible part."""

    @property
    def is_whole(self) -> BoolArray:
        """Frames in which all of the shape is seen, apart from other shapes."""
        return np.isfinite(self.radius_T)

    @property
    def is_placed(self) -> BoolArray:
        """Frames in which the shape has a position."""
        return np.isfinite(self.x_T)


@dataclass(frozen=True, eq=False)
class ClipTracks:
    """Everything the tracker found in a clip."""

    n_frames: int
    width: int
    height: int
    fps: float
    room: Room
    background: str | None
    background_share: float
    camera: CameraPath
    bodies: tuple[BodyTrack, ...]

    @cached_property
    def scale(self) -> Float64Array:
        """Pixels per world unit in each frame."""
        return self.room.unit_px * self.camera.positions(self.n_frames)[:, 1]

    def world_xy(self, body: BodyTrack) -> Float64Array:
        """Return the centre of a body in each frame in world units, `[T, 2]`, x up to a constant if the camera pans."""
        x_T = (body.x_T - self.width / 2) / self.scale + self.camera.positions(self.n_frames)[:, 0]
        return np.stack([x_T, (body.y_T - self.height / 2) / self.scale], axis=1)

    def world_radius(self, body: BodyTrack) -> Float64Array:
        """Return the radius in each frame in world units, `[T]`; NaN where the shape was not whole."""
        return body.radius_T / self.scale


def track(frames_THWC: Pixels, fps: float, world: World, room: Room | None = None) -> ClipTracks:
    """Return the background, the camera and the tracks of all shapes in a clip, uint8 RGB `[T, H, W, 3]`.

    `room` is by default that of frames that are not cropped.
    Raises `ValueError` for frames of another type or shape, and for a world with kinds of shapes that are not known.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3:
        raise ValueError(f"frames are {frames_THWC.dtype} {list(frames_THWC.shape)}; they must be uint8 [T, H, W, 3]")
    check_kinds(world.kinds)
    n_frames, height, width = frames_THWC.shape[:3]
    room = room or Room.of_frame(width, height)
    background = find_background(frames_THWC, world)
    if background is None:
        return ClipTracks(n_frames, width, height, fps, room, None, 0.0, UNSEEN, ())
    camera = find_camera(background, room)
    colours = find_parts(frames_THWC, background, world)
    tracker = _Tracker(colours, (height, width), fps, world, room.unit_px * camera.positions(n_frames)[:, 1])
    return ClipTracks(
        n_frames, width, height, fps, room, background.name, background.share, camera, tuple(tracker.tracks())
    )


@dataclass(frozen=True, eq=False)
class _Sighting:
    """A shape in one frame: its visible parts as one, and whether nothing cuts it off."""

    part: Part
    whole: bool
    measured: Measure


@dataclass(frozen=True)
class _Form:
    """The constants of a shape: its kind, the kind of outline that it is measured by, radius and spin."""

    kind: str | None
    outline: str
    radius: float | None
    """Radius in world units; None if it cannot be told."""
    spin: float


class _Tracker:
    """Links the parts of each colour over time, and measures the shapes."""

    def __init__(
        self, colours: list[ColourParts], size: tuple[int, int], fps: float, world: World, scale_T: Float64Array
    ) -> None:
        self._colours, self._size, self._fps, self._world, self._scale_T = colours, size, fps, world, scale_T
        self._n_frames = len(scale_T)
        self._cores_THW = self._all_cores()

    def tracks(self) -> list[BodyTrack]:
        """Return the tracks that are seen long enough, the largest first."""
        found = [
            self._measured(colour.colour, sightings)
            for colour in self._colours
            for sightings in self._linked(colour)
            if self._is_shape(sightings)
        ]
        return sorted(found, key=lambda body: -float(np.nansum(body.visible_T)))

    def _is_shape(self, sightings: dict[int, _Sighting]) -> bool:
        """Return whether sightings are those of a shape, and not of a mixture of colours where shapes touch."""
        n_whole = sum(one.whole for one in sightings.values())
        return len(sightings) >= MIN_SEEN_SHARE * self._n_frames or n_whole >= MIN_WHOLE_SHARE * self._n_frames

    def _all_cores(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        """Return for each pixel the number of the part that it is the core of, 0 for none."""
        cores_THW = np.zeros((self._n_frames, *self._size), np.int32)
        number = 0
        for colour in self._colours:
            for frame, parts in enumerate(colour.parts_T):
                for part in parts:
                    number += 1
                    cores_THW[frame][part.core_HW] = number
        return cores_THW

    def _linked(self, colour: ColourParts) -> list[dict[int, _Sighting]]:
        """Return the sightings of each shape of one colour, by frame."""
        counts = [len(parts) for parts in colour.parts_T if parts]
        n_shapes = max(1, int(np.median(counts)))
        if n_shapes == 1:
            merged = {frame: _merged(parts) for frame, parts in enumerate(colour.parts_T) if parts}
            return [{frame: self._sighting(frame, part) for frame, part in merged.items()}]
        chains: list[dict[int, _Sighting]] = [{} for _ in range(n_shapes)]
        last: list[_Sighting | None] = [None] * n_shapes
        for frame, parts in enumerate(colour.parts_T):
            sightings = [self._sighting(frame, part) for part in parts[:n_shapes]]
            free = list(range(n_shapes))
            # The nearest pairs first.
            pairs = sorted(
                (_distance(last[chain], sighting), chain, index)
                for chain in free
                for index, sighting in enumerate(sightings)
            )
            used: set[int] = set()
            for _, chain, index in pairs:
                if chain in free and index not in used:
                    free.remove(chain)
                    used.add(index)
                    chains[chain][frame] = last[chain] = sightings[index]
        return chains

    def _sighting(self, frame: int, part: Part) -> _Sighting:
        rows, columns = np.nonzero(part.core_HW)
        height, width = self._size
        whole = (
            rows.min() >= BORDER_PX
            and columns.min() >= BORDER_PX
            and rows.max() < height - BORDER_PX
            and columns.max() < width - BORDER_PX
            and not (self._others(frame, part) & _grown(part.core_HW, BORDER_PX + 1)).any()
        )
        return _Sighting(part, bool(whole), measure(part.weights_HW))

    def _others(self, frame: int, part: Part) -> BoolArray:
        """Return the pixels that are the core of other parts."""
        cores_HW = self._cores_THW[frame]
        return np.asarray((cores_HW > 0) & ~part.core_HW, bool)

    def _measured(self, colour: str, sightings: dict[int, _Sighting]) -> BodyTrack:
        """Return the track of one shape: whole sightings decide its kind and size, by which others are fitted."""
        form = self._form(sightings)
        body = self._unplaced(colour, form)
        previous: ShapeFit | None = None
        for frame in sorted(sightings):
            one = sightings[frame]
            body.rgb_T3[frame] = one.part.rgb
            if form.radius is None:
                body.visible_T[frame] = 0.5
                continue
            shape = shape_of(one.measured, form.outline)
            expected = form.radius * float(self._scale_T[frame])
            body.visible_T[frame] = self._visible(one, form.outline, expected)
            if one.whole:
                body.radius_T[frame] = shape.radius
            else:
                shape = self._fitted(frame, one.part, replace(shape, radius=expected), previous)
            previous = shape
            if one.whole or (body.visible_T[frame] >= MIN_FITTED_SHARE and shape.error <= MAX_FIT_ERROR):
                body.x_T[frame], body.y_T[frame] = shape.x, shape.y
                body.angle_T[frame] = shape.angle if SYMMETRY[form.outline] else np.nan
        return body

    def _form(self, sightings: dict[int, _Sighting]) -> _Form:
        """Return kind, size and spin of a shape from whole sightings, or else from fits to the most visible ones."""
        whole = {frame: one for frame, one in sightings.items() if one.whole}
        if len(whole) < min(MIN_WHOLE_FRAMES, self._n_frames):
            kind, radius = self._fitted_kind(sightings)
            return _Form(kind, kind or "circle", radius, math.nan)
        guess = self._guess(whole)
        kind = guess.kind if _misfit(whole, guess.kind) <= MAX_MISFIT else None
        # A blob that looks like no kind is measured as a circle.
        outline = kind or "circle"
        radii = [shape_of(one.measured, outline).radius / self._scale_T[frame] for frame, one in whole.items()]
        turns = len(whole) >= MIN_SPIN_FRAMES and SYMMETRY[outline] > 0
        return _Form(kind, outline, float(np.median(radii)), guess.spin if turns else math.nan)

    def _unplaced(self, colour: str, form: _Form) -> BodyTrack:
        """Return a track without positions, to be filled in."""
        x_T, y_T, radius_T, angle_T = np.full((4, self._n_frames), np.nan)
        visible_T, rgb_T3 = np.zeros(self._n_frames), np.full((self._n_frames, 3), np.nan)
        return BodyTrack(colour, form.kind, form.spin, x_T, y_T, radius_T, angle_T, visible_T, rgb_T3)

    def _guess(self, whole: dict[int, _Sighting]) -> KindGuess:
        """Return kind and spin from the moments of whole sightings."""
        times_s = [frame / self._fps for frame in whole]
        return guess_kind([one.measured for one in whole.values()], times_s, self._world.kinds)

    def _fitted_kind(self, sightings: dict[int, _Sighting]) -> tuple[str | None, float | None]:
        """Return kind and world radius of a shape that is never whole, from fits to its most visible frames."""
        best = sorted(sightings, key=lambda frame: -sightings[frame].part.area)[:3]
        errors: Counter[str] = Counter()
        radii: dict[str, list[float]] = {}
        for frame in best:
            part = sightings[frame].part
            for kind in self._world.kinds:
                start = shape_of(sightings[frame].measured, kind)
                shape = fit(part.weights_HW, self._valid(frame, part), start, free_radius=True)
                errors[kind] += shape.error  # type: ignore[assignment]
                radii.setdefault(kind, []).append(shape.radius / float(self._scale_T[frame]))
        kind = min(self._world.kinds, key=lambda name: errors[name])
        if errors[kind] / len(best) > MAX_FIT_ERROR:
            return None, None
        return kind, float(np.median(radii[kind]))

    def _fitted(self, frame: int, part: Part, start: ShapeFit, previous: ShapeFit | None) -> ShapeFit:
        """Return the better of the fits that start at the visible part and at the shape of the frame before."""
        valid_HW = self._valid(frame, part)
        found = fit(part.weights_HW, valid_HW, start)
        if previous is None or found.error <= GOOD_FIT_ERROR:
            return found
        again = replace(start, x=previous.x, y=previous.y, angle=previous.angle)
        return min(found, fit(part.weights_HW, valid_HW, again), key=lambda shape: shape.error)

    def _valid(self, frame: int, part: Part) -> BoolArray:
        """Return the pixels that no other part covers."""
        return ~_grown(self._others(frame, part), BORDER_PX)

    def _visible(self, one: _Sighting, kind: str, radius_px: float) -> float:
        """Return the visible share of a shape."""
        if one.whole:
            return 1.0
        return min(1.0, one.part.area / (unit_area(kind) * radius_px**2))


def _misfit(whole: dict[int, _Sighting], kind: str) -> float:
    """Return the median share of the coverage of whole sightings that shapes of this kind do not explain."""
    errors = []
    for one in whole.values():
        weights_HW = np.clip(one.part.weights_HW, 0, 1)
        height, width = weights_HW.shape
        model_HW = render(shape_of(one.measured, kind), pixel_centres(width), pixel_centres(height))
        errors.append(float(np.abs(model_HW - weights_HW).sum() / weights_HW.sum()))
    return float(np.median(errors))


def _merged(parts: tuple[Part, ...]) -> Part:
    """Return parts as one, those that another shape divides; parts far from the largest are left out."""
    first = parts[0]
    reach = 2.5 * math.sqrt(first.area)
    rows, columns = np.nonzero(first.core_HW)
    near = [first]
    for part in parts[1:]:
        part_rows, part_columns = np.nonzero(part.core_HW)
        if math.hypot(part_rows.mean() - rows.mean(), part_columns.mean() - columns.mean()) < reach:
            near.append(part)
    if len(near) == 1:
        return first
    core_HW = np.logical_or.reduce([part.core_HW for part in near])
    weights_HW = np.maximum.reduce([part.weights_HW for part in near])
    return Part(float(weights_HW.sum()), core_HW, weights_HW, first.rgb)


def _grown(mask_HW: BoolArray, by_px: int) -> BoolArray:
    kernel = np.ones((2 * by_px + 1, 2 * by_px + 1), np.uint8)
    return np.asarray(cv2.dilate(mask_HW.astype(np.uint8), kernel) > 0, bool)


def _distance(last: _Sighting | None, now: _Sighting) -> float:
    return 1e6 if last is None else math.hypot(last.measured.x - now.measured.x, last.measured.y - now.measured.y)
