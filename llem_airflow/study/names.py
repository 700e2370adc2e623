"""Names of engines, meters and runners with their older spellings, of metrics, and ids of DAGs."""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.metadata import distributions

from llem_airflow.protocol.spec import METER_KINDS, METERS_GROUP

ENGINES_GROUP = "llem_airflow.engines"
OWN_ENGINES = ("transformers", "vllm", "tensorrt")


def _installed() -> dict[str, set[str]]:
    """Names of the engines and meters that packages bring, by the group of their entry points.

    Every Airflow task pays for this. ``entry_points(group=...)`` parses what all installed packages say; here only a
    text that names the group is parsed.
    """
    found: dict[str, set[str]] = {ENGINES_GROUP: set(), METERS_GROUP: set()}
    for package in distributions():
        said = package.read_text("entry_points.txt") or ""
        for group, names in found.items():
            if f"[{group}]" in said:
                names.update(one.name for one in package.entry_points.select(group=group))
    return found


_INSTALLED = _installed()
INSTALLED_ENGINES = tuple(sorted(_INSTALLED[ENGINES_GROUP] - set(OWN_ENGINES)))
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
METERS = (*METER_KINDS, *sorted(_INSTALLED[METERS_GROUP] - set(METER_KINDS)))
PEER_SAMPLERS = {"zeus": "nvml", "codecarbon": "cpu-estimate"}
"""llenergymeasure's words for a sampler that are no names of meters, and the meter of each."""
KUBERNETES = "kubernetes"
RUNNERS = ("process", "container", KUBERNETES)
RUNNER_ALIASES = {"local": "process", "docker": "container"}

METRIC_NAMES = (
    *("energy_per_output_token_j", "energy_per_total_token_j", "energy_per_request_j", "output_tokens_per_j"),
    *("energy_delay_product_j_s", "output_tokens_per_s", "total_tokens_per_s", "requests_per_s"),
    *(
        f"{m}_{of}_s"
        for m in ("ttft", "tpot", "itl", "token_gap", "e2el")
        for of in ("mean", "p50", "p90", "p95", "p99")
    ),
    *("energy_per_good_request_j", "goodput_requests_per_s", "slo_attainment_ratio"),
)
"""Metrics that a study may name: those of ``analysis.metrics`` for which less or more is better.

This package imports none of the others, so a study is checked without NumPy; a test holds the two lists together."""

PROMPT_FILES = (".jsonl", ".parquet")
HUB_DATASET = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([^:@]+))?(?::(.+))?\Z")
"""``owner/name``, with ``@revision`` and ``:file`` where wanted."""

LONGEST_DAG_ID = 238
"""Airflow has room for 250 characters; the DAGs that compare releases add up to 12 (``.compare_all``)."""
INVALID_PREFIX = "invalid."
"""Begins the id of the DAG that stands for a file with problems."""
ADHOC_DAG_ID = "llem_adhoc"
"""Id of the DAG that measures a study whose text its run is given."""
RESERVED_DAG_IDS = frozenset({ADHOC_DAG_ID, "llem_maintenance"})
"""Ids of the DAGs that are shipped: Airflow keeps one DAG of an id and drops the other."""


def canonical_key(dotted_key: str) -> str:
    """The dotted key with the engine's current name (``pytorch.x`` -> ``transformers.x``)."""
    head, dot, rest = dotted_key.partition(".")
    return f"{ENGINE_ALIASES[head]}{dot}{rest}" if head in ENGINE_ALIASES else dotted_key


def split_runner(text: str) -> tuple[str, str | None] | None:
    """``container:<image>`` -> ("container", image), likewise of a pod; None when it names no runner."""
    name, colon, image = text.partition(":")
    name = RUNNER_ALIASES.get(name, name)
    if name not in RUNNERS or (colon and (name == "process" or not image.strip())):
        return None
    return name, image.strip() or None


def dag_id_of(name: str) -> str:
    """The name itself where Airflow takes it as the id of a DAG, else one like it.

    What Airflow does not take becomes a dash; a long name is cut and ends in a part of its hash, as does one of which
    nothing readable is left.
    """
    if re.fullmatch(r"[\w.-]+", name) and len(name) <= LONGEST_DAG_ID and _readable(name):
        return name
    short = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    if not _readable(plain):
        return f"study-{short}"
    return plain if len(plain) <= LONGEST_DAG_ID else f"{plain[: LONGEST_DAG_ID - 9]}-{short}"


def plain_name(stem: str) -> str:
    """The name of a study that has only a file: ASCII letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.") or "study"


def _readable(name: str) -> bool:
    """Whether it has a letter or a digit: ``..`` is an id to Airflow and a parent folder to a URL."""
    return any(character.isalnum() for character in name)


def names_dataset(source: str) -> bool:
    """Whether a prompt source is ``owner/name``, with ``@revision`` and ``:file`` where wanted, and no local file."""
    match = HUB_DATASET.match(source)
    return match is not None and (match[3] is not None or not source.endswith(PROMPT_FILES))
