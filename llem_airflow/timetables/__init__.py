"""When a study runs: model releases as the partitions of a DAG."""
