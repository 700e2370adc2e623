"""What engines compile or inspect at their start, kept between containers; the measured window never sees it."""

from __future__ import annotations

from pathlib import PurePosixPath

ENGINE_CACHE = PurePosixPath("/engine-cache")
"""Where the volume of the engines' caches is mounted."""

_VARIABLES = {
    "VLLM_CACHE_ROOT": "vllm",  # inspected models, compiled graphs
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    # Compiled engines; the engine's module adds the GPU's name, which the library's own key lacks.
    "TLLM_LLMAPI_BUILD_CACHE_ROOT": "tensorrt-llm",
    "CUDA_CACHE_PATH": "cuda",
}


def engine_cache(engine: str, user: str) -> PurePosixPath:
    """The folder of an engine's caches in the volume: of each user its own, as none could write what another made.

    Args:
        engine: Name of the engine.
        user: ``uid[:gid]`` in the container.
    """
    return ENGINE_CACHE / f"{engine}-{user.partition(':')[0]}"


def cache_environment(folder: PurePosixPath) -> dict[str, str]:
    """The variables that lead the engines' caches into a folder."""
    return {variable: str(folder / name) for variable, name in _VARIABLES.items()}
