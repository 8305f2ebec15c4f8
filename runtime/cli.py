"""The `runtime` command."""

from gladstone.commands.group import Group

main = Group(
    name="runtime",
    help="Chat with a GGUF model, offline. Every command takes the model file as its first argument.",
    lazy={
        "chat": ("runtime.commands.chat:chat", "Talk with a model in the terminal."),
        "ask": ("runtime.commands.ask:ask", "Put one question and print the answer."),
        "doctor": (
            "runtime.commands.doctor:doctor",
            "Show this machine, how fast models run on it, and what is wrong.",
        ),
        "info": ("runtime.commands.info:info", "Show what a model file holds and check it against its manifest."),
    },
)

if __name__ == "__main__":
    main()
