"""environment.json: everything that decides whether two results may be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from llem_airflow.measurement.engines.contract import EngineFacts
from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.redaction import is_secret_name
from llem_airflow.protocol.result import Anchor
from llem_airflow.protocol.typed_json import to_json

SETTINGS = re.compile(
    r"^(OMP_|KMP_|GOMP_|MKL_|OPENBLAS_|CUDA_|NVIDIA_|PYTORCH_|TORCH|NCCL_|VLLM_|TLLM_|TRTLLM_|TOKENIZERS_|HF_HUB_OFFLINE|"
    r"TRANSFORMERS_|FLASHINFER_|TRITON_|MALLOC_|LD_PRELOAD|LLEM_IMAGE)"
)


def environment(
    *,
    engine: str,
    facts: EngineFacts | None,
    settings: dict[str, str],
    gpus: list[dict[str, Any]],
    gpus_after: list[dict[str, Any]],
    anchors: list[Anchor],
) -> dict[str, Any]:
    """What the attempt ran on and with. Unknown is null.

    Args:
        engine: The engine's name.
        facts: What the loaded engine says; None before it is loaded.
        settings: What ``settings`` gave at the start, before an engine wrote its own into the environment.
        gpus: What the sampler said of the GPUs first.
        gpus_after: What it says of them now: new ECC errors, other limits, foreign processes.
        anchors: Instants on both clocks.
    """
    return {
        "schema_version": PROTOCOL_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cpu": _cpu(),
        "memory_total_bytes": _memory_total_bytes(),
        "boot_id": boot_id(),
        "time_namespace_offsets": _read("/proc/self/timens_offsets"),
        "cgroup": _cgroup(),
        "engine": engine,
        "engine_version": facts.version if facts else None,
        "engine_settings": facts.settings if facts else None,
        "libraries": _versions(facts.libraries if facts else ()),
        "cuda": _cuda(),
        "gpus": gpus,
        "gpus_after": gpus_after,
        "driver": next((gpu.get("driver_version") for gpu in gpus if gpu.get("driver_version")), None),
        "model": facts.model if facts else None,
        "settings": settings,
        "anchors": [to_json(one) for one in anchors],
        # Only the outside knows which image this is.
        "image": None,
        "image_digest": None,
    }


def boot_id() -> str | None:
    """Tells one boot of this host from another; the same in all its containers."""
    return _read("/proc/sys/kernel/random/boot_id")


def bundle_sha256() -> str | None:
    """Hash of the members of the bundle that this runs from; None outside one.

    Formula: sha256 over the lines "name CRC-32 size", sorted. The names and contents decide, not how they were packed.
    """
    bundle = Path(__file__).parents[2]  # the folder of the package, or llem.pyz itself
    if not bundle.is_file():
        return None
    with zipfile.ZipFile(bundle) as archive:
        lines = sorted(f"{one.filename} {one.CRC:08x} {one.file_size}\n" for one in archive.infolist())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def settings() -> dict[str, str]:
    """Environment variables that change how an engine runs; never a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if SETTINGS.match(name) and not is_secret_name(name)
    }


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cpu() -> dict[str, Any]:
    text = _read("/proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "model": model.group(1) if model else None,
        "count": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average_1min": os.getloadavg()[0],
    }


def _memory_total_bytes() -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _cgroup() -> dict[str, Any]:
    """CPU and memory limits of this container; null is unlimited or unknown."""
    quota = _read("/sys/fs/cgroup/cpu.max")
    if quota is None:
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
        quota = f"{_read('/sys/fs/cgroup/cpu/cpu.cfs_quota_us')} {period}"
    memory = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    return {"cpus": _cpus(quota), "memory_bytes": _limit_bytes(memory)}


def _cpus(quota: str) -> float | None:
    parts = quota.split()
    if len(parts) != 2 or not parts[0].isdigit() or not parts[1].isdigit():
        return None
    return int(parts[0]) / int(parts[1])


def _limit_bytes(text: str | None) -> int | None:
    # cgroup v1 writes "unlimited" as a number close to 2**63.
    if text is None or not text.isdigit() or int(text) > 1 << 60:
        return None
    return int(text)


def _versions(names: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _cuda() -> dict[str, Any]:
    # torch is looked at only when the engine has imported it already.
    torch = sys.modules.get("torch")
    if torch is None:
        return {"available": None, "version": None, "cudnn": None}
    available = bool(torch.cuda.is_available())
    return {
        "available": available,
        "version": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if available else None,
    }
