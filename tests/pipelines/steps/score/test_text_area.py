"""Area of text, against rapidocr's own detector and against counted pixels, and which of it is stable or moving."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import weight_files
from cluster.config import ConfigError
from pipelines.recipe import Recipe, load_recipe
from pipelines.steps.score import _base
from pipelines.steps.score._onnx import load_network
from pipelines.steps.score._text import MEAN, Text, boxes_of, covered_share, input_size, stable_masks, to_input
from pipelines.steps.score.text_area import TextArea
from pipelines.video.decode import probe
from pipelines.video.frame_images import FrameImages, FrameSampling, images_of_spans
from tests.support.paths import ROOT
from tests.support.score_rows import Pixels, run, table_of, texture

QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"


def written(image: Pixels, text: str, x: int, y: int, scale: float = 0.8) -> Pixels:
    """Return the image with white letters with a black rim drawn on it, like subtitles."""
    image = image.copy()
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 5, cv2.LINE_AA)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 2, cv2.LINE_AA)
    return image


SUBTITLES = ["where were you", "at the harbour", "I saw nothing", "then who did it"]


def score(clips: list[list[Pixels]], **fields: Any) -> list[dict[str, Any]]:
    return run(TextArea(**fields), table_of(clips))


@pytest.mark.slow
def test_subtitles_are_stable_and_passing_signs_move() -> None:
    plain = texture(4, 9.0)
    subtitled = [written(image, text, 40, 180) for image, text in zip(plain, SUBTITLES, strict=True)]
    passing = [written(image, "HARBOUR", 10 + 40 * k, 40 + 45 * k) for k, image in enumerate(plain)]
    none, stable, moving = score([plain, subtitled, passing])
    assert (none["text_area"], none["text_area_stable"], none["text_area_moving"]) == (0, 0, 0)
    assert stable["text_area"] > 0.04
    assert stable["text_area_stable"] == stable["text_area"]
    assert moving["text_area"] > 0.02
    assert moving["text_area_moving"] == moving["text_area"]


@pytest.mark.slow
def test_single_image_has_no_stable_or_moving_text() -> None:
    (row,) = score([[written(texture(1, 0)[0], "hello there", 40, 100)]])
    assert row["text_area"] > 0.03
    assert (row["text_area_stable"], row["text_area_moving"]) == (None, None)


@pytest.mark.slow
def test_scores_do_not_depend_on_other_clips_or_their_order() -> None:
    plain = texture(3, 9.0)
    clips = [
        [written(image, text, 20 + 30 * i, 100) for image in plain[: i + 1]] for i, text in enumerate(SUBTITLES[:3])
    ]
    together = [row["text_area"] for row in score(clips)]
    assert [score([clip])[0]["text_area"] for clip in clips] == together
    assert [row["text_area"] for row in score(clips[::-1])] == together[::-1]


@pytest.mark.slow
def test_boxes_equal_those_of_rapidocr() -> None:
    """The reference is the same network with rapidocr's own code, whose boxes are rounded to whole pixels."""
    omegaconf = pytest.importorskip("omegaconf")
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    from rapidocr.ch_ppocr_det.main import TextDetector
    from rapidocr.utils.typings import EngineType

    path = weight_files.package_file(*TextArea.packaged_file)
    engine = {
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
        "enable_cpu_mem_arena": False,
        "cpu_ep_cfg": {},
        "use_cuda": False,
        "use_dml": False,
        "use_cann": False,
        "use_coreml": False,
    }
    deviation = [0.229, 0.224, 0.225]
    config = {
        "engine_type": EngineType.ONNXRUNTIME,
        "model_path": str(path),
        "engine_cfg": engine,
        "limit_side_len": 448,
        "limit_type": "max",
        "mean": MEAN.tolist(),
        "std": deviation,
        "thresh": 0.3,
        "box_thresh": 0.5,
        "unclip_ratio": 1.6,
        "use_dilation": True,
    }
    detector = TextDetector(omegaconf.OmegaConf.create(config, flags={"allow_objects": True}))
    network = load_network(path, 0.0, 1)
    for number, image in enumerate(texture(3, 20.0)):
        page = written(written(image, SUBTITLES[number], 30, 60), SUBTITLES[number + 1], 60, 160, 0.6)
        theirs = detector(page[..., ::-1].copy())
        size = input_size(*page.shape[:2], 448)
        assert size == page.shape[:2]
        ours = boxes_of(network([to_input(page, size)])[0, 0]).over(0.5, 0.5)
        assert theirs.boxes is not None
        assert len(ours.boxes) == len(theirs.boxes) >= 2
        their_mask = Text(
            np.asarray(theirs.boxes, np.float32), *[np.ones(len(theirs.boxes), np.float32)] * 2, size
        ).masks()
        union, their_union = np.any(ours.masks(), axis=0), np.any(their_mask, axis=0)
        assert (union & their_union).sum() / (union | their_union).sum() > 0.93
        # rapidocr rounds corners down to whole pixels before it takes the mean; here they are rounded to the nearest.
        assert sorted(ours.scores.tolist()) == pytest.approx(sorted(theirs.scores), abs=0.06)


