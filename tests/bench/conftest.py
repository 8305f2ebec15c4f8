import json
from pathlib import Path

import pytest

ROWS = [
    {"question": "Which valve lies between the left atrium and ventricle?", "answer": "The mitral valve."},
    {"question": "Which organ makes insulin?", "answer": "The pancreas makes insulin."},
    {"question": "What carries oxygen in blood?", "answer": "Haemoglobin in red cells carries oxygen."},
]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path
