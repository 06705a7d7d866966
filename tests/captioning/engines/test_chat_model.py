"""Tiny chat models with random weights: their answers are noise, and equal to those of the library's own calls."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from captioning.engine import EngineError, Question
from captioning.engines.transformers import Transformers
from tests.support.chat_questions import answer_to, answers_by_key, question, random_jpeg
from tests.support.tiny_models import END, IMAGE, VIDEO, WITH_VIDEO, WITH_VISION

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def changed_copy(folder: Path, target: Path, file: str, **settings: Any) -> Path:
    """Copy a model with other settings in one of its JSON files; return the folder of the copy."""
    shutil.copytree(folder, target)
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | settings))
    return target


def library_answer(folder: Path, messages: list[dict[str, Any]], **arguments: Any) -> tuple[str, int]:
    """Return the answer of at most 8 tokens, and the number of tokens of the question, by calls of the library."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", **arguments
    )
    n_tokens = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, n_tokens:]
    return processor.decode(tokens, skip_special_tokens=True).strip(), n_tokens


def library_text_answer(folder: Path, text: str, max_tokens: int) -> tuple[list[int], int]:
    """Return the tokens of an answer of a text model, and the number of tokens of the question."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = f"[system] Be brief.{END}[user] {text}{END}[assistant] "
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    n_tokens = inputs.input_ids.shape[1]
    answer = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0, n_tokens:]
    return answer.tolist(), n_tokens


def as_messages(asked: Question, visual: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a question as messages of the library."""
    parts = [("system", [], asked.system), ("user", visual, asked.text)]
    return [{"role": role, "content": [*items, {"type": "text", "text": text}]} for role, items, text in parts]


# Agreement with the library


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_image_answer_equals_that_of_the_library(
    name: str, opened: dict[str, Any], model_folders: dict[str, Path]
) -> None:
    asked = question("one", n_images=1)
    visual = [{"type": "image", "image": Image.open(io.BytesIO(image))} for image in asked.images]
    answer = answer_to(opened[name], asked)
    assert (answer.text, answer.tokens_in) == library_answer(model_folders[name], as_messages(asked, visual))
    assert answer.error is None


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_video_answer_equals_that_of_the_library(
    name: str, opened: dict[str, Any], model_folders: dict[str, Path]
) -> None:
    asked = question("clip", n_images=4, interval_s=1.5)
    frames = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in asked.images])
    # The same times in another form: every third frame of a video of two frames per second.
    metadata = {"fps": 2.0, "frames_indices": [0, 3, 6, 9], "total_num_frames": 12, "duration": 6.0}
    options = {"do_sample_frames": False, "video_metadata": [metadata]}
    messages = as_messages(asked, [{"type": "video", "video": frames}])
    answer = answer_to(opened[name], asked)
    assert (answer.text, answer.tokens_in) == library_answer(model_folders[name], messages, processor_kwargs=options)


def test_text_answer_equals_that_of_the_library(opened: dict[str, Any], model_folders: dict[str, Path]) -> None:
    tokens, n_tokens = library_text_answer(model_folders["llama"], "Two dogs.", max_tokens=8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folders["llama"])
    expected = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    answer = answer_to(opened["llama"], question("words", n_images=0, text="Two dogs."))
    assert (answer.text, answer.tokens_in, answer.tokens_out) == (expected, n_tokens, 8)


# Images and prompts


def test_times_of_frames_reach_the_models(opened: dict[str, Any]) -> None:
    asked = dataclasses.replace(question("a", n_images=4), image_times_s=(0.25, 9.0, 61.5, 64.75))
    model = opened["smolvlm"]._model
    text = model._tokenizer.decode(model._encode([model.prepare(asked)])["input_ids"][0])
    assert re.findall(r"Frame from (\d\d:\d\d)", text) == ["00:00", "00:09", "01:01", "01:04"]
    # Two frames are one time step of the model, and their mean interval is (64.75 - 0.25) / 3 s.
    model = opened["qwen"]._model
    encoded = model._encode([model.prepare(asked)])
    assert encoded["second_per_grid_ts"].tolist() == pytest.approx([2 * 64.5 / 3])


@pytest.mark.parametrize("name", WITH_VISION)
def test_setting_inputs_selects_images_or_video(
    name: str, model_folders: dict[str, Path], opened: dict[str, Any]
) -> None:
    images = answer_to(Transformers(model=str(model_folders[name]), inputs="images").open(), question("a"))
    auto = answer_to(opened[name], question("a"))
    if name in WITH_VIDEO:
        assert images != auto
        assert answer_to(Transformers(model=str(model_folders[name]), inputs="video").open(), question("a")) == auto
    else:
        assert images == auto
        with pytest.raises(EngineError, match="takes no video; set inputs to images or auto"):
            Transformers(model=str(model_folders[name]), inputs="video").open()


