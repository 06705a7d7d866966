"""Context parallelism: ranks that share a sample's tokens predict, differentiate and train as one rank that has all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.drawn import write_dataset
from tests.support.model_packs import gradients, perturbed_model, random_pack
from tests.support.ranks import run_ranks
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.model import ModelSettings
from training.models._context_parallel import TokenSlice
from training.models.dit import DiT
from training.network import VideoModel
from training.settings import PreviewSettings, TrainSettings
from training.tracking.metrics import Record, read_metrics

CPU = torch.device("cpu")
Pack = tuple[list[tuple[int, int, int]], list[int]]
"""Latent shapes (T, H, W) and text tokens of the samples, arguments of `random_pack`."""
Case = tuple[dict[str, Any], Pack]
"""Changes to the settings of the model, and its input."""
Run = tuple[str, list[dict[str, Any]]]
"""URI of a run, and changes to `SETTINGS` for each of its starts; each start resumes from the checkpoint before."""
PACKS: tuple[Pack, ...] = (
    # Mixed shapes of 1 to 18 tokens with texts of 1 to 9; one shape; one sample; one token, so that all slices but the
    # last are empty.
    ([(3, 4, 6), (1, 8, 8), (3, 4, 6), (2, 3, 5), (1, 2, 2), (5, 2, 2)], [2, 9, 1, 5, 5, 3]),
    ([(1, 6, 6)] * 3, [4, 4, 4]),
    ([(5, 6, 4)], [7]),
    ([(1, 2, 2)], [3]),
)
LONG_SAMPLE: Pack = ([(5, 32, 32)], [20])
# Feed-forward matrices have over 100,000 elements: stage 3 keeps smaller ones whole between steps.
MODEL = DiT(depth=2, dim=96, heads=4, mlp_ratio=12)
SETTINGS = TrainSettings(
    model=MODEL,
    steps=6,
    batch=PlanSettings(tokens_per_step=150, max_tokens_per_micro=100),
    warmup_steps=2,
    validate_every=3,
    previews=PreviewSettings(every=0),
)


def saved_activation_bytes(model: VideoModel) -> int:
    """Return the bytes that the forward pass of a long sample saves for the backward pass, without the weights."""
    saved = {parameter.untyped_storage().data_ptr(): parameter for parameter in model.parameters()}
    weights = set(saved)

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        _ = model(*random_pack(*LONG_SAMPLE))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in weights)


def differentiate(cases: Sequence[Case]) -> list[tuple[list[Tensor], dict[str, Tensor]]]:
    """Return the predictions of each case, and the mean over ranks of each weight's gradient."""
    results = []
    for changes, pack in cases:
        model = context_parallel_model(changes)
        latents, condition = random_pack(*pack)
        means = gradients(model, latents, condition)
        for gradient in means.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        with torch.no_grad():
            results.append((model(latents, condition), means))
    return results


def context_parallel_model(changes: dict[str, Any]) -> VideoModel:
    """Return a model whose packs' tokens all ranks share."""
    model = perturbed_model(MODEL.model_copy(update=changes))
    model.enable_context_parallel(dist.new_group())
    return model


def train(manifest: str, runs: Sequence[Run]) -> None:
    for run_uri, starts in runs:
        for changes in starts:
            train_loop(SETTINGS.model_copy(update=changes), manifest, run_uri, 3, CPU)


def train_and_differentiate(cases: Sequence[Case], manifest: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Do both in the same processes, whose start takes longest."""
    train(manifest, runs)
    return {"differentiated": differentiate(cases), "saved_bytes": saved_activation_bytes(context_parallel_model({}))}


def assert_differentiates_as_one(results: list[Any], cases: Sequence[Case]) -> None:
    alone = perturbed_model(MODEL)
    for (_, pack), (predictions, means) in zip(cases, results, strict=True):
        latents, condition = random_pack(*pack)
        for got, expected in zip(predictions, alone(latents, condition), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        for name, expected in gradients(alone, latents, condition).items():
            torch.testing.assert_close(means[name], expected, atol=1e-5, rtol=1e-4)


def assert_trains_as_one(run_uri: str, one_worker_uri: str) -> None:
    """Assert that losses, samples and weights of two runs are the same."""
    records, expected = read_metrics(run_uri), read_metrics(one_worker_uri)
    assert [record["step"] for record in records] == list(range(1, SETTINGS.steps + 1))
    for record, expected_record in zip(records, expected, strict=True):
        assert losses_and_samples(record) == pytest.approx(losses_and_samples(expected_record), abs=1e-5)
    for averaged in (True, False):
        models = (read_export(f"{uri}/export", averaged=averaged)[1] for uri in (run_uri, one_worker_uri))
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def operations(run_uri: str, workers: int) -> list[float]:
    """Return the model's operations in each step, of all workers, in 10^12."""
    return [record["tflops"] * record["step_s"] * workers for record in read_metrics(run_uri)]


def losses_and_samples(record: Record) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name.startswith(("loss", "val_loss")) or name in ("samples", "tokens", "epoch")
    }


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(48, 32, 9, 5), (64, 48, 1, 7), (32, 32, 5, 5)], n_val=1)


