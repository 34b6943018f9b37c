"""What an answer is: instruction, rendering, parsing."""
