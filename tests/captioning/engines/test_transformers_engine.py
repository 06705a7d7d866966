"""The engine on tiny models with random weights, saved and loaded as real ones are: what they say is noise, but the same noise each time."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from captioning.engine import Answer, CaptionerSettings, EngineError, Question
from captioning.engines import _images
from captioning.engines.transformers import Transformers
from cluster.config import validate
from cluster.plugins import build
from cluster.resources import Resources
from tests.support import tiny_models

VIDEO = ("qwen", "qwen3", "smolvlm", "onevision")
SEEING = (*VIDEO, "llava")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.getbasetemp() / "tiny-models"
    return {name: getattr(tiny_models, name)(root) for name in ("llama", *SEEING)}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: Transformers(model=str(folder), batch=4).open() for name, folder in folders.items()}


def jpeg(seed: int, width: int = 48, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "jpeg")
    return file.getvalue()


def ask(key: str, images: int = 3, text: str = "What happens?", interval_s: float = 0.5, **more: Any) -> Question:
    seed = sum(map(ord, key))
    files = tuple(jpeg(seed * 100 + number) for number in range(images))
    image_times_s = tuple(number * interval_s for number in range(images))
    return Question(
        key,
        f"uid-{key}",
        text,
        **{"system": "Be brief.", "images": files, "image_times_s": image_times_s, "max_tokens": 8} | more,
    )


def answers(engine: Any, questions: Sequence[Question]) -> dict[str, Answer]:
    found = list(engine.answer(questions))
    assert sorted(answer.key for answer in found) == sorted(question.key for question in questions), (
        "each question once"
    )
    assert all(answer.uid == f"uid-{answer.key}" for answer in found)
    return {answer.key: answer for answer in found}


def changed(folder: Path, target: Path, file: str, **settings: Any) -> Path:
    """A copy of a model with other settings in one of its files."""
    shutil.copytree(folder, target)
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | settings))
    return target


def reference(folder: Path, messages: list[dict[str, Any]], tokens: int, **given: Any) -> tuple[str, int]:
    """What the library's own one-call path says, and how many tokens it read."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", **given
    )
    found = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(found, skip_special_tokens=True).strip(), inputs["input_ids"].shape[1]


def told(question: Question, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = [("system", [], question.system), ("user", shown, question.text)]
    return [{"role": role, "content": [*parts, {"type": "text", "text": text}]} for role, parts, text in said]


def test_images_as_the_library_itself_answers(opened: dict[str, Any], folders: dict[str, Path]) -> None:
    for name in VIDEO:
        question = ask("one", images=1)
        shown = [{"type": "image", "image": Image.open(io.BytesIO(picture))} for picture in question.images]
        answer = answers(opened[name], [question])["one"]
        assert (answer.text, answer.tokens_in) == reference(folders[name], told(question, shown), 8)
        assert answer.error is None


@pytest.mark.parametrize("name", VIDEO)
def test_video_as_the_library_itself_answers(name: str, opened: dict[str, Any], folders: dict[str, Path]) -> None:
    question = ask("clip", images=4, interval_s=1.5)
    frames = np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in question.images])
    # The same times, told in another way: every third frame of a video of two frames a second.
    metadata = {"fps": 2.0, "frames_indices": [0, 3, 6, 9], "total_num_frames": 12, "duration": 6.0}
    given = {"processor_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]}}
    answer = answers(opened[name], [question])["clip"]
    assert (answer.text, answer.tokens_in) == reference(
        folders[name], told(question, [{"type": "video", "video": frames}]), 8, **given
    )


def test_times_of_frames_reach_the_models(opened: dict[str, Any]) -> None:
    question = dataclasses.replace(ask("a", images=4), image_times_s=(0.25, 9.0, 61.5, 64.75))
    model = opened["smolvlm"]._model
    read = model._tokenizer.decode(model._encode([model.prompt(question)])["input_ids"][0])
    assert re.findall(r"Frame from (\d\d:\d\d)", read) == ["00:00", "00:09", "01:01", "01:04"]
    # Two frames make one of the model's time steps, and they lie (64.75 - 0.25) / 3 s apart in the mean.
    model = opened["qwen"]._model
    assert model._encode([model.prompt(question)])["second_per_grid_ts"].tolist() == pytest.approx([2 * 64.5 / 3])


def test_words_as_the_library_itself_answers(opened: dict[str, Any], folders: dict[str, Path]) -> None:
    words, model = (
        transformers.AutoTokenizer.from_pretrained(folders["llama"]),
        transformers.AutoModelForCausalLM.from_pretrained(folders["llama"]),
    )
    question = ask("words", images=0, text="Two dogs.")
    prompt = f"[system] Be brief.{tiny_models.END}[user] Two dogs.{tiny_models.END}[assistant] "
    inputs = words(prompt, return_tensors="pt", add_special_tokens=False)
    found = words.decode(
        model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :],
        skip_special_tokens=True,
    )
    answer = answers(opened["llama"], [question])["words"]
    assert (answer.text, answer.tokens_in, answer.tokens_out) == (found.strip(), inputs.input_ids.shape[1], 8)


