"""Memory is returned to the system. This is tested in a separate process, with the settings of the allocator in
serve_config.yaml."""

from __future__ import annotations

import os

from tests.graph import serve_config
from tests.test_structure import run_python

PROGRAM = """
import numpy as np
from deployments.memory import KEPT_MIB, Memory, private_mib

memory, start = Memory(), private_mib()
needed = [np.ones(2**20) for _ in range(100)]
last = bytes(100_000)
del needed
held = private_mib() - start
memory.give_back()
given_back = private_mib() - start

few = [np.ones(2**20) for _ in range(10)]
last = bytes(100_000)
del few
memory.give_back()
print(held, given_back, private_mib() - start)
"""


def test_what_one_recording_needed_is_given_back_and_a_little_is_kept() -> None:
    environment = serve_config()["applications"][0]["runtime_env"]["env_vars"]
    held, given_back, kept = map(int, run_python(PROGRAM, os.environ | environment).split())
    assert held > 700, "without `give_back` the allocator keeps all memory for the next request"
    assert given_back < 50
    assert kept > 50, "a little is kept, because asking the system for it again takes time"
