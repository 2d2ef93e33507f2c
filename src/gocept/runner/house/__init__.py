"""Many workers under one roof: `up`, and what its workers are forked from."""
