"""Faults of a store: what went wrong, in one line, and what to do about it."""

from __future__ import annotations

import errno
import re

from llem_airflow.protocol.failures import causes
from llem_airflow.results.folder import StoreConnectionError, by_connection, first_line

_NO_CREDENTIALS = re.compile(
    "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|Unable to locate credentials"
)
_AWAY = re.compile("EndpointConnectionError|ConnectTimeoutError|ReadTimeoutError|ConnectionClosedError")
_NO_BUCKET = re.compile("NoSuchBucket|bucket does not exist")
_REFUSED = re.compile(
    "AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden|PermissionError|\\(403\\)"
)
_THROTTLED = re.compile("SlowDown|Throttl|reduce your request rate|TooManyRequests|\\((?:503|429)\\)")
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "s3fs"})


def why_store_fails(error: Exception, url: str = "") -> str:
    """What a store's error says and what to do, in one line.

    Args:
        error: What was raised.
        url: Of the results: whose connection, where it names one, is to be corrected.
    """
    said = getattr(error, "strerror", None) or first_line(error)
    if isinstance(error, StoreConnectionError) or getattr(error, "errno", None) in {
        errno.ENOSPC,
        errno.EDQUOT,
    }:
        return said  # it has the advice
    if url and "://" not in url:
        return said
    text = " ".join(f"{type(one).__name__}: {one}" for one in causes(error))
    conn_id = by_connection(url)[1]
    correct = f"correct the connection {conn_id!r} (Admin > Connections)" if conn_id else ""
    if _NO_CREDENTIALS.search(text):
        otherwise = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, for the worker's process, or name a "
            "connection of Airflow's in the results root (s3://conn_id@bucket/…)"
        )
        return f"{said}: the object store wants credentials, and this worker has none; {correct or otherwise}"
    if _AWAY.search(text):
        where = f"endpoint_url of the connection {conn_id!r}" if conn_id else "AWS_ENDPOINT_URL"
        return f"{said}: the object store does not answer; check its address ({where}) and the network"
    if _NO_BUCKET.search(text):
        return f"{said}: there is no such bucket; make it, or correct [llem] results_root"
    if _THROTTLED.search(text):
        return f"{said}: the object store throttles; a later try stores it"
    if _REFUSED.search(text):
        needs = "it needs read, write and list in the bucket"
        return (
            f"{said}: the store refuses this worker's credentials; {f'{correct}: ' if correct else ''}{needs}"
        )
    return said


def is_of_store(error: BaseException) -> bool:
    """Whether a store, or its client, raised it."""
    return isinstance(error, (OSError, StoreConnectionError)) or any(
        cls.__module__.partition(".")[0] in _CLIENTS for cls in type(error).__mro__
    )
