"""What travels into images must run in all of them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llem_airflow"
FILES = sorted(
    [PACKAGE / "__init__.py", *PACKAGE.glob("protocol/**/*.py"), *PACKAGE.glob("measurement/**/*.py")]
)
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_is_written_for_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))
    newer = {"tomllib", "enum.StrEnum", "typing.Self"}
    assert not imported(ast.parse(path.read_text())) & newer


LIBRARIES = {
    "board/__main__.py": {"pynvml"},
    "board/peer.py": {"pynvml"},
    "board/random_model.py": {"torch", "transformers"},
    "board/torch_load.py": {"torch"},
    "engines/model_source.py": {"huggingface_hub"},
    "engines/tensorrt.py": {"tensorrt_llm", "torch"},
    "engines/transformers.py": {"torch", "transformers"},
    "engines/vllm.py": {"vllm"},
    "meters/amdsmi.py": {"amdsmi"},
    "server/prompts.py": {"transformers"},
    "session/health.py": {"pynvml"},
}
"""What a file may import that only some images have."""


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_imports_the_standard_library_and_its_own_engine_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"llem_airflow"}
    if path.parent.name == "meters":
        allowed |= {"pynvml"}
    allowed |= LIBRARIES.get(f"{path.parent.name}/{path.name}", set())
    assert imported(ast.parse(path.read_text())) <= allowed
