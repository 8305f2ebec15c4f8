"""The `runtime` command."""

from gladstone.command import Group

main = Group(
    name="runtime",
    help="Chat with a GGUF model, offline. Every command takes the model file as its first argument.",
    lazy={
        "chat": ("runtime.chat:chat", "Talk with a model in the terminal."),
        "ask": ("runtime.ask:ask", "Put one question and print the answer."),
        "doctor": ("runtime.doctor:doctor", "Show what this machine is, how fast it is, and what is wrong with it."),
        "info": ("runtime.info:info", "Show what a model file holds and check it against its manifest."),
    },
)

if __name__ == "__main__":
    main()
