"""Hypothesis' two profiles: "ci", always the same few examples, and "fuzz", many new ones.

Only "fuzz" shrinks its failures: that takes minutes if kernels are interpreted.

`make fuzz` sets HYPOTHESIS_PROFILE=fuzz and FUZZ_EXAMPLES, the examples of each test.
"""

import os

from hypothesis import HealthCheck, Phase, settings

# The interpreter is slow, and a case has many arguments; both are as they should be.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "ci", derandomize=True, max_examples=30, deadline=None, database=None,
    suppress_health_check=SLOW, phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")), deadline=None,
    print_blob=True, suppress_health_check=SLOW,
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
