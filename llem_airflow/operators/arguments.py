"""DockerOperator's arguments: what the experiment operator makes of each, and why it refuses some.

One table serves the check at DAG parse time, the container, the page and the tests. Every argument of DockerOperator is
in it; an argument that is refused may be given with a value that asks for nothing.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from docker.errors import DockerException
from docker.types import DeviceRequest, HostConfig

OUR_LABELS = "llem."
"""Labels that begin so say whose a container is and which GPUs it holds."""


class ArgumentError(ValueError):
    """An argument of DockerOperator, or a value of it, that an experiment cannot have; the text says why."""


@dataclass(frozen=True, slots=True)
class Honoured:
    """An argument that does what it does in DockerOperator, or what the text says.

    Attributes:
        text: What it does.
        process: Whether it also counts for an experiment that runs as a process.
    """

    text: str
    process: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """An argument that cannot be given.

    Attributes:
        why: The reason.
        instead: What to do instead.
    """

    why: str
    instead: str


Table = Mapping[str, Honoured | Refused]
"""What becomes of each argument of an operator."""


_ENGINE_CLIENT = "as in DockerOperator"
_RESULT_IS_A_FILE = "the result is a file of the results store, not what the container prints"
_GONE = "the Docker client has had no such setting since version 7, and DockerOperator only warns"
_EXCHANGE = "files go in and out by the engine's archive API, with no folder of the worker"

ARGUMENTS: dict[str, Honoured | Refused] = {
    "image": Honoured("image that holds the engine; left out, the study, the host or the default name one"),
    "api_version": Honoured(_ENGINE_CLIENT, process=True),
    "command": Refused(
        "the bundle that measures is the command", "what the engine is told belongs into the study"
    ),
    "container_name": Refused(
        "the name says which try owns the container, so that a later try finds it",
        "find it by its labels: `docker ps --filter label=llem.dag_id=<dag>`",
    ),
    "cpus": Honoured("CPU shares, 1024 for each, as in DockerOperator: a weight, not a limit"),
    "docker_url": Honoured("address of the Docker engine; goes before the host's connection", process=True),
    "environment": Honoured("variables; templated; go before `env_file` and the worker's variables", process=True),
    "private_environment": Honoured(
        "variables whose values appear nowhere; go before `environment`", process=True
    ),
    "env_file": Honoured("variables as the text of a `.env` file, or the path of one; templated", process=True),
    "force_pull": Honoured("pull the image before each cycle"),
    "mem_limit": Honoured("limit of memory; there is no swap beyond it"),
    "host_tmp_dir": Refused(_EXCHANGE, "mount a folder with `mounts`"),
    "network_mode": Honoured("left out: `none` for a model that lies here, else `bridge`"),
    "tls_ca_cert": Honoured("together with the two below", process=True),
    "tls_client_cert": Honoured("together with the other two", process=True),
    "tls_client_key": Honoured("together with the two above", process=True),
    "tls_verify": Honoured("with the three above only", process=True),
    "tls_hostname": Refused(_GONE, "use a certificate for the name in `docker_url`"),
    "tls_ssl_version": Refused(_GONE, "leave it out: the newest version that both sides know is used"),
    "mount_tmp_dir": Refused(_EXCHANGE, "mount a folder with `mounts`"),
    "tmp_dir": Refused(_EXCHANGE, "the container has a tmpfs of its own; mount a folder with `mounts`"),
    "user": Honoured("left out: 65532:65532, which owns nothing"),
    "mounts": Honoured("mounts besides the model and the caches; templated"),
    "entrypoint": Honoured("what starts the bundle, whose path follows; left out: the engine's, `python3`"),
    "working_dir": Honoured("left out: /tmp"),
    "xcom_all": Refused(_RESULT_IS_A_FILE, "the task's XCom names it; the log is container.log beside it"),
    "docker_conn_id": Honoured("connection of type `docker`: the login to its registry; templated"),
    "dns": Honoured(_ENGINE_CLIENT),
    "dns_search": Honoured(_ENGINE_CLIENT),
    "auto_remove": Honoured(
        "`force` (the default here): nothing stays; `success`: as `keep_failed=True`; `never` is refused, as a later "
        "try takes over the result of a container that stayed"
    ),
    "shm_size": Honoured("size of /dev/shm; left out: the host's connection, else 1 GiB and one for each GPU"),
    "tty": Refused(
        "the log is read line by line, and a terminal puts control codes into it",
        "leave it out: output is not buffered",
    ),
    "hostname": Honoured(_ENGINE_CLIENT),
    "privileged": Honoured(
        "as in DockerOperator; the result has the flag `privileged`, since such a container reaches every GPU"
    ),
    "cap_add": Honoured("added to none: all others stay dropped"),
    "extra_hosts": Honoured(_ENGINE_CLIENT),
    "retrieve_output": Refused(_RESULT_IS_A_FILE, "read it with `llem_airflow.results`"),
    "retrieve_output_path": Refused(_RESULT_IS_A_FILE, "read it with `llem_airflow.results`"),
    "timeout": Honoured("of calls to the Docker engine, in seconds", process=True),
    "device_requests": Honoured(
        "replaces the choice of GPUs that `gpus` of the study asks for: waited for and leased as any "
        "other; recorded in provenance.json"
    ),
    "log_opts_max_size": Honoured("of the json-file log; left out: 256m"),
    "log_opts_max_file": Honoured("of the json-file log; left out: 2"),
    "ipc_mode": Honoured("as in DockerOperator; with `host` the host's /dev/shm is used, whatever `shm_size`"),
    "skip_on_exit_code": Refused(
        "a valid result counts, whatever the exit code; without one the attempt has failed",
        "leave experiments out in the study or the trigger form",
    ),
    "port_bindings": Refused("an experiment serves nothing to the outside", "`network_mode`, to reach a network"),
    "ulimits": Honoured(_ENGINE_CLIENT),
    "labels": Honoured("dict or list; go before the host's labels, name by name; `llem.` is ours"),
}  # fmt: skip
"""Every argument of DockerOperator."""


def defaults_of(operator: type, table: Table) -> dict[str, Any]:
    """The values that an operator's arguments have where they are left out."""
    parameters = inspect.signature(operator.__init__).parameters  # type: ignore[misc]  # of the class, no instance
    return {name: parameter.default for name, parameter in parameters.items() if name in table}


