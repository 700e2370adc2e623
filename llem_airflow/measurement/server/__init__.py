"""An inference server as a child of the attempt: its command, its life, its metrics page, the load upon it."""
