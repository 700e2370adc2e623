"""The inside of a session: the guard of a container that lives on, and its attempts, one at a time."""
