"""Faults of captions: each is found, by name, and good captions have none."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning import quality
from captioning.dialogue.conversation import CAMERA
from captioning.prompt import Prompt, load_prompt

PROMPTS = [load_prompt(name, "describe") for name in ("levels", "dense", "structured")] + [
    load_prompt("rewrite", "rewrite")
]
OWN_WORDS = "\n\n".join(prompt.own_words for prompt in PROMPTS)

GOOD = """
A dog runs on a beach.
A black screen.
Fog.
A sorry sight: a wet dog in the rain.
Snow falls on an empty street at night under orange lamps.
A woman in a red coat crosses a cobbled square from left to right, pigeons scatter before her, and the camera pans with her to the fountain.
Two boys in yellow raincoats jump into puddles on a gravel path while a small brown dog circles them, barking; behind them wet hedges and a grey sky.
A close view of hands kneading dough on a floured wooden table; warm light falls from a window on the left, and flour rises in small clouds.
An animated fox with large green eyes tiptoes through a blue forest, stops, turns its head towards the viewer, and bolts to the right.
A man says sorry to a boy who has dropped his ice cream, kneels down, and hands him a napkin.
A shop sign in red letters reads "I'm sorry, we are closed", and people walk past it with umbrellas.
A protester holds a cardboard sign that says "I cannot see any images of hope" above the crowd.
A robot with a round white head speaks to a child; the display on its chest shows the words "As an AI, I love you".
A notice on the screen of a laptop reads "No video is available", and a man rubs his eyes.
A teacher asks the pupils to share their pictures with each other, and they pass sheets of paper from desk to desk.
A blind man with a white stick cannot see the step in front of him; a girl in a green dress takes his arm.
The boat cannot leave the harbour: waves break over the pier, and ropes are pulled taut again and again.
A photographer is unable to open the bag with her gloves on, pulls one off with her teeth, and takes out a lens.
Protesters march against the policies of the government along a wide avenue lined with bare trees.
A driver is fined: a police officer in a dark uniform writes on a pad beside a white car, which stands against the traffic.
A video camera on a tripod stands in an empty studio with a green wall, its red light blinking.
A stack of old photos lies on a table; a hand turns them over one by one, and each shows the same house in another year.
A frame with no picture in it hangs on a white wall, slightly crooked, with a nail showing above it.
Waves roll in, waves roll out, and the sand between the stones grows dark and light again in the evening sun.
A red ball rolls in front of a wall. Then a blue ball rolls in front of a wall. Then a green ball rolls in front of a wall.
One, two, three, four: a dancer in black counts with her fingers, turns on her heel, and leaps out of the light.
The clock strikes. The clock strikes. A cat on the sill looks up, stretches, and goes back to sleep.
A time lapse of clouds over a mountain ridge; shadows run down the slopes, the light turns from white to gold, and stars come out.
Boeing and Airbus jets taxi one behind the other on wet concrete, their lights mirrored in puddles, towers and hangars grey in the haze.
A plate of spaghetti alla carbonara steams on a checked tablecloth; a fork twists a bite, lifts it, and lets it drip.
A geisha in a silk kimono with cranes pours sake for two men who kneel on tatami mats in front of a paper screen.
In the Champs-Élysées café a garçon in a long white apron balances a tray with croissants, café au lait and a carafe between the tables.
A street in Tokyo at night with neon signs that read 居酒屋 and カラオケ; a taxi drives through the picture from right to left.
A poster with the word "Achtung" hangs beside a steel door with a yellow handle; a man in a helmet walks by and knocks on it twice.
Low-angle shot of a skyscraper with a glass front, in which clouds move slowly; at its foot small figures go in and out.
The camera stands still while a snail crawls up a wet leaf, its horns feeling ahead, and a drop runs down behind it.
The camera zooms, slowly, on the face of an old fisherman with a grey beard, who squints into the sun and smiles.
Hand-held footage of a wedding: the bride laughs, throws her bouquet over her shoulder, and five guests reach for it at once.
A screen recording of a spreadsheet; the pointer selects a column, opens a menu, and the numbers are sorted from large to small.
Black-and-white film with scratches: workers in flat caps leave a factory through a gate, some of them wave at the camera.
A 3D rendering of a heart with translucent walls; the valves open and close, and red particles stream through them.
Aerial view of a river delta in green and brown; the camera drifts forward over the arms of the river towards the open sea.
A boy blows out seven candles on a chocolate cake; smoke curls up, grown-ups clap, and a girl covers her ears.
Traffic at a crossroads seen from above at dusk, with streaks of red and white lights, buses, bicycles, and pedestrians who wait at the kerb.
A potter's hands shape grey clay on a wheel, pressing a hollow into the middle; the rim widens and is smoothed with a sponge.
A hummingbird hovers at a red flower, its wings a blur, dips its beak in, backs off, and darts out of view at the top left.
Rain on a window with a blurred city behind it; drops join and run down in crooked lines, and a train passes as a band of light.
A hydraulic press comes down on a blue plastic toy, which bends, cracks, and bursts into pieces that fly towards the viewer.
A cartoon sun with a face rises over hills with stripes, winks, and stretches its rays to the edges of the picture.
White letters on a black ground read "THE END", fade slowly, and leave the ground empty.
A choir of about thirty singers in dark robes stands on steps; the conductor raises both arms, and all of them breathe in.
An empty corridor with lockers on both sides; a door at its far end swings open, and light falls across the floor.
A skateboarder in a grey hoodie rolls down a ramp, grinds along a rail, falls, gets up, and laughs with his hands on his knees.
A bowl of ramen with egg, spring onions and seaweed; chopsticks lift noodles, and steam drifts to the right.
A woman reads from a sheet of paper into a microphone, looks up now and then, and pushes her glasses up her nose.
A child's drawing of a house: brown crayon fills the roof line by line, then a yellow sun is drawn in the corner.
A horse, a cow and three hens stand in the mud of a yard; a farmer with a bucket comes out of the barn and whistles.
Extreme close-up of an eye with a green iris; the pupil narrows as light falls on it, and the lashes close once.
A man in a suit points at a chart with rising bars, speaks, and nods to people whose backs are seen in the foreground.
""".strip().splitlines()


def fault(caption: str) -> str | None:
    return quality.fault(caption, OWN_WORDS, "en")


def test_there_are_many_good_captions_of_all_lengths() -> None:
    lengths = [len(caption.split()) for caption in GOOD]
    assert len(GOOD) >= 50
    assert (min(lengths), max(lengths) > 25) == (1, True)


@pytest.mark.parametrize("caption", GOOD)
def test_good_captions_have_no_fault(caption: str) -> None:
    assert fault(caption) is None


@pytest.mark.parametrize(("one", "other"), list(itertools.pairwise(GOOD)))
def test_neither_have_two_of_them_in_a_row(one: str, other: str) -> None:
    assert fault(f"{one} {other}") is None


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
def test_faults_are_found_and_named(caption: str, kind: str) -> None:
    found = fault(caption)
    assert found is not None, "taken for good"
    assert found.startswith(kind)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_every_sentence_of_a_prompt_is_an_echo_of_it(prompt: Prompt) -> None:
    lines = [" ".join(quality.words_of(line)) for line in prompt.own_words.split("\n")]
    for line in lines:
        words = line.split()
        if len(words) >= quality.ECHO_WORDS:
            found = quality.fault(f"A dog runs. {line} Then it sleeps.", prompt.own_words, None)
            assert found is not None
            assert found.startswith("prompt-echoing caption")


def test_good_captions_share_few_words_in_a_row_with_the_prompts() -> None:
    """How much room there is below `ECHO_WORDS`: the longest run of words that any of them shares."""
    shared = [
        size for size in range(1, 12) for caption in GOOD if set(_runs(caption, size)) & set(_runs(OWN_WORDS, size))
    ]
    assert max(shared) == 2
    assert 2 * max(shared) <= quality.ECHO_WORDS


def _runs(text: str, size: int) -> list[tuple[str, ...]]:
    words = quality.words_of(text)
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def test_what_filled_a_blank_is_no_echo() -> None:
    """A caption that repeats the hint or the camera's motion repeats what is true, not the prompt."""
    hint = "My aunt Gerda shows her prize-winning cucumbers to the mayor of our town"
    camera = CAMERA["cut-in"]
    values: dict[str, Any] = {
        "kind": "video",
        "duration": "4 seconds",
        "language": "English",
        "n_pictures": 4,
        "span": None,
    }
    for prompt in PROMPTS[:3]:
        _, text = prompt.render({**values, "hint": hint, "camera": camera})
        assert hint in text
        assert camera in text
        assert quality.fault(f"{hint}, while {camera}.", prompt.own_words, "en") is None


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
def test_languages(code: str, caption: str, fits: bool) -> None:
    found = quality.fault(caption, "", code)
    assert (found is None) == fits
    assert fits or str(found).startswith("wrong-language caption")


