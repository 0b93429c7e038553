"""The collector and what is loaded for good."""

import subprocess
import sys

PROGRAM = """
import gc
from toonstream.commands.garbage import pass_over_what_is_there
loaded = [[] for _ in range(50_000)]
pass_over_what_is_there()
assert gc.get_freeze_count() > 50_000
assert len(gc.get_objects()) < 5_000
class Node: pass
node = Node()
node.itself = node
del node
assert gc.collect() >= 1  # what comes later is still found
"""


def test_what_is_loaded_is_passed_over_and_what_comes_later_is_not() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
