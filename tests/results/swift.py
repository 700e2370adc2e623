"""OpenStack Swift on this machine, one node, with its S3 API: an object store that people run."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp

import requests

from tests import parts
from tests.chaos.world import wait_for

VERSION = "2.38.3"
KEY, SECRET = "test:tester", "testing"
_HOME = parts.REPOSITORY / "build" / f"swift-{VERSION}"
_COMMON = """\
[swift-hash]
swift_hash_path_prefix = llem
swift_hash_path_suffix = llem
[storage-policy:0]
name = one
default = yes
"""
_STORES = """\
[DEFAULT]
devices = {folder}/nodes
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
log_address = {folder}/log
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = f"""\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {{port}}
workers = 0
swift_dir = {{folder}}
log_address = {{folder}}/log
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
[filter:slo]
use = egg:swift#slo
[filter:tempauth]
use = egg:swift#tempauth
user_{KEY.replace(":", "_")} = {SECRET} .admin
"""
_RINGS = """\
import sys
from swift.common.ring import RingBuilder
for each in sys.argv[2:]:
    kind, port = each.split("=")
    ring = RingBuilder(4, 1, 1)
    place = {"ip": "127.0.0.1", "port": int(port)}
    of_replication = {f"replication_{name}": value for name, value in place.items()}
    ring.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1, **place, **of_replication})
    ring.rebalance()
    ring.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
"""Where each kind of thing lies: all on the one node."""
_SERVE = """\
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[1])
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(sys.argv[2], sys.argv[3]))
"""


def _python() -> str:
    """A Python with Swift, of its own: its pins are not the suite's."""
    python = _HOME / "bin" / "python"
    _HOME.parent.mkdir(exist_ok=True)
    with _HOME.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        if not (_HOME / "done").exists():
            try:
                _uv(["venv", "-q", "--clear", str(_HOME)])
                _uv(["pip", "install", "-q", "--python", str(python), f"swift=={VERSION}", "setuptools<80"])
            except (OSError, subprocess.CalledProcessError) as error:
                parts.missing(f"OpenStack Swift cannot be installed: {error}")
            (_HOME / "done").touch()
    return str(python)


def _uv(words: list[str]) -> None:
    """Run uv."""
    subprocess.run([sys.executable, "-m", "uv", *words], check=True)


@contextmanager
def swift() -> Iterator[str]:
    """A store that knows ``KEY`` and ``SECRET`` and refuses others; the URL of its S3 API."""
    python, folder = _python(), Path(mkdtemp(prefix="llem-swift-"))
    ports = {kind: parts.free_port() for kind in ("account", "container", "object", "proxy")}
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "swift.conf").write_text(_COMMON)
        (folder / "nodes" / "d1").mkdir(parents=True)
        for kind, port in ports.items():
            conf = _PROXY if kind == "proxy" else _STORES
            (folder / f"{kind}.conf").write_text(conf.format(kind=kind, port=port, folder=folder))
        stores = [f"{kind}={port}" for kind, port in ports.items() if kind != "proxy"]
        subprocess.run([python, "-c", _RINGS, str(folder), *stores], check=True, timeout=300)
        for kind in ports:
            log = undo.enter_context((folder / f"{kind}.log").open("wb"))
            command = [python, "-c", _SERVE, str(folder), str(folder / f"{kind}.conf"), f"{kind}-server"]
            server = subprocess.Popen(command, stdout=log, stderr=log)
            undo.callback(server.wait)
            undo.callback(server.kill)
        url = f"http://127.0.0.1:{ports['proxy']}"
        wait_for(lambda: _answers(url), 120)
        yield url


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code < 500
    except requests.ConnectionError:
        return False
