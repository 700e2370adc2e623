from __future__ import annotations

import re
from pathlib import Path

from tests.measurement.running import ROOT, run, spec_of


def test_the_engine_of_the_documentation_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "llem_airflow" / "measurement" / "engines" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    entry = re.search(r"\necho = \"(.*?)\"", text)
    assert code is not None
    assert entry is not None
    site = tmp_path / "site"
    info = site / "echo_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "echo_engine.py").write_text(code.group(1))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llem_airflow.engines]\necho = {entry.group(1)}\n")
    spec = spec_of("echo", {"engine_params": {"step_s": 0.001}})
    ran = run(spec, tmp_path, PYTHONPATH=f"{ROOT}:{site}")
    assert ran.result.engine_version == "1.0", ran.stdout
    assert len(code.group(1).splitlines()) <= 30
