"""Python's garbage collector, in commands that run for hours and must not stand still."""

import gc

__all__ = ["pass_over_what_is_there"]


def pass_over_what_is_there() -> None:
    """Have the collector leave alone what is there by now: call it once everything is loaded.

    Walking it all holds up every thread for a tenth of a second, and is put off for so long that what past
    sessions leave behind adds up meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # so that it counts what is left, which is nothing
