"""The engines' public calls as they were when this was written, one JSON file per engine."""
