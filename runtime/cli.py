"""The `runtime` command."""

from gladstone.commands.group import Group

main = Group(
    name="runtime",
    help="Chat with a GGUF model, offline. chat, ask and info take the model file as their first argument.",
    lazy={
        "chat": ("runtime.commands.chat:chat", "Chat with a model in the terminal."),
        "ask": ("runtime.commands.ask:ask", "Ask one question and print the answer."),
        "doctor": (
            "runtime.commands.doctor:doctor",
            "Show this machine, how fast models run on it, and what is wrong.",
        ),
        "info": ("runtime.commands.info:info", "Show what a model file contains and check it against its manifest."),
    },
)

if __name__ == "__main__":
    main()
