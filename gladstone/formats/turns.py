"""Several turns of a row: the order they must have."""

from gladstone.chat import Message
from gladstone.errors import DataError


def check_order(messages: tuple[Message, ...], source: str) -> None:
    """Raises DataError unless user and assistant take turns, the assistant last, behind at most one system message."""
    roles = [message.role for message in messages]
    talk = roles[1:] if roles[0] == "system" else roles
    if talk and talk == ["user", "assistant"] * (len(talk) // 2):
        return
    shown = ", ".join(roles[:12]) + (f" and {len(roles) - 12} more" if len(roles) > 12 else "")
    raise DataError(
        f"{source}: roles are {shown}; expected user and assistant in turn, the assistant last, "
        "with at most one system message in front."
    )
