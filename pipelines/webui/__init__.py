"""What the A1111 web UI means by its words: prompts, samplers, seeds, masks. Formulas and facts."""
