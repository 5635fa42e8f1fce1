"""What a person sees after a run: text, JSON, and pictures, all made from a `RunResult`."""
