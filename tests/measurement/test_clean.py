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


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_imports_the_standard_library_and_its_own_engine_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"llem_airflow"}
    if path.parent.name == "meters":
        allowed |= {"pynvml", *(["amdsmi"] if path.name == "amdsmi.py" else [])}
    engines = {
        "transformers.py": {"torch", "transformers"},
        "vllm.py": {"vllm"},
        "tensorrt.py": {"tensorrt_llm", "torch"},
        "model_source.py": {"huggingface_hub"},
    }
    if path.parent.name == "engines":
        allowed |= engines.get(path.name, set())
    if path.parent.name == "board":
        allowed |= {"__main__.py": {"pynvml"}, "torch_load.py": {"torch"}}.get(path.name, set())
    if path.parent.name == "server" and path.name == "tokenizer.py":
        allowed.add("transformers")
    assert imported(ast.parse(path.read_text())) <= allowed