BOXES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 30), st.integers(1, 30)), max_size=6)


def text_of(boxes: list[tuple[int, int, int, int]], shape: tuple[int, int] = (64, 96)) -> Text:
    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    return Text(np.array(corners, np.float32).reshape(-1, 4, 2), *[np.ones(len(boxes), np.float32)] * 2, shape)


@pytest.mark.slow
@given(BOXES)
def test_covered_share_is_that_of_the_union(boxes: list[tuple[int, int, int, int]]) -> None:
    covered = {
        (i, j) for x, y, w, h in boxes for i in range(x, min(x + w, 95) + 1) for j in range(y, min(y + h, 63) + 1)
    }
    text = text_of(boxes)
    assert covered_share(text.masks(), text.shape) == pytest.approx(len(covered) / (64 * 96))


@pytest.mark.slow
@given(st.lists(BOXES, min_size=2, max_size=4))
@settings(max_examples=50)
def test_same_boxes_are_stable_in_a_reversed_clip(clip: list[list[tuple[int, int, int, int]]]) -> None:
    texts = [text_of(boxes) for boxes in clip]
    np.testing.assert_equal(stable_masks(texts)[::-1], stable_masks(texts[::-1]))
    same = [text_of(clip[0])] * 2
    np.testing.assert_equal(stable_masks(same), [text.masks() for text in same])


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (360, 640, (256, 448)),
        (252, 448, (256, 448)),
        (20, 500, (32, 448)),
        (90, 160, (96, 160)),
        (448, 252, (448, 256)),
    ],
)
def test_input_sizes(height: int, width: int, size: tuple[int, int]) -> None:
    assert input_size(height, width, 448) == size


def test_box_from_edge_to_edge_is_no_text() -> None:
    probability = np.full((96, 160), 0.9, np.float32)
    assert len(boxes_of(probability).boxes) == 0
    probability[20:] = 0
    assert len(boxes_of(probability).boxes) == 1


def test_square_boxes_need_a_higher_score_than_lines() -> None:
    probability = np.full((96, 160), 0.0, np.float32)
    probability[10:18, 20:80] = probability[50:70, 20:44] = 0.6
    found = boxes_of(probability)
    assert sorted(found.aspects.tolist()) == pytest.approx([24 / 20, 60 / 8], rel=0.1)
    assert found.over(0.5, 0.7).aspects.tolist() == [max(found.aspects)]
    assert len(found.over(0.5, 0.5).boxes) == 2
    assert len(found.over(0.65, 0.5).boxes) == 1


@pytest.mark.slow
def test_unreadable_images_fail_only_their_clip() -> None:
    good = written(texture(1, 0)[0], "hello there", 40, 100)
    rows = run(TextArea(), table_of([[good], [good, b"\xff\xd8 no image"], [], None, [good]]))
    assert [row["fate"] for row in rows] == ["kept", "failed", "failed", "failed", "kept"]
    assert rows[1]["fate_reason"].startswith("UnidentifiedImageError")
    assert rows[2]["fate_reason"] == "ValueError: the clip has no frames"
    assert rows[0]["text_area"] == rows[4]["text_area"]
    (row,) = run(TextArea(images="thumbnails"), table_of([[]], "thumbnails"))
    assert row["fate_reason"].endswith("set thumbnail_px of scan and thumbnails of cut above 0")


