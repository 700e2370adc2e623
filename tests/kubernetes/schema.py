"""What the published OpenAPI of Kubernetes says of an object, for three versions (openapi.json)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_FILE = Path(__file__).with_name("openapi.json")
GROUPS = {"v1": "io.k8s.api.core.v1", "rbac.authorization.k8s.io/v1": "io.k8s.api.rbac.v1"}
VERSIONS = tuple(json.loads(_FILE.read_text(encoding="utf-8"))["versions"])


@cache
def _validator(version: str, kind: str) -> Draft202012Validator:
    known = json.loads(_FILE.read_text(encoding="utf-8"))["versions"]
    definitions = {**known[VERSIONS[0]], **known[version]}
    return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": definitions})


def wrong_in(made: dict[str, Any], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """What is wrong with an object that is to be made, by version."""
    kind = f"{GROUPS[made['apiVersion']]}.{made['kind']}"
    return [
        f"{version}: {error.json_path}: {error.message[:300]}"
        for version in versions
        for error in _validator(version, kind).iter_errors(made)
    ]
