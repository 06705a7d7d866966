"""Types under bf16: activations are bf16; rope, sums of norms, predictions, noise, targets and losses are fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.model_packs import SHAPES, TEXT_LENGTHS, perturbed_model, random_pack
from tests.support.step_samples import noisy_batch
from training.engine import open_engine
from training.models._layers import apply_rope, rope_3d
from training.settings import TrainSettings
from training.step import mse_losses

BF16 = torch.bfloat16


def test_activations_are_bf16_and_predictions_fp32() -> None:
    """Layers get bf16 by their weights; no autocast chooses types."""
    model = perturbed_model().to(BF16)
    seen: dict[str, set[torch.dtype]] = {}

    def record(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert not torch.is_autocast_enabled("cpu")
            seen.setdefault(name, set()).update((inputs[0].dtype, output.dtype))

        model.get_submodule(name).register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)):
            record(name)
    predictions = model(*random_pack(SHAPES, TEXT_LENGTHS))
    assert seen
    assert all(types == {BF16} for types in seen.values()), seen
    assert {one.dtype for one in predictions} == {torch.float32}


def test_rope_rotates_in_fp32() -> None:
    seconds_BT = torch.tensor([[0.0, 3.0, 60.0]])
    rope = rope_3d(seconds_BT.to(BF16), torch.arange(2.0), torch.arange(3.0), n_pairs=16)
    assert {part.dtype for part in rope} == {torch.float32}
    x_SAK2 = torch.randn(18, 2, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    rotated = apply_rope(x_SAK2, rope)
    assert rotated.dtype == BF16
    assert torch.equal(rotated, apply_rope(x_SAK2.float(), rope).to(BF16))


@pytest.mark.parametrize("norm", [nn.LayerNorm(2048), nn.RMSNorm(2048)], ids=["layer", "rms"])
def test_norms_sum_in_fp32(norm: nn.Module) -> None:
    """In bf16 a sum of squares would stop growing at 256 times its terms."""
    x_BD = (1 + torch.randn(4, 2048, generator=torch.Generator().manual_seed(0)) / 8).to(BF16)
    got_BD, expected_BD = norm.to(BF16)(x_BD), norm.float()(x_BD.float())
    assert got_BD.dtype == BF16
    # One rounding of the result.
    torch.testing.assert_close(got_BD.float(), expected_BD, rtol=2**-8, atol=1e-4)


def test_losses_are_fp32_for_bf16_predictions() -> None:
    batch = noisy_batch([0, 1])
    assert {one.dtype for one in (*batch.noisy, *batch.targets, *batch.loss_weights)} == {torch.float32}
    rounded = [(noisy * 0.7).to(BF16) for noisy in batch.noisy]
    losses_B = mse_losses(lambda *_: rounded, batch)
    assert losses_B.dtype == torch.float32
    assert torch.equal(losses_B, mse_losses(lambda *_: [one.float() for one in rounded], batch))


def test_products_are_in_tf32_where_the_recipe_says_so() -> None:
    device = torch.device("cpu")
    open_engine(nn.Linear(2, 2), TrainSettings(precision="tf32"), device)
    assert torch.get_float32_matmul_precision() == "high"
    open_engine(nn.Linear(2, 2), TrainSettings(), device)
    assert torch.get_float32_matmul_precision() == "highest"
