"""What a person types. Each subcommand imports what it needs when it runs, not before."""
