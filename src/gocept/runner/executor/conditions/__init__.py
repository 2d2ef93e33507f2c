"""What a child is waited for; see `ICondition`."""
