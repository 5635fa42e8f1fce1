"""What is run: a machine's recipe, a design, guests and host programs, put together."""
