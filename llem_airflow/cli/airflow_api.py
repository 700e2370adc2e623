"""A client of Airflow's REST API: what a command needs of it, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import httpx

_PATIENCE_S = 60.0


class AirflowApiError(RuntimeError):
    """Airflow did not do what it was asked for; the text says why and what to do.

    Attributes:
        status: Status of the answer, or None when there was none.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class AirflowApi:
    """The REST API of one Airflow.

    Args:
        url: Where its API server answers, without ``/api/v2``.
        token: A bearer token, or None to get one with user and password, or to go without.
        user: Name of a user.
        password: The user's password.
    """

    def __init__(
        self, url: str, *, token: str | None = None, user: str | None = None, password: str | None = None
    ) -> None:
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=_PATIENCE_S)
        self._url = url
        if token is None and user is not None:
            login = {"username": user, "password": password or ""}
            token = str(self._ask("POST", "/auth/token", json=login)["access_token"])
        if token is not None:
            self._client.headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The answer to GET below ``/api/v2``."""
        return self._ask("GET", f"/api/v2{path}", params=params)

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to POST, PUT or PATCH below ``/api/v2``."""
        return self._ask(method, f"/api/v2{path}", json=body)

    def _ask(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            text = f"no Airflow answers at {self._url} ({error}); name it by --url or AIRFLOW_URL"
            raise AirflowApiError(text) from error
        if answer.is_success:
            try:
                found: dict[str, Any] = answer.json()
            except ValueError as error:
                text = f"what answers at {self._url} is not Airflow's REST API (no JSON from {path})"
                raise AirflowApiError(text, answer.status_code) from error
            return found
        hint = {
            401: "; give AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD",
            403: "; this user may not do that",
        }.get(answer.status_code, "")
        text = f"Airflow at {self._url} answered {answer.status_code} to {method} {path}: {_detail(answer)}{hint}"
        raise AirflowApiError(text, answer.status_code)


def _detail(answer: httpx.Response) -> str:
    try:
        found = answer.json()
    except ValueError:
        return answer.text[:200]
    return str(found.get("detail", found)) if isinstance(found, dict) else str(found)
