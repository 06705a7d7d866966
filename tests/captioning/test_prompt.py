"""Prompts: the text of the packaged ones, and errors of a file, named with its line and key."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Annotated, Any

import pytest

from captioning.dialogue.conversation import CAMERA_PHRASES
from captioning.prompt import FOLDER, Prompt, PromptField, Purpose, load_prompt
from cluster.config import ConfigError, Settings, validate

NAMES = ("levels", "dense", "structured")
VALUES: dict[str, Any] = {
    "kind": "video",
    "duration": "4.2 seconds",
    "camera": None,
    "hint": None,
    "language": "English",
    "n_images": 8,
    "span": None,
}
GOOD = 'doc: d\nanswer: json\ncaptions: {dense: a paragraph}\nuser: "{{ kind }} {{ captions.dense }}"\n'


def test_packaged_prompts_load_for_their_purpose() -> None:
    purposes: dict[str, Purpose] = {**dict.fromkeys(NAMES, "describe"), "merge": "merge", "rewrite": "rewrite"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} - {"upsample"} == set(purposes)
    for name, purpose in purposes.items():
        assert load_prompt(name, purpose).doc


@pytest.mark.parametrize("name", NAMES)
def test_rendered_prompt_has_exactly_the_known_values(name: str) -> None:
    prompt = load_prompt(name, "describe")
    options = {
        "kind": ("video", "image"),
        "duration": (None, "4.2 seconds"),
        "camera": (None, CAMERA_PHRASES["pan"]),
        "hint": (None, "Gerda on a boat"),
        "span": (None, "from 2 to 4 seconds of a video of 9 seconds"),
        "n_images": (1, 8),
    }
    for chosen in itertools.product(*options.values()):
        values = dict(zip(options, chosen, strict=True))
        system, text = prompt.render({**VALUES, **values})
        assert "{" not in system + text
        assert "None" not in system + text
        assert bool(values["hint"]) == ("Gerda" in text)
        assert bool(values["camera"]) == ("pans" in text)
        assert "English" in system
        if values["kind"] == "image":
            assert "video" not in system.replace('"the video shows"', "")
        elif values["n_images"] == 8:
            assert "8 frames" in text
            assert (values["span"] is None) or "from 2 to 4 seconds" in text


def test_levels_requests_three_lengths_with_dense_as_main() -> None:
    prompt = load_prompt("levels", "describe")
    assert list(prompt.captions) == ["dense", "medium", "short"]
    assert prompt.main_kind == "dense"
    schema = prompt.answer_schema
    assert schema is not None
    assert (list(schema["properties"]), schema["required"], schema["additionalProperties"]) == (
        ["dense", "medium", "short"],
        ["dense", "medium", "short"],
        False,
    )


def test_structured_requests_fields_before_the_caption() -> None:
    schema = load_prompt("structured", "describe").answer_schema
    assert schema is not None
    assert schema["required"] == ["subject", "action", "setting", "camera", "style", "lighting", "dense"]


def test_merge_prompt_requests_what_the_windows_did() -> None:
    merge = load_prompt("merge", "merge")
    parts = [
        {"span": f"from {i} to {i + 1} seconds", "captions": {"dense": f"part {i}"}, "fields": {}} for i in range(2)
    ]
    for name in NAMES:
        describe = load_prompt(name, "describe")
        prompt = merge.requesting_same_as(describe)
        assert (prompt.answer, prompt.captions, prompt.fields) == (describe.answer, describe.captions, describe.fields)
        assert prompt.hash not in (merge.hash, describe.hash)
        _, text = prompt.render({**VALUES, "parts": parts})
        assert text.index("part 0") < text.index("from 1 to 2 seconds") < text.index("part 1")
        assert ("JSON" in text) == (describe.answer == "json")


def test_static_text_lacks_the_values_of_variables() -> None:
    text = load_prompt("levels", "describe").static_text
    assert "State facts." in text
    assert "one paragraph of 60 to 140 words" in text
    assert "{" not in text


def test_hash_covers_all_but_comments_and_doc(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_prompt(str(path), "describe").hash

    plain = hash_of(GOOD)
    assert hash_of("# a note\n" + GOOD.replace("doc: d", "doc: another")) == plain
    assert hash_of(GOOD.replace("a paragraph", "a long paragraph")) != plain
    assert hash_of(GOOD + "max_tokens: 99\n") != plain
    assert load_prompt(str(tmp_path / "mine.yaml"), "describe").label.startswith("mine@")


ERRORS = [
    (GOOD.replace("{{ kind }}", "{{ knid }}"), "mine.yaml:4: user: unknown variable 'knid'; did you mean 'kind'?"),
    (GOOD.replace("{{ kind }}", "{{ parts }}"), "unknown variable 'parts'"),
    (GOOD.replace("{{ kind }}", "{{ kind"), "mine.yaml:4: user: line 1 is not a Jinja template"),
    (GOOD + "colour: red\n", "mine.yaml:5: colour: unknown key 'colour'"),
    (GOOD.replace("doc: d\n", ""), "doc: is required"),
    (GOOD.replace("{dense: a paragraph}", "{}"), "mine.yaml:3: captions: name at least one caption"),
    (
        GOOD.replace("answer: json", "answer: text").replace("{dense: a paragraph}", "{dense: a, short: b}"),
        "captions: a text is one caption, not 2",
    ),
    (
        GOOD.replace("answer: json", "answer: text") + "fields: {subject: who}\n",
        "fields: only a JSON answer has fields",
    ),
    (GOOD.replace("{dense: a paragraph}", "{source: a}"), "captions.source: write a name in lower case"),
    (GOOD.replace("{dense: a paragraph}", "{Dense one: a}"), "captions.Dense one: write a name in lower case"),
    (GOOD + "fields: {dense: who}\n", "fields.dense: is the name of a caption too"),
    ("doc: d\nanswer: same\nuser: x\n", "answer: must be text or json"),
    (GOOD + "max_tokens: many\n", "max_tokens"),
    ("doc: [", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_error_of_a_file_names_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prompt(str(path), "describe")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_prompt_is_named_with_the_closest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown prompt 'level'; did you mean 'levels'"):
        load_prompt("level", "describe")
    with pytest.raises(ConfigError, match="no such file"):
        load_prompt(str(tmp_path / "none.yaml"), "describe")


class WithPrompt(Settings):
    prompt: Annotated[Prompt, PromptField("describe")] = load_prompt("levels", "describe")


def test_settings_hold_the_prompt_and_dump_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    settings = validate(WithPrompt, {"prompt": str(path)})
    assert settings.model_dump(mode="json") == {"prompt": str(path)}
    path.unlink()
    copy = pickle.loads(pickle.dumps(settings))
    assert copy.prompt.render(VALUES) == settings.prompt.render(VALUES) == ("", "video a paragraph")
    assert WithPrompt.model_json_schema()["properties"]["prompt"]["type"] == "string"


def test_prompt_cannot_access_python_internals(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("{{ kind }}", "{{ kind.__class__.__mro__ }}"))
    with pytest.raises(Exception, match="unsafe"):
        load_prompt(str(path), "describe").render(VALUES)
