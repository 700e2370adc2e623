"""Apache Airflow provider for LLM-inference energy benchmarks."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """What Airflow asks a provider: operators and the ``[llem]`` section of its configuration."""
    return {
        "package-name": "llem-airflow",
        "name": "LLM energy benchmarks",
        "description": "Energy benchmarks of LLM inference: a study file becomes a DAG of GPU containers.",
        "versions": [__version__],
        "integrations": [{"integration-name": "LLEM", "tags": ["software"]}],
        "operators": [
            {
                "integration-name": "LLEM",
                "python-modules": [
                    "llem_airflow.operators.experiment",
                    "llem_airflow.operators.aggregate",
                    "llem_airflow.operators.compare",
                    "llem_airflow.operators.kubernetes",  # with the extra of that name
                    "llem_airflow.operators.maintenance",
                    "llem_airflow.operators.plan",
                    "llem_airflow.operators.prefetch",
                    "llem_airflow.operators.session",
                ],
            }
        ],
        "connection-types": [_connection_type()],
        "triggers": [
            {
                "integration-name": "LLEM",
                "python-modules": [
                    "llem_airflow.operators.waits",
                    "llem_airflow.operators.pod_trigger",  # with the extra `kubernetes`
                ],
            },
        ],
        "extra-links": [
            "llem_airflow.operators.ui.ReportLink",
            "llem_airflow.operators.ui.EvidenceLink",
        ],
        "config": {
            "llem": {
                "description": "Energy benchmarks of LLM inference.",
                "options": {
                    "results_root": _option(
                        "Where results are stored: a folder or an fsspec URL. "
                        "Unset: the variable LLEM_RESULTS_ROOT, then ./results.",
                        example="/srv/llem/results",
                    ),
                    "models_dir": _option(
                        "Folder of model directories; a study's model name is looked up here before the hub. "
                        "Unset: the variable LLEM_MODELS_DIR.",
                        example="/srv/llem/models",
                    ),
                    "host_models_dir": _option(
                        "The same folder as the Docker engine's host sees it, or the name of a volume. "
                        "Unset: the variable LLEM_HOST_MODELS_DIR, then models_dir.",
                        example="llem-models",
                    ),
                    "hub_cache": _option(
                        "Volume or host folder that keeps models fetched from the hub.",
                        default="llem-hub-cache",
                    ),
                    "engine_cache": _option(
                        "Volume or host folder that keeps what engines compile at their start. May be removed at any "
                        "time; the next containers then start slower.",
                        default="llem-engine-cache",
                    ),
                    "python": _option(
                        "Interpreter of the process runner; it must have the engine installed. "
                        "Unset: the one that runs Airflow.",
                        example="/opt/engines/bin/python",
                    ),
                    "runners": _option(
                        "Runner by engine where neither the study, the host's connection nor the worker's variable "
                        "LLEM_RUNNER_<ENGINE> names one: a JSON object in the words of a study file.",
                        example='{"vllm": "docker:registry/vllm:1", "pytorch": "local"}',
                    ),
                    "hosts": _option(
                        "Connections of type llem, separated by commas: the GPU hosts that the maintenance DAG cleans, "
                        "and that commands look at besides those in Airflow's database. Unset: llem_default.",
                        example="gpu1, gpu2",
                    ),
                    "clusters": _option(
                        "Kubernetes clusters, separated by commas: connections of type kubernetes, each with a "
                        "namespace after a slash where it is not the connection's own. The maintenance DAG cleans "
                        "them, and commands look at them. Unset: none.",
                        example="kubernetes_default/benchmarks",
                    ),
                    "plan_cache": _option(
                        "Folder of expanded studies: a worker reads its experiment there instead of expanding the "
                        "whole study before every task. May be removed at any time. Unset: llem-plans in AIRFLOW_HOME.",
                        example="/var/cache/llem-plans",
                    ),
                    "unstored": _option(
                        "Folder of each worker where results lie that could not be stored, until the next try or "
                        "`llem-airflow results recover` stores them. Unset: llem-unstored in AIRFLOW_HOME.",
                        example="/var/lib/llem-unstored",
                    ),
                    "notifier": _option(
                        "Import path of an Airflow notifier that is told what a study's `notify_on` asks for.",
                        example="airflow.providers.smtp.notifications.smtp.SmtpNotifier",
                    ),
                    "notifier_args": _option(
                        "Its arguments as a JSON object; templates find {{ llem_event }} and {{ llem_message }}.",
                        example='{"to": "lab@example.org", "subject": "{{ dag.dag_id }}: {{ llem_event }}", '
                        '"html_content": "<pre>{{ llem_message }}</pre>"}',
                    ),
                    "installation": _option(
                        "Tells two Airflows apart that share one Docker engine. Unset: what the Variable "
                        "llem_installation says, into which the first run puts a name made from AIRFLOW_HOME and the "
                        "address of the API server; name it where both are the same, as in two Compose stacks.",
                        example="lab-a",
                    ),
                },
            }
        },
    }


def _connection_type() -> dict[str, Any]:
    """The form of a GPU host; Airflow draws it from here, without importing the hook."""
    return {
        "connection-type": "llem",
        "hook-class-name": "llem_airflow.operators.host.LLEMHostHook",
        "hook-name": "LLEM GPU host",
        "conn-fields": {
            "queue": _field("Queue", "Airflow queue whose workers measure on this host: gpu1"),
            "pool": _field("Pool", "Airflow pool of its cycles, a slot for each GPU: gpu1"),
            "gpu_kinds": _field(
                "Kinds of GPU", "Names of its kinds of GPU as nvidia-smi has them: NVIDIA A100-SXM4-80GB"
            ),
            "registry": _field("Registry", "Registry of images that nobody names: registry.lab:5000"),
            "tls_ca_cert": _field(
                "TLS authority", "File of the authority of the engine's certificate, on workers and triggerer"
            ),
            "tls_client_cert": _field("TLS certificate", "File of the client's certificate, likewise"),
            "tls_client_key": _field("TLS key", "File of its key, likewise"),
            "tls_verify": _field(
                "Check the certificate",
                "Whether the engine's certificate is checked: true or false",
                "boolean",
            ),
            "labels": _field("Labels", 'JSON object: labels of every container, {"ds01.user": "ada"}'),
            "cgroup_parent": _field("Cgroup parent", "Cgroup below which containers are put: ds01.slice"),
            "gpu_quota": _field(
                "GPU quota", "GPUs that containers of ours may hold at the same time", "integer"
            ),
            "shm_size": _field("Shared memory", "Size of /dev/shm: 1g"),
            "images": _field("Images", 'JSON object: image by engine, {"vllm": "registry/vllm:1"}'),
            "runners": _field(
                "Runners",
                'JSON object: runner by engine, {"vllm": "docker:registry/vllm:1", "pytorch": "local"}',
            ),
            "gpu_wait_s": _field(
                "GPU wait", "How long to wait for GPUs, in seconds; 0 for not at all", "number"
            ),
            "max_runtime_s": _field("Longest runtime", "Longest life of a container, in seconds", "number"),
            "max_idle_s": _field("Longest silence", "Longest time without output, in seconds", "number"),
            "max_gpu_idle_s": _field(
                "Longest GPU idle time",
                "Longest time in which the GPUs compute nothing, in seconds",
                "number",
            ),
            "keep_failed": _field(
                "Keep failed",
                "Stop failed containers and keep them, to be looked at: true or false",
                "boolean",
            ),
        },
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login"],
            "relabeling": {
                "host": "Docker engine",
                "port": "Port of a host that names none (2375)",
                "password": "Hub token (HF_TOKEN)",
            },
            "placeholders": {"host": "tcp://gpu1:2376, ssh://ada@gpu1 or unix:///var/run/docker.sock"},
        },
    }


def _field(label: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"]}}


def _option(description: str, *, default: str | None = None, example: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "type": "string",
        "version_added": __version__,
        "default": default,
        "example": example,
    }
