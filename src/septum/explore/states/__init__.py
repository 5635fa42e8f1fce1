"""What a search takes for one state: shared things go by content, a task by where it stands."""