def test_digest_follows_settings_and_weights(tmp_path: Path) -> None:
    digest = TextArea().settings_digest()
    assert TextArea(gpu_batch_size=8).settings_digest() == digest
    assert TextArea(confidence=0.6).settings_digest() != digest
    assert TextArea(images="thumbnails").settings_digest() != digest
    assert TextArea(gpus=0.5).settings_digest() == TextArea(gpus=1).settings_digest() != digest
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(weight_files.package_file(*TextArea.packaged_file).read_bytes())
    assert TextArea(model=str(copy)).settings_digest() == digest, "the path of the weights must not matter"
    copy.write_bytes(b"other weights")
    assert TextArea(model=str(copy)).settings_digest() != digest
    assert TextArea(gpus=0.25).resources().gpus == 0.25


def test_missing_packages_are_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "find_spec", lambda name: None if name == "rapidocr" else "there")
    with pytest.raises(ConfigError, match=r"needs the package rapidocr: pip install 'worldloom\[scores\]'"):
        load_recipe(
            QUICKSTART,
            ["curate=[{scan: {}}, {cut: {}}, {frames: {}}, {score.text_area: {}}]", "train=null", "sample=[]"],
        )


def test_recipe_without_images_names_the_step_that_writes_them() -> None:
    bare = ["train=null", "sample=[]"]
    with pytest.raises(
        ConfigError, match=r"unknown column 'frames'.* It is written by frames: put that step before this one"
    ):
        load_recipe(QUICKSTART, ["curate=[{scan: {}}, {cut: {}}, {score.text_area: {}}]", *bare])
    with pytest.raises(ConfigError, match=r"It is written by score\.text_area: put that step before this one"):
        load_recipe(QUICKSTART, ["curate=[{scan: {}}, {cut: {}}, {keep: {text_area: {max: 0.01}}}]", *bare])
    steps = "curate=[{scan: {}}, {cut: {}}, {frames: {}}, {score.text_area: {}}, {keep: {text_area: {max: 0.01}}}]"
    assert isinstance(load_recipe(QUICKSTART, [steps, *bare]), Recipe)
    assert isinstance(
        load_recipe(QUICKSTART, ["curate=[{scan: {}}, {cut: {}}, {score.text_area: {images: thumbnails}}]", *bare]),
        Recipe,
    )


@pytest.mark.slow
def test_bound_separates_clips_with_overlaid_text(video_folder: Path) -> None:
    """The bound is `keep: {text_area: {max: 0.01}}`.

    Subtitles, a logo with a title, and a headline are above it; film and home video are below.
    """
    spans = {
        "subtitled_portrait_362x640.mp4": (2.0, 8.0),
        "talk_640x360.mp4": (0.0, 3.0),
        "talk_portrait_480x640.mp4": (0.0, 3.0),
        "carphone_pristine.mp4": (0.0, 4.0),
        "motorcycle_2160p.mp4": (0.0, 2.0),
        "hydraulic_press_832x480.mp4": (0.0, 6.0),
        "nasa_320x180.mp4": (0.0, 4.0),
        "sintel_trailer_30s.mp4": (13.0, 19.0),
    }
    clips = []
    for name, (start_s, end_s) in spans.items():
        info = probe(str(video_folder / name))
        start, end = (info.start_pts + round(Fraction(second) / info.time_base) for second in (start_s, end_s))
        (taken,) = images_of_spans(str(video_folder / name), [(start, end)], FrameSampling())
        assert isinstance(taken, FrameImages), taken
        clips.append(list(taken.images))
    areas = [row["text_area"] for row in run(TextArea(), table_of(clips))]
    assert min(areas[:3]) > 0.02
    assert max(areas[3:]) < 0.005
