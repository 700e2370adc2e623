"""The boundary: what crosses into and out of an experiment's container.

Standard library only and Python 3.10-clean, because this code runs inside whatever image holds the engine.

Version history of the protocol:
    1: first version.
"""

PROTOCOL_VERSION = 1
