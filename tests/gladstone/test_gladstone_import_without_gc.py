import gc
import sys

import pytest

from gladstone.process.import_without_gc import import_without_gc


@pytest.fixture(autouse=True)
def thawed() -> None:
    gc.unfreeze()


def import_anew(name: str) -> None:
    sys.modules.pop(name, None)
    __import__(name)


def test_what_was_imported_is_left_out_of_every_search() -> None:
    with import_without_gc():
        assert not gc.isenabled()
        import_anew("json.tool")
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_garbage_is_not_kept_where_all_was_imported_before() -> None:
    with import_without_gc():
        import json  # noqa: F401
    assert gc.get_freeze_count() == 0


def test_an_import_that_fails_leaves_the_search_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), import_without_gc():
        import_anew("not_a_package_of_anyone")
    assert gc.isenabled()


def test_one_within_another_leaves_the_search_off_until_the_outer_ends() -> None:
    with import_without_gc():
        with import_without_gc():
            import_anew("json.tool")
        assert not gc.isenabled()
    assert gc.isenabled()