_DEFAULTS = defaults_of(DockerOperator, ARGUMENTS)
_AS_GIVEN = ("dns", "dns_search", "extra_hosts", "ipc_mode", "cap_add", "ulimits")
_OF_A_HOST = (*_AS_GIVEN, "mem_limit", "shm_size", "device_requests")
"""What Docker's client itself checks before it asks the engine."""
_ANY_API = "1.41"
_ASKS_FOR_NOTHING: dict[str, Any] = {**_DEFAULTS, "mount_tmp_dir": False, "port_bindings": {}}
"""Values of refused arguments that ask for what is done anyway."""


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator, those of DockerOperator that only ``default_args`` names included.

    Raises:
        ArgumentError: Some cannot be given; the text names all of them.
    """
    found = with_default_args(ARGUMENTS, arguments)
    check(found)
    return found


def with_default_args(table: Table, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator, those of a table that only ``default_args`` names included."""
    usual = arguments.get("default_args") or {}
    return {**{name: usual[name] for name in table if name in usual}, **arguments}


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse what would be ignored.

    Raises:
        ArgumentError: The text names all that is wrong.
    """
    said = {name: value for name, value in arguments.items() if name in ARGUMENTS}
    refuse([*refusals(ARGUMENTS, said, _ASKS_FOR_NOTHING), *_values(said), *our_labels(said)])


def refusals(table: Table, arguments: Mapping[str, Any], nothing: Mapping[str, Any]) -> list[str]:
    """Why arguments that a table refuses cannot be given, but for those with a value that asks for nothing."""
    return [
        f"{name}={value!r} is refused: {entry.why}. Instead: {entry.instead}"
        for name, value in arguments.items()
        if isinstance(entry := table.get(name), Refused) and value not in (None, nothing[name])
    ]


def our_labels(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of labels."""
    return [
        f"labels: {name!r} is ours: take a name that does not begin with {OUR_LABELS}"
        for name in arguments.get("labels") or ()
        if str(name).startswith(OUR_LABELS)
    ]


def refuse(wrong: Sequence[str]) -> None:
    """Raise ``ArgumentError`` with all that is wrong, if anything is."""
    if wrong:
        raise ArgumentError("; ".join(wrong))


