"""Coordinates of latents in which equal changes of any channel change pixels about equally.

Normalised latent channels are as large as each other, whether they hold the colour of a cell or the finest of its
edges. Noise of diffusion then hides colours and edges at the same noise levels, and a model must decide on both at
once. In the coordinates of this module colours are large and edges small, as in pixels, so that noise hides edges
first and sampling goes from coarse to fine. Skorokhodov et al. 2025, "Improving the diffusability of autoencoders",
regularise the spectrum of latents for this; here a linear map of the channels does it after training, and changes no
reconstruction.

Shape suffixes: B videos, C latent channels or colours, K latent channels after the map, T H W frames, rows and
columns, N pixel values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.autoencoders._causal_convolutions import CHANNELS
from training.autoencoders._causal_network import CausalNetwork

CHANGE = 0.3
"""Size of the changes of latents, whose variance is about 1 in training."""


@torch.no_grad()
def pixel_metric(network: CausalNetwork, videos: Iterable[Tensor]) -> Tensor:
    """Return how changes of latents change pixels, as a symmetric matrix G `[C, C]` in fp64.

    After the change d `[C]` of a latent cell, the sum of the squared errors of pixels is d^T G d, on average over the
    cells of videos `[B, 3, T, H, W]`. All cells change at once, with random signs: so what changes of two cells have in
    common cancels out.
    """
    generator = torch.Generator().manual_seed(0)
    metric_CC, n_cells = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64), 0
    for video_BCTHW in videos:
        latent_BCTHW = network.encode(video_BCTHW)[0]
        draws_B1THW = torch.randint(2, (len(latent_BCTHW), 1, *latent_BCTHW.shape[2:]), generator=generator)
        change_B1THW = (CHANGE * (2 * draws_B1THW - 1)).to(latent_BCTHW.device, latent_BCTHW.dtype)
        decoded = network.decode(latent_BCTHW)
        responses = []
        for channel in range(CHANNELS):
            changed_BCTHW = latent_BCTHW.clone()
            changed_BCTHW[:, channel] += change_B1THW[:, 0]
            responses.append(((network.decode(changed_BCTHW) - decoded) / CHANGE).flatten())
        response_CN = torch.stack(responses)
        metric_CC += (response_CN @ response_CN.T).double().cpu()
        n_cells += change_B1THW.numel()
    return metric_CC / n_cells


def pixel_coordinates(metric_CC: Tensor) -> Tensor:
    """Return the symmetric square root `[K, C]` of a `pixel_metric`: of latents times this, the metric is 1.

    Channels that pixels hardly depend on keep at least a hundredth of the scale of those that they depend on most.
    """
    values_C, vectors_CC = torch.linalg.eigh(metric_CC)
    scale_C = values_C.clamp_min(1e-4 * values_C.max()).sqrt()
    result_KC: Tensor = vectors_CC @ scale_C.diag() @ vectors_CC.T
    return result_KC


@torch.no_grad()
def change_coordinates(network: CausalNetwork, map_KC: Tensor) -> None:
    """Multiply the latents of a network by an invertible matrix `[K, C]`, with the same reconstructions up to rounding.

    The last layer of the encoder and the first of the decoder are linear, and so are the maps beside them. The
    posterior's variances are left as they are.
    """
    map_KC = map_KC.to(network.first.project.device, network.first.project.dtype)
    inverse_CK = torch.linalg.inv(map_KC)
    for linear in (network.first, network.group):
        linear.project.copy_(map_KC @ linear.project)
        linear.project_bias.copy_(map_KC @ linear.project_bias)
        linear.restore.copy_(linear.restore @ inverse_CK)
    leave, enter = network.encoder.leave.conv, network.decoder.enter
    assert leave.bias is not None
    leave.weight[:CHANNELS] = torch.einsum("kc,cihw->kihw", map_KC, leave.weight[:CHANNELS])
    leave.bias[:CHANNELS] = map_KC @ leave.bias[:CHANNELS]
    enter.weight.copy_(torch.einsum("ochw,ck->okhw", enter.weight, inverse_CK))
