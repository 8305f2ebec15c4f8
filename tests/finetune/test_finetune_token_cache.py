from pathlib import Path
from typing import Any

import pytest

from finetune.tokens import token_cache
from finetune.tokens.examples import IGNORED, PairExample, TokenizedExample, TokenizedSet

PARTS = {"rows": "a", "template": "b", "limits": {"max_tokens": 8}}
MADE = TokenizedSet(
    (TokenizedExample((5, 6, 7), (IGNORED, 6, 7)), TokenizedExample((1, 2), (IGNORED, 2))), (0, 4), 3, 2, 1
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    return tmp_path / "tokenized"


def fail() -> TokenizedSet:
    raise AssertionError("made again")


@pytest.mark.parametrize("made", [MADE, TokenizedSet((PairExample((5, 6), (7, 8, 9)),), (1,))])
def test_what_was_made_comes_back_equal(made: TokenizedSet) -> None:
    assert token_cache.cached(PARTS, lambda: made) == (made, False)
    assert token_cache.cached(PARTS, fail) == (made, True)


@pytest.mark.parametrize("change", [{"rows": "A"}, {"template": "c"}, {"limits": {"max_tokens": 9}}, {"more": None}])
def test_whatever_changes_makes_it_again(change: dict[str, Any]) -> None:
    token_cache.cached(PARTS, lambda: MADE)
    with pytest.raises(AssertionError, match="made again"):
        token_cache.cached(PARTS | change, fail)


@pytest.mark.parametrize("damage", [b"", b"PK", b"no zip at all"])
def test_a_damaged_file_is_made_again(folder: Path, damage: bytes) -> None:
    token_cache.cached(PARTS, lambda: MADE)
    next(folder.iterdir()).write_bytes(damage)
    assert token_cache.cached(PARTS, lambda: MADE) == (MADE, False)
    assert token_cache.cached(PARTS, fail) == (MADE, True)


def test_a_cut_file_is_made_again(folder: Path) -> None:
    token_cache.cached(PARTS, lambda: MADE)
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-30])
    assert token_cache.cached(PARTS, lambda: MADE) == (MADE, False)


def test_old_files_go(folder: Path) -> None:
    for number in range(token_cache.KEPT_FILES + 5):
        token_cache.cached({"rows": number}, lambda: MADE)
    assert len(list(folder.iterdir())) == token_cache.KEPT_FILES


def test_a_cache_that_cannot_be_written_costs_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GLADSTONE_CACHE", str(blocked))
    assert token_cache.cached(PARTS, lambda: MADE) == (MADE, False)
