"""What a study file may say: pydantic models. The class is check, default, JSON Schema and documentation at once."""
