"""The embeddings of a first frame that a network of image to video attends to, by the pipeline's own CLIP.

Data sets hold latents alone, so that in training the first frame is decoded from them; in sampling the image is there.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captioning.pretrained import load_network
from cluster.arrays import Pixels
from training.autoencoder import Autoencoder
from training.autoencoders.diffusers import Diffusers as AutoencoderSettings
from training.models._published_files import IMAGE_ENCODER, IMAGE_PROCESSOR, VAE, PublishedFiles
from training.pixels import to_uint8

# Shape suffixes: C latent channels or colours, T H W frames, rows and columns, N tokens of an image, E their width.

HIDDEN_STATES = -2
"""Which hidden states of CLIP are the embeddings: those before its last layer, as in WanImageToVideoPipeline."""


class ImageEncoder:
    """CLIP's vision model and the autoencoder of a published model, which are loaded when they are first needed.

    They are no part of the network: they do not train, and checkpoints and exports do not hold them. CLIP computes in
    fp32, as in the examples of its pipeline.
    """

    def __init__(self, files: PublishedFiles) -> None:
        self._files = files
        self._autoencoder: Autoencoder | None = None

    @torch.no_grad()
    def embed(self, image_HWC: Pixels, device: torch.device) -> Tensor:
        """Return the embeddings `[N, E]` of an RGB image of 8 bits, on a device."""
        image_CHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)
        pixels_1CHW = self._processor(images=image_CHW, return_tensors="pt")["pixel_values"].to(device)
        states = self._clip.to(device)(pixel_values=pixels_1CHW, output_hidden_states=True).hidden_states
        embedding_NE: Tensor = states[HIDDEN_STATES][0]
        return embedding_NE

    def embed_latents(self, latent_CTHW: Tensor) -> Tensor:
        """Return the embeddings `[N, E]` of the first frame of latents, which is decoded alone."""
        device = latent_CTHW.device
        if self._autoencoder is None:
            own = AutoencoderSettings(path=self._files.path, subfolder=VAE, revision=self._files.revision)
            self._autoencoder = own.open(device)
        frame_1C1HW = self._autoencoder.decode(latent_CTHW[None, :, :1])
        return self.embed(to_uint8(frame_1C1HW[0, :, 0]).permute(1, 2, 0).cpu().numpy(), device)

    @cached_property
    def _clip(self) -> Any:
        folder = self._files.folder(f"{IMAGE_ENCODER}/*") / IMAGE_ENCODER
        classes = {"clip_vision_model": "CLIPVisionModel"}
        return load_network(IMAGE_ENCODER, str(folder), "main", "float32", classes).requires_grad_(False)

    @cached_property
    def _processor(self) -> Any:
        import transformers

        folder = self._files.folder(f"{IMAGE_PROCESSOR}/*") / IMAGE_PROCESSOR
        return transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
