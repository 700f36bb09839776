"""Learning: where prompts learn, from which start, and what it takes."""
