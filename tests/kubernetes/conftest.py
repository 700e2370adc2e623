"""Tests of the extra `kubernetes`: without it there are none, except in CI, which installs it."""

from importlib.util import find_spec

from tests.parts import in_ci

if find_spec("kubernetes") or in_ci():
    from tests.kubernetes.fixtures import api, cluster, lines, runner, this_attempt

    __all__ = ["api", "cluster", "lines", "runner", "this_attempt"]
else:
    collect_ignore_glob = ["test_*.py"]
