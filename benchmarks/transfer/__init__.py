"""Transfer: does combining prompts win, by which weights, and which metric would have known?"""
