"""How text is written for people: counted nouns, and what a terminal shows."""