@given(st.text(max_size=400))
def test_any_text_gets_a_verdict(text: str) -> None:
    found = fault(text)
    assert found is None or found.partition(":")[0].endswith("caption")


@pytest.mark.parametrize(
    ("field", "fits"),
    [("not visible", True), ("none", True), ("a dog", True), ("", False), ("string", False), ("<subject>", False)],
)
def test_fields_may_be_brief(field: str, fits: bool) -> None:
    assert (quality.field_fault(field) is None) == fits


SAME = "A person stands in a bright room and talks to the camera."


def test_the_same_words_for_clips_of_other_sources_say_nothing() -> None:
    captions = {"a": SAME, "b": SAME.upper().replace(".", "!"), "c": SAME, "d": "A dog.", "e": "A dog.", "f": SAME}
    origins = {
        "a": ("one", "g1"),
        "b": ("two", "g2"),
        "c": ("three", "g1"),
        "d": ("four", "g4"),
        "e": ("five", "g5"),
        "f": ("one", "g6"),
    }
    found = quality.duplicates(captions, origins)
    # b differs from a, c and f in both; a and c are near-duplicates; a and f are of one file; short ones are let be.
    assert set(found) == {"a", "b", "c", "f"}
    assert found["b"].startswith("duplicated caption: 3 clips")
    assert found["a"].startswith("duplicated caption: 1 clips")
    del captions["b"]
    assert set(quality.duplicates(captions, origins)) == {"c", "f"}
    del captions["f"]
    assert quality.duplicates(captions, origins) == {}


