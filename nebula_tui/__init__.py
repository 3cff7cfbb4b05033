"""The terminal: dashboards, logs, chat and actions, and the `nebula` command."""
