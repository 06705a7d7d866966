"""Prompts: what the packaged ones say and when, and what is wrong with a file, named with its line and key."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Annotated, Any

import pytest

from captioning.dialogue.conversation import CAMERA
from captioning.prompt import FOLDER, PromptField, Prompt, load_prompt
from cluster.config import ConfigError, Settings, validate

NAMES = ("levels", "dense", "structured")
VALUES: dict[str, Any] = {
    "kind": "video",
    "duration": "4.2 seconds",
    "camera": None,
    "hint": None,
    "language": "English",
    "n_pictures": 8,
    "span": None,
}
GOOD = 'doc: d\nanswer: json\ncaptions: {dense: a paragraph}\nuser: "{{ kind }} {{ captions.dense }}"\n'


def test_every_packaged_prompt_loads_in_its_role() -> None:
    roles = {**dict.fromkeys(NAMES, "describe"), "merge": "merge", "rewrite": "rewrite"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} - {"upsample"} == set(roles)
    for name, variables in roles.items():
        assert load_prompt(name, variables).doc


@pytest.mark.parametrize("name", NAMES)
def test_a_question_says_what_is_known_and_nothing_else(name: str) -> None:
    prompt = load_prompt(name, "describe")
    options = {
        "kind": ("video", "image"),
        "duration": (None, "4.2 seconds"),
        "camera": (None, CAMERA["pan"]),
        "hint": (None, "Gerda on a boat"),
        "span": (None, "from 2 to 4 seconds of a video of 9 seconds"),
        "n_pictures": (1, 8),
    }
    for chosen in itertools.product(*options.values()):
        values = dict(zip(options, chosen, strict=True))
        system, text = prompt.render({**VALUES, **values})
        assert "{" not in system + text
        assert "None" not in system + text
        assert ("hint" in values and bool(values["hint"])) == ("Gerda" in text)
        assert bool(values["camera"]) == ("pans" in text)
        assert "English" in system
        if values["kind"] == "image":
            assert "video" not in system.replace('"the video shows"', "")
        elif values["n_pictures"] == 8:
            assert "8 frames" in text
            assert (values["span"] is None) or "from 2 to 4 seconds" in text


def test_levels_ask_for_three_lengths_and_the_dense_one_is_the_main_one() -> None:
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


def test_a_structured_answer_has_its_aspects_before_the_caption_made_of_them() -> None:
    schema = load_prompt("structured", "describe").answer_schema
    assert schema is not None
    assert schema["required"] == ["subject", "action", "setting", "camera", "style", "lighting", "dense"]


def test_merging_asks_for_what_the_windows_were_asked_for() -> None:
    merge = load_prompt("merge", "merge")
    parts = [
        {"span": f"from {i} to {i + 1} seconds", "captions": {"dense": f"part {i}"}, "fields": {}} for i in range(2)
    ]
    for name in NAMES:
        asked = load_prompt(name, "describe")
        prompt = merge.after(asked)
        assert (prompt.answer, prompt.captions, prompt.fields) == (asked.answer, asked.captions, asked.fields)
        assert prompt.hash not in (merge.hash, asked.hash)
        _, text = prompt.render({**VALUES, "parts": parts})
        assert text.index("part 0") < text.index("from 1 to 2 seconds") < text.index("part 1")
        assert ("JSON" in text) == (asked.answer == "json")


def test_own_words_are_without_what_fills_the_blanks() -> None:
    words = load_prompt("levels", "describe").own_words
    assert "State facts." in words
    assert "one paragraph of 60 to 140 words" in words
    assert "{" not in words


def test_comments_and_doc_do_not_change_the_hash_and_words_do(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_prompt(str(path), "describe").hash

    plain = hash_of(GOOD)
    assert hash_of("# a note\n" + GOOD.replace("doc: d", "doc: another")) == plain
    assert hash_of(GOOD.replace("a paragraph", "a long paragraph")) != plain
    assert hash_of(GOOD + "max_tokens: 99\n") != plain
    assert load_prompt(str(tmp_path / "mine.yaml"), "describe").label.startswith("mine@")


FAULTS = [
    (GOOD.replace("{{ kind }}", "{{ knid }}"), "mine.yaml:4: user: unknown variable 'knid'; did you mean 'kind'?"),
    (GOOD.replace("{{ kind }}", "{{ parts }}"), "unknown variable 'parts'"),
    (GOOD.replace("{{ kind }}", "{{ kind"), "mine.yaml:4: user: line 1 of it is no Jinja template"),
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
    (GOOD + "fields: {dense: who}\n", "fields.dense: is a caption too"),
    ("doc: d\nanswer: same\nuser: x\n", "answer: must be text or json"),
    (GOOD + "max_tokens: many\n", "max_tokens"),
    ("doc: [", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_of_a_file_are_named_with_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prompt(str(path), "describe")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_prompt_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown prompt 'level'; did you mean 'levels'"):
        load_prompt("level", "describe")
    with pytest.raises(ConfigError, match="no such file"):
        load_prompt(str(tmp_path / "none.yaml"), "describe")


class Chooser(Settings):
    prompt: Annotated[Prompt, PromptField("describe")] = load_prompt("levels", "describe")


def test_settings_hold_the_words_and_are_written_as_the_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    chosen = validate(Chooser, {"prompt": str(path)})
    assert chosen.model_dump(mode="json") == {"prompt": str(path)}
    path.unlink()
    elsewhere = pickle.loads(pickle.dumps(chosen))
    assert elsewhere.prompt.render(VALUES) == chosen.prompt.render(VALUES) == ("", "video a paragraph")
    assert Chooser.model_json_schema()["properties"]["prompt"]["type"] == "string"


def test_a_prompt_cannot_reach_into_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("{{ kind }}", "{{ kind.__class__.__mro__ }}"))
    with pytest.raises(Exception, match="unsafe"):
        load_prompt(str(path), "describe").render(VALUES)
