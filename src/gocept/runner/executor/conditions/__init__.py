"""Conditions: what an executor waits for; see `ICondition`."""
