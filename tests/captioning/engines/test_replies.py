"""The header Retry-After of a server's reply; `test_openai_failures` covers the rest of the replies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from captioning.engines._replies import retry_after_s

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 99 May 2030 12:00:00 GMT"}, None),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"Retry-After": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"Retry-After": "Wed, 01 May 2030 12:00:10 -0000"}, 10.0),
        (
            {
                "Retry-After": format_datetime(NOW, usegmt=True),
                "Date": format_datetime(NOW - timedelta(seconds=5), usegmt=True),
            },
            5.0,
        ),
        ({"Retry-After": format_datetime(NOW, usegmt=True), "Date": "yesterday"}, 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == wait_s
