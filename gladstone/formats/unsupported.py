"""Fields whose meaning is not supported in any layout: refused by name."""

from gladstone.formats.fields import Fields
from gladstone.formats.preference import LABELS

MEDIA = ("images", "image", "audios", "audio", "videos", "video")


def check_supported(row: Fields, layout: str) -> None:
    """Raise DataError for a row with images, audio or video, and for a row that is marked not to be trained on."""
    for name in MEDIA:
        if row.has(name) and isinstance(row.peek(name), str | bytes | list | dict):
            raise row.error(
                f"field {name!r}: only text can be trained on. Leave the field or such rows out, or name the fields of "
                "question and answer under columns."
            )
    for name in ("weight", "train", "training"):
        value = row.peek(name)
        if isinstance(value, bool | int | float) and value == 0:
            raise row.error(f"{name} {value}: the row is marked not to be trained on. Leave such rows out.")
        if value is True or value == 1:
            row.get(name)  # training on the row is the default
    for name in LABELS:
        if layout != "kto" and row.peek(name) is False:
            raise row.error(
                f"{name} false marks a bad answer (KTO). --format kto (format: kto in a recipe's source) takes the "
                "rows whose label is true and leaves the others out."
            )
        if row.peek(name) is True:
            row.get(name)
