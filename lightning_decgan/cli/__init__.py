"""The command `decgan`, each sub-command in a module of its name; nothing heavy is imported before it is known."""
