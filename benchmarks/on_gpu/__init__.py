"""Everything that a first visit to a machine with a real GPU should do, unattended, in under nine minutes."""
