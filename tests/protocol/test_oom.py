"""Only the kernel's own counter says that it killed for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.protocol.processes import host_oom_kills, oom_kills


def tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


V2 = "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "count"),
    [
        ("0::/a/b\n", {"a/b/memory.events": V2}, 1),
        ("0::/seen/from/outside\n", {"memory.events": V2}, 1),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.oom_control": V1}, 3),
        ("5:pids:/a\n4:memory:/a\n", {"memory/a/memory.oom_control": V1}, 3),
        ("4:cpu,memory:/outside\n", {"memory/memory.oom_control": V1}, 3),
        ("0::/pod.slice:cri:c\n", {"pod.slice:cri:c/memory.events": V2}, 1),  # containerd's names hold colons
        ("0::/a\n", {}, None),
        ("", {}, None),
    ],
)
def test_the_counter_is_read_for_both_kinds_of_cgroups(
    tmp_path: Path, cgroup: str, files: dict[str, str], count: int | None
) -> None:
    tree(tmp_path / "proc", {"self/cgroup": cgroup, "vmstat": "nr_free_pages 9\noom_kill 7\n"})
    tree(tmp_path / "cgroups", {**files, "other": ""})
    assert oom_kills(proc=tmp_path / "proc", cgroups=tmp_path / "cgroups") == count
    assert host_oom_kills(tmp_path / "proc") == 7


def test_a_system_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    assert oom_kills(proc=tmp_path, cgroups=tmp_path) is None
    assert host_oom_kills(tmp_path) is None
