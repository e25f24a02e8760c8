"""What each group of the config becomes, and what is checked of it."""
