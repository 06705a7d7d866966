"""Options made from the fields of a settings class: their defaults and help texts are those of the fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from cluster.config import Settings, parse_options
from pipelines.commands._options import with_options


class Drawing(Settings):
    """Settings of every kind of field that commands make options from."""

    title: str = Field(min_length=1, description="Text above the drawing.")
    width_px: int = Field(96, ge=1, description="Width in pixels.")
    fps: float | None = Field(None, gt=0, description="Frames per second.")
    style: Literal["ink", "oil"] = Field("ink", description="How it is drawn.")
    framed: bool = Field(True, description="Draw a frame.")
    hidden: int = Field(1, description="Not an option.")


FIELDS = ("title", "width_px", "fps", "style", "framed")


@pytest.fixture
def received() -> list[tuple[str, dict[str, Any], bool]]:
    """Return the (file, options, twice) of each call of the command."""
    return []


@pytest.fixture
def app(received: list[tuple[str, dict[str, Any], bool]]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_options(Drawing, FIELDS, optional=("title",))
    def draw(
        file: Annotated[str, typer.Argument(help="File to write.")],
        options: dict[str, Any],
        twice: Annotated[bool, typer.Option("--twice", help="Draw it twice.")] = False,
    ) -> None:
        """Draw something."""
        received.append((file, options, twice))

    return app


def test_defaults_are_those_of_the_fields(app: typer.Typer, received: list[tuple[str, dict[str, Any], bool]]) -> None:
    result = CliRunner().invoke(app, ["a.png"])
    assert result.exit_code == 0, result.output
    expected = {"title": None, "width_px": 96, "fps": None, "style": "ink", "framed": True}
    assert received == [("a.png", expected, False)]


def test_options_of_every_type_are_parsed(app: typer.Typer, received: list[tuple[str, dict[str, Any], bool]]) -> None:
    values = ["--title", "a heron", "--width-px", "7", "--fps", "23.5", "--style", "oil", "--no-framed"]
    result = CliRunner().invoke(app, [*values, "a.png", "--twice"])
    assert result.exit_code == 0, result.output
    expected = {"title": "a heron", "width_px": 7, "fps": 23.5, "style": "oil", "framed": False}
    assert received == [("a.png", expected, True)]
    assert parse_options(Drawing, received[0][1]) == Drawing(**expected)


@pytest.mark.parametrize(
    "arguments", [["--width-px", "wide"], ["--style", "chalk"], ["--hidden", "2"], ["--options", "x"]], ids=" ".join
)
def test_other_values_and_options_are_refused(
    app: typer.Typer, received: list[tuple[str, dict[str, Any], bool]], arguments: list[str]
) -> None:
    assert CliRunner().invoke(app, ["a.png", *arguments]).exit_code == 2
    assert received == []


def test_a_required_field_makes_a_required_option(received: list[tuple[str, dict[str, Any], bool]]) -> None:
    app = typer.Typer()

    @app.command()
    @with_options(Drawing, ("title",))
    def draw(options: dict[str, Any]) -> None:
        received.append(("", options, False))

    assert CliRunner().invoke(app, []).exit_code == 2
    assert received == []
    assert CliRunner().invoke(app, ["--title", "a heron"]).exit_code == 0
    assert received == [("", {"title": "a heron"}, False)]


def test_help_shows_the_descriptions_of_the_fields(app: typer.Typer) -> None:
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output.split())
    assert "Draw something." in shown
    for name in FIELDS:
        assert str(Drawing.model_fields[name].description) in shown
    assert "Not an option." not in shown
