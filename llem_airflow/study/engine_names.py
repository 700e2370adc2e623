"""Names of engines and runners, with the older spellings that study files still use."""

from __future__ import annotations

from importlib.metadata import distributions

GROUP = "llem_airflow.engines"
OWN_ENGINES = ("transformers", "vllm", "tensorrt")


def _installed() -> set[str]:
    """Names of the engines that packages bring.

    Every Airflow task pays for this. ``entry_points(group=...)`` parses what all installed packages say; here only a
    text that names the group is parsed.
    """
    return {
        one.name
        for package in distributions()
        if f"[{GROUP}]" in (package.read_text("entry_points.txt") or "")
        for one in package.entry_points.select(group=GROUP)
    }


INSTALLED_ENGINES = tuple(sorted(_installed() - set(OWN_ENGINES)))
"""Names of third parties' engines whose packages are installed here."""

ENGINES = (*OWN_ENGINES, *INSTALLED_ENGINES)
ENGINE_ALIASES = {
    "pytorch": "transformers",
    "huggingface": "transformers",
    "hf": "transformers",
    "tensorrt-llm": "tensorrt",
    "tensorrt_llm": "tensorrt",
    "trtllm": "tensorrt",
}
RUNNERS = ("process", "container")
RUNNER_ALIASES = {"local": "process", "docker": "container"}


def canonical_key(dotted_key: str) -> str:
    """The dotted key with the engine's current name (``pytorch.x`` -> ``transformers.x``)."""
    head, dot, rest = dotted_key.partition(".")
    return f"{ENGINE_ALIASES[head]}{dot}{rest}" if head in ENGINE_ALIASES else dotted_key


def split_runner(text: str) -> tuple[str, str | None] | None:
    """``container:<image>`` -> ("container", image); None when it names no runner."""
    name, colon, image = text.partition(":")
    name = RUNNER_ALIASES.get(name, name)
    if name not in RUNNERS or (colon and (name != "container" or not image.strip())):
        return None
    return name, image.strip() or None
