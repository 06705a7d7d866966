"""A chat model of the package transformers with its processor: it turns text and images into tokens, and answers them.

Shape legend: B questions of a batch, L tokens of the longest question, N tokens of the longest answer.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import torch
import transformers
from PIL import Image

from captioning.cleaning import after_reasoning
from captioning.engine import EngineError, Question
from captioning.engines import _images
from captioning.engines._chat_settings import ChatModelSettings
from cluster.arrays import Pixels
from cluster.weight_files import HUB_PREFIX

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SYSTEM_PROBE = "what the system says"
"""System prompt with which a chat template is tested for support of system prompts."""
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options of a checkpoint's generation config that are removed. `top_p` and `top_k` still apply to sampled answers."""

InputKind = Literal["text", "images", "video"]


@dataclass(frozen=True)
class ModelInput:
    """A question formatted by the model's chat template, with its decoded images."""

    text: str
    images: tuple[Image.Image, ...] = ()
    video: Pixels | None = None
    video_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """An answer of the model. Tokens are counted without padding, and with the end token."""

    text: str
    truncated: bool
    """Whether the answer has no end token."""
    tokens_in: int
    tokens_out: int


class ChatModel:
    """A loaded model. `processor` is a tokenizer if the model takes text only."""

    def __init__(self, name: str, model: Any, processor: Any, settings: ChatModelSettings) -> None:
        self.name = name
        self._model = model
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._template_variables = settings.template
        self._max_pixels = settings.max_pixels
        self.takes_images = processor is not self._tokenizer
        self._control_tokens = self._control_token_pattern()
        self._takes_system_prompt = self._template_renders(SYSTEM_PROBE, "text")
        self._sends_video = self._resolve_video(settings.inputs)
        self._checkpoint_config = copy.deepcopy(model.generation_config)
        model.generation_config = _greedy_config(self._checkpoint_config, self._tokenizer)

    def input_kind(self, question: Question) -> InputKind:
        """Return how the images of a question are sent.

        A single image is never sent as a video, because models that merge frames in time refuse a video of one frame.
        """
        if not question.images:
            return "text"
        return "video" if self._sends_video and len(question.images) > 1 else "images"

    def prepare(self, question: Question) -> ModelInput:
        """Format a question and decode its images.

        Raises `ValueError` if an image is damaged, or if the times do not fit the images of a video.
        """
        kind = self.input_kind(question)
        images = tuple(_images.decode(jpeg, self._max_pixels) for jpeg in question.images)
        system, text = self._without_control_tokens(question.system), self._without_control_tokens(question.text)
        if not self._takes_system_prompt:
            system, text = "", f"{system}\n\n{text}".strip()
        text = self._render(system, text, kind, len(images))
        if kind == "video":
            return ModelInput(
                text,
                video=_images.stack_frames(images),
                video_metadata=_images.video_metadata(question.image_times_s, len(images)),
            )
        return ModelInput(text, images)

    def complete(
        self, inputs: Sequence[ModelInput], max_tokens: Sequence[int], temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Answer inputs of one kind, greedily at temperature 0.

        Above temperature 0 only one input is allowed, because all answers of a batch would be drawn from one seed.
        """
        assert temperature == 0 or len(inputs) == 1
        encoded = self._encode(inputs).to(self._model.device)
        for name in encoded:
            if name.startswith("pixel_values"):
                encoded[name] = encoded[name].to(self._model.dtype)
        mask_BL = encoded["attention_mask"]
        assert bool(mask_BL[:, -1].all()), "padding is on the left"
        with torch.inference_mode(), _seeded(seed) if temperature > 0 else contextlib.nullcontext():
            tokens_BN = self._model.generate(
                **encoded, max_new_tokens=max(max_tokens), **self._sampling_arguments(temperature)
            )[:, mask_BL.shape[1] :]
        lengths = mask_BL.sum(dim=1).tolist()
        return [
            self._completion(tokens[:limit], tokens_in)
            for tokens, limit, tokens_in in zip(tokens_BN.tolist(), max_tokens, lengths, strict=True)
        ]

    def close(self) -> None:
        """Release the model and its GPU memory."""
        self._model = None
        free_memory()

    def _encode(self, inputs: Sequence[ModelInput]) -> Any:
        """Return token ids `[B, L]`, attention mask and pixels, as the model takes them."""
        arguments: dict[str, Any] = {"text": [each.text for each in inputs], "padding": True, "return_tensors": "pt"}
        if not self.takes_images:
            encoded = self._tokenizer(**arguments, add_special_tokens=False)
            return transformers.BatchFeature({name: encoded[name] for name in ("input_ids", "attention_mask")})
        if inputs[0].images:
            arguments["images"] = [list(each.images) for each in inputs]
        if inputs[0].video is not None:
            arguments |= {
                "videos": [each.video for each in inputs],
                "video_metadata": [each.video_metadata for each in inputs],
            }
            arguments["do_sample_frames"] = False
        bos = self._tokenizer.bos_token
        if bos and inputs[0].text.startswith(bos):
            arguments["add_special_tokens"] = False
        return self._processor(**arguments)

    def _sampling_arguments(self, temperature: float) -> dict[str, Any]:
        """Return the arguments of `generate` that sample at a temperature; none at 0."""
        if temperature == 0:
            return {}
        config = self._checkpoint_config
        return {"do_sample": True, "temperature": temperature, "top_p": config.top_p, "top_k": config.top_k}

    def _completion(self, tokens: list[int], tokens_in: int) -> Completion:
        """Return the completion in generated tokens, up to the first end token."""
        end_tokens = _token_set(self._model.generation_config.eos_token_id)
        length = next((count for count, token in enumerate(tokens, 1) if token in end_tokens), None)
        decoded: str = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return Completion(after_reasoning(decoded), length is None, tokens_in, length or len(tokens))

    def _render(self, system: str, text: str, kind: InputKind, n_images: int) -> str:
        """Return the prompt text of a question. Raises the template's own error if it refuses the question."""
        visual = [{"type": "video"}] if kind == "video" else [{"type": "image"}] * n_images
        parts: list[tuple[str, list[dict[str, str]], str]] = [("user", visual, text)]
        if system:
            parts.insert(0, ("system", [], system))
        messages = [
            {"role": role, "content": [*items, {"type": "text", "text": words}] if self.takes_images else words}
            for role, items, words in parts
        ]
        rendered: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._template_variables
        )
        return rendered

    def _resolve_video(self, inputs: Literal["auto", "video", "images"]) -> bool:
        """Return whether several images are sent as a video. Raises `EngineError` if the model cannot take it."""
        if not self.takes_images or inputs == "images":
            return False
        takes_video = getattr(self._processor, "video_processor", None) is not None and self._template_renders(
            "", "video"
        )
        if inputs == "video" and not takes_video:
            raise EngineError(f"model {self.name} takes no video; set inputs to images or auto")
        return takes_video

    def _template_renders(self, system: str, kind: InputKind) -> bool:
        """Return whether the chat template renders a system prompt and visual inputs of a kind.

        Some templates raise an error for unsupported inputs, others silently leave them out.
        """
        try:
            rendered = self._render(system, "", kind, 1)
            return system in rendered and rendered != self._render("", "", "text", 0)
        except (jinja2.TemplateError, TypeError):
            return False

    def _control_token_pattern(self) -> re.Pattern[str]:
        """Return a pattern of the tokens that a prompt must not contain as text, such as image placeholders."""
        added = self._tokenizer.added_tokens_decoder.values()
        placeholders = [getattr(self._processor, name, None) for name in ("image_token", "video_token")]
        tokens = {str(token) for token in added if token.special} | {token for token in placeholders if token}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")

    def _without_control_tokens(self, text: str) -> str:
        """Return text without control tokens, which captions from outside may contain by accident or on purpose."""
        return self._control_tokens.sub(" ", text)


