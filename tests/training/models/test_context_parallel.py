"""Context parallelism: ranks that share a sample's tokens predict, differentiate and train as one rank that has them all."""

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

from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from tests.training.models.test_dit import gradients, moved, packed
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.model import ModelSettings
from training.models._context import Slice
from training.models.dit import DiT
from training.network import VideoModel
from training.settings import PreviewSettings, TrainSettings
from training.tracking.metrics import Record, read_metrics

CPU = torch.device("cpu")
Pack = tuple[list[tuple[int, int, int]], list[int]]
Case = tuple[dict[str, Any], Pack]
"""Settings of the model, and what it is given."""
PACKS: tuple[Pack, ...] = (
    # Mixed shapes of 1 to 18 tokens with texts of 1 to 9; one shape; one sample; one token, so that all slices but the last are empty.
    ([(3, 4, 6), (1, 8, 8), (3, 4, 6), (2, 3, 5), (1, 2, 2), (5, 2, 2)], [2, 9, 1, 5, 5, 3]),
    ([(1, 6, 6)] * 3, [4, 4, 4]),
    ([(5, 6, 4)], [7]),
    ([(1, 2, 2)], [3]),
)
LONG = ([(5, 32, 32)], [20])
# Feed-forward matrices of over 100,000 elements: smaller ones stage 3 keeps whole between steps.
MODEL = DiT(depth=2, dim=96, heads=4, mlp_ratio=12)
SETTINGS = TrainSettings(
    model=MODEL,
    steps=6,
    batch=PlanSettings(tokens_per_step=150, max_tokens_per_micro=100),
    warmup_steps=2,
    validate_every=3,
    previews=PreviewSettings(every=0),
)


def kept_bytes(model: VideoModel) -> int:
    """Of what the way forward of a long sample keeps for the way back, weights aside."""
    held = {parameter.untyped_storage().data_ptr(): parameter for parameter in model.parameters()}
    weights = set(held)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = model(*packed(*LONG))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in held.items() if address not in weights)


def differentiated(cases: Sequence[Case]) -> list[Any]:
    """Of each case the predictions, and the sums over ranks of gradients, each rank's loss counting as 1 / ranks."""
    found = []
    for options, pack in cases:
        model = sharing(options)
        latents, condition = packed(*pack)
        sums = gradients(model, latents, condition)
        for gradient in sums.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        with torch.no_grad():
            found.append((model(latents, condition), sums))
    return found


def sharing(options: dict[str, Any]) -> VideoModel:
    """A model whose packs' tokens all ranks share."""
    model = moved(MODEL.model_copy(update=options))
    model.enable_context_parallel(dist.new_group())
    return model


def trained(manifest: str, runs: list[tuple[str, list[dict[str, Any]]]]) -> None:
    """Several runs in the same processes, each in legs that go on from the checkpoint of the one before."""
    for run_uri, legs in runs:
        for changes in legs:
            train_loop(SETTINGS.model_copy(update=changes), manifest, run_uri, 3, CPU)


def both(cases: Sequence[Case], manifest: str, runs: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """In the same processes, whose start takes longest."""
    trained(manifest, runs)
    return {"differentiated": differentiated(cases), "kept_bytes": kept_bytes(sharing({}))}


def assert_differentiates_as_one(found: list[Any], cases: Sequence[Case]) -> None:
    alone = moved(MODEL)
    for (_, pack), (predictions, sums) in zip(cases, found, strict=True):
        latents, condition = packed(*pack)
        for got, expected in zip(predictions, alone(latents, condition), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        for name, expected in gradients(alone, latents, condition).items():
            torch.testing.assert_close(sums[name], expected, atol=1e-5, rtol=1e-4)


def assert_trains_as_one(run_uri: str, alone_uri: str) -> None:
    """The same losses, samples and weights."""
    records, expected = read_metrics(run_uri), read_metrics(alone_uri)
    assert [record["step"] for record in records] == list(range(1, SETTINGS.steps + 1))
    for record, one in zip(records, expected, strict=True):
        assert learnt(record) == pytest.approx(learnt(one), abs=1e-5)
    for averaged in (True, False):
        ours, theirs = (read_export(f"{uri}/export", averaged=averaged)[1] for uri in (run_uri, alone_uri))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def operations(run_uri: str, workers: int) -> list[float]:
    """Those of the model in each step, of all workers, in 10^12."""
    return [record["tflops"] * record["step_s"] * workers for record in read_metrics(run_uri)]


def learnt(record: Record) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name.startswith(("loss", "val_loss")) or name in ("samples", "tokens", "epoch")
    }


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(48, 32, 9, 5), (64, 48, 1, 7), (32, 32, 5, 5)], n_val=1)


