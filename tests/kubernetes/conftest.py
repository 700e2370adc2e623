"""Tests of the extra `kubernetes`: without it there are none, except in CI, which installs it."""

from importlib.util import find_spec

from tests.parts import in_ci

if find_spec("kubernetes") or in_ci():
    from tests.kubernetes.fixtures import api, cluster, lines, runner, this_attempt
    from tests.kubernetes.tasks import config_file, on_cluster

    __all__ = ["api", "cluster", "config_file", "lines", "on_cluster", "runner", "this_attempt"]
else:
    collect_ignore_glob = ["test_*.py"]
