"""``llem-airflow run`` of a study, in an Airflow and a results folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llem_airflow.study import load_study_text


def run_study(home: Path, study: str, models: Path, images: dict[str, str], **more: str) -> Path:
    """Run it to its end; the folder of the run's results.

    Args:
        home: An empty folder.
        study: The text of the study.
        models: Folder of model directories.
        images: Image by engine.
        more: Further environment variables.
    """
    file = home / "study.yaml"
    file.write_text(study)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home / "airflow"),
        "LLEM_RESULTS_ROOT": str(home / "results"),
        "LLEM_MODELS_DIR": str(models),
        **{f"LLEM_IMAGE_{engine.upper()}": image for engine, image in images.items()},
        "OMP_NUM_THREADS": "1",
        **more,
    }
    done = subprocess.run(
        [str(Path(sys.executable).with_name("llem-airflow")), "run", str(file)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    (run,) = (home / "results" / load_study_text(study).name).iterdir()
    return run
