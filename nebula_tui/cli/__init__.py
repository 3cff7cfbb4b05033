"""The `nebula` command: one module per family of verbs, heavy imports only inside a verb."""
