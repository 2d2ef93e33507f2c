"""What can be waited for, deadlines, and locks that survive a fork."""