def load(settings: ChatModelSettings) -> ChatModel:
    """Load a chat model. Raises `EngineError` with the cause and the fix if it cannot be loaded or asked."""
    if settings.gpus and not torch.cuda.is_available():
        raise EngineError("gpus is over 0, but torch sees no GPU; set gpus to 0")
    name = settings.model.removeprefix(HUB_PREFIX)
    arguments: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.model.startswith(HUB_PREFIX):
        arguments["revision"] = settings.revision
    weight_arguments: dict[str, Any] = {"dtype": DTYPES[settings.precision], "device_map": settings.device_map}
    if settings.attention != "auto":
        weight_arguments["attn_implementation"] = settings.attention
    with _as_engine_errors(settings):
        config = transformers.AutoConfig.from_pretrained(name, **arguments)
    if config.is_encoder_decoder:
        raise EngineError(
            f"model {settings.model} ({config.model_type}) is an encoder-decoder model; choose a chat model (instruct)"
        )
    has_vision = (
        type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        or getattr(config, "vision_config", None) is not None
    )
    processor_class = transformers.AutoProcessor if has_vision else transformers.AutoTokenizer
    model_class = transformers.AutoModelForImageTextToText if has_vision else transformers.AutoModelForCausalLM
    with _as_engine_errors(settings):
        processor = processor_class.from_pretrained(name, **arguments, **settings.processor)
        _check_processor(settings, processor, has_vision)
        model = model_class.from_pretrained(name, **arguments, **weight_arguments).eval()
        if settings.device_map is None:
            model = model.to(settings.device)
    return ChatModel(settings.model, model, processor, settings)


