"""Faults of captions: each is found and named, and good captions have none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning import quality
from captioning.dialogue.conversation import CAMERA_PHRASES
from captioning.prompt import Prompt, load_prompt

PROMPTS = [
    *(load_prompt(name, "describe") for name in ("levels", "dense", "structured")),
    load_prompt("rewrite", "rewrite"),
]
PROMPT_TEXT = "\n\n".join(prompt.static_text for prompt in PROMPTS)

GOOD = (Path(__file__).parent / "good_captions.txt").read_text().splitlines()
"""Captions without a fault, of all lengths; some contain refusals, loops and echoes that are harmless there."""


def fault(caption: str) -> str | None:
    """Return the fault of an English caption in reply to any packaged prompt."""
    return quality.fault(caption, PROMPT_TEXT, "en")


def test_good_captions_are_many_and_of_all_lengths() -> None:
    lengths = [len(caption.split()) for caption in GOOD]
    assert len(GOOD) >= 50
    assert (min(lengths), max(lengths) > 25) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("caption", GOOD)
def test_good_captions_have_no_fault(caption: str) -> None:
    assert fault(caption) is None


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(GOOD)))
def test_two_good_captions_in_a_row_have_no_fault(first: str, second: str) -> None:
    assert fault(f"{first} {second}") is None


FAULTY: list[tuple[str, str]] = [
    ("", "empty caption"),
    (" ... ", "empty caption"),
    ("\n\t", "empty caption"),
    ("string", "placeholder caption"),
    ("<caption>", "placeholder caption"),
    ("[dense caption here]", "placeholder caption"),
    ("{caption}", "placeholder caption"),
    ("N/A", "placeholder caption"),
    ("null", "placeholder caption"),
    ("Short caption here.", "placeholder caption"),
    ("Lorem ipsum dolor sit amet.", "placeholder caption"),
    ("I'm sorry, I cannot describe this.", "refused caption"),
    ("I’m sorry, but I can’t help with that.", "refused caption"),
    ("I cannot see any images.", "refused caption"),
    ("I can't view videos directly.", "refused caption"),
    ("I am unable to process this video.", "refused caption"),
    ("I'm not able to identify people in pictures.", "refused caption"),
    ("I don't see any image attached to your message.", "refused caption"),
    ("I do not have access to the video.", "refused caption"),
    ("Sorry, there is nothing here.", "refused caption"),
    ("Unfortunately, the frames are missing.", "refused caption"),
    ("As an AI language model, I describe only text.", "refused caption"),
    ("No images were provided.", "refused caption"),
    ("The video shows a scene. However, no frames are attached, so details are left out.", "refused caption"),
    ("A person stands in a room. I cannot see any images, so this is a guess.", "refused caption"),
    ("Please upload the video again.", "refused caption"),
    ("There is nothing to describe. Could you provide the images?", "refused caption"),
    ("The image could not be loaded.", "refused caption"),
    ("This request violates our content policy.", "refused caption"),
    ("I'd be happy to help with a caption once there is a picture.", "refused caption"),
    ("I apologize for the trouble.", "refused caption"),
    ("抱歉，我无法查看图片。", "refused caption"),
    ("Es tut mir leid, ich sehe kein Bild.", "refused caption"),
    ("Lo siento, no puedo ver las imágenes.", "refused caption"),
    ("the cat sat on the mat and " * 5, "looping caption"),
    ("A man walks. " * 3 + "He walks on a road, past a house, and a tree." + " He walks on." * 8, "looping caption"),
    ("A man in a blue shirt walks down the road. " * 3, "looping caption"),
    (
        "A field with flowers, and flowers, and flowers, and flowers, and flowers, and flowers, and flowers",
        "looping caption",
    ),
    ("红色的球在滚动红色的球在滚动红色的球在滚动红色的球在滚动", "looping caption"),
    ("Answer with one JSON object and nothing else.", "prompt-echoing caption"),
    (
        "A dog. State facts. Leave out guesses, purposes, opinions, and all that is not in the picture.",
        "prompt-echoing caption",
    ),
    ("one paragraph of 60 to 140 words", "prompt-echoing caption"),
    ("Две собаки бегут по пляжу.", "wrong-language caption"),
    ("两只狗在沙滩上奔跑，海浪拍打着岸边。", "wrong-language caption"),
    (
        "Ein Mann in einer roten Jacke geht am Strand entlang, während hinter ihm Wellen heranrollen.",
        "wrong-language caption",
    ),
    (
        "Un hombre con una chaqueta roja camina por la playa mientras las olas rompen detrás de él.",
        "wrong-language caption",
    ),
    (
        "Une femme en manteau rouge traverse la place pavée de gauche à droite et les pigeons s'envolent.",
        "wrong-language caption",
    ),
]


@pytest.mark.parametrize(("caption", "kind"), FAULTY)
def test_faulty_captions_have_a_fault_of_their_class(caption: str, kind: str) -> None:
    found = fault(caption)
    assert found is not None, "no fault found"
    assert found.startswith(kind)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_every_sentence_of_a_prompt_counts_as_an_echo(prompt: Prompt) -> None:
    lines = [" ".join(quality.words_of(line)) for line in prompt.static_text.split("\n")]
    for line in lines:
        words = line.split()
        if len(words) >= quality.ECHO_WORDS:
            found = quality.fault(f"A dog runs. {line} Then it sleeps.", prompt.static_text, None)
            assert found is not None
            assert found.startswith("prompt-echoing caption")


@pytest.mark.slow
def test_good_captions_share_short_runs_with_the_prompts() -> None:
    """The longest run of words that any of them shares is far below `ECHO_WORDS`."""
    shared = [
        size for size in range(1, 12) for caption in GOOD if set(_runs(caption, size)) & set(_runs(PROMPT_TEXT, size))
    ]
    assert max(shared) == 2
    assert 2 * max(shared) <= quality.ECHO_WORDS


def _runs(text: str, size: int) -> list[tuple[str, ...]]:
    """Return all runs of `size` consecutive words of a text."""
    words = quality.words_of(text)
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def test_value_of_a_prompt_variable_is_no_echo() -> None:
    """A caption may repeat the hint or the motion of the camera: these are true, and not the text of the prompt."""
    hint = "My aunt Gerda shows her prize-winning cucumbers to the mayor of our town"
    camera = CAMERA_PHRASES["cut-in"]
    values: dict[str, Any] = {
        "kind": "video",
        "duration": "4 seconds",
        "language": "English",
        "n_images": 4,
        "span": None,
    }
    for prompt in PROMPTS[:3]:
        _, text = prompt.render({**values, "hint": hint, "camera": camera})
        assert hint in text
        assert camera in text
        assert quality.fault(f"{hint}, while {camera}.", prompt.static_text, "en") is None


@pytest.mark.parametrize(
    ("code", "caption", "fits"),
    [
        ("de", "Ein Hund läuft über den Strand, und die Wellen schlagen hinter ihm an das Ufer aus hellem Sand.", True),
        ("de", "A dog runs along the beach while the waves break behind it on the bright sand of the shore.", False),
        ("zh", "一只狗在沙滩上奔跑。", True),
        ("zh", "A dog runs on a beach.", False),
        ("ja", "犬が砂浜を走っている。カメラは右へ動く。", True),
        ("ru", "Собака бежит по пляжу, за ней катятся волны.", True),
        ("ru", "Sobaka bezhit po plyazhu.", False),
        ("uk", "Собака біжить пляжем.", True),
        ("en", "Hund Strand", True),
        ("en", "Ok", True),
    ],
)
def test_caption_in_another_language_is_unfit(code: str, caption: str, fits: bool) -> None:
    found = quality.fault(caption, "", code)
    assert (found is None) == fits
    assert fits or str(found).startswith("wrong-language caption")


@pytest.mark.slow
@given(st.text(max_size=400))
def test_any_text_gets_a_known_fault_or_none(text: str) -> None:
    found = fault(text)
    assert found is None or found.partition(":")[0].endswith("caption")


@pytest.mark.parametrize(
    ("field", "fits"),
    [("not visible", True), ("none", True), ("a dog", True), ("", False), ("string", False), ("<subject>", False)],
)
def test_fields_may_be_short_but_not_placeholders(field: str, fits: bool) -> None:
    assert (quality.field_fault(field) is None) == fits


SAME = "A person stands in a bright room and talks to the camera."


def test_equal_captions_of_unrelated_clips_are_faults() -> None:
    captions = {"a": SAME, "b": SAME.upper().replace(".", "!"), "c": SAME, "d": "A dog.", "e": "A dog.", "f": SAME}
    origins = {
        "a": ("one", "g1"),
        "b": ("two", "g2"),
        "c": ("three", "g1"),
        "d": ("four", "g4"),
        "e": ("five", "g5"),
        "f": ("one", "g6"),
    }
    found = quality.duplicate_faults(captions, origins)
    # b differs from a, c and f in source and cluster; a and c share a cluster, a and f a source; d and e are short.
    assert set(found) == {"a", "b", "c", "f"}
    assert found["b"].startswith("duplicated caption: 3 clips")
    assert found["a"].startswith("duplicated caption: 1 clips")
    del captions["b"]
    assert set(quality.duplicate_faults(captions, origins)) == {"c", "f"}
    del captions["f"]
    assert quality.duplicate_faults(captions, origins) == {}


@pytest.mark.slow
@given(
    st.permutations(range(6)),
    st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2)), min_size=6, max_size=6),
)
def test_duplicate_faults_do_not_depend_on_the_order(order: list[int], origins: list[tuple[int, int | None]]) -> None:
    by_uid = {str(i): origins[i] for i in range(6)}
    in_order = quality.duplicate_faults({str(i): SAME for i in range(6)}, by_uid)
    assert quality.duplicate_faults({str(i): SAME for i in order}, by_uid) == in_order
    # Compare with the definition in the docstring, by brute force.
    for uid, (source, cluster) in by_uid.items():
        unrelated = [
            other
            for other, (other_source, other_cluster) in by_uid.items()
            if other != uid and other_source != source and (cluster is None or other_cluster != cluster)
        ]
        assert (uid in in_order) == bool(unrelated)
    assert json.dumps(in_order)


@pytest.mark.parametrize(("caption", "kind"), FAULTY)
def test_classes_of_the_faults_in_a_reason(caption: str, kind: str) -> None:
    found = fault(caption)
    assert found is not None
    assert quality.fault_classes(found) == kind
    assert (
        quality.fault_classes(f"{found}{quality.RETRY_SEPARATOR}truncated answer: at 9 tokens (window 2)")
        == f"{kind}, then truncated answer"
    )


@pytest.mark.parametrize(
    "reason",
    ["", "OSError: a.mp4: cannot be decoded", "unanswered question: BadRequest: too long", "no shot of at least 1 s"],
)
def test_other_reasons_are_returned_unchanged(reason: str) -> None:
    assert quality.fault_classes(reason) == reason
