"""Packing: patches of samples become tokens and back, and a pack's samples are in one fixed order."""

from __future__ import annotations

import pytest
import torch

from training.models._packing import Packing, patchify, unpatchify
from training.models.dit import DiT


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 12), (5, 6, 4), (3, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 3)])
def test_latents_of_any_size_become_tokens_and_back(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    x = torch.randn(2, 5, *shape)
    tokens = patchify(x, patch)
    assert tokens.shape[1] == DiT(patch=patch).tokens(*shape)
    assert torch.stack([unpatchify(sample, x.shape[1:], patch) for sample in tokens]).equal(x)


def test_patches_hold_neighbouring_cells_in_order() -> None:
    x = torch.arange(2 * 1 * 4 * 6, dtype=torch.float32).view(1, 2, 1, 4, 6)
    token = patchify(x, (1, 2, 2))[0, 1 * 3 + 2]
    assert token.tolist() == x[0, :, 0, 2:4, 4:6].flatten().tolist()


def test_samples_of_one_shape_and_text_length_are_adjacent() -> None:
    shapes, lengths = [(3, 4, 6), (1, 8, 8), (3, 4, 6), (1, 8, 8), (3, 4, 6)], [2, 9, 1, 5, 2]
    latents = [torch.zeros(5, *shape) for shape in shapes]
    packing = Packing.of(latents, [torch.zeros(length, 8) for length in lengths], (1, 2, 2))
    assert packing.groups == ((3, 1), (2, 0, 4))
    assert packing.order == [3, 1, 2, 0, 4]
    assert (packing.tokens, packing.frames) == ((16, 16, 18, 18, 18), (1, 1, 3, 3, 3))
    assert not packing.equal_frames
    assert packing.frame_of_token(torch.device("cpu")).bincount().tolist() == [16, 16, *[6] * 9]
    sample_tokens = zip(packing.order, packing.tokens, strict=True)
    packed = torch.cat([torch.full((tokens, 1), sample) for sample, tokens in sample_tokens])
    assert [int(part[0]) for part in packing.unpack(packed)] == [0, 1, 2, 3, 4]
