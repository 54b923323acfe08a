"""Pure tests: no server, no clock. Hypothesis is not timed, for the machine may be busy with other tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("asyncq", deadline=None, database=None)
settings.load_profile("asyncq")
