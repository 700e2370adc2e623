"""The images that are built here hold what the container runner counts on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import parts

GENERATE = """
import json, sys, os, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = "/models/" + os.listdir("/models")[0]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
prompt = tokenizer("Power", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4)
generated = tokens.shape[1] - prompt["input_ids"].shape[1]
print(json.dumps({"tokens": generated, "uid": os.getuid(), "home": os.environ["HOME"]}))
"""


def run(image: str, code: str, *options: str) -> Any:
    """Run Python code the way a measuring container is run; the JSON of its last line of output."""
    hardened = [
        "--network=none",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ]
    command = ["docker", "run", "--rm", *hardened, *options, image, "python3", "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def inspect(image: str) -> Any:
    return json.loads(subprocess.check_output(["docker", "image", "inspect", image], text=True))[0]


@pytest.mark.docker
def test_the_small_image_has_a_python_that_the_bundle_runs_on(python_image: str) -> None:
    code = "import json, sys, ssl, sqlite3, ctypes; print(json.dumps(sys.version_info[:2]))"
    assert run(python_image, code) >= [3, 10]


@pytest.mark.docker
@pytest.mark.engine
def test_the_cpu_image_generates_as_another_user_without_network_on_a_read_only_root(
    cpu_image: str, tiny_model: Path
) -> None:
    found = run(cpu_image, GENERATE, f"--volume={tiny_model}:/models/tiny:ro", "--env=OMP_NUM_THREADS=1")
    assert found == {"tokens": 4, "uid": 10000, "home": "/tmp"}


@pytest.mark.docker
def test_an_image_is_not_built_again_when_nothing_changed(python_image: str) -> None:
    before = inspect(python_image)["Id"]
    assert parts.build_image("debian") == python_image
    assert inspect(python_image)["Id"] == before


@pytest.mark.docker
def test_no_package_index_or_certificate_of_the_host_is_in_the_image(cpu_image: str) -> None:
    environment = inspect(cpu_image)["Config"]["Env"]
    assert not [name for name in environment if name.startswith(("PIP_", "SSL_", "UV_", "REQUESTS_"))]


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    done = subprocess.run(
        [str(parts.REPOSITORY / "images" / "build"), "gpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "unknown image 'gpu'" in done.stderr or "no Docker engine answers" in done.stderr
