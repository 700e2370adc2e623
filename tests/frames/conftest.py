from __future__ import annotations

from tests.analysis.conftest import make_run
from tests.results import roots

__all__ = ["make_run", "s3_server"]

s3_server = roots.s3_server
