"""From text to checked values: YAML with places, the values against the models, the whole file."""
