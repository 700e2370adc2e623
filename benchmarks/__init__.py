"""Speed and accuracy against peers; programs that print their tables, never timed tests."""