def _values(said: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of arguments that are honoured."""
    wrong = []
    if said.get("auto_remove", "force") not in ("never", "success", "force"):
        wrong.append(f"auto_remove={said['auto_remove']!r}: allowed: 'force' or 'success'")
    if said.get("auto_remove") == "never":
        wrong.append(
            "auto_remove='never' is refused: a later try takes over the result of a container that stayed. Instead: "
            "keep_failed=True (or auto_remove='success') keeps failed ones; a good one's log and files are stored"
        )
    tls = [name for name in ("tls_ca_cert", "tls_client_cert", "tls_client_key") if said.get(name)]
    if len(tls) in (1, 2) or (not tls and said.get("tls_verify") is False):
        wrong.append(
            "tls_ca_cert, tls_client_cert and tls_client_key work together only, and tls_verify with them; found: "
            f"{', '.join(tls) or 'tls_verify=False'}"
        )
    wrong += [
        f"{name}={said[name]!r}: allowed: a number above 0"
        for name in ("cpus", "shm_size")
        if isinstance(said.get(name), int | float) and said[name] <= 0
    ]
    if not isinstance(said.get("labels") or {}, dict | list):
        wrong.append(f"labels={said['labels']!r}: allowed: a dict or a list of names")
    for name in (each for each in _OF_A_HOST if said.get(each) is not None):
        try:
            HostConfig(_ANY_API, **{name: said[name]})
        except (TypeError, ValueError, DockerException) as error:
            wrong.append(f"{name}={said[name]!r}: {error}")
    return wrong


def check_limits(*, gpu_wait_s: float | None, max_gpu_idle_s: float | None) -> None:
    """Check the numbers of seconds among the operator's own arguments.

    Raises:
        ArgumentError: One cannot be; the text says what is allowed.
    """
    if gpu_wait_s is not None and not 0 <= gpu_wait_s < math.inf:
        raise ArgumentError(f"gpu_wait_s={gpu_wait_s!r}: allowed: seconds from 0 (do not wait)")
    if max_gpu_idle_s is not None and not 0 < max_gpu_idle_s < math.inf:
        raise ArgumentError(f"max_gpu_idle_s={max_gpu_idle_s!r}: allowed: seconds above 0; None for no limit")


def host_options(operator: DockerOperator) -> dict[str, Any]:
    """The arguments that Docker's client takes for a container's host configuration, where they were given."""
    found = {name: getattr(operator, name) for name in _AS_GIVEN if getattr(operator, name)}
    if operator.cpus != _DEFAULTS["cpus"]:
        found["cpu_shares"] = round(operator.cpus * 1024)
    if operator.privileged:
        found["privileged"] = True
    return found


def device_requests(operator: DockerOperator) -> tuple[DeviceRequest, ...]:
    """The requests for devices, also those that are written as a dict of ``DeviceRequest``'s arguments."""
    asked: Sequence[Any] = operator.device_requests or ()
    return tuple(each if isinstance(each, DeviceRequest) else DeviceRequest(**each) for each in asked)


def environment(operator: DockerOperator) -> dict[str, str]:
    """The variables that an operator's arguments name, those of ``private_environment`` left out."""
    file = operator.unpack_environment_variables(operator.env_file) if operator.env_file is not None else {}
    return {
        str(name): str(value) for name, value in {**file, **operator.environment}.items() if value is not None
    }


def labels(operator: DockerOperator) -> dict[str, str]:
    """Labels as a dict; those of a list are empty, as Docker's client makes them."""
    said = operator.labels or {}
    return (
        {str(name): str(value) for name, value in said.items()}
        if isinstance(said, dict)
        else dict.fromkeys(said, "")
    )


def entrypoint(operator: DockerOperator) -> tuple[str, ...] | None:
    """The entry point's words, or None where none was given."""
    said = operator.format_command(operator.entrypoint)
    if not said:
        return None
    return tuple(shlex.split(said)) if isinstance(said, str) else tuple(said)


def without_effect(operator: DockerOperator) -> list[str]:
    """Arguments that say something of containers only and were given to an experiment that runs as a process.

    Not the image, which is for those cycles of the DAG that run in containers.
    """
    return [
        name
        for name, entry in ARGUMENTS.items()
        if isinstance(entry, Honoured)
        and not entry.process
        and name not in ("image", "auto_remove")
        and (getattr(operator, name) or None) != (_DEFAULTS[name] or None)
    ]


def table() -> str:
    """The table of the page."""
    rows = ["| argument | what becomes of it | for a process |", "|---|---|---|"]
    for name, entry in ARGUMENTS.items():
        if isinstance(entry, Honoured):
            rows.append(f"| `{name}` | {entry.text} | {'yes' if entry.process else 'no effect'} |")
        else:
            rows.append(f"| `{name}` | **refused**: {entry.why}. Instead: {entry.instead} | refused |")
    return "\n".join(rows)


if __name__ == "__main__":  # what the page holds between its markers
    print(table())  # noqa: T201  # for the person who changes the table
