"""The bundle with a witness: the real attempt, and beside its own times what vLLM says about each request."""

from __future__ import annotations

import zipfile
from pathlib import Path

from llem_airflow.runners.bundle import build_bundle

WITNESSED = "engine-metrics.jsonl"

_MAIN = f"""
import json, os, sys
from vllm.v1.engine.llm_engine import LLMEngine
from llem_airflow.measurement.__main__ import main

plain = LLMEngine.step

def step(self):
    outputs = plain(self)
    for output in outputs:
        if output.finished:
            said = output.metrics
            row = dict(
                request_id=output.request_id,
                output_tokens=said.num_generation_tokens,
                queued_s=said.queued_ts,
                first_s=said.first_token_ts,
                last_s=said.last_token_ts,
            )
            with open(os.environ["LLEM_OUTPUT_DIR"] + "/{WITNESSED}", "a") as file:
                print(json.dumps(row), file=file)
    return outputs

LLMEngine.step = step
sys.exit(main())
"""


def witnessed_bundle(folder: Path) -> Path:
    """The bundle of the installed packages whose entry puts the witness there first."""
    target = folder / "witness.pyz"
    with zipfile.ZipFile(build_bundle()) as plain, zipfile.ZipFile(target, "w") as archive:
        for name in plain.namelist():
            if name != "__main__.py":
                archive.writestr(name, plain.read(name))
        archive.writestr("__main__.py", _MAIN)
    return target
