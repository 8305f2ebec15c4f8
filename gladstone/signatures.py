"""File signatures: the first bytes that identify a kind of file, and the noun for each kind.

The advice to a user depends on what was expected instead: `gladstone.gguf.identify_file` has it for GGUF models,
`gladstone.rows.kinds` for rows.
"""

from enum import StrEnum


class FileKind(StrEnum):
    """A kind of file; its value is the noun for messages."""

    ZIP = "a zip archive"
    GZIP = "a gzip file"
    BZIP2 = "a bzip2 file"
    XZ = "an xz file"
    SEVEN_ZIP = "a 7z archive"
    RAR = "a RAR archive"
    ZSTD = "a zstd file"
    PICKLE = "a Python pickle"
    GGUF = "a model in GGUF"
    GGML = "a GGML file, the format of whisper.cpp, and of llama.cpp before GGUF"
    GGMF = "a GGMF file, llama.cpp's format of 2023"
    GGJT = "a GGJT file, llama.cpp's format of 2023"
    GGLA = "a GGLA file, llama.cpp's LoRA format before GGUF"
    HDF5 = "an HDF5 file, such as Keras weights"
    LLAMAFILE = "a llamafile, a program with a model inside"
    PROGRAM = "a program"
    PDF = "a PDF"
    RTF = "a Rich Text document"
    OFFICE = "an old Excel or Word file (.xls, .doc), or a workbook with a password"
    PICTURE = "an image"
    SQLITE = "an SQLite database"
    PARQUET = "a Parquet file, rows of data"
    ARROW = "an Arrow file"
    ARROW_STREAM = "an Arrow stream"


# if one signature begins with another, the longer one comes first
SIGNATURES = {
    b"PK\x03\x04": FileKind.ZIP,
    b"\x1f\x8b": FileKind.GZIP,
    b"BZh": FileKind.BZIP2,
    b"\xfd7zXZ": FileKind.XZ,
    b"7z\xbc\xaf": FileKind.SEVEN_ZIP,
    b"Rar!": FileKind.RAR,
    b"\x28\xb5\x2f\xfd": FileKind.ZSTD,
    b"\x80\x02": FileKind.PICKLE,
    b"\x80\x03": FileKind.PICKLE,
    b"\x80\x04": FileKind.PICKLE,
    b"GGUF": FileKind.GGUF,
    b"lmgg": FileKind.GGML,
    b"fmgg": FileKind.GGMF,
    b"tjgg": FileKind.GGJT,
    b"algg": FileKind.GGLA,
    b"\x89HDF": FileKind.HDF5,
    b"MZqFpD": FileKind.LLAMAFILE,
    b"\x7fELF": FileKind.PROGRAM,
    b"MZ": FileKind.PROGRAM,
    b"%PDF": FileKind.PDF,
    b"{\\rtf": FileKind.RTF,
    b"\xd0\xcf\x11\xe0": FileKind.OFFICE,
    b"\x89PNG": FileKind.PICTURE,
    b"\xff\xd8\xff": FileKind.PICTURE,
    b"SQLite format 3": FileKind.SQLITE,
    b"PAR1": FileKind.PARQUET,
    b"ARROW1": FileKind.ARROW,
    b"\xff\xff\xff\xff": FileKind.ARROW_STREAM,
}


def recognise(head: bytes) -> FileKind | None:
    """The kind of a file that begins with these bytes; None if no signature matches."""
    return next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), None)
