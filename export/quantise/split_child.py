"""Child process that splits a GGUF with the converter's `gguf` package."""

from pathlib import Path
from typing import Any

from gladstone.process.child_main import serve


def split(job: dict[str, Any]) -> list[str]:
    """Write the parts of `job["source"]` into the folder `job["out"]`; returns their names in order."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader, folder = GGUFReader(job["source"]), Path(job["out"])
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = GGUFWriter(
        folder / job["name"], fields["general.architecture"].contents(), split_max_size=int(job["limit"])
    )
    for name, field in fields.items():
        if name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    names = [path.name for path in writer.format_shard_names(writer.path)]
    writer.close()
    return names


if __name__ == "__main__":
    serve(split)
