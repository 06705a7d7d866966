"""vLLM as `ray.data.llm` shows it, without vLLM: rows go in and come back as the real stage's do. And clips whose JPEGs say which they are."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from captioning.dialogue import journal
from captioning.engines.vllm import ERROR_COLUMN
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.steps.frames import FRAMES, FRAME_TIMES_S
from tests.support.toy_steps import log_call

UID = re.compile(r"clip ([0-9a-f]{20})")


class Shown(Step):
    """Stands for `frames`: JPEG pictures whose comment says which clip they are of. Those of `damaged` clips, by number, are cut off."""

    name: str = "shown"
    pictures: int = 3
    damaged: tuple[float, ...] = ()

    def reads(self) -> tuple[str, ...]:
        return ("number",)

    def writes(self) -> tuple[pa.Field, ...]:
        return FRAMES, FRAME_TIMES_S, column("camera", pa.string(), ""), column("source_caption", pa.string(), "")

    def open(self, context: Context) -> TableFunction:
        def show(row: dict[str, Any]) -> dict[str, Any]:
            whole = jpeg(row["uid"])
            shown = whole[: len(whole) // 2] if row["number"] in self.damaged else whole
            return {
                "frames": [shown] * self.pictures,
                "frame_times_s": [float(i) for i in range(self.pictures)],
                "camera": None,
                "source_caption": None,
            }

        return lambda table: map_rows(table, self.writes(), show)


def jpeg(uid: str) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).save(sink, "JPEG", comment=f"clip {uid}".encode())
    return sink.getvalue()


@dataclass(frozen=True)
class Manner:
    """How the fake behaves: which clips, by uid, it cannot answer, and to which it gives an unfit answer the first so many times."""

    log: str = ""
    fails: tuple[str, ...] = ()
    unfit: dict[str, int] = field(default_factory=dict)
    alike: tuple[str, ...] = ()
    """Clips that get the same words as each other at first."""
    dies_at: int | None = None
    """The answers after which the whole batch is lost, and the run with it, once one is in a journal under `tables`."""
    tables: str = ""


def answered(row: dict[str, Any], manner: Manner) -> dict[str, Any]:
    """What the engine's stage adds to a row, as `vLLMEngineStageUDF` does."""
    uid = uid_of(row["messages"])
    if manner.dies_at is not None and len(asked_of(manner.log)) >= manner.dies_at:
        end_s = time.monotonic() + 60
        while not list(Path(manner.tables).rglob(f"*{journal.SUFFIX}")) and time.monotonic() < end_s:
            time.sleep(0.05)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    log_call(manner.log, uid)
    sampling = row["sampling_params"]
    assert sampling["temperature"] == (0.7 if sampling["seed"] else 0.0)
    output: dict[str, Any] = {
        "prompt": "",
        "prompt_token_ids": None,
        "num_input_tokens": 0,
        "generated_tokens": [],
        "generated_text": "",
    }
    output |= {
        "num_generated_tokens": 0,
        "embeddings": None,
        "metrics": None,
        "logprobs": None,
        "prompt_logprobs": None,
        ERROR_COLUMN: "",
    }
    output |= {"request_id": -1, "batch_uuid": "", "time_taken_llm": -1.0, "params": ""}
    if uid in manner.fails:
        return output | {ERROR_COLUMN: f"ValueError: the prompt of clip {uid} is too long"}
    text = said(uid, sampling, manner)
    tokens = list(range(20))
    return output | {
        "prompt_token_ids": [0] * 100,
        "num_input_tokens": 100,
        "generated_tokens": tokens,
        "generated_text": text,
        "num_generated_tokens": 20,
    }


def said(uid: str, sampling: dict[str, Any], manner: Manner) -> str:
    guide = sampling.get("structured_outputs")
    names = list(json.loads(guide["json"])["properties"]) if guide else []
    if sampling["seed"] < manner.unfit.get(uid, 0):
        caption = "I cannot see any images"
    elif uid in manner.alike and not sampling["seed"]:
        caption = "boat of many colours lies on the calm sea in the evening light"
    else:
        caption = f"caption of clip {uid}, in which a boat lies on the sea"
    return json.dumps({name: f"A {name} {caption}." for name in names}) if names else f"A {caption}."


def uid_of(messages: Any) -> str:
    """The clip a request is about, by its first picture, or by its words where it has none."""
    text = ""
    for part in (part for message in messages if message["role"] == "user" for part in parts_of(message["content"])):
        if part["type"] == "image_url":
            _, _, encoded = part["image_url"]["url"].partition("data:image/jpeg;base64,")
            with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as picture:
                picture.load()
                text += picture.info["comment"].decode()
        else:
            text += part["text"]
    found = UID.search(text)
    assert found, text
    return found[1]


def parts_of(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def asked_of(log: str) -> list[str]:
    return Path(log).read_text().split() if Path(log).exists() else []


def fake_build_processor(manner: Manner, shuffled: bool = False, swapped: bool = False) -> Callable[..., Any]:
    """Stands for `ray.data.llm.build_processor`: Ray's own processor around one stage that is ours."""
    from ray.data import ActorPoolStrategy, Dataset
    from ray.llm._internal.batch.processor.base import Processor
    from ray.llm._internal.batch.stages.base import StatefulStage, StatefulStageUDF

    class FakeUDF(StatefulStageUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], manner: Manner) -> None:
            super().__init__(data_column, expected_input_keys)
            self._manner = manner

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            for row in sorted(batch, key=lambda row: zlib.crc32(row["key"].encode())):
                yield {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], **answered(row, self._manner)}

    class FakeStage(StatefulStage):
        fn: type[StatefulStageUDF] = FakeUDF

        def get_required_input_keys(self) -> dict[str, str]:
            return {"messages": "", "sampling_params": ""}

    class Shuffling(Processor):
        def __call__(self, dataset: Dataset) -> Dataset:
            dataset = super().__call__(dataset)
            if swapped:
                dataset = dataset.map_batches(swap, batch_size=None, batch_format="pyarrow")
            return dataset.random_shuffle(seed=3).repartition(3) if shuffled else dataset

    def build(config: Any, preprocess: Any, postprocess: Any) -> Any:
        options = {"zero_copy_batch": True, "compute": ActorPoolStrategy(size=1), "max_concurrency": 2, "num_cpus": 0}
        stage = FakeStage(fn_constructor_kwargs={"manner": manner}, map_batches_kwargs=options)
        return Shuffling(config, [stage], preprocess=preprocess, postprocess=postprocess)

    return build


def swap(table: pa.Table) -> pa.Table:
    """Uids on other rows than their own."""
    position = table.schema.get_field_index("uid")
    uids = table["uid"].to_pylist()
    return table.set_column(position, "uid", pa.array(uids[1:] + uids[:1]))
