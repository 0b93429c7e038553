"""What all commands have in common."""

import importlib

import pytest

from toonstream.cli import COMMANDS
from toonstream.errors import SettingError
from toonstream.parser import Parser


def test_an_error_is_one_line_that_names_the_help() -> None:
    parser = Parser("toonstream draw", usage="toonstream draw")
    with pytest.raises(SettingError, match=r"^unrecognized arguments: --no; see toonstream draw --help$"):
        parser.parse_args(["--no"])


def test_words_are_not_guessed() -> None:
    parser = Parser("toonstream draw", usage="toonstream draw")
    parser.add_argument("--style")
    with pytest.raises(SettingError, match="--sty"):
        parser.parse_args(["--sty", "ink"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_where_its_own_help_is(name: str) -> None:
    command = importlib.import_module(f"toonstream.commands.{name}")
    with pytest.raises(SettingError, match=f"; see toonstream {name} --help$"):
        command.run(["--no-such-option"])
