"""The loop of a deployed model: compare what two models did, and decide whether to release.

`diff` compares two sets of results, ours or those of other tools, prompt by prompt; `gate` decides
by two arms of our runs whether a candidate may replace a base model. `results` has one reader for
each format.
"""
