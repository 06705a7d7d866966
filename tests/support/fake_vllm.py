"""A fake of vLLM behind `ray.data.llm`: rows go in and come back as with the real engine's stage."""

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
from tests.support.toy_recipes import logged_calls
from tests.support.toy_steps import log_call

UID = re.compile(r"clip ([0-9a-f]{20})")


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of the fake engine towards clips, which are named by uid."""

    log: str = ""
    """File to which the uid of each question is written."""
    fails: tuple[str, ...] = ()
    """Clips whose questions it cannot answer."""
    unfit: dict[str, int] = field(default_factory=dict)
    """Number of unfit answers that a clip gets at first."""
    alike: tuple[str, ...] = ()
    """Clips that all get the same words at first."""
    dies_at: int | None = None
    """Number of answers after which it raises, once an answer is in a journal under `tables`; the batch is lost."""
    tables: str = ""


def answer_row(row: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Return the columns that the engine's stage adds to a row, as `vLLMEngineStageUDF` does."""
    uid = uid_of(row["messages"])
    if behaviour.dies_at is not None and len(logged_calls(behaviour.log)) >= behaviour.dies_at:
        end_s = time.monotonic() + 60
        while not list(Path(behaviour.tables).rglob(f"*{journal.SUFFIX}")) and time.monotonic() < end_s:
            time.sleep(0.05)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    log_call(behaviour.log, uid)
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
    if uid in behaviour.fails:
        return output | {ERROR_COLUMN: f"ValueError: the prompt of clip {uid} is too long"}
    text = text_for(uid, sampling, behaviour)
    tokens = list(range(20))
    return output | {
        "prompt_token_ids": [0] * 100,
        "num_input_tokens": 100,
        "generated_tokens": tokens,
        "generated_text": text,
        "num_generated_tokens": 20,
    }


def text_for(uid: str, sampling: dict[str, Any], behaviour: Behaviour) -> str:
    """Return the text of an answer about a clip, as JSON if decoding is guided."""
    guide = sampling.get("structured_outputs")
    names = list(json.loads(guide["json"])["properties"]) if guide else []
    if sampling["seed"] < behaviour.unfit.get(uid, 0):
        caption = "I cannot see any images"
    elif uid in behaviour.alike and not sampling["seed"]:
        caption = "boat of many colours lies on the calm sea in the evening light"
    else:
        caption = f"caption of clip {uid}, in which a boat lies on the sea"
    return json.dumps({name: f"A {name} {caption}." for name in names}) if names else f"A {caption}."


def uid_of(messages: Any) -> str:
    """Return the uid of the clip that a request is about, named by its first image, or by its text if it has none."""
    text = ""
    for part in (part for message in messages if message["role"] == "user" for part in parts_of(message["content"])):
        if part["type"] == "image_url":
            _, _, encoded = part["image_url"]["url"].partition("data:image/jpeg;base64,")
            with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
                image.load()
                text += image.info["comment"].decode()
        else:
            text += part["text"]
    found = UID.search(text)
    assert found, text
    return found[1]


def parts_of(content: Any) -> list[dict[str, Any]]:
    """Return the content of a message as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def fake_build_processor(behaviour: Behaviour, shuffled: bool = False, swapped: bool = False) -> Callable[..., Any]:
    """Return a fake of `ray.data.llm.build_processor`: Ray's own processor around the fake engine's stage.

    Rows come back `shuffled` across batches, or with their uids `swapped`.
    """
    from ray.data import ActorPoolStrategy, Dataset
    from ray.llm._internal.batch.processor.base import Processor
    from ray.llm._internal.batch.stages.base import StatefulStage, StatefulStageUDF

    class FakeUDF(StatefulStageUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], behaviour: Behaviour) -> None:
            super().__init__(data_column, expected_input_keys)
            self._behaviour = behaviour

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            for row in sorted(batch, key=lambda row: zlib.crc32(row["key"].encode())):
                yield {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], **answer_row(row, self._behaviour)}

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
        stage = FakeStage(fn_constructor_kwargs={"behaviour": behaviour}, map_batches_kwargs=options)
        return Shuffling(config, [stage], preprocess=preprocess, postprocess=postprocess)

    return build


def swap(table: pa.Table) -> pa.Table:
    """Return the table with each uid moved to the row before."""
    position = table.schema.get_field_index("uid")
    uids = table["uid"].to_pylist()
    return table.set_column(position, "uid", pa.array(uids[1:] + uids[:1]))