@pytest.fixture(scope="module")
def alone(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one worker."""
    uri = str(tmp_path_factory.mktemp("alone"))
    trained(manifest, [(uri, [{}])])
    return uri


@pytest.mark.slow
def test_two_workers_that_share_tokens_are_as_one(manifest: str, alone: str, tmp_path: Path) -> None:
    two = {"workers": 2, "context_parallel": 2}
    saving = {"model": MODEL.model_copy(update={"checkpointing": "blocks"})}
    uris = {name: str(tmp_path / name) for name in ("zero0", "zero2", "zero2-3", "zero3", "from-one")}
    trained(manifest, [(uris["from-one"], [{"steps": 3}])])
    runs: list[tuple[str, list[dict[str, Any]]]] = [
        (uris["zero0"], [two | {"previews": PreviewSettings(every=3, count=1, steps=1)}]),
        (uris["zero2"], [two | saving | {"zero_stage": 2}]),
        (uris["zero2-3"], [two | saving | {"zero_stage": 2, "steps": 3}, two | saving | {"zero_stage": 2}]),
        (uris["zero3"], [two | saving | {"zero_stage": 3}]),
        (uris["from-one"], [two | {"zero_stage": 1}]),
    ]
    cases: list[Case] = [(options, pack) for options in ({}, {"checkpointing": "blocks"}) for pack in PACKS]
    for found in run_ranks(both, 2, cases, manifest, runs):
        assert_differentiates_as_one(found["differentiated"], cases)
        assert found["kept_bytes"] < 0.65 * kept_bytes(moved(MODEL))
    for uri in uris.values():
        assert_trains_as_one(uri, alone)
    assert read_card(f"{uris['zero2-3']}/export").weights == read_card(f"{uris['zero2']}/export").weights
    previewed = [record for record in read_metrics(uris["zero0"]) if "preview_s" in record]
    assert [record["step"] for record in previewed] == [3, 6]
    assert not any("preview_failed" in record for record in previewed)


@pytest.mark.slow
def test_four_workers_are_two_groups_or_one(manifest: str, alone: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "four")
    cases: list[Case] = [({}, pack) for pack in PACKS]
    for found in run_ranks(both, 4, cases, manifest, [(uri, [{"workers": 4, "context_parallel": 2, "zero_stage": 2}])]):
        assert_differentiates_as_one(found["differentiated"], cases)
        assert found["kept_bytes"] < 0.4 * kept_bytes(moved(MODEL))
    assert_trains_as_one(uri, alone)
    assert operations(uri, 4) == pytest.approx(operations(alone, 1))


def test_compiled_blocks_lose_no_gradient(compiled_graphs: Counter[str]) -> None:
    """In a group of one rank, which needs no other process and exchanges with itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cases: list[Case] = [({"compile": True, "checkpointing": 2}, PACKS[2])]
        assert_differentiates_as_one(differentiated(cases), cases)
    finally:
        dist.destroy_process_group()
    assert compiled_graphs["unique_graphs"] > 0


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), n_ranks=st.integers(1, 5), data=st.data())
def test_slices_are_even_and_each_has_the_texts_of_its_samples(
    lengths: list[int], n_ranks: int, data: st.DataObject
) -> None:
    text_lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(lengths), max_size=len(lengths)))
    sample_S, sample_N = (
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) for sizes in (lengths, text_lengths)
    )
    cuts = []
    for rank in range(n_ranks):
        group: Any = SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: n_ranks)
        own = Slice.of(group, lengths)
        cuts.append(own.cut(sample_S))
        text_N, queries, keys = own.texts(sample_N, text_lengths)
        seen = sorted(set(cuts[-1].tolist())) or [0]
        assert text_N.tolist() == [sample for sample in seen for _ in range(text_lengths[sample])]
        assert queries == [int((cuts[-1] == sample).sum()) for sample in seen]
        assert keys == [text_lengths[sample] for sample in seen]
    assert torch.cat(cuts).equal(sample_S)
    sizes = [len(cut) for cut in cuts]
    assert max(sizes) - min(sizes) <= 1


def test_it_shapes_no_run(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_bytes(b"data")
    folders = {
        run_folder(
            TrainSettings(model=MODEL, workers=4, context_parallel=n), str(tmp_path / "manifest"), str(tmp_path), 0
        )
        for n in (1, 2, 4)
    }
    assert len(folders) == 1


def test_a_model_that_cannot_share_tokens_is_refused() -> None:
    class Other(DiT):
        check_context_parallel = ModelSettings.check_context_parallel

    with pytest.raises(
        ValueError,
        match="context_parallel 2: model dit cannot share a sample's tokens among workers; set context_parallel: 1",
    ):
        TrainSettings(model=Other(), workers=2, context_parallel=2)
