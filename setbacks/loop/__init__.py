"""The loop of a deployed model: learn from its failures, compare models, and decide on a release.

harvest/    collects failures from chat logs, without personal data, and for a limited time
rounds/     trains on failures, round by round
replay/     has models answer logged conversations again
diff.py     compares two sets of results, ours or those of other tools, prompt by prompt
gate/       decides by two arms of our runs whether a candidate may replace a base model
logs.py     reads chat logs; results/ reads the results of other tools, each in its own file
"""
