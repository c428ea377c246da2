"""The loop of a deployed model: learn from its failures, compare models, and decide on a release.

`harvest` collects failures from chat logs (`logs`), without personal data (`redaction`), for a time
(`retention`). `rounds` trains on failures, round by round. `diff` compares two sets of results,
ours or those of other tools, prompt by prompt. `gate` decides by two arms of our runs whether a
candidate may replace a base model. `results` has one reader for each format.
"""
