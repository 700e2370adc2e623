"""Stranded results in pods: measured and finished, still with the pod's keeper, and no task comes back for them.

The keeper has them for an hour after the attempt's end; with it the volume goes, and what was measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api

from llem_airflow.protocol.redaction import secrets_in
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.cluster import API_ERRORS, Cluster, ExecError, PodGoneError
from llem_airflow.runners.cluster_gc import attempt_in
from llem_airflow.runners.ending import CONTAINER_LOG, read_result
from llem_airflow.runners.exchange import CollectError
from llem_airflow.runners.gc import Leftover
from llem_airflow.runners.kubernetes import gpus_seen
from llem_airflow.runners.output import LogSink
from llem_airflow.runners.pod_log import QUIET_S, collect, read_all
from llem_airflow.runners.pod_spec import KEEPER, TELLS, container_in
from llem_airflow.runners.pod_status import image_of, is_over, main_state, told_of
from llem_airflow.runners.stranded import Stranded, record_of, stored_once

_PATIENCE_S = 30.0
_LOG_BYTES = 64 * 1024 * 1024
_REFUSED = (*API_ERRORS, CollectError, ExecError)


@dataclass(frozen=True, slots=True)
class PodRecovery:
    """Looks into pods that nobody owns, and stores the finished results that the store lacks.

    Attributes:
        api: The API server.
        namespace: Where the pods are.
        root: The store.
        store: Whether to store them; else they are only looked at.
    """

    api: CoreV1Api
    namespace: str
    root: ResultsRoot
    store: bool = True

    def results(self, leftovers: Iterable[Leftover]) -> Iterator[Stranded]:
        """Each finished result; its pod goes when it is stored.

        Args:
            leftovers: Of ``cluster_gc.leftovers_among``.

        Raises:
            kubernetes.client.exceptions.ApiException: The API server refused.
            urllib3.exceptions.HTTPError: It does not answer.
        """
        cluster = Cluster(self.api, self.namespace, _PATIENCE_S)
        for one in leftovers:
            if one.kind != "pod":
                continue
            try:
                pod = cluster.pod(one.name)
            except PodGoneError:
                continue
            if is_over(pod, attempt_in(pod)) and main_state(pod, KEEPER, "running"):
                yield from self._in(cluster, one.name, pod)

    def _in(self, cluster: Cluster, name: str, pod: Mapping[str, Any]) -> Iterator[Stranded]:
        labels = told_of(pod["metadata"])
        known = f"{labels.get('llem.experiment')} cycle {labels.get('llem.cycle')}"
        variables = container_in(pod, attempt_in(pod)).get("env") or []
        secret = [each["name"] for each in variables if "secretKeyRef" in (each.get("valueFrom") or {})]
        with tempfile.TemporaryDirectory(prefix="llem-stranded-") as scratch:
            folder = Path(scratch)
            try:
                told = json.loads(self._said(cluster, name, [TELLS, *secret]))
                if unread := [each for each in secret if told["variables"].get(each) is None]:
                    why = f"the values of {', '.join(unread)} cannot be kept out of the store, as it does not tell them"
                    yield Stranded(name, known, why_not=why, kind="pod")
                    return
                plain = {each["name"]: str(each.get("value", "")) for each in variables}
                secrets = [*secrets_in(plain), *told["variables"].values()]
                with LogSink(folder / CONTAINER_LOG, lambda _: None, secrets, _LOG_BYTES) as sink:
                    collect(cluster, name, folder, sink.redactor)
                    spec = ExperimentSpec.loads(told["spec"], name)
                    result = read_result(folder, spec)
                    read_all(cluster, name, attempt_in(pod), sink)
                (folder / told["name"]).write_text(told["spec"], encoding="utf-8")
            except ProtocolError:
                return  # it has no result
            except _REFUSED as error:
                yield Stranded(
                    name, known, why_not=f"its files could not be brought out: {error}", kind="pod"
                )
                return
            state = main_state(pod, attempt_in(pod), "terminated") or {}
            seen = {
                "runner": "kubernetes",
                "start_kind": "fresh",
                "exit_code": state.get("exitCode"),
                "image": container_in(pod, attempt_in(pod)).get("image"),
                "image_digest": image_of(pod, attempt_in(pod)),
                "host": {"name": pod["spec"].get("nodeName"), "namespace": self.namespace, "pod": name},
                "gpus": list(gpus_seen(folder)),
            }
            found = stored_once(
                self.root, Stranded(name, "", kind="pod"), labels["llem.run_id"], folder, spec,
                lambda _: record_of(labels, spec, result) | seen, store=self.store,
            )  # fmt: skip
        if found is not None:
            yield found
        if self.store and (found is None or found.stored):
            cluster.remove(name, owner=None)

    def _said(self, cluster: Cluster, name: str, arguments: list[str]) -> bytes:
        return b"".join(cluster.output_of(name, KEEPER, ["python3", "-c", *arguments], QUIET_S))
