"""Contact sheets: the middle frames of many samples on one image."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipelines.commands._media import middle_frame
from training.sampling.media import Finish, write_file

COLUMNS = 8
MAX_TILES = 200
"""Most samples of one sheet."""
TILE_PX = 160
"""Height and width of the square that a frame is scaled to fit."""
CAPTION_PX = 18
"""Height of the line below a frame."""


def write_contact_sheets(tiles: Sequence[tuple[str, str]], stem_uri: str, finish: Finish | None = None) -> list[str]:
    """Write sheets of samples, given as the URI of the file and the line below it, and return the URIs of the sheets.

    They are `<stem>.jpg`, or `<stem>-1.jpg` and so on if one is not enough. `finish` marks the files.
    """
    pages = [tiles[start : start + MAX_TILES] for start in range(0, len(tiles), MAX_TILES)]
    uris = [f"{stem_uri}.jpg"] if len(pages) == 1 else [f"{stem_uri}-{page + 1}.jpg" for page in range(len(pages))]
    for uri, page in zip(uris, pages, strict=True):
        buffer = io.BytesIO()
        contact_sheet(page).save(buffer, "JPEG", quality=85)
        write_file(uri, buffer.getvalue(), finish)
    return uris


def contact_sheet(tiles: Sequence[tuple[str, str]]) -> Image.Image:
    """Return the sheet of samples, given as the URI of the file and the line below it, in rows of `COLUMNS`."""
    columns, rows = min(len(tiles), COLUMNS), -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (columns * TILE_PX, rows * (TILE_PX + CAPTION_PX)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (uri, text) in enumerate(tiles):
        x, y = index % COLUMNS * TILE_PX, index // COLUMNS * (TILE_PX + CAPTION_PX)
        frame = ImageOps.pad(middle_frame(uri), (TILE_PX - 4, TILE_PX - 4), Image.Resampling.LANCZOS)
        sheet.paste(frame, (x + 2, y + 2))
        while text and draw.textlength(text, font) > TILE_PX - 4:
            text = text[:-1]
        draw.text((x + 2, y + TILE_PX), text, "white", font)
    return sheet
