"""What is done to a row before training: safe changes, and those a user asks for."""