def mixed() -> list[Question]:
    """Questions of all kinds and lengths, one of them sampled."""
    plain = [ask(f"q{n}", images=(0, 1, 3, 3, 3, 1)[n], text="Say what moves." + " And how?" * n) for n in range(6)]
    return [*plain, ask("s", temperature=0.9, seed=1)]


@pytest.mark.parametrize("name", SEEING)
def test_an_answer_does_not_depend_on_the_others(
    name: str, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = answers(opened[name], mixed())
    assert together == answers(opened[name], mixed()), "bit for bit"
    monkeypatch.setattr(opened[name], "_batch", 1)
    alone = answers(opened[name], mixed()[::-1])
    assert {key: answer.text for key, answer in together.items()} == {key: answer.text for key, answer in alone.items()}
    assert {key: answer.tokens_in for key, answer in together.items()} == {
        key: answer.tokens_in for key, answer in alone.items()
    }
    assert len({answer.text for answer in together.values()}) == len(together), (
        "the answers say something of the question"
    )


def test_words_alone_do_not_depend_on_the_others(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [ask(f"q{n}", images=0, text="word " * n, max_tokens=4 + n) for n in range(9)]
    together = answers(opened["llama"], questions)
    monkeypatch.setattr(opened["llama"], "_batch", 1)
    assert answers(opened["llama"], questions) == together
    assert [together[f"q{n}"].tokens_out for n in range(9)] == [4 + n for n in range(9)]


def test_a_seed_decides_and_nothing_else_is_drawn(opened: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    questions = [ask("same", images=2, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    first, second, again = (next(iter(opened["qwen"].answer([question]))).text for question in questions)
    assert first == again != second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_checkpoint_says_of_sampling_does_not_touch_greedy_answers(
    folders: dict[str, Path], tmp_path: Path, opened: dict[str, Any]
) -> None:
    folder = changed(
        folders["llama"],
        tmp_path / "m",
        "generation_config.json",
        do_sample=True,
        temperature=0.3,
        top_k=3,
        num_beams=2,
        max_length=5,
    )
    questions = [ask("a", images=0), ask("b", images=0, temperature=2.0, seed=3)]
    found, usual = answers(Transformers(model=str(folder)).open(), questions), answers(opened["llama"], questions)
    assert found["a"] == usual["a"]
    assert found["b"] != usual["b"], "top_k of the checkpoint counts where a question samples"


def test_an_end_and_a_cut(folders: dict[str, Path], tmp_path: Path, opened: dict[str, Any]) -> None:
    question = ask("a", images=0, max_tokens=12)
    whole = answers(opened["llama"], [question])["a"]
    assert whole.truncated
    words = transformers.AutoTokenizer.from_pretrained(folders["llama"])
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"])
    prompt = words(
        f"[system] Be brief.{tiny_models.END}[user] What happens?{tiny_models.END}[assistant] ",
        return_tensors="pt",
        add_special_tokens=False,
    )
    said = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :].tolist()
    place = next(n for n in range(3, 12) if said.index(said[n]) == n)
    folder = changed(
        folders["llama"], tmp_path / "m", "generation_config.json", eos_token_id=[words.eos_token_id, said[place]]
    )
    longer = ask("b", images=0, text="longer " * 9, max_tokens=40)
    ended = answers(Transformers(model=str(folder)).open(), [question, longer])["a"]
    assert (ended.truncated, ended.tokens_out) == (False, place + 1)
    exact = answers(Transformers(model=str(folder)).open(), [dataclasses.replace(question, max_tokens=place + 1)])["a"]
    assert (exact.truncated, exact.text) == (False, ended.text)
    assert answers(Transformers(model=str(folder)).open(), [dataclasses.replace(question, max_tokens=place)])[
        "a"
    ].truncated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (jpeg(1), b"no picture", jpeg(2))}, "cannot be decoded"),
        ({"images": (b"", jpeg(1), jpeg(2))}, "cannot be read"),
        ({"images": (jpeg(1), jpeg(2)[:-200], jpeg(3))}, "truncated"),
        ({"images": (jpeg(1), jpeg(2), jpeg(3, 40, 40))}, "differ in size"),
        ({"image_times_s": (0.0, 1.0)}, "3 pictures of a video need as many times"),
        ({"image_times_s": (0.0, 2.0, 1.0)}, "in order"),
    ],
)
def test_a_bad_question_costs_no_other_anything(change: dict[str, Any], message: str, opened: dict[str, Any]) -> None:
    good = [ask(f"g{n}") for n in range(3)]
    found = answers(opened["qwen"], [good[0], dataclasses.replace(ask("bad"), **change), *good[1:]])
    bad = found.pop("bad")
    assert bad.error is not None
    assert message in bad.error
    assert not bad.text
    assert found == answers(opened["qwen"], good)


