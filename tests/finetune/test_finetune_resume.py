from pathlib import Path

import pytest

from tests.families import write_family
from tests.finetune.resumed import BREAKS, CASES, STEPS, broken, largest_difference, load_case, trained, whole


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


SHORT = ("LoRA dropout 0.1", "QLoRA (NF4), dropout 0.1", "T5 (padded, grouped by length), dropout 0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in CASES]
)
def test_a_training_broken_anywhere_gives_the_losses_and_the_adapter_of_an_unbroken_one(
    name: str, bases: Path, tmp_path: Path
) -> None:
    import torch

    case = CASES[name]
    base = bases / case.family
    if not base.exists():
        write_family(case.family, base)
    subject = load_case(case, base, tmp_path)
    expected = whole(subject, tmp_path)
    adapter = trained(subject)
    assert len({stats.loss_nats_per_token for stats in expected.steps}) == STEPS
    assert [step for step, _ in expected.validation] == [3, 5, 7, 9]
    assert any(not torch.equal(value, subject.start[name]) for name, value in adapter.items())
    for where in BREAKS:
        found = broken(subject, tmp_path, where)
        assert largest_difference(expected, found) == 0, where
        assert all(torch.equal(value, adapter[name]) for name, value in trained(subject).items()), where
