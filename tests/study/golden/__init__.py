"""What the study room answers today, kept as files: a change of any of it must be seen and meant.

``python -m tests.study.golden`` writes the answers anew; the inputs stay as they are in the files, and a new case is
an input that is written into one of them. Only entry points that users have are asked: ``load_study`` and the verbs
``validate``, ``plan`` and ``schema`` of the command.

- ``*.txt``: study files and what is said of them. See :mod:`tests.study.golden.reports` for the format.
- ``plans.jsonl``: identity and plan of studies. See :mod:`tests.study.golden.plans`.
- ``schema.txt``: every key of the JSON Schema with its types, bounds and default.
- ``plan-terminal.txt``, ``plan-json.txt``: what ``plan`` prints of the studies that are shipped.
"""
