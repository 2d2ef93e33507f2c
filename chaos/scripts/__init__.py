"""Scripts that the random tests run as processes of their own."""
