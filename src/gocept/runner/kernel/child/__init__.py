"""A process that lives in a kernel, as runners and executors have it."""
