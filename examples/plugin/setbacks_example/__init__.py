"""An external package that adds a method, a judge, an engine, a study and a set of prompts."""
