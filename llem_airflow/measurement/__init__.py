"""The inside: what runs next to the engine, in the container or in a process of its own.

The standard library, the engine and NVML only, and Python 3.10-clean: it travels as a bundle into any image
that holds an engine. It observes and writes raw rows; every metric is derived outside.
"""
