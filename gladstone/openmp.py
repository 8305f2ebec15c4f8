"""How OpenMP's threads wait for each other, under llama.cpp and torch alike.

At the end of every operation the threads meet. Each spins until the last one comes; by default, in GNU's library, for
milliseconds. Where other work has the last one's processor, its siblings burn the time slice that it needs, at each of
a thousand operations of a token. A few hundred spins (some 15 µs) are as fast on a quiet machine, since the threads
come within them; who has not come by then is waited for asleep.
"""

import os
from collections.abc import Mapping

SPINS, WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
FEW = "300"

_chosen: list[str] = []


def wait_briefly() -> None:
    """Let OpenMP's threads spin briefly and then sleep. To be called before torch or llama.cpp is loaded.

    GNU's library reads it from the environment when it is loaded; child processes inherit it. What the user has set
    stays as it is.
    """
    if SPINS not in os.environ and WAIT_POLICY not in os.environ:
        os.environ[SPINS] = FEW
        _chosen.append(SPINS)


def users_own() -> Mapping[str, str]:
    """The environment without what `wait_briefly` put there."""
    return {name: value for name, value in os.environ.items() if name not in _chosen}