@pytest.fixture(scope="module")
def one_worker_uri(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a run of one worker."""
    uri = str(tmp_path_factory.mktemp("one"))
    train(manifest, [(uri, [{}])])
    return uri


@pytest.mark.slow
def test_two_workers_that_share_tokens_equal_one(manifest: str, one_worker_uri: str, tmp_path: Path) -> None:
    two = {"workers": 2, "context_parallel": 2}
    recompute = {"model": MODEL.model_copy(update={"checkpointing": "blocks"})}
    uris = {name: str(tmp_path / name) for name in ("zero0", "zero2", "zero2-3", "zero3", "from-one")}
    train(manifest, [(uris["from-one"], [{"steps": 3}])])
    runs: list[Run] = [
        (uris["zero0"], [two | {"previews": PreviewSettings(every=3, count=1, steps=1)}]),
        (uris["zero2"], [two | recompute | {"zero_stage": 2}]),
        (uris["zero2-3"], [two | recompute | {"zero_stage": 2, "steps": 3}, two | recompute | {"zero_stage": 2}]),
        (uris["zero3"], [two | recompute | {"zero_stage": 3}]),
        (uris["from-one"], [two | {"zero_stage": 1}]),
    ]
    cases: list[Case] = [(changes, pack) for changes in ({}, {"checkpointing": "blocks"}) for pack in PACKS]
    for result in run_ranks(train_and_differentiate, 2, cases, manifest, runs):
        assert_differentiates_as_one(result["differentiated"], cases)
        assert result["saved_bytes"] < 0.65 * saved_activation_bytes(perturbed_model(MODEL))
    for uri in uris.values():
        assert_trains_as_one(uri, one_worker_uri)
    assert read_card(f"{uris['zero2-3']}/export").weights == read_card(f"{uris['zero2']}/export").weights
    with_preview = [record for record in read_metrics(uris["zero0"]) if "preview_s" in record]
    assert [record["step"] for record in with_preview] == [3, 6]
    assert not any("preview_failed" in record for record in with_preview)


@pytest.mark.slow
def test_four_workers_in_two_groups_or_one_equal_one(manifest: str, one_worker_uri: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "four")
    cases: list[Case] = [({}, pack) for pack in PACKS]
    runs: list[Run] = [(uri, [{"workers": 4, "context_parallel": 2, "zero_stage": 2}])]
    for result in run_ranks(train_and_differentiate, 4, cases, manifest, runs):
        assert_differentiates_as_one(result["differentiated"], cases)
        assert result["saved_bytes"] < 0.4 * saved_activation_bytes(perturbed_model(MODEL))
    assert_trains_as_one(uri, one_worker_uri)
    assert operations(uri, 4) == pytest.approx(operations(one_worker_uri, 1))


@pytest.mark.slow
def test_compiled_blocks_lose_no_gradient(compiled_graphs: Counter[str]) -> None:
    """In a group of one rank, which needs no other process and exchanges with itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cases: list[Case] = [({"compile": True, "checkpointing": 2}, PACKS[2])]
        assert_differentiates_as_one(differentiate(cases), cases)
    finally:
        dist.destroy_process_group()
    assert compiled_graphs["unique_graphs"] > 0


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), n_ranks=st.integers(1, 5), data=st.data())
def test_slices_are_even_and_have_the_texts_of_their_samples(
    lengths: list[int], n_ranks: int, data: st.DataObject
) -> None:
    text_lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(lengths), max_size=len(lengths)))
    sample_S, sample_N = (
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) for sizes in (lengths, text_lengths)
    )
    slices = []
    for rank in range(n_ranks):
        group: Any = SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: n_ranks)
        token_slice = TokenSlice.of_this_rank(group, lengths)
        slices.append(token_slice.take(sample_S))
        text_N, query_lengths, key_lengths = token_slice.take_texts(sample_N, text_lengths)
        samples = sorted(set(slices[-1].tolist())) or [0]
        assert text_N.tolist() == [sample for sample in samples for _ in range(text_lengths[sample])]
        assert query_lengths == [int((slices[-1] == sample).sum()) for sample in samples]
        assert key_lengths == [text_lengths[sample] for sample in samples]
    assert torch.cat(slices).equal(sample_S)
    sizes = [len(rank_slice) for rank_slice in slices]
    assert max(sizes) - min(sizes) <= 1


def test_context_parallel_does_not_change_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_bytes(b"data")
    folders = {
        run_folder(
            TrainSettings(model=MODEL, workers=4, context_parallel=n), str(tmp_path / "manifest"), str(tmp_path), 0
        )
        for n in (1, 2, 4)
    }
    assert len(folders) == 1


def test_models_that_cannot_share_tokens_are_refused() -> None:
    class Other(DiT):
        check_context_parallel = ModelSettings.check_context_parallel

    with pytest.raises(
        ValueError,
        match="context_parallel 2: model dit cannot share a sample's tokens among workers; set context_parallel: 1",
    ):
        TrainSettings(model=Other(), workers=2, context_parallel=2)
