"""What should be, against what is: the plan, as data."""
