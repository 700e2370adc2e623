"""Readings of a board's power meter under a load whose edges are known, for ``llem-airflow gpu-check``.

Standard library, nvidia-ml-py, and PyTorch in the process of the load only.
"""
