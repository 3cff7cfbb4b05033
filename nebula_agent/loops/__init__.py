"""What the agent does over and over: owning replicas, obeying placements, reporting, following logs."""
