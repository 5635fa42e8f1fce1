"""Facts as code: encodings, numbers and names that hardware, module and kernel agree on."""
