"""Tell somebody, by any Airflow notifier, once per run: section ``[llem]`` names it by its import path."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from typing import Any

from airflow.sdk import BaseNotifier, Context, conf

log = logging.getLogger(__name__)


class NotifierSettingsError(ValueError):
    """The options ``notifier`` and ``notifier_args`` of section ``[llem]`` do not make a notifier."""


def notifier() -> BaseNotifier | None:
    """The notifier of this installation, or None when none is named.

    Raises:
        NotifierSettingsError: The text says which option is wrong and why.
    """
    path = conf.get("llem", "notifier", fallback=None)
    if not path:
        return None
    text = conf.get("llem", "notifier_args", fallback=None) or "{}"
    try:
        args = json.loads(text)
    except ValueError as error:
        raise NotifierSettingsError(f"[llem] notifier_args is no JSON object: {error}") from error
    if not isinstance(args, dict):
        raise NotifierSettingsError("[llem] notifier_args must be a JSON object of the notifier's arguments")
    module, _, name = path.rpartition(".")
    try:
        made = getattr(import_module(module), name)(**args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NotifierSettingsError(f"[llem] notifier = {path} with {sorted(args)}: {error}") from error
    if not isinstance(made, BaseNotifier):
        raise NotifierSettingsError(
            f"[llem] notifier = {path} is no Airflow notifier (a subclass of BaseNotifier)"
        )
    return made


def tell(context: Context, what: str, text: str) -> None:
    """Send a message about this run; the notifier's templates find it as ``llem_event`` and ``llem_message``.

    A notifier that does not work is logged and fails nothing: the result is what matters.
    """
    try:
        made = notifier()
        if made is None:
            log.info("no notifier is set ([llem] notifier): %s", what)
            return
        fields: dict[str, Any] = {"llem_event": what, "llem_message": text}
        made({**context, **fields})
    except Exception:  # a notifier is somebody else's code, and may fail in any way
        log.exception("the notifier failed; the message was:\n%s", text)