@given(
    st.permutations(range(6)),
    st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2)), min_size=6, max_size=6),
)
def test_which_are_duplicates_does_not_depend_on_the_order(
    order: list[int], origins: list[tuple[int, int | None]]
) -> None:
    by_uid = {str(i): origins[i] for i in range(6)}
    straight = quality.duplicates({str(i): SAME for i in range(6)}, by_uid)
    assert quality.duplicates({str(i): SAME for i in order}, by_uid) == straight
    # Brute force, in the words of the docstring.
    for uid, (source, cluster) in by_uid.items():
        apart = [o for o, (s, c) in by_uid.items() if o != uid and s != source and (cluster is None or c != cluster)]
        assert (uid in straight) == bool(apart)
    assert json.dumps(straight)


@pytest.mark.parametrize(("caption", "kind"), FAULTY)
def test_reasons_are_grouped_by_class(caption: str, kind: str) -> None:
    found = fault(caption)
    assert found is not None
    assert quality.fault_classes(found) == kind
    assert (
        quality.fault_classes(f"{found}{quality.AGAIN}truncated answer: at 9 tokens (window 2)")
        == f"{kind}, then truncated answer"
    )


@pytest.mark.parametrize(
    "reason",
    ["", "OSError: a.mp4: cannot be decoded", "unanswered question: BadRequest: too long", "no shot of at least 1 s"],
)
def test_other_reasons_stay_whole(reason: str) -> None:
    assert quality.fault_classes(reason) == reason
