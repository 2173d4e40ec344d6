"""The state of all domains at a glance, from the repository, this node and the clusters."""
