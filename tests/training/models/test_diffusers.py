"""Settings of published models: what they read from the folder, their defaults, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import parse_options, validate
from tests.support.published_models import write_published
from training.conditioning import ConditioningRates
from training.models.diffusers import Diffusers
from training.objectives.flow_matching import FlowMatching, LogLinearShift
from training.sampling.generation import check_given
from training.sampling.guidances.embedded import Embedded
from training.sampling.settings import SampleSettings, SolverSettings
from training.sampling.timeline import Prompt, blank
from training.settings import TrainSettings

# Each test needs diffusers, which takes seconds to import.
pytestmark = pytest.mark.slow


def read(folder: Path, **settings: Any) -> Diffusers:
    return validate(Diffusers, {"name": "diffusers", "path": str(folder)} | settings)


def test_unset_sections_are_those_of_the_published_model(tmp_path: Path) -> None:
    wan, ltx = read(write_published(tmp_path / "wan", "wan")), read(write_published(tmp_path / "ltx", "ltx"))
    first = TrainSettings(model=wan)
    assert (first.objective, first.conditioning) == (FlowMatching(shift=3.0), ConditioningRates(none=1.0))
    assert first.objective.schedule(2, 999) == pytest.approx((1.0, 0.75, 0.0))
    second = TrainSettings(model=ltx)
    shift = LogLinearShift(tokens=(1024, 4096), log=(0.95, 2.05), last=0.1)
    assert second.objective == FlowMatching(shift=shift)
    assert second.conditioning == ConditioningRates(none=0.8, first=0.2)
    hunyuan = TrainSettings(model=read(write_published(tmp_path / "hunyuan", "hunyuan")))
    assert (hunyuan.objective, hunyuan.conditioning) == (FlowMatching(shift=7.0), ConditioningRates(none=1.0))
    given = TrainSettings(model=wan, objective=FlowMatching(shift=5.0))
    assert given.objective == FlowMatching(shift=5.0)
    assert TrainSettings().objective == FlowMatching()


def test_settings_in_a_card_need_no_folder(tmp_path: Path) -> None:
    settings = read(write_published(tmp_path / "wan", "wan"))
    shutil.rmtree(tmp_path / "wan")
    again = validate(Diffusers, json.loads(settings.model_dump_json()))
    assert again == settings
    with pytest.raises(ValueError, match="no such folder"):
        read(tmp_path / "wan")


def test_what_a_family_cannot_do_is_refused_with_the_fix(tmp_path: Path) -> None:
    model = read(write_published(tmp_path / "wan", "wan"))
    with pytest.raises(ValueError, match=r"conditioning first, last: .* set conditioning: \{none: 1\}"):
        TrainSettings(model=model, conditioning=ConditioningRates(none=0.5, first=0.25, last=0.25))
    with pytest.raises(ValueError, match=r"target x: .* set objective: \{name: flow_matching, target: v\}"):
        TrainSettings(model=model, objective=FlowMatching(target="x"))
    with pytest.raises(ValueError, match="set context_parallel: 1"):
        TrainSettings(model=model, context_parallel=2, workers=2)
    timeline = blank((4, 2, 4, 4), [Prompt(torch.zeros(1, 8))], (32, 32), 8.0)
    check_given(model, timeline)
    with pytest.raises(ValueError, match="text to video and takes no given frames"):
        check_given(model, timeline.given(0, torch.zeros(4, 1, 4, 4)))
    told = SolverSettings(guidance_method=Embedded())
    with pytest.raises(ValueError, match="guidance_method embedded: model diffusers is told no guidance scale"):
        told.check_guidance(model)
    SolverSettings().check_guidance(model)
    told.check_guidance(read(write_published(tmp_path / "hunyuan", "hunyuan")))
    ltx = read(write_published(tmp_path / "ltx", "ltx"))
    check_given(ltx, timeline.given(0, torch.zeros(4, 1, 4, 4)))
    with pytest.raises(ValueError, match="leave out last"):
        check_given(ltx, timeline.ending_with(torch.zeros(4, 1, 4, 4)))


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("wan", {"first": "a.png"}, "takes no given frames; remove first"),
        ("wan", {"extend": "forward", "video": "a.mp4"}, "takes no given frames; remove extend"),
        ("wan", {"loop": True, "video": "a.mp4"}, "takes no given frames; remove loop"),
        ("wan", {"window": 1.5, "seconds": 4}, "takes no given frames; remove window"),
        ("wan", {"guidance_method": {"name": "embedded"}}, "is told no guidance scale; take plain"),
        ("ltx", {"last": "a.png"}, "cannot end a video in a given image; remove last"),
        ("wan", {"loop": True}, None),
        ("wan", {"window": 2.5, "seconds": 2}, None),
        ("ltx", {"first": "a.png"}, None),
    ],
)
def test_samples_it_cannot_make_are_refused_early(
    family: str, values: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    settings = parse_options(SampleSettings, {"prompt": "a ball"} | values)
    model = read(write_published(tmp_path, family))
    if message is None:
        settings.check_model(model)
        return
    with pytest.raises(ValueError, match=f"model diffusers .*{message}"):
        settings.check_model(model)


@pytest.mark.parametrize(
    ("family", "pipeline", "config", "message"),
    [
        ("wan", {}, {"in_channels": 9}, "9 channels for 4 of latents; text to video takes 4, and image to video 12"),
        ("wan", {"_class_name": "WanVACEPipeline"}, {}, "names WanVACEPipeline, whose conventions are not known here"),
        (
            "hunyuan",
            {},
            {"in_channels": 9},
            "9 channels for 4 of latents, with image_condition_type None: it is of Hun",
        ),
        ("hunyuan", {}, {"image_condition_type": "token_replace"}, "take the model of text to video"),
        ("hunyuan", {"_class_name": "HunyuanVideoImageToVideoPipeline"}, {}, "take a model of HunyuanVideoPipeline"),
    ],
)
def test_other_variants_are_refused(
    family: str, pipeline: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(write_published(tmp_path, family, pipeline, **config))


def test_incomplete_folders_are_named_with_the_fix(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "wan", "wan")
    with pytest.raises(ValueError, match=r"16 channels of latents, and .* takes 4; encode it"):
        read(folder).build(16, 24)
    with pytest.raises(ValueError, match="write a path with a slash"):
        validate(Diffusers, {"name": "diffusers", "path": "wan"})
    config = folder / "transformer" / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace("WanTransformer3DModel", "WanTransformer2DModel"))
    with pytest.raises(ValueError, match=r"of class 'WanTransformer2DModel', .* take a model of WanTrans"):
        read(folder)
    config.write_text(kept[:50])
    with pytest.raises(ValueError, match=r"config\.json is damaged.*download the whole folder again"):
        read(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"no transformer/config\.json in it; give the folder of a whole pipeline"):
        read(folder)


@pytest.mark.parametrize(
    ("family", "lengths"), [("wan", (513,)), ("ltx", (3, 129)), ("hunyuan", (258,)), ("hunyuan", (1,))]
)
def test_texts_of_the_wrong_length_are_refused(family: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    texts = [torch.zeros(length, 24) for length in lengths]
    message = "a text has no tokens; encode texts by llama_clip" if lengths == (1,) else "takes .*; set max_tokens: "
    with pytest.raises(ValueError, match=message):
        read(write_published(tmp_path, family)).family.check_texts(texts)
