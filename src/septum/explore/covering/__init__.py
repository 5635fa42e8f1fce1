"""What a search reached: calls and statuses, error paths of the host, races, contended locks."""
