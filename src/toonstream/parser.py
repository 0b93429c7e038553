"""How every command reads its words."""

import argparse
from typing import NoReturn

from toonstream.errors import SettingError

__all__ = ["Parser"]

_WIDTH = 80  # columns of a help


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, the help being one screen away.

    Args:
        prog: the command, as people type it.
        usage: its first lines of help.
        description: what comes next, laid out as it is.
        epilog: what comes last, likewise.
        column: at which the help of options begins.
    """

    def __init__(
        self,
        prog: str,
        *,
        usage: str,
        description: str | None = None,
        epilog: str | None = None,
        column: int = 26,
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            add_help=False,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=column, width=_WIDTH
            ),
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where the help is.

        Raises:
            SettingError: always.
        """
        raise SettingError(f"{message}; see {self.prog} --help")