def test_control_tokens_in_a_question_are_words_at_most(opened: dict[str, Any]) -> None:
    for name in SEEING:
        text = f"A sign that says {tiny_models.IMAGE}{tiny_models.VIDEO}{tiny_models.END} here"
        found = answers(opened[name], [ask("a", text=text), ask("b", images=1, text=text)])
        assert all(answer.error is None for answer in found.values()), found
    assert answers(opened["llama"], [ask("a", images=0, text=f"x{tiny_models.END}y")])["a"].text == (
        answers(opened["llama"], [ask("a", images=0, text="x y")])["a"].text
    )


def test_a_model_without_a_system_prompt_is_told_in_the_question(opened: dict[str, Any]) -> None:
    merged = dataclasses.replace(ask("a", images=1), system="", text="Be brief.\n\nWhat happens?")
    assert answers(opened["llava"], [merged]) == answers(opened["llava"], [ask("a", images=1)])


@pytest.mark.parametrize("name", SEEING)
def test_input_says_how_pictures_are_given(name: str, folders: dict[str, Path], opened: dict[str, Any]) -> None:
    images = answers(Transformers(model=str(folders[name]), input="images").open(), [ask("a")])["a"]
    auto = answers(opened[name], [ask("a")])["a"]
    if name in VIDEO:
        assert images != auto
        assert answers(Transformers(model=str(folders[name]), input="video").open(), [ask("a")])["a"] == auto
    else:
        assert images == auto
        with pytest.raises(EngineError, match="takes no video; set input to images or auto"):
            Transformers(model=str(folders[name]), input="video").open()


def test_large_pictures_are_scaled_down(folders: dict[str, Path]) -> None:
    large = dataclasses.replace(ask("a"), images=tuple(jpeg(n, 128, 64) for n in range(3)))
    small, usual = (
        answers(Transformers(model=str(folders["qwen"]), max_pixels=most).open(), [large])["a"] for most in (2048, None)
    )
    # 64 x 32 and, by the processor's own limit, 88 x 44 rounded: patches of 4, merged two by two in space and time, so 8 x 4 and 11 x 5 tokens.
    assert usual.tokens_in - small.tokens_in == 2 * (11 * 5 - 8 * 4)


def test_settings_of_the_processor_and_the_template(folders: dict[str, Path], opened: dict[str, Any]) -> None:
    usual = answers(opened["qwen"], [ask("a", images=1)])["a"]
    coarse = answers(
        Transformers(model=str(folders["qwen"]), processor={"max_pixels": 512}).open(), [ask("a", images=1)]
    )["a"]
    assert coarse.tokens_in < usual.tokens_in
    brief = answers(Transformers(model=str(folders["llama"]), template={"brief": True}).open(), [ask("a", images=0)])[
        "a"
    ]
    assert brief.tokens_in == answers(opened["llama"], [ask("a", images=0)])["a"].tokens_in + len(" (briefly)")


