"""GGUF to text: the engine, and the commands that chat, ask and tell about a model file."""
