"""The profiles of boards' power meters that are kept beside the studies, by UUID."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.protocol.typed_json import ProtocolError, to_json
from llem_airflow.results.folder import Folder, ResultReadError
from llem_airflow.results.layout import GPU_PROFILES_DIR, folder_name


def write_profile(root: Folder, profile: GpuProfile, pages: dict[str, str]) -> Folder:
    """Keep a board's profile and its pages, by the ending of their names such as ``html``; an earlier one goes.

    Raises:
        ResultsWriteError: It cannot be written.
    """
    folder = root.child(GPU_PROFILES_DIR)
    for ending, text in pages.items():
        folder.write(f"{folder_name(profile.uuid)}.{ending}", text.encode())
    folder.write(f"{folder_name(profile.uuid)}.json", profile.dumps().encode())
    return folder


def read_profile(root: Folder, uuid: str) -> GpuProfile | None:
    """The profile of a board; None when there is none.

    Raises:
        ResultReadError: It is damaged.
    """
    folder, name = root.child(GPU_PROFILES_DIR), f"{folder_name(uuid)}.json"
    if not folder.exists(name):
        return None
    try:
        return GpuProfile.loads(folder.read_evidence(name), f"{folder.url}/{name}")
    except ProtocolError as error:
        raise ResultReadError(str(error)) from error


def sensors_for(root: Folder, uuids: Iterable[str]) -> dict[str, Any]:
    """What provenance.json carries of the profiles of boards, by UUID, so that reading it again gives the same numbers.

    A damaged profile is carried as the reason why it was not used: it must not keep a result from being stored.
    """
    found: dict[str, Any] = {}
    for uuid in uuids:
        try:
            profile = read_profile(root, uuid)
        except (ResultReadError, OSError) as error:
            found[uuid] = {"problem": str(error)}
            continue
        if profile is not None:
            found[uuid] = {
                "driver": profile.driver,
                "made_epoch_ns": profile.made_epoch_ns,
                "made_by": profile.made_by,
                **to_json(profile.sensor),
            }
    return found
