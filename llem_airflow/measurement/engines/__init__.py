"""One module per engine. Each is imported only when its name is chosen, because each import is heavy."""
