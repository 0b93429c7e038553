"""Python's garbage collector, where it would do nothing but hold things up."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["left_alone", "pass_over_what_is_there"]


@contextmanager
def left_alone() -> Iterator[None]:
    """Import what is heavy within: nothing is collected, and what is there then is passed over for good.

    A fifth of the time that it takes to import torch is spent on looking for garbage where there is none.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def pass_over_what_is_there() -> None:
    """Have the collector leave alone what is there by now: call it once everything is loaded.

    Walking it all holds up every thread for a tenth of a second, and is put off for so long that what past
    sessions leave behind adds up meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # so that it counts what is left, which is nothing