def out_of_memory(monkeypatch: pytest.MonkeyPatch, engine: Any, fits: int) -> list[int]:
    """Lets the model answer at most `fits` questions at once; returns the list of sizes it was asked with."""
    generate, sizes = engine._model._model.generate, []

    def limited(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(engine._model._model, "generate", limited)
    return sizes


def test_what_does_not_fit_is_halved(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    questions = [
        *[ask(f"q{n}", text="x" * n) for n in range(5)],
        dataclasses.replace(ask("bad"), images=(jpeg(1), b"", jpeg(2))),
    ]
    expected = answers(opened["qwen"], questions)
    sizes = out_of_memory(monkeypatch, opened["qwen"], fits=1)
    with caplog.at_level(logging.WARNING):
        assert {key: answer.text for key, answer in answers(opened["qwen"], questions).items()} == {
            key: a.text for key, a in expected.items()
        }
    # One of the first four does not decode, so three are tried together, then two of them, and from then on one at a time.
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert "2 questions do not fit in GPU memory; going on with 1 at once" in caplog.text


def test_one_question_that_does_not_fit_ends_the_run(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, opened["qwen"], fits=0)
    with pytest.raises(EngineError, match="at one question, of clip uid-a with 3 pictures"):
        list(opened["qwen"].answer([ask("a")]))


def test_what_was_yielded_before_an_end_is_kept(opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generate = opened["qwen"]._model._model.generate

    def dies(**inputs: Any) -> Any:
        if "pixel_values_videos" in inputs:
            raise torch.AcceleratorError("device-side assert")
        return generate(**inputs)

    monkeypatch.setattr(opened["qwen"]._model._model, "generate", dies)
    found = opened["qwen"].answer([ask("video"), ask("image", images=1)])
    assert next(found).key == "image"
    with pytest.raises(EngineError, match="the GPU failed"):
        next(found)


def test_a_question_the_model_breaks_on_is_the_only_one_without_an_answer(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = opened["llama"]._model._model.generate

    def breaks(**inputs: Any) -> Any:
        if int(inputs["attention_mask"].sum(dim=1).max()) > 100:
            raise IndexError("beyond the last position")
        return generate(**inputs)

    questions = [ask(f"q{n}", images=0, text="x" * n) for n in (1, 2, 200)]
    expected = answers(opened["llama"], questions[:2])
    monkeypatch.setattr(opened["llama"]._model._model, "generate", breaks)
    found = answers(opened["llama"], questions)
    assert found.pop("q200").error == "IndexError: beyond the last position"
    assert found == expected


def test_words_only_refuses_pictures(opened: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="knows words only"):
        list(opened["llama"].answer([ask("a", images=1)]))


def test_identity_follows_weights_and_what_changes_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    usual = Transformers(model=str(folders["qwen"]))
    copy = shutil.copytree(folders["qwen"], tmp_path / "copy")
    same = [{"model": str(copy)}, {"batch": 2}, {"attention": "eager"}, {"trust_remote_code": True}, {"input": "auto"}]
    assert {Transformers(**{"model": usual.model} | change).identity() for change in same} == {usual.identity()}
    other = [
        {},
        {"gpus": 1},
        {"dtype": "bf16"},
        {"input": "images"},
        {"max_pixels": 4096},
        {"processor": {"do_resize": False}},
        {"template": {"a": 1}},
    ]
    assert len({Transformers(**{"model": usual.model} | change).identity() for change in other}) == len(other)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert Transformers(model=str(copy)).identity() != usual.identity()
    hub = Transformers(model="hf-hub:owner/name", revision="abc", gpus=0.5, batch=64)
    assert hub.identity() == "transformers-v1 hf-hub:owner/name@abc bf16 gpu"
    assert hub.resources() == Resources(gpus=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "/no/such/folder"},
            "/no/such/folder: no such folder; for a model on the hub write hf-hub:owner/name",
        ),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "no such folder"),
        ({"model": "hf-hub:owner/name", "device_map": "auto"}, "gpus is 0"),
        ({"model": "hf-hub:owner/name", "max_pixel": 1}, "max_pixel"),
        ({}, "model"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        validate(Transformers, {"name": "transformers", **settings})


def test_it_is_found_by_its_name(folders: dict[str, Path]) -> None:
    found = build("captioning.engines", CaptionerSettings, {"name": "transformers", "model": str(folders["llama"])})
    assert isinstance(found, Transformers)
    assert found.answers_prompts


def test_loading_says_what_failed_and_the_fix(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(match: str, folder: Path, **settings: Any) -> None:
        with pytest.raises(EngineError, match=match):
            Transformers(model=str(folder), **settings).open()

    (tmp_path / "empty").mkdir()
    fails(r"empty cannot be loaded: .*; the folder should hold config\.json", tmp_path / "empty")
    no_template = shutil.copytree(folders["llama"], tmp_path / "raw")
    (no_template / "chat_template.jinja").unlink()
    fails("has no chat template, so it cannot be asked", no_template)
    fails("knows no max_pixel; known: .*max_pixels", folders["qwen"], processor={"max_pixel": 64})
    fails("has no variable enable_thinking", folders["llama"], template={"enable_thinking": False})
    if not torch.cuda.is_available():
        fails("torch sees no GPU; set gpus to 0", folders["llama"], gpus=1)

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        EngineError, match=r"hf-hub:owner/name cannot be loaded: .*connect.*set model to the path of a folder"
    ):
        Transformers(model="hf-hub:owner/name").open()


def test_the_thought_of_a_model_that_thinks_aloud_is_left_out(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened["llama"]._model
    tokens = model._tokenizer("let me see </think>\n\n A dog.", add_special_tokens=False).input_ids
    assert model._completion(tokens, 1).text == "A dog."


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=300).map(sorted))
def test_times_come_back_from_the_metadata(image_times_s: list[float]) -> None:
    metadata = transformers.video_utils.VideoMetadata(**_images.video_metadata(image_times_s, len(image_times_s)))
    assert np.abs(np.array(metadata.timestamps) - image_times_s).max() <= 0.5 / _images.TICKS_PER_S + 1e-9
    if (interval_s := (image_times_s[-1] - image_times_s[0]) / (len(image_times_s) - 1)) > 0.1:
        assert metadata.sampled_fps == pytest.approx(1 / interval_s, rel=0.01)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1024, 8192))
