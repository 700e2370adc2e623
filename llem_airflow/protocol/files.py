"""Names of the files that cross the boundary, and where they lie."""

EXCHANGE_DIR = "/run/llem"
"""Where the exchange volume is mounted in the container."""

ENV_CONFIG_PATH = "LLEM_CONFIG_PATH"
ENV_OUTPUT_DIR = "LLEM_OUTPUT_DIR"

BUNDLE = "llem.pyz"
OUT_DIR = "out"

EVENTS = "events.jsonl"
POWER = "power.csv"
REQUESTS = "requests.jsonl"

SERVER_LOG = "server.log"
SERVER_METRICS = "server.csv"
LOAD_PLAN = "load.json"
"""Of a server under load: what it printed, its metrics page once a second, and the schedule made before the window."""

POWER_CHECK = "power_check.csv"
METER_CHECK = "meter_check.json"
"""A second sampler's rows of the same window, and its Meter: put beside the others by whoever ran both."""
ENVIRONMENT = "environment.json"


def config_name(experiment_hash: str) -> str:
    """File name of the spec that goes in."""
    return f"{experiment_hash}_config.json"


def result_name(experiment_hash: str) -> str:
    """File name of the result; present and valid means that the attempt succeeded."""
    return f"{experiment_hash}_result.json"


def error_name(experiment_hash: str) -> str:
    """File name of the structured error of a failed attempt."""
    return f"{experiment_hash}_error.json"