def test_large_images_are_scaled_down(model_folders: dict[str, Path]) -> None:
    large = dataclasses.replace(question("a"), images=tuple(random_jpeg(n, 128, 64) for n in range(3)))
    scaled, unscaled = (
        answer_to(Transformers(model=str(model_folders["qwen"]), max_pixels=max_pixels).open(), large)
        for max_pixels in (2048, None)
    )
    # 64 x 32 pixels, and about 88 x 44 by the limit of the processor. Patches of 4 pixels are merged two by two in
    # space and in time, so these are 8 x 4 and 11 x 5 tokens.
    assert unscaled.tokens_in - scaled.tokens_in == 2 * (11 * 5 - 8 * 4)


def test_processor_options_and_template_variables(model_folders: dict[str, Path], opened: dict[str, Any]) -> None:
    about_image, about_text = question("a", n_images=1), question("a", n_images=0)
    coarse = Transformers(model=str(model_folders["qwen"]), processor={"max_pixels": 512}).open()
    assert answer_to(coarse, about_image).tokens_in < answer_to(opened["qwen"], about_image).tokens_in
    brief = Transformers(model=str(model_folders["llama"]), template={"brief": True}).open()
    added = answer_to(brief, about_text).tokens_in - answer_to(opened["llama"], about_text).tokens_in
    assert added == len(" (briefly)")


def test_control_tokens_in_a_question_have_no_effect(opened: dict[str, Any]) -> None:
    for name in WITH_VISION:
        text = f"A sign that says {IMAGE}{VIDEO}{END} here"
        answers = answers_by_key(opened[name], [question("a", text=text), question("b", n_images=1, text=text)])
        assert all(answer.error is None for answer in answers.values()), answers
    with_token = answer_to(opened["llama"], question("a", n_images=0, text=f"x{END}y"))
    without_token = answer_to(opened["llama"], question("a", n_images=0, text="x y"))
    assert with_token.text == without_token.text


def test_system_prompt_moves_to_the_user_prompt_if_needed(opened: dict[str, Any]) -> None:
    merged = dataclasses.replace(question("a", n_images=1), system="", text="Be brief.\n\nWhat happens?")
    assert answer_to(opened["llava"], merged) == answer_to(opened["llava"], question("a", n_images=1))


# Decoding


def test_seed_decides_and_leaves_other_random_numbers(opened: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()
    questions = [question("same", n_images=2, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    first, second, again = (answer_to(opened["qwen"], asked).text for asked in questions)
    assert first == again != second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sampling_options_do_not_affect_greedy_answers(
    model_folders: dict[str, Path], tmp_path: Path, opened: dict[str, Any]
) -> None:
    options = {"do_sample": True, "temperature": 0.3, "top_k": 3, "num_beams": 2, "max_length": 5}
    folder = changed_copy(model_folders["llama"], tmp_path / "m", "generation_config.json", **options)
    questions = [question("a", n_images=0), question("b", n_images=0, temperature=2.0, seed=3)]
    changed = answers_by_key(Transformers(model=str(folder)).open(), questions)
    unchanged = answers_by_key(opened["llama"], questions)
    assert changed["a"] == unchanged["a"]
    assert changed["b"] != unchanged["b"], "top_k of the checkpoint applies to sampled answers"


def test_end_token_and_token_limit(model_folders: dict[str, Path], tmp_path: Path, opened: dict[str, Any]) -> None:
    asked = question("a", n_images=0, max_tokens=12)
    assert answer_to(opened["llama"], asked).truncated
    tokens, _ = library_text_answer(model_folders["llama"], "What happens?", max_tokens=12)
    end = next(n for n in range(3, 12) if tokens.index(tokens[n]) == n)
    eos_token_id = transformers.AutoTokenizer.from_pretrained(model_folders["llama"]).eos_token_id
    folder = changed_copy(
        model_folders["llama"], tmp_path / "m", "generation_config.json", eos_token_id=[eos_token_id, tokens[end]]
    )
    longer = question("b", n_images=0, text="longer " * 9, max_tokens=40)
    ended = answers_by_key(Transformers(model=str(folder)).open(), [asked, longer])["a"]
    assert (ended.truncated, ended.tokens_out) == (False, end + 1)
    captioner = Transformers(model=str(folder)).open()
    exact = answer_to(captioner, dataclasses.replace(asked, max_tokens=end + 1))
    assert (exact.truncated, exact.text) == (False, ended.text)
    assert answer_to(captioner, dataclasses.replace(asked, max_tokens=end)).truncated


def test_reasoning_is_removed_from_an_answer(opened: dict[str, Any]) -> None:
    model = opened["llama"]._model
    tokens = model._tokenizer("let me see </think>\n\n A dog.", add_special_tokens=False).input_ids
    assert model._completion(tokens, 1).text == "A dog."
