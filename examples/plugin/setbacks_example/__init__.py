"""A method, a judge, an engine, a study and a set of prompts, added to setbacks from outside."""
