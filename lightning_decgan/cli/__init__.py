"""The command `decgan`: train, sample, evaluate, topology. Nothing heavy is imported before a sub-command is known."""
