"""The command `decgan`: each sub-command in a module of its name. Nothing heavy is imported before a sub-command is known."""
