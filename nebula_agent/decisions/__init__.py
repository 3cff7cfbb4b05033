"""What the agent decides, as functions of frozen facts and `now`: no process, file, socket or clock is met here."""
