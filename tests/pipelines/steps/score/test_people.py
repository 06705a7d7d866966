"""Faces and nudity, against NudeNet's own code with the same network."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import weight_files
from pipelines.steps.score._base import decode_jpeg
from pipelines.steps.score._people import CLASSES, FACES, MAX_OVERLAP, NSFW, _overlap, detections_of, suppress_overlaps
from pipelines.steps.score.people import People
from pipelines.video.decode import probe
from pipelines.video.frame_images import FrameImages, FrameSampling, images_of_spans
from tests.support.score_rows import run, table_of, texture


def output_of(*detections: tuple[str, float, tuple[float, float, float, float]]) -> np.ndarray:
    """Return an output of the network with these detections: class, score, and box (centre and size in pixels of the
    input)."""
    output = np.full((4 + len(CLASSES), 2100), 0.001, np.float32)
    for index, (name, score, box) in enumerate(detections):
        output[:4, 10 * index] = box
        output[4 + CLASSES.index(name), 10 * index] = score
    return output


def test_areas_are_shares_of_the_image_not_of_the_square() -> None:
    output = output_of(
        ("FACE_MALE", 0.9, (80, 40, 80, 80)),
        ("FACE_MALE", 0.8, (81, 40, 80, 80)),
        ("FACE_FEMALE", 0.7, (240, 60, 40, 40)),
    )
    found = detections_of(output, 180, 640, 0.4)
    assert found.face_areas == pytest.approx((160 * 160 / (180 * 640), 80 * 80 / (180 * 640)))
    assert found.nsfw == pytest.approx(0.001)
    assert detections_of(output, 180, 640, 0.75).face_areas == pytest.approx(found.face_areas[:1])


def test_face_partly_outside_counts_with_its_inside() -> None:
    found = detections_of(output_of(("FACE_MALE", 0.9, (0, 0, 40, 40))), 320, 320, 0.4)
    assert found.face_areas == pytest.approx((20 * 20 / 320**2,))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_count_as_nudity_and_faces(name: str) -> None:
    found = detections_of(output_of((name, 0.6, (100, 100, 50, 50))), 320, 320, 0.4)
    assert (found.nsfw == pytest.approx(0.6)) == (name in NSFW)
    assert bool(found.face_areas) == (name in FACES)


BOX = st.tuples(*[st.floats(0, 100, width=32)] * 2, *[st.floats(1, 100, width=32)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@pytest.mark.slow
@given(st.lists(st.tuples(BOX, st.floats(0, 1, width=32)), max_size=12))
def test_suppressed_boxes_overlap_a_kept_one(found: list[tuple[tuple[float, ...], float]]) -> None:
    corners = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in found], np.float32)
    kept = suppress_overlaps(corners, scores)
    assert all(_overlap(corners[i], corners[j]) <= MAX_OVERLAP for i in kept for j in kept if i != j)
    for i in set(range(len(found))) - set(kept):
        assert any(scores[j] >= scores[i] and _overlap(corners[i], corners[j]) > MAX_OVERLAP for j in kept)


@pytest.mark.slow
def test_rows_do_not_depend_on_each_other() -> None:
    clips = [texture(2, 5.0, seed=seed) for seed in range(3)]
    together = run(People(), table_of(clips))
    assert [run(People(), table_of([clip]))[0]["nsfw"] for clip in clips] == [row["nsfw"] for row in together]
    assert all(row["faces"] == 0 and row["face_area"] == 0 and row["nsfw"] < 0.3 for row in together)


@pytest.mark.slow
def test_classes_equal_those_in_the_weights_metadata() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = weight_files.package_file(*People.packaged_file)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    import ast

    assert tuple(ast.literal_eval(session.get_modelmeta().custom_metadata_map["names"]).values()) == CLASSES


@pytest.mark.slow
def test_faces_against_nudenet(video_folder: Path) -> None:
    nudenet = pytest.importorskip("nudenet")
    detector = nudenet.NudeDetector()
    clips = []
    for name in (
        "subtitled_portrait_362x640.mp4",
        "carphone_pristine.mp4",
        "mpeg4_320x240.avi",
        "motorcycle_2160p.mp4",
    ):
        info = probe(str(video_folder / name))
        (taken,) = images_of_spans(
            str(video_folder / name),
            [(info.start_pts, info.start_pts + round(Fraction(3) / info.time_base))],
            FrameSampling(),
        )
        assert isinstance(taken, FrameImages), taken
        clips.append(list(taken.images))
    rows = run(People(), table_of(clips))
    assert [row["faces"] for row in rows] == [1, 1, 1, 0]
    for row, clip in zip(rows, clips, strict=True):
        shares, counts, nsfw = [], [], [0.0]
        for data in clip:
            image = decode_jpeg(data)
            found = detector.detect(image[..., ::-1].copy())
            faces = [item for item in found if item["class"] in FACES and item["score"] >= 0.4]
            shares.append(sum(item["box"][2] * item["box"][3] for item in faces) / (image.shape[0] * image.shape[1]))
            counts.append(len(faces))
            nsfw += [item["score"] for item in found if item["class"] in NSFW]
        assert row["faces"] == max(counts)
        # NudeNet keeps the full width of a face that is partly outside on the left, and rounds down to whole pixels.
        assert row["face_area"] == pytest.approx(np.mean(shares), abs=0.01)
        assert row["nsfw"] >= max(nsfw) - 0.01
