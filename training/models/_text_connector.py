"""The network between the texts of a data set and a transformer that takes them filled up with learned registers.

Data sets hold embeddings of the captions' own tokens, which are few; every text of 1,024 tokens would be larger than
the latents of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.text_connectors import load_connectors
from training.models._published_files import CONNECTORS, PublishedFiles

# Shape suffixes: B samples, N text tokens, E their width.


class TextConnector:
    """The connector for video of a published model, which is loaded when it is first needed.

    It is no part of the network: it does not train, and checkpoints and exports do not hold it.
    """

    def __init__(self, files: PublishedFiles, tokens: int) -> None:
        self._files, self._tokens = files, tokens

    @torch.no_grad()
    def connect(self, texts: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return texts `[N, E]` filled up to the model's number of tokens, computed in a type, on their device."""
        lengths = torch.tensor([len(text_NE) for text_NE in texts], device=texts[0].device)
        filler_NE = texts[0].new_zeros(self._tokens, texts[0].shape[1])
        text_BNE = pad_sequence([filler_NE, *texts], batch_first=True)[1:].to(dtype)
        missing_BN = torch.arange(self._tokens, device=lengths.device) >= lengths[:, None]
        # It takes a mask that is added to the attention.
        mask_B11N = missing_BN[:, None, None] * torch.finfo(dtype).min
        connected_BNE, _ = self._network.to(texts[0].device, dtype)(text_BNE, mask_B11N.to(dtype))
        return list(connected_BNE)

    @cached_property
    def _network(self) -> Any:
        folder = self._files.folder(f"{CONNECTORS}/*") / CONNECTORS
        return load_connectors(str(folder), "main", "float32").video_connector
