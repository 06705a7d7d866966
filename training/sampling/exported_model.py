"""An exported model with its autoencoder and text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from captioning.encoder import TextEncoder
from cluster.arrays import Pixels, UInt8Array
from cluster.config import parse_options
from cluster.telemetry import log
from training.adapters.source import AdapterSource, check_given_once, parse_all
from training.autoencoder import Autoencoder
from training.checkpoints.adapter_export import AdapterFile, StoredAdapter, find_adapter, read_model
from training.checkpoints.model_card import ModelCard, read_card
from training.checkpoints.shipped import find_export
from training.network import VideoModel
from training.sampling.coding import decode_frames, decode_video, encode_video
from training.sampling.continuation import Direction, connect, extend
from training.sampling.editing import DEFAULT_EDIT, Edit, edit
from training.sampling.experts import merge_adapters, with_other_expert
from training.sampling.generation import ConditioningLatents, ModelParts, WeakerModel
from training.sampling.long_video import long_video
from training.sampling.loops import closed_loop, new_loop
from training.sampling.prediction import model_dtype
from training.sampling.ranks import SamplingRanks
from training.sampling.request import DEFAULT_CONTEXT, Context, Generated, Request, new_video
from training.sampling.settings import SampleSettings, VideoShape, check_prompt, size_units
from training.sampling.shape import n_frames, outside_training

# Shape suffixes: B samples, C latent channels or colours, T H W frames, rows and columns, N text tokens, E text width.


class SampleOptions(TypedDict, total=False):
    """Optional arguments of `ExportedModel.sample`, with the defaults of `SampleSettings`."""

    seconds: float
    """Length; 0 makes an image."""
    size: tuple[int, int]
    """Width and height in pixels."""
    fps: float | None
    guidance: float
    guidance_method: str | dict[str, Any]
    """Name, or a mapping of name and settings."""
    adapters: tuple[str, ...]
    """Adapters as FOLDER or FOLDER:WEIGHT, or with a FILE, besides those of the model."""
    other_expert: str | None
    guidance_low_noise: float | None
    negative: str | None
    solver: str
    steps: int
    seed: int
    compile: bool


class _Additions(NamedTuple):
    """Additions to the weights of an export, for a sample."""

    adapters: tuple[AdapterSource, ...] = ()
    other_expert: str | None = None


class ExportedModel:
    """An exported model. Its card is read when it is opened; all other parts are read when they are first needed."""

    def __init__(
        self,
        uri: str,
        device: torch.device | str | None = None,
        *,
        adapters: Sequence[str] = (),
        keep_text_encoder: bool = False,
        ranks: SamplingRanks | None = None,
    ) -> None:
        """Open an export, on the GPU if there is one: its folder, or the name of a shipped model.

        `adapters` are merged into its weights for every sample, each a FOLDER or FOLDER:WEIGHT.
        `keep_text_encoder` keeps the text encoder in memory beside the model, for prompts that come one after another.
        `ranks` are the processes that share each sample's tokens. Raises `ValueError` if there is no such export, or
        its model cannot be shared by as many processes.
        """
        self.uri, self._keep_text_encoder, self.ranks = find_export(uri), keep_text_encoder, ranks
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.card = read_card(self.uri)
        self._check_ranks(self.uri, self.card)
        self._adapters = parse_all(adapters)
        self._found: dict[str, StoredAdapter | AdapterFile] = {}
        self._loaded: tuple[_Additions, ModelParts] | None = None
        self._embeddings: dict[str, Tensor] = {}
        self._weaker: dict[str, WeakerModel] = {}
        self._warnings: set[str] = set()

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder that the model was trained with. Raises `ValueError` if its weights are not the same."""
        return open_autoencoder(self.card, self.device)

    @property
    def parts(self) -> ModelParts:
        """The model and the null caption on the device, with the autoencoder; on a GPU the model is in bfloat16."""
        return self._parts_with(_Additions(self._adapters))

    def adapters_for(self, settings: SampleSettings) -> dict[AdapterSource, StoredAdapter | AdapterFile]:
        """Return the adapters of a sample, those of the model first.

        Raises `ValueError` if a folder has none, or one of another base.
        """
        return self._checked(self._sources(settings))

    def _sources(self, settings: SampleSettings) -> tuple[AdapterSource, ...]:
        sources = (*self._adapters, *parse_all(settings.adapters))
        check_given_once(sources)
        return sources

    def _checked(self, sources: Sequence[AdapterSource]) -> dict[AdapterSource, StoredAdapter | AdapterFile]:
        for source in sources:
            if source.uri not in self._found:
                adapter = find_adapter(source.uri)
                adapter.check_base(self.card)
                self._found[source.uri] = adapter
        return {source: self._found[source.uri] for source in sources}

    def _parts_with(self, additions: _Additions) -> ModelParts:
        """Return the parts with these additions. Those of the last ones are kept in memory."""
        if self._loaded is None or self._loaded[0] != additions:
            # Before any weights are read, and not again for the next sample with the same ones.
            adapters = self._checked(additions.adapters)
            self._loaded = None
            model, null_text_NE = self._load(self.uri, adapters, additions.other_expert)
            parts = ModelParts(self.card, model, self.autoencoder, null_text_NE.to(self.device))
            self._loaded = additions, parts
        return self._loaded[1]

    def _load(
        self,
        uri: str,
        adapters: Mapping[AdapterSource, StoredAdapter | AdapterFile] | None = None,
        other_expert: str | None = None,
    ) -> tuple[VideoModel, Tensor]:
        """Return the model of an export on the device, shared by the ranks if there are any, and its null caption."""
        card, model, null_text_NE = read_model(uri)
        model = with_other_expert(card, model, other_expert)
        # In float32, before the weights are rounded for sampling.
        merge_adapters(card, model, adapters or {})
        if self.ranks is not None:
            model.enable_context_parallel(self.ranks.group)
        return model.to(self.device, model_dtype(self.device)), null_text_NE

    def _check_ranks(self, uri: str, card: ModelCard) -> None:
        """Raise `ValueError` if there are ranks that cannot share a sample's tokens of this export."""
        if self.ranks is None:
            return
        try:
            card.model.check_context_parallel(n_ranks := self.ranks.group.size())
        except ValueError as error:
            raise ValueError(f"{n_ranks} processes cannot share a sample of {uri}: {error}") from error

    def guided_parts(self, settings: SampleSettings) -> ModelParts:
        """Return the parts for these settings: with their adapters, with the negative prompt in place of the null
        caption, and with the weaker model of their guidance.

        Raises `ValueError` as `adapters_for`, and if the weaker model has other latents or texts than this one.
        """
        settings.check_guidance(self.card.model)
        # The text encoder is released before the model is loaded, so that they never share the device.
        negative = None if settings.negative is None else self.embed(settings.negative)
        parts = self._parts_with(_Additions(self._sources(settings), settings.other_expert))
        if negative is not None:
            parts = replace(parts, null_text_NE=negative.to(self.device))
        weaker_uri = settings.guidance_method.weaker_export
        if weaker_uri is not None and settings.guidance != 1:
            if weaker_uri not in self._weaker:
                self._weaker[weaker_uri] = self._open_weaker(weaker_uri)
            parts = replace(parts, weaker=self._weaker[weaker_uri])
        if settings.compile:
            parts.compile_for_sampling()
        return parts

    def _open_weaker(self, uri: str) -> WeakerModel:
        card = read_card(uri)
        for part in ("autoencoder_identity", "text_encoder_identity"):
            own, other = getattr(self.card, part), getattr(card, part)
            if own != other:
                raise ValueError(
                    f"{uri} cannot guide {self.uri}: its {part} is {other}, but must be {own}; take an earlier or "
                    "smaller model of the same latents and texts"
                )
        self._check_ranks(uri, card)
        return WeakerModel(card, self._load(uri)[0])

    def sample(
        self, prompt: str, *, first: Pixels | None = None, last: Pixels | None = None, **options: Unpack[SampleOptions]
    ) -> UInt8Array:
        """Generate a video `[T, H, W, 3]` in 8-bit RGB; an image has T = 1.

        `first` and `last` are RGB images `[H, W, 3]` of the sample's size that the video begins and ends with. Raises
        `ConfigError` for options that `SampleSettings` refuses, and `ValueError` for a size that the model cannot make.
        """
        request = self.request(_settings(prompt, options))
        return self._video(new_video(request, self.encode_images(first, last, request.shape.frames)))

    def extend(
        self,
        video: Pixels,
        prompt: str,
        *,
        direction: Direction = "forward",
        context: Context = DEFAULT_CONTEXT,
        **options: Unpack[SampleOptions],
    ) -> UInt8Array:
        """Return a video `[T, H, W, 3]` in 8-bit RGB with about `seconds` of new frames after or before it.

        The video has the size and the frame rate of the options. Its own frames are returned unchanged. Raises errors
        as `sample`, and `ValueError` for a video of another size or one that is too short to extend backward.
        """
        return self._video(extend(self.request(_settings(prompt, options), context), video, direction))

    def connect(
        self,
        before: Pixels,
        after: Pixels,
        prompt: str,
        *,
        context: Context = DEFAULT_CONTEXT,
        **options: Unpack[SampleOptions],
    ) -> UInt8Array:
        """Return two videos `[T, H, W, 3]` as one, with about `seconds` of new frames between them; as `extend`."""
        return self._video(connect(self.request(_settings(prompt, options), context), before, after))

    def loop(
        self,
        prompt: str,
        *,
        video: Pixels | None = None,
        context: Context = DEFAULT_CONTEXT,
        **options: Unpack[SampleOptions],
    ) -> UInt8Array:
        """Return a video `[T, H, W, 3]` of about `seconds` that repeats without a seam.

        With a `video`, return that one with about `seconds` of new frames that lead back to its start; as `extend`.
        """
        request = self.request(_settings(prompt, options), context)
        return self._video(new_loop(request) if video is None else closed_loop(request, video))

    def edit(
        self,
        video: Pixels,
        prompt: str,
        *,
        strength: float = DEFAULT_EDIT.strength,
        source_prompt: str | None = None,
        **options: Unpack[SampleOptions],
    ) -> UInt8Array:
        """Return the first `seconds` of a video `[T, H, W, 3]`, changed to fit the prompt (SDEdit).

        With a `source_prompt`, which describes the video, the edit is in the manner of FlowEdit. `strength` in (0, 1]
        is the share of the solver's steps that are taken: more changes more. Raises errors as `extend`.
        """
        settings = _settings(prompt, options)
        source_NE = None if source_prompt is None else self.embed(check_prompt(source_prompt))
        return self._video(edit(self.request(settings), video, Edit(strength, source_NE)))

    def long(
        self,
        prompt: str,
        *,
        window: float,
        spans: Sequence[str] = (),
        first: Pixels | None = None,
        context: Context = DEFAULT_CONTEXT,
        **options: Unpack[SampleOptions],
    ) -> UInt8Array:
        """Return a video `[T, H, W, 3]` of `seconds`, generated in overlapping windows of `window` seconds.

        `spans` are parts with prompts of their own, such as "4-8: A blue square spins."; `prompt` holds elsewhere.
        `first` is an RGB image `[H, W, 3]` of the sample's size that it begins with. Raises errors as `sample`, and
        `ValueError` for a context that leaves nothing new in a window.
        """
        settings = _settings(prompt, options, window=window, spans=tuple(spans), context=context.seconds)
        images = self.encode_images(first, None, 1)
        return self._video(long_video(self.request(settings, context), window, images.first_C1HW))

    def request(self, settings: SampleSettings, context: Context = DEFAULT_CONTEXT, prompt: str = "") -> Request:
        """Return the request of these settings, with all texts embedded; `prompt` by default that of the settings."""
        shape = self.fit_shape(settings)
        prompts = [span.prompt for span in settings.prompt_spans()]
        text_NE, *texts = self.embed_all([prompt or settings.prompt, *prompts])
        return Request(
            self.guided_parts(settings), text_NE, settings, shape, context, dict(zip(prompts, texts, strict=True))
        )

    def _video(self, generated: Generated) -> UInt8Array:
        return generated.video(self.autoencoder)

    def fit_shape(self, settings: SampleSettings) -> VideoShape:
        """Return the requested shape, with the number of frames nearest to `seconds` that the model can make.

        A shape outside those of training is logged once. Raises `ValueError` for a size that it cannot make.
        """
        settings.check_size(size_units(self.autoencoder.space_factor, self.card.model))
        fps = settings.fps or self.card.fps
        width, height = settings.pixels()
        shape = VideoShape(n_frames(settings.seconds, fps, self.autoencoder.time_factor), height, width, fps)
        # The model sees one window of a long video at a time.
        seen_s = min(settings.seconds, settings.window or settings.seconds)
        seen = shape._replace(frames=n_frames(seen_s, fps, self.autoencoder.time_factor))
        if (message := outside_training(seen, self.card.buckets)) and message not in self._warnings:
            self._warnings.add(message)
            log.warning(message)
        return shape

    def embed(self, prompt: str) -> Tensor:
        """Return a prompt's embedding, float32 `[N, E]` on the CPU, as `embed_all` does."""
        return self.embed_all([prompt])[0]

    def embed_all(self, prompts: Sequence[str]) -> list[Tensor]:
        """Return the embeddings of prompts, with the text encoder loaded once; it is released unless it is kept.

        Embeddings are kept for later calls. Raises `ValueError` if the encoder's weights are not those of training,
        `EngineError` if there are none.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
            self._embed_new(new)
        return [self._embeddings[prompt] for prompt in prompts]

    def _embed_new(self, prompts: list[str]) -> None:
        encoder, identity = self.card.text_encoder, self.card.text_encoder_identity
        if encoder.identity() != identity:
            raise ValueError(f"{self.uri} was trained with text encoder {identity}, but this is {encoder.identity()}")
        opened = self._kept_text_encoder if self._keep_text_encoder else encoder.open(self.device.type)
        for prompt, embedding in zip(prompts, opened.encode(prompts), strict=True):
            if embedding.truncated:
                log.warning(
                    f"the prompt is too long for the text encoder and is cut after {len(embedding.tokens)} tokens: "
                    f"{prompt!r}"
                )
            self._embeddings[prompt] = torch.from_numpy(embedding.tokens)

    @cached_property
    def _kept_text_encoder(self) -> TextEncoder:
        return self.card.text_encoder.open(self.device.type)

    def encode_images(self, first: Pixels | None, last: Pixels | None, frames: int) -> ConditioningLatents:
        """Return the latents of RGB images `[H, W, 3]`, each encoded as an image; for a model with `image_channels`
        those of the first one followed by grey, with the length of a video of `frames`.
        """
        if (n_channels := self.card.model.image_channels) and first is not None:
            # Only the first frame counts for these channels.
            video_THWC = np.repeat(first[None], frames, axis=0)
            latent_CTHW = encode_video(self.autoencoder, video_THWC, self.device)
            return ConditioningLatents(image_CTHW=latent_CTHW[-n_channels:], image_HWC=first)
        first_C1HW, last_C1HW = (
            None if image_HWC is None else encode_video(self.autoencoder, image_HWC[None], self.device)
            for image_HWC in (first, last)
        )
        return ConditioningLatents(first_C1HW, last_C1HW)

    def decode(self, latent_BCTHW: Tensor) -> UInt8Array:
        """Return the video `[T, H, W, 3]` of the latents of one sample."""
        return decode_video(self.autoencoder, latent_BCTHW)

    def decode_frames(self, latent_BCTHW: Tensor) -> Iterator[UInt8Array]:
        """Yield the frames `[H, W, 3]` of the latents of one sample, each as soon as it is decoded."""
        return decode_frames(self.autoencoder, latent_BCTHW)


def _settings(prompt: str, options: SampleOptions, **task: Any) -> SampleSettings:
    values: dict[str, Any] = {"prompt": prompt, **options, **task}
    if "size" in options:
        values["size"] = "{}x{}".format(*options["size"])
    return parse_options(SampleSettings, values)


def open_autoencoder(card: ModelCard, device: torch.device) -> Autoencoder:
    """Open the autoencoder of a card. Raises `ValueError` if its weights are not those of the model's training."""
    autoencoder = card.autoencoder.open(device)
    if autoencoder.identity != card.autoencoder_identity:
        raise ValueError(
            f"the model was trained on latents of {card.autoencoder_identity}, which are not those of "
            f"{autoencoder.identity} here"
        )
    return autoencoder
