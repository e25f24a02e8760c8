"""What is looked at before a run trains, or instead of it."""
