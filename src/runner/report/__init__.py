"""What people look at: pages of HTML from the records of runs and sweeps. They read, and steer nothing."""