def test_scaling_down_keeps_aspect_and_limit(width: int, height: int, most: int) -> None:
    picture = _images.decode(jpeg(0, width, height), most)
    assert picture.width * picture.height <= max(most, min(width, height))
    if width * height <= most:
        assert picture.size == (width, height)
    else:
        assert abs(picture.width / width - picture.height / height) <= 1 / min(width, height)


def test_precision_and_attention_are_the_ones_asked_for(folders: dict[str, Path], opened: dict[str, Any]) -> None:
    for name in SEEING:
        engine: Any = Transformers(model=str(folders[name]), dtype="bf16").open()
        assert {parameter.dtype for parameter in engine._model._model.parameters()} == {torch.bfloat16}
        assert [answer.error for answer in engine.answer([ask("a"), ask("b", images=1)])] == [None, None]
    eager: Any = Transformers(model=str(folders["qwen"]), attention="eager").open()
    assert eager._model._model.config._attn_implementation == "eager"
    assert answers(eager, [ask("a")]) == answers(opened["qwen"], [ask("a")])


def test_a_model_that_does_not_chat_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    words = tiny_models.tokenizer(template=tiny_models.TEXT_TEMPLATE)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    folder = tiny_models.save(tmp_path / "t5", lambda: transformers.T5ForConditionalGeneration(config), words, words)
    with pytest.raises(EngineError, match="encodes one text and decodes another"):
        Transformers(model=str(folder)).open()


def test_closing_lets_go_of_the_model(folders: dict[str, Path]) -> None:
    engine: Any = Transformers(model=str(folders["llama"])).open()
    engine.close()
    assert engine._model._model is None
