"""A chat model of the package transformers with its processor: pictures and words to tokens, tokens to an answer.

Shape legend: B questions of a batch, L tokens of the longest one, N tokens of the longest answer.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from captioning.engine import EngineError, Question
from captioning.engines import _images
from captioning.engines._chat_settings import ChatModelSettings
from cluster.weight_files import HUB_PREFIX

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
THOUGHT_ENDS = "</think>"
"""Where models that think aloud begin to answer. A template may have begun the thought, so only its end is looked for."""
PROBE = "what the system says"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What a model's own settings say about sampling. Only `top_p` and `top_k` are kept, for questions that sample."""

Kind = Literal["text", "images", "video"]


@dataclass(frozen=True)
class Prompt:
    """A question laid out by the model's template, and its pictures."""

    text: str
    images: tuple[Image.Image, ...] = ()
    video: NDArray[np.uint8] | None = None
    video_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """What a model answers. `truncated` when it did not come to its end; tokens are counted without padding, the end's own included."""

    text: str
    truncated: bool
    tokens_in: int
    tokens_out: int


class ChatModel:
    """A loaded model. `processor` is its tokenizer where it does not see."""

    def __init__(self, name: str, model: Any, processor: Any, settings: ChatModelSettings) -> None:
        self.name = name
        self._model = model
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._template_options = settings.template
        self._max_pixels = settings.max_pixels
        self.takes_images = processor is not self._tokenizer
        self._control = self._control_tokens()
        self._takes_system = self._lays_out(PROBE, "text")
        self._as_video = self._video_is_taken(settings.input)
        self._own = copy.deepcopy(model.generation_config)
        model.generation_config = _greedy(self._own, self._tokenizer)

    def kind(self, question: Question) -> Kind:
        """How a question's pictures are given. A single one is an image: models that merge frames in time refuse a video of one."""
        if not question.images:
            return "text"
        return "video" if self._as_video and len(question.images) > 1 else "images"

    def prompt(self, question: Question) -> Prompt:
        """Lays out a question. Raises `ValueError` for a picture that does not decode, and times that do not fit the pictures."""
        kind = self.kind(question)
        images = tuple(_images.decode(jpeg, self._max_pixels) for jpeg in question.images)
        system, text = self._plain(question.system), self._plain(question.text)
        if not self._takes_system:
            system, text = "", f"{system}\n\n{text}".strip()
        text = self._render(system, text, kind, len(images))
        if kind == "video":
            return Prompt(
                text,
                video=_images.video(images),
                video_metadata=_images.video_metadata(question.image_times_s, len(images)),
            )
        return Prompt(text, images)

    def complete(
        self, prompts: Sequence[Prompt], most_tokens: Sequence[int], temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Answers prompts of one kind, greedily at temperature 0; above it, give one prompt, for all of a batch draw from one seed."""
        assert temperature == 0 or len(prompts) == 1
        inputs = self._encode(prompts).to(self._model.device)
        for name in inputs:
            if name.startswith("pixel_values"):
                inputs[name] = inputs[name].to(self._model.dtype)
        mask_BL = inputs["attention_mask"]
        assert bool(mask_BL[:, -1].all()), "padding stands on the left"
        with torch.inference_mode(), _seeded(seed) if temperature > 0 else contextlib.nullcontext():
            tokens_BN = self._model.generate(**inputs, max_new_tokens=max(most_tokens), **self._decoding(temperature))[
                :, mask_BL.shape[1] :
            ]
        answers, asked = tokens_BN.tolist(), mask_BL.sum(dim=1).tolist()
        return [self._completion(tokens[:most], n) for tokens, most, n in zip(answers, most_tokens, asked, strict=True)]

    def close(self) -> None:
        self._model = None
        free_memory()

    def _encode(self, prompts: Sequence[Prompt]) -> Any:
        """Token ids `[B, L]`, mask and pictures, as the model takes them."""
        given: dict[str, Any] = {"text": [prompt.text for prompt in prompts], "padding": True, "return_tensors": "pt"}
        if not self.takes_images:
            inputs = self._tokenizer(**given, add_special_tokens=False)
            return transformers.BatchFeature({name: inputs[name] for name in ("input_ids", "attention_mask")})
        if prompts[0].images:
            given["images"] = [list(prompt.images) for prompt in prompts]
        if prompts[0].video is not None:
            given |= {
                "videos": [prompt.video for prompt in prompts],
                "video_metadata": [prompt.video_metadata for prompt in prompts],
            }
            given["do_sample_frames"] = False
        bos = self._tokenizer.bos_token
        if bos and prompts[0].text.startswith(bos):
            given["add_special_tokens"] = False
        return self._processor(**given)

    def _decoding(self, temperature: float) -> dict[str, Any]:
        sampled = {"do_sample": True, "temperature": temperature, "top_p": self._own.top_p, "top_k": self._own.top_k}
        return sampled if temperature > 0 else {}

    def _completion(self, tokens: list[int], tokens_in: int) -> Completion:
        ends = _all(self._model.generation_config.eos_token_id)
        n = next((number for number, token in enumerate(tokens, 1) if token in ends), None)
        text: str = self._tokenizer.decode(tokens[:n], skip_special_tokens=True).rpartition(THOUGHT_ENDS)[2].strip()
        return Completion(text, n is None, tokens_in, n or len(tokens))

    def _render(self, system: str, text: str, kind: Kind, n: int) -> str:
        """The prompt in words, of `n` pictures. Raises what the template raises where it knows no such question."""
        shown = [{"type": "video"}] if kind == "video" else [{"type": "image"}] * n
        asked: list[tuple[str, list[dict[str, str]], str]] = [("system", [], system)] * bool(system) + [
            ("user", shown, text)
        ]
        messages = [
            {"role": role, "content": [*parts, {"type": "text", "text": said}] if self.takes_images else said}
            for role, parts, said in asked
        ]
        rendered: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._template_options
        )
        return rendered

    def _video_is_taken(self, wanted: Literal["auto", "video", "images"]) -> bool:
        if not self.takes_images or wanted == "images":
            return False
        taken = getattr(self._processor, "video_processor", None) is not None and self._lays_out("", "video")
        if wanted == "video" and not taken:
            raise EngineError(f"model {self.name} takes no video; set input to images or auto")
        return taken

    def _lays_out(self, system: str, kind: Kind) -> bool:
        """Whether the template takes a system prompt, or pictures of a kind: some refuse, some leave them out without a word."""
        try:
            rendered = self._render(system, "", kind, 1)
            return system in rendered and rendered != self._render("", "", "text", 0)
        except (jinja2.TemplateError, TypeError):
            return False

    def _control_tokens(self) -> re.Pattern[str]:
        """What would not be read as words where it stands in a prompt, say a placeholder of an image."""
        added = self._tokenizer.added_tokens_decoder.values()
        named = [getattr(self._processor, name, None) for name in ("image_token", "video_token")]
        tokens = {str(token) for token in added if token.special} | {token for token in named if token}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")

    def _plain(self, text: str) -> str:
        """Text without control tokens: captions of strangers may hold one by chance or by design."""
        return self._control.sub(" ", text)


def load(settings: ChatModelSettings) -> ChatModel:
    """Loads what the settings name. Raises `EngineError` that says what could not be loaded, why, and what to do."""
    if settings.gpus and not torch.cuda.is_available():
        raise EngineError("gpus is over 0, but torch sees no GPU; set gpus to 0")
    on_hub = settings.model.startswith(HUB_PREFIX)
    place = settings.model.removeprefix(HUB_PREFIX)
    common: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code} | (
        {"revision": settings.revision} if on_hub else {}
    )
    weights: dict[str, Any] = {"dtype": DTYPES[settings.precision], "device_map": settings.device_map}
    if settings.attention != "auto":
        weights["attn_implementation"] = settings.attention
    with _explained(settings):
        config = transformers.AutoConfig.from_pretrained(place, **common)
    if config.is_encoder_decoder:
        raise EngineError(
            f"model {settings.model} ({config.model_type}) encodes one text and decodes another; choose one that was trained to chat"
        )
    takes_images = (
        type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        or getattr(config, "vision_config", None) is not None
    )
    readers = transformers.AutoProcessor if takes_images else transformers.AutoTokenizer
    models = transformers.AutoModelForImageTextToText if takes_images else transformers.AutoModelForCausalLM
    with _explained(settings):
        processor = readers.from_pretrained(place, **common, **settings.processor)
        _check(settings, processor, takes_images)
        model = models.from_pretrained(place, **common, **weights).eval()
        if settings.device_map is None:
            model = model.to(settings.device)
    return ChatModel(settings.model, model, processor, settings)


@contextlib.contextmanager
def _explained(settings: ChatModelSettings) -> Iterator[None]:
    """Whatever the library raises while it loads becomes an `EngineError` with the fix."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        fix = _fix(error, settings.model.startswith(HUB_PREFIX))
        raise EngineError(f"model {settings.model} cannot be loaded: {type(error).__name__}: {error}; {fix}") from error


def _fix(error: Exception, on_hub: bool) -> str:
    if isinstance(error, ImportError):
        return "pip install 'worldloom[models]', or the package it names"
    if on_hub:
        return "check its name and revision; without a network, set model to the path of a folder that holds it"
    return "the folder should hold config.json, the weights, and the files of tokenizer and processor, as save_pretrained writes them"


def _check(settings: ChatModelSettings, processor: Any, takes_images: bool) -> None:
    """Refuses a model that cannot be asked, and settings it would pass over in silence. Raises `EngineError`."""
    parts = [
        part for name in ("image_processor", "video_processor") if (part := getattr(processor, name, None)) is not None
    ]
    if takes_images and not parts:
        raise EngineError(
            f"model {settings.model} sees, but its folder holds no processor of images; copy processor_config.json there too"
        )
    known = {key for part in parts for key in getattr(getattr(part, "valid_kwargs", None), "__annotations__", ())}
    if unknown := sorted(set(settings.processor) - known):
        raise EngineError(
            f"the processor of {settings.model} knows no {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
        )
    templates = getattr(processor, "chat_template", None)
    if not templates:
        raise EngineError(
            f"model {settings.model} has no chat template, so it cannot be asked; choose one that was trained to chat (instruct)"
        )
    if unused := sorted(key for key in settings.template if key not in str(templates)):
        raise EngineError(
            f"the chat template of {settings.model} has no variable {', '.join(unused)}; leave it out of template"
        )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch draws from `seed` inside, and goes on outside as if nothing had been drawn."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed % 2**63)
        yield


def free_memory() -> None:
    """Gives the GPU's memory that torch keeps for later back, so that a smaller batch finds a whole piece."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _greedy(own: Any, tokenizer: Any) -> Any:
    """A model's own settings of generation (ends, forbidden words, penalties) with nothing in them that samples or searches."""
    config = copy.deepcopy(own)
    for name in (*SAMPLING, "max_length"):
        setattr(config, name, None)
    config.do_sample, config.num_beams, config.return_dict_in_generate = False, 1, False
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def _all(tokens: int | list[int] | None) -> set[int]:
    return set() if tokens is None else {tokens} if isinstance(tokens, int) else set(tokens)