@contextlib.contextmanager
def _as_engine_errors(settings: ChatModelSettings) -> Iterator[None]:
    """Turn errors of transformers inside the block into an `EngineError` with the fix."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        fix = _fix(error, settings.model.startswith(HUB_PREFIX))
        raise EngineError(f"model {settings.model} cannot be loaded: {type(error).__name__}: {error}; {fix}") from error


def _fix(error: Exception, is_on_hub: bool) -> str:
    if isinstance(error, ImportError):
        return "pip install 'worldloom[models]', or the package that the error names"
    if is_on_hub:
        return "check its name and revision; without a network, set model to the path of a folder with its files"
    return (
        "the folder needs config.json, the weights, and the files of tokenizer and processor, "
        "as save_pretrained writes them"
    )


def _check_processor(settings: ChatModelSettings, processor: Any, has_vision: bool) -> None:
    """Raise `EngineError` for a model without a chat template, and for options that it would silently ignore."""
    visual = [
        part for name in ("image_processor", "video_processor") if (part := getattr(processor, name, None)) is not None
    ]
    if has_vision and not visual:
        raise EngineError(
            f"model {settings.model} has vision, but its folder has no image processor; "
            "copy processor_config.json there too"
        )
    known = {key for part in visual for key in getattr(getattr(part, "valid_kwargs", None), "__annotations__", ())}
    if unknown := sorted(set(settings.processor) - known):
        raise EngineError(
            f"the processor of {settings.model} has no option {', '.join(unknown)}; "
            f"known options: {', '.join(sorted(known)) or 'none'}"
        )
    templates = getattr(processor, "chat_template", None)
    if not templates:
        raise EngineError(f"model {settings.model} has no chat template; choose a chat model (instruct)")
    if unused := sorted(key for key in settings.template if key not in str(templates)):
        raise EngineError(
            f"the chat template of {settings.model} has no variable {', '.join(unused)}; remove it from template"
        )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block, and restore the state of its random numbers afterwards."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed % 2**63)
        yield


def free_memory() -> None:
    """Release the GPU memory that torch caches, so that a smaller batch finds a contiguous block."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _greedy_config(checkpoint_config: Any, tokenizer: Any) -> Any:
    """Return a generation config (end tokens, forbidden words, penalties) without sampling and beam search."""
    config = copy.deepcopy(checkpoint_config)
    for name in (*SAMPLING_OPTIONS, "max_length"):
        setattr(config, name, None)
    config.do_sample, config.num_beams, config.return_dict_in_generate = False, 1, False
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def _token_set(tokens: int | list[int] | None) -> set[int]:
    return set() if tokens is None else {tokens} if isinstance(tokens, int) else set(tokens)
